"""The merge of parameter trees: source weights, fresh weights, and an account of every array."""

import fnmatch
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tlcgcnn_jax.adapters import ADAPTER
from tlcgcnn_jax.bundle import flatten, unflatten
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.model import Variables
from tlcgcnn_jax.optim import rate_tree
from tlcgcnn_jax.strategies import Strategy


class Leaf(NamedTuple):
    """What became of one array."""

    path: str
    fate: str  # "loaded", "fitted", "rescaled", "re-initialised", or "measured" on the target's training crystals
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


def merge(source: Variables, fresh: Variables, strategy: Strategy, output: str = "loaded") -> tuple[Variables, Account]:
    """Source weights where the strategy keeps them, fresh ones where it asks for them; every array is accounted for.

    Args:
        source: {"params", "batch_stats"} of the source.
        fresh: The same of the target network, newly initialised.
        strategy: What to load.
        output: What became of the source's last layer before: "loaded" as it was, "fitted" to the training labels, or
            "rescaled" to say on their scale what it said on its own.

    Raises:
        InputError: Arrays that only one side has, or whose shapes differ, or patterns without an array, with the
            list of them; or a pull towards what a phase before has moved.

    Source:
        The leaf-by-leaf account follows the habit of big_vision's `merge_params`.
    """
    old, new = flatten(source), flatten(fresh)
    merged, leaves, problems = {}, [], []
    multipliers = flatten(rate_tree(fresh["params"], strategy.rates))
    for path, array in new.items():
        kind, name = path.split("/", 1)
        # An adapter starts anew whatever the source holds: it is the difference to the source.
        patterns = (*strategy.reinitialise, f"{ADAPTER}/*")
        measured = name.startswith("norm/") or kind == "batch_stats" and strategy.batch_norm == "target"
        again = any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
        if again or measured and path not in old:
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
        kept = output if name.startswith("head/output/") else "loaded"
        fate = "measured" if measured else "re-initialised" if again else kept
        leaves.append(Leaf(name, fate, rate, array.size))
    for path in old:
        name = path.split("/", 1)[1]
        if path not in new and not any(fnmatch.fnmatchcase(name, pattern) for pattern in strategy.reinitialise):
            problems.append(f"+ {path} {old[path].shape}: in the source only")
    loaded = [leaf.path for leaf in leaves if leaf.fate != "re-initialised" and leaf.rate is not None]
    for phase in strategy.before:
        rates = flatten(rate_tree(fresh["params"], phase.rates))
        if strategy.pull and any(rates[name] for name in loaded):
            raise InputError(
                f"{strategy.name}: each phase pulls towards where it starts, and one before the last trains what was "
                "loaded: freeze that there, or leave the pull out"
            )
    names = [path.split("/", 1)[1] for path in new]
    problems += [
        f"? {pattern}: nothing in the network to re-initialise"
        for pattern in strategy.reinitialise
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names)
    ]
    if problems:
        raise InputError("the source does not fit the network:\n  " + "\n  ".join(problems))
    return unflatten(merged), Account(tuple(leaves))
