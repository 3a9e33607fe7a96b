"""What decides the elastic anisotropy: five crystals, and whether a regressor learns the label or its logarithm.

    python experiments/published_suite/anisotropy.py RUNS --out FILE.csv

RUNS is the folder of run.py (RUNS/data alone will do). Regressors on descriptors learn the logarithm, as in the study
but tuned anew, or the label as it stands. One row a split and way: mean absolute errors of the training rows when left
out (five folds), of the validation rows, and of the test rows, and what of these is due to crystals above 100 and to
all others.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from tlcgcnn_jax import Target, build_dataset
from tlcgcnn_jax.baselines import baseline_predictions
from tlcgcnn_jax.descriptors import descriptors
from tlcgcnn_jax.files import write_table
from tlcgcnn_jax.splits import k_fold

TASK, COLUMN, HIGH = "mp_elastic_anisotropy", "target", 100.0
WAYS = (("median", "identity"), ("svr", "log"), ("gp", "log"), ("forest", "log"), ("forest", "identity"))
FIELDS = ("split", "regressor", "learns", "left_out_mae", "val_mae", "test_mae", "test_mae_of_high",
          "test_mae_of_others", "high_in_train", "high_in_val", "high_in_test")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder of run.py")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.csv")
    options = parser.parse_args()
    dataset = build_dataset(options.runs / "data" / f"{TASK}.jsonl.gz", targets=(COLUMN,))
    features, labels = descriptors(dataset), np.asarray(dataset.targets, float)[:, 0]
    place = {name: row for row, name in enumerate(dataset.ids)}
    rows = []
    for number, split in enumerate(json.loads((options.runs / "data" / f"{TASK}-splits.json").read_text())):
        parts = {part: np.array([place[name] for name in names]) for part, names in split.items()}
        for regressor, learns in WAYS:
            target = Target(COLUMN, transform=learns)

            def errors(
                fitted: np.ndarray, asked: np.ndarray, way: str = regressor, target: Target = target, seed: int = number
            ) -> np.ndarray:
                said, _ = baseline_predictions(way, features, labels, fitted, asked, target, seed)
                return np.abs(said - labels[asked])

            train, test = parts["train"], errors(parts["train"], parts["test"])
            left_out = [errors(np.delete(train, fold.test), train[fold.test]) for fold in k_fold(len(train), 5, 0)]
            high = {part: labels[chosen] > HIGH for part, chosen in parts.items()}
            rows.append(
                {
                    "split": number, "regressor": regressor, "learns": learns,
                    "left_out_mae": np.concatenate(left_out).mean(),
                    "val_mae": errors(train, parts["val"]).mean(), "test_mae": test.mean(),
                    "test_mae_of_high": test[high["test"]].sum() / len(test),
                    "test_mae_of_others": test[~high["test"]].sum() / len(test),
                    **{f"high_in_{part}": int(those.sum()) for part, those in high.items()},
                }
            )  # fmt: skip
            print("split {split}, {regressor} learns {learns}: left out {left_out_mae:.2f}, val {val_mae:.2f}, test "
                  "{test_mae:.2f}".format(**rows[-1]), flush=True)  # fmt: skip
    write_table(options.out, rows, FIELDS, digits=4)


if __name__ == "__main__":
    main()
