"""Crystals as graphs: the k nearest neighbours of every atom within a cutoff, as plain arrays."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from tlcgcnn_jax.config import GraphConfig
from tlcgcnn_jax.elements import MAX_ATOMIC_NUMBER, symbols
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.structures import Crystal

CLOSEST = 0.4  # Å; two sites nearer than this are one site written twice, or a lattice in the wrong unit
_SAME_SITE = 1e-8  # Å; pymatgen's tolerance for "the atom itself"
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
    image: np.ndarray  # [n_edge, 3], cell of the sender; only for the order of the original, otherwise empty


def build_graph(crystal: Crystal, config: GraphConfig = GraphConfig(), where: str = "") -> Graph:
    """One crystal as a graph of the k nearest neighbours of each atom.

    Args:
        crystal: Lattice (Å), atomic numbers and fractional coordinates.
        config: Cutoff (Å), k, and what happens to equally distant neighbours.
        where: File or id, named in error messages.

    Returns:
        The graph; with `ties="shell"` it does not depend on the order of the atoms or the choice of the cell.

    Raises:
        InputError: Values that are not finite, a flat cell, sites closer than 0.4 Å, or an atom without a neighbour.

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
    edges = _nearest(cells, config, wheres)
    if config.ties == "shell":
        edges, weight = _merge(*_share_last_shell(edges, cells, config), cells, config)
    else:
        edges = _first_k(edges, cells, config)
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
        raise InputError(
            f"{_at(wheres[int(np.argmax(flat))])}the cell has no volume: its three vectors lie in one plane, or one is zero"
        )
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


