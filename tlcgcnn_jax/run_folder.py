"""The folder of a run: made, resumed with the same settings or not at all, and filled in the end."""

import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tlcgcnn_jax.blending import CHOICE
from tlcgcnn_jax.committee import AnyModel
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.files import LOCK, at_work, is_at_work, to_json, user_path, write_whole
from tlcgcnn_jax.predictions import Predictions
from tlcgcnn_jax.run_pictures import draw_choice, run_pictures
from tlcgcnn_jax.splits import Split, read_split, write_split

SETTINGS, SPLIT, HISTORY, METRICS = "settings.json", "split.json", "metrics.jsonl", "metrics.json"


def start_run(
    out: str | Path | None, settings: dict[str, Any], ids: Sequence[str], split: Split, resume: bool
) -> Path | None:
    """The run's folder, with its settings and split in it.

    Args:
        out: The folder, made by `only_one`; None for a run that leaves nothing behind.
        settings: Of the run; those of a run that is resumed must be the same.
        ids: Of the dataset's crystals.
        split: Rows of these.
        resume: Go on where there is a run already.

    Raises:
        InputError: A folder with something in it that is not to be resumed, or a run that was started with other
            settings or another split.
    """
    if out is None:
        return None
    folder = user_path(out)
    _check_free(folder, resume)
    _check_resumed(folder, settings, ids, split, resume)
    write_whole(folder / SETTINGS, json.dumps(settings, indent=1).encode())
    write_split(folder / SPLIT, ids, split)
    return folder


def finish_run(
    folder: Path,
    model: AnyModel,
    history: Sequence[dict[str, float]],
    test: Predictions,
    labels: np.ndarray,
) -> None:
    """Write model, metrics, test results and pictures of a finished run.

    Args:
        folder: Of the run.
        model: With its metrics.
        history: One row an epoch and member.
        test: Predictions of the test crystals.
        labels: float [n_test, n_target] in the targets' units, NaN where unknown.
    """
    model.save(folder)
    write_whole(folder / HISTORY, "".join(to_json(row) + "\n" for row in history).encode())
    test.write(folder / "test_results.csv", labels)
    run_pictures(folder, history, test, labels)
    if choice := model.notes.get(CHOICE):
        draw_choice(folder, choice, model.targets[0], model.metrics.get("val", {}).get("mae"))
    # Last, since it says that the run is finished.
    write_whole(folder / METRICS, to_json(model.metrics, indent=1).encode())


def check_run_folder(folder: Path, resume: bool) -> None:
    """Raise `InputError` for a folder with a run at work, or with something in it unless a run is to be resumed.

    And for one that cannot be written, which would otherwise show only after crystals were packed and sources ranked.
    """
    if is_at_work(folder):
        raise at_work(folder, "run")
    path = folder.absolute()
    nearest = next((place for place in (path, *path.parents) if os.path.exists(place)), path)
    if not os.access(nearest, os.W_OK):
        raise InputError(f"{folder}: cannot be written: {os.strerror(errno.EACCES)}; choose another folder")
    _check_free(folder, resume)


def _check_free(folder: Path, resume: bool) -> None:
    """What `start_run`, for which the folder is kept, checks once more."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; give a folder for the run")
    started = (folder / SETTINGS).is_file()
    others = folder.is_dir() and {path.name for path in folder.iterdir()} - {LOCK, ".DS_Store"}
    if others and not (resume and started):
        unfinished = started and not (folder / METRICS).is_file()
        hint = "it holds an unfinished run: use resume (--resume) to go on, or give" if unfinished else "give"
        nothing = " and holds no run to resume" if resume else ""
        raise InputError(f"{folder}: exists and is not empty{nothing}; {hint} another folder")


def _check_resumed(folder: Path, settings: dict[str, Any], ids: Sequence[str], split: Split, resume: bool) -> None:
    """A run goes on with the settings and the split that it was started with, or not at all."""
    path = folder / SETTINGS
    if not (resume and path.is_file()):
        return
    try:
        before = dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error}), so the run cannot be resumed; start in another folder") from error
    free = ("versions", "machine")
    now = json.loads(json.dumps(settings))
    changed = [name for name in now if name not in free and before.get(name) != now[name]]
    if changed:
        told = "; ".join(part for name in changed for part in _differences(name, before.get(name), now[name]))
        raise InputError(f"{folder}: cannot be resumed with other settings: {told}; give those, or another folder")
    if (folder / SPLIT).is_file():
        started = read_split(folder / SPLIT, ids)
        if any(getattr(started, part).tolist() != getattr(split, part).tolist() for part in ("train", "val", "test")):
            raise InputError(f"{folder}: cannot be resumed with another split than that of its split.json")


def _differences(name: str, before: Any, now: Any) -> list[str]:
    """What differs between two values of a setting, of tables key by key."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted({*before, *now})
        return [part for key in keys for part in _differences(f"{name}.{key}", before.get(key), now.get(key))]
    return [] if before == now else [f"{name} was {before}, now {now}"]
