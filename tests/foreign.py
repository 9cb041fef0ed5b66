"""A second implementation of docs/protocol.md, written from that page alone: a binder in plain Python.

It imports nothing of the library. It is slow and trusting, and keeps no more state than the protocol needs.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import socket
import struct
from typing import Any, NamedTuple

PREFACE = struct.Struct("!8sHBBHH16s16s")
ANSWER = struct.Struct("!8sHBBI16s")
HEAD = struct.Struct("!BBHIIIQQQQ")
MOVE, PASS, COPY, RELEASE, REFUSE, CONTROL, NOTE, SETUP, INVITE = range(1, 10)
HELLO, WELCOME, CONFIRM, REFUSAL = 1, 2, 3, 4
ASSIGN_REQUEST, ASSIGN_ANSWER, ASSIGN_MEMORY, ASSIGN_DONE = 5, 6, 7, 8
REMOVE_REQUEST, REMOVE_ANSWER, WITHDRAW, TEARDOWN, TEARDOWN_ANSWER = 9, 10, 11, 12, 13
TX, RX = 0, 1
MASTER, SLAVE = 1, 2
NONE = 1
ASK = 1


class Frame(NamedTuple):
    kind: int
    flags: int
    slot: int
    index: int
    extra: int
    serial: int
    consumed: int
    refused: int
    meta: bytes
    body: bytes


class Terms(NamedTuple):
    direction: int
    role: int
    trust: int
    meta_size: int
    slot_count: int


class Refused(Exception):
    """The creator said no."""


def message(kind: int, form: str = "", *fields: Any, text: str | None = None) -> bytes:
    data = b"BT" + bytes([1, kind]) + struct.pack("!" + form, *fields)
    if text is not None:
        data += struct.pack("!H", len(text.encode())) + text.encode()
    return data


def answer_message(kind: int, request: int, code: int = 0, reason: str = "") -> bytes:
    return message(kind, "IH", request, code, text=reason)


def connect(place: int | str) -> socket.socket:
    """A connection to a port of this machine, or to a node of its file system."""
    if isinstance(place, int):
        sock = socket.create_connection(("127.0.0.1", place), timeout=20)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(place)  # a full backlog is waited for, as it is not with a timeout
        sock.settimeout(20)
    except BaseException:
        sock.close()
        raise
    return sock


class Wire:
    """One connection: greeting and frames."""

    def __init__(
        self, port: int | str, secret: bytes | None = None, *, token: bytes = bytes(16), number: int = 0,
        tls: Any = None,
    ) -> None:  # fmt: skip
        """port: or a path · tls: an ssl.SSLContext, or None."""
        self.sock = connect(port)
        if tls is not None:
            self.sock = tls.wrap_socket(self.sock, server_hostname="localhost")
        self.sent = 0  # entries
        self.taken = 0  # entries of the other side
        self.refused = 0
        self.messages = 0
        try:
            self.greet(secret, token, number)
        except BaseException:
            self.sock.close()
            raise

    def greet(self, secret: bytes | None, token: bytes, number: int) -> None:
        preface = PREFACE.pack(b"bulktran", 1, number > 0, secret is not None, number, 0, os.urandom(16), token)
        self.sock.sendall(preface)
        answer = self.exactly(ANSWER.size)
        magic, version, verdict, proofs, zero, _ = ANSWER.unpack(answer)
        assert (magic, zero) == (b"bulktran", 0)
        if verdict:
            raise Refused(f"verdict {verdict}, version {version}")
        assert proofs == (secret is not None)
        if secret is not None:
            self.sock.sendall(hmac.new(secret, b"bulktransfer binder" + preface + answer, hashlib.sha256).digest())
            wanted = hmac.new(secret, b"bulktransfer creator" + preface + answer, hashlib.sha256).digest()
            assert hmac.compare_digest(self.exactly(32), wanted)

    def exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.sock.recv(min(size - len(data), 1 << 20))
            if not piece:
                raise EOFError(f"{len(data)} of {size} bytes, then the end")
            data += piece
        return data

    def send(
        self, kind: int, *, flags: int = 0, slot: int = 0, index: int = 0, extra: int = 0, serial: int = 0,
        meta: bytes = b"", body: bytes = b"",
    ) -> None:  # fmt: skip
        head = HEAD.pack(kind, flags, len(meta), slot, index, extra, len(body), serial, self.taken, self.refused)
        self.sock.sendall(head + meta + body)
        self.sent += kind <= CONTROL

    def control(self, data: bytes) -> None:
        self.send(CONTROL, serial=self.messages, body=data)
        self.messages += 1

    def frame(self) -> Frame:
        """The next frame; taking an entry counts."""
        kind, flags, meta_size, slot, index, extra, length, serial, consumed, refused = HEAD.unpack(self.exactly(48))
        meta, body = self.exactly(meta_size), self.exactly(length)
        self.taken += kind <= CONTROL
        return Frame(kind, flags, slot, index, extra, serial, consumed, refused, meta, body)

    def entry(self, kind: int) -> Frame:
        """The next entry, which is of that kind; notes that ask are answered."""
        while True:
            frame = self.frame()
            if frame.flags & ASK:
                self.send(NOTE)
            if frame.kind != NOTE:
                assert frame.kind == kind, frame
                return frame

    def hear(self, kind: int) -> bytes:
        """The fields of the next control message, which is of that type."""
        body = self.entry(CONTROL).body
        assert body[:4] == b"BT" + bytes([1, kind]), body
        return body[4:]

    def hang_up(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)
        while self.sock.recv(65536):
            continue
        self.sock.close()


class Binder(Wire):
    """A bound channel."""

    def __init__(self, port: int | str, secret: bytes | None = None, *, tls: Any = None, confirms: bool = True) -> None:
        """confirms: at once what it is offered; else nothing is said any more."""
        super().__init__(port, secret, tls=tls)
        self.domain = os.urandom(16)
        self.requests = 0
        self.more: list[Wire] = []
        self.send(SETUP, body=message(HELLO, "H16sBB", 1, self.domain, 0, 0))
        frame = self.frame()
        if frame.kind == INVITE:
            self.more = [Wire(port, secret, token=frame.body, number=number) for number in range(1, frame.extra)]
            frame = self.frame()
        assert frame.kind == SETUP
        if frame.body[3] == REFUSAL:
            raise Refused(frame.body[8:].decode())
        assert frame.body[3] == WELCOME
        count = frame.body[20]
        self.terms = [Terms(*struct.unpack_from("!BBBHI", frame.body, 21 + 13 * i)) for i in range(count)]
        if confirms:
            self.send(SETUP, body=message(CONFIRM))

    def take_pool(self) -> tuple[int, bytes, int, int]:
        """Say yes to the pool that the creator assigns: its slot, id, count and size."""
        request, slot, pool, count, size, trust, exposed = struct.unpack("!IH16sIQBB", self.hear(ASSIGN_REQUEST))
        assert (trust, exposed) == (NONE, 0)
        self.control(answer_message(ASSIGN_ANSWER, request))
        assert struct.unpack("!I", self.hear(ASSIGN_MEMORY)) == (request,)
        self.control(answer_message(ASSIGN_DONE, request))
        return slot, pool, count, size

    def assign(self, slot: int, pool: bytes, count: int, size: int) -> None:
        """Have the creator take a pool."""
        self.requests += 1
        self.control(message(ASSIGN_REQUEST, "IH16sIQBB", self.requests, slot, pool, count, size, NONE, 0))
        request, code = struct.unpack_from("!IH", self.hear(ASSIGN_ANSWER))
        assert (request, code) == (self.requests, 0)
        self.control(message(ASSIGN_MEMORY, "I", self.requests))
        request, code = struct.unpack_from("!IH", self.hear(ASSIGN_DONE))
        assert (request, code) == (self.requests, 0)

    def end(self) -> None:
        """End the channel in order."""
        self.control(message(TEARDOWN, text="") + bytes([0]))
        self.hear(TEARDOWN_ANSWER)
        self.hang_up()
