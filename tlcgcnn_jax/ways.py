"""From a strategy of any kind and its sources to a trained model: planned first, so that nothing is refused late."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tlcgcnn_jax.bundle import Model
from tlcgcnn_jax.checkpoint import Checkpoints
from tlcgcnn_jax.committee import AnyModel, Committee
from tlcgcnn_jax.config import GraphConfig, ModelConfig, Target, TrainConfig, to_dict
from tlcgcnn_jax.dataset import CrystalDataset
from tlcgcnn_jax.embeddings import DESCRIPTORS
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.evaluate import with_error_bars
from tlcgcnn_jax.feature_model import check_features, make_feature_model
from tlcgcnn_jax.fine_tuning import Job, Start, fine_tune, network_of, start
from tlcgcnn_jax.graph_sets import GraphSets
from tlcgcnn_jax.merging import Account
from tlcgcnn_jax.optim import Rates
from tlcgcnn_jax.regressors import REGRESSORS
from tlcgcnn_jax.selection import weighted_committee
from tlcgcnn_jax.source_choice import SourceChoice, SourcePool
from tlcgcnn_jax.splits import Split
from tlcgcnn_jax.strategies import EnsembleStrategy, FeatureStrategy, Strategy, find_strategy, find_way
from tlcgcnn_jax.train import Trained, train
from tlcgcnn_jax.watch import EpochBar, Interrupts, NetworksBar, OnEpoch, epoch_log

DEVICE_BYTES = 2**30  # packed crystals beyond this size are streamed to the device, network by network
DEEPEST = 99  # convolutions, before the sources are known


@dataclass(frozen=True, eq=False)
class Lesson:
    """What is to be learnt, whichever way.

    Attributes:
        crystals: With the targets' columns.
        targets: What to learn.
        split: Rows of the crystals.
        config: How networks are trained.
        seeds: Networks, with seeds `config.seed`, `config.seed` + 1, ….
    """

    crystals: GraphSets
    targets: tuple[Target, ...]
    split: Split
    config: TrainConfig
    seeds: int

    @property
    def formulas(self) -> set[str]:
        """Of the training crystals."""
        return {self.crystals.datasets[0].formulas[row] for row in self.split.train.tolist()}


@dataclass(frozen=True, eq=False)
class Workplace:
    """Where a run is carried out, and who watches it.

    Attributes:
        folder: Of the run, if there is one.
        progress: Show bars.
        interrupts: Ctrl-C.
        part: Folder below that of the checkpoints.
        first: Number of the first network.
    """

    folder: Path | None
    progress: bool
    interrupts: Interrupts
    part: str = ""
    first: int = 0

    def checkpoints(self, name: str) -> contextlib.AbstractContextManager[Checkpoints | None]:
        """For a part of the work."""
        if self.folder is None:
            return contextlib.nullcontext()
        return Checkpoints(self.folder / "checkpoints" / self.part / name)

    def after_epoch(self, network: int, show: OnEpoch | None) -> OnEpoch:
        """Log and show an epoch of a network, and end the run if that was asked for."""
        return self.interrupts.after(epoch_log(self.folder, self.first + network), show)


class Made(NamedTuple):
    """A trained model.

    Attributes:
        model: With error bars, without metrics.
        history: One row an epoch and network.
        best_epochs: Epoch that was kept, by network.
    """

    model: AnyModel
    history: list[dict[str, float]]
    best_epochs: list[int]


@dataclass(frozen=True, eq=False)
class NetworksPlan:
    """One or several networks, trained by a fine-tuning strategy.

    Attributes:
        lesson: What to learn.
        strategy: How.
        sources: By name; {} for training from scratch.
        dataset: Crystals with the graphs of the sources.
        model: Sizes of the network.
        jobs: One for each network.
        starts: What is made of the sources, for each job.
        streamed: One network after the other, the crystals streamed to the device.
    """

    lesson: Lesson
    strategy: Strategy
    sources: Mapping[str, Model]
    dataset: CrystalDataset
    model: ModelConfig
    jobs: list[Job]
    starts: list[Start]
    streamed: bool

    @property
    def account(self) -> Account | None:
        """What becomes of every array of the sources, in the last phase."""
        return self.starts[-1].account

    @property
    def about(self) -> dict[str, Any]:
        """For the settings of the run."""
        strategy = self.strategy
        phases = [{"share": phase.share, "rates": [list(rate) for rate in phase.rates]} for phase in strategy.before]
        rates = {"rates": [list(rate) for rate in strategy.rates]} | ({"phases": phases} if phases else {})
        named = {"source": " + ".join(self.sources), "strategy": strategy.name, **rates} if self.sources else {}
        return named | {"model": to_dict(self.model)}

    def lines(self) -> list[str]:
        """For people who watch: what is loaded, re-initialised and frozen, and in which phases."""
        if self.account is None:
            return []
        phases, first = self.strategy.phases(self.lesson.config.epochs), 1
        out = [f"{self.strategy.name} from {' + '.join(self.sources)}:\n{self.account}"]
        for epochs, rates in phases if len(phases) > 1 else []:
            told = ", ".join(f"{pattern} {'frozen' if not rate else f'x{rate:g}'}" for pattern, rate in rates)
            out.append(f"  epochs {first} to {first + epochs - 1}: {told}")
            first += epochs
        return out

    def make(self, at: Workplace) -> Made:
        """Train the networks."""
        trained = self._streamed(at) if self.streamed else self._together(at)
        targets, formulas = self.lesson.targets, self.lesson.formulas
        if self.strategy.reinitialise != ("*",):
            formulas = formulas.union(*(source.formulas for source in self.sources.values()))
        model = Model(
            self.dataset.graph, self.model, targets, trained[0].normaliser, tuple(one.variables for one in trained),
            formulas=tuple(sorted(formulas)), notes={"strategy": self.strategy.name},
        )  # fmt: skip
        history = [{"member": at.first + i, **row} for i, one in enumerate(trained) for row in one.history]
        kept = [one.best_epoch for one in trained]
        return Made(with_error_bars(model, self.lesson.crystals, self.lesson.split), history, kept)

    def _together(self, at: Workplace) -> list[Trained]:
        lesson, split = self.lesson, self.lesson.split
        # Test crystals have no place on the device.
        some = self.dataset.select(np.concatenate([split.train, split.val]))
        train_rows, val_rows = np.split(np.arange(len(some)), [len(split.train)])
        jobs = [replace(job, train=train_rows, val=val_rows) for job in self.jobs]
        with NetworksBar(at.progress, len(jobs), lesson.config.epochs) as show:

            def on_epoch(network: int, row: dict[str, float]) -> None:
                at.after_epoch(network, lambda row: show(network, row))(row)

            return fine_tune(
                some, lesson.targets, self.strategy, list(self.sources.values()), jobs, lesson.config,
                model_config=self.model, starts=self.starts, checkpoints=at.checkpoints, on_epoch=on_epoch,
            )  # fmt: skip

    def _streamed(self, at: Workplace) -> list[Trained]:
        lesson, trained = self.lesson, []
        frozen = () if self.strategy.batch_norm == "update" else None
        for i, (job, begun) in enumerate(zip(self.jobs, self.starts, strict=True)):
            bar = EpochBar(at.progress, i, len(self.jobs), lesson.config)
            with at.checkpoints(f"member_{i}") as checkpoints, bar as show:
                one = train(
                    self.dataset, lesson.split, lesson.targets, self.model, replace(lesson.config, seed=job.seed),
                    variables=begun.variables, rates=self.strategy.rates, frozen=frozen, pulls=self.strategy.pulls,
                    normaliser=begun.normaliser, checkpoints=checkpoints, on_epoch=at.after_epoch(i, show),
                )  # fmt: skip
            trained.append(one)
        return trained


@dataclass(frozen=True, eq=False)
class FeaturesPlan:
    """A regressor on the activations of the sources.

    Attributes:
        lesson: What to learn.
        strategy: Which regressor on which layers.
        sources: By name.
    """

    lesson: Lesson
    strategy: FeatureStrategy
    sources: Mapping[str, Model]
    account: Account | None = None

    @property
    def about(self) -> dict[str, Any]:
        """For the settings of the run."""
        return {**_named(self.sources), "strategy": self.strategy.name}

    def lines(self) -> list[str]:
        """For people who watch."""
        columns = " and ".join(self.strategy.layers)
        of = f" features of {', '.join(self.sources)}" if self.sources else " of the crystals"
        return [f"{self.strategy.name}: a regressor on the {columns}{of}"]

    def make(self, at: Workplace) -> Made:
        """Embed the crystals and fit the regressor."""
        lesson = self.lesson
        model = make_feature_model(
            self.sources, self.strategy.layers, self.strategy.regressor, lesson.crystals, lesson.targets,
            lesson.split.train, lesson.config.seed,
        )  # fmt: skip
        formulas = lesson.formulas.union(*(source.formulas for source in self.sources.values()))
        model = replace(model, formulas=tuple(sorted(formulas)), notes={"strategy": self.strategy.name})
        return Made(with_error_bars(model, lesson.crystals, lesson.split), [], [])


@dataclass(frozen=True, eq=False)
class CommitteePlan:
    """Several plans on the same crystals.

    Attributes:
        lesson: What to learn.
        strategy: Names of the parts.
        parts: Their plans, by name.
    """

    lesson: Lesson
    strategy: EnsembleStrategy
    parts: Mapping[str, "Plan"]

    @property
    def sources(self) -> dict[str, Model]:
        """Those of all parts."""
        return {name: model for part in self.parts.values() for name, model in part.sources.items()}

    @property
    def account(self) -> Account | None:
        """That of the first part that has one."""
        return next((part.account for part in self.parts.values() if part.account is not None), None)

    @property
    def about(self) -> dict[str, Any]:
        """For the settings of the run."""
        parts = {name: part.about for name, part in self.parts.items()}
        return {**_named(self.sources), "strategy": self.strategy.name, "parts": parts}

    def lines(self) -> list[str]:
        """For people who watch."""
        return [line for part in self.parts.values() for line in part.lines()]

    def make(self, at: Workplace) -> Made:
        """Train the parts, one after the other."""
        parts: dict[str, AnyModel] = {}
        history: list[dict[str, float]] = []
        best_epochs: list[int] = []
        for index, (name, part) in enumerate(self.parts.items()):
            made = part.make(replace(at, part=f"part_{index}", first=len(best_epochs)))
            parts[name] = made.model
            history += made.history
            best_epochs += made.best_epochs
        lesson = self.lesson
        if self.strategy.weighted:
            model = weighted_committee(parts, lesson.crystals, lesson.split.val, lesson.config.seed)
            model = replace(model, notes={**model.notes, "strategy": self.strategy.name})
        else:
            formulas = set[str]().union(*(part.formulas for part in parts.values()))
            model = Committee(parts, formulas=tuple(sorted(formulas)))
        return Made(with_error_bars(model, lesson.crystals, lesson.split), history, best_epochs)


Plan = NetworksPlan | FeaturesPlan | CommitteePlan


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
    lesson: Lesson, strategy: str | Strategy | FeatureStrategy, multipliers: Rates, choice: SourceChoice
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
        check_way(way.name)
        given = {part: multipliers if isinstance(find_way(part, DEEPEST), Strategy) else () for part in way.parts}
        return CommitteePlan(
            lesson, way, {part: plan_transfer(lesson, part, rates, choice) for part, rates in given.items()}
        )  # fmt: skip
    if isinstance(way, FeatureStrategy):
        if multipliers:
            raise InputError(f"{way.name} trains no network: learning-rate multipliers (--rate) do not go with it")
        labels = np.asarray(lesson.crystals.datasets[0].targets)[lesson.split.train]
        check_features(way.regressor, lesson.targets, labels)
        if way.layers != (DESCRIPTORS,):
            return FeaturesPlan(lesson, way, choice.sources(way))
        lesson.crystals[GraphConfig()]  # raises what would otherwise come after the other parts' training
        return FeaturesPlan(lesson, way, {})
    sources = choice.sources(way)
    depth = next(iter(sources.values())).model.convolutions
    named = strategy if isinstance(strategy, str) else way  # a name depends on the depth of the network
    return _networks(lesson, find_strategy(named, multipliers, depth), sources, ModelConfig())


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
    members = len(models[0].members) if models else 1
    # Where nothing is trained, only the source's own networks differ.
    count = lesson.seeds if strategy.trains else min(lesson.seeds, members)
    jobs = [
        Job(split.train, split.val, config.seed + i, config.learning_rate, member=i % members) for i in range(count)
    ]
    starts = [start(dataset, lesson.targets, strategy, models, job, model) for job in jobs]
    sizes = network_of(strategy, models, model)
    return NetworksPlan(lesson, strategy, sources, dataset, sizes, jobs, starts, streamed)


def _named(sources: Mapping[str, Model]) -> dict[str, str]:
    """Sources for the settings of a run; descriptors alone have none."""
    return {"source": " + ".join(sources)} if sources else {}


def _device_bytes(dataset: CrystalDataset, split: Split) -> int:
    """What the crystals that are trained and validated on take on the device, four bytes a number."""
    rows = np.concatenate([split.train, split.val])
    of_rows = int(dataset.n_row[rows].sum()) * (1 + 3 * dataset.graph.places)
    return 4 * (of_rows + int(dataset.n_atom[rows].sum()))
