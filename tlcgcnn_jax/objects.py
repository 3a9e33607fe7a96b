"""Crystals in memory: lists, mappings and frames of structures, dictionaries, ASE's atoms and paths."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tlcgcnn_jax.crystal import Crystal, Record
from tlcgcnn_jax.entries import GEOMETRY, Entry, atoms_entry, id_text, record_entry, structure_entry
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.readers import path_entry

_FLAT = {"lattice", "species", "frac_coords"}
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
    elif isinstance(source, Mapping) or hasattr(source, "to_frame"):  # a Series
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
    return isinstance(thing, Record | Crystal) or hasattr(thing, "frac_coords") or hasattr(thing, "get_atomic_numbers")


def _entry(thing: Any, where: str, name: str, id_column: str | None) -> Entry:
    """The entry of one crystal, whatever its type; `name` is its id where it has none."""
    if isinstance(thing, Record):
        return Entry(thing.id, thing.where or where, tuple(thing.structure), "crystal", thing.targets)
    if isinstance(thing, Crystal):
        return Entry(name, where, tuple(thing), "crystal")
    if isinstance(thing, Mapping):
        held = [thing[key] for key in ("structure", "atoms") if thing.get(key) is not None]
        return _described(dict(thing), held[0] if held and not set(thing) >= _FLAT else thing, where, name, id_column)
    if isinstance(thing, str | Path):
        return path_entry(thing, where, name)
    if hasattr(thing, "get_atomic_numbers"):
        return atoms_entry(thing, where, name, id_column, {}, {})
    if hasattr(thing, "frac_coords") and hasattr(thing, "sites"):
        return structure_entry(thing, where, name)
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
    columns = [str(column) for column in frame.columns]
    first = frame.iloc[0] if len(frame) else [None] * len(columns)
    holding = (c for c, value in zip(columns, first, strict=True) if _is_crystal(value))
    geometry = next((c for c in ("structure", "atoms") if c in columns), None) or next(holding, None)
    if set(columns) >= _FLAT:
        geometry = None
    elif geometry is None:
        raise InputError(f"the DataFrame has no column of structures; its columns are {', '.join(columns)}")
    if id_column and id_column not in columns:
        raise InputError(f"the DataFrame has no column {id_column!r}; its columns are {', '.join(columns)}")
    for row, (index, values) in enumerate(zip(frame.index, frame.itertuples(index=False, name=None), strict=True)):
        record = dict(zip(columns, values, strict=True))
        thing = record.pop(geometry) if geometry else record
        yield _described(record, thing, f"DataFrame:{row}", id_text(index) or f"row_{row}", id_column)
