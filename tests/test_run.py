"""Runs from Python: what they return, what they write, what they refuse."""

import json
import signal
from dataclasses import replace

import jax
import numpy as np
import pytest
from tiny import BATCH, GAP, MODEL, NETWORK, ONE_EPOCH, K, command, records, source, table, write_lines

from tlcgcnn_jax import feature_model, fit, plans, source_choice, transfer, ways
from tlcgcnn_jax import run as run_file
from tlcgcnn_jax import train as training
from tlcgcnn_jax.blending import choose_weights
from tlcgcnn_jax.bundle import flatten
from tlcgcnn_jax.committee import Committee
from tlcgcnn_jax.config import GraphConfig, Target, TrainConfig
from tlcgcnn_jax.crystal import formula
from tlcgcnn_jax.dataset import build_dataset
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.evaluate import predict
from tlcgcnn_jax.feature_model import FeatureModel
from tlcgcnn_jax.files import only_one
from tlcgcnn_jax.graph_sets import pack_graphs
from tlcgcnn_jax.report import run_report
from tlcgcnn_jax.splits import Split, random_split
from tlcgcnn_jax.strategies import Strategy
from tlcgcnn_jax.textbook import textbook_records
from tlcgcnn_jax.watch import Interrupts
from tlcgcnn_jax.zoo import find_sources, load_model

SMALL = {"model": MODEL, "config": ONE_EPOCH}
pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fit(records(), Target(K, "GPa"), out=tmp_path_factory.mktemp("run") / "run", **SMALL)


def test_metrics_are_those_of_the_predictions(run):
    labels = np.array([record.targets[K] for record in records()], np.float32).astype(float)
    for part, rows in (("train", run.split.train), ("val", run.split.val), ("test", run.split.test)):
        error = run.predictions.values[rows, 0] - labels[rows]
        assert run.metrics[part]["mae"] == pytest.approx(np.abs(error).mean())
        assert run.metrics[part]["n"] == len(rows)


def test_the_normaliser_sees_the_training_crystals_alone(run):
    labels = np.array([record.targets[K] for record in records()])
    assert run.model.normaliser.mean[0] == pytest.approx(labels[run.split.train].mean(), rel=1e-6)
    assert run.model.normaliser.std[0] == pytest.approx(labels[run.split.train].std(), rel=1e-6)


def test_the_folder_is_a_model_that_predicts_the_same(run):
    again = predict(load_model(run.folder), records())
    np.testing.assert_allclose(again.members, run.predictions.members, rtol=1e-5)
    assert json.loads((run.folder / "metrics.json").read_text()) == run.metrics
    settings = json.loads((run.folder / "settings.json").read_text())
    assert settings["verb"] == "train" and settings["training"]["epochs"] == 1 and settings["versions"]["jax"]


def test_labels_without_a_logarithm_are_missing_where_bad_crystals_are_skipped(caplog, tmp_path):
    crystals = [replace(one, targets={K: -1.0}) if i in (3, 5) else one for i, one in enumerate(records())]
    target = Target(K, "GPa", transform="log10")
    with pytest.raises(InputError, match=rf"needs positive values, found -1 \({crystals[3].id}; 2 in all\)"):
        fit(crystals, target, **SMALL)
    found = fit(crystals, target, on_error="skip", **SMALL)
    assert f"2 labels are not positive and have no log10: they count as missing ({crystals[3].id}, " in (caplog.text)
    assert sum(len(rows) for rows in (found.split.train, found.split.val, found.split.test)) == 18
    assert len(found.predictions.ids) == 20
    lines = write_lines(tmp_path / "c.jsonl", crystals)
    asked = ("train", lines, "--target", K, "--transform", "log10", "--epochs", 1, *NETWORK, *BATCH, "--out")
    assert command(*asked, tmp_path / "run") == 0
    assert command(*asked, tmp_path / "other", "--on-error", "raise") == 1


def test_a_model_may_be_named_by_its_folder(run):
    np.testing.assert_array_equal(predict(run.folder, records()[:2]).ids, [record.id for record in records()[:2]])
    with pytest.raises(InputError, match="the model is of type Result: give .* the `model` of a result"):
        predict(run, records()[:2])


def test_it_is_shown_in_a_few_lines(run):
    assert len(repr(run)) < 8000 and len(repr(load_model("mp-elastic"))) < 8000


def test_a_run_does_not_go_on_beside_itself(run):
    with only_one(run.folder, "run"), pytest.raises(InputError, match="a run is at work here; wait until it has ended"):
        fit(records(), Target(K, "GPa"), out=run.folder, resume=True, **SMALL)
    assert not (run.folder / ".lock").exists()


def test_a_second_run_in_the_same_folder_is_refused(run):
    with pytest.raises(InputError, match="exists and is not empty; give another folder"):
        fit(records(), Target(K, "GPa"), out=run.folder, **SMALL)


