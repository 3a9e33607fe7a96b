"""The two sources of a finished study against each other, target by target.

python experiments/relatedness/ensemble.py STUDY
"""

import argparse
from pathlib import Path

import numpy as np

from tlcgcnn_jax.results import StudyResults
from tlcgcnn_jax.statistics import SeedErrors, compare_runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="folder of the finished study of ensemble.toml")
    results = StudyResults(parser.parse_args().study)
    for target in results.targets:
        crystals = results.crystals(target)
        runs: dict[str, list[SeedErrors]] = {}
        for row in results.select(target=target):
            said = results.predictions(row.run)
            errors = np.abs(said.test - crystals.values[said.test_rows])
            runs.setdefault(row.source, []).append(SeedErrors(row.seed, said.test_rows, errors))
        one, other = runs
        found = compare_runs(runs[one], runs[other], crystals.formulas)
        print(
            f"{target}: {other} against {one}: {found.gain_percent:.1f} % less error "
            f"({found.low:.1f} to {found.high:.1f}), p {found.p_value:.2g}, {found.verdict}"
        )


if __name__ == "__main__":
    main()
