"""Crystals as graphs: the k nearest neighbours of every atom within a cutoff, as plain arrays."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from tlcgcnn_jax.config import GraphConfig
from tlcgcnn_jax.crystal import CLOSEST, Crystal
from tlcgcnn_jax.elements import MAX_ATOMIC_NUMBER, symbols
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.search_order import IMAGE_CODE, search_rank

_SAME_SITE = 1e-8  # Å; pymatgen's tolerance for "the atom itself"
# Å; images of one sender nearer than this are one edge. Far below the tolerance of ties: merging images is only
# possible where the cell repeats few atoms, and must not show when a supercell keeps them apart.
_SAME_DISTANCE = 1e-5
_NEARLY_EQUAL = 1e-9  # Å; sorting by atom and distance in one number may confuse only such distances
# Å; two sites of one element nearer than this are most likely images of one special position: 0.333 for 1/3 is off by
# 0.01 Å along a vector of 30 Å.
_ROUNDED = 0.1
_NOISE = 1e-6  # Å; equal distances differ by less than this from rounding
_FIRST_RADIUS = 1.2  # times the radius that holds k + 1 atoms at the crystal's density: most searches end there
_GROWTH = 1.3
_PERIODIC = np.ones(3, np.int64)
# Moves atoms off the faces of the cell: an atom exactly on one makes pymatgen search another layer of images.
_OFF_FACES = 0.0137


class Graph(NamedTuple):
    """One crystal as a graph whose edges stand in rows of P places; each row belongs to one receiving atom.

    Attributes:
        atomic_numbers: uint8 [n_atom].
        receivers: int32 [n_row], the atom that each row belongs to, ascending; every atom has at least one row.
        senders: int32 [n_row, P], index of the neighbour (0 in an empty place).
        distances: float32 [n_row, P], Å (0 in an empty place).
        weights: float32 [n_row, P], 0 in an empty place; they sum to k for an atom with k neighbours or more.
    """

    atomic_numbers: np.ndarray
    receivers: np.ndarray
    senders: np.ndarray
    distances: np.ndarray
    weights: np.ndarray


class Graphs(NamedTuple):
    """Several graphs, one after the other; atom indices count from 0 in each crystal.

    Attributes:
        n_atom: int32 [n_crystal].
        n_row: int32 [n_crystal].
        arrays: The arrays of `Graph`, concatenated.
    """

    n_atom: np.ndarray
    n_row: np.ndarray
    arrays: Graph


class _Cells(NamedTuple):
    """Checked geometry of several crystals."""

    lattice: np.ndarray  # [n_crystal, 3, 3]
    coords: np.ndarray  # [n_atom, 3], Å
    numbers: np.ndarray  # [n_atom]
    first: np.ndarray  # [n_crystal + 1], index of each crystal's first atom
    crystal: np.ndarray  # [n_atom], the crystal that an atom belongs to
    radius: np.ndarray  # [n_crystal], Å, to try first


class _Edges(NamedTuple):
    atom: np.ndarray  # [n_edge], receiver, counted over all crystals
    sender: np.ndarray  # [n_edge], counted from 0 in each crystal
    distance: np.ndarray  # [n_edge], Å
    image: np.ndarray  # [n_edge], cell of the sender as one number


def build_graph(crystal: Crystal, config: GraphConfig = GraphConfig(), where: str = "") -> Graph:
    """One crystal as a graph of the k nearest neighbours of each atom.

    Args:
        crystal: Lattice (Å), atomic numbers and fractional coordinates.
        config: Cutoff (Å), k, and what happens to equally distant neighbours.
        where: File or id, named in error messages.

    Returns:
        The graph; with `ties="shell"` it does not depend on the order of the atoms or the choice of the cell.

    Raises:
        InputError: Shapes that do not fit, values that are not finite, a flat cell, an element beyond the table, sites
            closer than 0.4 Å, or, without `legacy_padding`, an atom without a neighbour within the cutoff.

    Example:
        >>> cubic = Crystal(np.eye(3) * 3.35, np.array([84]), np.zeros((1, 3)))
        >>> graph = build_graph(cubic)
        >>> graph.distances.round(2), graph.weights
        (array([[3.35, 4.74, 0.  , 0.  ]], dtype=float32), array([[6., 6., 0., 0.]], dtype=float32))

    Source:
        Xie & Grossman, Phys. Rev. Lett. 120, 145301 (2018); neighbour search of pymatgen.
    """
    return build_graphs([crystal], config, [where]).arrays


def build_graphs(
    crystals: Sequence[Crystal], config: GraphConfig = GraphConfig(), wheres: Sequence[str] = ()
) -> Graphs:
    """Several crystals as graphs; for many crystals this is faster than one at a time.

    Args:
        crystals: At least one crystal.
        config: Cutoff (Å), k, and what happens to equally distant neighbours.
        wheres: File or id of each crystal, named in error messages.

    Returns:
        The graphs, concatenated.

    Raises:
        InputError: As `build_graph`, for the first crystal that cannot be used.
    """
    wheres = wheres if len(wheres) else [""] * len(crystals)
    cells = _check(crystals, config, wheres)
    edges, last = _nearest(cells, config, wheres)
    if config.ties == "shell":
        edges, weight = _merge(edges, _share_last_shell(edges, last, config), cells, config)
    else:
        edges = _first_k(edges, last, cells, config)
        if config.legacy_padding:
            edges = _invent(edges, cells, config)
        weight = np.ones(len(edges.atom))
    return _place(edges, weight, cells, config)


def _check(crystals: Sequence[Crystal], config: GraphConfig, wheres: Sequence[str]) -> _Cells:
    for crystal, where in zip(crystals, wheres, strict=True):
        n = len(crystal.atomic_numbers)
        if n == 0 or np.shape(crystal.lattice) != (3, 3) or np.shape(crystal.frac_coords) != (n, 3):
            raise InputError(
                f"{_at(where)}lattice {np.shape(crystal.lattice)}, {n} species and coordinates "
                f"{np.shape(crystal.frac_coords)}: (3, 3), n > 0 and (n, 3) were expected"
            )
    n_atom = np.array([len(crystal.atomic_numbers) for crystal in crystals])
    lattice = np.array([crystal.lattice for crystal in crystals], dtype=np.float64)
    frac = np.concatenate([crystal.frac_coords for crystal in crystals], dtype=np.float64)
    numbers = np.concatenate([crystal.atomic_numbers for crystal in crystals])
    index = np.repeat(np.arange(len(crystals)), n_atom)
    if not np.isfinite(lattice).all():
        crystal = int(np.argmin(np.isfinite(lattice).all(axis=(1, 2))))
        raise InputError(
            f"{_at(wheres[crystal])}the lattice holds a value that is not finite: correct it or leave it out"
        )
    volume = np.abs(np.linalg.det(lattice))
    flat = volume <= 1e-6 * np.prod(np.sqrt((lattice**2).sum(axis=2)), axis=1)
    if flat.any():
        where = wheres[int(np.argmax(flat))]
        raise InputError(f"{_at(where)}the cell has no volume: its three vectors lie in one plane, or one is zero")
    if not np.isfinite(frac).all():
        atom = int(np.argmin(np.isfinite(frac).all(axis=1)))
        site = atom - int(np.argmax(index == index[atom])) + 1
        raise InputError(
            f"{_at(wheres[int(index[atom])])}a coordinate of site {site} is not finite: correct it or leave it out"
        )
    if numbers.min() < 1 or numbers.max() > MAX_ATOMIC_NUMBER:
        atom = int(np.argmax((numbers < 1) | (numbers > MAX_ATOMIC_NUMBER)))
        raise InputError(
            f"{_at(wheres[int(index[atom])])}atomic number {numbers[atom]}: the features cover 1 to {MAX_ATOMIC_NUMBER}"
        )
    if config.ties == "shell":
        frac = (frac + _OFF_FACES) % 1.0
    # One product per atom, as pymatgen does it: a product of whole matrices differs in the last bit, which is
    # enough to change the order of equal distances.
    coords = (frac[:, None, :] @ lattice[index])[:, 0, :]
    radius = _FIRST_RADIUS * (0.75 / np.pi * (config.neighbours + 1) * volume / n_atom) ** (1 / 3)
    first = np.concatenate([[0], np.cumsum(n_atom)])
    return _Cells(lattice, coords, numbers, first, index, np.minimum(radius, config.cutoff))


def _nearest(cells: _Cells, config: GraphConfig, wheres: Sequence[str]) -> tuple[_Edges, np.ndarray]:
    """Every neighbour up to the distance of the k-th one plus the tolerance; and that distance, for each atom.

    Edges are sorted by atom, and by distance to the last few bits. The distance is infinite for an atom with fewer
    than k neighbours within the cutoff.
    """
    n, k, tolerance = len(cells.coords), config.neighbours, _tolerance(config)
    radius = cells.radius
    atoms = np.arange(n)  # still to be searched, ascending
    last = np.full(n, np.inf)
    parts: list[_Edges] = []
    while len(atoms):
        edges = _search(cells, atoms, radius, config)
        _check_close(edges, cells, wheres)
        order = np.argsort(edges.atom * (2 * config.cutoff) + edges.distance)
        count = np.bincount(edges.atom, minlength=n)
        full = count >= k
        last[full] = edges.distance[order[(np.cumsum(count) - count)[full] + k - 1]]
        short = (last + tolerance > radius[cells.crystal]) & (radius < config.cutoff)[cells.crystal]
        last[short] = np.inf
        done = (edges.distance <= last[edges.atom] + tolerance) & ~short[edges.atom]
        chosen = order[done[order]]
        parts.append(_Edges(*(array[chosen] for array in edges)))
        atoms = atoms[short[atoms]]
        radius = np.minimum(radius * _GROWTH, config.cutoff)
    edges = parts[0]
    if len(parts) > 1:
        edges = _Edges(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
        order = np.argsort(edges.atom, kind="stable")
        edges = _Edges(*(array[order] for array in edges))
    lonely = np.bincount(edges.atom, minlength=n) == 0
    if lonely.any() and not config.legacy_padding:
        atom = int(np.argmax(lonely))
        where = wheres[int(cells.crystal[atom])]
        raise InputError(
            f"{_at(where)}site {_site(cells, atom)} has no neighbour within {config.cutoff:g} Å: raise the cutoff "
            "(a model only fits the cutoff that it was trained with), or leave the crystal out"
        )
    return edges, last


def _search(cells: _Cells, atoms: np.ndarray, radius: np.ndarray, config: GraphConfig) -> _Edges:
    """The neighbours of `atoms` within each crystal's radius."""
    find = _finder()
    whole = len(atoms) == len(cells.coords)
    bounds = cells.first if whole else np.searchsorted(atoms, cells.first)
    crystals = np.flatnonzero(bounds[1:] > bounds[:-1]).tolist()
    first, part, radii = cells.first.tolist(), bounds.tolist(), radius.tolist()
    found = []
    for i in crystals:
        coords = cells.coords[first[i] : first[i + 1]]
        centres = coords if whole else cells.coords[atoms[part[i] : part[i + 1]]]
        found.append(find(coords, centres, radii[i], _PERIODIC, cells.lattice[i], _SAME_SITE))
    centre, sender, image, distance = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    centre += np.repeat(bounds[crystals], [len(arrays[0]) for arrays in found])
    atom = centre if whole else atoms[centre]
    other = (distance > _SAME_SITE) | (sender != atom - cells.first[cells.crystal[atom]])
    # The cell is of use only where the order of equal distances matters.
    image = np.zeros_like(distance) if config.ties == "shell" else image @ IMAGE_CODE
    return _Edges(atom[other], sender[other], distance[other], image[other])


