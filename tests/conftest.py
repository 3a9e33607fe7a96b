"""Strict numerics and the shared data for every test."""

import atexit
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# The tests make thousands of small programs, whose compilation is most of the time: here, and in the processes that
# tests start, it is done without most optimisations, and once. Those of exact numbers ask for `optimised`.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
# A folder for each process of pytest-xdist, since JAX does not lock it.
os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="programs_")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["PYTHONWARNINGS"] = "ignore:Error reading persistent compilation cache"  # of children; see pyproject.toml

import jax

atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
jax.config.update("jax_numpy_rank_promotion", "raise")
# A shell starts its background jobs with Ctrl-C ignored, and Python leaves it so; the tests of interrupts need it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real crystals beside the project; skipped without it, but required where CI is set."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        message = (
            f"needs the data sets in {folder.parent.name}/{folder.name} beside the project, which are not part of it"
        )
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return folder


MOST_MAPPINGS = 30_000  # of memory, of which Linux allows a process 65,530 (vm.max_map_count)


@pytest.fixture(scope="module", autouse=True)
def programs_of_some_files() -> Iterator[None]:
    """Compiled programs are shared by the files of a process, until there are too many of them.

    Each takes several memory mappings. Those of the whole suite are as many as a process may have, and past that JAX
    dies of a segmentation fault.
    """
    yield
    mappings = Path("/proc/self/maps")
    if not mappings.is_file() or mappings.read_bytes().count(b"\n") > MOST_MAPPINGS:
        jax.clear_caches()


@pytest.fixture(scope="module")
def optimised() -> Iterator[None]:
    """Programs as users have them, for files that compare their numbers to the last bits."""
    jax.clear_caches()  # what is compiled stays as it is when the setting changes
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
    jax.clear_caches()


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without pictures, which take as long as they; fixtures of a whole file are made before and have some."""
    monkeypatch.setattr("tlcgcnn_jax.run_folder.run_pictures", lambda *_: [])


@pytest.fixture
def pictures(no_pictures: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures nevertheless."""
    from tlcgcnn_jax.run_pictures import run_pictures

    monkeypatch.setattr("tlcgcnn_jax.run_folder.run_pictures", run_pictures)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Slow checks run only when they are asked for with `-m slow`."""
    if "slow" in (config.getoption("-m") or ""):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in slow]
