"""One reader per format: which crystals a file or folder holds, without looking at their geometry."""

import contextlib
import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tlcgcnn_jax.entries import GEOMETRY, ID_COLUMNS, Entry, atoms_entry, id_text, record_entry
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.files import cannot_read, user_path
from tlcgcnn_jax.labels import MISSING, check_format, check_header, read_table, too_long

try:  # three times as fast; not needed
    from orjson import loads as _fast_loads
except ImportError:
    _fast_loads = json.loads

_JSON_ENDINGS = (".json", ".json.gz", ".jsonl", ".jsonl.gz", ".ndjson")
_ASE_ENDINGS = (".db", ".xyz", ".extxyz")
_FILE_ENDINGS = (".cif", ".vasp", ".poscar", ".contcar")
_PACKED_ENDINGS = (".gz", ".bz2", ".xz", ".zip")
_TABLE = {"schema": dict, "data": list}  # of a frame that pandas wrote so


def is_structure_file(name: str) -> bool:
    """Whether a file's name says that it is a CIF or a POSCAR, and not a compressed one."""
    # Names that begin with a dot are other systems' notes about files, such as macOS's "._a.cif".
    structure = name.lower().endswith(_FILE_ENDINGS) or name.startswith(("POSCAR", "CONTCAR"))
    return structure and not name.startswith(".") and not name.lower().endswith(_PACKED_ENDINGS)


def _is_structure_packed_or_not(name: str) -> bool:
    """Whether a file's name says that it is a structure file, compressed or not."""
    return is_structure_file(Path(name).stem if name.lower().endswith(_PACKED_ENDINGS) else name)


def find_reader(path: Path) -> str:
    """Which reader fits a path: "cgcnn", "files", "json_folder", "json" or "ase".

    Raises:
        InputError: None does; the message lists what is there.
    """
    if not path.exists():
        if path.is_symlink():
            raise cannot_read(path, FileNotFoundError("no such file or folder"))
        raise InputError(f"{path}: there is no such file or folder")
    if path.is_file():
        name = path.name.lower()
        if name.endswith(_JSON_ENDINGS):
            return "json"
        if name.endswith(_ASE_ENDINGS):
            return "ase"
        if is_structure_file(path.name):
            return "files"
        try:
            with path.open("rb") as file:
                check_format(path, file.read(4))
        except OSError as error:
            raise cannot_read(path, error) from error
        found = f"a file named {path.name}"
    else:
        names = sorted(child.name for child in path.iterdir())
        if "senders.npy" in names:
            raise InputError(f"{path}: is a packed dataset: read it with tlcgcnn_jax.load_dataset")
        if "id_prop.csv" in names:
            return "cgcnn"
        if any(is_structure_file(name) for name in names):
            return "files"
        if any(name.endswith(".json") and name != "atom_init.json" for name in names):
            return "json_folder"
        if _calculations(path):
            return "files"
        listed = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        found = f"a folder with {listed}" if names else "an empty folder"
    raise InputError(
        f"{path}: found {found}; expected id_prop.csv with ID.cif files, CIF or POSCAR files (*.cif, *.vasp, "
        "*.poscar, POSCAR*, CONTCAR*), folders with a POSCAR or CONTCAR each, a .json or .jsonl file (.gz too), an "
        "ASE .db, or an .xyz/.extxyz file"
    )


def files_of(path: Path, reader: str) -> list[Path]:
    """The input files, sorted by name: what is read, and what the fingerprint covers."""
    if path.is_file():
        return [path]
    if reader == "json_folder":
        return sorted(child for child in path.glob("[!.]*.json") if child.name != "atom_init.json")
    files = sorted(child for child in path.iterdir() if is_structure_file(child.name) and not child.is_dir())
    return [path / "id_prop.csv", *files] if reader == "cgcnn" else files or _calculations(path)


def _calculations(path: Path) -> list[Path]:
    """The relaxed structure, or else the first one, of each folder of VASP below a path.

    A CONTCAR is empty until VASP has made its first step.
    """
    folders = [child for child in sorted(path.iterdir()) if child.is_dir() and not child.name.startswith(".")]
    found = ([folder / name for name in ("CONTCAR", "POSCAR") if os.path.isfile(folder / name)] for folder in folders)
    return [max(files, key=lambda file: file.stat().st_size > 0) for files in found if files]


