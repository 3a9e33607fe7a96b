"""Many trainings in one program: each gets what it would get alone, and what `train` would give it."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest
import toy

from tlcgcnn_jax import many
from tlcgcnn_jax.batching import batch_plan, pad_budget, stack_batches
from tlcgcnn_jax.bundle import flatten
from tlcgcnn_jax.checkpoint import Checkpoints
from tlcgcnn_jax.config import Target
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.losses import fit_normaliser
from tlcgcnn_jax.many import Run, gather_batch, on_device, train_epochs, train_many
from tlcgcnn_jax.model import CGCNN
from tlcgcnn_jax.splits import Split
from tlcgcnn_jax.train import Program, Trained, train

SIZES = dataclasses.replace(toy.SIZES, convolutions=1)
# Momentum and not Adam: the gradient of a bias before a batch norm is the rounding of zero, of which Adam makes steps.
CONFIG = dataclasses.replace(toy.CONFIG, epochs=5, optimizer="sgd", schedule="constant", warmup=0.0)
LONGER = dataclasses.replace(CONFIG, epochs=8)
NOTHING = np.zeros(0, np.int64)
SEVERAL = (
    toy.ENERGY,
    Target("gap", "eV"),
    Target("metal", kind="classification"),
    Target("family", kind="classification", classes=3),
)


@pytest.fixture(autouse=True)
def two_epochs_a_call(monkeypatch):
    """Runs of every length share a program, which is called several times, and the last time for one epoch alone."""
    monkeypatch.setattr(many, "CHUNK", 2)


def program(targets=(toy.ENERGY,), **changes) -> Program:
    return Program(CGCNN(SIZES, sum(t.outputs for t in targets), 4), targets, CONFIG, **changes)


def run(seed=0, train_rows=toy.SPLIT.train, val=toy.SPLIT.val, rate=CONFIG.learning_rate, **others) -> Run:
    dataset, targets = others.get("dataset", toy.dataset()), others.get("targets", (toy.ENERGY,))
    variables = toy.variables(SIZES, sum(target.outputs for target in targets), seed=seed)
    return Run(train_rows, val, variables, fit_normaliser(dataset.targets[train_rows], targets), rate, seed)


@functools.cache
def three() -> tuple[Run, ...]:
    return run(0), run(1, rate=3e-3), run(2, train_rows=np.arange(2, 10), val=np.array([0, 11]))


def trained(runs=None, config=CONFIG, **others) -> list[Trained]:
    return train_many(toy.dataset(), runs or three(), program(), config, **others)


@functools.cache
def in_turn() -> list[Trained]:
    return trained()


@functools.cache
def mapped() -> list[Trained]:
    """Two at once, then the third on its own."""
    return trained(together=2)


def by_train(one: Run, targets=(toy.ENERGY,), config=CONFIG, dataset=None) -> Trained:
    config = dataclasses.replace(config, seed=one.seed, learning_rate=one.learning_rate)
    split = Split(one.train, one.val, NOTHING)
    return train(dataset or toy.dataset(), split, targets, SIZES, config, variables=one.variables)


def plain(history) -> np.ndarray:
    return np.array([[row[n] for n in ("epoch", "train_loss", "val_score", "gradient", "learning_rate")]
                     for row in history])  # fmt: skip


def assert_close(one: Trained, other: Trained) -> None:
    """To what float32 leaves of two orders of summation."""
    np.testing.assert_allclose(plain(one.history), plain(other.history), rtol=1e-4, equal_nan=True)
    assert one.best_epoch == other.best_epoch
    for path, leaf in flatten(other.variables).items():
        np.testing.assert_allclose(flatten(one.variables)[path], leaf, rtol=1e-4, atol=1e-5, err_msg=path)


def assert_bitwise(one: Trained, other: Trained) -> None:
    ours, theirs = (flatten(each.variables).values() for each in (one, other))
    assert [leaf.tobytes() for leaf in ours] == [np.asarray(leaf).tobytes() for leaf in theirs]
    np.testing.assert_array_equal(plain(one.history), plain(other.history))
    assert one.best_epoch == other.best_epoch


LENGTH = 6
PLANS = {
    "of an epoch": None,
    "full": [np.array([0, 6, 1, 7])],  # as many crystals as a batch takes
    "out of order": [np.array([5, 0]), np.array([11])],
    "empty": [NOTHING, np.array([3])],
}


@functools.partial(jax.jit, static_argnums=(3, 4))
def gathered(crystals, plan, labels, budget, pooled=False):
    return jax.vmap(lambda rows: gather_batch(crystals, rows, labels, budget, pooled))(plan)


def padded(plan, width) -> np.ndarray:
    """One length for all, so that they share a compilation."""
    out = np.full((LENGTH, width), -1, np.int32)
    for batch, rows in zip(out, plan, strict=False):
        batch[: len(rows)] = rows
    return out


@pytest.mark.parametrize("places", [4, 12])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_batches_are_those_of_stack_batches(plan, places):
    dataset = toy.dataset(toy.COLUMNS, places)
    labels = np.asarray(dataset.targets, np.float32)
    budget = pad_budget(dataset.n_atom, dataset.n_row, 3, places)
    plan = plan or batch_plan(dataset.n_atom, dataset.n_row, budget, seed=3)
    found = gathered(on_device(dataset), padded(plan, budget.n_graph - 1), labels, budget)
    expected = stack_batches(dataset, labels, plan, budget, LENGTH)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        np.testing.assert_array_equal(ours, theirs)


def test_one_plan_fills_a_batch():
    dataset = toy.dataset()
    assert len(PLANS["full"][0]) == pad_budget(dataset.n_atom, dataset.n_row, 3, 4).n_graph - 1


def test_cached_atoms_go_where_the_atoms_go():
    """The atomic numbers, given as features as well, come out alike."""
    dataset = toy.dataset()
    budget = pad_budget(dataset.n_atom, dataset.n_row, 3, 4)
    plan = batch_plan(dataset.n_atom, dataset.n_row, budget, seed=1)
    numbers = np.asarray(dataset.atomic_numbers, np.float32)
    crystals = on_device(dataset, np.stack([numbers, -numbers], 1))
    nodes = gathered(crystals, padded(plan, budget.n_graph - 1), dataset.targets, budget).graph.nodes
    expected = (
        stack_batches(dataset, dataset.targets, plan, budget, LENGTH).graph.nodes["atomic_number"].astype(np.float32)
    )
    np.testing.assert_array_equal(nodes["features"], np.stack([expected, -expected], -1))


def test_cached_crystals_go_where_the_crystals_go():
    dataset = toy.dataset()
    budget = pad_budget(dataset.n_atom, dataset.n_row, 3, 4)
    plan = [np.array([7, 2]), NOTHING]
    features = np.random.default_rng(0).normal(size=(toy.N, 5)).astype(np.float32)
    found = gathered(on_device(dataset, features), padded(plan, budget.n_graph - 1), dataset.targets, budget, True)
    expected = np.zeros((LENGTH, budget.n_graph, 5), np.float32)
    expected[0, :2] = features[[7, 2]]
    np.testing.assert_array_equal(found.graph.globals["features"], expected)
    np.testing.assert_array_equal(found.labels, stack_batches(dataset, dataset.targets, plan, budget, LENGTH).labels)


def test_each_run_gets_what_train_gives_it():
    for one, found in list(zip(three(), in_turn(), strict=True))[::2]:
        assert_close(found, by_train(one))


def test_runs_do_not_see_each_other():
    for one, found in zip(three(), in_turn(), strict=True):
        assert_bitwise(trained([one])[0], found)


def test_mapped_is_in_turn():
    for one, other in zip(mapped(), in_turn(), strict=True):
        assert_close(one, other)

    assert_bitwise(mapped()[2], in_turn()[2])


def test_what_is_kept_has_the_best_score():
    for found in in_turn():
        scores = [row["val_score"] for row in found.history]
        assert found.best_epoch == 1 + int(np.argmin(scores)) and len(scores) == CONFIG.epochs
    assert {found.best_epoch for found in in_turn()} != {CONFIG.epochs}, "one of the runs is to have an earlier best"


def test_the_last_epoch_is_kept_on_request():
    alone = [dataclasses.replace(one, val=NOTHING) for one in three()]  # without a score none is the best
    for found, last in zip(trained(config=dataclasses.replace(CONFIG, keep="last")), trained(alone), strict=True):
        assert found.best_epoch == CONFIG.epochs
        jax.tree.map(np.testing.assert_array_equal, found.variables, last.variables)


def test_several_targets_with_gaps():
    """Values and classes, missing labels, and two training crystals without any, in one batch an epoch."""
    dataset = toy.dataset(tuple(target.name for target in SEVERAL))
    targets = np.array(dataset.targets)
    targets[:2] = np.nan
    dataset = toy.replaced(dataset, targets=targets)
    config = dataclasses.replace(CONFIG, batch_size=8)
    one = run(4, targets=SEVERAL, dataset=dataset)
    found = train_many(dataset, [one], program(SEVERAL), config)[0]
    assert_close(found, by_train(one, SEVERAL, config, dataset))


@pytest.mark.parametrize("together", [1, 2])
def test_patience(together):
    """A run that is out of patience stays as it is; the other goes on."""
    runs = [run(0), run(0, rate=1e-12)]  # with next to no rate, the statistics of batch norm get better for long
    stopped, other = trained(runs, dataclasses.replace(LONGER, patience=2), together=together)
    length = len(stopped.history)
    assert length == stopped.best_epoch + 2 < len(other.history)
    shorter = dataclasses.replace(LONGER, epochs=length)
    assert_bitwise(stopped, trained(runs, shorter, together=together)[0])
    assert_bitwise(other, trained(runs, dataclasses.replace(LONGER, epochs=len(other.history)), together=together)[1])


def test_nothing_held_out_keeps_the_last():
    config = dataclasses.replace(CONFIG, patience=1)
    found, other = trained([dataclasses.replace(three()[0], val=NOTHING), three()[1]], config, together=2)
    assert found.best_epoch == len(found.history) == CONFIG.epochs
    assert all(math.isnan(row["val_score"]) for row in found.history)
    assert_close(found, by_train(dataclasses.replace(three()[0], val=NOTHING)))
    assert len(other.history) <= CONFIG.epochs


def late_to_diverge(**changes) -> Run:
    """After the first epoch the score is a number still, in the order of 1e28; then there are none."""
    return dataclasses.replace(run(0, rate=3e3), **changes)


@pytest.mark.parametrize("together", [1, 2])
def test_a_run_that_diverges_keeps_its_best(together):
    found, other = trained([late_to_diverge(), three()[1]], LONGER, together=together)
    finite = [row["epoch"] for row in found.history if math.isfinite(row["val_score"])]
    assert 1 <= len(finite) < LONGER.epochs and found.best_epoch in finite
    assert all(np.isfinite(leaf).all() for leaf in flatten(found.variables).values())
    assert all(math.isfinite(row["val_score"]) for row in other.history) and len(other.history) == LONGER.epochs


def test_the_last_epoch_is_not_kept_where_it_is_no_number():
    with pytest.raises(InputError, match="loss of seed 0 is not a number"):
        trained([late_to_diverge()], dataclasses.replace(LONGER, keep="last"))


REFUSED = {
    "never a number": (lambda: run(5, rate=1e30), "loss of seed 5 is not a number.*learning rate.*1e\\+30"),
    "nothing held out to choose by": (lambda: late_to_diverge(val=NOTHING), "loss of seed 0 is not a number"),
    "no label": (
        lambda: dataclasses.replace(three()[0], train=NOTHING),
        "not one of 0 training crystals has a label",
    ),
}


@pytest.mark.parametrize(("one", "told"), REFUSED.values(), ids=REFUSED)
def test_refused(one, told):
    with pytest.raises(InputError, match=told):
        trained([three()[0], one()], LONGER)


def test_every_epoch_is_told_in_order():
    seen = []
    found = trained(on_epoch=lambda i, row: seen.append((i, row)))
    calls = [(1, 2), (3, 4), (5,)]
    assert [(i, row["epoch"]) for i, row in seen] == [(i, e) for epochs in calls for i in range(3) for e in epochs]
    for i, one in enumerate(found):
        assert [row for j, row in seen if j == i] == one.history
        assert_bitwise(one, in_turn()[i])


def interrupt(i: int, row: dict) -> None:
    if (i, row["epoch"]) == (1, 2):
        raise KeyboardInterrupt


@pytest.mark.parametrize(("together", "whole"), [(1, in_turn), (2, mapped)], ids=["in turn", "mapped"])
def test_going_on_is_exact(tmp_path, together, whole):
    with pytest.raises(KeyboardInterrupt), Checkpoints(tmp_path) as checkpoints:
        trained(together=together, checkpoints=checkpoints, on_epoch=interrupt)
    seen = []
    with Checkpoints(tmp_path) as checkpoints:
        resumed = trained(together=together, checkpoints=checkpoints, on_epoch=lambda i, row: seen.append(row["epoch"]))
    assert seen == [3, 4, 3, 4, 3, 4, 5, 5, 5]
    with Checkpoints(tmp_path) as checkpoints:
        again = trained(together=together, checkpoints=checkpoints, on_epoch=interrupt)  # finished: nothing to tell
    for one, twice, expected in zip(resumed, again, whole(), strict=True):
        assert_bitwise(one, expected)
        assert_bitwise(twice, expected)


OTHERS = {
    "training": (lambda: {"config": dataclasses.replace(CONFIG, epochs=9)}, "training"),
    "rows": (lambda: {"runs": (*three()[:2], run(2))}, "crystals"),
    "rate": (lambda: {"runs": (three()[0], run(1), three()[2])}, "crystals"),
    "start": (
        lambda: {"runs": (dataclasses.replace(three()[0], variables=three()[1].variables), *three()[1:])},
        "starting weights",
    ),
}


def test_checkpoints_of_other_runs_are_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt), Checkpoints(tmp_path) as checkpoints:
        trained(checkpoints=checkpoints, on_epoch=interrupt)
    for change, told in OTHERS.values():
        with Checkpoints(tmp_path) as checkpoints, pytest.raises(InputError, match=told) as error:
            trained(checkpoints=checkpoints, **change())
        assert str(tmp_path) in str(error.value)


def test_one_compilation_for_all_runs():
    # A momentum of its own keeps other tests' programs out of the count.
    own = dataclasses.replace(program(), config=dataclasses.replace(CONFIG, momentum=0.123))
    before = train_epochs._cache_size()
    train_many(toy.dataset(), three(), own, CONFIG)
    assert train_epochs._cache_size() == before + 1


@pytest.mark.parametrize(("together", "whole"), [(1, in_turn), (2, mapped)], ids=["in turn", "mapped"])
def test_other_seeds_rates_and_lengths_share_it(together, whole):
    whole()
    before = train_epochs._cache_size()
    others = [run(7, rate=1e-3), run(8)]
    trained(others, dataclasses.replace(CONFIG, epochs=2, patience=1), together=together)
    assert train_epochs._cache_size() == before


def test_starting_weights_are_not_used_up():
    given = jax.tree.map(jax.numpy.array, three()[0].variables)
    trained([dataclasses.replace(three()[0], variables=given)])
    jax.tree.map(np.testing.assert_array_equal, given, three()[0].variables)


def test_large_epochs_are_served_one_by_one(monkeypatch):
    """Progress and checkpoints of a large dataset come after every epoch, and the numbers are those of longer calls."""
    monkeypatch.setattr(many, "CHUNK", CONFIG.epochs)
    monkeypatch.setattr(many, "CHUNK_UPDATES", 1)
    told: list[int] = []
    found = trained(on_epoch=lambda number, row: told.append(number))
    assert told == [0, 1, 2] * CONFIG.epochs
    for one, other in zip(found, in_turn(), strict=True):
        assert_bitwise(one, other)
