"""A crystal unlike the training crystals stands out, and one of them does not."""

import io

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from tlcgcnn_jax import novelty
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.novelty import Novelty, fit_novelty

RNG = np.random.default_rng(0)
TRAINING = RNG.normal(size=(300, 6)) * [1, 10, 0.1, 1, 1, 1] + [0, 100, 5, 0, 0, 0]
FRESH = RNG.normal(size=(400, 6)) * [1, 10, 0.1, 1, 1, 1] + [0, 100, 5, 0, 0, 0]


def by_hand(training: np.ndarray, crystals: np.ndarray) -> np.ndarray:
    """The same by scikit-learn's search of neighbours."""
    standard = lambda features: (features - training.mean(0)) / training.std(0)
    search = NearestNeighbors().fit(standard(training))
    usual = search.kneighbors(n_neighbors=5)[0].mean(
        1
    )  # without argument: the training points, not counting themselves
    return search.kneighbors(standard(crystals), 5)[0].mean(1) / np.percentile(usual, 95)


@pytest.mark.parametrize("block", [100, 2**22], ids=["in blocks", "at once"])
def test_agrees_with_scikit_learn(monkeypatch, block):
    monkeypatch.setattr(novelty, "BLOCK", block)
    np.testing.assert_allclose(fit_novelty(TRAINING).score(FRESH), by_hand(TRAINING, FRESH), rtol=1e-4)


def test_few_of_the_same_kind_are_novel_and_all_others_are():
    found = fit_novelty(TRAINING)
    assert 0.02 < np.mean(found.score(FRESH) > 1) < 0.12
    assert (found.score(FRESH + [8, 0, 0, 0, 0, 0]) > 1).all()
    far = found.score(FRESH[:1] + np.outer([10, 20, 40], [1, 0, 0, 0, 0, 0]))
    assert np.all(np.diff(far) > 0)
    assert found.score(TRAINING).mean() < 1 and found.score(np.zeros((0, 6))).shape == (0,)


def test_units_of_features_do_not_matter():
    scale = np.array([1e-3, 1, 50, 7, 1, 1e4])
    expected = fit_novelty(TRAINING).score(FRESH)
    np.testing.assert_allclose(fit_novelty(TRAINING * scale).score(FRESH * scale), expected, rtol=1e-3)


def test_features_that_do_not_vary_say_nothing():
    constant = lambda features, value: np.c_[features, np.full(len(features), value)]
    found = fit_novelty(constant(TRAINING, 3.3)).score(constant(FRESH, 3.4))
    np.testing.assert_allclose(found, fit_novelty(TRAINING).score(FRESH), rtol=1e-5)


def test_saved_and_read():
    file = io.BytesIO()
    found = fit_novelty(TRAINING)
    np.savez(file, **found.arrays())
    file.seek(0)
    with np.load(file) as arrays:
        again = Novelty.from_arrays(dict(arrays))
    np.testing.assert_allclose(again.score(FRESH), found.score(FRESH), rtol=1e-6)
    assert all(array.dtype == np.float32 for array in found.arrays().values())
    with pytest.raises(InputError, match="no scale, reach among"):
        Novelty.from_arrays({"mean": found.mean, "embeddings": found.embeddings})


def test_few_training_crystals():
    assert fit_novelty(np.array([[0.0], [1.0]])).score(np.array([[0.5], [5.0]])).round(2).tolist() == [0.5, 4.5]


ALIKE = {
    "each crystal six times": np.repeat(RNG.normal(size=(4, 6)), 6, axis=0),
    "the same but for rounding": np.repeat(RNG.normal(size=(4, 6)), 6, axis=0) * (1 + 1e-7 * RNG.normal(size=(24, 6))),
    "one crystal": np.ones((4, 6)),
}


@pytest.mark.parametrize("training", ALIKE.values(), ids=ALIKE)
def test_crystals_that_are_all_alike(training):
    """They are nearer to each other than anything else is to them, and none of them is novel."""
    found = fit_novelty(training)
    assert (found.score(training) < 0.1).all()
    others = found.score(training + 0.5)
    assert (others > 1).all() and (others < 1e6).all()


BAD = {
    "one crystal": (lambda: fit_novelty(np.ones((1, 3))), "1 training crystal"),
    "not finite": (lambda: fit_novelty(np.array([[1.0], [np.nan]])), "finite numbers"),
    "one dimension": (lambda: fit_novelty(np.ones(3)), r"shape \(3,\)"),
    "other features": (lambda: fit_novelty(TRAINING).score(FRESH[:, :5]), "5 features a crystal.* 6: use features"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()
