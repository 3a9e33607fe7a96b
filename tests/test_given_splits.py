"""A study on given splits, and one that learns a logarithm: the same crystals, sizes and numbers as told."""

import dataclasses
import gzip
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import tiny

from tlcgcnn_jax import study as study_file
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.results import StudyResults
from tlcgcnn_jax.study import run_study
from tlcgcnn_jax.study_config import StudyConfig, StudyTarget

K = StudyTarget("k.jsonl", tiny.K, name="K", unit="GPa", learn="log", splits="splits.json.gz")
STUDY = StudyConfig(
    (K, dataclasses.replace(K, name="log K", learn="identity", transform="log")),
    sources=(),
    pool="pool",
    strategies=("features:ridge@all", "keep_head@auto"),
    baselines=("ridge",),
    seeds=2,
    learning_rates=(1e-3, 1e-2),
    epochs=2,
    least_updates=1,
    batch_size=8,
    model=tiny.MODEL,
)
WAYS = ("scratch", "ridge", "features:ridge", "keep_head")
CRYSTALS = tiny.records(30)
IDS = [record.id for record in CRYSTALS]
UNLABELLED = "no-label"
SPLITS = [
    {"train": [*IDS[:12], UNLABELLED], "val": IDS[12:18], "test": IDS[18:26]},
    {"train": IDS[10:30], "test": IDS[:6]},
]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    nothing = dataclasses.replace(CRYSTALS[0], id=UNLABELLED, targets={tiny.K: None})
    tiny.write_lines(folder / "k.jsonl", [*CRYSTALS, nothing])
    (folder / "splits.json.gz").write_bytes(gzip.compress(json.dumps(SPLITS).encode()))
    tiny.source().save(folder / "pool" / "gap")
    return folder


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> StudyResults:
    found = pytest.MonkeyPatch()
    found.setattr("tlcgcnn_jax.zoo.shipped", lambda: ())  # the pool alone: the shipped ones would be embedded as well
    out = tmp_path_factory.mktemp("study") / "out"
    run_study(STUDY, out, data=data, workers=1)
    found.undo()
    return StudyResults(out)


def test_crystals_are_those_of_the_file(finished):
    ids = finished.crystals("K").ids
    assert len(finished.rows) == 2 * len(WAYS) * 2
    for row in finished.rows:
        found = finished.predictions(row.run)
        tested, validated = ([ids[i] for i in rows] for rows in (found.test_rows, found.val_rows))
        assert tested == SPLITS[row.seed]["test"]
        if row.seed == 0:
            assert validated == SPLITS[0]["val"]
        else:  # drawn from the training crystals, a quarter of what is left
            assert set(validated) < set(SPLITS[1]["train"]) and len(validated) == 4


def test_the_size_is_that_of_the_largest_split(finished):
    assert {row.size for row in finished.rows} == {16}  # 20 - 4; the other one trains on 12


def test_a_learnt_logarithm_is_turned_back(finished):
    """Learning log K and reporting K is reporting log K and turning it back outside of the study."""
    logarithms = finished.crystals("log K").values
    np.testing.assert_allclose(finished.crystals("K").values, np.exp(logarithms), rtol=1e-5)
    for way in WAYS:
        for seed in range(2):
            (learnt,) = finished.select(target="K", strategy=way, seed=seed)
            (told,) = finished.select(target="log K", strategy=way, seed=seed)
            inside, outside = finished.predictions(learnt.run), finished.predictions(told.run)
            np.testing.assert_allclose(inside.test, np.exp(outside.test), rtol=1e-4)
            np.testing.assert_allclose(inside.val, np.exp(outside.val), rtol=1e-4)
            errors = np.abs(np.exp(outside.test) - np.exp(logarithms[outside.test_rows]))
            assert learnt.test_mae == pytest.approx(errors.mean(), rel=1e-3) and learnt.test_mae > 1  # GPa
            np.testing.assert_equal(learnt.learning_rate, told.learning_rate)


def test_what_is_dropped_is_counted(data, tmp_path, caplog):
    def nothing(*_):
        raise InputError("far enough")

    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(study_file, "run_tasks", nothing)
        with pytest.raises(InputError, match="far enough"):
            run_study(STUDY, tmp_path / "out", data=data)
    assert "splits.json.gz: 1 of its crystals cannot be used" in caplog.text


def test_goes_on_with_the_same_splits_only(finished, data, monkeypatch):
    monkeypatch.setattr("tlcgcnn_jax.zoo.shipped", lambda: ())
    monkeypatch.setattr(study_file, "work", None)
    run_study(STUDY, finished.folder, data=data, workers=1)  # nothing left to do
    kept = (data / "splits.json.gz").read_bytes()
    (data / "splits.json.gz").write_text(json.dumps([SPLITS[0], {**SPLITS[1], "test": IDS[:5]}]))
    try:
        with pytest.raises(InputError, match="other splits"):
            run_study(STUDY, finished.folder, data=data, workers=1)
    finally:
        (data / "splits.json.gz").write_bytes(kept)


BAD = {
    "more seeds than splits": ({"seeds": 3}, {}, None, "2 splits for seeds = 3"),
    "too large a size": ({}, {"sizes": (8, 17)}, None, "16 crystals to train on at most"),
    "every source left out": ({}, {"leave_out": ("*",)}, None, "no source is left"),
    "a value without a logarithm": ({}, {"column": "minus"}, None, "positive values, found -"),
    "an unknown id": ({}, {}, [{"train": IDS[:9], "test": ["x", "y"]}], "split 0, names x, y"),
    "one split, not a list": ({}, {}, SPLITS[0], "not a list of splits"),
}


@pytest.mark.parametrize(("study", "target", "splits", "told"), BAD.values(), ids=BAD)
def test_refused_before_any_run(data, tmp_path, study, target, splits, told):
    tiny.write_lines(tmp_path / "k.jsonl", CRYSTALS, minus=[-1.0] * len(CRYSTALS))
    named = SPLITS if splits is None else splits
    (tmp_path / "splits.json.gz").write_text(json.dumps(named).replace(UNLABELLED, IDS[18 + 8]))
    one = dataclasses.replace(STUDY, targets=(dataclasses.replace(K, **target),), pool="shipped", **study)
    with pytest.raises(InputError, match=told):
        run_study(one, tmp_path / "out", data=tmp_path)
    assert not (tmp_path / "out" / "results.csv").exists()


def test_a_pool_of_the_shipped_models(data, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(study_file, "find_sources", lambda own: asked.append(own) or {"gap": tiny.source()})
    monkeypatch.setattr(study_file, "run_tasks", lambda *_: [])
    monkeypatch.setattr(study_file, "conclude", lambda folder: None)
    run_study(dataclasses.replace(STUDY, pool="shipped"), tmp_path / "out", data=data)
    assert asked == [None]
