"""What the package is measured against: the original's neighbour lists by pymatgen, and a plain Flax + jraph CGCNN.

The network is what a good engineer writes in an afternoon from the paper and the jraph examples: features and Gaussians
stored on the graphs, the joint edge matrix of the paper, Flax's batch norm with a mask, `jraph.dynamically_batch`, one
compiled step per batch. It has the same sizes and gives the same numbers as the package's network.
"""

import functools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import jraph
import numpy as np
import optax

from tlcgcnn_jax.dataset import CrystalDataset
from tlcgcnn_jax.elements import feature_table

CUTOFF, NEIGHBOURS = 8.0, 12
CENTRES = np.arange(41, dtype=np.float32) * np.float32(0.2)  # Å
State = tuple[Any, Any, Any]  # params, batch_stats, opt_state


class Neighbours(NamedTuple):
    """The k nearest neighbours of every atom: int [n_atom, k], and Å [n_atom, k]."""

    senders: np.ndarray
    distances: np.ndarray


def original_neighbours(structure: Any) -> Neighbours:
    """As the original CGCNN code makes them from a pymatgen Structure: sort each site's list, cut it, fill it up."""
    rows = structure.get_all_neighbors(CUTOFF, include_index=True)
    rows = [sorted(row, key=lambda neighbour: neighbour.nn_distance)[:NEIGHBOURS] for row in rows]
    senders = [[n.index for n in row] + [0] * (NEIGHBOURS - len(row)) for row in rows]
    distances = [[n.nn_distance for n in row] + [CUTOFF + 1] * (NEIGHBOURS - len(row)) for row in rows]
    return Neighbours(np.array(senders), np.array(distances))


def array_neighbours(structure: Any) -> Neighbours:
    """The same from pymatgen's array interface, which makes no neighbour objects; not filled up: [n_edge]."""
    centre, sender, _, distance = structure.get_neighbor_list(CUTOFF)
    order = np.lexsort((distance, centre))
    centre = centre[order]
    order = order[np.arange(len(order)) - np.searchsorted(centre, centre) < NEIGHBOURS]
    return Neighbours(sender[order], distance[order])


def original_from_cif(text: str) -> Neighbours:
    """CIF text to neighbours by pymatgen alone."""
    from pymatgen.io.cif import CifParser

    return original_neighbours(CifParser.from_str(text).parse_structures(primitive=False)[0])


class Convolution(nn.Module):
    """Gated convolution of the paper, Eq. 5."""

    width: int

    @nn.compact
    def __call__(self, nodes: jax.Array, graph: jraph.GraphsTuple, train: bool) -> jax.Array:
        masks = jraph.get_node_padding_mask(graph)[:, None], jraph.get_edge_padding_mask(graph)[:, None]
        joint = jnp.concatenate([nodes[graph.receivers], nodes[graph.senders], graph.edges], axis=1)
        gated = nn.Dense(2 * self.width, name="joint")(joint)
        gated = nn.BatchNorm(not train, momentum=0.9, name="edge_norm")(gated, mask=masks[1])
        gate, core = jnp.split(gated, 2, axis=1)
        messages = nn.sigmoid(gate) * nn.softplus(core)  # those of padding go to a padding node
        summed = jax.ops.segment_sum(messages, graph.receivers, len(nodes))
        summed = nn.BatchNorm(not train, momentum=0.9, name="node_norm")(summed, mask=masks[0])
        return nn.softplus(nodes + summed)


class StraightforwardCGCNN(nn.Module):
    """The whole network."""

    width: int = 64
    convolutions: int = 4
    head_width: int = 128

    @nn.compact
    def __call__(self, graph: jraph.GraphsTuple, train: bool) -> jax.Array:
        nodes = nn.Dense(self.width, name="embedding")(graph.nodes)
        for i in range(self.convolutions):
            nodes = Convolution(self.width, name=f"conv_{i}")(nodes, graph, train)
        n_graph = len(graph.n_node)
        graph_of_node = jnp.repeat(jnp.arange(n_graph), graph.n_node, total_repeat_length=len(nodes))
        crystals = nn.softplus(jraph.segment_mean(nodes, graph_of_node, n_graph))
        crystals = nn.softplus(nn.Dense(self.head_width, name="hidden")(crystals))
        return nn.Dense(1, name="output")(crystals)


MODEL = StraightforwardCGCNN()
OPTIMIZER = optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 4e-3, 50, 1000), weight_decay=1e-4)