def _check_close(edges: _Edges, cells: _Cells, wheres: Sequence[str]) -> None:
    if len(edges.distance) == 0 or edges.distance.min() >= CLOSEST:
        return
    i = int(np.argmin(edges.distance))
    atom, crystal = int(edges.atom[i]), int(cells.crystal[edges.atom[i]])
    other = int(cells.first[crystal] + edges.sender[i])
    pair = "its own periodic image" if other == atom else f"site {_site(cells, other)}"
    advice = "remove the repeated site, or check that the lattice is in Å"
    if other != atom and cells.numbers[other] == cells.numbers[atom] and edges.distance[i] < _ROUNDED:
        advice = f"give images of one site of a CIF more decimals (0.3333, not 0.333), {advice}"
    raise InputError(
        f"{_at(wheres[crystal])}site {_site(cells, atom)} and {pair} are {edges.distance[i]:.3g} Å apart, less than "
        f"{CLOSEST} Å: {advice}"
    )


def _share_last_shell(edges: _Edges, last: np.ndarray, config: GraphConfig) -> np.ndarray:
    """Weight 1 for the neighbours inside the last shell; the places left are shared equally by that shell."""
    closer = edges.distance < (last - _tolerance(config))[edges.atom]
    n_closer = np.bincount(edges.atom[closer], minlength=len(last))
    n_shell = np.bincount(edges.atom, minlength=len(last)) - n_closer
    share = (config.neighbours - n_closer) / np.maximum(n_shell, 1)
    return np.where(closer, 1.0, share[edges.atom])


