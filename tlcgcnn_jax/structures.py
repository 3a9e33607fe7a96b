"""Crystals with labels, from files of many kinds or from Python objects."""

import contextlib
import hashlib
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tlcgcnn_jax import readers
from tlcgcnn_jax.cif import read_cif
from tlcgcnn_jax.crystal import Crystal, Record, formula, make_crystal, ordered_species
from tlcgcnn_jax.errors import InputError, Skipped, check_on_error
from tlcgcnn_jax.poscar import read_poscar
from tlcgcnn_jax.readers import ID_COLUMNS, MISSING, Entry

logger = logging.getLogger(__name__)

__all__ = ["Crystal", "Item", "Record", "Records", "Scan", "formula", "parse", "read_structures", "scan"]

_ADVICE = 'use on_error="skip" (--on-error skip) to leave such rows out'


@dataclass(frozen=True)
class Item:
    """A crystal that `scan` found and `parse` will read; small enough to send to another process.

    Attributes:
        id: Name, unique within the scan.
        where: File, or file and line.
        payload: Path, bytes or arrays, as `format` needs.
        format: "cif", "poscar", "json", "cartesian" or "crystal".
        targets: Label of each target; NaN where it is missing.
    """

    id: str
    where: str
    payload: Any
    format: str
    targets: dict[str, float]


@dataclass(frozen=True)
class Scan:
    """What a source holds.

    Attributes:
        items: The crystals to read, in the order of the source.
        skipped: Those left out, with the reason.
        columns: Names of the columns that hold a number for at least one crystal.
        fingerprint: sha256 of the input bytes, labels included.
    """

    items: list[Item]
    skipped: list[Skipped]
    columns: tuple[str, ...]
    fingerprint: str


class Records(list[Record]):
    """A list of records, and in `skipped` what was left out of it."""

    def __init__(self, records: Iterable[Record], skipped: Iterable[Skipped] = ()):
        super().__init__(records)
        self.skipped: list[Skipped] = list(skipped)


def read_structures(
    source: Any,
    *,
    targets: Sequence[str] = (),
    labels: str | Path | None = None,
    id_column: str | None = None,
    on_error: str = "raise",
) -> Records:
    """Read crystals, and the labels that are asked for.

    Args:
        source: A path (folder with `id_prop.csv`; folder or file of CIF, POSCAR; JSON or JSON lines of
            records, pymatgen structures, JARVIS entries; a matminer frame; ASE .db, .xyz), or a list of
            pymatgen Structures, (id, Structure) pairs or Records, or a pandas DataFrame with a column of
            Structures.
        targets: Columns to read as labels; none are needed to predict.
        labels: CSV with a header, joined to the crystals by id.
        id_column: Column that holds the ids; by default the first of id, material_id, name, file, jid.
        on_error: "raise" stops at crystals that cannot be used; "skip" leaves them out and lists them
            in `.skipped`.

    Returns:
        A list of `Record`, with the attribute `skipped`.

    Raises:
        InputError: Names the file, the id and, where there is one, the site.

    Example:
        >>> crystal = Crystal(np.eye(3) * 4.1, np.array([55, 17]), np.array([[0, 0, 0], [.5, .5, .5]]))
        >>> [record.id for record in read_structures([Record("CsCl", crystal, {})])]
        ['CsCl']
    """
    found = scan(source, targets=targets, labels=labels, id_column=id_column, on_error=on_error)
    records, skipped = [], list(found.skipped)
    for item in found.items:
        try:
            records.append(parse(item))
        except InputError as error:
            if on_error == "raise":
                raise
            skipped.append(Skipped(item.id, item.where, str(error)))
    return Records(records, skipped)


