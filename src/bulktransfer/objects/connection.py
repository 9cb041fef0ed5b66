"""Connections: the two ends of a pipe that carries objects, as `multiprocessing.connection.Connection` is.

Knows: multiprocessing's checks and its manners (what closes when, what travels to a child). Must not know: how a letter
is laid out.

A pipe is one SOCK_SEQPACKET socket pair, so a message is taken whole by one receiver or not at all, and several
processes or threads may send or receive on one end. What does not fit into a message (32 KiB) travels in a pool of the
sender (store.py); the message carries a lease of it, and the receiver maps it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from multiprocessing import BufferTooShort, reduction
from types import TracebackType
from typing import Any, NamedTuple, SupportsIndex

from . import _post, serial
from .store import Store, default_limit

LEASES_S = 0.1  # between tries where processes of this user have too many descriptors on their way


class Terms(NamedTuple):
    """What a user chose for a pipe or a queue; the same in all its processes."""

    limit: int
    wait: bool
    anybody: bool  # also what processes of other users sent

    @classmethod
    def of(cls, limit: int | None, when_full: str, allow_pickle: bool) -> Terms:
        """Judge the arguments. Raises: ValueError, TypeError."""
        if when_full not in ("wait", "error"):
            raise ValueError(f'when_full={when_full!r}; it takes "wait" or "error"')
        if limit is None:
            limit = default_limit()
        if isinstance(limit, bool) or not isinstance(limit, int):
            raise TypeError(f"limit={limit!r}; it takes a number of bytes")
        if limit <= 0:
            raise ValueError(f"limit={limit}; it takes a number of bytes above 0")
        return cls(limit, when_full == "wait", bool(allow_pickle))


class Sender:
    """What this process needs for sending on one end: the pools of what it lends. A forked child has its own."""

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._store = Store(terms.limit, terms.wait)
        self._owner = os.getpid()

    @property
    def store(self) -> Store:
        """The memory of what this process sends."""
        if self._owner != os.getpid():
            self._store = Store(self._terms.limit, self._terms.wait)
            self._owner = os.getpid()
        return self._store

    def send(self, sock: int, letter: serial.Letter) -> None:
        """Send a letter, waiting for room. Raises: OSError."""
        if letter.lease is None:
            _post.send(sock, letter.kind, letter.body, -1)
            return
        with contextlib.closing(letter.lease):
            while True:
                try:
                    _post.send(sock, letter.kind, letter.body, letter.lease.fileno())
                    return
                except OSError as error:
                    if not self.may_wait(error):
                        raise

    def may_wait(self, error: OSError) -> bool:
        """Whether `error` passes with time, after a while: leases on their way (the kernel limits them a user)."""
        if error.errno != errno.ETOOMANYREFS or not self._terms.wait:
            return False
        self.store.await_return(LEASES_S)
        return True

    def close(self) -> None:
        """Keep no memory."""
        if self._owner == os.getpid():
            self._store.close()


class Connection:
    """One end of a pipe that carries objects, their big buffers without a copy on the way.

    It pickles while multiprocessing starts a child, and through another connection. Close it in processes that do not
    use it: a receiver sees the end when the last copy of the other end is closed.
    """

    _handle: int | None = None

    def __init__(self, handle: SupportsIndex, readable: bool, writable: bool, terms: Terms) -> None:
        self._handle = handle.__index__()
        self._readable = readable
        self._writable = writable
        self._terms = terms
        self._sender = Sender(terms)

    def __del__(self) -> None:
        self.close()

    def _check_closed(self) -> int:
        if self._handle is None:
            raise OSError("handle is closed")
        return self._handle

    def _check_readable(self) -> int:
        handle = self._check_closed()
        if not self._readable:
            raise OSError("connection is write-only")
        return handle

    def _check_writable(self) -> int:
        handle = self._check_closed()
        if not self._writable:
            raise OSError("connection is read-only")
        return handle

    @property
    def closed(self) -> bool:
        """Whether it is closed in this process."""
        return self._handle is None

    @property
    def readable(self) -> bool:
        """Whether this end receives."""
        return self._readable

    @property
    def writable(self) -> bool:
        """Whether this end sends."""
        return self._writable

    def fileno(self) -> int:
        """The descriptor: readable when there is something to receive. Raises: OSError (closed)."""
        return self._check_closed()

    def close(self) -> None:
        """Close it in this process; idempotent. What was sent can still be received."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)
            self._sender.close()

    # ---- sending ----

    def send(self, obj: Any) -> None:
        """Send an object, waiting while there is no room.

        Raises: what pickling raises; OSError (closed; EPIPE: nobody receives); LimitError, PoolExhaustedError (the
        pools are in use, with when_full="error").
        """
        handle = self._check_writable()
        self._sender.send(handle, serial.packed(obj, self._sender))

    def send_bytes(self, buf: Any, offset: int = 0, size: int | None = None) -> None:
        """Send bytes, or a part of them, as one message. Raises: ValueError; as send."""
        handle = self._check_writable()
        with memoryview(buf) as whole:
            view = whole.cast("B") if whole.nbytes else whole  # what is empty cannot be cast
            if offset < 0:
                raise ValueError("offset is negative")
            if view.nbytes < offset:
                raise ValueError("buffer length < offset")
            if size is None:
                size = view.nbytes - offset
            elif size < 0:
                raise ValueError("size is negative")
            elif offset + size > view.nbytes:
                raise ValueError("buffer length < offset + size")
            self._sender.send(handle, serial.packed_bytes([view[offset : offset + size]], self._sender))

    # ---- receiving ----

    def recv(self) -> Any:
        """The next object, waiting for it. Raises: EOFError (nobody sends any more), OSError, what unpickling raises.

        Its big arrays are views of memory that goes back to the sender when the last of them dies.
        """
        return serial.unpacked(self._received(self._check_readable()))

    def _received(self, handle: int) -> tuple[int, bytes, int]:
        letter = _post.receive(handle, None, self._terms.anybody)
        assert letter is not None
        return letter

    def recv_bytes(self, maxlength: int | None = None) -> bytes:
        """The next message as bytes. Raises: EOFError, OSError (longer than maxlength: it cannot be received then)."""
        handle = self._check_readable()
        if maxlength is not None and maxlength < 0:
            raise ValueError("negative maxlength")
        found = serial.unpacked_bytes(self._received(handle))
        if maxlength is not None and len(found) > maxlength:
            if self._writable:
                self._readable = False
            else:
                self.close()
            raise OSError("bad message length")
        return bytes(found)

    def recv_bytes_into(self, buf: Any, offset: int = 0) -> int:
        """Receive bytes into a writable buffer; their number.

        Raises: BufferTooShort (which has them), EOFError, OSError, ValueError.
        """
        handle = self._check_readable()
        with memoryview(buf) as view:
            room = view.itemsize * len(view)
            if offset < 0:
                raise ValueError("negative offset")
            if offset > room:
                raise ValueError("offset too large")
            found = serial.unpacked_bytes(self._received(handle))
            if room < offset + len(found):
                raise BufferTooShort(bytes(found))
            with view.cast("B") as octets:
                octets[offset : offset + len(found)] = found
            return len(found)

    def poll(self, timeout: float | None = 0.0) -> bool:
        """Whether there is something to receive, or the end, within `timeout` seconds. Raises: OSError."""
        handle = self._check_readable()
        return _post.readable(handle, timeout)

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError(f"pickling {self!r}: it travels only while multiprocessing starts a process")

    def __repr__(self) -> str:
        does = "/".join(w for w, on in (("receives", self._readable), ("sends", self._writable)) if on)
        return f"<bulktransfer Connection {'closed' if self._handle is None else self._handle}: {does}>"


def _reduced(connection: Connection) -> Any:
    duplicate = reduction.DupFd(connection.fileno())
    return _rebuilt, (duplicate, connection._readable, connection._writable, connection._terms)


def _rebuilt(duplicate: Any, readable: bool, writable: bool, terms: Terms) -> Connection:
    return Connection(duplicate.detach(), readable, writable, terms)


reduction.register(Connection, _reduced)


def Pipe(
    duplex: bool = True, *, limit: int | None = None, when_full: str = "wait", allow_pickle: bool = False
) -> tuple[Connection, Connection]:
    """The two ends of a pipe that carries objects; not duplex: the first receives, the second sends.

    limit: bytes of memory that one sender may have for big objects on their way or held (default: half the machine's);
    when_full: "wait" or "error" there. allow_pickle: also take what processes of other users sent.
    Raises: ValueError, TypeError, OSError (EMFILE).
    """
    terms = Terms.of(limit, when_full, allow_pickle)
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end, receives, other in ((here, True, there), (there, duplex, here)):
        if receives and not allow_pickle:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        other.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _post.ROOM)
    return Connection(here.detach(), True, duplex, terms), Connection(there.detach(), duplex, True, terms)
