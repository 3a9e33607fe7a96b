"""One reader per format: which crystals a file or folder holds, without looking at their geometry."""

import contextlib
import csv
import gzip
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tlcgcnn_jax.crystal import Crystal, make_crystal, ordered_species
from tlcgcnn_jax.errors import InputError

try:  # three times as fast; not needed
    from orjson import loads as _fast_loads
except ImportError:
    _fast_loads = json.loads

ID_COLUMNS = ("id", "material_id", "name", "file", "jid")
MISSING = ("", "nan", "na", "n/a", "null", "none")  # words that tables write for no value
_GEOMETRY = {"formula", "lattice", "species", "frac_coords", "structure", "atoms", "sites"}
_JSON_ENDINGS = (".json", ".json.gz", ".jsonl", ".jsonl.gz", ".ndjson")
_ASE_ENDINGS = (".db", ".xyz", ".extxyz")


@dataclass
class Entry:
    """A crystal that was found: its name, its labels as they stand, and what `structures.parse` needs.

    `problem` says why it cannot be used, where that shows before the geometry is read.
    """

    id: str
    where: str
    payload: Any = None
    format: str = ""
    row: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""


def is_structure_file(name: str) -> bool:
    """Whether a file's name says that it is a CIF or a POSCAR."""
    # Names that begin with a dot are other systems' notes about files, such as macOS's "._a.cif".
    structure = name.lower().endswith((".cif", ".vasp")) or name.startswith(("POSCAR", "CONTCAR"))
    return structure and not name.startswith(".")


def find_reader(path: Path) -> str:
    """Which reader fits a path: "cgcnn", "files", "json_folder", "json" or "ase".

    Raises:
        InputError: None does; the message lists what is there.
    """
    if not path.exists():
        raise InputError(f"{path}: there is no such file or folder")
    if path.is_file():
        name = path.name.lower()
        if name.endswith(_JSON_ENDINGS):
            return "json"
        if name.endswith(_ASE_ENDINGS):
            return "ase"
        if is_structure_file(path.name):
            return "files"
        found = f"a file named {path.name}"
    else:
        names = sorted(child.name for child in path.iterdir())
        if "id_prop.csv" in names:
            return "cgcnn"
        if any(is_structure_file(name) for name in names):
            return "files"
        if any(name.endswith(".json") and name != "atom_init.json" for name in names):
            return "json_folder"
        listed = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        found = f"a folder with {listed}" if names else "an empty folder"
    raise InputError(
        f"{path}: found {found}; expected id_prop.csv with ID.cif files, CIF or POSCAR files (*.cif, *.vasp, "
        "POSCAR*, CONTCAR*), a .json or .jsonl file (.gz too), an ASE .db, or an .xyz/.extxyz file"
    )


def files_of(path: Path, reader: str) -> list[Path]:
    """The input files, sorted by name: what is read, and what the fingerprint covers."""
    if path.is_file():
        return [path]
    if reader == "json_folder":
        return sorted(child for child in path.glob("[!.]*.json") if child.name != "atom_init.json")
    files = sorted(child for child in path.iterdir() if is_structure_file(child.name) and child.is_file())
    return [path / "id_prop.csv", *files] if reader == "cgcnn" else files


def read_entries(path: Path, reader: str, targets: tuple[str, ...], id_column: str | None) -> Iterator[Entry]:
    """All crystals below a path, with the reader that `find_reader` named."""
    files = files_of(path, reader)
    if reader == "cgcnn":
        yield from _cgcnn_folder(path, targets)
    elif reader == "files":
        for file in files:
            yield _file_entry(file)
    elif reader == "ase":
        yield from _ase_file(path, id_column)
    else:
        for file in files:
            if reader == "json":
                yield from _json_file(file, id_column, None)
                continue
            try:
                yield from _json_file(file, id_column, file.stem)
            except InputError as error:  # that of one crystal among many
                yield Entry(file.stem, str(file), problem=str(error))


