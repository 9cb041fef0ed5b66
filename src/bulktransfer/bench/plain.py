"""Plain sockets: how a program without the library moves the same bytes, in several ways.

Knows: sockets, `ssl`, fixed memory on both sides; a window of messages that the sink acknowledges. Must not know: the
library, or what is compared. `plain` sends one message a call (`sendmsg`) and receives it into its place
(`recv_into`); `batched` has many in a call, scattered straight into their places; `tls` is `plain` over `ssl`.
"""

from __future__ import annotations

import mmap
import socket
import ssl
import struct
import time
from array import array
from typing import Any

from .machine import quiet
from .partner import Session
from .shared import SLOTS
from .worker import Worker

WINDOW = SLOTS
HEAD = struct.Struct("<IIQ")  # what it is, its number, its size
WAYS = ("plain", "batched", "tls")
_MESSAGE, _ECHO = 1, 2
_PATIENCE_S = 30.0
_ACKS = 64  # read at once

Credentials = dict[str, str]  # `certificate` and `key` of the sink, files; for `tls`


def slots(size: int, count: int = WINDOW) -> list[memoryview]:
    """Places for messages, every page of them touched."""
    places = []
    for number in range(count):
        memory = mmap.mmap(-1, size)
        memory[:] = bytes([number + 1]) * size
        places.append(memoryview(memory))
    return places


def tune(sock: socket.socket, congestion: str) -> None:
    """No delays, and the congestion control that is compared. Raises: OSError (it is not there)."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())


class Source:
    """The side that sends, here; its sink is the partner's."""

    def __init__(
        self, worker: Worker, way: str, *, size: int, congestion: str, papers: Credentials | None = None
    ) -> None:
        self._worker = worker
        self._name = f"plain {way}"
        self._size = size
        self._slots = slots(size)
        self._heads = [HEAD.pack(_MESSAGE, number, size) for number in range(WINDOW)]
        self._per_call = (16 if size <= 65536 else 4) if way == "batched" else 1
        self._tls = way == "tls"
        port = worker.call(listen, name=self._name, way=way, size=size, congestion=congestion, papers=papers)
        with worker.running(join, name=self._name):
            self._sock = socket.create_connection(("127.0.0.1", port))
            tune(self._sock, congestion)
            if papers is not None:
                context = ssl.create_default_context(cafile=papers["certificate"])
                context.minimum_version = ssl.TLSVersion.TLSv1_3
                self._sock = context.wrap_socket(self._sock, server_hostname="localhost")
        self._acks = Acks(self._sock)
        self._next = 0

    def batches(self, count: int) -> int:
        """The ns that `count` messages take, at most WINDOW of them not acknowledged, until the last one is."""
        with self._worker.running(take, name=self._name, count=count), quiet():
            start_ns = time.perf_counter_ns()
            sent = acked = 0
            while acked < count:
                ready = min(count, acked + WINDOW) - sent
                if ready:
                    self._send(ready)
                    sent += ready
                acked += self._acks.read()
            return time.perf_counter_ns() - start_ns

    def echoes(self, count: int) -> array[int]:
        """The ns of each of `count` echoes of one whole message."""
        times = array("q", bytes(8 * count))
        head, back = HEAD.pack(_ECHO, 0, self._size), memoryview(bytearray(HEAD.size))
        clock = time.perf_counter_ns
        with self._worker.running(take, name=self._name, count=count), quiet():
            for i in range(count):
                start_ns = clock()
                send_one(self._sock, head, self._slots[0])
                receive_all(self._sock, back)
                receive_all(self._sock, self._slots[1])
                times[i] = clock() - start_ns
        return times

    def _send(self, count: int) -> None:
        while count:
            step = min(count, self._per_call)
            if step == 1:
                place = self._next % WINDOW
                if self._tls:
                    self._sock.send(self._heads[place])
                    self._sock.sendall(self._slots[place])
                else:
                    send_one(self._sock, self._heads[place], self._slots[place])
            else:
                send_parts(self._sock, self._parts(step))
            self._next += step
            count -= step

    def _parts(self, count: int) -> list[Any]:
        places = [(self._next + i) % WINDOW for i in range(count)]
        return [part for place in places for part in (self._heads[place], self._slots[place])]

    def close(self) -> None:
        """Hang up on both sides."""
        self._sock.close()
        self._worker.drop(self._name)


