"""The command line keeps its promises: verbs, files, columns, exit statuses."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from pymatgen.core import Structure
from tiny import BATCH, GAP, NETWORK, K, command, records, table, write_lines

from tlcgcnn_jax import checkpoint, cli, many, options, plans
from tlcgcnn_jax import train as training
from tlcgcnn_jax.bundle import flatten, load_bundle
from tlcgcnn_jax.config import GraphConfig
from tlcgcnn_jax.dataset import build_dataset, load_dataset
from tlcgcnn_jax.evaluate import predict
from tlcgcnn_jax.splits import random_split
from tlcgcnn_jax.zoo import find_sources, load_model, shipped

ROOT = Path(__file__).resolve().parents[1]
TRAIN = (*NETWORK, *BATCH, "--epochs", 2)
pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Crystals, a packed dataset and a run on it, all made by the command line."""
    folder = tmp_path_factory.mktemp("cli")
    crystals = records(20, (K, GAP))
    metal = [int(record.targets[K] > 100) for record in crystals]
    write_lines(folder / "crystals.jsonl", crystals, hard=metal)
    assert command("prepare", folder / "crystals.jsonl", "--target", K, "--target", GAP, "--out", folder / "ds") == 0
    assert command("train", folder / "ds", "--target", K, "--unit", "GPa", "--out", folder / "run", *TRAIN) == 0
    return folder


@pytest.fixture
def two_shipped(monkeypatch):
    """Two of the shipped models, where it takes time to rank them all."""
    monkeypatch.setattr("tlcgcnn_jax.zoo.shipped", lambda: ("carbon-energy", "mp-formation-energy"))


@pytest.fixture
def said(capsys):
    """What was written to stderr since the start of the test."""
    capsys.readouterr()
    return lambda: capsys.readouterr().err


def parts(folder):
    return {part: len(ids) for part, ids in json.loads((folder / "split.json").read_text()).items()}


def weights(folder):
    return [flatten(member) for member in load_model(folder).members]


def assert_same_weights(one, other):
    for a, b in zip(weights(one), weights(other), strict=True):
        assert a.keys() == b.keys()
        for name, array in a.items():
            np.testing.assert_array_equal(array, b[name], err_msg=name)


# --- the verbs ----------------------------------------------------------------------------------------


def test_prepare_makes_a_dataset(place):
    dataset = load_dataset(place / "ds")
    assert dataset.ids == [record.id for record in records(20, (K, GAP))]
    assert dataset.target_names == (K, GAP)
    np.testing.assert_allclose(dataset.targets[0], list(records(1, (K, GAP))[0].targets.values()), rtol=1e-6)


def test_prepare_without_a_target_makes_a_dataset_to_predict(place, tmp_path, said):
    assert command("prepare", place / "crystals.jsonl", "--out", tmp_path / "ds") == 0
    assert command("predict", place / "run", tmp_path / "ds", "--out", tmp_path / "p.csv") == 0
    assert len(table(tmp_path / "p.csv")) == 20
    assert command("train", tmp_path / "ds", "--out", tmp_path / "run") == 1
    assert f"{tmp_path / 'ds'}: was packed without labels: prepare it again" in said()


def test_train_reports_errors_in_the_unit_of_the_target(place):
    metrics = json.loads((place / "run" / "metrics.json").read_text())
    assert {"mae", "rmse", "r2"} <= metrics["test"].keys() and {"mae", "rmse", "r2"} <= metrics["val"].keys()
    rows = table(place / "run" / "test_results.csv")
    error = [float(row["prediction"]) - float(row["target"]) for row in rows]
    assert np.mean(np.abs(error)) == pytest.approx(metrics["test"]["mae"], rel=1e-5)
    assert np.sqrt(np.mean(np.square(error))) == pytest.approx(metrics["test"]["rmse"], rel=1e-5)
    known = {record.id: record.targets[K] for record in records(20, (K, GAP))}
    assert all(float(row["target"]) == pytest.approx(known[row["id"]], rel=1e-5) for row in rows)
    assert parts(place / "run") == {"train": 16, "val": 2, "test": 2}
    assert load_model(place / "run").targets[0].unit == "GPa"
    for name in ("learning_curve.png", "parity.png", "README.md", "metrics.jsonl", "settings.json"):
        assert (place / "run" / name).stat().st_size, name


