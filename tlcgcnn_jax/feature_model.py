"""A regressor on what source networks make of crystals, as a model that can be saved, loaded and predicted with."""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tlcgcnn_jax.bundle import Model, calibration_from_json, calibration_to_json, load_bundle, write_card
from tlcgcnn_jax.config import GraphConfig, Target, from_dict, to_dict
from tlcgcnn_jax.embeddings import embed_many
from tlcgcnn_jax.error_bars import ErrorBar
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.graph_sets import GraphSets
from tlcgcnn_jax.losses import transform_labels
from tlcgcnn_jax.model_folder import (
    FEATURES,
    FORMULAS,
    arrays_to_bytes,
    bytes_to_arrays,
    bytes_to_formulas,
    damage_named,
    formulas_to_bytes,
    inner_folders,
    read_config,
    read_file,
    write_model,
)
from tlcgcnn_jax.novelty import Novelty, fit_novelty
from tlcgcnn_jax.regressors import REGRESSORS, Fitted, fit_regressor

TABLE, SOURCES = "table.npz", "sources"
FEWEST = 5  # labels, below which a regressor has nothing to choose its settings by
PAIRWISE, MOST_PAIRS = ("svr", "gp"), 10_000  # a matrix of so many crystals takes 0.8 GB, and there are several


@dataclass(frozen=True, eq=False)
class FeatureModel:
    """Regressors, one for each target, on the activations of source networks.

    It keeps its training table and no fitted regressor: that is fitted when it is first needed, which takes a few
    seconds after loading and gives the same numbers each time.

    Attributes:
        sources: Networks by name; of an ensemble the first counts. {} for descriptors alone.
        layers: Some of `embeddings.LAYERS`, of each source, and "descriptors".
        targets: Values, not classes.
        regressor: One of `regressors.REGRESSORS`.
        seed: Of the regressor.
        x: float32 [n, d], activations of the training crystals.
        y: float64 [n, n_target], their labels in the space that is learnt, NaN where unknown.
        metrics: As of `Model`.
        notes: As of `Model`.
        formulas: As of `Model`.
        calibration: As of `Model`.

    Example:
        >>> from tlcgcnn_jax import textbook_records, transfer
        >>> records = textbook_records(("bulk_modulus_gpa",))[:20]
        >>> model = transfer(records, "mp-formation-energy", "features:ridge", "bulk_modulus_gpa").model
        >>> model.regressor, model.x.shape
        ('ridge', (18, 192))
    """

    sources: dict[str, Model]
    layers: tuple[str, ...]
    targets: tuple[Target, ...]
    regressor: str
    seed: int
    x: np.ndarray
    y: np.ndarray
    metrics: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    formulas: tuple[str, ...] = ()
    calibration: tuple[ErrorBar | None, ...] = ()

    @property
    def graphs(self) -> tuple[GraphConfig, ...]:
        """Kinds of graphs that a prediction needs."""
        return tuple(model.graph for model in self.sources.values()) or (GraphConfig(),)

    @functools.cached_property
    def fitted(self) -> tuple[Fitted, ...]:
        """The regressor of each target."""
        known = np.isfinite(self.y)
        return tuple(
            fit_regressor(self.regressor, self.x[known[:, i]], self.y[known[:, i], i], self.seed)
            for i in range(len(self.targets))
        )

    @functools.cached_property
    def novelty(self) -> Novelty:
        """The training crystals, or a thousand of them, to tell which others are unlike them."""
        return fit_novelty(self.x[some_rows(len(self.x), self.seed)])

    def of(self, rows: np.ndarray) -> "FeatureModel":
        """The model of some of its training crystals alone: rows of the table."""
        return replace(self, x=self.x[rows], y=self.y[rows])

    def features(self, crystals: GraphSets) -> np.ndarray:
        """What the sources make of crystals, float32 [n, d].

        Raises:
            InputError: Crystals without the graphs of a source, which is named.
        """
        return embed_many(self.sources, crystals, self.layers)

    def save(self, folder: str | Path) -> Path:
        """Write config.json, table.npz, the sources and README.md; a folder that holds such a model is renewed.

        Raises:
            InputError: As `Model.save`.
        """
        config = {
            "kind": FEATURES,
            "layers": list(self.layers),
            "targets": [to_dict(target) for target in self.targets],
            "regressor": self.regressor,
            "seed": self.seed,
            "calibration": calibration_to_json(self.calibration),
            "metrics": self.metrics,
            "notes": self.notes,
        }
        files = {TABLE: arrays_to_bytes({"x": self.x, "y": self.y}), FORMULAS: formulas_to_bytes(self.formulas)}
        columns = f"{self.x.shape[1]:,} columns ({', '.join(self.layers)})"
        about = [f"regressor: {REGRESSORS[self.regressor].summary}, on {columns} of {len(self.x):,} crystals"]
        if self.sources:
            about.append(f"sources, copied below {SOURCES}: {', '.join(self.sources)}")
        kind = "network features" if self.sources else "descriptors"
        card = write_card(f"Regressor {self.regressor} on {kind}", about, self)
        inner = {
            name: (f"{SOURCES}/{_folder_name(i, name)}", model) for i, (name, model) in enumerate(self.sources.items())
        }
        return write_model(folder, TABLE, config, files, card, inner)