def _merge(edges: _Edges, weight: np.ndarray, cells: _Cells, config: GraphConfig) -> tuple[_Edges, np.ndarray]:
    """One edge for the images of one sender at one distance: what an edge does depends on nothing else."""
    pair = edges.atom * int(np.diff(cells.first).max()) + edges.sender
    order = np.argsort(pair * (2 * config.cutoff) + edges.distance)
    pair, distance, weight = pair[order], edges.distance[order], weight[order]
    new = np.ones(len(pair), bool)
    new[1:] = (pair[1:] != pair[:-1]) | (distance[1:] - distance[:-1] > _SAME_DISTANCE)
    start = np.flatnonzero(new)
    total = np.add.reduceat(weight, start)
    mean = np.add.reduceat(weight * distance, start) / total
    atom, sender = edges.atom[order][start], edges.sender[order][start]
    # float32 first, so that distances equal in the saved graph are ordered by sender
    order = np.argsort(atom * (2 * config.cutoff) + mean.astype(np.float32), kind="stable")
    return _Edges(atom[order], sender[order], mean[order], edges.image[:0]), total[order]


def _first_k(edges: _Edges, last: np.ndarray, cells: _Cells, config: GraphConfig) -> _Edges:
    """The first k neighbours by distance, in the order of the original where distances are equal."""
    atom, distance = edges.atom, edges.distance
    near = np.zeros(len(atom) + 1, bool)
    near[1:-1] = (atom[1:] == atom[:-1]) & (np.abs(distance[1:] - distance[:-1]) < _NEARLY_EQUAL)
    tied = np.flatnonzero(near[1:] | near[:-1])
    crystal = cells.crystal[atom[tied]]
    sender = edges.sender[tied] + cells.first[crystal]
    rank, unsure = search_rank(
        cells.lattice, cells.coords, cells.first, crystal, sender, edges.image[tied], config.cutoff
    )
    group = np.cumsum(~near[:-1])[tied]
    order = tied[np.lexsort((rank, distance[tied], group))]
    for array in edges:
        array[tied] = array[order]
    if unsure.any():
        edges = _search_again(edges, last, np.unique(crystal[unsure]), cells, config)
    count = np.bincount(edges.atom, minlength=len(cells.coords))
    place = np.arange(len(edges.atom)) - (np.cumsum(count) - count)[edges.atom]
    return _Edges(*(array[place < config.neighbours] for array in edges))


