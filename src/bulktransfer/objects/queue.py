"""Queues for many producers and many consumers: `multiprocessing.Queue`'s methods, without its copies and its locks.

Knows: what a queue is made of, who owns an object at each instant, what a kill leaves behind. Must not know: how a
letter is laid out (serial.py), where memory comes from (store.py).

The protocol
    All processes share one SOCK_SEQPACKET socket pair, whose ends they inherit. A message is one object. The kernel
    takes and gives it whole, so no lock is needed between processes, and there is none that a kill could leave held.

    An object is, one after the other:
    1. *accepted* by `put`: it waits in the process that put it, and counts in that process's row of the ledger;
    2. *sent* by that process's feeder thread: it is in the socket, the kernel's. Big buffers were copied into a pool
       of the sender; the message carries a lease, the only one once the feeder closed its own (_parcel.pyx);
    3. *taken* by one `get`: it belongs to the process that took it. Its arrays are views of a private mapping, which is
       the lease now; when the last view dies the mapping goes, and the buffer is free for the sender.

    Who is killed loses what it alone had: what it had accepted and not sent, what it had taken. The socket keeps all
    that was sent, with its memory. A buffer never waits for a dead process: a lease ends with the last descriptor or
    mapping of it, by the kernel's account, and the sender asks the kernel. Nothing is owed by anybody.

Counting
    qsize is what the socket has (FIONREAD; post.h has the trick) and what living processes have accepted and not sent.
    A row lives while its process has a lock on it that only the kernel can end early. Two steps that must be seen
    as one (send and its row; a task taken and held) are a *turn*, in which the row's version is odd. Who counts (put
    with a maxsize, qsize, join) holds the *gate*, a file lock that the kernel takes from whoever dies, and waits until
    no living process is in its turn. A kill leaves one of two: the step was not made, or the kernel's half was made
    and the row, now a dead one's, does not count. So qsize, maxsize and a JoinableQueue's tasks stay right. A task
    that a killed process had taken and not done counts as gone: `join` does not wait for the dead, as
    multiprocessing's would.

    Whoever waits for room or for the end of all tasks sleeps on a futex that the others wake, and looks again ten times
    a second, because no event tells of a death between taking and waking.

At fork a child keeps the socket and what it had received; it has an empty buffer, no row, no feeder and no pool until
it puts something, and no lease of what its parent lends (rule 21). Received memory is the exception to rule 21: it is
mapped privately and stays leased while either lives, since an array that turns into zeros at a fork is no array.
`spawn` and `forkserver` hand the three descriptors over (`reduction.DupFd`). At exit what was put is sent first, unless
`cancel_join_thread` was called, as in multiprocessing.

Pools are the library's own (Allocator); its channels are not used: they have one peer each, and a buffer that has left
over a channel knows whom it went to, while here whoever comes first takes it.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
import traceback
import weakref
from multiprocessing import context, reduction
from multiprocessing.util import Finalize, debug
from types import GenericAlias
from typing import Any

from . import _post, serial
from ._ledger import Ledger, make_table
from .connection import Connection, Pipe, Sender, Terms
from .feeder import Feeder, finalize_close, finalize_join

LOOK_S = 0.1

_queues: weakref.WeakSet[Queue] = weakref.WeakSet()


class _Table:
    """The descriptor of the memory that all processes of a queue share."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)

    def __reduce__(self) -> Any:
        return _rebuilt_table, (reduction.DupFd(self.fd),)


def _rebuilt_table(duplicate: Any) -> _Table:
    return _Table(duplicate.detach())