def make_feature_model(
    sources: Mapping[str, Model],
    layers: tuple[str, ...],
    regressor: str,
    crystals: GraphSets,
    targets: tuple[Target, ...],
    rows: np.ndarray,
    seed: int = 0,
) -> FeatureModel:
    """A feature model of some training crystals; its regressor is fitted when it is first asked.

    Args:
        sources: Networks by name.
        layers: Some of `embeddings.LAYERS`.
        regressor: One of `regressors.REGRESSORS`.
        crystals: With the targets' columns and the graphs of every source.
        targets: Values, not classes; several have a regressor each.
        rows: Training rows.
        seed: Of the regressor.

    Raises:
        InputError: An unknown regressor, a class as target, or fewer than 5 labels of a target.

    Example:
        >>> from tlcgcnn_jax import load_model, textbook_records
        >>> from tlcgcnn_jax.graph_sets import pack_graphs
        >>> source, k = load_model("mp-formation-energy"), Target("bulk_modulus_gpa", "GPa")
        >>> crystals = pack_graphs(textbook_records((k.name,))[:20], source.graphs, targets=(k.name,))
        >>> make_feature_model({"energy": source}, ("pooled",), "ridge", crystals, (k,), np.arange(20)).x.shape
        (20, 64)
    """
    check_features(regressor, targets, np.asarray(crystals.datasets[0].targets)[rows])
    some = GraphSets(tuple(dataset.select(rows) for dataset in crystals.datasets))
    labels = transform_labels(np.asarray(some.datasets[0].targets), targets)
    known = np.flatnonzero(np.isfinite(labels).any(1))
    x = embed_many(sources, some, layers)
    return FeatureModel(dict(sources), layers, targets, regressor, seed, x[known], labels[known])


def check_features(regressor: str, targets: tuple[Target, ...], labels: np.ndarray) -> None:
    """Raise `InputError` where there can be no feature model.

    Args:
        regressor: Name.
        targets: What is to be learnt.
        labels: [n, n_target] of the training crystals, NaN where unknown.
    """
    if regressor not in REGRESSORS:
        raise InputError(f"no regressor {regressor!r}; there are: {', '.join(REGRESSORS)}")
    for target, column in zip(targets, np.asarray(labels).T, strict=True):
        if target.kind != "regression":
            raise InputError(
                f"target {target.name}: the regressor {regressor} predicts values, not classes; choose a strategy that "
                "trains networks alone, such as full"
            )
        count = int(np.isfinite(column).sum())
        if count < FEWEST:
            raise InputError(
                f"target {target.name}: {count} labelled training crystals: {regressor} needs {FEWEST} or more"
            )
        check_pairs(regressor, f"target {target.name}: {count:,} labelled training crystals", count)


def too_many(regressor: str, count: int) -> bool:
    """Whether a regressor compares all pairs of crystals, and these are too many for that."""
    return regressor in PAIRWISE and count > MOST_PAIRS


def check_pairs(regressor: str, what: str, count: int) -> None:
    """Raise `InputError` where a regressor that compares all pairs of crystals is given too many."""
    if too_many(regressor, count):
        raise InputError(
            f"{what}; {regressor} compares all pairs, which takes too much memory beyond {MOST_PAIRS:,}: choose ridge "
            "or boosting, or train networks alone"
        )


def load_feature_model(folder: str | Path) -> FeatureModel:
    """Read a feature model back; it is checked that nothing is missing, cut short or exchanged.

    Raises:
        InputError: The folder is no feature model, or something in it is missing or damaged.
    """
    folder = Path(folder)
    config = read_config(folder, FEATURES, (TABLE,))
    with damage_named(folder):
        targets = tuple(from_dict(Target, target, "targets") for target in config["targets"])
        layers, regressor, seed = tuple(config["layers"]), str(config["regressor"]), int(config["seed"])
        calibration = calibration_from_json(config["calibration"], targets, folder)
        places, metrics, notes = inner_folders(folder, config), config["metrics"], config["notes"]
        check_features(regressor, targets, np.zeros((FEWEST, len(targets))))
    sources = {name: load_bundle(place) for name, place in places.items()}
    table = bytes_to_arrays(read_file(folder, TABLE, config))
    formulas = bytes_to_formulas(read_file(folder, FORMULAS, config))
    return FeatureModel(
        sources, layers, targets, regressor, seed, table["x"], table["y"], metrics, notes, formulas, calibration
    )


def some_rows(n: int, seed: int, most: int = 1000) -> np.ndarray:
    """All row numbers, or as many random ones as a reference of training crystals needs, in order."""
    return np.arange(n) if n <= most else np.sort(np.random.default_rng(seed).permutation(n)[:most])


def _folder_name(number: int, name: str) -> str:
    """A source's name as a folder's; the number keeps two apart that no file system could."""
    safe = re.sub(r"[^A-Za-z0-9.-]+", "_", name).strip("._") or "source"
    return f"{number}_{safe[:60]}" if safe != name else safe
