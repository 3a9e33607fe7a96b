"""Descriptors: numbers that describe a crystal's composition and structure without a network, for the baselines."""

import functools
import warnings
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from tlcgcnn_jax.dataset import CrystalDataset
from tlcgcnn_jax.elements import MAX_ATOMIC_NUMBER
from tlcgcnn_jax.errors import InputError

_NORMS = (2, 3, 5, 7, 10)
_CAPACITY = {"s": 2, "p": 6, "d": 10, "f": 14}
_NEAR = 1.2  # times the nearest distance: the neighbours that a chemist would count
_MOLE = 0.602214076  # Å^3 per atom to cm^3 per mole
_ROUNDING = 1e-5  # of the graph's distances, which are float32
_GRAMS = 1.66053907  # g/cm^3 in one dalton/Å^3
# Names of pymatgen's data; the units are its own (Å, K, eV, GPa, cm^3/mol, dalton).
_PROPERTIES = {
    "Mendeleev number": "mendeleev_no",
    "atomic mass": "atomic_mass",
    "melting point": "melting_point",
    "group": "group",
    "row": "row",
    "atomic radius": "atomic_radius",
    "electronegativity": "X",
    "ionization energy": "ionization_energy",
    "electron affinity": "electron_affinity",
    "molar volume": "molar_volume",
    "bulk modulus": "bulk_modulus",
}


class Features(NamedTuple):
    """A table of numbers, one row a crystal.

    Attributes:
        names: Of the columns.
        values: float64 [n, n_column], all finite.
    """

    names: tuple[str, ...]
    values: np.ndarray


def descriptors(dataset: CrystalDataset, matminer: bool = False) -> Features:
    """Composition and structure of each crystal as numbers.

    Args:
        dataset: Crystals as packed graphs; its targets are not looked at.
        matminer: Take the composition's numbers from matminer's preset "magpie" (extra `matminer`) and not from
            `composition_features`.

    Returns:
        One row a crystal. With graphs of `ties="shell"`, the order of the atoms, the choice of the cell and
        supercells change nothing but the rounding.

    Raises:
        InputError: matminer was asked for and is not installed.

    Example:
        >>> from tlcgcnn_jax.dataset import build_dataset
        >>> from tlcgcnn_jax.textbook import textbook_records
        >>> descriptors(build_dataset(textbook_records())).values.shape
        (107, 186)
    """
    composition = matminer_features(dataset) if matminer else composition_features(dataset)
    structure = structure_features(dataset)
    return Features(composition.names + structure.names, np.hstack([composition.values, structure.values]))


