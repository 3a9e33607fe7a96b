"""Where descriptor models, training from scratch and transfer overtake each other, from the study of the targets.

    python experiments/regressors/crossings.py STUDY

Writes crossings.csv and regressors_TARGET.png (scratch, the best transfer, every descriptor model) into the study's
folder, or into --out.
"""

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tlcgcnn_jax.analysis import analyse
from tlcgcnn_jax.files import write_table
from tlcgcnn_jax.results import StudyResults, file_name
from tlcgcnn_jax.statistics import crossing
from tlcgcnn_jax.study_plots import learning_curves
from tlcgcnn_jax.study_series import SHAPES, Series, study_series


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="folder of the study of experiments/targets")
    parser.add_argument("--out", type=Path, help="folder for the table and the pictures (default: the study's)")
    options = parser.parse_args()
    out, results, rows = options.out or options.study, StudyResults(options.study), []
    for target, series in study_series(analyse(results), results.targets).items():
        if series:
            chosen = contenders(series)
            rows += crossings(target, chosen)
            path = out / f"regressors_{file_name(target)}.png"
            learning_curves(drawn(chosen), path, name=target, unit=results.targets[target])
    write_table(out / "crossings.csv", rows, ("target", "way", "against", "ahead_until", "words"))
    for row in rows:
        print("{target}: {way} against {against}: {words}".format(**row))


def contenders(series: Sequence[Series]) -> list[Series]:
    """Scratch, the transfer with the lowest validation errors over all sizes, and all descriptor models."""

    def error(one: Series) -> float:
        return float(np.mean(np.log([outcome.val_mae for outcome in one.outcomes])))

    scratch = [one for one in series if one.way.kind == "scratch"]
    longest = max(len(one.outcomes) for one in series)
    whole = [one for one in series if one.way.kind == "transfer" and len(one.outcomes) == longest]
    plain = [one for one in series if one.way.kind == "baseline" and one.way.strategy not in ("mean", "median")]
    return scratch + sorted(whole, key=error)[:1] + sorted(plain, key=error)


def crossings(target: str, chosen: Sequence[Series]) -> list[dict[str, Any]]:
    """Of every pair with scratch or the transfer in it: who is ahead with few labels, and until how many of them."""
    rows = []
    for one, other in itertools.combinations(chosen, 2):
        sizes = [outcome.size for outcome in one.outcomes if other.at(outcome.size)]
        if not sizes or one.way.kind == "baseline":
            continue
        mae = {way.label: [found.mae.mean for n in sizes if (found := way.at(n))] for way in (one, other)}
        ahead, behind = sorted((one.label, other.label), key=lambda label: mae[label][0])
        until = crossing(sizes, mae[behind], mae[ahead])
        pairs = zip(sizes, mae[ahead], mae[behind], strict=True)
        lost = [f"{n:,}" for n, mine, others in pairs if mine > others and (until is None or n < until)]
        but = f" but {' and '.join(lost)}" if lost else ""
        words = f"ahead at every size{but}, up to {sizes[-1] if until is None else round(until):,} labels"
        rows.append(
            {"target": target, "way": ahead, "against": behind, "ahead_until": until and round(until), "words": words}
        )
    return rows


def drawn(chosen: Sequence[Series]) -> list[Series]:
    """All of them, in colours of their own."""
    return [
        replace(one, shown=True, colour=place % 8, shape=SHAPES[place % len(SHAPES)])
        for place, one in enumerate(chosen)
    ]  # fmt: skip


if __name__ == "__main__":
    main()
