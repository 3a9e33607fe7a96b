"""The order in which the original CGCNN meets equally distant neighbours, without its search over the whole cutoff.

The original sorts its neighbours by distance and keeps the order of pymatgen's search where distances are equal. That
search runs through cubes as wide as the cutoff, in the order of their indices, and in each cube through the periodic
images of the atoms backwards; so the order follows from where an image lies, and a smaller search can be put into it.
"""

import numpy as np

_SEARCH_TOLERANCE = 1e-8  # Å, of pymatgen's search
IMAGE_CODE = np.array([65536.0, 256.0, 1.0])  # the three indices of a cell, each between -128 and 127, in one number
_UNSURE = 1e-10  # Å; nearer to the wall of a cube than this, rounding decides which cube an image is in


def search_rank(
    lattice: np.ndarray,
    coords: np.ndarray,
    first: np.ndarray,
    crystal: np.ndarray,
    sender: np.ndarray,
    image: np.ndarray,
    cutoff: float,
) -> tuple[np.ndarray, np.ndarray]:
    """A number for each neighbour that grows in the order of a search over the cutoff.

    Args:
        lattice: float64 [n_crystal, 3, 3], rows a, b, c, Å.
        coords: float64 [n_atom, 3], Å.
        first: int [n_crystal + 1], index of each crystal's first atom.
        crystal: int [n_edge], the crystal that a neighbour belongs to.
        sender: int [n_edge], counted over all crystals.
        image: float64 [n_edge], the cell of the neighbour as the search names it, times `IMAGE_CODE`.
        cutoff: Å.

    Returns:
        int64 [n_edge], comparable within one receiver; and bool [n_edge], True where rounding could change it.

    Source:
        find_points_in_spheres of pymatgen (pymatgen/optimization/neighbors.pyx).
    """
    of_atom = np.repeat(np.arange(len(lattice)), np.diff(first))
    fractional = _product(coords, _inverse(lattice)[of_atom])
    # An atom that rounding puts just outside the cell is moved by a whole cell, and its images are counted from there.
    moved = fractional - fractional % 1
    code = np.rint(image).astype(np.int64) + 128 * int(IMAGE_CODE.sum())
    image = np.stack([code >> 16, code >> 8 & 255, code & 255], 1) - 128.0
    cells = np.rint(image + moved[sender]).astype(np.int64)
    lowest = np.minimum.reduceat(coords, first[:-1])[crystal] - cutoff - _SEARCH_TOLERANCE
    position = coords[sender] + (image[:, None, :] @ lattice[crystal])[:, 0, :]
    depth = position - lowest + _SEARCH_TOLERANCE
    cube = np.floor(depth / cutoff).astype(np.int64)
    inside = depth - cube * cutoff
    wall = (inside < _UNSURE) | (cutoff - inside < _UNSURE)
    unsure = np.any(wall | (np.abs(cells) >= 128), axis=1)
    rank = cube @ np.array([2**12, 2**6, 1])
    rank = rank * 2**24 + (127 - cells) @ np.array([2**16, 2**8, 1])
    return rank * 2**16 + (2**16 - 1 - (sender - first[crystal])), np.asarray(unsure)


def _product(vectors: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    """Row vectors times matrices, summed in the order that the search sums in: the last bit matters."""
    x, y, z = (vectors[:, axis, None] * matrices[:, axis, :] for axis in range(3))
    return (x + y) + z


def _inverse(m: np.ndarray) -> np.ndarray:
    """Inverses of 3 x 3 matrices by cofactors, each rounded as the compiled search (x86-64 wheels) rounds it."""
    factor = 1.0 / (
        m[:, 0, 0] * (m[:, 1, 1] * m[:, 2, 2] - m[:, 1, 2] * m[:, 2, 1])
        + m[:, 0, 1] * (m[:, 1, 2] * m[:, 2, 0] - m[:, 1, 0] * m[:, 2, 2])
        + m[:, 0, 2] * (m[:, 1, 0] * m[:, 2, 1] - m[:, 1, 1] * m[:, 2, 0])
    )
    out = np.empty_like(m)
    for i in range(3):
        for j in range(3):
            a, b, c, d = (j + 1) % 3, (i + 1) % 3, (j + 2) % 3, (i + 2) % 3
            out[:, i, j] = (m[:, a, b] * m[:, c, d] - m[:, c, b] * m[:, a, d]) * factor
    return out
