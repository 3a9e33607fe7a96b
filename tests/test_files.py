"""Paths are those that users mean; tables are written whole, with the columns and digits that were asked for."""

import os
from pathlib import Path

import pytest

from tlcgcnn_jax.cli import make_parser
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.files import read_json, user_path, write_table

ROWS = [{"target": "gap, direct", "mae": 1 / 3, "n": 100000}, {"target": "K", "mae": 2.0, "n": 7}]


@pytest.mark.parametrize(
    "given, meant", [("~/a", "HOME/a"), ("a/~b", "a/~b"), ("~nobody-of-that-name", "~nobody-of-that-name")]
)
def test_a_path_is_the_one_that_is_meant(tmp_path, monkeypatch, given, meant):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path(given) == user_path(Path(given)) == Path(meant.replace("HOME", str(tmp_path)))


@pytest.mark.parametrize("text", ["id,k\na,1\n", '{"lattice": ' + "[" * 300])
def test_text_is_no_path(text):
    with pytest.raises(InputError, match="found text that begins with .*write the text to a file"):
        user_path(text)


def test_options_are_paths_that_are_meant(tmp_path, monkeypatch):
    """--out=~/run reaches the command as it is: shells put the home folder in at the beginning of a word alone."""
    monkeypatch.setenv("HOME", str(tmp_path))
    given = make_parser().parse_args(["train", "a", "--out=~/run", "--labels=~/sheet.csv", "--split=~/split.json"])
    assert [given.out, given.labels, given.split] == [tmp_path / name for name in ("run", "sheet.csv", "split.json")]


def test_every_digit_unless_told_otherwise(tmp_path):
    assert write_table(tmp_path / "a.csv", ROWS).read_text() == (
        'target,mae,n\n"gap, direct",0.3333333333333333,100000\nK,2.0,7\n'
    )
    assert write_table(tmp_path / "a.csv", ROWS, digits=3).read_text().splitlines()[1:] == [
        '"gap, direct",0.333,100000',
        "K,2,7",
    ]


def test_columns(tmp_path):
    text = write_table(tmp_path / "a.csv", iter(ROWS), ("n", "seed")).read_text()
    assert text == "n,seed\n100000,\n7,\n"
    assert write_table(tmp_path / "a.csv", [], ("n", "seed")).read_text() == "n,seed\n"


def test_links_and_devices_stay_what_they_are(tmp_path):
    (tmp_path / "real.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to("real.csv")
    write_table(tmp_path / "link.csv", ROWS[1:])
    assert (tmp_path / "link.csv").is_symlink() and (tmp_path / "real.csv").read_text() == "target,mae,n\nK,2.0,7\n"
    assert not write_table(os.devnull, ROWS[1:]).is_file()


def test_what_cannot_be_written_leaves_the_old_table(tmp_path):
    path = write_table(tmp_path / "a.csv", ROWS[1:])
    with pytest.raises(ValueError, match="seed"):
        write_table(path, [*ROWS, {"seed": 1}])
    assert path.read_text() == "target,mae,n\nK,2.0,7\n" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(InputError, match="cannot be written"):
        write_table(tmp_path / "nowhere" / "a.csv", ROWS)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (None, "cannot be read"),
        (b'{"a": 1', "damaged"),
        (b'{"a": "\xff"}', "damaged"),
        (b"[1]", "a JSON object was expected, found list"),
    ],
    ids=["absent", "cut", "not UTF-8", "another thing"],
)
def test_json_that_is_none_is_named(tmp_path, data, told):
    path = tmp_path / "a.json"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(InputError, match=f"a.json: {told}"):
        read_json(path)