def test_a_finished_run_is_read_and_not_trained_again(run, monkeypatch):
    monkeypatch.setattr(training, "train_scan", lambda *_: pytest.fail("trained again"))
    again = fit(records(), Target(K, "GPa"), out=run.folder, resume=True, **SMALL)
    assert again.metrics == run.metrics and again.history == run.history


def test_the_same_settings_give_the_same_network(run):
    again = fit(records(), Target(K, "GPa"), **SMALL)
    assert again.folder is None
    for path, array in flatten(run.model.members[0]).items():
        np.testing.assert_array_equal(array, flatten(again.model.members[0])[path], err_msg=path)


def test_an_ensemble_is_its_members(run, tmp_path):
    both = fit(records(), Target(K, "GPa"), seeds=2, out=tmp_path / "run", **SMALL)
    np.testing.assert_array_equal(both.predictions.members[0], run.predictions.members[0])
    assert np.abs(both.predictions.members[1] - both.predictions.members[0]).max() > 0
    np.testing.assert_allclose(both.predictions.mean, both.predictions.members.mean(0))
    assert "std" in table(tmp_path / "run" / "test_results.csv")[0]
    assert [row["member"] for row in both.history] == [0, 1]


def test_an_ensemble_as_source_gives_its_members_in_turn(run):
    both = fit(records(), Target(K, "GPa"), seeds=2, **SMALL).model
    moved = transfer(records(), both, "frozen", K, seeds=3, config=ONE_EPOCH)
    kernels = [flatten(member)["params/conv_0/bias"] for member in moved.model.members]
    before = [flatten(member)["params/conv_0/bias"] for member in both.members]
    for kernel, expected in zip(kernels, (before[0], before[1], before[0]), strict=True):
        np.testing.assert_array_equal(kernel, expected)


BODY = {"params/embedding", "params/conv_0", "batch_stats/conv_0"}
KEPT = {
    "scratch": set(),
    "full": set(),
    "frozen": BODY,
    "head": BODY | {"params/head/hidden_0"},
    "keep_head": BODY | {"params/head/hidden_0"},
    "gradual": set(),
}


@pytest.mark.parametrize("name, kept", KEPT.items(), ids=KEPT.keys())
def test_a_strategy_trains_what_it_says_and_nothing_else(name, kept):
    config = replace(ONE_EPOCH, epochs=2, keep="last")  # one for each phase
    moved = transfer(records(), source(), name, K, config=config, seeds=1)
    before, after = flatten(source().members[0]), flatten(moved.model.members[0])
    assert before.keys() == after.keys()
    same = {path for path in after if np.array_equal(before[path], after[path])}
    assert same == {path for path in after if path.startswith(tuple(f"{module}/" for module in kept))}
    assert moved.account is not None and len(moved.account.leaves) == len(after)


def test_multipliers_and_strategies_of_ones_own():
    keep = Strategy("keep the embedding", "all but the embedding is trained", ("head/*",), (("*", 1.0),))
    moved = transfer(records(), source(), keep, K, multipliers={"embedding/*": 0}, config=ONE_EPOCH, seeds=1)
    before, after = flatten(source().members[0]), flatten(moved.model.members[0])
    changed = {path.split("/")[1] for path in after if not np.array_equal(before[path], after[path])}
    assert changed == {"conv_0", "head"}


def test_two_targets_with_missing_labels(tmp_path, pictures):
    crystals = textbook_records((K, GAP))[:30]
    known = np.isfinite([[record.targets[name] for name in (K, GAP)] for record in crystals])
    assert not known.all()  # or the test shows nothing
    result = fit(crystals, (Target(K, "GPa"), Target(GAP, "eV")), out=tmp_path / "run", **SMALL)
    for column, name in enumerate((K, GAP)):
        assert result.metrics["targets"][name]["train"]["n"] == known[result.split.train, column].sum()
    assert result.predictions.values.shape == (30, 2)
    assert len(list((tmp_path / "run").glob("parity_*.png"))) == 2


def test_a_logarithm_is_learnt_and_the_unit_kept():
    result = fit(records(), Target(K, "GPa", transform="log10"), **SMALL)
    labels = np.log10([record.targets[K] for record in records()])
    assert result.model.normaliser.mean[0] == pytest.approx(labels[result.split.train].mean(), rel=1e-5)
    assert (result.predictions.values > 0).all() and result.predictions.values.max() > 10  # GPa, not decades


def test_a_frame_with_structures(tmp_path):
    """As matminer makes them."""
    import pandas as pd
    from pymatgen.core import Structure

    crystals = records(12)
    structures = [
        Structure(r.structure.lattice, r.structure.atomic_numbers.tolist(), r.structure.frac_coords) for r in crystals
    ]
    moduli = [record.targets[K] for record in crystals]
    frame = pd.DataFrame({"structure": structures, "k_vrh": moduli, "note": "x"}, index=[f"f{i}" for i in range(12)])
    result = fit(frame, "k_vrh", **SMALL)
    assert result.predictions.ids == [f"f{i}" for i in range(12)]
    assert sum(part["n"] for part in result.metrics.values()) == 12
    assert predict(result.model, frame[["structure"]]).values.shape == (12, 1)