def parse(item: Item) -> Record:
    """Read the geometry of one crystal that `scan` found.

    Raises:
        InputError: The structure is incomplete, disordered, or has an element beyond the table.
    """
    is_file = item.format in ("cif", "poscar")  # whose name is the id
    where = item.where if is_file else f"{item.where} (id {item.id!r})"
    if is_file:
        try:
            text = Path(item.payload).read_text(encoding="utf-8-sig", errors="replace")
        except OSError as error:
            raise InputError(f"{where}: cannot be read ({error})") from error
        crystal = read_cif(text, where) if item.format == "cif" else read_poscar(text, where)
    elif item.format == "json":
        crystal = readers.crystal_from_json(item.payload, where)
    elif item.format == "cartesian":
        cell, numbers, positions = item.payload
        crystal = make_crystal(cell, numbers, positions, where)  # the checks, before the cell is inverted
        crystal = crystal._replace(frac_coords=positions @ np.linalg.inv(crystal.lattice))
    else:
        cell, species, coords = item.payload
        crystal = make_crystal(cell, species, coords, where)
    return Record(item.id, crystal, item.targets, item.where)


def scan(
    source: Any,
    *,
    targets: Sequence[str] = (),
    labels: str | Path | None = None,
    id_column: str | None = None,
    on_error: str = "raise",
) -> Scan:
    """Find out which crystals a source holds, and their labels, without reading any geometry.

    Args:
        source, targets, labels, id_column, on_error: As for `read_structures`.

    Raises:
        InputError: Nothing to read, an absent column, and with on_error="raise" the first row that cannot
            be used.
    """
    check_on_error(on_error)
    wanted = (targets,) if isinstance(targets, str) else tuple(targets)
    digest = hashlib.sha256(f"{id_column!r}\0".encode())
    if isinstance(source, str | Path):
        path = Path(source)
        reader = readers.find_reader(path)
        _hash_files(digest, path, reader)
        entries = list(readers.read_entries(path, reader, wanted if labels is None else (), id_column))
        if passed := readers.passed_over(path, reader, entries):
            logger.warning("%s", passed)
        name = str(path)
    else:
        reader = "objects"
        entries = list(_objects(source, id_column))
        _hash_entries(digest, entries)
        name = "the list given"
    if not entries:
        raise InputError(f"{name}: there are no crystals in it")
    if labels is not None:
        table = Path(labels)
        if not table.is_file():
            raise InputError(f"{table}: there is no such table of labels")
        digest.update(b"labels\0" + table.read_bytes())
        # Files have no columns, so there the column of ids can only be one of the table.
        others = () if id_column and reader in ("files", "cgcnn") else readers.ID_COLUMNS
        entries = list(_joined(entries, table, [*([id_column] if id_column else []), *others]))
    columns = _numeric_columns(entries)
    absent = [target for target in wanted if not any(target in entry.row for entry in entries)]
    if absent:
        there = ", ".join(columns) or "none"
        raise InputError(f"{labels or name}: no column {', '.join(absent)}; the columns with numbers are: {there}")
    items, skipped = _checked(entries, wanted)
    if skipped and on_error == "raise":
        more = f" ({len(skipped) - 1} more of {len(entries)} crystals cannot be used)" if len(skipped) > 1 else ""
        raise InputError(skipped[0].reason + more)
    return Scan(items, skipped, columns, digest.hexdigest())


def _checked(entries: list[Entry], targets: tuple[str, ...]) -> tuple[list[Item], list[Skipped]]:
    items: list[Item] = []
    skipped: list[Skipped] = []
    seen: dict[str, str] = {}
    for entry in entries:
        try:
            if entry.problem:
                raise InputError(entry.problem)
            if entry.id != entry.id.encode(errors="replace").decode():  # of a file name that is not UTF-8
                raise InputError(f"{entry.where!r}: the id {entry.id!r} cannot be written as text: rename it")
            if entry.id in seen:
                raise InputError(
                    f"{entry.where}: the id {entry.id!r} was already taken by {seen[entry.id]}; ids must be "
                    "unique: rename one, or name another id column"
                )
            values = _labels(entry, targets)
        except InputError as error:
            skipped.append(Skipped(entry.id, entry.where, str(error)))
            continue
        seen[entry.id] = entry.where
        items.append(Item(entry.id, entry.where, entry.payload, entry.format, values))
    return items, skipped