def read_entries(path: Path, reader: str, targets: tuple[str, ...], id_column: str | None) -> Iterator[Entry]:
    """All crystals below a path, with the reader that `find_reader` named."""
    files = files_of(path, reader)
    if reader == "cgcnn":
        yield from _cgcnn_folder(path, targets)
    elif reader == "files":
        for file in files:
            entry = _file_entry(file)
            yield entry if file.parent == path or file == path else replace(entry, id=file.parent.name)
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


def path_entry(given: str | Path, where: str, name: str, id_column: str | None) -> Entry:
    """The one crystal of a file that stands in a list; `name` is its id where it cannot be read."""
    try:
        path = user_path(given)
        reader = find_reader(path)
        found = list(read_entries(path, reader, (), id_column))
        if id_column and found and found[0].problem:  # it may be that of a sheet
            found = list(read_entries(path, reader, (), None))
        if len(found) != 1:
            raise InputError(f"{path}: {len(found)} crystals in it; a list takes files of one: read it by itself")
    except InputError as error:
        return Entry(name, where, problem=f"{where}: {error}")
    if path.name in ("POSCAR", "CONTCAR"):  # VASP's files are all called the same, and their folders tell them apart
        return replace(found[0], id=path.resolve().parent.name)
    return replace(found[0], id=_stem(path)) if found[0].id == "row_0" else found[0]


def _stem(path: Path) -> str:
    """The name of a file without its ending; other dots belong to the name, as in Si.300K.xyz."""
    endings = [ending for ending in (*_JSON_ENDINGS, *_ASE_ENDINGS) if path.name.lower().endswith(ending)]
    return path.name[: -len(max(endings, key=len))] if endings else path.stem


def passed_over(path: Path, reader: str, entries: Sequence[Entry]) -> str:
    """What a folder holds beside the crystals that were found, as a warning; "" where nothing looks like a crystal."""
    if reader not in ("cgcnn", "files") or path.is_file():
        return ""
    read = {Path(entry.where if entry.payload is None else entry.payload).name for entry in entries}
    below = {file.parent for file in files_of(path, reader)} - {path}
    others = []
    for child in sorted(path.iterdir()):
        if child.is_dir():
            with contextlib.suppress(OSError):
                crystals = child not in below and any(map(_is_structure_packed_or_not, os.listdir(child)))
                others += [f"{child.name}/"] if crystals else []
        elif _is_structure_packed_or_not(child.name) and child.name not in read:
            others.append(child.name)
    if not others:
        return ""
    why = f"{'not in id_prop.csv, ' if reader == 'cgcnn' else ''}in a folder below or compressed"
    return f"{path}: {len(others)} not read ({why}): {', '.join(others[:3])}{', …' if len(others) > 3 else ''}"


# --- folders of files -----------------------------------------------------------------------------


def _file_entry(file: Path) -> Entry:
    lower = file.name.lower()
    kind = "cif" if lower.endswith(".cif") else "poscar"
    name = file.stem if lower.endswith(_FILE_ENDINGS) else file.name
    return Entry(name, str(file), str(file), kind)


def _cgcnn_folder(path: Path, targets: tuple[str, ...]) -> Iterator[Entry]:
    table = path / "id_prop.csv"
    rows, plain, lines = read_table(table)
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
    listed: dict[str, int] = {}
    for row, cells, line in list(zip(rows, plain, lines, strict=True))[has_header:]:
        name, where = row[0], f"{table}:{line}"
        name = name[:-4] if name.lower().endswith(".cif") else name
        file = path / f"{name}.cif"
        labels = dict(zip(columns, cells[1:] + [""] * (width - len(row)), strict=False))
        problem = "" if os.path.lexists(file) else f"{where}: id {name!r} has no file {file.name} in {path}"
        if (first := listed.setdefault(name, line)) != line:
            problem = f"{where}: the id {name!r} stands twice, first at {table}:{first}: remove one of the rows"
        problem = problem or (too_long(row, head, where) if has_header else "")
        yield Entry(name, str(file), str(file), "cif", labels, problem, labelled=where)


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
    """Contents of a file, decompressed if it is gzip.

    Raises:
        InputError: The gzip file is damaged or incomplete.
        OSError: The file cannot be read.
    """
    data = path.read_bytes()
    if data[:2] != b"\x1f\x8b":
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: the gzip file is damaged or incomplete ({error})") from error