# --- ways that are not one network's ------------------------------------------------------------------

LOG = Target(K, "GPa", transform="log10")
FEW = Split(np.arange(10), np.arange(10, 19), np.arange(19, 20))  # as many to validate as an interval needs


def test_an_ensemble_is_the_default():
    assert len(transfer(records(), source(), "frozen", K, config=ONE_EPOCH).model.members) == 5
    alike = transfer(records(), source(), "keep_head", K, config=ONE_EPOCH)
    assert len(alike.model.members) == 1  # where nothing is random there is nothing to average


def test_many_seeds_together_are_what_each_is_alone():
    both = transfer(records(), source(), "full", K, config=ONE_EPOCH, seeds=2)
    alone = transfer(records(), source(), "full", K, config=replace(ONE_EPOCH, seed=1), seeds=1, split=both.split)
    for path, array in flatten(alone.model.members[0]).items():
        np.testing.assert_allclose(flatten(both.model.members[1])[path], array, atol=1e-5, err_msg=path)
    assert [row["member"] for row in both.history] == [0, 1]


def test_large_sets_are_streamed_to_the_same_network(monkeypatch):
    held = transfer(records(), source(), "frozen", K, config=ONE_EPOCH, seeds=1)
    monkeypatch.setattr(ways, "DEVICE_BYTES", 1000)
    streamed = transfer(records(), source(), "frozen", K, config=ONE_EPOCH, seeds=1)
    assert "seconds" in streamed.history[0] and "seconds" not in held.history[0]
    np.testing.assert_allclose(streamed.predictions.values, held.predictions.values, rtol=1e-3)
    with pytest.raises(InputError, match="18 crystals are too many for head_then_full, which keeps all on the device"):
        transfer(records(), source(), "head_then_full", K, config=ONE_EPOCH)


def test_features_as_a_strategy(tmp_path):
    result = transfer(records(), source(), "features:gp", K, split=FEW, out=tmp_path / "run")
    assert isinstance(result.model, FeatureModel) and result.history == [] and result.account is None
    again = predict(load_model(tmp_path / "run"), records())
    np.testing.assert_array_equal(again.values, result.predictions.values)
    row = table(tmp_path / "run" / "test_results.csv")[0]
    assert {"prediction", "std", "low", "high", "novelty"} <= row.keys()
    assert float(row["low"]) < float(row["prediction"]) < float(row["high"])
    assert set(result.metrics["test"]) >= {"mae", "coverage_90", "interval_width"}
    assert "coverage_90" not in result.metrics["val"]  # they were made from these
    assert "The regressor gp on a model in memory" in run_report(tmp_path / "run").read_text()


def test_an_ensemble_of_ways(tmp_path):
    told = []
    result = transfer(
        records(), source(), "ensemble:frozen+features:ridge", K, split=FEW, config=ONE_EPOCH, seeds=2,
        out=tmp_path / "run", tell=told.append, multipliers=(("head/*", 0.5),),
    )  # fmt: skip
    assert isinstance(result.model, Committee) and list(result.model.parts) == ["frozen", "features:ridge"]
    networks, regressor = (predict(part, records()) for part in result.model.parts.values())
    np.testing.assert_allclose(result.predictions.mean, (networks.mean + regressor.mean) / 2)
    np.testing.assert_array_equal(predict(load_model(tmp_path / "run"), records()).mean, result.predictions.mean)
    assert [row["member"] for row in result.history] == [0, 1]
    assert "trained x0.5" in told[0] and told[1].startswith("features:ridge: a regressor on")
    assert "The mean of frozen and features:ridge" in run_report(tmp_path / "run").read_text()
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert settings["parts"]["frozen"]["rates"][0] == ["head/*", 0.5]


def test_validation_crystals_weight_a_blend(tmp_path):
    """The weights are those of `choose_weights` on the validation crystals; the model is the mean that they make."""
    split = Split(np.arange(0, 26), np.arange(26, 38), np.arange(38, 44))
    parts = ("frozen", "features:ridge", "descriptors:ridge")
    result = transfer(
        records(44), source(), f"blend:{'+'.join(parts)}", LOG, split=split, config=ONE_EPOCH, seeds=1,
        out=tmp_path / "run",
    )  # fmt: skip
    made = [transfer(records(44), source(), part, LOG, split=split, config=ONE_EPOCH, seeds=1) for part in parts]
    learnt = np.log10(np.stack([one.predictions.values[:, 0] for one in made]))
    labels = np.log10([record.targets[K] for record in records(44)])
    weights = choose_weights(10 ** learnt[:, split.val], 10 ** labels[split.val], learnt=np.log10)
    assert len(set(weights)) == 3  # twelve crystals did choose
    choice = result.model.notes["choice"]
    assert list(choice) == list(parts)
    np.testing.assert_allclose([choice[part]["weight"] for part in parts], weights, atol=1e-9)
    np.testing.assert_allclose([choice[part]["val_mae"] for part in parts], [m.metrics["val"]["mae"] for m in made])
    together = weights @ np.stack([one.predictions.values[:, 0] for one in made])
    np.testing.assert_allclose(result.predictions.values[:, 0], together, rtol=1e-5)
    again = predict(load_model(tmp_path / "run"), records(44))
    np.testing.assert_array_equal(again.values, result.predictions.values)
    np.testing.assert_array_equal(again.std, result.predictions.std)
    assert (tmp_path / "run" / "choice.png").is_file()
    assert "What was joined" in run_report(tmp_path / "run").read_text()


