"""A run that is interrupted and goes on ends where an uninterrupted one does, bit for bit."""

import contextlib
import dataclasses
import shutil
import time

import jax
import numpy as np
import pytest
import toy

from tlcgcnn_jax import plans, run
from tlcgcnn_jax.checkpoint import Checkpoints
from tlcgcnn_jax.config import ModelConfig
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.splits import Split
from tlcgcnn_jax.train import Trained, train

pytestmark = pytest.mark.usefixtures("optimised")

TIMINGS = ("seconds", "crystals_per_second")
CONFIG = dataclasses.replace(toy.CONFIG, keep="last")
TOO_FAST = dataclasses.replace(toy.CONFIG, learning_rate=0.5, schedule="constant", warmup=0.0)  # the best comes early


def interrupt_after(epoch: int):
    def on_epoch(row: dict) -> None:
        if row["epoch"] == epoch:
            raise KeyboardInterrupt

    return on_epoch


def trained(checkpoints=None, on_epoch=None, config=CONFIG, split=toy.SPLIT, **others) -> Trained:
    return train(
        toy.dataset(), split, (toy.ENERGY,), others.pop("sizes", toy.SIZES), config,
        checkpoints=checkpoints, on_epoch=on_epoch, **others,
    )  # fmt: skip


def plain(history: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if name not in TIMINGS} for row in history]


def assert_bitwise(one, other) -> None:
    ours, theirs = jax.tree.leaves(one), jax.tree.leaves(other)
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert [np.asarray(a).tobytes() for a in ours] == [np.asarray(b).tobytes() for b in theirs]