def _json_file(path: Path, id_column: str | None, alone: str | None) -> Iterator[Entry]:
    try:
        data = read_bytes(path)
    except OSError as error:
        raise cannot_read(path, error) from error
    check_format(path, data)
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
            yield record_entry(record, text, where, f"row_{row}", id_column)
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
            yield record_entry(record, record["structure"], f"{path}:row {row}", str(name), id_column)
    elif (
        isinstance(document, dict)
        and not GEOMETRY & set(document)
        and all(isinstance(document.get(key), kind) for key, kind in _TABLE.items())
    ):
        key = document["schema"].get("primaryKey")
        index = next((one for one in (key, *(key if isinstance(key, list) else ())) if isinstance(one, str)), "index")
        for row, record in enumerate(document["data"]):
            name = id_text(record.get(index)) if isinstance(record, dict) else None
            yield record_entry(record, record, f"{path}:record {row + 1}", name or f"row_{row}", id_column)
    elif names := _row_names(document):
        for name in names:
            record = {column: (cells or {}).get(name) for column, cells in document.items()}
            yield record_entry(record, record, f"{path}:{name}", name, id_column)
    elif isinstance(document, dict) and not GEOMETRY & set(document):
        if not all(isinstance(value, dict) for value in document.values()):
            keys = ", ".join(list(document)[:6])
            raise InputError(f"{path}: a JSON object with {keys}; expected structures, records, or a frame of them")
        for name, record in document.items():  # by its key, whatever else the record is called
            yield replace(record_entry(record, record, f"{path}:{name}", name, None), id=name)
    elif isinstance(document, dict):
        yield record_entry(document, document, str(path), alone or _stem(path), id_column)
    elif isinstance(document, list):
        for row, record in enumerate(document):
            yield record_entry(record, record, f"{path}:record {row + 1}", f"row_{row}", id_column)
    else:
        raise InputError(f"{path}: found a JSON {type(document).__name__}; expected structures or records")


def _row_names(document: Any) -> list[str]:
    """Those of a frame that pandas wrote by its columns, {column: {row: cell}}; none where this is something else."""
    if not isinstance(document, dict) or not all(isinstance(cells, dict | None) for cells in document.values()):
        return []
    names = next((list(document[key]) for key in ("structure", "atoms") if document.get(key)), [])
    return [] if GEOMETRY & set(names) or any(cells and list(cells) != names for cells in document.values()) else names


# --- ASE ------------------------------------------------------------------------------------------


def _ase_file(path: Path, id_column: str | None) -> Iterator[Entry]:
    try:
        if path.suffix == ".db":
            from ase.db import connect

            found = _database_rows(path, connect(str(path)).select(), id_column)
        else:
            from ase.io import iread

            frames = enumerate(iread(str(path), index=":"))
            found = (
                atoms_entry(atoms, f"{path}:frame {row + 1}", f"row_{row}", id_column, {}, {}) for row, atoms in frames
            )
    except ImportError as error:
        raise InputError(f"{path}: reading this format needs ASE: pip install ase") from error
    try:
        yield from found
    except InputError:
        raise
    except Exception as error:  # ASE's readers let errors of many kinds through
        raise InputError(f"{path}: ASE cannot read this file: {error}") from error


def _database_rows(path: Path, rows: Iterable[Any], id_column: str | None) -> Iterator[Entry]:
    for row in rows:
        keys, labels = {"id": row.id, "unique_id": row.unique_id}, {**row.data, **row.key_value_pairs}
        yield atoms_entry(row.toatoms(), f"{path}:row {row.id}", str(row.id), id_column, labels, keys)
