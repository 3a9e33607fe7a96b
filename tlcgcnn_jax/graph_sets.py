"""The same crystals under several graph settings, for sources that were trained on graphs of different kinds."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tlcgcnn_jax.bundle import check_same_graph
from tlcgcnn_jax.config import GraphConfig
from tlcgcnn_jax.dataset import CrystalDataset, build_dataset, find_dataset
from tlcgcnn_jax.errors import InputError, Skipped, check_on_error


@dataclass(frozen=True, eq=False)
class GraphSets:
    """One dataset for each graph setting, all of the same crystals in the same order.

    Attributes:
        datasets: Whose settings differ in more than `places`, which changes no result.
        skipped: Crystals that were left out of all of them.

    Raises:
        InputError: There is no dataset, or two hold different crystals.
    """

    datasets: tuple[CrystalDataset, ...]
    skipped: tuple[Skipped, ...] = ()

    def __post_init__(self) -> None:
        if not self.datasets:
            raise InputError("no graph setting was given, so there is nothing to pack: give at least one")
        if any(dataset.ids != self.datasets[0].ids for dataset in self.datasets):
            raise InputError("the datasets hold different crystals: pack them from one input with `pack_graphs`")

    def __len__(self) -> int:
        return len(self.datasets[0])

    def __getitem__(self, graph: GraphConfig) -> CrystalDataset:
        """The dataset whose graphs are of this kind, whatever its `places`.

        Raises:
            InputError: There is none; the message says what differs.
        """
        for dataset in self.datasets:
            if dataset.graph.kind == graph.kind:
                return dataset
        check_same_graph(self.datasets[0].graph, graph)
        raise AssertionError("unreachable: the check raises")

    def with_labels(self, values: np.ndarray) -> "GraphSets":
        """The same crystals with other labels of the same targets, float32 [n, n_target]."""
        return replace(self, datasets=tuple(replace(dataset, targets=values) for dataset in self.datasets))


def pack_graphs(
    source: Any,
    graphs: Iterable[GraphConfig],
    *,
    targets: Sequence[str] = (),
    labels: Any = None,
    id_column: str | None = None,
    on_error: str = "raise",
    progress: bool = False,
) -> GraphSets:
    """Pack crystals once for each kind of graph.

    Args:
        source: Whatever `read_structures` takes. What is packed, or the folder of it, is taken as it is, with its own
            kinds of graphs.
        graphs: Graph settings; those that differ in `places` alone share a dataset.
        targets: As in `build_dataset`, like everything below.
        labels: Joined by id, as in `read_structures`; not with what is packed.
        id_column: Column that holds the ids; likewise.
        on_error: "raise" stops at a crystal that cannot be used under any one of the settings; "skip" leaves it out
            of every dataset, so that rows mean the same crystal everywhere.
        progress: Show bars.

    Raises:
        InputError: As `build_dataset`; no crystal can be used under all settings; or labels for what is packed.

    Example:
        >>> from tlcgcnn_jax import textbook_records
        >>> original = GraphConfig(ties="reference", legacy_padding=True)
        >>> crystals = pack_graphs(textbook_records()[:3], [GraphConfig(), original])
        >>> len(crystals.datasets), crystals[original].ids == crystals[GraphConfig()].ids
        (2, True)
    """
    check_on_error(on_error)
    packed = find_dataset(source)
    source = source if packed is None else packed
    if isinstance(source, CrystalDataset | GraphSets):
        if labels is not None or id_column is not None:
            what = "id_column" if labels is None else "labels"
            raise InputError(f"{what}: the dataset is packed with its labels and ids: give {what} to build_dataset")
        return source if isinstance(source, GraphSets) else GraphSets((source,), tuple(source.skipped))
    if isinstance(source, Iterator):
        source = list(source)  # it is read once for each kind of graph
    distinct: list[GraphConfig] = []
    for graph in graphs:
        if not isinstance(graph, GraphConfig):
            raise InputError(f"graph is {graph!r}: a GraphConfig was expected")
        if not any(graph.kind == other.kind for other in distinct):
            distinct.append(graph)
    datasets = [
        build_dataset(
            source, targets=targets, graph=graph, labels=labels, id_column=id_column, on_error=on_error,
            progress=progress,
        )
        for graph in distinct
    ]  # fmt: skip
    # Several may have one id, which is why they were left out.
    skipped = {(one.id, one.where): one for dataset in reversed(datasets) for one in dataset.skipped}
    kept = set.intersection(*(set(dataset.ids) for dataset in datasets)) if datasets else set()
    if datasets and not kept:
        raise InputError(f"not one of {len(skipped)} crystals can be used under all {len(datasets)} graph settings")
    aligned = tuple(
        dataset
        if len(kept) == len(dataset)
        else dataset.select([row for row, i in enumerate(dataset.ids) if i in kept])
        for dataset in datasets
    )
    return GraphSets(aligned, tuple(skipped.values()))
