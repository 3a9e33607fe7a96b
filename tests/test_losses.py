"""Labels are normalised by training rows alone, missing ones count for nothing, losses are those by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from tlcgcnn_jax import losses
from tlcgcnn_jax.config import Target
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.train import train

NAN = float("nan")
GAP, LOG, LN = Target("gap"), Target("k", transform="log10"), Target("eps", transform="log")
METAL, FAMILY = Target("metal", kind="classification"), Target("family", kind="classification", classes=3)


def column(*values: float) -> np.ndarray:
    return np.array(values)[:, None]


FITTED = {
    "values": (column(1, 3, NAN), GAP, 2.0, 1.0),
    "log10": (column(10, 1000, NAN), LOG, 2.0, 1.0),
    "log": (column(1, np.e**2), LN, 1.0, 1.0),
    "constant": (column(5, 5, 5), GAP, 5.0, 1.0),
    "zero": (column(0, 0), GAP, 0.0, 1.0),
    "joules": (column(2e-19, 4e-19), GAP, 3e-19, 1e-19),
    "one label": (column(NAN, 7), GAP, 7.0, 1.0),
    "classes": (column(0, 1, 1), METAL, 0.0, 1.0),
}


@pytest.mark.parametrize(("values", "target", "mean", "std"), FITTED.values(), ids=FITTED)
def test_normaliser(values, target, mean, std):
    normaliser = losses.fit_normaliser(values, [target])
    assert normaliser.mean == pytest.approx([mean]) and normaliser.std == pytest.approx([std])
    assert normaliser.mean.dtype == normaliser.std.dtype == np.float32


REFUSED = {
    "no label": (column(NAN, NAN), GAP, "gap: not one training crystal"),
    "log of zero": (column(1, 0), LOG, "found 0"),
    "log of a negative value": (column(-2, 1), LN, "found -2"),
    "class beyond": (column(0, 2), METAL, "class 2 found, expected 0 to 1"),
    "half a class": (column(0, 0.5), METAL, "class 0.5 found: classes are whole numbers"),
    "a value as a class": (column(0, 178.43), METAL, "class 178.43 found: classes are whole numbers"),
}


@pytest.mark.parametrize(("values", "target", "told"), REFUSED.values(), ids=REFUSED)
def test_labels_that_cannot_be_learnt(values, target, told):
    with pytest.raises(InputError, match=told):
        losses.fit_normaliser(values, [target])


def test_training_sees_only_training_labels():
    """Neither the normaliser nor the weights know the labels of validation and test rows."""
    dataset = toy.dataset()
    other = np.array(dataset.targets)
    other[8:] = 100 - 7 * other[8:]
    changed = toy.replaced(dataset, targets=other)
    config = dataclasses.replace(toy.CONFIG, keep="last")  # the best epoch is that of the validation labels
    one, two = (train(some, toy.SPLIT, (toy.ENERGY,), toy.SIZES, config) for some in (dataset, changed))
    np.testing.assert_array_equal(one.normaliser, two.normaliser)
    jax.tree.map(np.testing.assert_array_equal, one.variables, two.variables)
    assert one.normaliser.mean[0] == pytest.approx(dataset.targets[:8].mean())
    assert one.history[0]["val_score"] != two.history[0]["val_score"]


def test_denormalise_is_the_inverse():
    targets = [GAP, LOG, LN]
    values = np.array([[0.5, 12.0, 3.0], [-2.0, 250.0, 14.9], [7.0, 0.3, 1.1]])
    normaliser = losses.fit_normaliser(values, targets)
    normal = losses.normalise(values, targets, normaliser)
    np.testing.assert_allclose(normal.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(normal.std(0), 1, rtol=1e-5)
    np.testing.assert_allclose(losses.denormalise(normal, targets, normaliser), values, rtol=1e-5)


def test_logarithms_stay_within_the_training_labels():
    targets = [GAP, LOG, METAL]
    normaliser = losses.fit_normaliser(np.array([[1.0, 10.0, 0.0], [2.0, 1000.0, 1.0], [3.0, NAN, NAN]]), targets)
    np.testing.assert_array_equal(normaliser.low, [1, 1, NAN])
    np.testing.assert_array_equal(normaliser.high, [3, 3, NAN])
    out = losses.denormalise(np.array([[50.0, 50.0, 0, 0], [-50.0, -50.0, 0, 0], [0, 0.5, 0, 0]]), targets, normaliser)
    np.testing.assert_allclose(out[:, 1], [1000, 10, 10**2.5], rtol=1e-6)
    assert out[0, 0] > 40 and out[1, 0] < -30, "a value that is learnt as it is has no bounds"
    unknown = losses.denormalise(np.array([[0, 50.0, 0, 0]]), targets, normaliser._replace(low=None, high=None))
    assert unknown[0, 1] > 1e40


def test_an_output_that_is_no_number_stays_none():
    """So that it is not taken for the largest label."""
    target = Target("k", transform="log10")
    assert np.isnan(losses.bounded(np.array([np.nan]), target, 1.0, 2.0)).all()
    assert losses.bounded(np.array([5.0]), target, np.nan, np.nan) == 5.0


def test_classes_become_probabilities():
    normaliser = losses.Normaliser(np.array([2.0, 0.0], np.float32), np.array([3.0, 1.0], np.float32))
    out = losses.denormalise(np.array([[1.0, 0.0, np.log(3.0)], [0.0, 800.0, -800.0]]), [GAP, METAL], normaliser)
    np.testing.assert_allclose(out, [[5.0, 0.25, 0.75], [2.0, 1.0, 0.0]])


LOSSES = {
    "mae": (GAP, "mae", [[1.0], [-2.0]], [0.5, 1.0], 3.5),
    "mse": (GAP, "mse", [[1.0], [-2.0]], [0.5, 1.0], 9.25),
    "huber": (GAP, "huber", [[1.0], [-2.0]], [0.5, 1.0], 0.125 + 2.5),
    "classes": (METAL, "mse", [[0.0, 0.0], [0.0, np.log(3.0)]], [0, 1], np.log(2) + np.log(4 / 3)),
    "three classes": (FAMILY, "mae", [[0.0, 0.0, 0.0], [0.0, 0.0, np.log(2.0)]], [1, 2], np.log(3) + np.log(2)),
}


@pytest.mark.parametrize("missing", [False, True], ids=["all labels", "a label missing"])
@pytest.mark.parametrize(("target", "loss", "outputs", "labels", "expected"), LOSSES.values(), ids=LOSSES)
def test_loss_by_hand(target, loss, outputs, labels, expected, missing):
    outputs, labels = jnp.array(outputs), jnp.array(labels, jnp.float32)[:, None]
    if missing:  # a third crystal changes nothing, whatever the network says of it
        outputs = jnp.concatenate([outputs, jnp.full((1, outputs.shape[1]), 50.0)])
        labels = jnp.concatenate([labels, jnp.full((1, 1), jnp.nan)])
    total, count = losses.loss_sum(outputs, labels, [target], loss)
    assert float(total) == pytest.approx(expected, rel=1e-6) and float(count) == 2
    gradient = jax.grad(lambda out: losses.loss_sum(out, labels, [target], loss)[0])(outputs)
    assert np.isfinite(gradient).all()
    if missing:
        assert not np.any(gradient[2])


def test_several_targets():
    outputs = jnp.array([[1.0, 0.0, 0.0, 3.0], [2.0, 0.0, 0.0, 1.0]])
    labels = jnp.array([[0.0, 1.0, NAN], [NAN, NAN, 1.5]])
    total, count = losses.loss_sum(outputs, labels, [GAP, METAL, LOG], "mae")
    assert float(total) == pytest.approx(1.0 + np.log(2) + 0.5) and float(count) == 3


def test_nothing_known():
    labels = jnp.full((2, 1), jnp.nan)
    assert [float(x) for x in losses.loss_sum(jnp.ones((2, 1)), labels, [GAP], "mse")] == [0.0, 0.0]
    assert np.isnan(losses.score(np.ones((2, 1)), np.asarray(labels), [GAP]))


def test_score_is_the_mean_over_targets():
    outputs = np.array([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0], [9.0, 0.0, 0.0]])
    labels = np.array([[0.0, 1.0], [4.0, NAN], [NAN, 0.0]])
    assert losses.score(outputs, labels, [GAP, METAL]) == pytest.approx((1.5 + np.log(2)) / 2, rel=1e-6)


def test_missing_labels_stay_missing():
    out = losses.normalise(np.array([[NAN, 10.0]]), [GAP, LOG], losses.Normaliser(np.zeros(2), np.ones(2)))
    assert np.isnan(out[0, 0]) and out[0, 1] == 1.0
