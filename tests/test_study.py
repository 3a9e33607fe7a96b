"""Whole studies, so small that they take seconds: every run once, whatever happens, and the same numbers again."""

import csv
import dataclasses
import functools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from extras import needs

from tlcgcnn_jax import feature_model, many, study_work
from tlcgcnn_jax import study as study_file
from tlcgcnn_jax.baselines import baseline_predictions
from tlcgcnn_jax.blending import choose_weights
from tlcgcnn_jax.bundle import load_bundle
from tlcgcnn_jax.config import to_dict
from tlcgcnn_jax.crystal import formula
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.files import only_one
from tlcgcnn_jax.results import StudyResults, check_study
from tlcgcnn_jax.run import transfer
from tlcgcnn_jax.strategies import find_strategy
from tlcgcnn_jax.study import run_study
from tlcgcnn_jax.study_config import StudyConfig, StudySource, StudyTarget, learnt_target
from tlcgcnn_jax.study_desk import Desk
from tlcgcnn_jax.study_grid import Cell
from tlcgcnn_jax.study_work import Task, work

ENSEMBLE = "ensemble:full@gap+ridge"
BLEND = "blend:full@gap+ridge+scratch"
STUDY = StudyConfig(
    (StudyTarget("k.jsonl", tiny.K, name="K", unit="log10 GPa", transform="log10"),),
    sources=(StudySource("source", name="gap"),),
    pool="pool",
    strategies=("full", "features:ridge@auto", "multi_source_gate", ENSEMBLE, BLEND),
    baselines=("ridge",),
    sizes=(10,),
    seeds=2,
    test=12,
    val=0.9,
    learning_rates=(1e-3, 1e-2),
    epochs=2,
    least_updates=1,
    batch_size=8,
    model=tiny.MODEL,
    title="Small",
)
WAYS = ("scratch", "ridge", "full", "features:ridge", "multi_source_gate", ENSEMBLE, BLEND)


@pytest.fixture(scope="module", autouse=True)
def one_of_the_shipped() -> Iterator[None]:
    """A pool has the shipped models as well: one instead of all, which would be kept and embedded for each study."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tlcgcnn_jax.zoo.shipped", lambda: ("carbon-energy",))
        yield


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Only the studies of the fixtures, which are made before this, draw theirs: it takes as long as the runs."""
    monkeypatch.setattr(study_file, "study_pictures", lambda *_: [])


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    tiny.write_lines(folder / "k.jsonl", tiny.records(60))
    tiny.write_lines(folder / "gaps.jsonl", tiny.records(60, (tiny.GAP,)))
    dataclasses.replace(tiny.source(), formulas=("AsGa", "Si")).save(folder / "source")
    other = jax.tree.map(lambda array: 1.5 * array, tiny.source().members)  # of two equal ones none would be chosen
    dataclasses.replace(tiny.source(), members=other, formulas=()).save(folder / "pool" / "other")
    return folder


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> StudyResults:
    out = tmp_path_factory.mktemp("study") / "out"
    run_study(STUDY, out, data=data, workers=1)
    return StudyResults(out)


def below_data(source: StudySource, data: Path) -> StudySource:
    return dataclasses.replace(source, data=str(data / source.data))


def work_or_die(folder: str, task: Task) -> list:
    """The first worker that is to fine-tune is killed while it works."""
    mark = Path(folder) / "died"
    if task.cell.strategy == "full" and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return work(task)


def work_and_tell(folder: str, task: Task) -> list:
    """Leave the number of the process."""
    (Path(folder) / str(os.getpid())).touch()
    return work(task)


def numbers(results: StudyResults) -> dict:
    """What must not depend on where and in which order runs are made."""
    return {row.run: (row.test_mae, row.val_mae, row.learning_rate, row.epochs, row.updates) for row in results.rows}


def test_crystals_that_are_left_out_are_told_of(tmp_path, caplog):
    lines = (tiny.write_lines(tmp_path / "all.jsonl", tiny.records(20))).read_text().splitlines(True)
    (tmp_path / "k.jsonl").write_text("".join(lines[:19]) + lines[19].replace('"lattice"', '"lattices"'))
    few = {"sizes": (6,), "test": 5, "val": 0.5, "seeds": 1, "strategies": (), "without_scratch": True}
    study = dataclasses.replace(STUDY, sources=(), pool="", **few)
    run_study(study, tmp_path / "out", data=tmp_path, workers=1)
    assert "K: 1 crystals without a label or that cannot be used are left out; the first of 1 that" in caplog.text