@pytest.mark.parametrize("strategy, seeds", [("full", 1), ("frozen", 2), ("head", 1), ("scratch", 1)])
def test_transfer_knows_every_strategy(place, tmp_path, strategy, seeds):
    arguments = ("--source", place / "run", "--strategy", strategy, "--target", K, "--seeds", seeds, "--val-size", 9)
    assert command("transfer", place / "ds", *arguments, "--epochs", 1, *BATCH, "--out", tmp_path / "out") == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert {"mae", "rmse", "r2"} <= metrics["test"].keys() & metrics["val"].keys()
    members = weights(tmp_path / "out")
    assert len(members) == seeds
    before = weights(place / "run")[0]["params/embedding/kernel"]
    kept = [np.array_equal(member["params/embedding/kernel"], before) for member in members]
    assert kept == [strategy in ("frozen", "head")] * seeds
    assert ("std" in table(tmp_path / "out" / "test_results.csv")[0]) == (seeds > 1)


def transferred(place, out, strategy, *arguments):
    """Exit status of a short transfer of the modulus."""
    given = ("--strategy", strategy, "--target", K, "--epochs", 1, *BATCH, *arguments)
    return command("transfer", place / "ds", *given, "--out", out)


@pytest.mark.parametrize("strategy", ["features:svr", "ensemble:keep_head+features:ridge"])
def test_transfer_of_other_kinds_can_be_predicted_with_and_reported(place, tmp_path, capsys, strategy):
    assert transferred(place, tmp_path / "run", strategy, "--source", place / "run", "--seeds", 1, "--val-size", 9) == 0
    printed = capsys.readouterr().out
    assert "90 % interval: ± " in printed and "coverage_90" in printed and strategy.split("+")[-1] in printed
    assert command("predict", tmp_path / "run", place / "crystals.jsonl", "--out", tmp_path / "p.csv") == 0
    assert {"id", "prediction", "low", "high", "novelty"} <= set(table(tmp_path / "p.csv")[0])
    assert command("report", tmp_path / "run") == 0


def test_a_blend_tells_what_it_chose_from(place, tmp_path, capsys):
    parts = "blend:keep_head+features:ridge"
    assert transferred(place, tmp_path / "run", parts, "--source", place / "run", "--val-size", 9) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if " weight " in line]
    assert [line[0] for line in lines] == ["keep_head", "features:ridge"]
    assert sum(float(line[2].rstrip("%")) for line in lines) == pytest.approx(100, abs=1)


def test_transfer_from_the_best_source(place, tmp_path, capsys, two_shipped):
    assert (
        transferred(place, tmp_path / "run", "features:ridge", "--source", "auto", "--sources", place, "--top", 1) == 0
    )
    printed = capsys.readouterr().out
    best = table(tmp_path / "run" / "source_ranking.csv")[0]["name"]
    assert "best first" in printed and f"features of {best}\n" in printed
    assert load_model(tmp_path / "run").sources.keys() == {best}


def test_transfer_from_several_named_sources(place, tmp_path, capsys):
    named = ("--source", place / "run", "--source", "mp-formation-energy", "--seed", 1)  # tests on others than the run
    assert transferred(place, tmp_path / "run", "features:ridge", *named) == 0
    assert list(load_model(tmp_path / "run").sources) == [str(place / "run"), "mp-formation-energy"]
    assert "test crystals have a formula that" in capsys.readouterr().out  # those of the run that is the source


def test_predict_tells_what_its_numbers_are_worth(place, tmp_path, capsys, caplog):
    sizes = ("--train-size", 11, "--val-size", 9, "--test-size", 0)
    assert (
        command("train", place / "ds", "--target", K, "--unit", "GPa", *sizes, *TRAIN, "--out", tmp_path / "run") == 0
    )
    capsys.readouterr()
    assert command("predict", tmp_path / "run", "textbook", "--out", tmp_path / "p.csv") == 0
    printed = capsys.readouterr().out
    assert f"{K}: 90 % interval: ± " in printed and "from 9 validation crystals" in printed
    assert "of 120 crystals have a formula that the model was trained on" in printed
    rows = table(tmp_path / "p.csv")
    far = [row["id"] for row in rows if float(row["novelty"]) > 1]
    assert f"{len(far)} of {len(rows)} crystals are farther from the training crystals" in caplog.text


def test_predict_writes_id_and_prediction(place, tmp_path):
    unlabelled = [record.__class__(record.id, record.structure, {}) for record in records(6)]
    write_lines(tmp_path / "new.jsonl", unlabelled)
    assert command("predict", place / "run", tmp_path / "new.jsonl", "--out", tmp_path / "sub" / "p.csv") == 0
    rows = table(tmp_path / "sub" / "p.csv")
    assert list(rows[0]) == ["id", "prediction", "novelty"]
    assert [row["id"] for row in rows] == [record.id for record in unlabelled]
    expected = predict(load_model(place / "run"), unlabelled).values[:, 0]
    np.testing.assert_allclose([float(row["prediction"]) for row in rows], expected, rtol=1e-5)


