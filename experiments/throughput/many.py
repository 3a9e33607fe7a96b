"""Measure fine-tuning: what a frozen prefix saves, and many seeds in one call against as many calls.

    python experiments/throughput/many.py DATA/elastic_mp/elastic_mp.jsonl.gz k_vrh_GPa
    python experiments/throughput/many.py CRYSTALS COLUMN --quick    # tiny sizes; its times mean nothing

CRYSTALS is anything that `build_dataset` reads, COLUMN a regression target in it. The ways take turns (A B C A B C …)
after a warm-up that compiles, and a ratio is taken turn by turn; the table shows the median.
"""

import argparse
import csv
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from run import machine
from table import Row, seconds, times

from tlcgcnn_jax import figure
from tlcgcnn_jax.bundle import Model
from tlcgcnn_jax.config import FINE_TUNING, ModelConfig, Target
from tlcgcnn_jax.dataset import CrystalDataset, build_dataset
from tlcgcnn_jax.fine_tuning import Job, fine_tune
from tlcgcnn_jax.losses import Normaliser
from tlcgcnn_jax.model import init_variables
from tlcgcnn_jax.strategies import find_strategy
from tlcgcnn_jax.train import example_graph

HERE = Path(__file__).parent
STRATEGIES = ("full", "head_then_full", "frozen", "head", "freeze:conv_1")
UNCACHED = ("frozen", "head", "freeze:conv_1")
FROZEN_TARGET, ACCELERATOR_TARGET, CPU_TARGET = 8.0, 5.0, 1.0
COLUMNS = (
    "section", "name", "crystals_per_s", "seconds", "ratio", "ratio_min", "ratio_max", "target", "crystals", "epochs",
    "seeds", "repetitions", "dataset", "cpu", "cores", "device", "jax",
)  # fmt: skip
MARKS = "<!-- fine-tuning -->", "<!-- end of fine-tuning -->"


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    crystals: int = 1000  # that are trained on
    validated: int = 100
    epochs: int = 30
    few: int = 100  # crystals of the runs with many seeds
    seeds: int = 10
    repetitions: int = 5
    model: ModelConfig = ModelConfig()


QUICK = Sizes(24, 6, 2, 12, 3, 2, ModelConfig(width=8, head_width=8, convolutions=3))


def read(path: Path, column: str, n: int) -> CrystalDataset:
    """Some crystals that have a label, chosen with a fixed seed."""
    dataset = build_dataset(path, targets=(column,))
    known = np.flatnonzero(np.isfinite(dataset.targets[:, 0]))
    if len(known) < n:
        raise SystemExit(f"{path}: {len(known)} crystals with a label in {column}, {n} needed")
    return dataset.select(np.sort(np.random.default_rng(0).choice(known, n, replace=False)))


def untrained(dataset: CrystalDataset, sizes: ModelConfig, target: Target) -> Model:
    """A source: what it has learnt takes no time, so it has learnt nothing."""
    none = Normaliser(np.zeros(1, np.float32), np.ones(1, np.float32))
    model = Model(dataset.graph, sizes, (target,), none, ())
    return replace(model, members=(jax.device_get(init_variables(model.network, example_graph(dataset), 0)),))


