"""Weights of a mean of several predictions, chosen by crystals that none of them was trained on."""

from collections.abc import Callable

import numpy as np

from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.splits import k_fold

CHOICE = "choice"  # note of a model: {"weight", "val_mae"} by name of what it was chosen from
FEWEST = 9  # crystals, below which chance would choose
DRAWS = 60  # bootstrap samples of the crystals
STEPS = 12  # predictions, with repetition, that are joined in one draw
LEAST = 0.02  # weight, below which a prediction is not worth its time

Learnt = Callable[[np.ndarray], np.ndarray]


def choose_weights(
    predictions: np.ndarray,
    labels: np.ndarray,
    seed: int = 0,
    learnt: Learnt = np.asarray,
    squared: np.ndarray | bool = False,
    fewest: int = FEWEST,
) -> np.ndarray:
    """Weights of predictions whose weighted mean has a small error.

    Bagged ensemble selection: on each bootstrap sample of the crystals, the prediction that lowers the error of the
    mean most is added to it, again and again and with repetition, as long as that helps; the weights are the mean
    shares of all samples. Sampling keeps a prediction that was lucky on a few crystals from taking everything.

    Args:
        predictions: [k, n] or [k, n, columns], of k models, in the unit in which they are averaged.
        labels: [n] or [n, columns] in that unit, NaN where unknown. Each column counts in units of its own spread.
        seed: Of the bootstrap.
        learnt: From the unit to what the errors are measured in, e.g. `np.log10`, element by element.
        squared: Whether the square of each error counts, for all columns or [columns]: of probabilities those that are
            too sure have the smaller absolute errors, and those that are right the smaller squares.
        fewest: Crystals with a label, of fewer than which nothing is chosen.

    Returns:
        float64 [k], sum 1; none between 0 and 0.02. All equal where fewer than 9 (`fewest`) crystals have a label; 0
        for a prediction that is not finite everywhere.

    Raises:
        InputError: Shapes that do not fit, or no prediction that is finite.

    Example:
        >>> labels = np.linspace(0, 1, 50)
        >>> choose_weights(np.stack([labels + 0.1, labels - 0.1, labels + 5]), labels).round(1)
        array([0.5, 0.5, 0. ])

    Source:
        R. Caruana, A. Niculescu-Mizil, G. Crew and A. Ksikes, "Ensemble selection from libraries of models",
        ICML 2004, sections 2.1 to 2.3. The square: G. W. Brier, Mon. Weather Rev. 78, 1 (1950).
    """
    predictions, labels = np.asarray(predictions, np.float64), np.asarray(labels, np.float64)
    if predictions.ndim < 2 or predictions.shape[1:] != labels.shape:
        raise InputError(f"predictions of shape {predictions.shape} for labels of shape {labels.shape}: [k, n] and [n]")
    count, n = predictions.shape[:2]
    predictions, labels = predictions.reshape(count, n, -1), labels.reshape(n, -1)
    known = np.isfinite(labels).any(1)
    predictions, labels = predictions[:, known], labels[known]
    usable = _usable(predictions, learnt)
    weights = usable / usable.sum()
    if usable.sum() == 1 or len(labels) < fewest:
        return weights
    wanted = learnt(labels)
    squared = np.broadcast_to(squared, wanted.shape[1:])
    scale = np.stack([_scale(column, each) for column, each in zip(wanted.T, squared, strict=True)], axis=1)
    wanted = np.nan_to_num(wanted)
    rng = np.random.default_rng(seed)
    shares = np.zeros(int(usable.sum()))
    for _ in range(DRAWS):
        rows = rng.integers(0, len(wanted), len(wanted))
        shares += _selected(predictions[usable][:, rows], wanted[rows], scale[rows], learnt, squared)
    shares = np.where(shares < LEAST * DRAWS, 0.0, shares)
    weights[usable] = shares / shares.sum()
    return weights


