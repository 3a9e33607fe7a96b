"""The formula that a CIF tells, against the atoms that were read."""

import re
import warnings
from collections import Counter
from typing import NamedTuple

from tlcgcnn_jax.crystal import Crystal, atomic_number
from tlcgcnn_jax.elements import symbols
from tlcgcnn_jax.errors import InputError, ReadingWarning

CONTENTS = ("_chemical_formula_sum", "_cell_formula_units_Z")
_COUNTED = re.compile(r"([A-Z][a-z]?)(\d*\.?\d*)(?:\(\d+\))?")  # as in 'Fe0.95(2) O1'
_HYDROGEN = {1}
_TRACE = 0.02  # of the atoms of a formula; a dopant often has no site of its own


class Contents(NamedTuple):
    """What a CIF says of a cell beside its sites, in the order of `CONTENTS`; "" where it does not."""

    formula: str
    units: str


def composition(formula: str) -> dict[int, float]:
    """Atoms of each element, by atomic number; none where the text is anything else than elements and numbers.

    Elements must be parted by spaces or commas, as the CIF dictionary asks: CO1 may be cobalt in capitals.

    Example:
        >>> composition("C1 D4"), composition("Fe0.95 O"), composition("(Fe,Mg)2 O3"), composition("?")
        ({6: 1.0, 1: 4.0}, {26: 0.95, 8: 1.0}, {}, {})
    """
    counts: dict[int, float] = {}
    for part in formula.replace(",", " ").split():
        counted = _COUNTED.fullmatch(part)
        if counted is None or not (number := atomic_number(counted[1])) or counted[2] == ".":
            return {}
        counts[number] = counts.get(number, 0) + float(counted[2] or 1)
    return {number: count for number, count in counts.items() if count}


def has_contents(crystal: Crystal, contents: Contents) -> bool:
    """Whether a cell holds the atoms that the file tells, hydrogen apart; False where it does not tell."""
    try:
        units = float(contents.units)
    except ValueError:
        return False
    told, read = composition(contents.formula), Counter(crystal.atomic_numbers.tolist())
    # Half an atom: what is told may be rounded.
    return bool(told) and all(abs(read[z] - units * n) < 0.5 for z, n in told.items() if z not in _HYDROGEN)


def check_elements(crystal: Crystal, formula: str, where: str) -> None:
    """Compare the elements of a crystal with those of its formula: a label that was misread shows there.

    Hydrogen in the formula alone, which X-rays often do not find, and traces of other elements are told in a warning.
    Nothing is compared where `composition` does not understand the formula.

    Raises:
        InputError: An element that the formula lacks, or one of it (but hydrogen and traces) that no site has.
    """
    counts = composition(formula)
    told, read = set(counts), set(crystal.atomic_numbers.tolist())
    if not told:
        return
    if strange := read - told:
        raise InputError(
            f"{where}: its sites were read as {_listed(strange)}, which its formula {formula!r} does not have: where "
            "their labels mean another element (W1 for water, HO1 for hydrogen) add a column _atom_site_type_symbol "
            "with elements, or else correct _chemical_formula_sum"
        )
    traces = {number for number in told if counts[number] < _TRACE * sum(counts.values())}
    if absent := told - read - _HYDROGEN - traces:
        raise InputError(
            f"{where}: its formula {formula!r} has {_listed(absent)}, of which no site was found: give each atom its "
            "site, or correct _chemical_formula_sum"
        )
    if absent := told - read:
        told_so = f"{where}: its formula {formula!r} has {_listed(absent)} without a site; it is read without"
        warnings.warn(told_so, ReadingWarning, stacklevel=2)


def _listed(numbers: set[int]) -> str:
    return ", ".join(symbols()[number] for number in sorted(numbers))
