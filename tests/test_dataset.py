"""A dataset holds the graphs of its crystals, survives the disk, and says what is wrong with a damaged folder."""

import itertools
import json
import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from tlcgcnn_jax.config import GraphConfig
from tlcgcnn_jax.dataset import CrystalDataset, build_dataset, gather_rows, load_dataset
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.graphs import build_graph
from tlcgcnn_jax.structures import Crystal, Record

ARRAYS = ("targets", "n_atom", "n_row", "volume", "atomic_numbers", "receivers", "senders", "distances", "weights")


def crystal(seed: int) -> Crystal:
    rng = np.random.default_rng(seed)
    sites = np.array(list(itertools.product((0.0, 0.5), repeat=3)))[: 1 + seed % 6]
    frac = sites + rng.normal(0, 0.02, sites.shape)
    return Crystal(np.eye(3) * (4 + seed % 3), rng.integers(1, 80, len(sites)), frac)


def records(n: int = 9) -> list[Record]:
    return [Record(f"c{i}", crystal(i), {"gap": float(i), "bulk": np.nan if i == 2 else 2.0 * i}) for i in range(n)]


BAD = Record("bad", Crystal(np.eye(3) * 4.0, np.array([3, 3]), np.zeros((2, 3))), {"gap": 1.0, "bulk": 1.0})


def assert_same(one: CrystalDataset, other: CrystalDataset) -> None:
    for name in ("graph", "ids", "formulas", "target_names", "skipped", "fingerprint"):
        assert getattr(one, name) == getattr(other, name), name
    for name in (*ARRAYS, "atom_offset", "row_offset"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), name)
        assert getattr(one, name).dtype == getattr(other, name).dtype


@pytest.mark.parametrize("config", [GraphConfig(), GraphConfig(ties="reference", places=5)], ids=["shell", "reference"])
def test_holds_the_graph_of_each_crystal(config: GraphConfig) -> None:
    dataset = build_dataset(records(), targets=["bulk", "gap"], graph=config)
    assert len(dataset) == 9
    assert dataset.ids == [f"c{i}" for i in range(9)]
    np.testing.assert_array_equal(dataset.targets[:, 1], np.arange(9))
    assert np.isnan(dataset.targets[2, 0])
    for i, record in enumerate(records()):
        graph = build_graph(record.structure, config)
        atoms = slice(dataset.atom_offset[i], dataset.atom_offset[i + 1])
        rows = slice(dataset.row_offset[i], dataset.row_offset[i + 1])
        np.testing.assert_array_equal(dataset.atomic_numbers[atoms], graph.atomic_numbers)
        assert dataset.volume[i] == pytest.approx((4 + i % 3) ** 3)
        for name in ("receivers", "senders", "distances", "weights"):
            np.testing.assert_array_equal(getattr(dataset, name)[rows], getattr(graph, name))


def test_no_targets() -> None:
    dataset = build_dataset(records())
    assert dataset.targets.shape == (9, 0)


def test_select() -> None:
    dataset = build_dataset(records(), targets=["gap"])
    some = dataset.select([4, 0, 4, -1])
    assert some.ids == ["c4", "c0", "c4", "c8"]
    assert some.targets[:, 0].tolist() == [4, 0, 4, 8]
    alone = build_dataset([records()[4]], targets=["gap"])
    np.testing.assert_array_equal(some.distances[some.row_offset[2] : some.row_offset[3]], alone.distances)
    mask = np.zeros(9, bool)
    mask[[1, 3]] = True
    assert dataset.select(mask).ids == ["c1", "c3"]
    assert len(dataset.select([])) == 0
    with pytest.raises(IndexError):
        dataset.select([9])
    with pytest.raises(InputError, match="mask"):
        dataset.select(mask[:5])


def test_with_targets() -> None:
    dataset = build_dataset(records(), targets=["gap", "bulk"])
    assert dataset.with_targets(["bulk"]).targets.shape == (9, 1)
    assert dataset.with_targets(["bulk", "gap"]).targets[4].tolist() == [8, 4]
    with pytest.raises(InputError, match="no target density; its targets are: gap, bulk"):
        dataset.with_targets(["density"])


