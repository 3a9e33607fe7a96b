"""The table of the shipped source models in README.md, from what lies beside their weights.

python experiments/zoo/table.py tlcgcnn_jax/data/models
"""

import argparse
from pathlib import Path
from typing import Any

from tlcgcnn_jax.files import read_json
from tlcgcnn_jax.model_folder import CONFIG

HEAD = "| source | start | trained on | tested on | test error | R² |\n|---|---|--:|--:|---|--:|"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, help="folder with the models, each in a folder of its own")
    print(table(parser.parse_args().models))


def table(models: Path) -> str:
    """One row a target of each model, as Markdown."""
    configs = {path.parent.name: read_json(path) for path in sorted(models.glob(f"*/{CONFIG}"))}
    return "\n".join([HEAD, *(line for name, config in configs.items() for line in rows(name, config))])


def rows(name: str, config: dict[str, Any]) -> list[str]:
    """Those of one model; what all targets share stands in the first alone."""
    notes, metrics = config["notes"], config["metrics"]
    shared = [name, str(notes.get("start", "fresh weights")).split(",")[0], f"{notes['crystals trained on']:,}"]
    lines = []
    for target in config["targets"]:
        test = metrics["targets"][target["name"]]["test"] if "targets" in metrics else metrics["test"]
        r2 = f"{test['r2']:.3f}" if test.get("r2") is not None else ""
        lines.append(f"| {' | '.join(shared)} | {test['n']:,} | {error(target, test)} | {r2} |")
        shared = [""] * len(shared)
    return lines


def error(target: dict[str, Any], test: dict[str, Any]) -> str:
    """What is learnt decides what is told: ROC-AUC of classes, and of moduli the error of their logarithms."""
    name, unit = target["name"], f" {target['unit']}" if target["unit"] else ""
    if target["kind"] == "classification":
        return f"{name}: ROC-AUC {test['roc_auc']:.3f}, accuracy {test['accuracy']:.3f}"
    if "mae_log10" in test:
        return f"log10 {name}: MAE {test['mae_log10']:.3f} ({test['mae']:.3g}{unit})"
    return f"{name}: MAE {test['mae']:.4f}{unit}, RMSE {test['rmse']:.4f}{unit}"


if __name__ == "__main__":
    main()
