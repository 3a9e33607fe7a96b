"""Many small trainings in one compiled program: data on the device, a scan over epochs and batches, a map over runs."""

import functools
import hashlib
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jraph
import numpy as np
from jax import Array

from tlcgcnn_jax import losses
from tlcgcnn_jax.adapters import fold_adapters
from tlcgcnn_jax.batching import PLAN, Batch, PadBudget, batch_plan, epoch_length, pad_budget
from tlcgcnn_jax.checkpoint import Checkpoints
from tlcgcnn_jax.config import Target, TrainConfig
from tlcgcnn_jax.dataset import CrystalDataset
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.losses import Normaliser
from tlcgcnn_jax.machine import in_float32
from tlcgcnn_jax.model import Variables, pooled_graph
from tlcgcnn_jax.optim import learning_rate
from tlcgcnn_jax.processes import cores
from tlcgcnn_jax.train import Hyper, Program, Trained, TrainState, check_same, init_state, train_step

# One call of the compiled program makes so many epochs, fewer where they would be more updates than this, but one at
# least: as often are progress, checkpoints and Ctrl-C served.
CHUNK, CHUNK_UPDATES = 10, 500


@dataclass(frozen=True, eq=False)
class Run:
    """One training of many: what differs between them.

    Attributes:
        train: int [n_train], rows of the dataset.
        val: int [n_val], rows to choose the epoch by; may be empty.
        variables: {"params", "batch_stats"} to start from.
        normaliser: Of the targets.
        learning_rate: Highest learning rate.
        seed: Of batches and dropout.
        phase: Number of trainings of the same network that came before, of which orders and dropout are not repeated.
    """

    train: np.ndarray
    val: np.ndarray
    variables: Variables
    normaliser: Normaliser
    learning_rate: float
    seed: int
    phase: int = 0

    @property
    def draw(self) -> int:
        """What the orders and the dropout of this phase are drawn by."""
        return int(np.random.SeedSequence((self.seed, self.phase)).generate_state(1)[0]) if self.phase else self.seed


class DeviceCrystals(NamedTuple):
    """A packed dataset on the device, see `CrystalDataset`; `features` as in `CGCNN`, by atom or by crystal."""

    n_atom: Array
    n_row: Array
    atom_offset: Array
    row_offset: Array
    atomic_numbers: Array
    receivers: Array
    senders: Array
    distances: Array
    weights: Array
    features: Array | None


class Progress(NamedTuple):
    """Everything that changes in one run."""

    state: TrainState
    best: dict[str, Any]  # {"params", "batch_stats"} of the lowest validation score
    best_score: Array  # float32
    best_epoch: Array  # int32, counted from 1; 0: none yet
    epoch: Array  # int32, finished


class Inputs(NamedTuple):
    """What one run is given."""

    labels: Array  # [n_crystal, n_target], normalised by the run's own training rows
    plans: Array  # int32 [epochs, length, n_graph - 1], rows of the dataset, -1 where there is none
    val_plan: Array  # int32 [val_length, n_graph - 1]
    hyper: Hyper
    epochs: Array  # int32
    patience: Array  # int32


def on_device(dataset: CrystalDataset, features: np.ndarray | None = None) -> DeviceCrystals:
    """The arrays of a dataset on the device, as they are; batches are gathered there."""
    arrays = {name: getattr(dataset, name) for name in DeviceCrystals._fields if name != "features"}
    whole = {name: np.asarray(a, np.float32 if a.dtype.kind == "f" else np.int32) for name, a in arrays.items()}
    make: Any = DeviceCrystals  # typed for arrays on the device alone
    return jax.device_put(make(**whole, features=features))


