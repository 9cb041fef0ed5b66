"""Servers for the scripts beside this file: ours, ours behind the client of Figure 7.1, and nbdkit.

Each ends with its context.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

PATH = f"/usr/bin:{os.environ['PATH']}:/usr/sbin:/sbin"
ENV = {**os.environ, "PATH": PATH, "LC_ALL": "C"}
BULK = [sys.executable, "-u", "-m", "bulktransfer", "block"]
PATIENCE_S = 30.0


def have(*programs: str) -> bool:
    """Whether programs are installed."""
    return all(shutil.which(program, path=PATH) for program in programs)


def run(*command: str | Path, env: dict[str, str] | None = None, core: int | None = None) -> str:
    """Run a program to its end; what it printed. Raises: RuntimeError (it failed)."""
    line = [*pinned(core), *(str(word) for word in command)]
    done = subprocess.run(line, capture_output=True, text=True, env=ENV if env is None else {**ENV, **env}, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(line)}\n{done.stdout}{done.stderr}")
    return done.stdout


def pinned(core: int | None) -> list[str]:
    """Words before a command that keep it on one core."""
    return [] if core is None else ["taskset", "-c", str(core)]


@contextlib.contextmanager
def process(command: Sequence[str], *, core: int | None = None) -> Iterator[str]:
    """A server that says where it serves; the last word of that. Raises: RuntimeError (it ended)."""
    with subprocess.Popen(
        [*pinned(core), *command], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, env=ENV
    ) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            if not line.startswith("serving"):
                raise RuntimeError(f"{' '.join(command)} did not start")
            yield line.split()[-1]
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                server.communicate(timeout=PATIENCE_S)
            except subprocess.TimeoutExpired:
                server.kill()
                server.communicate()


@contextlib.contextmanager
def nbd(directory: Path, store: str, *, core: int | None = None) -> Iterator[str]:
    """`bulk block nbd` on a UNIX socket; its URI."""
    with process([*BULK, "nbd", "--store", store, "--unix", str(directory / "disk.sock")], core=core) as uri:
        yield uri


@contextlib.contextmanager
def chain(directory: Path, store: str) -> Iterator[str]:
    """The store behind TCP, the client of Figure 7.1 and `bulk block nbd`; its URI."""
    with (
        process([*BULK, "serve", "tcp://127.0.0.1:0", "--store", store]) as server,
        process([*BULK, "client", f"shm:chain-{os.getpid()}", "--connect", server]) as local,
        process([*BULK, "nbd", "--connect", local, "--unix", str(directory / "chain.sock")]) as uri,
    ):
        yield uri


@contextlib.contextmanager
def nbdkit(directory: Path, size: str, *, core: int | None = None) -> Iterator[str]:
    """nbdkit's memory plugin on a UNIX socket; its URI. Raises: RuntimeError (it did not start)."""
    path = directory / "nbdkit.sock"
    with subprocess.Popen(
        [*pinned(core), "nbdkit", "-f", "-U", str(path), "memory", size], stdin=subprocess.DEVNULL, env=ENV
    ) as server:
        try:
            deadline = time.monotonic() + PATIENCE_S
            while not path.exists():
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("nbdkit did not start")
                time.sleep(0.01)
            yield f"nbd+unix:///?socket={path}"
        finally:
            server.terminate()
            server.wait()
            path.unlink(missing_ok=True)
