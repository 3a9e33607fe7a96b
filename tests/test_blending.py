"""Weights that validation crystals choose: what they find, when they abstain, and what they cannot see."""

import numpy as np
import pytest

from tlcgcnn_jax.blending import FEWEST, LEAST, choose_weights, cross_fitted_mean, weighted_mean, weighted_std
from tlcgcnn_jax.errors import InputError

RNG = np.random.default_rng(0)
LABELS = RNG.normal(size=200)


def made(*noises: float, bias: float = 0.0) -> np.ndarray:
    return np.stack([LABELS + bias + noise * RNG.normal(size=len(LABELS)) for noise in noises])


def error(weights: np.ndarray, predictions: np.ndarray) -> float:
    return float(np.abs(weights @ predictions - LABELS).mean())


def test_the_mean_is_near_the_best_weights_on_a_grid():
    predictions = made(0.5, 0.7, 2.0)
    grid = [np.array([a, b, 10 - a - b]) / 10 for a in range(11) for b in range(11 - a)]
    best = min(error(weights, predictions) for weights in grid)
    assert error(choose_weights(predictions, LABELS), predictions) < 1.03 * best
    assert best < 0.9 * error(np.full(3, 1 / 3), predictions)  # so that there was something to find


def test_opposite_errors_are_joined_and_a_useless_part_has_no_weight():
    predictions = np.stack([LABELS + 0.3, LABELS - 0.3, LABELS[::-1] * 10])
    weights = choose_weights(predictions, LABELS)
    np.testing.assert_allclose(weights, [0.5, 0.5, 0], atol=0.03)


def test_weights_are_shares_and_the_same_each_time():
    predictions = made(0.5, 0.6, 0.7, 0.8)
    weights = choose_weights(predictions, LABELS, seed=3)
    assert weights.min() >= 0 and weights.sum() == pytest.approx(1)
    np.testing.assert_array_equal(weights, choose_weights(predictions, LABELS, seed=3))
    shifted = choose_weights(7 * predictions + 3, 7 * LABELS + 3, seed=3)  # another unit
    np.testing.assert_allclose(weights, shifted)


def test_of_equal_parts_none_is_preferred_by_much():
    """A winner on 30 crystals is mostly luck: sampling must not give it everything."""
    predictions = made(*[0.5] * 4)[:, :30]
    assert choose_weights(predictions, LABELS[:30]).max() < 0.6


def test_too_few_labels_choose_nothing():
    labels = np.full(50, np.nan)
    labels[: FEWEST - 1] = 1.0
    predictions = np.stack([np.ones(50), np.zeros(50)])
    np.testing.assert_array_equal(choose_weights(predictions, labels), [0.5, 0.5])
    labels[FEWEST - 1] = 1.0
    np.testing.assert_array_equal(choose_weights(predictions, labels), [1, 0])


def test_several_targets_count_alike_and_unknown_labels_do_not():
    """The second target has a thousand times the unit, and no labels where the first part would look best."""
    labels = np.stack([LABELS, 1000 * LABELS], 1)
    good, bad = made(0.1)[0], made(1.0)[0]
    predictions = np.stack([np.stack([good, 1000 * bad], 1), np.stack([bad, 1000 * good], 1)])
    np.testing.assert_allclose(choose_weights(predictions, labels), [0.5, 0.5], atol=0.1)
    labels[:, 1] = np.nan
    np.testing.assert_allclose(choose_weights(predictions, labels), [1, 0], atol=0.1)


@pytest.mark.parametrize(
    ("predictions", "labels", "told"),
    [
        (np.zeros((2, 3)), np.zeros(4), r"\(2, 3\) for labels of shape \(4,\)"),
        (np.zeros(3), np.zeros(3), r"\(3,\) for labels"),
        (np.full((2, 20), np.nan), np.zeros(20), "not one of 2 predictions is finite for all 20"),
    ],
)
def test_what_does_not_fit_is_refused(predictions, labels, told):
    with pytest.raises(InputError, match=told):
        choose_weights(predictions, labels)


