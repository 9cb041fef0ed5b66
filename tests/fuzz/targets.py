"""What is fuzzed in Python: each target takes bytes, and fails on anything but the errors that the parser promises.

Knows: the parsers and their promises. Must not know: where the bytes come from.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

Fuzz = Callable[[bytes], None]


class Target(NamedTuple):
    """One parser: how to fuzz it, and the modules whose coverage counts."""

    make: Callable[[], AbstractContextManager[Fuzz]]
    modules: tuple[str, ...]
    size_max: int = 2100


@contextlib.contextmanager
def control() -> Iterator[Fuzz]:
    """Control messages: what decodes is what its own encoding says, byte for byte."""
    from bulktransfer.errors import ProtocolViolation
    from bulktransfer.wire.control import CODEC

    def fuzz(data: bytes) -> None:
        try:
            message = CODEC.decode(data)
        except ProtocolViolation:
            return
        assert CODEC.encode(message) == data, message

    yield fuzz


@contextlib.contextmanager
def frames() -> Iterator[Fuzz]:
    """Frames between machines, in any pieces: the reader holds no more than it says."""
    from bulktransfer.errors import ProtocolViolation
    from bulktransfer.wire.frames import HEAD_SIZE, Reader

    def fuzz(data: bytes) -> None:
        if not data:
            return
        step, data = data[0] + 1, data[1:]
        whole, pieces = Reader(), Reader()
        try:
            expected = list(whole.feed(data))
        except ProtocolViolation:
            expected = None
        found = []
        with contextlib.suppress(ProtocolViolation):
            for at in range(0, len(data), step):
                found += pieces.feed(data[at : at + step])
                assert pieces.wanted <= HEAD_SIZE + 4096
            assert expected is None or found == expected
        if expected is not None:
            packed = b"".join(frame.pack() for frame in expected)
            assert data.startswith(packed)

    yield fuzz


@contextlib.contextmanager
def greeting() -> Iterator[Fuzz]:
    """Greetings of both sides, with and without a secret, in whole pieces as `wanted` asks for them."""
    from bulktransfer.errors import BindRefusedError, ProtocolViolation
    from bulktransfer.wire.greeting import BinderGreeting, CreatorGreeting

    secret = b"sixteen bytes or more, in a file"

    def fuzz(data: bytes) -> None:
        for side in (
            CreatorGreeting(), CreatorGreeting(secret), CreatorGreeting(tokens={b"t" * 16: {1, 2}}),
            BinderGreeting(), BinderGreeting(secret), BinderGreeting(token=b"t" * 16, index=1),
        ):  # fmt: skip
            at = 0
            with contextlib.suppress(ProtocolViolation, BindRefusedError):
                while not side.done and at + side.wanted <= len(data) and not getattr(side, "refusal", ""):
                    piece = data[at : at + side.wanted]
                    at += len(piece)
                    side.feed(piece)
                    side.take_outgoing()
            assert not (side.done and side.secret), "somebody proved a secret that he has not"

    yield fuzz


@contextlib.contextmanager
def nbd_negotiation() -> Iterator[Fuzz]:
    """NBD's options: every byte is taken or the connection ends, and each answer is one."""
    from bulktransfer import block
    from bulktransfer.block.nbd import wire
    from bulktransfer.block.nbd.negotiation import NbdViolation, Negotiation, Tls
    from bulktransfer.block.nbd.server import ExportTable

    table = ExportTable({"": block.MemoryStore(1 << 20), "disk": block.MemoryStore(1 << 20)}, description="a disk")

    def fuzz(data: bytes) -> None:
        if not data:
            return
        talk = Negotiation(table, tls=list(Tls)[data[0] % 3])
        out = b""
        try:
            out = talk.receive(data[1:])
        except NbdViolation:
            return
        if talk.wants_tls:
            talk.secured()
        while out and talk.agreement is None:
            magic, _, _, length = wire.OPTION_REPLY.unpack_from(out)
            assert magic == wire.OPTION_REPLY_MAGIC
            out = out[wire.OPTION_REPLY.size + length :]

    yield fuzz


