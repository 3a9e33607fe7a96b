"""What the norms of a network know of the target's crystals: batch-norm statistics, and the scale of joined sources."""

import functools
from typing import Any

import jax
import numpy as np

from tlcgcnn_jax.batching import pad_budget, stack_batches
from tlcgcnn_jax.dataset import CrystalDataset
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.layers import TORCH_MOMENTUM
from tlcgcnn_jax.model import Network, SourceMixture, Variables, body_network, by_source
from tlcgcnn_jax.outputs import prefix_features

FEATURES_ALIKE = 1e-3  # standard deviation, of the largest value, below which a feature says nothing
DEAD_FEATURE = 1e-5  # standard deviation below which a feature is what float32 makes of zero
STATISTICS_CRYSTALS = 2000  # as many training crystals at most tell the statistics of batch norm
NORM_CRYSTALS = 500  # and so many the scale of a mixture's sources


def estimate_statistics(
    network: Network, variables: Variables, dataset: CrystalDataset, rows: np.ndarray
) -> dict[str, Any]:
    """Batch-norm statistics of some crystals taken as one batch, layer upon layer.

    Args:
        network: The network.
        variables: {"params", "batch_stats"}; of the latter only the structure counts.
        dataset: Packed crystals.
        rows: Training rows, of which 2,000 at most are taken.

    Returns:
        A tree like variables["batch_stats"]: mean and unbiased variance of each batch norm's input.
    """
    if isinstance(network, SourceMixture):  # one compiled source instead of all of them in one program
        body = body_network(network.config, dataset.graph.places)
        parts = by_source(variables, network.config.sources)
        return {name: estimate_statistics(body, part, dataset, rows) for name, part in parts.items()}
    some = dataset.select(_some(rows, STATISTICS_CRYSTALS))
    budget = pad_budget(some.n_atom, some.n_row, len(some), some.graph.places)
    plan = [np.arange(len(some))]
    graph = jax.tree.map(
        lambda leaf: leaf[0], stack_batches(some, np.zeros((len(some), 0), np.float32), plan, budget).graph
    )
    nothing = jax.tree.map(np.zeros_like, variables["batch_stats"])
    found: Any = _statistics(network, {**variables, "batch_stats": nothing}, graph)
    # From zero, one update of the running statistics is their momentum times those of the batch.
    return jax.tree.map(lambda leaf: np.asarray(leaf / np.float32(TORCH_MOMENTUM)), found)


@functools.partial(jax.jit, static_argnums=0)
def _statistics(network: Network, variables: Variables, graph: Any) -> Any:
    return network.apply(variables, graph, True, method="features", mutable=["batch_stats"])[1]["batch_stats"]


def estimate_norm(
    network: SourceMixture, variables: Variables, dataset: CrystalDataset, rows: np.ndarray
) -> dict[str, np.ndarray]:
    """Statistics of a mixture's norm, see `feature_statistics`, batch norm on its running statistics.

    Args:
        network: The mixture.
        variables: {"params", "batch_stats"} of its sources.
        dataset: Packed crystals.
        rows: Training rows, of which 500 at most are taken.
    """
    return feature_statistics(prefix_features(network, variables, dataset.select(_some(rows, NORM_CRYSTALS))))


def feature_statistics(features: np.ndarray) -> dict[str, np.ndarray]:
    """What a mixture needs to bring the pooled features of its sources to one scale, see `SourceNorm`.

    Args:
        features: [n, d] of training crystals.

    Returns:
        float32 [d] each: their "mean", and "inverse_std", which is 0 where a feature is all but the same for all.

    Raises:
        InputError: A feature is not a number.

    Example:
        >>> found = feature_statistics(np.array([[1.0, 5.0], [3.0, 5.0]]))
        >>> found["mean"], found["inverse_std"]
        (array([2., 5.], dtype=float32), array([1., 0.], dtype=float32))
    """
    features = features.astype(np.float64)
    if not np.isfinite(features).all():
        raise InputError("features of a source are not finite: look at its weights, or leave it out")
    deviation = features.std(0)
    same = deviation <= np.maximum(FEATURES_ALIKE * np.abs(features).max(0), DEAD_FEATURE)
    inverse = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=~same)
    return {"mean": features.mean(0).astype(np.float32), "inverse_std": inverse.astype(np.float32)}


def _some(rows: np.ndarray, most: int) -> np.ndarray:
    """All rows, or as many as that by chance: files may be sorted by chemistry."""
    return rows if len(rows) <= most else np.random.default_rng(0).permutation(rows)[:most]
