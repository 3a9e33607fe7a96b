"""With ties="shell" a graph does not depend on the order of the atoms or on the cell that is chosen."""

import gzip
import itertools
import json

import numpy as np
import pytest

from tlcgcnn_jax.config import GraphConfig
from tlcgcnn_jax.elements import atomic_numbers
from tlcgcnn_jax.graphs import build_graph
from tlcgcnn_jax.structures import Crystal

SHELL, REFERENCE = GraphConfig(), GraphConfig(ties="reference")


def permuted(crystal: Crystal, seed: int) -> Crystal:
    order = np.random.default_rng(seed).permutation(len(crystal.atomic_numbers))
    return Crystal(crystal.lattice, crystal.atomic_numbers[order], crystal.frac_coords[order])


def transformed(crystal: Crystal, matrix: list[list[int]]) -> Crystal:
    """The same crystal in the cell whose vectors are the rows of matrix @ lattice."""
    m = np.array(matrix)
    n = round(abs(np.linalg.det(m)))
    inverse = np.linalg.inv(m)
    reach = int(np.abs(m).sum()) + 1
    shifts = np.array(list(itertools.product(range(-reach, reach + 1), repeat=3))) @ inverse
    inside = shifts[((shifts > -1e-6) & (shifts < 1 - 1e-6)).all(axis=1)]
    assert len(inside) == n
    frac = (crystal.frac_coords @ inverse)[None] + inside[:, None]
    return Crystal(m @ crystal.lattice, np.tile(crystal.atomic_numbers, n), frac.reshape(-1, 3))


CHANGES = {
    "atoms in another order": lambda crystal: permuted(crystal, 1),
    "another primitive cell": lambda crystal: transformed(crystal, [[1, 1, 0], [0, 1, 0], [-1, 0, 1]]),
    "2x1x1 supercell": lambda crystal: transformed(crystal, [[2, 0, 0], [0, 1, 0], [0, 0, 1]]),
    "2x2x2 supercell": lambda crystal: transformed(crystal, [[2, 0, 0], [0, 2, 0], [0, 0, 2]]),
}


def surroundings(crystal: Crystal, config: GraphConfig) -> list[list[tuple[int, list[tuple[int, float, float]]]]]:
    """For each atom its species and, per neighbouring species and distance, the summed weight."""
    graph = build_graph(crystal, config)
    atoms = []
    for atom, species in enumerate(crystal.atomic_numbers.tolist()):
        rows = graph.receivers == atom
        used = graph.weights[rows] > 0
        number = crystal.atomic_numbers[graph.senders[rows][used]]
        distance, weight = graph.distances[rows][used].astype(float), graph.weights[rows][used].astype(float)
        order = np.lexsort((distance, number))
        number, distance, weight = number[order], distance[order], weight[order]
        # Distances within the tolerance are one: where they part, a new group begins.
        new = np.r_[True, (np.diff(number) != 0) | (np.diff(distance) > config.tie_tolerance)]
        start = np.flatnonzero(new)
        total = np.add.reduceat(weight, start)
        mean = np.add.reduceat(weight * distance, start) / total
        atoms.append((species, list(zip(number[start].tolist(), mean.tolist(), total.tolist(), strict=True))))
    return atoms


def is_alike(one: tuple, other: tuple) -> bool:
    return (
        one[0] == other[0]
        and [edge[0] for edge in one[1]] == [edge[0] for edge in other[1]]
        and np.allclose([edge[1:] for edge in one[1]], [edge[1:] for edge in other[1]], rtol=0, atol=1e-4)
    )


def same_graph(one: list, other: list) -> bool:
    """Whether every kind of surroundings is equally common in both."""
    return all(
        sum(is_alike(atom, kind) for atom in one) * len(other) == sum(is_alike(atom, kind) for atom in other) * len(one)
        for kind in one + other
    )


# A-O: 12 at a/sqrt(2); B-O: 6 at a/2, then 8 A at a sqrt(3)/2, of which there is room for 6; O is alike.
PEROVSKITE = Crystal(
    np.eye(3) * 3.905,
    np.array([38, 22, 8, 8, 8]),
    np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]),
)


def test_the_check_sees_differences() -> None:
    atoms = surroundings(PEROVSKITE, SHELL)
    assert same_graph(atoms, atoms[::-1])
    assert not same_graph(atoms, atoms[:4] + atoms[:1])
    moved = PEROVSKITE._replace(lattice=np.eye(3) * 3.906)
    assert not same_graph(atoms, surroundings(moved, SHELL))


@pytest.mark.parametrize("change", CHANGES)
def test_shell_is_invariant(change: str) -> None:
    assert same_graph(surroundings(PEROVSKITE, SHELL), surroundings(CHANGES[change](PEROVSKITE), SHELL))


def test_reference_is_not_invariant() -> None:
    atoms = surroundings(PEROVSKITE, REFERENCE)
    assert not all(same_graph(atoms, surroundings(change(PEROVSKITE), REFERENCE)) for change in CHANGES.values())


def shared_crystals(shared_data, name: str, number: int) -> list[Crystal]:
    with gzip.open(shared_data / name / f"{name}.jsonl.gz") as lines:
        records = [json.loads(line) for line in itertools.islice(lines, 0, 60 * number, 60)]
    z = atomic_numbers()
    cells = [
        (np.array(r["lattice"]), np.array([z[s] for s in r["species"]]), np.array(r["frac_coords"])) for r in records
    ]
    return [Crystal(*cell) for cell in cells]


@pytest.mark.parametrize("name", ["perov_5", "mp_crysxpp", "carbon_24"])
@pytest.mark.parametrize("change", CHANGES)
def test_shell_is_invariant_on_real_crystals(shared_data, name: str, change: str) -> None:
    for crystal in shared_crystals(shared_data, name, 20):
        if len(crystal.atomic_numbers) <= 24:
            assert same_graph(surroundings(crystal, SHELL), surroundings(CHANGES[change](crystal), SHELL))


def test_reference_depends_on_the_cell_of_real_perovskites(shared_data) -> None:
    crystals = shared_crystals(shared_data, "perov_5", 20)
    differ = 0
    for crystal in crystals:
        atoms = surroundings(crystal, REFERENCE)
        differ += not all(same_graph(atoms, surroundings(change(crystal), REFERENCE)) for change in CHANGES.values())
    assert differ >= 2  # most are off-centre, with no tie to cut
