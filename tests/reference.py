"""The crystal graph network once more, in plain NumPy and float64: what the tests hold the JAX model against.

Nothing is padded, no edge product is split, and every derivative is written out. The mathematics is that of
Xie & Grossman, Phys. Rev. Lett. 120, 145301 (2018), with an edge weight w: it multiplies the message, and the batch
norm over edges takes mean = sum(w z) / sum(w), so that w = 1 everywhere is the original network.
"""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from tlcgcnn_jax.elements import feature_table

EPSILON = 1e-5  # of torch.nn.BatchNorm1d, as is the momentum
MOMENTUM = 0.1

Array = np.ndarray
Tree = dict[str, Any]


class Crystals(NamedTuple):
    """Several unpadded graphs, one after the other; N atoms and E edges in all."""

    atomic_numbers: Array  # [N]
    graph: Array  # [N] the graph of each atom
    receivers: Array  # [E]
    senders: Array  # [E]
    distances: Array  # [E] Å
    weights: Array  # [E]
    n_graph: int


def crystals(graphs: Sequence[tuple[Sequence[int], Sequence[Sequence[tuple[int, float, float]]]]]) -> Crystals:
    """Join graphs given as (atomic numbers, for each atom its list of (sender, distance in Å, weight))."""
    numbers: list[int] = []
    graph: list[int] = []
    edges: list[tuple[int, int, float, float]] = []
    for index, (species, neighbours) in enumerate(graphs):
        first = len(numbers)
        assert len(species) == len(neighbours) > 0
        for atom, found in enumerate(neighbours):
            edges += [(first + atom, first + sender, distance, weight) for sender, distance, weight in found]
        numbers += list(species)
        graph += [index] * len(species)
    receivers, senders, distances, weights = zip(*edges, strict=True) if edges else ((), (), (), ())
    return Crystals(
        np.array(numbers),
        np.array(graph),
        np.array(receivers, int),
        np.array(senders, int),
        np.array(distances, np.float64),
        np.array(weights, np.float64),
        len(graphs),
    )


def unpack(graph: Any) -> tuple[list[int], list[list[tuple[int, float, float]]]]:
    """A `tlcgcnn_jax.graphs.Graph` without its empty places, in the form that `crystals` takes."""
    neighbours: list[list[tuple[int, float, float]]] = [[] for _ in graph.atomic_numbers]
    for row, receiver in enumerate(graph.receivers):
        for sender, distance, weight in zip(graph.senders[row], graph.distances[row], graph.weights[row], strict=True):
            if weight > 0:
                neighbours[receiver].append((int(sender), float(distance), float(weight)))
    return [int(number) for number in graph.atomic_numbers], neighbours


def original_graph(structure: Any, cutoff: float = 8.0, neighbours: int = 12) -> tuple[list[int], list[list[Any]]]:
    """A pymatgen structure as the original code makes a graph of it, its invented neighbours included."""
    found = []
    for near in structure.get_all_neighbors(cutoff):
        edges = [(n.index, n.nn_distance, 1.0) for n in sorted(near, key=lambda n: n.nn_distance)[:neighbours]]
        found.append(edges + [(0, cutoff + 1.0, 1.0)] * (neighbours - len(edges)))
    return [site.specie.number for site in structure], found


def forward(
    variables: Tree, batch: Crystals, *, step: float = 0.2, last: float = 8.0, float32_gaussians: bool = False
) -> Array:
    """Network outputs [graph, output] with batch norm in evaluation mode, before any un-normalising or softmax.

    Args:
        variables: {"params", "batch_stats"}.
        batch: The crystals.
        step: Spacing and width of the Gaussians, Å.
        last: Centre of the last Gaussian, Å.
        float32_gaussians: Round the Gaussians, as the original does when it stores a graph.
    """
    kept = np.float32 if float32_gaussians else np.float64
    return _Network(variables, batch, expand(batch.distances, step, last).astype(kept), False, ()).outputs


def expand(distances: Array, step: float, last: float) -> Array:
    """Gaussians [E, G] of distances [E], Å."""
    centres = step * np.arange(round(last / step) + 1)
    return np.exp(-(((distances[:, None] - centres) / step) ** 2))


