"""One cell of a study at work: a strategy on a target with so many crystals, for several seeds."""

import functools
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tlcgcnn_jax import losses
from tlcgcnn_jax.baselines import BASELINES, baseline_predictions, predict_in_unit
from tlcgcnn_jax.batching import batch_plan, pad_budget
from tlcgcnn_jax.blending import choose_weights, cross_fitted_mean, weighted_mean, weighted_std
from tlcgcnn_jax.bundle import Model, load_bundle
from tlcgcnn_jax.config import GraphConfig, Target, TrainConfig, from_dict, to_dict
from tlcgcnn_jax.dataset import CrystalDataset, load_dataset
from tlcgcnn_jax.descriptors import Features, descriptors
from tlcgcnn_jax.embeddings import FEATURES, embed_many
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.evaluate import regression_metrics
from tlcgcnn_jax.fine_tuning import Job, fine_tune, network_of
from tlcgcnn_jax.graph_sets import GraphSets
from tlcgcnn_jax.machine import processor
from tlcgcnn_jax.model import build_network
from tlcgcnn_jax.novelty import fit_novelty
from tlcgcnn_jax.outputs import network_outputs
from tlcgcnn_jax.ranking import rank_sources
from tlcgcnn_jax.regressors import fit_regressor
from tlcgcnn_jax.results import DATASETS, LISTED, SOURCES, SPLITS, STUDY, Row, RunPredictions, StudyResults, file_name
from tlcgcnn_jax.splits import Split, overlap, read_splits
from tlcgcnn_jax.strategies import FeatureStrategy, Strategy, find_strategy
from tlcgcnn_jax.study_config import StudyConfig, StudyTarget, learnt_target, target_name, training_sizes
from tlcgcnn_jax.study_grid import ALL, AUTO, Cell, given_split, left_out, study_split
from tlcgcnn_jax.train import Trained

MOST_MIXED = 5  # sources that a mixture takes when it is trained as a whole


@dataclass(frozen=True)
class Task:
    """A cell and the seeds that are missing of it.

    Attributes:
        folder: Of the study, in which datasets and sources are prepared.
        cell: What to do.
        seeds: For which seeds.
    """

    folder: str
    cell: Cell
    seeds: tuple[int, ...]

    def __str__(self) -> str:
        return " ".join(str(part) for part in (self.cell.target, self.cell.source, self.cell.strategy, self.cell.size))


def work(task: Task) -> list[tuple[Row, RunPredictions]]:
    """Train and test the runs of a task; what is read from the study's folder is kept for the next one."""
    return _desk(task.folder).runs(task.cell, task.seeds)


@functools.lru_cache(maxsize=1)
def _desk(folder: str) -> "Desk":
    return Desk(folder)


