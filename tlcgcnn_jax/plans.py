"""Plans: what a strategy makes of crystals and sources, told and checked before it is carried out."""

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tlcgcnn_jax.bundle import Model
from tlcgcnn_jax.checkpoint import Checkpoints
from tlcgcnn_jax.committee import AnyModel, Committee, known_formulas
from tlcgcnn_jax.config import ModelConfig, Target, TrainConfig, to_dict
from tlcgcnn_jax.dataset import CrystalDataset
from tlcgcnn_jax.evaluate import predict_rows, with_error_bars, with_novelty
from tlcgcnn_jax.feature_model import make_feature_model
from tlcgcnn_jax.fine_tuning import Job, Start, fine_tune, on_scale
from tlcgcnn_jax.graph_sets import GraphSets
from tlcgcnn_jax.losses import fit_normaliser
from tlcgcnn_jax.merging import Account
from tlcgcnn_jax.predictions import Predictions, joined, mixture
from tlcgcnn_jax.selection import weighted_committee
from tlcgcnn_jax.splits import Split
from tlcgcnn_jax.strategies import EnsembleStrategy, FeatureStrategy, Strategy
from tlcgcnn_jax.train import Trained, train
from tlcgcnn_jax.watch import EpochBar, Interrupts, NetworksBar, OnEpoch, epoch_log


