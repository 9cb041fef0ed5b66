"""Where the processes of tests come from: one that has everything imported, and forks.

Knows: how such a process is started, asked for another one, and how that one ended. Must not know: what they are for.

An interpreter that starts and imports takes half a second, a fork a few milliseconds. What is forked has made nothing
of the library yet, takes over the environment and the cores of whoever asks, and ends with the nursery at the latest;
the nursery ends with the process that asks. It is nobody's child: whoever counts children sees none.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
from typing import Any

_PR_SET_PDEATHSIG = 1
_MESSAGE_BYTES = 1 << 18
_BEGIN = "import os\nif os.fork(): os._exit(0)\nfrom bulktransfer.testing import nursery\nnursery.tend({})"


class Nursery:
    """The other process, from this side."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.place = _place()
        self._lock = threading.Lock()
        self._line, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with there:
            subprocess.run(
                [sys.executable, "-c", _BEGIN.format(there.fileno())],
                pass_fds=(there.fileno(),),
                stdin=subprocess.DEVNULL,
                check=True,
            )

    def bear(self, fd: int) -> int:
        """Have a process begin whose agent (agent.py) serves the socket `fd`; its number. Raises: OSError."""
        order = ("bear", dict(os.environ), os.sched_getaffinity(0))
        return int(self._ask(order, [fd]))

    def reap(self, pid: int) -> int:
        """How a process that is gone has ended: its exit code, or, negative, the signal. Raises: OSError."""
        return int(self._ask(("reap", pid), []))

    def _ask(self, order: tuple[Any, ...], fds: list[int]) -> Any:
        with self._lock:
            socket.send_fds(self._line, [pickle.dumps(order)], fds)
            answer = self._line.recv(_MESSAGE_BYTES)
        if not answer:
            raise ConnectionResetError("the process that makes processes is gone")
        value = pickle.loads(answer)
        if isinstance(value, OSError):
            raise value
        return value

    def close(self) -> None:
        """It ends, and all that it made."""
        self._line.close()


class Offspring:
    """A process that a nursery made."""

    def __init__(self, nursery: Nursery, fd: int) -> None:
        self._nursery = nursery
        self.pid = nursery.bear(fd)
        self._pidfd = os.pidfd_open(self.pid)
        self._code: int | None = None

    def wait(self, timeout_s: float) -> int:
        """Until it is gone: its exit code, negative for a signal. Raises: TimeoutError."""
        if self._code is None:
            looking = select.poll()
            looking.register(self._pidfd, select.POLLIN)
            if not looking.poll(timeout_s * 1000):
                raise TimeoutError(f"process {self.pid} does not end")
            self._code = self._nursery.reap(self.pid)
            os.close(self._pidfd)
        return self._code

    def kill(self) -> None:
        """End it the hard way."""
        if self._code is None:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)


_lock = threading.Lock()
_nurseries: list[Nursery] = []


def ready() -> Nursery:
    """The nursery of this process. It is made on first need, and anew where programs would be found elsewhere."""
    with _lock:
        kept = _nurseries[0] if _nurseries else None
        if kept is not None and (kept.pid, kept.place) == (os.getpid(), _place()):
            return kept
        if kept is not None:
            kept.close()
            _nurseries.clear()
        _nurseries.append(Nursery())
        atexit.register(_nurseries[0].close)
        return _nurseries[0]


def _place() -> tuple[str, str, str | None]:
    """What decides which modules a new interpreter finds."""
    return sys.executable, os.getcwd(), os.environ.get("PYTHONPATH")


# ---- the other process ----


def tend(fd: int) -> None:
    """Fork on demand, until whoever asks is gone. In the forked child: be an agent. Raises: what ends that."""
    from . import agent

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()
    with socket.socket(fileno=fd) as line:
        while True:
            message, fds, _, _ = socket.recv_fds(line, _MESSAGE_BYTES, 1)
            if not message:
                return
            what, *order = pickle.loads(message)
            if what == "reap":
                line.send(pickle.dumps(_reap(*order)))
                continue
            me = os.getpid()
            try:
                pid = os.fork()
            except OSError as error:
                line.send(pickle.dumps(error))
                os.close(fds[0])
                continue
            if pid == 0:
                break
            os.close(fds[0])
            line.send(pickle.dumps(pid))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == me:
        environment, cores = order
        os.environ.clear()
        os.environ.update(environment)
        with contextlib.suppress(OSError):  # cores may have gone meanwhile
            os.sched_setaffinity(0, cores)
        agent.serve(fds[0])


def _reap(pid: int) -> int | OSError:
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except OSError as error:
        return error