def take_turns(repetitions: int, calls: dict[str, Callable[[], Any]]) -> dict[str, np.ndarray]:
    """Seconds of every call, turn by turn; the first turn compiles and does not count."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repetitions + 1):
        for name, call in calls.items():
            gc.collect()
            began = time.perf_counter()
            call()
            spent[name].append(time.perf_counter() - began)
    return {name: np.array(values[1:]) for name, values in spent.items()}


def row(section: str, name: str, spent: np.ndarray, base: np.ndarray, target: float | None, **sizes: int) -> Row:
    ratios = base / spent
    crystals = sizes["crystals"] * sizes["epochs"] * sizes["seeds"]
    return {
        "section": section, "name": name, "crystals_per_s": float(np.median(crystals / spent)),
        "seconds": float(np.median(spent)), "ratio": float(np.median(ratios)), "ratio_min": float(ratios.min()),
        "ratio_max": float(ratios.max()), "target": target, **sizes, "repetitions": len(spent),
    }  # fmt: skip


def strategies(dataset: CrystalDataset, target: Target, sizes: Sizes) -> list[Row]:
    """One run of each strategy, the computation of what is frozen included, against `full`."""
    source, config = untrained(dataset, sizes.model, target), replace(FINE_TUNING, epochs=sizes.epochs)
    rows = np.random.default_rng(1).permutation(len(dataset))
    job = Job(rows[: sizes.crystals], rows[sizes.crystals :], seed=0, learning_rate=config.learning_rate)

    def call(name: str, cache: bool) -> Callable[[], Any]:
        strategy = find_strategy(name, convolutions=sizes.model.convolutions)
        return lambda: fine_tune(dataset, (target,), strategy, [source], [job], config, cache=cache)

    calls = {name: call(name, True) for name in STRATEGIES}
    calls |= {f"{name}, nothing cached": call(name, False) for name in UNCACHED}
    spent = take_turns(sizes.repetitions, calls)
    targets = dict.fromkeys(("frozen", "head"), FROZEN_TARGET)
    counts = {"crystals": sizes.crystals, "epochs": sizes.epochs, "seeds": 1}
    return [row("strategy", name, each, spent["full"], targets.get(name), **counts) for name, each in spent.items()]


def seeds(dataset: CrystalDataset, target: Target, sizes: Sizes) -> list[Row]:
    """All seeds in one call, against a call for each."""
    rows = np.random.default_rng(2).permutation(len(dataset))[: sizes.few + sizes.validated]
    # A call for one seed would pack no others: both sides see the same crystals.
    dataset, order = dataset.select(np.sort(rows)), np.random.default_rng(3).permutation(len(rows))
    source, config = untrained(dataset, sizes.model, target), replace(FINE_TUNING, epochs=sizes.epochs)
    jobs = [
        Job(order[: sizes.few], order[sizes.few :], seed=seed, learning_rate=config.learning_rate)
        for seed in range(sizes.seeds)
    ]
    counts = {"crystals": sizes.few, "epochs": sizes.epochs, "seeds": sizes.seeds}
    aim = CPU_TARGET if jax.default_backend() == "cpu" else ACCELERATOR_TARGET
    out = []
    for name in ("full", "frozen"):
        strategy = find_strategy(name, convolutions=sizes.model.convolutions)

        def tuned(some: Sequence[Job], strategy: Any = strategy) -> Any:
            return fine_tune(dataset, (target,), strategy, [source], some, config)

        spent = take_turns(
            sizes.repetitions,
            {
                "one call": lambda tuned=tuned: tuned(jobs),
                "a call for each": lambda tuned=tuned: [tuned([job]) for job in jobs],
            },
        )
        out += [
            row("seeds", f"{name}, {sizes.seeds} seeds, {what}", each, spent["a call for each"],
                aim if what == "one call" else None, **counts)
            for what, each in spent.items()
        ]  # fmt: skip
    return out


def write(rows: Sequence[Row], folder: Path) -> None:
    """many.csv, many.png, and the table in the README where there is one with `MARKS`."""
    with (folder / "many.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in one.items()} for one in rows)
    first = rows[0]
    lines = [
        f"{first['dataset']}: {first['cpu']}, {first['cores']} cores, device {first['device']}, jax {first['jax']}"
    ]
    lines += ["", "| section | what | crystals/s | time | times as fast (lowest–highest) | target | turns |"]
    lines += ["|---|---|--:|--:|--:|--:|--:|"]
    for one in rows:
        span = f"**{times(one['ratio'])}** ({times(one['ratio_min'])}–{times(one['ratio_max'])})"
        aim = f"≥ {one['target']:g}" if one["target"] else ""
        lines.append(
            f"| {one['section']} | {one['name']} | {one['crystals_per_s']:,.0f} | {seconds(one['seconds'])} | {span} "
            f"| {aim} | {one['repetitions']} |"
        )
    table = "\n".join(lines) + "\n"
    print(table)
    readme = folder / "README.md"
    if readme.exists() and MARKS[0] in readme.read_text():
        before, _, rest = readme.read_text().partition(MARKS[0])
        readme.write_text(f"{before}{MARKS[0]}\n\n{table}\n{MARKS[1]}{rest.partition(MARKS[1])[2]}")
    draw(rows, folder / "many.png")


def draw(rows: Sequence[Row], path: Path) -> None:
    """Crystals per second of each way as a bar, a panel for each section; the ratio stands at its end."""
    parts = [[one for one in rows if one["section"] == name][::-1] for name in ("strategy", "seeds")]
    with figure.picture(path, 9.0, 1.6 + 0.36 * len(rows)) as drawing:
        panels = drawing.subplots(2, 1, height_ratios=[len(part) for part in parts])
        for axes, part in zip(panels, parts, strict=True):
            speed = np.array([one["crystals_per_s"] for one in part])
            height = np.arange(len(part))
            axes.barh(height, speed, height=0.6, color=figure.BLUE)
            axes.set_yticks(height, [one["name"] for one in part], fontsize=8)
            for y, one in enumerate(part):
                aim = f" (target ≥ {one['target']:g})" if one["target"] else ""
                axes.text(speed[y] + 0.01 * speed.max(), y, f"× {times(one['ratio'])}{aim}", va="center", fontsize=8)
            axes.set_xlim(0, 1.25 * speed.max())
            axes.xaxis.set_major_formatter(figure.short)
            axes.set_xlabel("crystals trained on per second, what is computed once included")
        panels[0].set_title("One run of each strategy; × full")
        panels[1].set_title("Many seeds of one strategy; × a call for each")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("crystals", type=Path, help="crystals with labels")
    parser.add_argument("column", help="the target")
    parser.add_argument("--quick", action="store_true", help="tiny sizes; written to runs/throughput")
    parser.add_argument("--out", type=Path, help="folder of the results (default: that of this script)")
    options = parser.parse_args()
    sizes = QUICK if options.quick else Sizes()
    out = options.out or (Path("runs/throughput") if options.quick else HERE)
    out.mkdir(parents=True, exist_ok=True)
    dataset, target = read(options.crystals, options.column, sizes.crystals + sizes.validated), Target(options.column)
    rows = strategies(dataset, target, sizes) + seeds(dataset, target, sizes)
    where = {"dataset": options.crystals.name, **machine()}
    write([one | where for one in rows], out)


if __name__ == "__main__":
    main()
