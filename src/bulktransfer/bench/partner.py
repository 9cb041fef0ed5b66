"""What runs on the other side of a benchmark: a process (or a thread) that does what the measuring side tells it.

Knows: a control socket with JSON commands, who must die when, the functions of this room that commands name.
Must not know: what those functions do.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import traceback
from typing import Any, Protocol, TypeVar

import bulktransfer as bulk

from . import _floor
from .machine import quiet

IDLE_S = 600  # how long a partner process lives without a command
MESSAGE_BYTES = 1 << 17
DESCRIPTORS = 8

Thing = TypeVar("Thing")


class Closable(Protocol):
    """What a session keeps."""

    def close(self) -> None: ...


class Session:
    """What a partner keeps from one command to the next."""

    def __init__(self, core: int) -> None:
        self.core = core
        self.descriptors: list[int] = []  # those that came with the present command; whoever takes them owns them
        self._kept: dict[str, Closable] = {}

    def keep(self, name: str, thing: Closable) -> None:
        """Keep `thing` under a free name until `drop` or the end."""
        if name in self._kept:
            raise ValueError(f"the partner keeps a {name!r} already")
        self._kept[name] = thing

    def get(self, kind: type[Thing], name: str) -> Thing:
        """What is kept under `name`, which must be of that kind."""
        thing = self._kept[name]
        if not isinstance(thing, kind):
            raise TypeError(f"{name!r} is a {type(thing).__name__}, not a {kind.__name__}")
        return thing

    def drop(self, name: str) -> None:
        """Close what is kept under `name`."""
        self._kept.pop(name).close()

    def close(self) -> None:
        """Close everything, latest first."""
        while self._kept:
            self.drop(next(reversed(self._kept)))


def drop(session: Session, *, name: str) -> None:
    """A command: close what is kept under `name`."""
    session.drop(name)


def main(control_fd: int, parent: int, core: int) -> None:
    """A partner process, from its start to its end: at the parent's word, with the parent, or by the watchdog."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent ends its partners itself
    signal.alarm(IDLE_S)
    if not _floor.die_with_parent(parent):
        return
    with socket.socket(fileno=control_fd) as control:
        serve(control, core)


def thread_main(control: socket.socket, core: int) -> None:
    """A partner thread, in a domain of its own. No watchdog: it ends when its control socket does."""
    with control, bulk.Domain():
        serve(control, core, watchdog=False)


def serve(control: socket.socket, core: int, *, watchdog: bool = True) -> None:
    """Do what comes over the control socket until it ends."""
    os.sched_setaffinity(0, {core})  # 0: this thread, so that partners may be threads
    session = Session(core)
    with contextlib.closing(session), contextlib.suppress(ConnectionError):
        while True:
            data, session.descriptors, _flags, _address = socket.recv_fds(control, MESSAGE_BYTES, DESCRIPTORS)
            if not data:
                return
            command = json.loads(data)
            if watchdog:
                signal.alarm(command["limit_s"])
            _answer(control, session, command)
            if watchdog:
                signal.alarm(IDLE_S)


def _answer(control: socket.socket, session: Session, command: dict[str, Any]) -> None:
    try:
        module, _, name = command["run"].partition(":")
        function = getattr(importlib.import_module(module), name)
        with quiet():
            control.send(b'{"ready": true}')
            result = function(session, **command["arguments"])
        answer = {"result": result}
    except Exception as error:  # noqa: BLE001 - whatever it is, the measuring side must hear of it
        answer = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
    control.send(json.dumps(answer).encode())
