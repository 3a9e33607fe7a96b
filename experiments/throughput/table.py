"""The results as a CSV file, a Markdown table and a picture."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tlcgcnn_jax import figure
from tlcgcnn_jax.files import write_table

COLUMNS = (
    "section", "name", "ours_s", "theirs_s", "ratio", "ratio_min", "ratio_max", "target", "repetitions", "value",
    "unit", "cpu", "cores", "device", "jax",
)  # fmt: skip
MARKS = "<!-- results -->", "<!-- end of results -->"
Row = dict[str, Any]


def compared(
    section: str, name: str, ours: Sequence[float], theirs: Sequence[float], target: float | None = None
) -> Row:
    """A ratio: taken turn by turn, then the median."""
    ratios = np.array(theirs) / np.array(ours)
    return {
        "section": section, "name": name, "ours_s": np.median(ours), "theirs_s": np.median(theirs),
        "ratio": np.median(ratios), "ratio_min": ratios.min(), "ratio_max": ratios.max(), "target": target,
        "repetitions": len(ratios),
    }  # fmt: skip


def value(section: str, name: str, number: float, unit: str, repetitions: int = 1) -> Row:
    """A number that is no ratio."""
    return {"section": section, "name": name, "value": float(number), "unit": unit, "repetitions": repetitions}


def read_rows(folder: Path) -> list[Row]:
    """The rows of results.csv, all text; none if there is no such file yet."""
    if not (folder / "results.csv").exists():
        return []
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def write_report(rows: list[Row], folder: Path) -> None:
    """results.csv, results.md, throughput.png, and the table in the README where there is one with `MARKS`."""
    write_table(folder / "results.csv", rows, COLUMNS, digits=5)
    rows = read_rows(folder)  # old and new ones alike
    ratios, values = [row for row in rows if row["ratio"]], [row for row in rows if row["value"]]
    machines = dict.fromkeys(f"{r['cpu']}, {r['cores']} cores, device {r['device']}, jax {r['jax']}\n" for r in rows)
    lines = [*machines, "| section | what | ours | theirs | theirs / ours (lowest–highest) | target | turns |"]
    lines += ["|---|---|--:|--:|--:|--:|--:|"]
    for r in ratios:
        span = f"**{times(r['ratio'])}** ({times(r['ratio_min'])}–{times(r['ratio_max'])})"
        target = f"≥ {r['target']}" if r["target"] else ""
        lines.append(
            f"| {r['section']} | {r['name']} | {seconds(r['ours_s'])} | {seconds(r['theirs_s'])} | {span} | {target} "
            f"| {r['repetitions']} |"
        )
    lines += ["", "| section | what | value |", "|---|---|--:|"]
    lines += [f"| {r['section']} | {r['name']} | {float(r['value']):.3g} {r['unit']} |" for r in values]
    table = "\n".join(lines) + "\n"
    (folder / "results.md").write_text(table)
    readme = folder / "README.md"
    if readme.exists():
        before, _, rest = readme.read_text().partition(MARKS[0])
        readme.write_text(f"{before}{MARKS[0]}\n\n{table}\n{MARKS[1]}{rest.partition(MARKS[1])[2]}")
    if ratios:
        draw(ratios, folder / "throughput.png")


def seconds(text: str) -> str:
    number = float(text)
    return f"{number:.3g} s" if number >= 1 else f"{1000 * number:.3g} ms"


def times(text: str) -> str:
    return f"{float(text):.0f}" if float(text) >= 100 else f"{float(text):.3g}"


def draw(rows: list[Row], path: Path) -> None:
    """A bar for every ratio, its range as a line, and the target."""
    rows = rows[::-1]
    ratio, low, high = (np.array([float(row[key]) for row in rows]) for key in ("ratio", "ratio_min", "ratio_max"))
    height = np.arange(len(rows))
    with figure.picture(path, 9.0, 1.2 + 0.42 * len(rows)) as drawing:
        axes = drawing.add_subplot()
        axes.barh(height, ratio - 1, left=1, height=0.55, color=figure.BLUE)  # from 1: equally fast
        axes.hlines(height, low, high, color=figure.INK, linewidth=1.2)
        aims = [(y, float(row["target"])) for y, row in enumerate(rows) if row["target"]]
        if aims:
            places, limits = zip(*aims, strict=True)
            axes.vlines(limits, np.array(places) - 0.4, np.array(places) + 0.4, color=figure.VERMILLION, linewidth=2.5,
                        label="target")  # fmt: skip
            axes.legend(loc="lower right")
        for y, row in enumerate(rows):
            axes.text(max(high[y], float(row["target"] or 0), 1.0) * 1.08, y, times(row["ratio"]), va="center")
        labels = [f"{row['section']}: {row['name']}".replace(", against", ",\nagainst") for row in rows]
        axes.set_yticks(height, labels, fontsize=8)
        axes.axvline(1, color=figure.GREY, linewidth=0.8)
        figure.log_axis(axes, "x", 0.5, high.max())
        axes.set_xlim(min(0.5, low.min() / 1.2), high.max() * 2)
        axes.set_xlabel("times as fast (median of turns; line: lowest to highest)")
