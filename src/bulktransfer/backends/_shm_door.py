"""Where processes of one machine knock: a Unix socket at a node, through which only admitted users get.

Knows: how peers knock and are checked (SO_PEERCRED, on both sides). Must not know: channels, or what the two sides say
once they are connected. Where nodes live and how they are made and removed is in `_shm_node`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Final

from .._native.kernel import Descriptor, to_peer
from ..abc import Connection, Peer
from ..errors import ForkedError
from . import _shm_node
from ._shm_node import Place, denied, handle, place_of, with_act

STRANGERS_PER_CALL: Final = 16

_UCRED: Final = struct.Struct("iII")


def _new_socket(kind: int) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
    sock.setblocking(False)  # whatever socket.setdefaulttimeout says
    return sock


@contextlib.contextmanager
def _as_socket(descriptor: Descriptor) -> Iterator[socket.socket]:
    """The descriptor with the methods of a socket; it stays the descriptor's."""
    sock = socket.socket(fileno=descriptor.fileno())
    try:
        sock.setblocking(False)
        yield sock
    finally:
        sock.detach()


def _peer_of(sock: socket.socket) -> Peer:
    return Peer(*_UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))


class _Node:
    """A node of this process, with the directory that it is in and the socket that listens at it."""

    def __init__(self, place: Place, backlog: int, mode: int, kind: int) -> None:
        directory = _shm_node.open_directory(place, make=True)
        if directory is None:
            raise FileNotFoundError(errno.ENOENT, f"{place}: there is no directory {place.directory!r}")
        self.pid = os.getpid()
        self.listener = Descriptor(_new_socket(kind).detach())
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


def open_door(address: str, *, backlog: int, allow_users: Sequence[int | str], kind: int) -> ShmRendezvous:
    """Listen at `address` on a socket of that kind. Raises: as ShmBackend.listen."""
    place = place_of("create", address, choose=True)
    if type(backlog) is not int or backlog < 1:
        raise ValueError(f"{place}: backlog is {backlog!r}, not an int of at least 1")
    if isinstance(allow_users, (str, int)):
        raise TypeError(f"{place}: allow_users is a sequence of users, not a single one")
    others = [_shm_node.user_id(str(place), user) for user in allow_users]
    if others and place.private:
        raise ValueError(f"{place}: allow_users needs an address with a path, which other users can reach")
    users = frozenset({os.geteuid(), *others})
    node = _Node(place, backlog, mode=0o600 if len(users) == 1 else 0o666, kind=kind)
    return ShmRendezvous(place.address, node, users)


def knock(address: str, *, owner: int | str | None, kind: int) -> Connection | None:
    """Knock once at `address` with a socket of that kind; None: nobody listens there. Raises: as ShmBackend.connect."""
    place = place_of("connect", address)
    expected = os.geteuid() if owner is None else _shm_node.user_id(str(place), owner)
    if place.private and expected != os.geteuid():
        raise ValueError(f"{place}: owner is another user, which needs an address with a path")
    node = _shm_node.find_node(place, expected)
    if node is None:
        return None
    with _new_socket(kind) as sock:
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
