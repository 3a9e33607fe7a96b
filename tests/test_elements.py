"""The elemental features are those of the original."""

import json

import numpy as np
import pytest

from tlcgcnn_jax.elements import MAX_ATOMIC_NUMBER, N_FEATURES, WIDTHS, atomic_numbers, feature_table, symbols


@pytest.mark.parametrize("folder", ["sample-regression", "sample-classification"])
def test_table_is_that_of_the_original(shared_data, folder):
    original = json.loads((shared_data / "cgcnn_folders" / folder / "atom_init.json").read_text())
    assert len(original) == MAX_ATOMIC_NUMBER
    for number, features in original.items():
        np.testing.assert_array_equal(feature_table()[int(number)], features, err_msg=number)


def test_shape():
    assert feature_table().shape == (MAX_ATOMIC_NUMBER + 1, N_FEATURES)
    assert N_FEATURES == 92
    assert feature_table().dtype == np.float32
    assert not feature_table()[0].any()


def test_one_bin_of_each_property():
    start = 0
    for name, width in WIDTHS.items():
        set_bins = feature_table()[1:, start : start + width].sum(1)
        assert set(set_bins) <= {0.0, 1.0}, name
        start += width


def test_elements_differ():
    assert len(np.unique(feature_table()[1:], axis=0)) > 90


def test_numbers_and_symbols():
    assert [symbols()[z] for z in (1, 8, 26, 92, 100)] == ["H", "O", "Fe", "U", "Fm"]
    assert all(atomic_numbers()[symbols()[z]] == z for z in range(1, 101))
    assert len(atomic_numbers()) == 100


def test_table_cannot_be_changed_by_accident():
    with pytest.raises(ValueError, match="read-only"):
        feature_table()[1, 0] = 5.0