def _labels(entry: Entry, targets: tuple[str, ...]) -> dict[str, float]:
    where = f"{entry.where} (id {entry.id!r})"
    values = {target: _number(entry.row.get(target), target, where) for target in targets}
    if targets and all(math.isnan(value) for value in values.values()):
        raise InputError(f"{where}: {' and '.join(targets)} missing (empty, null or NaN); {_ADVICE}")
    return values


def _number(value: Any, target: str, where: str) -> float:
    """A label as a float; NaN stands for a missing one, a boolean for 0 or 1."""
    if value is None or value is _pandas_na():
        return math.nan
    if isinstance(value, str):
        text = value.strip().lower()
        if text in MISSING:
            return math.nan
        value = {"true": 1, "false": 0}.get(text, text)
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{where}: {target} is {value!r:.60}, not a number{_decimal(value)}; {_ADVICE}") from None
    if math.isinf(number):
        raise InputError(f"{where}: {target} is infinite; {_ADVICE}")
    if abs(number) > float(np.finfo(np.float32).max):
        raise InputError(f"{where}: {target} is {number:g}, too large for float32; use a larger unit, or {_ADVICE}")
    return number


def _decimal(value: Any) -> str:
    """A hint for people whose decimals have a comma."""
    return " (decimals are written with a point)" if isinstance(value, str) and "," in value else ""


def _pandas_na() -> Any:
    import sys

    return getattr(sys.modules.get("pandas"), "NA", None)


def _numeric_columns(entries: list[Entry]) -> tuple[str, ...]:
    numeric: dict[str, bool] = {}
    for entry in entries:
        for column, value in entry.row.items():
            if not numeric.get(column, False):
                numeric[column] = _is_numeric(value)
    return tuple(column for column, is_numeric in numeric.items() if is_numeric and column not in ID_COLUMNS)


def _is_numeric(value: Any) -> bool:
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return value.strip().lower() in ("true", "false")
        return True
    return isinstance(value, int | float | np.generic)


# --- labels in a table of their own ---------------------------------------------------------------


def _joined(entries: list[Entry], table: Path, candidates: list[str]) -> Iterator[Entry]:
    rows = readers.read_table(table)
    if len(rows) < 2:
        raise InputError(f"{table}: expected a header and at least one row of labels")
    header = rows[0]
    readers.check_header(header, table)
    plain = [name.lower() for name in header]
    column = next((header.index(c) for c in candidates if c in header), None)
    if column is None:
        column = next((plain.index(c.lower()) for c in candidates if c.lower() in plain), None)
    if column is None:
        raise InputError(
            f"{table}: no id column ({' or '.join(candidates)}) among {', '.join(header)}; name it with id_column"
        )
    by_id: dict[str, tuple[int, dict[str, str]]] = {}
    too_long: dict[str, str] = {}
    for line, row in enumerate(rows[1:], start=2):
        row = row + [""] * (len(header) - len(row))
        name = row[column]
        if name in by_id:
            raise InputError(
                f"{table}:{line}: the id {name!r} stands in the table twice (first in row {by_id[name][0]})"
            )
        by_id[name] = (line, dict(zip(header, row, strict=False)))
        too_long[name] = readers.too_long(row, header, f"{table}:{line} (id {name!r})")
    used = set()
    for entry in entries:
        name = next((n for n in (entry.id, Path(entry.where).name) if n in by_id), None)
        if name is None:
            missing = f"{entry.where} (id {entry.id!r}): {table} has no row for it; {_ADVICE}"
            yield replace(entry, problem=entry.problem or missing)
            continue
        used.add(name)
        yield replace(entry, row={**entry.row, **by_id[name][1]}, problem=entry.problem or too_long[name])
    for name, (line, row) in by_id.items():
        if name not in used:
            where = f"{table}:{line}"
            problem = f"{where}: id {name!r} has no structure in what was read; {_ADVICE}"
            yield Entry(name, where, row=row, problem=problem)


# --- Python objects -------------------------------------------------------------------------------


