"""Runs so small that they take seconds: a few textbook crystals, one narrow convolution."""

import csv
import functools
import json
import math

from tlcgcnn_jax.bundle import Model
from tlcgcnn_jax.cli import main
from tlcgcnn_jax.config import ModelConfig, Target, TrainConfig
from tlcgcnn_jax.run import fit
from tlcgcnn_jax.structures import Record
from tlcgcnn_jax.textbook import textbook_records

K, GAP = "bulk_modulus_gpa", "band_gap_ev"
MODEL = ModelConfig(width=8, convolutions=1, head_width=8)
NETWORK = ("--width", 8, "--convolutions", 1, "--head-width", 8)
# One batch size and crystals of one size: most runs have the same shapes and share their compilation.
ONE_EPOCH = TrainConfig(epochs=1, batch_size=8)
BATCH = ("--batch-size", 8)


def command(*arguments) -> int:
    """Exit status of the command line, run in this process."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as end:  # as argparse ends on bad usage
        assert isinstance(end.code, int)
        return end.code


def records(n: int = 20, targets=(K,)) -> list[Record]:
    """The first textbook crystals of two atoms a cell and one kind of neighbour that have all targets."""
    found = [r for r in textbook_records(targets) if not any(map(math.isnan, r.targets.values()))]
    return [r for r in found if r.id.startswith(("diamond-", "zincblende-", "rocksalt-"))][:n]


def write_lines(path, crystals, **columns):
    """Crystals as JSON lines, with their targets and further columns (lists of values)."""
    with open(path, "w") as handle:
        for row, record in enumerate(crystals):
            lattice, numbers, coords = record.structure
            line = {"id": record.id, **record.targets, **{name: values[row] for name, values in columns.items()}}
            line |= {"lattice": lattice.tolist(), "species": numbers.tolist(), "frac_coords": coords.tolist()}
            handle.write(json.dumps(line) + "\n")
    return path


@functools.cache
def source() -> Model:
    """A model of another property than K, to transfer from."""
    return fit(records(targets=(GAP,)), Target(GAP, "eV"), model=MODEL, config=ONE_EPOCH).model


def table(path) -> list[dict[str, str]]:
    """Rows of a CSV."""
    with open(path, newline="") as handle:
        return list(csv.DictReader(handle))
