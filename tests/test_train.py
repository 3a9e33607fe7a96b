"""The training loop: what it keeps, when it stops, what it holds in memory, and what it refuses."""

import dataclasses
import threading
import time

import jax
import numpy as np
import pytest
import toy

from tlcgcnn_jax import outputs as outputs_file
from tlcgcnn_jax import train as training
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.losses import Normaliser, normalise, score
from tlcgcnn_jax.model import CGCNN
from tlcgcnn_jax.outputs import network_outputs
from tlcgcnn_jax.splits import Split
from tlcgcnn_jax.train import train

NOTHING = np.zeros(0, np.int64)


def run(config=toy.CONFIG, split=toy.SPLIT, dataset=None, **others):
    return train(dataset or toy.dataset(), split, (toy.ENERGY,), toy.SIZES, config, **others)


@pytest.fixture(scope="module")
def whole():
    return run()


@pytest.fixture(scope="module")
def last():
    """The same, but that the last weights are kept."""
    return run(dataclasses.replace(toy.CONFIG, keep="last"))


def test_history(whole):
    assert [row["epoch"] for row in whole.history] == [1, 2, 3, 4]
    assert whole.history[-1]["train_loss"] < whole.history[0]["train_loss"]
    assert all(np.isfinite(list(row.values())).all() for row in whole.history)


def test_what_is_kept_has_the_best_score(whole):
    dataset = toy.dataset()
    outputs = network_outputs(CGCNN(toy.SIZES, 1, 4), whole.variables, dataset.select(toy.SPLIT.val))
    labels = normalise(dataset.targets[toy.SPLIT.val], (toy.ENERGY,), whole.normaliser)
    best = min(row["val_score"] for row in whole.history)
    assert score(outputs, labels, (toy.ENERGY,)) == pytest.approx(best, rel=1e-5)
    assert whole.history[whole.best_epoch - 1]["val_score"] == best


def without_labels(rows) -> dict:
    targets = np.array(toy.dataset().targets)
    targets[rows] = np.nan
    return {"dataset": toy.replaced(toy.dataset(), targets=targets)}


@pytest.mark.parametrize(
    "change",
    [{"split": Split(toy.SPLIT.train, NOTHING, toy.SPLIT.test)}, without_labels(toy.SPLIT.val)],
    ids=["no crystals", "no labels"],
)
def test_nothing_held_out_keeps_the_last(last, change):
    found = run(**change, config=dataclasses.replace(toy.CONFIG, patience=1))
    assert found.best_epoch == 4 and len(found.history) == 4
    jax.tree.map(np.testing.assert_array_equal, found.variables, last.variables)


def test_the_last_epoch_is_kept_on_request():
    far_too_fast = dataclasses.replace(toy.CONFIG, learning_rate=0.5, schedule="constant")
    best, found = run(far_too_fast), run(dataclasses.replace(far_too_fast, keep="last"))
    assert best.best_epoch < len(best.history) == found.best_epoch  # so that it makes a difference here
    alone = run(far_too_fast, Split(toy.SPLIT.train, NOTHING, NOTHING))  # without a score none is the best
    jax.tree.map(np.testing.assert_array_equal, found.variables, alone.variables)


def test_patience():
    """With a rate of next to nothing the score stays where it is, and training ends after so many epochs more."""
    targets = np.array(toy.dataset().targets)
    targets[8:10] += 1000 * np.sign(targets[8:10])  # far from every prediction: what is learnt makes it no better
    found = run(
        dataclasses.replace(toy.CONFIG, epochs=40, patience=3, learning_rate=1e-12),
        dataset=toy.replaced(toy.dataset(), targets=targets),
    )
    assert len(found.history) == found.best_epoch + 3 < 40


def test_a_large_epoch_goes_to_the_device_in_pieces(last, monkeypatch):
    """One batch at a time: the same numbers, with no more than a few pieces alive, whatever the epoch's length."""
    alive, most = [], []
    original = outputs_file.stack_batches

    def counted(*arguments):
        stacked = original(*arguments)
        if len(arguments) == 5:  # with a length: not the example for the initial weights
            alive.append(len(stacked.labels))
            most.append(len(alive))
        return stacked

    scan = training.train_scan

    def used(*arguments):
        out = scan(*arguments)
        alive.pop(0)
        time.sleep(0.05)  # time enough to run ahead, were that allowed
        return out

    monkeypatch.setattr(outputs_file, "STACK_BYTES", 1)
    monkeypatch.setattr(outputs_file, "stack_batches", counted)
    monkeypatch.setattr(training, "train_scan", used)
    found = run(split=Split(toy.SPLIT.train, NOTHING, toy.SPLIT.test))
    assert len(most) > 2 * len(found.history), "several pieces an epoch"
    assert max(most) == 2 and not alive
    jax.tree.map(np.testing.assert_array_equal, found.variables, last.variables)


def test_an_error_while_batches_are_made_is_raised(monkeypatch):
    original = training.batch_plan

    def fails(*arguments):
        if len(arguments) > 4 and arguments[4] == 2:
            raise MemoryError("no room for epoch 3")
        return original(*arguments)

    monkeypatch.setattr(training, "batch_plan", fails)
    seen = []
    with pytest.raises(MemoryError, match="epoch 3"):
        run(on_epoch=seen.append)
    assert [row["epoch"] for row in seen] in ([1], [1, 2])  # batches are made ahead


def test_an_interrupt_leaves_no_thread_behind():
    before = set(threading.enumerate())

    def interrupt(row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(on_epoch=interrupt)
    assert set(threading.enumerate()) <= before


REFUSED = {
    "no training label": (without_labels(toy.SPLIT.train), "not one training crystal"),
    "no training label, but a normaliser": (
        without_labels(toy.SPLIT.train) | {"normaliser": Normaliser(np.zeros(1), np.ones(1))},
        "8 training crystals",
    ),
    "frozen by a wrong name": ({"frozen": ("conv_7",)}, "conv_7"),
    "patterns that do not cover": ({"rates": (("head/*", 1.0),)}, "conv_0"),
    "a loss that is no number": ({"config": dataclasses.replace(toy.CONFIG, learning_rate=1e30)}, "learning rate"),
}


@pytest.mark.parametrize(("change", "told"), REFUSED.values(), ids=REFUSED)
def test_refused(change, told):
    with pytest.raises(InputError, match=told):
        run(**change)


def test_starting_weights_are_not_used_up():
    """The caller's arrays survive, though the steps give up the memory of their input."""
    start = toy.variables(moved=True)
    run(variables=jax.tree.map(jax.numpy.array, start))
    given = jax.tree.map(jax.numpy.array, start)
    run(variables=given)
    jax.tree.map(np.testing.assert_array_equal, given, start)
