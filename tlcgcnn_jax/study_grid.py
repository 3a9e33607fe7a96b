"""The grid of a study: which runs there are, and which crystals each trains, validates and tests on."""

import fnmatch
import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.files import file_name
from tlcgcnn_jax.splits import Split, random_split
from tlcgcnn_jax.strategies import EnsembleStrategy, Strategy
from tlcgcnn_jax.study_config import StudyConfig, StudyTarget, target_name, training_sizes

SCRATCH, AUTO, ALL, POOL = "scratch", "auto", "all", "pool"
LONGEST_NAME = 240  # bytes: file systems take 255, the ending of a file included


@dataclass(frozen=True)
class Cell:
    """Runs that differ in their seed alone; they share a compiled program.

    Attributes:
        target: Name of the target.
        source: Name of the source, "auto", "all", "+"-joined names for a mean of runs from several, or "" for none.
        source_size: Crystals that the source was trained on; 0 where there is none, several, or it is not known.
        strategy: Name of the strategy or baseline.
        kind: "scratch", "transfer" or "baseline".
        size: Crystals to train on.
    """

    target: str
    source: str
    source_size: int
    strategy: str
    kind: str
    size: int

    def run(self, seed: int) -> str:
        """Name of one run.

        Example:
            >>> Cell("gap", "mp-energy", 500, "features:svr", "transfer", 100).run(3)
            'gap__mp-energy-500__features_svr__100__3'
        """
        source = f"{self.source}-{self.source_size}" if self.source_size else self.source or "none"
        name = "__".join(file_name(str(part)) for part in (self.target, source, self.strategy, self.size, seed))
        if len(name.encode()) <= LONGEST_NAME:
            return name
        known = hashlib.sha256(f"{self.target}\0{source}\0{self.strategy}".encode()).hexdigest()[:16]
        return f"{name[: LONGEST_NAME // 4]}__{known}__{self.size}__{seed}"


def grid(
    study: StudyConfig, sources: Sequence[tuple[str, int]], pool: Sequence[str] = ()
) -> tuple[list[Cell], list[Cell]]:
    """All cells of a study: those to be computed, and the ensembles that are made of their predictions.

    Args:
        study: The configuration.
        sources: Name and training size of each source that is used alone.
        pool: Names of the further sources, which NAME@pool uses alone as well.

    Returns:
        Both; the first in the order in which they are worth having: small training sets first, scratch before transfer.
    """
    computed: list[Cell] = []
    combined: list[Cell] = []
    for target in study.targets:
        for size in training_sizes(study, target):
            name = target_name(target)
            if not study.without_scratch:
                computed.append(Cell(name, "", 0, SCRATCH, "scratch", size))
            computed += [Cell(name, "", 0, baseline, "baseline", size) for baseline in study.baselines]
            for strategy in study.strategies:
                if strategy == SCRATCH:
                    continue
                way = study.strategy(strategy)
                if isinstance(way, EnsembleStrategy):
                    combined += [
                        Cell(name, source, trained_on, strategy, kind, size)
                        for source, trained_on, kind in _origins(study, way, sources)
                    ]
                    continue
                bare, _, wanted = strategy.partition("@")
                several = isinstance(way, Strategy) and way.sources != 1
                chosen = [source for source in sources if source[0] == wanted] if wanted else [*sources]
                if wanted in (AUTO, ALL) or (several and not wanted):
                    chosen = [(wanted or ALL, 0)]
                if wanted == POOL:
                    chosen = [(one, 0) for one in pool if not left_out(target, one)]
                computed += [Cell(name, *source, bare, "transfer", size) for source in chosen]
    step = {
        (target_name(target), size): place
        for target in study.targets
        for place, size in enumerate(sorted(training_sizes(study, target)))
    }
    kind = {"scratch": 0, "baseline": 1, "transfer": 2}
    computed = sorted(dict.fromkeys(computed), key=lambda c: (step[c.target, c.size], kind[c.kind]))
    return computed, list(dict.fromkeys(combined))


def left_out(target: StudyTarget, *names: str) -> bool:
    """Whether a source, by any of its names, knows a target's own property, as the study's configuration says."""
    return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in target.leave_out)