def test_predict_calls_crystals_as_it_is_told(place, tmp_path, said):
    write_lines(tmp_path / "c.jsonl", records(2), code=["first", "second"])
    asked = ("--id-column", "code", "--out", tmp_path / "p.csv")
    assert command("predict", place / "run", tmp_path / "c.jsonl", *asked) == 0
    assert [row["id"] for row in table(tmp_path / "p.csv")] == ["first", "second"]
    assert command("predict", place / "run", place / "ds", *asked) == 2
    assert "--id-column goes with prepare" in said()


def test_predict_takes_a_packed_dataset_and_writes_over_a_file(place, tmp_path):
    (tmp_path / "p.csv").write_text("id,prediction\nold,1\n")
    assert command("predict", place / "run", place / "ds", "--out", tmp_path / "p.csv") == 0
    assert len(table(tmp_path / "p.csv")) == 20


def test_an_ensemble_of_two_targets_predicts_one_column_and_one_std_each(place, tmp_path, pictures):
    """Also: any input is prepared on the way, and every target has its picture."""
    arguments = ("--target", K, "--target", GAP, "--seeds", 2, "--epochs", 1, *NETWORK, *BATCH)
    assert command("train", place / "crystals.jsonl", *arguments, "--out", tmp_path / "run") == 0
    assert command("predict", tmp_path / "run", place / "ds", "--out", tmp_path / "p.csv") == 0
    assert list(table(tmp_path / "p.csv")[0]) == [
        "id", f"prediction:{K}", f"std:{K}", f"prediction:{GAP}", f"std:{GAP}", "novelty",
    ]  # fmt: skip
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert set(metrics["targets"]) == {K, GAP} and metrics["test"] == metrics["targets"][K]["test"]
    assert len(list((tmp_path / "run").glob("parity_*.png"))) == 2


def test_a_classifier_predicts_one_column_for_each_class(place, tmp_path, pictures):
    arguments = ("--target", "hard", "--task", "classification", "--epochs", 1, *NETWORK, *BATCH)
    assert command("train", place / "crystals.jsonl", *arguments, "--out", tmp_path / "run") == 0
    assert command("predict", tmp_path / "run", place / "ds", "--out", tmp_path / "p.csv") == 0
    rows = table(tmp_path / "p.csv")
    assert list(rows[0]) == ["id", "prediction", "p_0", "p_1", "novelty"]
    for row in rows:
        p = float(row["p_0"]), float(row["p_1"])
        assert sum(p) == pytest.approx(1) and int(float(row["prediction"])) == int(np.argmax(p))
    assert "accuracy" in json.loads((tmp_path / "run" / "metrics.json").read_text())["test"]


def test_rank_sources_prints_and_writes_the_best_first(place, tmp_path, capsys, two_shipped):
    arguments = ("--target", K, "--transform", "log10", "--sources", place, "--out", tmp_path / "sub" / "ranks.csv")
    assert command("rank-sources", place / "ds", *arguments) == 0
    printed = capsys.readouterr()
    assert f"sources for log10 {K}, by their features on 16 labelled training crystals" in printed.out
    rows = table(tmp_path / "sub" / "ranks.csv")
    assert {row["name"] for row in rows} == {*find_sources(), "run"}
    errors = [float(row["ridge_mae"]) for row in rows]
    assert errors == sorted(errors) and rows[0]["property"] in printed.out.splitlines()[3]
    assert printed.err == ""  # no bar where nobody watches


def test_a_transfer_is_from_the_best_source_unless_one_is_named(place, tmp_path, two_shipped):
    arguments = ("--target", K, "--strategy", "features:ridge", "--top", 1, "--out", tmp_path / "run")
    assert command("transfer", place / "ds", *arguments) == 0
    best = table(tmp_path / "run" / "source_ranking.csv")[0]["name"]
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["source"] == best


def test_sources_of_other_graphs_are_passed_over(place, tmp_path, capsys, caplog, two_shipped):
    """A packed dataset has graphs of one kind; original checkpoints need others."""
    other = load_bundle(place / "run")
    other = replace(other, graph=replace(other.graph, ties="reference", legacy_padding=True))
    other.save(tmp_path / "own" / "original")
    arguments = ("--target", K, "--sources", tmp_path / "own")
    assert command("rank-sources", place / "ds", *arguments) == 0
    assert "original left out: the dataset was packed with other graph settings" in caplog.text
    assert " original " not in capsys.readouterr().out


