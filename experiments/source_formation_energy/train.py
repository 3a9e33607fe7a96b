"""Train the shipped source model `mp-formation-energy` on Materials Project formation energies.

    python experiments/source_formation_energy/train.py DATA/mp_crysxpp/mp_crysxpp.jsonl.gz \
        --out runs/mp-formation-energy --ship tlcgcnn_jax/data/models/mp-formation-energy

Every crystal whose reduced formula stands in the textbook set is removed first; the rest is split 80/10/10 by formula,
so that no polymorph of a test crystal is trained on. A killed run goes on with --resume.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from tlcgcnn_jax.bundle import Model
from tlcgcnn_jax.config import Target, TrainConfig, to_dict
from tlcgcnn_jax.crystal import formula
from tlcgcnn_jax.dataset import build_dataset
from tlcgcnn_jax.run import fit
from tlcgcnn_jax.splits import Split, random_split
from tlcgcnn_jax.textbook import textbook_records

TARGET = Target("formation_energy_per_atom_eV", unit="eV/atom")
CONFIG = TrainConfig(epochs=50, batch_size=128, learning_rate=4e-3, weight_decay=1e-4, warmup=0.05, loss="mae", seed=0)

NOTES = {
    "name": "mp-formation-energy",
    "data": "formation energies per atom (PBE, PBE+U) of Materials Project crystals, release of about 2018, collected "
    "by CrysXPP (Das et al., npj Comput. Mater. 8, 43 (2022))",
    "data licence": "CC BY 4.0, A. Jain et al., APL Mater. 1, 011002 (2013), https://materialsproject.org",
    "licence": "weights: CC BY 4.0",
    "left out": "every crystal with the reduced formula of a textbook crystal",
    "split": "80/10/10 by reduced formula, seed 0: no polymorph of a test crystal was trained on",
    "made by": "experiments/source_formation_energy/train.py",
}


def formula_split(formulas: list[str], seed: int) -> Split:
    """80/10/10 by formula without the textbook formulas."""
    textbook = {formula(record.structure.atomic_numbers) for record in textbook_records(())}
    rows = np.array([row for row, name in enumerate(formulas) if name not in textbook])
    print(f"{len(formulas) - len(rows)} of {len(formulas)} crystals removed: their formulas are in the textbook set")
    split = random_split(len(rows), seed, 0.8, 0.1, 0.1, groups=[formulas[row] for row in rows])
    return Split(rows[split.train], rows[split.val], rows[split.test])


def ship(model: Model, folder: Path, config: TrainConfig) -> None:
    """Save a model with a card that says where it comes from."""
    settings = ", ".join(f"{name} {value}" for name, value in to_dict(config).items())
    crystals = {"crystals trained on": model.notes["crystals trained on"], "settings": settings}
    replace(model, notes={**NOTES, **crystals, "versions": model.notes["versions"]}).save(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="mp_crysxpp.jsonl.gz")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--ship", type=Path, help="folder for the model with its card")
    parser.add_argument("--epochs", type=int, default=CONFIG.epochs)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    packed = options.out.parent / "dataset-formation-energy"
    dataset = build_dataset(options.data, targets=(TARGET.name,), out=packed, progress=True)
    config = replace(CONFIG, epochs=options.epochs)
    result = fit(
        dataset, TARGET, split=formula_split(dataset.formulas, seed=0), config=config, out=options.out, progress=True,
        resume=options.resume,
    )  # fmt: skip
    print(result.metrics)
    if options.ship:
        ship(result.model, options.ship, config)


if __name__ == "__main__":
    main()
