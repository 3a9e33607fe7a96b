"""One crystal: its cell, its atoms, its labels."""

import functools
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tlcgcnn_jax.elements import MAX_ATOMIC_NUMBER, atomic_numbers, symbols
from tlcgcnn_jax.errors import InputError

# The lightest real cells have some 2 Å^3 per atom; below this the three vectors lie in a plane.
_SMALLEST_VOLUME = 1e-3
CLOSEST = 0.4  # Å; two sites nearer than this are one site written twice, or a lattice in the wrong unit
VACUUM = 8.0  # Å, the default cutoff of graphs
_CHARGED = re.compile(r"([A-Z][a-z]?)(?:\d*\.?\d*[+-]|[+-]\d*\.?\d*)")


class Crystal(NamedTuple):
    """A periodic crystal as plain arrays.

    Attributes:
        lattice: float64 [3, 3], rows a, b, c in Å.
        atomic_numbers: int32 [n], 1 to 100.
        frac_coords: float64 [n, 3], fractions of a, b, c; need not lie within the cell.

    Example:
        >>> import numpy as np
        >>> from tlcgcnn_jax import Crystal
        >>> salt = Crystal(np.eye(3) * 4.12, np.array([55, 17]), np.array([[0, 0, 0], [0.5, 0.5, 0.5]]))
        >>> salt.frac_coords.shape
        (2, 3)
    """

    lattice: np.ndarray
    atomic_numbers: np.ndarray
    frac_coords: np.ndarray


@dataclass(frozen=True)
class Record:
    """A crystal with its name and its labels.

    Attributes:
        id: Name, unique within what was read.
        structure: The crystal.
        targets: Value of each property that was asked for; NaN where the label is missing.
        where: Where it was read from: a file, or a file and line.

    Example:
        >>> import numpy as np
        >>> from tlcgcnn_jax import Crystal, Record
        >>> salt = Crystal(np.eye(3) * 4.12, np.array([55, 17]), np.array([[0, 0, 0], [0.5, 0.5, 0.5]]))
        >>> Record("CsCl", salt, {"is_metal": 0.0}).targets
        {'is_metal': 0.0}
    """

    id: str
    structure: Crystal
    targets: dict[str, float]
    where: str = ""


def formula(numbers: Iterable[int]) -> str:
    """Reduced formula with the elements in alphabetical order.

    Args:
        numbers: Atomic numbers of all atoms of the cell, in any order.

    Returns:
        Formula without ones, e.g. "Al2O3".

    Example:
        >>> formula([8, 8, 13, 8, 13])
        'Al2O3'
    """
    table = symbols()
    counts = Counter(table[int(z)] for z in numbers)
    divisor = math.gcd(*counts.values())
    return "".join(f"{s}{n // divisor if n > divisor else ''}" for s, n in sorted(counts.items()))


@functools.cache
def atomic_number(species: str) -> int:
    """Atomic number of a species, with or without its charge; 0 if it is none of the elements 1 to 100.

    Deuterium and tritium count as hydrogen.

    Example:
        >>> atomic_number("Fe3+"), atomic_number("Xx")
        (26, 0)
    """
    charged = _CHARGED.fullmatch(species)
    symbol = charged[1] if charged else species
    return 1 if symbol in ("D", "T") else atomic_numbers().get(symbol, 0)


def make_crystal(lattice: Any, species: Sequence[Any], frac_coords: Any, where: str) -> Crystal:
    """Check a cell and its sites, and make them a `Crystal`.

    Args:
        lattice: [3, 3], rows a, b, c in Å.
        species: One symbol ("Fe", "Fe3+") or atomic number per site.
        frac_coords: [n, 3], fractional coordinates.
        where: What the message should call the crystal: file and id.

    Raises:
        InputError: No atoms, a cell without volume, a coordinate that is not finite, an unknown element.
    """
    try:
        cell = np.array(lattice, np.float64)
    except (TypeError, ValueError):
        cell = np.empty(0)
    if cell.shape != (3, 3):
        raise InputError(f"{where}: the lattice must be 3 rows of 3 numbers (a, b, c in Å); found {lattice!r:.120}")
    if not np.isfinite(cell).all():
        raise InputError(f"{where}: the lattice has a number that is not finite: {cell.tolist()}")
    volume = abs(float(np.linalg.det(cell)))
    if volume < _SMALLEST_VOLUME:
        raise InputError(
            f"{where}: the cell has no volume ({volume:.3g} Å^3), lattice {cell.tolist()}; a crystal "
            "with three independent vectors was expected"
        )
    if len(species) == 0:
        raise InputError(f"{where}: there are no atoms in it")
    try:
        coords = np.array(frac_coords, np.float64)
    except (TypeError, ValueError):
        coords = np.empty(0)
    if coords.shape != (len(species), 3):
        raise InputError(
            f"{where}: {len(species)} species need fractional coordinates of shape ({len(species)}, 3); "
            f"found {frac_coords!r:.120}"
        )
    if not np.isfinite(coords).all():
        site = int(np.flatnonzero(~np.isfinite(coords).all(axis=1))[0])
        raise InputError(f"{where}: site {site + 1} ({species[site]}) has coordinates {coords[site].tolist()}")
    numbers = np.array([atomic_number(s) if isinstance(s, str) else _in_table(s) for s in species], np.int32)
    if not numbers.all():
        site = int(np.flatnonzero(numbers == 0)[0])
        raise InputError(
            f"{where}: site {site + 1} is {species[site]!r}, which is none of the elements that the features "
            f"cover (H to {symbols()[MAX_ATOMIC_NUMBER]}, Z = 1 to {MAX_ATOMIC_NUMBER})"
        )
    return Crystal(cell, numbers, coords)


