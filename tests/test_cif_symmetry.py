"""CIFs that tell their symmetry by a name, a Hall symbol or a number: the crystal must be the one they mean."""

import contextlib
import warnings

import numpy as np
import pytest

from tlcgcnn_jax import cif_symmetry
from tlcgcnn_jax.cif import read_cif
from tlcgcnn_jax.errors import InputError, ReadingWarning

SI, SI_SECOND = [("Si", 0, 0, 0)], [("Si", 0.125, 0.125, 0.125)]
NACL = [("Na", 0, 0, 0), ("Cl", 0.5, 0.5, 0.5)]
STACKED = [("Na", 0, 0, 0), ("Cl", 0, 0, 0.5)]
NA = [("Na", 0.1, 0.2, 0.3)]
DIAMOND, SALT, MONOCLINIC = (5.43,) * 3 + (90,) * 3, (5.64,) * 3 + (90,) * 3, (5, 6, 7, 90, 100, 90)
HEXAGONAL, RHOMBOHEDRAL = (4, 4, 10, 90, 90, 120), (4, 4, 4, 60, 60, 60)
NAME, HALL, NUMBER = "_symmetry_space_group_name_H-M", "_space_group_name_Hall", "_symmetry_Int_Tables_number"


def text(cell, symmetry, sites):
    tags = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    lines = ["data_x", *(f"_cell_{tag} {value}" for tag, value in zip(tags, cell, strict=True)), symmetry, "loop_"]
    lines += [f"_atom_site_{tag}" for tag in ("label", "type_symbol", "fract_x", "fract_y", "fract_z")]
    lines += [f"{site[0]}{i} {' '.join(map(str, site))}" for i, site in enumerate(sites)]
    return "\n".join(lines) + "\n"