class Queue:
    """A queue of objects for many producers and consumers, as multiprocessing.Queue, that lends big buffers.

    It pickles only while multiprocessing starts a child. limit: bytes of memory that one process may have for big
    objects on their way or held by receivers (default: half the machine's). when_full: "wait", as a full pipe would, or
    "error": then `put` pickles by itself and raises PoolExhaustedError. allow_pickle: also unpickle what processes of
    other users put. ctx is accepted as multiprocessing's queues do, and not needed.
    Raises: ValueError, TypeError, OSError (EMFILE).
    """

    def __init__(
        self,
        maxsize: int = 0,
        *,
        ctx: Any = None,
        limit: int | None = None,
        when_full: str = "wait",
        allow_pickle: bool = False,
    ) -> None:
        terms = Terms.of(limit, when_full, allow_pickle)
        reader, writer = Pipe(False, limit=terms.limit, when_full=when_full, allow_pickle=allow_pickle)
        self._begin(max(0, maxsize), reader, writer, _Table(make_table()), terms)

    def _begin(self, maxsize: int, reader: Connection, writer: Connection, table: _Table, terms: Terms) -> None:
        self._maxsize = maxsize
        self._reader = reader
        self._writer = writer
        self._table = table
        self._terms = terms
        self._ledger = Ledger(table.fd)
        self._starting = threading.Lock()
        self._ignore_epipe = False  # concurrent.futures sets it
        self._reset()
        _queues.add(self)

    def _reset(self) -> None:
        self._feeder: Feeder | None = None
        self._sender = Sender(self._terms)
        self._closed = False
        self._close: Finalize | None = None
        self._jointhread: Finalize | None = None
        self._joincancelled = False

    def forked(self) -> None:
        """Be a queue of a forked child: what the parent had not sent is the parent's."""
        self._ledger.forked()
        self._starting = threading.Lock()
        self._reset()

    def __getstate__(self) -> tuple[Any, ...]:
        context.assert_spawning(self)
        return self._maxsize, self._reader, self._writer, self._table, self._terms, self._ignore_epipe

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        *parts, ignore_epipe = state
        self._begin(*parts)
        self._ignore_epipe = ignore_epipe

    # ---- putting ----

    def put(self, obj: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put an object; a helper thread pickles and sends it. Waits only while `maxsize` objects are there.

        Raises: ValueError (closed), queue.Full; with when_full="error" also what pickling raises and
        PoolExhaustedError.
        """
        if self._closed:
            raise ValueError(f"Queue {self!r} is closed")
        if not self._ledger.accept(self._reader.fileno(), self._maxsize):
            self._await_room(block, timeout)
        if not self._terms.wait:
            try:
                obj = serial.packed(obj, self._sender)
            except BaseException:
                self._ledger.forget()
                raise
        (self._feeder or self._started()).put(obj)

    def _await_room(self, block: bool, timeout: float | None) -> None:
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            seen = self._ledger.seen()
            if self._ledger.accept(self._reader.fileno(), self._maxsize):
                return
            left = LOOK_S if end is None else min(LOOK_S, end - time.monotonic())
            if not block or left <= 0:
                raise queue.Full
            self._ledger.wait(seen, left)

    def put_nowait(self, obj: Any) -> None:
        """Put an object if there is room now. Raises: as put."""
        self.put(obj, False)

    def _started(self) -> Feeder:
        """The feeder, started by whoever puts first."""
        with self._starting:
            if self._feeder is not None:
                return self._feeder
            debug("Queue._start_thread()")
            feeder = Feeder(self._ledger, self._reader, self._writer, self._sender, self._on_queue_feeder_error)
            feeder.ignore_epipe = self._ignore_epipe
            feeder.thread.start()
            if not self._joincancelled:
                self._jointhread = Finalize(feeder.thread, finalize_join, [weakref.ref(feeder.thread)], exitpriority=-5)
            self._close = Finalize(self, finalize_close, [feeder.buffer, feeder.notempty], exitpriority=10)
            self._feeder = feeder
            return feeder

    @staticmethod
    def _on_queue_feeder_error(e: BaseException, obj: Any) -> None:
        """What happens when an object cannot be pickled or sent; concurrent.futures overrides it."""
        traceback.print_exception(e)

    # ---- getting ----

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """The next object. Big arrays in it are views of memory that goes back when the last of them dies.

        Raises: ValueError (closed), queue.Empty, what unpickling raises, OSError.
        """
        if self._closed:
            raise ValueError(f"Queue {self!r} is closed")
        if not block:
            timeout = 0.0
        letter = self._taken(self._reader.fileno(), timeout)
        if letter is None:
            raise queue.Empty
        if self._maxsize:
            self._ledger.changed()
        return serial.unpacked(letter)

    def _taken(self, sock: int, timeout: float | None) -> tuple[int, bytes, int] | None:
        return _post.receive(sock, timeout, self._terms.anybody)

    def get_nowait(self) -> Any:
        """The next object if there is one now. Raises: as get."""
        return self.get(False)

    # ---- looking ----

    def qsize(self) -> int:
        """How many objects were put and not got; those of killed processes do not count. Raises: OSError."""
        return self._ledger.count(self._reader.fileno())

    def empty(self) -> bool:
        """Whether there is nothing to get at once. Raises: OSError (closed)."""
        return not self._reader.poll()

    def full(self) -> bool:
        """Whether `maxsize` objects are there. Raises: OSError (closed)."""
        return 0 < self._maxsize <= self.qsize()

    # ---- the end ----

    def close(self) -> None:
        """Put and get nothing more in this process; what was put is still sent."""
        self._closed = True
        close, self._close = self._close, None
        if close is not None:
            close()

    def join_thread(self) -> None:
        """Wait until what this process put is sent; after close."""
        assert self._closed, f"Queue {self!r} not closed"
        if self._jointhread is not None:
            self._jointhread()

    def cancel_join_thread(self) -> None:
        """Do not wait, at exit, until what this process put is sent: it may be lost."""
        self._joincancelled = True
        with contextlib.suppress(AttributeError):
            self._jointhread.cancel()  # type: ignore[union-attr]

    def __repr__(self) -> str:
        return f"<bulktransfer {type(self).__name__} at {id(self):#x}{': closed' if self._closed else ''}>"


class JoinableQueue(Queue):
    """A queue whose tasks are counted, as multiprocessing.JoinableQueue; those of a killed process do not count."""

    def _taken(self, sock: int, timeout: float | None) -> tuple[int, bytes, int] | None:
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            letter = self._ledger.receive(sock, self._terms.anybody)
            if letter is not None:
                return letter
            if not _post.readable(sock, None if end is None else max(0.0, end - time.monotonic())):
                return None

    def task_done(self) -> None:
        """Say that a task that was got is done. Raises: ValueError (more often than tasks were put), OSError."""
        if not self._ledger.done(self._reader.fileno()):
            raise ValueError("task_done() called too many times")

    def join(self) -> None:
        """Wait until every task is done, or gone with the process that had it. Raises: OSError."""
        while True:
            seen = self._ledger.seen()
            if not self._ledger.unfinished(self._reader.fileno()):
                return
            self._ledger.wait(seen, LOOK_S)


class SimpleQueue:
    """A pipe that many may put into and get from: as multiprocessing.SimpleQueue. No helper thread: `put` sends.

    The keywords are those of Queue; with when_full="wait" a put may wait for memory, too.
    Raises: ValueError, TypeError, OSError (EMFILE).
    """

    def __init__(
        self, *, ctx: Any = None, limit: int | None = None, when_full: str = "wait", allow_pickle: bool = False
    ) -> None:
        self._reader, self._writer = Pipe(False, limit=limit, when_full=when_full, allow_pickle=allow_pickle)

    def put(self, obj: Any) -> None:
        """Send an object, waiting while there is no room. Raises: as Connection.send."""
        self._writer.send(obj)

    def get(self) -> Any:
        """The next object. Raises: as Connection.recv."""
        return self._reader.recv()

    def empty(self) -> bool:
        """Whether there is nothing to get at once. Raises: OSError (closed)."""
        return not self._reader.poll()

    def close(self) -> None:
        """Close it in this process."""
        self._reader.close()
        self._writer.close()

    def __getstate__(self) -> tuple[Connection, Connection]:
        context.assert_spawning(self)
        return self._reader, self._writer

    def __setstate__(self, state: tuple[Connection, Connection]) -> None:
        self._reader, self._writer = state

    def __class_getitem__(cls, item: Any) -> Any:
        return GenericAlias(cls, item)


def _forked() -> None:
    for one in list(_queues):
        one.forked()


os.register_at_fork(after_in_child=_forked)
