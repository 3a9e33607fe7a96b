"""Experimental properties of 120 textbook crystals, the package's built-in example."""

import csv
import functools
import json
import math
from collections.abc import Sequence
from importlib import resources
from typing import Any, NamedTuple

from tlcgcnn_jax.crystal import Crystal, Record, make_crystal
from tlcgcnn_jax.errors import InputError

_TABLE = "data/textbook/crystals.csv"
# Made from the table by `main`, because the search for primitive cells takes half a minute.
_CELLS = "data/textbook/cells.jsonl"


class Property(NamedTuple):
    """A property of the table: name of its column, unit, and what it is."""

    name: str
    unit: str
    description: str


TEXTBOOK_PROPERTIES = (
    Property("band_gap_ev", "eV", "fundamental band gap from experiment"),
    Property("bulk_modulus_gpa", "GPa", "bulk modulus from experiment"),
    Property("eps_inf", "", "high-frequency (electronic) dielectric constant from experiment"),
    Property("eps_0", "", "static dielectric constant from experiment"),
)


def textbook_records(targets: Sequence[str] = ("bulk_modulus_gpa",)) -> list[Record]:
    """The textbook crystals that have at least one of the properties asked for, as primitive cells.

    Args:
        targets: Columns of `TEXTBOOK_PROPERTIES`; none gives all 120 crystals without labels.

    Returns:
        One record per crystal, in the order of the table; NaN where the handbooks give no value.

    Raises:
        InputError: A target that the table does not have.

    Example:
        >>> from tlcgcnn_jax import textbook_records
        >>> silicon = textbook_records(["band_gap_ev"])[1]
        >>> silicon.id, silicon.targets, len(silicon.structure.atomic_numbers)
        ('diamond-Si', {'band_gap_ev': 1.17}, 2)

    Source:
        data/textbook/REFERENCES.md in the package; each row of the table names its references.
    """
    targets = (targets,) if isinstance(targets, str) else tuple(targets)
    known = [p.name for p in TEXTBOOK_PROPERTIES]
    if unknown := [target for target in targets if target not in known]:
        raise InputError(f"textbook: no property {', '.join(unknown)}; there are {', '.join(known)}")
    records = []
    for row, crystal in zip(_rows(), _crystals(), strict=True):
        labels = {target: float(row[target]) if row[target] else math.nan for target in targets}
        if not targets or not all(math.isnan(value) for value in labels.values()):
            records.append(Record(row["id"], crystal, labels, f"textbook:{row['id']}"))
    return records


@functools.cache
def _rows() -> tuple[dict[str, str], ...]:
    text = resources.files("tlcgcnn_jax").joinpath(_TABLE).read_text(encoding="utf-8")
    return tuple(csv.DictReader(text.splitlines()))


@functools.cache
def _crystals() -> tuple[Crystal, ...]:
    text = resources.files("tlcgcnn_jax").joinpath(_CELLS).read_text(encoding="utf-8")
    cells = {cell["id"]: cell for cell in map(json.loads, text.splitlines())}
    crystals = []
    for row in _rows():
        cell = cells[row["id"]]
        crystal = make_crystal(cell["lattice"], cell["species"], cell["frac_coords"], f"textbook:{row['id']}")
        for array in crystal:
            array.setflags(write=False)  # shared by all callers
        crystals.append(crystal)
    return tuple(crystals)


def primitive_cell(row: dict[str, str]) -> dict[str, Any]:
    """Build the primitive cell of a row of crystals.csv with pymatgen.

    Args:
        row: Space group number, cell lengths in Å, angles in degrees, and one site per orbit.

    Returns:
        id, lattice (rows a, b, c in Å), species and frac_coords.
    """
    from pymatgen.core import Lattice, Structure

    a, b, c = (float(row[f"{axis}_angstrom"]) for axis in "abc")
    lattice = Lattice.from_parameters(a, b, c, *(float(row[angle]) for angle in ("alpha", "beta", "gamma")))
    sites = json.loads(row["sites"])
    structure = Structure.from_spacegroup(
        int(row["spacegroup_number"]), lattice, [site[0] for site in sites], [site[1:] for site in sites]
    ).get_primitive_structure()
    return {
        "id": row["id"],
        "lattice": structure.lattice.matrix.round(10).tolist(),
        "species": [str(specie) for specie in structure.species],
        "frac_coords": structure.frac_coords.round(10).tolist(),
    }


def main() -> None:
    """Write cells.jsonl anew; run `python -m tlcgcnn_jax.textbook` after crystals.csv was changed."""
    lines = [json.dumps(primitive_cell(row), separators=(",", ":")) for row in _rows()]
    with resources.as_file(resources.files("tlcgcnn_jax").joinpath(_CELLS)) as path:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
