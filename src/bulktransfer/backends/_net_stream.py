"""One connection to another machine while it is being set up: connecting, TLS, bytes in and out, never waiting.

Knows: sockets, to a process of this machine, too, and TLS. Must not know: what the bytes mean.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
from collections.abc import Iterator, Sequence
from typing import Any, Final

from .._native.far import receive_bytes
from .._native.kernel import Descriptor
from ..core.network import Network
from ..errors import BindRefusedError
from ._net_address import Where, is_loopback

PIECE: Final = 65536
OUTGOING_MAX: Final = 1 << 20  # what is said while a channel is set up is far less
LOOPBACK_CONGESTION: Final = "cubic"  # bbr throttles loopback: 3.1 against 5.2 GB/s (measured on Linux 6.18)


@contextlib.contextmanager
def as_socket(descriptor: Descriptor) -> Iterator[socket.socket]:
    """The descriptor with the methods of a socket; it stays the descriptor's."""
    sock = socket.socket(fileno=descriptor.fileno())
    try:
        sock.setblocking(False)
        yield sock
    finally:
        sock.detach()


def new_socket(family: int) -> Descriptor:
    """A TCP socket that never waits. Raises: OSError."""
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    return Descriptor(sock.detach())


def tune(sock: socket.socket, network: Network, host: str) -> None:
    """No delays, signs of life, and an end to waiting for a peer that the network lost. Raises: OSError."""
    if sock.family == socket.AF_UNIX:
        return  # no network in between
    timeout_s = network.timeout_s
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, int(timeout_s / 2)))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, int(timeout_s / 8)))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, min(int(timeout_s * 1000), 2**31 - 1))
    name = network.congestion or (LOOPBACK_CONGESTION if is_loopback(host) else None)
    if name is not None:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
        except OSError as error:
            if network.congestion is not None:
                raise OSError(error.errno, f"congestion control {name!r}: {error.strerror}") from None


def congestion_of(descriptor: Descriptor) -> str:
    """The name of the congestion control of a connection."""
    with as_socket(descriptor) as sock:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).partition(b"\0")[0].decode()


