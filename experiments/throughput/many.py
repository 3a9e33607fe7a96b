"""Many runs at once: training speed of strategies with a frozen part, and of ten seeds in one call against ten calls.

    python experiments/throughput/many.py DATA/matbench_kvrh_subset/matbench_kvrh_subset.jsonl.gz --column log10_K_VRH

Medians of interleaved repetitions on 1,000 crystals; every speed includes what is computed once (the activations of the
frozen part). Writes many.csv and many.png beside this file, and cached.csv: whether networks whose frozen part is
computed once end where those do that compute it in every batch (`--only cached`: that alone). `--quick` only shows that
it works.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from tlcgcnn_jax.config import Target, TrainConfig
from tlcgcnn_jax.dataset import build_dataset
from tlcgcnn_jax.figure import BLUE, GREY, picture
from tlcgcnn_jax.files import write_table
from tlcgcnn_jax.fine_tuning import Job, fine_tune, start
from tlcgcnn_jax.losses import fit_normaliser
from tlcgcnn_jax.machine import processor
from tlcgcnn_jax.many import Run, train_many
from tlcgcnn_jax.model import build_network
from tlcgcnn_jax.outputs import network_outputs
from tlcgcnn_jax.splits import random_split
from tlcgcnn_jax.strategies import find_strategy
from tlcgcnn_jax.train import Program, Trained
from tlcgcnn_jax.zoo import load_model

HERE = Path(__file__).parent
# Name, strategy, whether the frozen part is computed once.
CASES = (
    ("full", "full", True),
    ("freeze:conv_1", "freeze:conv_1", True),
    ("freeze:conv_1, not cached", "freeze:conv_1", False),
    ("frozen", "frozen", True),
    ("frozen, not cached", "frozen", False),
    ("head", "head", True),
)
FIELDS = ("what", "crystals_per_second", "low", "high", "ratio", "to", "crystals", "epochs", "repetitions", "machine")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--column", required=True)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--only", choices=("cached",))
    parser.add_argument("--quick", action="store_true", help="a few crystals, nothing is written")
    options = parser.parse_args()
    source, target = load_model("mp-formation-energy"), Target(options.column)
    dataset = build_dataset(options.data, targets=(options.column,), graph=source.graph, on_error="skip")
    size, epochs, repetitions = (60, 2, 1) if options.quick else (1000, 30, options.repetitions)
    split = random_split(len(dataset), 0, size, size // 10, 0)
    dataset = dataset.select(np.concatenate([split.train, split.val]))
    train, val = np.arange(size), np.arange(size, len(dataset))
    config = TrainConfig(epochs=epochs, batch_size=32, learning_rate=2e-3)

    def strategy(name: str, cache: bool) -> Callable[[], list[Trained]]:
        way, job = find_strategy(name), [Job(train, val, 0, 2e-3)]
        ready = [start(dataset, (target,), way, [source], job[0])]
        return lambda: fine_tune(dataset, (target,), way, [source], job, config, starts=ready, cache=cache)

    equal = []
    network = build_network(source.model, 1, dataset.graph.places)
    for name in ("freeze:conv_1", "frozen", "head"):
        pair = [strategy(name, cache)()[0] for cache in (True, False)]
        said = [network_outputs(network, one.variables, dataset.select(val)) for one in pair]
        scores = [one.best_score for one in pair]
        equal.append(
            {"strategy": name, "epochs": epochs, "validation_error_cached": scores[0], "validation_error": scores[1],
             "largest_difference_of_predictions": float(np.abs(said[0] - said[1]).max()), "crystals": size}
        )  # fmt: skip
        print(equal[-1])
    if not options.quick:
        write_table(HERE / "cached.csv", equal, digits=6)
    if options.only:
        return
    rows = measured({name: strategy(way, cache) for name, way, cache in CASES}, repetitions, size * epochs, "full")

    few = replace(config, epochs=max(1, epochs // 10))
    normaliser, full = fit_normaliser(dataset.targets[train], (target,)), find_strategy("full")
    runs = []
    for seed in range(2 if options.quick else 10):
        begun = start(dataset, (target,), full, [source], Job(train, val, seed, 2e-3))
        runs.append(Run(train, val, begun.variables, normaliser, 2e-3, seed))
    program = Program(source.network, (target,), few)
    work = len(runs) * size * few.epochs
    ways = {
        "ten seeds in turn": lambda: [train_many(dataset, [run], program, few) for run in runs],
        "ten seeds in one call": lambda: train_many(dataset, runs, program, few),
    }
    if jax.default_backend() == "cpu":
        ways["ten seeds mapped"] = lambda: train_many(dataset, runs, program, few, together=len(runs))
    rows += [{"epochs": few.epochs} | row for row in measured(ways, max(1, repetitions - 2), work, "ten seeds in turn")]
    told = {"crystals": size, "epochs": epochs, "machine": processor()}
    rows = [told | row for row in rows]
    for row in rows:
        print({name: row[name] for name in FIELDS})
    if not options.quick:
        write_table(HERE / "many.csv", rows, FIELDS)
        draw(rows)


def measured(
    ways: dict[str, Callable[[], object]], repetitions: int, work: int, reference: str
) -> list[dict[str, object]]:
    """Crystals a second of each way, repetitions interleaved after one that compiles."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repetition in range(repetitions + 1):
        for name, run in ways.items():
            began = time.perf_counter()
            run()
            if repetition:
                seconds[name].append(time.perf_counter() - began)
    median = {name: float(np.median(values)) for name, values in seconds.items()}
    return [
        {
            "what": name, "crystals_per_second": round(work / median[name]), "low": round(work / max(seconds[name])),
            "high": round(work / min(seconds[name])), "ratio": round(median[reference] / median[name], 2),
            "to": reference, "repetitions": repetitions,
        }
        for name in ways
    ]  # fmt: skip


def draw(rows: list[dict[str, object]]) -> None:
    """Speeds as bars, with the ratio to the reference beside each."""
    with picture(HERE / "many.png", 7.2, 0.6 + 0.38 * len(rows)) as figure:
        axes = figure.add_subplot()
        speeds = [float(str(row["crystals_per_second"])) for row in rows]
        colours = [GREY if row["what"] == row["to"] else BLUE for row in rows]
        axes.barh(range(len(rows)), speeds, color=colours, height=0.65)
        for place, (row, speed) in enumerate(zip(rows, speeds, strict=True)):
            axes.text(speed * 1.05, place, f"{speed:,.0f}  ({row['ratio']} × {row['to']})", va="center", fontsize=8)
        axes.set_yticks(range(len(rows)), [str(row["what"]) for row in rows])
        axes.set(xscale="log", xlabel="Crystals a second", xlim=(min(speeds) / 2, max(speeds) * 12))
        axes.invert_yaxis()


if __name__ == "__main__":
    main()
