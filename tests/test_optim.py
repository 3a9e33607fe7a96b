"""Patterns cover every parameter, schedules have the right values, decay and clipping touch what they should."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tlcgcnn_jax.config import TrainConfig
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.optim import ALL, frozen_modules, learning_rate, make_optimizer, parameter_paths, rate_tree

PARAMS = {
    "conv_0": {"bias": jnp.ones(2), "edge_norm": {"scale": jnp.ones(2)}, "kernel": jnp.ones((2, 2))},
    "conv_10": {"kernel": jnp.ones((1, 2))},
    "head": {"output": {"bias": jnp.ones(1), "kernel": jnp.ones((2, 1))}},
}
PATHS = [
    "conv_0/bias",
    "conv_0/edge_norm/scale",
    "conv_0/kernel",
    "conv_10/kernel",
    "head/output/bias",
    "head/output/kernel",
]


def test_paths():
    assert parameter_paths(PARAMS) == PATHS


RATES = {
    "all": (ALL, [1, 1, 1, 1, 1, 1]),
    "head alone": ((("head/*", 1.0), ("*", 0.0)), [0, 0, 0, 0, 1, 1]),
    "the first match counts": ((("conv_0/*", 0.5), ("conv_*", 0.1), ("*", 1.0)), [0.5, 0.5, 0.5, 0.1, 1, 1]),
    "norms": ((("*_norm/*", 0.0), ("*", 2.0)), [2, 0, 2, 2, 2, 2]),
}


@pytest.mark.parametrize(("rates", "expected"), RATES.values(), ids=RATES)
def test_rate_tree(rates, expected):
    tree = rate_tree(PARAMS, rates)
    assert jax.tree.structure(tree) == jax.tree.structure(PARAMS)
    assert jax.tree.leaves(tree) == expected


REFUSED = {
    "parameters left over": ((("conv_*", 1.0),), ["- head/output/bias: no pattern", "- head/output/kernel"]),
    "pattern of nothing": ((("haed/*", 0.1), ("*", 1.0)), ["+ haed/*: no parameter"]),
    "pattern that comes too late": ((("*", 1.0), ("head/*", 0.1)), ["+ head/*: no parameter"]),
    "both": ((("conv_*", 1.0), ("haed/*", 1.0)), ["- head/output/bias", "+ haed/*"]),
    "no pattern": ((), ["- conv_0/bias"]),
}


@pytest.mark.parametrize(("rates", "told"), REFUSED.values(), ids=REFUSED)
def test_patterns_that_do_not_cover(rates, told):
    with pytest.raises(InputError) as error:
        rate_tree(PARAMS, rates)
    for line in told:
        assert line in str(error.value)


def test_frozen_modules():
    assert frozen_modules(PARAMS, (("conv_0/*", 0.0), ("*", 1.0))) == ("conv_0", "conv_0/edge_norm")
    assert frozen_modules(PARAMS, (("conv_0/kernel", 0.0), ("*", 1.0))) == ()
    assert frozen_modules(PARAMS, (("head/*", 1.0), ("*", 0.0))) == ("conv_0", "conv_0/edge_norm", "conv_10")
    assert frozen_modules(PARAMS, (("conv_0/edge_norm/*", 0.0), ("*", 1.0))) == ("conv_0/edge_norm",)
    assert frozen_modules(PARAMS, (("head/output/bias", 1.0), ("*", 0.0))) == ("conv_0", "conv_0/edge_norm", "conv_10")
    nested = {"source_0": PARAMS, "source_1": PARAMS}
    found = frozen_modules(nested, (("source_0/*", 0.0), ("source_1/conv_0/*", 0.0), ("*", 1.0)))
    assert {module for module in found if module.startswith("source_1")} == {
        "source_1/conv_0", "source_1/conv_0/edge_norm",
    }  # fmt: skip
    assert "source_0" in found and "source_0/head/output" in found


SCHEDULES = {
    "cosine: warm-up": (TrainConfig(warmup=0.1), 0, 0.1),
    "cosine: half of the warm-up": (TrainConfig(warmup=0.1), 4, 0.5),
    "cosine: top": (TrainConfig(warmup=0.1), 10, 1.0),
    "cosine: middle": (TrainConfig(warmup=0.1), 55, 0.5),
    "cosine: end": (TrainConfig(warmup=0.1), 100, 0.0),
    "cosine: beyond": (TrainConfig(warmup=0.1), 103, 0.0),
    "cosine: no warm-up": (TrainConfig(warmup=0.0), 0, 1.0),
    "cosine: a third": (TrainConfig(warmup=0.0), 25, 0.5 * (1 + np.cos(np.pi / 4))),
    "step: before": (TrainConfig(schedule="step", milestones=(0.5, 0.8), warmup=0.0), 49, 1.0),
    "step: after one": (TrainConfig(schedule="step", milestones=(0.5, 0.8), warmup=0.0), 50, 0.1),
    "step: after two": (TrainConfig(schedule="step", milestones=(0.5, 0.8), warmup=0.0), 80, 0.01),
    "step: factor": (TrainConfig(schedule="step", milestones=(0.5,), decay=0.5, warmup=0.0), 99, 0.5),
    "constant": (TrainConfig(schedule="constant", warmup=0.0), 99, 1.0),
    "constant: warm-up": (TrainConfig(schedule="constant", warmup=0.2), 4, 0.25),
}


@pytest.mark.parametrize(("config", "step", "factor"), SCHEDULES.values(), ids=SCHEDULES)
def test_schedule(config, step, factor):
    rate = learning_rate(config, jnp.int32(step), jnp.int32(100), jnp.float32(3e-3))
    assert float(rate) == pytest.approx(3e-3 * factor, rel=1e-5, abs=1e-9)


def updates(config, rates, gradients):
    optimizer = make_optimizer(config, rates)
    return optimizer.update(gradients, optimizer.init(PARAMS), PARAMS)[0]


ZERO = jax.tree.map(jnp.zeros_like, PARAMS)
ONE = jax.tree.map(jnp.ones_like, PARAMS)
SGD = TrainConfig(optimizer="sgd", momentum=0.0, weight_decay=0.25)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_decay_pulls_kernels_alone(optimizer):
    config = TrainConfig(optimizer=optimizer, momentum=0.0, weight_decay=0.25)
    found = updates(config, (("conv_10/*", 0.0), ("head/*", 0.5), ("*", 1.0)), ZERO)
    assert [float(leaf.flat[0]) for leaf in map(np.asarray, jax.tree.leaves(found))] == [
        0, 0, -0.25, 0, 0, -0.125,
    ]  # fmt: skip


def test_sgd_by_hand():
    found = updates(SGD, (("head/*", 2.0), ("*", 1.0)), ONE)
    assert [float(leaf.flat[0]) for leaf in map(np.asarray, jax.tree.leaves(found))] == [
        -1, -1, -1.25, -1.25, -2, -2.5,
    ]  # fmt: skip


def test_momentum_by_hand():
    optimizer = make_optimizer(TrainConfig(optimizer="sgd", momentum=0.5, weight_decay=0.0), ALL)
    state = optimizer.init(PARAMS)
    steps = []
    for _ in range(3):
        found, state = optimizer.update(ONE, state, PARAMS)
        steps.append(float(found["head"]["output"]["bias"][0]))
    assert steps == [-1.0, -1.5, -1.75]


PULLED = (("head/*", 0.0), ("conv_10/*", 0.5), ("conv_*", 2.0))


def test_pull_by_hand():
    """Multiplier × (gradient + pull × distance from the start), or decay where nothing pulls at a kernel."""
    rates = (("conv_0/kernel", 0.0), ("conv_0/edge_norm/*", 0.1), ("*", 1.0))
    optimizer = make_optimizer(SGD, rates, PULLED)
    state = optimizer.init(PARAMS)  # ones
    moved = jax.tree.map(lambda leaf: leaf + 3, PARAMS)
    found, _ = optimizer.update(ZERO, state, moved)
    assert [float(leaf.flat[0]) for leaf in map(np.asarray, jax.tree.leaves(found))] == pytest.approx(
        [-2 * 3, -0.1 * 2 * 3, 0, -0.5 * 3, 0, -0.25 * 4], abs=1e-6
    )
    found, _ = optimizer.update(ONE, state, moved)
    assert [float(leaf.flat[0]) for leaf in map(np.asarray, jax.tree.leaves(found))] == pytest.approx(
        [-1 - 6, -0.1 * (1 + 6), 0, -1 - 1.5, -1, -1 - 1], abs=1e-6
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_at_the_start_nothing_pulls(optimizer):
    config = TrainConfig(optimizer=optimizer, momentum=0.0, weight_decay=0.25)
    found = make_optimizer(config, ALL, (("*", 7.0),))
    for leaf in jax.tree.leaves(found.update(ZERO, found.init(PARAMS), PARAMS)[0]):
        assert not np.any(leaf)


def test_the_start_that_pulls_is_a_copy():
    """The training step gives up the memory of the parameters."""
    optimizer = make_optimizer(SGD, ALL, (("*", 1.0),))
    given = jax.tree.map(jnp.array, PARAMS)
    state = optimizer.init(given)
    for leaf in jax.tree.leaves(given):
        leaf.delete()
    found, _ = optimizer.update(ZERO, state, jax.tree.map(lambda leaf: leaf + 1, PARAMS))
    assert float(found["head"]["output"]["bias"][0]) == -1.0


def test_adam_takes_steps_of_the_rate():
    found = updates(TrainConfig(weight_decay=0.0), ALL, jax.tree.map(lambda leaf: 37 * leaf, ONE))
    for leaf in jax.tree.leaves(found):
        np.testing.assert_allclose(leaf, -1, rtol=1e-5)


@pytest.mark.parametrize(("clip", "length"), [(1.0, 1.0), (100.0, np.sqrt(11 * 4.0))], ids=["clipped", "short enough"])
def test_clip_by_the_trained_gradients(clip, length):
    config = TrainConfig(optimizer="sgd", momentum=0.0, weight_decay=0.0, clip=clip)
    gradients = jax.tree.map(lambda leaf: 2 * leaf, ONE)
    gradients["conv_10"]["kernel"] = jnp.full((1, 2), 1e6)  # frozen: not part of the norm
    found = updates(config, (("conv_10/*", 0.0), ("*", 1.0)), gradients)
    assert not np.any(found["conv_10"]["kernel"])
    assert float(jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(found)))) == pytest.approx(length, rel=1e-5)


def test_multipliers_that_print_alike_are_kept_apart():
    found = updates(SGD, (("head/*", 0.1), ("conv_0/*", 0.10000002), ("*", 1.0)), ONE)
    assert float(found["head"]["output"]["bias"][0]) == np.float32(-0.1)
    assert float(found["conv_0"]["bias"][0]) == np.float32(-0.10000002)
