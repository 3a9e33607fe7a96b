"""The folds of matbench's bulk moduli, on the rows that are at hand: from scratch and transferred.

    python experiments/matbench/run.py DATA --out OUT [--strategy auto] [--folds 5]

For each fold the other folds' rows are given; a seeded tenth of them, by formula, validates, and the fold's rows are
predicted once. OUT/WAY/fold_K.json holds a finished fold, and the same command goes on with the others;
OUT/WAY/results.json.gz holds all of them as matbench writes results, OUT/results.csv the errors and OUT/folds.png
their picture.
"""

import argparse
import fnmatch
import gzip
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tlcgcnn_jax.bundle import Model
from tlcgcnn_jax.config import GraphConfig, Target, TrainConfig, to_dict
from tlcgcnn_jax.figure import GREY, INK, VERMILLION, picture
from tlcgcnn_jax.files import to_json, write_table, write_whole
from tlcgcnn_jax.graph_sets import GraphSets, pack_graphs
from tlcgcnn_jax.machine import processor, versions
from tlcgcnn_jax.run import Result, fit, transfer
from tlcgcnn_jax.splits import Split, overlap, random_split
from tlcgcnn_jax.zoo import find_sources

SET = "matbench_kvrh_subset/matbench_kvrh_subset.jsonl.gz"
TARGET, FOLD = Target("log10_K_VRH", unit="log10 GPa"), "matbench_fold"
BENCHMARK, TASK = "matbench_v0.1", "matbench_log_kvrh"
OWN_PROPERTY = ("*elastic*", "*kvrh*", "*gvrh*", "*bulk_modulus*")  # sources that learnt moduli
SCRATCH = "scratch"
PUBLISHED = {"CGCNN": 0.0712, "best of the leaderboard": 0.0491}  # MAE of all 10,987 rows
NETWORKS, CONFIG = 3, TrainConfig(epochs=50, batch_size=64, learning_rate=3e-3)  # of both ways


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--strategy", default="auto", help="of transfer (default: %(default)s)")
    parser.add_argument("--folds", type=int, default=5, help="the first so many of the five (default: %(default)s)")
    options = parser.parse_args()
    sources = {name: model for name, model in find_sources().items() if not knows_moduli(name)}
    print(f"sources: {', '.join(sources)}")
    crystals = pack_graphs(
        options.data / SET, [GraphConfig(), *(model.graph for model in sources.values())], targets=(TARGET.name, FOLD)
    )
    ways = (SCRATCH, options.strategy)
    for way in ways:
        (options.out / folder(way)).mkdir(parents=True, exist_ok=True)
    for number in range(options.folds):
        for way in ways:
            path = options.out / folder(way) / f"fold_{number}.json"
            if not path.is_file():
                write_whole(path, to_json(run_fold(crystals, number, way, sources), indent=1).encode())
            print(
                f"fold {number}, {way}: MAE {json.loads(path.read_text())['scores']['mae']:.4f} log10 GPa", flush=True
            )
    write_results(options.out, ways)


def knows_moduli(source: str) -> bool:
    """Whether a source learnt the very property, or its sister."""
    return any(fnmatch.fnmatchcase(source, pattern) for pattern in OWN_PROPERTY)


def folder(way: str) -> str:
    """A way's folder."""
    return way.replace(":", "_")


def fold_split(folds: np.ndarray, formulas: list[str], number: int) -> Split:
    """The rows of a fold to test; of the others a seeded tenth, by formula, to validate."""
    given = np.flatnonzero(folds != number)
    inner = random_split(len(given), number, 0.9, 0.1, 0.0, groups=[formulas[row] for row in given])
    return Split(given[inner.train], given[inner.val], np.flatnonzero(folds == number))