@functools.partial(jax.jit, donate_argnums=0)
def train_step(state: State, batch: jraph.GraphsTuple) -> tuple[State, jax.Array]:
    """One update, and the mean absolute error before it."""
    params, batch_stats, opt_state = state
    labels, mask = batch.globals, jraph.get_graph_padding_mask(batch)[:, None]
    graph = batch._replace(globals=None)

    def loss(params: Any) -> tuple[jax.Array, Any]:
        variables = {"params": params, "batch_stats": batch_stats}
        outputs, updated = MODEL.apply(variables, graph, True, mutable=["batch_stats"])
        return jnp.sum(jnp.abs(outputs - labels) * mask) / jnp.sum(mask), updated["batch_stats"]

    (value, batch_stats), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    updates, opt_state = OPTIMIZER.update(gradients, opt_state, params)
    return (optax.apply_updates(params, updates), batch_stats, opt_state), value


@jax.jit
def predict_step(variables: dict[str, Any], batch: jraph.GraphsTuple) -> tuple[jax.Array, jax.Array]:
    """Outputs, and which of the graphs are real."""
    return MODEL.apply(variables, batch._replace(globals=None), False), jraph.get_graph_padding_mask(batch)


class Straightforward:
    """Crystals, training state and padded size of the plain network."""

    def __init__(
        self, dataset: CrystalDataset, labels: np.ndarray, variables: dict[str, Any], n_node: int, n_graph: int
    ):
        self.graphs = [_graph(dataset, i, labels[i : i + 1]) for i in range(len(dataset))]
        self.size = (n_node, NEIGHBOURS * n_node, n_graph)
        variables = from_package(variables)
        self.state: State = (variables["params"], variables["batch_stats"], OPTIMIZER.init(variables["params"]))

    def batches(self, order: Iterable[int]) -> Iterator[jraph.GraphsTuple]:
        """Crystals in this order, concatenated and padded to one size."""
        return jraph.dynamically_batch((self.graphs[i] for i in order), *self.size)

    def train(self, batches: Iterable[jraph.GraphsTuple]) -> jax.Array:
        """A step for each batch; gives the losses."""
        losses = []
        for batch in batches:
            self.state, loss = train_step(self.state, batch)
            losses.append(loss)
        return jnp.stack(losses)

    def predict(self, variables: dict[str, Any]) -> np.ndarray:
        """Outputs of every crystal."""
        results = [predict_step(variables, batch) for batch in self.batches(range(len(self.graphs)))]
        return np.concatenate([np.asarray(outputs)[np.asarray(real)] for outputs, real in results])


def _graph(dataset: CrystalDataset, i: int, label: np.ndarray) -> jraph.GraphsTuple:
    """A crystal of a packed dataset, with features and Gaussians stored and the label as globals."""
    atoms = slice(dataset.atom_offset[i], dataset.atom_offset[i + 1])
    rows = slice(dataset.row_offset[i], dataset.row_offset[i + 1])
    real = dataset.weights[rows] > 0
    distances = dataset.distances[rows][real]
    return jraph.GraphsTuple(
        nodes=feature_table()[dataset.atomic_numbers[atoms]],
        edges=np.exp(-(((distances[:, None] - CENTRES) / np.float32(0.2)) ** 2)),
        senders=dataset.senders[rows][real],
        receivers=np.broadcast_to(dataset.receivers[rows][:, None], real.shape)[real],
        globals=label,
        n_node=np.array([dataset.n_atom[i]], np.int32),
        n_edge=np.array([len(distances)], np.int32),
    )


def from_package(variables: dict[str, Any]) -> dict[str, Any]:
    """The package's variables under the names of this network, copied: steps give up the memory of their input."""
    package = variables["params"]
    params = {"embedding": package["embedding"]}
    params |= {"hidden": package["head"]["hidden_0"], "output": package["head"]["output"]}
    for name, conv in package.items():
        if name.startswith("conv_"):
            kernel = jnp.concatenate([conv["receiver_kernel"], conv["sender_kernel"], conv["edge_kernel"]])
            norms = {norm: conv[norm] for norm in ("edge_norm", "node_norm")}
            params[name] = {"joint": {"kernel": kernel, "bias": conv["bias"]}} | norms
    return jax.tree.map(jnp.array, {"params": params, "batch_stats": variables["batch_stats"]})