def _search_again(edges: _Edges, last: np.ndarray, crystals: np.ndarray, cells: _Cells, config: GraphConfig) -> _Edges:
    """The same edges, those of some crystals in the order of a search over the whole cutoff."""
    chosen = np.isin(cells.crystal, crystals)
    found = _search(cells, np.flatnonzero(chosen), np.full_like(cells.radius, config.cutoff), config)
    kept, near = ~chosen[edges.atom], found.distance <= last[found.atom] + _NOISE
    edges = _Edges(*(np.concatenate([a[kept], b[near]]) for a, b in zip(edges, found, strict=True)))
    order = np.lexsort((edges.distance, edges.atom))  # stable
    return _Edges(*(array[order] for array in edges))


def _invent(edges: _Edges, cells: _Cells, config: GraphConfig) -> _Edges:
    """The original's stand-ins for missing neighbours: atom 0 at cutoff + 1 Å."""
    missing = config.neighbours - np.bincount(edges.atom, minlength=len(cells.coords))
    atom = np.concatenate([edges.atom, np.repeat(np.arange(len(missing)), missing)])
    extra = int(missing.sum())
    sender = np.concatenate([edges.sender, np.zeros(extra, np.int64)])
    distance = np.concatenate([edges.distance, np.full(extra, config.cutoff + 1.0)])
    order = np.argsort(atom, kind="stable")
    return _Edges(atom[order], sender[order], distance[order], edges.image[:0])


def _place(edges: _Edges, weight: np.ndarray, cells: _Cells, config: GraphConfig) -> Graphs:
    """Edges, ordered by atom, into rows of places."""
    n, places = len(cells.coords), config.places
    count = np.bincount(edges.atom, minlength=n)
    rows = np.maximum(-(-count // places), 1)
    first_row = np.cumsum(rows) - rows
    slot = np.arange(len(edges.atom)) + (first_row * places - (np.cumsum(count) - count))[edges.atom]
    shape = (int(rows.sum()), places)

    def fill(values: np.ndarray, dtype: type) -> np.ndarray:
        array = np.zeros(shape, dtype)
        array.reshape(-1)[slot] = values
        return array

    site = np.arange(n) - cells.first[cells.crystal]
    graph = Graph(
        atomic_numbers=cells.numbers.astype(np.uint8),
        receivers=np.repeat(site, rows).astype(np.int32),
        senders=fill(edges.sender, np.int32),
        distances=fill(edges.distance, np.float32),
        weights=fill(weight, np.float32),
    )
    n_row = np.add.reduceat(rows, cells.first[:-1])
    return Graphs(np.diff(cells.first).astype(np.int32), n_row.astype(np.int32), graph)


@functools.cache
def _finder() -> Callable:
    """pymatgen's search, imported at the first use: training from a packed dataset needs no pymatgen."""
    from pymatgen.optimization.neighbors import find_points_in_spheres

    return find_points_in_spheres


def _tolerance(config: GraphConfig) -> float:
    return max(config.tie_tolerance, _NOISE) if config.ties == "shell" else _NOISE


def _site(cells: _Cells, atom: int) -> str:
    return f"{atom - cells.first[cells.crystal[atom]] + 1} ({symbols()[cells.numbers[atom]]})"


def _at(where: str) -> str:
    return f"{where}: " if where else ""
