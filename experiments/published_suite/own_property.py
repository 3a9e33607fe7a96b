"""What a source of a task's own property gives without any training.

    python experiments/published_suite/own_property.py STUDY --out FILE.csv

STUDY is the folder of a study of the suite that has such sources, although it never uses them. Each predicts as it is,
but for a scale and a shift (`keep_head`) that are fitted to the training rows of each published split. One row a run.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

from tlcgcnn_jax.files import write_table
from tlcgcnn_jax.results import Row
from tlcgcnn_jax.study_config import target_name, training_sizes
from tlcgcnn_jax.study_desk import Desk
from tlcgcnn_jax.study_grid import Cell
from tlcgcnn_jax.study_work import runs

SOURCES = {
    "eform": ("mp-formation-energy", "moe/mp_eform", "moe/jarvis_eform", "official/mp_eform"),
    **dict.fromkeys(("eps", "poly", "dielectric"), ("mp-dielectric", "moe/jarvis_dielectric_opt")),
}  # by a part of the task's name
FIELDS = ("target", "source", "strategy", "size", "seed", "val_mae", "test_mae", "test_median_ae", "overlap")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="folder of the study")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.csv")
    options = parser.parse_args(arguments)
    write_table(options.out, map(asdict, own_property(Desk(options.study))), FIELDS)


def own_property(desk: Desk) -> list[Row]:
    """A run for each task, source of its own property, and split."""
    rows = []
    for target in desk.study.targets:
        task = target_name(target)
        own = next((names for part, names in SOURCES.items() if part in task), ())
        for source in (name for name in own if name in desk.pool):
            cell = Cell(task, source, 0, "keep_head", "transfer", training_sizes(desk.study, target)[0])
            found = [row for row, _ in runs(desk, cell, range(desk.study.seeds))]
            print(f"{task} {source}: test MAE {sum(row.test_mae for row in found) / len(found):.4g}", flush=True)
            rows += found
    return rows


if __name__ == "__main__":
    main()
