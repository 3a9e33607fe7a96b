"""Low-rank adapters: small trained matrices beside the frozen kernels of the convolutions."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

ADAPTER = "adapter"  # the top-level name in a parameter tree, so that patterns such as "adapter/*" find them
KERNELS = ("receiver_kernel", "sender_kernel", "edge_kernel")


def add_adapters(params: Mapping[str, Any], rank: int, seed: int) -> dict[str, Any]:
    """The same parameters with an adapter for each kernel of each convolution; the network's output does not change.

    A kernel W becomes W + down @ up, with `down` random and `up` zero at the start.

    Args:
        params: Parameter tree of a network, of one source or of several.
        rank: Columns of `down`, at least 1.
        seed: Of `down`.

    Returns:
        The tree with further leaves "adapter/conv_0/edge_kernel/down" [fan_in, rank], "…/up" [rank, fan_out], ….

    Source:
        E. J. Hu et al., LoRA: Low-rank adaptation of large language models, ICLR 2022, Eq. 3 with α = rank.

    Example:
        >>> tree = {"conv_0": {"edge_kernel": np.ones((3, 4))}, "head": {}}
        >>> add_adapters(tree, 2, seed=0)["adapter"]["conv_0"]["edge_kernel"]["up"].shape
        (2, 4)
    """
    rng = np.random.default_rng(seed)

    def beside(tree: Mapping[str, Any]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for name, value in tree.items():
            if name in KERNELS:
                fan_in, fan_out = value.shape
                down = rng.uniform(-1, 1, (fan_in, rank)).astype(np.float32) / np.sqrt(np.float32(fan_in))
                out[name] = {"down": down, "up": np.zeros((rank, fan_out), np.float32)}
            elif isinstance(value, Mapping) and (inner := beside(value)):
                out[name] = inner
        return out

    return {**params, ADAPTER: beside(params)}


def fold_adapters(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of the plain network that acts as the adapted one; without adapters, the same tree.

    Example:
        >>> tree = add_adapters({"conv_0": {"edge_kernel": np.ones((3, 4))}}, 2, seed=0)
        >>> sorted(fold_adapters(tree)), fold_adapters(tree)["conv_0"]["edge_kernel"].shape
        (['conv_0'], (3, 4))
    """

    def folded(tree: Mapping[str, Any], beside: Mapping[str, Any]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for name, value in tree.items():
            adapter = beside.get(name)
            if adapter is None:
                out[name] = value
            elif name in KERNELS:
                out[name] = value + jnp.asarray(adapter["down"]) @ jnp.asarray(adapter["up"])
            else:
                out[name] = folded(value, adapter)
        return out

    plain = {name: value for name, value in params.items() if name != ADAPTER}
    return folded(plain, params[ADAPTER]) if ADAPTER in params else plain
