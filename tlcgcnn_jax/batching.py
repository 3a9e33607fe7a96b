"""Padded batches of one fixed shape: which crystals go together, and how they are laid out for the device."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jraph
import numpy as np

from tlcgcnn_jax.dataset import CrystalDataset, gather_rows

PLAN = 2  # version of `batch_plan`: a run that was begun with other batches cannot go on with these
LOOK_AHEAD = 64  # crystals that are tried for the last free places of a batch
ROW_SLACK = 1.01  # rows are what costs time, so atoms are the tighter limit and rows follow closely


class PadBudget(NamedTuple):
    """The shape of every batch, padding included; saved with a run.

    Attributes:
        n_node: Atoms.
        n_row: Rows of edge places.
        n_graph: Crystals.
        places: Edge places in a row.
    """

    n_node: int
    n_row: int
    n_graph: int
    places: int


class Batch(NamedTuple):
    """What the device is given; labels are apart from the graph, so that a model cannot see them.

    Attributes:
        graph: Padded `GraphsTuple`: nodes {"atomic_number": int32 [n_node]}, edges {"distance" in Å, "weight":
            float32 [n_edge]}; edges stand in rows of `places` with one receiver, receivers ascend, and the first
            graph after the crystals holds the padding, where jraph's masks look for it. n_edge counts edge places,
            empty ones included.
        labels: float32 [n_graph, n_target], NaN where a label is missing and in padding.
    """

    graph: jraph.GraphsTuple
    labels: np.ndarray


def pad_budget(n_atom: np.ndarray, n_row: np.ndarray, batch_size: int, places: int) -> PadBudget:
    """A budget that holds `batch_size` crystals on average and any single crystal of the dataset.

    Args:
        n_atom: int [n], atoms of every crystal that will ever be batched with this budget.
        n_row: int [n], their rows of edge places.
        batch_size: Crystals in a batch, on average.
        places: Edge places in a row.

    Example:
        >>> pad_budget(np.array([2, 4]), np.array([6, 12]), batch_size=1, places=4)
        PadBudget(n_node=5, n_row=13, n_graph=2, places=4)
    """
    crystals = min(batch_size, len(n_atom))
    nodes = max(int(np.max(n_atom)), int(np.ceil(crystals * np.mean(n_atom))))
    rows = max(int(np.max(n_row)), int(np.ceil(crystals * np.mean(n_row) * (ROW_SLACK if crystals > 1 else 1.0))))
    # One node, row and graph more: the padding graph is never empty, as jraph's masks expect.
    return PadBudget(nodes + 1, rows + 1, min(len(n_atom), max(crystals, int(1.5 * crystals))) + 1, places)


def batch_plan(
    n_atom: np.ndarray, n_row: np.ndarray, budget: PadBudget, seed: int | None = None, epoch: int = 0
) -> list[np.ndarray]:
    """Which crystals go together: a pure function of sizes, seed and epoch.

    Crystals are taken in a seeded random order and put into the open batch; where one does not fit, the next
    `LOOK_AHEAD` are tried for the remaining places. No crystal is dropped. Where the last batch would be less than half
    as large as the mean one, all are made about equal.

    Args:
        n_atom: int [n].
        n_row: int [n].
        budget: Shape of a batch.
        seed: None keeps the given order (for evaluation).
        epoch: A new order for every epoch.

    Returns:
        One int64 array of row numbers for each batch.

    Raises:
        ValueError: A crystal that is larger than a whole batch.
    """
    if seed is None:
        return _filled(np.arange(len(n_atom)), n_atom, n_row, budget)
    order = np.random.default_rng([seed, epoch]).permutation(len(n_atom))
    plan = _filled(order, n_atom, n_row, budget)
    if plan and 2 * len(plan) * n_atom[plan[-1]].sum() < n_atom.sum():
        # A last batch of a crystal or two would count in the updates, and in batch norm, as much as a full one.
        plan = min(_filled(order, n_atom, n_row, budget, len(plan)), plan, key=len)
    return plan


def _filled(
    order: np.ndarray, n_atom: np.ndarray, n_row: np.ndarray, budget: PadBudget, even: int = 0
) -> list[np.ndarray]:
    """Batches in some order of the crystals, each closed once it is full or, of so many even ones, has its share."""
    smallest = int(n_atom.min()) if len(n_atom) else 0
    sizes = list(zip(n_atom.tolist(), n_row.tolist(), strict=True))
    pending = order.tolist()[::-1]  # a stack: the next crystal is the last element
    batches, atoms_left = [], int(n_atom.sum())
    while pending:
        nodes, rows, graphs = budget.n_node - 1, budget.n_row - 1, budget.n_graph - 1
        share = -(-atoms_left // max(even - len(batches), 1)) if even else nodes
        least = max(smallest, 1 + nodes - share)  # places, with fewer of which it is closed
        chosen: list[int] = []
        skipped: list[int] = []
        while pending and graphs and nodes >= least and len(skipped) < LOOK_AHEAD:
            crystal = pending.pop()
            atoms, crystal_rows = sizes[crystal]
            if atoms <= nodes and crystal_rows <= rows:
                chosen.append(crystal)
                nodes, rows, graphs = nodes - atoms, rows - crystal_rows, graphs - 1
            else:
                skipped.append(crystal)
        if not chosen:
            crystal = skipped[0] if skipped else pending[-1]
            raise ValueError(f"crystal {crystal} with {sizes[crystal]} atoms and rows is larger than {budget}")
        pending.extend(reversed(skipped))
        batches.append(np.array(chosen, np.int64))
        atoms_left -= int(n_atom[batches[-1]].sum())
    return batches


def padding_waste(n_atom: np.ndarray, n_row: np.ndarray, plan: Sequence[np.ndarray], budget: PadBudget) -> float:
    """Share of atom or row places that hold padding, whichever is larger."""
    nodes = n_atom[np.concatenate(plan)].sum() / (len(plan) * budget.n_node)
    rows = n_row[np.concatenate(plan)].sum() / (len(plan) * budget.n_row)
    return float(1 - min(nodes, rows))


def rounded_up(size: int) -> int:
    """A size of padded arrays, or a number of batches, rounded up by an eighth at most.

    So data sets of nearly equal size share one compiled program. Batches that are added are skipped at no cost,
    but where several networks are mapped over on an accelerator, which computes what it skips.
    """
    step = 1 << max(size.bit_length() - 4, 0)
    return -(-size // step) * step


def epoch_length(n_atom: np.ndarray, n_row: np.ndarray, budget: PadBudget) -> int:
    """Batches to lay out for an epoch, empty ones included, whatever order the crystals come in.

    The plans of several epochs and seeds differ by a batch or so; all that fit in this number share one compiled scan.

    Args:
        n_atom: int [n].
        n_row: int [n].
        budget: Shape of a batch.
    """
    sums = (n_atom.sum(dtype=np.int64), n_row.sum(dtype=np.int64), len(n_atom))
    fewest = max(-(-int(total) // (room - 1)) for total, room in zip(sums, budget[:3], strict=True))
    return rounded_up(fewest + 1 + fewest // 8)


def stack_batches(
    dataset: CrystalDataset,
    labels: np.ndarray,
    plan: Sequence[np.ndarray],
    budget: PadBudget,
    length: int | None = None,
) -> Batch:
    """Lay out the batches of a plan one after another, ready for one `lax.scan`.

    Args:
        dataset: Packed crystals.
        labels: float32 [len(dataset), n_target], what the network shall give, NaN where missing.
        plan: Row numbers of each batch.
        budget: Shape of a batch.
        length: Number of batches to give; the last ones are empty. Default: as many as in the plan.

    Returns:
        `Batch` whose arrays have a leading axis [length].
    """
    length = len(plan) if length is None else length
    crystals = np.concatenate(plan) if plan else np.zeros(0, np.int64)
    batch_of = np.repeat(np.arange(len(plan)), [len(rows) for rows in plan])
    slot = _position_in_batch(np.ones_like(crystals), batch_of)
    n_atom, n_row = dataset.n_atom[crystals].astype(np.int64), dataset.n_row[crystals].astype(np.int64)
    first_node, first_row = _position_in_batch(n_atom, batch_of), _position_in_batch(n_row, batch_of)

    def spread(values: np.ndarray, counts: np.ndarray, first: np.ndarray, size: int, fill: np.ndarray) -> np.ndarray:
        """Put the rows of all crystals at their places in [length * size, ...]; `fill`: per batch."""
        out = np.empty((length, size, *values.shape[1:]), values.dtype)
        out[...] = fill.astype(values.dtype).reshape(-1, *(1,) * (values.ndim))
        flat = out.reshape(-1, *values.shape[1:])
        flat[gather_rows(batch_of * size + first, counts)] = values
        return out

    atom_rows = gather_rows(dataset.atom_offset[crystals], n_atom)
    edge_rows = gather_rows(dataset.row_offset[crystals], n_row)
    zero = np.zeros(length, np.int64)
    # Empty rows belong to the first padding node, which keeps receivers ascending.
    real_nodes = np.bincount(batch_of, n_atom, minlength=length).astype(np.int64)
    shift = np.repeat(first_node, n_row).astype(np.int32)
    receivers = dataset.receivers[edge_rows] + shift
    senders = dataset.senders[edge_rows] + shift[:, None]
    rows, places = budget.n_row, budget.places

    n_node = np.zeros((length, budget.n_graph), np.int32)
    n_edge = np.zeros((length, budget.n_graph), np.int32)
    n_node[batch_of, slot], n_edge[batch_of, slot] = n_atom, n_row * places
    padding = np.arange(length), np.bincount(batch_of, minlength=length)  # the first free graph of each batch
    n_node[padding] = budget.n_node - n_node.sum(1)
    n_edge[padding] = rows * places - n_edge.sum(1)
    stacked = np.full((length, budget.n_graph, labels.shape[1]), np.nan, np.float32)
    stacked[batch_of, slot] = labels[crystals]

    receivers = spread(receivers.astype(np.int32), n_row, first_row, rows, real_nodes)
    edges = (length, rows * places)
    make: Any = jraph.GraphsTuple  # typed for arrays on the device alone
    graph = make(
        nodes={
            "atomic_number": spread(
                dataset.atomic_numbers[atom_rows].astype(np.int32), n_atom, first_node, budget.n_node, zero
            )
        },
        edges={
            "distance": spread(dataset.distances[edge_rows], n_row, first_row, rows, zero).reshape(edges),
            "weight": spread(dataset.weights[edge_rows], n_row, first_row, rows, zero).reshape(edges),
        },
        senders=spread(senders.astype(np.int32), n_row, first_row, rows, real_nodes).reshape(edges),
        receivers=np.repeat(receivers, places, axis=1),
        globals=None,
        n_node=n_node,
        n_edge=n_edge,
    )
    return Batch(graph, stacked)


def _position_in_batch(counts: np.ndarray, batch_of: np.ndarray) -> np.ndarray:
    """Where each crystal starts within its batch, given how many places each takes."""
    ends = np.cumsum(counts)
    starts = ends - counts
    first_of_batch = np.concatenate([[True], batch_of[1:] != batch_of[:-1]]) if len(counts) else np.zeros(0, bool)
    base = starts[first_of_batch]
    return starts - np.repeat(base, np.diff(np.append(np.flatnonzero(first_of_batch), len(counts))))
