"""Crystals with labels, from files of many kinds or from Python objects."""

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tlcgcnn_jax import readers
from tlcgcnn_jax.cif import read_cif
from tlcgcnn_jax.config import target_names
from tlcgcnn_jax.crystal import Crystal, Record, formula, make_crystal
from tlcgcnn_jax.entries import ID_COLUMNS, Entry
from tlcgcnn_jax.errors import InputError, Skipped, advised, check_on_error
from tlcgcnn_jax.files import cannot_read, user_path
from tlcgcnn_jax.labels import as_float, has_column, in_their_order, is_in_order, joined, numbers, plain, read_sheet
from tlcgcnn_jax.objects import object_entries
from tlcgcnn_jax.poscar import read_poscar
from tlcgcnn_jax.structure_json import crystal_from_json

logger = logging.getLogger(__name__)

# What `crystal_from_json` looks at.
_STRUCTURE = (
    "structure", "atoms", "sites", "lattice", "species", "frac_coords", "lattice_mat", "elements", "coords",
    "cartesian", "pbc",
)  # fmt: skip

__all__ = ["Crystal", "Item", "Record", "Records", "Scan", "formula", "parse", "read_structures", "scan"]


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
        fingerprint: sha256 of the input bytes, labels included; of crystals in memory of their ids, structures and the
            targets that are asked for.
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
    labels: Any = None,
    id_column: str | None = None,
    on_error: str = "raise",
) -> Records:
    """Read crystals, and the labels that are asked for.

    Args:
        source: A path (folder with `id_prop.csv`; folder or file of CIF, POSCAR; folder of VASP's folders; JSON or
            JSON lines of records, pymatgen structures, JARVIS entries; a frame of matminer or pandas; ASE .db, .xyz),
            or in memory one crystal, a list of crystals or of (id, crystal) pairs, a dictionary or Series by id, or a
            DataFrame with a column of crystals. There a crystal is a pymatgen Structure, ASE Atoms, a `Record`, a
            `Crystal`, a dictionary as JSON has it, or the path of its file.
        targets: Columns to read as labels; none are needed to predict.
        labels: Joined to the crystals by id: the path of a CSV with a header, a DataFrame, or a Series or dictionary
            from ids to labels. Beside crystals in memory also a list or an array, in their order.
        id_column: Column that holds the ids, of the crystals, of the labels or of both; by default the first of id,
            material_id, name, file, jid, and of labels the one of these that names the most crystals.
        on_error: "raise" stops at crystals that cannot be used; "skip" leaves them out and lists them
            in `.skipped`.

    Returns:
        A list of `Record`, with the attribute `skipped`.

    Raises:
        InputError: No crystals, a column or a table of labels that is not there, an `on_error` of another name; and
            with "raise" a crystal or a label that cannot be used. It names the file, the id and, where there is one,
            the site.

    Example:
        >>> import numpy as np
        >>> from tlcgcnn_jax import Crystal, Record, read_structures
        >>> salt = Crystal(np.eye(3) * 4.12, np.array([55, 17]), np.array([[0, 0, 0], [0.5, 0.5, 0.5]]))
        >>> [record.id for record in read_structures([Record("CsCl", salt, {})])]
        ['CsCl']
    """
    found = scan(source, targets=targets, labels=labels, id_column=id_column, on_error=on_error)
    records = parse_all(found.items, on_error)
    return Records(records, [*found.skipped, *records.skipped])


