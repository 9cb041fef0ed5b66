"""What starts its other processes itself: Ray's object store, MPI.

Knows: their calls. Must not know: how they are compared.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .rival import PATIENCE_S, WINDOW


@contextlib.contextmanager
def ray_started() -> Iterator[Any]:
    """Ray on two cores of this machine, with an object store of 2 GiB, until the `with` ends. Raises: ImportError."""
    ray: Any = importlib.import_module("ray")
    directory = tempfile.mkdtemp(prefix="ray-")
    try:
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            configure_logging=False,
            object_store_memory=2 << 30,
            _temp_dir=directory,
        )
        yield ray
    finally:
        ray.shutdown()
        shutil.rmtree(directory, ignore_errors=True)


class Ray:
    """Ray's object store and an actor."""

    mode = "blocking"
    note = "ray.put and a call of an actor, 32 calls pending; the actor reads in place"

    def __init__(self, *, size: int) -> None:
        self._stack = contextlib.ExitStack()
        self._ray = ray = self._stack.enter_context(ray_started())

        class Actor:
            def sum(self, array: Any) -> int:
                return int(array.sum())

        self._actor: Any = ray.remote(num_cpus=1)(Actor).remote()
        self._array = np.empty(size // 8, np.uint64)

    def fill(self, count: int) -> tuple[int, int]:
        """The ns that `count` buffers took, and their sum."""
        ray, total = self._ray, 0
        pending: list[Any] = []
        start_ns = time.perf_counter_ns()
        for number in range(count):
            self._array[:] = number
            if len(pending) >= WINDOW:
                total += ray.get(pending.pop(0))
            pending.append(self._actor.sum.remote(ray.put(self._array)))
        total += sum(ray.get(pending))
        return time.perf_counter_ns() - start_ns, total

    def close(self) -> None:
        self._stack.close()


class Mpi:
    """mpi4py, in two processes of mpiexec that start for each segment; the start is not counted."""

    mode = "spinning"
    note = "Isend of 32 arrays and Recv into fixed memory"

    def __init__(self, *, size: int) -> None:
        self._size = size
        beside = Path(sys.executable).with_name("mpiexec")
        launcher = str(beside) if beside.exists() else shutil.which("mpiexec")
        if launcher is None:
            raise FileNotFoundError("mpi4py is installed, and no mpiexec")
        self._command = [launcher, "-n", "2", sys.executable, "-m", __name__]

    def fill(self, count: int) -> tuple[int, int]:
        """The ns that `count` buffers took, and their sum."""
        command = [*self._command, str(self._size), str(count)]
        allowed = dict.fromkeys(range(os.cpu_count() or 1))
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=True,
            preexec_fn=lambda: os.sched_setaffinity(0, allowed),  # the ranks choose their cores themselves
        )
        elapsed_ns, total = map(int, done.stdout.split())
        return elapsed_ns, total

    def close(self) -> None:
        """Nothing runs between two segments."""


def rank_main(size: int, count: int) -> None:
    """What each of the two ranks does; the first prints the ns, and the sum that the second sent back."""
    MPI: Any = importlib.import_module("mpi4py.MPI")

    world = MPI.COMM_WORLD
    rank = world.Get_rank()
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    world.Barrier()
    if rank == 0:
        start_ns = time.perf_counter_ns()
        arrays = [np.empty(size // 8, np.uint64) for _ in range(WINDOW)]
        requests: list[Any] = [None] * WINDOW
        for number in range(count):
            place = number % WINDOW
            if requests[place] is not None:
                requests[place].Wait()
            arrays[place][:] = number
            requests[place] = world.Isend(arrays[place], 1)
        for request in requests:
            if request is not None:
                request.Wait()
        total = world.recv(source=1)
        print(time.perf_counter_ns() - start_ns, total)  # to the process that started mpiexec
    else:
        array, total = np.empty(size // 8, np.uint64), 0
        for _ in range(count):
            world.Recv(array, 0)
            total += int(array.sum())
        world.send(total, dest=0)


if __name__ == "__main__":
    rank_main(*map(int, sys.argv[1:]))