def _in_table(number: Any) -> int:
    is_number = isinstance(number, int | np.integer) and not isinstance(number, bool)
    return int(number) if is_number and 1 <= number <= MAX_ATOMIC_NUMBER else 0


def check_periodic(pbc: Any, lattice: Any, positions: Any, where: str) -> None:
    """Raise `InputError` for a structure that ends where its cell does: repeated, it would be another one.

    Args:
        pbc: [3] booleans, as ASE and pymatgen keep them; None in formats that know crystals only.
        lattice: [3, 3], rows a, b, c in Å.
        positions: [n, 3], Cartesian, in Å.
        where: What the message should call the structure.
    """
    if pbc is not None and np.shape(pbc) not in ((), (3,)):
        raise InputError(f"{where}: pbc is {pbc!r:.40}: whether it repeats along a, b and c was expected")
    repeats = [True] * 3 if pbc is None else [bool(along) for along in np.broadcast_to(pbc, 3)]
    if all(repeats):
        return
    if abs(float(np.linalg.det(np.array(lattice, np.float64)))) < _SMALLEST_VOLUME:
        ends = ", ".join(name for name, along in zip("abc", repeats, strict=True) if not along)
        raise InputError(
            f"{where}: not periodic along {ends}, and its cell has no volume: give it one with {VACUUM:g} Å of vacuum"
        )
    gaps = [math.inf if along else _vacuum(lattice, positions, axis) for axis, along in enumerate(repeats)]
    least = VACUUM - 1e-3  # what is left of 8 Å by rounding
    narrow = [f"{name} (vacuum of {gap:.1f} Å)" for name, gap in zip("abc", gaps, strict=True) if gap < least]
    if narrow:
        raise InputError(
            f"{where}: not periodic along {', '.join(narrow)}; its atoms would be neighbours of their images: leave "
            f"{VACUUM:g} Å of vacuum (more for a larger cutoff), or set pbc where the cell does repeat"
        )


def _vacuum(lattice: Any, positions: Any, axis: int) -> float:
    """Widest layer without atoms across an axis of a repeated cell, in Å."""
    cell = np.array(lattice, np.float64)
    normal = np.cross(cell[axis - 2], cell[axis - 1])
    normal /= np.linalg.norm(normal)
    height = abs(cell[axis] @ normal)
    layers = np.sort(np.array(positions, np.float64).reshape(-1, 3) @ normal % height)
    return float(np.diff(layers, append=layers[:1] + height).max(initial=0.0))


def ordered_species(occupants: Sequence[tuple[str, float]], site: int, where: str) -> str:
    """The one species of a fully occupied site; of several forms of one element (Fe2+ and Fe3+, D and H) the first.

    Args:
        occupants: Species and occupancy of all that share the site.
        site: Its index, counted from 0; the message counts from 1.
        where: What the message should call the crystal.

    Raises:
        InputError: The site is shared by several elements, or partly empty.
    """
    # The model knows an element by its atomic number alone.
    elements = {atomic_number(species) or species for species, _ in occupants}
    if len(elements) == 1 and abs(sum(occupancy for _, occupancy in occupants) - 1) < 1e-6:
        return occupants[0][0]
    shown = ", ".join(f"{species} {occupancy:g}" for species, occupancy in occupants) or "empty"
    raise InputError(
        f"{where}: site {site + 1} has partial occupancy ({shown}); the model needs one atom per site: give "
        "an ordered approximant of the structure, or leave it out"
    )