class Desk:
    """What a worker has at hand: a study's settings, datasets and sources, each read when it is first needed.

    Args:
        folder: Of the study.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        settings = json.loads((self.folder / STUDY).read_text())["settings"]
        study = from_dict(StudyConfig, settings, f"{self.folder / STUDY}: settings")
        self.results = StudyResults(self.folder)
        listed = json.loads((self.folder / SOURCES / LISTED).read_text())
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
        return self._keep(("given", name), lambda: read_splits(path, self.results.crystals(name).ids))

    def _keep(self, key: Any, make: Any) -> Any:
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    @property
    def alone(self) -> dict[tuple[str, int], Model]:
        """Sources that are used alone, by name and training size."""
        return {key: self._keep(("model", where), lambda where=where: load_bundle(where))
                for key, where in self._places.items()}  # fmt: skip

    def everyone(self, target: str) -> dict[str, Model]:
        """All sources for a target, those of the pool included, by a name of their own."""
        chosen = self.target(target)
        found = {name: model for name, model in self._all.items() if not left_out(chosen, name)}
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
            name: self._keep(("model", where), lambda where=where: load_bundle(where))
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

        return self._keep(("dataset", name, dataset_folder(self.folder, name, graph)), load)

    def _learnt(self, name: str) -> np.ndarray:
        """The labels of a target as they are learnt, [n]."""
        values = self.results.crystals(name).values[:, None]
        return losses.transform_labels(values, [learnt_target(self.target(name))])[:, 0]

    def graph_sets(self, name: str, models: Mapping[str, Model]) -> GraphSets:
        """The crystals of a target as graphs of all the kinds that some sources need."""
        found = {dataset_folder(self.folder, name, model.graph): model.graph for model in models.values()}
        return GraphSets(tuple(self.dataset(name, graph) for graph in found.values()))

    def split(self, name: str, size: int, seed: int) -> Split:
        """The crystals of one run."""
        target, known = self.target(name), set()
        sizes = training_sizes(self.study, target)
        if target.splits:
            return self._keep(("split", name, seed), lambda: given_split(self._given(name)[seed], sizes, seed))[size]
        if self.study.disjoint:
            # One of the pool that is left out is never met by this target.
            met = {n: m for n, m in self._all.items() if not (n in self._pool and left_out(target, n))}
            known = {formula for model in met.values() for formula in model.formulas}
        formulas = self.results.crystals(name).formulas
        make = functools.partial(study_split, formulas, sizes, seed, self.study.test, self.study.val, known)
        return self._keep(("split", name, seed), make)[size]

    def runs(self, cell: Cell, seeds: Sequence[int]) -> list[tuple[Row, RunPredictions]]:
        """Train and test a cell for some seeds."""
        began = time.perf_counter()
        if cell.kind == "baseline":
            found = [self._baseline(cell, seed) for seed in seeds]
        else:
            way = self.study.strategy(cell.strategy) if cell.kind == "transfer" else find_strategy("scratch")
            if isinstance(way, FeatureStrategy):
                found = [self._features(cell, way, seed) for seed in seeds]
            else:
                assert isinstance(way, Strategy)  # ensembles are made of finished runs
                found = self._fine_tuned(cell, way, seeds)
        each = (time.perf_counter() - began) / len(seeds)
        return [(replace(row, seconds=each), predictions) for row, predictions in found]

    def row(
        self, cell: Cell, seed: int, predictions: RunPredictions, sources: Mapping[str, Model], **details: Any
    ) -> tuple[Row, RunPredictions]:
        """The row of a run, from its predictions."""
        crystals = self.results.crystals(cell.target)
        errors = regression_metrics(crystals.values[predictions.test_rows], predictions.test)
        known = {formula for model in sources.values() for formula in model.formulas}
        tested = [crystals.formulas[row] for row in predictions.test_rows]
        told = all(model.formulas for model in sources.values()) and sources
        row = Row(
            run=cell.run(seed), target=cell.target, source=cell.source, source_size=cell.source_size,
            strategy=cell.strategy, kind=cell.kind, size=cell.size, seed=seed,
            learning_rate=details.get("learning_rate", float("nan")), epochs=details.get("epochs", 0),
            updates=details.get("updates", 0),
            val_mae=float(np.abs(predictions.val - crystals.values[predictions.val_rows]).mean()),
            test_mae=errors["mae"], test_rmse=errors["rmse"], test_median_ae=errors["median_ae"],
            test_r2=errors["r2"], test_n=len(tested),
            overlap=overlap(sorted(known), tested).share if told else float("nan"),
            seconds=float("nan"), machine=processor(),
        )  # fmt: skip
        return row, predictions

    def _baseline(self, cell: Cell, seed: int) -> tuple[Row, RunPredictions]:
        if cell.strategy not in BASELINES:
            raise InputError(f"no baseline {cell.strategy!r}; there are: {', '.join(BASELINES)}")
        features: Features = self._keep(
            ("descriptors", cell.target), lambda: descriptors(self.dataset(cell.target, GraphConfig()))
        )
        split, values = self.split(cell.target, cell.size, seed), self.results.crystals(cell.target).values
        rows = np.concatenate([split.val, split.test])
        target = learnt_target(self.target(cell.target))
        mean, std = baseline_predictions(cell.strategy, features, values, split.train, rows, target, seed)
        return self.row(cell, seed, _predictions(split, mean, std), {})

    def _sources(self, cell: Cell, seed: int) -> dict[str, Model]:
        """The sources of a run by name: one, the best one, or all, best first."""
        if cell.source not in (AUTO, ALL):
            # With its size where there are several: what is kept of a source is kept under this name.
            name = called(self._places).get((cell.source, cell.source_size), cell.source)
            return {name: self._all[name]}
        everyone = self.everyone(cell.target)
        values, split = self._learnt(cell.target), self.split(cell.target, cell.size, seed)
        ranked = self._keep(
            ("ranking", cell.target, cell.size, seed),
            lambda: rank_sources(self.graph_sets(cell.target, everyone), everyone, values, split.train, seed=0),
        )
        names = [score.name for score in ranked]
        return {name: everyone[name] for name in (names[:1] if cell.source == AUTO else names)}

    def _features(self, cell: Cell, way: FeatureStrategy, seed: int) -> tuple[Row, RunPredictions]:
        sources = self._sources(cell, seed) if cell.source != ALL else self.everyone(cell.target)
        values, target = self._learnt(cell.target), learnt_target(self.target(cell.target))
        table = self._keep(
            ("embedded", cell.target, tuple(sources), way.layers),
            lambda: embed_many(sources, self.graph_sets(cell.target, sources), way.layers).values,
        )
        split = self.split(cell.target, cell.size, seed)
        rows = np.concatenate([split.val, split.test])
        fitted = fit_regressor(way.regressor, table[split.train], values[split.train], seed)
        mean, std = predict_in_unit(fitted, table[rows], target)
        novelty = fit_novelty(table[split.train]).score(table[split.test])
        return self.row(cell, seed, _predictions(split, mean, std, novelty), sources)

    def _fine_tuned(self, cell: Cell, way: Strategy, seeds: Sequence[int]) -> list[tuple[Row, RunPredictions]]:
        chosen = {seed: self._sources(cell, seed) if cell.kind == "transfer" else {} for seed in seeds}
        if way.sources != 1:
            chosen = {seed: _mixable(sources, way) for seed, sources in chosen.items()}
        out: dict[int, tuple[Row, RunPredictions]] = {}
        for names in dict.fromkeys(tuple(sources) for sources in chosen.values()):
            some = [seed for seed in seeds if tuple(chosen[seed]) == names]
            out |= self._trained(cell, way, some, chosen[some[0]])
        return [out[seed] for seed in seeds]

    def _trained(
        self, cell: Cell, way: Strategy, seeds: Sequence[int], sources: Mapping[str, Model]
    ) -> dict[int, tuple[Row, RunPredictions]]:
        study, target = self.study, learnt_target(self.target(cell.target))
        models = list(sources.values())
        dataset = self.dataset(cell.target, models[0].graph if models else GraphConfig())
        splits = {seed: self.split(cell.target, cell.size, seed) for seed in seeds}
        config = self.training(cell.size)
        depth = models[0].model.convolutions if models else study.model.convolutions
        if cell.strategy not in {own.name for own in study.own}:
            way = find_strategy(cell.strategy, convolutions=depth)
        rates = study.learning_rates if way.trains else study.learning_rates[:1]
        jobs = [
            Job(splits[seed].train, splits[seed].val, seed, rate, _member(models, seed))
            for seed in seeds for rate in rates
        ]  # fmt: skip
        trained = fine_tune(dataset, (target,), way, models, jobs, config, model_config=study.model)
        network = build_network(network_of(way, models, study.model), 1, dataset.graph.places)
        # One shape for all that is predicted is one compilation.
        budget = pad_budget(dataset.n_atom, dataset.n_row, study.batch_size, dataset.graph.places)
        best: dict[int, list[tuple[Job, Trained]]] = {}
        for seed in seeds:
            of_seed = [(job, one) for job, one in zip(jobs, trained, strict=True) if job.seed == seed]
            best[seed] = [min(of_seed, key=lambda pair: _score(pair[1]))]
        further = [
            replace(best[seed][0][0], seed=1000 * member + seed) for seed in seeds for member in range(1, study.members)
        ]
        if further and way.trains:
            more = fine_tune(dataset, (target,), way, models, further, config, model_config=study.model)
            for job, one in zip(further, more, strict=True):
                best[job.seed % 1000].append((job, one))
        reference = models[0] if models else None
        table = None if reference is None else self._keep(
            ("embedded", cell.target, tuple(sources)[:1], FEATURES),
            lambda: embed_many({"": reference}, GraphSets((dataset,)), FEATURES).values,
        )  # fmt: skip
        out = {}
        for seed in seeds:
            split = splits[seed]
            rows = np.concatenate([split.val, split.test])
            members = np.stack([
                losses.denormalise(network_outputs(network, one.variables, dataset.select(rows), budget=budget),
                                   (target,), one.normaliser)[:, 0]
                for _, one in best[seed]
            ])  # fmt: skip
            std = members.std(0, ddof=1) if len(members) > 1 else np.full(len(rows), np.nan)
            novelty = None if table is None else fit_novelty(table[split.train]).score(table[split.test])
            job, one = best[seed][0]
            batches = len(batch_plan(dataset.n_atom[split.train], dataset.n_row[split.train],
                                     pad_budget(dataset.n_atom, dataset.n_row, min(config.batch_size, cell.size),
                                                dataset.graph.places), 0))  # fmt: skip
            out[seed] = self.row(
                cell, seed, _predictions(split, members.mean(0), std, novelty), sources,
                learning_rate=job.learning_rate if way.trains else float("nan"), epochs=one.best_epoch,
                updates=len(one.history) * batches,
            )  # fmt: skip
        return out

    def training(self, size: int) -> TrainConfig:
        """How networks are trained on so many crystals: as many updates for every strategy."""
        study = self.study
        batches = max(1, round(size / study.batch_size))
        epochs = max(study.epochs, -(-study.least_updates // batches))
        return TrainConfig(
            epochs=epochs, batch_size=study.batch_size, weight_decay=study.weight_decay, warmup=0.1,
            learning_rate=study.learning_rates[0],
        )  # fmt: skip

    def ensemble(self, cell: Cell, seed: int, runs: Sequence[Row], weighted: bool) -> tuple[Row, RunPredictions]:
        """The mean of several finished runs on the same crystals, weighted by their validation crystals or not."""
        parts = [self.results.predictions(run.run) for run in runs]
        first, weights = parts[0], np.full(len(parts), 1 / len(parts))
        test, val = np.stack([part.test for part in parts]), np.stack([part.val for part in parts])
        val_mean = val.mean(0)
        if weighted:
            # By errors of what is learnt, of which a heavy tail is no large part.
            learnt = functools.partial(losses.learnt_values, targets=[learnt_target(self.target(cell.target))])
            args = (val[:, :, None], self.results.crystals(cell.target).values[first.val_rows, None], seed, learnt)
            weights, val_mean = choose_weights(*args), cross_fitted_mean(*args)[:, 0]
        combined = replace(
            first, test=weighted_mean(test, weights), test_std=weighted_std(test, weights),
            val=val_mean, val_std=weighted_std(val, weights),
        )  # fmt: skip
        overlaps = [run.overlap for run in runs if run.kind == "transfer"]
        row, predictions = self.row(cell, seed, combined, {}, updates=sum(run.updates for run in runs), epochs=0)
        seconds = sum(run.seconds for run in runs)
        return replace(row, seconds=seconds, overlap=max(overlaps, default=float("nan"))), predictions


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
    kind = replace(graph, places=GraphConfig.places)
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


def _mixable(sources: Mapping[str, Model], way: Strategy) -> dict[str, Model]:
    """Of ranked sources the largest group that agrees in graphs and bodies; few of it where all are trained."""
    groups: dict[Any, dict[str, Model]] = {}
    for name, model in sources.items():
        body = (model.model.width, model.model.convolutions, model.model.gaussian_step, model.model.gaussian_max)
        kind = (replace(model.graph, places=GraphConfig.places), *body)
        groups.setdefault(kind, {})[name] = model
    alike = max(groups.values(), key=len)  # of equally large ones the group of the better source
    everything_trained = any(rate and pattern == "*" for pattern, rate in way.rates)
    return dict(list(alike.items())[:MOST_MIXED]) if everything_trained else alike


def _member(models: Sequence[Model], seed: int) -> int:
    """Seeds take the members of a source that is an ensemble in turn."""
    return seed % len(models[0].members) if models else 0


def _score(trained: Trained) -> float:
    """Lowest validation score, by which the learning rate is chosen."""
    scores = [row["val_score"] for row in trained.history if np.isfinite(row["val_score"])]
    return min(scores, default=float("inf"))


def _predictions(split: Split, mean: np.ndarray, std: np.ndarray, novelty: np.ndarray | None = None) -> RunPredictions:
    """Predictions of validation rows followed by test rows, apart."""
    n = len(split.val)
    unknown = np.full(len(split.test), np.nan)
    return RunPredictions(
        split.test, mean[n:], std[n:], split.val, mean[:n], std[:n], unknown if novelty is None else novelty
    )