def test_descriptors_alone_ask_no_source(tmp_path):
    result = transfer(records(), source(), "descriptors:ridge", K, out=tmp_path / "run")
    assert result.model.sources == {} and result.overlap == {} and result.model.x.shape[1] == 186
    assert result.folder and "The regressor ridge on descriptors" in run_report(result.folder).read_text()
    again = predict(result.model, records())
    np.testing.assert_array_equal(again.values, result.predictions.values)


def test_auto_takes_regressors_and_networks():
    split = Split(np.arange(0, 26), np.arange(26, 38), np.arange(38, 44))
    result = transfer(records(44), source(), "auto", K, split=split, config=ONE_EPOCH, seeds=1)
    choice = result.model.notes["choice"]
    assert list(choice) == ["full", "features:svr", "hybrid:svr", "descriptors:svr", "descriptors:gp"]
    weights = {part: one["weight"] for part, one in choice.items()}
    # One epoch on 26 crystals has taught the network nothing; some regressor knows more.
    assert weights["full"] < max(weights.values()) and sum(weights.values()) == pytest.approx(1)


def test_auto_of_classes_is_the_best_source_fine_tuned():
    """Regressors, which are the other parts of it, learn none."""
    labels = [replace(record, targets={K: float(i % 2)}) for i, record in enumerate(records())]
    told, settings = [], {"config": ONE_EPOCH, "seeds": 1}
    sources = {"one": source(), "other": source()}
    result, full = (
        transfer(labels, sources, way, Target(K, kind="classification"), **settings, tell=told.append)
        for way in ("auto", "full")
    )
    assert "best first" in told[0] and result.model.notes["strategy"] == "full"
    np.testing.assert_array_equal(result.predictions.values, full.predictions.values)


def test_a_run_goes_on_with_the_source_that_it_began_with(tmp_path):
    """Known by its weights, since another model may have come to lie in its folder."""
    again = lambda: transfer(
        records(), tmp_path / "source", "frozen", K, config=ONE_EPOCH, seeds=1, out=tmp_path / "run", resume=True
    )
    source().save(tmp_path / "source")
    first = again()
    assert again().metrics == first.metrics
    named = transfer(
        records(), f"{tmp_path}/./source/", "frozen", K, config=ONE_EPOCH, seeds=1, out=tmp_path / "run", resume=True
    )
    assert named.metrics == first.metrics  # however its folder is written
    other = jax.tree.map(lambda leaf: leaf * np.float32(1.5), source().members)
    replace(source(), members=other).save(tmp_path / "source")
    with pytest.raises(InputError, match=r"cannot be resumed with other settings: source_sha256\.\S+ was"):
        again()


def test_numpy_numbers_are_numbers(tmp_path):
    config, seeds = replace(ONE_EPOCH, epochs=np.int64(1), learning_rate=np.float32(0.01)), np.int64(1)
    model = replace(MODEL, width=np.int64(8))
    fit(records(), K, model=model, config=config, seeds=seeds, out=tmp_path / "run")
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert settings["training"]["epochs"] == settings["seeds"] == 1 and load_model(tmp_path / "run").model == model


def test_the_best_of_the_sources_that_there_are(tmp_path):
    source().save(tmp_path / "own" / "gap")
    told = []
    result = transfer(
        records(), "auto", "frozen", K, sources=tmp_path / "own", config=ONE_EPOCH, seeds=1, out=tmp_path / "run",
        tell=told.append,
    )  # fmt: skip
    ranked = table(tmp_path / "run" / "source_ranking.csv")
    assert {row["name"] for row in ranked} == {"gap", *find_sources()}
    best = ranked[0]["name"]
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["source"] == best
    assert told[0].startswith("sources by their features") and best in told[0].splitlines()[2]
    assert told[1].startswith(f"frozen from {best}:") and result.model.model.width == (8 if best == "gap" else 64)


def test_a_mixture_of_sources():
    pair = {"a": source(), "b": replace(source(), formulas=("Xe",))}
    result = transfer(records(), pair, "multi_source_gate", K, config=ONE_EPOCH, seeds=2)
    assert result.model.model.sources == 2 and "Xe" in result.model.formulas
    assert set(result.model.members[0]["params"]) == {"source_0", "source_1", "gate", "head"}


