"""The bytes of one client's connection, in the clear or under TLS.

Knows: sockets, scatter and gather, how TLS sits on a socket that two threads use. Must not know: NBD.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Sequence
from typing import Protocol

Piece = bytes | bytearray | memoryview

_IOV_MAX = 1024
FAREWELL_S = 1.0
_RECORDS = 1 << 18  # what is taken from the socket, and given to it, at a time under TLS


class Stream(Protocol):
    """A byte stream; one thread receives, one at a time sends, both at once."""

    def recv_into(self, view: memoryview) -> int:
        """Some bytes; 0 at the end. Raises: OSError."""

    def recv_all(self, view: memoryview) -> None:
        """All of `view`. Raises: EOFError, OSError."""

    def send(self, pieces: Sequence[Piece]) -> None:
        """All pieces, in order. Raises: OSError."""

    def stop_receiving(self) -> None:
        """Have the receiver see the end; what is to be sent still goes."""

    def break_off(self) -> None:
        """Have receiver and sender fail."""

    def close(self) -> None:
        """Give the socket up."""


class PlainStream:
    """A socket as it is."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def recv_into(self, view: memoryview) -> int:
        """Some bytes; 0 at the end. Raises: OSError."""
        return self._sock.recv_into(view)

    def recv_all(self, view: memoryview) -> None:
        """All of `view`. Raises: EOFError, OSError."""
        done, length = 0, len(view)
        while done < length:
            count = self._sock.recv_into(view[done:] if done else view, 0, socket.MSG_WAITALL)
            if not count:
                raise EOFError("the client went away within a request")
            done += count

    def send(self, pieces: Sequence[Piece]) -> None:
        """All pieces, in order. Raises: OSError."""
        for first in range(0, len(pieces), _IOV_MAX):
            group = pieces[first : first + _IOV_MAX]
            sent = self._sock.sendmsg(group)
            for piece in group:
                if sent >= len(piece):
                    sent -= len(piece)
                else:
                    with memoryview(piece) as whole:
                        self._sock.sendall(whole[sent:])
                    sent = 0

    def stop_receiving(self) -> None:
        """Have the receiver see the end; what is to be sent still goes."""
        with contextlib.suppress(OSError):  # the client is gone already
            self._sock.shutdown(socket.SHUT_RD)

    def break_off(self) -> None:
        """Have receiver and sender fail."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the socket up; the client sees the end even where a child has the socket as well."""
        self.break_off()
        self._sock.close()


class TlsStream(PlainStream):
    """TLS over a socket. The TLS state has a lock of its own, held for arithmetic only: both directions flow.

    Raises: ssl.SSLError, OSError, EOFError (the handshake failed).
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        super().__init__(sock)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._state = threading.Lock()
        self._sending = threading.Lock()
        while not self._shake():
            self._send_records()
            self._feed()
        self._send_records()

    def _shake(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError:
            self._send_records()  # the alert
            raise
        return True

    def _feed(self) -> None:
        """Take what the socket has. Raises: EOFError."""
        data = self._sock.recv(_RECORDS)
        if not data:
            raise EOFError("the client went away")
        with self._state:
            self._incoming.write(data)

    def _send_records(self) -> None:
        with self._sending:  # records leave in the order in which they were made
            with self._state:
                data = self._outgoing.read()
            if data:
                self._sock.sendall(data)

    def recv_into(self, view: memoryview) -> int:
        """Some bytes; 0 at the end. Raises: OSError."""
        while True:
            try:
                with self._state:
                    return int(self._tls.read(len(view), view))
            except ssl.SSLWantReadError:
                self._send_records()  # a key update is answered
            except ssl.SSLZeroReturnError:
                return 0
            try:
                self._feed()
            except EOFError:
                return 0

    def recv_all(self, view: memoryview) -> None:
        """All of `view`. Raises: EOFError, OSError."""
        done = 0
        while done < len(view):
            count = self.recv_into(view[done:])
            if not count:
                raise EOFError("the client went away within a request")
            done += count

    def send(self, pieces: Sequence[Piece]) -> None:
        """All pieces, in order. Raises: OSError."""
        for piece in pieces:
            with memoryview(piece) as whole:
                for first in range(0, len(whole), _RECORDS):
                    with self._state:
                        self._tls.write(whole[first : first + _RECORDS])
                    if self._outgoing.pending >= _RECORDS:
                        self._send_records()
        self._send_records()

    def close(self) -> None:
        """Say good-bye as TLS has it, and give the socket up."""
        with contextlib.suppress(OSError):  # the client has gone first, as it may
            with self._state, contextlib.suppress(ssl.SSLError):
                self._tls.unwrap()
            self._sock.settimeout(FAREWELL_S)
            self._send_records()
        super().close()
