"""Worker processes whose parent is killed."""

import subprocess
import sys
import time

import pytest

PARENT = """
import os, time
from tlcgcnn_jax.processes import script_not_run_again, worker_pool

pool = worker_pool(1)
with script_not_run_again():
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 600)
time.sleep(600)
"""


def runs(pid: int) -> bool:
    """Whether a process is there and is not one that has ended and that nobody asks for."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_workers_end_with_their_parent():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert runs(worker)
        parent.kill()
    end = time.monotonic() + 20
    while runs(worker) and time.monotonic() < end:
        time.sleep(0.05)
    assert not runs(worker), f"process {worker} is at work for a parent that is gone"
