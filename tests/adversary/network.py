"""Attacks in the words of the network, also over a stream of this machine: heads that lie, greetings that are none,
connections that hold on and say nothing.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import ssl
import tempfile
from pathlib import Path
from typing import Any

import bulktransfer as bulk
import foreign
from adversary.arena import resident_bytes
from adversary.registry import BOUNDED, KEPT_OUT, NET, VIOLATION, attack
from bulktransfer import Direction, EventKind, Limits, Trust
from certificates import Authority
from foreign import HEAD
from worlds import PATIENCE_S, take, together

POOL = bytes(range(16))


@functools.cache
def papers() -> tuple[str, Any]:
    """An authority and what it vouches for, made once a process."""
    authority = Authority(Path(tempfile.mkdtemp(prefix="bulk-papers-")))
    return authority.certificate, authority.papers("creator")


def create(arena: Any, **options: Any) -> tuple[Any, int | str]:
    """The victim offers a channel; its port or path."""
    network = None
    if arena.level == "tls":
        network = bulk.Network(certificate=papers()[1].certificate, key=papers()[1].key)
    options.setdefault("direction", Direction.RX)
    channel = bulk.create(f"{arena.level}:", trust=Trust.NONE, domain=arena.victim, network=network, **options)
    arena.world.made.append(channel)
    name = channel.address.rpartition(":")[2]
    return channel, f"{os.environ['BULKTRANSFER_DIR']}/fullcopy-{name}" if arena.level == "fullcopy" else int(name)


def context(arena: Any) -> Any:
    return ssl.create_default_context(cafile=papers()[0]) if arena.level == "tls" else None


def bound(arena: Any, channel: Any, port: int | str) -> foreign.Binder:
    """A stranger that is let in."""
    stranger, _ = together(lambda: foreign.Binder(port, tls=context(arena)), lambda: channel.wait_bound(PATIENCE_S))
    arena.keep(stranger.sock)
    return stranger


def meet(arena: Any, **options: Any) -> tuple[Any, foreign.Binder]:
    """The victim's sink, and a stranger that has assigned a pool of 3 buffers of 8192 bytes to it, under slot 1."""
    channel, port = create(arena, **options)
    stranger = bound(arena, channel, port)
    pool = os.urandom(16)
    together(lambda: [stranger.assign(1, pool, 3, 8192)], lambda: take(channel, EventKind.POOL_ASSIGNED))
    return channel, stranger


def receive_all(channel: Any) -> None:
    """Receive until that raises."""
    while True:
        channel.receive(PATIENCE_S)


def raw(stranger: Any, kind: int, **fields: int) -> None:
    """Send a head as it is, whatever it says."""
    names = ("flags", "meta_size", "slot", "index", "extra", "length", "serial", "consumed", "refused")
    values = {"consumed": stranger.taken, **fields}
    stranger.sock.sendall(HEAD.pack(kind, *[values.get(name, 0) for name in names]))


WRONG: dict[str, tuple[int, dict[str, int]]] = {
    "unknown kind": (0, {}),
    "set-up after set-up": (foreign.SETUP, {"length": 4}),
    "unknown flags": (foreign.NOTE, {"flags": 2}),
    "an index beyond what was sent": (foreign.NOTE, {"consumed": 1000}),
    "an index that goes back": (foreign.NOTE, {"consumed": 0}),
    "refusals of what was not taken": (foreign.NOTE, {"refused": 99}),
    "a pool that is not assigned": (foreign.MOVE, {"slot": 3}),
    "a pool far beyond": (foreign.MOVE, {"slot": 2**31}),
    "a buffer beyond the pool": (foreign.MOVE, {"slot": 1, "index": 3}),
    "a length beyond the buffer": (foreign.MOVE, {"slot": 1, "length": 8193}),
    "a length beyond everything": (foreign.MOVE, {"slot": 1, "length": 2**64 - 1}),
    "more meta data than the channel takes": (foreign.MOVE, {"slot": 1, "meta_size": 33}),
    "a transfer of the other end": (foreign.PASS, {"slot": 1}),
    "a release of the other end": (foreign.RELEASE, {"slot": 1}),
    "a refusal of what was not sent": (foreign.REFUSE, {"slot": 1, "extra": 19 << 16 | 2, "serial": 99}),
    "a message with a wrong number": (foreign.CONTROL, {"length": 4, "serial": 77}),
    "a message that is none": (foreign.CONTROL, {"length": 4, "serial": 2}),
}