def test_rank_sources_takes_raw_crystals_and_a_split(place, tmp_path, capsys, two_shipped):
    ids = load_dataset(place / "ds").ids
    (tmp_path / "split.json").write_text(json.dumps({"train": ids[:12], "test": ids[12:]}))
    arguments = ("--target", "hard", "--task", "classification", "--split", tmp_path / "split.json")
    assert command("rank-sources", place / "crystals.jsonl", *arguments) == 0
    assert "12 labelled training crystals" in capsys.readouterr().out


def test_the_other_verbs(place, tmp_path, capsys):
    assert command("report", place / "run", "--out", tmp_path / "page.html") == 0
    assert "GPa" in (tmp_path / "page.html").read_text()
    assert command("models") == 0
    printed = capsys.readouterr().out
    assert "property" in printed
    for name in shipped():
        assert re.search(rf"^{name} .* [1-9][\d,]* +(MAE|ROC-AUC) \d+\.\d{{3,4}}$", printed, re.MULTILINE), name


def write_cifs(folder, crystals):
    folder.mkdir()
    for record in crystals:
        Structure(*record.structure).to(str(folder / f"{record.id}.cif"))
    return folder


def test_the_three_commands_of_the_readme(place, tmp_path, monkeypatch):
    """With two small sources in place of the shipped ones, and a sheet in German that has more rows than crystals."""
    for name in ("one", "other"):
        load_bundle(place / "run").save(tmp_path / "zoo" / name)
    monkeypatch.setattr("tlcgcnn_jax.zoo.folder", lambda: tmp_path / "zoo")
    known = {record.id: record.targets[K] for record in records(24)}
    lines = ["id;Modul;Notiz", *(f"{name};{value:.3f};gut".replace(".", ",") for name, value in known.items())]
    (tmp_path / "sheet.csv").write_text("\n".join(lines))
    cifs, new = write_cifs(tmp_path / "cifs", records(24)[:20]), write_cifs(tmp_path / "new", records(24)[20:])
    given = ("--labels", tmp_path / "sheet.csv", "--target", "Modul", "--unit", "GPa", "--transform", "log10",
             "--source", "auto", "--strategy", "auto", "--out", tmp_path / "run")  # fmt: skip
    assert command("transfer", cifs, *given, "--val-size", 9, "--seed", 1, "--seeds", 1, "--epochs", 1, *BATCH) == 0
    assert {row["id"] for row in table(tmp_path / "run" / "skipped.csv")} == {record.id for record in records(24)[20:]}
    for row in table(tmp_path / "run" / "test_results.csv"):
        assert float(row["target"]) == pytest.approx(known[row["id"]], rel=1e-4)
    assert command("report", tmp_path / "run") == 0
    assert "Modul" in (tmp_path / "run" / "report.html").read_text()
    assert command("predict", tmp_path / "run", new, "--out", tmp_path / "predictions.csv") == 0
    rows = table(tmp_path / "predictions.csv")
    assert list(rows[0]) == ["id", "prediction", "std", "low", "high", "novelty"]
    assert {row["id"] for row in rows} == {record.id for record in records(24)[20:]}
    assert all(0 < float(row["low"]) < float(row["prediction"]) < float(row["high"]) for row in rows)


# --- the split ----------------------------------------------------------------------------------------


def test_a_split_file_is_followed(place, tmp_path):
    ids = load_dataset(place / "ds").ids
    (tmp_path / "split.json").write_text(json.dumps({"train": ids[:16], "val": ids[16:18], "test": ids[:15:-1][:2]}))
    arguments = ("--split", tmp_path / "split.json", "--target", K, *TRAIN)
    assert command("train", place / "ds", *arguments, "--out", tmp_path / "run") == 0
    assert [row["id"] for row in table(tmp_path / "run" / "test_results.csv")] == ids[:15:-1][:2]
    assert json.loads((tmp_path / "run" / "split.json").read_text())["train"] == ids[:16]


def test_a_run_without_a_test_part(place, tmp_path, pictures):
    arguments = ("--test-ratio", 0, "--val-size", 4, "--target", K, *TRAIN)
    assert command("train", place / "ds", *arguments, "--out", tmp_path / "run") == 0
    assert set(json.loads((tmp_path / "run" / "metrics.json").read_text())) == {"val", "train"}
    assert parts(tmp_path / "run") == {"train": 16, "val": 4, "test": 0}
    assert command("report", tmp_path / "run") == 0


