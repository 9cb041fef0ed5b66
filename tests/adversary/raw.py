"""One end of a `shm:` channel that keeps no rule: sockets, memfds and bytes, nothing of the library.

Knows: where every byte of messages, outboxes and ring entries lies (wire/control.py, _native/layout.h), written down
here once more, so that a change of either is noticed. Must not know: what is right.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import fcntl
import mmap
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

HELLO, WELCOME, CONFIRM, REFUSAL = 1, 2, 3, 4
ASSIGN_REQUEST, ASSIGN_ANSWER, ASSIGN_MEMORY, ASSIGN_DONE = 5, 6, 7, 8
REMOVE_REQUEST, REMOVE_ANSWER, WITHDRAW, TEARDOWN, TEARDOWN_ANSWER, LEASES = 9, 10, 11, 12, 13, 14
MOVE, PASS, COPY, RELEASE, REFUSE, CONTROL = range(1, 7)
TX, RX = 0, 1
GENERIC, MASTER, SLAVE = 0, 1, 2
UNINITIALIZED, NONE, HALF, FULL = range(4)

PAGE = 4096
SEAL_SEAL, SEAL_SHRINK, SEAL_GROW, SEAL_WRITE, SEAL_FUTURE_WRITE = 1, 2, 4, 8, 16
F_ADD_SEALS = 1033
POOL_SEALS = SEAL_SHRINK | SEAL_GROW | SEAL_SEAL
BOX_SEALS = POOL_SEALS | SEAL_FUTURE_WRITE
TAIL, CONSUMED, REFUSED, SLEEP_DATA, SLEEP_SPACE, FILLED, EMPTIED, GRANTED = 64, 128, 136, 192, 256, 320, 384, 448
ENTRY = struct.Struct("<HHIIIQQ32s")
BOX = struct.Struct("<IIIIQ")
BOX_MAGIC, BOX_VERSION = 0x4254524E, 3


class Terms(NamedTuple):
    direction: int  # of the binder's end, as role is
    role: int
    trust: int
    meta_size: int
    slot_count: int
    stage_size: int

    def pack(self) -> bytes:
        return struct.pack("!BBBHII", *self)


def message(kind: int, form: str = "", *fields: Any, text: str | None = None, more: bytes = b"") -> bytes:
    data = b"BT" + bytes([1, kind]) + struct.pack("!" + form, *fields)
    if text is not None:
        data += struct.pack("!H", len(text.encode())) + text.encode()
    return data + more


def hello(trust: int = UNINITIALIZED, role: int = GENERIC, version: int = 1) -> bytes:
    return message(HELLO, "H16sBB", version, os.urandom(16), trust, role)


def answer(kind: int, request: int, code: int = 0, reason: str = "") -> bytes:
    return message(kind, "IH", request, code, text=reason)


def memory(size: int, seals: int = POOL_SEALS, *, sparse: bool = False) -> int:
    """A memfd."""
    fd = os.memfd_create("adversary", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    if not sparse and size:
        os.posix_fallocate(fd, 0, size)
    if seals:
        fcntl.fcntl(fd, F_ADD_SEALS, seals)
    return fd


def receive(sock: socket.socket, flags: int = socket.MSG_DONTWAIT) -> tuple[bytes, list[int]]:
    """A message and its descriptors (socket.recv_fds of Python 3.11 forgets its flags)."""
    data, rights, _, _ = sock.recvmsg(4096, socket.CMSG_SPACE(4 * 253), flags)
    fds = array.array("i")
    for level, kind, part in rights:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(part[: len(part) - len(part) % 4])
    return data, list(fds)


def box_size(terms: Terms, stage: bool) -> int:
    ring = -(-terms.slot_count * 64 // PAGE) * PAGE
    stride = -(-terms.meta_size // 64) * 64 if terms.meta_size > 32 else 0
    return PAGE + ring + -(-terms.slot_count * stride // PAGE) * PAGE + (terms.stage_size if stage else 0)


class Box:
    """An outbox of one's own, writable for good, as nobody but its owner should have it."""

    def __init__(self, terms: Terms, stage: bool) -> None:
        self.size = box_size(terms, stage)
        self.stage_at = self.size - terms.stage_size
        self.fd = memory(self.size, SEAL_SHRINK | SEAL_GROW)
        self.map = mmap.mmap(self.fd, self.size)
        stage_size = terms.stage_size if stage else 0
        BOX.pack_into(self.map, 0, BOX_MAGIC, BOX_VERSION, terms.slot_count, terms.meta_size, stage_size)

    def seal(self) -> None:
        fcntl.fcntl(self.fd, F_ADD_SEALS, SEAL_FUTURE_WRITE | SEAL_SEAL)

    def close_fd(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def close(self) -> None:
        self.map.close()
        self.close_fd()


class Entry(NamedTuple):
    kind: int
    flags: int
    slot: int
    index: int
    meta_size: int
    length: int
    serial: int
    meta: bytes


class End:
    """A socket, two outboxes, and no manners. As binder by default; `terms` are what the two sides agreed."""

    def __init__(self, sock: socket.socket, terms: Terms, own: Box, theirs: int, *, binder: bool = True) -> None:
        self.sock, self.terms, self.own = sock, terms, own
        self.source = (terms.direction == TX) == binder
        stage = bool(terms.stage_size) and not self.source
        self.theirs = mmap.mmap(theirs, box_size(terms, stage), prot=mmap.PROT_READ)
        os.close(theirs)
        self.tail = self.head = self.messages = self.staged = 0
        self.role = terms.role if binder else MASTER + SLAVE - terms.role

    # ---- words ----

    def store(self, at: int, value: int) -> None:
        struct.pack_into("<Q", self.own.map, at, value % 2**64)

    def load(self, at: int) -> int:
        return struct.unpack_from("<Q", self.theirs, at)[0]

    def slot_at(self, position: int) -> int:
        return PAGE + 64 * (position % self.terms.slot_count)

    # ---- entries ----

    def put(
        self, kind: int, *, flags: int = 0, slot: int = 0, index: int = 0, meta_size: int = 0, length: int = 0,
        serial: int = 0, meta: bytes = b"", bell: bool = True,
    ) -> None:  # fmt: skip
        """Publish an entry, whatever it says."""
        entry = (kind, flags, slot, index, meta_size or len(meta), length, serial, meta[:32])
        ENTRY.pack_into(self.own.map, self.slot_at(self.tail), *entry)
        self.tail += 1
        self.store(TAIL, self.tail)
        if bell:
            self.bell()

    def stage(self, data: bytes) -> int:
        """Put contents into the staging area (trust NONE); where they begin in its stream."""
        begin = self.staged
        at = self.own.stage_at + begin % self.terms.stage_size
        self.own.map[at : at + len(data)] = data
        self.staged += -(-len(data) // 64) * 64
        self.store(FILLED, self.staged)
        return begin

    def give(self, kind: int, slot: int, index: int, data: bytes = b"", *, length: int | None = None) -> None:
        """Move or copy as one should; at trust NONE with contents."""
        serial = self.stage(data) if self.terms.stage_size else 0
        self.put(kind, slot=slot, index=index, length=len(data) if length is None else length, serial=serial)

    def entries(self) -> Iterator[Entry]:
        """Take what the victim has published."""
        while self.head < self.load(TAIL):
            yield Entry(*ENTRY.unpack_from(self.theirs, self.slot_at(self.head)))
            self.head += 1
            self.store(CONSUMED, self.head)

    # ---- the socket ----

    def bell(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            self.sock.send(b"\1", socket.MSG_DONTWAIT)

    def send(self, data: bytes, fds: tuple[int, ...] | list[int] = ()) -> None:
        """Bytes with descriptors beside them; no entry announces them."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []
        self.sock.sendmsg([data], rights, socket.MSG_DONTWAIT)

    def say(self, data: bytes, fds: tuple[int, ...] | list[int] = ()) -> None:
        """A control message in its place."""
        self.send(data, fds)
        self.put(CONTROL, serial=self.messages)
        self.messages += 1

    def hear(self) -> tuple[bytes, list[int]] | None:
        """The next message that is no bell, and its descriptors, which are the caller's."""
        while True:
            try:
                data, fds = receive(self.sock)
            except BlockingIOError:
                return None
            if not data:
                return None
            if len(data) > 1:
                return data, fds

    # ---- as one should, for what leads up to an attack ----

    @property
    def first_slot(self) -> int:
        return 0 if self.role == MASTER else 1

    def request(
        self, *, request: int = 1, slot: int | None = None, pool: bytes = b"", count: int = 4, size: int = PAGE,
        trust: int | None = None, exposed: int = 0,
    ) -> bytes:  # fmt: skip
        slot = self.first_slot if slot is None else slot
        level = self.terms.trust if trust is None else trust
        return message(ASSIGN_REQUEST, "IH16sIQBB", request, slot, pool or os.urandom(16), count, size, level, exposed)

    def close(self) -> None:
        self.sock.close()
        self.own.close()
        self.theirs.close()


def make_end(sock: socket.socket, terms: Terms, theirs: int, *, binder: bool = True) -> End:
    """The end of whoever sits on `sock`, with an outbox of its own that the peer has still to get."""
    own = Box(terms, bool(terms.stage_size) and (terms.direction == TX) == binder)
    return End(sock, terms, own, theirs, binder=binder)


def read_welcome(data: bytes) -> Terms:
    """The first terms of a Welcome."""
    assert data[:4] == b"BT" + bytes([1, WELCOME]), data
    return Terms(*struct.unpack_from("!BBBHII", data, 21))


def libc() -> ctypes.CDLL:
    """The C library, for calls that Python lacks."""
    library = ctypes.CDLL(None, use_errno=True)
    library.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
    return library


errno = ctypes.get_errno
