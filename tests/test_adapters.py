"""Adapters change nothing at first, are all that is trained of the convolutions, and fold into plain kernels."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import reference
import toy

from tlcgcnn_jax.adapters import ADAPTER, KERNELS, add_adapters, fold_adapters
from tlcgcnn_jax.bundle import flatten
from tlcgcnn_jax.config import GraphConfig
from tlcgcnn_jax.graphs import build_graph
from tlcgcnn_jax.losses import fit_normaliser, normalise, score
from tlcgcnn_jax.many import Run, train_many
from tlcgcnn_jax.model import CGCNN
from tlcgcnn_jax.optim import frozen_modules, parameter_paths
from tlcgcnn_jax.strategies import STRATEGIES
from tlcgcnn_jax.train import Program, init_state

SIZES = dataclasses.replace(toy.SIZES, convolutions=1)
RANK = 2
CONFIG = dataclasses.replace(toy.CONFIG, epochs=3, weight_decay=0.1, clip=1.0)
RATES = STRATEGIES["adapters"].rates


def start() -> dict:
    plain = toy.variables(SIZES, moved=True)
    return {**plain, "params": add_adapters(plain["params"], RANK, seed=3)}


def program() -> Program:
    frozen = frozen_modules(start()["params"], RATES)
    return Program(CGCNN(SIZES, 1, 4), (toy.ENERGY,), CONFIG, RATES, frozen).static()


@functools.cache
def trained():
    dataset, split = toy.dataset(), toy.SPLIT
    normaliser = fit_normaliser(dataset.targets[split.train], (toy.ENERGY,))
    return train_many(dataset, [Run(split.train, split.val, start(), normaliser, 1e-2, 0)], program(), CONFIG)[0]


def adapted_outputs(variables: dict, rows) -> np.ndarray:
    """Of the plain NumPy network with kernels W + down @ up."""
    params = {name: dict(tree) for name, tree in variables["params"].items() if name != ADAPTER}
    for conv, kernels in variables["params"][ADAPTER].items():
        for name, adapter in kernels.items():
            params[conv][name] = params[conv][name] + np.asarray(adapter["down"], float) @ adapter["up"]
    graphs = [reference.unpack(build_graph(toy.crystal(row), GraphConfig())) for row in rows]
    plain = {"params": params, "batch_stats": variables["batch_stats"]}
    return reference.forward(plain, reference.crystals(graphs), step=SIZES.gaussian_step, last=SIZES.gaussian_max)


def test_shapes():
    plain = toy.variables(toy.SIZES)["params"]
    adapters = add_adapters(plain, RANK, seed=0)[ADAPTER]
    assert adapters.keys() == {"conv_0", "conv_1"}
    for conv, kernels in adapters.items():
        assert set(kernels) == set(KERNELS)
        for name, adapter in kernels.items():
            fan_in, fan_out = plain[conv][name].shape
            assert adapter["down"].shape == (fan_in, RANK) and adapter["up"].shape == (RANK, fan_out)
            assert adapter["down"].any() and not adapter["up"].any()


def test_seeds():
    plain = toy.variables(SIZES)["params"]
    one, again, other = (flatten(add_adapters(plain, RANK, seed)[ADAPTER]) for seed in (1, 1, 2))
    for path, leaf in one.items():
        np.testing.assert_array_equal(leaf, again[path])
        assert path.endswith("/up") or (leaf != other[path]).all()


def test_sources_side_by_side():
    one = toy.variables(SIZES)["params"]
    tree = {"source_0": one, "source_1": one, "head": one["head"]}
    found = add_adapters(tree, RANK, 0)
    assert found[ADAPTER].keys() == {"source_0", "source_1"}
    assert flatten(fold_adapters(found)).keys() == flatten(tree).keys()


def test_nothing_changes_at_first():
    plain = toy.variables(SIZES, moved=True)["params"]
    folded = flatten(jax.device_get(fold_adapters(start()["params"])))
    assert folded.keys() == flatten(plain).keys()
    for path, leaf in flatten(plain).items():
        np.testing.assert_array_equal(folded[path], leaf, err_msg=path)


def test_without_adapters_nothing_is_folded():
    plain = toy.variables(SIZES)["params"]
    for path, leaf in flatten(fold_adapters(plain)).items():
        assert leaf is flatten(plain)[path]


def test_folding_keeps_the_function():
    """The score that training saw is that of the adapted network, and the folded one gives the same numbers."""
    found, rows = trained(), toy.SPLIT.val
    labels = normalise(toy.dataset().targets[rows], (toy.ENERGY,), found.normaliser)
    outputs = adapted_outputs(found.variables, rows)
    best = min(row["val_score"] for row in found.history)
    assert score(outputs, labels, (toy.ENERGY,)) == pytest.approx(best, rel=1e-4)
    folded = {**found.variables, "params": jax.device_get(fold_adapters(found.variables["params"]))}
    graphs = reference.crystals([reference.unpack(build_graph(toy.crystal(row), GraphConfig())) for row in rows])
    again = reference.forward(folded, graphs, step=SIZES.gaussian_step, last=SIZES.gaussian_max)
    np.testing.assert_allclose(again, outputs, rtol=1e-5, atol=1e-6)


def test_what_is_trained():
    before, now = flatten(start()), flatten(trained().variables)
    for path, leaf in before.items():
        if path.startswith(("params/adapter/", "params/head/")):
            assert (now[path] != leaf).any(), f"{path} is to be trained and has not moved"
        else:
            assert now[path].tobytes() == leaf.tobytes(), f"{path} is frozen and has changed"


def test_optimizer_holds_adapters_and_head_alone():
    params = start()["params"]
    paths = [path for path in parameter_paths(params) if path.startswith(("adapter/", "head/"))]
    state = init_state(program(), start()).opt_state
    arrays = [leaf for leaf in jax.tree.leaves(state) if np.ndim(leaf)]
    shapes = sorted(flatten(params)[path].shape for path in paths)
    assert sorted(leaf.shape for leaf in arrays) == sorted(2 * shapes)  # two moments of each
