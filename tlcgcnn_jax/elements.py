"""The 92 elemental features of CGCNN, from a table of bin numbers."""

import csv
import functools
from importlib import resources

import numpy as np

# One-hot widths of the nine properties, in the order of the table's columns (Xie & Grossman 2018, Table S2).
WIDTHS = {
    "group": 19,
    "period": 7,
    "electronegativity": 10,
    "covalent_radius": 10,
    "valence_electrons": 12,
    "first_ionization_energy": 10,
    "electron_affinity": 10,
    "block": 4,
    "atomic_volume": 10,
}
N_FEATURES = sum(WIDTHS.values())  # 92
MAX_ATOMIC_NUMBER = 100


@functools.cache
def _rows() -> list[dict[str, str]]:
    text = resources.files("tlcgcnn_jax").joinpath("data/element_bins.csv").read_text()
    return list(csv.DictReader(text.splitlines()))


@functools.cache
def symbols() -> tuple[str, ...]:
    """Element symbols; the index is the atomic number, and index 0 is an empty string.

    Example:
        >>> symbols()[14]
        'Si'
    """
    return ("", *(row["symbol"] for row in _rows()))


@functools.cache
def atomic_numbers() -> dict[str, int]:
    """Atomic number of each symbol, 1 to 100.

    Example:
        >>> atomic_numbers()["Si"]
        14
    """
    return {symbol: number for number, symbol in enumerate(symbols()) if symbol}


@functools.cache
def feature_table() -> np.ndarray:
    """One row of 92 one-hot features for each atomic number.

    Returns:
        float32 [101, 92]; row 0 (padding) is zero, and so is a group whose bin is blank for that element.

    Source:
        Xie & Grossman, Phys. Rev. Lett. 120, 145301 (2018), supplementary tables.

    Example:
        >>> feature_table().shape
        (101, 92)
    """
    table = np.zeros((MAX_ATOMIC_NUMBER + 1, N_FEATURES), np.float32)
    for row in _rows():
        start = 0
        for name, width in WIDTHS.items():
            if row[name] != "":
                table[int(row["atomic_number"]), start + int(row[name])] = 1.0
            start += width
    table.setflags(write=False)
    return table
