"""What `auto` gains from folds: its parts made again with five folds of the training and validation crystals.

    python experiments/strategies/folds.py STUDY [--size 300] --out experiments/strategies/folds.csv

STUDY is the folder of the finished study of study.toml, in which networks and regressors learnt from the training
crystals and the validation crystals chose. The test crystals are the same.
"""

import argparse
import csv
import functools
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from tlcgcnn_jax.results import Row, RunPredictions
from tlcgcnn_jax.strategies import EnsembleStrategy
from tlcgcnn_jax.study_desk import Desk
from tlcgcnn_jax.study_grid import Cell
from tlcgcnn_jax.study_work import ensemble, runs

FOLDS = 5


@dataclass(frozen=True)
class Part:
    """A part of "auto" on one target: from which source, and what kind of way it is."""

    target: str
    strategy: str
    source: str
    kind: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="folder of the finished study")
    parser.add_argument("--size", type=int, default=300, help="training crystals (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.csv")
    options = parser.parse_args()
    desk = Desk(options.study)
    desk.study = replace(desk.study, folds=FOLDS)
    parts = [part for target in desk.results.targets for part in parts_of_auto(desk, target)]
    make = functools.partial(made, options.study, options.size)
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        found = dict(zip(parts, pool.map(make, parts), strict=True))
    rows = [compare(desk, part, options.size, some) for part, some in found.items()]
    for target in desk.results.targets:
        some = {part: found[part] for part in parts if part.target == target}
        rows.append(compare(desk, Part(target, "auto", "all", "transfer"), options.size, joined(desk, some)))
    with open(options.out, "w", newline="") as handle:
        writer = csv.DictWriter(handle, tuple(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def parts_of_auto(desk: Desk, target: str) -> list[Part]:
    """As a study names them."""
    auto = desk.study.strategy("auto")
    assert isinstance(auto, EnsembleStrategy)
    named = [part.partition("@") for part in auto.parts]
    return [Part(target, name, source, "transfer" if source else "baseline") for name, _, source in named]


def made(study: Path, size: int, part: Part) -> list[tuple[Row, RunPredictions]]:
    """A part for all seeds, with folds."""
    desk = Desk(study)
    desk.study = replace(desk.study, folds=FOLDS)
    return runs(desk, Cell(part.target, part.source, 0, part.strategy, part.kind, size), range(desk.study.seeds))


def joined(desk: Desk, parts: dict[Part, list[tuple[Row, RunPredictions]]]) -> list[tuple[Row, RunPredictions]]:
    """The weighted mean, for all seeds."""
    kept, out = desk.results.predictions, []
    for seed, of_seed in enumerate(zip(*parts.values(), strict=True)):
        rows = [row for row, _ in of_seed]
        by_run = {row.run: predictions for row, predictions in of_seed}
        desk.results.predictions = by_run.__getitem__
        cell = Cell(rows[0].target, "all", 0, "auto", "transfer", rows[0].size)
        out.append(ensemble(desk, cell, seed, rows, weighted=True))
    desk.results.predictions = kept
    return out


def compare(desk: Desk, part: Part, size: int, found: list[tuple[Row, RunPredictions]]) -> dict[str, object]:
    """Mean test errors without folds, which the study holds, and with them; on the same crystals."""
    before = []
    for row, predictions in found:
        (old,) = desk.results.select(
            target=part.target, size=size, seed=row.seed, strategy=part.strategy, source=part.source
        )  # fmt: skip
        assert np.array_equal(desk.results.predictions(old.run).test_rows, predictions.test_rows)
        before.append(old.test_mae)
    after = [row.test_mae for row, _ in found]
    change = 100 * (np.mean(after) / np.mean(before) - 1)
    told = {
        "target": part.target, "size": size, "strategy": part.strategy, "source": part.source, "seeds": len(found),
        "mae": f"{np.mean(before):.5g}", "mae_folds": f"{np.mean(after):.5g}", "change_percent": f"{change:.1f}",
        "seeds_better": sum(new < old for new, old in zip(after, before, strict=True)),
    }  # fmt: skip
    print(json.dumps(told), flush=True)
    return told


if __name__ == "__main__":
    main()
