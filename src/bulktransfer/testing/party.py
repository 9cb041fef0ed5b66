"""One domain that does what it is told: its channels, pools and buffers have numbers, so that orders can travel.

Knows: the public names. Must not know: which process it is in, or who gives the orders.
"""

from __future__ import annotations

import ctypes
import os
from collections import defaultdict, deque
from typing import Any, NamedTuple

import bulktransfer as bulk
from bulktransfer import BufferState, Direction, EventKind, Role, Trust

from .subject import Subject

PATIENCE_S = 30.0  # bounds a wait that only a bug makes last

SENDS = {"move": "move", "copy": "copy", "pass": "pass_", "release": "release"}


class Arrived(NamedTuple):
    """An event, in plain data; `pool` and `buffer` are numbers, -1 where there is none."""

    kind: str
    pool: int = -1
    buffer: int = -1
    meta: bytes = b""
    error: str = ""
    away: tuple[int, ...] = ()  # the buffers that a channel's end left with others


class Seen(NamedTuple):
    """A buffer as its domain sees it; `data` is None where it may not be read."""

    state: str
    out: int
    held: int
    exports: int
    length: int
    data: bytes | None


class Line(NamedTuple):
    """A channel as one end sees it: state, transfers and refusals that it took, those it refused, messages, pools."""

    state: str
    taken: int
    refused: int
    control: int
    pools: tuple[int, ...]


class Survey(NamedTuple):
    """All that a party has: channels, buffers by pool, detached buffers by allocator; what continuations were told."""

    lines: dict[int, Line]
    pools: dict[int, list[Seen]]
    detached: dict[int, int]
    outcomes: list[tuple[str, str]]


