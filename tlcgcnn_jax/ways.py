"""From the name of a strategy and its sources to a plan, so that nothing is refused late."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from tlcgcnn_jax.bundle import Model
from tlcgcnn_jax.config import GraphConfig, ModelConfig, TrainConfig
from tlcgcnn_jax.dataset import CrystalDataset
from tlcgcnn_jax.embeddings import DESCRIPTORS
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.feature_model import FEWEST, check_features, too_many
from tlcgcnn_jax.fine_tuning import Job, network_of, start
from tlcgcnn_jax.optim import Rates
from tlcgcnn_jax.plans import CommitteePlan, FeaturesPlan, Lesson, NetworksPlan, Plan
from tlcgcnn_jax.regressors import REGRESSORS
from tlcgcnn_jax.source_choice import SourceChoice, SourcePool
from tlcgcnn_jax.splits import Split, deal
from tlcgcnn_jax.strategies import (
    AUTO,
    AUTO_OF_CLASSES,
    EnsembleStrategy,
    FeatureStrategy,
    Strategy,
    find_strategy,
    find_way,
)

logger = logging.getLogger(__name__)

DEVICE_BYTES = 2**30  # packed crystals beyond this size are streamed to the device, network by network
DEEPEST = 99  # convolutions, before the sources are known
FEW_UPDATES = 150  # of the weights: batch norm's running statistics alone take dozens
FEWEST_DEALT, MOST_DEALT = 25, 3000  # crystals: a fold of fewer is a handful, and of more the split's part is enough


def plan_scratch(lesson: Lesson, model: ModelConfig) -> NetworksPlan:
    """Networks that are trained from scratch, however many crystals there are.

    Raises:
        InputError: Labels that cannot be learnt.
    """
    return _networks(lesson, find_strategy("scratch"), {}, model, streamed=True)


def check_way(name: str) -> None:
    """Raise `InputError` unless this is the name of a strategy of any kind, for some depth of the network."""
    way = find_way(name, convolutions=DEEPEST)
    if isinstance(way, EnsembleStrategy):
        if len(set(way.parts)) < len(way.parts):
            raise InputError(f"{way.name}: a part is named twice; for several networks of one part raise seeds")
        for part in way.parts:
            check_way(part)
    elif isinstance(way, FeatureStrategy) and way.regressor not in REGRESSORS:
        raise InputError(f"no regressor {way.regressor!r}; there are: {', '.join(REGRESSORS)}")


def needed_graphs(
    strategy: str | Strategy | FeatureStrategy | EnsembleStrategy, pool: SourcePool
) -> tuple[GraphConfig, ...]:
    """Kinds of graphs that a strategy needs: those of the sources, and the default ones for descriptors alone.

    Args:
        strategy: Name, or a value of one's own.
        pool: Sources that it may take.

    Raises:
        InputError: An unknown strategy.

    Example:
        >>> from tlcgcnn_jax.source_choice import find_pool
        >>> len(needed_graphs("auto", find_pool("mp-formation-energy")))
        2
    """
    way = find_way(strategy, convolutions=DEEPEST) if isinstance(strategy, str) else strategy
    ways = [find_way(part, DEEPEST) for part in way.parts] if isinstance(way, EnsembleStrategy) else [way]
    alone = any(isinstance(one, FeatureStrategy) and one.layers == (DESCRIPTORS,) for one in ways)
    return (*pool.graphs, *([GraphConfig()] if alone else []))


def plan_transfer(
    lesson: Lesson,
    strategy: str | Strategy | FeatureStrategy,
    multipliers: Rates | Mapping[str, float],
    choice: SourceChoice,
) -> Plan:
    """What a strategy does with the sources that it takes.

    Args:
        lesson: What to learn.
        strategy: Name, or a value of one's own.
        multipliers: Learning-rate multipliers that go before the strategy's.
        choice: Where the sources come from.

    Raises:
        InputError: An unknown strategy, labels that it cannot learn, or sources that do not fit.
    """
    way = find_way(strategy, convolutions=DEEPEST) if isinstance(strategy, str) else strategy
    if isinstance(way, EnsembleStrategy):
        if way.name == AUTO and any(target.kind == "classification" for target in lesson.targets):
            return plan_transfer(lesson, AUTO_OF_CLASSES, multipliers, choice)
        check_way(way.name)
        parts = {name: find_way(name, DEEPEST) for name in way.parts}
        regressors = [part for part in parts.values() if isinstance(part, FeatureStrategy)]
        if len(regressors) == len(parts):
            _check_no_rates(way.name, multipliers)
        lesson = _fit_for(lesson, regressors)  # before the networks of another part are planned
        if way.weighted and lesson.deal:
            lesson = replace(lesson, folds=folds_of(lesson))
        given = {name: () if isinstance(part, FeatureStrategy) else multipliers for name, part in parts.items()}
        return CommitteePlan(
            lesson, way, {part: plan_transfer(lesson, part, rates, choice) for part, rates in given.items()}
        )  # fmt: skip
    if isinstance(way, FeatureStrategy):
        _check_no_rates(way.name, multipliers)
        lesson = _fit_for(lesson, [way])
        if way.layers != (DESCRIPTORS,):
            return FeaturesPlan(lesson, way, choice.sources(way))
        lesson.crystals[GraphConfig()]  # raises what would otherwise come after the other parts' training
        return FeaturesPlan(lesson, way, {})
    sources = choice.sources(way)
    depth = next(iter(sources.values())).model.convolutions
    named = strategy if isinstance(strategy, str) else way  # a name depends on the depth of the network
    return _networks(lesson, find_strategy(named, multipliers, depth), sources, ModelConfig())


def _check_no_rates(name: str, multipliers: Rates | Mapping[str, float]) -> None:
    if multipliers:
        raise InputError(f"{name} trains no network: learning-rate multipliers (--rate) do not go with it")


def _fit_for(lesson: Lesson, ways: Sequence[FeatureStrategy]) -> Lesson:
    """The lesson that some regressors can learn: without validation crystals where only these make it too many.

    Raises:
        InputError: Labels that one of them cannot learn, or too many crystals to train on.
    """
    for way in ways:
        check_features(way.regressor, lesson.targets, lesson.labels(lesson.split.train))
    most = int(np.isfinite(lesson.labels(lesson.given)).sum(0).max())
    over = [way.name for way in ways if too_many(way.regressor, most)]
    if lesson.deal and over:
        logger.warning(
            "validation crystals are not learnt from: with them there are %d, too many for %s", most, ", ".join(over)
        )
        return replace(lesson, deal=False)
    return lesson


def folds_of(lesson: Lesson) -> tuple[Split, ...]:
    """Training and validation crystals dealt anew for each network, so that each of them validates once.

    A tenth of a few hundred crystals says little of what a part of a mean is worth; all of them say more, and all of
    them are trained on. Crystals of one formula stay together.

    Args:
        lesson: With labels of 25 to 3,000 such crystals and three or more networks.

    Returns:
        One division for each network, none of which tests. () where the given one stays: with other numbers, and where
        a network would train on fewer than half of the crystals, or validate on fewer than five labels of a target.

    Source:
        M. J. van der Laan, E. C. Polley and A. E. Hubbard, "Super learner", Stat. Appl. Genet. Mol. Biol. 6, 25 (2007).
    """
    given, folds = lesson.given, lesson.seeds
    formulas = [lesson.crystals.datasets[0].formulas[row] for row in given.tolist()]
    labelled = np.isfinite(lesson.labels(given)).any(1).sum()
    if folds < 3 or not FEWEST_DEALT <= labelled <= MOST_DEALT or len(set(formulas)) < folds:
        return ()
    dealt = tuple(deal(given, folds, lesson.config.seed, formulas))
    parts = [rows for fold in dealt for rows in (fold.train, fold.val)]
    fewest = min(np.isfinite(lesson.labels(rows)).sum(0).min() for rows in parts)
    return dealt if fewest >= FEWEST and all(2 * len(fold.train) >= len(given) for fold in dealt) else ()


def _networks(
    lesson: Lesson, strategy: Strategy, sources: Mapping[str, Model], model: ModelConfig, streamed: bool = False
) -> NetworksPlan:
    models, config, split = list(sources.values()), lesson.config, lesson.split
    dataset = lesson.crystals[models[0].graph] if models else lesson.crystals.datasets[0]
    if strategy.trains and not streamed and _device_bytes(dataset, split) > DEVICE_BYTES:
        if strategy.before or strategy.adapter_rank:
            raise InputError(
                f"{len(split.train) + len(split.val):,} crystals are too many for {strategy.name}, which keeps all on "
                "the device: choose a strategy of one phase without adapters, such as full or frozen, or train on fewer"
            )
        streamed = True
    if strategy.trains:
        _tell_few_updates(len(split.train), config)
    members = max((len(model.members) for model in models), default=1)
    # Where nothing is trained, only the source's own networks differ, and what the output is fitted to.
    trials = lesson.folds or lesson.trials * (lesson.seeds if strategy.trains else min(lesson.seeds, members))
    jobs = [Job(trial.train, trial.val, config.seed + i, config.learning_rate, i) for i, trial in enumerate(trials)]
    starts = [start(dataset, lesson.targets, strategy, models, job, model) for job in jobs]
    sizes = network_of(strategy, models, model)
    return NetworksPlan(lesson, strategy, sources, dataset, sizes, jobs, starts, streamed)


def _tell_few_updates(crystals: int, config: TrainConfig) -> None:
    updates = config.epochs * -(-crystals // config.batch_size)
    if updates < FEW_UPDATES:
        logger.warning(
            "%d updates of the weights (%d training crystals, batch size %d, epochs %d) are few: take smaller batches "
            "(--batch-size) or more epochs", updates, crystals, config.batch_size, config.epochs,
        )  # fmt: skip


def _device_bytes(dataset: CrystalDataset, split: Split) -> int:
    """What the crystals that are trained and validated on take on the device, four bytes a number."""
    rows = np.concatenate([split.train, split.val])
    of_rows = int(dataset.n_row[rows].sum()) * (1 + 3 * dataset.graph.places)
    return 4 * (of_rows + int(dataset.n_atom[rows].sum()))
