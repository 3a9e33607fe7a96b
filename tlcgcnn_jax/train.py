"""The training loop and its pure steps; it knows nothing of transfer."""

import contextlib
import functools
import hashlib
import itertools
import json
import math
import operator
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from tlcgcnn_jax import losses
from tlcgcnn_jax.adapters import fold_adapters
from tlcgcnn_jax.batching import PLAN, Batch, PadBudget, batch_plan, epoch_length, pad_budget, stack_batches
from tlcgcnn_jax.checkpoint import Checkpoints
from tlcgcnn_jax.config import ModelConfig, Target, TrainConfig, to_dict
from tlcgcnn_jax.dataset import CrystalDataset
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.losses import Normaliser
from tlcgcnn_jax.model import Network, Variables, build_network, init_variables
from tlcgcnn_jax.optim import ALL, Rates, frozen_modules, learning_rate, make_optimizer, rate_tree
from tlcgcnn_jax.outputs import device_stacks, holds_crystals, network_outputs
from tlcgcnn_jax.splits import Split

T = TypeVar("T")


@dataclass(frozen=True)
class Program:
    """What a compiled training step depends on; runs that agree in it share the compilation.

    Attributes:
        model: The network.
        targets: What its outputs mean.
        config: Training settings; only those that `static` keeps matter.
        rates: Learning-rate multipliers by pattern; 0 freezes.
        frozen: Modules whose batch norm keeps to its running statistics.
        pulls: Strength of the pull towards the start by pattern.
        cached: Convolutions whose result stands in the batches already, see `CGCNN`.
    """

    model: Network
    targets: tuple[Target, ...]
    config: TrainConfig
    rates: Rates = ALL
    frozen: tuple[str, ...] = ()
    pulls: Rates = ()
    cached: int | None = None

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """Gradients to updates for a learning rate of 1."""
        return make_optimizer(self.config, self.rates, self.pulls)

    def static(self) -> "Program":
        """The same program for every seed, learning rate and length."""
        blank = TrainConfig()
        kept = replace(
            self.config, seed=blank.seed, epochs=blank.epochs, learning_rate=blank.learning_rate,
            batch_size=blank.batch_size, patience=blank.patience, keep=blank.keep,
        )  # fmt: skip
        return replace(self, config=kept)


class TrainState(NamedTuple):
    """What an update changes."""

    step: Array  # int32, updates made
    params: Any
    batch_stats: Any
    opt_state: Any


class Hyper(NamedTuple):
    """The settings of one run that the compiled program takes as numbers."""

    learning_rate: Array  # highest
    total: Array  # int32, updates of the whole run
    seed: Array  # uint32, of dropout


def init_state(program: Program, variables: Variables) -> TrainState:
    """A state at update 0; `variables` are copied, since the steps give up their input's memory."""
    params = jax.tree.map(jnp.array, variables["params"])
    stats = jax.tree.map(jnp.array, variables["batch_stats"])
    return TrainState(jnp.zeros((), jnp.int32), params, stats, program.optimizer.init(params))


