"""Intervals, paired comparisons and the worth of a transfer in labels, from arrays of errors.

Two kinds of luck stand between a difference of errors and a statement: which crystals are tested, and which crystals,
initial weights and batches one trains with. A bootstrap over crystals sees the first, an interval over seeds mainly the
second. A verdict must hold against both.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from tlcgcnn_jax.errors import InputError

ALPHA = 0.05
BLOCK = 2**21  # resampled crystals held in memory at once
NAN = float("nan")


class Interval(NamedTuple):
    """A mean and its 95 % interval; the ends are NaN where there is only one value."""

    mean: float
    low: float
    high: float


class SeedErrors(NamedTuple):
    """Absolute errors of one run on its test crystals.

    Attributes:
        seed: Of the run.
        rows: int [n], which crystals; no crystal twice.
        errors: float [n].
    """

    seed: int
    rows: np.ndarray
    errors: np.ndarray


@dataclass(frozen=True)
class Comparison:
    """Whether one way is better than another, on the same crystals.

    Attributes:
        gain_percent: Reduction of the mean absolute error, in per cent of the baseline's; NaN where that is 0.
        low: Lower end of its 95 % interval.
        high: Upper end.
        p_value: Wilcoxon's signed-rank test on the crystals' errors, two-sided, and large where its ranks point the
            other way than the gain; corrected for the number of comparisons by `correct`.
        verdict: "helps", "hurts", or "no evidence" where the interval holds zero or the test does not see it.
        n_crystals: Distinct crystals compared.
        seed_gains: Gain in each seed, in per cent; empty where repeats were averaged before.
    """

    gain_percent: float
    low: float
    high: float
    p_value: float
    verdict: str
    n_crystals: int = 0
    seed_gains: tuple[float, ...] = ()


def mean_interval(values: Sequence[float] | np.ndarray, seed: int = 0, resamples: int = 4000) -> Interval:
    """Mean of a few values, one a seed, with a 95 % bootstrap interval that is not too narrow for 3 to 10 of them.

    The percentile bootstrap of five values covers the truth in 83 % of all cases: it takes the spread of the sample for
    that of the population, and the normal distribution for Student's. The ends of its interval are therefore moved away
    from the mean by sqrt(n / (n - 1)) · t(n - 1) / z, which keeps their asymmetry and gives 95 % for normal values and
    about 90 % for skewed ones.

    Args:
        values: [n], one a seed.
        seed: Of the bootstrap.
        resamples: Of the bootstrap.

    Raises:
        InputError: No values, or one that is not finite.

    Example:
        >>> mean, low, high = mean_interval([1.0, 2.0, 3.0])
        >>> round(mean, 1), low < 0, high > 4
        (2.0, True, True)

    Source:
        Hesterberg, Am. Stat. 69, 371 (2015), on narrowness and its correction; Efron & Tibshirani, An Introduction to
        the Bootstrap (1993), chapters 12 and 13.
    """
    values = np.asarray(values, float)
    n = len(values)
    if not n or not np.isfinite(values).all():
        raise InputError(f"mean over seeds: the values are {values.tolist()}: at least one was expected, all finite")
    mean = float(values.mean())
    if n == 1:
        return Interval(mean, NAN, NAN)
    from scipy.stats import norm, t

    rng = np.random.default_rng(seed)
    low, high = np.percentile(values[rng.integers(0, n, (resamples, n))].mean(1) - mean, [100 * ALPHA / 2, 97.5])
    wider = math.sqrt(n / (n - 1)) * t.ppf(1 - ALPHA / 2, n - 1) / norm.ppf(1 - ALPHA / 2)
    return Interval(mean, float(mean + wider * low), float(mean + wider * high))


def compare(
    baseline: np.ndarray,
    other: np.ndarray,
    seed: int = 0,
    resamples: int = 4000,
    groups: Sequence[Hashable] | None = None,
) -> Comparison:
    """Compare two ways by their absolute errors on the same crystals, each error a mean over repeats.

    The interval is a percentile bootstrap over crystals: the crystals are the sample, repeats over other splits or
    seeds of the same crystals are not independent of each other and are averaged first.

    Args:
        baseline: [n] absolute errors.
        other: [n] absolute errors.
        seed: Of the bootstrap.
        resamples: Of the bootstrap.
        groups: One label a crystal, e.g. its formula: crystals with the same label are resampled together and enter
            the test as one, because they are no independent evidence.

    Returns:
        The gain of `other` over `baseline` in per cent, its interval, p-value and verdict; without `seed_gains`.

    Raises:
        InputError: Not the same number of crystals, none, an error that is not finite, or not one group label each.

    Example:
        >>> import numpy as np
        >>> from tlcgcnn_jax import compare
        >>> errors = np.linspace(1, 2, 40)
        >>> compare(errors, 0.5 * errors).verdict
        'helps'

    Source:
        Wilcoxon, Biometrics Bull. 1, 80 (1945); Efron & Tibshirani (1993), chapter 13.
    """
    from scipy.stats import wilcoxon

    baseline, other = np.asarray(baseline, float), np.asarray(other, float)
    if baseline.shape != other.shape or not len(baseline):
        raise InputError(f"{len(baseline)} errors against {len(other)}: one for each crystal was expected of both")
    if not (np.isfinite(baseline).all() and np.isfinite(other).all()):
        raise InputError("an error is not finite: leave out, of both ways, the crystals that either could not predict")
    n = len(baseline)
    gain = _gain(baseline.mean(), other.mean())
    if groups is not None:
        if len(groups) != n:
            raise InputError(f"{len(groups)} group labels for {n} crystals: one each was expected")
        _, group = np.unique(np.array([str(label) for label in groups]), return_inverse=True)
        baseline, other = np.bincount(group, baseline), np.bincount(group, other)
        members = np.bincount(group)
    else:
        members = np.ones(n)
    gains = _resampled_gains(baseline, other, np.random.default_rng(seed), resamples)
    low, high = np.nanpercentile(gains, [2.5, 97.5]) if np.isfinite(gain) else (NAN, NAN)
    # Ranks may point the other way than means of a heavy tail do: two-sided, but only the gain's direction is evidence.
    side = "greater" if gain > 0 else "less"
    test: Any = wilcoxon(baseline / members, other / members, alternative=side) if np.any(baseline != other) else None
    p_value = min(1.0, 2 * float(test.pvalue)) if test else 1.0
    return Comparison(gain, float(low), float(high), p_value, verdict(low, high, p_value), n)


def compare_runs(
    baseline: Sequence[SeedErrors],
    other: Sequence[SeedErrors],
    formulas: Sequence[str] | None = None,
    resamples: int = 2000,
) -> Comparison:
    """Compare two ways by their runs with the same seeds, on the same test crystals in each seed.

    Crystals: the errors of a crystal are averaged over the seeds that tested it, then compared by `compare`.
    Seeds: the gain of each seed has a mean and an interval by `mean_interval`.
    The interval of the comparison reaches as far as the farther of both, so that neither lucky crystals nor lucky
    trainings make a verdict: a false one is as rare as `ALPHA`, in simulations with and without luck of training. One
    seed alone says nothing about trainings: the interval is NaN and the verdict "no evidence".

    Args:
        baseline: Runs of the one way, one a seed.
        other: Runs of the other way.
        formulas: Formula of each row number; crystals of one formula are resampled together.
        resamples: Of the bootstraps.

    Raises:
        InputError: Not the same seeds, or other test crystals in one of them.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> runs = [SeedErrors(seed, np.arange(50), rng.gamma(2.0, size=50)) for seed in range(5)]
        >>> found = compare_runs(runs, [SeedErrors(run.seed, run.rows, 0.8 * run.errors) for run in runs])
        >>> found.verdict, round(found.gain_percent)
        ('helps', 20)
    """
    runs = _paired(baseline, other)
    rows = np.concatenate([before.rows for before, _ in runs])
    crystals, place = np.unique(rows, return_inverse=True)
    tested = np.bincount(place)
    sums = [np.bincount(place, np.concatenate([pair[way].errors for pair in runs]).astype(float)) for way in (0, 1)]
    groups = None if formulas is None else [formulas[row] for row in crystals]
    found = compare(sums[0] / tested, sums[1] / tested, resamples=resamples, groups=groups)
    gains = tuple(_gain(before.errors.mean(), after.errors.mean()) for before, after in runs)
    _, low, high = mean_interval(gains, resamples=resamples) if np.isfinite(gains).all() else (NAN, NAN, NAN)
    low, high = np.minimum(found.low, low), np.maximum(found.high, high)
    found = replace(found, low=float(low), high=float(high), seed_gains=gains)
    return replace(found, verdict=verdict(found.low, found.high, found.p_value))


def verdict(low: float, high: float, p_value: float) -> str:
    """A comparison in words, from the interval of its gain and its p-value.

    Example:
        >>> verdict(2.0, 20.0, 0.01), verdict(-2.0, 20.0, 0.01), verdict(-9.0, -3.0, 0.01)
        ('helps', 'no evidence', 'hurts')
    """
    sure = p_value < ALPHA
    return "helps" if low > 0 and sure else "hurts" if high < 0 and sure else "no evidence"


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """p-values corrected for their number, so that one false alarm among all of them stays as rare as `ALPHA`.

    Args:
        p_values: [n] of one family of comparisons.

    Returns:
        [n], in the same order, at most 1.

    Example:
        >>> holm([0.01, 0.04, 0.03]).round(2).tolist()
        [0.03, 0.06, 0.06]

    Source:
        Holm, Scand. J. Stat. 6, 65 (1979).
    """
    p_values = np.asarray(p_values, float)
    order = np.argsort(p_values, kind="stable")
    corrected = np.empty(len(p_values))
    corrected[order] = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    return np.minimum(corrected, 1.0)


def correct(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons of one family, with p-values by `holm` and the verdicts that follow from them.

    The correction is for luck with the crystals. Luck with trainings is held at `ALPHA` in each comparison, by the
    interval over seeds, not over the family: correcting that too would leave 3 to 5 seeds no chance to see anything.
    """
    corrected = holm([found.p_value for found in comparisons]).tolist()
    return [
        replace(found, p_value=p_value, verdict=verdict(found.low, found.high, p_value))
        for found, p_value in zip(comparisons, corrected, strict=True)
    ]


