"""With ties="shell" a prediction belongs to the crystal, not to the cell or the order that it was written in."""

import functools
import gzip
import itertools
import json

import jax
import numpy as np
import pytest
import toy
from test_tie_invariance import CHANGES, PEROVSKITE

from tlcgcnn_jax.batching import pad_budget, stack_batches
from tlcgcnn_jax.config import GraphConfig
from tlcgcnn_jax.crystal import Crystal, Record
from tlcgcnn_jax.dataset import build_dataset
from tlcgcnn_jax.elements import atomic_numbers
from tlcgcnn_jax.model import CGCNN
from tlcgcnn_jax.outputs import network_outputs

pytestmark = pytest.mark.usefixtures("optimised")

FACES = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
BY_HAND = {
    "cubic perovskite": PEROVSKITE,
    "rocksalt": Crystal(np.eye(3) * 5.64, np.array([11] * 4 + [17] * 4), np.concatenate([FACES, FACES + 0.5])),
    "primitive rocksalt": Crystal(2.82 * (1 - np.eye(3)), np.array([12, 8]), np.array([[0, 0, 0], [0.5, 0.5, 0.5]])),
    "fcc": Crystal(np.eye(3) * 3.61, np.array([29] * 4), FACES),
}
TOLERANCE = 1e-5  # of the spread of the predictions


@functools.cache
def variables() -> dict:
    """Fresh weights, and running statistics of real batches: without them the first batch norm hides little."""
    network, fresh, dataset = CGCNN(toy.SIZES, 1, 4), toy.variables(moved=True), toy.dataset()
    budget = pad_budget(dataset.n_atom, dataset.n_row, len(dataset), 4)
    stacked = stack_batches(dataset, dataset.targets, [np.arange(len(dataset))], budget)
    graph = jax.tree.map(lambda leaf: leaf[0], stacked.graph)
    update = jax.jit(lambda v, graph: network.apply(v, graph, True, mutable=["batch_stats"])[1]["batch_stats"])
    for _ in range(30):
        fresh = {"params": fresh["params"], "batch_stats": update(fresh, graph)}
    return jax.device_get(fresh)


def predicted(crystals: list[Crystal], ties: str) -> np.ndarray:
    records = [Record(str(i), crystal, {}) for i, crystal in enumerate(crystals)]
    dataset = build_dataset(records, graph=GraphConfig(ties=ties))
    return network_outputs(CGCNN(toy.SIZES, 1, 4), variables(), dataset, batch_size=8)[:, 0].astype(float)


def all_cells(crystals: list[Crystal], ties: str) -> np.ndarray:
    """[crystal, cell]: the cell as given, then each change of it."""
    cells = [cell for crystal in crystals for cell in [crystal, *(change(crystal) for change in CHANGES.values())]]
    return predicted(cells, ties).reshape(len(crystals), 1 + len(CHANGES))


@pytest.fixture(scope="module")
def shell_by_hand():
    return all_cells(list(BY_HAND.values()), "shell")


@pytest.mark.parametrize("name", BY_HAND)
def test_crystals_by_hand(shell_by_hand, name):
    found = shell_by_hand[list(BY_HAND).index(name)]
    assert shell_by_hand[:, 0].std() > 0.01, "the network tells the crystals apart, or the check says nothing"
    np.testing.assert_allclose(found, found[0], rtol=0, atol=TOLERANCE * shell_by_hand[:, 0].std() * 5)


def test_perovskites_of_the_data(shared_data):
    with gzip.open(shared_data / "perov_5/perov_5.jsonl.gz") as lines:
        records = [json.loads(line) for line in itertools.islice(lines, 0, 400, 50)]
    z = atomic_numbers()
    crystals = [
        Crystal(np.array(r["lattice"]), np.array([z[s] for s in r["species"]]), np.array(r["frac_coords"]))
        for r in records
    ]
    found = all_cells(crystals, "shell")
    np.testing.assert_allclose(found, found[:, :1] * np.ones(found.shape[1]), rtol=0, atol=5e-5 * found[:, 0].std())


def test_ties_of_the_original_are_cut_by_order():
    """The defect that "shell" mends: the same perovskite written otherwise is another crystal."""
    found = all_cells([PEROVSKITE], "reference")[0]
    assert np.abs(found - found[0]).max() > 1e-4 * abs(found[0])
