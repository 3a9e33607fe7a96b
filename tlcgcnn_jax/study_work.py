"""Cells of a study at work: a strategy on a target with so many crystals, for several seeds."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tlcgcnn_jax import losses
from tlcgcnn_jax.baselines import BASELINES, baseline_predictions, predict_in_unit
from tlcgcnn_jax.batching import batch_plan, pad_budget
from tlcgcnn_jax.blending import choose_weights, cross_fitted_mean, weighted_mean, weighted_std
from tlcgcnn_jax.bundle import Model
from tlcgcnn_jax.config import GraphConfig
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.evaluate import regression_metrics
from tlcgcnn_jax.fine_tuning import Job, fine_tune, network_of
from tlcgcnn_jax.machine import in_float32, processor
from tlcgcnn_jax.model import build_network
from tlcgcnn_jax.outputs import network_outputs
from tlcgcnn_jax.regressors import fit_regressor
from tlcgcnn_jax.results import STUDY, Row, RunPredictions
from tlcgcnn_jax.source_choice import mixable
from tlcgcnn_jax.splits import Split, overlap
from tlcgcnn_jax.strategies import FeatureStrategy, Strategy, find_strategy
from tlcgcnn_jax.study_config import learnt_target
from tlcgcnn_jax.study_desk import Desk
from tlcgcnn_jax.study_grid import ALL, Cell
from tlcgcnn_jax.train import Trained

Said = tuple[np.ndarray, np.ndarray]  # mean and standard deviation, [n] each
Predict = Callable[[np.ndarray, np.ndarray], Said]  # from rows to fit to and rows to predict


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


@in_float32
def work(task: Task) -> list[tuple[Row, RunPredictions]]:
    """Train and test the runs of a task; what is read from the study's folder is kept for the next one."""
    return runs(_desk(task.folder, (Path(task.folder) / STUDY).stat().st_mtime_ns), task.cell, task.seeds)


@functools.lru_cache(maxsize=1)
def _desk(folder: str, written: int) -> Desk:
    """Of a study that was written at some time: it may be extended, or replaced, within one process."""
    return Desk(folder)


def runs(desk: Desk, cell: Cell, seeds: Sequence[int]) -> list[tuple[Row, RunPredictions]]:
    """Train and test a cell for some seeds."""
    began = time.perf_counter()
    if cell.kind == "baseline":
        found = [_baseline(desk, cell, seed) for seed in seeds]
    else:
        way = desk.study.strategy(cell.strategy) if cell.kind == "transfer" else find_strategy("scratch")
        if isinstance(way, FeatureStrategy):
            found = [_features(desk, cell, way, seed) for seed in seeds]
        else:
            assert isinstance(way, Strategy)  # ensembles are made of finished runs
            found = _fine_tuned(desk, cell, way, seeds)
    each = (time.perf_counter() - began) / len(seeds)
    return [(replace(row, seconds=each), predictions) for row, predictions in found]


def _row(
    desk: Desk, cell: Cell, seed: int, predictions: RunPredictions, sources: Mapping[str, Model], **details: Any
) -> tuple[Row, RunPredictions]:
    """The row of a run, from its predictions."""
    crystals = desk.results.crystals(cell.target)
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


def _baseline(desk: Desk, cell: Cell, seed: int) -> tuple[Row, RunPredictions]:
    if cell.strategy not in BASELINES:
        raise InputError(f"no baseline {cell.strategy!r}; there are: {', '.join(BASELINES)}")
    features, values = desk.described(cell.target), desk.results.crystals(cell.target).values
    target = learnt_target(desk.target(cell.target))

    def predict(train: np.ndarray, rows: np.ndarray) -> Said:
        return baseline_predictions(cell.strategy, features, values, train, rows, target, seed)

    return _row(desk, cell, seed, _regressed(desk, cell, seed, predict), {})


