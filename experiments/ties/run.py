"""Which treatment of equally distant neighbours is the better default: accuracy and cost on a tenth of the data.

    python experiments/ties/run.py DATA/mp_crysxpp/mp_crysxpp.jsonl.gz --work runs/ties

Same crystals, split, seeds and number of updates for `ties="shell"` and `ties="reference"`. A finished run is kept in
the work folder and not repeated. Writes results.csv and ties.png beside this file.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from tlcgcnn_jax.config import GraphConfig, Target, TrainConfig
from tlcgcnn_jax.dataset import build_dataset
from tlcgcnn_jax.figure import picture
from tlcgcnn_jax.files import write_table
from tlcgcnn_jax.machine import processor
from tlcgcnn_jax.run import fit
from tlcgcnn_jax.splits import Split, random_split

HERE = Path(__file__).parent
TARGET = Target("formation_energy_per_atom_eV", unit="eV/atom")
SIZE, TEST = 2600, 2000
FIELDS = (
    "ties",
    "seed",
    "train",
    "test",
    "epochs",
    "test_mae",
    "test_rmse",
    "seconds_per_epoch",
    "places_per_atom",
    "machine",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=30)
    options = parser.parse_args()
    rows = []
    for seed in range(options.seeds):
        for ties in ("shell", "reference"):
            rows.append(one_run(options, ties, seed))
            print(rows[-1])
    write_table(HERE / "results.csv", rows, FIELDS)
    draw(rows)


def one_run(options: argparse.Namespace, ties: str, seed: int) -> dict[str, object]:
    dataset = build_dataset(
        options.data, targets=(TARGET.name,), graph=GraphConfig(ties=ties), out=options.work / f"dataset-{ties}"
    )
    whole = random_split(len(dataset), 0, 0.8, 0.1, 0.1, groups=dataset.formulas)
    chosen = np.concatenate([whole.train[:SIZE], whole.val[:500], whole.test[:TEST]])
    ends = np.cumsum([0, SIZE, len(whole.val[:500]), len(whole.test[:TEST])])
    split = Split(*(np.arange(first, last) for first, last in zip(ends[:-1], ends[1:], strict=True)))
    out = options.work / f"{ties}-{seed}"
    began = time.perf_counter()
    config = TrainConfig(epochs=options.epochs, batch_size=64, learning_rate=4e-3, seed=seed)
    result = fit(dataset.select(chosen), TARGET, split=split, config=config, out=out, resume=True, progress=True)
    print(f"{out}: {time.perf_counter() - began:.0f} s")
    places = int(dataset.n_row.sum()) * dataset.graph.places / int(dataset.n_atom.sum())
    seconds = float(np.median([row["seconds"] for row in result.history]))
    test = result.metrics["test"]
    values = (
        ties,
        seed,
        SIZE,
        len(split.test),
        options.epochs,
        test["mae"],
        test["rmse"],
        seconds,
        places,
        processor(),
    )
    return dict(zip(FIELDS, values, strict=True))


def draw(rows: list[dict[str, object]]) -> None:
    """Test error of every run, by treatment of ties."""
    with picture(HERE / "ties.png", 5.5, 2.4) as figure:
        axes = figure.add_subplot()
        for place, ties in enumerate(("reference", "shell")):
            errors = [1000 * float(row["test_mae"]) for row in rows if row["ties"] == ties]  # type: ignore[arg-type]
            axes.plot(errors, [place] * len(errors), "o", alpha=0.6, color="C0")
            axes.plot([np.mean(errors)], [place], "|", markersize=24, color="C0")
        axes.set_yticks([0, 1], ["reference", "shell"])
        axes.set_ylim(-0.6, 1.6)
        axes.set_xlabel("test MAE of the formation energy (meV/atom)")


if __name__ == "__main__":
    main()
