"""What is added to fill a batch up changes nothing: outputs, loss, gradients, running statistics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from tlcgcnn_jax.batching import Batch, PadBudget, stack_batches
from tlcgcnn_jax.bundle import flatten
from tlcgcnn_jax.config import TrainConfig
from tlcgcnn_jax.model import CGCNN
from tlcgcnn_jax.outputs import eval_step
from tlcgcnn_jax.train import Hyper, Program, TrainState, init_state, train_scan, train_step

pytestmark = pytest.mark.usefixtures("optimised")

TOLERANCE = 2e-6  # of the largest entry of an array: float32 sums in another order
ROWS = np.array([2, 4, 5, 6])
TIGHT = PadBudget(16, 40, 5, 4)
SGD = TrainConfig(optimizer="sgd", momentum=0.0, weight_decay=0.0, schedule="constant", warmup=0.0, loss="mse")
# The update is the gradient: next to a large power of two times it, the parameters are rounding.
HYPER = Hyper(jnp.float32(2.0**20), jnp.int32(1), jnp.uint32(0))


def program(places: int = 4, config: TrainConfig = SGD) -> Program:
    return Program(CGCNN(toy.SIZES, 1, places), (toy.ENERGY,), config).static()


def batch(budget: PadBudget) -> Batch:
    dataset = toy.dataset(places=budget.places)
    stacked = stack_batches(dataset, dataset.targets, [ROWS], budget)
    return jax.tree.map(lambda leaf: leaf[0], stacked)


@functools.partial(jax.jit, static_argnums=0)
def step(program: Program, state: TrainState, batch: Batch):
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    outputs = eval_step(program.model, variables, batch)
    return outputs, *train_step(program, state, batch, HYPER)


def results(budget: PadBudget, change=lambda batch: batch) -> dict[str, np.ndarray]:
    of = program(budget.places)
    outputs, state, metrics = step(of, init_state(of, toy.variables(moved=True)), change(batch(budget)))
    found = {"outputs": outputs[: len(ROWS)], "metrics": metrics, "stats": state.batch_stats, "params": state.params}
    return flatten(jax.device_get(found))


@pytest.fixture(scope="module")
def tight():
    return results(TIGHT)


def garbage(batch: Batch) -> Batch:
    """Other species, distances and senders wherever there is padding."""
    rng = np.random.default_rng(0)
    used = int(batch.graph.n_node[: len(ROWS)].sum())
    numbers = np.array(batch.graph.nodes["atomic_number"])
    numbers[used:] = rng.integers(1, 100, len(numbers) - used)
    empty = batch.graph.edges["weight"] == 0
    distance = np.where(empty, rng.uniform(0, 9, empty.shape).astype(np.float32), batch.graph.edges["distance"])
    senders = np.where(empty, rng.integers(0, len(numbers), empty.shape).astype(np.int32), batch.graph.senders)
    graph = batch.graph._replace(
        nodes={"atomic_number": numbers}, edges=batch.graph.edges | {"distance": distance}, senders=senders
    )
    return batch._replace(graph=graph)


CASES = {
    "a larger budget": (PadBudget(60, 90, 11, 4), lambda batch: batch),
    "one row an atom": (PadBudget(30, 30, 6, 12), lambda batch: batch),
    "garbage in the padding": (TIGHT, garbage),
}


@pytest.mark.parametrize(("budget", "change"), CASES.values(), ids=CASES)
def test_one_step(tight, budget, change):
    found = results(budget, change)
    assert found.keys() == tight.keys()
    scale = np.median([np.abs(leaf).max() for name, leaf in tight.items() if name.startswith("params/")])
    for name, expected in tight.items():
        assert np.isfinite(found[name]).all(), name
        # A bias before a batch norm has no gradient but rounding: it is measured by the others.
        size = scale if name in {f"params/conv_{i}/bias" for i in range(2)} else np.abs(expected).max()
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=TOLERANCE * size * 10, err_msg=name)


def test_garbage_is_garbage():
    """The check above would say nothing if there were no padding to change."""
    before, after = batch(TIGHT), garbage(batch(TIGHT))
    assert (before.graph.nodes["atomic_number"] != after.graph.nodes["atomic_number"]).any()
    assert (before.graph.edges["distance"] != after.graph.edges["distance"]).sum() > 5


@pytest.fixture(scope="module")
def stacks():
    """Two batches, alone and with empty ones after, between and before them."""
    dataset = toy.dataset()
    full = stack_batches(dataset, dataset.targets, [ROWS, np.array([0, 3, 8])], TIGHT, 5)
    return {
        name: jax.tree.map(lambda leaf, order=order: leaf[np.array(order)], full)
        for name, order in {
            "after": [0, 1, 2, 3, 4], "between": [0, 2, 1, 3, 4], "before": [4, 3, 0, 2, 1], "only": [2, 3, 4, 3, 2],
        }.items()
    }  # fmt: skip


def scanned(stack) -> tuple[TrainState, dict]:
    of = program(config=TrainConfig())  # AdamW with decay: an update without a gradient would move the weights
    hyper = HYPER._replace(learning_rate=jnp.float32(1))
    return train_scan(of, init_state(of, toy.variables(moved=True)), stack, hyper)


@pytest.mark.parametrize("where", ["between", "before"])
def test_empty_batches_are_skipped_bitwise(stacks, where):
    expected, metrics = scanned(stacks["after"])
    found, others = scanned(stacks[where])
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert int(found.step) == 2
    assert np.asarray(metrics["count"]).tolist() == [4, 3, 0, 0, 0]
    assert np.asarray(others["loss"]).sum() == pytest.approx(np.asarray(metrics["loss"]).sum())


def test_nothing_but_padding_leaves_the_state_bitwise(stacks):
    before = init_state(program(config=TrainConfig()), toy.variables(moved=True))
    kept = jax.tree.map(lambda leaf: np.array(leaf).tobytes(), before)
    after, metrics = scanned(stacks["only"])
    assert jax.tree.map(lambda leaf: np.asarray(leaf).tobytes(), after) == kept
    assert all(np.isfinite(values).all() and not np.any(values) for values in metrics.values())


def test_a_step_on_padding_is_finite(stacks):
    """Also where nobody skips the batch: no gradient, no running statistics."""
    empty = jax.tree.map(lambda leaf: leaf[0], stacks["only"])
    of = program()
    before = toy.variables(moved=True)
    outputs, state, metrics = step(of, init_state(of, before), empty)
    assert np.isfinite(outputs).all()
    assert float(metrics["loss"]) == float(metrics["count"]) == float(metrics["gradient"]) == 0.0
    jax.tree.map(np.testing.assert_array_equal, state.batch_stats, before["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, state.params, before["params"])
