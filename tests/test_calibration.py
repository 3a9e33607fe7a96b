"""Conformal intervals cover what they promise, and measures of calibration know the good from the bad."""

import math

import numpy as np
import pytest
import scipy.stats

from tlcgcnn_jax.calibration import (
    LEVELS,
    confidence_curve,
    conformal,
    coverage,
    miscalibration_area,
    sharpness,
    std_factor,
)
from tlcgcnn_jax.errors import InputError

NAN = float("nan")


@pytest.mark.parametrize("scaled", [False, True], ids=["absolute", "scaled"])
@pytest.mark.parametrize(("level", "n"), [(0.9, 30), (0.8, 50), (0.95, 19)])
def test_coverage_of_conformal_intervals(level, n, scaled):
    """At least the level, and at most 1 / (n + 1) above it, for errors that are neither normal nor even."""
    rng, held, trials = np.random.default_rng(3), [], 3000
    for _ in range(trials):
        std = rng.lognormal(0, 0.7, n + 1)
        error = std * rng.standard_t(3, n + 1)
        found = conformal(error[:n], std[:n] if scaled else None, level)
        held.append(abs(error[n]) <= found.half_width(std[n]))
    luck = 3 * math.sqrt(level * (1 - level) / trials)
    assert level - luck <= np.mean(held) <= level + 1 / (n + 1) + luck


def test_scaled_intervals_are_narrower_where_the_model_is_sure():
    rng = np.random.default_rng(0)
    std = rng.lognormal(0, 1, 500)
    error = 2 * std * rng.normal(size=500)
    found = conformal(error, std, 0.9)
    assert found.quantile == pytest.approx(2 * 1.645, rel=0.1)
    np.testing.assert_allclose(found.half_width(np.array([0.1, 1.0])), [0.1 * found.quantile, found.quantile])
    assert np.mean(found.half_width(std)) < conformal(error, level=0.9).half_width()
    with pytest.raises(InputError, match="give that of each prediction"):
        found.half_width()


RANKS = {"1..9": (9, 0.9, 9.0), "1..10": (10, 0.9, 10.0), "1..99": (99, 0.9, 90.0), "1..19": (19, 0.95, 19.0)}


@pytest.mark.parametrize(("n", "level", "expected"), RANKS.values(), ids=RANKS)
def test_quantile_is_exact(n, level, expected):
    """The errors 1 to n: the quantile is the ceil((n + 1) · level)-th of them."""
    errors = np.random.default_rng(n).permutation(np.arange(1.0, n + 1)) * (-1.0) ** np.arange(n)
    assert conformal(errors, level=level).half_width() == expected


@pytest.mark.parametrize(("n", "level", "need"), [(8, 0.9, 9), (18, 0.95, 19), (1, 0.8, 4)])
def test_too_few_crystals_are_told(n, level, need):
    found = conformal(np.ones(n), level=level)
    assert math.isinf(found.half_width()) and f"{n} validation crystals, at least {need} are needed" in str(found)
    assert math.isfinite(conformal(np.ones(need), level=level).quantile)


def test_normal_errors_are_calibrated():
    rng = np.random.default_rng(1)
    std = rng.lognormal(0, 0.5, 20000)
    error = std * rng.normal(size=20000)
    np.testing.assert_allclose(coverage(error, std), LEVELS, atol=0.012)
    assert miscalibration_area(error, std) < 0.01
    # The probability of |error| / std, had the std been right, is uniform: Kolmogorov and Smirnov agree.
    score = 2 * scipy.stats.norm.cdf(np.abs(error) / std) - 1
    by_hand = [np.mean(score <= level) for level in LEVELS]
    np.testing.assert_allclose(coverage(error, std), by_hand)


@pytest.mark.parametrize("factor", [0.4, 1.0, 2.5])
def test_factor_mends_standard_deviations(factor):
    rng = np.random.default_rng(2)
    std = rng.lognormal(0, 0.5, 4000)
    error = factor * std * rng.normal(size=4000)
    found = std_factor(error, std)
    assert found == pytest.approx(factor, rel=0.05)
    likelihood = lambda s: scipy.stats.norm.logpdf(error, scale=s * std).sum()
    assert likelihood(found) > max(likelihood(0.99 * found), likelihood(1.01 * found))
    if factor != 1.0:
        assert miscalibration_area(error, found * std) < 0.2 * miscalibration_area(error, std)


def test_miscalibration_area_of_known_curves():
    assert miscalibration_area(np.ones(50), np.full(50, 1e-9)) == pytest.approx(0.5, abs=0.01)  # nothing is held
    assert miscalibration_area(np.full(50, 1e-9), np.ones(50)) == pytest.approx(0.5, abs=0.01)  # everything is
    # Standard deviations half as large as they should be: the area by numerical integration.
    error = scipy.stats.norm.ppf((np.arange(4000) + 0.5) / 4000)
    level = np.linspace(0, 1, 20001)[:-1]
    truth = np.abs(2 * scipy.stats.norm.cdf(scipy.stats.norm.ppf(0.5 + level / 2) / 2) - 1 - level).mean()
    assert miscalibration_area(error, np.full(4000, 0.5)) == pytest.approx(truth, abs=0.01)


def test_sharpness():
    assert sharpness(np.array([3.0, 4.0])) == pytest.approx(math.sqrt(12.5))


def test_confidence_curve_by_hand():
    rng = np.random.default_rng(5)
    error, std = rng.normal(size=20), rng.random(20)
    curve = confidence_curve(error, std)
    for i in range(20):
        kept = np.argsort(std)[: 20 - i]
        assert curve.mae[i] == pytest.approx(np.abs(error)[kept].mean())
        assert curve.oracle[i] == pytest.approx(np.sort(np.abs(error))[: 20 - i].mean())
    np.testing.assert_allclose(curve.removed, np.arange(20) / 20)


def test_skill_of_confidence():
    rng = np.random.default_rng(6)
    error = rng.normal(size=3000)
    assert confidence_curve(error, np.abs(error)).skill == pytest.approx(1.0)
    assert confidence_curve(error, rng.random(3000)).skill == pytest.approx(0.0, abs=0.1)
    assert confidence_curve(error, 1 / (np.abs(error) + 0.01)).skill < -0.5
    assert confidence_curve(error, np.ones(3000)).skill == pytest.approx(0.0, abs=1e-9)  # whatever their order
    assert confidence_curve(np.ones(5), np.arange(5.0)).skill == 0.0


ERROR, STD = np.ones(4), np.ones(4)
BAD = {
    "unknown error": (lambda: conformal(np.array([1.0, NAN])), "1 of them not finite"),
    "no errors": (lambda: conformal(np.array([])), r"shape \(0,\)"),
    "level": (lambda: conformal(ERROR, level=90), "level is 90"),
    "std of zero": (lambda: std_factor(ERROR, np.zeros(4)), "4 of 4 standard deviations are not positive"),
    "no std": (lambda: coverage(ERROR, np.full(4, NAN)), "4 of them not finite"),
    "fewer std": (lambda: miscalibration_area(ERROR, STD[:3]), "3 standard deviations of 4 errors"),
    "fewer doubts": (lambda: confidence_curve(ERROR, STD[:3]), "3 standard deviations of 4 errors"),
    "levels": (lambda: coverage(ERROR, STD, np.array([50.0])), r"levels \[50.0\]"),
    "two columns": (lambda: sharpness(np.ones((4, 2))), r"shape \(4, 2\)"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()
