"""Weighted means whose training and validation crystals are dealt anew for each network: nothing judges itself."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from tiny import GAP, ONE_EPOCH, K, records, source

from tlcgcnn_jax import feature_model, plans, transfer
from tlcgcnn_jax.blending import choose_weights, cross_fitted_mean
from tlcgcnn_jax.calibration import conformal
from tlcgcnn_jax.committee import Committee
from tlcgcnn_jax.config import Target
from tlcgcnn_jax.crystal import formula
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.evaluate import predict
from tlcgcnn_jax.predictions import Predictions, joined
from tlcgcnn_jax.report import run_report
from tlcgcnn_jax.splits import Split, deal
from tlcgcnn_jax.ways import folds_of
from tlcgcnn_jax.zoo import load_model

LOG, FINE_TUNE = Target(K, "GPa", transform="log10"), plans.fine_tune

DEALT = Split(np.arange(0, 26), np.arange(26, 38), np.arange(38, 44))


def learn(strategy: str, crystals=None, targets=LOG, **changes):
    """With three networks, in one epoch."""
    given = {"split": DEALT, "deal": True, "config": ONE_EPOCH, "seeds": 3} | changes
    return transfer(records(44) if crystals is None else crystals, source(), strategy, targets, **given)


def held_by_hand(result) -> tuple[np.ndarray, np.ndarray]:
    """What network and regressor say of the crystals they were kept from, [part, n], and the order of the folds."""
    folds = deal(np.arange(38), 3, ONE_EPOCH.seed, [formula(one.structure.atomic_numbers) for one in records(38)])
    assert sorted(row for fold in folds for row in fold.val.tolist()) == [*range(38)]
    networks, held = result.model.parts["full"], np.empty((2, 38))
    for number, fold in enumerate(folds):
        network = replace(networks, members=(networks.members[number],))
        held[0, fold.val] = predict(network, records(44)).values[fold.val, 0]
        alone = learn("features:ridge", split=Split(fold.train, fold.val[:0], fold.val))
        held[1, fold.val] = alone.predictions.values[fold.val, 0]
    return held, np.concatenate([fold.val for fold in folds])


@pytest.fixture(scope="module")
def dealt(tmp_path_factory):
    """A blend of networks and a regressor whose crystals are dealt three times."""
    out, told = tmp_path_factory.mktemp("dealt") / "run", []
    result = transfer(
        records(44), source(), "blend:full+features:ridge", LOG, split=DEALT, deal=True, config=ONE_EPOCH, seeds=3,
        out=out, tell=told.append,
    )  # fmt: skip
    return result, told


def test_a_split_of_ones_own_is_kept():
    """Its validation crystals may be of another kind than those that train; a random split is dealt."""
    strategy = "blend:frozen+features:ridge"
    given = transfer(records(44), source(), strategy, LOG, split=DEALT, config=ONE_EPOCH, seeds=3)
    drawn = transfer(records(44), source(), strategy, LOG, config=ONE_EPOCH, seeds=3)
    assert given.metrics["val"]["n"] == 12 and drawn.metrics["val"]["n"] > 12
    alone = transfer(records(44), source(), "features:ridge", LOG, split=DEALT)
    without = learn("features:ridge", split=Split(DEALT.train, DEALT.val[:0], DEALT.test))
    np.testing.assert_allclose(alone.predictions.values, without.predictions.values, rtol=1e-6)


def test_a_regressor_learns_from_the_validation_crystals_after_it_was_judged_by_them():
    labels = np.array([record.targets[K] for record in records(44)])
    result = learn("features:ridge", targets=Target(K))
    without = learn("features:ridge", targets=Target(K), split=Split(DEALT.train, DEALT.val[:0], DEALT.val))
    everything = Split(np.arange(38), DEALT.val[:0], DEALT.test)
    all_of_them = learn("features:ridge", targets=Target(K), split=everything)
    np.testing.assert_allclose(result.predictions.values, all_of_them.predictions.values, rtol=1e-6)
    assert set(result.model.formulas) == set(all_of_them.model.formulas)
    assert result.metrics["val"] == pytest.approx(without.metrics["test"], rel=1e-5)
    errors = np.abs(without.predictions.values[:, 0] - labels)[DEALT.val]
    assert result.model.calibration[0].quantile == pytest.approx(conformal(errors).quantile, rel=1e-4)
    assert result.model.notes["crystals trained on"] == 38


def test_every_crystal_validates_once_and_chooses_weights(dealt):
    """Networks and regressors of each fold, made again by hand, give the errors and the weights."""
    result, told = dealt
    labels = np.array([record.targets[K] for record in records(44)])
    held, order = held_by_hand(result)
    weights = choose_weights(held[:, order], labels[order], learnt=np.log10)
    choice = result.model.notes["choice"]
    np.testing.assert_allclose([one["weight"] for one in choice.values()], weights, atol=1e-9)
    np.testing.assert_allclose(
        [one["val_mae"] for one in choice.values()], np.abs(held - labels[:38]).mean(1), rtol=1e-5
    )
    crossed = cross_fitted_mean(held[:, order], labels[order], learnt=np.log10)
    assert result.metrics["val"]["mae"] == pytest.approx(np.abs(crossed - labels[order]).mean(), rel=1e-5)
    assert result.metrics["val"]["mae"] > 1.001 * np.abs(weights @ held - labels[:38]).mean(), "flattered by the choice"
    assert result.metrics["val"]["n"] == result.model.calibration[0].n == 38
    assert "38 training and validation crystals, dealt 3 times" in told[-1]


def test_intervals_are_of_one_width_from_all_crystals(dealt):
    """A network of one fold has no spread of its own, so that none may scale the intervals."""
    result, _ = dealt
    held, order = held_by_hand(result)
    labels = np.array([record.targets[K] for record in records(38)])[order]
    (bar,) = result.model.calibration
    expected = conformal(np.log10(cross_fitted_mean(held[:, order], labels, learnt=np.log10)) - np.log10(labels))
    assert not bar.normalised and bar.n == 38 and bar.quantile == pytest.approx(expected.quantile, rel=1e-4)
    ends = np.log10(np.concatenate([result.predictions.low, result.predictions.high], 1))
    np.testing.assert_allclose(np.diff(ends), 2 * bar.quantile, rtol=1e-5)


def test_intervals_of_regressors_scale_with_their_spread():
    """They have the same kind of standard deviation before and after they have learnt from all."""
    result = learn("blend:descriptors:gp+hybrid:gp")
    assert result.model.calibration[0].normalised and result.model.calibration[0].n == 38


def test_the_dealt_regressor_has_learnt_from_all(dealt):
    result, _ = dealt
    everything = Split(np.arange(38), np.arange(0), DEALT.test)
    alone = transfer(records(44), source(), "features:ridge", LOG, split=everything)
    found = predict(result.model.parts["features:ridge"], records(44))
    np.testing.assert_allclose(found.values, alone.predictions.values, rtol=1e-6)
    assert {formula(record.structure.atomic_numbers) for record in records(38)} <= set(result.model.formulas)
    again = predict(load_model(result.folder), records(44))
    np.testing.assert_array_equal(again.values, result.predictions.values)
    assert "were dealt 3 times" in run_report(result.folder).read_text()


def test_a_dealt_network_has_not_learnt_from_the_crystals_that_it_validates(dealt):
    """One label is another, and far from all: only the network that validates on it is what it was."""
    result, _ = dealt
    crystals = records(44)
    groups = [formula(record.structure.atomic_numbers) for record in crystals[:38]]
    one = deal(np.arange(38), 3, ONE_EPOCH.seed, groups)[1].val[0]
    crystals[one] = replace(crystals[one], targets={**crystals[one].targets, K: 1e6})
    again = learn("blend:full+features:ridge", crystals).model.parts["full"]
    before = result.model.parts["full"]
    said = [[predict(replace(model, members=(one,)), records(44)).values for one in model.members]
            for model in (before, again)]  # fmt: skip
    assert [np.allclose(a, b, rtol=1e-4) for a, b in zip(*said, strict=True)] == [False, True, False]


def test_each_network_has_the_scale_and_range_of_its_own_labels(monkeypatch):
    """What a network says of held-out crystals, it says without having been told their labels' mean or range."""
    held, asked = plans._held, []
    monkeypatch.setattr(plans, "_held", lambda models, lesson: asked.append((models, lesson)) or held(models, lesson))
    crystals = records(44)
    crystals[3] = replace(crystals[3], targets={**crystals[3].targets, K: 1e6})
    shared = learn("blend:full+features:ridge", crystals).model.parts["full"]
    (models, lesson), _ = asked
    for network, fold, member in zip(models, lesson.folds, shared.members, strict=True):
        labels = np.log10([crystals[row].targets[K] for row in fold.train])
        expected = [labels.mean(), labels.std(), labels.min(), labels.max()]
        np.testing.assert_allclose([part[0] for part in network.normaliser], expected, rtol=1e-5)
        # In the model that all of them make they share a scale, and predict the same.
        alone = predict(network, records(44)).values
        together = predict(replace(shared, members=(member,)), records(44)).values
        ends = 10.0 ** np.array([network.normaliser.low[0], network.normaliser.high[0]])
        np.testing.assert_allclose(np.clip(together, *ends), alone, rtol=1e-4)
    assert shared.normaliser.high[0] == 6.0
    assert sorted(float(network.normaliser.high[0]) == 6.0 for network in models) == [False, True, True]


