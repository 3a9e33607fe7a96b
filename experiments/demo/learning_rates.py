"""Learning rates for both ways of `tlcgcnn demo`, found with other folds than the demonstration's.

    python experiments/demo/learning_rates.py

Writes learning_rates.csv beside this file: the cross-validated error of each way at each learning rate.
"""

from dataclasses import replace
from pathlib import Path

from tlcgcnn_jax import demo
from tlcgcnn_jax.dataset import build_dataset
from tlcgcnn_jax.files import write_table
from tlcgcnn_jax.splits import k_fold
from tlcgcnn_jax.textbook import textbook_records
from tlcgcnn_jax.zoo import load_model

GRID = (1e-3, 2e-3, 5e-3, 1e-2, 2e-2)
OTHER_FOLDS = 1  # the demonstration draws its folds with 0


def main() -> None:
    source, rows = load_model(demo.SOURCE), []
    for title, target in demo.TASKS:
        dataset = build_dataset(textbook_records((target.name,)), targets=(target.name,), graph=source.graph)
        for strategy in ("scratch", "full"):
            for rate in GRID:
                folds, config = k_fold(len(dataset), demo.FOLDS, OTHER_FOLDS), replace(demo.CONFIG, learning_rate=rate)
                error = demo.crystal_errors(dataset, target, source, strategy, config, [folds], seed=100)
                rows.append(
                    {
                        "property": title,
                        "unit": target.unit,
                        "way": strategy,
                        "learning_rate": rate,
                        "mae": round(float(error.mean()), 4),
                    }
                )
                print(rows[-1], flush=True)
    write_table(Path(__file__).with_name("learning_rates.csv"), rows)


if __name__ == "__main__":
    main()
