"""A run: data in, trained model, errors and pictures out, in Python (`fit`, `transfer`) and as a folder."""

import contextlib
import logging
import platform
import reprlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tlcgcnn_jax import evaluate
from tlcgcnn_jax.blending import CHOICE
from tlcgcnn_jax.committee import AnyModel
from tlcgcnn_jax.config import FINE_TUNING, GraphConfig, ModelConfig, Target, TrainConfig, to_dict
from tlcgcnn_jax.dataset import CrystalDataset, find_dataset
from tlcgcnn_jax.errors import InputError, Skipped
from tlcgcnn_jax.files import only_one, user_path
from tlcgcnn_jax.graph_sets import GraphSets, pack_graphs
from tlcgcnn_jax.labels import NO_STRUCTURE
from tlcgcnn_jax.losses import check_varied, transform_labels, without_nonpositive
from tlcgcnn_jax.machine import in_float32, versions
from tlcgcnn_jax.many import digest
from tlcgcnn_jax.merging import Account
from tlcgcnn_jax.optim import Rates
from tlcgcnn_jax.plans import Lesson, Made, Plan, Workplace
from tlcgcnn_jax.predictions import Predictions
from tlcgcnn_jax.ranking import score_table, write_scores
from tlcgcnn_jax.run_folder import check_run_folder, finish_run, start_run
from tlcgcnn_jax.source_choice import SourceChoice, find_pool
from tlcgcnn_jax.splits import Split, overlap, random_split
from tlcgcnn_jax.strategies import FeatureStrategy, Strategy
from tlcgcnn_jax.watch import Interrupts
from tlcgcnn_jax.ways import needed_graphs, plan_scratch, plan_transfer

logger = logging.getLogger(__name__)
RANKING = "source_ranking.csv"
SHOWN = 10  # sources of a ranking that are printed


@dataclass(frozen=True)
class Result:
    """What a run gives.

    Attributes:
        model: The trained network, or the ensemble of all seeds; a `FeatureModel` or a `Committee` where the strategy
            makes one.
        metrics: {"train": …, "val": …, "test": …}, without parts that have no crystals: each {"mae", "rmse", "r2",
            "median_ae", "n"} in the target's unit, of classes {"accuracy", "log_loss", "roc_auc" (two classes), "n"}.
            With several targets these are of the first, and "targets" holds those of each. "test" tells, too, what the
            90 % intervals hold, if there are any ("coverage_90", "interval_width"). Those of "val" come from networks
            and regressors that were not fitted to them; where the crystals were dealt, they are of all training and
            validation crystals.
        predictions: Of every crystal of the dataset.
        split: Row numbers.
        history: One row an epoch and member: {"member", "epoch", "train_loss", "val_score", "gradient",
            "learning_rate", "kept"}, and of networks that are trained one after the other "crystals_per_second" and
            "seconds"; [] of regressors.
        account: What became of every array of the source (None without a source, and of regressors).
        overlap: {source: {"count", "share"}} of the test crystals with a formula that the source was trained on; None
            in place of the two where its formulas are not known; {} without a source.
        folder: Where it was written, if anywhere.

    Example:
        >>> from tlcgcnn_jax import ModelConfig, TrainConfig, fit, textbook_records
        >>> records, sizes = textbook_records(("band_gap_ev",))[:12], ModelConfig(8, convolutions=1, head_width=8)
        >>> result = fit(records, "band_gap_ev", model=sizes, config=TrainConfig(epochs=1))
        >>> sorted(result.metrics["train"]), len(result.history), len(result.split.test)
        (['mae', 'median_ae', 'n', 'r2', 'rmse'], 1, 1)
    """

    model: AnyModel
    metrics: dict[str, Any]
    predictions: Predictions = field(repr=False)
    split: Split = field(repr=False)
    history: list[dict[str, float]] = field(repr=False)
    account: Account | None = None
    overlap: dict[str, dict[str, float] | None] = field(default_factory=dict)
    folder: Path | None = None