def train_step(program: Program, state: TrainState, batch: Batch, hyper: Hyper) -> tuple[TrainState, dict[str, Array]]:
    """One update.

    Args:
        program: Static settings.
        state: Before.
        batch: Padded graphs and normalised labels.
        hyper: Numbers of this run.

    Returns:
        The state after, and {"loss": sum over labels, "count": labels, "gradient": norm of the trained gradients}.
    """
    config, model = program.config, program.model
    multipliers = rate_tree(state.params, program.rates)
    dropout = jax.random.fold_in(jax.random.key(hyper.seed), state.step)

    def loss(params: Any) -> tuple[Array, tuple[Any, Array, Array]]:
        # Frozen leaves are constants: their backward pass is not even traced.
        params = jax.tree.map(lambda leaf, rate: leaf if rate else jax.lax.stop_gradient(leaf), params, multipliers)
        outputs, updated = model.apply(
            {"params": fold_adapters(params), "batch_stats": state.batch_stats},
            batch.graph, True, program.frozen, program.cached, mutable=["batch_stats"], rngs={"dropout": dropout},
        )  # fmt: skip
        total, count = losses.loss_sum(outputs, batch.labels, program.targets, config.loss)
        return total / jnp.maximum(count, 1.0), (updated["batch_stats"], total, count)

    (_, (batch_stats, total, count)), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
    updates, opt_state = program.optimizer.update(gradients, state.opt_state, state.params)
    rate = learning_rate(config, state.step, hyper.total, hyper.learning_rate)
    # Adding zero would turn -0.0 into 0.0: frozen leaves are passed on and not added to.
    params = jax.tree.map(
        lambda leaf, update, trained: leaf + rate * update if trained else leaf, state.params, updates, multipliers
    )
    trained = [g for g, m in zip(jax.tree.leaves(gradients), jax.tree.leaves(multipliers), strict=True) if m]
    metrics = {"loss": total, "count": count, "gradient": optax.tree.norm(trained)}
    return TrainState(state.step + 1, params, batch_stats, opt_state), metrics


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def train_scan(
    program: Program, state: TrainState, batches: Batch, hyper: Hyper
) -> tuple[TrainState, dict[str, Array]]:
    """`train_step` over stacked batches in one program; batches without a crystal are skipped."""

    def body(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        none = {name: jnp.zeros(()) for name in ("loss", "count", "gradient")}
        return jax.lax.cond(
            holds_crystals(batch),
            lambda: train_step(program, state, batch, hyper),
            lambda: (state, none),
        )

    return jax.lax.scan(body, state, batches)


@dataclass
class Trained:
    """The result of a training.

    Attributes:
        variables: {"params", "batch_stats"} that are kept: the best by validation score, or the last ones where nothing
            is held out or the settings say so.
        normaliser: Fitted on the training rows.
        history: One row an epoch: epoch, train_loss, val_score, gradient, learning_rate; of networks that are trained
            one after the other crystals_per_second and seconds, too.
        best_epoch: The one that is kept, counted from 1; 0 where that is the start, as where nothing is trained.
    """

    variables: Variables
    normaliser: Normaliser
    history: list[dict[str, float]]
    best_epoch: int

    @property
    def best_score(self) -> float:
        """Lowest validation score of all epochs; infinite without any."""
        return min((row["val_score"] for row in self.history if math.isfinite(row["val_score"])), default=math.inf)


def train(
    dataset: CrystalDataset,
    split: Split,
    targets: Sequence[Target],
    model_config: ModelConfig = ModelConfig(),
    config: TrainConfig = TrainConfig(),
    *,
    variables: Variables | None = None,
    rates: Rates = ALL,
    frozen: tuple[str, ...] | None = None,
    pulls: Rates = (),
    normaliser: Normaliser | None = None,
    checkpoints: Checkpoints | None = None,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
) -> Trained:
    """Train a network on the training rows of a split, and keep what did best on its validation rows.

    Args:
        dataset: Packed crystals with the targets' columns.
        split: Row numbers; the test rows are not touched.
        targets: What to learn, in the order of the dataset's columns.
        model_config: Sizes of the network.
        config: How to train.
        variables: Start from these instead of fresh weights.
        rates: Learning-rate multipliers by pattern; 0 freezes.
        frozen: Convolutions whose batch norm keeps to its running statistics; default: those of which nothing is
            trained.
        pulls: Strength of the pull towards the start by pattern, see `optim.make_optimizer`.
        normaliser: Of the targets; default: fitted on the training rows.
        checkpoints: Where to keep the state after every epoch, and to go on from where it holds one.
        on_epoch: Called with every row of the history.

    Returns:
        What is kept, the normaliser, and a row of history for each epoch.

    Raises:
        InputError: Columns that are not the targets, no training label or one that cannot be learnt, patterns that do
            not cover the parameters, unknown modules in `frozen`, a training loss that is not finite, or checkpoints of
            another run.
    """
    targets = tuple(targets)
    if tuple(target.name for target in targets) != tuple(dataset.target_names):
        raise InputError(f"the dataset holds the targets {dataset.target_names}, asked for {[t.name for t in targets]}")
    normaliser = normaliser or losses.fit_normaliser(dataset.targets[split.train], targets)
    labels = losses.normalise(np.asarray(dataset.targets), targets, normaliser)
    rows = split.train[np.isfinite(labels[split.train]).any(1)]
    if not len(rows):
        raise InputError(f"not one of {len(split.train)} training crystals has a label")
    train_set, val_set = dataset.select(rows), dataset.select(split.val)
    budget = pad_budget(dataset.n_atom, dataset.n_row, min(config.batch_size, len(rows)), dataset.graph.places)
    model = build_network(model_config, sum(target.outputs for target in targets), dataset.graph.places)
    if variables is None:
        variables = init_variables(model, example_graph(dataset), config.seed)
    if frozen is None:
        frozen = frozen_modules(variables["params"], rates)
    if unknown := sorted(set(frozen) - set(frozen_modules(variables["params"], (("*", 0.0),)))):
        raise InputError(f"frozen names {', '.join(unknown)}; the network has {', '.join(sorted(variables['params']))}")
    program = Program(model, targets, config, rates, frozen, pulls).static()
    progress = _Progress.start(init_state(program, variables))
    settings = {
        "version of the batches": PLAN,
        "training": to_dict(config), "model": to_dict(model_config), "targets": [to_dict(t) for t in targets],
        "rates": rates, "frozen": frozen, "pulls": pulls,
        "normaliser": np.array([normaliser.mean, normaliser.std]).tolist(),
        "training crystals": _digest(dataset, labels, rows), "validation crystals": _digest(dataset, labels, split.val),
    }  # fmt: skip
    if checkpoints and (meta := checkpoints.meta()):
        check_same(meta.get("settings", {}), settings, checkpoints.folder)
        progress.restore(checkpoints, meta)
    # The number of batches varies by one or so between epochs: the schedule counts with that of the first.
    first = batch_plan(train_set.n_atom, train_set.n_row, budget, config.seed, 0)
    hyper = Hyper(
        jnp.float32(config.learning_rate), jnp.int32(config.epochs * len(first)), jnp.uint32(config.seed % 2**32)
    )
    # Without validation labels the last weights are the best there are.
    validated = bool(np.isfinite(labels[split.val]).any())
    epochs = range(len(progress.history), config.epochs)
    with contextlib.closing(_prefetch(_stacks(train_set, labels[rows], budget, config.seed, epochs))) as ahead:
        for epoch, stacks in itertools.groupby(ahead, key=operator.itemgetter(0)):
            if config.patience is not None and epoch - progress.best_epoch >= config.patience:
                break
            began = time.perf_counter()
            progress.state, means = _one_epoch(program, progress.state, (stack for _, stack in stacks), hyper)
            if not math.isfinite(means["train_loss"]):
                raise InputError(
                    f"the training loss is not a number in epoch {epoch + 1}: lower the learning rate "
                    f"(now {config.learning_rate:g}) or look for extreme labels"
                )
            trained, score = time.perf_counter() - began, math.nan
            if len(split.val):
                folded = {**progress.now, "params": fold_adapters(progress.state.params)}
                score = losses.score(network_outputs(model, folded, val_set, budget=budget), labels[split.val], targets)
            if score < progress.best_score or not validated:
                progress.keep(score, epoch + 1)
            rate = learning_rate(config, progress.state.step, hyper.total, hyper.learning_rate)
            row = {
                "epoch": epoch + 1, "train_loss": means["train_loss"], "val_score": score,
                "gradient": means["gradient"], "learning_rate": float(rate),
                "crystals_per_second": len(rows) / trained, "seconds": time.perf_counter() - began,
            }  # fmt: skip
            progress.history.append(row)
            if checkpoints:
                progress.save(checkpoints, settings)
            if on_epoch:
                on_epoch(row)
    if config.keep == "last":
        return Trained(jax.device_get(progress.now), normaliser, progress.history, len(progress.history))
    return Trained(jax.device_get(progress.best), normaliser, progress.history, progress.best_epoch)


@dataclass
class _Progress:
    """Where a call of `train` stands: the state, the best weights so far and the history."""

    state: TrainState
    best: Variables
    best_score: float
    best_epoch: int
    history: list[dict[str, float]]

    @classmethod
    def start(cls, state: TrainState) -> "_Progress":
        progress = cls(state, {}, math.inf, 0, [])
        progress.keep(math.inf, 0)
        return progress

    @property
    def now(self) -> Variables:
        return {"params": self.state.params, "batch_stats": self.state.batch_stats}

    def keep(self, score: float, epoch: int) -> None:
        # A copy: the state's own memory is given up by the next scan.
        self.best, self.best_score, self.best_epoch = jax.tree.map(jnp.array, self.now), score, epoch

    def save(self, checkpoints: Checkpoints, settings: dict[str, Any]) -> None:
        epoch = len(self.history)
        meta = {"epoch": epoch, "best_score": self.best_score, "best_epoch": self.best_epoch, "history": self.history,
                "settings": settings}  # fmt: skip
        checkpoints.save(epoch, {"state": self.state, "best": self.best}, meta)

    def restore(self, checkpoints: Checkpoints, meta: dict[str, Any]) -> None:
        saved = checkpoints.restore({"state": self.state, "best": self.best})
        self.state, self.best = saved["state"], saved["best"]
        self.best_score, self.best_epoch, self.history = meta["best_score"], meta["best_epoch"], meta["history"]


def _stacks(
    dataset: CrystalDataset, labels: np.ndarray, budget: PadBudget, seed: int, epochs: range
) -> Iterator[tuple[int, Batch]]:
    """The stacked batches of every epoch, with its number."""
    length = epoch_length(dataset.n_atom, dataset.n_row, budget)
    for epoch in epochs:
        plan = batch_plan(dataset.n_atom, dataset.n_row, budget, seed, epoch)
        for stacked in device_stacks(dataset, labels, plan, budget, length):
            yield epoch, stacked


def _one_epoch(
    program: Program, state: TrainState, stacks: Iterable[Batch], hyper: Hyper
) -> tuple[TrainState, dict[str, float]]:
    """The updates of an epoch; the mean loss over its labels and the mean gradient norm over its updates."""
    sums = {"loss": 0.0, "count": 0.0, "gradient": 0.0, "updates": 0.0}
    for stacked in stacks:
        state, metrics = train_scan(program, state, stacked, hyper)
        sums["updates"] += (np.asarray(metrics["count"]) > 0).sum()
        for name, values in metrics.items():
            sums[name] += float(np.asarray(values, np.float64).sum())
    means = {
        "train_loss": sums["loss"] / max(sums["count"], 1.0),
        "gradient": sums["gradient"] / max(sums["updates"], 1.0),
    }
    return state, means


def example_graph(dataset: CrystalDataset) -> Any:
    """One small padded batch of the dataset's layout, for shapes."""
    smallest = np.array([int(np.argmin(dataset.n_atom))])
    one = dataset.select(smallest)
    budget = pad_budget(one.n_atom, one.n_row, 1, dataset.graph.places)
    stacked = stack_batches(one, np.zeros((1, 0), np.float32), [np.array([0])], budget)
    return jax.tree.map(lambda leaf: leaf[0], stacked.graph)


def _prefetch(items: Iterator[T]) -> Generator[T, None, None]:
    """The same items, each being made in a thread while the caller works on the one before."""
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(next, items, None)
        while (ready := pending.result()) is not None:
            pending = pool.submit(next, items, None)
            yield ready


def _digest(dataset: CrystalDataset, labels: np.ndarray, rows: np.ndarray) -> str:
    """A hash of which crystals these are and what is to be learnt of them."""
    text = "\n".join(dataset.ids[row] for row in rows)
    return hashlib.sha256(text.encode() + np.ascontiguousarray(labels[rows]).tobytes()).hexdigest()


def check_same(before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    """Raise `InputError` unless a run goes on with the settings that it was started with."""
    now = json.loads(json.dumps(now))
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        raise InputError(
            f"{folder}: the checkpoint is of a run with other settings ({', '.join(changed)}): "
            "give those again, or another folder to start anew"
        )
