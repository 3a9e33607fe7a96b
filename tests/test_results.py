"""A study's folder gives back what was put in, survives a kill, and refuses what does not belong there."""

from dataclasses import fields, replace

import made_up_study
import numpy as np
import pytest

from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.files import only_one
from tlcgcnn_jax.results import (
    Crystals,
    Row,
    RunPredictions,
    StudyResults,
    check_study,
    file_name,
    start_study,
)

ROW = Row(
    "gap-full-50-0", "gap", "mp-formation-energy+mp-band-gap", 21003, "features:svr", "transfer", 50, 0, 2e-3, 80, 160,
    0.41, 0.123456789, 0.6, 0.3, 0.85, 3, 0.25, 1.5, "a processor, of 2 cores",
)  # fmt: skip
PREDICTIONS = RunPredictions(
    np.array([2, 0, 3]), np.array([1.25, 0.5, -2.0]), np.array([0.1, np.nan, 0.3]),
    np.array([1]), np.array([7.0]), np.array([np.nan]),
)  # fmt: skip
CRYSTALS = Crystals(["a", 'b, "c"', "d", "é"], ["NaCl", "Si", "Si", "GaAs"], np.array([1.0, 2.0, 1 / 3, -4.0]))
STUDY = {
    "title": "t",
    "targets": [{"name": "gap", "unit": "eV"}],
    "settings": {"sizes": (50, 100), "seeds": 3, "rate": float("inf")},
}


def start(folder, **changes):
    return start_study(folder, STUDY | {"settings": STUDY["settings"] | changes}, {"gap": CRYSTALS})


@pytest.fixture
def folder(tmp_path):
    """A study of two runs."""
    results = start(tmp_path / "study")
    results.add(ROW, PREDICTIONS)
    results.add(replace(ROW, run="other", seed=1, learning_rate=float("nan"), source=""), PREDICTIONS)
    return tmp_path / "study"


def test_round_trip(folder):
    results = StudyResults(folder)
    assert results.targets == {"gap": "eV"}
    first, second = results.rows
    assert replace(first, test_mae=0) == replace(ROW, test_mae=0)
    assert first.test_mae == pytest.approx(ROW.test_mae, rel=1e-6)
    assert np.isnan(second.learning_rate) and second.source == ""
    assert [row.run for row in results.select(strategy="features:svr", seed=1)] == ["other"]
    found = results.predictions("other")
    for field in fields(RunPredictions):
        np.testing.assert_allclose(getattr(found, field.name), getattr(PREDICTIONS, field.name), rtol=1e-6)
    assert found.test_rows.dtype.kind == "i"
    crystals = results.crystals("gap")
    assert (crystals.ids, crystals.formulas) == (CRYSTALS.ids, CRYSTALS.formulas)
    np.testing.assert_allclose(crystals.values, CRYSTALS.values, rtol=1e-8)


def test_other_labels_are_another_study(folder):
    for changed in ({"values": 2 * CRYSTALS.values}, {"ids": [*CRYSTALS.ids[:-1], "f"]}):
        with pytest.raises(InputError, match="begun with other crystals or labels of gap"):
            start_study(folder, STUDY, {"gap": replace(CRYSTALS, **changed)})


def test_a_run_that_was_written_twice_counts_once(folder):
    path = folder / "results.csv"
    path.write_text(path.read_text() + path.read_text().split("\n", 1)[1])
    assert [row.run for row in StudyResults(folder).rows] == [ROW.run, "other"]


def test_structures_that_have_changed_are_refused(tmp_path):
    start_study(tmp_path / "other", STUDY, {"gap": replace(CRYSTALS, volumes="a")})
    start_study(tmp_path / "other", STUDY, {"gap": replace(CRYSTALS, volumes="a")})
    with pytest.raises(InputError, match="begun with other structures of gap"):
        start_study(tmp_path / "other", STUDY, {"gap": replace(CRYSTALS, volumes="b")})


def test_seeds_are_added_and_not_taken_away(tmp_path):
    for seeds in (2, 3):
        start(tmp_path / "other", seeds=seeds)
    with pytest.raises(InputError, match=r"other settings \(fewer seeds\)"):
        start(tmp_path / "other", seeds=2)


def test_an_own_strategy_stays_what_it_was(folder, tmp_path):
    mine = {"name": "mine", "rates": [["*", 1.0]]}
    start(tmp_path / "other", own=[mine])
    start(tmp_path / "other", own=[mine, {"name": "more", "rates": []}])
    with pytest.raises(InputError, match=r"other settings \(own strategy mine\)"):
        start(tmp_path / "other", own=[{**mine, "rates": [["*", 0.5]]}])


