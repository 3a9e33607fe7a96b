"""Crystals in memory: lists, mappings and frames of structures, dictionaries, ASE's atoms and paths."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tlcgcnn_jax.crystal import Crystal, Record
from tlcgcnn_jax.entries import GEOMETRY, ID_COLUMNS, Entry, atoms_entry, id_text, record_entry, structure_entry
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.labels import check_header, id_columns
from tlcgcnn_jax.readers import path_entry

_FLAT = {"lattice", "species", "frac_coords"}
_NAMES = ("name", "file")  # columns of which several crystals may have the same
_EXPECTED = "a pymatgen Structure, a Record, ASE Atoms, a dictionary of a structure, or a path"


def object_entries(source: Any, id_column: str | None) -> Iterator[Entry]:
    """All crystals of a Python object.

    Args:
        source: One crystal; an iterable of crystals or (id, crystal) pairs; a mapping from ids to crystals; a pandas
            Series of crystals, or a DataFrame with a column of them.
        id_column: Column or key that holds the ids.

    Raises:
        InputError: It is none of these. What is wrong with one crystal stands in its entry.
    """
    if hasattr(source, "columns") and hasattr(source, "iloc"):
        yield from _frame(source, id_column)
        return
    if _is_crystal(source):
        source = [source]
    elif isinstance(source, Mapping) or (hasattr(source, "to_frame") and hasattr(source, "index")):  # a Series
        source = list(source.items())
    if isinstance(source, bytes) or not isinstance(source, Iterable):
        raise InputError(f"found {type(source).__name__}; expected a path, a DataFrame, or a list of structures")
    for row, thing in enumerate(source):
        where, name = f"list:{row}", f"row_{row}"
        if isinstance(thing, tuple) and not isinstance(thing, Crystal) and len(thing) == 2:
            name = id_text(thing[0]) or name
            yield replace(_entry(thing[1], where, name, None), id=name)
        else:
            yield _entry(thing, where, name, id_column)


def _is_crystal(thing: Any) -> bool:
    """Whether this is one crystal, and not many; paths apart."""
    if isinstance(thing, Mapping):
        return bool(GEOMETRY & set(thing))
    told = any(hasattr(thing, name) for name in ("frac_coords", "get_atomic_numbers", "model_dump"))
    return told or isinstance(thing, Record | Crystal)


def _entry(thing: Any, where: str, name: str, id_column: str | None) -> Entry:
    """The entry of one crystal, whatever its type; `name` is its id where it has none."""
    if hasattr(thing, "model_dump"):  # a document of the Materials Project's interface
        thing = thing.model_dump()
    if isinstance(thing, Record):
        return Entry(thing.id, thing.where or where, tuple(thing.structure), "crystal", thing.targets)
    if isinstance(thing, Crystal):
        return Entry(name, where, tuple(thing), "crystal")
    if isinstance(thing, Mapping):
        held = [thing[key] for key in ("structure", "atoms") if thing.get(key) is not None]
        return _described(dict(thing), held[0] if held and not set(thing) >= _FLAT else thing, where, name, id_column)
    if isinstance(thing, str | Path):
        return path_entry(thing, where, name, id_column)
    if hasattr(thing, "get_atomic_numbers"):
        return atoms_entry(thing, where, name, id_column, {}, {})
    if hasattr(thing, "frac_coords") and hasattr(thing, "sites"):
        return structure_entry(thing, where, name, id_column)
    problem = f"{where} (id {name!r}): found {type(thing).__name__}; expected {_EXPECTED}"
    return Entry(name, where, problem=problem)


def _described(record: dict[Any, Any], thing: Any, where: str, name: str, id_column: str | None) -> Entry:
    """A crystal that a record names and labels."""
    outer = record_entry(record, thing, where, name, id_column)
    if outer.problem or isinstance(thing, Mapping):
        return outer
    inner = _entry(thing, where, outer.id, None)
    return replace(inner, id=outer.id, row=outer.row)


def _frame(frame: Any, id_column: str | None) -> Iterator[Entry]:
    if id_column and id_column not in frame.columns and str(frame.index.name) == id_column:
        frame = frame.reset_index()
    columns = [str(column) for column in frame.columns]
    check_header(columns, "the DataFrame")
    rows = [dict(zip(columns, values, strict=True)) for values in frame.itertuples(index=False, name=None)]
    if id_column and id_column not in columns:
        raise InputError(f"the DataFrame has no column {id_column!r}; its columns are {', '.join(columns)}")
    flat = set(columns) >= _FLAT
    geometry = None if flat else _geometry(columns, rows)
    if not flat and geometry is None:
        raise InputError(f"the DataFrame has no column of structures; its columns are {', '.join(columns)}")
    column = _id_column(columns, rows, id_column, frame.index)
    for number, (index, record) in enumerate(zip(frame.index, rows, strict=True)):
        where, name = f"DataFrame:{number}", id_text(index) or f"row_{number}"
        thing = record.pop(geometry) if geometry else record
        labels = {key: value for key, value in record.items() if not (flat and key in _FLAT)}
        named = id_text(record.get(column)) if column else None
        if id_column and named is None:
            yield Entry(name, where, row=labels, problem=f"{where}: there is no id in column {id_column!r}")
            continue
        yield replace(_entry(thing, where, named or name, None), id=named or name, row=labels)


def _geometry(columns: list[str], rows: list[dict[str, Any]]) -> str | None:
    """The column that holds the crystals, by its first cell that is not empty."""
    first = {c: next((row[c] for row in rows if id_text(row[c]) or _is_crystal(row[c])), None) for c in columns}
    holding = [c for c in ("structure", "atoms", *columns) if _is_crystal(first.get(c))]
    holding += [c for c in ("structure", "atoms") if isinstance(first.get(c), str | Path)]
    holding += [c for c in ("structure", "atoms") if c in columns]  # of which each cell tells what is wrong
    return holding[0] if holding else None


def _id_column(columns: list[str], rows: list[dict[str, Any]], id_column: str | None, index: Any) -> str | None:
    """The column of the ids: that which is asked for, or the first of the usual names that holds any.

    None where there is no such column, or where names in it repeat and the index names each row.
    """
    is_named = index.is_unique and (index.name is not None or any(isinstance(name, str) for name in index))
    for column in (columns[place] for place in id_columns(columns, id_column, ID_COLUMNS)):
        texts = [text for row in rows if (text := id_text(row[column]))]
        is_usual = column in ID_COLUMNS and not (is_named and column in _NAMES)
        # In other capitals it may be anything that happens to be called so.
        if column == id_column or (texts and (is_usual or len(set(texts)) == len(texts))):
            return column
    return None
