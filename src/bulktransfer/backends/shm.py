"""The backend `shm:`, between processes of one machine, over whose sockets descriptors of shared memory travel.

Knows: how an address is watched for. Must not know: channels, pools, or what the two sides say once they are connected.
How peers knock and who gets through is in `_shm_door`, where sockets live in `_shm_node`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import time
from collections.abc import Sequence
from typing import Final

from .._native.kernel import Descriptor
from ..abc import Backend, Codec, Connection
from ..states import Trust
from ..wire import control
from . import _shm_node
from ._shm_door import ShmRendezvous, knock, open_door
from ._shm_node import Place, denied, handle, place_of

TICK_NS: Final = 20_000_000

_IN_WATCHED: Final = 0x4 | 0x80 | 0x100 | 0x400 | 0x800  # ATTRIB, MOVED_TO, CREATE, DELETE_SELF, MOVE_SELF
_IN_ONLYDIR: Final = 0x01000000
_libc: Final = ctypes.CDLL(None, use_errno=True)


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
        return open_door(address, backlog=backlog, allow_users=allow_users, kind=socket.SOCK_SEQPACKET)

    def connect(self, address: str, *, owner: int | str | None = None) -> Connection | None:
        """Knock once at an address of this user, or, for a path, of `owner`; None: nobody listens there.

        Raises:
            TypeError, ValueError: a malformed address or owner, or another user's name without a path.
            PermissionError: the directory is not fit, or the node or the process behind it is not the owner's.
            BlockingIOError: the backlog is full.
            OSError: ENOTSOCK (not a socket), EPROTOTYPE (another program's socket), or the system's.
        """
        return knock(address, owner=owner, kind=socket.SOCK_SEQPACKET)

    def appearance(self, address: str) -> ShmAppearance:
        """A watch on the directory of `address`, which is created if it is the user's own and missing.

        Raises: TypeError, ValueError, FileNotFoundError (the parent of a path is missing), PermissionError, OSError.
        """
        return ShmAppearance(place_of("wait for", address))


BACKEND: Final[Backend] = ShmBackend()