def passed_over(path: Path, reader: str, entries: Sequence[Entry]) -> str:
    """What a folder holds beside the crystals that were found, as a warning; "" where nothing looks like a crystal."""
    if reader not in ("cgcnn", "files") or path.is_file():
        return ""
    read = {Path(entry.where if entry.payload is None else entry.payload).name for entry in entries}
    others = []
    for child in sorted(path.iterdir()):
        if child.is_dir():
            with contextlib.suppress(OSError):
                others += [f"{child.name}/"] if any(is_structure_file(name) for name in os.listdir(child)) else []
        elif is_structure_file(child.name.lower().removesuffix(".gz")) and child.name not in read:
            others.append(child.name)
    if not others:
        return ""
    why = f"{'not in id_prop.csv, ' if reader == 'cgcnn' else ''}in a folder below or compressed"
    return f"{path}: {len(others)} not read ({why}): {', '.join(others[:3])}{', …' if len(others) > 3 else ''}"


# --- folders of files -----------------------------------------------------------------------------


def _file_entry(file: Path) -> Entry:
    lower = file.name.lower()
    kind = "cif" if lower.endswith(".cif") else "poscar"
    name = file.stem if lower.endswith((".cif", ".vasp")) else file.name
    return Entry(name, str(file), str(file), kind)


def read_table(path: Path) -> list[list[str]]:
    """Rows of a table without the empty ones, cells without spaces around them.

    Cells are separated by what the first row has most of: commas, or semicolons or tabs, as other languages' Excel
    writes them.

    Raises:
        InputError: The file cannot be read.
    """
    try:
        data = path.read_bytes()
        wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        try:
            text = data.decode("utf-16" if wide else "utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("cp1252")
        first = next((line for line in text.splitlines() if line.strip()), "")
        # Semicolons before commas, which are then those of decimals.
        separator = max("\t;,", key=first.count) if any(mark in first for mark in "\t;,") else ","
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a CSV table ({error}); save it as CSV, UTF-8") from error
    return [[cell.strip() for cell in row] for row in rows if any(cell.strip() for cell in row)]


def check_header(header: list[str], table: Path) -> None:
    """Raise `InputError` where a table names a column twice."""
    if twice := sorted({name for name in header if name and header.count(name) > 1}):
        raise InputError(f"{table}: the header names {', '.join(twice)} more than once: rename or remove a column")


def too_long(row: list[str], header: list[str], where: str) -> str:
    """What is wrong with a row that has more cells than its header; "" where nothing is."""
    if not any(row[len(header) :]):
        return ""
    return (
        f"{where}: {len(row)} cells, {len(header)} in the header: {', '.join(row):.60}; decimals are written with a "
        "point, and numbers without thousands separators"
    )


def _cgcnn_folder(path: Path, targets: tuple[str, ...]) -> Iterator[Entry]:
    table = path / "id_prop.csv"
    rows = read_table(table)
    if not rows:
        raise InputError(f"{table}: the table is empty; expected one row per crystal: id,value")
    width = max(len(row) for row in rows)
    # A first row of names alone, for which there is no file, is a header; an empty label is no name.
    head = rows[0]
    has_header = all(_is_name(cell) for cell in head[1:]) and not (path / f"{head[0]}.cif").exists()
    has_header = has_header and (width > 1 or head[0].lower() in (*ID_COLUMNS, "cif_id", "cif"))
    if has_header:
        check_header(head, table)
        columns = head[1:]
    elif width == 2:
        columns = list(targets) if len(targets) == 1 else ["target"]
    else:
        columns = [f"target_{i}" for i in range(1, width)]
    for line, row in enumerate(rows[has_header:], start=1 + has_header):
        name, where = row[0], f"{table}:{line}"
        name = name[:-4] if name.lower().endswith(".cif") else name
        file = path / f"{name}.cif"
        labels = dict(zip(columns, row[1:] + [""] * (width - len(row)), strict=False))
        problem = "" if file.is_file() else f"{where}: id {name!r} has no file {file.name} in {path}"
        problem = problem or (too_long(row, head, where) if has_header else "")
        yield Entry(name, str(file), str(file), "cif", labels, problem)


def _is_name(text: str) -> bool:
    if text.lower() in MISSING:
        return False
    try:
        float(text)
    except ValueError:
        return True
    return False


# --- JSON -----------------------------------------------------------------------------------------


def loads(data: bytes) -> Any:
    """JSON of any writer; Python's NaN and Infinity are let through, to be reported where they stand."""
    try:
        return _fast_loads(data)
    except ValueError:
        return json.loads(data)


def read_bytes(path: Path) -> bytes:
    """Contents of a file, decompressed if it is gzip."""
    data = path.read_bytes()
    if data[:2] != b"\x1f\x8b":
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError) as error:
        raise InputError(f"{path}: the gzip file is damaged or incomplete ({error})") from error


