"""Weighted batch norm, the gated graph convolution and the pooling of CGCNN."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

TORCH_MOMENTUM = 0.1  # share of the new batch in the running statistics, torch's default and the original's
EPSILON = 1e-5  # added to the variance, likewise


class WeightedBatchNorm(nn.Module):
    """Batch norm in which every row counts by its weight, as torch computes it on the rows that are there.

    Padding has weight 0, a shared place of a tied shell a fraction, so statistics are those of the unpadded batch:
    mean = Σ w x / Σ w, variance = Σ w (x - mean)² / Σ w, and the running variance is unbiased (Σ w / (Σ w - 1)).
    A batch without any weight leaves the running statistics as they are and gives finite numbers.

    Source:
        S. Ioffe and C. Szegedy, "Batch normalization", ICML 2015, Algorithm 1, where all weights are 1.
    """

    @nn.compact
    def __call__(self, parts: Sequence[Array], weight: Array, use_running: bool) -> list[Array]:
        """Normalise every feature.

        Args:
            parts: [..., features], the features in one array or in several, which are never put together: a gradient
                would have to be, and that is a pass over all edges.
            weight: [...], not negative.
            use_running: Normalise by the running statistics and leave them as they are.

        Returns:
            The parts, normalised.
        """
        widths = [part.shape[-1] for part in parts]
        features, axes = sum(widths), tuple(range(weight.ndim))
        scale = self.param("scale", nn.initializers.ones, (features,))
        bias = self.param("bias", nn.initializers.zeros, (features,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (features,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (features,))
        if use_running:
            mean, var = running_mean.value, running_var.value
        else:
            total = jnp.sum(weight)
            share = (weight / jnp.maximum(total, 1.0))[..., None]
            means = [jnp.sum(share * part, axes) for part in parts]
            # The variance is smallest about the mean: its derivative by the mean is zero (weights sum to 0, or to 1 and
            # more) and need not be computed; second derivatives would miss it.
            centres = [jnp.expand_dims(jax.lax.stop_gradient(mean), axes) for mean in means]
            squares = [jnp.square(part - centre) for part, centre in zip(parts, centres, strict=True)]
            mean, var = jnp.concatenate(means), jnp.concatenate([jnp.sum(share * square, axes) for square in squares])
            if not self.is_initializing():
                keep = jnp.where(total > 0, TORCH_MOMENTUM, 0.0)
                unbiased = var * total / jnp.maximum(total - 1.0, 1.0)
                running_mean.value = (1 - keep) * running_mean.value + keep * mean
                running_var.value = (1 - keep) * running_var.value + keep * unbiased
        factor = scale * jax.lax.rsqrt(var + EPSILON)
        ends = np.cumsum(widths)[:-1]
        factors, offsets = (jnp.split(jnp.expand_dims(x, axes), ends, -1) for x in (factor, bias - mean * factor))
        return [part * factor + offset for part, factor, offset in zip(parts, factors, offsets, strict=True)]


class GatedConvolution(nn.Module):
    """One convolution of CGCNN, Eq. 5 of Xie & Grossman 2018, with batch norm as in the authors' code.

    The product W [v_i; v_j; e_ij] is computed as W_i v_i + W_j v_j + W_e e_ij: the first two once per atom and not
    once per edge, which is most of the arithmetic. Gate and core, its two halves, are arrays of their own, so that
    no gradient has to be put together of two.

    Attributes:
        width: Features of an atom.
    """

    width: int

    @nn.compact
    def __call__(
        self,
        atoms: Array,  # [n_atom, width]
        edges: Array,  # [n_row * places, gaussians]
        senders: Array,  # [n_row, places]
        receivers: Array,  # [n_row]
        edge_weight: Array,  # [n_row, places]
        atom_weight: Array,  # [n_atom]
        use_running: bool,
    ) -> Array:  # [n_atom, width]
        """Update every atom from its neighbours."""
        n_atom, gates = atoms.shape[0], 2 * self.width
        # The fan-in is that of the joint matrix, as torch initialises it.
        fan_in = 2 * self.width + edges.shape[-1]
        receiver_kernel = self.param("receiver_kernel", uniform_by(fan_in), (self.width, gates))
        sender_kernel = self.param("sender_kernel", uniform_by(fan_in), (self.width, gates))
        edge_kernel = self.param("edge_kernel", uniform_by(fan_in), (edges.shape[-1], gates))
        bias = self.param("bias", uniform_by(fan_in), (gates,))

        own = atoms @ receiver_kernel + expand(bias, 2)
        other = atoms @ sender_kernel

        def product(half: slice) -> Array:
            # One axis for all edges: with two, XLA on a CPU transposes them for the gradient of the kernel, which then
            # takes twice the time.
            by_edge = (edges @ edge_kernel[:, half]).reshape(*senders.shape, self.width)
            return by_edge + own[:, half][receivers][:, None, :] + other[:, half][senders]

        halves = product(slice(self.width)), product(slice(self.width, gates))
        gate, core = WeightedBatchNorm(name="edge_norm")(halves, edge_weight, use_running)
        message = jax.nn.sigmoid(gate) * softplus(core) * edge_weight[..., None]
        # Most of the sum is a reduction over the places of a row; only the rows are scattered.
        summed = jax.ops.segment_sum(message.sum(1), receivers, n_atom, indices_are_sorted=True)
        (summed,) = WeightedBatchNorm(name="node_norm")([summed], atom_weight, use_running)
        return softplus(atoms + summed)


class Head(nn.Module):
    """From pooled features to the outputs: softplus, hidden layers, a linear map.

    Attributes:
        width: Hidden features.
        layers: Hidden layers.
        outputs: Numbers per crystal.
        dropout: Share of hidden features dropped while training.
    """

    width: int
    layers: int
    outputs: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, pooled: Array, train: bool) -> Array:
        """[n_graph, features] to [n_graph, outputs]."""
        x = softplus(pooled)
        for layer in range(self.layers):
            x = softplus(Dense(self.width, name=f"hidden_{layer}")(x))
            x = nn.Dropout(self.dropout)(x, deterministic=not train)
        return Dense(self.outputs, name="output")(x)


class Dense(nn.Module):
    """A linear map initialised as torch does, uniform in ±1/√fan_in, which the original's settings were tuned with."""

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., fan_in] to [..., features]."""
        kernel = self.param("kernel", uniform_by(x.shape[-1]), (x.shape[-1], self.features))
        bias = self.param("bias", uniform_by(x.shape[-1]), (self.features,))
        return x @ kernel + expand(bias, x.ndim)


def pool_mean(atoms: Array, graph_of_atom: Array, n_atom: Array) -> Array:
    """Mean of the atoms of each graph.

    Args:
        atoms: [n_atom_total, features].
        graph_of_atom: int [n_atom_total], sorted.
        n_atom: int [n_graph]; an empty padding graph gives zeros.

    Returns:
        [n_graph, features].

    Source:
        Xie & Grossman, Phys. Rev. Lett. 120, 145301 (2018): the normalised sum as pooling function.
    """
    total = jax.ops.segment_sum(atoms, graph_of_atom, n_atom.shape[0], indices_are_sorted=True)
    return total / jnp.maximum(n_atom, 1)[:, None].astype(atoms.dtype)


def gaussians(distance: Array, centres: Sequence[float] | np.ndarray, width: float) -> Array:
    """Distances expanded in Gaussians, exp(-(d - µ)² / width²).

    Args:
        distance: [...], in Å.
        centres: [n], in Å.
        width: In Å.

    Returns:
        [..., n].

    Source:
        `GaussianDistance` in the code of Xie & Grossman, Phys. Rev. Lett. 120, 145301 (2018).
    """
    exact = np.asarray(centres, np.float64)
    near = exact.astype(np.float32)
    # What float32 loses of a centre shifts all edges the same way, so it is subtracted, too.
    rest, ndim = (exact - near).astype(np.float32), distance.ndim + 1
    offset = (distance[..., None] - expand(jnp.asarray(near), ndim)) - expand(jnp.asarray(rest), ndim)
    return jnp.exp(-jnp.square(offset / width))


def softplus(x: Array) -> Array:
    """log(1 + exp(x)), good to 1e-7 absolute, and faster than `jax.nn.softplus` on a CPU."""
    return jnp.maximum(x, 0.0) + jnp.log(1.0 + jnp.exp(-jnp.abs(x)))


def uniform_by(fan_in: int) -> nn.initializers.Initializer:
    """Uniform in ±1/√fan_in."""
    bound = fan_in**-0.5

    def init(key: Array, shape: Sequence[int], dtype: jnp.dtype = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def expand(vector: Array, ndim: int) -> Array:
    """A vector with leading axes of length 1, since ranks are never promoted silently here."""
    return jnp.expand_dims(vector, tuple(range(ndim - 1)))