@in_float32
def fit(
    data: Any,
    targets: str | Target | Sequence[str | Target] = (),
    *,
    split: Split | None = None,
    graph: GraphConfig = GraphConfig(),
    model: ModelConfig = ModelConfig(),
    config: TrainConfig = TrainConfig(),
    seeds: int = 1,
    out: str | Path | None = None,
    labels: Any = None,
    id_column: str | None = None,
    on_error: str = "raise",
    progress: bool = False,
    resume: bool = False,
) -> Result:
    """Train from scratch.

    Args:
        data: A `CrystalDataset`, or whatever `read_structures` takes.
        targets: Column names, or `Target`s with unit, kind and transform; default: all columns of a packed dataset, as
            numbers without a unit. Of anything else at least one must be named.
        split: Row numbers; default: a seeded 80/10/10 split. Where crystals are left out (on_error="skip"), rows must
            be those of a dataset, so pack it first; `read_split` makes them of ids.
        graph: How crystals become graphs (not used where `data` is a dataset).
        model: Sizes of the network; Gaussians reach as far as the cutoff in any case.
        config: How to train; batches and rate of the default are for thousands of crystals, those of `FINE_TUNING` for
            hundreds.
        seeds: Networks, with seeds `config.seed`, `config.seed` + 1, …; more than one make an ensemble.
        out: Folder for model, metrics, test results and pictures.
        labels: Joined to the crystals by id, as in `read_structures`; a dataset has its own.
        id_column: Column that holds the ids; likewise.
        on_error: "raise" or "skip" for crystals that cannot be used, and for labels without a logarithm where that is
            learnt.
        progress: Show bars.
        resume: Go on in `out` from its last checkpoint.

    Returns:
        The trained model, its errors, and its predictions of every crystal; the first two are in `out` as well.

    Raises:
        InputError: Crystals, labels or settings that cannot be used; no property, or one that is no column; fewer than
            3 labelled crystals, or labels that are all alike; a split whose parts share crystals or leave the dataset,
            or rows of one of which crystals are left out here; a training loss that is not finite; or an `out` that
            holds something else, or cannot be written.

    Example:
        >>> from tlcgcnn_jax import ModelConfig, TrainConfig, fit, textbook_records
        >>> records, sizes = textbook_records(("band_gap_ev",))[:12], ModelConfig(8, convolutions=1, head_width=8)
        >>> result = fit(records, "band_gap_ev", model=sizes, config=TrainConfig(epochs=1))
        >>> sorted(result.metrics), result.predictions.values.shape
        (['test', 'train', 'val'], (12, 1))
    """
    _check_settings({"config": (config, TrainConfig), "model": (model, ModelConfig)}, split, seeds)
    if out is not None:
        check_run_folder(user_path(out), resume)
    crystals, chosen = _prepared(data, targets, (graph,), labels, id_column, on_error, progress, split)
    lesson = _lesson(crystals, chosen, split, config, seeds)
    # No edge may be longer than the last Gaussian; a dataset has a cutoff of its own.
    reach = max(model.gaussian_max, crystals.datasets[0].graph.cutoff)
    plan = plan_scratch(lesson, replace(model, gaussian_max=reach))
    return _carry_out(lesson, plan, {"verb": "train", **plan.about}, out, progress, resume)