ROWS = {
    "first origin, S": (DIAMOND, f"{NAME} 'F d -3 m S'", SI, {14: 8}),
    "first origin, :1": (DIAMOND, f"{NAME} 'F d -3 m :1'", SI, {14: 8}),
    "second origin, :2": (DIAMOND, f"{NAME} 'F d -3 m :2'", SI_SECOND, {14: 8}),
    "second origin, Z": (DIAMOND, f"{NAME} 'F d -3 m Z'", SI_SECOND, {14: 8}),
    "origin by Hall symbol beside name": (
        DIAMOND,
        f"{NAME} 'F d -3 m'\n{HALL} '-F 4vw 2vw 3'\n{NUMBER} 227",
        SI_SECOND,
        {14: 8},
    ),
    "Hall symbol": (DIAMOND, f"{HALL} 'F 4d 2 3 -1d'", SI, {14: 8}),
    "Hall symbol, old data name": (SALT, "_symmetry_space_group_name_Hall '-F 4 2 3'", NACL, {11: 4, 17: 4}),
    "old name": (SALT, f"{NAME} 'F m 3 m'", NACL, {11: 4, 17: 4}),
    "full name": (SALT, "_space_group_name_H-M_full 'F 4/m -3 2/m'", NACL, {11: 4, 17: 4}),
    "reference name": (SALT, "_space_group_name_H-M_ref 'F m -3 m'", NACL, {11: 4, 17: 4}),
    "dotted number": (SALT, "_space_group.IT_number 225", NACL, {11: 4, 17: 4}),
    "dotted name": (SALT, "_space_group.name_H-M_alt 'F m -3 m'", NACL, {11: 4, 17: 4}),
    "dotted operators": (SALT, "loop_\n_space_group_symop.operation_xyz\nx,y,z\n-x,y,z+1/2", NA, {11: 2}),
    "number": (SALT, f"{NUMBER} 225", NACL, {11: 4, 17: 4}),
    "operators not told": (SALT, f"{NUMBER} 225\n_symmetry_equiv_pos_as_xyz ?", NACL, {11: 4, 17: 4}),
    "name in a loop": (SALT, "loop_\n_space_group_id\n_space_group_name_H-M_alt\n1 'F m -3 m'", NACL, {11: 4, 17: 4}),
    "typo, but the number has one setting": (SALT, f"{NAME} 'F m 3 mm'\n{NUMBER} 225", NACL, {11: 4, 17: 4}),
    "P 21/n": (MONOCLINIC, f"{NAME} 'P 21/n'", NA, {11: 4}),
    "a spinel, which the second origin would spoil": (
        (8.08,) * 3 + (90,) * 3,
        f"{NAME} 'F d -3 m'",
        [("Mg", 0, 0, 0), ("Al", 0.625, 0.625, 0.625), ("O", 0.375, 0.375, 0.375)],
        {12: 8, 13: 16, 8: 32},
    ),
    "Schoenflies, none": (MONOCLINIC, "_space_group_name_Schoenflies C1", NA, {11: 1}),
    "Schoenflies beside a name": (MONOCLINIC, f"{NAME} 'P 2'\n_space_group_name_Schoenflies C2", NA, {11: 2}),
    "P2_1/c": (MONOCLINIC, f"{NAME} P2_1/c", NA, {11: 4}),
    "P 2(1)/c": (MONOCLINIC, f"{NAME} 'P 2(1)/c'\n{NUMBER} 14", NA, {11: 4}),
    "R, hexagonal, told": (HEXAGONAL, f"{NAME} 'R -3 m :H'", STACKED, {11: 3, 17: 3}),
    "R, hexagonal by the cell": (HEXAGONAL, f"{NAME} 'R -3 m'", STACKED, {11: 3, 17: 3}),
    "R, rhombohedral, told": (RHOMBOHEDRAL, f"{NAME} 'R -3 m :R'", NACL, {11: 1, 17: 1}),
    "R, rhombohedral by the cell": (RHOMBOHEDRAL, f"{NUMBER} 166", NACL, {11: 1, 17: 1}),
    "R, name and rhombohedral by the cell": (RHOMBOHEDRAL, f"{NAME} 'R -3 m'", NACL, {11: 1, 17: 1}),
    "P 1": (SALT, f"{NAME} 'P 1'\n{NUMBER} 1", NACL, {11: 1, 17: 1}),
    "P 1 by the reference name": (SALT, "_space_group_name_H-M_ref 'P 1'", NACL, {11: 1, 17: 1}),
    "not told": (SALT, f"{NAME} ?\n{NUMBER} .", NACL, {11: 1, 17: 1}),
}


@pytest.mark.parametrize("cell, symmetry, sites, expected", ROWS.values(), ids=ROWS.keys())
def test_symmetry_without_operators(cell, symmetry, sites, expected):
    numbers, counts = np.unique(read_cif(text(cell, symmetry, sites), "a.cif").atomic_numbers, return_counts=True)
    assert dict(zip(numbers.tolist(), counts.tolist(), strict=True)) == expected


def test_a_setting_moves_the_atoms_as_its_operators_say():
    crystal = read_cif(text(MONOCLINIC, f"{NAME} 'P 21/n'\n{NUMBER} 14", NA), "a.cif")
    expected = [[0.1, 0.2, 0.3], [0.4, 0.7, 0.2], [0.6, 0.3, 0.8], [0.9, 0.8, 0.7]]
    np.testing.assert_allclose(sorted(crystal.frac_coords.tolist()), expected, atol=1e-12)


def test_an_origin_not_told_is_the_one_without_atoms_upon_each_other():
    near = [("Si", 0.51, 0.5, 0.24)]  # by the first origin of P n n n its images are 0.24 Å apart
    clear = [("Si", 0.1, 0.25, 0.4)]  # and this one's are apart by either
    cell = (12, 12, 12, 90, 90, 90)
    for sites, origin in ((near, 2), (clear, 1)):
        doubt = pytest.warns(ReadingWarning, match="the first is taken") if sites is clear else contextlib.nullcontext()
        with doubt:
            left_open = read_cif(text(cell, f"{NAME} 'P n n n'", sites), "a")
        read = left_open, read_cif(text(cell, f"{NAME} 'P n n n :{origin}'", sites), "a")
        open_, told = (sorted(np.round(crystal.frac_coords, 9).tolist()) for crystal in read)
        assert open_ == told and len(told) == 8


