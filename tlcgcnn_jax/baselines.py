"""Baselines: regressors on descriptors, which a transfer has to beat before it is worth its trouble."""

import numpy as np

from tlcgcnn_jax.config import Target
from tlcgcnn_jax.descriptors import Features
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.losses import transform_labels, untransform
from tlcgcnn_jax.regressors import REGRESSORS, Fitted, fit_regressor

BASELINES = tuple(REGRESSORS)


def baseline_predictions(
    name: str,
    features: Features,
    values: np.ndarray,
    train: np.ndarray,
    rows: np.ndarray,
    target: Target,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Fit a baseline on some crystals and predict others.

    Args:
        name: One of `BASELINES`; "mean" and "median" do not look at the features.
        features: Of all crystals, e.g. from `descriptors`.
        values: [n], labels of all crystals in the target's unit; those outside `train` are not looked at.
        train: int [n_train], rows to fit on, e.g. `split.train`.
        rows: int [n_rows], rows to predict, e.g. those of `split.val` and `split.test`.
        target: What the values are; as the networks do, a baseline learns the transformed value.
        seed: Of the inner folds and of the trees.

    Returns:
        (prediction, std), float64 [n_rows] each, in the target's unit; std is NaN where the regressor has none, and
        half the interval of one standard deviation to either side where the target is transformed.

    Raises:
        InputError: Unknown name, features of another number of crystals, a class as target, or a training label that
            is missing or that the transform cannot take.

    Example:
        >>> line = Features(("x",), np.arange(30.0)[:, None])
        >>> rows = np.arange(30)
        >>> prediction, _ = baseline_predictions("ridge", line, 2 * rows, rows[:20], rows[20:22], Target("y"))
        >>> prediction.round()
        array([40., 42.])
    """
    values = np.asarray(values, np.float64)
    if target.kind != "regression":
        raise InputError(f"target {target.name}: baselines predict numbers, not classes; leave them out of this target")
    if values.shape != (len(features.values),):
        raise InputError(f"values of shape {values.shape} for {len(features.values)} crystals' features")
    labels = transform_labels(values[train][:, None], [target])[:, 0]
    if not np.isfinite(labels).all():
        row = int(np.asarray(train)[np.argmin(np.isfinite(labels))])
        raise InputError(f"target {target.name}: crystal in row {row} has no label: leave it out of the training rows")
    return predict_in_unit(fit_regressor(name, features.values[train], labels, seed), features.values[rows], target)


def predict_in_unit(fitted: Fitted, x: np.ndarray, target: Target) -> tuple[np.ndarray, np.ndarray]:
    """Prediction and std of a regressor that has learnt a target's transformed value, as `baseline_predictions` says.

    Args:
        fitted: The regressor.
        x: float [n, d].
        target: What it has learnt.
    """
    mean, std = fitted.predict(x)
    low, middle, high = (untransform(value, target) for value in (mean - std, mean, mean + std))
    return middle, (high - low) / 2
