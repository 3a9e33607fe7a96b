"""What source networks make of crystals: activations that serve as features for a regressor or a ranking."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tlcgcnn_jax import losses
from tlcgcnn_jax.bundle import Model, check_same_graph
from tlcgcnn_jax.config import GraphConfig
from tlcgcnn_jax.dataset import CrystalDataset
from tlcgcnn_jax.descriptors import descriptors
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.graph_sets import GraphSets
from tlcgcnn_jax.outputs import prefix_features

LAYERS = ("pooled", "hidden", "output")
DESCRIPTORS = "descriptors"  # of the crystal itself, whatever the source
FEATURES = ("pooled", "hidden")  # the output is the source's property, which these hold already


def embed(model: Model, dataset: CrystalDataset, layers: Sequence[str] = FEATURES, member: int = 0) -> np.ndarray:
    """Activations of a network as features of crystals.

    Args:
        model: The source.
        dataset: Packed crystals with the source's graph settings; labels are not looked at.
        layers: Some of `LAYERS`, as in `activations`.
        member: Which network of an ensemble.

    Returns:
        float32 [n, d], the layers side by side: 64 + 128 columns for a network of default size.

    Raises:
        InputError: Another kind of graph, an unknown layer, or a network without such layers.

    Example:
        >>> from tlcgcnn_jax import build_dataset, load_model, textbook_records
        >>> embed(load_model("mp-formation-energy"), build_dataset(textbook_records()[:3])).shape
        (3, 192)
    """
    unknown = [layer for layer in layers if layer not in LAYERS]
    if unknown or not layers:
        raise InputError(f"no layer {', '.join(unknown) or 'was named'}; there are: {', '.join(LAYERS)}")
    found = activations(model, dataset, member)
    return np.concatenate([found[layer] for layer in layers], axis=1)


def embed_many(sources: Mapping[str, Model], crystals: GraphSets, layers: Sequence[str] = FEATURES) -> np.ndarray:
    """Embeddings by several sources, side by side.

    Args:
        sources: Models by name; of an ensemble, the first network counts. {} for descriptors alone.
        crystals: With the graph settings of every source, or the default ones where there is none.
        layers: As in `embed`; "descriptors" adds those of `descriptors.descriptors`, once, at the end.

    Returns:
        float32 [n, d], source by source.

    Raises:
        InputError: As in `embed`, and a source whose graph settings the crystals do not have; the source is named.

    Example:
        >>> from tlcgcnn_jax import load_model, textbook_records
        >>> from tlcgcnn_jax.graph_sets import pack_graphs
        >>> model = load_model("mp-formation-energy")
        >>> embed_many({"energy": model}, pack_graphs(textbook_records()[:3], [model.graph])).shape
        (3, 192)
    """
    own = tuple(layer for layer in layers if layer != DESCRIPTORS)
    if own and not sources:
        raise InputError("no source to embed with: give at least one model")
    parts = [embed(model, graphs_for(name, model, crystals), own) for name, model in sources.items() if own]
    if own != tuple(layers):
        first = graphs_for(*next(iter(sources.items())), crystals) if sources else crystals[GraphConfig()]
        parts.append(descriptors(first).values.astype(np.float32))
    return np.concatenate(parts, axis=1)


def graphs_for(name: str, model: Model, crystals: GraphSets) -> CrystalDataset:
    """The dataset that a source can read.

    Raises:
        InputError: There is none; the source is named.
    """
    try:
        return crystals[model.graph]
    except InputError as error:
        raise InputError(f"source {name}: {error}") from error


def activations(model: Model, dataset: CrystalDataset, member: int = 0) -> dict[str, np.ndarray]:
    """All that a network says of crystals, batch norm on its running statistics.

    Args:
        model: The source.
        dataset: Packed crystals with the source's graph settings; labels are not looked at.
        member: Which network of an ensemble.

    Returns:
        float32 arrays of n rows: "pooled", the mean of the atoms' features [n, width]; "hidden", the first hidden
        layer of the head [n, head_width]; "output", normalised values, and for classes the logarithms of their
        probabilities [n, outputs].

    Raises:
        InputError: Another kind of graph, no such member, or a mixture of sources, which has no layers of its own.
    """
    check_same_graph(dataset.graph, model.graph)
    if model.model.sources > 1:
        raise InputError(f"the network mixes {model.model.sources} sources: give these, each on its own")
    if not 0 <= member < len(model.members):
        raise InputError(f"member is {member}: the model has {len(model.members)}, counted from 0")
    variables = model.members[member]
    pooled = prefix_features(model.network, variables, dataset)
    hidden, output = head_activations(variables["params"]["head"], pooled)
    for target, part in zip(model.targets, losses.output_slices(model.targets), strict=True):
        if target.kind == "classification":
            output[:, part] -= np.logaddexp.reduce(output[:, part], axis=1, keepdims=True)
    return {"pooled": pooled, "hidden": hidden, "output": output}


def head_activations(head: Mapping[str, Any], pooled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first hidden layer and the output of a head, as `layers.Head` computes them.

    Args:
        head: Parameters: {"hidden_0": {"kernel", "bias"}, …, "output": …}.
        pooled: [n, width].

    Returns:
        [n, head_width] and [n, outputs].
    """

    def dense(layer: str, x: np.ndarray) -> np.ndarray:
        return x @ np.asarray(head[layer]["kernel"]) + np.asarray(head[layer]["bias"])

    first = x = np.logaddexp(0, dense("hidden_0", np.logaddexp(0, pooled)))  # log(1 + exp(x)), softplus
    for layer in range(1, len(head) - 1):
        x = np.logaddexp(0, dense(f"hidden_{layer}", x))
    return first, dense("output", x)
