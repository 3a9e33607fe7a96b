"""Tables are written whole, with the columns and digits that were asked for."""

import pytest

from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.files import write_table

ROWS = [{"target": "gap, direct", "mae": 1 / 3, "n": 100000}, {"target": "K", "mae": 2.0, "n": 7}]


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


def test_what_cannot_be_written_leaves_the_old_table(tmp_path):
    path = write_table(tmp_path / "a.csv", ROWS[1:])
    with pytest.raises(ValueError, match="seed"):
        write_table(path, [*ROWS, {"seed": 1}])
    assert path.read_text() == "target,mae,n\nK,2.0,7\n" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(InputError, match="cannot be written"):
        write_table(tmp_path / "nowhere" / "a.csv", ROWS)