def _objects(source: Any, id_column: str | None) -> Iterator[Entry]:
    if hasattr(source, "columns") and hasattr(source, "iloc"):
        yield from _frame(source, id_column)
        return
    if hasattr(source, "lattice") or isinstance(source, Record):
        source = [source]
    if isinstance(source, Mapping):
        source = list(source.items())
    if not isinstance(source, Iterable):
        raise InputError(f"found {type(source).__name__}; expected a path, a DataFrame, or a list of structures")
    for row, thing in enumerate(source):
        where = f"list:{row}"
        if isinstance(thing, Record):
            yield Entry(thing.id, thing.where or where, tuple(thing.structure), "crystal", thing.targets)
        elif isinstance(thing, tuple) and not isinstance(thing, Crystal) and len(thing) == 2:
            yield _structure_entry(str(thing[0]), where, thing[1], {})
        else:
            yield _structure_entry(f"row_{row}", where, thing, {})


def _structure_entry(name: str, where: str, structure: Any, row: Mapping[str, Any]) -> Entry:
    if isinstance(structure, Crystal):
        return Entry(name, where, tuple(structure), "crystal", row)
    if isinstance(structure, dict):
        return Entry(name, where, structure, "json", row)
    if not hasattr(structure, "frac_coords") or not hasattr(structure, "lattice"):
        kind = type(structure).__name__
        problem = f"{where} (id {name!r}): found {kind}; expected a pymatgen Structure or a Record"
        return Entry(name, where, row=row, problem=problem)
    try:
        species = [
            ordered_species([(_symbol(s), float(n)) for s, n in site.species.items()], i, f"{where} (id {name!r})")
            for i, site in enumerate(structure)
        ]
    except InputError as error:
        return Entry(name, where, row=row, problem=str(error))
    return Entry(name, where, (structure.lattice.matrix, species, structure.frac_coords), "crystal", row)


def _symbol(specie: Any) -> str:
    return getattr(specie, "symbol", str(specie))


def _frame(frame: Any, id_column: str | None) -> Iterator[Entry]:
    columns = [str(column) for column in frame.columns]
    geometry = "structure" if "structure" in columns else None
    if geometry is None and len(frame):
        first = frame.iloc[0]
        geometry = next((c for c, v in zip(columns, first, strict=True) if hasattr(v, "frac_coords")), None)
    if geometry is None:
        raise InputError(f"the DataFrame has no column of structures; its columns are {', '.join(columns)}")
    names = next((c for c in ([id_column] if id_column else ID_COLUMNS) if c in columns), None)
    if id_column and names is None:
        raise InputError(f"the DataFrame has no column {id_column!r}; its columns are {', '.join(columns)}")
    for row, (index, values) in enumerate(zip(frame.index, frame.itertuples(index=False, name=None), strict=True)):
        record = dict(zip(columns, values, strict=True))
        structure = record.pop(geometry)
        name = readers.id_text(record[names]) if names else None
        yield _structure_entry(name or readers.id_text(index) or f"row_{row}", f"DataFrame:{row}", structure, record)


# --- fingerprint ----------------------------------------------------------------------------------


def _hash_files(digest: Any, path: Path, reader: str) -> None:
    for file in readers.files_of(path, reader):
        digest.update(os.fsencode(file.name) + b"\0")  # that of a single structure is its id
        with contextlib.suppress(OSError):  # told where the file is read
            digest.update(file.read_bytes())


def _hash_entries(digest: Any, entries: list[Entry]) -> None:
    for entry in entries:
        digest.update(f"{entry.id}\0{sorted(entry.row.items(), key=lambda kv: str(kv[0]))!r}\0".encode())
        if isinstance(entry.payload, tuple):
            for part in entry.payload:
                digest.update(repr(part).encode() if isinstance(part, list) else np.asarray(part).tobytes())
        else:
            digest.update(repr(_whole(entry.payload)).encode())


def _whole(value: Any) -> Any:
    """The same with arrays as lists, since a long array is not written in full."""
    if isinstance(value, Mapping):
        return {key: _whole(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_whole(part) for part in value]
    return value.tolist() if isinstance(value, np.ndarray) else value
