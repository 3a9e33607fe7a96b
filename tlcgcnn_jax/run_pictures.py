"""What came out for each target on the test crystals of a run, and the pictures of it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tlcgcnn_jax import plots
from tlcgcnn_jax.config import Target
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.figure import BLUE, GREY, VERMILLION, labelled, picture, plain
from tlcgcnn_jax.predictions import Predictions


@dataclass(frozen=True)
class Outcome:
    """What came out for one target on the test crystals that have a label of it."""

    target: Target
    ids: list[str]
    true: np.ndarray
    predicted: np.ndarray
    std: np.ndarray | None
    probabilities: np.ndarray | None  # [n, classes]
    novelty: np.ndarray | None = None

    @property
    def errors(self) -> np.ndarray:
        """How wrong each prediction is: |error|, or the probability that the true class did not get."""
        if self.probabilities is None:
            return np.abs(self.predicted - self.true)
        return 1 - np.take_along_axis(self.probabilities, self.true.astype(int)[:, None], 1)[:, 0]


@dataclass(frozen=True)
class Picture:
    """A picture that was drawn.

    Attributes:
        path: File of the PNG.
        alt: What it shows, for those who cannot see it.
        caption: For the report.
    """

    path: Path
    alt: str
    caption: str


def run_pictures(
    folder: str | Path,
    history: Sequence[Mapping[str, Any]],
    test: Predictions,
    labels: np.ndarray,
) -> list[Path]:
    """Draw the pictures of a run into its folder: the learning curve, and the errors of each target.

    Args:
        folder: Where to write learning_curve.png and parity.png, or confusion.png and roc.png for classes; with
            several targets the names end in the targets'.
        history: One row an epoch and member.
        test: Predictions of the test crystals.
        labels: float [n, n_target] in the targets' units, NaN where unknown.

    Returns:
        The files; a target without any label has none.

    Raises:
        InputError: A file cannot be written.
    """
    columns: dict[str, Any] = {"id": test.ids, **test.columns()}
    for column, target in enumerate(test.targets):
        columns[f"target:{target.name}" if len(test.targets) > 1 else "target"] = labels[:, column]
    outcomes = read_outcomes(columns, test.targets, "the predictions")
    return [picture.path for picture in draw(Path(folder), history, outcomes)]


def draw(
    folder: Path,
    history: Sequence[Mapping[str, Any]],
    outcomes: Sequence[Outcome],
) -> list[Picture]:
    """The learning curve first, then the pictures of each target."""
    out = []
    if history:
        path = plots.learning_curve(history, folder / "learning_curve.png")
        alt = f"Learning curve: training loss and validation score of {len(history)} epochs."
        out.append(Picture(path, alt, "Targets are normalised to mean 0 and standard deviation 1 for the network."))
    for index, outcome in enumerate(outcomes):
        target, count = outcome.target, len(outcome.true)
        if not count:
            continue
        # Two names may be the same once a file system can take them: the number tells them apart.
        end = f"_{index + 1}_{re.sub(r'[^A-Za-z0-9.-]+', '_', target.name)}.png" if len(outcomes) > 1 else ".png"
        if target.kind == "regression":
            path = plots.parity(
                outcome.true, outcome.predicted, folder / f"parity{end}",
                name=target.name, unit=target.unit, std=outcome.std, log=target.transform != "identity",
            )  # fmt: skip
            alt = f"Predicted against true {target.name} of {count:,} test crystals, with the diagonal."
            out.append(Picture(path, alt, f"Predicted against true {target.name}; on the dashed line they agree."))
            continue
        path = plots.confusion(
            outcome.true, outcome.predicted, folder / f"confusion{end}", name=target.name, classes=target.classes
        )
        alt = f"Confusion matrix of {target.name} for {count:,} test crystals."
        out.append(Picture(path, alt, f"How often each true class of {target.name} is predicted as which."))
        if target.classes == 2 and outcome.probabilities is not None and len(np.unique(outcome.true)) == 2:
            path = plots.roc(outcome.true, outcome.probabilities[:, 1], folder / f"roc{end}", name=target.name)
            alt = f"ROC curve of {target.name} for {count:,} test crystals."
            out.append(
                Picture(path, alt, "True against false positives for every threshold; the dashed line is chance.")
            )
    return out


def draw_choice(
    folder: Path, choice: Mapping[str, Mapping[str, float]], target: Target, whole: float | None = None
) -> Picture:
    """Draw what a weighted mean was chosen from: the validation error of each part, and its weight.

    Args:
        folder: Where to write choice.png.
        choice: {"weight", "val_mae"} of each part, by name; no "val_mae" where nothing was there to choose by.
        target: Whose error it is.
        whole: Error of the weighted mean on the same crystals, each by weights that others chose, for a line.

    Returns:
        The file, with its caption.
    """
    names = list(choice)
    path, rows = folder / "choice.png", np.arange(len(names))
    weights = np.array([choice[name]["weight"] for name in names])
    errors = np.array([choice[name].get("val_mae", float("nan")) for name in names])
    with picture(path, 7.5, 1.3 + 0.38 * len(names)) as drawn:
        left, right = drawn.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        left.scatter(errors, rows, s=46, color=np.where(weights > 0, BLUE, GREY), zorder=3)
        if whole is not None:
            left.axvline(whole, color=VERMILLION, linewidth=1.4, zorder=2)
            left.annotate(
                "weighted mean", (whole, 1), xycoords=("data", "axes fraction"), xytext=(4, 2),
                textcoords="offset points", color=VERMILLION, fontsize=9,
            )  # fmt: skip
        left.set_yticks(rows, [plain(name) for name in names])
        left.set_ylim(len(names) - 0.5, -0.5)
        left.grid(axis="x", color="#DDDDDD", linewidth=0.6)
        left.set_xlabel(labelled("validation MAE of", target.name, target.unit))
        right.barh(rows, 100 * weights, height=0.55, color=BLUE)
        for row, weight in zip(rows, weights, strict=True):
            right.annotate(f"{100 * weight:.0f} %", (100 * weight, row), xytext=(4, 0), textcoords="offset points",
                           va="center", fontsize=9)  # fmt: skip
        right.set_xlim(0, max(100 * weights.max() * 1.25, 1))
        right.set_xlabel("weight (%)")
    caption = (
        "What crystals that were held out chose from; the test crystals had no say. For the line, each of them is "
        "predicted by weights that others of them chose."
    )
    if len(set(weights)) == 1:
        caption = "Too few crystals were held out to choose by: all parts have the same weight."
    return Picture(path, f"Validation error and weight of {len(names)} strategies.", caption)


def read_outcomes(columns: Mapping[str, Any], targets: Sequence[Target], where: str) -> list[Outcome]:
    """Columns of a table of test results, by target; crystals without a label are left out."""
    out = []
    for target in targets:
        end = f":{target.name}" if len(targets) > 1 else ""
        classes = [f"p_{label}{end}" for label in range(target.classes if target.kind == "classification" else 0)]
        needed = ["id", f"target{end}", f"prediction{end}", *classes]
        absent = [name for name in needed if name not in columns]
        if absent:
            raise InputError(f"{where}: no column {', '.join(absent)} (found: {', '.join(columns)})")
        numbers = {name: _numbers(columns[name], name, where) for name in needed[1:]}
        rows = np.flatnonzero(np.isfinite(numbers[f"target{end}"]) & np.isfinite(numbers[f"prediction{end}"]))
        if classes and not np.isin(numbers[f"target{end}"][rows], np.arange(target.classes)).all():
            raise InputError(f"{where}: column target{end}: classes 0 to {target.classes - 1} were expected")
        std, novelty = columns.get(f"std{end}"), columns.get("novelty")
        out.append(
            Outcome(
                target,
                [str(columns["id"][row]) for row in rows],
                numbers[f"target{end}"][rows],
                numbers[f"prediction{end}"][rows],
                None if std is None else _numbers(std, f"std{end}", where)[rows],
                np.stack([numbers[name][rows] for name in classes], 1) if classes else None,
                None if novelty is None else _numbers(novelty, "novelty", where)[rows],
            )
        )
    return out


def _numbers(cells: Any, name: str, where: str) -> np.ndarray:
    try:
        return np.array([float("nan") if isinstance(cell, str) and not cell else float(cell) for cell in cells], float)
    except ValueError as error:
        raise InputError(f"{where}: column {name}: {error}") from error
