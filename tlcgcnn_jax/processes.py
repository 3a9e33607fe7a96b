"""Worker processes that do not run the user's script again, leave Ctrl-C to their parent and end when it does."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_pool(workers: int, start: Callable[..., None] | None = None, arguments: Sequence[object] = ()) -> (
    ProcessPoolExecutor
):  # fmt: skip
    """A pool of new processes; submit to it inside `script_not_run_again`.

    Args:
        workers: Processes.
        start: Called in each of them first.
        arguments: Of `start`.
    """
    # "spawn": a process that runs jax must not be forked.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, context, initializer=_start, initargs=(start, *arguments))


@contextlib.contextmanager
def script_not_run_again() -> Iterator[None]:
    """Start processes that do not import the user's script: it may train, and need not guard against that."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _start(start: Callable[..., None] | None, *arguments: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for the parent, which ends the pool
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if start is not None:
        start(*arguments)


def _end_with_parent() -> None:
    """A parent that is killed cannot end its workers, which would work on and then wait for it for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