def _json_file(path: Path, id_column: str | None, alone: str | None) -> Iterator[Entry]:
    data = read_bytes(path)
    if ".jsonl" in path.name or ".ndjson" in path.name:
        yield from _json_lines(path, data, id_column)
        return
    try:
        document = loads(data)
    except ValueError as error:
        first = data.lstrip().split(b"\n", 1)[0]
        try:
            is_lines = isinstance(loads(first), dict)
        except ValueError:
            is_lines = False
        if not is_lines:
            raise InputError(f"{path}: this is no valid JSON ({error})") from error
        yield from _json_lines(path, data, id_column)
        return
    yield from _json_document(path, document, id_column, alone)


def _json_lines(path: Path, data: bytes, id_column: str | None) -> Iterator[Entry]:
    row = 0
    for line, text in enumerate(data.split(b"\n"), start=1):
        if not text.strip():
            continue
        where = f"{path}:{line}"
        try:
            record = loads(text)
        except ValueError as error:
            yield Entry(f"line {line}", where, problem=f"{where}: line {line} is no valid JSON ({error})")
        else:
            yield _json_entry(record, text, where, f"row_{row}", id_column)
        row += 1


def _json_document(path: Path, document: Any, id_column: str | None, alone: str | None) -> Iterator[Entry]:
    if isinstance(document, dict) and "data" in document and "columns" in document:
        for key in ("columns", "data", "index"):
            if not isinstance(document.get(key) or [], list):
                raise InputError(f"{path}: a frame was expected, but its {key!r} is no list: {document[key]!r:.60}")
        columns = [str(column) for column in document["columns"] or []]
        if "structure" not in columns:
            raise InputError(f"{path}: the frame has no column 'structure'; it has {', '.join(columns)}")
        data = document["data"] or []
        index = document.get("index") or range(len(data))
        if len(index) != len(data):
            raise InputError(f"{path}: the frame has {len(data)} rows and {len(index)} names for them in its index")
        for row, (name, values) in enumerate(zip(index, data, strict=True)):
            if not isinstance(values, list) or len(values) != len(columns):
                where = f"{path}:row {row}"
                yield Entry(str(name), where, problem=f"{where}: expected {len(columns)} values, one for each column")
                continue
            record = dict(zip(columns, values, strict=True))
            yield _json_entry(record, record["structure"], f"{path}:row {row}", str(name), id_column)
    elif isinstance(document, dict) and not _GEOMETRY & set(document):
        if not all(isinstance(value, dict) for value in document.values()):
            keys = ", ".join(list(document)[:6])
            raise InputError(f"{path}: a JSON object with {keys}; expected structures, records, or a frame of them")
        for name, record in document.items():  # by its key, whatever else the record is called
            yield replace(_json_entry(record, record, f"{path}:{name}", name, None), id=name)
    elif isinstance(document, dict):
        yield _json_entry(document, document, str(path), alone or path.name.split(".")[0], id_column)
    elif isinstance(document, list):
        for row, record in enumerate(document):
            yield _json_entry(record, record, f"{path}:record {row + 1}", f"row_{row}", id_column)
    else:
        raise InputError(f"{path}: found a JSON {type(document).__name__}; expected structures or records")


def _json_entry(record: Any, payload: Any, where: str, fallback: str, id_column: str | None) -> Entry:
    if not isinstance(record, dict):
        return Entry(fallback, where, problem=f"{where}: found {record!r:.60}; expected a JSON object")
    name = _name(record, fallback, id_column)
    if name is None:
        return Entry(fallback, where, problem=_no_id(where, id_column, record))
    row = record.get("properties") if "sites" in record and isinstance(record.get("properties"), dict) else record
    labels = {} if row is None else {k: v for k, v in row.items() if k not in _GEOMETRY and not k.startswith("@")}
    return Entry(name, where, payload, "json", labels)


def _name(row: Mapping[str, Any], fallback: str, id_column: str | None) -> str | None:
    """The crystal's id; None where the column that was asked for is absent or empty."""
    if id_column:
        return id_text(row.get(id_column))
    found = (id_text(row.get(column)) for column in ID_COLUMNS)
    return next((text for text in found if text), fallback)


