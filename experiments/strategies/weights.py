"""What `auto` chose in the study, and what other ways of choosing would have gained.

    python experiments/strategies/weights.py STUDY --out experiments/strategies/weights.csv

One row a target and training size: the mean weight of each part over the seeds, and the mean gain over scratch, in per
cent, of the part that is best on validation, of the plain mean, of weights that fall with the sixth power of the
validation error, and of bagged ensemble selection, which `auto` uses. Prints the means over all rows.
"""

import argparse
from pathlib import Path

import numpy as np

from tlcgcnn_jax.blending import choose_weights
from tlcgcnn_jax.files import write_table
from tlcgcnn_jax.results import StudyResults

PARTS = (("full", "auto"), ("features:svr", "all"), ("hybrid:svr", "all"), ("svr", ""), ("gp", ""))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.csv")
    options = parser.parse_args()
    results = StudyResults(options.study)
    cells = sorted({(row.target, row.size) for row in results.rows})
    rows = [{"target": target, "size": size, **cell(results, target, size)} for target, size in cells]
    write_table(options.out, rows, digits=4)
    for name in rules(np.ones((2, 9)), np.zeros(9), 0):
        print(f"{name}: {np.mean([row[f'gain of {name}'] for row in rows]):.1f} %")


def cell(results: StudyResults, target: str, size: int) -> dict[str, float]:
    """Means over the seeds."""
    found: list[dict[str, float]] = []
    values = results.crystals(target).values
    for seed in sorted({row.seed for row in results.select(target=target, size=size)}):
        of_seed = results.select(target=target, size=size, seed=seed)
        runs = [next(r for r in of_seed if (r.strategy, r.source) == part) for part in PARTS]
        scratch = next(r.test_mae for r in of_seed if r.strategy == "scratch")
        said = [results.predictions(run.run) for run in runs]
        val, test = np.stack([one.val for one in said]), np.stack([one.test for one in said])
        weights = rules(val, values[said[0].val_rows], seed)
        labels = values[said[0].test_rows]
        found.append(
            {f"weight of {name}": float(w) for (name, _), w in zip(PARTS, weights["selection"], strict=True)}
            | {f"gain of {rule}": 100 * (1 - float(np.abs(w @ test - labels).mean()) / scratch)
               for rule, w in weights.items()}
        )  # fmt: skip
    return {key: float(np.mean([one[key] for one in found])) for key in found[0]}


def rules(val: np.ndarray, labels: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Weights by rule, from predictions [k, n] of validation crystals."""
    errors = np.abs(val - labels).mean(1)
    power = (errors.min() / errors) ** 6
    return {
        "the best alone": np.eye(len(val))[int(errors.argmin())],
        "the plain mean": np.full(len(val), 1 / len(val)),
        "powers": power / power.sum(),
        "selection": choose_weights(val, labels, seed),
    }


if __name__ == "__main__":
    main()
