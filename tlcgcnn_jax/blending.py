"""Weights of a mean of several predictions, chosen by crystals that none of them was trained on."""

import numpy as np

from tlcgcnn_jax.errors import InputError

DRAWS = 60  # bootstrap samples of the crystals
STEPS = 12  # predictions, with repetition, that are joined in one draw
CHOICE = "choice"  # note of a model: {"weight", "val_mae"} by name of what it was chosen from
FEWEST = 9  # crystals, below which chance would choose


def choose_weights(predictions: np.ndarray, labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """Weights of predictions whose weighted mean has a small mean absolute error.

    Bagged ensemble selection: on each bootstrap sample of the crystals, the prediction that lowers the error of the
    mean most is added to it, again and again and with repetition, as long as that helps; the weights are the mean
    shares of all samples. Sampling keeps a prediction that was lucky on a few crystals from taking everything.

    Args:
        predictions: [k, n] or [k, n, n_target], of k models.
        labels: [n] or [n, n_target], NaN where unknown. Of several targets each counts in units of its own spread.
        seed: Of the bootstrap.

    Returns:
        float64 [k], not negative, with sum 1; all equal where fewer than 9 crystals have a label.

    Raises:
        InputError: Shapes that do not fit, or a prediction that is not finite.

    Example:
        >>> labels = np.linspace(0, 1, 50)
        >>> choose_weights(np.stack([labels + 0.1, labels - 0.1, labels + 5]), labels).round(1)
        array([0.5, 0.5, 0. ])

    Source:
        R. Caruana, A. Niculescu-Mizil, G. Crew and A. Ksikes, "Ensemble selection from libraries of models",
        ICML 2004, sections 2.1 to 2.3.
    """
    predictions, labels = np.asarray(predictions, np.float64), np.asarray(labels, np.float64)
    if predictions.ndim < 2 or predictions.shape[1:] != labels.shape:
        raise InputError(f"predictions of shape {predictions.shape} for labels of shape {labels.shape}: [k, n] and [n]")
    if not np.isfinite(predictions).all():
        raise InputError(f"prediction {int(np.argmin(np.isfinite(predictions).reshape(len(predictions), -1).all(1)))} "
                         "is not finite everywhere: leave it out")  # fmt: skip
    count, n = predictions.shape[:2]
    predictions, labels = predictions.reshape(count, n, -1), labels.reshape(n, -1)
    known = np.isfinite(labels).any(1)
    predictions, labels = predictions[:, known], labels[known]
    if count == 1 or len(labels) < FEWEST:
        return np.full(count, 1 / count)
    scale = np.stack([_scale(column) for column in labels.T], axis=1)
    labels = np.nan_to_num(labels)
    rng = np.random.default_rng(seed)
    shares = np.zeros(count)
    for _ in range(DRAWS):
        rows = rng.integers(0, len(labels), len(labels))
        shares += _selected(predictions[:, rows], labels[rows], scale[rows])
    return shares / shares.sum()


def weighted_std(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Standard deviation between weighted values, the usual one (n - 1) where all weights are equal.

    Args:
        values: [k, …].
        weights: [k], sum 1.

    Returns:
        […], 0 where one value has all the weight.

    Example:
        >>> weighted_std(np.array([1.0, 3.0]), np.array([0.5, 0.5])) == np.std([1.0, 3.0], ddof=1)
        np.True_
    """
    deviations = (values - np.tensordot(weights, values, 1)) ** 2
    return np.sqrt(np.tensordot(weights, deviations, 1) / max(1 - float(weights @ weights), 1e-12))


def _scale(labels: np.ndarray) -> np.ndarray:
    """What an error of each crystal is multiplied by: one over the spread of the labels, 0 where there is none."""
    known = labels[np.isfinite(labels)]
    spread = float(np.abs(known - np.median(known)).mean()) if len(known) else 0.0
    return np.isfinite(labels) / (spread or 1.0)


def _selected(predictions: np.ndarray, labels: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The share of each prediction in the best mean that greedy steps come to."""
    total, taken = np.zeros_like(labels), np.zeros(len(predictions))
    best, shares = np.inf, taken
    for step in range(1, STEPS + 1):
        errors = (np.abs((total + predictions) / step - labels) * scale).sum((1, 2))
        chosen = int(np.argmin(errors))
        total, taken = total + predictions[chosen], taken + np.eye(len(predictions))[chosen]
        if errors[chosen] < best:
            best, shares = errors[chosen], taken / step
    return shares