def id_text(value: Any) -> str | None:
    """An id as text: a whole number without the ".0" that a table gives it; None where there is none.

    Example:
        >>> id_text(1.0), id_text("mp-1"), id_text(float("nan"))
        ('1', 'mp-1', None)
    """
    if value is None or isinstance(value, bool | dict | list | np.ndarray):
        return None
    try:
        known = bool(value == value and value != "")  # not NaN
    except TypeError:  # pandas' NA refuses to be compared
        known = False
    if not known:
        return None
    whole = isinstance(value, float | np.floating) and float(value).is_integer()
    return str(int(value)) if whole else str(value)


def _no_id(where: str, id_column: str | None, row: Mapping[str, Any]) -> str:
    columns = ", ".join(str(k) for k in row if k not in _GEOMETRY)
    return f"{where}: there is no id in column {id_column!r}; the columns are {columns}"


def crystal_from_json(payload: Any, where: str) -> Crystal:
    """A crystal from a record of arrays, a pymatgen `Structure.as_dict()`, or a JARVIS `atoms` dictionary.

    Raises:
        InputError: It is none of the three, or cannot be used.
    """
    record = loads(payload) if isinstance(payload, bytes) else payload
    try:
        if isinstance(record.get("structure"), dict):
            record = record["structure"]
        if isinstance(record.get("atoms"), dict):
            record = record["atoms"]
        if "sites" in record:
            sites = record["sites"]
            species = [
                ordered_species([(s["element"], float(s.get("occu", 1))) for s in site["species"]], i, where)
                for i, site in enumerate(sites)
            ]
            return make_crystal(record["lattice"]["matrix"], species, [site["abc"] for site in sites], where)
        if "lattice_mat" in record:
            species = [str(element).strip() for element in record["elements"]]
            coords = record["coords"]
            if record.get("cartesian") in (True, "True", "true", 1):
                make_crystal(record["lattice_mat"], species, coords, where)
                coords = np.array(coords, np.float64) @ np.linalg.inv(np.array(record["lattice_mat"], np.float64))
            return make_crystal(record["lattice_mat"], species, coords, where)
        for site, occupant in enumerate(record["species"]):
            if isinstance(occupant, dict):
                ordered_species(list(occupant.items()), site, where)
        return make_crystal(record["lattice"], record["species"], record["frac_coords"], where)
    except InputError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        found = ", ".join(record) if isinstance(record, dict) else f"{record!r:.60}"
        raise InputError(
            f"{where}: no structure in it ({type(error).__name__}: {error}); found {found:.200}; expected "
            "lattice, species and frac_coords, or a pymatgen structure, or JARVIS atoms"
        ) from error


# --- ASE ------------------------------------------------------------------------------------------


def _ase_file(path: Path, id_column: str | None) -> Iterator[Entry]:
    try:
        if path.suffix == ".db":
            from ase.db import connect

            rows = (
                (atoms := row.toatoms(), {**_info(atoms), **row.data, **row.key_value_pairs})
                for row in connect(str(path)).select()
            )
        else:
            from ase.io import iread

            rows = ((atoms, _info(atoms)) for atoms in iread(str(path), index=":"))
    except ImportError as error:
        raise InputError(f"{path}: reading this format needs ASE: pip install ase") from error
    try:
        for row, (atoms, labels) in enumerate(rows):
            where = f"{path}:frame {row + 1}"
            name = _name(labels, f"row_{row}", id_column)
            if name is None:
                yield Entry(f"row_{row}", where, problem=_no_id(where, id_column, labels))
                continue
            arrays = (np.array(atoms.cell), atoms.get_atomic_numbers(), np.array(atoms.get_positions()))
            yield Entry(name, where, arrays, "cartesian", labels)
    except InputError:
        raise
    except Exception as error:  # ASE's readers let errors of many kinds through
        raise InputError(f"{path}: ASE cannot read this file: {error}") from error


def _info(atoms: Any) -> dict[str, Any]:
    computed = dict(atoms.calc.results) if atoms.calc is not None else {}
    return {**{k: v for k, v in computed.items() if np.ndim(v) == 0}, **atoms.info}
