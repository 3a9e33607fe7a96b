"""How far a prediction can be trusted: conformal intervals, and whether a standard deviation means what it says."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tlcgcnn_jax.errors import InputError

LEVELS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True)
class Conformal:
    """Prediction intervals that hold the true value in a given share of cases, whatever the distribution of errors.

    Attributes:
        level: Share of crystals whose true value lies within, e.g. 0.9.
        quantile: Half the width of the interval, in the unit of the errors; in standard deviations where `scaled`;
            infinite where there were too few crystals for this level.
        scaled: The half-width is a multiple of the prediction's own standard deviation.
        n: Crystals that it was found from.
    """

    level: float
    quantile: float
    scaled: bool
    n: int

    def half_width(self, std: np.ndarray | float | None = None) -> np.ndarray | float:
        """Half the width of the interval around each prediction.

        Args:
            std: [n] standard deviation of each prediction; needed where `scaled`, ignored elsewhere.

        Returns:
            [n] as `std`, or one number for all crystals.

        Raises:
            InputError: No standard deviations for intervals that are scaled by them.
        """
        if not self.scaled:
            return self.quantile
        if std is None:
            raise InputError("these intervals are multiples of the standard deviation: give that of each prediction")
        return self.quantile * np.asarray(std, float)

    def __str__(self) -> str:
        share = f"{100 * self.level:g} % interval"
        if math.isinf(self.quantile):
            need = math.ceil(self.level / (1 - self.level) - 1e-9)
            return f"no {share}: {self.n} validation crystals, at least {need} are needed"
        unit = " standard deviations" if self.scaled else ""
        return f"{share}: ± {self.quantile:.3g}{unit}, from {self.n} validation crystals"


def conformal(val_error: np.ndarray, val_std: np.ndarray | None = None, level: float = 0.9) -> Conformal:
    """Split-conformal prediction intervals from the errors on crystals that were not trained on.

    For crystals drawn like the validation crystals, the interval holds the true value with a probability of at least
    `level`. Here the validation crystals have also chosen the epoch and the settings, so that their errors are a little
    too small and the guarantee is approximate; it does not hold for crystals of another kind (see `novelty`).

    Args:
        val_error: [n] errors on the validation crystals, of either sign.
        val_std: [n] standard deviations of the same predictions, positive: intervals that are wider where these are.
        level: Share of crystals to hold, in (0, 1).

    Raises:
        InputError: No or unknown errors, standard deviations that are not positive, or a level outside (0, 1).

    Example:
        >>> found = conformal(np.linspace(-1, 1, 21), level=0.9)
        >>> print(found, found.half_width())
        90 % interval: ± 1, from 21 validation crystals 1.0
        >>> print(conformal(np.ones(5)))
        no 90 % interval: 5 validation crystals, at least 9 are needed

    Source:
        Vovk, Gammerman & Shafer, Algorithmic Learning in a Random World (2005); Lei et al., J. Am. Stat. Assoc. 113,
        1094 (2018), algorithm 2 and, scaled, section 5.2.
    """
    if not 0 < level < 1:
        raise InputError(f"level is {level}: it is a share of crystals, in (0, 1)")
    score = np.abs(_finite("errors", val_error))
    if val_std is not None:
        score = score / _positive(val_std, len(score))
    n = len(score)
    # The rank counts the new crystal as one more of the same kind; 1e-9: 0.9 · 10 is 9, not 9.000000000000002.
    rank = math.ceil((n + 1) * level - 1e-9)
    quantile = float(np.sort(score)[rank - 1]) if rank <= n else math.inf
    return Conformal(level, quantile, val_std is not None, n)


def std_factor(val_error: np.ndarray, val_std: np.ndarray) -> float:
    """Factor by which standard deviations must be multiplied to be those of the errors.

    It is the one of greatest likelihood for normal errors. An ensemble's spread is usually too small: the factor, found
    on validation crystals, is then above 1.

    Args:
        val_error: [n] errors on the validation crystals.
        val_std: [n] standard deviations of the same predictions.

    Raises:
        InputError: No or unknown errors, or standard deviations that are not positive.

    Example:
        >>> std_factor(np.array([2.0, -2.0]), np.array([1.0, 1.0]))
        2.0

    Source:
        Laves et al., Proc. Mach. Learn. Res. 121, 393 (2020).
    """
    error = _finite("errors", val_error)
    return float(np.sqrt(np.mean((error / _positive(val_std, len(error))) ** 2)))


def coverage(error: np.ndarray, std: np.ndarray, levels: np.ndarray = LEVELS) -> np.ndarray:
    """Share of true values within the central interval that normal errors of this standard deviation would have.

    Args:
        error: [n] errors.
        std: [n] standard deviations.
        levels: [k] shares that the intervals should hold, in [0, 1].

    Returns:
        [k] shares that they do hold; equal to `levels` for perfect standard deviations.

    Raises:
        InputError: No or unknown errors, standard deviations that are not positive, or levels outside [0, 1].

    Example:
        >>> coverage(np.array([0.5, -1.5, 3.0]), np.ones(3), np.array([0.6827, 0.9545])).round(2).tolist()
        [0.33, 0.67]

    Source:
        Kuleshov, Fenner & Ermon, Proc. Mach. Learn. Res. 80, 2796 (2018).
    """
    from scipy.special import ndtri

    error, levels = _finite("errors", error), np.asarray(levels, float)
    if not ((levels >= 0) & (levels <= 1)).all():
        raise InputError(f"levels {levels.tolist()}: each is a share of crystals, in [0, 1]")
    score = np.sort(np.abs(error) / _positive(std, len(error)))
    return np.searchsorted(score, ndtri(0.5 + levels / 2), side="right") / len(score)


def miscalibration_area(error: np.ndarray, std: np.ndarray) -> float:
    """Area between the curve of `coverage` and the diagonal: 0 is perfect, 0.5 as bad as can be.

    Args:
        error: [n] errors.
        std: [n] standard deviations.

    Raises:
        InputError: As `coverage`.

    Example:
        >>> round(miscalibration_area(np.ones(10), np.full(10, 1e-3)), 1)
        0.5

    Source:
        Kuleshov, Fenner & Ermon (2018); Chung et al., arXiv:2109.10254 (2021).
    """
    gap = np.abs(coverage(error, std) - LEVELS)
    return float(np.mean((gap[1:] + gap[:-1]) / 2))  # trapezia on an even grid from 0 to 1


def sharpness(std: np.ndarray) -> float:
    """Root mean square of standard deviations, in their unit: of two calibrated models the sharper one says more.

    Args:
        std: [n] standard deviations.

    Raises:
        InputError: Standard deviations that are not positive.

    Example:
        >>> sharpness(np.array([3.0, 3.0]))
        3.0

    Source:
        Gneiting, Balabdaoui & Raftery, J. R. Stat. Soc. B 69, 243 (2007); Kuleshov, Fenner & Ermon (2018).
    """
    return float(np.sqrt(np.mean(_positive(std, len(std)) ** 2)))


class ConfidenceCurve(NamedTuple):
    """Mean absolute error of the crystals that remain when the least certain ones are left out.

    Attributes:
        removed: [n] share left out, from 0 to (n - 1) / n.
        mae: [n] error of the rest, in the unit of the errors.
        oracle: [n] the same, had the largest errors been known and left out.
    """

    removed: np.ndarray
    mae: np.ndarray
    oracle: np.ndarray

    @property
    def skill(self) -> float:
        """Area won below the error of all crystals, as a share of what the oracle wins: 0 is chance, 1 perfect."""
        whole = self.mae[0]
        best = np.mean(whole - self.oracle)
        return float(np.mean(whole - self.mae) / best) if best > 0 else 0.0


def confidence_curve(error: np.ndarray, std: np.ndarray) -> ConfidenceCurve:
    """Error against confidence: whether it falls where one keeps the predictions of small standard deviation.

    Args:
        error: [n] errors.
        std: [n] standard deviations, or any other measure of doubt, e.g. novelty.

    Raises:
        InputError: No or unknown errors, or not one measure of doubt for each.

    Example:
        >>> curve = confidence_curve(np.array([1.0, 2.0, 6.0]), np.array([0.1, 0.9, 0.5]))
        >>> curve.mae.tolist(), curve.oracle.tolist()
        ([3.0, 3.5, 1.0], [3.0, 1.5, 1.0])

    Source:
        Scalia et al., J. Chem. Inf. Model. 60, 2697 (2020).
    """
    error, doubt = np.abs(_finite("errors", error)), _finite("standard deviations", std)
    n = len(error)
    if len(doubt) != n:
        raise InputError(f"{len(doubt)} standard deviations of {n} errors: one each was expected")
    kept = np.arange(1, n + 1)
    # Equally certain crystals leave together: each counts as the mean of its like.
    _, group = np.unique(doubt, return_inverse=True)
    alike = (np.bincount(group, error) / np.bincount(group))[group]
    mae, oracle = (
        np.cumsum(values[order])[::-1] / kept[::-1]
        for values, order in ((alike, np.argsort(doubt, kind="stable")), (error, np.argsort(error, kind="stable")))
    )
    return ConfidenceCurve(np.arange(n) / n, mae, oracle)


def _finite(what: str, values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, float)
    unknown = int(np.sum(~np.isfinite(values)))
    if values.ndim != 1 or not len(values) or unknown:
        raise InputError(
            f"{what} of shape {values.shape}, {unknown} of them not finite: one number for each "
            "crystal, of at least one, was expected; leave out crystals without a label or a standard deviation"
        )
    return values


def _positive(std: np.ndarray, n: int) -> np.ndarray:
    std = _finite("standard deviations", std)
    if len(std) != n:
        raise InputError(f"{len(std)} standard deviations of {n} errors: one each was expected")
    if not (std > 0).all():
        raise InputError(
            f"{int(np.sum(std <= 0))} of {n} standard deviations are not positive: an ensemble of at least two "
            "different networks was expected; without one, use intervals of one width (no standard deviations)"
        )
    return std