def test_most_crystals_are_not_left_out_of_a_study(tmp_path):
    """As where the column of ids is a wrong one; what is left out is listed."""
    tiny.write_lines(tmp_path / "k.jsonl", tiny.records(20))
    (tmp_path / "sheet.csv").write_text("\n".join(["id,k", *(f"{one.id},{len(one.id)}" for one in tiny.records(9))]))
    target = StudyTarget("k.jsonl", "k", labels="sheet.csv", name="K")
    study = dataclasses.replace(STUDY, targets=(target,), sources=(), pool="", strategies=())
    with pytest.raises(
        InputError, match='K: 11 of 20 crystals cannot be used; the first: .*; on_error = "skip" in the study'
    ):
        run_study(study, tmp_path / "out", data=tmp_path, workers=1)
    assert len(tiny.table(tmp_path / "out" / "datasets" / "K" / "skipped.csv")) == 11


def test_every_run_once(finished):
    with open(finished.folder / "results.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert len({row["run"] for row in rows}) == len(rows) == len(WAYS) * 2
    for row in finished.rows:
        assert math.isfinite(row.test_mae) and row.test_n == 12 and row.seconds > 0


@pytest.mark.parametrize("seed", range(2))
def test_a_blend_is_weighted_by_its_validation_crystals(finished, seed):
    parts = [finished.select(strategy=name, seed=seed)[0].run for name in ("full", "ridge", "scratch")]
    said = [finished.predictions(run) for run in parts]
    values = finished.crystals("K").values
    weights = choose_weights(np.stack([one.val for one in said]), values[said[0].val_rows], seed)
    assert len(np.unique(weights)) > 1  # nine crystals are enough to choose by
    found = finished.predictions(finished.select(strategy=BLEND, seed=seed)[0].run)
    np.testing.assert_allclose(found.test, weights @ np.stack([one.test for one in said]), rtol=1e-6)
    labels = values[said[0].test_rows]
    row = finished.select(strategy=BLEND, seed=seed)[0]
    assert row.test_mae == pytest.approx(np.abs(found.test - labels).mean(), rel=1e-5)


def test_seeds_take_the_networks_of_each_source_in_turn(finished, monkeypatch):
    """The number is that of the seed, whichever of the sources of a mixture is an ensemble."""
    seen = []

    def stop(*arguments, **others):
        seen.extend(arguments[4])
        raise KeyboardInterrupt

    monkeypatch.setattr(study_work, "fine_tune", stop)
    with pytest.raises(KeyboardInterrupt):
        study_work.runs(Desk(finished.folder), Cell("K", "all", 0, "multi_source_gate", "transfer", 10), (1,))
    assert [job.member for job in seen] == [1, 1]  # two learning rates


def test_all_ways_share_their_crystals(finished):
    for seed in range(2):
        found = [finished.predictions(row.run) for row in finished.select(seed=seed)]
        assert len(found) == len(WAYS)
        for one in found:
            np.testing.assert_array_equal(one.test_rows, found[0].test_rows)
            np.testing.assert_array_equal(one.val_rows, found[0].val_rows)


def test_known_formulas_are_not_tested(finished):
    formulas = finished.crystals("K").formulas
    for row in finished.rows:
        rows = finished.predictions(row.run)
        assert not {"AsGa", "Si"} & {formulas[i] for i in (*rows.test_rows, *rows.val_rows)}
        if row.source == "gap":
            assert row.overlap == 0


def test_errors_are_those_of_the_predictions(finished):
    values = finished.crystals("K").values
    for row in finished.rows:
        found = finished.predictions(row.run)
        assert row.test_mae == pytest.approx(np.abs(found.test - values[found.test_rows]).mean(), rel=1e-4)
    assert 1.0 < values.mean() < 2.5  # decadic logarithms of GPa


def test_a_study_does_what_transfer_does(finished, data):
    """Two roads to one model: a study trains many at once, `transfer` one that is kept."""
    desk, row = Desk(finished.folder), {row.strategy: row for row in finished.select(seed=0)}
    source, split = load_bundle(data / "source"), desk.split("K", 10, 0)
    dataset, target = desk.dataset("K", source.graph), learnt_target(STUDY.targets[0])
    config = dataclasses.replace(desk.training(10), learning_rate=row["full"].learning_rate)
    ways = {"full": "full", "ridge": "descriptors:ridge", "features:ridge": "features:ridge",
            ENSEMBLE: "ensemble:full+descriptors:ridge"}  # fmt: skip
    for name, strategy in ways.items():
        given = {"source": desk.everyone("K"), "top": 1} if name == "features:ridge" else {"source": source}
        result = transfer(dataset, strategy=strategy, targets=target, split=split, config=config, seeds=1, **given)
        said = finished.predictions(row[name].run)
        for rows, values in ((said.test_rows, said.test), (said.val_rows, said.val)):
            np.testing.assert_allclose(result.predictions.values[rows, 0], values, rtol=2e-4, atol=2e-4, err_msg=name)


def test_rates_come_from_the_grid(finished):
    for row in finished.rows:
        if row.strategy in ("scratch", "full", "multi_source_gate"):
            assert row.learning_rate in STUDY.learning_rates
        else:
            assert math.isnan(row.learning_rate)
    updates = {row.updates for row in finished.rows if row.strategy in ("scratch", "full", "multi_source_gate")}
    assert len(updates) == 1


def test_the_rate_is_the_one_with_the_lower_validation_error(finished, data):
    """Of scratch and transfer alike, and for every seed."""
    desk, source = Desk(finished.folder), load_bundle(data / "source")
    dataset, target = desk.dataset("K", source.graph), learnt_target(STUDY.targets[0])
    for seed in range(2):
        for name in ("scratch", "full"):
            (row,) = finished.select(strategy=name, seed=seed)
            errors = {}
            for rate in STUDY.learning_rates:
                config = dataclasses.replace(desk.training(10), learning_rate=rate, seed=seed)
                result = transfer(
                    dataset, source, name, target, split=desk.split("K", 10, seed), config=config, seeds=1
                )
                errors[rate] = result.metrics["val"]["mae"]
            assert row.learning_rate == min(errors, key=errors.__getitem__)
            assert row.val_mae == pytest.approx(min(errors.values()), rel=1e-3)


def test_what_a_source_knows_may_be_tested_and_is_told(data, tmp_path):
    everything = tuple(sorted({formula(record.structure.atomic_numbers) for record in tiny.records(60)}))
    dataclasses.replace(tiny.source(), formulas=everything).save(data / "knowing")
    sources = (StudySource("knowing", name="knowing"),)
    study = dataclasses.replace(
        STUDY, sources=sources, pool="", strategies=("features:ridge",), seeds=1, disjoint=False
    )
    run_study(study, tmp_path / "out", data=data, workers=1)
    overlaps = {row.strategy: row.overlap for row in StudyResults(tmp_path / "out").rows}
    assert overlaps["features:ridge"] == 1.0 and math.isnan(overlaps["scratch"])
    told = [one["share"] for one in StudyResults(tmp_path / "out").study["overlap"] if one["source"] == "knowing"]
    assert told == [1.0]


def test_an_ensemble_is_the_mean_of_its_parts(finished):
    for row in finished.select(strategy=ENSEMBLE):
        (full,) = finished.select(strategy="full", source="gap", size=row.size, seed=row.seed)
        (ridge,) = finished.select(strategy="ridge", size=row.size, seed=row.seed)
        parts = [finished.predictions(part.run).test for part in (full, ridge)]
        np.testing.assert_allclose(finished.predictions(row.run).test, np.mean(parts, 0), rtol=1e-5)


def test_what_is_written(finished):
    names = {path.name for path in finished.folder.iterdir()}
    assert {"study.json", "results.csv", "comparisons.csv", "report.html", "learning_curves_K.png"} <= names
    text = (finished.folder / "study.json").read_text() + (finished.folder / "report.html").read_text()
    assert str(finished.folder.parent) not in text  # a study says the same on every machine
    known = {one["source"]: one["count"] for one in finished.study["overlap"]}
    assert known["gap"] == 2 and known["other"] is None


def test_a_finished_study_is_not_repeated(finished, data, monkeypatch):
    monkeypatch.setattr(study_file, "work", None)
    run_study(STUDY, finished.folder, data=data, workers=1)


def test_goes_on_with_the_sources_it_was_begun_with(finished, data, tmp_path):
    """A new release of the sources, or one more of them, changes neither the crystals nor the sources of a study."""
    folder, other = tmp_path / "study", tmp_path / "data"
    shutil.copytree(finished.folder, folder)
    shutil.copytree(data, other)
    known = tuple(sorted(set(finished.crystals("K").formulas))[:8])
    newer = dataclasses.replace(tiny.source(), formulas=known)
    newer = dataclasses.replace(newer, members=tuple(jax.tree.map(lambda array: 2 * array, newer.members)))
    for place in (other / "source", other / "pool" / "other", other / "pool" / "another"):
        shutil.rmtree(place, ignore_errors=True)
        newer.save(place)
    extended = dataclasses.replace(STUDY, strategies=("features:ridge@all", "features:ridge"))
    run_study(extended, folder, data=other, workers=1)
    results = StudyResults(folder)
    assert len(results.rows) == len(finished.rows) + 4
    for seed in range(2):
        tested = {tuple(results.predictions(row.run).test_rows) for row in results.select(seed=seed)}
        assert len(tested) == 1
    kept = list(finished.folder.glob("sources/*/weights.npz"))
    assert len(kept) == 3  # of the study, of its pool and the shipped one
    for path in kept:
        assert (folder / path.relative_to(finished.folder)).read_bytes() == path.read_bytes()
    assert not list(folder.glob("sources/*another*"))


def test_other_settings_are_refused(finished, data):
    with pytest.raises(InputError, match=r"other settings \(epochs\)"):
        run_study(dataclasses.replace(STUDY, epochs=3), finished.folder, data=data)


def test_goes_on_after_an_interrupt(finished, data, tmp_path, monkeypatch):
    work, calls = study_file.work, []

    def interrupted(task):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(task)
        return work(task)

    study = dataclasses.replace(STUDY, strategies=("full", "features:ridge@auto", ENSEMBLE))
    monkeypatch.setattr(study_file, "work", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_study(study, tmp_path / "out", data=data, workers=1)
    before = numbers(StudyResults(tmp_path / "out"))
    assert len(before) == 6
    monkeypatch.setattr(study_file, "work", work)
    run_study(study, tmp_path / "out", data=data, workers=1)
    after, expected = numbers(StudyResults(tmp_path / "out")), numbers(finished)
    assert len(after) == 10 and after == {run: expected[run] for run in after}


SMALL = """
strategies = ["full"]
baselines = ["median"]
sizes = [10]
seeds = 2
test = 12
epochs = 2
least_updates = 1
batch_size = 8
[model]
width = 8
convolutions = 1
head_width = 8
[[sources]]
model = "source"
[[targets]]
data = "k.jsonl"
column = "bulk_modulus_gpa"
"""


def test_goes_on_after_a_kill(data, tmp_path, capsys):
    """The whole process is killed once two rows are there; the command says the rest and no row twice."""
    config = data / "small.toml"
    config.write_text(SMALL)
    command = ["study", str(config), "--out", str(tmp_path / "out"), "--workers", "1"]
    started = [sys.executable, "-m", "tlcgcnn_jax.cli", *command]
    running = subprocess.Popen(started, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    results, end = tmp_path / "out" / "results.csv", time.monotonic() + 120
    while time.monotonic() < end and not (results.is_file() and results.read_text().count("\n") >= 3):
        time.sleep(0.05)
    os.kill(running.pid, signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL and 2 <= len(StudyResults(tmp_path / "out").rows) < 6
    with open(results, "a") as handle:
        handle.write("a row that the kill cut sh")
    assert tiny.command(*command) == 0
    rows = StudyResults(tmp_path / "out").rows
    assert sorted(row.run for row in rows) == sorted({row.run for row in rows}) and len(rows) == 6
    assert "10 crystals" in capsys.readouterr().out


@pytest.mark.filterwarnings(
    "ignore:os.fork:RuntimeWarning",  # Ray starts its processes that way; no thread of JAX is at work then
    "ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning",
)
def test_on_ray(finished, data, tmp_path, monkeypatch):
    """A worker is killed in mid-study: every run is there, once, with the numbers of an undisturbed study."""
    monkeypatch.setenv("RAY_worker_niceness", "0")
    needs("ray")
    import ray

    small = dataclasses.replace(STUDY, strategies=("full@gap", "features:ridge@auto"), without_scratch=True)
    monkeypatch.setattr(study_file, "work", functools.partial(work_or_die, str(tmp_path)))
    try:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False,
                 runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}})  # fmt: skip
        run_study(small, tmp_path / "ray", data=data, engine="ray", workers=2)
    finally:
        ray.shutdown()
    assert (tmp_path / "died").exists()
    with open(tmp_path / "ray" / "results.csv", newline="") as handle:
        assert len(list(csv.DictReader(handle))) == 6
    found, expected = numbers(StudyResults(tmp_path / "ray")), numbers(finished)
    assert len(found) == 6
    for name, values in found.items():
        assert values == pytest.approx(expected[name], rel=1e-3, nan_ok=True)


def test_processes_give_the_same_numbers(finished, data, tmp_path, monkeypatch):
    small = dataclasses.replace(STUDY, strategies=("full@gap", "features:ridge@auto"), without_scratch=True)
    (tmp_path / "processes").mkdir()
    monkeypatch.setattr(study_file, "work", functools.partial(work_and_tell, str(tmp_path / "processes")))
    run_study(small, tmp_path / "out", data=data, workers=2)
    at_work = {path.name for path in (tmp_path / "processes").iterdir()}
    assert at_work and str(os.getpid()) not in at_work
    found, expected = numbers(StudyResults(tmp_path / "out")), numbers(finished)
    assert len(found) == 6
    for name, values in found.items():
        assert values == pytest.approx(expected[name], rel=1e-3, nan_ok=True)


def test_a_strategy_of_ones_own_is_run(data, tmp_path):
    own = dataclasses.replace(find_strategy("frozen"), name="own")
    study = dataclasses.replace(STUDY, own=(own,), strategies=("own", "frozen"), baselines=(), pool="", seeds=1)
    run_study(study, tmp_path / "out", data=data, workers=1)
    rows = {row.strategy: row for row in StudyResults(tmp_path / "out").rows}
    assert rows["own"].test_mae == pytest.approx(rows["frozen"].test_mae, rel=1e-3)


def test_sources_that_the_study_trains(data, tmp_path, monkeypatch):
    def fit(*given, config, **others):  # in batches of four, so that both sizes share a compiled program
        return whole(*given, config=dataclasses.replace(config, batch_size=4), model=tiny.MODEL, **others)

    whole = study_file.fit
    monkeypatch.setattr(study_file, "fit", fit)
    source = StudySource(data="gaps.jsonl", column=tiny.GAP, sizes=(7, 8), epochs=1, least_updates=1, name="gaps")
    study = dataclasses.replace(
        STUDY, sources=(source,),
        targets=(dataclasses.replace(STUDY.targets[0], data="few.jsonl"),),
        strategies=("full", "features:ridge"), baselines=(), sizes=(8,), seeds=1, test=6, learning_rates=(1e-2,),
        val=0.5, disjoint=True,
    )  # fmt: skip
    tiny.write_lines(data / "few.jsonl", tiny.records(60)[:24])
    run_study(study, tmp_path / "out", data=data, workers=1)
    results = StudyResults(tmp_path / "out")
    assert [(row.source, row.source_size) for row in results.rows] == [("", 0), *[("gaps", 7), ("gaps", 8)] * 2]
    for strategy in ("full", "features:ridge"):  # what is kept of one size must not be taken for the other's
        small, large = (row.test_mae for row in results.select(strategy=strategy))
        assert small != large
    own = [one for one in results.study["overlap"] if one["source"].startswith("gaps")]
    assert [one["count"] for one in own] == [0, 0]  # the target's formulas were removed
    desk = Desk(tmp_path / "out")
    for pattern, left in (("gaps-7", {"gaps-8"}), ("gaps", set())):  # by one size, or by the name of both
        target = dataclasses.replace(desk.study.targets[0], leave_out=(pattern,))
        desk.study = dataclasses.replace(desk.study, targets=(target,))
        assert {name for name in desk.everyone("K") if name.startswith("gaps")} == left


def test_formulas_of_a_source_that_is_left_out_may_be_tested(data, tmp_path):
    """A pool may hold a source that knows every formula of a target, as long as the target never meets it."""
    everything = tuple(sorted({formula(record.structure.atomic_numbers) for record in tiny.records(60)}))
    dataclasses.replace(tiny.source(), formulas=everything).save(data / "omniscient" / "knows_all")
    tiny.source().save(data / "omniscient" / "fair")
    study = dataclasses.replace(STUDY, pool="omniscient", strategies=("features:ridge@all",), seeds=1)
    with pytest.raises(InputError, match="0 of them with a formula that no source is known to have seen"):
        run_study(study, tmp_path / "met", data=data, workers=1)
    target = dataclasses.replace(STUDY.targets[0], leave_out=("knows_all",))
    run_study(dataclasses.replace(study, targets=(target,)), tmp_path / "left_out", data=data, workers=1)
    assert len(StudyResults(tmp_path / "left_out").rows) == 3


ASKED_FOR = {
    "no source": ({"sources": (), "pool": "", "strategies": ("full",)}, "strategies: full has no source"),
    "no pool": ({"pool": "", "strategies": ("full@pool",)}, "strategies: full@pool has no source"),
    "a source for mixtures alone": (
        {"sources": (StudySource("source", name="gap", alone=False),), "strategies": ("full@gap",)},
        "strategies: full@gap has no source",
    ),
    "a mean without a part": (
        {"strategies": ("full@auto", "ensemble:full+ridge")},
        r"ensemble:full\+ridge is made of full, of which there is no run",
    ),
}


@pytest.mark.parametrize(("change", "told"), ASKED_FOR.values(), ids=ASKED_FOR)
def test_what_needs_no_crystals_is_told_before_they_are_packed(data, tmp_path, monkeypatch, change, told):
    monkeypatch.setattr(study_file, "build_dataset", None)
    with pytest.raises(InputError, match=told):
        run_study(dataclasses.replace(STUDY, **change), tmp_path / "out", data=data, workers=1)


ABSENT = {
    "crystals": {"data": "absent.jsonl"},
    "labels": {"labels": "absent.csv"},
    "splits": {"splits": "absent.json"},
}


@pytest.mark.parametrize("change", ABSENT.values(), ids=ABSENT)
def test_what_is_not_there_is_told_before_anything_is_packed(data, tmp_path, monkeypatch, change):
    monkeypatch.setattr(study_file, "build_dataset", None)
    second = dataclasses.replace(STUDY.targets[0], name="second", **change)
    study = dataclasses.replace(STUDY, targets=(*STUDY.targets, second))
    with pytest.raises(InputError, match=r"absent\.\w+: there is no such file or folder; relative paths start at"):
        run_study(study, tmp_path / "out", data=data, workers=1)


def test_an_unknown_engine_is_told_before_anything_is_packed(data, tmp_path):
    with pytest.raises(InputError, match="'slurm': use local or ray"):
        run_study(STUDY, tmp_path / "out", data=data, engine="slurm")
    assert not (tmp_path / "out").exists()


def test_a_folder_in_which_a_study_is_at_work_is_left_alone(finished, data):
    with only_one(finished.folder, "study"), pytest.raises(InputError, match="a study is at work here"):
        run_study(STUDY, finished.folder, data=data, workers=1)


OWN = find_strategy("frozen")
MISFITS = {
    "a convolution that the source has not": ({"strategies": ("freeze:conv_1",)}, "no strategy 'freeze:conv_1'"),
    "a mixture of one": ({"pool": "", "strategies": ("multi_source",)}, "multi_source joins several sources, one was"),
    "a pattern without a parameter": (
        {"own": (dataclasses.replace(OWN, name="own", rates=(("conv_9/*", 0.0), *OWN.rates)),), "strategies": ("own",)},
        "(?s)strategy own from gap: .*conv_9",
    ),
}


@pytest.mark.parametrize(("change", "told"), MISFITS.values(), ids=MISFITS)
def test_what_does_not_fit_its_sources_is_told_before_any_run(data, tmp_path, monkeypatch, change, told):
    monkeypatch.setattr(study_file, "work", None)
    with pytest.raises(InputError, match=told):
        run_study(dataclasses.replace(STUDY, **change), tmp_path / "out", data=data, workers=1)


@pytest.mark.parametrize("change", [{"baselines": ("svr",)}, {"strategies": ("features:gp",)}])
def test_too_many_crystals_for_a_regressor_are_told_before_any_run(data, tmp_path, monkeypatch, change):
    monkeypatch.setattr(study_file, "work", None)
    monkeypatch.setattr(feature_model, "MOST_PAIRS", 9)
    study = dataclasses.replace(STUDY, **{"baselines": (), "strategies": (), **change})
    with pytest.raises(InputError, match="target K: 10 crystals to train on; (svr|gp) compares all pairs"):
        run_study(study, tmp_path / "out", data=data, workers=1)


@pytest.mark.parametrize(
    ("change", "told"),
    [({"batch_size": 0}, "batch_size is 0"), ({"learning_rates": (1e-3, 0.0)}, "learning_rates are .*: all above 0")],
)
def test_settings_that_make_no_sense_are_refused(change, told):
    with pytest.raises(InputError, match=told):
        dataclasses.replace(STUDY, **change)


def test_a_study_of_no_source(data, tmp_path):
    study = dataclasses.replace(STUDY, sources=(), pool="", strategies=(), seeds=1)
    run_study(study, tmp_path / "out", data=data, workers=1)
    assert [row.strategy for row in StudyResults(tmp_path / "out").rows] == ["scratch", "ridge"]


def test_a_source_of_a_start_that_was_cut_short_is_kept_if_it_is_the_same(data, tmp_path, monkeypatch):
    monkeypatch.setattr(study_file, "fit", functools.partial(study_file.fit, model=tiny.MODEL))
    source = StudySource(data="gaps.jsonl", column=tiny.GAP, sizes=(8,), epochs=1, least_updates=1, name="gaps")
    (first,) = study_file._train_source(below_data(source, data), tmp_path, set(), False).values()
    (again,) = study_file._train_source(below_data(source, data), tmp_path, set(), False).values()
    jax.tree.map(np.testing.assert_array_equal, first.members, again.members)
    assert len(again.formulas) == len(first.formulas)
    with pytest.raises(InputError, match="cannot be resumed with another split than that of its split.json"):
        study_file._train_source(below_data(source, data), tmp_path, set(first.formulas[:2]), False)


def test_too_few_crystals_are_told_before_any_run(data, tmp_path):
    with pytest.raises(InputError, match="crystals to test with"):
        run_study(dataclasses.replace(STUDY, test=1000), tmp_path / "out", data=data, workers=1)
    assert not (tmp_path / "out" / "results.csv").exists()


@pytest.fixture(scope="module")
def folded(data, tmp_path_factory) -> StudyResults:
    out = tmp_path_factory.mktemp("folded") / "out"
    study = dataclasses.replace(STUDY, folds=3, strategies=("full", BLEND), pool="", sizes=(20,), seeds=1)
    run_study(study, out, data=data, workers=1)
    return StudyResults(out)


def unseen(results: StudyResults) -> set[int]:
    """Training and validation crystals with a formula that the source has not seen."""
    split, formulas = Desk(results.folder).split("K", 20, 0), results.crystals("K").formulas
    return {row for row in (*split.train.tolist(), *split.val.tolist()) if formulas[row] not in ("AsGa", "Si")}


def test_with_folds_every_crystal_validates_once(folded):
    """All ways predict training and validation crystals without having learnt from them, in the same order."""
    (full,), (ridge,) = (folded.select(strategy=name) for name in ("full", "ridge"))
    said = {row.strategy: folded.predictions(row.run) for row in folded.rows}
    assert len(said) == 4 and len({tuple(one.val_rows) for one in said.values()}) == 1
    rows, crystals = said["full"].val_rows, folded.crystals("K")
    assert len(set(rows)) == len(rows) and set(rows) == unseen(folded) and len(rows) > 30
    assert not set(rows) & set(said["full"].test_rows)
    for row in (full, ridge):
        errors = np.abs(said[row.strategy].val - crystals.values[rows])
        assert row.val_mae == pytest.approx(errors.mean(), rel=1e-4)
    assert np.isfinite(said["full"].test_std).all()  # three networks
    parts = np.stack([said[name].val for name in ("full", "ridge", "scratch")])
    weights = choose_weights(parts, crystals.values[rows], 0)
    together = weights @ np.stack([said[name].test for name in ("full", "ridge", "scratch")])
    np.testing.assert_allclose(said[BLEND].test, together, rtol=1e-6)


def test_with_folds_a_regressor_is_fitted_to_all_in_the_end(folded):
    (row,) = folded.select(strategy="ridge")
    said, desk = folded.predictions(row.run), Desk(folded.folder)
    target = learnt_target(desk.target("K"))
    given = np.concatenate([desk.split("K", 20, 0).train, desk.split("K", 20, 0).val])
    assert set(said.val_rows) == unseen(folded) < set(given)
    values = folded.crystals("K").values
    mean, _ = baseline_predictions("ridge", desk.described("K"), values, given, said.test_rows, target)
    np.testing.assert_allclose(said.test, mean, rtol=1e-5)
    folds = desk.trials("K", 20, 0)
    held = [baseline_predictions("ridge", desk.described("K"), values, f.train, f.val, target)[0] for f in folds]
    np.testing.assert_allclose(said.val, np.concatenate(held), rtol=1e-5)


def test_folds_validate_only_what_no_source_has_seen(data, tmp_path):
    """What a source has seen trains in every fold."""
    known = tuple(sorted({formula(record.structure.atomic_numbers) for record in tiny.records(60)})[:20])
    dataclasses.replace(tiny.source(), formulas=known).save(data / "knowing")
    sources = (StudySource("knowing", name="gap"),)
    changes = {"sources": sources, "pool": "", "strategies": (), "without_scratch": True, "folds": 3, "sizes": (20,)}
    run_study(dataclasses.replace(STUDY, **changes, seeds=1), tmp_path / "out", data=data, workers=1)
    desk = Desk(tmp_path / "out")
    split, formulas = desk.split("K", 20, 0), desk.results.crystals("K").formulas
    seen = {row for row in split.train.tolist() if formulas[row] in known}
    assert 5 < len(seen) < 20
    for trial in desk.trials("K", 20, 0):
        assert seen <= set(trial.train) and not seen & set(trial.val) and len(trial.val)
        assert {*trial.train, *trial.val} == {*split.train, *split.val}


def test_folds_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="folds is 2: 3 or more"):
        dataclasses.replace(STUDY, folds=2)
    with pytest.raises(InputError, match="leave members at 1"):
        dataclasses.replace(STUDY, folds=3, members=2)


