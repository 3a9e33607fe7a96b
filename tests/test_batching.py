"""Batches hold every crystal once, stay within their budget, waste little, and are laid out as jraph expects."""

import jax
import jraph
import numpy as np
import pytest
import toy

from tlcgcnn_jax.batching import (
    PadBudget,
    batch_plan,
    epoch_length,
    pad_budget,
    padding_waste,
    rounded_up,
    stack_batches,
)


def sizes(n: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Atoms and rows like those of the Materials Project: 1 to 200 atoms, some 30 on average, 2.93 rows an atom."""
    rng = np.random.default_rng(0)
    n_atom = np.clip(np.round(rng.lognormal(np.log(20), 0.85, n)), 1, 200).astype(np.int32)
    n_row = np.maximum(n_atom, np.round(n_atom * rng.normal(2.93, 0.1, n))).astype(np.int32)
    return n_atom, np.minimum(n_row, 3 * n_atom)


def some_sizes(kind: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    n_atom = {
        "alike": np.full(50, 5),
        "one giant": np.r_[rng.integers(1, 5, 60), 500, rng.integers(1, 5, 60)],
        "giants only": np.r_[np.full(5, 300), np.full(5, 299)],
        "one crystal": np.array([7]),
        "atoms without neighbours": np.r_[np.ones(40, int), rng.integers(1, 20, 40)],
    }[kind].astype(np.int32)
    return n_atom, (n_atom if kind == "atoms without neighbours" else 3 * n_atom)


@pytest.mark.parametrize("batch_size", [1, 4, 1000])
@pytest.mark.parametrize("kind", ["alike", "one giant", "giants only", "one crystal", "atoms without neighbours"])
def test_every_crystal_once_and_within_budget(kind, batch_size):
    n_atom, n_row = some_sizes(kind)
    budget = pad_budget(n_atom, n_row, batch_size, 4)
    for seed, epoch in [(None, 0), (0, 0), (0, 1), (5, 3)]:
        plan = batch_plan(n_atom, n_row, budget, seed, epoch)
        assert sorted(np.concatenate(plan).tolist()) == list(range(len(n_atom)))
        for rows in plan:
            # At least one node, row and graph is left for padding.
            assert n_atom[rows].sum() < budget.n_node
            assert n_row[rows].sum() < budget.n_row
            assert 0 < len(rows) < budget.n_graph


def test_a_crystal_larger_than_the_budget_is_told():
    with pytest.raises(ValueError, match="larger than"):
        batch_plan(np.array([2, 9, 2]), np.array([6, 27, 6]), PadBudget(9, 27, 4, 4))
    with pytest.raises(ValueError, match="crystal 0 with .5, 5. atoms and rows is larger than"):
        batch_plan(np.array([5]), np.array([5]), PadBudget(4, 40, 3, 4))  # the smallest crystal is too large


def test_plan_is_a_function_of_seed_and_epoch():
    n_atom, n_row = sizes(2000)
    budget = pad_budget(n_atom, n_row, 32, 4)

    def plan(*seed_and_epoch):
        return [rows.tolist() for rows in batch_plan(n_atom, n_row, budget, *seed_and_epoch)]

    assert plan(0, 1) == plan(0, 1)
    assert plan(0, 1) != plan(0, 2)
    assert plan(0, 1) != plan(1, 1)
    assert plan(1, 0) != plan(0, 1)
    assert plan()[0][:3] == [0, 1, 2]  # without a seed the order is kept
    together = [set(rows) for rows in plan(0, 2)]
    assert not any(set(rows) in together for rows in plan(0, 1)), "other orders of the same batches are not enough"


@pytest.mark.parametrize("n", [20, 33, 64, 96, 128, 300])
def test_no_batch_of_a_crystal_or_two(n):
    n_atom, n_row = sizes(n)
    budget = pad_budget(n_atom, n_row, 32, 4)
    for epoch in range(20):
        plan = batch_plan(n_atom, n_row, budget, 0, epoch)
        atoms = [n_atom[rows].sum() for rows in plan]
        assert min(atoms) >= 0.4 * np.mean(atoms)
        assert len(plan) <= n / 32 + 2  # no more batches than the crystals need
    alike = np.full(32 * n + 1, 5)  # of a last crystal, which all batches before it have to make room for
    plan = batch_plan(alike, 3 * alike, pad_budget(alike, 3 * alike, 32, 4), 0)
    assert {len(rows) for rows in plan} <= {31, 32} or n == 20


@pytest.mark.parametrize("batch_size", [32, 128, 256])
def test_little_is_wasted(batch_size):
    n_atom, n_row = sizes()
    budget = pad_budget(n_atom, n_row, batch_size, 4)
    plan = batch_plan(n_atom, n_row, budget, 0, 0)
    assert padding_waste(n_atom, n_row, plan, budget) <= 0.04
    assert np.mean([len(rows) for rows in plan]) == pytest.approx(batch_size, rel=0.05)


def test_waste_by_hand():
    budget = PadBudget(10, 20, 3, 4)
    assert padding_waste(np.array([5, 4]), np.array([10, 8]), [np.array([0]), np.array([1])], budget) == 1 - 9 / 20


@pytest.mark.parametrize("n", [0, 1, 7, 15, 16, 17, 31, 100, 1000, 12345])
def test_rounded_up(n):
    assert n <= rounded_up(n) <= n * 9 / 8
    assert rounded_up(rounded_up(n)) == rounded_up(n)


def test_few_lengths():
    assert len({rounded_up(n) for n in range(1000, 1100)}) <= 3


@pytest.mark.parametrize(("n", "batch_size"), [(300, 32), (2000, 32), (2000, 128)])
def test_epochs_and_seeds_share_one_length(n, batch_size):
    n_atom, n_row = sizes(n)
    budget = pad_budget(n_atom, n_row, batch_size, 4)
    length = epoch_length(n_atom, n_row, budget)
    batches = [len(batch_plan(n_atom, n_row, budget, seed, epoch)) for seed in range(4) for epoch in range(5)]
    assert max(batches) <= length <= 1.35 * max(batches) + 1


def padded_by_jraph(dataset, rows, labels, budget) -> jraph.GraphsTuple:
    """The same crystals through jraph's own batching and padding."""
    graphs = []
    for i in rows:
        atoms = slice(dataset.atom_offset[i], dataset.atom_offset[i + 1])
        edges = slice(dataset.row_offset[i], dataset.row_offset[i + 1])
        places = budget.places
        graphs.append(
            jraph.GraphsTuple(
                nodes={"atomic_number": dataset.atomic_numbers[atoms].astype(np.int32)},
                edges={
                    "distance": dataset.distances[edges].reshape(-1),
                    "weight": dataset.weights[edges].reshape(-1),
                },
                senders=dataset.senders[edges].reshape(-1),
                receivers=np.repeat(dataset.receivers[edges], places),
                n_node=np.array([dataset.n_atom[i]]),
                n_edge=np.array([dataset.n_row[i] * places]),
                globals=labels[i][None],
            )
        )
    return jraph.pad_with_graphs(jraph.batch_np(graphs), budget.n_node, budget.n_row * budget.places, budget.n_graph)


ROWS = {
    "full": ([0, 3, 5, 1], PadBudget(15, 40, 5, 4)),
    "free graphs": ([4, 2, 9], PadBudget(40, 100, 9, 4)),
    "one crystal": ([11], PadBudget(7, 19, 2, 4)),
}


@pytest.mark.parametrize(("rows", "budget"), ROWS.values(), ids=ROWS)
def test_layout_is_that_of_jraph(rows, budget):
    dataset = toy.dataset(("energy", "gap"))
    stacked = stack_batches(dataset, dataset.targets, [np.array([6]), np.array(rows)], budget)
    ours = jax.tree.map(lambda leaf: leaf[1], stacked)
    theirs = padded_by_jraph(dataset, rows, dataset.targets, budget)
    jax.tree.map(np.testing.assert_array_equal, ours.graph._replace(globals=None), theirs._replace(globals=None))
    np.testing.assert_array_equal(ours.labels[: len(rows)], theirs.globals[: len(rows)])
    assert np.isnan(ours.labels[len(rows) :]).all()
    n_atom = int(dataset.n_atom[rows].sum())
    np.testing.assert_array_equal(jraph.get_node_padding_mask(ours.graph), np.arange(budget.n_node) < n_atom)
    np.testing.assert_array_equal(jraph.get_graph_padding_mask(ours.graph), np.arange(budget.n_graph) < len(rows))
    n_edge = int(dataset.n_row[rows].sum()) * budget.places
    np.testing.assert_array_equal(jraph.get_edge_padding_mask(ours.graph), np.arange(len(ours.graph.senders)) < n_edge)


def test_rows_share_a_receiver_and_receivers_ascend():
    dataset = toy.dataset()
    budget = pad_budget(dataset.n_atom, dataset.n_row, 3, 4)
    plan = batch_plan(dataset.n_atom, dataset.n_row, budget, 0, 0)
    stacked = stack_batches(dataset, dataset.targets, plan, budget, len(plan) + 2)
    assert stacked.labels.shape == (len(plan) + 2, budget.n_graph, 1)
    for receivers in stacked.graph.receivers:
        of_rows = receivers.reshape(-1, budget.places)
        assert (of_rows == of_rows[:, :1]).all()
        assert (np.diff(receivers) >= 0).all()
    assert (stacked.graph.n_node.sum(1) == budget.n_node).all()
    assert (stacked.graph.n_edge.sum(1) == budget.n_row * budget.places).all()
    # The batches at the end are padding and nothing else.
    assert not stacked.graph.edges["weight"][len(plan) :].any()
    assert np.isnan(stacked.labels[len(plan) :]).all()
    assert (stacked.graph.n_node[len(plan) :, 0] == budget.n_node).all()
