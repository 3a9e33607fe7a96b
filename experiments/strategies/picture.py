"""What transfer buys, in one picture: learning curves of a few ways on the three properties.

python experiments/strategies/picture.py STUDY/comparisons.csv --out experiments/strategies/transfer.png
"""

import argparse
import csv
from pathlib import Path

import numpy as np

from tlcgcnn_jax.figure import BLUE, GREY, INK, VERMILLION, labelled, log_axis, picture, short

WAYS = {  # (strategy, source): name, colour, dashes, marker
    ("scratch", ""): ("from scratch", INK, "-", "o"),
    ("full", "mp-formation-energy"): ("fine-tuned from formation energies", VERMILLION, "-", "s"),
    ("svr", ""): ("descriptors, no network", GREY, "--", "D"),
    ("auto", "all"): ("auto", BLUE, "-", "^"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparisons", type=Path)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    options = parser.parse_args()
    with open(options.comparisons, newline="") as handle:
        rows = [row for row in csv.DictReader(handle) if (row["strategy"], row["source"]) in WAYS]
    draw(rows, options.out)


def draw(rows: list[dict[str, str]], path: Path) -> None:
    """A panel a property: test MAE against training crystals, with 95 % intervals over the seeds."""
    targets = list(dict.fromkeys(row["target"] for row in rows))
    with picture(path, 3.6 * len(targets), 3.9) as figure:
        for number, target in enumerate(targets, 1):
            axes = figure.add_subplot(1, len(targets), number)
            mine = [row for row in rows if row["target"] == target]
            sizes = sorted({int(row["size"]) for row in mine})
            for place, (way, (name, colour, line, marker)) in enumerate(WAYS.items()):
                own = sorted((r for r in mine if (r["strategy"], r["source"]) == way), key=lambda r: int(r["size"]))
                keys = ("size", "mae", "mae_low", "mae_high")
                x, mae, low, high = (np.array([float(row[key]) for row in own]) for key in keys)
                x = x * 1.03 ** (place - 1.5)  # so that no interval hides another
                axes.errorbar(x, mae, [mae - low, high - mae], color=colour, linestyle=line, marker=marker,
                              markersize=5, linewidth=1.6, elinewidth=0.9, capsize=2, label=name)  # fmt: skip
            log_axis(axes, "x", sizes[0], sizes[-1])
            axes.set_xticks(sizes, [short(size) for size in sizes])
            axes.set_xticks([], minor=True)
            axes.set_ylim(bottom=0)
            axes.set(title=target, xlabel="training crystals", ylabel=labelled("test MAE", "", mine[0]["unit"]))
        handles, names = axes.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(WAYS), fontsize=9)


if __name__ == "__main__":
    main()