def composition_features(dataset: CrystalDataset) -> Features:
    """Statistics of elemental properties, weighted by the elements' shares of the atoms, of the Magpie type.

    Minimum, maximum, range, mean, mean absolute deviation and mode (of the most abundant element; the lowest where
    several are) of every property in `element_properties`; norms of the shares; shares of s, p, d and f electrons
    among the valence electrons; and ionic character from differences of electronegativity.

    Args:
        dataset: Crystals as packed graphs.

    Returns:
        float64 [n, 143].

    Example:
        >>> from tlcgcnn_jax.dataset import build_dataset
        >>> from tlcgcnn_jax.textbook import textbook_records
        >>> features = composition_features(build_dataset(textbook_records()[:1]))
        >>> float(features.values[0, features.names.index("mean atomic number")])  # diamond
        6.0

    Source:
        L. Ward et al., npj Comput. Mater. 2, 16028 (2016), with elemental data of pymatgen.
    """
    crystal, numbers, share = _shares(dataset)
    start = np.searchsorted(crystal, np.arange(len(dataset)))
    properties = element_properties()
    table = np.stack(list(properties.values()), 1)[numbers]  # [n_pair, n_property]

    def mean(values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(share[:, None] * values, start)

    low, high, average = np.minimum.reduceat(table, start), np.maximum.reduceat(table, start), mean(table)
    most = share >= np.maximum.reduceat(share, start)[crystal]
    statistics = {
        "minimum": low,
        "maximum": high,
        "range": high - low,
        "mean": average,
        "deviation": mean(np.abs(table - average[crystal])),
        "mode": np.minimum.reduceat(np.where(most[:, None], table, np.inf), start),
    }
    columns = {f"{kind} {name}": v[:, i] for kind, v in statistics.items() for i, name in enumerate(properties)}
    columns |= {f"norm {p} of shares": np.add.reduceat(share**p, start) ** (1 / p) for p in _NORMS}
    electrons = {orbital: mean(properties[f"valence {orbital}"][numbers][:, None])[:, 0] for orbital in _CAPACITY}
    total = sum(electrons.values(), start=np.zeros(len(dataset)))
    columns |= {f"share of {orbital} electrons": number / total for orbital, number in electrons.items()}
    shares = np.zeros((len(dataset), MAX_ATOMIC_NUMBER))
    shares[crystal, numbers - 1] = share
    electronegativity = properties["electronegativity"][1:]
    ionic = 1 - np.exp(-((electronegativity[:, None] - electronegativity) ** 2) / 4)
    columns["largest ionic character"] = 1 - np.exp(-(columns["range electronegativity"] ** 2) / 4)
    columns["mean ionic character"] = (shares @ ionic * shares).sum(1)
    return _features(columns)


def matminer_features(dataset: CrystalDataset) -> Features:
    """The 132 numbers of matminer's preset "magpie" for each composition, missing ones imputed by it.

    Raises:
        InputError: matminer is not installed.

    Source:
        L. Ward et al., Comput. Mater. Sci. 152, 60 (2018) (matminer).
    """
    try:
        from matminer.featurizers.composition import ElementProperty  # type: ignore[import-not-found]
    except ImportError as error:
        raise InputError(
            f"matminer cannot be imported ({error}): install it (pip install 'tlcgcnn_jax[matminer]'), or leave "
            "matminer=False for the package's own descriptors of the composition"
        ) from error
    from pymatgen.core import Composition

    featurizer = ElementProperty.from_preset("magpie", impute_nan=True)
    formulas, inverse = np.unique(dataset.formulas, return_inverse=True)
    values = np.array([featurizer.featurize(Composition(str(formula))) for formula in formulas], np.float64)
    return Features(tuple(featurizer.feature_labels()), values[inverse])


def structure_features(dataset: CrystalDataset) -> Features:
    """Density, packing and coordination of each crystal, from its graph alone.

    Numbers of a site (distances, coordination, differences to its bonded neighbours) enter as minimum, maximum, mean
    and mean absolute deviation over the sites. A neighbour counts as bonded by Hoppe's weight exp(1 - (d / d_0)^6),
    which falls off smoothly past the bond length d_0 and needs no threshold.

    Args:
        dataset: Crystals as packed graphs; coordination is seen up to the graph's number of neighbours (12).

    Returns:
        float64 [n, 43]; distances in Å, volumes in Å^3 per atom, density in g/cm^3.

    Example:
        >>> from tlcgcnn_jax.dataset import build_dataset
        >>> from tlcgcnn_jax.textbook import textbook_records
        >>> features = structure_features(build_dataset(textbook_records()[:1]))
        >>> round(float(features.values[0, features.names.index("density")]), 1)  # diamond
        3.5

    Source:
        R. Hoppe, Z. Kristallogr. 150, 23 (1979) (effective coordination number); B. Cordero et al., Dalton Trans.
        2008, 2832 (covalent radii).
    """
    crystal, numbers, share = _shares(dataset)
    start = np.searchsorted(crystal, np.arange(len(dataset)))
    properties, radius = element_properties(), covalent_radii()
    volume = dataset.volume / dataset.n_atom.astype(np.float64)

    def mean(values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(share * values[numbers], start)

    n_atom = np.asarray(dataset.n_atom, np.int64)
    divisor = np.gcd.reduceat(np.rint(share * n_atom[crystal]).astype(np.int64), start)
    columns = {
        "density": _GRAMS * mean(properties["atomic mass"]) / volume,
        "volume": volume,
        "volume over the elements' volume": volume * _MOLE / mean(properties["molar volume"]),
        "packing fraction": mean(4 / 3 * np.pi * radius**3) / volume,
        "valence electrons over volume": mean(properties["valence"]) / volume,
        "elements": np.diff(start, append=len(crystal)),
        "atoms in the formula": n_atom // divisor,
    }
    first = dataset.atom_offset[:-1]
    for name, values in _site_features(dataset).items():
        average = np.add.reduceat(values, first) / n_atom
        away = np.abs(values - np.repeat(average, n_atom))
        away[away < _ROUNDING] = 0  # equivalent sites are equal
        columns[f"minimum {name}"] = np.minimum.reduceat(values, first)
        columns[f"maximum {name}"] = np.maximum.reduceat(values, first)
        columns[f"mean {name}"] = average
        columns[f"deviation {name}"] = np.add.reduceat(away, first) / n_atom
    return _features(columns)


def _site_features(dataset: CrystalDataset) -> dict[str, np.ndarray]:
    """Numbers of each atom's surroundings, float64 [n_atom_total] each."""
    first = np.repeat(dataset.atom_offset[:-1], dataset.n_row)[:, None]
    used = np.asarray(dataset.weights) > 0
    receiver = np.broadcast_to(np.asarray(dataset.receivers)[:, None] + first, used.shape)[used]
    one = dataset.atomic_numbers[receiver]
    other = dataset.atomic_numbers[(dataset.senders + first)[used]]
    weight = dataset.weights[used].astype(np.float64)
    distance = dataset.distances[used].astype(np.float64)
    atoms = len(dataset.atomic_numbers)
    nearest = np.minimum.reduceat(distance, np.searchsorted(receiver, np.arange(atoms)))

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(receiver, values, atoms)

    def bonded(length: np.ndarray) -> np.ndarray:
        return weight * np.exp(1 - (distance / length[receiver]) ** 6)

    def mean(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return total(weight * values) / total(weight)

    length = mean(distance, bonded(nearest))
    bond = bonded(length)
    around = mean(distance, weight)
    radius, electronegativity = covalent_radii(), element_properties()["electronegativity"]
    return {
        "nearest distance": nearest,
        "bond length": length,
        "neighbour distance": around,
        "spread of neighbour distances": mean(np.abs(distance - around[receiver]), weight),
        "coordination number": total(bond),
        "near neighbours": total(weight * (distance < _NEAR * nearest[receiver])),
        "bond length over covalent radii": mean(distance / (radius[one] + radius[other]), bond),
        "difference of electronegativity": mean(np.abs(electronegativity[one] - electronegativity[other]), bond),
        "share of like neighbours": mean((one == other).astype(np.float64), bond),
    }


@functools.cache
def element_properties() -> dict[str, np.ndarray]:
    """Properties of the elements from pymatgen, float64 [101] each, by atomic number (0: NaN).

    Valence electrons are those outside the noble-gas core, and places free in the orbitals that hold some. Where
    pymatgen has no value (e.g. the bulk modulus of a gas), it is interpolated along the Mendeleev number, in which
    neighbours are chemically alike.

    Example:
        >>> element_properties()["valence d"][[26, 79]].tolist()  # iron, gold
        [6.0, 10.0]

    Source:
        pymatgen's `Element`; D. G. Pettifor, Solid State Commun. 51, 31 (1984) (Mendeleev number).
    """
    from pymatgen.core import Element

    elements = [Element.from_Z(number) for number in range(1, MAX_ATOMIC_NUMBER + 1)]
    columns: dict[str, list[float]] = {"atomic number": [element.Z for element in elements]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one for each value that is missing
        for name, attribute in _PROPERTIES.items():
            values = [getattr(element, attribute) for element in elements]
            columns[name] = [np.nan if value is None else float(value) for value in values]
    shells = [_valence(element.electronic_structure) for element in elements]
    for orbital, capacity in _CAPACITY.items():
        columns[f"valence {orbital}"] = [shell.get(orbital, 0) for shell in shells]
        columns[f"free {orbital}"] = [capacity - shell.get(orbital, capacity) for shell in shells]
    columns["valence"] = [sum(shell.values()) for shell in shells]
    columns["free"] = [sum(_CAPACITY[orbital] - number for orbital, number in shell.items()) for shell in shells]
    mendeleev = np.array(columns["Mendeleev number"])
    order = np.argsort(mendeleev)
    properties = {}
    for name, values in columns.items():
        array = np.array(values, np.float64)
        known = order[np.isfinite(array[order])]
        array = np.where(np.isfinite(array), array, np.interp(mendeleev, mendeleev[known], array[known]))
        properties[name] = np.concatenate([[np.nan], array])
        properties[name].setflags(write=False)
    return properties


def _valence(structure: str) -> dict[str, int]:
    """Electrons in each orbital outside the core: "[Xe].4f14.6s2" gives {"f": 14, "s": 2}."""
    return {shell[1]: int(shell[2:]) for shell in structure.split("].")[-1].split(".")}


@functools.cache
def covalent_radii() -> np.ndarray:
    """Covalent radii in Å by atomic number, float64 [101]; those past curium are curium's.

    Example:
        >>> covalent_radii()[[6, 14]].tolist()  # carbon, silicon
        [0.73, 1.11]

    Source:
        B. Cordero et al., Dalton Trans. 2008, 2832, from pymatgen.
    """
    from pymatgen.analysis.local_env import CovalentRadius
    from pymatgen.core import Element

    known = [CovalentRadius.radius.get(Element.from_Z(number).symbol) for number in range(1, MAX_ATOMIC_NUMBER + 1)]
    radius = np.array([np.nan, *(known[95] if value is None else value for value in known)], np.float64)
    radius.setflags(write=False)
    return radius


def _shares(dataset: CrystalDataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Crystal, atomic number, and share of the crystal's atoms, of each element in each crystal; in that order."""
    n_atom = np.asarray(dataset.n_atom)
    stride = MAX_ATOMIC_NUMBER + 1
    pair = np.repeat(np.arange(len(dataset)), n_atom) * stride + dataset.atomic_numbers
    pair, count = np.unique(pair, return_counts=True)
    crystal, numbers = np.divmod(pair, stride)
    return crystal, numbers, count / n_atom[crystal]


def _features(columns: Mapping[str, np.ndarray]) -> Features:
    return Features(tuple(columns), np.stack(list(columns.values()), 1).astype(np.float64))