@pytest.mark.parametrize(
    "change", [{"seeds": 2}, {"split": Split(np.arange(12), np.arange(12, 24), np.arange(24, 30))}]
)
def test_few_networks_or_crystals_are_not_dealt(change):
    assert learn("blend:frozen+features:ridge", **change).metrics["val"]["n"] == 12


def lesson(formulas: list[str], labels: np.ndarray | None = None, seeds: int = 5):
    """As much of a lesson as is asked for."""
    n = len(formulas)
    values = np.ones((n, 1)) if labels is None else labels
    return SimpleNamespace(
        given=np.arange(n), seeds=seeds, labels=lambda rows: values[rows], config=ONE_EPOCH,
        crystals=SimpleNamespace(datasets=(SimpleNamespace(formulas=formulas),)),
    )  # fmt: skip


def test_what_is_dealt_and_what_is_not():
    many = [str(number) for number in range(3120)]
    folds = folds_of(lesson(many[:260]))
    assert len(folds) == 5 and {len(fold.val) for fold in folds} == {52}
    assert not folds_of(lesson(["SiO2"] * 200 + many[:60]))  # one network would have 60 crystals to train on
    assert not folds_of(lesson(many[:30], seeds=20))  # one or two to choose an epoch by
    assert not folds_of(lesson(many[:4] * 10))  # fewer formulas than folds
    assert not folds_of(lesson(many)) and folds_of(lesson(many[:2860]))
    few = np.full((260, 2), 1.0)
    few[20:, 1] = np.nan
    assert not folds_of(lesson(many[:260], few))  # some four labels of the second property to validate on
    labelled = np.where(np.arange(260) < 24, 1.0, np.nan)[:, None]
    assert not folds_of(lesson(many[:260], labelled))  # 24 labels


