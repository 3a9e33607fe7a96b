"""What was found of one crystal, in a file or in memory: its name and its labels as they stand, its geometry unread."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tlcgcnn_jax.crystal import check_periodic, ordered_species
from tlcgcnn_jax.errors import InputError

ID_COLUMNS = ("id", "material_id", "name", "file", "jid")
GEOMETRY = {"formula", "lattice", "species", "frac_coords", "structure", "atoms", "sites", "lattice_mat"}


@dataclass
class Entry:
    """A crystal that was found: its name, its labels as they stand, and what `structures.parse` needs.

    `problem` says why it cannot be used, where that shows before the geometry is read; `labelled` where its labels
    stand, if not with it.
    """

    id: str
    where: str
    payload: Any = None
    format: str = ""
    row: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""
    labelled: str = ""


def record_entry(record: Any, payload: Any, where: str, fallback: str, id_column: str | None) -> Entry:
    """A crystal of JSON or of a dictionary.

    Args:
        record: Names and labels of the crystal.
        payload: What `structures.parse` shall read.
        where: File and line, or place in a list.
        fallback: Its id where the record has none.
        id_column: Key of the id; by default the first of `ID_COLUMNS`.
    """
    if not isinstance(record, dict):
        return Entry(fallback, where, problem=f"{where}: found {record!r:.60}; expected a JSON object")
    row, properties = record, record.get("properties")
    if "sites" in record and isinstance(properties, dict):  # of pymatgen, which writes empty ones and a charge, too
        row = {**{k: v for k, v in record.items() if k not in ("properties", "charge")}, **properties}
    labels = {k: v for k, v in row.items() if k not in GEOMETRY and not str(k).startswith("@")}
    name = _name({**labels, **record} if id_column else record, fallback, id_column)
    if name is None:
        return Entry(fallback, where, row=labels, problem=_no_id(where, id_column, record))
    return Entry(name, where, payload, "json", labels)


def atoms_entry(
    atoms: Any, where: str, fallback: str, id_column: str | None, labels: Mapping[str, Any], keys: Mapping[str, Any]
) -> Entry:
    """A crystal of ASE's `Atoms`.

    Args:
        atoms: The crystal; scalars that were computed, and its `info`, are labels.
        where: File and frame, or place in a list.
        fallback: Its id where nothing else names it.
        id_column: Key of the id; by default the first of `ID_COLUMNS`.
        labels: Further ones.
        keys: What can name it besides, where `id_column` asks for it.
    """
    computed = dict(atoms.calc.results) if atoms.calc is not None else {}
    row = {**{k: v for k, v in computed.items() if np.ndim(v) == 0}, **atoms.info, **labels}
    named = {**keys, **row} if id_column else row
    name = _name(named, fallback, id_column)
    if name is None:
        return Entry(fallback, where, row=row, problem=_no_id(where, id_column, named))
    try:
        _check_occupancy(atoms, f"{where} (id {name!r})")
        check_periodic(atoms.pbc, atoms.cell, atoms.get_positions(), f"{where} (id {name!r})")
    except InputError as error:
        return Entry(name, where, row=row, problem=str(error))
    arrays = (np.array(atoms.cell), atoms.get_atomic_numbers(), np.array(atoms.get_positions()))
    return Entry(name, where, arrays, "cartesian", row)


def _check_occupancy(atoms: Any, where: str) -> None:
    """Raise `InputError` for disorder, of which ASE's readers keep the commonest species and a note."""
    occupancy, kinds = atoms.info.get("occupancy"), atoms.arrays.get("spacegroup_kinds", ())
    for site, kind in enumerate(kinds if isinstance(occupancy, dict) else ()):
        if isinstance(species := occupancy.get(str(kind), occupancy.get(kind)), dict):
            ordered_species(list(species.items()), site, where)


def structure_entry(structure: Any, where: str, fallback: str, id_column: str | None) -> Entry:
    """A crystal of a pymatgen `Structure`, whose properties are labels, and its id where `id_column` names one."""
    row = dict(structure.properties or {})
    name = _name(row, fallback, id_column) if id_column else fallback
    if name is None:
        return Entry(fallback, where, row=row, problem=_no_id(where, id_column, row))
    place = f"{where} (id {name!r})"
    try:
        lattice = structure.lattice
        check_periodic(getattr(lattice, "pbc", None), lattice.matrix, structure.cart_coords, place)
        species = [
            ordered_species([(_symbol(s), float(n)) for s, n in site.species.items()], i, place)
            for i, site in enumerate(structure)
        ]
    except InputError as error:
        return Entry(name, where, row=row, problem=str(error))
    return Entry(name, where, (structure.lattice.matrix, species, structure.frac_coords), "crystal", row)


def _symbol(specie: Any) -> str:
    return getattr(specie, "symbol", str(specie))


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
    except (TypeError, ValueError):  # pandas' NA refuses to be compared, and arrays have no truth
        known = False
    if not known:
        return None
    whole = isinstance(value, float | np.floating) and float(value).is_integer()
    return str(int(value)) if whole else str(value)


def _no_id(where: str, id_column: str | None, row: Mapping[str, Any]) -> str:
    columns = ", ".join(str(k) for k in row if k not in GEOMETRY) or "none"
    return f"{where}: there is no id in column {id_column!r} (--id-column); the columns are {columns}"
