"""Predictions with their error bars, and their errors in the targets' units."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tlcgcnn_jax import losses
from tlcgcnn_jax.bundle import Model
from tlcgcnn_jax.committee import AnyModel, Committee
from tlcgcnn_jax.error_bars import fit_error_bars, intervals
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.feature_model import FeatureModel, some_rows
from tlcgcnn_jax.graph_sets import GraphSets, pack_graphs
from tlcgcnn_jax.machine import in_float32
from tlcgcnn_jax.novelty import fit_novelty
from tlcgcnn_jax.outputs import head_features, network_outputs
from tlcgcnn_jax.predictions import Predictions, mixture
from tlcgcnn_jax.zoo import load_model

logger = logging.getLogger(__name__)


@in_float32
def predict(
    model: AnyModel | str | Path,
    inputs: Any,
    *,
    id_column: str | None = None,
    on_error: str = "raise",
    batch_size: int | None = None,
    progress: bool = False,
) -> Predictions:
    """Predict the targets of crystals; graphs are built from the model's own settings.

    Crystals that are unlike those that the model was trained on are named in a warning in the log.

    Args:
        model: From `load_model`, the `model` of what `fit` or `transfer` gave, or the name or folder of one.
        inputs: Whatever `read_structures` takes (a path, pymatgen Structures, a DataFrame, …), or a prepared dataset.
        id_column: Column that holds the ids, see `read_structures`.
        on_error: "raise", or "skip" to list bad crystals in `skipped` and go on.
        batch_size: Crystals in a batch, on average, of networks with one source; mixtures of sources, and the features
            of regressors, are computed in batches of their own. Default: what is fastest on the device.
        progress: Show a bar while crystals are read.

    Returns:
        One row for each crystal that could be read, in the order of the input; the others are in `skipped`.

    Raises:
        InputError: No such model, a crystal that cannot be read, a dataset with other graph settings than the model's,
            or a batch of no crystals.

    Example:
        >>> from tlcgcnn_jax import predict, textbook_records
        >>> found = predict("mp-elastic", textbook_records()[:2])
        >>> found.ids, found.values.shape
        (['diamond-C', 'diamond-Si'], (2, 2))
    """
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size is {batch_size}: at least 1, or None for what is fastest")
    if isinstance(model, str | Path):
        model = load_model(model)
    elif not isinstance(model, Model | FeatureModel | Committee):
        raise InputError(
            f"the model is of type {type(model).__name__}: give one from load_model, its name or folder, or the "
            "`model` of a result"
        )
    crystals = pack_graphs(inputs, model.graphs, id_column=id_column, on_error=on_error, progress=progress)
    found = replace(predict_packed(model, crystals, batch_size), skipped=tuple(crystals.skipped))
    if found.novel:
        logger.warning("%s", found.novel)
    return found


def predict_packed(model: AnyModel, crystals: GraphSets, batch_size: int | None = None) -> Predictions:
    """Predictions of crystals that are packed for all that a model needs, with its error bars.

    Raises:
        InputError: As `predict`.
    """
    found = _said(model, crystals, batch_size)
    ends = intervals(model.calibration, model.targets, found.values, found.learnt_std)
    return found if ends is None else replace(found, low=ends[0], high=ends[1])


def _said(model: AnyModel, crystals: GraphSets, batch_size: int | None) -> Predictions:
    """Predictions and novelty, without intervals."""
    ids, targets = list(crystals.datasets[0].ids), model.targets
    if isinstance(model, Committee):
        return mixture([_said(part, crystals, batch_size) for part in model.parts.values()], model.weights)
    if isinstance(model, FeatureModel):
        table = model.features(crystals)
        each = [fitted.predict(table) for fitted in model.fitted]
        values = [losses.untransform(mean, target) for (mean, _), target in zip(each, targets, strict=True)]
        own = np.stack([std for _, std in each], -1)[None]
        novelty = model.novelty.score(table)
        return Predictions(
            ids, targets, np.stack(values, -1)[None], own_std=own if np.isfinite(own).any() else None, novelty=novelty
        )
    dataset = crystals[model.graph]
    network = replace(model, graph=dataset.graph).network  # for the same graphs, in the dataset's layout
    members = [
        losses.denormalise(network_outputs(network, member, dataset, batch_size), targets, model.normaliser)
        for member in model.members
    ]
    novelty = model.novelty and model.novelty.score(head_features(network, model.members[0], dataset))
    return Predictions(ids, targets, np.stack(members), novelty=novelty)


def predict_rows(model: AnyModel, crystals: GraphSets, rows: np.ndarray) -> Predictions:
    """Predictions of some crystals, without intervals.

    Args:
        model: The model.
        crystals: Packed for all that it needs.
        rows: Which.
    """
    if not len(rows):
        return Predictions([], model.targets, np.zeros((1, 0, sum(target.outputs for target in model.targets))))
    return _said(model, GraphSets(tuple(dataset.select(rows) for dataset in crystals.datasets)), None)


def with_novelty(model: Model, crystals: GraphSets, rows: np.ndarray) -> Model:
    """A freshly trained network that knows its training crystals, or a thousand of them.

    Args:
        model: The network.
        crystals: That it was trained on.
        rows: Rows of these.
    """
    if len(rows) < 2:
        return model
    dataset = crystals[model.graph].select(rows[some_rows(len(rows), 0)])
    network = replace(model, graph=dataset.graph).network
    return replace(model, novelty=fit_novelty(head_features(network, model.members[0], dataset)))


def with_error_bars(model: AnyModel, held: Predictions, labels: np.ndarray, scaled: bool = True) -> AnyModel:
    """A freshly trained model that knows its errors on crystals that it had not learnt from.

    Args:
        model: The model.
        held: What it, or what it was made of, had said of them.
        labels: [n, n_target] of these, NaN where unknown.
        scaled: The standard deviations of `held` are of the same kind as those of the model's predictions, so that
            intervals may be multiples of them; False: intervals of one width.
    """
    if not len(labels):
        return model
    std = held.learnt_std if scaled else None
    return replace(model, calibration=fit_error_bars(model.targets, labels, held.values, std))


def metrics(
    predictions: Predictions, labels: np.ndarray, rows: np.ndarray | None = None
) -> dict[str, dict[str, float]]:
    """Errors of each target on some rows.

    Args:
        predictions: Of all crystals.
        labels: float [n, n_target] in the targets' units, NaN where unknown.
        rows: Row numbers; default: all.

    Returns:
        {target name: {"mae", "rmse", "r2", "median_ae", "n"}} in the target's unit, or {"accuracy", "log_loss",
        "roc_auc" (two classes), "n"}.
    """
    rows = np.arange(len(labels)) if rows is None else rows
    out = {}
    for column, (target, part) in enumerate(
        zip(predictions.targets, losses.output_slices(predictions.targets), strict=True)
    ):
        known = rows[np.isfinite(labels[rows, column])]
        label, mean = labels[known, column], predictions.mean[known][:, part]
        if target.kind == "classification":
            out[target.name] = classification_metrics(label.astype(int), mean)
        else:
            out[target.name] = regression_metrics(label, mean[:, 0])
    return out


def interval_metrics(predictions: Predictions, labels: np.ndarray, rows: np.ndarray) -> dict[str, dict[str, float]]:
    """What the 90 % intervals are worth on crystals that neither trained nor validated.

    Args:
        predictions: Of all crystals.
        labels: float [n, n_target] in the targets' units, NaN where unknown.
        rows: Row numbers.

    Returns:
        {target name: {"coverage_90": share of true values within, "interval_width": mean width in the target's unit}},
        without targets that have no interval.
    """
    out: dict[str, dict[str, float]] = {}
    if predictions.low is None or predictions.high is None:
        return out
    for column, target in enumerate(predictions.targets):
        label, low, high = (values[rows, column] for values in (labels, predictions.low, predictions.high))
        known = np.isfinite(label) & ~np.isnan(low)
        if known.any():
            within = (low <= label) & (label <= high)
            out[target.name] = {
                "coverage_90": float(within[known].mean()),
                "interval_width": float((high - low)[known].mean()),
            }
    return out


def regression_metrics(target: np.ndarray, prediction: np.ndarray) -> dict[str, float]:
    """Mean and median absolute error, root mean square error (in the unit of `target`), R², number of crystals.

    Example:
        >>> regression_metrics(np.array([0.0, 1.0, 2.0]), np.array([0.0, 1.0, 3.0]))["r2"]
        0.5
    """
    if not len(target):
        return {"mae": float("nan"), "rmse": float("nan"), "r2": float("nan"), "median_ae": float("nan"), "n": 0}
    error = np.asarray(prediction, float) - target
    spread = np.sum((target - np.mean(target)) ** 2)
    return {
        "mae": float(np.mean(np.abs(error))),
        "rmse": float(np.sqrt(np.mean(error**2))),
        "r2": float(1 - np.sum(error**2) / spread) if spread > 0 else float("nan"),
        "median_ae": float(np.median(np.abs(error))),
        "n": len(target),
    }


def classification_metrics(target: np.ndarray, probability: np.ndarray) -> dict[str, float]:
    """Accuracy, mean log loss, ROC-AUC (two classes, ties count half), number of crystals.

    Args:
        target: int [n].
        probability: [n, classes].

    Example:
        >>> classification_metrics(np.array([0, 1]), np.array([[0.9, 0.1], [0.6, 0.4]]))["roc_auc"]
        1.0
    """
    if not len(target):
        return {"accuracy": float("nan"), "log_loss": float("nan"), "n": 0}
    chosen = np.take_along_axis(probability, target[:, None], 1)[:, 0]
    out = {
        "accuracy": float(np.mean(probability.argmax(1) == target)),
        "log_loss": float(-np.mean(np.log(np.maximum(chosen, 1e-15)))),
    }
    positive, negative = int(np.sum(target == 1)), int(np.sum(target == 0))
    if probability.shape[1] == 2 and positive and negative:
        from scipy.stats import rankdata

        ranks = rankdata(probability[:, 1])  # Mann-Whitney
        out["roc_auc"] = float((ranks[target == 1].sum() - positive * (positive + 1) / 2) / (positive * negative))
    return out | {"n": len(target)}