@in_float32
def transfer(
    data: Any,
    source: Any,
    strategy: str | Strategy | FeatureStrategy = "full",
    targets: str | Target | Sequence[str | Target] = (),
    *,
    sources: str | Path | None = None,
    top: int | None = None,
    split: Split | None = None,
    deal: bool | None = None,
    config: TrainConfig = FINE_TUNING,
    multipliers: Rates | Mapping[str, float] = (),
    seeds: int = 5,
    out: str | Path | None = None,
    labels: Any = None,
    id_column: str | None = None,
    on_error: str = "raise",
    tell: Callable[[str], None] | None = None,
    progress: bool = False,
    resume: bool = False,
) -> Result:
    """Train on a target, starting from one source model or from several.

    Args:
        data: A `CrystalDataset` with the source's graph settings, or whatever `read_structures` takes.
        source: A model, its folder, the name of a shipped one, a list of these or a dictionary of these by name, or
            "auto" for the best of those there are. A strategy of one source takes the best of several.
        strategy: Name, see `tlcgcnn_jax.strategies.strategy_names`; "features:REGRESSOR" for a regressor on features by
            the sources, "hybrid:REGRESSOR" with descriptors of the crystals beside them, "descriptors:REGRESSOR" for
            these alone; "ensemble:NAME+NAME" for the mean of several, "blend:NAME+NAME" for one that the validation
            crystals weight; "auto" for the blend of `strategies.AUTO_PARTS`, or "full" where there are classes to
            learn; or a `Strategy` or `FeatureStrategy` of your own.
        targets: As in `fit`.
        sources: With "auto": folder of further models.
        top: Sources that a strategy of several takes, best first; default: all, and with "auto" 5 of a
            mixture of which all is trained.
        split: As in `fit`. Validation crystals, from 9 on, give the predictions 90 % intervals.
        deal: Whether what is learnt in the end may hold the validation crystals too. Regressors, which do not need them
            to know when to stop, are then fitted to them as well, and a weighted mean ("auto", "blend:…") with `seeds`
            of 3 or more and 25 to 3,000 labelled training and validation crystals deals these anew for each network, so
            that all of them train and all of them choose the weights (`ways.folds_of` has the exact conditions).
            Default: only where no split is given, since one of your own may part crystals of different kinds, of which
            the validation crystals are to tell the errors.
        config: How to train; other settings are best made by `dataclasses.replace` from the default, `FINE_TUNING`.
        multipliers: Learning-rate multipliers that go before the strategy's, for example {"conv_*": 0.1}.
        seeds: As in `fit`; a source that is an ensemble gives its members in turn. Where nothing is trained, as in
            "keep_head", there are no more networks than the source has (or one for each time that the crystals are
            dealt); "features:…" is one regressor.
        out: As in `fit`.
        labels: As in `fit`.
        id_column: As in `fit`.
        on_error: As in `fit`.
        tell: Called before training with text for people: the ranking of sources, what is loaded, re-initialised and
            frozen in which phase, and how many test crystals the sources know by formula. For example `print`.
        progress: As in `fit`.
        resume: As in `fit`.

    Returns:
        As `fit`, with the account of what became of the source's arrays, and its overlap with the test crystals.

    Raises:
        InputError: As in `fit`; an unknown strategy or regressor; a learning-rate pattern that matches no parameter, or
            any for a regressor; a source that is not there, or whose graphs or shapes do not fit; fewer than 5 labelled
            training crystals, or classes, for a regressor; fewer than 10, or several targets, to rank sources by.

    Example:
        >>> from dataclasses import replace
        >>> from tlcgcnn_jax import FINE_TUNING, textbook_records, transfer
        >>> records, target = textbook_records(("bulk_modulus_gpa",))[:20], "bulk_modulus_gpa"
        >>> quick = replace(FINE_TUNING, epochs=1)  # the settings that are the default here, but for the epochs
        >>> result = transfer(records, "mp-formation-energy", "frozen", target, config=quick, seeds=2)
        >>> result.model.members[0]["params"]["embedding"]["bias"].shape, len(result.model.members)
        ((64,), 2)
    """
    tell = tell or (lambda text: None)
    _check_settings({"config": (config, TrainConfig)}, split, seeds)
    if out is not None:
        check_run_folder(user_path(out), resume)
    pool = find_pool(source, sources)
    graphs = needed_graphs(strategy, pool)
    crystals, chosen = _prepared(data, targets, graphs, labels, id_column, on_error, progress, split)
    lesson = replace(_lesson(crystals, chosen, split, config, seeds), deal=split is None if deal is None else deal)
    choice = SourceChoice(pool, crystals, chosen, lesson.split.train, config.seed, top, progress)
    plan = plan_transfer(lesson, strategy, multipliers, choice)
    if choice.ranked:
        tell(f"sources by their features on the labelled training crystals, best first\n{_short(choice)}")
    for line in plan.lines():
        tell(line)
    known = _overlaps(lesson, plan)
    for name, found in known.items():
        if found and found["count"]:
            count = f"{found['count']} of {len(lesson.split.test)} test crystals have"
            tell(f"{count} a formula that {name} was trained on: their errors may flatter it")
    about = {"verb": "transfer", **plan.about, "overlap": known}
    written = (lambda folder: write_scores(choice.ranking, folder / RANKING)) if choice.ranked else None
    return _carry_out(lesson, plan, about, out, progress, resume, known, written)


