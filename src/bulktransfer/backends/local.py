"""The backend `local:`, between threads (or domains) of one process: a table of names, and socket pairs.

Knows: who in this process created which name, and who waits for one to be created.
Must not know: channels, pools, files, or anything outside this process. A forked child starts with no names.
"""

from __future__ import annotations

import collections
import errno
import os
import pwd
import re
import secrets
import socket
import threading
import weakref
from collections.abc import Sequence
from typing import Final

from .._native.kernel import Descriptor
from ..abc import Backend, Codec, Connection, Peer
from ..errors import ForkedError
from ..states import Trust
from ..wire import control

_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


class _Signal:
    """An eventfd that is readable while it is set; it is shared with nobody, so that nobody can spoil it."""

    def __init__(self) -> None:
        self.descriptor = Descriptor(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        self._is_set = False

    def set(self) -> None:
        if not self._is_set and not self.descriptor.closed:
            self._is_set = True
            os.eventfd_write(self.descriptor.fileno(), 1)

    def clear(self) -> None:
        if self._is_set and not self.descriptor.closed:
            self._is_set = False
            os.eventfd_read(self.descriptor.fileno())


class _Table:
    """The names of this process, and those who wait for names; all of it is used under `lock`.

    It keeps nobody alive: a rendezvous that is dropped gives its name up, a watch that is dropped is forgotten.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()  # reentrant: the garbage collector may drop a rendezvous under it
        self.pid = os.getpid()
        self.rendezvous: weakref.WeakValueDictionary[str, LocalRendezvous] = weakref.WeakValueDictionary()
        self.watches: weakref.WeakSet[LocalAppearance] = weakref.WeakSet()


def _start_afresh() -> None:
    """In a forked child: no names, and no lock that a thread of the parent held. (Descriptors close themselves.)"""
    global _table
    _table = _Table()


def _name_of(address: str, act: str, *, choose: bool = False) -> str:
    """The name in `address`; `choose` allows `local:`, whose name is made up here. Raises: TypeError, ValueError."""
    if not isinstance(address, str):
        raise TypeError(f"{act}: an address is a str, not a {type(address).__name__}")
    scheme, _, name = address.partition(":")
    if scheme != LocalBackend.scheme:
        raise ValueError(f"{act} {address!r}: it does not start with 'local:'")
    if not name and choose:
        return secrets.token_hex(8)
    if not _NAME.fullmatch(name) or name in (".", ".."):
        raise ValueError(f"{act} {address!r}: {name!r} is not 1 to 64 of A-Z a-z 0-9 . _ -")
    return name


def _myself() -> Peer:
    return Peer(os.getpid(), os.geteuid(), os.getegid())


def _user_name() -> str | None:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return None


class LocalRendezvous:
    """A name in the table, and the ends of socket pairs that nobody has accepted yet."""

    def __init__(self, table: _Table, name: str, backlog: int) -> None:
        self._table = table
        self._name = name
        self._backlog = backlog
        self._queue: collections.deque[Descriptor] = collections.deque()
        self._signal = _Signal()

    def __repr__(self) -> str:
        return f"<LocalRendezvous {self.address}{' closed' if self._signal.descriptor.closed else ''}>"

    @property
    def address(self) -> str:
        """The address to give to others; chosen here if it was `local:`."""
        return f"local:{self._name}"

    def fileno(self) -> int:
        """A descriptor that is readable while somebody knocks. Raises: ForkedError, ValueError (closed)."""
        self._check("fileno")
        return self._signal.descriptor.fileno()

    def accept(self) -> Connection | None:
        """The next one that knocked, or None; never blocks. Raises: ForkedError, ValueError (closed)."""
        self._check("accept")
        with self._table.lock:
            self._check("accept")
            if not self._queue:
                return None
            end = self._queue.popleft()
            if not self._queue:
                self._signal.clear()
            return Connection(end.detach(), _myself())

    def close(self) -> None:
        """Give the name up and hang up on those who wait; idempotent, never raises; nothing in a forked child."""
        if self._table is not _table:
            return
        with self._table.lock:
            if self._table.rendezvous.get(self._name) is self:
                del self._table.rendezvous[self._name]
            while self._queue:
                self._queue.popleft().close()
            self._signal.descriptor.close()

    def knock(self, act: str) -> int:
        """Queue one end of a new socket pair and return the other; under the lock. Raises: OSError."""
        if len(self._queue) >= self._backlog:
            raise BlockingIOError(errno.EAGAIN, f"{act}: its backlog of {self._backlog} is full")
        try:
            here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise OSError(error.errno, f"{act}: {error.strerror}") from None
        with here, there:
            here.setblocking(False)
            there.setblocking(False)
            self._queue.append(Descriptor(there.detach()))
            self._signal.set()
            return here.detach()

    def _check(self, act: str) -> None:
        if self._table is not _table:
            raise ForkedError(f"{act} on {self.address}: it was created in process {self._table.pid}, before a fork")
        if self._signal.descriptor.closed:
            raise ValueError(f"{act} on {self.address}: it is closed")


class LocalAppearance:
    """Watches for a name; `clear` first, then try, then wait, and no creation is missed."""

    def __init__(self, table: _Table, name: str) -> None:
        self._table = table
        self._name = name
        self._signal = _Signal()

    @property
    def name(self) -> str:
        """The name that is waited for."""
        return self._name

    def fileno(self) -> int:
        """Readable once the name has been created. Raises: ValueError (closed)."""
        return self._signal.descriptor.fileno()

    def clear(self) -> None:
        """Unreadable until the name is created again."""
        if self._table is not _table:
            return
        with self._table.lock:
            self._signal.clear()

    def close(self) -> None:
        """Stop watching; idempotent; nothing in a forked child."""
        if self._table is not _table:
            return
        with self._table.lock:
            self._table.watches.discard(self)
            self._signal.descriptor.close()

    def notify(self) -> None:
        """The name was created; under the lock."""
        self._signal.set()


class LocalBackend:
    """The scheme `local:`; see the head of this file."""

    scheme = "local"
    spins = False  # both ends run under one GIL: spinning would keep the peer from running
    trusts: Sequence[Trust] = (Trust.FULL, Trust.HALF, Trust.NONE)
    codec: Codec = control.CODEC

    def listen(self, address: str, *, backlog: int, allow_users: Sequence[int | str] = ()) -> LocalRendezvous:
        """Create `address`; `local:` chooses a free name.

        Raises:
            TypeError, ValueError: a malformed address or backlog, or `allow_users`, who cannot reach this process.
            OSError: EADDRINUSE (the name is taken), or the system's.
        """
        name = _name_of(address, "create", choose=True)
        if type(backlog) is not int or backlog < 1:
            raise ValueError(f"create local:{name}: backlog is {backlog!r}, not an int of at least 1")
        if allow_users:
            raise ValueError(f"create local:{name}: allow_users needs an address that other users can reach")
        table = _table
        with table.lock:
            if name in table.rendezvous:
                raise OSError(errno.EADDRINUSE, f"create local:{name}: the address is in use")
            rendezvous = LocalRendezvous(table, name, backlog)
            table.rendezvous[name] = rendezvous
            for watch in list(table.watches):
                if watch.name == name:
                    watch.notify()
            return rendezvous

    def connect(self, address: str, *, owner: int | str | None = None) -> Connection | None:
        """Knock once; None: nobody has created the name. `owner` is None or this process's user.

        Raises:
            TypeError, ValueError: a malformed address, or another owner.
            BlockingIOError: the backlog is full.
            OSError: the system's, as EMFILE.
        """
        name = _name_of(address, "connect")
        if owner is not None and owner not in (os.geteuid(), _user_name()):
            raise ValueError(f"connect local:{name}: owner is {owner!r}, and this process is of user {os.geteuid()}")
        table = _table
        with table.lock:
            rendezvous = table.rendezvous.get(name)
            if rendezvous is None:
                return None
            return Connection(rendezvous.knock(f"connect local:{name}"), _myself())

    def appearance(self, address: str) -> LocalAppearance:
        """A watch on the name in `address`. Raises: TypeError, ValueError, OSError."""
        name = _name_of(address, "wait for")
        table = _table
        with table.lock:
            watch = LocalAppearance(table, name)
            table.watches.add(watch)
            return watch


_table = _Table()
os.register_at_fork(after_in_child=_start_afresh)
BACKEND: Final[Backend] = LocalBackend()
