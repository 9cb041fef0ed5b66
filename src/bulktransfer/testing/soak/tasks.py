"""What players do with their lanes: feed, keep, hop.

Knows: the public names, through the ends of lanes. Must not know: who is killed, or when.
"""

from __future__ import annotations

import random
from collections import deque
from typing import Any, Protocol

import bulktransfer as bulk
from bulktransfer import BufferState, EventKind

from .ends import ARRIVALS, End, drop, let_go
from .letters import HEAD, Label, Wrong

KEPT_MAX = 6


class Doing(Protocol):
    """A task under way."""

    def step(self) -> bool:
        """A bit of it; whether something was done. Raises: Wrong."""

    def finish(self) -> bool:
        """Send nothing new, and whether everything is over. Raises: Wrong."""


class Feed:
    """Sends from a pool of its own: moves, copies, full copies; what comes back is sent again."""

    def __init__(self, end: End, chance: random.Random, domain: bulk.Domain, size: int) -> None:
        self.end, self.chance, self.domain = end, chance, domain
        self.size = size
        self.reclaim = chance.random() < 0.5
        self.allocator = self._new()
        self.old: list[bulk.Allocator] = []
        self.closed = False
        end.refused = self._free

    def _new(self) -> bulk.Allocator:
        count = self.chance.choice((2, 3, 8))
        return bulk.Allocator(count=count, size=self.size, reclaim=self.reclaim, domain=self.domain)

    def step(self) -> bool:
        """Take what came back, send what is here."""
        busy = self._take()
        self.end.ask(self.allocator.pool)
        if self.end.connected and self.allocator.pool in self.end.assigned:
            if self.chance.random() < 0.002 and not self.allocator.detached:
                self._renew()
                return True
            for _ in range(self.chance.randrange(4)):
                busy = self._send() or busy
        return busy

    def _take(self) -> bool:
        """What came back is free again."""
        busy = False
        for event in self.end.events():
            busy = True
            if event.kind in (EventKind.BUFFER_RECEIVED, EventKind.COPY_RELEASED) and not self.reclaim:
                if event.buffer.state is not BufferState.READ_WRITE:
                    raise Wrong(f"{event.buffer!r} came home and is {event.buffer.state.name}")
                self._free(event.buffer)
        return busy

    def _free(self, buffer: bulk.Buffer) -> None:
        for allocator in (self.allocator, *self.old):
            if allocator.pool is buffer.pool:
                allocator.free(buffer)
                return
        raise Wrong(f"{buffer!r} came home, of no pool of this feed")

    def _send(self) -> bool:
        try:
            buffer = self.allocator.alloc()
        except bulk.PoolExhaustedError:
            return False
        length = self.chance.choice((HEAD.size, self.chance.randrange(HEAD.size, buffer.size + 1), buffer.size))
        key = self.chance.getrandbits(63)
        buffer.put(self.end.pen.write(key, length))
        dice = self.chance.random()
        into = None
        if dice < 0.1 and self.allocator.available:
            into = self.allocator.alloc()
        act = "copy" if 0.1 <= dice < 0.4 else "move"
        sent = self.end.send(act, buffer, key, into)
        if into is not None:
            self.allocator.free(buffer)
            if not sent:
                self.allocator.free(into)
        elif not sent:
            self.allocator.free(buffer)
        return sent

    def _renew(self) -> None:
        """Another pool from now on; the old one goes off the lane once its buffers are home."""
        old, self.allocator = self.allocator, self._new()
        self.old.append(old)

        def gone(outcome: bulk.Outcome) -> None:
            if outcome.error is None:
                old.close()
            elif not isinstance(outcome.error, bulk.PoolBusyError | bulk.BulkError):
                raise Wrong(f"removal of {old!r}: {outcome.error!r}")

        try:
            self.end.channel.remove_pool(old.pool, timeout=None, done=gone)
        except bulk.PoolBusyError:
            return  # it stays on the lane to the lane's end

    def finish(self) -> bool:
        """Leave, and wait until everything is home."""
        if not self.closed:
            self.closed = True
            self.end.close()
        self._take()
        if self.end.ended is None:
            return False
        for allocator in (self.allocator, *self.old):
            if allocator.detached:
                return False
            for buffer in allocator.pool:
                if buffer.state is not BufferState.READ_WRITE:
                    raise Wrong(f"{buffer!r} is {buffer.state.name} though its lane ended and nothing is detached")
        return True


class Keep:
    """Receives, keeps some, looks at them again, gives them back."""

    def __init__(self, end: End, chance: random.Random) -> None:
        self.end, self.chance = end, chance
        self.kept: deque[tuple[bulk.Buffer, int]] = deque()

    def step(self) -> bool:
        """Take what came; now and then give something back."""
        busy = False
        for event in self.end.events():
            busy = True
            if event.kind in ARRIVALS:
                self.kept.append((event.buffer, Label.of(event.meta).key))
        if self.end.ended is not None:
            while self.kept:
                drop(self._look(), self.end)
            return busy
        while self.kept and (len(self.kept) > KEPT_MAX or self.chance.random() < 0.7):
            busy = True
            let_go(self._look(), self.end)
        return busy

    def _look(self) -> bulk.Buffer:
        """The oldest that is kept: still as it came."""
        buffer, key = self.kept.popleft()
        self.end.pen.judge(buffer.tobytes(), key, f"{self.end.channel!r}, {buffer!r} kept")
        return buffer

    def finish(self) -> bool:
        """The sender leaves first."""
        self.step()
        self.end.give_up()
        return self.end.ended is not None and not self.kept


class Hop:
    """Hands on what comes over one lane over another, or back where that ended."""

    def __init__(self, source: End, sink: End) -> None:
        self.source, self.sink = source, sink
        self.waiting: deque[tuple[bulk.Buffer, int]] = deque()
        self.closed = False
        sink.refused = lambda buffer: let_go(buffer, source)

    def step(self) -> bool:
        """Hand on what is here."""
        busy = False
        for event in self.source.events():
            busy = True
            if event.kind in ARRIVALS:
                self.waiting.append((event.buffer, Label.of(event.meta).key))
        for _ in self.sink.events():
            busy = True
        for pool in self.source.channel.pools:
            if pool.present:
                self.sink.ask(pool)
        for _ in range(len(self.waiting)):
            buffer, key = self.waiting[0]
            if self.sink.ended is None and buffer.pool not in self.sink.assigned:
                break
            self.waiting.popleft()
            busy = True
            self.sink.pen.judge(buffer.tobytes(), key, f"{self.source.channel!r}, {buffer!r} waiting")
            if not self.sink.connected or not self.sink.send("move", buffer, key):
                let_go(buffer, self.source)
        return busy

    def finish(self) -> bool:
        """What is here goes on as long as it can."""
        self.step()
        self.source.give_up()
        if self.source.ended is None:
            return False
        if self.waiting and self.sink.connected:
            return False
        while self.waiting:
            let_go(self.waiting.popleft()[0], self.source)
        if not self.closed:
            self.closed = True
            self.sink.close()
        return self.sink.ended is not None or self.sink.channel.state is bulk.ChannelState.CLOSED


def assemble(brief: Any, ends: dict[int, End], chance: random.Random, domain: bulk.Domain) -> list[Doing]:
    """The tasks of a brief."""
    found: list[Doing] = []
    for order in brief.orders:
        its = [ends[number] for number in order.lanes]
        if order.task == "feed":
            found.append(Feed(its[0], chance, domain, chance.choice(brief.sizes)))
        elif order.task == "keep":
            found.append(Keep(its[0], chance))
        else:
            found.append(Hop(its[0], its[1]))
    return found