def test_several_targets_at_once_and_as_source(tmp_path):
    targets = (Target(K, "GPa"), Target(GAP, "eV"))
    both = transfer(records(20, (K, GAP)), source(), "full", targets, config=ONE_EPOCH, seeds=1)
    assert set(both.metrics["targets"]) == {K, GAP}
    card = (both.model.save(tmp_path / "both") / "README.md").read_text()
    for name in (K, GAP):
        assert f"- {name}, test: mae {both.metrics['targets'][name]['test']['mae']:.4g}" in card
    moved = transfer(records(), both.model, "frozen", K, config=ONE_EPOCH, seeds=1)
    assert moved.predictions.values.shape == (20, 1)


def test_phases_are_told(monkeypatch):
    told = []
    monkeypatch.setattr(run_file, "_carry_out", lambda *_: None)
    transfer(records(), source(), "head_then_full", K, config=replace(ONE_EPOCH, epochs=10), seeds=1, tell=told.append)
    assert told[1:3] == ["  epochs 1 to 3: head/* x1, * frozen", "  epochs 4 to 10: * x1"]


# --- what a model knows of its crystals -----------------------------------------------------------------


def test_formulas_of_the_training_crystals_go_with_the_model(run):
    def formulas(rows):
        return {formula(records()[row].structure.atomic_numbers) for row in rows}

    assert set(run.model.formulas) == formulas(run.split.train)
    assert list(load_model(run.folder).formulas) == sorted(run.model.formulas)
    told, tested = [], run.split.train[:1]
    others = np.setdiff1d(np.arange(20), tested)
    same = {"split": Split(others[:10], others[10:], tested), "config": ONE_EPOCH, "seeds": 1}
    moved = transfer(records(), {"k": run.model}, "full", K, tell=told.append, **same)
    assert set(moved.model.formulas) == formulas(run.split.train) | formulas(others[:10])
    assert moved.overlap == {"k": {"count": 1, "share": 1.0}}
    assert any("1 of 1 test crystals have a formula that k was trained on" in text for text in told)
    fresh = transfer(records(), {"k": run.model}, "scratch", K, **same)
    assert set(fresh.model.formulas) == formulas(others[:10])
    unknown = replace(source(), formulas=())
    assert transfer(records(), {"k": unknown}, "head", K, config=ONE_EPOCH, seeds=1).overlap == {"k": None}


def test_crystals_without_the_label_take_no_place_in_the_split():
    one = records()
    both = [
        replace(record, targets={K: record.targets[K] if i % 2 else float("nan"), GAP: 1.0})
        for i, record in enumerate(one)
    ]
    result = fit(build_dataset(both, targets=(K, GAP)), K, **SMALL)
    rows = np.concatenate([result.split.train, result.split.val, result.split.test])
    assert sorted(rows.tolist()) == list(range(1, len(one), 2)) and len(result.split.val) == 1
    # All labelled: the split that a seed has always given.
    all_labelled = fit(build_dataset(one, targets=(K,)), K, **SMALL).split
    np.testing.assert_array_equal(all_labelled.train, random_split(len(one), SMALL["config"].seed).train)


def test_intervals_come_from_the_validation_crystals():
    result = fit(records(), Target(K, "GPa"), split=FEW, seeds=2, **SMALL)
    (bar,) = result.model.calibration
    labels = np.array([record.targets[K] for record in records()], np.float32).astype(float)
    # Multiples of the standard deviation, or one width for all where that is narrower.
    std = np.maximum(result.predictions.std[:, 0], bar.floor) if bar.normalised else np.ones(len(labels))
    scores = np.abs(result.predictions.values[:, 0] - labels)[FEW.val] / std[FEW.val]
    assert bar.n == 9 and bar.quantile == pytest.approx(scores.max())
    np.testing.assert_allclose((result.predictions.high - result.predictions.low)[:, 0], 2 * bar.quantile * std)
    inside = result.predictions.low[19, 0] <= labels[19] <= result.predictions.high[19, 0]
    assert result.metrics["test"]["coverage_90"] == float(inside)


def test_unlike_crystals_are_named(run, caplog):
    predictions = predict(run.model, textbook_records(())[:60])
    assert (predictions.novelty > 1).any() and "are farther from the training crystals than 95 %" in caplog.text
    np.testing.assert_allclose(predict(load_model(run.folder), textbook_records(())[:60]).novelty, predictions.novelty)
    usual = predict(run.model, [records()[row] for row in run.split.train]).novelty
    assert np.mean(usual > 1) < np.mean(predictions.novelty > 1)


