"""The backend `shm:`, between processes of one machine: a Unix socket where only admitted users get through.

Knows: how peers knock and are checked (SO_PEERCRED, on both sides), and how an address is watched for.
Must not know: channels, pools, or what the two sides say once they are connected. Where sockets live and how they
are made and removed is in `_shm_node`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import struct
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from typing import Final

from .._native.kernel import Descriptor, to_peer
from ..abc import Backend, Codec, Connection, Peer
from ..errors import ForkedError
from ..states import Trust
from ..wire import control
from . import _shm_node
from ._shm_node import Place, denied, handle, place_of, with_act

STRANGERS_PER_CALL: Final = 16
TICK_NS: Final = 20_000_000

_UCRED: Final = struct.Struct("iII")
_IN_WATCHED: Final = 0x4 | 0x80 | 0x100 | 0x400 | 0x800  # ATTRIB, MOVED_TO, CREATE, DELETE_SELF, MOVE_SELF
_IN_ONLYDIR: Final = 0x01000000
_libc: Final = ctypes.CDLL(None, use_errno=True)


def _new_socket() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    sock.setblocking(False)  # whatever socket.setdefaulttimeout says
    return sock


@contextlib.contextmanager
def _as_socket(descriptor: Descriptor) -> Iterator[socket.socket]:
    """The descriptor with the methods of a socket; it stays the descriptor's."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, descriptor.fileno())
    try:
        sock.setblocking(False)
        yield sock
    finally:
        sock.detach()


def _peer_of(sock: socket.socket) -> Peer:
    return Peer(*_UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))


class _Node:
    """A node of this process, with the directory that it is in and the socket that listens at it."""

    def __init__(self, place: Place, backlog: int, mode: int) -> None:
        directory = _shm_node.open_directory(place, make=True)
        if directory is None:
            raise FileNotFoundError(errno.ENOENT, f"{place}: there is no directory {place.directory!r}")
        self.pid = os.getpid()
        self.listener = Descriptor(_new_socket().detach())
        self._directory = directory
        self._name = place.name
        with _as_socket(self.listener) as sock:
            self._identity = _shm_node.make_node(place, directory, sock, mode, backlog)

    def give_up(self) -> None:
        """Remove it and stop listening; nothing at all in a forked child, whose parent goes on."""
        if os.getpid() == self.pid:
            _shm_node.remove_node(self._directory, self._name, self._identity)
            with _as_socket(self.listener) as listener, contextlib.suppress(OSError):
                while True:  # what those who still knock have said must not hold the end up: see foreign.h
                    to_peer(listener.accept()[0].detach()).close()
            self.listener.close()
            self._directory.close()


class ShmRendezvous:
    """A node that this process made, and the peers that knock at it; gone when closed, dropped, or at exit."""

    def __init__(self, address: str, node: _Node, users: frozenset[int]) -> None:
        self._address = address
        self._node = node
        self._users = users
        self._lock = threading.RLock()  # the descriptor must not be closed, and used again, during an accept
        self._finalizer = weakref.finalize(self, node.give_up)

    def __repr__(self) -> str:
        return f"<ShmRendezvous {self._address}{' closed' if self._node.listener.closed else ''}>"

    @property
    def address(self) -> str:
        """The address to give to others; chosen here if it was `shm:`."""
        return self._address

    def fileno(self) -> int:
        """The listening socket, readable while somebody knocks. Raises: ForkedError, ValueError (closed)."""
        self._check("fileno")
        return self._node.listener.fileno()

    def accept(self) -> Connection | None:
        """The next peer of an admitted user, or None; at most 16 others are hung up on. Never blocks.

        Raises:
            ForkedError: it was made in the parent of this process.
            ValueError: it is closed.
            OSError: EMFILE, ENFILE and what else the system refuses; who knocked goes on waiting.
        """
        self._check("accept")
        with self._lock:
            self._check("accept")
            with _as_socket(self._node.listener) as listener:
                for _ in range(STRANGERS_PER_CALL):
                    try:
                        sock, _ = listener.accept()
                    except BlockingIOError:
                        return None
                    except ConnectionAbortedError:
                        continue
                    except OSError as error:
                        raise with_act(error, f"accept on {self._address}") from None
                    sock.setblocking(False)
                    peer = _peer_of(sock)
                    if peer.uid in self._users:
                        return Connection(sock.detach(), peer)
                    to_peer(sock.detach()).close()
        return None

    def close(self) -> None:
        """Give the address up; idempotent, never raises, never waits; in a forked child it does nothing."""
        if os.getpid() == self._node.pid:
            with self._lock:
                self._finalizer()

    def _check(self, act: str) -> None:
        if os.getpid() != self._node.pid:
            raise ForkedError(f"{act} on {self._address}: it was created in process {self._node.pid}, before a fork")
        if self._node.listener.closed:
            raise ValueError(f"{act} on {self._address}: it is closed")


