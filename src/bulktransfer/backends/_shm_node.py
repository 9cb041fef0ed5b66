"""The places of `shm:` addresses: which directory and name, and how a node is made there, found, and removed.

Knows: directories, owners, modes, locks, and what a killed process leaves behind.
Must not know: peers, or what a socket is used for. Part of the backend `shm`.

`shm:NAME` lives in a directory of mode 0700 of this user, `shm:/path` where the path says; the parent of a path may
be shared with other users (or be reached by symbolic links), since there the owner of the node is checked. A
directory that others can read lets them hold its lock, which makes creation there fail (with EBUSY, after
`LOCK_TIMEOUT_S`); mode 0711 keeps them from it and still lets them connect.

All of it goes through `/proc/self/fd`: names are looked up in the directory that was checked, and a connection is
made to the very node that was checked, so there is no moment between check and use, and no limit of 108 bytes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pwd
import re
import secrets
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from .._native.kernel import Descriptor

LOCK_TIMEOUT_S: Final = 5.0
NODE_NAME_MAX: Final = 85  # bytes: the 108 of sun_path, less "/proc/self/fd/1048576/" and a zero byte

_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_BIND_ATTEMPTS: Final = 8
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Place:
    """Where the node of an address lives (`private`: in the user's own directory), and what is done there."""

    act: str
    address: str
    directory: str
    name: str
    private: bool

    def __str__(self) -> str:
        return f"{self.act} {self.address}"


def place_of(act: str, address: str, *, choose: bool = False) -> Place:
    """The place of `address`; `choose` allows `shm:`, whose name is made up here. Raises: TypeError, ValueError."""
    if not isinstance(address, str):
        raise TypeError(f"{act}: an address is a str, not a {type(address).__name__}")
    scheme, _, rest = address.partition(":")
    if scheme != "shm":
        raise ValueError(f"{act} {address!r}: it does not start with 'shm:'")
    if rest.startswith("/"):
        directory, name = os.path.split(rest)
        if "\0" in rest or name in ("", ".", ".."):
            raise ValueError(f"{act} {address!r}: the path does not end in the name of a socket")
        if len(os.fsencode(name)) > NODE_NAME_MAX:
            raise ValueError(f"{act} {address!r}: the last part of the path is longer than {NODE_NAME_MAX} bytes")
        return Place(act, address, directory, name, private=False)
    if not rest and choose:
        rest = f"{os.getpid()}-{secrets.token_hex(8)}"
        address = f"shm:{rest}"
    if not _NAME.fullmatch(rest) or rest in (".", ".."):
        raise ValueError(f"{act} {address!r}: {rest!r} is neither 1 to 64 of A-Z a-z 0-9 . _ - nor an absolute path")
    return Place(act, address, _user_directory(f"{act} {address}"), rest, private=True)


def _user_directory(act: str) -> str:
    """The directory of this user's names, as the environment says now. Raises: ValueError."""
    chosen = os.environ.get("BULKTRANSFER_DIR")
    if chosen:
        if not os.path.isabs(chosen):
            raise ValueError(f"{act}: BULKTRANSFER_DIR is {chosen!r}, not an absolute path")
        return os.path.normpath(chosen)  # with "/" or "/." at its end lstat would follow a symbolic link
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.path.isabs(runtime):
        return os.path.join(runtime, "bulktransfer")
    return os.path.join(tempfile.gettempdir(), f"bulktransfer-{os.geteuid()}")


def user_id(act: str, user: int | str) -> int:
    """The id of a user given by id or by name. Raises: TypeError, ValueError (no such user)."""
    if isinstance(user, str):
        try:
            return pwd.getpwnam(user).pw_uid
        except KeyError:
            raise ValueError(f"{act}: there is no user {user!r}") from None
    if type(user) is not int:
        raise TypeError(f"{act}: a user is an int or a str, not a {type(user).__name__}")
    if not 0 <= user < 0xFFFFFFFF:
        raise ValueError(f"{act}: {user} is not a user id")
    return user


def denied(text: str) -> PermissionError:
    """The error for something that is not as safe as it has to be."""
    return PermissionError(errno.EACCES, text)


def with_act(error: OSError, act: object) -> OSError:
    """The system's error, with a text that names the act too."""
    return OSError(error.errno, f"{act}: {error.strerror}")


def handle(descriptor: Descriptor) -> str:
    """A path to what the descriptor refers to, whatever has become of its name."""
    return f"/proc/self/fd/{descriptor.fileno()}"


def _open(path: str, flags: int, act: object, directory: Descriptor | None = None) -> Descriptor | None:
    """Open `path`; None: there is nothing. Raises: ValueError (too long for the system), OSError."""
    try:
        return Descriptor(os.open(path, flags, dir_fd=None if directory is None else directory.fileno()))
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ValueError(f"{act}: the path is too long for the system") from None
        raise with_act(error, act) from None


def open_directory(place: Place, *, make: bool) -> Descriptor | None:
    """The directory of `place`, checked; `make`: create the user's own if it is missing; None: it is missing.

    Raises: PermissionError (not fit for the purpose), ValueError (the path is too long), OSError.
    """
    act = f"{place}: directory {place.directory!r}"
    if not place.private:
        return _open(place.directory, _DIRECTORY, act)
    try:
        if make:
            with contextlib.suppress(FileExistsError):
                os.mkdir(place.directory, 0o700)
        status = os.lstat(place.directory)
    except OSError as error:
        if error.errno == errno.ENOENT and not make:
            return None
        if error.errno == errno.ENAMETOOLONG:
            raise ValueError(f"{act}: the path is too long for the system") from None
        raise with_act(error, act) from None
    _check_private(status, act)  # by name first, for the sake of the error: opening it may say less
    directory = _open(place.directory, _DIRECTORY | os.O_NOFOLLOW, act)
    if directory is not None:
        _check_private(os.fstat(directory.fileno()), act)
    return directory


def _check_private(status: os.stat_result, act: str) -> None:
    """Raises: PermissionError (it is not a directory that this user alone can enter)."""
    if stat.S_ISLNK(status.st_mode):
        raise denied(f"{act} is a symbolic link")
    if not stat.S_ISDIR(status.st_mode):
        raise denied(f"{act} is not a directory")
    if status.st_uid != os.geteuid():
        raise denied(f"{act} belongs to user {status.st_uid}, not to user {os.geteuid()}")
    if status.st_mode & 0o077:
        raise denied(f"{act} has mode {stat.S_IMODE(status.st_mode):04o}, so that others can use it; it has to be 0700")


def find_node(place: Place, owner: int) -> Descriptor | None:
    """A handle on the node of `place`, a socket of user `owner`; None: there is nothing.

    Raises: PermissionError (directory or node are not as they should be), ValueError, OSError (ENOTSOCK).
    """
    if place.private:
        directory = open_directory(place, make=False)
        node = None if directory is None else _open_node(place, directory)
    else:
        node = _open(os.path.join(place.directory, place.name), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, place)
    if node is None:
        return None
    status = os.fstat(node.fileno())
    if stat.S_ISLNK(status.st_mode):
        raise denied(f"{place}: a symbolic link is in its place")
    if not stat.S_ISSOCK(status.st_mode):
        raise OSError(errno.ENOTSOCK, f"{place}: something else than a socket is in its place")
    if status.st_uid != owner:
        raise denied(f"{place}: it belongs to user {status.st_uid}, not to user {owner}")
    return node


def _open_node(place: Place, directory: Descriptor) -> Descriptor | None:
    return _open(place.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, place, directory)


@contextlib.contextmanager
def _locked(act: object, directory: Descriptor, timeout_s: float) -> Iterator[None]:
    """Hold the lock of a directory, against others of this user who create and clean up in it.

    It is held for microseconds, so finding it taken is rare; but the holder may have been stopped, or be a stranger
    who can read a shared directory, and flock knows no timeout: hence tries, with pauses, up to a deadline.
    Raises: OSError (EBUSY: it stayed taken).
    """
    deadline = time.monotonic() + timeout_s
    pause = threading.Event()
    while True:
        try:
            fcntl.flock(directory.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise OSError(errno.EBUSY, f"{act}: another process holds the lock of the directory") from None
            pause.wait(0.001)
    try:
        yield
    finally:
        fcntl.flock(directory.fileno(), fcntl.LOCK_UN)  # closing is not enough while a child shares the description


def make_node(place: Place, directory: Descriptor, listener: socket.socket, mode: int, backlog: int) -> tuple[int, int]:
    """Bind and listen, by a node of exactly `mode` and never of more; returns its device and inode.

    A node takes its mode from the socket, less the umask, which belongs to the whole process and is left alone.
    The chmod at the end gives back what the umask took, and wakes who found the node before it listened. Until
    bind returns the kernel calls the new node dead, so that another creator would remove it: hence the lock.
    Raises: PermissionError, OSError (EADDRINUSE, EEXIST, EBUSY, the system's).
    """
    status = os.fstat(directory.fileno())
    if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
        raise denied(f"{place}: anybody may replace what is in {place.directory!r} (writable, not sticky)")
    with _locked(place, directory, LOCK_TIMEOUT_S):
        os.fchmod(listener.fileno(), mode)
        _bind(place, directory, listener)
        node = _open_node(place, directory)
        if node is None or not _is_socket_of_this_user(status := os.fstat(node.fileno())):
            raise denied(f"{place}: somebody has replaced the new socket")
        try:
            listener.listen(backlog)
            os.chmod(handle(node), mode)
        except BaseException:
            os.unlink(place.name, dir_fd=directory.fileno())
            raise
        return status.st_dev, status.st_ino


def _bind(place: Place, directory: Descriptor, listener: socket.socket) -> None:
    """Make the node, in place of a stale one; under the lock. Raises: OSError."""
    for _ in range(_BIND_ATTEMPTS):
        try:
            listener.bind(f"{handle(directory)}/{place.name}")
            return
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise with_act(error, place) from None
        _remove_stale(place, directory)
    raise OSError(errno.EADDRINUSE, f"{place}: others keep taking its place")


def _is_socket_of_this_user(status: os.stat_result) -> bool:
    return stat.S_ISSOCK(status.st_mode) and status.st_uid == os.geteuid()


def _remove_stale(place: Place, directory: Descriptor) -> None:
    """Remove what a killed process left; under the lock. Raises: OSError (it is anything else, and stays)."""
    node = _open_node(place, directory)
    if node is None:
        return
    status = os.fstat(node.fileno())
    if stat.S_ISLNK(status.st_mode):
        raise denied(f"{place}: a symbolic link is in its place")
    if not stat.S_ISSOCK(status.st_mode):
        raise FileExistsError(errno.EEXIST, f"{place}: something else than a socket is in its place")
    if status.st_uid != os.geteuid():
        raise denied(f"{place}: a socket of user {status.st_uid} is in its place")
    # A datagram socket asks whether any process has this one open, and leaves no connection behind.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as probe:
        if probe.connect_ex(handle(node)) != errno.ECONNREFUSED:
            raise OSError(errno.EADDRINUSE, f"{place}: the address is in use")
    os.unlink(place.name, dir_fd=directory.fileno())


def remove_node(directory: Descriptor, name: str, identity: tuple[int, int]) -> None:
    """Remove the node if it is still that of `identity`, whose listener is still open. Never raises, never waits.

    As long as the listener is open nobody else removes the node, and its inode number is not used again; so this
    is safe also without the lock, when somebody else holds it.
    """
    with contextlib.suppress(OSError, ValueError), contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            stack.enter_context(_locked("close", directory, 0.0))
        status = os.stat(name, dir_fd=directory.fileno(), follow_symlinks=False)
        if (status.st_dev, status.st_ino) == identity:
            os.unlink(name, dir_fd=directory.fileno())
