"""Ways to carry a source model over to a target: strategies as data, and the merge of parameter trees."""

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from tlcgcnn_jax.bundle import Model, flatten, unflatten
from tlcgcnn_jax.config import GraphConfig
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.model import Variables
from tlcgcnn_jax.optim import ALL, Rates, rate_tree


@dataclass(frozen=True)
class Strategy:
    """How a source becomes a start, and what is trained from there.

    Attributes:
        name: Short name, as on the command line.
        summary: One sentence for people.
        reinitialise: Globs over parameter paths that get fresh weights; everything else is loaded.
        rates: Learning-rate multipliers by glob, the first match counts; 0 freezes. A convolution of which nothing
            is trained also keeps its batch-norm statistics, and runs on them.
    """

    name: str
    summary: str
    reinitialise: tuple[str, ...]
    rates: Rates


STRATEGIES = {
    strategy.name: strategy
    for strategy in (
        Strategy("scratch", "fresh weights, everything is trained: what transfer has to beat", ("*",), ALL),
        Strategy("full", "source weights with a new head, everything is trained", ("head/*",), ALL),
        Strategy(
            "frozen",
            "embedding, convolutions and their batch-norm statistics stay as in the source; a new head is trained",
            ("head/*",),
            (("head/*", 1.0), ("*", 0.0)),
        ),
        Strategy(
            "head",
            "everything stays as in the source but the last linear layer, which is new",
            ("head/output/*",),
            (("head/output/*", 1.0), ("*", 0.0)),
        ),
    )
}


def find_strategy(strategy: str | Strategy, multipliers: Rates = ()) -> Strategy:
    """A strategy by name, with further learning-rate multipliers in front of its own.

    Args:
        strategy: Name, or a strategy of the caller's own.
        multipliers: For example (("conv_*", 0.1),): convolutions learn at a tenth of the rate.

    Raises:
        InputError: Unknown name, or a multiplier that is negative or no number.

    Example:
        >>> find_strategy("full", (("conv_*", 0.1),)).rates
        (('conv_*', 0.1), ('*', 1.0))
    """
    if isinstance(strategy, str):
        if strategy not in STRATEGIES:
            raise InputError(f"no strategy {strategy!r}; there are: {', '.join(STRATEGIES)}")
        strategy = STRATEGIES[strategy]
    return replace(strategy, rates=check_rates((*multipliers, *strategy.rates)))


class Leaf(NamedTuple):
    """What became of one array."""

    path: str
    fate: str  # "loaded" or "re-initialised"
    rate: float | None  # learning-rate multiplier; None for statistics
    size: int


@dataclass(frozen=True)
class Account:
    """What became of every array in a merge."""

    leaves: tuple[Leaf, ...]

    def __str__(self) -> str:
        rows: dict[tuple[str, str, str], list[int]] = {}
        for leaf in self.leaves:
            module = "/".join(leaf.path.split("/")[:2]) if leaf.path.startswith("head/") else leaf.path.split("/")[0]
            trained = "statistics" if leaf.rate is None else "frozen" if not leaf.rate else f"trained x{leaf.rate:g}"
            rows.setdefault((module, leaf.fate, trained), []).append(leaf.size)
        return "\n".join(
            f"  {module:<16} {len(sizes):>2} arrays {sum(sizes):>7,} numbers  {fate:<15} {trained}"
            for (module, fate, trained), sizes in rows.items()
        )


def merge(source: Variables, fresh: Variables, strategy: Strategy) -> tuple[Variables, Account]:
    """Source weights where the strategy keeps them, fresh ones where it asks for them; every array is accounted for.

    Args:
        source: {"params", "batch_stats"} of the source.
        fresh: The same of the target network, newly initialised.
        strategy: What to load.

    Raises:
        InputError: Arrays that only one side has, or whose shapes differ, or patterns without an array, with the
            list of them.

    Source:
        The leaf-by-leaf account follows the habit of big_vision's `merge_params`.
    """
    old, new = flatten(source), flatten(fresh)
    merged, leaves, problems = {}, [], []
    multipliers = flatten(rate_tree(fresh["params"], strategy.rates))
    for path, array in new.items():
        kind, name = path.split("/", 1)
        again = any(fnmatch.fnmatchcase(name, pattern) for pattern in strategy.reinitialise)
        if again:
            merged[path] = array
        elif path not in old:
            problems.append(f"- {path} {array.shape}: not in the source")
            continue
        elif old[path].shape != array.shape:
            problems.append(f"- {path}: {old[path].shape} in the source, {array.shape} needed")
            continue
        else:
            merged[path] = np.asarray(old[path], array.dtype)
        rate = float(multipliers[name]) if kind == "params" else None
        leaves.append(Leaf(name, "re-initialised" if again else "loaded", rate, array.size))
    for path in old:
        name = path.split("/", 1)[1]
        if path not in new and not any(fnmatch.fnmatchcase(name, pattern) for pattern in strategy.reinitialise):
            problems.append(f"+ {path} {old[path].shape}: in the source only")
    names = [path.split("/", 1)[1] for path in new]
    problems += [
        f"? {pattern}: nothing in the network to re-initialise"
        for pattern in strategy.reinitialise
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names)
    ]
    if problems:
        raise InputError("the source does not fit the network:\n  " + "\n  ".join(problems))
    return unflatten(merged), Account(tuple(leaves))


def check_graph(graph: GraphConfig, source: Model, where: str = "the dataset") -> None:
    """Raise `InputError` unless a dataset's graphs are of the kind that a model was trained on."""
    wanted, found = replace(source.graph, places=graph.places), graph
    if wanted == found:
        return
    names = [name for name in GraphConfig.__dataclass_fields__ if getattr(wanted, name) != getattr(found, name)]
    told = "; ".join(f"{name} is {getattr(found, name)}, the model's {getattr(wanted, name)}" for name in names)
    raise InputError(
        f"{where} was prepared with other graph settings than the model's ({told}): "
        "prepare it again with those, or give the crystals themselves instead of a prepared dataset"
    )


def check_rates(patterns: Sequence[tuple[str, float]]) -> Rates:
    """Multipliers as a tuple, each of them finite and not negative."""
    for pattern, rate in patterns:
        if not (np.isfinite(rate) and rate >= 0):
            raise InputError(f"learning-rate multiplier of {pattern!r} is {rate}: it must be 0 (frozen) or positive")
    return tuple((str(pattern), float(rate)) for pattern, rate in patterns)
