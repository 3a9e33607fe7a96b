"""Train the shipped source model `mp-formation-energy` on Materials Project formation energies.

    python experiments/source_formation_energy/train.py DATA/mp_crysxpp/mp_crysxpp.jsonl.gz --out runs/mp-formation-energy

Every crystal whose reduced formula stands in the textbook set is removed first; the rest is split 80/10/10 by formula,
so that no polymorph of a test crystal is trained on. A killed run goes on with --resume.
"""

import argparse
from pathlib import Path

import numpy as np

from tlcgcnn_jax.config import GraphConfig, ModelConfig, Target, TrainConfig
from tlcgcnn_jax.dataset import build_dataset
from tlcgcnn_jax.run import fit
from tlcgcnn_jax.splits import Split, random_split
from tlcgcnn_jax.crystal import formula
from tlcgcnn_jax.textbook import textbook_records

TARGET = Target("formation_energy_per_atom_eV", unit="eV/atom")
CONFIG = TrainConfig(epochs=60, batch_size=128, learning_rate=4e-3, weight_decay=1e-4, warmup=0.05, loss="mae", seed=0)


def formula_split(formulas: list[str], seed: int, size: int | None = None) -> Split:
    """80/10/10 by formula without the textbook formulas; `size` cuts the training rows."""
    textbook = {formula(record.structure.atomic_numbers) for record in textbook_records()}
    rows = np.array([row for row, name in enumerate(formulas) if name not in textbook])
    print(f"{len(formulas) - len(rows)} of {len(formulas)} crystals removed: their formulas are in the textbook set")
    split = random_split(len(rows), seed, 0.8, 0.1, 0.1, groups=[formulas[row] for row in rows])
    return Split(rows[split.train][:size], rows[split.val], rows[split.test])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="mp_crysxpp.jsonl.gz")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=CONFIG.epochs)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--size", type=int, help="training crystals (default: all)")
    parser.add_argument("--ties", default="shell", choices=("shell", "reference"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    graph = GraphConfig(ties=options.ties)
    packed = options.out.parent / f"dataset-{options.ties}"
    dataset = build_dataset(options.data, targets=(TARGET.name,), graph=graph, out=packed, progress=True)
    split = formula_split(dataset.formulas, 0, options.size)
    config = TrainConfig(**{**vars(CONFIG), "epochs": options.epochs, "seed": options.seed})
    result = fit(
        dataset, TARGET, split=split, model=ModelConfig(), config=config, out=options.out, progress=True,
        resume=options.resume,
    )  # fmt: skip
    print(result.metrics)


if __name__ == "__main__":
    main()