def test_folds_too_small_to_train_on_are_told_before_any_run(data, tmp_path, monkeypatch):
    monkeypatch.setattr(study_file, "run_tasks", lambda *_, **__: pytest.fail("ran"))
    study = dataclasses.replace(STUDY, folds=3, sizes=(5,), val=0.2, strategies=("full",))
    with pytest.raises(InputError, match="a fold leaves 4 of 6 crystals to train on"):
        run_study(study, tmp_path / "out", data=data)


def test_labels_that_sources_cannot_be_ranked_by_are_told_before_any_run(data, tmp_path, monkeypatch):
    monkeypatch.setattr(study_file, "run_tasks", lambda *_, **__: pytest.fail("ran"))
    study = dataclasses.replace(STUDY, sizes=(6,), strategies=("full@auto",))
    with pytest.raises(InputError, match="target K, 6 crystals, seed 0: 6 labelled training crystals: at least 10 are"):
        run_study(study, tmp_path / "out", data=data)


def test_labels_that_are_all_equal_are_told_before_any_run(tmp_path, monkeypatch):
    monkeypatch.setattr(study_file, "run_tasks", lambda *_, **__: pytest.fail("ran"))
    crystals = [dataclasses.replace(record, targets={tiny.K: 100.0}) for record in tiny.records(60)]
    tiny.write_lines(tmp_path / "k.jsonl", crystals)
    study = dataclasses.replace(STUDY, sources=(), pool="", strategies=())
    with pytest.raises(InputError, match="target K: all 58 labels are 100: there is nothing to learn"):
        run_study(study, tmp_path / "out", data=tmp_path)


