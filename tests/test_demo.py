"""The demonstration, cut short: every part of it is there and consistent."""

import json
from dataclasses import replace

import numpy as np
import pytest
from tiny import command

from tlcgcnn_jax import InputError, load_model, predict, textbook_records
from tlcgcnn_jax.demo import CONFIG, LEARNING_RATES, TASKS, demo


@pytest.fixture(scope="module")
def shortened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "out"
    return folder, demo(folder, repeats=2, folds=3, config=replace(CONFIG, epochs=2))


def test_rows_are_complete(shortened):
    folder, content = shortened
    assert json.loads((folder / "demo.json").read_text()) == content
    assert [(row["target"], row["strategy"]) for row in content["rows"]] == [
        (title, strategy) for title, _ in TASKS for strategy in LEARNING_RATES
    ]
    for row in content["rows"]:
        assert len(row["mae"]) == 2 and np.all(np.isfinite(row["mae"]))
        assert row["strategy"] == "scratch" or row["gain_low"] <= row["gain_percent"] <= row["gain_high"]


def test_picture_and_report_are_drawn(shortened):
    folder, _ = shortened
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert "Bulk modulus" in (folder / "report.html").read_text()


@pytest.mark.parametrize("target", [target for _, target in TASKS], ids=lambda target: target.name)
def test_models_predict(shortened, target):
    folder, _ = shortened
    model = load_model(folder / f"model-{target.name}")
    predictions = predict(model, textbook_records(())[:5])
    assert predictions.values.shape == (5, 1) and np.all(np.isfinite(predictions.values))


def test_source_saw_no_formula_of_the_demonstration():
    assert "textbook" in load_model("mp-formation-energy").notes["left out"]


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match="exists and holds other things"):
        demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_no_repeats_are_bad_usage(tmp_path, capsys):
    assert command("demo", "--repeats", 0, "--out", tmp_path / "out") == 2
    assert "argument --repeats: it is '0': a whole number from 1 on was expected" in capsys.readouterr().err


def test_no_repeats_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match="repeats is 0"):
        demo(tmp_path / "out", repeats=0)
    assert not (tmp_path / "out").exists()