SIZES = {
    "nothing given": (100, (), (80, 10, 10)),
    "ratios": (100, ("--train-ratio", 0.6, "--val-ratio", 0.2, "--test-ratio", 0.2), (60, 20, 20)),
    "sizes": (100, ("--train-size", 50, "--val-size", 5, "--test-size", 7), (50, 5, 7)),
    "mixed": (100, ("--train-size", 50, "--test-ratio", 0.3), (50, 10, 30)),
    "only a training size": (200, ("--train-size", 50), (50, 20, 20)),
    "a training size beyond the default": (100, ("--train-size", 90), (90, 5, 5)),
    "a training ratio beyond the default": (100, ("--train-ratio", 0.9), (90, 5, 5)),
    "all for training": (100, ("--train-ratio", 1), (100, 0, 0)),
    "a large test ratio": (90, ("--test-ratio", 0.5), (40, 5, 45)),
    "a large test size": (100, ("--test-size", 91), (8, 1, 91)),
    "a test size with default shares": (100, ("--test-size", 5), (85, 10, 5)),
    "no validation": (10, ("--val-ratio", 0), (9, 0, 1)),
    "neither validation nor test": (101, ("--val-size", 0, "--test-size", 0), (101, 0, 0)),
    "a training share of those": (100, ("--train-ratio", 0.5, "--val-size", 0, "--test-size", 0), (50, 0, 0)),
    "few crystals": (10, ("--train-size", 4), (4, 1, 1)),
}


@pytest.mark.parametrize("n, arguments, expected", SIZES.values(), ids=SIZES.keys())
def test_parts_that_are_not_given_take_what_is_left(n, arguments, expected):
    parser = cli.make_parser()
    given = parser.parse_args(["train", "d", "--out", "r", *map(str, arguments)])
    split = random_split(n, 0, **options.part_sizes(given, parser, n))
    assert (len(split.train), len(split.val), len(split.test)) == expected


# --- exit statuses ------------------------------------------------------------------------------------

USAGE = {
    "no verb": ((), "required: VERB"),
    "unknown verb": (("fly",), "invalid choice: 'fly'"),
    "unknown option": (("train", "DS", "--out", "OUT", "--fast"), "--fast"),
    "no output": (("train", "DS"), "--out"),
    "not a number": (("train", "DS", "--out", "OUT", "--epochs", "many"), "--epochs"),
    "no epochs": (("train", "DS", "--out", "OUT", "--epochs", 0), "epochs is 0"),
    "no seeds": (("train", "DS", "--out", "OUT", "--seeds", 0), "--seeds: it is '0': a whole number"),
    "no workers": (("study", "study.toml", "--out", "OUT", "--workers", 0), "--workers: it is '0': a whole number"),
    "labels without a target": (("prepare", "JSONL", "--labels", "SHEET", "--out", "OUT"), "no --target COLUMN"),
    "no path": (("train", "DS", "--out", ""), "--out: found an empty path"),
    "shares without commas": (("train", "DS", "--out", "OUT", "--milestones", "0.5;0.8"), "numbers with commas"),
    "unknown ties": (("prepare", "JSONL", "--target", K, "--out", "OUT", "--ties", "half"), "ties is 'half': use"),
    "unknown optimiser": (("train", "DS", "--out", "OUT", "--optimizer", "lion"), "optimizer is 'lion': use 'adamw'"),
    "a milestone past the end": (("train", "--milestones", "0.5,9", "DS", "--out", "OUT"), "milestones are (0.5, 9.0)"),
    "a target twice": (("train", "DS", "--target", K, "--target", K, "--out", "OUT"), f"--target {K} is given 2 times"),
    "a target to pack twice": (
        ("prepare", "JSONL", "--target", K, "--target", K, "--out", "OUT"),
        f"--target {K} is given 2 times",
    ),
    "no width": (("train", "DS", "--out", "OUT", "--width", 0), "width is 0"),
    "negative cutoff": (("prepare", "JSONL", "--target", K, "--out", "OUT", "--cutoff", -1), "cutoff is -1"),
    "raw input without target": (("train", "JSONL", "--out", "OUT"), "--target"),
    "ratio and size": (("train", "DS", "--out", "OUT", "--val-ratio", 0.1, "--val-size", 2), "one of them"),
    "ratio above one": (("train", "DS", "--out", "OUT", "--val-ratio", 1.5), "--val-ratio is 1.5"),
    "negative size": (("train", "DS", "--out", "OUT", "--val-size", -1), "--val-size is -1"),
    "split and ratio": (("train", "DS", "--out", "OUT", "--split", "s.json", "--val-ratio", 0.1), "--split"),
    "two units for three targets": (("train", "DS", "--out", "OUT", "--unit", "a", "--unit", "b", "--unit", "c"), "3 "),
    "one class": (("train", "DS", "--out", "OUT", "--task", "classification", "--classes", 1), "1 classes"),
    "graph options beside a dataset": (("train", "DS", "--out", "OUT", "--cutoff", 5), "go with prepare"),
    "a cutoff that is the default of others": (("train", "DS6", "--out", "OUT", "--cutoff", 8), "go with prepare"),
    "neighbours that are": (("train", "DS6", "--out", "OUT", "--neighbours", 12), "go with prepare"),
    "labels beside a dataset": (("train", "DS", "--out", "OUT", "--labels", "sheet.csv"), "go with prepare"),
    "ranking for two targets": (("rank-sources", "DS"), "one --target"),
    "ranking with a seed below zero": (("rank-sources", "DS", "--target", K, "--seed", -1), "--seed is -1"),
    "ranking without target": (("rank-sources", "JSONL"), "--target"),
    "unknown strategy": (("transfer", "DS", "--source", "RUN", "--strategy", "half", "--out", "OUT"), "full, frozen"),
    "unknown regressor": (
        ("transfer", "DS", "--source", "RUN", "--strategy", "features:svm", "--out", "OUT"),
        "mean, median, ridge",
    ),
    "an ensemble of one": (
        ("transfer", "DS", "--source", "RUN", "--strategy", "ensemble:full", "--out", "OUT"),
        "at least two",
    ),
    "a layer of no network": (
        ("transfer", "DS", "--source", "RUN", "--strategy", "freeze:conv_x", "--out", "OUT"),
        "no strategy",
    ),
    "no sources taken": (("transfer", "DS", "--source", "RUN", "--top", 0, "--out", "OUT"), "--top: it is '0'"),
    "auto beside a name": (
        ("transfer", "DS", "--source", "auto", "--source", "RUN", "--out", "OUT"),
        "leave the other --source out",
    ),
    "sources without auto": (
        ("transfer", "DS", "--source", "RUN", "--sources", "DS", "--out", "OUT"),
        "--sources goes with --source auto",
    ),
    "negative rate": (("transfer", "DS", "--source", "RUN", "--rate", "conv_*=-1", "--out", "OUT"), "PATTERN=X"),
    "on-error of another kind": (("predict", "RUN", "JSONL", "--out", "OUT", "--on-error", "ignore"), "--on-error"),
}