def log_softmax(outputs: Array) -> Array:
    """Logarithms of class probabilities [graph, class]."""
    shifted = outputs - outputs.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def loss_and_slope(outputs: Array, targets: Array, loss: str) -> tuple[float, Array]:
    """Mean loss over the labels that are there, and its derivative [graph, output].

    Args:
        outputs: [graph, output].
        targets: [graph, output] normalised values for "mae" and "mse", [graph, 1] class numbers for
            "cross_entropy"; NaN where there is no label.
        loss: "mae", "mse" or "cross_entropy".
    """
    known = ~np.isnan(targets)
    count = known.sum()
    if loss == "cross_entropy":
        chosen = np.where(known, targets, 0).astype(int)[:, 0]
        rows = np.arange(len(outputs))
        logs = log_softmax(outputs)
        hot = np.zeros_like(outputs)
        hot[rows, chosen] = 1
        return float(-(logs[rows, chosen] * known[:, 0]).sum() / count), known * (np.exp(logs) - hot) / count
    error = np.where(known, outputs - np.where(known, targets, 0), 0)
    if loss == "mae":
        return float(np.abs(error).sum() / count), np.sign(error) / count
    assert loss == "mse", loss
    return float((error**2).sum() / count), 2 * error / count


class Step(NamedTuple):
    """What one training step computes before the optimiser."""

    loss: float
    gradients: Tree  # as variables["params"]
    batch_stats: Tree  # as variables["batch_stats"], after the step
    outputs: Array  # [graph, output]


def training_step(
    variables: Tree,
    batch: Crystals,
    targets: Array,
    *,
    loss: str = "mae",
    frozen: Collection[str] = (),
    step: float = 0.2,
    last: float = 8.0,
) -> Step:
    """Loss, the gradient of every parameter and the new running statistics.

    Args:
        variables: {"params", "batch_stats"}.
        batch: The crystals of the batch.
        targets: As for `loss_and_slope`.
        loss: As for `loss_and_slope`.
        frozen: Convolutions ("conv_0", ...) whose batch norms use their running statistics and keep them.
        step: Spacing and width of the Gaussians, Å.
        last: Centre of the last Gaussian, Å.
    """
    network = _Network(variables, batch, expand(batch.distances, step, last), True, frozen)
    value, slope = loss_and_slope(network.outputs, targets, loss)
    return Step(value, network.gradients(slope), network.batch_stats, network.outputs)


class _Network:
    """One pass forward that remembers what the pass backward needs."""

    def __init__(
        self, variables: Tree, batch: Crystals, gaussians: Array, training: bool, frozen: Collection[str]
    ) -> None:
        self.params, stats = _double(variables["params"]), _double(variables["batch_stats"])
        self.batch = batch
        self.batch_stats: Tree = {}
        self.gaussians = gaussians.astype(np.float64)  # [E, G]
        self.features = feature_table().astype(np.float64)[batch.atomic_numbers]  # [N, 92]
        ones = np.ones(len(batch.atomic_numbers))
        embedding = self.params["embedding"]
        x = self.features @ embedding["kernel"] + embedding["bias"]
        self.convs: list[tuple[str, Tree]] = []
        for name in _numbered(self.params, "conv_"):
            train = training and name not in frozen
            p, seen = self.params[name], {"x": x}
            pre = np.concatenate([x[batch.receivers], x[batch.senders], self.gaussians], axis=1) @ _full(p) + p["bias"]
            edge = _Norm(pre, batch.weights, p["edge_norm"], stats[name]["edge_norm"], train)
            seen["gate"], seen["core"] = np.split(edge.out, 2, axis=1)
            message = batch.weights[:, None] * _sigmoid(seen["gate"]) * _softplus(seen["core"])
            node = _Norm(
                _sum_by(message, batch.receivers, len(x)), ones, p["node_norm"], stats[name]["node_norm"], train
            )
            seen["sum"] = x + node.out
            x = _softplus(seen["sum"])
            self.convs.append((name, seen | {"edge": edge, "node": node}))
            self.batch_stats[name] = {"edge_norm": edge.stats, "node_norm": node.stats}
        self.atoms = np.bincount(batch.graph, minlength=batch.n_graph)[:, None]  # [graph, 1]
        self.hidden = [_sum_by(x, batch.graph, batch.n_graph) / self.atoms]
        self.layers = _numbered(self.params["head"], "hidden_")
        for name in self.layers:
            layer = self.params["head"][name]
            self.hidden.append(_softplus(self.hidden[-1]) @ layer["kernel"] + layer["bias"])
        output = self.params["head"]["output"]
        self.outputs = _softplus(self.hidden[-1]) @ output["kernel"] + output["bias"]

    def gradients(self, slope: Array) -> Tree:
        """Derivatives by every parameter, from the derivatives by the outputs."""
        head: Tree = {}
        for name, before in zip(["output", *self.layers[::-1]], self.hidden[::-1], strict=True):
            head[name] = {"kernel": _softplus(before).T @ slope, "bias": slope.sum(axis=0)}
            slope = slope @ self.params["head"][name]["kernel"].T * _sigmoid(before)
        result: Tree = {"head": head}
        by_x = (slope / self.atoms)[self.batch.graph]
        for name, seen in reversed(self.convs):
            result[name], by_x = self._convolution_backward(self.params[name], seen, by_x)
        result["embedding"] = {"kernel": self.features.T @ by_x, "bias": by_x.sum(axis=0)}
        return result

    def _convolution_backward(self, p: Tree, seen: Tree, by_out: Array) -> tuple[Tree, Array]:
        batch, x = self.batch, seen["x"]
        by_sum = by_out * _sigmoid(seen["sum"])
        by_node, node_norm = seen["node"].backward(by_sum)
        by_message = by_node[batch.receivers] * batch.weights[:, None]
        gate, core = _sigmoid(seen["gate"]), _softplus(seen["core"])
        by_gate = by_message * core * gate * (1 - gate)
        by_core = by_message * gate * _sigmoid(seen["core"])
        by_pre, edge_norm = seen["edge"].backward(np.concatenate([by_gate, by_core], axis=1))
        gradients = {
            "receiver_kernel": x[batch.receivers].T @ by_pre,
            "sender_kernel": x[batch.senders].T @ by_pre,
            "edge_kernel": self.gaussians.T @ by_pre,
            "bias": by_pre.sum(axis=0),
            "edge_norm": edge_norm,
            "node_norm": node_norm,
        }
        by_x = (
            by_sum
            + _sum_by(by_pre @ p["receiver_kernel"].T, batch.receivers, len(x))
            + _sum_by(by_pre @ p["sender_kernel"].T, batch.senders, len(x))
        )
        return gradients, by_x


