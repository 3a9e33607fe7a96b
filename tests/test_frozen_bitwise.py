"""What is frozen stays equal bit for bit, statistics included, and costs nothing; the rest is trained."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from tlcgcnn_jax.batching import batch_plan, pad_budget, stack_batches
from tlcgcnn_jax.bundle import flatten
from tlcgcnn_jax.config import ModelConfig, TrainConfig
from tlcgcnn_jax.model import CGCNN
from tlcgcnn_jax.optim import ALL, frozen_modules, parameter_paths, rate_tree
from tlcgcnn_jax.strategies import STRATEGIES
from tlcgcnn_jax.train import Hyper, Program, init_state, train_scan

pytestmark = pytest.mark.usefixtures("optimised")

SGD = TrainConfig(optimizer="sgd", momentum=0.0, weight_decay=0.1, schedule="constant", warmup=0.0, loss="mse")
ADAMW = TrainConfig(optimizer="adamw", weight_decay=0.1, schedule="constant", warmup=0.0, loss="mse")
RATE = 1e-2
PATTERN = (("conv_0/*", 0.0), ("embedding/bias", 0.0), ("head/*", 2.0), ("*", 1.0))
CASES = {
    "frozen, SGD": (STRATEGIES["frozen"].rates, SGD),
    "frozen, AdamW": (STRATEGIES["frozen"].rates, ADAMW),
    "head, SGD with momentum": (STRATEGIES["head"].rates, TrainConfig(optimizer="sgd", weight_decay=0.1, clip=1.0)),
    "pattern, AdamW": (PATTERN, ADAMW),
}


def start() -> dict:
    """Variables with negative zeros, which an added zero would turn into positive ones."""
    variables = toy.variables(moved=True)
    for module, leaf in (("embedding", "bias"), ("embedding", "kernel"), ("conv_0", "edge_kernel"), ("conv_1", "bias")):
        variables["params"][module][leaf].flat[0] = -0.0
    variables["batch_stats"]["conv_0"]["edge_norm"]["mean"][0] = -0.0
    return variables


@functools.cache
def after(case: str):
    """State and metrics after every batch of three epochs' worth of updates."""
    rates, config = CASES[case]
    variables, dataset = start(), toy.dataset()
    program = Program(CGCNN(toy.SIZES, 1, 4), (toy.ENERGY,), config, rates, frozen_modules(variables["params"], rates))
    budget = pad_budget(dataset.n_atom, dataset.n_row, 4, 4)
    stacked = stack_batches(dataset, dataset.targets, batch_plan(dataset.n_atom, dataset.n_row, budget, 0), budget)
    hyper = Hyper(jnp.float32(RATE), jnp.int32(1000), jnp.uint32(0))
    state = init_state(program.static(), variables)
    first = None
    for _ in range(3):
        state, metrics = train_scan(program.static(), state, stacked, hyper)
        first = first or jax.device_get(metrics)
    return jax.device_get(state), first


@pytest.mark.parametrize("case", CASES)
def test_frozen_parameters(case):
    rates = rate_tree(start()["params"], CASES[case][0])
    state, metrics = after(case)
    assert int(state.step) >= 9 and np.all(metrics["gradient"] > 0)
    before, now = flatten(start()["params"]), flatten(state.params)
    multiplier = {path: float(rate) for path, rate in flatten(rates).items()}
    assert 0.0 in multiplier.values() and max(multiplier.values()) > 0
    for path, leaf in before.items():
        if multiplier[path] == 0:
            assert now[path].tobytes() == leaf.tobytes(), f"{path} is frozen and has changed"
        elif path not in ("conv_0/bias", "conv_1/bias"):  # a batch norm takes a bias before it away
            assert (now[path] != leaf).any(), f"{path} is to be trained and has not moved"
    assert np.signbit(now["embedding/bias"][0]) and np.signbit(now["conv_0/edge_kernel"][0, 0])


@pytest.mark.parametrize("case", CASES)
def test_frozen_statistics(case):
    state, _ = after(case)
    frozen = frozen_modules(start()["params"], CASES[case][0])
    assert "conv_0" in frozen
    now = flatten(state.batch_stats)
    for path, leaf in flatten(start()["batch_stats"]).items():
        if path.split("/")[0] in frozen:
            assert now[path].tobytes() == leaf.tobytes(), f"{path} is frozen and has changed"
        else:
            assert (now[path] != leaf).any(), f"{path} is to follow the batches and has not moved"