def _nearest(cells: _Cells, config: GraphConfig, wheres: Sequence[str]) -> _Edges:
    """Every neighbour up to the distance of the k-th one plus the tolerance, ordered by atom and distance."""
    k, keep_images = config.neighbours, config.ties == "reference"
    tolerance = _NOISE if keep_images else _tolerance(config)
    radius = cells.radius.copy()
    atoms = np.arange(len(cells.coords))  # still to be searched, ascending
    parts: list[_Edges] = []
    while len(atoms):
        edges = _search(cells, atoms, radius, keep_images)
        _check_close(edges, cells, wheres)
        order = np.argsort(edges.atom * (2 * config.cutoff) + edges.distance)
        edges = _Edges(*(array[order] for array in edges))
        count = np.bincount(edges.atom, minlength=len(cells.coords))[atoms]
        start = np.cumsum(count) - count
        last = np.full(len(cells.coords), np.inf)  # distance of the k-th neighbour
        full = count >= k
        last[atoms[full]] = edges.distance[start[full] + k - 1]
        reach = radius[cells.crystal[atoms]]
        short = (last[atoms] + tolerance > reach) & (reach < config.cutoff)
        done = edges.distance <= last[edges.atom] + tolerance
        if short.any():
            again = np.zeros(len(cells.coords), bool)
            again[atoms[short]] = True
            done &= ~again[edges.atom]
        parts.append(_Edges(*(array[done] for array in edges)))
        atoms = atoms[short]
        radius = np.minimum(radius * _GROWTH, config.cutoff)
    edges = parts[0]
    if len(parts) > 1:
        edges = _Edges(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    lonely = np.bincount(edges.atom, minlength=len(cells.coords)) == 0
    if lonely.any() and not config.legacy_padding:
        atom = int(np.argmax(lonely))
        raise InputError(
            f"{_at(wheres[int(cells.crystal[atom])])}site {_site(cells, atom)} has no neighbour within {config.cutoff:g} Å: "
            "raise the cutoff (a model only fits the cutoff it was trained with), or leave the crystal out"
        )
    return edges


def _search(cells: _Cells, atoms: np.ndarray, radius: np.ndarray, keep_images: bool) -> _Edges:
    """All neighbours of `atoms` within each crystal's radius."""
    find = _finder()
    whole = len(atoms) == len(cells.coords)
    bounds = cells.first if whole else np.searchsorted(atoms, cells.first)
    crystals = np.flatnonzero(np.diff(bounds)).tolist()
    first, bounds_list, radii = cells.first.tolist(), bounds.tolist(), radius.tolist()
    found = []
    for i in crystals:
        coords = cells.coords[first[i] : first[i + 1]]
        centres = coords if whole else cells.coords[atoms[bounds_list[i] : bounds_list[i + 1]]]
        found.append(find(coords, centres, radii[i], _PERIODIC, cells.lattice[i], _SAME_SITE))
    n_edge = [len(part[0]) for part in found]
    centre = np.concatenate([part[0] for part in found]) + np.repeat(bounds[crystals], n_edge)
    sender = np.concatenate([part[1] for part in found])
    distance = np.concatenate([part[3] for part in found])
    atom = centre if whole else atoms[centre]
    other = distance > _SAME_SITE
    near = np.flatnonzero(~other)  # the atom itself, or another site on top of it
    on_top = near[sender[near] != atom[near] - cells.first[cells.crystal[atom[near]]]]
    other[on_top] = True
    image = np.concatenate([part[2] for part in found])[other] if keep_images else np.empty(int(other.sum()), bool)
    return _Edges(atom[other], sender[other], distance[other], image)


def _check_close(edges: _Edges, cells: _Cells, wheres: Sequence[str]) -> None:
    if len(edges.distance) == 0 or edges.distance.min() >= CLOSEST:
        return
    i = int(np.argmin(edges.distance))
    atom, crystal = int(edges.atom[i]), int(cells.crystal[edges.atom[i]])
    other = int(cells.first[crystal] + edges.sender[i])
    pair = "its own periodic image" if other == atom else f"site {_site(cells, other)}"
    raise InputError(
        f"{_at(wheres[crystal])}site {_site(cells, atom)} and {pair} are {edges.distance[i]:.3g} Å apart, less than "
        f"{CLOSEST} Å: remove the repeated site, or check that the lattice is in Å"
    )


def _share_last_shell(edges: _Edges, cells: _Cells, config: GraphConfig) -> tuple[_Edges, np.ndarray]:
    """Weight 1 for the neighbours inside the last shell; the places left are shared equally by that shell."""
    n, k = len(cells.coords), config.neighbours
    count = np.bincount(edges.atom, minlength=n)
    order = np.argsort(edges.atom, kind="stable")  # already in order unless some searches were repeated
    start = np.cumsum(count) - count
    last = np.full(n, np.inf)
    last[count >= k] = edges.distance[order[start[count >= k] + k - 1]]
    closer = edges.distance < (last - _tolerance(config))[edges.atom]
    n_closer = np.bincount(edges.atom[closer], minlength=n)
    share = (k - n_closer) / np.maximum(count - n_closer, 1)
    return edges, np.where(closer, 1.0, share[edges.atom])


def _merge(edges: _Edges, weight: np.ndarray, cells: _Cells, config: GraphConfig) -> tuple[_Edges, np.ndarray]:
    """One edge for the images of one sender at one distance: what an edge does depends on nothing else."""
    pair = edges.atom * int(np.diff(cells.first).max()) + edges.sender
    order = np.argsort(pair * (2 * config.cutoff) + edges.distance)
    pair, distance, weight = pair[order], edges.distance[order], weight[order]
    new = np.ones(len(pair), bool)
    new[1:] = (pair[1:] != pair[:-1]) | (distance[1:] - distance[:-1] > _tolerance(config))
    start = np.flatnonzero(new)
    total = np.add.reduceat(weight, start)
    mean = np.add.reduceat(weight * distance, start) / total
    atom, sender = edges.atom[order][start], edges.sender[order][start]
    # float32 first, so that distances equal in the saved graph are ordered by sender
    order = np.argsort(atom * (2 * config.cutoff) + mean.astype(np.float32), kind="stable")
    return _Edges(atom[order], sender[order], mean[order], edges.image[:0]), total[order]


def _first_k(edges: _Edges, cells: _Cells, config: GraphConfig) -> _Edges:
    """The first k neighbours in the order in which the original code meets them.

    The original sorts, stably, what pymatgen finds within the full cutoff, so that equal distances keep pymatgen's
    order: by the cubes (of one cutoff's length) that it divides space into, and backwards by image and site in each.
    """
    order = np.lexsort((_search_order(edges, cells, config.cutoff), edges.distance, edges.atom))
    atom = edges.atom[order]
    count = np.bincount(atom, minlength=len(cells.coords))
    start = np.cumsum(count) - count
    order = order[np.arange(len(order)) - start[atom] < config.neighbours]
    return _Edges(*(array[order] for array in edges))


def _search_order(edges: _Edges, cells: _Cells, cutoff: float) -> np.ndarray:
    """A number that orders the neighbours of one atom as pymatgen's search within `cutoff` returns them."""
    # Each step is computed as pymatgen does, term by term: the last bit decides which image an atom on a face is.
    lattice, coords = cells.lattice[cells.crystal], cells.coords
    frac = _product(coords, _inverse(cells.lattice)[cells.crystal])
    inside = frac % 1.0
    in_cell = _product(inside, lattice)
    lower = np.minimum.reduceat(coords, cells.first[:-1]) - cutoff - _SAME_SITE
    crystal = cells.crystal[edges.atom]
    sender = cells.first[crystal] + edges.sender
    image = edges.image + (frac - inside)[sender]
    position = _product(image, cells.lattice[crystal]) + in_cell[sender]
    cube = np.floor((position - lower[crystal] + 1e-8) / cutoff).astype(np.int64)
    cube -= np.floor((coords - lower[cells.crystal] + 1e-8) / cutoff).astype(np.int64)[edges.atom]
    steps = np.rint(image).astype(np.int64)
    key = cube @ np.array([9, 3, 1])
    for axis in range(3):
        key = key * 4096 - steps[:, axis]
    return key * (int(np.diff(cells.first).max()) + 1) - edges.sender


def _product(vectors: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    """Row vectors times matrices, added up in order: [n, 3] and [n, 3, 3] give [n, 3]."""
    terms = vectors[:, :, None] * matrices
    return terms[:, 0] + terms[:, 1] + terms[:, 2]


def _inverse(m: np.ndarray) -> np.ndarray:
    """Inverse of 3x3 matrices from their cofactors, in pymatgen's order of operations."""
    minor = np.empty_like(m)
    for i in range(3):
        for j in range(3):
            p, q, r, s = (i + 1) % 3, (i + 2) % 3, (j + 1) % 3, (j + 2) % 3
            minor[:, i, j] = m[:, r, p] * m[:, s, q] - m[:, s, p] * m[:, r, q]
    determinant = (
        m[:, 0, 0] * (m[:, 1, 1] * m[:, 2, 2] - m[:, 1, 2] * m[:, 2, 1])
        + m[:, 0, 1] * (m[:, 1, 2] * m[:, 2, 0] - m[:, 1, 0] * m[:, 2, 2])
        + m[:, 0, 2] * (m[:, 1, 0] * m[:, 2, 1] - m[:, 1, 1] * m[:, 2, 0])
    )
    return minor / determinant[:, None, None]


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
    return max(config.tie_tolerance, _NOISE)


def _site(cells: _Cells, atom: int) -> str:
    return f"{atom - cells.first[cells.crystal[atom]] + 1} ({symbols()[cells.numbers[atom]]})"


def _at(where: str) -> str:
    return f"{where}: " if where else ""
