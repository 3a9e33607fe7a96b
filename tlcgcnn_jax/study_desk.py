"""What a worker of a study has at hand: settings, crystals, splits, sources and what these make of the crystals."""

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tlcgcnn_jax import losses
from tlcgcnn_jax.bundle import Model, load_bundle
from tlcgcnn_jax.config import GraphConfig, Target, TrainConfig, from_dict, to_dict
from tlcgcnn_jax.dataset import CrystalDataset, load_dataset
from tlcgcnn_jax.descriptors import Features, descriptors
from tlcgcnn_jax.embeddings import embed_many
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.files import file_name, read_json
from tlcgcnn_jax.graph_sets import GraphSets
from tlcgcnn_jax.ranking import check_rankable, rank_sources
from tlcgcnn_jax.results import DATASETS, LISTED, SOURCES, SPLITS, STUDY, StudyResults
from tlcgcnn_jax.splits import Split, deal, read_splits
from tlcgcnn_jax.study_config import StudyConfig, StudyTarget, learnt_target, target_name, training_sizes
from tlcgcnn_jax.study_grid import ALL, AUTO, Cell, given_split, left_out, study_split


class Desk:
    """What a worker has at hand: a study's settings, datasets and sources, each read when it is first needed.

    Args:
        folder: Of the study.

    Raises:
        InputError: There is no study, or its files are damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        settings = read_json(self.folder / STUDY)["settings"]
        study = from_dict(StudyConfig, settings, f"{self.folder / STUDY}: settings")
        self.results = StudyResults(self.folder)
        listed = read_json(self.folder / SOURCES / LISTED)
        self._places = {(str(one["name"]), int(one["size"])): self.folder / one["folder"] for one in listed["sources"]}
        self._pool = {str(one["name"]): self.folder / one["folder"] for one in listed["pool"]}
        self._kept: dict[Any, Any] = {}
        # From here on given splits have sizes like any others.
        self.study = replace(study, targets=tuple(self._sized(target) for target in study.targets))

    def _sized(self, target: StudyTarget) -> StudyTarget:
        if not target.splits or target.sizes:
            return target
        return replace(target, sizes=(max(len(split.train) for split in self._given(target_name(target))),))

    def _given(self, name: str) -> list[Split]:
        """The given splits of a target, one for each seed."""
        path = self.folder / SPLITS / f"{file_name(name)}.json"
        return self.keep(("given", name), lambda: read_splits(path, self.results.crystals(name).ids))

    def keep(self, key: Any, make: Callable[[], Any]) -> Any:
        """What was made under a key before, or what is made of it now."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    @property
    def alone(self) -> dict[tuple[str, int], Model]:
        """The study's own sources, used alone or not and without those of the pool, by name and training size."""
        return {key: self.keep(("model", where), lambda where=where: load_bundle(where))
                for key, where in self._places.items()}  # fmt: skip

    def everyone(self, target: str) -> dict[str, Model]:
        """All sources for a target, those of the pool included, by a name of their own.

        Raises:
            InputError: None is left: there is none, or the target's `leave_out` takes them all.
        """
        chosen = self.target(target)
        plain = {sized: name for (name, _), sized in called(self._places).items()}
        found = {name: model for name, model in self._all.items() if not left_out(chosen, name, plain.get(name, name))}
        if not found:
            raise InputError(
                f"target {target}: no source is left for {AUTO} and {ALL}: there are {', '.join(self._all) or 'none'}, "
                f"and leave_out is {', '.join(chosen.leave_out) or 'empty'}; add sources, or a pool"
            )
        return found

    @property
    def pool(self) -> list[str]:
        """Names of the sources that the study has for choosing and mixing."""
        return list(self._pool)

    @property
    def _all(self) -> dict[str, Model]:
        names = called(self._places)
        own = {names[key]: model for key, model in self.alone.items()}
        pool = {
            name: self.keep(("model", where), lambda where=where: load_bundle(where))
            for name, where in self._pool.items()
        }
        return own | pool

    def target(self, name: str) -> StudyTarget:
        """The configuration of a target."""
        return next(target for target in self.study.targets if target_name(target) == name)

    def dataset(self, name: str, graph: GraphConfig) -> CrystalDataset:
        """The labelled crystals of a target as graphs of one kind, labels transformed."""

        def load() -> CrystalDataset:
            dataset = load_dataset(dataset_folder(self.folder, name, graph), verify=False)
            row = {id_: index for index, id_ in enumerate(dataset.ids)}
            return labelled(dataset.select([row[id_] for id_ in self.results.crystals(name).ids]), self.target(name))

        return self.keep(("dataset", name, dataset_folder(self.folder, name, graph)), load)

    def learnt(self, name: str) -> np.ndarray:
        """The labels of a target as they are learnt, [n]."""
        values = self.results.crystals(name).values[:, None]
        return losses.transform_labels(values, [learnt_target(self.target(name))])[:, 0]

    def graph_sets(self, name: str, models: Mapping[str, Model]) -> GraphSets:
        """The crystals of a target as graphs of all the kinds that some sources need."""
        found = {dataset_folder(self.folder, name, model.graph): model.graph for model in models.values()}
        return GraphSets(tuple(self.dataset(name, graph) for graph in found.values()))

    def split(self, name: str, size: int, seed: int) -> Split:
        """The crystals of one run."""
        target = self.target(name)
        sizes = training_sizes(self.study, target)
        if target.splits:
            return self.keep(("split", name, seed), lambda: given_split(self._given(name)[seed], sizes, seed))[size]
        formulas, known = self.results.crystals(name).formulas, self._known(target)
        make = functools.partial(study_split, formulas, sizes, seed, self.study.test, self.study.val, known)
        return self.keep(("split", name, seed), make)[size]

    def _known(self, target: StudyTarget) -> set[str]:
        """Formulas that neither test nor validate, since a source has seen them."""
        if target.splits or not self.study.disjoint:
            return set()
        # One of the pool that is left out is never met by this target.
        met = {name: model for name, model in self._all.items() if not (name in self._pool and left_out(target, name))}
        return {formula for model in met.values() for formula in model.formulas}

    def trials(self, name: str, size: int, seed: int) -> list[Split]:
        """Divisions of the training and validation crystals of one run: the split itself, or the folds of these.

        Crystals that no fold may validate train in all of them.

        Raises:
            InputError: Too few crystals for the split or for the folds, or a fold that leaves fewer than 5 to train on.
        """
        split = self.split(name, size, seed)
        if not self.study.folds:
            return [split]

        def make() -> list[Split]:
            given, formulas = np.concatenate([split.train, split.val]), self.results.crystals(name).formulas
            seen = np.isin([formulas[row] for row in given.tolist()], sorted(self._known(self.target(name))))
            groups = [formulas[row] for row in given[~seen].tolist()]
            folds = deal(given[~seen], self.study.folds, seed, groups)
            return [replace(fold, train=np.concatenate([fold.train, given[seen]])) for fold in folds]

        dealt = self.keep(("trials", name, size, seed), make)
        if (fewest := min(len(trial.train) for trial in dealt)) < 5:
            given = len(split.train) + len(split.val)
            raise InputError(f"target {name}: a fold leaves {fewest} of {given} crystals to train on: raise sizes")
        return dealt

    def candidates(self, cell: Cell) -> dict[str, Model]:
        """The sources that a run may take: the one that is named, or all there are."""
        if cell.source in (AUTO, ALL):
            return self.everyone(cell.target)
        # With its size where there are several: what is kept of a source is kept under this name.
        name = called(self._places).get((cell.source, cell.source_size), cell.source)
        return {name: self._all[name]}

    def sources(self, cell: Cell, seed: int) -> dict[str, Model]:
        """The sources of a run by name: one, the best one, or all, best first."""
        everyone = self.candidates(cell)
        if cell.source not in (AUTO, ALL):
            return everyone
        values, split = self.learnt(cell.target), self.split(cell.target, cell.size, seed)
        ranked = self.keep(
            ("ranking", cell.target, cell.size, seed),
            lambda: rank_sources(self.graph_sets(cell.target, everyone), everyone, values, split.train, seed=0),
        )
        names = [score.name for score in ranked]
        return {name: everyone[name] for name in (names[:1] if cell.source == AUTO else names)}

    def check_sources(self, cell: Cell) -> None:
        """Raise `InputError` unless there are sources to choose from, and labels to choose by, for every seed."""
        self.everyone(cell.target)
        values = self.learnt(cell.target)
        for seed in range(self.study.seeds):
            try:
                check_rankable(values[self.split(cell.target, cell.size, seed).train])
            except InputError as error:
                raise InputError(f"target {cell.target}, {cell.size} crystals, seed {seed}: {error}") from error

    def described(self, name: str) -> Features:
        """Descriptors of the crystals of a target."""
        return self.keep(("descriptors", name), lambda: descriptors(self.dataset(name, GraphConfig())))

    def embedded(self, name: str, sources: Mapping[str, Model], layers: tuple[str, ...]) -> np.ndarray:
        """What sources make of the crystals of a target, [n, d]."""
        key = ("embedded", name, tuple(sources), layers)
        return self.keep(key, lambda: embed_many(sources, self.graph_sets(name, sources), layers))

    def training(self, size: int) -> TrainConfig:
        """How networks are trained on so many crystals: as many updates for every strategy."""
        study = self.study
        batches = max(1, round(size / study.batch_size))
        epochs = max(study.epochs, -(-study.least_updates // batches))
        return TrainConfig(
            epochs=epochs, batch_size=study.batch_size, weight_decay=study.weight_decay, warmup=0.1,
            learning_rate=study.learning_rates[0],
        )  # fmt: skip


def called(sources: Iterable[tuple[str, int]]) -> dict[tuple[str, int], str]:
    """Names of sources, with their training size where there are several sizes of one.

    Example:
        >>> list(called([("energy", 500), ("energy", 1000), ("gap", 800)]).values())
        ['energy-500', 'energy-1000', 'gap']
    """
    keys = list(sources)
    names = [name for name, _ in keys]
    return {(name, size): f"{name}-{size}" if names.count(name) > 1 else name for name, size in keys}


def dataset_folder(folder: Path, name: str, graph: GraphConfig) -> Path:
    """Where the graphs of one kind of a target lie; `places` makes no difference."""
    kind = graph.kind
    told = "" if kind == GraphConfig() else "-" + file_name(
        "-".join(f"{key}-{value}" for key, value in to_dict(kind).items() if value != getattr(GraphConfig(), key))
    )  # fmt: skip
    return folder / DATASETS / f"{file_name(name)}{told}"


def labelled(dataset: CrystalDataset, target: StudyTarget) -> CrystalDataset:
    """A dataset whose labels are those that the study learns and reports.

    Raises:
        InputError: A label that the transform cannot take.
    """
    values = losses.transform_labels(np.asarray(dataset.targets), [Target(target.column, transform=target.transform)])
    return replace(dataset, targets=values.astype(np.float32), target_names=(target_name(target),))
