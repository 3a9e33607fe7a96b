"""A study: the whole grid of runs, resumable, in this machine's processes or on a cluster, with its report."""

import hashlib
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tlcgcnn_jax import losses
from tlcgcnn_jax.analysis import Analysis, analyse, write_analysis
from tlcgcnn_jax.array_folder import SKIPPED, write_skipped
from tlcgcnn_jax.bundle import Model, load_bundle
from tlcgcnn_jax.config import GraphConfig, Target, TrainConfig, to_dict
from tlcgcnn_jax.dataset import build_dataset
from tlcgcnn_jax.engines import check_engine, run_tasks
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.feature_model import check_pairs
from tlcgcnn_jax.files import file_name, only_one, read_json, to_json, user_path, write_whole
from tlcgcnn_jax.fine_tuning import network_of
from tlcgcnn_jax.labels import bad_majority
from tlcgcnn_jax.machine import in_float32, processor, versions
from tlcgcnn_jax.optim import rate_tree
from tlcgcnn_jax.results import (
    LISTED,
    SOURCES,
    SPLITS,
    STUDY,
    Crystals,
    Row,
    StudyResults,
    check_study,
    start_study,
)
from tlcgcnn_jax.run import fit
from tlcgcnn_jax.source_choice import mixable
from tlcgcnn_jax.splits import nested_sizes, overlap, random_split, read_splits, splits_to_json
from tlcgcnn_jax.strategies import EnsembleStrategy, FeatureStrategy, Strategy, find_strategy
from tlcgcnn_jax.study_config import (
    SHIPPED,
    StudyConfig,
    StudySource,
    StudyTarget,
    below,
    learnt_target,
    read_study,
    source_name,
    target_name,
    training_sizes,
)
from tlcgcnn_jax.study_desk import Desk, called, dataset_folder, labelled
from tlcgcnn_jax.study_grid import ALL, AUTO, POOL, Cell, grid, with_validation
from tlcgcnn_jax.study_plots import study_pictures
from tlcgcnn_jax.study_work import Task, ensemble, work
from tlcgcnn_jax.zoo import find_sources, load_model

logger = logging.getLogger(__name__)
R = TypeVar("R", Row, Cell)


@in_float32
def run_study(
    config: StudyConfig | str | Path,
    out: str | Path,
    *,
    data: str | Path | None = None,
    engine: str = "local",
    workers: int | None = None,
    progress: bool = False,
) -> Analysis:
    """Run a study, or go on with it, and write its results, comparisons, pictures and report.

    Args:
        config: Configuration, or its TOML file.
        out: Folder. One that holds the same study, finished or not, is gone on with: no run is made twice.
        data: Folder that relative paths start at; default: that of the file.
        engine: "local" or "ray", see `engines.run_tasks`.
        workers: Processes; default: one a core, or this one with an accelerator.
        progress: Show a bar with the remaining time, and messages.

    Returns:
        How well each way did at each size, the best of them, and from which size on scratch is no worse; as in
        comparisons.csv and report.html of the folder.

    Raises:
        InputError: A configuration that makes no sense, data or sources that cannot be used, an unknown engine, or a
            folder with another study, or in which one is at work.

    Example:
        >>> import json, tempfile
        >>> from pathlib import Path
        >>> from tlcgcnn_jax import StudyConfig, StudyTarget, run_study, textbook_records
        >>> parts = ("lattice", "species", "frac_coords")
        >>> rows = [
        ...     dict(zip(parts, (array.tolist() for array in record.structure)), id=record.id, **record.targets)
        ...     for record in textbook_records()[:40]
        ... ]
        >>> study = StudyConfig(
        ...     (StudyTarget("crystals.json", "bulk_modulus_gpa", unit="GPa"),), sources=(), strategies=(),
        ...     baselines=("median", "ridge"), without_scratch=True, sizes=(15,), seeds=2,
        ... )
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "crystals.json").write_text(json.dumps(rows))
        ...     run_study(study, Path(folder, "study"), data=folder, workers=1).best[0].outcome.way.strategy
        'ridge'
    """
    from tqdm import tqdm

    plan = config if isinstance(config, StudyConfig) else read_study(config)
    if data is None:
        data = Path() if isinstance(config, StudyConfig) else user_path(config).parent
    folder = user_path(out)
    begun = check_study(folder, to_dict(plan))
    check_engine(engine)
    with only_one(folder, "study"):
        results, alone = _prepared(plan, user_path(data), folder, begun, progress)
        desk = Desk(folder)
        plan = desk.study  # which knows the sizes of given splits
        for target in plan.targets:  # what cannot be split is refused before hours of work
            for seed in range(plan.seeds):
                desk.trials(target_name(target), min(training_sizes(plan, target)), seed)
        cells, ensembles = grid(plan, alone, desk.pool)
        for cell in cells:
            if cell.source in (AUTO, ALL):
                desk.check_sources(cell)
            _check_cell(desk, cell)
        done = {row.run for row in results.rows}
        tasks = [
            Task(str(folder), cell, missing)
            for cell in cells
            if (missing := tuple(seed for seed in range(plan.seeds) if cell.run(seed) not in done))
        ]
        total = plan.seeds * len(cells)
        with tqdm(total=total, initial=total - sum(len(task.seeds) for task in tasks), unit="run", file=sys.stderr,
                  disable=not progress, smoothing=0.05) as bar:  # fmt: skip
            for task, found in run_tasks(work, tasks, engine, workers):
                for row, predictions in found:
                    results.add(row, predictions)
                bar.set_postfix_str(f"{task}: test MAE {np.mean([row.test_mae for row, _ in found]):.4g}")
                bar.update(len(found))
        _combine(desk, results, ensembles, plan)
        return conclude(folder)


