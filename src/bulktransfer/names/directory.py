"""Names of one machine, in a directory of the user: no daemon, and what a dead owner leaves is not believed.

Knows: one file a name, which its owner keeps locked. Must not know: what an address means.

A file is written under another name, locked (flock, which ends with its owner, however that ends), then renamed. So
whoever opens it finds the lock, or an owner that is gone. Watchers are told by the kernel, which closes a dead
owner's file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import weakref
from collections.abc import Iterator
from typing import Final

from . import place
from .service import Entry, check_name

_LOCK: Final = ".lock"
_SIZE_MAX: Final = 4096
_owned: weakref.WeakSet[FileRegistration] = weakref.WeakSet()


class FileRegistration:
    """A name that this process owns; made by UserDirectory.register."""

    def __init__(self, path: str, fd: int, entry: Entry) -> None:
        self.entry = entry
        self._path = path
        self._fd = fd
        _owned.add(self)

    def close(self) -> None:
        """Give the name up; idempotent, never raises."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        with contextlib.suppress(OSError, ValueError), _locked(os.path.dirname(self._path)):
            if os.path.sameopenfile(fd, fd) and _is_at(fd, self._path):
                os.unlink(self._path)
        os.close(fd)

    def forget(self) -> None:
        """In a forked child: the name is the parent's, and its lock must end with the parent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<FileRegistration of {self.entry.name}{', closed' if self._fd < 0 else ''}>"


def _forked() -> None:
    for registration in list(_owned):
        registration.forget()


os.register_at_fork(after_in_child=_forked)


class UserDirectory:
    """The names of this user on this machine."""

    def register(self, name: str, address: str) -> FileRegistration:
        """Own `name`. Raises: OSError (EADDRINUSE: a living owner has it), TypeError, ValueError, PermissionError."""
        check_name("register", name)
        directory = place.directory()
        path = os.path.join(directory, name)
        entry = Entry(name, address, os.getpid(), os.geteuid(), socket.gethostname())
        data = json.dumps(entry.as_dict()).encode()
        if len(data) > _SIZE_MAX:
            raise ValueError(f"register {name!r}: an address of {len(address)} bytes")
        with _locked(directory):
            owner = _read(path)
            if owner is not None:
                raise OSError(errno.EADDRINUSE, f"register {name!r}: process {owner.pid} has it, at {owner.address}")
            new = os.path.join(directory, f".{name}.new")
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.write(fd, data)
                os.rename(new, path)
            except BaseException:
                os.close(fd)
                raise
        return FileRegistration(path, fd, entry)

    def resolve(self, name: str) -> Entry | None:
        """Who owns `name` now, or None. Raises: OSError, ValueError, TypeError, PermissionError."""
        check_name("resolve", name)
        return _read(os.path.join(place.directory(), name))

    def entries(self) -> list[Entry]:
        """Every name that has a living owner, sorted; what the dead left is cleaned away. Raises: OSError."""
        directory = place.directory()
        found = []
        for name in sorted(os.listdir(directory)):
            if name.startswith("."):
                continue
            path = os.path.join(directory, name)
            entry = _read(path)
            if entry is not None:
                found.append(entry)
                continue
            with _locked(directory), contextlib.suppress(FileNotFoundError):
                if _read(path) is None:
                    os.unlink(path)
        return found

    def watch(self, name: str | None = None) -> place.DirectoryWatch:
        """Watch the names; any change tells, also where one name was asked for. Raises: OSError, ValueError."""
        if name is not None:
            check_name("watch", name)
        return place.DirectoryWatch(place.directory())

    def __repr__(self) -> str:
        return "<UserDirectory>"


@contextlib.contextmanager
def _locked(directory: str) -> Iterator[None]:
    """Nobody else changes the directory meanwhile."""
    fd = os.open(os.path.join(directory, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _is_at(fd: int, path: str) -> bool:
    """Whether `path` still is the file that is open."""
    mine, there = os.fstat(fd), os.lstat(path)
    return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)


def _read(path: str) -> Entry | None:
    """What a living owner wrote; None: there is no file, or nobody keeps it locked. Raises: OSError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        try:
            return Entry(**json.loads(os.read(fd, _SIZE_MAX)))
        except (ValueError, TypeError):
            return None  # not written by this library
    finally:
        os.close(fd)
    return None