def _features(desk: Desk, cell: Cell, way: FeatureStrategy, seed: int) -> tuple[Row, RunPredictions]:
    sources = desk.sources(cell, seed) if cell.source != ALL else desk.everyone(cell.target)
    values, target = desk.learnt(cell.target), learnt_target(desk.target(cell.target))
    table = desk.embedded(cell.target, sources, way.layers)

    def predict(train: np.ndarray, rows: np.ndarray) -> Said:
        return predict_in_unit(fit_regressor(way.regressor, table[train], values[train], seed), table[rows], target)

    return _row(desk, cell, seed, _regressed(desk, cell, seed, predict), sources)


def _regressed(desk: Desk, cell: Cell, seed: int, predict: Predict) -> RunPredictions:
    """Of a regressor, from what it says of some rows after it was fitted to others."""
    split, trials = desk.split(cell.target, cell.size, seed), desk.trials(cell.target, cell.size, seed)
    if desk.study.folds:
        held = [predict(trial.train, trial.val) for trial in trials]
        test = predict(np.concatenate([split.train, split.val]), split.test)
    else:  # one fit for both
        mean, std = predict(split.train, np.concatenate([split.val, split.test]))
        n = len(split.val)
        held, test = [(mean[:n], std[:n])], (mean[n:], std[n:])
    return _predictions(split, trials, test, held)


def _fine_tuned(desk: Desk, cell: Cell, way: Strategy, seeds: Sequence[int]) -> list[tuple[Row, RunPredictions]]:
    chosen = {seed: desk.sources(cell, seed) if cell.kind == "transfer" else {} for seed in seeds}
    if way.sources != 1:
        chosen = {seed: mixable(sources, way) for seed, sources in chosen.items()}
    out: dict[int, tuple[Row, RunPredictions]] = {}
    for names in dict.fromkeys(tuple(sources) for sources in chosen.values()):
        some = [seed for seed in seeds if tuple(chosen[seed]) == names]
        out |= _trained(desk, cell, way, some, chosen[some[0]])
    return [out[seed] for seed in seeds]


def _trained(
    desk: Desk, cell: Cell, way: Strategy, seeds: Sequence[int], sources: Mapping[str, Model]
) -> dict[int, tuple[Row, RunPredictions]]:
    study, target = desk.study, learnt_target(desk.target(cell.target))
    models = list(sources.values())
    dataset = desk.dataset(cell.target, models[0].graph if models else GraphConfig())
    splits = {seed: desk.split(cell.target, cell.size, seed) for seed in seeds}
    trials = {seed: desk.trials(cell.target, cell.size, seed) for seed in seeds}
    config = desk.training(cell.size)
    # Folds and given splits train on a few crystals more or less; batches that none of them falls short of are the same
    # whichever seeds are trained together.
    config = replace(config, batch_size=min(config.batch_size, max(1, int(0.8 * cell.size))))
    depth = models[0].model.convolutions if models else study.model.convolutions
    if cell.strategy not in {own.name for own in study.own}:
        way = find_strategy(cell.strategy, convolutions=depth)
    rates = study.learning_rates if way.trains else study.learning_rates[:1]
    jobs = [
        Job(trials[seed][0].train, trials[seed][0].val, seed, rate, member=seed)
        for seed in seeds for rate in rates
    ]  # fmt: skip
    trained = fine_tune(dataset, (target,), way, models, jobs, config, model_config=study.model)
    network = build_network(network_of(way, models, study.model), 1, dataset.graph.places)
    # One shape for all that is predicted is one compilation.
    budget = pad_budget(dataset.n_atom, dataset.n_row, study.batch_size, dataset.graph.places)
    best: dict[int, list[tuple[Job, Trained]]] = {}
    for seed in seeds:
        of_seed = [(job, one) for job, one in zip(jobs, trained, strict=True) if job.seed == seed]
        best[seed] = [min(of_seed, key=lambda pair: pair[1].best_score)]
    # The other networks of a run, of its other folds or with other seeds, take the rate that its first one has chosen:
    # the grid is searched once for each run.
    others = {seed: trials[seed][1:] or (study.members - 1) * trials[seed] * way.trains for seed in seeds}
    further = [
        replace(best[seed][0][0], train=trial.train, val=trial.val, seed=1000 * (number + 1) + seed)
        for seed in seeds for number, trial in enumerate(others[seed])
    ]  # fmt: skip
    if further:
        more = fine_tune(dataset, (target,), way, models, further, config, model_config=study.model)
        for job, one in zip(further, more, strict=True):
            best[job.seed % 1000].append((job, one))

    def said(some: Sequence[tuple[Job, Trained]], rows: np.ndarray) -> Said:
        """Mean and standard deviation of some networks."""
        part = dataset.select(rows)
        members = np.stack([
            losses.denormalise(network_outputs(network, one.variables, part, budget=budget), (target,), one.normaliser)
            for _, one in some
        ])[:, :, 0]  # fmt: skip
        std = members.std(0, ddof=1) if len(members) > 1 else np.full(len(rows), np.nan)
        return members.mean(0), std

    out = {}
    for seed in seeds:
        split, networks = splits[seed], best[seed]
        held = [
            said([network] if study.folds else networks, trial.val)
            for network, trial in zip(networks, trials[seed], strict=False)
        ]
        job, one = networks[0]
        train = job.train
        batches = len(batch_plan(dataset.n_atom[train], dataset.n_row[train],
                                 pad_budget(dataset.n_atom, dataset.n_row, config.batch_size,
                                            dataset.graph.places), 0))  # fmt: skip
        out[seed] = _row(
            desk, cell, seed, _predictions(split, trials[seed], said(networks, split.test), held), sources,
            learning_rate=job.learning_rate if way.trains else float("nan"), epochs=one.best_epoch,
            updates=len(one.history) * batches,
        )  # fmt: skip
    return out


