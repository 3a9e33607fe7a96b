"""Descriptors are the numbers of the handbooks, and do not depend on how a crystal is written down."""

import math
import sys

import numpy as np
import pytest
from toy import dataset as toy_dataset

from tlcgcnn_jax.crystal import Crystal, Record
from tlcgcnn_jax.dataset import build_dataset
from tlcgcnn_jax.descriptors import (
    Features,
    composition_features,
    covalent_radii,
    descriptors,
    element_properties,
    matminer_features,
    structure_features,
)
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.textbook import textbook_records

RECORDS = textbook_records(())
DATASET = build_dataset(RECORDS)
FEATURES = descriptors(DATASET)


def value(features: Features, record: int, name: str) -> float:
    return float(features.values[record, features.names.index(name)])


# Densities: CRC Handbook of Chemistry and Physics. Coordination: the structure type. Counts: the formula.
@pytest.mark.parametrize(
    ("crystal", "name", "expected", "tolerance"),
    [
        ("rocksalt-NaCl", "density", 2.17, 0.03),
        ("diamond-C", "density", 3.513, 0.02),
        ("diamond-Si", "density", 2.3296, 0.01),
        ("rocksalt-MgO", "density", 3.6, 0.06),
        ("diamond-Si", "volume", 5.4310**3 / 8, 0.05),
        ("diamond-Si", "mean near neighbours", 4, 1e-5),
        ("rocksalt-NaCl", "mean near neighbours", 6, 1e-5),
        ("rocksalt-NaCl", "mean coordination number", 6, 0.05),
        ("diamond-Si", "mean coordination number", 4, 0.01),
        ("rocksalt-NaCl", "minimum nearest distance", 5.6402 / 2, 0.01),
        ("diamond-Si", "maximum bond length", 5.4310 * math.sqrt(3) / 4, 0.005),
        # Four at a sqrt(3) / 4, and eight of the twelve at a / sqrt(2)
        ("diamond-Si", "mean neighbour distance", 5.4310 * (math.sqrt(3) / 12 + 2 / 3 / math.sqrt(2)), 0.01),
        ("diamond-Si", "packing fraction", 8 * 4 / 3 * math.pi * 1.11**3 / 5.4310**3, 0.002),
        ("diamond-Si", "valence electrons over volume", 32 / 5.4310**3, 0.001),
        ("diamond-Si", "mean share of like neighbours", 1, 1e-9),
        ("rocksalt-NaCl", "mean share of like neighbours", 0, 0.002),
        ("rocksalt-NaCl", "mean difference of electronegativity", 3.16 - 0.93, 0.005),
        ("rocksalt-NaCl", "elements", 2, 0),
        ("rocksalt-NaCl", "atoms in the formula", 2, 0),
        ("diamond-Si", "atoms in the formula", 1, 0),
        ("rocksalt-NaCl", "deviation nearest distance", 0, 0),
        ("rocksalt-NaCl", "mean atomic number", 14, 0),
        ("rocksalt-NaCl", "range atomic mass", 35.453 - 22.98977, 1e-4),
        ("rocksalt-NaCl", "deviation atomic number", 3, 0),
        ("rocksalt-NaCl", "mode atomic number", 11, 0),  # as many of each: the lower one
        ("rocksalt-NaCl", "minimum melting point", 171.6, 0.1),
        ("rocksalt-NaCl", "norm 2 of shares", math.sqrt(0.5), 1e-12),
        ("rocksalt-NaCl", "share of s electrons", 3 / 8, 1e-12),  # 3s1, and 3s2 3p5
        ("rocksalt-NaCl", "share of p electrons", 5 / 8, 1e-12),
        ("rocksalt-NaCl", "largest ionic character", 1 - math.exp(-0.25 * 2.23**2), 1e-9),
        ("rocksalt-NaCl", "mean ionic character", 0.5 - 0.5 * math.exp(-0.25 * 2.23**2), 1e-9),
        ("diamond-Si", "mean free p", 4, 0),
    ],
)
def test_textbook_crystals(crystal: str, name: str, expected: float, tolerance: float) -> None:
    assert value(FEATURES, DATASET.ids.index(crystal), name) == pytest.approx(expected, abs=tolerance or 1e-12)


def test_unequal_shares() -> None:
    """Corundum-like composition, by hand: Al 13, O 8; shares 2/5 and 3/5."""
    cell = Crystal(np.eye(3) * 4.5, np.array([13, 8, 8, 13, 8]), np.array([[i / 5, i / 5, i / 5] for i in range(5)]))
    features = composition_features(build_dataset([Record("x", cell, {})]))
    mean = 0.4 * 13 + 0.6 * 8
    for name, expected in {
        "mean atomic number": mean,
        "deviation atomic number": 0.4 * (13 - mean) + 0.6 * (mean - 8),
        "mode atomic number": 8,
        "norm 3 of shares": (0.4**3 + 0.6**3) ** (1 / 3),
        "share of s electrons": 2 / (0.4 * 3 + 0.6 * 6),
        "mean ionic character": 2 * 0.4 * 0.6 * (1 - math.exp(-((3.44 - 1.61) ** 2) / 4)),
    }.items():
        assert value(features, 0, name) == pytest.approx(expected), name