class _Norm:
    """Weighted batch norm over rows; the weights enter mean, variance and count, not the rows themselves."""

    def __init__(self, rows: Array, weights: Array, p: Tree, stats: Tree, training: bool) -> None:
        self.scale, self.training = p["scale"], training
        mean, var, self.stats = stats["mean"], stats["var"], stats
        if training:
            count = weights.sum()
            assert count > 1, "batch norm needs more than one row"
            self.share = (weights / count)[:, None]
            mean = (self.share * rows).sum(axis=0)
            var = (self.share * (rows - mean) ** 2).sum(axis=0)
            self.stats = {
                "mean": (1 - MOMENTUM) * stats["mean"] + MOMENTUM * mean,
                "var": (1 - MOMENTUM) * stats["var"] + MOMENTUM * var * count / (count - 1),
            }
        self.deviation = np.sqrt(var + EPSILON)
        self.unit = (rows - mean) / self.deviation
        self.out = self.unit * p["scale"] + p["bias"]

    def backward(self, by_out: Array) -> tuple[Array, Tree]:
        """Derivatives by the rows and by {scale, bias}."""
        gradients = {"scale": (by_out * self.unit).sum(axis=0), "bias": by_out.sum(axis=0)}
        by_unit = by_out * self.scale
        if not self.training:
            return by_unit / self.deviation, gradients
        along = by_unit.sum(axis=0) + self.unit * (by_unit * self.unit).sum(axis=0)
        return (by_unit - self.share * along) / self.deviation, gradients


def _double(tree: Tree) -> Tree:
    return {k: _double(v) if isinstance(v, dict) else np.asarray(v, np.float64) for k, v in tree.items()}


def _numbered(tree: Tree, prefix: str) -> list[str]:
    return sorted((name for name in tree if name.startswith(prefix)), key=lambda name: int(name[len(prefix) :]))


def _full(p: Tree) -> Array:
    """The original's one matrix for [receiver | sender | distance], input first."""
    return np.concatenate([p["receiver_kernel"], p["sender_kernel"], p["edge_kernel"]])


def _sum_by(rows: Array, index: Array, size: int) -> Array:
    total = np.zeros((size, rows.shape[1]), rows.dtype)
    np.add.at(total, index, rows)
    return total


def _sigmoid(x: Array) -> Array:
    return np.exp(-np.logaddexp(0, -x))


def _softplus(x: Array) -> Array:
    return np.logaddexp(0, x)
