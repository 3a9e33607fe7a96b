"""Several models of one property whose mean is the prediction: what "ensemble:" and "blend:" strategies make."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tlcgcnn_jax.bundle import Model, calibration_from_json, calibration_to_json, load_bundle, write_card
from tlcgcnn_jax.config import GraphConfig, Target, from_dict, to_dict
from tlcgcnn_jax.error_bars import ErrorBar
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.feature_model import FeatureModel, load_feature_model
from tlcgcnn_jax.model_folder import (
    COMMITTEE,
    FEATURES,
    FORMULAS,
    bytes_to_formulas,
    damage_named,
    formulas_to_bytes,
    inner_folders,
    model_kind,
    read_config,
    read_file,
    write_model,
)

PARTS = "parts"


@dataclass(frozen=True, eq=False)
class Committee:
    """Models that were trained in different ways on the same crystals.

    Its prediction is the mean over the parts, each with its weight however many networks it has. Its variance is that
    of a mixture in these shares: the mean of the parts' own variances (of those that have one) and the variance
    between their predictions.

    Attributes:
        parts: Models by the name of their strategy.
        metrics: As of `Model`.
        notes: As of `Model`.
        formulas: As of `Model`.
        calibration: Error bars of the committee's own predictions.
        weights: Of the parts, with sum 1; (): all alike.

    Raises:
        InputError: Fewer than two parts, parts of different targets, or weights that are not positive ones with sum 1,
            one for each part.

    Example:
        >>> from tlcgcnn_jax import textbook_records, transfer
        >>> records = textbook_records(("bulk_modulus_gpa",))[:20]
        >>> way = "ensemble:features:ridge+descriptors:ridge"
        >>> list(transfer(records, "mp-formation-energy", way, "bulk_modulus_gpa").model.parts)
        ['features:ridge', 'descriptors:ridge']

    Source:
        B. Lakshminarayanan, A. Pritzel and C. Blundell, "Simple and scalable predictive uncertainty estimation using
        deep ensembles", NeurIPS 2017, on the variance of a mixture; here that between the parts is the unbiased one.
    """

    parts: dict[str, "AnyModel"]
    metrics: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    formulas: tuple[str, ...] = ()
    calibration: tuple[ErrorBar | None, ...] = ()
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        told = {name: ", ".join(target.name for target in part.targets) for name, part in self.parts.items()}
        if len(told) < 2 or any(part.targets != self.targets for part in self.parts.values()):
            each = "; ".join(f"{name} predicts {targets}" for name, targets in told.items()) or "there is none"
            raise InputError(f"a committee needs two or more models of the same targets: {each}")
        if self.weights and not (
            len(self.weights) == len(told) and min(self.weights) > 0 and abs(sum(self.weights) - 1) < 1e-6
        ):
            raise InputError(
                f"a committee of {len(told)} with weights {self.weights}: positive ones with sum 1, one each"
            )

    @property
    def targets(self) -> tuple[Target, ...]:
        """What all parts predict."""
        return next(iter(self.parts.values())).targets

    @property
    def graphs(self) -> tuple[GraphConfig, ...]:
        """Kinds of graphs that a prediction needs."""
        return tuple(graph for part in self.parts.values() for graph in part.graphs)

    def save(self, folder: str | Path) -> Path:
        """Write config.json, the parts and README.md; a folder that holds a committee is renewed.

        Raises:
            InputError: As `Model.save`.
        """
        config = {
            "kind": COMMITTEE,
            "targets": [to_dict(target) for target in self.targets],
            "weights": list(self.weights),
            "calibration": calibration_to_json(self.calibration),
            "metrics": self.metrics,
            "notes": self.notes,
        }
        shares = [f"{name} ({weight:.0%})" for name, weight in zip(self.parts, self.weights, strict=False)]
        card = write_card("Committee", [f"parts, below {PARTS}: {', '.join(shares or self.parts)}"], self)
        inner = {name: (f"{PARTS}/{index}", part) for index, (name, part) in enumerate(self.parts.items())}
        return write_model(folder, PARTS, config, {FORMULAS: formulas_to_bytes(self.formulas)}, card, inner)


AnyModel = Model | FeatureModel | Committee


def known_formulas(models: Iterable[AnyModel]) -> tuple[str, ...]:
    """Reduced formulas that some models were trained on; () if one of them does not know its own, or there is none."""
    each = [model.formulas for model in models]
    return tuple(sorted(set[str]().union(*each))) if all(each) else ()


def load_committee(folder: str | Path) -> Committee:
    """Read a committee back; it is checked that no part is missing, damaged or exchanged.

    Raises:
        InputError: The folder is no committee, or something in it is missing or damaged.
    """
    folder = Path(folder)
    config = read_config(folder, COMMITTEE, (PARTS,))
    with damage_named(folder):
        targets = tuple(from_dict(Target, target, "targets") for target in config["targets"])
        calibration = calibration_from_json(config["calibration"], targets, folder)
        places, metrics, notes = inner_folders(folder, config), config["metrics"], config["notes"]
        weights = tuple(float(weight) for weight in config.get("weights", ()))  # older committees have none
    parts = {name: load_any(place) for name, place in places.items()}
    formulas = bytes_to_formulas(read_file(folder, FORMULAS, config))
    return Committee(parts, metrics, notes, formulas, calibration, weights)


def load_any(folder: str | Path) -> AnyModel:
    """Read a model of whatever kind its settings say.

    Raises:
        InputError: The folder is no model, or not a whole one.
    """
    kind = model_kind(folder)
    if kind == COMMITTEE:
        return load_committee(folder)
    return load_feature_model(folder) if kind == FEATURES else load_bundle(folder)