def _carry_out(
    lesson: Lesson,
    plan: Plan,
    about: dict[str, Any],
    out: str | Path | None,
    progress: bool,
    resume: bool,
    known: dict[str, dict[str, float] | None] | None = None,
    started: Callable[[Path], None] | None = None,
) -> Result:
    """Train as planned, evaluate, and write everything."""
    # By its weights: a folder may hold another model under the same name by the time that the run goes on.
    weights = {name: digest(model.members)[:16] for name, model in plan.sources.items()}
    settings = {**_settings(lesson, about), **({"source_sha256": weights} if weights else {})}
    with only_one(user_path(out), "run") if out is not None else contextlib.nullcontext():
        folder = start_run(out, settings, lesson.crystals.datasets[0].ids, lesson.split, resume)
        if folder and started:
            started(folder)
        # What is trained is written, too, before an interrupt ends the run.
        with Interrupts(wait=folder is not None) as interrupts:
            made = plan.make(Workplace(folder, progress, interrupts))
            return _finished(lesson, plan, made, about, known or {}, settings, folder)


def _finished(
    lesson: Lesson,
    plan: Plan,
    made: Made,
    about: dict[str, Any],
    known: dict[str, dict[str, float] | None],
    settings: dict[str, Any],
    folder: Path | None,
) -> Result:
    """Evaluate what was trained, and write everything."""
    crystals, targets, split = lesson.crystals, lesson.targets, lesson.split
    predictions = replace(evaluate.predict_packed(made.model, crystals), skipped=tuple(crystals.skipped))
    labels = np.asarray(crystals.datasets[0].targets, float)
    parts = {"test": split.test, "train": split.train}
    each = {part: evaluate.metrics(predictions, labels, rows) for part, rows in parts.items() if len(rows)}
    if len(held := plan.lesson.held):
        each["val"] = evaluate.metrics(made.held, labels[held])
    for name, values in evaluate.interval_metrics(predictions, labels, split.test).items():
        each["test"][name] |= values
    metrics: dict[str, Any] = {part: values[targets[0].name] for part, values in each.items()}
    if len(targets) > 1:
        metrics["targets"] = {t.name: {part: values[t.name] for part, values in each.items()} for t in targets}
    told = {name: value for name, value in about.items() if name not in ("model", "overlap")}
    own = {CHOICE: made.model.notes[CHOICE]} if CHOICE in made.model.notes else {}
    notes = {**told, **own, "crystals trained on": len(plan.learnt_from), "versions": settings["versions"]}
    model = replace(made.model, metrics=metrics, notes=notes)
    if folder:
        test = predictions.select(split.test)
        finish_run(folder, model, made.history, test, labels[split.test])
    return Result(model, metrics, predictions, split, made.history, plan.account, known, folder)


def _settings(lesson: Lesson, about: dict[str, Any]) -> dict[str, Any]:
    datasets = lesson.crystals.datasets
    return {
        **about,
        "targets": [to_dict(target) for target in lesson.targets],
        **({"graph": to_dict(datasets[0].graph)} if len(datasets) == 1 else {}),
        "training": to_dict(lesson.config),
        "seeds": int(lesson.seeds),
        "crystals": len(lesson.crystals),
        "dataset_fingerprint": datasets[0].fingerprint,
        "versions": versions(),
        "machine": f"{jax.devices()[0].device_kind}, {platform.machine()}",
    }


def _overlaps(lesson: Lesson, plan: Plan) -> dict[str, dict[str, float] | None]:
    """How many test crystals have a formula that a source was trained on, by source; None where that is not known."""
    tested = [lesson.crystals.datasets[0].formulas[row] for row in lesson.split.test.tolist()]
    return {
        name: overlap(model.formulas, tested)._asdict() if model.formulas else None
        for name, model in plan.sources.items()
    }


def _short(choice: SourceChoice) -> str:
    left = len(choice.ranking) - SHOWN
    return score_table(choice.ranking[:SHOWN]) + (f"\n    and {left} more, in {RANKING}" if left > 0 else "")


def _check_settings(settings: dict[str, tuple[Any, type]], split: Any, seeds: Any) -> None:
    """What is refused before any crystal is read."""
    for name, (value, kind) in {**settings, **({} if split is None else {"split": (split, Split)})}.items():
        if not isinstance(value, kind):
            made = "; read_split makes one of ids" if kind is Split else ""
            told = f"a {kind.__name__} was expected (tlcgcnn_jax.{kind.__name__}){made}"
            raise InputError(f"{name} is {reprlib.repr(value)}: {told}")
    if not isinstance(seeds, int | np.integer) or seeds < 1:
        raise InputError(f"seeds is {seeds!r}: the number of networks was expected, at least 1")


