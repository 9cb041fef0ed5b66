"""Attacks on fullcopy: alone: descriptors beside the bytes of a stream, through which nothing but bytes is to come."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
from collections.abc import Iterator
from typing import Any

import bulktransfer as bulk
import foreign
from adversary import raw
from adversary.arena import until
from adversary.floods import held_up
from adversary.network import bound, create, meet, receive_all
from adversary.registry import BOUNDED, KEPT_OUT, STREAM, VIOLATION, attack
from bulktransfer import ChannelState, EventKind
from foreign import HEAD, SETUP
from worlds import take, together

BESIDE = "descriptors beside the bytes"
NOTE = HEAD.pack(foreign.NOTE, *[0] * 9)


def broken(arena: Any, channel: Any) -> None:
    """The victim's channel ends for that reason."""
    try:
        receive_all(channel)
    except bulk.ProtocolViolation as ended:
        assert BESIDE in (ended.reason or ""), ended
        arena.note(f"ProtocolViolation: {ended.reason}")
    assert channel.state is ChannelState.CLOSED


@contextlib.contextmanager
def full_table() -> Iterator[None]:
    """This process can have no further descriptor meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    fill: list[int] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 2, hard))
        with contextlib.suppress(OSError):
            while True:
                fill.append(os.open("/dev/null", os.O_RDONLY))
        yield
    finally:
        for fd in fill:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@attack(STREAM, VIOLATION)
def descriptors_beside_the_bytes_of_a_stream(arena):
    """Fill the victim's descriptor table: one of them or 253 beside a head, and beside contents, those also that land
    nowhere."""
    junk = arena.keep(raw.memory(4096))
    move = HEAD.pack(foreign.MOVE, 0, 0, 1, 0, 0, 8192, 0, 0, 0)
    for count, opening in ((1, b""), (253, b""), (253, move), (253, move + bytes(8192) + move)):
        channel, stranger = meet(arena)
        before = len(os.listdir("/proc/self/fd"))
        if opening:
            taken = stranger.taken.to_bytes(8, "big")
            opening = opening.replace(move, move[:32] + taken + move[40:])
            stranger.sock.sendall(opening)
        if len(opening) > 8192:  # the buffer is there, and the same comes once more
            take(channel, EventKind.MOVE_RECEIVED)
        socket.send_fds(stranger.sock, [bytes(100) if opening else NOTE], [junk] * count)
        broken(arena, channel)
        assert len(os.listdir("/proc/self/fd")) <= before


@attack(STREAM, VIOLATION)
def descriptors_beside_a_stream_when_none_is_left(arena):
    """Have the kernel lose them: the victim's descriptor table is full when they come."""
    junk = arena.keep(raw.memory(4096))
    channel, stranger = meet(arena)
    before = len(os.listdir("/proc/self/fd"))
    with full_table():
        socket.send_fds(stranger.sock, [NOTE], [junk] * 20)
        broken(arena, channel)
    assert len(os.listdir("/proc/self/fd")) <= before


@attack(STREAM, KEPT_OUT)
def descriptors_beside_a_greeting(arena):
    """The same before there is a channel: beside the greeting, beside the first message, beside the last."""
    junk = arena.keep(raw.memory(4096))
    channel, path = create(arena)
    before = len(os.listdir("/proc/self/fd"))
    sock = arena.keep(foreign.connect(path))
    socket.send_fds(sock, [foreign.PREFACE.pack(b"bulktran", 1, 0, 0, 0, 0, bytes(16), bytes(16))], [junk] * 253)
    gone(arena, sock)
    for confirms in (False, True):
        stranger = welcomed(arena, channel, path) if confirms else greeted(arena, path)
        socket.send_fds(stranger.sock, [HEAD.pack(SETUP, 0, 0, 0, 0, 0, 4, 0, 0, 0)], [junk] * 253)
        gone(arena, stranger.sock)
    assert len(os.listdir("/proc/self/fd")) <= before + 3  # the attacker's own
    bound(arena, channel, path)
    arena.note("an honest binder gets in")


def gone(arena: Any, sock: socket.socket) -> None:
    """The victim hangs up on that one."""
    sock.setblocking(False)
    heard: list[bytes] = []

    def look() -> bool:
        arena.victim.serve()
        with contextlib.suppress(BlockingIOError):
            heard.append(sock.recv(4096))
        return bool(heard) and not heard[-1]

    with contextlib.suppress(ConnectionError):
        until(look)


def greeted(arena: Any, path: int | str) -> foreign.Wire:
    """A stranger whose greeting was answered, and who says no more."""
    met: list[foreign.Wire] = []

    def look() -> bool:
        arena.victim.serve()
        return bool(met)

    together(lambda: met.append(foreign.Wire(path)), lambda: until(look))
    arena.keep(met[0].sock)
    return met[0]


def welcomed(arena: Any, channel: Any, path: int | str) -> foreign.Binder:
    """A stranger that could be let in, and does not say yes yet."""
    waiting = lambda: arena.serve(lambda: channel.state is ChannelState.BIND_NEGOTIATE)  # noqa: E731
    stranger, _ = together(lambda: foreign.Binder(path, confirms=False), waiting)
    arena.keep(stranger.sock)
    return stranger


def helper_goes_on(arena: Any) -> None:
    """Another channel, which ends, is seen off."""
    channel, path = create(arena)
    stranger = bound(arena, channel, path)
    channel.close()
    while stranger.sock.recv(65536):
        continue
    arena.note("the helper goes on")


@attack(STREAM, BOUNDED)
def a_descriptor_that_sticks_to_a_stream(arena):
    """Hang the victim or its helper thread in close(): hand over a TCP socket that lingers, whose last owner it
    becomes, beside the greeting, beside the first frame, unread when the channel ends, unread when the address does."""

    def greet(sock: socket.socket) -> None:
        other = arena.keep(foreign.connect(path))
        socket.send_fds(other, [b"x" * 48], [sock.fileno()])
        sock.close()
        gone(arena, other)

    def begin(sock: socket.socket, ends: bool = False) -> None:
        stranger = welcomed(arena, channel, path)
        stranger.send(SETUP, body=foreign.message(foreign.CONFIRM))
        if ends:  # a head that is none, and more than is read at once: what comes behind it is not read
            stranger.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 19)
            stranger.sock.sendall(bytes(48 + (1 << 17)))
        socket.send_fds(stranger.sock, [NOTE], [sock.fileno()])  # before anybody reads, so that the victim is the last
        sock.close()
        arena.serve(lambda: channel.state is not ChannelState.BIND_NEGOTIATE)
        if ends:
            channel.close()
        else:
            broken(arena, channel)
        helper_goes_on(arena)

    def knock(sock: socket.socket) -> None:
        for _ in range(3):
            socket.send_fds(arena.keep(foreign.connect(path)), [b"x"], [sock.fileno()])
        sock.close()
        channel.close()

    for strike in (greet, begin, lambda sock: begin(sock, ends=True), knock):
        channel, path = create(arena)
        held_up(arena, strike)
        channel.close()
