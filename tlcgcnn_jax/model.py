"""CGCNN in Flax: a padded graph in, one row of outputs per crystal out."""

import functools
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import jraph
import numpy as np
from jax import Array

from tlcgcnn_jax.config import ModelConfig
from tlcgcnn_jax.elements import feature_table
from tlcgcnn_jax.layers import GatedConvolution, Head, gaussians, pool_mean, uniform_by

Variables = dict[str, Any]


class Embedding(nn.Module):
    """Elemental features to atom features: computed once per element, then looked up per atom."""

    width: int

    @nn.compact
    def __call__(self, atomic_numbers: Array) -> Array:
        """int [n_atom] to [n_atom, width]."""
        table = jnp.asarray(feature_table())
        kernel = self.param("kernel", uniform_by(table.shape[1]), (table.shape[1], self.width))
        bias = self.param("bias", uniform_by(table.shape[1]), (self.width,))
        return (table @ kernel + bias[None, :])[atomic_numbers]


class CGCNN(nn.Module):
    """Crystal graph convolutional network (Xie & Grossman, Phys. Rev. Lett. 120, 145301 (2018)).

    The names `embedding`, `conv_0` … and `head` are the interface of transfer and do not change.

    Attributes:
        config: Sizes.
        outputs: Numbers per crystal.
        places: Edge places in a row of the batches it is fed; it changes the layout, not the result.
    """

    config: ModelConfig
    outputs: int
    places: int

    def setup(self) -> None:
        """Name the parts."""
        config = self.config
        self.embedding = Embedding(config.width)
        self.conv = [GatedConvolution(config.width) for _ in range(config.convolutions)]  # conv_0, conv_1, ...
        self.head = Head(config.head_width, config.head_layers, self.outputs, config.dropout)

    def __call__(
        self, graph: jraph.GraphsTuple, train: bool = False, frozen: tuple[str, ...] = (), cached: int | None = None
    ) -> Array:
        """Outputs of every graph of a padded batch.

        Args:
            graph: nodes {"atomic_number": int [n_node]}, edges {"distance" in Å, "weight": float [n_edge]}; edges
                stand in rows of `places` that share a receiver, as `batching` makes them.
            train: Batch norm by the batch's own statistics (which then update the running ones), and dropout.
            frozen: Names of convolutions whose batch norm keeps to its running statistics even while training.
            cached: Number of convolutions that have been applied already: their result stands in
                nodes["features"] [n_node, width], or, after the last one, pooled in globals["features"]
                [n_graph, width]. None: start from the elements.

        Returns:
            [n_graph, outputs]; rows of padding graphs are finite and mean nothing.
        """
        return self.head(self.features(graph, train, frozen, cached), train)

    def features(
        self, graph: jraph.GraphsTuple, train: bool = False, frozen: tuple[str, ...] = (), cached: int | None = None
    ) -> Array:
        """Pooled features of every graph before the head, [n_graph, width]; arguments as in `__call__`."""
        found: Any = graph  # jraph types the parts of a graph as arrays, or nests of them, or None
        if cached == self.config.convolutions:
            return found.globals["features"]
        return pool(self.atoms(graph, train, frozen, cached), graph)

    def atoms(
        self,
        graph: jraph.GraphsTuple,
        train: bool = False,
        frozen: tuple[str, ...] = (),
        cached: int | None = None,
        convolutions: int | None = None,
    ) -> Array:
        """Features of every atom after some convolutions, [n_node, width].

        Args:
            graph: As in `__call__`.
            train: As in `__call__`.
            frozen: As in `__call__`.
            cached: As in `__call__`.
            convolutions: How many to apply; default: all.
        """
        config = self.config
        found: Any = graph
        distance = found.edges["distance"]
        weight = found.edges["weight"].reshape(-1, self.places)
        senders = found.senders.reshape(-1, self.places)
        receivers = found.receivers.reshape(-1, self.places)[:, 0]
        edges = gaussians(distance, np.arange(config.gaussians) * config.gaussian_step, config.gaussian_step)
        atoms = self.embedding(found.nodes["atomic_number"]) if cached is None else found.nodes["features"]
        atom_weight = jnp.asarray(jraph.get_node_padding_mask(graph), atoms.dtype)
        for layer in range(cached or 0, config.convolutions if convolutions is None else convolutions):
            running = not train or f"conv_{layer}" in frozen
            atoms = self.conv[layer](atoms, edges, senders, receivers, weight, atom_weight, running)
        return atoms


class Gate(nn.Module):
    """One weight for each source, the same for all crystals: a softmax over the `top_k` largest logits.

    Source:
        R. Chang, Y.-X. Wang and E. Ertekin, npj Comput. Mater. 8, 242 (2022), Eq. 2 and 3.
    """

    sources: int
    top_k: int

    @nn.compact
    def __call__(self, features: Array) -> Array:
        """[n_graph, sources, width] to [n_graph, width]."""
        logits = self.param("logits", nn.initializers.zeros, (self.sources,))
        chosen, which = jax.lax.top_k(logits, self.top_k)  # of equal ones the first: see `SourceChoice`
        return jnp.einsum("s,gsw->gw", jax.nn.softmax(chosen), features[:, which])