def _origins(
    study: StudyConfig, way: EnsembleStrategy, sources: Sequence[tuple[str, int]]
) -> list[tuple[str, int, str]]:
    """Source, its size and the kind of each ensemble: those that its parts name, none, or each source alone."""
    if way.name == AUTO:
        return [(ALL, 0, "transfer")]
    plain = {SCRATCH, *study.baselines}
    if plain.issuperset(way.parts):
        return [("", 0, "baseline")]
    if all("@" in part or part in plain for part in way.parts):
        named = dict.fromkeys(part.partition("@")[2] for part in way.parts if "@" in part)
        return [("+".join(named), 0, "transfer")]
    return [(*source, "transfer") for source in sources]


def study_split(
    formulas: Sequence[str], sizes: Sequence[int], seed: int, test: float, val: float, known: Collection[str] = ()
) -> dict[int, Split]:
    """Splits of one seed for all training sizes: crystals of one formula stay together, training sets are nested.

    Args:
        formulas: Reduced formula of each crystal.
        sizes: Training crystals.
        seed: Same seed, same splits.
        test: Share (up to 1.0) or number of test crystals.
        val: Validation crystals for each training crystal.
        known: Formulas that must not be tested or validated on, since a source was trained on them.

    Returns:
        For each size the training rows (the first ones of the largest training set), as many validation rows as
        `val` asks for (nested likewise), and the test rows, which are the same for all sizes.

    Raises:
        InputError: Too few crystals; the message says how many are needed and how many there are.

    Example:
        >>> splits = study_split([f"A{i}" for i in range(100)], [20, 40], seed=0, test=0.2, val=0.25)
        >>> [len(part) for part in (splits[20].train, splits[20].val, splits[20].test)]
        [20, 5, 20]
    """
    n, largest = len(formulas), max(sizes)
    n_test = round(test * n) if test <= 1 else int(test)
    n_val = max(1, round(val * largest))
    groups: dict[str, list[int]] = {}
    for row, formula in enumerate(formulas):
        groups.setdefault(formula, []).append(row)
    rng = np.random.default_rng(seed)
    names = list(groups)
    parts: dict[str, list[int]] = {"test": [], "val": [], "train": []}
    for index in rng.permutation(len(names)):
        rows, unseen = groups[names[index]], names[index] not in known
        wanted = [part for part, most in (("test", n_test), ("val", n_val)) if len(parts[part]) < most and unseen]
        parts[wanted[0] if wanted else "train"] += rows
    for part, most in (("test", n_test), ("val", n_val), ("train", largest)):
        if len(parts[part]) < most:
            unseen = sum(formula not in known for formula in formulas)
            told = f", {unseen:,} of them with a formula that no source is known to have seen" if known else ""
            raise InputError(
                f"{most:,} crystals to {part} with, {len(parts[part]):,} are left: {n:,} have a label{told}; "
                f"ask for fewer (sizes up to {largest}, test {test:g}, val {val:g})"
                + (", or set disjoint = false" if known and part != "train" else "")
            )
    rows = {part: rng.permutation(np.array(found, np.int64)) for part, found in parts.items()}
    return {
        size: Split(rows["train"][:size], rows["val"][: max(1, round(val * size))], rows["test"][: max(n_test, 1)])
        for size in sizes
    }


def given_split(split: Split, sizes: Sequence[int], seed: int) -> dict[int, Split]:
    """A given split at all training sizes: nested random parts of its training rows, or as many as it has.

    Example:
        >>> splits = given_split(Split(np.arange(9), np.array([9]), np.array([10, 11])), [3, 10], seed=0)
        >>> [len(split.train) for split in splits.values()], splits[3].test
        ([3, 9], array([10, 11]))
    """
    order = np.random.default_rng(seed).permutation(split.train)
    return {size: replace(split, train=order[:size]) for size in sizes}


def with_validation(split: Split, formulas: Sequence[str], seed: int, val: float) -> Split:
    """A split that has validation rows: where there are none, some of its training rows become that, by formula.

    Args:
        split: The split.
        formulas: Reduced formula of each crystal.
        seed: Same seed, same choice.
        val: Validation rows for each training row that is left.
    """
    if len(split.val):
        return split
    share = val / (1 + val)
    drawn = random_split(len(split.train), seed, 1 - share, share, 0.0, [formulas[row] for row in split.train])
    return replace(split, train=split.train[drawn.train], val=split.train[drawn.val])