def ensemble(
    desk: Desk, cell: Cell, seed: int, runs: Sequence[tuple[Row, RunPredictions]], weighted: bool
) -> tuple[Row, RunPredictions]:
    """The mean of several finished runs on the same crystals, weighted by their validation crystals or not."""
    rows, parts = zip(*runs, strict=True)
    first, weights = parts[0], np.full(len(parts), 1 / len(parts))
    if not all(np.array_equal(part.val_rows, first.val_rows) for part in parts):
        raise InputError(
            f"{cell.run(seed)}: its parts have validated on other crystals, of an earlier version: give another folder"
        )
    test, val = np.stack([part.test for part in parts]), np.stack([part.val for part in parts])
    val_mean = val.mean(0)
    if weighted:
        # By errors of what is learnt, of which a heavy tail is no large part.
        learnt = functools.partial(losses.learnt_values, targets=[learnt_target(desk.target(cell.target))])
        args = (val[:, :, None], desk.results.crystals(cell.target).values[first.val_rows, None], seed, learnt)
        weights, val_mean = choose_weights(*args), cross_fitted_mean(*args)[:, 0]
    combined = replace(
        first, test=weighted_mean(test, weights), test_std=weighted_std(test, weights),
        val=val_mean, val_std=weighted_std(val, weights),
    )  # fmt: skip
    overlaps = [part.overlap for part in rows if part.kind == "transfer"]
    known = bool(overlaps) and not np.isnan(overlaps).any()
    row, predictions = _row(desk, cell, seed, combined, {}, updates=sum(part.updates for part in rows), epochs=0)
    seconds = sum(part.seconds for part in rows)
    return replace(row, seconds=seconds, overlap=max(overlaps) if known else float("nan")), predictions


def _predictions(split: Split, trials: Sequence[Split], test: Said, held: Sequence[Said]) -> RunPredictions:
    """Of test crystals, and of what each trial validated."""
    rows = np.concatenate([trial.val for trial in trials])
    val, val_std = (np.concatenate(parts) for parts in zip(*held, strict=True))
    return RunPredictions(split.test, *test, rows, val, val_std)
