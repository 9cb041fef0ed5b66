"""The backends `tcp:` and `tls:`, between machines.

Knows: listening, accepting, connecting, and what TLS needs. Must not know: what is said once two sides are connected
(_net_wire.py has the set-up, the compiled room the rest), or rules of channels.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import threading
import weakref
from collections.abc import Sequence
from typing import Final

from .._native.kernel import Descriptor
from ..abc import Backend, Codec, Connection, FarPeer
from ..core.network import Network
from ..errors import ForkedError
from ..states import Trust
from ..wire import control
from ._net_address import Place, host_and_port, place_of
from ._net_stream import as_socket, new_socket
from ._net_wire import BinderWire, CreatorWire, Invitations
from ._tick import Tick

ABORTED_MAX: Final = 16


def creator_context(place: Place) -> ssl.SSLContext | None:
    """What a creator needs to speak TLS 1.3. Raises: ValueError (no certificate), OSError (a file)."""
    network = place.network
    if not place.secure:
        return None
    if network.tls is not None:
        return network.tls
    if network.certificate is None:
        raise ValueError(f"create {place}: it needs a certificate: network=bulk.Network(certificate=..., key=...)")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(network.certificate, network.key)
    if network.authority is not None:
        context.load_verify_locations(network.authority)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def binder_context(place: Place) -> ssl.SSLContext | None:
    """What a binder needs to speak TLS 1.3. Raises: OSError (a file)."""
    network = place.network
    if not place.secure:
        return None
    if network.tls is not None:
        return network.tls
    context = ssl.create_default_context(cafile=network.authority and os.fspath(network.authority))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if network.certificate is not None:
        context.load_cert_chain(network.certificate, network.key)
    return context


class NetRendezvous:
    """A port where this process listens; gone when closed, dropped, or at exit."""

    def __init__(self, place: Place, backlog: int) -> None:
        self._pid = os.getpid()
        self._lock = threading.RLock()  # the descriptor must not be closed, and used again, during an accept
        self._network = place.network
        self._context = creator_context(place)
        self._invitations = Invitations()
        self._listener, port = _listen(place, backlog)
        self._address = f"{place.scheme}://{host_and_port(place.host, port)}"
        self._finalizer = weakref.finalize(self, self._listener.close)

    def __repr__(self) -> str:
        return f"<NetRendezvous {self._address}{' closed' if self._listener.closed else ''}>"

    @property
    def address(self) -> str:
        """The address to give to others, without options; the port is chosen here if it was 0."""
        return self._address

    def fileno(self) -> int:
        """The listening socket, readable while somebody knocks. Raises: ForkedError, ValueError (closed)."""
        self._check("fileno")
        return self._listener.fileno()

    def accept(self) -> Connection | None:
        """The next connection, or None; never blocks.

        Raises: ForkedError, ValueError (closed), OSError (EMFILE and what else the system refuses).
        """
        self._check("accept")
        with self._lock:
            self._check("accept")
            with as_socket(self._listener) as listener:
                for _ in range(ABORTED_MAX):
                    try:
                        sock, sockaddr = listener.accept()
                    except BlockingIOError:
                        return None
                    except ConnectionAbortedError:
                        continue
                    descriptor = Descriptor(sock.detach())
                    host = host_and_port(sockaddr[0], sockaddr[1])
                    wire = CreatorWire(self._network, self._context, self._invitations)
                    try:
                        wire.accept(descriptor, host)
                    except OSError as error:
                        wire.close()
                        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                            raise
                        continue  # it went away before it could be tuned
                    return Connection(-1, FarPeer.at(host), wire)
        return None

    def close(self) -> None:
        """Listen no longer; idempotent, never raises; in a forked child it does nothing."""
        if os.getpid() == self._pid:
            with self._lock:
                self._invitations.close()
                self._finalizer()

    def _check(self, act: str) -> None:
        if os.getpid() != self._pid:
            raise ForkedError(f"{act} on {self._address}: it was created in process {self._pid}, before a fork")
        if self._listener.closed:
            raise ValueError(f"{act} on {self._address}: it is closed")


def _listen(place: Place, backlog: int) -> tuple[Descriptor, int]:
    """A listening socket, and its port. Raises: OSError (EADDRINUSE ...), PermissionError."""
    problem: OSError | None = None
    for where in place.resolve():
        descriptor = new_socket(where.family)
        with as_socket(descriptor) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what was closed a moment ago does not hinder
            if where.family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                sock.bind(where.sockaddr)
                sock.listen(backlog)
            except OSError as error:
                problem = problem or OSError(error.errno, f"create {place}: {error.strerror}")
                continue
            return descriptor, sock.getsockname()[1]
    raise problem or OSError(errno.EADDRNOTAVAIL, f"create {place}: the host has no address")


class NetBackend:
    """The schemes `tcp:` and `tls:`: channels between machines, where every pool has twins."""

    spins = True
    takes_network = True
    trusts: Sequence[Trust] = (Trust.NONE,)  # no memory is shared, and nobody on the way is believed
    codec: Codec = control.CODEC

    def __init__(self, scheme: str) -> None:
        self.scheme = scheme

    def __repr__(self) -> str:
        return f"<NetBackend {self.scheme}:>"

    def listen(
        self, address: str, *, backlog: int, allow_users: Sequence[int | str] = (), network: Network | None = None
    ) -> NetRendezvous:
        """Listen at `address`; with port 0, or `tcp:` alone, at a free port.

        Raises:
            TypeError, ValueError: a malformed address, option or backlog, or `allow_users`, who cannot be told apart.
            PermissionError: it is beyond loopback, without TLS, and not called insecure.
            OSError: EADDRINUSE (the port is taken), no such host, a file that cannot be read, or the system's.
        """
        place = place_of("create", self.scheme, address, network, choose=True)
        if type(backlog) is not int or backlog < 1:
            raise ValueError(f"create {place}: backlog is {backlog!r}, not an int of at least 1")
        if allow_users:
            raise ValueError(f"create {place}: allow_users is for one machine; here a secret or certificates decide")
        return NetRendezvous(place, backlog)

    def connect(
        self, address: str, *, owner: int | str | None = None, network: Network | None = None
    ) -> Connection | None:
        """Knock once: a connection that is perhaps still being made; None: nobody listens there.

        Raises: TypeError, ValueError (malformed, or an owner, whom nobody can know), PermissionError (beyond loopback,
        without TLS, and not called insecure), OSError (no such host, or the system's).
        """
        place = place_of("connect", self.scheme, address, network)
        if owner is not None:
            raise ValueError(f"connect {place}: owner is for one machine; here a secret or certificates decide")
        context = binder_context(place)
        name = (place.network.server_name or place.host) if place.secure else None
        try:
            places = place.resolve()
            wire = BinderWire(place.network, lambda: context, name, lambda stream: stream.connect(places))
        except ConnectionRefusedError:
            return None
        except PermissionError:
            raise
        except OSError:
            if place.network.retry:
                return None
            raise
        return Connection(-1, FarPeer.at(wire.host), wire)

    def appearance(self, address: str) -> Tick:
        """Nothing tells that somebody listens at last: a clock, ever more seldom. Raises: OSError."""
        return Tick(f"waiting for {address}")


BACKENDS: Final[dict[str, Backend]] = {scheme: NetBackend(scheme) for scheme in ("tcp", "tls")}