def test_same_study_goes_on(folder):
    results = start(folder)
    assert len(results.rows) == 2
    results.add(replace(ROW, run="third"), PREDICTIONS)
    assert [row.run for row in StudyResults(folder).rows] == [ROW.run, "other", "third"]


@pytest.mark.parametrize("kept", [0, 5, 300, -20, -1])
def test_a_kill_while_writing_loses_that_run_only(folder, kept):
    """Cut within the header, within the first row, within the last row and just before its end of line."""
    path = folder / "results.csv"
    whole = path.read_bytes()
    path.write_bytes(whole[:kept])
    lines = whole[:kept].count(b"\n")
    assert len(StudyResults(folder).rows) == max(lines - 1, 0)
    results = start(folder)
    results.add(replace(ROW, run="next"), PREDICTIONS)
    assert [row.run for row in StudyResults(folder).rows] == [ROW.run, "other"][: max(lines - 1, 0)] + ["next"]


def test_a_start_that_was_cut_short(tmp_path):
    start(tmp_path / "study")
    (tmp_path / "study" / "study.json").unlink()
    assert start(tmp_path / "study").targets == {"gap": "eV"}


def test_refuses_a_run_twice(folder):
    with pytest.raises(InputError, match="run other is there already"):
        StudyResults(folder).add(replace(ROW, run="other"), PREDICTIONS)


def test_refuses_another_study(folder, tmp_path):
    with pytest.raises(InputError, match=r"other settings \(new, sizes\).*another folder"):
        start(folder, sizes=(50,), new=1)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("my only copy")
    with pytest.raises(InputError, match="no study"):
        start(tmp_path / "thesis")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        start(tmp_path / "file")


def test_one_study_at_a_time(tmp_path):
    study = tmp_path / "study"
    with only_one(study, "study"):
        with pytest.raises(InputError, match="a study is at work here; wait until"), only_one(study, "study"):
            pass
        assert not check_study(study, {})  # which takes it for a folder of its own
    with only_one(study, "study"):
        pass
    assert not list(study.iterdir())  # a training may begin there
    with only_one(tmp_path / "other", "study"), only_one(tmp_path / "third", "study"):
        pass


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


DAMAGES = {
    "study": ("study.json", cut, r"study\.json: damaged"),
    "columns": ("results.csv", lambda data: data.replace(b"test_mae", b"mae", 1), r"results\.csv: its columns"),
    "number": ("results.csv", lambda data: data.replace(b",50,0,", b",many,0,", 1), r"results\.csv:2: damaged.*many"),
    "cell": ("results.csv", lambda data: data[:-1] + b",1\n", r"results\.csv:3: damaged"),
    "predictions": ("predictions/other.npz", cut, r"other\.npz: predictions missing or damaged"),
    "no predictions": ("predictions/other.npz", None, r"other\.npz: predictions missing or damaged"),
    "crystals": ("crystals/gap.csv", lambda data: data.replace(b"value", b"energy"), r"gap\.csv: missing or damaged"),
    "no crystals": ("crystals/gap.csv", None, r"gap\.csv: missing or damaged"),
}


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_named(folder, name, damage, message):
    path = folder / name
    if damage:
        path.write_bytes(damage(path.read_bytes()))
    else:
        path.unlink()

    def read():
        results = StudyResults(folder)
        results.predictions("other")
        results.crystals("gap")

    with pytest.raises(InputError, match=message):
        read()


def test_names_of_files():
    assert file_name("log10(K) / GPa") == "log10_K_GPa"
    assert file_name("../../etc/passwd") == ".._.._etc_passwd"


def test_made_up_study(tmp_path):
    results = made_up_study.write(tmp_path / "study", targets=["band_gap"], sizes=(50,), seeds=2, n_test=20, n_val=10)
    assert len(results.rows) == 2 * len(made_up_study.WAYS)
    crystals = results.crystals("band_gap")
    for row in StudyResults(tmp_path / "study").rows:
        found = results.predictions(row.run)
        errors = np.abs(found.test - crystals.values[found.test_rows])
        assert errors.mean() == pytest.approx(row.test_mae, rel=1e-4) and len(errors) == row.test_n
        parts = ({crystals.formulas[i] for i in rows} for rows in (found.test_rows, found.val_rows))
        assert not set.intersection(*parts)