CLASSES = "classification"
REFUSED = {
    "no target": (lambda: fit(records()), "Name at least one target column"),
    "a dataset without targets": (lambda: fit(build_dataset(records(4))), "prepared without a target column"),
    "another target than the dataset's": (
        lambda: fit(build_dataset(records(4), targets=(K,)), GAP),
        f"has no target {GAP}; it has {K}",
    ),
    "seeds past the last": (
        lambda: fit(records(4), K, seeds=2, config=replace(ONE_EPOCH, seed=2**32 - 1)),
        "whose seeds follow: choose a smaller one",
    ),
    "a mixture of no sources": (
        lambda: fit(records(4), K, model=replace(MODEL, sources=2), config=ONE_EPOCH),
        "a mixture of 2 sources is made of sources: none was given",
    ),
    "no seeds": (lambda: fit(records(), K, seeds=0), "seeds is 0"),
    "seeds in words": (lambda: fit(records(), K, seeds="five"), "seeds is 'five': the number of networks was"),
    "one target twice": (lambda: fit(records(), [K, Target(K, "GPa")]), f"target {K} is named twice: leave one out"),
    "settings as a dictionary": (
        lambda: fit(records(), K, config={"epochs": 3}),
        r"config is \{'epochs': 3\}: a TrainConfig was expected",
    ),
    "sizes as a dictionary": (lambda: fit(records(), K, model={"width": 8}), "model is .*: a ModelConfig was expected"),
    "graphs as a dictionary": (lambda: fit(records(), K, graph={"cutoff": 6}), "graph is .*: a GraphConfig was expec"),
    "a split by its file": (lambda: transfer(records(), source(), "full", K, split="split.json"), "a Split was expect"),
    "a split of ids": (
        lambda: fit(records(), K, split={"train": [record.id for record in textbook_records(())]}),
        r"^split is \{'train': .{,220}: a Split was expected \(tlcgcnn_jax.Split\); read_split makes one of ids$",
    ),
    "no target at all": (lambda: fit(records(), None), "targets: found None: a column's name, a Target"),
    "labels of a dataset": (
        lambda: fit(build_dataset(records(4), targets=(K,)), K, labels={"diamond-C": 1.0}),
        "labels: the dataset is packed with its labels and ids: give labels to build_dataset",
    ),
    "ids of graph sets": (
        lambda: fit(pack_graphs(records(4), [GraphConfig()], targets=(K,)), K, id_column="name"),
        "id_column: the dataset is packed with its labels and ids",
    ),
    "a dataset with a wrong word": (
        lambda: fit(build_dataset(records(4), targets=(K,)), K, on_error="ignore"),
        "on_error is 'ignore'",
    ),
    "labels that are all equal": (
        lambda: fit([replace(record, targets={K: 100.0}) for record in records()], K),
        f"target {K}: all 20 labels are 100: there is nothing to learn",
    ),
    "one class": (
        lambda: transfer(
            [replace(record, targets={"m": 1.0}) for record in records()], source(), targets=Target("m", kind=CLASSES)
        ),
        "target m: all 20 labels are 1: there is nothing to learn",
    ),
    "two crystals": (lambda: fit(records(2), K), "at least 3 are needed"),
    "unknown strategy": (lambda: transfer(records(), source(), "half", K), "no strategy 'half'; there are: scratch"),
    "unknown regressor": (
        lambda: transfer(records(), source(), "features:oracle", K),
        "no regressor 'oracle'; there are: mean",
    ),
    "features of a class": (
        lambda: transfer(
            [replace(record, targets={"m": float(i % 2)}) for i, record in enumerate(records())],
            source(),
            "features:ridge",
            Target("m", kind=CLASSES),
        ),
        "predicts values, not classes",
    ),
    "features with a learning rate": (
        lambda: transfer(records(), source(), "features:ridge", K, multipliers=(("*", 0.5),)),
        "trains no network",
    ),
    "features of four crystals": (
        lambda: transfer(records(), source(), "features:ridge", K, split=Split(*np.split(np.arange(20), [4, 10]))),
        "4 labelled training crystals: ridge needs 5",
    ),
    "a part twice": (lambda: transfer(records(), source(), "ensemble:full+full", K), "a part is named twice"),
    "an ensemble of one": (lambda: transfer(records(), source(), "ensemble:full", K), "at least two strategies"),
    "a mixture of one": (lambda: transfer(records(), source(), "multi_source", K), "joins several sources, one was"),
    "multiplier of nothing": (
        lambda: transfer(records(), source(), "full", K, multipliers=(("conv_9*", 0.1),), config=ONE_EPOCH),
        "conv_9",
    ),
    "negative multiplier": (
        lambda: transfer(records(), source(), "full", K, multipliers=(("conv_*", -1),)),
        "conv_.* is -1",
    ),
    "a dataset of another cutoff": (
        lambda: transfer(build_dataset(records(4), targets=(K,), graph=GraphConfig(cutoff=6)), source(), "full", K),
        "cutoff is 6.0, the model's 8.0",
    ),
    "no labels to train on": (
        lambda: fit(records(5), Target(K, transform="log"), split=_nothing()),
        "not one training crystal has a label",
    ),
}


def _nothing():
    return Split(np.array([], int), np.array([0]), np.array([1]))


@pytest.mark.parametrize("run, message", REFUSED.values(), ids=REFUSED.keys())
def test_bad_arguments_are_refused(run, message):
    with pytest.raises(InputError, match=message):
        run()


