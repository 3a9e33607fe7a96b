"""Error of the transferred networks against the size of the source, with the slope of a power law.

    python experiments/source_size/slope.py STUDY

Writes errors.csv, slopes.csv and source_size.png into the study's folder, or into --out.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from tlcgcnn_jax.figure import BLUE, GREY, VERMILLION, labelled, log_axis, picture, plain, short
from tlcgcnn_jax.files import write_table
from tlcgcnn_jax.results import Row, StudyResults
from tlcgcnn_jax.statistics import mean_interval
from tlcgcnn_jax.study_desk import Desk

COLOURS = (BLUE, VERMILLION, "#009E73", "#B0568C")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="folder of the finished study")
    parser.add_argument("--out", type=Path, help="folder for the tables and the picture (default: the study's)")
    options = parser.parse_args()
    out = options.out or options.study
    desk = Desk(options.study)
    errors, slopes = tables(desk.results, source_errors(desk))
    write_table(out / "errors.csv", errors, digits=5)
    write_table(out / "slopes.csv", slopes, digits=5)
    draw(errors, slopes, out / "source_size.png")
    for row in slopes:
        print("{target}, {strategy}: slope {slope:.3f} ({low:.3f} to {high:.3f})".format(**row))


def source_errors(desk: Desk) -> dict[int, float]:
    """The sources' own test errors by training size, in the unit of their property."""
    return {size: float(model.metrics["test"]["mae"]) for (_, size), model in desk.alone.items()}


def tables(results: StudyResults, source_mae: dict[int, float]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Errors at each size of the source, and the slope of log error against log size for each target and strategy.

    The slope is that of the least-squares line of each seed; its interval is over the seeds, which differ in all
    crystals and in the training.
    """
    errors: list[dict[str, Any]] = []
    slopes: list[dict[str, Any]] = []
    for target, unit in results.targets.items():
        scratch = mean_interval([row.test_mae for row in results.select(target=target, kind="scratch")])
        grown = [row for row in results.select(target=target, kind="transfer") if row.source_size]
        for strategy in dict.fromkeys(row.strategy for row in grown):
            sizes, by_seed = curves([row for row in grown if row.strategy == strategy])
            for size, found in zip(sizes, np.array(list(by_seed.values())).T, strict=True):
                mae = mean_interval(found)
                errors.append({
                    "target": target, "unit": unit, "strategy": strategy, "source_size": size,
                    "source_mae": source_mae.get(size, float("nan")), "n_seeds": len(found), "mae": mae.mean,
                    "low": mae.low, "high": mae.high, "scratch_mae": scratch.mean,
                    "gain_percent": 100 * (1 - mae.mean / scratch.mean),
                })  # fmt: skip
            if len(sizes) > 1:
                slope = mean_interval([np.polyfit(np.log(sizes), np.log(mae), 1)[0] for mae in by_seed.values()])
                slopes.append({
                    "target": target, "strategy": strategy, "sizes": len(sizes), "n_seeds": len(by_seed),
                    "slope": slope.mean, "low": slope.low, "high": slope.high,
                    "percent_per_tenfold": 100 * (10**slope.mean - 1),
                })  # fmt: skip
    return errors, slopes


def curves(rows: list[Row]) -> tuple[list[int], dict[int, list[float]]]:
    """Sizes of the source, and the errors at all of them for each seed that has been run with every size."""
    sizes = sorted({row.source_size for row in rows})
    found: dict[int, dict[int, float]] = {}
    for row in rows:
        found.setdefault(row.seed, {})[row.source_size] = row.test_mae
    return sizes, {seed: [mae[size] for size in sizes] for seed, mae in found.items() if len(mae) == len(sizes)}


def draw(errors: list[dict[str, Any]], slopes: list[dict[str, Any]], path: Path) -> None:
    """A panel a target: errors with their intervals over seeds, the fitted lines, and scratch as the level to beat."""
    targets = list(dict.fromkeys(row["target"] for row in errors))
    with picture(path, 4.2 * len(targets), 4.4) as figure:
        for number, target in enumerate(targets, 1):
            axes, mine = figure.add_subplot(1, len(targets), number), [row for row in errors if row["target"] == target]
            scratch = mine[0]["scratch_mae"]
            axes.axhline(scratch, color=GREY, linestyle=(0, (4, 2)), label="scratch")
            sizes, values = sorted({row["source_size"] for row in mine}), [scratch]
            for place, strategy in enumerate(dict.fromkeys(row["strategy"] for row in mine)):
                own, colour = [row for row in mine if row["strategy"] == strategy], COLOURS[place % len(COLOURS)]
                x, mae, low, high = (np.array([row[k] for row in own]) for k in ("source_size", "mae", "low", "high"))
                # An interval of few seeds may reach below zero or far up; it must not flatten all lines.
                values += [*mae, *np.fmax(low, mae / 2), *np.fmin(high, mae * 2)]
                ends = np.nan_to_num([mae - low, high - mae])
                beside = x * 1.04**place  # so that no interval hides another
                axes.errorbar(beside, mae, ends, color=colour, marker="o", markersize=5, linestyle="none", capsize=3)
                label = strategy
                for fit in (row for row in slopes if (row["target"], row["strategy"]) == (target, strategy)):
                    middle = np.exp(np.log(mae).mean() + fit["slope"] * (np.log(x) - np.log(x).mean()))
                    axes.plot(beside, middle, color=colour, linewidth=1.5)
                    label += f", slope {fit['slope']:.2f} ({fit['low']:.2f} to {fit['high']:.2f})"
                axes.plot([], [], "o-", color=colour, label=label.replace("-", "−"))
            log_axis(axes, "x", sizes[0], sizes[-1])
            log_axis(axes, "y", min(values), max(values))
            axes.set_ylim(min(values) / 1.05, max(values) * 1.05)
            axes.set_xticks(sizes, [short(size) for size in sizes])
            axes.set_xticks([], minor=True)
            axes.set(title=plain(target), xlabel="Formation energies that the source learnt",
                     ylabel=labelled("Test MAE", "", mine[0]["unit"]))  # fmt: skip
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), fontsize=8.5)


if __name__ == "__main__":
    main()
