"""What a network says of crystals: outputs, and the features that its convolutions make."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tlcgcnn_jax.batching import Batch, PadBudget, batch_plan, pad_budget, rounded_up, stack_batches
from tlcgcnn_jax.dataset import CrystalDataset, gather_rows
from tlcgcnn_jax.model import (
    CGCNN,
    Network,
    SourceMixture,
    SourceNorm,
    Variables,
    body_network,
    by_source,
    pooled_graph,
)

STACK_BYTES = 512 * 2**20  # an epoch larger than this goes to the device in several scans
# Of a batch: crystals that are predicted one by one, or a few at a time, share a compiled program.
FEWEST_NODES, FEWEST_ROWS, FEWEST_GRAPHS = 32, 128, 16


@functools.partial(jax.jit, static_argnums=0)
def eval_scan(model: Network, variables: Variables, batches: Batch) -> Array:
    """`eval_step` over stacked batches, [n_batch, n_graph, outputs]."""

    def body(carry: None, batch: Batch) -> tuple[None, Array]:
        shape = (batch.labels.shape[0], model.outputs)
        return carry, jax.lax.cond(
            holds_crystals(batch), lambda: eval_step(model, variables, batch), lambda: jnp.zeros(shape)
        )

    return jax.lax.scan(body, None, batches)[1]


def network_outputs(
    model: Network,
    variables: Variables,
    dataset: CrystalDataset,
    batch_size: int | None = None,
    budget: PadBudget | None = None,
) -> np.ndarray:
    """Outputs of the network for every crystal of a dataset, in its order.

    Args:
        model: The network.
        variables: {"params", "batch_stats"}.
        dataset: Packed crystals; labels are not looked at.
        batch_size: Crystals in a batch, on average; default: what is fastest, 32 on a CPU, whose caches hold no more.
            Only of a network with one source: a mixture computes each source's features in batches of its own.
        budget: A shape to share with earlier calls, instead of one made from this dataset's sizes; likewise.

    Returns:
        float32 [len(dataset), outputs].
    """
    out = np.zeros((len(dataset), model.outputs), np.float32)
    if not len(dataset):
        return out
    batch_size = batch_size or (32 if jax.default_backend() == "cpu" else 256)
    if isinstance(model, SourceMixture):
        return _mixture_outputs(model, variables, dataset)
    budget = budget or common_budget(dataset, batch_size)
    plan = batch_plan(dataset.n_atom, dataset.n_row, budget)
    no_labels = np.zeros((len(dataset), 0), np.float32)
    results = (outputs for stack in device_stacks(dataset, no_labels, plan, budget)
               for outputs in np.asarray(eval_scan(model, variables, stack)))  # fmt: skip
    for rows, outputs in zip(plan, results, strict=False):
        out[rows] = outputs[: len(rows)]
    return out


def eval_step(model: Network, variables: Variables, batch: Batch) -> Array:
    """Outputs of a padded batch with running statistics, [n_graph, outputs]."""
    outputs: Any = model.apply(variables, batch.graph, False)
    return outputs


def holds_crystals(batch: Batch) -> Array:
    """False for a batch of nothing but padding, whose first graph then has all the nodes."""
    graph: Any = batch.graph
    return graph.n_node[0] < graph.nodes["atomic_number"].shape[0]


def device_stacks(
    dataset: CrystalDataset, labels: np.ndarray, plan: list[np.ndarray], budget: PadBudget, length: int = 0
) -> Iterator[Batch]:
    """The batches of a plan on the device, in as few stacks of one length as memory allows: mostly one.

    One stack has `length` batches, or more where the plan does.
    """
    limit = max(1, STACK_BYTES // (16 * budget.n_row * budget.places))
    length = min(max(length, rounded_up(len(plan))), limit)
    for first in range(0, len(plan), length):
        yield jax.device_put(stack_batches(dataset, labels, plan[first : first + length], budget, length))


def prefix_features(
    network: Network, variables: Variables, dataset: CrystalDataset, convolutions: int | None = None
) -> np.ndarray:
    """What the first convolutions make of a dataset, batch norm on its running statistics.

    Args:
        network: The network.
        variables: {"params", "batch_stats"}; those of the head are not needed.
        dataset: Packed crystals; labels are not looked at.
        convolutions: How many are applied; default: all.

    Returns:
        float32 [atoms, width], all atoms of the dataset in its order; after the last convolution pooled, [n, width],
        for a mixture the sources side by side.
    """
    depth = network.config.convolutions if convolutions is None else convolutions
    body = body_network(network.config, dataset.graph.places)
    if isinstance(network, SourceMixture):
        each = by_source(variables, network.config.sources).values()
        return np.concatenate([prefix_features(body, one, dataset, depth) for one in each], axis=1)
    pooled = depth == network.config.convolutions
    out = np.zeros((len(dataset) if pooled else int(dataset.n_atom.sum()), network.config.width), np.float32)
    params = {name: part for name, part in variables["params"].items() if name != "head"}
    variables = jax.device_put({"params": params, "batch_stats": variables["batch_stats"]})
    for rows, graph in padded_batches(dataset):
        places = rows if pooled else gather_rows(dataset.atom_offset[rows], dataset.n_atom[rows])
        out[places] = np.asarray(_prefix(body, depth, variables, graph))[: len(places)]
    return out


def head_features(network: Network, variables: Variables, dataset: CrystalDataset) -> np.ndarray:
    """Pooled features as the head sees them: those of a mixture on one scale.

    Args:
        network: The network.
        variables: {"params", "batch_stats"}; those of the head are not needed.
        dataset: Packed crystals; labels are not looked at.

    Returns:
        float32 [n, width], for a mixture with joined sources side by side, [n, sources * width].
    """
    features = prefix_features(network, variables, dataset)
    if not isinstance(network, SourceMixture):
        return features
    scaled: Any = SourceNorm().apply({"batch_stats": variables["batch_stats"]["norm"]}, features)
    return np.asarray(scaled)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _prefix(body: CGCNN, depth: int, variables: Variables, graph: Any) -> Array:
    if depth == body.config.convolutions:
        pooled: Any = body.apply(variables, graph, method="features")
        return pooled
    atoms: Any = body.apply(variables, graph, convolutions=depth, method="atoms")
    return atoms


def _mixture_outputs(model: SourceMixture, variables: Variables, dataset: CrystalDataset) -> np.ndarray:
    """Outputs by way of each source's features: one compiled source instead of all of them in one program."""
    features = prefix_features(model, variables, dataset)
    rest = {
        kind: {name: part for name, part in tree.items() if not name.startswith("source_")}
        for kind, tree in variables.items()
    }
    return np.asarray(_head(model, jax.device_put(rest), features))