def test_crystals_that_cannot_be_read_are_in_the_result(caplog):
    bad = records(1)[0]
    far = bad.structure._replace(lattice=np.eye(3) * 1e3, atomic_numbers=np.array([18]), frac_coords=np.zeros((1, 3)))
    crystals = [*records(12), type(bad)("far", far, bad.targets)]
    with pytest.raises(InputError, match="far.* has no neighbour"):
        fit(crystals, K, **SMALL)
    with caplog.at_level("WARNING"):
        result = fit(crystals, K, on_error="skip", **SMALL)
    assert "1 crystals are left out, 12 are used; the first: " in caplog.text
    assert [skipped.id for skipped in result.predictions.skipped] == ["far"]
    assert len(result.predictions.ids) == 12


def test_rows_of_a_split_do_not_move_where_crystals_are_left_out():
    crystals = records(12)
    crystals.insert(3, replace(crystals[0], id="bad", targets={K: None}))
    split = Split(np.arange(9), np.array([9]), np.array([10, 11, 12]))
    for run in (fit, lambda *given, **settings: transfer(given[0], source(), "full", given[1], **settings)):
        with pytest.raises(
            InputError, match=r"split: 1 of the crystals .* left out.*'bad'.* missing.*; pack them first"
        ):
            run(crystals, K, split=split, on_error="skip")
    packed = build_dataset(crystals, targets=(K,), on_error="skip")
    rows = Split(np.arange(9), np.array([9]), np.array([10, 11]))
    assert [packed.ids[row] for row in fit(packed, K, split=rows, **SMALL).split.test] == packed.ids[10:]
    labels = {record.id: record.targets[K] for record in records(12)} | {"no crystal": 1.0}
    assert len(fit(records(12), K, split=rows, labels=labels, on_error="skip", **SMALL).split.test) == 2


def test_classes_that_no_crystal_is_of_are_told(monkeypatch, caplog):
    """Who counts from 1 gets an output that nothing can be learnt of."""
    monkeypatch.setattr(run_file, "plan_scratch", lambda *_: (_ for _ in ()).throw(InputError("far enough")))
    crystals = [replace(one, targets={"kind": 1.0 + row % 2}) for row, one in enumerate(records(6))]
    with pytest.raises(InputError, match="far enough"):
        fit(crystals, Target("kind", kind=CLASSES, classes=3))
    assert "target kind: no crystal is of class 0; classes are counted from 0" in caplog.text


def test_a_folder_that_is_taken_is_refused_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "notes.txt").touch()
    pretrained = source()
    monkeypatch.setattr(run_file, "pack_graphs", lambda *_, **__: pytest.fail("packed"))
    for train in (
        lambda: fit(records(), K, out=tmp_path),
        lambda: transfer(records(), pretrained, "full", K, out=tmp_path),
    ):
        with pytest.raises(InputError, match="exists and is not empty"):
            train()


def test_too_many_crystals_for_a_part_are_told_before_sources_are_ranked(monkeypatch):
    monkeypatch.setattr(feature_model, "MOST_PAIRS", 9)
    monkeypatch.setattr(source_choice, "rank_sources", lambda *_, **__: pytest.fail("ranked"))
    with pytest.raises(InputError, match="svr compares all pairs"):
        transfer(records(), {"a": source(), "b": source()}, "auto", K, config=SMALL["config"])


def test_scratch_beside_a_source_is_no_transfer(tmp_path):
    """The network has the source's sizes, none of its weights, and knows none of its crystals."""
    told: list[str] = []
    knowing = replace(source(), formulas=tuple(sorted({formula(r.structure.atomic_numbers) for r in records()})))
    result = transfer(
        records(), knowing, "scratch", K, config=SMALL["config"], seeds=1, out=tmp_path / "run", tell=told.append
    )
    assert result.overlap == {} and not any("flatter" in line for line in told)
    assert told[0].startswith("scratch with the graphs and sizes of a model in memory:\n")
    assert "Transferred" not in run_report(tmp_path / "run").read_text()
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert settings["strategy"] == "scratch" and "source" not in settings
    assert result.model.model == source().model


def test_early_stopping_is_resumed_as_stopped(tmp_path, monkeypatch):
    config = TrainConfig(epochs=40, batch_size=8, patience=2, learning_rate=0.5, schedule="constant")
    first = fit(records(), K, model=MODEL, config=config, out=tmp_path / "run", split=random_split(20, 0))
    assert 3 <= len(first.history) < 40
    monkeypatch.setattr(training, "train_scan", lambda *_: pytest.fail("trained again"))
    again = fit(records(), K, model=MODEL, config=config, out=tmp_path / "run", split=random_split(20, 0), resume=True)
    assert len(again.history) == len(first.history) and again.metrics == first.metrics