@pytest.fixture(scope="module")
def whole() -> Trained:
    return trained()


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A folder with the checkpoint of a run that was interrupted after its second epoch."""
    folder = tmp_path_factory.mktemp("interrupted") / "checkpoints"
    with pytest.raises(KeyboardInterrupt), Checkpoints(folder) as checkpoints:
        trained(checkpoints, interrupt_after(2))
    return folder


@pytest.fixture
def folder(interrupted, tmp_path):
    """A copy, which a test may change."""
    return shutil.copytree(interrupted, tmp_path / "checkpoints")


def test_going_on_is_exact(whole, folder):
    seen = []
    with Checkpoints(folder) as checkpoints:
        resumed = trained(checkpoints, seen.append)
    assert [row["epoch"] for row in seen] == [3, 4]
    assert_bitwise(resumed.variables, whole.variables)
    assert_bitwise(resumed.normaliser, whole.normaliser)
    assert plain(resumed.history) == plain(whole.history)
    assert resumed.best_epoch == whole.best_epoch


def test_two_interruptions(whole, folder):
    with pytest.raises(KeyboardInterrupt), Checkpoints(folder) as checkpoints:
        trained(checkpoints, interrupt_after(3))
    with Checkpoints(folder) as checkpoints:
        assert_bitwise(trained(checkpoints).variables, whole.variables)


def test_a_finished_run_is_not_trained_further(whole, folder):
    with Checkpoints(folder) as checkpoints:
        trained(checkpoints)
    with Checkpoints(folder) as checkpoints:
        again = trained(checkpoints, interrupt_after(4))
    assert_bitwise(again.variables, whole.variables)


def test_checkpoints_do_not_change_the_run(whole, tmp_path):
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert_bitwise(trained(checkpoints).variables, whole.variables)


def test_the_best_outlives_later_epochs(tmp_path):
    """The weights that did best are not overwritten by the steps that come after, nor lost by an interruption."""
    found = trained(config=TOO_FAST)
    assert found.best_epoch < 3 < len(found.history)
    shorter = trained(config=dataclasses.replace(TOO_FAST, epochs=found.best_epoch, keep="last"))
    assert_bitwise(found.variables, shorter.variables)
    with pytest.raises(KeyboardInterrupt), Checkpoints(tmp_path) as checkpoints:
        trained(checkpoints, interrupt_after(3), TOO_FAST)
    with Checkpoints(tmp_path) as checkpoints:
        assert_bitwise(trained(checkpoints, config=TOO_FAST).variables, found.variables)


OTHERS = {
    "learning rate": ({"config": dataclasses.replace(CONFIG, learning_rate=1.0)}, "training"),
    "epochs": ({"config": dataclasses.replace(CONFIG, epochs=9)}, "training"),
    "split": ({"split": Split(np.arange(7), np.arange(8, 10), np.arange(10, 12))}, "training crystals"),
    "validation": ({"split": Split(np.arange(8), np.arange(9, 11), np.arange(11, 12))}, "validation crystals"),
    "width": ({"sizes": ModelConfig(width=4, convolutions=2, head_width=8, gaussian_step=0.5)}, r"\(model\)"),
    "depth": ({"sizes": ModelConfig(width=8, convolutions=1, head_width=8, gaussian_step=0.5)}, r"\(model\)"),
    "what is frozen": ({"rates": (("conv_0/*", 0.0), ("*", 1.0))}, "rates, frozen"),
}


@pytest.mark.parametrize(("change", "told"), OTHERS.values(), ids=OTHERS)
def test_other_settings_are_refused(folder, change, told):
    with Checkpoints(folder) as checkpoints, pytest.raises(InputError, match=told) as error:
        trained(checkpoints, interrupt_after(3), **change)
    assert str(folder) in str(error.value)


def damage_arrays(folder):
    for path in folder.rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_meta(folder):
    for path in folder.rglob("meta/*"):
        if path.is_file():
            path.write_text("{")


def lose_arrays(folder):
    for path in list(folder.glob("*/tree")):
        shutil.rmtree(path)


# Reading stops at the first bad array; Orbax then drops the loop that the other reads report to, and they complain.
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", [damage_arrays, damage_meta, lose_arrays])
def test_damaged_checkpoint_is_told(folder, damage):
    before = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    damage(folder)
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < before
    with Checkpoints(folder) as checkpoints, pytest.raises(InputError, match="cannot be used") as error:
        trained(checkpoints)
    time.sleep(0.5)  # within which the other reads end
    assert str(folder) in str(error.value)


def test_saving_does_not_wait_for_the_next_step(tmp_path):
    """What is saved is the state at that moment, though the next step takes over its memory at once."""
    step = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    tree = step({"w": jax.numpy.zeros(200_000)})
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree, {})
        for _ in range(5):
            tree = step(tree)
        jax.block_until_ready(tree)
        checkpoints.wait()
        assert set(np.asarray(checkpoints.restore(tree)["w"])) == {1.0}


def fitted(out, resume=False, **changes):
    settings = {"split": toy.SPLIT, "model": toy.SIZES, "config": toy.CONFIG, "seeds": 2} | changes
    return run.fit(toy.dataset(), toy.ENERGY, out=out, resume=resume, **settings)


@pytest.fixture
def bar_that_interrupts(monkeypatch):
    """The second network's third epoch is the last before the interruption."""

    @contextlib.contextmanager
    def bar(show, member, seeds, config):
        yield interrupt_after(3) if member == 1 else None

    return lambda: monkeypatch.setattr(plans, "EpochBar", bar)


def test_a_run_goes_on_where_it_stopped(tmp_path, bar_that_interrupts, monkeypatch):
    expected = fitted(tmp_path / "whole")
    bar_that_interrupts()
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "run")
    monkeypatch.undo()
    with pytest.raises(InputError, match="resume"):
        fitted(tmp_path / "run")
    with pytest.raises(InputError, match="learning_rate|training"):
        fitted(tmp_path / "run", resume=True, config=dataclasses.replace(toy.CONFIG, learning_rate=0.5))
    found = fitted(tmp_path / "run", resume=True)
    assert_bitwise(found.model.members, expected.model.members)
    assert plain(found.history) == plain(expected.history)
    assert found.metrics == expected.metrics
    for name in ("metrics.json", "test_results.csv", "weights.npz", "split.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