class SourceNorm(nn.Module):
    """Pooled features of all sources on one scale, that of the training crystals, and logarithmic far out.

    A source that has never seen crystals like these may answer with features of any size, which would drown those of
    all others. arcsinh is nearly the identity within a standard deviation and, unlike a cut, lets all gradients
    through. The statistics are measured once (`fine_tuning.start`), by the running statistics of each source, and stay.
    So a strategy that trains sources, whose batch norm then goes by the batch, starts from statistics of the target.
    """

    @nn.compact
    def __call__(self, features: Array) -> Array:
        """[n_graph, sources * width] to the same."""
        mean = self.variable("batch_stats", "mean", jnp.zeros, features.shape[-1:])
        inverse = self.variable("batch_stats", "inverse_std", jnp.ones, features.shape[-1:])
        return jnp.arcsinh((features - mean.value[None, :]) * inverse.value[None, :])


class SourceMixture(nn.Module):
    """Several source networks side by side, their pooled features brought to one scale, mixed or joined, and one head.

    The names `source_0/embedding`, `source_0/conv_0` …, `gate` and `head` are the interface of transfer; `norm` has no
    parameters.

    Attributes:
        config: Sizes of each source and of the head, number of sources, and how they are combined.
        outputs: Numbers per crystal.
        places: Edge places in a row of the batches it is fed.
    """

    config: ModelConfig
    outputs: int
    places: int

    def setup(self) -> None:
        """Name the parts."""
        config = self.config
        self.source = [CGCNN(config, self.outputs, self.places) for _ in range(config.sources)]  # their heads idle
        self.norm = SourceNorm()
        if config.combine == "gate":
            self.gate = Gate(config.sources, config.top_k or config.sources)
        self.head = Head(config.head_width, config.head_layers, self.outputs, config.dropout)

    def __call__(
        self, graph: jraph.GraphsTuple, train: bool = False, frozen: tuple[str, ...] = (), cached: int | None = None
    ) -> Array:
        """Outputs of every graph of a padded batch, [n_graph, outputs].

        Args:
            graph: As for `CGCNN`.
            train: As for `CGCNN`.
            frozen: Names of sources ("source_0"), or of some of their convolutions ("source_0/conv_1").
            cached: The number of convolutions: the pooled features of all sources stand in globals["features"]
                [n_graph, sources * width]. None: start from the elements.
        """
        features = self.norm(self.features(graph, train, frozen, cached))
        if self.config.combine == "gate":
            features = self.gate(features.reshape(features.shape[0], self.config.sources, -1))
        return self.head(features, train)

    def features(
        self, graph: jraph.GraphsTuple, train: bool = False, frozen: tuple[str, ...] = (), cached: int | None = None
    ) -> Array:
        """Pooled features of all sources as they are, one after the other, [n_graph, sources * width]."""
        if cached is not None:
            found: Any = graph
            return found.globals["features"]
        parts = []
        for index, source in enumerate(self.source):
            name = f"source_{index}"
            convolutions = tuple(f"conv_{layer}" for layer in range(self.config.convolutions))
            own = convolutions if name in frozen else tuple(c for c in convolutions if f"{name}/{c}" in frozen)
            parts.append(source.features(graph, train, own))
        return jnp.concatenate(parts, axis=1)


Network = CGCNN | SourceMixture


def build_network(config: ModelConfig, outputs: int, places: int) -> Network:
    """The network that a configuration describes: `CGCNN`, or `SourceMixture` for several sources."""
    return (CGCNN if config.sources == 1 else SourceMixture)(config, outputs, places)


def body_network(config: ModelConfig, places: int) -> CGCNN:
    """The network up to its pooled features, or one source of a mixture: all of one body share a compilation."""
    return CGCNN(replace(config, sources=1, top_k=0, head_width=1, head_layers=1, dropout=0.0), 1, places)


def by_source(variables: Variables, sources: int) -> dict[str, Variables]:
    """The variables of each source of a mixture."""
    names = [f"source_{index}" for index in range(sources)]
    return {name: {kind: tree.get(name, {}) for kind, tree in variables.items()} for name in names}


def pool(atoms: Array, graph: jraph.GraphsTuple) -> Array:
    """Mean of the atoms of each graph, [n_node, width] to [n_graph, width]."""
    graph_of_atom = jnp.repeat(jnp.arange(graph.n_node.shape[0]), graph.n_node, total_repeat_length=atoms.shape[0])
    return pool_mean(atoms, graph_of_atom, graph.n_node)


def init_variables(model: Network, graph: jraph.GraphsTuple, seed: int) -> Variables:
    """Fresh {"params", "batch_stats"} for a model, seeded.

    Args:
        model: The network.
        graph: Any batch of the right layout; only shapes matter.
        seed: Seed of the initial weights.
    """
    return _init(model, jax.random.key(seed), graph)


@functools.partial(jax.jit, static_argnums=0)  # of `model.init` itself, every call would be compiled anew
def _init(model: Network, key: Array, graph: jraph.GraphsTuple) -> Variables:
    return dict(model.init(key, graph))


def init_head(model: Network, seed: int) -> Variables:
    """Fresh variables of what comes after the pooled features alone: the head, a mixture's norm and its gate.

    Args:
        model: The network.
        seed: Seed of the initial weights.
    """
    config = model.config
    graph = pooled_graph(np.zeros((1, config.width * config.sources), np.float32))
    return jax.device_get(dict(model.init(jax.random.key(seed), graph, False, (), config.convolutions)))


def pooled_graph(features: Any) -> Any:
    """Graphs of which nothing is left but their pooled features [n, width], for a network with everything cached."""
    make: Any = jraph.GraphsTuple  # typed for arrays alone
    none = np.zeros(0, np.int32)
    return make({}, {}, none, none, {"features": features}, none, none)
