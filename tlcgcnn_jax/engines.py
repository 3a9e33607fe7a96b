"""Where the tasks of a study run: in this process, in one process a core, or on a Ray cluster."""

import importlib.util
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.processes import cores, script_not_run_again, worker_pool

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

ENGINES = ("local", "ray")
TRIES = 3  # times that a task is given out before a worker that dies on it is an error


def run_tasks(
    work: Callable[[T], R], tasks: Sequence[T], engine: str = "local", workers: int | None = None
) -> Iterator[tuple[T, R]]:
    """Results as they come; a task whose worker dies is given to another one.

    A worker that dies takes the others of its pool along. What was at work then runs alone, so that a task is only
    blamed for a worker that it has ended itself.

    Args:
        work: A function that can be pickled.
        tasks: Its arguments.
        engine: "local", or "ray" (extra `ray`): the cluster in the environment's RAY_ADDRESS, or a new one on this
            machine. All nodes must see the same files.
        workers: Processes. Default: the cores of a machine without accelerator, one task each; otherwise this
            process, which has the accelerator to itself. Of Ray: tasks at a time, as many as its processors.

    Raises:
        InputError: Unknown engine, Ray not installed, or a task that has killed several workers.
    """
    check_engine(engine)
    if engine == "ray":
        yield from _on_ray(work, tasks, workers)
        return
    if workers is None:
        import jax

        workers = cores() if jax.default_backend() == "cpu" else 1
    if workers == 1 or len(tasks) == 1:
        for task in tasks:
            yield task, work(task)
        return
    yield from _in_processes(work, tasks, min(workers, len(tasks)))


def check_engine(engine: str) -> None:
    """Raise `InputError` for an unknown engine, or for Ray where it is not installed."""
    if engine not in ENGINES:
        raise InputError(f"engine is {engine!r}: use {' or '.join(ENGINES)}")
    if engine == "ray" and importlib.util.find_spec("ray") is None:
        raise InputError("engine 'ray' needs Ray: pip install 'tlcgcnn_jax[ray]'")


def _in_processes(work: Callable[[T], R], tasks: Sequence[T], workers: int) -> Iterator[tuple[T, R]]:
    left, tries = dict(enumerate(tasks)), [0] * len(tasks)
    suspects: dict[int, None] = {}  # tasks that were at work when a worker ended, in their order
    while left:
        pool = worker_pool(workers, _one_core, (workers,))
        pending: dict[Future[R], int] = {}
        waiting = [*suspects, *(index for index in left if index not in suspects)]
        try:
            while waiting or pending:
                while waiting and len(pending) < (1 if suspects else workers):
                    index = waiting.pop(0)
                    with script_not_run_again():
                        pending[pool.submit(work, left[index])] = index
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    result = future.result()
                    index = pending.pop(future)
                    suspects.pop(index, None)
                    yield left.pop(index), result
        except BrokenProcessPool as error:
            suspects = dict.fromkeys([*pending.values(), *suspects])
            if len(pending) > 1:
                logger.warning("a worker process ended (out of memory?): what was at work is run one by one")
                continue
            for index in pending.values():
                tries[index] += 1
                if tries[index] >= TRIES:
                    raise InputError(
                        f"{left[index]}: {TRIES} worker processes ended while it ran alone (out of memory?): "
                        "use smaller batches"
                    ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _one_core(workers: int) -> None:
    """Keep a worker to a share of the cores: small networks lose more by sharing them than they gain."""
    import multiprocessing
    import os

    if hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        number = (multiprocessing.current_process()._identity or (1,))[0] - 1  # workers are numbered from 1
        share = max(1, len(allowed) // workers)
        first = number * share % len(allowed)
        os.sched_setaffinity(0, allowed[first : first + share])


def _on_ray(work: Callable[[T], R], tasks: Sequence[T], workers: int | None) -> Iterator[tuple[T, R]]:
    import ray
    import ray.exceptions

    if not ray.is_initialized():
        import os

        options: dict[str, Any] = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers or cores()}
        ray.init(log_to_driver=False, configure_logging=False, include_dashboard=False, **options)
    # Ray gives a task out again when its worker or node dies, and to nobody twice when it has ended.
    call: Any = lambda task: work(task)  # Ray takes functions and no other callables
    remote: Any = ray.remote(num_cpus=1, max_retries=TRIES)(call)
    most = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting, pending = list(tasks), {}
    try:
        while waiting or pending:
            while waiting and len(pending) < most:
                task = waiting.pop(0)
                pending[remote.remote(task)] = task
            done, _ = ray.wait(list(pending), num_returns=1)
            for reference in done:
                task = pending.pop(reference)
                try:
                    result = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise error.as_instanceof_cause() from error
                except ray.exceptions.RayError as error:  # its worker or node ended too often, or is out of memory
                    why = str(error).partition("\n")[0]
                    raise InputError(f"{task}: Ray has given it up: {type(error).__name__}: {why}") from error
                yield task, result
    finally:
        for reference in pending:
            ray.cancel(reference, force=True)