class ShmAppearance:
    """Watches the directory of an address: `clear`, then try, then wait, and no creation is missed.

    Where the system refuses a watch (a directory that this user may not list, no inotify instances left), the
    descriptor becomes readable every `TICK_NS` instead.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._watched: tuple[int, int] | None = None
        watch = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if watch >= 0:
            self._descriptor = Descriptor(watch)
            if self._watch():
                return
            self._descriptor.close()
        self._descriptor = self._timer()

    def fileno(self) -> int:
        """Readable once trying again may help. Raises: ValueError (closed)."""
        return self._descriptor.fileno()

    def clear(self) -> None:
        """Unreadable until the next change; follows a directory that was removed or replaced.

        Raises: FileNotFoundError, PermissionError, OSError (there is no fit directory any more), ValueError (closed).
        """
        with contextlib.suppress(BlockingIOError):
            for _ in range(64):  # of 64 KiB each: bounded, though others may create files without end
                os.read(self._descriptor.fileno(), 65536)
        if self._watched is not None and self._watched != self._look() and not self._watch():
            raise denied(f"{self._place}: the directory was replaced by one that cannot be watched")

    def close(self) -> None:
        """Stop watching; idempotent."""
        with contextlib.suppress(ValueError):
            os.close(self._descriptor.detach())  # takes 8 ms for an inotify descriptor, and lets other threads run

    def _look(self) -> tuple[int, int] | None:
        """The directory that has the name now."""
        try:
            status = os.stat(self._place.directory)
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def _watch(self) -> bool:
        """Watch the directory that is there now; False: the system refuses. Raises: OSError (no fit directory)."""
        try:
            directory = _shm_node.open_directory(self._place, make=True)
        except PermissionError:
            if self._place.private:
                raise
            return False
        if directory is None:
            raise FileNotFoundError(errno.ENOENT, f"{self._place}: there is no directory {self._place.directory!r}")
        path = handle(directory).encode()
        if _libc.inotify_add_watch(self._descriptor.fileno(), path, _IN_WATCHED | _IN_ONLYDIR) < 0:
            return False
        status = os.fstat(directory.fileno())
        self._watched = status.st_dev, status.st_ino
        return True

    def _timer(self) -> Descriptor:
        fd = _libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if fd < 0:
            raise OSError(ctypes.get_errno(), f"{self._place}: {os.strerror(ctypes.get_errno())}")
        timer = Descriptor(fd)
        _libc.timerfd_settime(fd, 0, (ctypes.c_long * 4)(0, TICK_NS, 0, TICK_NS), None)
        return timer


class ShmBackend:
    """The scheme `shm:`: `shm:NAME` for processes of one user, `shm:/path` for others too."""

    scheme = "shm"
    spins = True
    trusts: Sequence[Trust] = (Trust.FULL, Trust.HALF, Trust.NONE)
    codec: Codec = control.CODEC

    def listen(self, address: str, *, backlog: int, allow_users: Sequence[int | str] = ()) -> ShmRendezvous:
        """Create `address`; `shm:` chooses a free name. Users other than this one need a path and `allow_users`.

        Raises:
            TypeError, ValueError: a malformed address, backlog or user, or `allow_users` without a path.
            PermissionError: the directory is not fit, or what is in the place belongs to somebody else.
            FileNotFoundError: the parent directory is missing.
            OSError: EADDRINUSE (taken), EEXIST (not a socket), EBUSY (the directory stays locked), or the system's.
        """
        place = place_of("create", address, choose=True)
        if type(backlog) is not int or backlog < 1:
            raise ValueError(f"{place}: backlog is {backlog!r}, not an int of at least 1")
        if isinstance(allow_users, (str, int)):
            raise TypeError(f"{place}: allow_users is a sequence of users, not a single one")
        others = [_shm_node.user_id(str(place), user) for user in allow_users]
        if others and place.private:
            raise ValueError(f"{place}: allow_users needs an address with a path, which other users can reach")
        users = frozenset({os.geteuid(), *others})
        node = _Node(place, backlog, mode=0o600 if len(users) == 1 else 0o666)
        return ShmRendezvous(place.address, node, users)

    def connect(self, address: str, *, owner: int | str | None = None) -> Connection | None:
        """Knock once at an address of this user, or, for a path, of `owner`; None: nobody listens there.

        Raises:
            TypeError, ValueError: a malformed address or owner, or another user's name without a path.
            PermissionError: the directory is not fit, or the node or the process behind it is not the owner's.
            BlockingIOError: the backlog is full.
            OSError: ENOTSOCK (not a socket), EPROTOTYPE (another program's socket), or the system's.
        """
        place = place_of("connect", address)
        expected = os.geteuid() if owner is None else _shm_node.user_id(str(place), owner)
        if place.private and expected != os.geteuid():
            raise ValueError(f"{place}: owner is another user, which needs an address with a path")
        node = _shm_node.find_node(place, expected)
        if node is None:
            return None
        with _new_socket() as sock:
            try:
                sock.connect(handle(node))
                peer = _peer_of(sock)
            except ConnectionRefusedError:
                return None
            except BlockingIOError:
                raise BlockingIOError(errno.EAGAIN, f"{place}: its backlog is full") from None
            except OSError as error:
                raise with_act(error, place) from None
            if peer.uid != expected:
                raise denied(f"{place}: {peer} answers there, not one of user {expected}")
            return Connection(sock.detach(), peer)

    def appearance(self, address: str) -> ShmAppearance:
        """A watch on the directory of `address`, which is created if it is the user's own and missing.

        Raises: TypeError, ValueError, FileNotFoundError (the parent of a path is missing), PermissionError, OSError.
        """
        return ShmAppearance(place_of("wait for", address))


BACKEND: Final[Backend] = ShmBackend()
