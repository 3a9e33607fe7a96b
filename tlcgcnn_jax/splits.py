"""Which crystals train, validate and test: seeded splits, folds, nested training sets, and overlaps."""

import json
import logging
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.files import user_path, write_whole
from tlcgcnn_jax.readers import read_bytes

logger = logging.getLogger(__name__)

_PARTS = ("train", "val", "test")
_EXPECTED = '{"train": [ids], "val": [ids], "test": [ids]}'


@dataclass(frozen=True, eq=False)
class Split:
    """Row numbers of the crystals that train, validate and test.

    That the parts share no crystal, and lie within the dataset, is checked by `fit` and `transfer`; those that
    `random_split`, `k_fold` and `read_split` make share none.

    Attributes:
        train: int64 [n_train].
        val: int64 [n_val], to choose epochs and settings by.
        test: int64 [n_test], looked at once.

    Raises:
        InputError: Anything but whole numbers.

    Example:
        >>> import numpy as np
        >>> from tlcgcnn_jax import Split
        >>> Split(np.array([0, 3, 4]), np.array([2]), np.array([1])).train
        array([0, 3, 4])
    """

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray

    def __post_init__(self) -> None:
        for part in _PARTS:
            rows = np.asarray(getattr(self, part))
            if len(rows) and rows.dtype.kind not in "iu":
                raise InputError(f"{part}: row numbers were expected in a split, found {rows.dtype}")
            object.__setattr__(self, part, rows.astype(np.int64))

    def of(self, rows: np.ndarray) -> "Split":
        """The same split of some rows of a dataset: what was row 0 is the first of them.

        Example:
            >>> Split([0], [2], [1]).of(np.array([5, 7, 9])).val
            array([9])
        """
        return Split(rows[self.train], rows[self.val], rows[self.test])


class Overlap(NamedTuple):
    """How many crystals of a target also stand in a source, by formula."""

    count: int
    share: float


def random_split(
    n: int,
    seed: int,
    train: float | int = 0.8,
    val: float | int = 0.1,
    test: float | int = 0.1,
    groups: Sequence[Hashable] | None = None,
) -> Split:
    """A seeded random split.

    Args:
        n: Number of crystals.
        seed: Same seed, same split.
        train: Share of the crystals (a float up to 1.0), or their number (an int).
        val: Share or number.
        test: Share or number.
        groups: One label per crystal, e.g. its formula: crystals with the same label stay together. Sizes are then
            met as nearly as whole groups allow.

    Returns:
        The split; rows of a part are in random order, so that any prefix is a random sample.

    Raises:
        InputError: Sizes that are neither shares nor numbers, do not fit, or leave nothing for training; not one group
            label for each crystal, or groups too large for a part.

    Example:
        >>> from tlcgcnn_jax import random_split
        >>> split = random_split(10, seed=0, train=0.6, val=2, test=0.2)
        >>> len(split.train), len(split.val), len(split.test)
        (6, 2, 2)
    """
    wanted = {"train": train, "val": val, "test": test}
    sizes = _sizes(n, wanted)
    rng = np.random.default_rng(seed)
    if groups is None:
        order = rng.permutation(n)
        ends = np.cumsum([sizes["test"], sizes["val"], sizes["train"]])
        return Split(order[ends[1] : ends[2]], order[ends[0] : ends[1]], order[: ends[0]])
    members = _groups(n, groups)
    parts: dict[str, list[np.ndarray]] = {part: [] for part in _PARTS}
    room = {part: size for part, size in sizes.items() if size}
    for i in rng.permutation(len(members)):
        # In proportion, so that no part is left with the last groups, which may not fit into it; and where all crystals
        # were asked for, into a part that is full rather than nowhere.
        size = len(members[i])
        part = max(room, key=lambda part: (room[part] >= size, room[part] / sizes[part]))
        if room[part] >= size or sum(sizes.values()) == n:
            parts[part].append(members[i])
            room[part] -= size
    split = {part: rng.permutation(_joined(parts[part])) for part in _PARTS}
    for part in _PARTS:
        if sizes[part] and not len(split[part]):
            raise InputError(
                f"no group of crystals fits into {part} ({sizes[part]} of {n} crystals): the groups are too large "
                f"(largest: {max(map(len, members))}); ask for more crystals there, or split without groups"
            )
    return Split(**split)


