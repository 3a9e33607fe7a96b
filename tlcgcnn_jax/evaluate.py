"""Predictions, and their errors in the targets' units."""

import csv
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tlcgcnn_jax import losses
from tlcgcnn_jax.bundle import Model, check_graph
from tlcgcnn_jax.config import Target
from tlcgcnn_jax.dataset import CrystalDataset, build_dataset
from tlcgcnn_jax.errors import Skipped
from tlcgcnn_jax.outputs import network_outputs


@dataclass(frozen=True)
class Predictions:
    """What a model says of some crystals.

    Attributes:
        ids: One for each crystal.
        targets: The model's targets.
        members: float64 [n_member, n, outputs], in the targets' units; probabilities for classes.
        skipped: Crystals that could not be read, with the reasons.
    """

    ids: list[str]
    targets: tuple[Target, ...]
    members: np.ndarray
    skipped: tuple[Skipped, ...] = ()

    @property
    def mean(self) -> np.ndarray:
        """Mean over the members, [n, outputs]."""
        return self.members.mean(0)

    @property
    def std(self) -> np.ndarray | None:
        """Standard deviation between the members, [n, outputs]; None for a single network."""
        return self.members.std(0, ddof=1) if len(self.members) > 1 else None

    @property
    def values(self) -> np.ndarray:
        """One number a crystal and target, [n, n_target]: the value, or the most probable class."""
        columns = []
        for target, part in zip(self.targets, losses.output_slices(self.targets), strict=True):
            mean = self.mean[:, part]
            columns.append(mean.argmax(1).astype(float) if target.kind == "classification" else mean[:, 0])
        return np.stack(columns, 1)

    def columns(self) -> dict[str, np.ndarray]:
        """Named columns of a table: prediction (and std); one a target or class where there are several."""
        out: dict[str, np.ndarray] = {}
        for column, (target, part) in enumerate(zip(self.targets, losses.output_slices(self.targets), strict=True)):
            end = f":{target.name}" if len(self.targets) > 1 else ""
            out[f"prediction{end}"] = self.values[:, column]
            if target.kind == "classification":
                for label in range(target.classes):
                    out[f"p_{label}{end}"] = self.mean[:, part][:, label]
            elif self.std is not None:
                out[f"std{end}"] = self.std[:, part][:, 0]
        return out

    def write(self, path: str | Path, labels: np.ndarray | None = None) -> None:
        """Write a CSV: id, (target,) prediction, …

        Args:
            path: File.
            labels: [n, n_target] true values to stand beside, NaN where unknown.
        """
        columns: dict[str, Any] = {"id": self.ids}
        if labels is not None:
            for column, target in enumerate(self.targets):
                columns[f"target:{target.name}" if len(self.targets) > 1 else "target"] = labels[:, column]
        columns.update(self.columns())
        with open(path, "w", newline="") as handle:
            writer = csv.writer(handle)
            writer.writerow(columns)
            for row in zip(*columns.values(), strict=True):
                writer.writerow([_cell(value) for value in row])


def predict(
    model: Model, inputs: Any, *, on_error: str = "raise", batch_size: int | None = None, progress: bool = False
) -> Predictions:
    """Predict the targets of crystals; graphs are built from the model's own settings.

    Args:
        model: From `load_model`, `fit` or `transfer`.
        inputs: Whatever `read_structures` takes (a path, pymatgen Structures, a DataFrame, …), or a prepared dataset.
        on_error: "raise", or "skip" to list bad crystals in `skipped` and go on.
        batch_size: Crystals in a batch, on average; default: what is fastest on the device.
        progress: Show a bar while crystals are read.

    Raises:
        InputError: A crystal that cannot be read, or a dataset with other graph settings than the model's.
    """
    if isinstance(inputs, CrystalDataset):
        dataset = inputs
        check_graph(dataset.graph, model)
    else:
        dataset = build_dataset(inputs, graph=model.graph, on_error=on_error, progress=progress)
    model = replace(model, graph=dataset.graph)  # the same graphs, in the dataset's layout
    members = [
        losses.denormalise(network_outputs(model.network, member, dataset, batch_size), model.targets, model.normaliser)
        for member in model.members
    ]
    return Predictions(list(dataset.ids), model.targets, np.stack(members), tuple(dataset.skipped))


def metrics(
    predictions: Predictions, labels: np.ndarray, rows: np.ndarray | None = None
) -> dict[str, dict[str, float]]:
    """Errors of each target on some rows.

    Args:
        predictions: Of all crystals.
        labels: float [n, n_target] in the targets' units, NaN where unknown.
        rows: Row numbers; default: all.

    Returns:
        {target name: {"mae", "rmse", "r2", "median_ae", "n"}} in the target's unit, or {"accuracy", "log_loss",
        "roc_auc" (two classes), "n"}.
    """
    rows = np.arange(len(labels)) if rows is None else rows
    out = {}
    for column, (target, part) in enumerate(
        zip(predictions.targets, losses.output_slices(predictions.targets), strict=True)
    ):
        known = rows[np.isfinite(labels[rows, column])]
        label, mean = labels[known, column], predictions.mean[known][:, part]
        if target.kind == "classification":
            out[target.name] = classification_metrics(label.astype(int), mean)
        else:
            out[target.name] = regression_metrics(label, mean[:, 0])
    return out


def regression_metrics(target: np.ndarray, prediction: np.ndarray) -> dict[str, float]:
    """Mean and median absolute error, root mean square error (in the unit of `target`), R², number of crystals.

    Example:
        >>> regression_metrics(np.array([0.0, 1.0, 2.0]), np.array([0.0, 1.0, 3.0]))["r2"]
        0.5
    """
    if not len(target):
        return {"mae": float("nan"), "rmse": float("nan"), "r2": float("nan"), "median_ae": float("nan"), "n": 0}
    error = np.asarray(prediction, float) - target
    spread = np.sum((target - np.mean(target)) ** 2)
    return {
        "mae": float(np.mean(np.abs(error))),
        "rmse": float(np.sqrt(np.mean(error**2))),
        "r2": float(1 - np.sum(error**2) / spread) if spread > 0 else float("nan"),
        "median_ae": float(np.median(np.abs(error))),
        "n": len(target),
    }


def classification_metrics(target: np.ndarray, probability: np.ndarray) -> dict[str, float]:
    """Accuracy, mean log loss, ROC-AUC (two classes, ties count half), number of crystals.

    Args:
        target: int [n].
        probability: [n, classes].

    Example:
        >>> classification_metrics(np.array([0, 1]), np.array([[0.9, 0.1], [0.6, 0.4]]))["roc_auc"]
        1.0
    """
    if not len(target):
        return {"accuracy": float("nan"), "log_loss": float("nan"), "n": 0}
    chosen = np.take_along_axis(probability, target[:, None], 1)[:, 0]
    out = {
        "accuracy": float(np.mean(probability.argmax(1) == target)),
        "log_loss": float(-np.mean(np.log(np.maximum(chosen, 1e-15)))),
    }
    positive, negative = int(np.sum(target == 1)), int(np.sum(target == 0))
    if probability.shape[1] == 2 and positive and negative:
        from scipy.stats import rankdata

        ranks = rankdata(probability[:, 1])  # Mann-Whitney
        out["roc_auc"] = float((ranks[target == 1].sum() - positive * (positive + 1) / 2) / (positive * negative))
    return out | {"n": len(target)}


def _cell(value: Any) -> Any:
    """Numbers as short as float32 allows; an empty cell for an unknown value."""
    if isinstance(value, float | np.floating):
        return "" if np.isnan(value) else f"{value:.9g}"
    return value
