"""Listening sockets: a UNIX path, a TCP port, or sockets that this process inherited (LISTEN_FDS).

Knows: addresses, stale sockets, who may reach them. Must not know: protocols.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from pathlib import Path

_FIRST_INHERITED = 3
BACKLOG = 64


def unix_listener(path: str | os.PathLike[str]) -> socket.socket:
    """A listening UNIX socket, for this user only; one that nobody serves any more is replaced. Raises: OSError."""
    name = os.fspath(path)
    sock = socket.socket(socket.AF_UNIX)
    try:
        os.fchmod(sock.fileno(), 0o600)  # before bind, which gives the name the socket's mode
        try:
            sock.bind(name)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _stale(name):
                raise OSError(error.errno, error.strerror, name) from error
            os.unlink(name)
            sock.bind(name)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _stale(name: str) -> bool:
    """Whether a socket lies there and nobody listens on it."""
    if not Path(name).is_socket():
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        return probe.connect_ex(name) == errno.ECONNREFUSED


def remove_unix(path: str | os.PathLike[str], inode: int) -> None:
    """Remove the socket's name, unless somebody else's has taken its place."""
    try:
        if os.stat(path).st_ino == inode:
            os.unlink(path)
    except FileNotFoundError:
        return


def split_host_port(text: str) -> tuple[str, int]:
    """`HOST:PORT`, `[::1]:PORT` or `:PORT` as host and port; no host is loopback. Raises: ValueError."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 0xFFFF:
        raise ValueError(f"{text!r} is not HOST:PORT")
    return host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host's address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def tcp_listener(host: str, port: int) -> socket.socket:
    """A listening TCP socket; port 0 chooses a free one. Raises: OSError."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
    return socket.create_server((host, port), family=family, backlog=BACKLOG)


def inherited_listeners() -> list[socket.socket]:
    """The sockets that whoever started this process left for it, as systemd does; they are taken once.

    Raises: OSError (a descriptor is no socket), ValueError (LISTEN_FDS is no number).
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or "LISTEN_FDS" not in os.environ:
        return []
    count = int(os.environ["LISTEN_FDS"])
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    sockets = []
    for fd in range(_FIRST_INHERITED, _FIRST_INHERITED + count):
        os.set_inheritable(fd, False)
        sockets.append(socket.socket(fileno=fd))
    return sockets
