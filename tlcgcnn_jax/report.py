"""The pictures of a run, and the page that tells what came out of it."""

import csv
import json
import math
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tlcgcnn_jax import plots
from tlcgcnn_jax.analysis import analyse
from tlcgcnn_jax.config import Target, from_dict
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.evaluate import Predictions
from tlcgcnn_jax.files import write_whole
from tlcgcnn_jax.page import Html, figure, flat, number, page, paragraph, plus_minus, result, section, table
from tlcgcnn_jax.results import STUDY, StudyResults
from tlcgcnn_jax.study_page import study_page

RUN_FILES = ("config.json", "metrics.json", "metrics.jsonl", "settings.json", "test_results.csv")
DEMO = "demo.json"
WORST = 10
NAMES = {
    "mae": "MAE", "rmse": "RMSE", "r2": "R²", "median_ae": "median error",
    "accuracy": "accuracy", "roc_auc": "ROC-AUC", "log_loss": "log loss", "n": "crystals",
}  # fmt: skip


@dataclass(frozen=True)
class _Outcome:
    """What came out for one target on the test crystals that have a label of it."""

    target: Target
    ids: list[str]
    true: np.ndarray
    predicted: np.ndarray
    std: np.ndarray | None
    probabilities: np.ndarray | None  # [n, classes]

    @property
    def errors(self) -> np.ndarray:
        """How wrong each prediction is: |error|, or the probability that the true class did not get."""
        if self.probabilities is None:
            return np.abs(self.predicted - self.true)
        return 1 - np.take_along_axis(self.probabilities, self.true.astype(int)[:, None], 1)[:, 0]


@dataclass(frozen=True)
class _Picture:
    path: Path
    alt: str
    caption: str