def cross_fitted_mean(
    predictions: np.ndarray,
    labels: np.ndarray,
    seed: int = 0,
    learnt: Learnt = np.asarray,
    squared: np.ndarray | bool = False,
) -> np.ndarray:
    """The weighted mean for crystals that had no say in its weights: these are chosen by the others, fold by fold.

    Its errors are those to be expected on new crystals, which those of the chosen weights on the crystals that chose
    them are not.

    Args:
        predictions: [k, n] or [k, n, columns].
        labels: [n] or [n, columns].
        seed: Of the folds and the bootstrap.
        learnt: As in `choose_weights`.
        squared: As in `choose_weights`.

    Returns:
        As `labels`; of fewer than 9 crystals, which choose nothing, the mean.

    Example:
        >>> labels = np.linspace(0, 1, 50)
        >>> np.abs(cross_fitted_mean(np.stack([labels + 0.1, labels - 0.1]), labels) - labels).max() < 0.02
        np.True_
    """
    known = np.isfinite(labels).reshape(len(labels), -1).any(1)
    if known.sum() < FEWEST:
        return weighted_mean(predictions, choose_weights(predictions, labels, seed, learnt, squared))
    predictions = predictions[_usable(predictions[:, known], learnt)]
    out = np.empty(np.shape(labels))
    for fold in k_fold(len(labels), 5, seed):
        others = np.concatenate([fold.train, fold.val])
        weights = choose_weights(predictions[:, others], labels[others], seed, learnt, squared, fewest=1)
        out[fold.test] = weighted_mean(predictions[:, fold.test], weights)
    return out


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The mean of the values that have a weight, whatever the others are.

    Args:
        values: [k, …].
        weights: [k], sum 1.

    Example:
        >>> weighted_mean(np.array([[1.0], [3.0], [np.nan]]), np.array([0.5, 0.5, 0.0]))
        array([2.])
    """
    return np.tensordot(weights[weights > 0], values[weights > 0], 1)


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
    values, weights = values[weights > 0], weights[weights > 0]
    deviations = (values - np.tensordot(weights, values, 1)) ** 2
    return np.sqrt(np.tensordot(weights, deviations, 1) / max(1 - float(weights @ weights), 1e-12))


def _usable(predictions: np.ndarray, learnt: Learnt) -> np.ndarray:
    """Which predictions [k, n, …] are finite for all crystals."""
    with np.errstate(invalid="ignore", divide="ignore"):
        usable = np.all(np.isfinite(learnt(predictions)).reshape(len(predictions), -1), axis=1)
    if not usable.any():
        raise InputError(
            f"not one of {len(predictions)} predictions is finite for all {predictions.shape[1]} validation crystals"
        )
    return usable


def _scale(labels: np.ndarray, squared: bool) -> np.ndarray:
    """What an error of each crystal is multiplied by: one over the spread of the labels, 0 where there is none."""
    known = labels[np.isfinite(labels)]
    spread = 0.0
    if len(known):
        spread = float(known.var() if squared else np.abs(known - np.median(known)).mean())
    return np.isfinite(labels) / (spread or 1.0) / max(len(known), 1)


def _selected(
    predictions: np.ndarray, wanted: np.ndarray, scale: np.ndarray, learnt: Learnt, squared: np.ndarray
) -> np.ndarray:
    """The share of each prediction in the best mean that greedy steps come to."""
    total, taken = np.zeros_like(wanted), np.zeros(len(predictions))
    best, shares = np.inf, taken
    for step in range(1, STEPS + 1):
        errors = np.abs(learnt((total + predictions) / step) - wanted)
        errors = (np.where(squared, errors**2, errors) * scale).sum((1, 2))
        chosen = int(np.argmin(errors))
        total, taken = total + predictions[chosen], taken + np.eye(len(predictions))[chosen]
        if errors[chosen] < best:
            best, shares = errors[chosen], taken / step
    return shares