@contextlib.contextmanager
def nbd_requests() -> Iterator[Fuzz]:
    """NBD's requests: what is not refused lies within the export."""
    from bulktransfer.block.nbd.negotiation import Agreement, Facts, NbdViolation
    from bulktransfer.block.nbd.transmission import Transmission

    size = 1 << 20
    lines = [
        Transmission(Agreement(Facts("", size, flags, 4096), structured, extended, True, b""))
        for flags in (1, 3)
        for structured, extended in ((False, False), (True, False), (True, True))
    ]

    def fuzz(data: bytes) -> None:
        for line in lines:
            head = struct.pack(">I", line.magic)
            if len(data) < line.header.size - 4:
                continue
            try:
                request = line.parse(head + data, 0)
                payload = line.payload(request)
            except NbdViolation:
                continue
            assert payload <= 1 << 30
            if line.judge(request) is None:
                assert request.offset + request.length <= size
                assert line.writable or request.command not in (1, 4, 6)

    yield fuzz


@contextlib.contextmanager
def block_messages() -> Iterator[Fuzz]:
    """Messages of the block service."""
    from bulktransfer.block.service.messages import Malformed, unpack_answer, unpack_message

    def fuzz(data: bytes) -> None:
        with contextlib.suppress(Malformed):
            assert unpack_message(data).pack()[:2] == data[:2]
        with contextlib.suppress(Malformed):
            unpack_answer(data)

    yield fuzz


@contextlib.contextmanager
def letters() -> Iterator[Fuzz]:
    """Letters of Pipe and Queue as far as they are taken apart before anything is unpickled."""
    from bulktransfer import ProtocolViolation
    from bulktransfer.objects import serial

    memory = os.memfd_create("letters", os.MFD_ALLOW_SEALING)
    os.ftruncate(memory, 1 << 16)
    fcntl.fcntl(memory, 1033, 2)  # F_ADD_SEALS, F_SEAL_SHRINK

    def fuzz(data: bytes) -> None:
        at = min(len(data), 64)
        os.pwrite(memory, data[at:][: 1 << 12], 0)
        with contextlib.suppress(ProtocolViolation, OSError):
            stream, buffers = serial._taken_apart(data[:at], memory)
            for part in (stream, *buffers):  # which may overlap where the letter lies
                assert part.nbytes <= (1 << 16) + at

    try:
        yield fuzz
    finally:
        os.close(memory)


@contextlib.contextmanager
def labels() -> Iterator[Fuzz]:
    """What travels beside an array: dtype, shape, meta data."""
    from bulktransfer.streams import label

    def fuzz(data: bytes) -> None:
        with contextlib.suppress(ValueError):
            found = label.unpack(data, int.from_bytes(data[:2], "little"))
            assert found.size == int.from_bytes(data[:2], "little")

    yield fuzz


@contextlib.contextmanager
def names() -> Iterator[Fuzz]:
    """Addresses and names, which come from files and from name services."""
    from bulktransfer.backends import _net_address, _shm_node
    from bulktransfer.names.service import check_name

    def fuzz(data: bytes) -> None:
        text = data.decode(errors="surrogateescape")
        with contextlib.suppress(ValueError):
            check_name("fuzz", text)
        with contextlib.suppress(ValueError):
            place = _shm_node.place_of("fuzz", f"shm:{text}")
            assert "/" not in place.name
            assert "\0" not in place.name
        for scheme in ("tcp", "tls"):
            with contextlib.suppress(ValueError, OSError):
                assert 0 <= _net_address.place_of("fuzz", scheme, f"{scheme}://{text}", None).port < 1 << 16

    yield fuzz


@contextlib.contextmanager
def channel() -> Iterator[Fuzz]:
    """A whole channel below the library: entries, control messages and shared words from the bytes, at each level."""
    from fuzz.channel import Victim

    with Victim() as victim:
        yield victim.fuzz


CORE = ("answer", "assign", "requests", "plane", "ending", "setup", "leases", "memory", "line")

TARGETS: dict[str, Target] = {
    "control": Target(control, ("bulktransfer.wire.control",)),
    "frames": Target(frames, ("bulktransfer.wire.frames",)),
    "greeting": Target(greeting, ("bulktransfer.wire.greeting",), 128),
    "nbd_negotiation": Target(nbd_negotiation, ("bulktransfer.block.nbd.negotiation",), 600),
    "nbd_requests": Target(nbd_requests, ("bulktransfer.block.nbd.transmission",), 64),
    "block_messages": Target(block_messages, ("bulktransfer.block.service.messages",), 64),
    "letters": Target(letters, ("bulktransfer.objects.serial",), 300),
    "labels": Target(labels, ("bulktransfer.streams.label",)),
    "names": Target(names, ("bulktransfer.backends._net_address", "bulktransfer.backends._shm_node"), 200),
    "channel": Target(channel, tuple(f"bulktransfer.core.{name}" for name in CORE), 400),
}


def modules(target: Target) -> list[Any]:
    return [importlib.import_module(name) for name in target.modules]
