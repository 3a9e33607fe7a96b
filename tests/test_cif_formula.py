"""The elements that are read from a CIF are those of the formula that it tells, if it can be understood."""

import pytest

from tlcgcnn_jax import build_dataset
from tlcgcnn_jax.cif import read_cif
from tlcgcnn_jax.errors import InputError, ReadingWarning

HEAD = "data_x\n" + "".join(f"_cell_length_{axis} 5\n" for axis in "abc")
HEAD += "".join(f"_cell_angle_{angle} 90\n" for angle in ("alpha", "beta", "gamma"))
PLAIN = "loop_\n_symmetry_equiv_pos_as_xyz\nx,y,z\n"
UNUSUAL = "loop_\n_symmetry_equiv_pos_as_xyz\nx,y,z\nx+0.5,y,z\n"  # decimal fractions go to pymatgen


def text(formula, sites, operators=PLAIN):
    """A CIF with labels alone: 'Mg1 0 0 0'."""
    tags = "".join(f"_atom_site_{tag}\n" for tag in ("label", "fract_x", "fract_y", "fract_z"))
    return f"{HEAD}_chemical_formula_sum {formula}\n{operators}loop_\n{tags}{sites}\n"


def elements(cif):
    return sorted(set(read_cif(cif, "a.cif").atomic_numbers.tolist()))


SALT = "Na1 0 0 0\nCl1 .5 .5 .5"
AGREE = {
    "plain": ("'Cl1 Na1'", SALT, [11, 17]),
    "decimals and an uncertainty": ("'Na1.0 Cl.98(2)'", SALT, [11, 17]),
    "commas": ("'Na1, Cl1'", SALT, [11, 17]),
    "none of an element": ("'Na Cl K0'", SALT, [11, 17]),
    "not told": ("?", SALT, [11, 17]),
    "inapplicable": (".", SALT, [11, 17]),
    "in text": ("\n;\nNa1 Cl1\n;", SALT, [11, 17]),
    "not understood": ("'(Na,K) F'", SALT, [11, 17]),
    "a number that is none": ("'Na. K'", SALT, [11, 17]),
    "without spaces, which may be cobalt in capitals": ("CO1", "Co1 0 0 0", [27]),
    "an element beyond the table": ("'Lr Cl'", SALT, [11, 17]),
    "deuterium as hydrogen": ("'H2 O'", "D1 0 0 0\nO1 .5 .5 .5", [1, 8]),
    "hydrogen as deuterium": ("'D2 O'", "H1 0 0 0\nO1 .5 .5 .5", [1, 8]),
}


@pytest.mark.parametrize("operators", [PLAIN, UNUSUAL], ids=["plain", "by pymatgen"])
@pytest.mark.parametrize("formula, sites, expected", AGREE.values(), ids=AGREE.keys())
def test_quirks_of_formulas_are_no_contradiction(formula, sites, expected, operators):
    assert elements(text(formula, sites, operators)) == expected  # a warning would be an error here


DIFFER = {
    "water read as tungsten": ("'H2 Mg O'", "Mg1 0 0 0\nW1 .5 .5 .5", r"read as W, .* 'H2 Mg O'.*_type_symbol"),
    "hydrogen read as holmium": ("'H2 Mg O'", "Mg1 0 0 0\nO1 0 0 .5\nHO1 .5 .5 .5", "read as Ho, .* HO1 for hydrogen"),
    "an element without a site": ("'Na Cl K'", SALT, "'Na Cl K' has K, of which no site was found"),
}


@pytest.mark.parametrize("operators", [PLAIN, UNUSUAL], ids=["plain", "by pymatgen"])
@pytest.mark.parametrize("formula, sites, told", DIFFER.values(), ids=DIFFER.keys())
def test_other_elements_than_those_of_the_formula_are_refused(formula, sites, told, operators):
    with pytest.raises(InputError, match=rf"a\.cif: its .*{told}"):
        read_cif(text(formula, sites, operators), "a.cif")


@pytest.mark.parametrize("operators", [PLAIN, UNUSUAL], ids=["plain", "by pymatgen"])
@pytest.mark.parametrize("lost, element", [("H2", "H"), ("D2", "H"), ("Nd0.05", "Nd")])
def test_hydrogen_and_traces_without_sites_are_told(lost, element, operators):
    expected = rf"a\.cif: its formula '{lost} Mg O2' has {element} without a site"
    with pytest.warns(ReadingWarning, match=expected) as told:
        assert elements(text(f"'{lost} Mg O2'", "Mg1 0 0 0\nO1 0 0 .5", operators)) == [8, 12]
    assert len(told) == 1


def test_of_many_crystals_the_first_doubt_is_told(tmp_path, caplog):
    for name in "abc":
        (tmp_path / f"{name}.cif").write_text(text("'H2 Mg O2'" if name > "a" else "'Mg O2'", "Mg1 0 0 0\nO1 0 0 .5"))
    assert len(build_dataset(tmp_path)) == 3
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith("2 crystals were read with a doubt; the first: ") and "b.cif: its formula" in told
