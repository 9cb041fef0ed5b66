"""Where an attack takes place: a victim that uses the library, a friend that it goes on working with, and an End.

The victim's domain has a second channel, to a well-behaved peer. After each attack a buffer goes over it and back, and
when all is closed the process has the descriptors and the shared mappings that it had before.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import bulktransfer as bulk
from adversary import raw
from adversary.registry import Attack
from bulktransfer import Direction, EventKind, Trust
from worlds import PATIENCE_S, World, take

SETTLE_S = 10.0
COUNT = 4


class Standing(NamedTuple):
    """What a process holds of the kernel."""

    descriptors: tuple[str, ...]
    mappings: int


def standing() -> Standing:
    held = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            held.append(re.sub(r"\d+", "", os.readlink(f"/proc/self/fd/{name}")))
    with open("/proc/self/maps") as maps:
        shared = sum("memfd:" in line for line in maps)
    return Standing(tuple(sorted(held)), shared)


def resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096


def until(what: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    """Wait for it, looking a hundred times a second."""
    pause, end = threading.Event(), time.monotonic() + patience_s
    while not what():
        assert time.monotonic() < end, "it does not come about"
        pause.wait(0.01)


class Arena:
    """One attack's surroundings."""

    def __init__(self, level: str) -> None:
        self.level = level
        self.trust = Trust[level] if level in Trust.__members__ else Trust.FULL
        self.world = World("shm")
        self.victim = bulk.Domain()
        self.ends: list[Any] = []  # what the attacker has: sockets, Ends, descriptors
        self.saw: list[str] = []
        friend = bulk.Domain()
        self.tx, self.rx = self.world.channel(self.victim, friend)
        self.alloc = self.world.allocator(self.victim)
        self.world.assign(self.tx, self.rx, self.alloc.pool)

    def close(self) -> None:
        for thing in reversed(self.ends):
            if isinstance(thing, int):
                os.close(thing)
            else:
                thing.close()
        self.world.__exit__()
        self.ends.clear()

    # ---- the victim ----

    def create(self, direction: Direction = Direction.RX, **options: Any) -> Any:
        """The victim offers a channel."""
        options.setdefault("meta_size", 40)
        channel = bulk.create("shm:", direction=direction, trust=self.trust, domain=self.victim, **options)
        self.world.made.append(channel)
        return channel

    def serve(self, what: Callable[[], bool]) -> None:
        """The victim's domain is served, as by a thread that waits on some channel, until `what`."""
        assert self.tx.wait_for(what, PATIENCE_S), "it does not come about"

    def friends_go_on(self) -> None:
        """A buffer travels between the victim and its friend."""
        buffer = self.alloc.alloc()
        buffer.put(b"between friends")
        self.tx.move(buffer)
        got = take(self.rx, EventKind.MOVE_RECEIVED).buffer
        assert got.tobytes() == b"between friends"
        self.rx.pass_(got)
        self.alloc.free(take(self.tx, EventKind.BUFFER_RECEIVED).buffer)

    # ---- the attacker ----

    def keep(self, thing: Any) -> Any:
        """The attacker's, closed at the end."""
        self.ends.append(thing)
        return thing

    def connect(self, channel: Any) -> socket.socket:
        """A connection to the victim's endpoint, and not a word said. Raises: BlockingIOError (its backlog is full)."""
        sock = self.keep(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK))
        sock.connect(f"{os.environ['BULKTRANSFER_DIR']}/{channel.address.removeprefix('shm:')}")
        sock.setblocking(True)
        return sock

    def welcomed(self, channel: Any, **hello: Any) -> raw.End:
        """A binder that was welcomed; it has not confirmed."""
        sock = self.connect(channel)
        sock.send(raw.hello(**hello))
        self.serve(lambda: channel.state is bulk.ChannelState.BIND_NEGOTIATE)
        data, fds = raw.receive(sock, 0)
        return self.keep(raw.make_end(sock, raw.read_welcome(data), fds[0]))

    def confirm(self, end: raw.End, channel: Any) -> None:
        end.own.seal()
        end.send(raw.message(raw.CONFIRM), [end.own.fd])
        end.own.close_fd()
        self.serve(lambda: channel.state is bulk.ChannelState.CONNECTED)
        take(channel, EventKind.BIND_RECEIVED)

    def meet(self, direction: Direction = Direction.RX, **options: Any) -> tuple[Any, raw.End]:
        """A connected channel: the victim's end and the attacker's."""
        channel = self.create(direction, **options)
        end = self.welcomed(channel)
        self.confirm(end, channel)
        return channel, end

    def offer(self, channel: Any, end: raw.End, *, request: int = 1, slot: int | None = None, **shape: Any) -> None:
        """Ask the victim to take a pool, and hear its yes."""
        end.say(end.request(request=request, slot=slot, **{"pool": os.urandom(16), **shape}))
        self.answered(channel, end, raw.ASSIGN_ANSWER, request)

    def answered(self, channel: Any, end: raw.End, kind: int, request: int, code: int | None = 0) -> list[int]:
        """The victim's answer to a request comes; the descriptors beside it."""
        found: list[tuple[bytes, list[int]]] = []

        def look() -> bool:
            for _ in end.entries():
                pass
            heard = end.hear()
            if heard is not None:
                found.append(heard)
            return bool(found) or channel.ended is not None

        self.serve(look)
        assert found, channel.ended
        data, fds = found[0]
        assert data[3] == kind, data
        assert int.from_bytes(data[4:8]) == request, data
        if code is not None:
            assert int.from_bytes(data[8:10]) == code, data
        return fds

    def pool_memory(self, size: int = COUNT * raw.PAGE) -> list[int]:
        """What goes beside an AssignMemory: a proper memfd and lease where memory is shared, nothing where not."""
        if self.trust is Trust.NONE:
            return []
        read_end, write_end = os.pipe2(os.O_NONBLOCK)
        memfd = raw.memory(size)
        self.ends += [read_end, write_end, memfd]
        return [memfd, write_end]

    def bring_pool(self, channel: Any, end: raw.End, **shape: Any) -> tuple[Any, list[int]]:
        """A pool of the attacker comes onto the channel; the pool as the victim has it, and its memfd."""
        self.offer(channel, end, **shape)
        given = self.pool_memory()
        end.say(raw.message(raw.ASSIGN_MEMORY, "I", 1), given)
        for fd in self.answered(channel, end, raw.ASSIGN_DONE, 1):
            os.close(fd)
        return take(channel, EventKind.POOL_ASSIGNED).pool, given

    def lend_pool(self, channel: Any, end: raw.End, count: int = COUNT) -> tuple[Any, int]:
        """A pool of the victim comes onto the channel; its allocator, and its number there."""
        alloc = self.world.allocator(self.victim, count=count)
        outcomes: list[Any] = []
        channel.assign_pool(alloc.pool, done=outcomes.append)
        data, fds = self.heard(end)
        assert data[3] == raw.ASSIGN_REQUEST
        request, slot = int.from_bytes(data[4:8]), int.from_bytes(data[8:10])
        end.say(raw.answer(raw.ASSIGN_ANSWER, request))
        self.serve(lambda: next(iter(()), True))
        data, fds = self.heard(end)
        assert data[3] == raw.ASSIGN_MEMORY
        self.ends += fds
        end.say(raw.answer(raw.ASSIGN_DONE, request))
        self.serve(lambda: bool(channel.pools))
        with contextlib.suppress(bulk.WouldBlock):
            channel.receive_nowait()
        assert outcomes[0].error is None
        return alloc, slot

    def heard(self, end: raw.End) -> tuple[bytes, list[int]]:
        """The next message from the victim."""
        found: list[tuple[bytes, list[int]]] = []

        def look() -> bool:
            for _ in end.entries():
                pass
            heard = end.hear()
            if heard is not None:
                found.append(heard)
            return bool(found)

        self.serve(look)
        return found[0]

    # ---- how it went ----

    def note(self, text: str) -> None:
        self.saw.append(text)

    def broken(self, channel: Any, words: str, error: type[bulk.BulkError] = bulk.ProtocolViolation) -> list[Any]:
        """The victim's channel ends so, for this reason; what it received before."""
        events = []
        try:
            while True:
                events.append(channel.receive(PATIENCE_S))
        except error as ended:
            assert re.search(words, str(ended)), ended
            self.note(f"{type(ended).__name__}: {getattr(ended, 'reason', '') or ended}")
        assert channel.state is bulk.ChannelState.CLOSED
        return events

    def goes_on(self, channel: Any, end: raw.End, slot: int | None = None) -> None:
        """The attacked channel still works: a buffer goes to the victim and comes back."""
        slot = end.first_slot if slot is None else slot
        end.give(raw.MOVE, slot, COUNT - 1, b"still here")
        got = take(channel, EventKind.MOVE_RECEIVED).buffer
        channel.pass_(got)
        assert [entry for entry in end.entries() if entry.kind == raw.PASS][-1].index == COUNT - 1
        self.note("the channel goes on")


class Result(NamedTuple):
    attack: Attack
    level: str
    outcome: str


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """Afterwards this process holds what it held before."""
    gc.collect()
    before = standing()
    yield

    def same() -> bool:
        gc.collect()
        return standing() == before

    end = time.monotonic() + SETTLE_S
    pause = threading.Event()
    while not same():
        assert time.monotonic() < end, f"left behind: {standing()} after {before}"
        pause.wait(0.02)


def strike(attack: Attack, level: str) -> Result:
    """Do one attack; fails where the victim did not stay correct."""
    with nothing_left():
        outcome = _strike(attack, level)
    return Result(attack, level, outcome)


def _strike(attack: Attack, level: str) -> str:
    arena = Arena(level)
    try:
        attack.run(arena)
        arena.friends_go_on()
    finally:
        arena.close()
    return "; ".join(dict.fromkeys(arena.saw)) or "nothing happened"
