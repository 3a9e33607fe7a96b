"""Intervals: their share of held crystals, on the scale that is learnt, and nothing where too little is known."""

import numpy as np
import pytest

from tlcgcnn_jax.config import Target
from tlcgcnn_jax.error_bars import ErrorBar, fit_error_bars, intervals

K, LOG, METAL = Target("k", "GPa"), Target("k", "GPa", transform="log10"), Target("metal", kind="classification")
NAN = float("nan")


def column(values):
    return np.asarray(values, float)[:, None]


def test_the_interval_of_new_crystals_holds_nine_in_ten():
    rng = np.random.default_rng(0)
    std = rng.uniform(0.1, 2, 4000)
    truth, values = np.zeros(4000), std * rng.standard_t(3, 4000)
    (bar,) = fit_error_bars([K], column(truth[:2000]), column(values[:2000]), column(std[:2000]))
    low, high = intervals((bar,), [K], column(values[2000:]), column(std[2000:]))
    assert np.mean((low[:, 0] <= 0) & (high[:, 0] >= 0)) == pytest.approx(0.9, abs=0.02)
    assert bar.normalised and bar.n == 2000
    np.testing.assert_allclose((high - low)[:, 0], 2 * bar.quantile * np.maximum(std[2000:], bar.floor))


def test_a_logarithm_has_intervals_by_a_factor():
    truth = np.geomspace(1, 100, 19)
    (bar,) = fit_error_bars([LOG], column(truth), column(truth * 2), None)
    low, high = intervals((bar,), [LOG], column([10.0, 50.0]), None)
    np.testing.assert_allclose(low[:, 0], [5, 25])
    np.testing.assert_allclose(high[:, 0], [20, 100])


def test_standard_deviations_that_are_zero_are_not_divided_by():
    truth, values, std = np.zeros(20), np.linspace(-1, 1, 20), np.ones(20)
    std[:3] = 0
    (bar,) = fit_error_bars([K], column(truth), column(values), column(std))
    assert not bar.normalised and bar.floor == 0 and bar.quantile == pytest.approx(1)


def test_networks_that_agree_by_chance_are_not_certain():
    """As those whose outputs all lie beyond the training labels, and are bounded by these."""
    truth, std = np.zeros(20), np.linspace(0.0, 1.9, 20)
    values = std * np.where(np.arange(20) % 2, 1, -1)
    (bar,) = fit_error_bars([K], column(truth), column(values), column(std))
    assert bar.normalised and bar.floor == pytest.approx(0.19)
    low, high = intervals((bar,), [K], column([5.0, 5.0, 5.0]), column([0.0, 0.19, 0.38]))
    widths = (high - low)[:, 0]
    assert widths[0] == widths[1] == pytest.approx(2 * 0.19 * bar.quantile) and widths[2] == pytest.approx(
        2 * widths[1]
    )


def test_standard_deviations_that_tell_nothing_are_not_used():
    """One width for all is narrower then, and holds as many."""
    rng = np.random.default_rng(1)
    truth, values, std = np.zeros(400), rng.normal(size=400), np.abs(rng.normal(size=400))  # as of two networks
    (bar,) = fit_error_bars([K], column(truth), column(values), column(std))
    assert not bar.normalised and bar.quantile == pytest.approx(1.645, rel=0.1)


@pytest.mark.parametrize("n, enough", [(8, False), (9, True)])
def test_too_few_validation_crystals_are_told(n, enough):
    bars = fit_error_bars([K], column(np.zeros(n)), column(np.ones(n)), None)
    assert (bars[0].quantile is not None) == enough
    assert ("no 90 % interval: 8 validation crystals, at least 9" in str(bars[0])) != enough
    assert (intervals(bars, [K], column([1.0]), None) is not None) == enough


def test_each_target_has_its_own_and_classes_have_none():
    labels = np.stack([np.zeros(12), np.arange(12) % 2, np.where(np.arange(12) < 2, np.nan, 0)], 1)
    values = np.stack([np.full(12, 0.5), np.zeros(12), np.full(12, 3.0)], 1)
    targets = [K, METAL, Target("gap", "eV")]
    bars = fit_error_bars(targets, labels, values, None)
    assert bars[1] is None and (bars[0].n, bars[2].n) == (12, 10)
    low, high = intervals(bars, targets, values[:1], None)
    np.testing.assert_allclose(low[0], [0, NAN, 0])
    np.testing.assert_allclose(high[0], [1, NAN, 6])
    assert fit_error_bars([K], column([NAN]), column([1.0]), None) == (None,)
    assert intervals((), [K], column([1.0]), None) is None


def test_an_interval_beyond_float_is_written_as_infinite():
    bar = ErrorBar(0.9, 400.0, False, 10)
    _, high = intervals((bar,), [LOG], column([1.0]), None)
    assert high[0, 0] == np.inf