def gather_batch(
    crystals: DeviceCrystals, rows: Array, labels: Array, budget: PadBudget, pooled: bool = False
) -> Batch:
    """A padded batch on the device, the same as `batching.stack_batches` lays out.

    Args:
        crystals: The dataset.
        rows: int32 [n_graph - 1], which crystals; -1 at the end where there are fewer.
        labels: [n_crystal, n_target].
        budget: Shape of the batch.
        pooled: `crystals.features` are pooled already and all that is needed of a crystal.
    """
    there = rows >= 0
    row = jnp.where(there, rows, 0)
    chosen = jnp.where(there[:, None], labels[row], jnp.nan)
    padding_row = jnp.full((1, labels.shape[1]), jnp.nan)
    batch_labels: Any = jnp.concatenate([chosen, padding_row])
    make: Any = jraph.GraphsTuple  # typed for arrays alone
    if pooled:
        assert crystals.features is not None
        shape = (1, crystals.features.shape[1])
        features = jnp.concatenate([crystals.features[row] * there[:, None], jnp.zeros(shape)])
        return Batch(pooled_graph(features), batch_labels)

    def spread(counts: Array, offset: Array, total: int) -> tuple[Array, Array, Array, Array]:
        """Where each of `total` places takes its value from: source row, place of its crystal, whether real."""
        counts = jnp.append(jnp.where(there, counts[row], 0), 0)
        filled = counts.at[there.sum()].set(total - counts.sum())  # the first free graph holds the padding
        starts = jnp.cumsum(filled) - filled
        graph = jnp.repeat(jnp.arange(len(filled)), filled, total_repeat_length=total)
        real = graph < there.sum()
        source = jnp.where(real, jnp.append(offset[row], 0)[graph] + jnp.arange(total) - starts[graph], 0)
        return filled, source, graph, real

    n_node, atom, atom_graph, real_atom = spread(crystals.n_atom, crystals.atom_offset, budget.n_node)
    n_row, edge_row, row_graph, real_row = spread(crystals.n_row, crystals.row_offset, budget.n_row)
    first_node = (jnp.cumsum(n_node) - n_node)[row_graph]  # of padding rows: the first padding node
    receivers = jnp.where(real_row, crystals.receivers[edge_row], 0) + first_node
    senders = jnp.where(real_row[:, None], crystals.senders[edge_row], 0) + first_node[:, None]
    nodes = {"atomic_number": jnp.where(real_atom, crystals.atomic_numbers[atom], 0)}
    if crystals.features is not None:
        nodes["features"] = crystals.features[atom] * real_atom[:, None]
    edges = {
        "distance": (crystals.distances[edge_row] * real_row[:, None]).reshape(-1),
        "weight": (crystals.weights[edge_row] * real_row[:, None]).reshape(-1),
    }
    repeated = jnp.repeat(receivers, budget.places)
    return Batch(make(nodes, edges, repeated, senders.reshape(-1), None, n_node, n_row * budget.places), batch_labels)