def test_classes_are_dealt():
    binary = [replace(record, targets={K: float(i % 2)}) for i, record in enumerate(records(44))]
    result = learn("blend:full+frozen", binary, Target(K, kind="classification"))
    assert result.metrics["val"]["n"] == 38 and 0 < result.metrics["val"]["log_loss"] < 5
    assert sum(one["weight"] for one in result.model.notes["choice"].values()) == pytest.approx(1)


def test_two_targets_with_missing_labels_are_dealt():
    both = records(44, (K, GAP))
    gone = [{**one.targets, GAP: math.nan} if i % 3 == 0 else one.targets for i, one in enumerate(both)]
    holed = [replace(one, targets=targets) for one, targets in zip(both, gone, strict=True)]
    result = learn("blend:full+features:ridge", holed, (Target(K, "GPa"), Target(GAP, "eV")))
    assert {name: parts["val"]["n"] for name, parts in result.metrics["targets"].items()} == {K: 38, GAP: 25}
    assert [bar.n for bar in result.model.calibration] == [38, 25]


def test_no_validation_crystals_are_needed():
    result = learn("blend:full+features:ridge", split=Split(np.arange(38), np.arange(0), np.arange(38, 44)))
    assert result.metrics["val"]["n"] == 38 and len(result.model.parts["full"].members) == 3


