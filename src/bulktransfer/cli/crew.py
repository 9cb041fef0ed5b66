"""The other processes (or threads) of the demonstration: each runs one function with a pipe to talk over.

Knows: how they start, how they report, and that none outlives the command. Must not know: what they do.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

import bulktransfer as bulk

PATIENCE_S = 30.0
IDLE_S = 120  # how long a process lives without a command
_PR_SET_PDEATHSIG = 1
_END_S = 2.0
_alone = False  # this process is a member

Task = Callable[..., None]


class CrewError(Exception):
    """A member failed or died; the message says which and how."""


class Member:
    """One process or thread; made by `process` or `thread`, ended by `end`."""

    def __init__(self, name: str, pipe: Connection[Any, Any], runs: Any) -> None:
        self.name = name
        self.pipe = pipe
        self._runs = runs

    @property
    def is_process(self) -> bool:
        """Whether it has memory and CPU time of its own."""
        return not isinstance(self._runs, threading.Thread)

    def tell(self, thing: object) -> None:
        """Send a command. Raises: CrewError."""
        try:
            self.pipe.send(thing)
        except OSError as error:
            raise self._gone() from error

    def hear(self, timeout_s: float = PATIENCE_S) -> Any:
        """What it says next. Raises: CrewError (it failed, died, or says nothing)."""
        if not self.pipe.poll(timeout_s):
            raise CrewError(f"{self.name} said nothing for {timeout_s:.0f} s")
        try:
            thing = self.pipe.recv()
        except (EOFError, ConnectionResetError) as error:
            raise self._gone() from error
        if isinstance(thing, Failure):
            raise CrewError(f"{self.name}: {thing.text}")
        return thing

    def last_words(self, timeout_s: float = PATIENCE_S) -> tuple[str | None, int | None]:
        """What a process said before it ended, if anything, and its exit status.

        Raises: CrewError (it failed, or does not end).
        """
        said = None
        try:
            if not self.pipe.poll(timeout_s):
                raise CrewError(f"{self.name} neither says anything nor ends, after {timeout_s:.0f} s")
            said = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            pass
        if isinstance(said, Failure):
            raise CrewError(f"{self.name}: {said.text}")
        self._runs.join(timeout_s)
        return said, self._runs.exitcode

    def _gone(self) -> CrewError:
        self._runs.join(_END_S)
        status = f" (exit status {self._runs.exitcode})" if self.is_process else ""
        return CrewError(f"{self.name} has ended{status}")

    def end(self, patience_s: float = _END_S) -> None:
        """It is over, whatever it does; it never waits long and never raises."""
        self.pipe.close()
        self._runs.join(patience_s)
        if self.is_process and self._runs.is_alive():
            self._runs.kill()
            self._runs.join()


class Failure:
    """What a member sends in place of an answer when it fails."""

    def __init__(self, text: str) -> None:
        self.text = text


def process(name: str, task: Task, *args: object) -> Member:
    """A fresh Python process that runs `task(pipe, *args)`; the kernel ends it with this one."""
    here, there = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    resource_tracker.ensure_running()  # else the start does it, and lets interrupts through afterwards
    runs = context.Process(target=_in_process, args=(there, os.getpid(), task, args), name=f"bulk {name}", daemon=True)
    with there, _without_interrupts():  # Ctrl-C reaches every process; who ends the others is this one
        runs.start()
    return Member(name, here, runs)


def watchdog(seconds: int) -> None:
    """In a member that is a process: the kernel ends it after so many seconds. In a thread: nothing."""
    if _alone:
        signal.alarm(seconds)


def thread(name: str, task: Task, *args: object) -> Member:
    """A thread with a domain of its own that runs `task(pipe, *args)`."""
    here, there = multiprocessing.Pipe()
    runs = threading.Thread(target=_in_thread, args=(there, task, args), name=f"bulk {name}", daemon=True)
    runs.start()
    return Member(name, here, runs)


@contextlib.contextmanager
def watching(members: list[Member]) -> Iterator[None]:
    """A failure in the body is explained by the member that failed first, if one did; in the end all are ended."""
    patience_s = 0.0
    try:
        yield
        patience_s = _END_S
    except (bulk.BulkError, OSError) as error:
        ready = wait([member.pipe for member in members], _END_S)
        for member in members:
            if member.pipe in ready:
                member.hear()  # raises what it failed with
        raise CrewError(f"{type(error).__name__}: {error}") from error
    finally:
        for member in reversed(members):
            member.end(patience_s)


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _in_process(pipe: Connection[Any, Any], parent: int, task: Task, args: tuple[object, ...]) -> None:
    global _alone
    _alone = True
    warnings.simplefilter("ignore", bulk.SecurityWarning)  # as in main.py
    watchdog(IDLE_S)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == parent:
        _run(pipe, task, args)


def _in_thread(pipe: Connection[Any, Any], task: Task, args: tuple[object, ...]) -> None:
    with bulk.Domain():
        _run(pipe, task, args)


def _run(pipe: Connection[Any, Any], task: Task, args: tuple[object, ...]) -> None:
    with pipe:
        try:
            task(pipe, *args)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other side must hear of it, if it is there
            with contextlib.suppress(OSError):
                pipe.send(Failure(f"{type(error).__name__}: {error}"))