@pytest.mark.parametrize("times", [1, 2])
def test_an_interrupt_is_not_lost_and_the_second_does_not_wait(times):
    before, went_on = signal.getsignal(signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt), Interrupts(wait=True):
        for _ in range(times):
            signal.raise_signal(signal.SIGINT)
        went_on.append(True)
    assert went_on == [True] * (times == 1)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("train", "test"),
    [([0, 1, 2, 3], [3, 4]), ([0, 1, 2], [999]), ([0, 1, -1], [4])],
    ids=["shared", "beyond", "negative"],
)
def test_a_split_that_cannot_be_is_refused(train, test):
    split = Split(np.array(train), np.array([], int), np.array(test))
    with pytest.raises(InputError, match="the split's parts share crystals, or name rows beyond"):
        fit(records(), Target(K, "GPa"), split=split, **SMALL)


def test_gaussians_reach_as_far_as_the_cutoff(monkeypatch):
    monkeypatch.setattr(run_file, "_carry_out", lambda lesson, plan, *_: plan)
    far = GraphConfig(cutoff=9.0)
    packed = build_dataset(records(), targets=(K,), graph=far)  # whose graphs are no argument of `fit`
    for data, settings in ((records(), {"graph": far}), (packed, {})):
        assert fit(data, Target(K, "GPa"), **settings, **SMALL).model.gaussian_max == 9.0


def test_a_split_may_have_empty_parts_but_no_masks():
    split = Split([*range(10)], np.array([]), np.array([]))
    result = fit(records(), Target(K, "GPa"), split=split, **SMALL)
    assert result.metrics.keys() == {"train"} and result.metrics["train"]["n"] == 10
    assert len(result.predictions.ids) == 20
    with pytest.raises(InputError, match="train: row numbers were expected in a split, found bool"):
        Split(np.ones(3, bool), np.array([]), np.array([]))


def test_crystals_without_a_label_are_not_learnt_from():
    """They change nothing, and the model does not claim to know them."""
    both = [
        record if i % 2 else replace(record, targets={K: float("nan"), GAP: 1.0})
        for i, record in enumerate(records(20, (K, GAP)))
    ]
    some = build_dataset(both, targets=(K, GAP))
    split = Split(np.arange(16), np.arange(16, 18), np.arange(18, 20))
    labelled = Split(np.arange(1, 16, 2), split.val, split.test)
    for way in ("full", "features:ridge"):
        one, other = (
            transfer(some, source(), way, K, split=rows, config=ONE_EPOCH, seeds=1) for rows in (split, labelled)
        )
        assert one.model.formulas == other.model.formulas and one.model.notes["crystals trained on"] == 8
        # Batches of other shapes are rounded otherwise on some processors.
        np.testing.assert_allclose(one.predictions.novelty, other.predictions.novelty, rtol=2e-3)


def test_a_run_that_is_interrupted_at_its_end_is_written(tmp_path):
    """Ctrl-C while a regressor is fitted, or after the last epoch, loses nothing of what is finished."""
    made = plans.FeaturesPlan.make

    def interrupted(plan, at):
        out = made(plan, at)
        signal.raise_signal(signal.SIGINT)
        return out

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(plans.FeaturesPlan, "make", interrupted)
        transfer(records(), source(), "features:ridge", K, out=tmp_path / "run")
    assert (tmp_path / "run" / "metrics.json").is_file() and load_model(tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(plans.FeaturesPlan, "make", interrupted)
        patch.setattr(plans.NetworksPlan, "make", lambda *_: pytest.fail("went on to the next part"))
        transfer(records(), source(), "ensemble:features:ridge+full", K, config=ONE_EPOCH, out=tmp_path / "two")
    assert not (tmp_path / "two" / "metrics.json").exists()


def test_what_a_source_does_not_know_stays_unknown():
    unknown = replace(source(), formulas=())
    for way in ("full", "features:ridge", "ensemble:features:ridge+descriptors:ridge"):
        assert transfer(records(), unknown, way, K, config=ONE_EPOCH, seeds=1).model.formulas == (), way
    assert transfer(records(), unknown, "descriptors:ridge", K).model.formulas


def test_unknown_errors_are_null_in_the_files(tmp_path):
    split = Split(np.arange(8), np.array([], int), np.array([8]))  # R² of one crystal is not a number
    fit(records(), Target(K, "GPa"), split=split, out=tmp_path / "run", **SMALL)
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        assert "NaN" not in line and json.loads(line)["val_score"] is None
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["test"]["r2"] is None
    assert load_model(tmp_path / "run").metrics["test"]["r2"] is None


def test_a_folder_of_files_with_a_sheet_of_labels(tmp_path, shared_data):
    cifs = sorted((shared_data / "cgcnn_folders" / "sample-regression").glob("*.cif"))
    (tmp_path / "cifs").mkdir()
    for cif in cifs:
        (tmp_path / "cifs" / cif.name).write_bytes(cif.read_bytes())
    sheet = tmp_path / "sheet.csv"
    sheet.write_text("id,k\n" + "".join(f"{cif.stem},{10 + row}\n" for row, cif in enumerate(cifs)))
    result = transfer(tmp_path / "cifs", source(), "head", "k", labels=sheet, config=ONE_EPOCH, seeds=1)
    assert len(result.predictions.ids) == len(cifs) == 10
