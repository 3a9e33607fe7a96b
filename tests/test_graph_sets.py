"""The same crystals under several graph settings stay the same crystals."""

import dataclasses

import numpy as np
import pytest
import toy

from tlcgcnn_jax.config import GraphConfig
from tlcgcnn_jax.crystal import Crystal, Record
from tlcgcnn_jax.dataset import build_dataset, find_dataset
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.graph_sets import GraphSets, pack_graphs

SHELL, ORIGINAL = GraphConfig(), GraphConfig(ties="reference", legacy_padding=True)
RECORDS = [toy.record(seed) for seed in range(5)]
# Without a neighbour within 8 Å: an error for "shell", while the original invents neighbours.
LONELY = Record("lonely", Crystal(np.eye(3) * 20, np.array([2]), np.zeros((1, 3))), {"energy": 0.0}, "made up: lonely")


def test_each_setting_is_packed_once_whatever_its_places():
    sets = pack_graphs(RECORDS, [SHELL, dataclasses.replace(SHELL, places=7), ORIGINAL, ORIGINAL], targets=("energy",))
    assert [dataset.graph for dataset in sets.datasets] == [SHELL, ORIGINAL]
    assert sets[dataclasses.replace(ORIGINAL, places=2)] is sets.datasets[1]
    alone = build_dataset(RECORDS, targets=("energy",), graph=ORIGINAL)
    np.testing.assert_array_equal(sets[ORIGINAL].distances, alone.distances)
    np.testing.assert_array_equal(sets[SHELL].targets, alone.targets)
    assert len(sets) == 5


@pytest.mark.parametrize("graphs", [[SHELL, ORIGINAL], [ORIGINAL, SHELL]])
def test_a_crystal_that_one_setting_refuses_is_left_out_of_all(graphs):
    crystals = [*RECORDS[:2], LONELY, *RECORDS[2:]]
    with pytest.raises(InputError, match="lonely"):
        pack_graphs(crystals, graphs)
    sets = pack_graphs(crystals, graphs, on_error="skip")
    expected = [record.id for record in RECORDS]
    assert [dataset.ids for dataset in sets.datasets] == [expected, expected]
    assert [skipped.id for skipped in sets.skipped] == ["lonely"]
    np.testing.assert_array_equal(sets.datasets[0].n_atom, sets.datasets[1].n_atom)


def test_a_packed_dataset_has_its_one_kind_of_graph(tmp_path):
    sets = pack_graphs(toy.dataset(), [SHELL, ORIGINAL])
    assert sets[SHELL] is toy.dataset()
    toy.dataset().save(tmp_path / "ds")
    assert pack_graphs(str(tmp_path / "ds"), [SHELL]).datasets[0].ids == toy.dataset().ids
    assert find_dataset(tmp_path / "ds") is not None
    (tmp_path / "dataset.json").write_text("{}")  # of somebody else
    assert find_dataset(tmp_path) is None and find_dataset(tmp_path / "dataset.json") is None
    with pytest.raises(InputError, match="ties is shell, the model's reference.*crystals themselves"):
        sets[ORIGINAL]


def test_what_cannot_be_kept_together_is_refused():
    some = toy.dataset().select([0, 1])
    with pytest.raises(InputError, match="different crystals"):
        GraphSets((toy.dataset(), some))
    with pytest.raises(InputError, match="at least one"):
        pack_graphs(RECORDS, [])
    with pytest.raises(InputError, match="no crystal of 1 could be used"):
        pack_graphs([LONELY], [ORIGINAL, SHELL], on_error="skip")


def test_an_iterator_is_read_once_for_all_kinds_of_graphs():
    sets = pack_graphs(iter(RECORDS), [SHELL, ORIGINAL])
    assert [len(dataset) for dataset in sets.datasets] == [len(RECORDS)] * 2


@pytest.mark.parametrize("graphs", [(SHELL,), (SHELL, ORIGINAL)])
def test_left_out_crystals_of_one_id_are_all_counted(graphs):
    """Rows of a sheet whose ids are formulas are lost for that very reason."""
    found = pack_graphs([dataclasses.replace(one, id="NaCl") for one in RECORDS], graphs, on_error="skip")
    assert len(found) == 1 and len(found.skipped) == 4