class Acks:
    """Acknowledgements are heads: as many as are there are read at once."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._part, self._room = sock, 0, memoryview(bytearray(HEAD.size * _ACKS))

    def read(self) -> int:
        """How many came, at least one."""
        while True:
            size = self._sock.recv_into(self._room)
            if not size:
                raise ConnectionResetError("the sink hung up")
            count, self._part = divmod(self._part + size, HEAD.size)
            if count:
                return count


def send_one(sock: socket.socket, head: bytes | memoryview, contents: memoryview) -> None:
    """One message, whole."""
    sent = sock.sendmsg((head, contents))
    whole = len(head) + len(contents)
    while sent < whole:
        sent += sock.send(contents[sent - len(head) :])


def send_parts(sock: socket.socket, parts: list[Any]) -> None:
    """Many messages, whole."""
    left = sum(len(part) for part in parts)
    while left:
        sent = sock.sendmsg(parts)
        left -= sent
        if not left:
            return
        first = 0
        while sent >= len(parts[first]):
            sent -= len(parts[first])
            first += 1
        parts = parts[first:]
        parts[0] = memoryview(parts[0])[sent:]


def receive_all(sock: socket.socket, into: memoryview) -> None:
    """Fill `into`. Raises: ConnectionResetError."""
    flags = 0 if isinstance(sock, ssl.SSLSocket) else socket.MSG_WAITALL
    got = 0
    while got < len(into):
        size = sock.recv_into(into[got:] if got else into, 0, flags)
        if not size:
            raise ConnectionResetError("the source hung up")
        got += size


# --- what the partner does ---


class Sink:
    """The side that receives."""

    def __init__(self, way: str, size: int, congestion: str, papers: Credentials | None) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._congestion, self._papers = congestion, papers
        self._size, self._slots = size, slots(size)
        self._batched = way == "batched"
        self._heads = [memoryview(bytearray(HEAD.size)) for _ in range(WINDOW)]
        per_call = 16 if size <= 65536 else 4 if size <= 1 << 20 else 1
        rows = [[(first + i) % WINDOW for i in range(per_call)] for first in range(WINDOW)]
        self._rows = [[part for place in row for part in (self._heads[place], self._slots[place])] for row in rows]
        self._place = self._part = 0
        self._sock: socket.socket

    def join(self) -> None:
        self._listener.settimeout(_PATIENCE_S)
        self._sock, _ = self._listener.accept()
        tune(self._sock, self._congestion)
        self._sock.settimeout(None)
        if self._papers is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.load_cert_chain(self._papers["certificate"], self._papers["key"])
            self._sock = context.wrap_socket(self._sock, server_side=True)

    def take(self, count: int) -> None:
        if self._batched:
            while count:
                count -= self._take_many()
            return
        head, sock = self._heads[0], self._sock
        for _ in range(count):
            receive_all(sock, head)
            what, number, _size = HEAD.unpack(head)
            place = self._slots[number % WINDOW]
            receive_all(sock, place)
            if what == _ECHO:
                send_one(sock, head, place)
            else:
                sock.send(head)

    def _take_many(self) -> int:
        """One call that reads what is there into its places, and one that acknowledges what is whole; how many."""
        row, part = self._rows[self._place], self._part
        if part:
            row = [row[0][part:], *row[1:]] if part < HEAD.size else [row[1][part - HEAD.size :], *row[2:]]
        size = self._sock.recvmsg_into(row)[0]
        if not size:
            raise ConnectionResetError("the source hung up")
        whole, self._part = divmod(part + size, HEAD.size + self._size)
        if whole:
            self._sock.sendmsg([self._heads[(self._place + i) % WINDOW] for i in range(whole)])
            self._place = (self._place + whole) % WINDOW
        return whole

    def close(self) -> None:
        self._listener.close()
        self._sock.close()


def listen(session: Session, *, name: str, way: str, size: int, congestion: str, papers: Credentials | None) -> int:
    """Listen on loopback; the port."""
    sink = Sink(way, size, congestion, papers)
    session.keep(name, sink)
    return sink.port


def join(session: Session, *, name: str) -> None:
    """Take the source's connection."""
    session.get(Sink, name).join()


def take(session: Session, *, name: str, count: int) -> None:
    """Receive and acknowledge, or echo, so many messages."""
    session.get(Sink, name).take(count)
