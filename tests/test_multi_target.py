"""Several targets, some labels missing, values and classes together: trained, predicted and measured."""

import dataclasses

import numpy as np
import pytest
import toy

from tlcgcnn_jax.bundle import Model
from tlcgcnn_jax.config import Target
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.evaluate import metrics, predict
from tlcgcnn_jax.train import train

TARGETS = (
    toy.ENERGY,
    Target("gap", "eV"),
    Target("metal", kind="classification"),
    Target("family", kind="classification", classes=3),
)
CONFIG = dataclasses.replace(toy.CONFIG, epochs=60, batch_size=8, learning_rate=3e-2, weight_decay=0.0, keep="last")


@pytest.fixture(scope="module")
def dataset():
    return toy.dataset(tuple(target.name for target in TARGETS))


@pytest.fixture(scope="module")
def result(dataset):
    return train(dataset, toy.SPLIT, TARGETS, toy.SIZES, CONFIG)


@pytest.fixture(scope="module")
def predictions(dataset, result):
    model = Model(dataset.graph, toy.SIZES, TARGETS, result.normaliser, (result.variables,))
    return predict(model, dataset)


def test_labels_are_missing(dataset):
    missing = np.isnan(dataset.targets[:8]).sum(0)
    assert missing[0] == 0 and missing[1] > 0 and missing[2] > 0


def test_loss_falls(result):
    losses = [row["train_loss"] for row in result.history]
    assert losses[-1] < 0.5 * losses[0]
    assert all(np.isfinite(row["val_score"]) for row in result.history)


def test_each_target_is_learnt(dataset, predictions):
    found = metrics(predictions, dataset.targets, np.arange(8))
    assert list(found) == [target.name for target in TARGETS]
    for name in ("energy", "gap"):
        spread = np.nanstd(dataset.targets[:8, dataset.target_names.index(name)])
        assert found[name]["mae"] < 0.6 * spread, name
    assert found["metal"]["accuracy"] >= 0.8 and found["metal"]["roc_auc"] >= 0.8
    assert found["family"]["accuracy"] >= 0.8 and "roc_auc" not in found["family"]
    known = np.isfinite(dataset.targets[:8]).sum(0)
    assert [found[target.name]["n"] for target in TARGETS] == known.tolist()


def test_probabilities(predictions):
    assert predictions.mean.shape == (toy.N, 1 + 1 + 2 + 3)
    np.testing.assert_allclose(predictions.mean[:, 2:4].sum(1), 1)
    np.testing.assert_allclose(predictions.mean[:, 4:].sum(1), 1)
    assert set(predictions.values[:, 3]) <= {0.0, 1.0, 2.0}


def test_names_must_fit_the_columns(dataset):
    with pytest.raises(InputError, match="gap"):
        train(dataset, toy.SPLIT, TARGETS[:2], toy.SIZES, CONFIG)


def test_a_class_that_is_none(dataset):
    wrong = np.array(dataset.targets)
    wrong[0, 3] = 3
    with pytest.raises(InputError, match="family: class 3"):
        train(toy.replaced(dataset, targets=wrong), toy.SPLIT, TARGETS, toy.SIZES, CONFIG)


def test_a_target_without_a_training_label(dataset):
    wrong = np.array(dataset.targets)
    wrong[:8, 1] = np.nan
    with pytest.raises(InputError, match="gap: not one training crystal"):
        train(toy.replaced(dataset, targets=wrong), toy.SPLIT, TARGETS, toy.SIZES, CONFIG)