def k_fold(n: int, folds: int, seed: int, repeat: int = 0, groups: Sequence[Hashable] | None = None) -> list[Split]:
    """Folds for cross-validation: every crystal is tested once; the fold after the tested one validates.

    Args:
        n: Number of crystals.
        folds: Number of folds, at least 3 (one tests, one validates, the rest trains).
        seed: Same seed, same folds.
        repeat: Another number, other folds with the same seed.
        groups: One label per crystal; crystals with the same label share a fold.

    Returns:
        One split for each fold.

    Raises:
        InputError: Fewer than 3 folds, fewer crystals (or groups) than folds, or not one group label for each crystal.

    Example:
        >>> from tlcgcnn_jax import k_fold
        >>> sorted(row for split in k_fold(7, folds=3, seed=0) for row in split.test.tolist())
        [0, 1, 2, 3, 4, 5, 6]
    """
    if folds < 3:
        raise InputError(f"{folds} folds: at least 3 are needed (one to test, one to validate, the rest to train)")
    members = [np.array([row]) for row in range(n)] if groups is None else _groups(n, groups)
    if len(members) < folds:
        what = "crystals" if groups is None else "groups of crystals"
        raise InputError(f"{len(members)} {what} for {folds} folds: use at most {len(members)} folds, or more crystals")
    rng = np.random.default_rng([seed, repeat])
    parts: list[list[np.ndarray]] = [[] for _ in range(folds)]
    sizes = [0] * folds
    for i in rng.permutation(len(members)):
        smallest = int(np.argmin(sizes))
        parts[smallest].append(members[i])
        sizes[smallest] += len(members[i])
    rows = [rng.permutation(_joined(part)) for part in parts]
    splits = []
    for fold in range(folds):
        after = (fold + 1) % folds
        rest = [rows[other] for other in range(folds) if other not in (fold, after)]
        splits.append(Split(rng.permutation(_joined(rest)), rows[after], rows[fold]))
    return splits


def deal(rows: np.ndarray, folds: int, seed: int, groups: Sequence[Hashable]) -> list[Split]:
    """Crystals dealt to training and validation so many times that each of them validates once.

    Args:
        rows: int [n], rows of the crystals.
        folds: How many times, at least 3.
        seed: Same seed, same divisions.
        groups: [n], one label per crystal; crystals with the same label share a fold.

    Returns:
        One division for each fold, none of which tests.

    Raises:
        InputError: Fewer groups than folds.

    Example:
        >>> dealt = deal(np.array([7, 8, 9]), 3, seed=0, groups="abc")
        >>> sorted(row for split in dealt for row in split.val.tolist()), [len(split.train) for split in dealt]
        ([7, 8, 9], [2, 2, 2])
    """
    parts = k_fold(len(rows), folds, seed, groups=groups)
    return [Split(rows[np.concatenate([part.train, part.val])], rows[part.test], rows[:0]) for part in parts]


def nested_sizes(train: np.ndarray, sizes: Sequence[int]) -> dict[int, np.ndarray]:
    """Training sets of several sizes, each one a part of every larger one.

    Args:
        train: Training rows in random order, as in `Split.train`.
        sizes: Numbers of crystals.

    Returns:
        Rows of each size: the first ones of `train`.

    Raises:
        InputError: A size below 1, or above the number of training crystals.

    Example:
        >>> nested_sizes(np.array([4, 2, 7]), [1, 2])
        {1: array([4]), 2: array([4, 2])}
    """
    for size in sizes:
        if not 1 <= size <= len(train):
            raise InputError(f"a training set of {size} crystals: there are {len(train)}; use 1 to {len(train)}")
    return {size: np.asarray(train)[:size] for size in sizes}


