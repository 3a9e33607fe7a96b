"""The two sources of a finished study against each other, target by target.

python experiments/relatedness/ensemble.py STUDY --out experiments/relatedness/ensemble.csv
"""

import argparse
from pathlib import Path

import numpy as np

from tlcgcnn_jax.files import write_table
from tlcgcnn_jax.results import StudyResults
from tlcgcnn_jax.statistics import SeedErrors, compare_runs

FIELDS = ("target", "unit", "source", "mae", "other", "other_mae", "gain_percent", "low", "high", "p_value", "verdict")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="folder of the finished study of ensemble.toml")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.csv")
    options = parser.parse_args()
    results, rows = StudyResults(options.study), []
    for target, unit in results.targets.items():
        crystals = results.crystals(target)
        runs: dict[str, list[SeedErrors]] = {}
        for row in results.select(target=target):
            said = results.predictions(row.run)
            errors = np.abs(said.test - crystals.values[said.test_rows])
            runs.setdefault(row.source, []).append(SeedErrors(row.seed, said.test_rows, errors))
        one, other = sorted(runs)  # runs come in the order in which they were finished
        found = compare_runs(runs[one], runs[other], crystals.formulas)
        mae, other_mae = (np.mean([run.errors.mean() for run in runs[source]]) for source in (one, other))
        rows.append(
            {
                "target": target, "unit": unit, "source": one, "mae": mae, "other": other, "other_mae": other_mae,
                **{name: getattr(found, name) for name in ("gain_percent", "low", "high", "p_value", "verdict")},
            }
        )  # fmt: skip
        print(
            f"{target}: {other} against {one}: {found.gain_percent:.1f} % less error "
            f"({found.low:.1f} to {found.high:.1f}), p {found.p_value:.2g}, {found.verdict}"
        )
    write_table(options.out, rows, FIELDS, digits=4)


if __name__ == "__main__":
    main()