def test_a_part_that_is_not_finite_has_no_weight():
    predictions = np.stack([made(1.0)[0], LABELS, np.full(len(LABELS), np.nan)])
    predictions[1, 3] = np.inf
    np.testing.assert_array_equal(choose_weights(predictions, LABELS), [1, 0, 0])
    np.testing.assert_array_equal(weighted_mean(predictions, np.array([1.0, 0, 0])), predictions[0])
    few = choose_weights(np.stack([made(1.0)[0], *predictions])[:, :5], LABELS[:5])
    np.testing.assert_array_equal(few, [0.5, 0.5, 0, 0])


def test_no_weight_is_next_to_nothing():
    weights = choose_weights(made(0.5, 0.55, 1.3, 1.6, 2.0), LABELS)
    assert weights.sum() == pytest.approx(1) and weights[weights > 0].min() >= LEAST


def test_errors_are_measured_as_they_are_learnt():
    """One part is right for small values and one for large ones: which matters depends on the scale of the error."""
    labels = np.tile([1.0, 1000.0], 30)
    small, large = np.where(labels > 1, 300.0, 1.0), np.where(labels > 1, 1000.0, 5.0)
    predictions = np.stack([small, large])
    assert choose_weights(predictions, labels)[1] > 0.95  # 700 off against 4 off
    assert choose_weights(predictions, labels, learnt=np.log10)[0] > 0.2  # 0.52 against 0.70


def test_of_probabilities_those_that_are_right_count_and_not_those_that_are_sure():
    """Seven of ten crystals are of the class: to be sure of all has the smaller absolute error and larger square."""
    labels, values = np.tile([1.0] * 7 + [0.0] * 3, 6), LABELS[:60]
    predictions = np.stack([np.full(60, 0.7), np.full(60, 0.99)])
    assert choose_weights(predictions, labels)[1] > 0.9
    assert choose_weights(predictions, labels, squared=True)[0] > 0.9
    assert cross_fitted_mean(predictions, labels, squared=True).mean() == pytest.approx(0.7, abs=0.05)
    # A column of values beside that of the class goes on counting by its absolute errors.
    both = np.stack([np.stack([one, values], 1) for one in predictions])
    found = choose_weights(both, np.stack([labels, values], 1), squared=np.array([True, False]))
    np.testing.assert_array_equal(found, choose_weights(predictions, labels, squared=True))


@pytest.mark.parametrize("known", [9, 10, 11, 30])
def test_cross_fitted_weights_are_chosen_as_those_of_all_are(known):
    """Where all crystals choose, four fifths of them do too; what is not finite for one of them has no part."""
    rng = np.random.default_rng(0)
    labels = np.where(np.arange(30) < known, rng.normal(size=30), np.nan)
    filled = np.nan_to_num(labels)
    lost = np.where(np.arange(30) == 3, np.inf, filled)
    predictions = np.stack([filled + 0.01, filled + 100, lost])
    assert choose_weights(predictions, labels).tolist() == [1, 0, 0]
    assert cross_fitted_mean(predictions, labels) == pytest.approx(filled + 0.01)


def test_cross_fitted_errors_are_not_flattered_by_the_choice():
    """Of many useless parts the choice picks what fits the crystals at hand; others tell how little that is worth."""
    rng, flattered, honest, new = np.random.default_rng(1), [], [], []
    for _ in range(20):
        labels, predictions = rng.normal(size=60), rng.normal(size=(15, 60))
        weights = choose_weights(predictions[:, :30], labels[:30])
        flattered.append(np.abs(weights @ predictions[:, :30] - labels[:30]).mean())
        honest.append(np.abs(cross_fitted_mean(predictions[:, :30], labels[:30]) - labels[:30]).mean())
        new.append(np.abs(weights @ predictions[:, 30:] - labels[30:]).mean())
    assert np.mean(flattered) < 0.93 * np.mean(new)
    assert np.mean(honest) == pytest.approx(np.mean(new), rel=0.06)


def test_the_weighted_spread_is_that_of_repeated_values():
    values = RNG.normal(size=(3, 5))
    np.testing.assert_allclose(weighted_std(values, np.full(3, 1 / 3)), values.std(0, ddof=1))
    assert weighted_std(values, np.array([0.0, 1.0, 0.0])).max() == 0
    # Two parts: sqrt(w1 w2 d² / (1 - w1² - w2²)) = |d| / sqrt(2), whatever the weights.
    np.testing.assert_allclose(weighted_std(values[:2], np.array([0.2, 0.8])), np.abs(values[0] - values[1]) / 2**0.5)
