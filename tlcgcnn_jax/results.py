"""What a study leaves on disk: one row a run, the predictions behind it, and the crystals they are of."""

import csv
import io
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.files import file_name, to_json, write_whole

STUDY, RESULTS, PREDICTIONS, CRYSTALS = "study.json", "results.csv", "predictions", "crystals"
DATASETS, SOURCES, SPLITS = "datasets", "sources", "splits"  # what the runs are made from, prepared at the start
LISTED = "sources.json"  # below SOURCES: names, training sizes and folders
NAN = float("nan")
KINDS = ("scratch", "transfer", "baseline")


@dataclass(frozen=True)
class Row:
    """One run: what was done, and how well it did on validation and test crystals.

    Attributes:
        run: Name of the run, and of its file of predictions.
        target: Property that was learnt; errors are in its unit.
        source: Source model; "auto" for the best of those there are, "all" for all of them, "+"-joined names for a mean
            of runs from several; "" where there is none.
        source_size: Crystals that the source was trained on; 0 where there is none, several, or it is not known.
        strategy: Name of the strategy or baseline.
        kind: "scratch", "transfer" or "baseline".
        size: Crystals trained on.
        seed: Of the split, the initial weights and the batches.
        learning_rate: Chosen on validation crystals; NaN where there is none.
        epochs: Chosen on validation crystals; 0 where there are none.
        updates: Updates of the weights.
        val_mae: Mean absolute error on the validation crystals.
        test_mae: The same on the test crystals.
        test_rmse: Root mean square error.
        test_median_ae: Median absolute error.
        test_r2: Coefficient of determination.
        test_n: Test crystals.
        overlap: Share of the test crystals whose formula the source was trained on; NaN where it is not known.
        seconds: Wall time of the runs that were computed together, the choice of settings included, divided by their
            number; of a mean of runs, the sum of theirs.
        machine: Kind of processor.
    """

    run: str
    target: str
    source: str
    source_size: int
    strategy: str
    kind: str
    size: int
    seed: int
    learning_rate: float
    epochs: int
    updates: int
    val_mae: float
    test_mae: float
    test_rmse: float
    test_median_ae: float
    test_r2: float
    test_n: int
    overlap: float
    seconds: float
    machine: str


@dataclass(frozen=True, eq=False)
class RunPredictions:
    """Predictions of one run, in the target's unit.

    Attributes:
        test_rows: int [n_test], rows of the target's table of crystals.
        test: float [n_test].
        test_std: float [n_test], spread of the ensemble or of the regressor; NaN where there is none.
        val_rows: int [n_val]; with folds training crystals as well, each predicted when it was left out.
        val: float [n_val].
        val_std: float [n_val].
    """

    test_rows: np.ndarray
    test: np.ndarray
    test_std: np.ndarray
    val_rows: np.ndarray
    val: np.ndarray
    val_std: np.ndarray


@dataclass(frozen=True, eq=False)
class Crystals:
    """The labelled crystals of one target.

    Attributes:
        ids: [n].
        formulas: [n], reduced.
        values: float [n], in the target's unit.
        volumes: Hash of the cells' volumes, which tells relaxed structures from others; "" where it is not known.
    """

    ids: list[str]
    formulas: list[str]
    values: np.ndarray
    volumes: str = ""


