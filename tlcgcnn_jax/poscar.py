"""POSCAR text (VASP 5) -> crystal."""

import itertools
import re

import numpy as np

from tlcgcnn_jax.crystal import Crystal, make_crystal
from tlcgcnn_jax.errors import InputError


def read_poscar(text: str, where: str) -> Crystal:
    """The structure of a POSCAR or CONTCAR that names its elements.

    Args:
        text: Contents of the file.
        where: What the message should call the crystal: file and id.

    Raises:
        InputError: Lines are missing or malformed, or the elements are not named (VASP 4).

    Example:
        >>> lines = ["CsCl", "4.12", "1 0 0", "0 1 0", "0 0 1", "Cs Cl", "1 1", "Direct", "0 0 0", ".5 .5 .5"]
        >>> read_poscar(chr(10).join(lines), "POSCAR").atomic_numbers.tolist()
        [55, 17]

    Source:
        VASP manual, entry POSCAR.
    """
    lines = [re.split(r"[!#]", line)[0] if row else line for row, line in enumerate(text.splitlines())]  # no comments
    try:
        scale = [_float(word) for word in lines[1].split()[:3] if _is_number(word)]
        cell = np.array([[_float(word) for word in lines[row].split()[:3]] for row in (2, 3, 4)])
        names = lines[5].split()
        if names and names[0].isdigit():
            raise InputError(
                f"{where}: line 6 has the atom counts {' '.join(names)} but no line names the elements (VASP "
                "4); add the line of element symbols above the counts, e.g. 'Na Cl'"
            )
        counts = [int(word) for word in itertools.takewhile(str.isdigit, lines[6].split())]
        row = 8 if lines[7].strip()[:1] in ("s", "S") else 7  # an optional line: Selective dynamics
        cartesian = lines[row].strip()[:1] in tuple("cCkK")
        rows = [lines[row + 1 + i].split()[:3] for i in range(sum(counts))]
        coords = np.array([[_float(word) for word in words] for words in rows]).reshape(-1, 3)
    except (IndexError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{where}: this POSCAR is incomplete or malformed ({error})") from error
    if len(counts) != len(names) or len(scale) not in (1, 3):
        raise InputError(f"{where}: this POSCAR names {len(names)} species, counts {len(counts)}, scales {len(scale)}")
    # "Fe_pv" and "Fe/1a2b..." name the potential besides the element
    species = [s for s, n in zip((re.split(r"[_/.]", n)[0] for n in names), counts, strict=True) for _ in range(n)]
    factor = np.array(scale)
    if scale[0] < 0 and len(scale) == 1:  # minus the volume of the cell in Å^3
        factor = np.array([(-scale[0] / abs(np.linalg.det(cell))) ** (1 / 3)])
    cell = cell * factor
    if cartesian:
        make_crystal(cell, species, coords, where)  # the checks, before the cell is inverted
        coords = (coords * factor) @ np.linalg.inv(cell)
    return make_crystal(cell, species, coords, where)


def _float(word: str) -> float:
    """A number as Fortran may write it, 0.4D+01."""
    return float(re.sub("[dD]", "e", word))


def _is_number(word: str) -> bool:
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eEdD][+-]?\d+)?", word) is not None