def run_pictures(
    folder: str | Path,
    history: Sequence[Mapping[str, Any]],
    best_epochs: Sequence[int] | None,
    test: Predictions,
    labels: np.ndarray,
) -> list[Path]:
    """Draw the pictures of a run into its folder: the learning curve, and the errors of each target.

    Args:
        folder: Where to write learning_curve.png and parity.png, or confusion.png and roc.png for classes; with
            several targets the names end in the targets'.
        history: One row an epoch and member.
        best_epochs: Epoch that was kept, by member, counted from 1; default: that of the best score.
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
    outcomes = _outcomes(columns, test.targets, "the predictions")
    return [picture.path for picture in _draw(Path(folder), history, best_epochs, outcomes)]


def run_report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of a finished run, of a study or of the demo, as one HTML file that needs no other.

    Args:
        folder: Of the run: config.json, metrics.json, metrics.jsonl, settings.json and test_results.csv; or of the
            demo: demo.json; or of a study, finished or not: study.json and what lies beside it.
        out: HTML file; default: report.html in the folder.

    Returns:
        The file.

    Raises:
        InputError: The folder holds none of them, a file is damaged, or the report cannot be written.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the folder of a finished run")
    if (folder / STUDY).is_file():
        results = StudyResults(folder)
        text = study_page(results, analyse(results))
    else:
        with tempfile.TemporaryDirectory() as drawn:
            text = _demo_page(folder, Path(drawn)) if (folder / DEMO).is_file() else _run_page(folder, Path(drawn))
    return write_whole(folder / "report.html" if out is None else out, text.encode())


def _run_page(folder: Path, drawn: Path) -> str:
    missing = [name for name in RUN_FILES if not (folder / name).is_file()]
    if missing:
        started = "settings.json" not in missing and "metrics.json" in missing
        hint = "the run has not finished: resume it first" if started else "give the folder of a finished run"
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise InputError(f"{folder}: not a finished run: {', '.join(missing)} missing (found: {found}); {hint}")
    config, metrics = _json(folder / "config.json"), _json(folder / "metrics.json")
    settings, history = dict(_json(folder / "settings.json")), _history(folder / "metrics.jsonl")
    try:
        targets = tuple(from_dict(Target, target, f"{folder}/config.json: targets") for target in config["targets"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder / 'config.json'}: damaged: no list of targets in it") from error
    outcomes = _outcomes(_csv(folder / "test_results.csv"), targets, str(folder / "test_results.csv"))
    each = metrics.get("targets") or {targets[0].name: metrics}
    pictures = _draw(drawn, history, None, outcomes)
    figures = [figure(picture.path, picture.alt, picture.caption) for picture in pictures]
    versions = settings.pop("versions", {})
    curve, others = (figures[:1], figures[1:]) if history else ([], figures)
    parts = [
        *(_headline(outcome, each.get(outcome.target.name, {})) for outcome in outcomes),
        *(paragraph(text) for text in _about(config, settings)),
        section("Errors", *(_errors(target, each.get(target.name, {})) for target in targets)),
        section("Training", *curve),
        section("Test crystals", *others),
        section("Largest errors", *(_worst(outcome) for outcome in outcomes if len(outcome.true))),
        section("Settings", table(("setting", "value"), flat(settings), "What the run was started with")),
        section("Versions", *([table(("package", "version"), flat(versions), "What it ran with")] if versions else [])),
    ]
    return page(f"CGCNN for {', '.join(target.name for target in targets)}", parts)


def _headline(outcome: _Outcome, metrics: Mapping[str, Any]) -> Html:
    """The error on the test crystals, how sure it is, and what guessing would give."""
    target, count, test = outcome.target, len(outcome.true), metrics.get("test", {})
    if not count:
        return result(f"{target.name}: not tested", "No test crystal has a label of this property.")
    crystals = f"{count:,} test crystal{'s' if count > 1 else ''}"
    if target.kind == "classification":
        right = outcome.predicted == outcome.true
        low, high = _wilson(int(right.sum()), count)
        classes, counts = np.unique(outcome.true, return_counts=True)
        usual = f"Always answering class {classes[counts.argmax()]:g} would reach {counts.max() / count:.3f}."
        value = f"{target.name}: accuracy {right.mean():.3f}"
        auc = f", ROC-AUC {test['roc_auc']:.3f}" if _finite(test.get("roc_auc")) else ""
        return result(value + auc, f"On {crystals}; 95 % interval of the accuracy {low:.3f} to {high:.3f}. {usual}")
    unit = f" {target.unit}" if target.unit else ""
    error, half = float(outcome.errors.mean()), plots.interval(outcome.errors)
    guess = float(np.abs(outcome.true - outcome.true.mean()).mean())
    lines = [f"Mean absolute error on {crystals}{', with its 95 % interval' if half else ''}."]
    lines += [f"Answering their mean value for every crystal would give {number(guess)}{unit}."] if count > 1 else []
    return result(f"{target.name}: MAE {plus_minus(error, half)}{unit}", " ".join(lines))


def _about(config: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[str]:
    """What was trained, from where, on what."""
    source, strategy = settings.get("source"), settings.get("strategy")
    if source:
        yield f"Transferred from {source} with the strategy {strategy or 'unknown'}."
    else:
        yield "Trained from scratch, without a source model."
    members, sizes, graph = config.get("members", 1), config.get("model", {}), config.get("graph", {})
    text = "One network" if members == 1 else f"An ensemble of {members} networks"
    if sizes:
        text += f" of {sizes.get('convolutions')} convolutions of width {sizes.get('width')}"
    if graph:
        text += f"; {graph.get('neighbours')} neighbours of each atom within {number(graph.get('cutoff'))} Å"
    notes = config.get("notes", {})
    trained_on = notes.get("crystals trained on")
    yield text + (f"; trained on {trained_on:,} crystals." if isinstance(trained_on, int) else ".")


def _errors(target: Target, metrics: Mapping[str, Any]) -> Html:
    """All metrics of one target, a row a part of the data."""
    parts = {name: values for name, values in metrics.items() if isinstance(values, Mapping) and name != "targets"}
    keys = [key for key in NAMES if any(key in values for values in parts.values())]
    if not keys:
        return Html("")
    with_unit = f" ({target.unit})" if target.unit else ""
    header = ["part", *(NAMES[key] + (with_unit if key in ("mae", "rmse", "median_ae") else "") for key in keys)]
    rows = [[part, *(values.get(key) for key in keys)] for part, values in parts.items()]
    return table(header, rows, f"Errors of {target.name} on each part of the data")


def _worst(outcome: _Outcome) -> Html:
    """The crystals to look at first."""
    target, order = outcome.target, np.argsort(-outcome.errors, kind="stable")[:WORST]
    unit = f" ({target.unit})" if target.unit else ""
    if target.kind == "classification":
        header = ["id", "true class", "predicted class", "probability of the true class"]
        rows: list[list[Any]] = [
            [outcome.ids[i], int(outcome.true[i]), int(outcome.predicted[i]), float(1 - outcome.errors[i])]
            for i in order
        ]
    else:
        header = ["id", f"true{unit}", f"predicted{unit}", f"error{unit}"]
        true, predicted = outcome.true, outcome.predicted
        rows = [[outcome.ids[i], *map(float, (true[i], predicted[i], predicted[i] - true[i]))] for i in order]
        if outcome.std is not None:
            header.append(f"std of the networks{unit}")
            rows = [[*row, float(outcome.std[i])] for row, i in zip(rows, order, strict=True)]
    return table(header, rows, f"The {len(rows)} test crystals furthest off, {target.name}")


def _demo_page(folder: Path, drawn: Path) -> str:
    demo = _json(folder / DEMO)
    try:
        rows = list(demo["rows"])
        picture = plots.comparison(rows, drawn / "comparison.png")
        cells = []
        for row in rows:
            values = np.asarray(row["mae"], float)
            values = values[np.isfinite(values)]
            unit = f" {row['unit']}" if row.get("unit") else ""
            mean = plus_minus(float(values.mean()), plots.interval(values)) + unit
            cells.append([row["target"], row["strategy"], mean, len(values), plots.gain_text(row, end=", ")])
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise InputError(f"{folder / DEMO}: {error}") from error
        raise InputError(f"{folder / DEMO}: damaged: {type(error).__name__}: {error}") from error
    alt = f"Mean absolute errors by property and strategy; the table below holds its {len(rows)} rows."
    header = ("property", "strategy", "test MAE", "repeats", "gain over scratch (lower MAE)")
    parts = [
        *(paragraph(str(text)) for text in demo.get("text", [])),
        figure(picture, alt),
        table(header, cells, "Mean over the repeats ± 95 % interval"),
    ]
    return page(str(demo.get("title") or "Transfer against training from scratch"), parts)


def _draw(
    folder: Path,
    history: Sequence[Mapping[str, Any]],
    best_epochs: Sequence[int] | None,
    outcomes: Sequence[_Outcome],
) -> list[_Picture]:
    """The learning curve first, then the pictures of each target."""
    out = []
    if history:
        path = plots.learning_curve(history, folder / "learning_curve.png", best_epochs=best_epochs)
        alt = f"Learning curve: training loss and validation score of {len(history)} epochs."
        out.append(_Picture(path, alt, "Targets are normalised to mean 0 and standard deviation 1 for the network."))
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
            out.append(_Picture(path, alt, f"Predicted against true {target.name}; on the dashed line they agree."))
            continue
        path = plots.confusion(
            outcome.true, outcome.predicted, folder / f"confusion{end}", name=target.name, classes=target.classes
        )
        alt = f"Confusion matrix of {target.name} for {count:,} test crystals."
        out.append(_Picture(path, alt, f"How often each true class of {target.name} is predicted as which."))
        if target.classes == 2 and outcome.probabilities is not None and len(np.unique(outcome.true)) == 2:
            path = plots.roc(outcome.true, outcome.probabilities[:, 1], folder / f"roc{end}", name=target.name)
            alt = f"ROC curve of {target.name} for {count:,} test crystals."
            out.append(
                _Picture(path, alt, "True against false positives for every threshold; the dashed line is chance.")
            )
    return out


def _outcomes(columns: Mapping[str, Any], targets: Sequence[Target], where: str) -> list[_Outcome]:
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
        std = columns.get(f"std{end}")
        out.append(
            _Outcome(
                target,
                [str(columns["id"][row]) for row in rows],
                numbers[f"target{end}"][rows],
                numbers[f"prediction{end}"][rows],
                None if std is None else _numbers(std, f"std{end}", where)[rows],
                np.stack([numbers[name][rows] for name in classes], 1) if classes else None,
            )
        )
    return out


def _csv(path: Path) -> dict[str, list[str]]:
    with open(path, newline="") as handle:
        header, *rows = list(csv.reader(handle)) or [[]]
    for line, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise InputError(f"{path}:{line}: {len(row)} cells where the header has {len(header)}: the file is damaged")
    return {name: [row[column] for row in rows] for column, name in enumerate(header)}


def _numbers(cells: Any, name: str, where: str) -> np.ndarray:
    try:
        return np.array([float("nan") if isinstance(cell, str) and not cell else float(cell) for cell in cells], float)
    except ValueError as error:
        raise InputError(f"{where}: column {name}: {error}") from error


def _history(path: Path) -> list[dict[str, Any]]:
    lines = [(number, line) for number, line in enumerate(path.read_text().splitlines(), 1) if line.strip()]
    return [_object(line, f"{path}:{number}") for number, line in lines]


def _json(path: Path) -> dict[str, Any]:
    return _object(path.read_text(), str(path))


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InputError(f"{where}: damaged: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{where}: a JSON object was expected, found {type(value).__name__}")
    return value


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _wilson(hits: int, count: int) -> tuple[float, float]:
    """95 % interval of a share (E. B. Wilson, J. Am. Stat. Assoc. 22, 209 (1927)): sound near 0 and 1, too."""
    z = 1.959964
    middle = (hits + z * z / 2) / (count + z * z)
    half = z / (count + z * z) * math.sqrt(hits * (count - hits) / count + z * z / 4)
    return max(0.0, middle - half), min(1.0, middle + half)