@pytest.mark.parametrize("arguments, message", USAGE.values(), ids=USAGE.keys())
def test_bad_usage_ends_with_two(place, tmp_path, said, arguments, message):
    if "DS6" in arguments:
        graph = GraphConfig(cutoff=6, neighbours=10)
        build_dataset(records(3), targets=(K,), graph=graph, out=tmp_path / "ds6")
    names = {
        "DS6": tmp_path / "ds6",
        "DS": place / "ds",
        "JSONL": place / "crystals.jsonl",
        "RUN": place / "run",
        "OUT": tmp_path / "out",
    }
    assert command(*(names.get(argument, argument) for argument in arguments)) == 2
    error = said()
    assert message in error and "Traceback" not in error
    verb = "" if arguments in ((), ("fly",)) else f" {arguments[0]}"
    assert error.startswith(f"usage: tlcgcnn{verb} [-h]")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["prepare", "train", "transfer", "predict", "rank-sources"])
@pytest.mark.parametrize("choice", ["raise", "skip"])
def test_every_verb_that_reads_crystals_takes_on_error(verb, choice):
    arguments = {"transfer": ["d", "--source", "m"], "predict": ["m", "i"]}.get(verb, ["d"])
    given = cli.make_parser().parse_args([verb, *arguments, "--out", "o", "--on-error", choice])
    assert given.on_error == choice


def test_settings_of_graphs_that_are_not_asked_for_are_those_of_the_dataset(tmp_path):
    build_dataset(records(12), targets=(K,), graph=GraphConfig(cutoff=6, neighbours=10), out=tmp_path / "ds")
    assert command("train", tmp_path / "ds", *TRAIN, "--cutoff", 6, "--out", tmp_path / "run") == 0
    assert load_bundle(tmp_path / "run").graph.neighbours == 10


@pytest.mark.parametrize("verb", ["prepare", "train", "transfer", "predict", "rank-sources"])
def test_help_tells_what_is_done_with_bad_crystals(verb, capsys):
    """`prepare` packs what can be used, however little that is."""
    assert command(verb, "--help") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert ("(default: skip, unless these are most)" in printed) == (verb != "prepare")
    assert ("(default: skip)" in printed) == (verb == "prepare")


