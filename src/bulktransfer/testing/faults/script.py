"""A conversation of two sides that does everything once: bind, assign, move, copy, pass, release, remove, destroy.

Knows: the public names, what each side does and expects at each act. Must not know: that somebody may be killed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import bulktransfer as bulk
from bulktransfer import BufferState, Direction, EventKind, Trust

ACTS = ("bind", "assign", "move", "copy", "pass", "release", "remove", "destroy", "over")
SIZE = 8192
MOVED, LENT = b"moved" * 900, b"lent" * 1100
PATIENCE_S = 60.0  # bounds a wait that only a bug makes last
LIMITS = bulk.Limits(handshake_s=3600.0)  # what happens must happen without a timer


class Cast(NamedTuple):
    """Who does what: `source_asks`: the source creates, allocates, assigns, removes and destroys; else the sink."""

    trust: Trust
    source_asks: bool
    address: str


class Side:
    """One side of the conversation, from the first act to the last."""

    def __init__(self, cast: Cast, is_source: bool, domain: bulk.Domain) -> None:
        self.cast, self.is_source, self.domain = cast, is_source, domain
        self.asks = is_source is cast.source_asks
        self.channel: Any = None
        self.bound: bulk.Outcome | None = None
        self.allocator: bulk.Allocator | None = None
        self.pool: Any = None
        self.first: Any = None
        self.second: Any = None
        self.released = False
        self.watch: Callable[[], object] = lambda: None

    # ---- the acts ----

    def acts(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """What is done, in order; each may be tried again after it failed."""
        for act in ACTS[:-1]:
            yield act, getattr(self, f"do_{act}")

    def do_bind(self) -> None:
        """Create and wait, or bind."""
        if self.asks:
            if self.channel is None:
                direction = Direction.TX if self.is_source else Direction.RX
                address, trust = self.cast.address, self.cast.trust
                self.channel = bulk.create(
                    address, direction=direction, trust=trust, wait="block", limits=LIMITS, domain=self.domain
                )
            self.channel.wait_bound(PATIENCE_S)
        else:
            self.channel = bulk.bind(
                self.cast.address, wait="block", limits=LIMITS, domain=self.domain, timeout=PATIENCE_S
            )
        self.watch()

    def do_assign(self) -> None:
        """The pool comes onto the channel, and its buffers to the source."""
        if not self.asks:
            if self.pool is None:
                self._event(EventKind.POOL_ASSIGNED)
            if self.is_source:
                if self.first is None:
                    self.first = self._event(EventKind.BUFFER_RECEIVED).buffer
                if self.second is None:
                    self.second = self._event(EventKind.BUFFER_RECEIVED).buffer
            return
        if self.allocator is None:
            self.allocator = bulk.Allocator(count=2, size=SIZE, domain=self.domain)
        self.pool = self.allocator.pool
        if self.pool not in self.channel.pools:
            self.channel.assign_pool(self.pool, timeout=PATIENCE_S)
        if self.first is None:
            self.first, self.second = self.allocator.alloc_many(2)
        if not self.is_source:
            for buffer in (self.first, self.second):
                if buffer.state is BufferState.READ_WRITE:
                    self.channel.pass_(buffer)

    def do_move(self) -> None:
        """The first buffer goes down."""
        if self.is_source:
            self.first.put(MOVED)
            self.channel.move(self.first)
        else:
            self.first = self._event(EventKind.MOVE_RECEIVED).buffer
            assert self.first.tobytes() == MOVED

    def do_copy(self) -> None:
        """A copy of the second goes down."""
        if self.is_source:
            self.second.put(LENT)
            self.channel.copy(self.second)
        else:
            self.second = self._event(EventKind.COPY_RECEIVED).buffer
            assert self.second.tobytes() == LENT

    def do_pass(self) -> None:
        """The first comes up again."""
        if self.is_source:
            assert self._event(EventKind.BUFFER_RECEIVED).buffer is self.first
        else:
            self.channel.pass_(self.first)

    def do_release(self) -> None:
        """The copy comes back; where the sink asks, both buffers go home."""
        if self.is_source:
            if not self.released:
                assert self._event(EventKind.COPY_RELEASED).buffer is self.second
                self.released = True
                assert self.second.tobytes() == LENT
            for buffer in () if self.asks else (self.first, self.second):
                if buffer.state is BufferState.READ_WRITE:
                    self.channel.move(buffer)
            return
        if self.second.state is BufferState.READ_ONLY:
            self.channel.release(self.second)
        if self.asks:
            for buffer in (self.first, self.second):
                if buffer.state is not BufferState.READ_WRITE:
                    assert self._event(EventKind.MOVE_RECEIVED).buffer is buffer

    def do_remove(self) -> None:
        """The pool leaves."""
        if self.asks:
            self.channel.remove_pool(self.pool, timeout=PATIENCE_S)
        else:
            self._event(EventKind.POOL_REMOVED)

    def do_destroy(self) -> None:
        """The end, in order."""
        if self.asks:
            self.channel.destroy(timeout=PATIENCE_S)
        else:
            with contextlib.suppress(bulk.EndOfChannelError):
                while True:
                    self.channel.receive(PATIENCE_S)

    def _event(self, kind: EventKind) -> bulk.Event:
        """The next event, which is of that kind; pools may have come and gone while the other side tried again."""
        while True:
            event: bulk.Event = self.channel.receive(PATIENCE_S)
            if event.kind is EventKind.POOL_ASSIGNED and not self.asks:
                self.pool = event.pool
            if event.kind is kind:
                return event
            if event.kind not in (EventKind.POOL_ASSIGNED, EventKind.POOL_REMOVED):
                raise AssertionError(f"{event.kind} came where {kind} was due")

    # ---- the end ----

    def home(self) -> list[str]:
        """What is wrong with the buffers of this side, if it allocated them, once the other is gone."""
        if self.allocator is None:
            return []
        wrong = []
        if self.allocator.detached:
            wrong.append(f"{self.allocator.detached} buffers stay detached")
        wrong += [f"buffer {b.index} is {b.state.name}" for b in self.pool if b.state is not BufferState.READ_WRITE]
        return wrong

    def leave(self) -> list[str]:
        """Close, drop what came from elsewhere; what is wrong then."""
        if self.channel is not None:
            self.channel.close()
        wrong = []
        if self.allocator is None and self.pool is not None:
            for buffer in self.pool if self.pool.present else ():
                if buffer.state is not BufferState.INVALID:
                    buffer.tobytes()  # what one owns or holds one keeps as long as one likes
                    buffer.drop()
            if self.pool.present:
                wrong.append(f"{self.pool!r} stays")
        if self.allocator is not None:
            self.allocator.close()
        self.allocator = self.pool = self.first = self.second = self.channel = None
        return wrong