class Stream:
    """A connection being set up."""

    def __init__(self, network: Network, context: ssl.SSLContext | None, name: str | None) -> None:
        self.host = ""
        self.connecting = False
        self._descriptor: Descriptor | None = None
        self._network = network
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = None
        if context is not None:
            self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=name is None, server_hostname=name)
        self._shaken = self._tls is None
        self._to_send = bytearray()
        self._plain = bytearray()  # what came and is not yet as much as was asked for
        self._waiting = bytearray()  # plain bytes that wait for TLS to be ready
        self._ended = False

    def accept(self, descriptor: Descriptor, host: str) -> None:
        """Take over a connected socket. Raises: OSError."""
        self._descriptor, self.host = descriptor, host
        with as_socket(descriptor) as sock:
            tune(sock, self._network, host.rpartition(":")[0].strip("[]"))

    def connect(self, places: Sequence[Where]) -> None:
        """Connect to the first of some places that lets one try. Raises: OSError (none does)."""
        problem: OSError | None = None
        for place in places:
            descriptor = new_socket(place.family)
            with as_socket(descriptor) as sock:
                tune(sock, self._network, place.sockaddr[0])
                code = sock.connect_ex(place.sockaddr)
            if code in (0, errno.EINPROGRESS):
                self._descriptor, self.host = descriptor, place.text
                self.connecting = code != 0
                return
            problem = OSError(code, f"connect to {place.text}: {os.strerror(code)}")
        raise problem or OSError(errno.ENOENT, "an address without a place")

    @property
    def closed(self) -> bool:
        """Whether there is no socket (any more)."""
        return self._descriptor is None or self._descriptor.closed

    @property
    def wants_room(self) -> bool:
        """Whether it waits for the socket to take more."""
        return self.connecting or bool(self._to_send)

    def fileno(self) -> int:
        """The socket. Raises: ValueError."""
        if self._descriptor is None:
            raise ValueError("the connection is closed")
        return self._descriptor.fileno()

    def push(self, data: bytes) -> None:
        """Send, as soon as it goes. Raises: OSError."""
        self._waiting += data
        if len(self._waiting) + len(self._to_send) > OUTGOING_MAX:
            raise OSError(errno.ENOBUFS, f"{self.host} reads nothing")
        self.advance()

    def pull(self, count: int) -> bytes | None:
        """Exactly `count` bytes; None: they are not there yet. Raises: EOFError, OSError, BindRefusedError (TLS)."""
        self.advance()
        while self._shaken and not self.connecting and len(self._plain) < count:
            piece = self._read(count - len(self._plain))
            if piece is None:
                break
            self._plain += piece
        if len(self._plain) < count:
            if self._ended:
                raise EOFError
            return None
        data = bytes(self._plain)
        self._plain.clear()
        return data

    def _read(self, count: int) -> bytes | None:
        if self._tls is None:
            return self._receive(count) or None
        while True:
            try:
                piece = self._tls.read(count)
            except ssl.SSLWantReadError:
                raw = self._receive(PIECE)
                if not raw:
                    return None
                self._incoming.write(raw)
                continue
            except ssl.SSLZeroReturnError:
                piece = b""
            except ssl.SSLError as error:
                raise _tls_refused(self.host, error) from None
            if not piece:
                self._ended = True
            return piece or None

    def _receive(self, count: int) -> bytes:
        """Bytes of the socket, at most `count`; none: nothing now, or the end. Raises: OSError, ProtocolViolation."""
        assert self._descriptor is not None
        with as_socket(self._descriptor) as sock:
            try:
                local = sock.family == socket.AF_UNIX
                data = receive_bytes(sock.fileno(), count) if local else sock.recv(count)
            except BlockingIOError:
                return b""
        self._ended = not data
        return data

    def advance(self) -> None:
        """Go on with whatever can go on. Raises: OSError, BindRefusedError (TLS)."""
        assert self._descriptor is not None
        if self.connecting and not self._connected():
            return
        if not self._shaken:
            self._shake()
        if self._shaken and self._waiting:
            if self._tls is None:
                self._to_send += self._waiting
            else:
                self._tls.write(self._waiting)
            self._waiting.clear()
        self._to_send += self._outgoing.read()
        if self._to_send:
            with as_socket(self._descriptor) as sock, contextlib.suppress(BlockingIOError):
                del self._to_send[: sock.send(self._to_send, socket.MSG_NOSIGNAL)]

    def _connected(self) -> bool:
        assert self._descriptor is not None
        with as_socket(self._descriptor) as sock:
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, f"connect to {self.host}: {os.strerror(code)}")
            try:
                sock.getpeername()
            except OSError as error:
                if error.errno != errno.ENOTCONN:
                    raise
                return False
        self.connecting = False
        return True

    def _shake(self) -> None:
        assert self._tls is not None
        assert self._descriptor is not None
        while not self._ended:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                raw = self._receive(PIECE)
                if not raw:
                    return
                self._incoming.write(raw)
            except ssl.SSLError as error:
                self._to_send += self._outgoing.read()  # the alert, which says why
                with as_socket(self._descriptor) as sock, contextlib.suppress(OSError):
                    sock.send(self._to_send, socket.MSG_NOSIGNAL)
                raise _tls_refused(self.host, error) from None
            else:
                self._shaken = True
                return

    def take_over(self) -> tuple[int, Any]:
        """The raw descriptor, and what speaks TLS on it: an SSLObject with its two ends; the caller's from now on.

        Raises: OSError (it does not take what was said).
        """
        assert self._descriptor is not None
        self.advance()
        if self._tls is None and self._to_send:
            raise OSError(errno.ENOBUFS, f"{self.host} reads nothing")
        tls = None
        if self._tls is not None:
            tls = (self._tls, self._incoming, self._outgoing, bytes(self._to_send))
        return self._descriptor.detach(), tls

    @property
    def is_empty(self) -> bool:
        """Whether all that was pushed has gone."""
        return not self._to_send and not self._waiting

    def close(self) -> None:
        """Hang up; idempotent."""
        if self._descriptor is not None:
            self._descriptor.close()


def _tls_refused(host: str, error: ssl.SSLError) -> BindRefusedError:
    return BindRefusedError(f"TLS with {host}: {error.reason or error}")