def permuted(crystal: Crystal, rng: np.random.Generator) -> Crystal:
    order = rng.permutation(len(crystal.atomic_numbers))
    return Crystal(crystal.lattice, crystal.atomic_numbers[order], crystal.frac_coords[order])


def repeated(crystal: Crystal, rng: np.random.Generator) -> Crystal:
    lattice, numbers, coords = crystal
    cells = np.array([[i, j, 0] for i in range(2) for j in range(3)])
    coords = (coords[:, None] + cells).reshape(-1, 3) / [2, 3, 1]
    return permuted(Crystal(lattice * [[2], [3], [1]], np.repeat(numbers, len(cells)), coords), rng)


def another_cell(crystal: Crystal, rng: np.random.Generator) -> Crystal:
    change = np.array([[1, 1, 0], [0, 1, -1], [0, 0, 1]])
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    coords = crystal.frac_coords @ np.linalg.inv(change) + rng.random(3)
    return Crystal(change @ crystal.lattice @ rotation, crystal.atomic_numbers, coords)


@pytest.mark.parametrize("change", [permuted, repeated, another_cell])
def test_the_same_crystal_written_otherwise(change) -> None:
    rng = np.random.default_rng(0)
    other = descriptors(build_dataset([Record(r.id, change(r.structure, rng), {}) for r in RECORDS]))
    for column, name in enumerate(FEATURES.names):
        np.testing.assert_allclose(
            other.values[:, column], FEATURES.values[:, column], rtol=1e-5, atol=1e-5, err_msg=name
        )


def test_all_finite_and_named_once() -> None:
    assert len(set(FEATURES.names)) == len(FEATURES.names) == FEATURES.values.shape[1]
    assert np.isfinite(FEATURES.values).all() and FEATURES.values.dtype == np.float64
    assert FEATURES.names == composition_features(DATASET).names + structure_features(DATASET).names


def test_layout_and_selection_do_not_matter() -> None:
    """Rows of another length, and crystals taken out of a larger dataset."""
    for places in (3, 12):
        np.testing.assert_allclose(
            descriptors(toy_dataset(places=places)).values, descriptors(toy_dataset()).values, rtol=1e-9, atol=1e-9
        )
    some = [5, 2, 50]
    np.testing.assert_allclose(descriptors(DATASET.select(some)).values, FEATURES.values[some], rtol=1e-12, atol=1e-12)


def test_elements() -> None:
    """Every element has a value, where pymatgen has one it is that, and where it has none it lies among the others."""
    for name, values in {**element_properties(), "radius": covalent_radii()}.items():
        assert values.shape == (101,) and np.isnan(values[0]) and np.isfinite(values[1:]).all(), name
    properties = element_properties()
    assert properties["electronegativity"][[9, 55]].tolist() == [3.98, 0.79]
    assert properties["bulk modulus"][26] == 170
    known = properties["bulk modulus"][[7, 8, 9]]  # nitrogen, oxygen, fluorine: gases without one
    assert ((known > 0) & (known < 15)).all()
    assert properties["valence f"][[57, 58, 71]].tolist() == [0, 1, 14]  # La 5d1 6s2, Ce 4f1 5d1 6s2, Lu
    assert properties["free d"][[21, 46, 11]].tolist() == [9, 0, 0]  # Sc 3d1, Pd 4d10, Na without d electrons


def test_real_crystals(shared_data) -> None:
    dataset = build_dataset(shared_data / "piezo_dejong2015" / "piezo_dejong2015.jsonl.gz")
    values = descriptors(dataset).values
    assert len(values) > 900 and np.isfinite(values).all()


def test_matminer_is_asked_for_where_it_is_missing(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matminer.featurizers.composition", None)
    with pytest.raises(InputError, match=r"pip install 'tlcgcnn_jax\[matminer\]'"):
        descriptors(DATASET, matminer=True)


def test_matminer() -> None:
    pytest.importorskip(
        "matminer", reason="needs matminer, the extra 'matminer': pandas < 3, not that of constraints.txt"
    )
    features = matminer_features(DATASET)
    assert features.values.shape == (120, 132) and np.isfinite(features.values).all()
    assert value(features, DATASET.ids.index("rocksalt-NaCl"), "MagpieData mean Number") == 14
    assert "density" in descriptors(DATASET, matminer=True).names
