"""Splits are seeded, do not overlap, and refuse what cannot be split."""

import gzip
import json

import numpy as np
import pytest

from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.splits import (
    Split,
    k_fold,
    nested_sizes,
    overlap,
    random_split,
    read_split,
    read_splits,
    splits_to_json,
    write_split,
)


def rows(split: Split) -> list[list[int]]:
    return [part.tolist() for part in (split.train, split.val, split.test)]


@pytest.mark.parametrize(
    ("n", "sizes", "expected"),
    [
        pytest.param(10, (0.8, 0.1, 0.1), (8, 1, 1), id="shares"),
        pytest.param(11, (0.8, 0.1, 0.1), (9, 1, 1), id="shares of an odd number leave none over"),
        pytest.param(27, (0.5, 0.25, 0.25), (13, 7, 7), id="halves"),
        pytest.param(20, (5, 3, 2), (5, 3, 2), id="numbers"),
        pytest.param(20, (5, 0.1, 0.5), (5, 2, 10), id="both"),
        pytest.param(3, (0.8, 0.1, 0.1), (1, 1, 1), id="a share is never none"),
        pytest.param(5, (0.8, 0.1, 0.1), (3, 1, 1), id="a share of five"),
        pytest.param(5, (4, 0.1, 1e-9), (4, 1, 0), id="what is left beside a number"),
        pytest.param(3, (1.0, 0.0, 0.0), (3, 0, 0), id="all to train"),
        pytest.param(3, (1, 0, 0), (1, 0, 0), id="1 is a number, not a share"),
    ],
)
def test_sizes(n: int, sizes: tuple, expected: tuple) -> None:
    split = random_split(n, 0, *sizes)
    assert tuple(map(len, rows(split))) == expected
    together = sum(rows(split), [])
    assert len(set(together)) == len(together)
    assert set(together) <= set(range(n))
    assert all(part.dtype == np.int64 for part in (split.train, split.val, split.test))


@pytest.mark.parametrize(
    ("n", "sizes", "words"),
    [
        pytest.param(10, (0.8, 0.2, 0.1), "more than the 10", id="shares above 1"),
        pytest.param(10, (8, 2, 1), "more than the 10", id="too many"),
        pytest.param(10, (0.8, -0.1, 0.1), "negative", id="negative share"),
        pytest.param(10, (-1, 1, 1), "negative", id="negative number"),
        pytest.param(10, (0.0, 0.5, 0.5), "nothing to train", id="no training"),
        pytest.param(2, (0.2, 0.4, 0.4), "nothing to train", id="rounds to no training"),
        pytest.param(10, (1.5, 0.0, 0.0), "at most 1.0", id="share above 1"),
        pytest.param(10, (float("nan"), 0.1, 0.1), "train", id="NaN"),
        pytest.param(10, (True, 0.1, 0.1), "number of crystals", id="boolean"),
        pytest.param(0, (0.8, 0.1, 0.1), "nothing to train", id="no crystals"),
    ],
)
def test_sizes_that_do_not_fit(n: int, sizes: tuple, words: str) -> None:
    with pytest.raises(InputError, match=words):
        random_split(n, 0, *sizes)


def test_seeds() -> None:
    assert rows(random_split(50, 3)) == rows(random_split(50, 3))
    assert rows(random_split(50, 3)) != rows(random_split(50, 4))


def test_groups_stay_together() -> None:
    rng = np.random.default_rng(0)
    groups = [f"formula {i}" for i in rng.integers(0, 150, 400)]
    split = random_split(400, 0, 0.7, 0.15, 0.15, groups=groups)
    found = [{groups[i] for i in part} for part in rows(split)]
    assert not (found[0] & found[1] or found[0] & found[2] or found[1] & found[2])
    assert sum(map(len, rows(split))) == 400
    assert np.abs(np.array([len(part) for part in rows(split)]) - [280, 60, 60]).max() <= 6
    part = random_split(400, 0, 100, 20, 20, groups=groups)
    assert [len(p) <= size for p, size in zip(rows(part), (100, 20, 20), strict=True)] == [True] * 3


def test_groups_that_are_too_large() -> None:
    with pytest.raises(InputError, match="group"):
        random_split(10, 0, 0.8, 0.1, 0.1, groups=["a"] * 10)
    with pytest.raises(InputError, match="3 group labels for 10"):
        random_split(10, 0, groups=["a"] * 3)