def test_another_study_in_the_same_folder_is_not_mistaken_for_the_first(data, tmp_path, monkeypatch):
    """What a process has read of the first one is not of use for the second."""
    monkeypatch.setattr(many, "CHUNK", 2)  # so that both share a compiled program
    study = dataclasses.replace(STUDY, strategies=("full",), baselines=(), without_scratch=True, pool="", seeds=1)
    for epochs in (2, 4):
        run_study(dataclasses.replace(study, epochs=epochs), tmp_path / "out", data=data, workers=1)
        (row,) = StudyResults(tmp_path / "out").select(strategy="full")
        assert row.updates == 2 * epochs  # ten crystals, eight a batch
        shutil.rmtree(tmp_path / "out")


def test_without_scratch(data, tmp_path):
    study = dataclasses.replace(STUDY, without_scratch=True, strategies=("full",), pool="", seeds=1)
    analysis = run_study(study, tmp_path / "out", data=data, workers=1)
    assert {row.strategy for row in StudyResults(tmp_path / "out").rows} == {"full", "ridge"}
    assert analysis.sentences and not any("None" in sentence for sentence in analysis.sentences)
    assert (tmp_path / "out" / "report.html").is_file()
    for strategies in (("full", BLEND), ("full", "scratch")):
        with pytest.raises(InputError, match="scratch"):
            dataclasses.replace(study, strategies=strategies)


def test_a_folder_of_an_older_version_is_gone_on_with(finished, tmp_path):
    """It knows nothing of settings that came later, which are off."""
    old = tmp_path / "old"
    shutil.copytree(finished.folder, old)
    told = json.loads((old / "study.json").read_text())
    for name in ("folds", "without_scratch"):
        del told["settings"][name]
    (old / "study.json").write_text(json.dumps(told))
    assert check_study(old, to_dict(STUDY))
    with pytest.raises(InputError, match=r"other settings \(folds\)"):
        check_study(old, to_dict(dataclasses.replace(STUDY, folds=3)))