class StudyResults:
    """A study's folder, to be added to by one process and read by any.

    Args:
        folder: Of the study.

    Attributes:
        folder: Of the study.
        study: What study.json holds: {"title", "targets": [{"name", "unit"}], "settings", "versions", "machine",
            "overlap": [{"source", "target", "count", "share"}], "volumes": {target: hash}}.
        rows: One `Row` for each finished run, in the order they finished.

    Raises:
        InputError: No study, or a damaged one; the file and line are named.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / STUDY
        if not path.is_file():
            raise InputError(f"{self.folder}: no study ({STUDY} is missing); give the folder of `tlcgcnn study --out`")
        try:
            self.study: dict[str, Any] = dict(json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise InputError(f"{path}: damaged: {error}") from error
        self.rows = _read_rows(self.folder / RESULTS)
        self._crystals: dict[str, Crystals] = {}

    @property
    def targets(self) -> dict[str, str]:
        """Unit of each target, by name, in the study's order."""
        return {str(target["name"]): str(target.get("unit") or "") for target in self.study.get("targets", [])}

    def select(self, **wanted: Any) -> list[Row]:
        """Rows whose fields have the wanted values, e.g. `select(target="gap", strategy="full")`."""
        return [row for row in self.rows if all(getattr(row, name) == value for name, value in wanted.items())]

    def add(self, row: Row, predictions: RunPredictions) -> None:
        """Write a finished run: predictions first, then its row, so that a kill leaves no row without them.

        Args:
            row: The run; its name must be that of a file.
            predictions: Of the run, kept in single precision.

        Raises:
            InputError: A run of this name is there already, or its predictions cannot be written.
        """
        if any(row.run == there.run for there in self.rows):
            raise InputError(f"{self.folder / RESULTS}: run {row.run} is there already")
        (self.folder / PREDICTIONS).mkdir(exist_ok=True)
        data = io.BytesIO()
        arrays = {field.name: getattr(predictions, field.name) for field in fields(predictions)}
        kept = {name: a.astype(np.int32 if name.endswith("rows") else np.float32) for name, a in arrays.items()}
        np.savez_compressed(data, **kept)
        write_whole(self.folder / PREDICTIONS / f"{row.run}.npz", data.getvalue())
        path, text = self.folder / RESULTS, io.StringIO()
        _mend(path)
        writer = csv.writer(text, lineterminator="\n")
        if not path.is_file() or not path.stat().st_size:
            writer.writerow(_FIELDS)
        writer.writerow([_cell(getattr(row, name)) for name in _FIELDS])
        with open(path, "ab") as handle:
            handle.write(text.getvalue().encode())
            handle.flush()
            os.fsync(handle.fileno())
        self.rows.append(row)

    def predictions(self, run: str) -> RunPredictions:
        """Predictions of a run.

        Raises:
            InputError: They are missing or damaged.
        """
        path = self.folder / PREDICTIONS / f"{run}.npz"
        try:
            with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as arrays:
                return RunPredictions(**{field.name: arrays[field.name] for field in fields(RunPredictions)})
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(
                f"{path}: predictions missing or damaged ({error}); remove the run's line from {self.folder / RESULTS} "
                "and start the study again: it does this run anew"
            ) from error

    def crystals(self, target: str) -> Crystals:
        """The labelled crystals of a target.

        Raises:
            InputError: Their table is missing or damaged.
        """
        if target not in self._crystals:
            path = self.folder / CRYSTALS / f"{file_name(target)}.csv"
            try:
                with open(path, newline="", encoding="utf-8") as handle:
                    rows = [(row["id"], row["formula"], float(row["value"])) for row in csv.DictReader(handle)]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{path}: missing or damaged ({error}); run the study again in a new folder"
                ) from error
            ids, formulas, values = zip(*rows, strict=True) if rows else ((), (), ())
            self._crystals[target] = Crystals(list(ids), list(formulas), np.array(values, float))
        return self._crystals[target]


EXTENDED = {"strategies", "own", "baselines", "seeds", "on_error", "title"}  # what a study may be gone on with