def parse_all(items: Iterable[Item], on_error: str) -> Records:
    """Read the geometry of some crystals that `scan` found; as in `read_structures` at one that cannot be used."""
    records, skipped = [], []
    for item in items:
        try:
            records.append(parse(item))
        except InputError as error:
            if on_error == "raise":
                raise InputError(advised(str(error))) from error
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
            raise cannot_read(where, error) from error
        crystal = read_cif(text, where) if item.format == "cif" else read_poscar(text, where)
    elif item.format == "json":
        payload = item.payload
        crystal = crystal_from_json(readers.loads(payload) if isinstance(payload, bytes) else payload, where)
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
    labels: Any = None,
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
    wanted = target_names(targets)
    digest = hashlib.sha256(f"{id_column!r}\0".encode())
    if isinstance(source, str | Path):
        path = user_path(source)
        reader = readers.find_reader(path)
        if id_column and labels is None and reader in ("files", "cgcnn"):
            ids = "the first column of id_prop.csv" if reader == "cgcnn" else "the names of the files"
            raise InputError(
                f"{path}: the ids are {ids}, so that {id_column!r} (id_column, --id-column) can only be a column of a "
                "sheet: give that (labels, --labels), or leave id_column out"
            )
        _hash_files(digest, path, reader)
        digest.update(b"ids of rows\0" if reader == "ase" else b"")  # which were others in versions before
        read = partial(readers.read_entries, path, reader, wanted if labels is None else ())
        entries = _entries(read, id_column, labels)
        if passed := readers.passed_over(path, reader, entries):
            logger.warning("%s", passed)
        name = str(path)
    else:
        reader = "objects"
        source = list(source) if isinstance(source, Iterator) else source  # which may be read twice
        entries = _entries(partial(object_entries, source), id_column, labels)
        _hash_entries(digest, entries, wanted)
        name = "the DataFrame" if hasattr(source, "columns") else "what was given"
    if not entries:
        raise InputError(f"{name}: there are no crystals in it")
    if reader == "objects" and is_in_order(labels):
        entries = in_their_order(labels, entries, wanted)
        digest.update(f"labels\0{[plain(entry.row[wanted[0]]) for entry in entries]}".encode())
    elif labels is not None:
        # Files have no columns, so there the column of ids can only be one of the table.
        usual = () if id_column and reader in ("files", "cgcnn") else ID_COLUMNS
        sheet = read_sheet(labels, wanted, id_column, usual, entries)
        digest.update(b"labels\0" + sheet.data)
        entries, name = list(joined(entries, sheet)), sheet.name
    columns = _numeric_columns(entries)
    absent = [target for target in wanted if not any(target in entry.row for entry in entries)]
    if absent and not all(entry.problem for entry in entries):  # whose problems, such as ids, may be why
        there = f"the columns with numbers are: {', '.join(columns) or 'none'}"
        if not columns and (every := dict.fromkeys(str(column) for entry in entries for column in entry.row)):
            there += f" (all columns: {', '.join(every)})"
        advice = "; files of structures have no labels: give a sheet (labels, --labels)" if reader == "files" else ""
        told = "" if advice and labels is None else f"; {there}"
        raise InputError(f"{name}: no column {', '.join(absent)}{told or advice}")
    items, skipped = _checked(entries, wanted)
    if skipped and on_error == "raise":
        what = f"of {len(entries)} crystals" if labels is None else "crystals or rows"
        more = f" ({len(skipped) - 1} more {what} cannot be used)" if len(skipped) > 1 else ""
        reason = skipped[0].reason
        raise InputError((advised(reason) if items else reason) + more)
    return Scan(items, skipped, columns, digest.hexdigest())


def _entries(read: Callable[[str | None], Iterable[Entry]], id_column: str | None, labels: Any) -> list[Entry]:
    """All crystals; by ids of their own where none has the column that was asked for, but the labels have it."""
    try:
        entries = list(read(id_column))
    except InputError:  # as a DataFrame tells it
        if not id_column or not has_column(labels, id_column):
            raise
        return list(read(None))
    absent = id_column and all(entry.problem for entry in entries) and has_column(labels, id_column)
    return list(read(None)) if absent else entries


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
            values = numbers(entry, targets)
        except InputError as error:
            skipped.append(Skipped(entry.id, entry.where, str(error)))
            continue
        seen[entry.id] = entry.where
        items.append(Item(entry.id, entry.where, entry.payload, entry.format, values))
    return items, skipped


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
            as_float(value)
        except ValueError:
            return False
        return True
    return isinstance(value, int | float | np.generic)


# --- fingerprint ----------------------------------------------------------------------------------


def _hash_files(digest: Any, path: Path, reader: str) -> None:
    for file in readers.files_of(path, reader):
        # The name of a single structure is its id, and that of the folder of a calculation.
        name = file.name if file.parent in (path, path.parent) else file.relative_to(path)
        digest.update(os.fsencode(name) + b"\0")
        with contextlib.suppress(OSError):  # told where the file is read
            digest.update(file.read_bytes())


def _hash_entries(digest: Any, entries: list[Entry], targets: tuple[str, ...]) -> None:
    for entry in entries:
        text = f"{entry.id}\0{[plain(entry.row.get(target)) for target in targets]}\0"
        digest.update(text.encode(errors="backslashreplace"))  # the id may be that of a file name that is not UTF-8
        if entry.format in ("cif", "poscar"):
            with contextlib.suppress(OSError):  # told where the file is read
                digest.update(Path(entry.payload).read_bytes())
        elif isinstance(entry.payload, tuple):
            for part in entry.payload:
                digest.update(repr(part).encode() if isinstance(part, list) else np.asarray(part).tobytes())
        else:
            payload = entry.payload
            if isinstance(payload, Mapping):  # beside the structure it may hold any columns
                payload = {key: payload[key] for key in _STRUCTURE if key in payload}
            digest.update(repr(_whole(payload)).encode())


def _whole(value: Any) -> Any:
    """The same with arrays as lists, since a long array is not written in full."""
    if isinstance(value, Mapping):
        return {key: _whole(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_whole(part) for part in value]
    return value.tolist() if isinstance(value, np.ndarray) else value