def run_fold(crystals: GraphSets, number: int, way: str, sources: dict[str, Model]) -> dict[str, Any]:
    """Train on what is given, predict the fold once: data, parameters and scores in matbench's form."""
    began, first = time.perf_counter(), crystals.datasets[0]
    labels, folds = np.asarray(first.targets, float).T
    split, config = fold_split(folds, first.formulas, number), replace(CONFIG, seed=1000 * number)
    if way == SCRATCH:
        result = fit(crystals, TARGET, split=split, config=config, seeds=NETWORKS)
    else:
        result = transfer(
            crystals, sources, way, TARGET, split=split, deal=True, config=config, seeds=NETWORKS, tell=print
        )
    predicted = result.predictions.values[split.test, 0]
    given = np.concatenate([split.train, split.val])
    trained_on, tested = ([first.formulas[row] for row in rows.tolist()] for rows in (given, split.test))
    seen = overlap(trained_on, tested)  # matbench's folds part rows, not formulas
    return {
        "data": {first.ids[row]: float(value) for row, value in zip(split.test, predicted, strict=True)},
        "parameters": {
            **parameters(result, way, config),
            "given": len(given),
            "of_them_to_validate": len(split.val),
            "test_formulas_given_too": seen._asdict(),
            "seconds": round(time.perf_counter() - began),
            "machine": processor(),
            "versions": versions(),
        },
        "scores": scores(labels[split.test], predicted),
    }


def parameters(result: Result, way: str, config: TrainConfig) -> dict[str, Any]:
    """The settings of a fold, what was chosen by validation, and which share of the test formulas a source knows."""
    chosen = {name: value for name, value in result.model.notes.items() if name not in ("versions", "verb")}
    return {
        "strategy": way, "networks": NETWORKS, "training": to_dict(config), "chosen": chosen,
        "test_formulas_known_to_sources": result.overlap,
    }  # fmt: skip


def scores(labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Matbench's four errors; the relative one leaves out labels below 1e-5, as matbench does."""
    error, told = predicted - labels, np.abs(labels) > 1e-5
    return {
        "mae": float(np.abs(error).mean()),
        "rmse": float(np.sqrt((error**2).mean())),
        "mape": float(np.abs(error[told] / labels[told]).mean()),
        "max_error": float(np.abs(error).max()),
    }


def write_results(out: Path, ways: tuple[str, ...]) -> None:
    """All finished folds of each way: in matbench's form, and a row a fold of errors."""
    rows = []
    for way in ways:
        found = {path.stem: json.loads(path.read_text()) for path in sorted((out / folder(way)).glob("fold_*.json"))}
        whole = {
            "@module": "matbench.bench",
            "@class": "MatbenchBenchmark",
            "benchmark_name": BENCHMARK,
            "user_metadata": {
                "algorithm": f"tlcgcnn_jax, {way}",
                "subset": "6,011 of the 10,987 rows of the task: a fold's data hold the ids that were at hand",
            },
            "tasks": {
                TASK: {
                    "@module": "matbench.task",
                    "@class": "MatbenchTask",
                    "benchmark_name": BENCHMARK,
                    "dataset_name": TASK,
                    "results": found,
                }
            },
        }
        write_whole(out / folder(way) / "results.json.gz", gzip.compress(to_json(whole).encode(), mtime=0))
        rows += [
            {"way": way, "fold": fold, "n": len(one["data"]), **one["scores"], "seconds": one["parameters"]["seconds"]}
            for fold, one in found.items()
        ]
        mae = [one["scores"]["mae"] for one in found.values()]
        print(f"{way}: mean MAE of {len(mae)} folds {np.mean(mae):.4f} ± {np.std(mae, ddof=1):.4f} log10 GPa")
    write_table(out / "results.csv", rows, digits=5)
    draw(out / "folds.png", rows, ways)


def draw(path: Path, rows: Sequence[Mapping[str, Any]], ways: Sequence[str]) -> None:
    """The error of each fold by way, with those published for the whole task as lines."""
    with picture(path, 6.6, 2.6) as figure:
        axes = figure.add_subplot()
        for place, (way, colour) in enumerate(zip(ways, (GREY, VERMILLION), strict=False)):
            mae = [row["mae"] for row in rows if row["way"] == way]
            axes.scatter(mae, [place] * len(mae), s=46, color=colour, alpha=0.6, linewidth=0)
            axes.scatter(np.mean(mae), place, s=260, marker="|", color=colour, linewidth=2.5)
        for name, value in PUBLISHED.items():
            axes.axvline(value, color=INK, linewidth=1, linestyle="--")
            axes.annotate(f"{name}, all rows", (value, 1), xycoords=("data", "axes fraction"), xytext=(0, 4),
                          textcoords="offset points", ha="center", fontsize=9)  # fmt: skip
        axes.set(xlabel="test MAE of a fold (log10 GPa), mean as a bar", ylim=(-0.6, len(ways) - 0.4))
        axes.set_yticks(range(len(ways)), ways)


if __name__ == "__main__":
    main()