@pytest.mark.parametrize(
    ("starts", "counts", "expected"),
    [([5, 0], [2, 1], [5, 6, 0]), ([3], [0], []), ([], [], []), ([7, 1, 7], [1, 0, 2], [7, 7, 8])],
)
def test_gather_rows(starts: list, counts: list, expected: list) -> None:
    assert gather_rows(np.array(starts, int), np.array(counts, int)).tolist() == expected


def test_saved_and_loaded(tmp_path: Path) -> None:
    dataset = build_dataset([*records(), BAD], targets=["gap"], on_error="skip")
    dataset.save(tmp_path / "one")
    assert_same(load_dataset(tmp_path / "one"), dataset)
    direct = build_dataset([*records(), BAD], targets=["gap"], on_error="skip", out=tmp_path / "two")
    assert_same(direct, dataset)
    assert isinstance(direct.distances, np.memmap)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    no_targets = build_dataset(records(), out=tmp_path / "three")
    assert load_dataset(tmp_path / "three").targets.shape == no_targets.targets.shape == (9, 0)


def test_the_home_folder_may_be_written_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    dataset = build_dataset(records(3), targets=["gap"], out="~/packed")
    dataset.save("~/saved")
    for name in ("packed", "saved"):
        assert (tmp_path / name).is_dir()
        assert_same(load_dataset(f"~/{name}"), dataset)


def test_bad_crystals() -> None:
    with pytest.raises(InputError, match="bad.*apart"):
        build_dataset([*records(), BAD], targets=["gap"])
    dataset = build_dataset([*records(4), BAD, *records()[4:]], targets=["gap"], on_error="skip")
    assert dataset.ids == [f"c{i}" for i in range(9)]
    assert [entry.id for entry in dataset.skipped] == ["bad"]
    assert "apart" in dataset.skipped[0].reason
    with pytest.raises(InputError, match="no crystal of 1 could be used.*apart"):
        build_dataset([BAD], on_error="skip")
    with pytest.raises(InputError, match="on_error"):
        build_dataset(records(), on_error="ignore")


def test_the_same_call_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build_dataset(records(), targets=["gap"], out=tmp_path / "d")
    monkeypatch.setattr("tlcgcnn_jax.dataset._pack", None)  # packing again would fail
    again = build_dataset(records(), targets=["gap"], out=tmp_path / "d")
    assert_same(first, again)
    assert again.notes == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param({"source": records(8)}, "other input", id="input"),
        pytest.param({"graph": GraphConfig(cutoff=7.0)}, "other graph settings", id="graph"),
        pytest.param({"targets": ["bulk", "gap"]}, "other targets", id="targets"),
    ],
)
def test_a_stale_folder_is_packed_again(tmp_path: Path, caplog, change: dict, words: str) -> None:
    call = {"source": records(), "targets": ["gap"], "out": tmp_path / "d"}
    build_dataset(**call)
    with caplog.at_level(logging.WARNING):
        fresh = build_dataset(**(call | change))
    assert words in fresh.notes[0]
    assert words in caplog.text
    assert_same(fresh, build_dataset(**{k: v for k, v in (call | change).items() if k != "out"}))


def test_a_folder_that_skipped_does_not_hide_an_error(tmp_path: Path) -> None:
    build_dataset([*records(), BAD], on_error="skip", out=tmp_path / "d")
    with pytest.raises(InputError, match="apart"):
        build_dataset([*records(), BAD], out=tmp_path / "d")
    assert load_dataset(tmp_path / "d").skipped  # what was there stays


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 255
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("name", "damage"),
    list(itertools.product(["dataset.json", "crystals.json", "distances.npy", "n_atom.npy"], [Path.unlink, cut, flip])),
    ids=lambda x: getattr(x, "__name__", x),
)
def test_damage_is_named_and_repaired(tmp_path: Path, name: str, damage) -> None:
    whole = build_dataset(records(), targets=["gap"], out=tmp_path / "d").select(np.arange(9))
    damage(tmp_path / "d" / name)
    with pytest.raises(InputError, match=name):
        load_dataset(tmp_path / "d")
    again = build_dataset(records(), targets=["gap"], out=tmp_path / "d")
    assert name in again.notes[0]
    assert_same(again, whole)
    assert_same(load_dataset(tmp_path / "d"), whole)


