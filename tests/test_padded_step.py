"""One padded training step against the unpadded reference in float64: loss, gradients, running statistics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from tlcgcnn_jax.batching import PadBudget, pad_budget, stack_batches
from tlcgcnn_jax.bundle import flatten
from tlcgcnn_jax.config import GraphConfig, ModelConfig, Target, TrainConfig
from tlcgcnn_jax.dataset import build_dataset
from tlcgcnn_jax.graphs import build_graph
from tlcgcnn_jax.model import CGCNN, init_variables
from tlcgcnn_jax.structures import Crystal, Record
from tlcgcnn_jax.train import Hyper, Program, example_graph, init_state, train_step

pytestmark = pytest.mark.usefixtures("optimised")

TOLERANCE = 1e-5  # of the norm of each leaf
SIZES = ModelConfig(width=16, convolutions=2, head_width=12, head_layers=2)
VALUES = (Target("energy"), Target("gap"))
CLASSES = (Target("metal", kind="classification"),)
SHELL = GraphConfig()
# With plain gradient descent the update is the gradient times the rate; a large power of two makes it exact, since
# next to it the rounding of the parameters it is added to is nothing.
RATE = 2.0**20


def crystals():
    """Split shells with fractional weights, an atom short of neighbours, cells of 1 to 9 atoms."""
    rng = np.random.default_rng(5)

    def cell(lattice, species, coords):
        return Crystal(np.array(lattice, float), np.array(species, np.int32), np.array(coords, float))

    scattered = 9.5 * np.eye(3) + 0.4 * rng.normal(size=(3, 3))
    grid = np.stack(np.meshgrid([0, 1, 2], [0, 1, 2], [0]), -1).reshape(-1, 3) / [3, 3, 1]
    return [
        cell(4.2 * (1 - np.eye(3)) / 2, [3], [[0, 0, 0]]),
        cell(
            np.diag([8.2, 4.1, 4.1]),
            [55, 17, 55, 17],
            [[0, 0, 0], [0.25, 0.5, 0.5], [0.5, 0, 0], [0.75, 0.5, 0.5]],
        ),
        cell(scattered, [14, 8, 8, 22, 57, 8, 8, 26, 12], grid + 0.04 * rng.normal(size=grid.shape)),
        cell(
            np.diag([4.6, 4.6, 2.96]),
            [22, 22, 8, 8, 8, 8],
            [[0, 0, 0], [0.5, 0.5, 0.5], [0.3, 0.3, 0], [0.7, 0.7, 0], [0.8, 0.2, 0.5], [0.2, 0.8, 0.5]],
        ),
        cell(np.diag([7.4, 7.4, 7.4]), [54], [[0, 0, 0]]),
    ]


def labels_of(targets):
    if targets == CLASSES:
        return np.array([[1], [0], [np.nan], [0], [1]], np.float32)
    return np.array([[0.7, np.nan], [-1.3, 0.2], [0.4, 2.1], [np.nan, -0.6], [np.nan, np.nan]], np.float32)


@functools.cache
def variables_for(outputs):
    """Fresh weights, and running statistics and batch-norm parameters that are not 0 and 1."""
    rng = np.random.default_rng(11)
    one = example_graph(build_dataset([Record("one", crystals()[0], {})], graph=SHELL))
    variables = jax.device_get(init_variables(CGCNN(SIZES, outputs, SHELL.places), one, 0))

    def moved(path, leaf):
        if any(str(key.key).endswith("_norm") for key in path):
            return (leaf + rng.uniform(-0.3, 0.3, leaf.shape)).astype(np.float32)
        return leaf

    return jax.tree_util.tree_map_with_path(moved, variables)


def one_step(graph, targets, loss, frozen, budget=None):
    """The step of the package and that of the reference on the same crystals."""
    labels, found = labels_of(targets), crystals()
    records = [Record(f"crystal-{i}", crystal, {}) for i, crystal in enumerate(found)]
    dataset = build_dataset(records, graph=graph)
    assert dataset.ids == [record.id for record in records]
    config = TrainConfig(optimizer="sgd", momentum=0.0, weight_decay=0.0, schedule="constant", warmup=0.0, loss=loss)
    network = CGCNN(SIZES, sum(target.outputs for target in targets), graph.places)
    variables = variables_for(network.outputs)
    program = Program(network, targets, config, frozen=frozen)
    budget = budget or pad_budget(dataset.n_atom, dataset.n_row, len(dataset), graph.places)
    batch = jax.tree.map(lambda leaf: leaf[0], stack_batches(dataset, labels, [np.arange(len(dataset))], budget))
    hyper = Hyper(jnp.float32(RATE), jnp.int32(1), jnp.uint32(0))
    state, metrics = jax.jit(functools.partial(train_step, program))(init_state(program, variables), batch, hyper)
    gradients = jax.tree.map(
        lambda before, after: (np.asarray(before, float) - np.asarray(after, float)) / RATE,
        variables["params"],
        state.params,
    )
    expected = reference.training_step(
        variables,
        reference.crystals([reference.unpack(build_graph(crystal, graph)) for crystal in found]),
        labels.astype(float),
        loss="cross_entropy" if targets == CLASSES else loss,
        frozen=frozen,
    )
    return gradients, state, metrics, expected, int(np.isfinite(labels).sum())


def assert_close(ours, expected, zero=()):
    """Leaf by leaf in norm; leaves that are zero in exact arithmetic are measured by the typical entry of the rest."""
    ours, expected = flatten(ours), flatten(expected)
    assert ours.keys() == expected.keys()
    scale = np.median([np.sqrt(np.mean(leaf**2)) for name, leaf in expected.items() if name not in zero])
    for name, leaf in expected.items():
        size = scale * np.sqrt(leaf.size) if name in zero else np.linalg.norm(leaf)
        assert size > 0, name
        error = np.linalg.norm(np.asarray(ours[name], float) - leaf) / size
        assert error <= TOLERANCE, f"{name}: off by {error:.3g} of its norm"


WIDE = PadBudget(n_node=64, n_row=150, n_graph=9, places=4)
ROWS = {
    "mae": (SHELL, VALUES, "mae", (), None),
    "mse": (SHELL, VALUES, "mse", (), None),
    "classes": (SHELL, CLASSES, "mae", (), None),
    "much padding": (SHELL, VALUES, "mse", (), WIDE),
    "one row an atom": (GraphConfig(places=12), VALUES, "mse", (), None),
    "graphs of the original": (GraphConfig(ties="reference", legacy_padding=True), VALUES, "mse", (), None),
    "frozen batch norm": (SHELL, VALUES, "mse", ("conv_0",), None),
}


@pytest.mark.parametrize(("graph", "targets", "loss", "frozen", "budget"), ROWS.values(), ids=ROWS)
def test_step_is_that_of_the_reference(graph, targets, loss, frozen, budget):
    gradients, state, metrics, expected, count = one_step(graph, targets, loss, frozen, budget)
    assert metrics["count"] == count
    assert float(metrics["loss"]) / count == pytest.approx(expected.loss, rel=TOLERANCE)
    # A batch norm by the batch's own mean takes off whatever a bias before it adds.
    zero = {f"conv_{i}/bias" for i in range(SIZES.convolutions)} - {f"{name}/bias" for name in frozen}
    assert_close(gradients, expected.gradients, zero)
    assert_close(state.batch_stats, expected.batch_stats)
    norm = np.sqrt(sum(np.sum(leaf**2) for leaf in flatten(expected.gradients).values()))
    assert float(metrics["gradient"]) == pytest.approx(norm, rel=TOLERANCE)


def test_the_crystals_exercise_weights():
    """Fractional weights, an atom short of neighbours, uneven rows: without them the rows above say little."""
    graphs = [build_graph(crystal, SHELL) for crystal in crystals()]
    weights = np.concatenate([graph.weights[graph.weights > 0] for graph in graphs])
    assert np.any(weights % 1 != 0) and np.any(weights > 1)
    sums = [np.bincount(graph.receivers, graph.weights.sum(1)) for graph in graphs]
    assert min(map(np.min, sums)) < 12 and max(map(np.max, sums)) == pytest.approx(12)
    assert len({len(graph.receivers) / len(graph.atomic_numbers) for graph in graphs}) > 1
