"""Error bars of a model: 90 % intervals, from the errors on its validation crystals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tlcgcnn_jax.calibration import Conformal, conformal
from tlcgcnn_jax.config import Target
from tlcgcnn_jax.losses import transform, untransform

LEVEL = 0.9
FLOOR = 0.1  # share of the validation crystals below whose standard deviations none is believed


@dataclass(frozen=True)
class ErrorBar:
    """What the errors on validation crystals say about those on others, for one target, in the space that is learnt.

    The validation crystals have chosen the epoch of networks as well, and the kind of the interval, so that their
    errors are a little too small, and the share of crystals within it a little below `level`. In a blend each of them
    is predicted by weights that others have chosen. Where each network has held out crystals of its own, errors are
    those of single networks, which the mean of all is better than.

    Attributes:
        level: Share of crystals whose true value lies within the interval.
        quantile: Half the width of the interval, in standard deviations of the prediction where `normalised`; None
            where there are too few validation crystals.
        normalised: The half-width is a multiple of the prediction's own standard deviation.
        n: Validation crystals with a label.
        floor: Smallest standard deviation that is believed, where `normalised`: networks that agree by chance, or all
            at the bound of the training labels, are not certain.
    """

    level: float
    quantile: float | None
    normalised: bool
    n: int
    floor: float = 0.0

    @property
    def conformal(self) -> Conformal:
        """The interval, for any prediction."""
        return Conformal(self.level, np.inf if self.quantile is None else self.quantile, self.normalised, self.n)

    def __str__(self) -> str:
        return str(self.conformal)


def fit_error_bars(
    targets: Sequence[Target], labels: np.ndarray, values: np.ndarray, std: np.ndarray | None
) -> tuple[ErrorBar | None, ...]:
    """Intervals for each target from predictions of crystals that were not trained on.

    Args:
        targets: What was learnt.
        labels: [n, n_target] in the targets' units, NaN where unknown.
        values: [n, n_target], predictions in these units.
        std: [n, n_target], standard deviations of the predictions in the space that is learnt; None without. Intervals
            are multiples of them where nine in ten are positive and this makes intervals of these crystals narrower on
            average than one width for all.

    Returns:
        One for each target; None for classes and for targets without a label.

    Example:
        >>> column = np.arange(1.0, 11.0)[:, None]
        >>> print(*fit_error_bars([Target("k")], column, column + 0.5, None))
        90 % interval: ± 0.5, from 10 validation crystals
    """
    bars: list[ErrorBar | None] = []
    for column, target in enumerate(targets):
        known = np.isfinite(labels[:, column]) & np.isfinite(values[:, column])
        if target.kind != "regression" or not known.any():
            bars.append(None)
            continue
        error = transform(values[known, column], target) - transform(labels[known, column], target)
        own, floor = None if std is None else std[known, column], 0.0
        if own is not None:
            floor = float(np.quantile(own, FLOOR)) if np.isfinite(own).all() else 0.0
            own = np.maximum(own, floor) if floor > 0 else None
        found = conformal(error, None, LEVEL)
        if own is not None:
            # Standard deviations that tell little, such as those of two networks, would make the intervals wide.
            scaled = conformal(error, own, LEVEL)
            if scaled.quantile * own.mean() < found.quantile:
                found = scaled
            else:
                own, floor = None, 0.0
        quantile = float(found.quantile) if np.isfinite(found.quantile) else None
        bars.append(ErrorBar(LEVEL, quantile, own is not None, len(error), floor))
    return tuple(bars)


def intervals(
    bars: Sequence[ErrorBar | None], targets: Sequence[Target], values: np.ndarray, std: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray] | None:
    """The interval of each prediction, in the targets' units.

    Args:
        bars: From `fit_error_bars`; () for none.
        targets: What was learnt.
        values: [n, n_target], predictions in the targets' units.
        std: As in `fit_error_bars`.

    Returns:
        (low, high), [n, n_target] each, NaN for targets without an interval; None where no target has one.
    """
    if not any(bar is not None and bar.quantile is not None for bar in bars):
        return None
    low, high = np.full(values.shape, np.nan), np.full(values.shape, np.nan)
    for column, (bar, target) in enumerate(zip(bars, targets, strict=True)):
        if bar is None or bar.quantile is None or (bar.normalised and std is None):
            continue
        half = bar.conformal.half_width(None if std is None else np.maximum(std[:, column], bar.floor))
        middle = transform(values[:, column], target)
        with np.errstate(over="ignore"):  # an interval without end is written as such
            low[:, column], high[:, column] = untransform(middle - half, target), untransform(middle + half, target)
    return low, high