def read_split(path: str | Path, ids: Sequence[str], unusable: Sequence[str] = ()) -> Split:
    """A split from a JSON file {"train": [ids], "val": [ids], "test": [ids]}; "val" and "test" may be absent.

    Args:
        path: The file.
        ids: Ids of the dataset's crystals, in its order. Crystals that the file does not name are in no part.
        unusable: Ids of further crystals, which cannot be used; they are dropped, and counted in a warning.

    Returns:
        Row numbers, in the order of the file.

    Raises:
        InputError: Not such a file, an unknown id, an id named twice, or nothing to train on.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from tlcgcnn_jax import read_split
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "split.json")
        ...     _ = path.write_text('{"train": ["a", "c"], "test": ["b"]}')
        ...     read_split(path, ids=["a", "b", "c"]).train
        array([0, 2])
    """
    split, dropped = _usable(_read(path), str(path), ids, unusable)
    if not len(split.train):
        raise InputError(f"{path} leaves nothing to train on: not one crystal of its train part can be used")
    _tell_dropped(path, dropped)
    return split


def read_splits(path: str | Path, ids: Sequence[str], unusable: Sequence[str] = ()) -> list[Split]:
    """Given splits from a JSON file (.json.gz too): a list of what `read_split` reads, each with something to test on.

    Args:
        path: The file.
        ids: Ids of the dataset's crystals, in its order.
        unusable: Ids of further crystals, which cannot be used; they are dropped, and counted in a warning.

    Raises:
        InputError: Not such a file, or a split that `read_split` would refuse or that tests nothing; it is numbered.
    """
    found = _read(path)
    if not isinstance(found, list) or not found:
        raise InputError(f"{path} is not a list of splits: expected [{_EXPECTED}, ...], one for each seed")
    splits, dropped = [], set()
    for number, parts in enumerate(found):
        where = f"{path}, split {number},"
        split, left_out = _usable(parts, where, ids, unusable)
        splits.append(split)
        dropped |= left_out
        if not (len(splits[-1].train) and len(splits[-1].test)):
            raise InputError(f"{where} leaves nothing to train or test on: name crystals that can be used in both")
    _tell_dropped(path, dropped)
    return splits


def _usable(parts: Any, where: str, ids: Sequence[str], unusable: Sequence[str]) -> tuple[Split, set[int]]:
    """A split without crystals that cannot be used, and the rows of these, beyond those of the ids."""
    known = set(ids)  # of a repeated id one crystal may be of use
    split = _split(parts, where, [*ids, *(name for name in unusable if name not in known)])
    rows = {part: getattr(split, part) for part in _PARTS}
    dropped = {row for part in rows.values() for row in part.tolist() if row >= len(ids)}
    return Split(**{part: some[some < len(ids)] for part, some in rows.items()}), dropped


def _tell_dropped(path: str | Path, dropped: set[int]) -> None:
    if dropped:
        logger.warning("%s: %d of its crystals cannot be used and are left out of the splits", path, len(dropped))


def _read(path: str | Path) -> Any:
    try:
        return json.loads(read_bytes(user_path(path)))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error


def _split(parts: Any, where: str, ids: Sequence[str]) -> Split:
    """The rows that the parts of a split name."""
    expected = f"expected {_EXPECTED}"
    if not isinstance(parts, dict) or not all(isinstance(names, list) for names in parts.values()):
        raise InputError(f"{where} is not a split: {expected}")
    if set(parts) - set(_PARTS):
        raise InputError(f"{where} has the part {', '.join(sorted(set(parts) - set(_PARTS)))}: {expected}")
    row = {name: i for i, name in enumerate(ids)}
    named = [(str(name), part) for part in _PARTS for name in parts.get(part, [])]
    unknown = [name for name, _ in named if name not in row]
    if unknown:
        raise InputError(f"{where} names {_some(unknown)}, not in the dataset of {len(ids)} crystals: correct the ids")
    part_of: dict[str, str] = {}
    twice = []
    for name, part in named:
        if name in part_of:
            before = part_of[name]
            twice.append(f"{name} ({before} and {part})" if before != part else f"{name} (twice in {part})")
        part_of[name] = part
    if twice:
        raise InputError(f"{where} names {_some(twice)}: a crystal belongs to one part, once")
    if not parts.get("train"):
        raise InputError(f"{where} has nothing to train on: its train part is empty or absent; {expected}")
    return Split(*(np.array([row[str(name)] for name in parts.get(part, [])], np.int64) for part in _PARTS))


