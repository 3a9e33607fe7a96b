"""Which settings the source models are trained with: one option changed at a time, on a tenth of the formulas.

    python experiments/zoo/trials.py DATA --out runs/trials

Formation energies; equal epochs, split and seeds for all. The validation MAE decides, the test MAE is told. A trial
that stands in DIR/trials.csv is not repeated. Also draws DIR/trials.png and prints the table of the README.
"""

import argparse
import csv
import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sources import in_sample, pack, read_sources, split_by_formula

from tlcgcnn_jax import losses
from tlcgcnn_jax.batching import Batch, batch_plan, epoch_length, pad_budget
from tlcgcnn_jax.config import GraphConfig, ModelConfig, Target, TrainConfig
from tlcgcnn_jax.dataset import CrystalDataset
from tlcgcnn_jax.figure import BLUE, GREY, picture
from tlcgcnn_jax.machine import processor
from tlcgcnn_jax.model import Variables, build_network, init_variables
from tlcgcnn_jax.outputs import device_stacks, holds_crystals, network_outputs
from tlcgcnn_jax.run import fit
from tlcgcnn_jax.splits import Split
from tlcgcnn_jax.train import Hyper, Program, TrainState, example_graph, init_state, train_step

BASE, LAST, MEAN = "base", "last weights", "mean of weights"
VALUES: dict[str, tuple[Any, ...]] = {
    "loss": ("mse", "huber"),
    "learning_rate": (2e-3, 8e-3),
    "width": (96,),
    "convolutions": (3, 5),
    "ties": ("reference",),
    "batch_size": (32, 64),
    "weight_decay": (0.0, 1e-2),
    "clip": (1.0,),
}
TRAIN, VAL = 0.1, 0.4  # shares of the formulas that train and validate in the shipped sources; all that test, test
DECAY = 0.99  # of the mean of weights, by update: it looks back on about 100
COLUMNS = ("option", "value", "seed", "val_mae", "test_mae", "train", "val", "test", "epochs", "seconds", "machine")


@dataclass(frozen=True)
class Trial:
    """Settings with at most one that is not the base's."""

    option: str
    value: str = ""
    graph: GraphConfig = GraphConfig()
    model: ModelConfig = ModelConfig()
    training: TrainConfig = TrainConfig()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of the data sets")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "trials.csv"
    done = {(row["option"], row["value"], row["seed"]) for row in read_rows(path)}
    load = functools.cache(lambda graph: crystals(options.data, options.out, graph))
    for seed in range(options.seeds):
        for trial in trials(TrainConfig(epochs=options.epochs, seed=seed)):
            if (trial.option, trial.value, str(seed)) not in done:
                for row in run(trial, *load(trial.graph)):
                    append_row(path, row)
                    print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    draw(read_rows(path), options.out / "trials.png")
    print(table(read_rows(path)))


def trials(base: TrainConfig) -> Iterator[Trial]:
    """The base, then each option's other values, then the mean of weights."""
    start = Trial(BASE, training=base)
    yield start
    for option, values in VALUES.items():
        part = next(f.name for f in fields(Trial) if option in getattr(f.default, "__dataclass_fields__", ()))
        for value in values:
            changed = replace(getattr(start, part), **{option: value})
            yield replace(start, option=option, value=f"{value}", **{part: changed})
    yield replace(start, option=MEAN, value=f"{DECAY}")


def crystals(data: Path, out: Path, graph: GraphConfig) -> tuple[CrystalDataset, Split, Target]:
    """A tenth of the training formulas, and more of the others than a tenth: errors on few crystals tell little."""
    source = read_sources()["mp-formation-energy"]
    whole = pack(source, data, out / f"packed-{graph.ties}", graph).dataset
    split = split_by_formula(whole.formulas)
    train = split.train[in_sample(whole.formulas, TRAIN)[split.train]]
    val = split.val[in_sample(whole.formulas, VAL)[split.val]]
    ends = np.cumsum([0, len(train), len(val), len(split.test)])
    rows = [np.arange(first, last) for first, last in zip(ends[:-1], ends[1:], strict=True)]
    return whole.select(np.concatenate([train, val, split.test])), Split(*rows), source.targets[0]


def run(trial: Trial, dataset: CrystalDataset, split: Split, target: Target) -> list[dict[str, Any]]:
    """A row of the table; two of a trial that compares the last weights with their mean."""
    began, training = time.perf_counter(), trial.training
    sizes = {"train": len(split.train), "val": len(split.val), "test": len(split.test), "epochs": training.epochs}
    if trial.option == MEAN:
        errors, value = averaged(dataset, split, target, trial.model, training), trial.value
        found = [(LAST, "", *errors[LAST]), (MEAN, value, *errors[MEAN])]
    else:
        metrics = fit(dataset, target, split=split, model=trial.model, config=training, progress=True).metrics
        found = [(trial.option, trial.value, metrics["val"]["mae"], metrics["test"]["mae"])]
    rest = {**sizes, "seconds": round(time.perf_counter() - began), "machine": processor()}
    return [
        {"option": option, "value": value, "seed": training.seed, "val_mae": val, "test_mae": test, **rest}
        for option, value, val, test in found
    ]


