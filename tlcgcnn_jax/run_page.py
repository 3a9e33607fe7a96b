"""The page of a finished run."""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tlcgcnn_jax import plots
from tlcgcnn_jax.blending import CHOICE
from tlcgcnn_jax.bundle import calibration_from_json, target_metrics
from tlcgcnn_jax.config import Target, from_dict
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.files import read_json, read_object
from tlcgcnn_jax.model_folder import COMMITTEE, FEATURES
from tlcgcnn_jax.page import Html, figure, flat, number, page, paragraph, plus_minus, result, section, table
from tlcgcnn_jax.run_pictures import Outcome, draw, draw_choice, read_outcomes
from tlcgcnn_jax.trust import trust

RUN_FILES = ("config.json", "metrics.json", "metrics.jsonl", "settings.json", "test_results.csv")
WORST = 10
IN_UNIT = ("mae", "rmse", "median_ae", "interval_width")
NAMES = {
    "mae": "MAE", "rmse": "RMSE", "r2": "R²", "median_ae": "median error",
    "accuracy": "accuracy", "roc_auc": "ROC-AUC", "log_loss": "log loss", "n": "crystals",
    "coverage_90": "within 90 % interval", "interval_width": "width of interval",
}  # fmt: skip


def run_page(folder: Path, drawn: Path) -> str:
    """The report of a finished run as one HTML page.

    Args:
        folder: Of the run.
        drawn: Folder that the pictures of the page are drawn into.

    Raises:
        InputError: The run is not finished, or one of its files is damaged.
    """
    missing = [name for name in RUN_FILES if not (folder / name).is_file()]
    if missing:
        started = "settings.json" not in missing and "metrics.json" in missing
        hint = "the run has not finished: resume it first" if started else "give the folder of a finished run"
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise InputError(f"{folder}: not a finished run: {', '.join(missing)} missing (found: {found}); {hint}")
    config, metrics = read_json(folder / "config.json"), read_json(folder / "metrics.json")
    settings, history = dict(read_json(folder / "settings.json")), _history(folder / "metrics.jsonl")
    try:
        targets = tuple(from_dict(Target, target, f"{folder}/config.json: targets") for target in config["targets"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder / 'config.json'}: damaged: no list of targets in it") from error
    outcomes = read_outcomes(_csv(folder / "test_results.csv"), targets, str(folder / "test_results.csv"))
    each = target_metrics(metrics, targets)
    pictures = draw(drawn, history, outcomes)
    figures = [figure(picture.path, picture.alt, picture.caption) for picture in pictures]
    versions = settings.pop("versions", {})
    curve, others = (figures[:1], figures[1:]) if history else ([], figures)
    parts = [
        *(_headline(outcome, each.get(outcome.target.name, {})) for outcome in outcomes),
        *(paragraph(text) for text in _about(config, settings)),
        section("Errors", *(_errors(target, each.get(target.name, {})) for target in targets)),
        section("What was joined", *_choice(config, metrics, targets[0], drawn)),
        section("Training", *curve),
        section("Test crystals", *others),
        section("Error bars", *_trust(folder, config, outcomes, each, drawn)),
        section("Largest errors", *(_worst(outcome) for outcome in outcomes if len(outcome.true))),
        section("Settings", table(("setting", "value"), flat(settings), "What the run was started with")),
        section("Versions", *([table(("package", "version"), flat(versions), "What it ran with")] if versions else [])),
    ]
    return page(f"CGCNN for {', '.join(target.name for target in targets)}", parts)


def _headline(outcome: Outcome, metrics: Mapping[str, Any]) -> Html:
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


def _trust(
    folder: Path, config: Mapping[str, Any], outcomes: Sequence[Outcome], each: Mapping[str, Any], drawn: Path
) -> Iterator[Html]:
    """What the error bars of each value are worth."""
    targets = tuple(outcome.target for outcome in outcomes)
    bars = calibration_from_json(config.get("calibration", []), targets, folder) or (None,) * len(outcomes)
    for outcome, bar in zip(outcomes, bars, strict=True):
        if outcome.target.kind == "regression" and len(outcome.true):
            test, error = each.get(outcome.target.name, {}).get("test", {}), outcome.predicted - outcome.true
            yield from trust(outcome.target, bar, test, error, outcome.std, outcome.novelty, drawn)


def _about(config: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[str]:
    """What was trained, from where, on what."""
    source, strategy = settings.get("source"), settings.get("strategy")
    if source:
        yield f"Transferred from {source} with the strategy {strategy or 'unknown'}."
    elif strategy:
        yield f"Trained with the strategy {strategy}, without a source model."
    else:
        yield "Trained from scratch, without a source model."
    notes, kind = config.get("notes", {}), config.get("kind")
    trained_on = notes.get("crystals trained on")
    crystals = f"; trained on {trained_on:,} crystals." if isinstance(trained_on, int) else "."
    if kind in (FEATURES, COMMITTEE):
        inner = " and ".join(str(one["name"]) for one in config.get("inner", ())) or "descriptors of the crystals"
        mean = "weighted mean" if config.get("weights") else "mean"
        what = f"The {mean} of {inner}" if kind == COMMITTEE else f"The regressor {config['regressor']} on {inner}"
        yield what + crystals
        if folds := settings.get("folds"):
            text = f"Training and validation crystals were dealt {folds} times, each network stopping by another part; "
            yield text + '"val" holds the errors on all of them, each made when it was held out.'
        return
    members, sizes, graph = config.get("members", 1), config.get("model", {}), config.get("graph", {})
    text = "One network" if members == 1 else f"An ensemble of {members} networks"
    if sizes:
        text += f" of {sizes.get('convolutions')} convolutions of width {sizes.get('width')}"
    if graph:
        text += f"; {graph.get('neighbours')} neighbours of each atom within {number(graph.get('cutoff'))} Å"
    yield text + crystals


def _errors(target: Target, metrics: Mapping[str, Any]) -> Html:
    """All metrics of one target, a row a part of the data."""
    parts = {name: values for name, values in metrics.items() if isinstance(values, Mapping) and name != "targets"}
    keys = [key for key in NAMES if any(key in values for values in parts.values())]
    if not keys:
        return Html("")
    with_unit = f" ({target.unit})" if target.unit else ""
    header = ["part", *(NAMES[key] + (with_unit if key in IN_UNIT else "") for key in keys)]
    rows = [[part, *(values.get(key) for key in keys)] for part, values in parts.items()]
    return table(header, rows, f"Errors of {target.name} on each part of the data")


def _choice(config: Mapping[str, Any], metrics: Mapping[str, Any], target: Target, drawn: Path) -> Iterator[Html]:
    """The strategies that the validation crystals chose from, if they did."""
    choice = config.get("notes", {}).get(CHOICE)
    if choice:
        found = draw_choice(drawn, choice, target, metrics.get("val", {}).get("mae"))
        yield figure(found.path, found.alt, found.caption)


def _worst(outcome: Outcome) -> Html:
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
            header.append(f"standard deviation{unit}")
            rows = [[*row, float(outcome.std[i])] for row, i in zip(rows, order, strict=True)]
    return table(header, rows, f"The {len(rows)} test crystals furthest off, {target.name}")


def _csv(path: Path) -> dict[str, list[str]]:
    with open(path, newline="", encoding="utf-8") as handle:
        header, *rows = list(csv.reader(handle)) or [[]]
    for line, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise InputError(f"{path}:{line}: {len(row)} cells where the header has {len(header)}: the file is damaged")
    return {name: [row[column] for row in rows] for column, name in enumerate(header)}


def _history(path: Path) -> list[dict[str, Any]]:
    lines = [(number, line) for number, line in enumerate(path.read_text().splitlines(), 1) if line.strip()]
    return [read_object(line, f"{path}:{number}") for number, line in lines]


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _wilson(hits: int, count: int) -> tuple[float, float]:
    """95 % interval of a share (E. B. Wilson, J. Am. Stat. Assoc. 22, 209 (1927)): sound near 0 and 1, too."""
    z = 1.959964
    middle = (hits + z * z / 2) / (count + z * z)
    half = z / (count + z * z) * math.sqrt(hits * (count - hits) / count + z * z / 4)
    return max(0.0, middle - half), min(1.0, middle + half)
