"""Forked children for tests: they share what the test has imported and opened, and may become another user.

    child = fork(lambda pipe: pipe.recv() + 1)
    child.pipe.send(1)
    assert child.result() == 2            # raises what the function raised

The kernel kills a child when the thread that forked it ends, so the run's watchdog takes the children along.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import warnings
from collections.abc import Callable
from multiprocessing import Pipe
from typing import Any

import pytest

SOMEBODY_ELSE = 65534
PATIENCE_S = 30.0

_libc = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be several users")


class Forked:
    """A running child and the pipe to it."""

    def __init__(self, pid: int, pipe: Any) -> None:
        self.pid = pid
        self.pipe = pipe

    def receive(self) -> Any:
        """What the function sent next, or the exception that it ended with instead."""
        assert self.pipe.poll(PATIENCE_S), f"child {self.pid} said nothing"
        thing = self.pipe.recv()
        if isinstance(thing, _Raised):
            self._wait()
            raise thing.error
        return thing

    def result(self) -> Any:
        """What the function returned; raises what it raised."""
        thing = self.receive()
        assert isinstance(thing, _Returned), f"child {self.pid} sent {thing!r} and has not ended"
        self._wait()
        return thing.value

    def kill(self) -> None:
        """End it as a crash would, and wait until it is gone."""
        os.kill(self.pid, signal.SIGKILL)
        self._wait()

    def _wait(self) -> None:
        os.waitpid(self.pid, 0)
        self.pipe.close()


class _Returned:
    def __init__(self, value: Any) -> None:
        self.value = value


class _Raised:
    def __init__(self, error: BaseException) -> None:
        self.error = error


def fork(function: Callable[[Any], Any], *, uid: int | None = None) -> Forked:
    """Run `function(pipe)` in a child, as user `uid` if given."""
    here, there = Pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the watchdog is a thread, and is at ease with forks
        pid = os.fork()
    if pid:
        there.close()
        return Forked(pid, here)
    status = 1
    try:
        here.close()
        if uid is not None:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        try:
            there.send(_Returned(function(there)))
        except BaseException as error:
            there.send(_Raised(error))
        status = 0
    finally:
        with contextlib.suppress(BaseException):
            there.close()
        os._exit(status)


def in_child(function: Callable[[], Any], *, uid: int | None = None) -> Any:
    """What `function` returns or raises in a child."""
    return fork(lambda _: function(), uid=uid).result()