TOLD = {
    "by nothing": ("", 8, "the first is taken, with 8 atoms in the cell (the other: 16)"),
    "by the first": ("_chemical_formula_sum Si\n_cell_formula_units_Z 8", 8, ""),
    "by the second": ("_chemical_formula_sum 'Si2 H1'\n_cell_formula_units_Z 8", 16, "formula 'Si2 H1' has H without"),
    "by neither": ("_chemical_formula_sum Si4\n_cell_formula_units_Z 8", 8, "the first is taken"),
}


@pytest.mark.parametrize("contents, atoms, told", TOLD.values(), ids=TOLD.keys())
def test_an_origin_not_told_is_settled_by_the_number_of_atoms(contents, atoms, told):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        crystal = read_cif(text(DIAMOND, f"{NAME} 'F d -3 m'\n{contents}", SI), "a.cif")
    assert len(crystal.atomic_numbers) == atoms
    assert len(said) == bool(told) and told in "".join(str(one.message) for one in said)


def test_an_origin_that_makes_no_difference_is_not_told():
    """Halfway between the two they give one crystal, shifted by half a cell."""
    crystal = read_cif(text((9, 10, 11, 90, 90, 90), f"{NAME} 'P n n n'", [("Po", 0.125, 0.125, 0.125)]), "a.cif")
    assert len(crystal.atomic_numbers) == 8  # a warning would be an error here


BAD = {
    "typo": (SALT, f"{NAME} 'F m 3 mm'", r"a\.cif: the symmetry _symm.* 'F m 3 mm' is not under.*_equiv_pos_as_xyz"),
    "typo, number of many settings": (MONOCLINIC, f"{NAME} 'P 21/q'\n{NUMBER} 14", "'P 21/q', .* is not understood"),
    "Hall symbol": (SALT, f"{HALL} 'junk'", "'junk' is not understood"),
    "number": (SALT, f"{NUMBER} 231", "'231' is not understood"),
    "a number of no group": (SALT, f"{NUMBER} 99999999999", "'99999999999' is not understood"),
    "Schoenflies": (SALT, "_space_group.name_Schoenflies Oh.5", "'Oh.5' is not understood"),
    "name and number differ": (SALT, f"{NAME} 'P 1'\n{NUMBER} 225", "does not agree with itself"),
    "origins differ": (SALT, f"{NAME} 'F d -3 m :2'\n{HALL} 'F 4d 2 3 -1d'", "does not agree with itself"),
    "cell": (RHOMBOHEDRAL, f"{NAME} 'R -3 m :H'", "or with the cell"),
}


@pytest.mark.parametrize("cell, symmetry, told", BAD.values(), ids=BAD.keys())
def test_a_symmetry_that_is_not_understood_is_told(cell, symmetry, told):
    with pytest.raises(InputError, match=told):
        read_cif(text(cell, symmetry, NACL), "a.cif")


@pytest.mark.parametrize("tag", ["_symmetry_equiv_pos_as_xyz", "_space_group_symop_operation_xyz"])
@pytest.mark.parametrize("half", ["1/2", "0.5"], ids=["plain", "by pymatgen"])
def test_operators_go_before_any_name(monkeypatch, tag, half):
    def never(*_):
        raise AssertionError("a CIF with operators needs no other symmetry")

    monkeypatch.setattr(cif_symmetry, "_operators_of_pymatgen", never)
    operators = f"loop_\n{tag}\nx,y,z\nx,y+{half},z+{half}"
    alone = read_cif(text(SALT, operators, NACL), "a")
    for symmetry in (f"{NAME} 'F m 3 mm'", f"{NUMBER} 14", f"{HALL} junk"):
        named = read_cif(text(SALT, f"{symmetry}\n{operators}", NACL), "a")
        np.testing.assert_array_equal(named.frac_coords, alone.frac_coords)
        np.testing.assert_array_equal(named.atomic_numbers, alone.atomic_numbers)
        assert len(named.atomic_numbers) == 4