class Party:
    """A domain, and what it has, by number."""

    def __init__(self, subject: Subject) -> None:
        subject.prepare()
        self.subject = subject
        self.domain = bulk.Domain()
        self.channels: dict[int, bulk.Channel] = {}
        self.pools: dict[int, bulk.Pool] = {}
        self.allocators: dict[int, bulk.Allocator] = {}
        self.views: list[Any] = []
        self.outcomes: list[tuple[str, str]] = []
        self.consented: defaultdict[int, deque[Arrived]] = defaultdict(deque)

    # ---- channels and pools ----

    def create(self, number: int, tx: bool, trust: str, role: str = "GENERIC", **options: Any) -> str:
        """One end of a new channel; its address."""
        options |= self._consenting(number, options)
        limits = bulk.Limits(slot_count=options.pop("slots")) if "slots" in options else None
        channel = bulk.create(
            self.subject.address,
            direction=Direction.TX if tx else Direction.RX,
            trust=Trust[trust],
            role=Role[role],
            limits=limits,
            domain=self.domain,
            **self.subject.create,
            **options,
        )
        self.channels[number] = channel
        return channel.address

    def bind(self, number: int, address: str, **options: Any) -> None:
        """The other end."""
        options = {"timeout": PATIENCE_S, **self.subject.bind, **options}
        options |= self._consenting(number, options)
        self.channels[number] = bulk.bind(address, domain=self.domain, **options)

    def _consenting(self, number: int, options: dict[str, Any]) -> dict[str, Any]:
        """With `consent=True` every pool is welcome there, also one that is here through somebody else (rule 4)."""
        if not options.pop("consent", False):
            return {}
        consented = self.consented[number]
        return {"callbacks": bulk.Callbacks(pool_assigned=lambda event: consented.append(self._plain(event)))}

    def wait_bound(self, number: int) -> None:
        """Until the other end is there."""
        self.channels[number].wait_bound(PATIENCE_S)

    def allocate(self, pool: int, count: int, size: int = 4096) -> None:
        """A pool, all of whose buffers are taken off the free list."""
        self.allocators[pool] = allocator = bulk.Allocator(count=count, size=size, domain=self.domain)
        self.pools[pool] = allocator.pool
        allocator.alloc_many(count)

    def assign(self, number: int, pool: int) -> None:
        """Bring a pool onto a channel, and wait until the other side has it."""
        self.channels[number].assign_pool(self.pools[pool], timeout=PATIENCE_S, **self.subject.assign)

    def take_pool(self, number: int, pool: int) -> None:
        """Receive the event that a pool came; from now on it has this number here."""
        event = self.channels[number].receive(PATIENCE_S)
        if event.kind is not EventKind.POOL_ASSIGNED:
            raise AssertionError(f"{event.kind} where a pool was due")
        self.pools[pool] = event.pool

    def ask(self, act: str, number: int, pool: int = -1) -> None:
        """Ask for a pool to come or go ("assign", "remove"), or for the end ("destroy"), without waiting."""
        channel = self.channels[number]
        if act == "destroy":
            channel.destroy(timeout=None, done=self._done)
        elif act == "assign":
            channel.assign_pool(self.pools[pool], timeout=None, done=self._done, **self.subject.assign)
        else:
            channel.remove_pool(self.pools[pool], timeout=None, done=self._done)

    def _done(self, outcome: bulk.Outcome) -> None:
        self.outcomes.append((outcome.operation, _name(outcome.error)))

    def took(self) -> list[tuple[str, str]]:
        """The outcomes of what was asked, since the last time: (operation, error or nothing)."""
        taken, self.outcomes = self.outcomes, []
        return taken

    # ---- transfers ----

    def send(self, act: str, number: int, pool: int, buffer: int, meta: bytes = b"") -> None:
        """Move, copy, pass or release."""
        call = getattr(self.channels[number], SENDS[act])
        if act == "release":
            call(self.pools[pool][buffer])
        else:
            call(self.pools[pool][buffer], meta)

    def full_copy(self, number: int, pool: int, buffer: int, into: int) -> None:
        """Copy into another buffer, and move that one."""
        self.channels[number].full_copy(self.pools[pool][buffer], self.pools[pool][into])

    def put(self, pool: int, buffer: int, data: bytes) -> None:
        """Write."""
        self.pools[pool][buffer].put(data)

    def read(self, pool: int, buffer: int) -> bytes:
        """The valid bytes."""
        return self.pools[pool][buffer].tobytes()

    def receive(self, number: int, timeout: float | None = PATIENCE_S) -> Arrived | None:
        """The next event; with a timeout of 0, None if there is none. What a callback was told of comes first.

        Raises: the channel's end.
        """
        channel, consented = self.channels[number], self.consented[number]
        if consented:
            return consented.popleft()
        try:
            event = channel.receive_nowait() if timeout == 0 else channel.receive(timeout)
        except bulk.WouldBlock:
            return consented.popleft() if consented else None
        return self._plain(event)

    def _plain(self, event: bulk.Event) -> Arrived:
        pool, buffer = -1, -1
        if event.buffer is not None:
            pool, buffer = self._number(event.buffer.pool), event.buffer.index
        elif event.pool is not None:
            pool = self._number(event.pool)
        away = tuple(b.index for b in event.buffers)
        return Arrived(event.kind.value, pool, buffer, bytes(event.meta or b""), _name(event.error), away)

    def _number(self, pool: bulk.Pool) -> int:
        """Its number; a pool that nobody numbered gets the next."""
        number = next((n for n, known in self.pools.items() if known is pool), None)
        if number is None:
            number = next((n for n, known in self.pools.items() if known.id == pool.id), len(self.pools))
            if number not in self.pools or pool.present:  # new, or it left and came again
                self.pools[number] = pool
        return number

    # ---- ends ----

    def close(self, number: int) -> None:
        """End a channel at once."""
        self.channels[number].close()

    def drop(self, pool: int, buffer: int) -> None:
        """Let go of a buffer whose channel ended."""
        self.pools[pool][buffer].drop()

    def serve(self) -> None:
        """Take what leases give back, and what else the domain has to do."""
        self.domain.serve()
        for allocator in self.allocators.values():
            _ = allocator.detached  # looks

    def detached(self, pool: int) -> int:
        """How many buffers of an allocator of this domain others may still hold."""
        return self.allocators[pool].detached

    def end(self) -> None:
        """Give up everything."""
        self.views.clear()
        for channel in self.channels.values():
            channel.close()
        for allocator in self.allocators.values():
            allocator.close()
        self.channels.clear()
        self.pools.clear()
        self.allocators.clear()

    # ---- looking ----

    def stage(self, number: int) -> str:
        """The state of a channel."""
        return self.channels[number].state.name

    def look(self, pool: int, buffer: int, data: bool = True) -> Seen:
        """A buffer as this domain sees it."""
        it = self.pools[pool][buffer]
        out, held = it.pool.counts(buffer)
        readable = data and it.state is not BufferState.INVALID
        return Seen(it.state.name, out, held, it.exports, it.length, it.tobytes() if readable else None)

    def look_around(self) -> Survey:
        """Every channel and every buffer of every pool that is here."""
        return Survey(
            {number: self._line(channel) for number, channel in self.channels.items()},
            {
                number: [self.look(number, buffer) for buffer in range(len(pool))]
                for number, pool in self.pools.items()
                if pool.present
            },
            {number: allocator.detached for number, allocator in self.allocators.items()},
            self.took(),
        )

    def _line(self, channel: bulk.Channel) -> Line:
        counts = channel.statistics()
        taken = sum(counts["received"].values()) + counts["refused_here"] + counts["refused_by_peer"]
        pools = tuple(sorted(self._number(pool) for pool in channel.pools))
        return Line(channel.state.name, taken, counts["refused_here"], counts["control_received"], pools)

    def view(self, pool: int, buffer: int) -> bool:
        """Make a view and keep it; whether it is read-only."""
        view = memoryview(self.pools[pool][buffer])
        self.views.append(view)
        return view.readonly

    def forget_views(self) -> None:
        """Let every view go."""
        for view in self.views:
            view.release()
        self.views.clear()

    def address(self, pool: int, buffer: int) -> int:
        """Where the buffer lies in this process."""
        where = self.pools[pool][buffer].address
        assert where is not None
        return where

    # ---- misbehaving ----

    def stray(self, pool: int, buffer: int, access: str) -> None:
        """Read or write the buffer's memory from C code, around the library: it may fault, and end this process."""
        where = self.address(pool, buffer)
        if access == "read":
            ctypes.string_at(where, 64)
        else:
            ctypes.memset(where, 0xEE, 64)

    def scribble(self, pool: int, buffer: int, data: bytes) -> None:
        """Write to the mapping without asking, where the mapping lets it."""
        ctypes.memmove(self.address(pool, buffer), data, len(data))

    def on_core(self, core: int, method: str, *args: Any, **options: Any) -> Any:
        """Do it in this thread, on this core only."""
        self.pin(core)
        return getattr(self, method)(*args, **options)

    def pin(self, core: int) -> None:
        """Run on this core only."""
        os.sched_setaffinity(0, {core})

    def pid(self) -> int:
        """Of the process that it is in."""
        return os.getpid()


def _name(error: BaseException | None) -> str:
    return "" if error is None else type(error).__name__
