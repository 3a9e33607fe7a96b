"""Tasks end once each, wherever they run, also where a worker dies in the middle."""

import functools
import os
import signal
import time
from pathlib import Path

import pytest
from extras import needs

from tlcgcnn_jax.engines import run_tasks
from tlcgcnn_jax.errors import InputError


def square(number: int) -> int:
    return number * number


def square_or_die(folder: str, number: int) -> int:
    """The first worker that is given 3 is killed while it works."""
    mark = Path(folder) / f"died-{number}"
    if number == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def always_die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def die_of_two(number: int) -> int:
    """2 kills its worker while the others are still at work."""
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(1)
    return number


def refuse(number: int) -> int:
    raise InputError(f"{number} will not do")


@pytest.mark.parametrize("workers", [1, 2])
def test_every_task_once(workers):
    assert sorted(run_tasks(square, range(6), workers=workers)) == [(n, n * n) for n in range(6)]


def test_a_killed_process_is_replaced(tmp_path):
    found = list(run_tasks(functools.partial(square_or_die, str(tmp_path)), range(6), workers=2))
    assert sorted(found) == [(n, n * n) for n in range(6)]
    assert (tmp_path / "died-3").exists()


def test_a_task_that_always_kills_is_named():
    with pytest.raises(InputError, match="^1: 3 worker processes ended while it ran alone"):
        list(run_tasks(always_die, [1, 2], workers=2))


def test_a_task_is_not_blamed_for_the_worker_that_another_ends():
    """Each breakdown takes all workers along; the ones that are innocent end all the same."""
    found = []
    with pytest.raises(InputError, match="^2: 3 worker processes ended while it ran alone"):
        found.extend(run_tasks(die_of_two, [1, 2], workers=2))
    assert found == [(1, 1)]


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_are_passed_on(workers):
    with pytest.raises(InputError, match="will not do"):
        list(run_tasks(refuse, [1, 2], workers=workers))


def test_unknown_engine():
    with pytest.raises(InputError, match="'slurm': use local or ray"):
        list(run_tasks(square, [1], engine="slurm"))


@pytest.fixture(scope="module")
def ray_cluster():
    """A cluster of three workers on this machine."""
    ray = needs("ray")
    here = str(Path(__file__).parent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        ray.init(
            num_cpus=3, include_dashboard=False, log_to_driver=False, configure_logging=False,
            runtime_env={"env_vars": {"PYTHONPATH": here}},
        )  # fmt: skip
        yield ray
        ray.shutdown()


@pytest.mark.filterwarnings(
    "ignore:os.fork:RuntimeWarning",  # Ray starts its processes that way; no thread of JAX is at work then
    "ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning",
)
def test_ray_loses_and_doubles_nothing(ray_cluster, tmp_path):
    work = functools.partial(square_or_die, str(tmp_path))
    assert sorted(run_tasks(work, range(8), engine="ray", workers=3)) == [(n, n * n) for n in range(8)]
    assert (tmp_path / "died-3").exists()


@pytest.mark.filterwarnings(
    "ignore:os.fork:RuntimeWarning",  # Ray starts its processes that way; no thread of JAX is at work then
    "ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning",
)
def test_ray_passes_errors_on(ray_cluster):
    with pytest.raises(InputError, match="will not do"):
        list(run_tasks(refuse, [1, 2], engine="ray"))


@pytest.mark.parametrize("name", ["WorkerCrashedError", "OutOfMemoryError", "LocalRayletDiedError"])
def test_whatever_ray_gives_up_names_the_task(ray_cluster, monkeypatch, name):
    def give_up(reference):
        raise getattr(ray_cluster.exceptions, name)(*["no memory\nmore"] * (name == "OutOfMemoryError"))

    monkeypatch.setattr(ray_cluster, "get", give_up)
    with pytest.raises(InputError, match=f"^7: Ray has given it up: {name}: .*$"):
        list(run_tasks(square, [7], engine="ray"))