def test_the_networks_of_a_source_take_turns(monkeypatch):
    """keep_head trains nothing: each network's scale is that of its own fold."""
    seen = []
    two = replace(source(), members=2 * source().members)
    monkeypatch.setattr(plans, "fine_tune", lambda *args, **known: seen.append(args[4]) or FINE_TUNE(*args, **known))
    result = transfer(
        records(44), two, "blend:keep_head+descriptors:ridge", LOG, split=DEALT, deal=True, config=ONE_EPOCH, seeds=3
    )  # fmt: skip
    (jobs,) = seen
    assert [job.member for job in jobs] == [0, 1, 2] and {len(job.train) + len(job.val) for job in jobs} == {38}
    assert result.metrics["val"]["n"] == 38


def test_one_part_that_is_best_stands_alone_with_its_error_bars():
    """A source of noise has no weight beside descriptors of a property that they are made for."""
    numbers = [float(one.structure.atomic_numbers.mean()) for one in records(44)]
    easy = [replace(one, targets={K: number}) for one, number in zip(records(44), numbers, strict=True)]
    result = learn("blend:frozen+descriptors:ridge", easy, Target(K))
    assert not isinstance(result.model, Committee) and result.model.regressor == "ridge"
    everything = Split(np.arange(38), np.arange(0), DEALT.test)
    alone = learn("descriptors:ridge", easy, Target(K), split=everything)
    np.testing.assert_allclose(result.predictions.values, alone.predictions.values, rtol=1e-6)
    assert result.model.calibration[0].n == result.metrics["val"]["n"] == 38


def test_too_many_crystals_for_a_regressor_are_told_before_any_training(monkeypatch):
    monkeypatch.setattr(feature_model, "MOST_PAIRS", 25)
    monkeypatch.setattr(plans, "fine_tune", lambda *_, **__: pytest.fail("trained first"))
    with pytest.raises(InputError, match="26 labelled training crystals; svr compares all pairs"):
        learn("blend:full+features:svr")


@pytest.mark.parametrize("strategy", ["features:svr", "blend:descriptors:ridge+descriptors:svr"])
def test_where_validation_crystals_make_it_too_many_they_are_not_learnt_from(monkeypatch, caplog, strategy):
    monkeypatch.setattr(feature_model, "MOST_PAIRS", 30)
    result = learn(strategy)
    assert result.metrics["val"]["n"] == 12 and result.model.notes["crystals trained on"] == 26
    told = f"validation crystals are not learnt from: with them there are 38, too many for {strategy.split('+')[-1]}"
    assert told in caplog.text


def test_a_mean_of_regressors_has_no_learning_rates():
    with pytest.raises(InputError, match=r"blend:.* trains no network: learning-rate multipliers \(--rate\)"):
        learn("blend:features:ridge+descriptors:ridge", multipliers={"*": 0.5})


def test_predictions_of_several_sets_are_joined():
    """A part without a standard deviation leaves those of the others where they belong."""
    target, std = (Target(K),), np.full((1, 2, 1), 0.5)
    first = Predictions(["a", "b"], target, np.array([[[1.0], [2.0]]]), own_std=std)
    other = Predictions(["c"], target, np.array([[[3.0]]]))
    found = joined([first, other])
    assert found.ids == ["a", "b", "c"] and found.values.ravel().tolist() == [1, 2, 3]
    np.testing.assert_array_equal(found.own_std, [[[0.5], [0.5], [np.nan]]])
    assert joined([other, first]).own_std.shape == (1, 3, 1) and joined([other, other]).own_std is None