@dataclass(frozen=True, eq=False)
class Lesson:
    """What is to be learnt, whichever way.

    Attributes:
        crystals: With the targets' columns.
        targets: What to learn.
        split: Rows of the crystals.
        config: How networks are trained.
        seeds: Networks, with seeds `config.seed`, `config.seed` + 1, ….
        deal: Whether the validation crystals may be learnt from as well, by what does not need them or in folds.
        folds: Other divisions of the training and validation crystals, one for each network, in which every crystal
            validates once; (): that of `split` for all.
    """

    crystals: GraphSets
    targets: tuple[Target, ...]
    split: Split
    config: TrainConfig
    seeds: int
    deal: bool = False
    folds: tuple[Split, ...] = ()

    @property
    def trials(self) -> tuple[Split, ...]:
        """Divisions into crystals that train and that validate."""
        return self.folds or (self.split,)

    @property
    def given(self) -> np.ndarray:
        """Training and validation rows."""
        return np.concatenate([self.split.train, self.split.val])

    @property
    def held(self) -> np.ndarray:
        """Rows that are predicted by something that was not fitted to them, in the order of the trials.

        They have chosen the epoch of the networks that predict them. Sources are ranked once, by the training rows of
        `split`: those of these rows that a fold holds out have helped to choose the sources as well.
        """
        return np.concatenate([trial.val for trial in self.trials])

    def labels(self, rows: np.ndarray) -> np.ndarray:
        """[n, n_target], NaN where unknown."""
        return np.asarray(self.crystals.datasets[0].targets, float)[rows]

    def labelled(self, rows: np.ndarray) -> np.ndarray:
        """Those of some rows that have a label of any target."""
        return rows[np.isfinite(self.labels(rows)).any(1)]

    def formulas(self, rows: np.ndarray, sources: Collection[Model] = ()) -> tuple[str, ...]:
        """Of some crystals, and those that sources were trained on; () if one of the sources does not know its own."""
        own = {self.crystals.datasets[0].formulas[row] for row in rows.tolist()}
        before = known_formulas(sources)
        return () if sources and not before else tuple(sorted(own.union(before)))


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
        held: What it said of the rows `Lesson.held` before it had learnt from them; a weighted mean, of each by weights
            that others of them have chosen.
        history: One row an epoch and network, "kept" where its weights are those of the model.
    """

    model: AnyModel
    held: Predictions
    history: list[dict[str, float]]


@dataclass(frozen=True, eq=False)
class NetworksPlan:
    """One or several networks, trained by a fine-tuning strategy.

    Attributes:
        lesson: What to learn.
        strategy: How.
        bodies: Models whose sizes it has, and whose weights unless it starts afresh; {} without any.
        dataset: Crystals with the graphs of the sources.
        model: Sizes of the network.
        jobs: One for each network.
        starts: What is made of the sources, for each job.
        streamed: One network after the other, the crystals streamed to the device.
    """

    lesson: Lesson
    strategy: Strategy
    bodies: Mapping[str, Model]
    dataset: CrystalDataset
    model: ModelConfig
    jobs: list[Job]
    starts: list[Start]
    streamed: bool

    @property
    def sources(self) -> Mapping[str, Model]:
        """Models of which a weight is taken, by name; {} for training from scratch."""
        return {} if self.strategy.from_scratch else self.bodies

    @property
    def account(self) -> Account | None:
        """What becomes of every array of the sources, in the last phase."""
        return self.starts[-1].account

    @property
    def learnt_from(self) -> np.ndarray:
        """Rows that the networks are trained on."""
        return self.lesson.labelled(self.lesson.given if self.lesson.folds else self.lesson.split.train)

    @property
    def about(self) -> dict[str, Any]:
        """For the settings of the run."""
        strategy = self.strategy
        phases = [{"share": phase.share, "rates": [list(rate) for rate in phase.rates]} for phase in strategy.before]
        rates = {"rates": [list(rate) for rate in strategy.rates]} | ({"phases": phases} if phases else {})
        named = {**_named(self.sources), "strategy": strategy.name, **rates} if self.bodies else {}
        return named | {"model": to_dict(self.model)}

    def lines(self) -> list[str]:
        """For people who watch: what is loaded, re-initialised and frozen, and in which phases."""
        if self.account is None:
            return []
        phases, first = self.strategy.phases(self.lesson.config.epochs), 1
        summary = f"  {self.strategy.summary}\n" if self.strategy.summary else ""
        of = "with the graphs and sizes of" if self.strategy.from_scratch else "from"
        out = [f"{self.strategy.name} {of} {' + '.join(self.bodies)}:\n{summary}{self.account}"]
        for epochs, rates in phases if len(phases) > 1 else []:
            told = ", ".join(f"{pattern} {'frozen' if not rate else f'x{rate:g}'}" for pattern, rate in rates)
            out.append(f"  epochs {first} to {first + epochs - 1}: {told}")
            first += epochs
        return out

    def make(self, at: Workplace) -> Made:
        """Train the networks."""
        trained = self._streamed(at) if self.streamed else self._together(at)
        lesson = self.lesson
        model = Model(
            self.dataset.graph, self.model, lesson.targets, trained[0].normaliser,
            tuple(one.variables for one in trained), formulas=lesson.formulas(self.learnt_from, self.sources.values()),
            notes={"strategy": self.strategy.name},
        )  # fmt: skip
        if lesson.folds:
            # Every network has crystals of its own that it has not seen, their scale and range included.
            alone = [replace(model, members=(one.variables,), normaliser=one.normaliser) for one in trained]
            held = _held(alone, lesson)
            scale = fit_normaliser(lesson.labels(lesson.given), lesson.targets)
            members = (on_scale(one.variables, lesson.targets, one.normaliser, scale) for one in trained)
            model = replace(model, normaliser=scale, members=tuple(members))
        else:
            held = _held([model], lesson)
        model = with_novelty(model, lesson.crystals, self.learnt_from)
        model = with_error_bars(model, held, lesson.labels(lesson.held))
        history = [
            {"member": at.first + i, **row, "kept": row["epoch"] == one.best_epoch}
            for i, one in enumerate(trained) for row in one.history
        ]  # fmt: skip
        return Made(model, held, history)

    def _together(self, at: Workplace) -> list[Trained]:
        lesson, rows = self.lesson, self.lesson.given
        # Test crystals have no place on the device.
        some, place = self.dataset.select(rows), np.empty(len(self.dataset), int)
        place[rows] = np.arange(len(rows))
        jobs = [replace(job, train=place[job.train], val=place[job.val]) for job in self.jobs]
        with NetworksBar(at.progress, len(jobs), lesson.config.epochs) as show:

            def on_epoch(network: int, row: dict[str, float]) -> None:
                at.after_epoch(network, lambda row: show(network, row))(row)

            return fine_tune(
                some, lesson.targets, self.strategy, list(self.bodies.values()), jobs, lesson.config,
                model_config=self.model, starts=self.starts, checkpoints=at.checkpoints, on_epoch=on_epoch,
            )  # fmt: skip

    def _streamed(self, at: Workplace) -> list[Trained]:
        lesson, trained = self.lesson, []
        frozen = () if self.strategy.batch_norm == "update" else None
        for i, (job, begun) in enumerate(zip(self.jobs, self.starts, strict=True)):
            bar = EpochBar(at.progress, i, len(self.jobs), lesson.config)
            with at.checkpoints(f"member_{i}") as checkpoints, bar as show:
                division = Split(job.train, job.val, lesson.split.test)
                one = train(
                    self.dataset, division, lesson.targets, self.model, replace(lesson.config, seed=job.seed),
                    variables=begun.variables, rates=self.strategy.rates, frozen=frozen, pulls=self.strategy.pulls,
                    normaliser=begun.normaliser, checkpoints=checkpoints, on_epoch=at.after_epoch(i, show),
                )  # fmt: skip
            trained.append(one)
        return trained


@dataclass(frozen=True, eq=False)
class FeaturesPlan:
    """A regressor on the activations of the sources.

    It needs no validation crystals to know when to stop: they tell its errors, and if they may are then fitted as well.

    Attributes:
        lesson: What to learn.
        strategy: Which regressor on which layers.
        sources: By name; {} for descriptors alone.
        account: None: no array of a source is replaced or trained.
    """

    lesson: Lesson
    strategy: FeatureStrategy
    sources: Mapping[str, Model]
    account: Account | None = None

    @property
    def learnt_from(self) -> np.ndarray:
        """Rows that the regressor is fitted to in the end."""
        return self.lesson.labelled(self.lesson.given if self.lesson.deal else self.lesson.split.train)

    @property
    def about(self) -> dict[str, Any]:
        """For the settings of the run."""
        deal = {"deal": True} if self.lesson.deal else {}
        return {**_named(self.sources), "strategy": self.strategy.name, **deal}

    def lines(self) -> list[str]:
        """For people who watch."""
        columns = " and ".join(self.strategy.layers)
        of = f" features of {', '.join(self.sources)}" if self.sources else " of the crystals"
        return [f"{self.strategy.name}: a regressor on the {columns}{of}"]

    def make(self, at: Workplace) -> Made:
        """Embed the crystals; the regressor is fitted when it is first asked."""
        lesson, rows = self.lesson, self.learnt_from
        model = make_feature_model(
            self.sources, self.strategy.layers, self.strategy.regressor, lesson.crystals, lesson.targets, rows,
            lesson.config.seed,
        )  # fmt: skip
        held = _held([model.of(np.isin(rows, trial.train)) for trial in lesson.trials], lesson)
        formulas = lesson.formulas(rows, self.sources.values())
        model = replace(model, formulas=formulas, notes={"strategy": self.strategy.name})
        return Made(with_error_bars(model, held, lesson.labels(lesson.held)), held, [])


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
    def learnt_from(self) -> np.ndarray:
        """Rows that some part learns from."""
        return max((part.learnt_from for part in self.parts.values()), key=len)

    @property
    def account(self) -> Account | None:
        """That of the first part that has one."""
        return next((part.account for part in self.parts.values() if part.account is not None), None)

    @property
    def about(self) -> dict[str, Any]:
        """For the settings of the run."""
        parts = {name: part.about for name, part in self.parts.items()}
        folds = {"folds": len(self.lesson.folds)} if self.lesson.folds else {}
        return {**_named(self.sources), "strategy": self.strategy.name, **folds, "parts": parts}

    def lines(self) -> list[str]:
        """For people who watch."""
        lines = [line for part in self.parts.values() for line in part.lines()]
        if folds := len(self.lesson.folds):
            told = f"{len(self.lesson.given)} training and validation crystals, dealt {folds} times: each trains all"
            lines.append(f"{told} networks but one, which it validates, and has a say in the weights of the parts")
        return lines

    def make(self, at: Workplace) -> Made:
        """Train the parts, one after the other; each counts as much as its errors on validation crystals allow."""
        parts: dict[str, Made] = {}
        for index, (name, part) in enumerate(self.parts.items()):
            at.interrupts.stop()
            first = len({row["member"] for made in parts.values() for row in made.history})
            parts[name] = part.make(replace(at, part=f"part_{index}", first=first))
        models = {name: made.model for name, made in parts.items()}
        said, labels = {name: made.held for name, made in parts.items()}, self.lesson.labels(self.lesson.held)
        model: AnyModel
        if self.strategy.weighted:
            model, held = weighted_committee(models, said, labels, self.lesson.config.seed)
            model = replace(model, notes={**model.notes, "strategy": self.strategy.name})
        else:
            model = Committee(models, formulas=known_formulas(models.values()))
            held = mixture(list(said.values()))
        # A network of one fold has no spread, those of all folds together have.
        networks = isinstance(model, Committee) and any(isinstance(part, Model) for part in model.parts.values())
        model = with_error_bars(model, held, labels, scaled=not (self.lesson.folds and networks))
        return Made(model, held, [row for made in parts.values() for row in made.history])


Plan = NetworksPlan | FeaturesPlan | CommitteePlan


def _named(sources: Mapping[str, Model]) -> dict[str, str]:
    """Sources for the settings of a run; descriptors alone have none."""
    return {"source": " + ".join(sources)} if sources else {}


def _held(models: Sequence[AnyModel], lesson: Lesson) -> Predictions:
    """What the model of each trial says of the crystals that it has not learnt from."""
    pairs = zip(models, lesson.trials, strict=True)
    return joined([predict_rows(model, lesson.crystals, trial.val) for model, trial in pairs])