@attack(NET, VIOLATION)
def heads_that_lie(arena):
    """Send frames of unknown kinds and flags, indices beyond what was sent or gone back, pools, buffers, lengths and
    meta data out of range, transfers of the other end, refusals of nothing, messages that are none."""
    for kind, fields in WRONG.values():
        channel, stranger = meet(arena, meta_size=32)
        raw(stranger, kind, **fields)
        with contextlib.suppress(ConnectionError):
            stranger.sock.sendall(bytes(64))  # what may follow a head
        try:
            receive_all(channel)
        except bulk.ProtocolViolation as broken:
            assert broken.reason
            arena.note(f"ProtocolViolation: {broken.reason}")
        assert channel.state is bulk.ChannelState.CLOSED
    arena.saw[:] = [f"ProtocolViolation, {len(arena.saw)} of {len(WRONG)} rules named"]


@attack(NET, KEPT_OUT)
def a_greeting_that_is_none(arena):
    """Say nothing, HTTP, zeros, another version, garbage in place of TLS, an invitation that nobody made."""
    channel, port = create(arena, limits=Limits(handshake_s=0.2))
    preface = foreign.PREFACE.pack(b"bulktran", 1, 1, 0, 5, 0, bytes(16), b"t" * 16)
    for said in (
        b"", b"GET / HTTP/1.1\r\n\r\n" + bytes(64), bytes(48), b"bulktran" + bytes(40), os.urandom(200), preface,
        b"\x16\x03\x01\xff\xff" + os.urandom(400), b"\x16\x03\x01\x00\x05hello",
    ):  # fmt: skip
        sock = arena.keep(foreign.connect(port))
        sock.sendall(said)
        arena.victim.serve()
    bound(arena, channel, port)
    arena.note("an honest binder gets in")


@attack(NET, KEPT_OUT)
def a_flood_of_half_open_connections_from_the_network(arena):
    """Connect a hundred times and say nothing, or one byte at a time."""
    channel, port = create(arena, limits=Limits(half_open=8, handshake_s=0.3))
    for number in range(100):
        sock = arena.keep(socket.socket(socket.AF_INET if isinstance(port, int) else socket.AF_UNIX))
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            sock.connect(("127.0.0.1", port) if isinstance(port, int) else port)
        if number % 2:
            with contextlib.suppress(OSError):
                sock.send(b"b")
        if number % 10 == 0:
            arena.victim.serve()
    assert len(channel.reception.candidates) <= 8
    arena.note("8 at a time")
    bound(arena, channel, port)
    arena.note("an honest binder gets in")


@attack(NET, BOUNDED)
def a_peer_that_stops_reading_the_stream(arena):
    """Take nothing of what the victim sends: its calls return, and destroy has its deadline."""
    channel, port = create(arena, direction=Direction.TX)
    stranger = bound(arena, channel, port)
    alloc = arena.world.allocator(arena.victim, count=4, size=8 << 20)
    together(stranger.take_pool, lambda: channel.assign_pool(alloc.pool))
    for buffer in alloc.alloc_many(4):
        channel.move(buffer)
    try:
        channel.destroy(timeout=0.2)
    except (bulk.BrokenChannelError, TimeoutError) as error:
        arena.note(type(error).__name__)
    else:
        raise AssertionError("destroyed in order")


@attack(NET, VIOLATION)
def questions_over_the_network_whose_answers_nobody_reads(arena):
    """Fill the victim's memory with refusals and answers: ask for what it has to refuse, and read nothing."""
    channel, stranger = meet(arena)
    before = resident_bytes()
    stranger.sock.settimeout(0.2)
    number = 100
    try:
        while number < 200_000:
            for _ in range(200):
                body = foreign.message(foreign.ASSIGN_REQUEST, "IH16sIQBB", number, 3, POOL, 1, 1, foreign.NONE, 0)
                stranger.control(body)
                number += 1
            arena.victim.serve()
            with contextlib.suppress(bulk.WouldBlock):
                channel.receive_nowait()
            if channel.ended is not None:
                break
    except (bulk.BulkError, OSError) as error:
        arena.note(f"{type(error).__name__} after {number - 100} questions")
    assert number < 200_000, "all were answered"
    assert resident_bytes() - before < 200 << 20, (resident_bytes() - before) >> 20
    channel.close()