@functools.partial(jax.jit, static_argnums=0)
def _head(model: SourceMixture, variables: Variables, features: Array) -> Array:
    outputs: Any = model.apply(variables, pooled_graph(features), False, (), model.config.convolutions)
    return outputs


def common_budget(dataset: CrystalDataset, batch_size: int) -> PadBudget:
    """A budget to predict with, rounded up so that most sets of crystals share a few shapes, each compiled once."""
    exact = pad_budget(dataset.n_atom, dataset.n_row, batch_size, dataset.graph.places)
    nodes, rows = max(exact.n_node, FEWEST_NODES), max(exact.n_row, FEWEST_ROWS)
    graphs = max(exact.n_graph, FEWEST_GRAPHS)
    return PadBudget(rounded_up(nodes), rounded_up(rows), rounded_up(graphs), exact.places)


def padded_batches(dataset: CrystalDataset) -> Iterator[tuple[np.ndarray, Any]]:
    """Rows and padded graph of each batch; all have one shape."""
    if not len(dataset):
        return
    size = 32 if jax.default_backend() == "cpu" else 256  # a CPU's caches hold no more
    budget = common_budget(dataset, size)
    no_labels = np.zeros((len(dataset), 0), np.float32)
    for rows in batch_plan(dataset.n_atom, dataset.n_row, budget):
        stacked = stack_batches(dataset, no_labels, [rows], budget)
        yield rows, jax.tree.map(lambda leaf: leaf[0], stacked.graph)