def write_split(path: str | Path, ids: Sequence[str], split: Split) -> None:
    """Write a split as ids, for `read_split`.

    Raises:
        InputError: The file cannot be written.
    """
    write_whole(user_path(path), (json.dumps(_ids(ids, split), indent=1) + "\n").encode())


def splits_to_json(ids: Sequence[str], splits: Sequence[Split]) -> str:
    """Several splits as ids, for `read_splits`.

    Example:
        >>> splits_to_json(["a", "b", "c"], [Split(np.array([2]), np.array([], int), np.array([0, 1]))])
        '[{"train": ["c"], "val": [], "test": ["a", "b"]}]'
    """
    return json.dumps([_ids(ids, split) for split in splits])


def _ids(ids: Sequence[str], split: Split) -> dict[str, list[str]]:
    return {part: [str(ids[row]) for row in getattr(split, part).tolist()] for part in _PARTS}


def overlap(source_formulas: Sequence[str], target_formulas: Sequence[str]) -> Overlap:
    """How many of the target's crystals have a formula that stands in the source as well.

    Example:
        >>> overlap(["NaCl", "Si"], ["Si", "GaAs", "Si", "Ge"])
        Overlap(count=2, share=0.5)
    """
    known = set(source_formulas)
    count = sum(name in known for name in target_formulas)
    return Overlap(count, count / len(target_formulas) if len(target_formulas) else 0.0)


def _sizes(n: int, wanted: dict[str, float | int]) -> dict[str, int]:
    """Numbers of crystals; shares are rounded so that they fill what they add up to."""
    asked = ", ".join(f"{part} {value}" for part, value in wanted.items())
    exact: dict[str, float] = {}
    for part, value in wanted.items():
        if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
            raise InputError(f"{part} is {value!r}: a share (0.8) or a number of crystals (800) was expected")
        if not np.isfinite(value) or value < 0:
            raise InputError(f"{part} is {value}: it must not be negative")
        share = isinstance(value, (float, np.floating))
        if share and value > 1:
            raise InputError(f"{part} is {value}: a share is at most 1.0; write a number of crystals as an integer")
        exact[part] = value * n if share else float(value)
    if sum(exact.values()) > n + 1e-6 * max(n, 1):
        raise InputError(f"{asked} are more than the {n} crystals there are")
    # Each rounded by itself, 0.8, 0.1, 0.1 of 15 are 12, 2 and 2, one too many: the largest part takes the difference.
    sizes = {part: round(value) for part, value in exact.items()}
    total = round(sum(exact.values()))
    shares = [part for part, value in wanted.items() if isinstance(value, (float, np.floating)) and value > 0]
    if shares:
        largest = max(shares, key=lambda part: exact[part])
        sizes[largest] += total - sum(sizes.values())
        # Of three crystals a tenth is one: nobody who asks for a share means none.
        for part in shares if n >= len(wanted) else ():
            if not sizes[part] and exact[part] > 1e-6 and sizes[largest] > 1:
                sizes[part], sizes[largest] = 1, sizes[largest] - 1
    if sizes["train"] < 1:
        raise InputError(f"{asked} of {n} crystals leave nothing to train on")
    return sizes


def _groups(n: int, groups: Sequence[Hashable]) -> list[np.ndarray]:
    if len(groups) != n:
        raise InputError(f"{len(groups)} group labels for {n} crystals: one each was expected")
    members: dict[Hashable, list[int]] = {}
    for row, label in enumerate(groups):
        members.setdefault(label, []).append(row)
    return [np.array(rows, np.int64) for rows in members.values()]


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int64), *parts]).astype(np.int64)


def _some(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