def conclude(folder: str | Path) -> Analysis:
    """Analyse the runs that there are: comparisons.csv, pictures and report.html in the study's folder."""
    from tlcgcnn_jax.report import run_report

    results = StudyResults(folder)
    analysis = analyse(results)
    write_analysis(analysis, folder)
    study_pictures(results, analysis, folder)
    run_report(folder)
    return analysis


def _prepared(
    plan: StudyConfig, data: Path, folder: Path, begun: bool, progress: bool
) -> tuple[StudyResults, list[tuple[str, int]]]:
    """The study's folder with its datasets and sources, and the sources that are used alone."""
    found = below(plan, data)
    models, pool = _kept_sources(folder) if begun else _given_sources(found)
    to_train = [source for source in found.sources if source.data and not begun]
    _check_files(found.targets, to_train)
    single = {source_name(source) for source in plan.sources if source.alone}
    alone = [*models, *((source_name(source), size) for source in to_train for size in source.sizes or (0,))]
    _check_cells(plan, *grid(plan, [key for key in alone if key[0] in single], list(pool)))
    kinds = [GraphConfig(), *(model.graph for model in (*models.values(), *pool.values()))]
    crystals = {}
    for target in found.targets:
        table, unusable = _pack(folder, target, kinds, plan.on_error == "skip", progress)
        crystals[target_name(target)] = table
        if target.splits:
            _keep_splits(folder, plan, target, table, unusable)
    formulas = {formula for table in crystals.values() for formula in table.formulas}
    if not begun:
        for source in to_train:
            models |= _train_source(source, folder, formulas, progress)
        _keep_sources(folder, models, pool)
    about = {
        "title": plan.title,
        "targets": [{"name": target_name(target), "unit": target.unit} for target in plan.targets],
        "settings": to_dict(plan),
        "versions": versions(),
        "machine": processor(),
        "overlap": _overlaps({called(models)[key]: model for key, model in models.items()} | pool, crystals),
    }
    return start_study(folder, about, crystals), [key for key in models if key[0] in single]