def catch_up(sizes: Sequence[int], scratch: Sequence[float], goals: Sequence[float]) -> list[float | None]:
    """Labels that training from scratch needs to reach some errors, such as those of transfer.

    The errors from scratch are made to fall monotonically (the nearest such curve in log error), and joined by straight
    lines in log-log, in which learning curves are nearly straight.

    Args:
        sizes: [n] training crystals, increasing.
        scratch: [n] mean absolute errors from scratch.
        goals: [m] errors to be reached, in the same unit.

    Returns:
        [m]; None where scratch does not get there with the largest size; the smallest size where it is there at once.

    Raises:
        InputError: Sizes that do not increase, or errors that are not positive.

    Example:
        >>> [n and round(n) for n in catch_up([50, 100, 200], [1.0, 0.5, 0.25], [0.5, 0.35, 0.2])]
        [100, 143, None]

    Source:
        Hestness et al., arXiv:1712.00409 (2017), on learning curves as power laws.
    """
    x, y = _curves(sizes, scratch)
    if not all(goal > 0 for goal in goals):
        raise InputError(f"errors to be reached {list(goals)}: positive ones were expected")
    y = _falling(y)
    found: list[float | None] = []
    for goal in np.log(goals):
        there = np.flatnonzero(y <= goal + 1e-12)
        if not len(there):
            found.append(None)
        elif there[0] == 0:
            found.append(float(sizes[0]))
        else:
            i = there[0]
            share = (y[i - 1] - goal) / (y[i - 1] - y[i])
            found.append(float(np.exp(x[i - 1] + share * (x[i] - x[i - 1]))))
    return found


