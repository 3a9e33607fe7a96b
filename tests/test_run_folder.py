"""A folder is looked at before the work for it begins."""

import os

import pytest

from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.run_folder import check_run_folder


@pytest.mark.parametrize("place", ["readonly", "readonly/RUN", "readonly/deep/RUN"])
def test_a_folder_that_cannot_be_written_is_told_at_once(tmp_path, monkeypatch, place):
    (tmp_path / "readonly").mkdir()
    check_run_folder(tmp_path / place, resume=False)
    asked = []
    monkeypatch.setattr(os, "access", lambda path, mode: asked.append((path, mode)))
    with pytest.raises(InputError, match=f"{place}: cannot be written: Permission denied; choose another folder"):
        check_run_folder(tmp_path / place, resume=False)
    assert asked == [(tmp_path / "readonly", os.W_OK)]
    assert not list((tmp_path / "readonly").iterdir())  # nothing left behind


def test_a_folder_that_the_finder_has_looked_into_is_empty(tmp_path):
    (tmp_path / ".DS_Store").write_bytes(b"Bud1")
    check_run_folder(tmp_path, resume=False)
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="exists and is not empty; give another folder"):
        check_run_folder(tmp_path, resume=False)