def _check_files(targets: Sequence[StudyTarget], sources: Sequence[StudySource]) -> None:
    """Raise `InputError` for a file that is not there, before the others are read."""
    named = [name for target in targets for name in (target.data, target.labels, target.splits)]
    for name in (*named, *(source.data for source in sources)):
        if name and not user_path(name).exists():
            raise InputError(f"{name}: there is no such file or folder; relative paths start at the folder of --data")


def _pack(
    folder: Path, target: StudyTarget, kinds: Sequence[GraphConfig], skip: bool, progress: bool
) -> tuple[Crystals, list[str]]:
    """Pack a target's crystals for every kind of graph; all that can be used, or most of them, unless told to skip.

    Returns:
        Those that all kinds can use and that have a label, and the ids of the others.
    """
    name = target_name(target)
    datasets = {}
    for graph in kinds:
        place = dataset_folder(folder, name, graph)
        if place not in datasets:
            datasets[place] = build_dataset(
                target.data, targets=(target.column,), labels=target.labels or None, id_column=target.id_column or None,
                graph=graph, out=place, on_error="skip", progress=progress,
            )  # fmt: skip
            write_skipped(place / SKIPPED, datasets[place].skipped)
    first = next(iter(datasets.values()))
    bad = bad_majority(first.skipped, len(first))
    if bad and not skip:
        raise InputError(
            f"{name}: {len(bad):,} of {len(bad) + len(first):,} crystals cannot be used; the first: {bad[0].reason}; "
            'on_error = "skip" in the study goes on with the others'
        )
    usable = set.intersection(*(set(dataset.ids) for dataset in datasets.values()))
    rows = [
        row for row, id_ in enumerate(first.ids) if id_ in usable and np.isfinite(np.asarray(first.targets[row])).all()
    ]
    used = {first.ids[row] for row in rows}
    others = [id_ for id_ in (*first.ids, *(one.id for one in first.skipped)) if id_ not in used]
    if others:
        told = f"; the first of {len(first.skipped)} that cannot: {first.skipped[0].reason}" if first.skipped else ""
        logger.warning("%s: %d crystals without a label or that cannot be used are left out%s", name, len(others), told)
    if not rows:
        raise InputError(f"{target.data}: not one crystal with a label in column {target.column}")
    some = labelled(first.select(rows), target)
    learnt = [learnt_target(target)]
    losses.transform_labels(np.asarray(some.targets), learnt, some.ids)  # refused now, not by the first run
    losses.check_varied(np.asarray(first.targets)[rows], learnt)
    # To four digits, so that hardly one differs where another machine has packed the same.
    volumes = hashlib.sha256(" ".join(f"{volume:.4g}" for volume in some.volume.tolist()).encode()).hexdigest()
    return Crystals(list(some.ids), list(some.formulas), np.asarray(some.targets[:, 0], np.float64), volumes), others


def _keep_splits(
    folder: Path, plan: StudyConfig, target: StudyTarget, crystals: Crystals, unusable: Sequence[str]
) -> None:
    """Check a target's given splits and keep them in the study's folder, with validation crystals in each."""
    found = read_splits(target.splits, crystals.ids, unusable)
    if plan.seeds > len(found):
        raise InputError(f"{target.splits}: {len(found)} splits for seeds = {plan.seeds}; set seeds to {len(found)}")
    splits = [with_validation(split, crystals.formulas, seed, plan.val) for seed, split in enumerate(found)]
    largest = max(len(split.train) for split in splits)
    if max(target.sizes, default=0) > largest:
        raise InputError(
            f"{target_name(target)}: sizes are {target.sizes}, but {target.splits} has {largest} crystals to train "
            "on at most; ask for fewer, or leave sizes out"
        )
    path = folder / SPLITS / f"{file_name(target_name(target))}.json"
    text = splits_to_json(crystals.ids, splits).encode()
    if (folder / STUDY).is_file() and not (path.is_file() and path.read_bytes() == text):
        raise InputError(f"{folder}: holds a study on other splits than {target.splits}; give another folder (--out)")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)


