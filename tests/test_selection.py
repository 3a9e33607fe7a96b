"""Committees whose validation crystals choose the weights: of values, logarithms, classes; with too few crystals."""

from dataclasses import replace

import numpy as np
import pytest
from tiny import MODEL, ONE_EPOCH, K, records, source

from tlcgcnn_jax.blending import choose_weights, cross_fitted_mean
from tlcgcnn_jax.committee import Committee
from tlcgcnn_jax.config import Target
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.evaluate import predict, predict_rows
from tlcgcnn_jax.feature_model import make_feature_model
from tlcgcnn_jax.graph_sets import pack_graphs
from tlcgcnn_jax.predictions import mixture
from tlcgcnn_jax.run import fit
from tlcgcnn_jax.selection import weighted_committee
from tlcgcnn_jax.zoo import load_model

LOG, TRAIN, VAL = Target(K, "GPa", transform="log10"), np.arange(14), np.arange(14, 34)


@pytest.fixture(scope="module")
def crystals():
    return pack_graphs(records(34), source().graphs, targets=(K,))


@pytest.fixture(scope="module")
def parts(crystals):
    return {
        name: replace(make_feature_model({"gap": source()}, layers, name, crystals, (LOG,), TRAIN), formulas=(name,))
        for name, layers in {"ridge": ("pooled",), "gp": ("descriptors",)}.items()
    }


def labels(crystals):
    return np.asarray(crystals.datasets[0].targets, float)[VAL, 0]


def committee(parts, crystals, rows=VAL, seed=0):
    """Weighted by what the parts say of these rows."""
    return weighted(parts, crystals, rows, seed)[0]


def weighted(parts, crystals, rows=VAL, seed=0):
    said = {name: predict_rows(part, crystals, rows) for name, part in parts.items()}
    return weighted_committee(parts, said, np.asarray(crystals.datasets[0].targets, float)[rows], seed)


def test_weights_are_those_of_the_held_out_crystals(parts, crystals):
    made = committee(parts, crystals, seed=2)
    said = np.stack([predict_rows(part, crystals, VAL).values[:, 0] for part in parts.values()])
    weights = choose_weights(said, labels(crystals), 2, np.log10)
    choice = made.notes["choice"]
    assert [one["weight"] for one in choice.values()] == weights.tolist()
    errors = np.abs(said - labels(crystals)).mean(1)
    np.testing.assert_allclose([one["val_mae"] for one in choice.values()], errors)


def test_held_out_crystals_are_predicted_by_weights_that_others_chose(parts, crystals):
    """Their own choice would flatter the mean; how far the parts lie apart is a matter of the final weights alone."""
    made, held = weighted(parts, crystals, seed=2)
    said = [predict_rows(part, crystals, VAL) for part in parts.values()]
    crossed = cross_fitted_mean(np.stack([one.values[:, 0] for one in said]), labels(crystals), 2, np.log10)
    np.testing.assert_allclose(held.values[:, 0], crossed, rtol=1e-12)
    together = mixture(said, made.weights)
    assert np.abs(held.values - together.values).max() > 0.1
    np.testing.assert_allclose(held.learnt_std, together.learnt_std, rtol=1e-12)
    few = weighted(parts, crystals, VAL[:5])[1]
    np.testing.assert_allclose(few.values, mixture([one.select(range(5)) for one in said]).values)


def test_a_part_without_weight_is_left_out_with_its_formulas(parts, crystals):
    useless = replace(parts["ridge"], y=parts["ridge"].y + 3, formulas=("Xe",))  # a thousand times too large
    made = committee({"gp": parts["gp"], "useless": useless}, crystals)
    assert not isinstance(made, Committee) and made.regressor == "gp" and made.formulas == ("gp",)
    assert made.notes["choice"]["useless"]["weight"] == 0
    np.testing.assert_array_equal(predict(made, crystals).values, predict(parts["gp"], crystals).values)


def test_too_few_crystals_choose_nothing_and_it_is_told(parts, crystals, caplog):
    made = committee(parts, crystals, VAL[:5])
    assert made.weights == (0.5, 0.5)
    assert "5 validation crystals have a label, 9 are needed" in caplog.text and "ridge, gp count alike" in caplog.text
    none = committee(parts, crystals, VAL[:0])
    assert none.weights == (0.5, 0.5) and "val_mae" not in none.notes["choice"]["gp"]


def test_classes_are_weighted_by_their_probabilities(crystals):
    """A part that is unsure and one that is surely wrong have the same most probable class."""
    target = Target(K, kind="classification", classes=2)
    binary = [replace(record, targets={K: float(i % 2)}) for i, record in enumerate(records(34))]
    made = fit(binary, target, model=MODEL, config=ONE_EPOCH).model
    packed = pack_graphs(binary, made.graphs, targets=(K,))

    def leaning(strength: float):
        """The same network, its answer shifted towards class 0."""
        (member,) = made.members
        head = member["params"]["head"]
        output = {"kernel": 0 * head["output"]["kernel"], "bias": np.array([strength, 0.0], np.float32)}
        params = {**member["params"], "head": {**head, "output": output}}
        return replace(made, members=({**member, "params": params},))

    zeros = np.array([row for row in VAL if row % 2])  # all of class 1: both parts are wrong, one of them surely
    chosen = committee({"surely": leaning(6.0), "hardly": leaning(0.1)}, packed, zeros)
    weights = {name: one["weight"] for name, one in chosen.notes["choice"].items()}
    assert weights == {"surely": 0.0, "hardly": 1.0} and "val_mae" not in chosen.notes["choice"]["hardly"]
    most = np.array([row for row in VAL if row % 2 == 0 or row < 22])  # 10 of 14 are of class 0, to odds of 0.9
    chosen = committee({"too sure": leaning(6.0), "right": leaning(0.9)}, packed, most)
    assert chosen.notes["choice"]["right"]["weight"] > 0.6


def test_a_round_trip_keeps_weights_and_numbers(parts, crystals, tmp_path):
    made = Committee(parts, weights=(0.25, 0.75))
    again = load_model(made.save(tmp_path / "model"))
    assert again.weights == (0.25, 0.75)
    one, other = predict(made, crystals), predict(again, crystals)
    np.testing.assert_array_equal(one.values, other.values)
    np.testing.assert_array_equal(one.std, other.std)
    said = [predict(part, crystals).values for part in parts.values()]
    np.testing.assert_allclose(one.values, 0.25 * said[0] + 0.75 * said[1])
    assert "ridge (25%), gp (75%)" in (tmp_path / "model" / "README.md").read_text()


@pytest.mark.parametrize("weights", [(0.5,), (0.5, 0.6), (1.5, -0.5), (1.0, 0.0)])
def test_weights_that_are_no_shares_are_refused(parts, weights):
    with pytest.raises(InputError, match="positive ones with sum 1"):
        Committee(parts, weights=weights)