def optimizer_paths(opt_state, name: str) -> list[str]:
    """Parameters that an accumulator of the optimiser (mu, nu, trace) holds a value for."""
    found = []
    for path, _ in jax.tree_util.tree_flatten_with_path(opt_state)[0]:
        names = [str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", "")))) for key in path]
        if name in names:
            found.append("/".join(names[names.index(name) + 1 :]))
    return found


@pytest.mark.parametrize(
    ("rates", "config", "names"),
    [
        (STRATEGIES["frozen"].rates, ADAMW, ("mu", "nu")),
        (STRATEGIES["head"].rates, CASES["head, SGD with momentum"][1], ("trace",)),
        (PATTERN, ADAMW, ("mu", "nu")),
        (ALL, ADAMW, ("mu", "nu")),
        ((("head/*", 1.0), ("conv_*", 0.1), ("*", 0.01)), ADAMW, ("mu", "nu")),
    ],
    ids=["frozen", "head", "pattern", "all", "three rates"],
)
def test_optimizer_holds_every_trained_parameter_once(rates, config, names):
    params = start()["params"]
    program = Program(CGCNN(toy.SIZES, 1, 4), (toy.ENERGY,), config, rates)
    state = init_state(program, start())
    multipliers = jax.tree.leaves(rate_tree(params, rates))
    trained = [path for path, rate in zip(parameter_paths(params), multipliers, strict=True) if rate]
    for name in names:
        assert sorted(optimizer_paths(state.opt_state, name)) == sorted(trained)
    arrays = [leaf for leaf in jax.tree.leaves(state.opt_state) if np.ndim(leaf)]
    assert sum(leaf.size for leaf in arrays) == len(names) * sum(flatten(params)[path].size for path in trained)


def test_gradient_norm_is_of_what_is_trained():
    """Of plain descent the gradient of the first update can be read off: p' = p - rate (g + decay p)."""
    rates, config = CASES["frozen, SGD"]
    dataset, before = toy.dataset(), start()
    program = Program(CGCNN(toy.SIZES, 1, 4), (toy.ENERGY,), config, rates, frozen_modules(before["params"], rates))
    budget = pad_budget(dataset.n_atom, dataset.n_row, 4, 4)
    plan = batch_plan(dataset.n_atom, dataset.n_row, budget, 0)
    stacked = stack_batches(dataset, dataset.targets, plan[:1], budget, len(plan))
    hyper = Hyper(jnp.float32(1024.0), jnp.int32(1000), jnp.uint32(0))
    state, metrics = train_scan(program.static(), init_state(program.static(), before), stacked, hyper)
    total = 0.0
    for path, leaf in flatten(before["params"]["head"]).items():
        update = (leaf.astype(float) - flatten(state.params["head"])[path]) / 1024
        total += np.sum((update - 0.1 * leaf * (leaf.ndim > 1)) ** 2)
    assert float(metrics["gradient"][0]) == pytest.approx(np.sqrt(total), rel=1e-4)


def test_frozen_batch_norm_does_not_see_the_batch():
    """While training, a crystal's output depends on its company unless the convolution is frozen."""
    one = ModelConfig(width=8, convolutions=1, head_width=8, gaussian_step=0.5)
    network, dataset, variables = CGCNN(one, 1, 4), toy.dataset(), toy.variables(one, moved=True)
    budget = pad_budget(dataset.n_atom, dataset.n_row, 3, 4)
    stacked = stack_batches(dataset, dataset.targets, [np.array([3, 1]), np.array([3, 5])], budget)

    @functools.partial(jax.jit, static_argnums=0)
    def outputs(frozen, stacked):
        apply = lambda graph: network.apply(variables, graph, True, frozen, mutable=["batch_stats"])
        return jax.vmap(apply)(stacked.graph)

    frozen, updated = outputs(("conv_0",), stacked)
    assert frozen[0, 0, 0] == pytest.approx(float(frozen[1, 0, 0]), rel=1e-6)
    for path, leaf in flatten(variables["batch_stats"]).items():
        np.testing.assert_array_equal(flatten(updated["batch_stats"])[path], np.stack([leaf, leaf]), err_msg=path)
    free, moved = outputs((), stacked)
    assert abs(float(free[0, 0, 0] - free[1, 0, 0])) > 1e-4
    for path, leaf in flatten(variables["batch_stats"]).items():
        assert (np.asarray(flatten(moved["batch_stats"])[path]) != leaf).any(), path