def _train_source(
    source: StudySource, folder: Path, formulas: set[str], progress: bool
) -> dict[tuple[str, int], Model]:
    """Train a source at each of its sizes, on crystals whose formulas no target has.

    Runs of a start that was cut short are kept, where they are of these settings and crystals.
    """
    name = source_name(source)
    target = Target(source.column, transform=source.transform)
    packed = folder / SOURCES / f"{file_name(name)}-dataset"
    dataset = build_dataset(source.data, targets=(source.column,), out=packed, on_error="skip", progress=progress)
    if dataset.skipped:
        told = len(dataset.skipped), dataset.skipped[0].reason
        logger.warning("source %s: %d crystals cannot be used and are left out; the first: %s", name, *told)
    known = np.isfinite(np.asarray(dataset.targets[:, 0]))
    rows = np.flatnonzero(known & np.array([formula not in formulas for formula in dataset.formulas]))
    split = random_split(len(rows), 0, 0.9, 0.05, 0.05, groups=[dataset.formulas[row] for row in rows])
    sizes = source.sizes or (len(split.train),)
    made = {}
    for size, chosen in nested_sizes(split.train, sizes).items():
        where = folder / SOURCES / f"{file_name(name)}-{size}-run"
        if progress:
            print(f"training source {name} on {size:,} crystals", file=sys.stderr)
        part = replace(split, train=rows[chosen], val=rows[split.val], test=rows[split.test])
        batches = max(1, size // 128)
        epochs = max(source.epochs, -(-source.least_updates // batches))
        result = fit(
            dataset, target, split=part, config=TrainConfig(epochs=epochs), out=where, progress=progress,
            resume=where.is_dir() and any(where.iterdir()),
        )  # fmt: skip
        made[name, size] = result.model
    return made


def _given_sources(plan: StudyConfig) -> tuple[dict[tuple[str, int], Model], dict[str, Model]]:
    """The trained sources of a new study, by name and training size, and those of its pool."""
    models: dict[tuple[str, int], Model] = {}
    for source in plan.sources:
        if source.model:
            model = _one_network(source_name(source), load_model(source.model))
            models[source_name(source), _trained_on(model)] = model
    pool = find_sources(None if plan.pool == SHIPPED else plan.pool) if plan.pool else {}
    names = {name for name, _ in models}
    return models, {name: _one_network(name, model) for name, model in pool.items() if name not in names}


def _keep_sources(folder: Path, models: Mapping[tuple[str, int], Model], pool: Mapping[str, Model]) -> None:
    """Save all sources below the study's folder."""
    listed = [
        {"name": name, "size": size, "folder": _save(folder, f"{name}-{size}" if size else name, model)}
        for (name, size), model in models.items()
    ]
    others = [{"name": name, "folder": _save(folder, f"pool-{name}", model)} for name, model in pool.items()]
    (folder / SOURCES).mkdir(parents=True, exist_ok=True)
    write_whole(folder / SOURCES / LISTED, to_json({"sources": listed, "pool": others}, indent=1).encode())


def _kept_sources(folder: Path) -> tuple[dict[tuple[str, int], Model], dict[str, Model]]:
    """Those that a study was begun with, whatever became of the originals: others would change its test crystals."""
    listed = read_json(folder / SOURCES / LISTED)
    models = {(one["name"], one["size"]): load_bundle(folder / one["folder"]) for one in listed["sources"]}
    return models, {one["name"]: load_bundle(folder / one["folder"]) for one in listed["pool"]}


def _save(folder: Path, name: str, model: Model) -> str:
    """Keep a source in the study's folder; returns where, seen from there."""
    where = Path(SOURCES) / file_name(name)
    model.save(folder / where)
    return str(where)


def _one_network(name: str, model: Any) -> Model:
    if not isinstance(model, Model):
        raise InputError(f"source {name}: a model made of several cannot be a source; give its parts")
    return model


def _trained_on(model: Model) -> int:
    count = model.notes.get("crystals trained on", 0)
    return count if isinstance(count, int) else 0


def _overlaps(models: Mapping[str, Model], crystals: Mapping[str, Crystals]) -> list[dict[str, Any]]:
    """How many crystals of each target have a formula that a source was trained on."""
    rows = []
    for name, model in models.items():
        for target, table in crystals.items():
            found = overlap(model.formulas, table.formulas) if model.formulas else (None, None)
            rows.append({"source": name, "target": target, "count": found[0], "share": found[1]})
    return rows


def _check_cells(plan: StudyConfig, cells: Sequence[Cell], ensembles: Sequence[Cell]) -> None:
    """Raise `InputError` where a strategy that was asked for would be run from no source, or a mean lacks a part."""
    for name in plan.strategies:
        if isinstance(plan.strategy(name), EnsembleStrategy):
            there = any(cell.strategy == name for cell in ensembles)
        else:
            bare, _, source = name.partition("@")
            wanted = {source} if source and source != POOL else None
            there = any(cell.strategy == bare and (wanted is None or cell.source in wanted) for cell in cells)
        if not there:
            raise InputError(f"strategies: {name} has no source to be run from: add one, or leave it out")
    for cell in ensembles:
        way = plan.strategy(cell.strategy)
        assert isinstance(way, EnsembleStrategy)
        if absent := [part for part in way.parts if not _part([*cells, *ensembles], cell, part)]:
            raise InputError(f"strategies: {cell.strategy} is made of {', '.join(absent)}, of which there is no run")


def _check_cell(desk: Desk, cell: Cell) -> None:
    """Raise `InputError` where a cell cannot be run: too many crystals for a regressor, sources that do not fit."""
    plan, way = desk.study, desk.study.strategy(cell.strategy) if cell.kind == "transfer" else None
    if cell.kind == "baseline" or isinstance(way, FeatureStrategy):
        count = cell.size + (len(desk.split(cell.target, cell.size, 0).val) if plan.folds else 0)
        regressor = way.regressor if isinstance(way, FeatureStrategy) else cell.strategy
        check_pairs(regressor, f"target {cell.target}: {count:,} crystals to train on", count)
    elif isinstance(way, Strategy):
        models = desk.candidates(cell)
        if way.sources != 1:
            network_of(way, list(mixable(models, way).values()), plan.model)
            return
        for name, model in models.items():
            own = way if way in plan.own else find_strategy(cell.strategy, convolutions=model.model.convolutions)
            if own.adapter_rank:
                continue  # which are parameters that the source has not
            for rates in (own.rates, *(phase.rates for phase in own.before)):
                try:
                    rate_tree(model.members[0]["params"], rates)
                except InputError as error:
                    raise InputError(f"strategy {cell.strategy} from {name}: {error}") from error


def _combine(desk: Desk, results: StudyResults, ensembles: Sequence[Cell], plan: StudyConfig) -> None:
    """The runs that are means of others."""
    done = {row.run for row in results.rows}
    for cell in ensembles:
        way = plan.strategy(cell.strategy)
        assert isinstance(way, EnsembleStrategy)
        for seed in range(plan.seeds):
            if cell.run(seed) in done:
                continue
            parts = [_part(results.select(seed=seed), cell, part) for part in way.parts]
            if all(parts):
                try:
                    found = [(part, results.predictions(part.run)) for part in parts if part]
                    results.add(*ensemble(desk, cell, seed, found, way.weighted))
                except InputError as error:  # the other runs are worth a report all the same
                    logger.warning("%s, seed %d is left out: %s", cell.strategy, seed, error)


def _part(runs: Sequence[R], cell: Cell, part: str) -> R | None:
    """The run that an ensemble takes: NAME from the ensemble's own source, or NAME@SOURCE."""
    strategy, _, source = part.partition("@")
    wanted = cell.target, cell.size, strategy
    same = [run for run in runs if (run.target, run.size, run.strategy) == wanted]
    if source:
        same = [row for row in same if row.source == source]
    else:
        own = [row for row in same if (row.source, row.source_size) == (cell.source, cell.source_size)]
        same = own or [row for row in same if not row.source]
    return same[0] if same else None
