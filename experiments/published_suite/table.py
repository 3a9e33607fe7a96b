"""The tables and the picture of README.md, from the studies and the published results.

    python experiments/published_suite/table.py DATA RUNS

RUNS is the folder of run.py. Writes, beside this file: runs.csv (every run), table.csv (means over the splits),
README.md between its marks, and errors.png.
"""

import argparse
import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

import numpy as np

from tlcgcnn_jax.figure import BLUE, GREY, INK, VERMILLION, log_axis, picture
from tlcgcnn_jax.files import write_table, write_whole
from tlcgcnn_jax.study_config import StudyTarget, read_study, target_name

HERE = Path(__file__).parent
# Where the sources come from.
STRATEGIES, SHIPPED, ENERGIES = "shipped, one network", "shipped", "energies too"
MORE, OWN = "checkpoints too", "own property"
PLACES = {STRATEGIES: "strategies/results.csv", SHIPPED: "shipped/results.csv", ENERGIES: "energies/results.csv",
          MORE: "checkpoints/results.csv", OWN: "own_property.csv"}  # fmt: skip
PUBLISHED = ("CGCNN", "MoE-(18)", "JMP-FT", "MoMa (Full)")
RUN_FIELDS = ("target", "source", "strategy", "kind", "size", "seed", "learning_rate", "epochs", "updates", "val_mae",
              "test_mae", "test_median_ae", "test_n", "overlap", "seconds", "machine")  # fmt: skip
BEGIN, END = "<!-- written by table.py -->", "<!-- end -->"
SCRATCH, AUTO = (STRATEGIES, "", "scratch"), (SHIPPED, "all", "auto")
AUTO_ENERGIES, AUTO_MORE = (ENERGIES, "all", "auto"), (MORE, "all", "auto")
BESIDE = {"auto, shipped sources": 0.15, "auto, checkpoints too": -0.15}  # of a line of the picture

Way = tuple[str, str, str]  # where its sources come from, source, strategy
Published = Mapping[str, Mapping[str, float]]  # test MAE by task and method


class Mean(NamedTuple):
    """Of the runs of one way on one task: test MAE and median absolute error over the splits."""

    size: int
    splits: int
    mae: float
    mae_std: float
    median: float
    median_std: float


Means = Mapping[tuple[str, Way], Mean]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with moe/published_results.json")
    parser.add_argument("runs", type=Path, help="folder of run.py")
    parser.add_argument("--out", type=Path, default=HERE, help="(default: this file's folder)")
    options = parser.parse_args(arguments)
    targets = {target_name(target): target for target in read_study(HERE / "study.toml").targets}
    published = read_published(options.data / "moe" / "published_results.json")
    runs = read_runs(options.runs)
    means = summarise(runs)
    write_table(options.out / "runs.csv", runs, ("sources", *RUN_FIELDS), digits=6)
    rows = [
        {"task": task, "sources": way[0], "source": way[1], "strategy": way[2], **mean._asdict()}
        for (task, way), mean in means.items()
    ]
    write_table(options.out / "table.csv", rows, ("task", "sources", "source", "strategy", *Mean._fields), digits=6)
    picture_link = "![Errors relative to the published CGCNN](errors.png)\n"
    parts = [main_table(targets, means, published), bars(means, published), picture_link]
    text = "\n".join([*parts, *all_ways(targets, means, published)])
    readme = options.out / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    write_whole(readme, f"{before}{BEGIN}\n\n{text}\n{END}{rest.partition(END)[2]}".encode())
    draw(options.out / "errors.png", list(targets), means, published)


def read_published(path: Path) -> Published:
    """Published test MAEs; tasks without any are absent."""
    tasks = json.loads(path.read_text())["tasks"]
    return {
        task: {method: one["test_mae"][method]["mean"] for method in PUBLISHED}
        for task, one in tasks.items()
        if "test_mae" in one
    }