# --- the mean of weights ----------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=0)
def averaging_scan(
    program: Program, state: TrainState, mean: Variables, batches: Batch, hyper: Hyper
) -> tuple[TrainState, Variables]:
    """`train_step` over stacked batches, with an exponential mean of the weights and statistics after each update."""

    def update(state: TrainState, mean: Variables, batch: Batch) -> tuple[TrainState, Variables]:
        state, _ = train_step(program, state, batch, hyper)
        now = {"params": state.params, "batch_stats": state.batch_stats}
        return state, jax.tree.map(lambda old, new: DECAY * old + (1 - DECAY) * new, mean, now)

    def body(carry: tuple[TrainState, Variables], batch: Batch) -> tuple[tuple[TrainState, Variables], None]:
        return jax.lax.cond(holds_crystals(batch), lambda: update(*carry, batch), lambda: carry), None

    return jax.lax.scan(body, (state, mean), batches)[0]


def train_averaged(
    dataset: CrystalDataset, rows: np.ndarray, labels: np.ndarray, program: Program, config: TrainConfig
) -> tuple[Variables, Variables]:
    """The weights after the last update, as `train.train` makes them, and their exponential mean.

    Args:
        dataset: Packed crystals.
        rows: int [n_train].
        labels: float32 [n, n_target], normalised.
        program: Network and settings.
        config: How to train.
    """
    crystals = dataset.select(rows)
    budget = pad_budget(dataset.n_atom, dataset.n_row, min(config.batch_size, len(rows)), dataset.graph.places)
    sizes = crystals.n_atom, crystals.n_row
    plan = functools.partial(batch_plan, *sizes, budget, config.seed)
    length = epoch_length(*sizes, budget)
    updates = jnp.int32(config.epochs * len(plan(0)))
    hyper = Hyper(jnp.float32(config.learning_rate), updates, jnp.uint32(config.seed))
    mean = init_variables(program.model, example_graph(dataset), config.seed)
    state = init_state(program, mean)
    for epoch in range(config.epochs):
        for stacked in device_stacks(crystals, labels[rows], plan(epoch), budget, length):
            state, mean = averaging_scan(program, state, mean, stacked, hyper)
    return jax.device_get({"params": state.params, "batch_stats": state.batch_stats}), jax.device_get(mean)


def averaged(
    dataset: CrystalDataset, split: Split, target: Target, model: ModelConfig, config: TrainConfig
) -> dict[str, tuple[float, float]]:
    """Validation and test MAE of the last weights and of their mean."""
    targets = (target,)
    normaliser = losses.fit_normaliser(dataset.targets[split.train], targets)
    labels = losses.normalise(np.asarray(dataset.targets), targets, normaliser)
    network = build_network(model, 1, dataset.graph.places)
    last, mean = train_averaged(dataset, split.train, labels, Program(network, targets, config).static(), config)

    def mae(variables: Variables, rows: np.ndarray) -> float:
        said = losses.denormalise(network_outputs(network, variables, dataset.select(rows)), targets, normaliser)
        return float(np.mean(np.abs(said - dataset.targets[rows])))

    return {n: (mae(v, split.val), mae(v, split.test)) for n, v in ((LAST, last), (MEAN, mean))}


# --- the table and the picture ----------------------------------------------------------------------------------------


def read_rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def append_row(path: Path, row: dict[str, Any]) -> None:
    new = not path.is_file()
    with open(path, "a", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(row)


def changes(rows: list[dict[str, str]], column: str) -> dict[str, list[float]]:
    """Change against the base of the same seed, in per cent, one a seed, by what was changed."""
    base = {row["seed"]: float(row[column]) for row in rows if row["option"] == BASE}
    out: dict[str, list[float]] = {}
    for row in rows:
        if row["seed"] in base and row["option"] != BASE:
            name = f"{row['option'].replace('_', ' ')} {row['value']}".rstrip()
            out.setdefault(name, []).append(100 * (float(row[column]) / base[row["seed"]] - 1))
    return out


def table(rows: list[dict[str, str]]) -> str:
    """Mean changes against the base, as Markdown."""
    val, test = changes(rows, "val_mae"), changes(rows, "test_mae")
    lines = ["| changed | seeds | validation MAE | test MAE |", "|---|--:|--:|--:|"]
    lines += [
        f"| {name} | {len(val[name])} | {np.mean(val[name]):+.1f} % | {np.mean(test[name]):+.1f} % |" for name in val
    ]
    return "\n".join(lines).replace("-0.0 %", "0.0 %")


def draw(rows: list[dict[str, str]], path: Path) -> None:
    """One dot a seed: change of the validation MAE."""
    found = changes(rows, "val_mae")
    with picture(path, 6.5, 0.6 + 0.27 * len(found)) as figure:
        axes = figure.add_subplot()
        axes.axvline(0, color=GREY, linewidth=0.8, linestyle="--")
        for place, values in enumerate(found.values()):
            axes.plot(values, [place] * len(values), "o", color=BLUE, alpha=0.6)
            axes.plot([np.mean(values)], [place], "|", color=BLUE, markersize=14)
        axes.set_yticks(range(len(found)), found)
        axes.invert_yaxis()
        axes.set_xlabel("change of the validation MAE against the base (%): left is better")


if __name__ == "__main__":
    main()
