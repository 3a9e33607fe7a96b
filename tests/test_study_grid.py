"""Which runs a study has, and which crystals they share."""

import numpy as np
import pytest

from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.splits import Split
from tlcgcnn_jax.study_config import StudyConfig, StudyTarget
from tlcgcnn_jax.study_grid import Cell, given_split, grid, study_split, with_validation

FORMULAS = [f"A{i % 150}B" for i in range(300)]  # two crystals of each
SIZES = [40, 80, 120]


def splits(seed=0, known=(), **others):
    return study_split(FORMULAS, SIZES, seed, **{"test": 50, "val": 0.25, **others}, known=known)


@pytest.mark.parametrize("seed", range(5))
def test_parts_are_apart_by_formula(seed):
    for size, split in splits(seed).items():
        parts = [split.train, split.val, split.test]
        names = [{FORMULAS[row] for row in part} for part in parts]
        assert [len(part) for part in parts] == [size, size // 4, 50]
        assert not names[0] & names[1] and not names[0] & names[2] and not names[1] & names[2]
        assert len(np.unique(np.concatenate(parts))) == size + size // 4 + 50


def test_sizes_are_nested_and_tested_on_the_same():
    found = splits()
    for small, large in zip(SIZES, SIZES[1:], strict=False):
        np.testing.assert_array_equal(found[large].train[:small], found[small].train)
        np.testing.assert_array_equal(found[large].val[: small // 4], found[small].val)
        np.testing.assert_array_equal(found[large].test, found[small].test)


def test_seeds_differ_and_repeat():
    first, again, other = splits(0), splits(0), splits(1)
    np.testing.assert_array_equal(first[40].train, again[40].train)
    assert set(first[40].test) != set(other[40].test)


def test_what_a_source_knows_is_not_tested():
    known = {f"A{i}B" for i in range(60)}
    for split in splits(known=known).values():
        for part in (split.val, split.test):
            assert not known & {FORMULAS[row] for row in part}
        assert known & {FORMULAS[row] for row in split.train}


def test_a_share_of_all():
    assert len(splits(test=0.1)[40].test) == 30


def test_too_few():
    with pytest.raises(InputError, match="1,000 crystals to test with.*300 have a label"):
        splits(test=1000)
    with pytest.raises(InputError, match="disjoint = false"):
        splits(known=set(FORMULAS[:140]))
    with pytest.raises(InputError, match="280 crystals to train with"):
        study_split(FORMULAS, [280], 0, 50, 0.25)


def test_given_splits_at_several_sizes():
    given = Split(np.arange(50, 90), np.arange(90, 95), np.arange(95, 99))
    found = given_split(given, [10, 20, 45], seed=0)
    assert {*found[10].train} < {*found[20].train} < {*found[45].train} == {*given.train}
    assert (found[10].train != given_split(given, [10], seed=1)[10].train).any()
    for split in found.values():
        np.testing.assert_array_equal(split.val, given.val)
        np.testing.assert_array_equal(split.test, given.test)


def test_validation_rows_are_drawn_where_none_are_given():
    given = Split(np.arange(100, 300), np.array([], np.int64), np.arange(20))
    drawn = with_validation(given, FORMULAS, 0, 0.25)
    assert len(drawn.val) == 40 and sorted([*drawn.train, *drawn.val]) == list(range(100, 300))
    assert not {FORMULAS[row] for row in drawn.train} & {FORMULAS[row] for row in drawn.val}
    assert {*drawn.val} != {*with_validation(given, FORMULAS, 1, 0.25).val}
    assert with_validation(drawn, FORMULAS, 1, 0.25) is drawn


STUDY = StudyConfig(
    (StudyTarget("a", "k"), StudyTarget("b", "g", sizes=(20,))),
    strategies=(
        "full", "features:svr@all", "multi_source", "full@auto", "ensemble:full+svr",
        "ensemble:full@auto+features:svr@all", "ensemble:scratch+svr",
    ),
    baselines=("svr",),
    sizes=(10, 50),
)  # fmt: skip


def test_cells():
    computed, combined = grid(STUDY, [("energy", 500), ("energy", 1000)])
    of_k = [(c.source, c.source_size, c.strategy, c.kind) for c in computed if (c.target, c.size) == ("k", 50)]
    assert of_k == [
        ("", 0, "scratch", "scratch"),
        ("", 0, "svr", "baseline"),
        ("energy", 500, "full", "transfer"),
        ("energy", 1000, "full", "transfer"),
        ("all", 0, "features:svr", "transfer"),
        ("all", 0, "multi_source", "transfer"),
        ("auto", 0, "full", "transfer"),
    ]
    assert {c.size for c in computed if c.target == "g"} == {20}
    assert {c.size for c in computed[:6]} == {10, 20}  # small training sets first
    ensembles = [(c.source, c.source_size, c.strategy, c.kind) for c in combined if (c.target, c.size) == ("k", 50)]
    assert ensembles == [
        ("energy", 500, "ensemble:full+svr", "transfer"),
        ("energy", 1000, "ensemble:full+svr", "transfer"),
        ("auto+all", 0, "ensemble:full@auto+features:svr@all", "transfer"),
        ("", 0, "ensemble:scratch+svr", "baseline"),
    ]


def test_runs_have_names_of_their_own():
    computed, combined = grid(STUDY, [("energy", 500), ("energy", 1000)])
    names = [cell.run(seed) for cell in [*computed, *combined] for seed in range(3)]
    assert len(set(names)) == len(names)
    assert Cell("log10(k)", "a/b", 0, "features:svr", "transfer", 10).run(0) == "log10_k__a_b__features_svr__10__0"


def test_the_name_of_a_run_fits_a_file():
    """And is another one for every run."""
    way = "ensemble:" + "+".join(f"full@{'a' * 30}{i}" for i in range(9))
    cells = [Cell("gap", "", 0, way + end, "transfer", size) for end in ("", "+ridge") for size in (50, 100)]
    names = [cell.run(seed) for cell in cells for seed in range(2)]
    assert max(map(len, names)) <= 240 and len(set(names)) == len(names)
    assert all(name.startswith("gap__none__ensemble_full_a") for name in names)