def _epoch(
    program: Program, budget: PadBudget, crystals: DeviceCrystals, inputs: Inputs, before: Progress, plan: Array
) -> tuple[Progress, dict[str, Array]]:
    """One epoch of one run, and its validation."""
    pooled = program.cached == program.model.config.convolutions
    fetch = functools.partial(gather_batch, crystals, labels=inputs.labels, budget=budget, pooled=pooled)

    def update(state: TrainState, rows: Array) -> tuple[TrainState, dict[str, Array]]:
        none = {name: jnp.zeros(()) for name in ("loss", "count", "gradient")}
        return jax.lax.cond(
            rows[0] >= 0, lambda: train_step(program, state, fetch(rows), inputs.hyper), lambda: (state, none)
        )

    state, metrics = jax.lax.scan(update, before.state, plan)
    now = {"params": state.params, "batch_stats": state.batch_stats}
    folded = {"params": fold_adapters(state.params), "batch_stats": state.batch_stats}

    def validate(sums: tuple[Array, Array], rows: Array) -> tuple[tuple[Array, Array], None]:
        def one() -> tuple[Array, Array]:
            batch = fetch(rows)
            outputs: Any = program.model.apply(folded, batch.graph, False, (), program.cached)
            errors = losses.label_losses(outputs, batch.labels, program.targets, "mae")
            return errors.sum(0), jnp.isfinite(batch.labels).sum(0).astype(jnp.float32)

        zero = jnp.zeros(len(program.targets)), jnp.zeros(len(program.targets))
        found = jax.lax.cond(rows[0] >= 0, one, lambda: zero)
        return (sums[0] + found[0], sums[1] + found[1]), None

    zero = jnp.zeros(len(program.targets)), jnp.zeros(len(program.targets))
    (error, count), _ = jax.lax.scan(validate, zero, inputs.val_plan)
    score = jnp.sum(error / jnp.maximum(count, 1)) / jnp.sum(count > 0)  # NaN without any validation label
    better = (score < before.best_score) | ~jnp.any(count > 0)
    best = jax.tree.map(functools.partial(jnp.where, better), now, before.best)
    epoch = before.epoch + 1
    after = Progress(
        state, best, jnp.where(better, score, before.best_score), jnp.where(better, epoch, before.best_epoch), epoch
    )
    used = jnp.maximum(jnp.sum(metrics["count"] > 0), 1)
    history = {
        "train_loss": metrics["loss"].sum() / jnp.maximum(metrics["count"].sum(), 1.0),
        "val_score": score,
        "gradient": metrics["gradient"].sum() / used,
        "learning_rate": learning_rate(
            program.config, state.step, inputs.hyper.total, inputs.hyper.learning_rate
        ),
    }  # fmt: skip
    return after, history


def _epochs(
    program: Program, budget: PadBudget, crystals: DeviceCrystals, inputs: Inputs, progress: Progress
) -> tuple[Progress, dict[str, Array]]:
    """The epochs of `inputs.plans` of one run; those after its end are passed over."""

    def one(before: Progress, plan: Array) -> tuple[Progress, dict[str, Array]]:
        goes_on = (before.epoch < inputs.epochs) & (before.epoch - before.best_epoch < inputs.patience)
        none = dict.fromkeys(("train_loss", "val_score", "gradient", "learning_rate"), jnp.float32(jnp.nan))
        return jax.lax.cond(
            goes_on, lambda: _epoch(program, budget, crystals, inputs, before, plan), lambda: (before, none)
        )

    return jax.lax.scan(one, progress, inputs.plans)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=5)
def train_epochs(
    program: Program, budget: PadBudget, mapped: bool, crystals: DeviceCrystals, inputs: Inputs, progress: Progress
) -> tuple[Progress, dict[str, Array]]:
    """Some epochs of one run, or of several at once (`mapped`: `inputs` and `progress` have a leading axis)."""
    one = functools.partial(_epochs, program, budget)
    return (jax.vmap(one, in_axes=(None, 0, 0)) if mapped else one)(crystals, inputs, progress)


