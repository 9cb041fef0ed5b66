"""The helper thread of a queue: pickles what was put and sends it, as `multiprocessing.Queue`'s does.

Knows: what waits in this process, when the thread starts and ends. Must not know: how much a queue may hold.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import threading
from collections.abc import Callable
from multiprocessing.util import debug, info, is_exiting
from typing import Any

from . import _post, serial
from ._ledger import Ledger
from .connection import Connection, Sender
from .store import IDLE_S

SENTINEL = object()


class Feeder:
    """What was put in this process, and the thread that sends it."""

    def __init__(
        self,
        ledger: Ledger,
        reader: Connection,
        writer: Connection,
        sender: Sender,
        on_error: Callable[[BaseException, Any], None],
    ) -> None:
        self.buffer: collections.deque[Any] = collections.deque()
        self.notempty = threading.Condition(threading.Lock())
        self.ignore_epipe = False
        self.idle = False
        self._ledger = ledger
        self._reader = reader
        self._writer = writer
        self._sender = sender
        self._on_error = on_error
        self.thread = threading.Thread(target=self._run, name="QueueFeederThread", daemon=True)

    def put(self, thing: Any) -> None:
        """Hand over what was accepted."""
        self.buffer.append(thing)
        if self.idle:  # the thread says so before it looks for the last time
            with self.notempty:
                self.notempty.notify()

    def _run(self) -> None:
        pop = self.buffer.popleft
        while True:
            try:
                thing = pop()  # without the lock while there is something
            except IndexError:
                self._await_something()
                continue
            if thing is SENTINEL:
                debug("feeder thread got sentinel -- exiting")
                self._reader.close()
                self._writer.close()
                self._sender.close()
                return
            try:
                self._feed(thing)
            except Exception as error:  # noqa: BLE001  (whatever pickling raises is the user's to see)
                if self.ignore_epipe and getattr(error, "errno", 0) == errno.EPIPE:
                    return
                if is_exiting():  # what a thread uses may be gone by then
                    info("error in queue thread: %s", error)
                    return
                self._ledger.forget()
                self._on_error(error, thing)
            thing = None  # or it would live until the next one comes

    def _await_something(self) -> None:
        store = self._sender.store
        with self.notempty:
            self.idle = True
            while not self.buffer:
                if not self.notempty.wait(IDLE_S if store.bytes else None):
                    store.trim()
            self.idle = False

    def _feed(self, thing: Any) -> None:
        letter = thing if type(thing) is serial.Letter else serial.packed(thing, self._sender)
        kind, body, lease = letter
        if lease is None:
            self._send(kind, body, -1)
        else:
            with contextlib.closing(lease):
                self._send(kind, body, lease.fileno())

    def _send(self, kind: int, body: bytes, fd: int) -> None:
        sock = self._writer.fileno()
        while True:
            try:
                if self._ledger.send(sock, kind, body, fd):
                    return
                _post.writable(sock, None)
            except OSError as error:
                if not self._sender.may_wait(error):
                    raise


def finalize_join(thread_of: Callable[[], threading.Thread | None]) -> None:
    """Wait until what was put is sent; at exit, and in join_thread."""
    thread = thread_of()
    if thread is not None:
        thread.join()


def finalize_close(buffer: collections.deque[Any], notempty: threading.Condition) -> None:
    """Tell the thread to end when it has sent what is there."""
    with notempty:
        buffer.append(SENTINEL)
        notempty.notify()
