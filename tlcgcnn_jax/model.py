"""CGCNN in Flax: a padded graph in, one row of outputs per crystal out."""

import functools
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

    def __call__(self, graph: jraph.GraphsTuple, train: bool = False, frozen: tuple[str, ...] = ()) -> Array:
        """Outputs of every graph of a padded batch.

        Args:
            graph: nodes {"atomic_number": int [n_node]}, edges {"distance" in Å, "weight": float [n_edge]}; edges
                stand in rows of `places` that share a receiver, as `batching` makes them.
            train: Batch norm by the batch's own statistics (which then update the running ones), and dropout.
            frozen: Names of convolutions whose batch norm keeps to its running statistics even while training.

        Returns:
            [n_graph, outputs]; rows of padding graphs are finite and mean nothing.
        """
        return self.head(self.features(graph, train, frozen), train)

    def features(self, graph: jraph.GraphsTuple, train: bool = False, frozen: tuple[str, ...] = ()) -> Array:
        """Pooled features of every graph before the head, [n_graph, width]; arguments as in `__call__`."""
        config = self.config
        # jraph types the parts of a graph as arrays, or nests of them, or None.
        found: Any = graph
        distance = found.edges["distance"].reshape(-1, self.places)
        weight = found.edges["weight"].reshape(-1, self.places)
        senders = found.senders.reshape(-1, self.places)
        receivers = found.receivers.reshape(-1, self.places)[:, 0]
        edges = gaussians(distance, np.arange(config.gaussians) * config.gaussian_step, config.gaussian_step)
        atoms = self.embedding(found.nodes["atomic_number"])
        atom_weight = jnp.asarray(jraph.get_node_padding_mask(graph), atoms.dtype)
        for layer, convolution in enumerate(self.conv):
            running = not train or f"conv_{layer}" in frozen
            atoms = convolution(atoms, edges, senders, receivers, weight, atom_weight, running)
        graph_of_atom = jnp.repeat(jnp.arange(graph.n_node.shape[0]), graph.n_node, total_repeat_length=atoms.shape[0])
        return pool_mean(atoms, graph_of_atom, graph.n_node)


def init_variables(model: CGCNN, graph: jraph.GraphsTuple, seed: int) -> Variables:
    """Fresh {"params", "batch_stats"} for a model, seeded.

    Args:
        model: The network.
        graph: Any batch of the right layout; only shapes matter.
        seed: Seed of the initial weights.
    """
    return _init(model, jax.random.key(seed), graph)


@functools.partial(jax.jit, static_argnums=0)  # of `model.init` itself, every call would be compiled anew
def _init(model: CGCNN, key: Array, graph: jraph.GraphsTuple) -> Variables:
    return dict(model.init(key, graph))