def _check_rows(split: Split | None, skipped: Sequence[Skipped]) -> None:
    """Row numbers are those of what was given: once crystals are left out, others would stand there in silence."""
    left_out = [one for one in skipped if NO_STRUCTURE not in one.reason]  # rows of labels alone move no crystal
    if split is not None and left_out:
        raise InputError(
            f"split: {len(left_out)} of the crystals that its rows count are left out, so that they would be those of "
            f"others; the first: {left_out[0].reason}; pack them first (build_dataset(..., on_error='skip')) and give "
            "the dataset with rows of it, which read_split makes of ids"
        )


def _lesson(
    crystals: GraphSets, targets: tuple[Target, ...], split: Split | None, config: TrainConfig, seeds: int
) -> Lesson:
    """What can be refused of it is refused here, before anything is written."""
    if config.seed + seeds > 2**32:
        raise InputError(f"seed {config.seed} with {seeds} networks, whose seeds follow: choose a smaller one")
    labelled = crystals.datasets[0].labelled
    if len(labelled) < 3:
        raise InputError(f"{len(labelled)} crystals with a label: at least 3 are needed to train, validate and test")
    split = split or random_split(len(labelled), config.seed).of(labelled)
    rows = np.concatenate([split.train, split.val, split.test])
    if len(np.unique(rows)) != len(rows) or rows.min(initial=0) < 0 or rows.max(initial=0) >= len(crystals):
        raise InputError(f"the split's parts share crystals, or name rows beyond the {len(crystals)} of the dataset")
    labels = np.asarray(crystals.datasets[0].targets)
    transform_labels(labels, targets, crystals.datasets[0].ids)
    check_varied(labels, targets)
    for target, column in zip(targets, labels.T, strict=True):
        if target.kind == "classification" and not np.any(column == 0):
            logger.warning("target %s: no crystal is of class 0; classes are counted from 0", target.name)
    return Lesson(crystals, targets, split, config, seeds)


def _prepared(
    data: Any,
    targets: Any,
    graphs: Sequence[GraphConfig],
    labels: Any,
    id_column: str | None,
    on_error: str,
    progress: bool,
    split: Split | None,
) -> tuple[GraphSets, tuple[Target, ...]]:
    """Crystals with exactly the columns that are asked for, as graphs of all these kinds."""
    wanted = (targets,) if isinstance(targets, str | Target) or not isinstance(targets, Iterable) else tuple(targets)
    chosen = tuple(Target(t) if isinstance(t, str) else t for t in wanted)
    if strange := [t for t in chosen if not isinstance(t, Target)]:
        raise InputError(f"targets: found {strange[0]!r}: a column's name, a Target, or a list of these was expected")
    if twice := [name for name, count in Counter(target.name for target in chosen).items() if count > 1]:
        raise InputError(f"target {twice[0]} is named twice: leave one out")
    dataset = find_dataset(data)
    data = data if dataset is None else dataset
    packed = isinstance(data, CrystalDataset | GraphSets)
    if not packed and not chosen:
        raise InputError("which property is to be learnt? Name at least one target column")
    names = tuple(target.name for target in chosen)
    crystals = pack_graphs(
        data, graphs, targets=names, labels=labels, id_column=id_column, on_error=on_error, progress=progress
    )
    if crystals.skipped and not packed:
        _check_rows(split, crystals.skipped)
        logger.warning(
            "%d crystals are left out, %d are used; the first: %s", len(crystals.skipped), len(crystals),
            crystals.skipped[0].reason,
        )  # fmt: skip
    has = crystals.datasets[0].target_names
    chosen = chosen or tuple(Target(name) for name in has)
    if not chosen:
        raise InputError("the dataset was prepared without a target column: prepare it again and name one")
    names = tuple(target.name for target in chosen)
    if absent := [name for name in names if name not in has]:
        raise InputError(f"the dataset has no target {', '.join(absent)}; it has {', '.join(has) or 'none'}")
    crystals = GraphSets(tuple(dataset.with_targets(names) for dataset in crystals.datasets), crystals.skipped)
    if on_error == "skip":
        first = crystals.datasets[0]
        crystals = crystals.with_labels(without_nonpositive(first.targets, chosen, first.ids))
    return crystals, chosen
