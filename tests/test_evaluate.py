"""Errors are those of scikit-learn, and predictions know their units."""

import csv
from dataclasses import replace

import jax
import numpy as np
import pytest
import sklearn.metrics
import toy

from tlcgcnn_jax.bundle import Model
from tlcgcnn_jax.config import GraphConfig, Target
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.evaluate import (
    Predictions,
    classification_metrics,
    interval_metrics,
    metrics,
    predict,
    regression_metrics,
)
from tlcgcnn_jax.losses import Normaliser
from tlcgcnn_jax.run import fit, transfer

NAN = float("nan")
METAL = Target("metal", kind="classification")


@pytest.mark.parametrize("seed", range(3))
def test_regression_is_that_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    target, prediction = rng.normal(size=50), rng.normal(size=50)
    found = regression_metrics(target, prediction)
    assert found["mae"] == pytest.approx(sklearn.metrics.mean_absolute_error(target, prediction))
    assert found["rmse"] == pytest.approx(sklearn.metrics.root_mean_squared_error(target, prediction))
    assert found["r2"] == pytest.approx(sklearn.metrics.r2_score(target, prediction))
    assert found["median_ae"] == pytest.approx(sklearn.metrics.median_absolute_error(target, prediction))
    assert found["n"] == 50


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("tied", [False, True], ids=["distinct", "tied"])
def test_classification_is_that_of_scikit_learn(classes, tied):
    rng = np.random.default_rng(classes)
    target = rng.integers(0, classes, 60)
    probability = rng.dirichlet(np.ones(classes), 60)
    if tied:
        probability = np.round(probability * 4 + 0.5) / 6
        probability /= probability.sum(1, keepdims=True)
    found = classification_metrics(target, probability)
    assert found["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(target, probability.argmax(1)))
    assert found["log_loss"] == pytest.approx(sklearn.metrics.log_loss(target, probability, labels=range(classes)))
    assert ("roc_auc" in found) == (classes == 2)
    if classes == 2:
        assert found["roc_auc"] == pytest.approx(sklearn.metrics.roc_auc_score(target, probability[:, 1]))


def test_predictions_are_selected_by_rows_or_by_a_mask():
    members, novelty = np.arange(6.0).reshape(2, 3, 1), np.arange(3.0)
    found = Predictions(["a", "b", "c"], (Target("gap"),), members, low=members[0], high=members[1], novelty=novelty)
    for rows in ([False, True, True], np.array([False, True, True]), [1, 2], np.array([-2, -1])):
        some = found.select(rows)
        assert some.ids == ["b", "c"] and some.novelty is not None and some.novelty.tolist() == [1, 2]
        np.testing.assert_array_equal(some.members, members[:, 1:])
    assert found.select([]).ids == [] and found.select([2, 0]).ids == ["c", "a"]
    with pytest.raises(InputError, match=r"a mask of shape \(2,\) for 3 crystals: \(3,\) was expected"):
        found.select([True, False])


def test_errors_that_are_not_defined():
    assert np.isnan(regression_metrics(np.array([]), np.array([]))["mae"])
    assert np.isnan(regression_metrics(np.array([2.0, 2.0]), np.array([1.0, 2.0]))["r2"])
    assert "roc_auc" not in classification_metrics(np.array([1, 1]), np.array([[0.5, 0.5], [0.1, 0.9]]))


@pytest.fixture(scope="module")
def predictions():
    members = np.array([[[1.0, 0.2, 0.8], [2.0, 0.6, 0.4]], [[3.0, 0.4, 0.6], [2.0, 0.9, 0.1]]])
    return Predictions(["a", "b"], (Target("gap", "eV"), METAL), members)


def test_ensemble(predictions):
    np.testing.assert_allclose(predictions.mean, [[2.0, 0.3, 0.7], [2.0, 0.75, 0.25]])
    np.testing.assert_allclose(predictions.std[:, 0], [np.sqrt(2.0), 0.0])
    np.testing.assert_allclose(predictions.values, [[2.0, 1.0], [2.0, 0.0]])
    assert Predictions(["a"], (Target("gap"),), np.ones((1, 1, 1))).std is None


def test_a_member_with_a_standard_deviation_of_its_own():
    """Of a logarithm: half the interval of one standard deviation to either side, in the unit."""
    target = Target("k", "GPa", transform="log10")
    own = np.array([[[0.3], [0.1]]])
    alone = Predictions(["a", "b"], (target,), np.array([[[10.0], [100.0]]]), own_std=own)
    np.testing.assert_allclose(alone.learnt_std, own[0])
    np.testing.assert_allclose(alone.std[:, 0], [(10**1.3 - 10**0.7) / 2, (10**2.1 - 10**1.9) / 2])
    members = np.array([[[10.0], [100.0]], [[1000.0], [100.0]]])
    mixed = Predictions(["a", "b"], (target,), members, own_std=np.stack([own[0], np.full((2, 1), NAN)]))
    np.testing.assert_allclose(mixed.learnt_std[:, 0], [np.sqrt(0.3**2 + 2.0), 0.1])


def test_rows_of_predictions(predictions):
    whole = replace(predictions, low=np.array([[1.0, NAN], [2.0, NAN]]), high=np.array([[3.0, NAN], [4.0, NAN]]),
                    novelty=np.array([0.5, 2.0]))  # fmt: skip
    second = whole.select([1])
    assert second.ids == ["b"] and second.novelty.tolist() == [2.0] and second.low[0, 0] == 2.0
    np.testing.assert_array_equal(second.mean, predictions.mean[1:])
    assert whole.novel.startswith("1 of 2 crystals are farther") and ": b; their errors may be larger" in whole.novel
    assert whole.select([0]).novel == "" and predictions.novel == ""
    assert list(whole.columns()) == [
        "prediction:gap", "std:gap", "low:gap", "high:gap", "prediction:metal", "p_0:metal", "p_1:metal", "novelty",
    ]  # fmt: skip


def test_what_intervals_hold(predictions):
    whole = replace(predictions, low=np.array([[1.0, NAN], [1.5, NAN]]), high=np.array([[3.0, NAN], [2.5, NAN]]))
    found = interval_metrics(whole, np.array([[1.5, 1.0], [4.0, 0.0]]), np.array([0, 1]))
    assert found == {"gap": {"coverage_90": 0.5, "interval_width": 1.5}}
    assert interval_metrics(whole, np.array([[NAN, 1.0], [NAN, 0.0]]), np.array([0, 1])) == {}
    assert interval_metrics(predictions, np.zeros((2, 2)), np.array([0, 1])) == {}


def test_table(predictions, tmp_path):
    predictions.write(tmp_path / "out.csv", np.array([[0.3, 1.0], [NAN, 0.0]], np.float32))
    with open(tmp_path / "out.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert list(rows[0]) == [
        "id", "target:gap", "target:metal", "prediction:gap", "std:gap", "prediction:metal", "p_0:metal", "p_1:metal",
    ]  # fmt: skip
    assert rows[0]["target:gap"] == "0.3" and rows[1]["target:gap"] == ""
    assert rows[0]["target:metal"] == "1"
    assert float(rows[0]["std:gap"]) == pytest.approx(np.sqrt(2))
    assert rows[1]["p_0:metal"] == "0.75"
    with pytest.raises(InputError, match="cannot be written"):
        predictions.write(tmp_path / "none" / "out.csv")


CELLS = {"float32": (np.float32(0.3), "0.3"), "large": (1e39, "1e+39"), "small": (1e-50, "1e-50"), "zero": (0.0, "0")}


@pytest.mark.parametrize("value, text", CELLS.values(), ids=CELLS.keys())
def test_a_number_in_the_table_has_the_digits_it_needs(tmp_path, value, text):
    Predictions(["a"], (Target("e"),), np.array([[[value]]], np.float64)).write(tmp_path / "p.csv")
    assert (tmp_path / "p.csv").read_text().splitlines()[1].split(",")[1] == text


def test_metrics_of_known_labels(predictions):
    found = metrics(predictions, np.array([[1.5, 1.0], [NAN, 0.0]]))
    assert found["gap"]["mae"] == pytest.approx(0.5) and found["gap"]["n"] == 1
    assert found["metal"]["accuracy"] == 1.0 and found["metal"]["n"] == 2
    assert metrics(predictions, np.array([[1.5, 1.0], [NAN, 1.0]]), np.array([1]))["metal"]["accuracy"] == 0.0


def test_predict_gives_units_and_takes_any_layout():
    normaliser = Normaliser(np.array([10.0], np.float32), np.array([2.0], np.float32))
    model = Model(GraphConfig(), toy.SIZES, (toy.ENERGY,), normaliser, (toy.variables(moved=True),))
    plain = Model(
        GraphConfig(), toy.SIZES, (toy.ENERGY,), Normaliser(np.zeros(1), np.ones(1)), (toy.variables(moved=True),)
    )
    found = predict(model, toy.dataset())
    assert found.ids == toy.dataset().ids
    np.testing.assert_allclose(found.mean, 10 + 2 * predict(plain, toy.dataset()).mean, rtol=1e-6)
    np.testing.assert_allclose(predict(model, toy.dataset(places=12)).mean, found.mean, rtol=1e-5)
    records = [toy.record(seed) for seed in range(toy.N)]
    np.testing.assert_array_equal(predict(model, records).mean, found.mean)
    other = Model(GraphConfig(cutoff=5.0), toy.SIZES, (toy.ENERGY,), normaliser, model.members)
    with pytest.raises(InputError, match="cutoff"):
        predict(other, toy.dataset())


def test_a_notebook_in_double_precision_changes_nothing():
    model = Model(
        GraphConfig(), toy.SIZES, (toy.ENERGY,), Normaliser(np.zeros(1), np.ones(1)), (toy.variables(moved=True),)
    )
    records = [toy.record(seed) for seed in range(toy.N)]
    split, config = toy.SPLIT, replace(toy.CONFIG, epochs=1)
    expected = predict(model, records).mean
    fitted = fit(records, toy.ENERGY, split=split, model=toy.SIZES, config=config).predictions.mean
    asked = {"split": split, "config": config, "seeds": 2}  # two are trained in threads
    moved = transfer(records, model, "full", toy.ENERGY, **asked).predictions.mean
    jax.config.update("jax_enable_x64", True)  # for all threads
    try:
        np.testing.assert_array_equal(predict(model, records).mean, expected)
        again = fit(records, toy.ENERGY, split=split, model=toy.SIZES, config=config)
        np.testing.assert_array_equal(transfer(records, model, "full", toy.ENERGY, **asked).predictions.mean, moved)
    finally:
        jax.config.update("jax_enable_x64", False)
    np.testing.assert_array_equal(again.predictions.mean, fitted)


def test_a_batch_of_no_crystals_is_told():
    with pytest.raises(InputError, match="batch_size is 0: at least 1"):
        predict("mp-elastic", [], batch_size=0)
