"""The NBD server: listeners, clients, their negotiation, and an end in order.

Knows: who may connect, how long a negotiation may take, who is there. Must not know: the protocol's bytes.
"""

from __future__ import annotations

import errno
import logging
import select
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Mapping, Sequence

from ..stopping import StopSignal
from ..store import Store
from .connection import Connection
from .negotiation import Facts, NbdViolation, Negotiation, Tls
from .stream import PlainStream, Stream, TlsStream
from .wire import TransmissionFlag

HANDSHAKE_S = 30.0
CLIENTS_MAX = 256
SEND_BUFFER = 1 << 22
SHORTAGE_S = 0.1  # between attempts to accept while the system is short of something
_NEGOTIATION_BYTES = 1 << 16

_log = logging.getLogger("bulktransfer.block")


class ExportTable:
    """Stores under names; one under the name None answers to every name."""

    def __init__(self, stores: Mapping[str | None, Store], *, read_only: bool = False, description: str = "") -> None:
        self._stores = dict(stores)
        self._read_only = read_only
        self._description = description

    def store(self, name: str) -> Store | None:
        """The store of that name."""
        return self._stores.get(name, self._stores.get(None))

    def stores(self) -> list[Store]:
        """Every store, once."""
        return list({id(store): store for store in self._stores.values()}.values())

    def names(self) -> Iterable[tuple[str, str]]:
        """Names and descriptions for a client that asks for a list."""
        return [(name or "", self._description) for name in self._stores]

    def facts(self, name: str) -> Facts | None:
        """What a client is told of an export, or None where there is none of that name."""
        store = self.store(name)
        if store is None:
            return None
        flags = (
            TransmissionFlag.HAS_FLAGS
            | TransmissionFlag.SEND_FLUSH
            | TransmissionFlag.SEND_FUA
            | TransmissionFlag.SEND_CACHE
            | TransmissionFlag.CAN_MULTI_CONN  # all clients share one store, and a flush is of the store
        )
        if self._read_only or store.read_only:
            flags |= TransmissionFlag.READ_ONLY
        else:
            flags |= TransmissionFlag.SEND_TRIM | TransmissionFlag.SEND_WRITE_ZEROES
            if store.can_fast_zero:
                flags |= TransmissionFlag.SEND_FAST_ZERO
        return Facts(name, store.size_bytes, flags, store.block_size, self._description)


class Server:
    """Serves exports on listening sockets until `stop`; a client that fails or vanishes harms no other."""

    def __init__(self, exports: ExportTable, *, tls: ssl.SSLContext | None = None, tls_mode: Tls | None = None) -> None:
        if tls is None and tls_mode not in (None, Tls.OFF):
            raise ValueError(f"tls_mode={tls_mode!r} without a certificate")
        self._exports = exports
        self._context = tls
        self._tls = tls_mode if tls_mode is not None else (Tls.REQUIRED if tls else Tls.OFF)
        self._lock = threading.Lock()
        self._clients: dict[threading.Thread, Stream] = {}
        self._once = False
        self._stop = StopSignal()

    @property
    def clients(self) -> int:
        """How many are connected."""
        with self._lock:
            return len(self._clients)

    def stop(self) -> None:
        """Have `serve` return; may be called from a signal handler, and more than once."""
        self._stop.give()

    def serve(self, listeners: Sequence[socket.socket], *, patience_s: float = 5.0, once: bool = False) -> None:
        """Serve until `stop`; then requests that arrived are answered, within `patience_s`, and stores are flushed.

        once: stop when the last client has gone. The listeners are closed. Raises: BlockError (the last flush failed).
        """
        with selectors.DefaultSelector() as selector:
            selector.register(self._stop, selectors.EVENT_READ)
            for listener in listeners:
                listener.setblocking(False)
                selector.register(listener, selectors.EVENT_READ)
            self._once = once
            while not self._stop.given:
                for key, _ in selector.select():
                    if isinstance(key.fileobj, socket.socket):
                        self._accept(key.fileobj)
        for listener in listeners:
            listener.close()
        self._end_clients(patience_s)
        self._stop.close()
        for store in self._exports.stores():
            store.flush()

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError as error:
            _log.warning("a client could not be accepted: %s", error)
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                select.select([self._stop], [], [], SHORTAGE_S)  # it would still be there, and refused again
            return
        sock.setblocking(True)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        else:  # a larger buffer (as large as the system allows) has both sides change places less often; TCP sees to it
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        stream = PlainStream(sock)
        thread = threading.Thread(target=self._client, args=(sock, stream), name="nbd client", daemon=True)
        with self._lock:
            if len(self._clients) >= CLIENTS_MAX:
                _log.warning("a client was sent away: there are %d", CLIENTS_MAX)
                sock.close()
                return
            self._clients[thread] = stream
        thread.start()

    def _client(self, sock: socket.socket, stream: Stream) -> None:
        """A client's thread."""
        try:
            stream = self._negotiate(sock, stream)
        except (OSError, EOFError) as error:
            _log.info("a negotiation ended: %s", error)
        except NbdViolation as error:
            _log.info("a client broke the protocol: %s", error)
        finally:
            stream.close()
            with self._lock:
                del self._clients[threading.current_thread()]
                last = self._once and not self._clients
            if last:
                self.stop()

    def _negotiate(self, sock: socket.socket, stream: Stream) -> Stream:
        """Negotiate, and serve what was agreed. Raises: OSError, EOFError, NbdViolation."""
        deadline = time.monotonic() + HANDSHAKE_S
        negotiation = Negotiation(self._exports, tls=self._tls)
        stream.send([negotiation.greeting()])
        buffer = memoryview(bytearray(_NEGOTIATION_BYTES))
        while negotiation.agreement is None:
            sock.settimeout(max(0.001, deadline - time.monotonic()))
            count = stream.recv_into(buffer)
            if not count:
                return stream
            answer = negotiation.receive(buffer[:count])
            if answer:
                stream.send([answer])
            if negotiation.ended:
                return stream
            if negotiation.wants_tls:
                assert self._context is not None
                stream = TlsStream(sock, self._context)
                negotiation.secured()
        sock.settimeout(None)
        store = self._exports.store(negotiation.agreement.export.name)
        assert store is not None
        Connection(stream, negotiation.agreement, store).serve()
        return stream

    def _end_clients(self, patience_s: float) -> None:
        """Let each answer what it has received; then break it off."""
        deadline = time.monotonic() + patience_s
        with self._lock:
            remaining = dict(self._clients)
        for stream in remaining.values():
            stream.stop_receiving()
        for thread in remaining:
            thread.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            late = dict(self._clients)
        for stream in late.values():
            stream.break_off()
        for thread in late:
            thread.join(max(1.0, patience_s))
