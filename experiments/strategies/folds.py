"""What `auto` gains from five networks in place of one, and from crystals that are dealt anew for each of them.

    python experiments/strategies/folds.py STUDY [--size 300] --out experiments/strategies/folds.csv

STUDY is the folder of the finished study of study.toml: one network, which learns from the training crystals, and
regressors that do so too. The parts of `auto` are made again with five networks on the same crystals, and with five
networks on folds of training and validation crystals, all of which regressors are fitted to in the end. The test
crystals are the same.
"""

import argparse
import functools
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from tlcgcnn_jax.files import write_table
from tlcgcnn_jax.results import Row, RunPredictions
from tlcgcnn_jax.strategies import EnsembleStrategy, Strategy
from tlcgcnn_jax.study_desk import Desk
from tlcgcnn_jax.study_grid import Cell
from tlcgcnn_jax.study_work import ensemble, runs

NETWORKS = 5  # of `tlcgcnn transfer`
ONE, FIVE, DEALT = "one network", "five networks", "five networks, dealt"
SETTINGS = {FIVE: {"members": NETWORKS}, DEALT: {"folds": NETWORKS}}

Made = list[tuple[Row, RunPredictions]]  # a run for each seed


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
    auto = [Part(target, "auto", "all", "transfer") for target in desk.results.targets]
    parts = [part for target in desk.results.targets for part in parts_of_auto(desk, target)]
    found = {(ONE, part): stored(desk, part, options.size) for part in (*parts, *auto)}
    wanted = [(way, part) for way in SETTINGS for part in parts if way == DEALT or networks(desk, part)]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        made = pool.map(functools.partial(make, options.study, options.size), *zip(*wanted, strict=True))
        found |= dict(zip(wanted, made, strict=True))
    for way in SETTINGS:
        for mean in auto:
            of_target = [found.get((way, part), found[ONE, part]) for part in parts if part.target == mean.target]
            found[way, mean] = joined(desk, of_target)
    rows = [told(part, {way: found[way, part] for way in (ONE, *SETTINGS) if (way, part) in found})
            for part in (*parts, *auto)]  # fmt: skip
    write_table(options.out, rows)


def parts_of_auto(desk: Desk, target: str) -> list[Part]:
    """As a study names them."""
    auto = desk.study.strategy("auto")
    assert isinstance(auto, EnsembleStrategy)
    named = [part.partition("@") for part in auto.parts]
    return [Part(target, name, source, "transfer" if source else "baseline") for name, _, source in named]


def networks(desk: Desk, part: Part) -> bool:
    """Whether a part is one of networks; of regressors there is one in any case."""
    return part.kind == "transfer" and isinstance(desk.study.strategy(part.strategy), Strategy)


def stored(desk: Desk, part: Part, size: int) -> Made:
    """What the study holds."""
    rows = desk.results.select(target=part.target, size=size, strategy=part.strategy, source=part.source)
    return [(row, desk.results.predictions(row.run)) for row in sorted(rows, key=lambda row: row.seed)]


def make(study: Path, size: int, way: str, part: Part) -> Made:
    """A part for all seeds."""
    desk = Desk(study)
    desk.study = replace(desk.study, **SETTINGS[way])
    return runs(desk, Cell(part.target, part.source, 0, part.strategy, part.kind, size), range(desk.study.seeds))


def joined(desk: Desk, parts: Sequence[Made]) -> Made:
    """The weighted mean, for all seeds."""
    first = parts[0][0][0]
    cell = Cell(first.target, "all", 0, "auto", "transfer", first.size)
    return [ensemble(desk, cell, seed, found, weighted=True) for seed, found in enumerate(zip(*parts, strict=True))]


def told(part: Part, found: dict[str, Made]) -> dict[str, object]:
    """Mean test errors of each way to make a part, and how many seeds have a smaller one dealt than not."""
    first = [predictions.test_rows for _, predictions in found[ONE]]
    for made in found.values():
        assert all(np.array_equal(one.test_rows, rows) for (_, one), rows in zip(made, first, strict=True))
    errors = {way: [row.test_mae for row, _ in made] for way, made in found.items()}
    before = errors.get(FIVE, errors[ONE])
    row = {
        "target": part.target, "size": found[ONE][0][0].size, "strategy": part.strategy, "source": part.source,
        "seeds": len(first), **{way: f"{np.mean(errors.get(way, errors[ONE])):.5g}" for way in (ONE, *SETTINGS)},
        "dealt_change_percent": f"{100 * (np.mean(errors[DEALT]) / np.mean(before) - 1):.1f}",
        "seeds_better": sum(new < old for new, old in zip(errors[DEALT], before, strict=True)),
    }  # fmt: skip
    print(json.dumps(row), flush=True)
    return row


if __name__ == "__main__":
    main()
