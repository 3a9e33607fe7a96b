"""A run compiles its training program once, and runs of other seeds, rates and lengths use the same one."""

import dataclasses

import numpy as np
import pytest
import toy

from tlcgcnn_jax.model import build_network
from tlcgcnn_jax.outputs import eval_scan, network_outputs
from tlcgcnn_jax.splits import Split
from tlcgcnn_jax.train import train, train_scan

# A momentum of its own, which AdamW does not use, keeps other tests' programs out of the count.
CONFIG = dataclasses.replace(toy.CONFIG, momentum=0.123, epochs=6)


def compiled(**changes) -> tuple[int, int]:
    """Programs that a run adds, for training and for evaluation."""
    before = train_scan._cache_size(), eval_scan._cache_size()
    split = changes.pop("split", toy.SPLIT)
    result = train(toy.dataset(), split, (toy.ENERGY,), toy.SIZES, dataclasses.replace(CONFIG, **changes))
    assert len(result.history) == changes.get("epochs", CONFIG.epochs)
    return train_scan._cache_size() - before[0], eval_scan._cache_size() - before[1]


@pytest.fixture(scope="module")
def first() -> tuple[int, int]:
    return compiled()


def test_one_program_for_all_epochs(first):
    training, evaluation = first
    assert training == 1
    assert evaluation <= 1  # other tests may have made it


OTHERS = {
    "seed": {"seed": 7},
    "learning rate": {"learning_rate": 3e-3},
    "length": {"epochs": 3},
    "patience": {"patience": 100},
    "other crystals, as large": {"split": Split(np.r_[6:12, 0:2], np.array([2, 3]), np.array([4, 5]))},
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_runs_share_it(first, change):
    assert compiled(**change)[0] == 0


def test_crystals_that_are_predicted_one_by_one_share_a_program():
    dataset, variables = toy.dataset(), toy.variables(moved=True)
    network = build_network(toy.SIZES, 1, dataset.graph.places)
    assert len({*zip(dataset.n_atom.tolist(), dataset.n_row.tolist(), strict=True)}) > 3
    together = network_outputs(network, variables, dataset)
    before = eval_scan._cache_size()
    alone = [network_outputs(network, variables, dataset.select([row])) for row in range(toy.N)]
    assert eval_scan._cache_size() <= before + 1
    np.testing.assert_allclose(np.concatenate(alone), together, rtol=1e-5, atol=1e-6)