def crossing(sizes: Sequence[int], scratch: Sequence[float], transfer: Sequence[float]) -> float | None:
    """Size from which training from scratch is no worse than transfer, where the learning curves cross for good.

    Args:
        sizes: [n] training crystals, increasing.
        scratch: [n] mean absolute errors from scratch.
        transfer: [n] mean absolute errors of the transfer, in the same unit.

    Returns:
        The size, between two sizes on straight lines in log-log; None where transfer is still better at the largest.

    Raises:
        InputError: Sizes that do not increase, or errors that are not positive.

    Example:
        >>> round(crossing([50, 200], [1.0, 0.25], [0.5, 0.5]))
        100
    """
    x, before, after = _curves(sizes, scratch, transfer)
    ahead = before - after  # above zero: transfer is better
    better = np.flatnonzero(ahead > 1e-12)
    if not len(better):
        return float(sizes[0])
    i = better[-1]
    if i == len(x) - 1:
        return None
    return float(np.exp(x[i] + ahead[i] / (ahead[i] - ahead[i + 1]) * (x[i + 1] - x[i])))


def _gain(baseline: float, other: float) -> float:
    return float(100 * (1 - other / baseline)) if baseline else NAN  # nothing can be gained on no error


def _resampled_gains(baseline: np.ndarray, other: np.ndarray, rng: np.random.Generator, resamples: int) -> np.ndarray:
    n, gains = len(baseline), []
    block = max(1, BLOCK // n)
    for start in range(0, resamples, block):
        rows = rng.integers(0, n, (min(block, resamples - start), n))
        before = baseline[rows].sum(1)
        gains.append(100 * (1 - other[rows].sum(1) / np.where(before, before, NAN)))
    return np.concatenate(gains)


def _paired(baseline: Sequence[SeedErrors], other: Sequence[SeedErrors]) -> list[tuple[SeedErrors, SeedErrors]]:
    """Runs of the same seed side by side, with their crystals in the same order."""
    seeds = [sorted(run.seed for run in runs) for runs in (baseline, other)]
    if seeds[0] != seeds[1] or len(set(seeds[0])) != len(seeds[0]) or not seeds[0]:
        raise InputError(f"seeds {seeds[0]} against {seeds[1]}: compare runs of the same seeds, each once")
    pairs = []
    for before, after in zip(*(sorted(runs, key=lambda run: run.seed) for runs in (baseline, other)), strict=True):
        one, two = (SeedErrors(run.seed, *_sorted(run.rows, run.errors)) for run in (before, after))
        if not np.array_equal(one.rows, two.rows) or not len(one.rows):
            raise InputError(
                f"seed {before.seed}: {len(one.rows)} test crystals against {len(two.rows)}, and not the same ones: "
                "compare runs with the same split"
            )
        if len(np.unique(one.rows)) != len(one.rows):
            raise InputError(f"seed {before.seed}: a test crystal occurs twice: one error a crystal was expected")
        pairs.append((one, two))
    return pairs


def _sorted(rows: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(rows) != len(errors):
        raise InputError(f"{len(errors)} errors of {len(rows)} crystals: one each was expected")
    order = np.argsort(rows, kind="stable")
    return np.asarray(rows)[order], np.asarray(errors, float)[order]


def _curves(sizes: Sequence[int], *errors: Sequence[float]) -> list[np.ndarray]:
    """Logarithms of sizes and errors, checked."""
    curves = [np.asarray(values, float) for values in (sizes, *errors)]
    if not len(sizes) or any(len(curve) != len(sizes) or not np.all(curve > 0) for curve in curves):
        raise InputError(f"learning curves {[c.tolist() for c in curves]}: a positive error for each size was expected")
    if np.any(np.diff(curves[0]) <= 0):
        raise InputError(f"sizes {list(sizes)}: they must increase")
    return [np.log(curve) for curve in curves]


def _falling(values: np.ndarray) -> np.ndarray:
    """The nearest sequence that never rises, by pooling neighbours that do (least squares)."""
    pools: list[tuple[float, int]] = []
    for value in values.tolist():
        pools.append((value, 1))
        while len(pools) > 1 and pools[-2][0] < pools[-1][0]:
            (a, n), (b, m) = pools[-2:]
            pools[-2:] = [((a * n + b * m) / (n + m), n + m)]
    return np.repeat([value for value, _ in pools], [count for _, count in pools])
