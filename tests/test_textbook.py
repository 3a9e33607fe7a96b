"""The built-in example: counts, cells, labels."""

import csv
import math
from importlib import resources

import numpy as np
import pytest

from tlcgcnn_jax.crystal import formula
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.textbook import TEXTBOOK_PROPERTIES, primitive_cell, textbook_records

TABLE = resources.files("tlcgcnn_jax").joinpath("data/textbook/crystals.csv")
ROWS = list(csv.DictReader(TABLE.read_text(encoding="utf-8").splitlines()))
# atoms of the primitive cell of common prototypes (Strukturbericht)
ATOMS = {
    "diamond": 2,
    "zincblende": 2,
    "wurtzite": 4,
    "rocksalt": 2,
    "CsCl": 2,
    "fluorite": 3,
    "rutile": 6,
    "corundum": 10,
    "spinel": 14,
    "perovskite": 5,
    "chalcopyrite": 8,
    "pyrite": 12,
    "fcc": 1,
    "bcc": 1,
    "hcp": 2,
}


@pytest.mark.parametrize(
    "name, count", [("band_gap_ev", 101), ("bulk_modulus_gpa", 107), ("eps_inf", 85), ("eps_0", 81)]
)
def test_each_property_has_its_crystals(name, count):
    records = textbook_records([name])
    assert len(records) == count
    assert all(math.isfinite(record.targets[name]) for record in records)
    assert name in [p.name for p in TEXTBOOK_PROPERTIES]


def test_several_properties_keep_partly_labelled_crystals():
    both = textbook_records(("eps_inf", "eps_0"))
    assert any(math.isnan(record.targets["eps_0"]) for record in both)
    assert not any(all(math.isnan(value) for value in record.targets.values()) for record in both)
    assert len(textbook_records(())) == len(ROWS) == 120


def test_unknown_property_is_an_error_that_lists_the_others():
    with pytest.raises(InputError, match=r"hardness.*bulk_modulus_gpa"):
        textbook_records(["hardness"])


def test_cells_are_primitive_and_have_the_formula_of_the_table():
    from pymatgen.core import Composition

    for record, row in zip(textbook_records(()), ROWS, strict=True):
        numbers = record.structure.atomic_numbers
        assert record.id == row["id"]
        assert Composition(formula(numbers)).reduced_formula == Composition(row["formula"]).reduced_formula, row["id"]
        expected = ATOMS.get(row["prototype"].split()[0])
        assert expected in (None, len(numbers)), row["id"]


@pytest.mark.parametrize("name", ["fcc-Al", "rocksalt-NaCl", "wurtzite-ZnO", "rutile-TiO2", "LiNbO3"])
def test_packaged_cells_are_those_of_the_table(name):
    row = next(row for row in ROWS if row["id"] == name)
    record = next(record for record in textbook_records(()) if record.id == name)
    built = primitive_cell(row)
    np.testing.assert_allclose(record.structure.lattice, built["lattice"], atol=1e-8)
    difference = record.structure.frac_coords - built["frac_coords"]  # 0 and 1 are one place
    np.testing.assert_allclose(difference - np.round(difference), 0, atol=1e-8)


def test_every_packaged_cell_divides_the_conventional_cell_of_its_row():
    """A table that changes without `python -m tlcgcnn_jax.textbook` fails here."""
    from pymatgen.core import Lattice

    for record, row in zip(textbook_records(()), ROWS, strict=True):
        lengths = [float(row[f"{axis}_angstrom"]) for axis in "abc"]
        conventional = Lattice.from_parameters(*lengths, *(float(row[k]) for k in ("alpha", "beta", "gamma"))).volume
        ratio = conventional / abs(np.linalg.det(record.structure.lattice))
        assert ratio == pytest.approx(round(ratio), abs=1e-6) and round(ratio) in (1, 2, 3, 4), row["id"]