def check_study(folder: str | Path, settings: Mapping[str, Any]) -> bool:
    """Whether a folder holds this study already, finished or not; it may have had fewer or other strategies and seeds.

    Raises:
        InputError: It holds something else, or a study whose runs would not compare with the new ones.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; give a folder for the study (--out)")
    # A start that was cut short leaves these without study.json, which is written last.
    prepared = {CRYSTALS, DATASETS, SOURCES, SPLITS}
    if not folder.is_dir() or not {p.name for p in folder.iterdir() if not p.name.startswith(".")} - prepared:
        return False
    before = StudyResults(folder).study.get("settings", {})
    now = json.loads(to_json(dict(settings)))
    # What an older version did not know was off.
    changed = sorted(n for n in {*now, *before} - EXTENDED if (now.get(n) or None) != (before.get(n) or None))
    own = [{one["name"]: one for one in settings.get("own") or ()} for settings in (before, now)]
    changed += [
        f"own strategy {name}"
        for name in own[0].keys() & own[1].keys()
        if any(own[0][name][key] != own[1][name][key] for key in own[0][name].keys() & own[1][name].keys())
    ]
    if int(now.get("seeds") or 0) < int(before.get("seeds") or 0):
        changed.append("fewer seeds")
    if changed:
        raise InputError(
            f"{folder}: holds a study with other settings ({', '.join(changed)}); give another folder (--out). "
            f"Only {', '.join(sorted(EXTENDED))} may change, and seeds only grow"
        )
    return True


def start_study(folder: str | Path, study: Mapping[str, Any], crystals: Mapping[str, Crystals]) -> StudyResults:
    """Make the folder of a study, or go on in that of the same study.

    Args:
        folder: Of the study.
        study: For study.json, see `StudyResults`; for a folder that is gone on with, see `check_study`.
        crystals: The labelled crystals of each target.

    Raises:
        InputError: The folder holds something else or a study with other settings or crystals, or cannot be written.
    """
    folder = Path(folder)
    study = {**study, "volumes": {name: table.volumes for name, table in crystals.items()}}
    if check_study(folder, study["settings"]):
        kept = StudyResults(folder)
        volumes = kept.study.get("volumes", {})
        for name, table in crystals.items():
            there, values = kept.crystals(name), [float(f"{v:.9g}") for v in table.values]
            if (there.ids, there.formulas, there.values.tolist()) != (table.ids, table.formulas, values):
                raise InputError(
                    f"{folder}: was begun with other crystals or labels of {name}: give the old data, or another "
                    "folder (--out)"
                )
            if (volumes.get(name) or table.volumes) != table.volumes:
                raise InputError(
                    f"{folder}: was begun with other structures of {name} (their volumes differ): give the old data, "
                    "or another folder (--out)"
                )
        write_whole(folder / STUDY, to_json(study, indent=1).encode())
        return StudyResults(folder)
    try:
        (folder / CRYSTALS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror or error}; choose another folder") from error
    for name, table in crystals.items():
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("id", "formula", "value"))
        writer.writerows(zip(table.ids, table.formulas, (f"{v:.9g}" for v in table.values), strict=True))
        write_whole(folder / CRYSTALS / f"{file_name(name)}.csv", text.getvalue().encode())
    write_whole(folder / STUDY, to_json(study, indent=1).encode())
    return StudyResults(folder)


_FIELDS = [field.name for field in fields(Row)]
_TYPES: dict[str, Any] = {field.name: field.type for field in fields(Row)}


def _read_rows(path: Path) -> list[Row]:
    if not path.is_file():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1].decode(errors="replace")  # a last line without end is torn
    lines = list(csv.reader(io.StringIO(whole)))
    if lines and lines[0] != _FIELDS:
        raise InputError(
            f"{path}: its columns are {', '.join(lines[0])}, not {', '.join(_FIELDS)}: it is damaged or of another "
            "version; run the study again in a new folder"
        )
    rows: dict[str, Row] = {}
    for number, cells in enumerate(lines[1:], 2):
        try:
            row = Row(*(_value(name, cell) for name, cell in zip(_FIELDS, cells, strict=True)))
            rows.setdefault(row.run, row)  # two studies at work in one folder write a run twice
        except ValueError as error:
            raise InputError(f"{path}:{number}: damaged ({error}); remove the line: its run is done anew") from error
    return list(rows.values())


def _mend(path: Path) -> None:
    """Remove a last line that a kill cut short."""
    data = path.read_bytes() if path.is_file() else b"\n"
    if not data.endswith(b"\n"):
        write_whole(path, data[: data.rfind(b"\n") + 1])


def _value(name: str, cell: str) -> Any:
    """What `_cell` wrote."""
    return NAN if _TYPES[name] is float and not cell else _TYPES[name](cell)


def _cell(value: Any) -> Any:
    return "" if isinstance(value, float) and np.isnan(value) else f"{value:.7g}" if isinstance(value, float) else value