@pytest.mark.parametrize("groups", [None, [i // 2 for i in range(23)]], ids=["crystals", "groups"])
def test_folds(groups: list | None) -> None:
    splits = k_fold(23, 5, seed=1, groups=groups)
    assert sorted(i for split in splits for i in split.test.tolist()) == list(range(23))
    for split in splits:
        assert sorted(sum(rows(split), [])) == list(range(23))
        assert 4 <= len(split.test) <= 6
        if groups:
            assert not {groups[i] for i in split.test} & {groups[i] for i in np.r_[split.train, split.val]}
    assert rows(splits[0]) == rows(k_fold(23, 5, seed=1, groups=groups)[0])
    assert rows(splits[0]) != rows(k_fold(23, 5, seed=1, repeat=1, groups=groups)[0])


def test_too_few_for_the_folds() -> None:
    with pytest.raises(InputError, match="4 crystals for 5 folds"):
        k_fold(4, 5, seed=0)
    with pytest.raises(InputError, match="2 groups of crystals for 5 folds"):
        k_fold(10, 5, seed=0, groups=["a", "b"] * 5)
    with pytest.raises(InputError, match="at least 3"):
        k_fold(10, 2, seed=0)


def test_nested() -> None:
    train = random_split(100, 0).train
    sets = nested_sizes(train, [10, 40, 80])
    assert set(sets[10].tolist()) < set(sets[40].tolist()) < set(sets[80].tolist())
    for size in (0, 81):
        with pytest.raises(InputError, match="there are 80"):
            nested_sizes(train, [size])


def test_the_home_folder_may_be_written_short(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_split("~/split.json", ["a", "b"], Split([1], [0], []))
    assert (tmp_path / "split.json").is_file()
    assert rows(read_split("~/split.json", ["a", "b"])) == [[1], [0], []]


def test_written_split_is_read(tmp_path) -> None:
    ids = [f"mp-{i}" for i in range(30)]
    split = random_split(30, 0)
    write_split(tmp_path / "split.json", ids, split)
    assert rows(read_split(tmp_path / "split.json", ids)) == rows(split)
    (tmp_path / "split.json").write_text('{"train": ["mp-3"]}')
    assert rows(read_split(tmp_path / "split.json", ids)) == [[3], [], []]
    with pytest.raises(InputError, match="cannot be written"):
        write_split(tmp_path / "absent" / "split.json", ids, split)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param({"train": ["a", "x", "y"]}, "x, y", id="unknown id"),
        pytest.param({"train": ["a", "b"], "test": ["b"]}, r"b \(train and test\)", id="in two parts"),
        pytest.param({"train": ["a", "a"]}, r"a \(twice in train\)", id="twice"),
        pytest.param({"train": [], "val": ["a"]}, "nothing to train", id="empty train"),
        pytest.param({"val": ["a"]}, "nothing to train", id="no train"),
        pytest.param({"train": ["a"], "valid": ["b"]}, "valid", id="misspelt part"),
        pytest.param(["a"], "not a split", id="list"),
        pytest.param({"train": "a"}, "not a split", id="string"),
        pytest.param("{", "not JSON", id="broken"),
        pytest.param(None, "cannot be read", id="absent"),
    ],
)
def test_bad_split_files(tmp_path, content: object, words: str) -> None:
    path = tmp_path / "split.json"
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=words) as error:
        read_split(path, ["a", "b", "c"])
    assert str(path) in str(error.value)


def test_given_splits(tmp_path, caplog) -> None:
    path, ids = tmp_path / "splits.json", ["a", "b", "c", "d"]
    path.write_text('[{"train": ["b", "bad"], "test": ["a"]}, {"train": ["a"], "val": ["d", "bad"], "test": ["c"]}]')
    found = read_splits(path, ids, ["bad", "worse"])
    assert [rows(split) for split in found] == [[[1], [], [0]], [[0], [3], [2]]]
    assert "1 of its crystals cannot be used" in caplog.text
    (tmp_path / "again.json.gz").write_bytes(gzip.compress(splits_to_json(ids, found).encode()))
    assert [rows(split) for split in read_splits(tmp_path / "again.json.gz", ids)] == [rows(split) for split in found]


GOOD = {"train": ["a"], "test": ["b"]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(GOOD, "not a list of splits", id="one split"),
        pytest.param([], "not a list of splits", id="none"),
        pytest.param([GOOD, ["a"]], "split 1, is not a split", id="a list in it"),
        pytest.param([GOOD, {"train": ["a"], "test": list("wxyz")}], "w, x, y and 1 more", id="unknown ids"),
        pytest.param([{"train": ["a"], "test": ["a"]}], r"a \(train and test\)", id="in two parts"),
        pytest.param([GOOD, {"train": ["a"]}], "split 1, leaves nothing to train or test on", id="no test"),
        pytest.param([{"train": ["bad"], "test": ["a"]}], "leaves nothing to train", id="nothing usable"),
        pytest.param(None, "cannot be read", id="absent"),
    ],
)
def test_bad_lists_of_splits(tmp_path, content: object, words: str) -> None:
    path = tmp_path / "splits.json"
    if content is not None:
        path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=words) as error:
        read_splits(path, ["a", "b", "c"], ["bad"])
    assert str(path) in str(error.value)


def test_overlap() -> None:
    assert overlap(["Si", "Ge"], ["Si", "Si", "C", "GaAs"]) == (2, 0.5)
    assert overlap([], []) == (0, 0.0)