def read_runs(folder: Path) -> list[dict[str, str]]:
    """The rows of all finished studies, and of own_property.py if it was run."""
    runs: list[dict[str, str]] = []
    for sources, place in PLACES.items():
        finished = sources == OWN or (folder / place).with_name("comparisons.csv").is_file()
        if finished and (folder / place).is_file():
            with open(folder / place, newline="") as handle:
                runs += [{"sources": sources, **row} for row in csv.DictReader(handle)]
    return runs


def summarise(runs: Sequence[Mapping[str, str]]) -> Means:
    """Means over the splits."""
    groups: dict[tuple[str, Way], list[Mapping[str, str]]] = {}
    for run in runs:
        groups.setdefault((run["target"], (run["sources"], run["source"], run["strategy"])), []).append(run)
    return {key: mean_of(rows) for key, rows in groups.items()}


def mean_of(rows: Sequence[Mapping[str, str]]) -> Mean:
    maes, medians = ([float(row[name]) for row in rows] for name in ("test_mae", "test_median_ae"))
    mae_std, median_std = (stdev(values) if len(values) > 1 else math.nan for values in (maes, medians))
    return Mean(int(rows[0]["size"]), len(rows), fmean(maes), mae_std, fmean(medians), median_std)


def main_table(targets: Mapping[str, StudyTarget], means: Means, published: Published) -> str:
    """A row a task: ours between the published ones, the lowest in bold."""
    ours = {"scratch": SCRATCH, "`auto`, shipped sources": AUTO, "`auto`, energies too": AUTO_ENERGIES,
            "`auto`, checkpoints too": AUTO_MORE}  # fmt: skip
    ours = {name: way for name, way in ours.items() if way == SCRATCH or any(run == way for _, run in means)}
    header = ["test MAE", "train", "CGCNN", "scratch", *PUBLISHED[1:], *list(ours)[1:]]
    lines = [f"| {' | '.join(header)} |", f"|---|--:|{'--:|' * (len(header) - 2)}"]
    for task, target in targets.items():
        values: dict[str, float] = dict(published.get(task, {}))
        values |= {name: means[task, way].mae for name, way in ours.items() if (task, way) in means}
        best = min(values.values(), default=math.nan)
        cells = []
        for name in header[2:]:
            text = told(means, task, ours[name]) if name in ours else number(values.get(name, math.nan))
            cells.append(f"**{text}**" if values.get(name) == best else text)
        size = next((f"{mean.size:,}" for (one, _), mean in means.items() if one == task), "–")
        lines.append(f"| {named(task, target)} | {size} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def bars(means: Means, published: Published) -> str:
    """On how many tasks a way is below a published one, and on how many it should be."""
    lines = []
    for name, ways, method, wanted in (
        ("scratch", (SCRATCH,), "CGCNN", 9),
        *((f"`auto` with {sources}", ways, method, wanted)
          for sources, ways in (("shipped sources", (AUTO,)), ("energies too", (AUTO_ENERGIES, AUTO)),
                                ("checkpoints added", (AUTO_MORE,)))
          for method, wanted in (("MoE-(18)", 10), ("JMP-FT", 5), ("MoMa (Full)", 1))),
    ):  # fmt: skip
        if not any((task, ways[0]) in means for task in published):
            continue
        # Of the ways the first that a task has.
        found = {task: next((means[task, way] for way in ways if (task, way) in means), None) for task in published}
        maes = {task: mean.mae for task, mean in found.items() if mean}
        lost = [task for task, mae in maes.items() if mae > published[task][method]]
        won = len(maes) - len(lost)
        missed = f"; not on {', '.join(lost)}" if lost and won < wanted else ""
        lines.append(f"- {name} is no worse than {method} on {won} of {len(maes)} tasks (bar: {wanted}){missed}")
    return "\n".join(lines) + "\n"


def all_ways(targets: Mapping[str, StudyTarget], means: Means, published: Published) -> list[str]:
    """Two tables with a row a way and a column a task: means and medians of the absolute errors."""
    ways = sorted(dict.fromkeys(way for _, way in means), key=lambda way: [*PLACES].index(way[0]))
    plain = [way for way in ways if way[0] in (SHIPPED, ENERGIES, MORE) and not way[1]]  # as in the first
    tables = []
    for what, statistic in (("mean absolute error", "mae"), ("median absolute error", "median")):
        lines = [f"| {what} | sources | {' | '.join(targets)} |", f"|---|---|{'--:|' * len(targets)}"]
        for way in ways:
            if way not in plain:
                origin = way[0] if way[1] else ""
                name = f"{way[2]}@{way[1]}" if way[1] and way[2] != "auto" else way[2]
                cells = (told(means, task, way, statistic) for task in targets)
                lines.append(f"| `{name}` | {origin} | {' | '.join(cells)} |")
        if statistic == "mae":
            for method in PUBLISHED:
                cells = (number(published.get(task, {}).get(method, math.nan)) for task in targets)
                lines.append(f"| {method} | published | {' | '.join(cells)} |")
        tables.append("\n".join(lines) + "\n")
    return tables


def told(means: Means, task: str, way: Way, statistic: str = "mae") -> str:
    """Mean ± standard deviation between the splits, with as many decimals as give the mean three digits."""
    if (task, way) not in means:
        return "–"
    mean = means[task, way]
    value, spread = getattr(mean, statistic), getattr(mean, f"{statistic}_std")
    return number(value) + ("" if math.isnan(spread) else f" ± {spread:.{decimals(value)}f}")


def number(value: float) -> str:
    """Three digits.

    Example:
        >>> [number(value) for value in (0.0204, 2.9, 14.52, float("nan"))]
        ['0.0204', '2.90', '14.5', '–']
    """
    return "–" if math.isnan(value) else f"{value:.{decimals(value)}f}"


def decimals(value: float) -> int:
    return max(0, 2 - math.floor(math.log10(value))) if value > 0 else 2


def named(task: str, target: StudyTarget) -> str:
    return f"{task} ({target.unit})" if target.unit else task


def draw(path: Path, tasks: Sequence[str], means: Means, published: Published) -> None:
    """Each task a line: test MAE over that of the published CGCNN."""
    ours = {
        "scratch": (SCRATCH, "o", GREY), "auto, shipped sources": (AUTO, "o", VERMILLION),
        "auto, energies too": (AUTO_ENERGIES, "*", VERMILLION), "auto, checkpoints too": (AUTO_MORE, "o", BLUE),
    }  # fmt: skip
    markers = {"MoE-(18)": "s", "JMP-FT": "^", "MoMa (Full)": "D"}
    shown = [task for task in tasks if task in published]
    with picture(path, 7.6, 0.42 * len(shown) + 1.5) as figure:
        axes = figure.add_subplot()
        ratios: list[float] = [1.0]
        series: dict[str, tuple[list[float], str, str, bool]] = {
            method: ([published[task][method] / published[task]["CGCNN"] for task in shown], marker, INK, False)
            for method, marker in markers.items()
        }
        for name, (way, marker, colour) in ours.items():
            there = [(means[task, way].mae if (task, way) in means else math.nan) for task in shown]
            of_ours = [mae / published[task]["CGCNN"] for mae, task in zip(there, shown, strict=True)]
            if not all(map(math.isnan, of_ours)):
                series[name] = (of_ours, marker, colour, True)
        rows = list(range(len(shown)))[::-1]
        for name, (values, marker, colour, filled) in series.items():
            beside = np.array(rows) + BESIDE.get(name, 0.0)  # so that no mark hides another
            axes.plot(values, beside, marker, color=colour, fillstyle="full" if filled else "none",
                      markersize=8 if filled else 7, label=name, zorder=2 if filled else 3)  # fmt: skip
            ratios += [value for value in values if not math.isnan(value)]
        log_axis(axes, "x", min(ratios), max(ratios))
        axes.axvline(1, color=GREY, linewidth=1, zorder=1)
        axes.set_yticks(rows, shown)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.set(
            xlabel="test MAE, relative to the published CGCNN (mean over five splits; logarithmic)",
            ylim=(-0.6, len(shown) - 0.4),
        )
        figure.legend(loc="outside upper center", ncols=3, fontsize=9)


if __name__ == "__main__":
    main()