def test_in_a_process_of_its_own(place, tmp_path):
    """The exit status reaches the shell, and stderr holds one message and no traceback."""
    tell = [sys.executable, "-m", "tlcgcnn_jax.cli", "predict"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    out = tmp_path / "p.csv"
    whole = [*tell, place / "run", place / "ds", "--out", out]
    done = subprocess.run(whole, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and len(table(out)) == 20
    assert not done.stderr or re.fullmatch(r"tlcgcnn: \d+ of 20 crystals are farther from .*\n", done.stderr)
    absent = [*tell, "no-such-model", place / "ds", "--out", out]
    done = subprocess.run(absent, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("tlcgcnn: error: no-such-model: neither a folder nor a shipped model")
    assert done.stderr.count("\n") == 1


def test_a_full_disk_is_told_in_one_line(place, tmp_path, said, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "weights.npz")

    monkeypatch.setattr("tlcgcnn_jax.evaluate.predict", full)
    assert command("predict", place / "run", place / "ds", "--out", tmp_path / "p.csv") == 1
    assert said() == "tlcgcnn: error: weights.npz: No space left on device\n"


# --- interrupt and resume -----------------------------------------------------------------------------


def saved_epochs(monkeypatch, interrupt_after=None):
    """Epochs at which checkpoints are handed over; Ctrl-C once there are so many."""
    save, done = checkpoint.Checkpoints.save, []

    def save_and_stop(self, *arguments):
        save(self, *arguments)
        done.append(arguments[0])
        if len(done) == interrupt_after:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(checkpoint.Checkpoints, "save", save_and_stop)
    return done


@pytest.mark.parametrize("seeds, saves", [(1, 2), (2, 4)], ids=["first network", "second network"])
def test_an_interrupted_run_resumes_to_the_same_bits(place, tmp_path, said, monkeypatch, seeds, saves):
    again = ("train", place / "ds", "--target", K, *NETWORK, "--epochs", 3, "--seeds", seeds, *BATCH)
    assert command(*again, "--out", tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        saved_epochs(patch, saves)
        assert command(*again, "--out", tmp_path / "cut") == 130
    error = said()
    assert "interrupted" in error and "--resume" in error and "Traceback" not in error
    assert not (tmp_path / "cut" / "metrics.json").exists()
    assert command(*again, "--out", tmp_path / "cut") == 1  # not without being told to
    assert "--resume" in said()
    assert command("report", tmp_path / "cut") == 1
    assert "not finished" in said()
    with monkeypatch.context() as patch:
        saved = saved_epochs(patch)
        assert command(*again, "--out", tmp_path / "cut", "--resume") == 0
    assert saved == ([3] if seeds == 1 else [2, 3])  # what came before was not trained again
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")
    for name in ("metrics.json", "test_results.csv"):
        assert (tmp_path / "whole" / name).read_text() == (tmp_path / "cut" / name).read_text(), name


@pytest.mark.parametrize("strategy", ["head_then_full", "ensemble:frozen+full", "blend:full+frozen"])
def test_an_interrupted_transfer_resumes_to_the_same_bits(place, tmp_path, said, monkeypatch, strategy):
    """It goes on after the first epoch of the second phase or part; a blend deals its crystals."""
    monkeypatch.setattr(many, "CHUNK", 1)
    dealt = strategy.startswith("blend")
    data = write_lines(tmp_path / "more.jsonl", records(34)) if dealt else place / "ds"
    again = ("transfer", data, "--target", K, "--source", place / "run", "--strategy", strategy,
             "--seeds", 3 if dealt else 2, *BATCH, "--epochs", 4)  # fmt: skip
    assert command(*again, "--out", tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        before = saved_epochs(patch, 2 if strategy == "head_then_full" else 5)
        assert command(*again, "--out", tmp_path / "cut") == 130
    assert before == ([1, 1] if strategy == "head_then_full" else [1, 2, 3, 4, 1])
    assert "the same command with --resume goes on" in said()
    assert ("folds" in json.loads((tmp_path / "cut" / "settings.json").read_text())) == dealt
    assert command(*again, "--out", tmp_path / "cut") == 1
    assert "--resume" in said()
    after = saved_epochs(monkeypatch)
    assert command(*again, "--out", tmp_path / "cut", "--resume") == 0
    assert after == ([2, 3] if strategy == "head_then_full" else [2, 3, 4])
    inner = [path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("weights.npz")]
    for name in (*inner, "metrics.json", "test_results.csv", "metrics.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes(), name


def test_an_interrupted_study_goes_on_by_the_same_command(tmp_path, said, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("tlcgcnn_jax.study.run_study", interrupted)
    assert command("study", tmp_path / "study.toml", "--out", tmp_path / "out") == 130
    assert said() == "\ntlcgcnn: interrupted; the same command goes on\n"


def test_a_finished_run_is_not_trained_again(place, said, monkeypatch):
    before = (place / "run" / "weights.npz").read_bytes()
    monkeypatch.setattr(training, "train_scan", lambda *_: pytest.fail("trained again"))
    arguments = ("train", place / "ds", "--target", K, "--unit", "GPa", *TRAIN, "--resume", "--out", place / "run")
    assert command(*arguments) == 0
    assert (place / "run" / "weights.npz").read_bytes() == before


OTHER = {
    "epochs": ("--epochs", 9),
    "seed": ("--seed", 3),
    "width": ("--width", 4),
    "split": ("--test-size", 3),
}


@pytest.mark.parametrize("changed", OTHER.values(), ids=OTHER.keys())
def test_a_run_is_not_resumed_with_other_settings(place, said, changed):
    arguments = ("train", place / "ds", "--target", K, "--unit", "GPa", *TRAIN, "--resume", "--out", place / "run")
    assert command(*arguments, *changed) == 1
    assert "cannot be resumed with" in said()


def test_nothing_is_resumed_in_a_folder_of_other_things(place, tmp_path, said):
    (tmp_path / "thesis.tex").write_text("")
    assert command("train", place / "ds", "--target", K, *TRAIN, "--resume", "--out", tmp_path) == 1
    assert "holds no run to resume" in said()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_interrupted_command_ends_at_once():
    """Whatever threads are still at work."""
    code = (
        "import threading, time; from tlcgcnn_jax import cli; cli.main = lambda: print('told') or 130; "
        "threading.Thread(target=time.sleep, args=(60,)).start(); cli.run()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (130, "told\n", "")


@pytest.mark.parametrize("verb", ["train", "transfer"])
def test_every_setting_is_explained(verb, capsys):
    """By the docstring of the settings."""
    assert command(verb, "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--epochs EPOCHS Passes over the training crystals (default: 100)" in text
    assert '--milestones X,X Shares of all updates after which "step" multiplies' in text
    actions = cli.make_parser().parse_args([verb, "d", "--out", "r"]).parser._actions
    assert [one.dest for one in actions if (one.help or "(").startswith("(")] == []  # each with more than its default
    assert ("--cutoff CUTOFF Largest neighbour distance, in Å (default: 8.0)" in text) == (verb == "train")


def test_version(capsys):
    assert command("--version") == 0
    assert re.fullmatch(r"tlcgcnn \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_a_table_replaces_no_other_file(place, tmp_path, said):
    """Not the crystals that were given, nor a sheet of labels; an older table of predictions."""
    crystals = tmp_path / "crystals.jsonl"
    crystals.write_text(before := (place / "crystals.jsonl").read_text())
    for verb, what in (("predict", "a table of predictions"), ("rank-sources", "a ranking of sources")):
        given = (place / "run", crystals) if verb == "predict" else (crystals, "--target", K)
        assert command(verb, *given, "--out", crystals) == 1
        assert f"crystals.jsonl: is there, and is not {what}: choose another file" in said()
        assert crystals.read_text() == before


def test_a_device_that_is_not_there_is_told_in_one_line(place, tmp_path, said, monkeypatch):
    def nowhere():
        raise RuntimeError("Unable to initialize backend 'cuda'\nin many\nlines")

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(jax, "devices", nowhere)
    assert command("predict", place / "run", place / "crystals.jsonl", "--out", tmp_path / "p.csv") == 1
    message = said()
    assert "JAX_PLATFORMS is 'cuda', and JAX finds no such device" in message and message.count("\n") == 1


def test_few_updates_are_told(place, tmp_path, caplog, monkeypatch):
    """One an epoch, where few crystals are in batches for thousands: before anything is trained."""

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(plans.NetworksPlan, "make", interrupted)
    assert command("train", place / "ds", "--epochs", 1, *NETWORK, "--out", tmp_path / "run") == 130
    told = [record.getMessage() for record in caplog.records if "updates" in record.getMessage()]
    assert len(told) == 1 and told[0].startswith(
        "1 updates of the weights (16 training crystals, batch size 128, epochs 1)"
    )
    assert "smaller batches (--batch-size)" in told[0]


def test_a_list_of_skipped_crystals_does_not_outlive_them(place, tmp_path):
    good = (place / "crystals.jsonl").read_text()
    given, out = tmp_path / "some.jsonl", tmp_path / "out.csv"
    for text, skipped in ((good + '{"id": "bad"}\n', True), (good, False)):
        given.write_text(text)
        assert command("predict", place / "run", given, "--out", out, "--on-error", "skip") == 0
        assert (tmp_path / "out.skipped.csv").exists() == skipped