def test_what_lies_beside_a_dataset_is_not_lost(tmp_path: Path) -> None:
    build_dataset(records(), out=tmp_path / "d")
    (tmp_path / "d" / "skipped.csv").write_text("what prepare writes")
    build_dataset(records()[:5], out=tmp_path / "d")
    (tmp_path / "d" / "run").mkdir()
    (tmp_path / "d" / "run" / "weights.npz").write_text("hours of work")
    with pytest.raises(InputError, match="d: run would be lost if the dataset there were packed again"):
        build_dataset(records(), out=tmp_path / "d")
    assert (tmp_path / "d" / "run" / "weights.npz").is_file() and len(load_dataset(tmp_path / "d")) == 5


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("text")
    (tmp_path / "file").write_text("text")
    for name in ("thesis", "file"):
        with pytest.raises(InputError, match="not a packed dataset"):
            build_dataset(records(), out=tmp_path / name)
        with pytest.raises(InputError, match=name):
            load_dataset(tmp_path / name)
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "text"
    with pytest.raises(InputError, match="cannot write"):
        build_dataset(records(), out=tmp_path / "file" / "below")
    with pytest.raises(InputError, match="no such folder"):
        load_dataset(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert len(build_dataset(records(), out=tmp_path / "empty")) == 9


@pytest.mark.parametrize("version", [1, 99], ids=["without volumes", "of a later package"])
def test_another_version_is_refused(tmp_path: Path, version: int) -> None:
    build_dataset(records(), out=tmp_path / "d")
    manifest = json.loads((tmp_path / "d" / "dataset.json").read_text())
    (tmp_path / "d" / "dataset.json").write_text(json.dumps(manifest | {"version": version}))
    with pytest.raises(InputError, match=f"version {version}; 2 was expected: pack the dataset again"):
        load_dataset(tmp_path / "d")


def test_nothing_is_left_after_a_failure(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        build_dataset([*records(), BAD], out=tmp_path / "d")
    assert list(tmp_path.iterdir()) == []


def test_processes_give_the_same(tmp_path: Path) -> None:
    """In a script without a guard, which worker processes must not run again."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys
        sys.path[:0] = [{str(Path(__file__).parent)!r}]
        from test_dataset import *
        print("once")
        many = [Record(f"c{{i}}", crystal(i % 50), {{"gap": float(i)}}) for i in range(700)]
        many[300] = BAD
        one = build_dataset(many, targets=["gap"], on_error="skip", processes=1)
        two = build_dataset(many, targets=["gap"], on_error="skip", processes=2, progress=True)
        assert_same(one, two)
        assert len(two) == 699 and two.skipped[0].id == "bad"
        try:
            build_dataset(many, processes=2)
        except InputError as error:
            print("refused", "apart" in str(error))
        """)
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, timeout=120)
    assert done.stdout.split() == ["once", "refused", "True"], done.stderr
    assert "700/700" in done.stderr
    assert "Traceback" not in done.stderr


def test_workers_stay_light() -> None:
    code = "import sys, tlcgcnn_jax.dataset; print(sorted({'jax', 'pymatgen', 'torch', 'pandas'} & set(sys.modules)))"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_real_records(shared_data, tmp_path: Path) -> None:
    source = shared_data / "piezo_dejong2015" / "piezo_dejong2015.jsonl.gz"
    dataset = build_dataset(source, out=tmp_path / "d")
    assert len(dataset) > 800
    weight = np.add.reduceat(dataset.weights.sum(axis=1), dataset.row_offset[:-1])
    assert (weight <= 12.001 * dataset.n_atom).all()
    assert (dataset.distances <= 8.0 + 1e-6).all()
    assert (dataset.senders < np.repeat(dataset.n_atom, dataset.n_row)[:, None]).all()