def train_many(
    dataset: CrystalDataset,
    runs: Sequence[Run],
    program: Program,
    config: TrainConfig,
    *,
    features: np.ndarray | None = None,
    together: int | None = None,
    checkpoints: Checkpoints | None = None,
    on_epoch: Callable[[int, dict[str, float]], None] | None = None,
) -> list[Trained]:
    """Train several networks of one kind on rows of one dataset; none of them depends on the others' labels or weights.

    Each gets what `train` would give it where all have as many labelled training crystals: batches are as large as
    those of the run that has most.

    Args:
        dataset: Packed crystals with the targets' columns; all of it is put on the device.
        runs: Rows, start, learning rate and seed of each.
        program: What they have in common, see `train.Program`.
        config: Epochs, batch size, patience and what is kept; the rest of it is in the program.
        features: Cached activations of every atom or crystal of the dataset, where the program has `cached`.
        together: Runs mapped over in one call. Default: all of them on an accelerator; one on a CPU, where as many
            threads as there are cores call the same program instead. Of runs that are mapped, empty batches and epochs
            after the end of one cost as much as any.
        checkpoints: Where to keep the state of all runs, and to go on from where it holds one.
        on_epoch: Called with the run's number and every row of its history.

    Returns:
        One result a run, in their order. A run whose loss is not a number, which `train` refuses, keeps its best epoch
        before that.

    Raises:
        InputError: A run without a training label, one whose loss is not a number and that has no earlier epoch with a
            validation score, or checkpoints of other runs.
    """
    targets, program = program.targets, program.static()
    labelled = max(np.isfinite(dataset.targets[run.train]).any(1).sum() for run in runs)
    budget = pad_budget(dataset.n_atom, dataset.n_row, min(config.batch_size, labelled), dataset.graph.places)
    crystals = on_device(dataset, features)
    inputs = [_inputs(dataset, run, targets, config, budget) for run in runs]
    lengths = [max(one[name].shape[-2] for one in inputs) for name in ("plans", "val_plan")]
    inputs = [_as_inputs(one, lengths, run, config) for one, run in zip(inputs, runs, strict=True)]
    progress = [_start(program, run) for run in runs]
    histories: list[list[dict[str, float]]] = [[] for _ in runs]
    done, chunk = 0, min(CHUNK, max(1, CHUNK_UPDATES // lengths[0]), config.epochs)
    start = digest([inputs, [run.normaliser for run in runs], progress]) if checkpoints else ""
    settings = {
        "version of the batches": PLAN, "program and training": repr((program, config)),
        "crystals and starting weights": start,
    }  # fmt: skip
    if checkpoints and (meta := checkpoints.meta()):
        check_same(meta.get("settings", {}), settings, checkpoints.folder)
        progress = _unstack(checkpoints.restore(_stack(progress)), len(runs))
        histories, done = meta["history"], meta["epoch"]
    together = together or (1 if jax.default_backend() == "cpu" else len(runs))
    groups = [range(first, min(first + together, len(runs))) for first in range(0, len(runs), together)]

    @in_float32  # of a thread: those of the pool do not know what holds in this one
    def advance(group: Sequence[int], starts: Sequence[int]) -> None:
        mapped = len(group) > 1
        for start in starts:
            if all(int(progress[i].epoch) < start for i in group):
                return  # each has run out of patience
            window = [inputs[i]._replace(plans=_window(inputs[i].plans, start, chunk)) for i in group]
            given = (
                [_stack(window), _stack([progress[i] for i in group])] if mapped else [window[0], progress[group[0]]]
            )
            after, history = train_epochs(program, budget, mapped, crystals, *given)
            rows = {name: np.asarray(values).reshape(len(group), chunk) for name, values in history.items()}
            for place, (i, one) in enumerate(
                zip(group, _unstack(after, len(group)) if mapped else [after], strict=True)
            ):
                progress[i] = one
                for epoch in range(start, int(one.epoch)):
                    row = {name: float(values[place, epoch - start]) for name, values in rows.items()}
                    histories[i].append({"epoch": epoch + 1, **row})

    starts = list(range(done, config.epochs, chunk))
    with ThreadPoolExecutor(cores() if together == 1 else 1) as pool:
        if starts:
            advance(groups[0], starts[:1])  # alone, so that the program is compiled once
            list(pool.map(lambda group: advance(group, starts[:1]), groups[1:]))
        # Without anybody who waits for the end of a chunk, each run goes through all of them at its own pace.
        watched = checkpoints is not None or on_epoch is not None
        for some in [starts[i : i + 1] for i in range(len(starts))] if watched else [starts]:
            list(pool.map(lambda group, some=some: advance(group, [s for s in some if s != done]), groups))
            if checkpoints:
                end = some[-1] + chunk
                meta = {"epoch": end, "history": histories, "settings": settings}
                checkpoints.save(end, _stack(progress), meta)
            if on_epoch:
                for i, rows in enumerate(histories):
                    for row in rows[some[0] :]:
                        on_epoch(i, row)
    ended = zip(runs, progress, histories, strict=True)
    return [_trained(run, one, history, config.keep) for run, one, history in ended]


def _inputs(
    dataset: CrystalDataset, run: Run, targets: Sequence[Target], config: TrainConfig, budget: PadBudget
) -> dict[str, np.ndarray]:
    """Labels and plans of a run, as `train` makes them."""
    labels = losses.normalise(np.asarray(dataset.targets), targets, run.normaliser)
    rows = run.train[np.isfinite(labels[run.train]).any(1)]
    if not len(rows):
        raise InputError(f"not one of {len(run.train)} training crystals has a label")
    n_atom, n_row = dataset.n_atom[rows], dataset.n_row[rows]
    plans = [batch_plan(n_atom, n_row, budget, run.draw, epoch) for epoch in range(config.epochs)]
    length = max(epoch_length(n_atom, n_row, budget), *map(len, plans))
    val = batch_plan(dataset.n_atom[run.val], dataset.n_row[run.val], budget) if len(run.val) else []
    width = budget.n_graph - 1
    return {
        "labels": labels,
        "plans": np.stack([_padded(plan, rows, length, width) for plan in plans]),
        "val_plan": _padded(val, run.val, max(len(val), 1), width),
        "first": np.array(len(plans[0])),
    }


def _padded(plan: Sequence[np.ndarray], rows: np.ndarray, length: int, width: int) -> np.ndarray:
    """A batch plan over `rows` as one array [length, width], -1 where there is nothing."""
    out = np.full((length, width), -1, np.int32)
    for batch, chosen in zip(out, plan, strict=False):
        batch[: len(chosen)] = rows[chosen]
    return out


def _as_inputs(found: dict[str, np.ndarray], lengths: Sequence[int], run: Run, config: TrainConfig) -> Inputs:
    """Plans of the same length for all runs, and the run's numbers."""

    def lengthened(plan: np.ndarray, length: int) -> np.ndarray:
        missing = [(0, 0)] * (plan.ndim - 2) + [(0, length - plan.shape[-2]), (0, 0)]
        return np.pad(plan, missing, constant_values=-1)

    hyper = Hyper(
        jnp.float32(run.learning_rate), jnp.int32(config.epochs * int(found["first"])), jnp.uint32(run.draw % 2**32)
    )
    patience = config.epochs + 1 if config.patience is None else config.patience
    plans, val_plan = (lengthened(found[n], length) for n, length in zip(("plans", "val_plan"), lengths, strict=True))
    make: Any = Inputs  # typed for arrays on the device alone
    return make(jnp.asarray(found["labels"]), plans, val_plan, hyper, jnp.int32(config.epochs), jnp.int32(patience))


def _start(program: Program, run: Run) -> Progress:
    state = init_state(program, run.variables)
    best = jax.tree.map(jnp.array, {"params": state.params, "batch_stats": state.batch_stats})
    return Progress(state, best, jnp.float32(math.inf), jnp.int32(0), jnp.int32(0))


def _trained(run: Run, progress: Progress, history: list[dict[str, float]], keep: str) -> Trained:
    last = {"params": progress.state.params, "batch_stats": progress.state.batch_stats}
    kept, best_epoch = jax.device_get((last if keep == "last" else progress.best, progress.best_epoch))
    # Without validation labels the last weights are the best there are, whatever they have come to.
    if not best_epoch or not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(kept)):
        raise InputError(
            f"the training loss of seed {run.seed} is not a number: lower the learning rate "
            f"(now {run.learning_rate:g}) or look for extreme labels"
        )
    return Trained(kept, run.normaliser, history, len(history) if keep == "last" else int(best_epoch))


def digest(tree: Any) -> str:
    """A hash of the numbers in a tree."""
    return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree))).hexdigest()


def _window(plans: Any, start: int, chunk: int) -> np.ndarray:
    """The plans of some epochs, with empty ones after the last: one length for all chunks is one compilation."""
    some = plans[start : start + chunk]
    return np.pad(some, ((0, chunk - len(some)), (0, 0), (0, 0)), constant_values=-1)


def _stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *trees)


def _unstack(tree: Any, count: int) -> list[Any]:
    return [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(count)]
