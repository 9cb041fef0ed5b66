"""Domains, channels and pools for tests, all in one process: what one side does, the other sees.

The `World` ends what it made. Its `line()` is the usual: a source's end, a sink's end, an allocator at the source,
and the allocator's pool as the sink's domain has it.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import bulktransfer as bulk
from bulktransfer import BufferState, Direction, EventKind, Trust

PATIENCE_S = 20.0  # bounds a wait that only a bug makes last

INVALID, READ_ONLY = BufferState.INVALID, BufferState.READ_ONLY
OWNED_COPIED, READ_WRITE = BufferState.READ_ONLY_OWNED, BufferState.READ_WRITE


def together(first: Callable[[], Any], second: Callable[[], Any]) -> tuple[Any, Any]:
    """Run both at once, the first in a thread of its own; their results."""
    found: list[Any] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(first())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        mine = second()
    finally:
        thread.join(PATIENCE_S)
    if failed:
        raise failed[0]
    assert found, "the other thread did not finish"
    return found[0], mine


def ledger(buffer: Any) -> tuple[Any, ...]:
    """All that a domain knows about a buffer: state, length, live views, copies out, copies held."""
    return buffer.state, buffer.length, buffer.exports, *buffer.pool.counts(buffer.index)


@contextlib.contextmanager
def unchanged(*buffers: Any) -> Iterator[None]:
    """What happens inside leaves the buffers as they are."""
    before = [ledger(buffer) for buffer in buffers]
    yield
    assert [ledger(buffer) for buffer in buffers] == before


class World:
    """Makes things, and ends them."""

    def __init__(self, scheme: str) -> None:
        self.scheme = scheme
        self.trust = Trust.NONE if scheme in ("tcp", "tls") else Trust.FULL
        self.assigning: dict[str, Any] = {}  # options of every assignment
        self.made: list[Any] = []

    def __enter__(self) -> World:
        return self

    def __exit__(self, *exc: object) -> None:
        for thing in reversed(self.made):
            thing.close()
        self.made.clear()

    def domains(self, count: int) -> list[Any]:
        return [bulk.Domain() for _ in range(count)]

    def allocator(self, domain: Any, *, count: int = 4, size: int = 4096, **options: Any) -> Any:
        allocator = bulk.Allocator(count=count, size=size, domain=domain, **options)
        self.made.append(allocator)
        return allocator

    def channel(
        self,
        source: Any,
        sink: Any,
        *,
        creator: str = "source",
        trust: Trust | None = None,
        binder: dict[str, Any] | None = None,
        **options: Any,
    ) -> tuple[Any, Any]:
        """A connected channel: its source end and its sink end."""
        direction = Direction.TX if creator == "source" else Direction.RX
        here, there = (source, sink) if creator == "source" else (sink, source)
        created = bulk.create(f"{self.scheme}:", direction=direction, trust=trust or self.trust, domain=here, **options)
        self.made.append(created)
        bound, _ = together(
            lambda: bulk.bind(created.address, domain=there, **(binder or {})), lambda: created.wait_bound(PATIENCE_S)
        )
        self.made.append(bound)
        return (created, bound) if creator == "source" else (bound, created)

    def assign(self, channel: Any, other: Any, pool: Any) -> Any:
        """Bring a pool onto a channel; the pool as the other side has it."""
        event, _ = together(lambda: other.receive(PATIENCE_S), lambda: channel.assign_pool(pool, **self.assigning))
        assert event.kind is EventKind.POOL_ASSIGNED
        return event.pool

    def line(self, **options: Any) -> tuple[Any, Any, Any, Any]:
        """The usual: a source's and a sink's end, an allocator at the source, and its pool at the sink."""
        a, b = self.domains(2)
        tx, rx = self.channel(a, b, **options)
        alloc = self.allocator(a)
        return tx, rx, alloc, self.assign(tx, rx, alloc.pool)


def take(channel: Any, kind: EventKind) -> Any:
    """The next event, which is of that kind."""
    event = channel.receive(PATIENCE_S)
    assert event.kind is kind, event
    return event


def nothing_comes(channel: Any) -> bool:
    """Whether there is no event now (what was sent is there at once, since both sides are here)."""
    try:
        event = channel.receive_nowait()
    except bulk.WouldBlock:
        return True
    raise AssertionError(f"{event} came")


def until_the_end(channel: Any) -> list[Any]:
    """The events until the peer has ended the channel in order."""
    events = []
    while True:
        try:
            events.append(channel.receive(PATIENCE_S))
        except bulk.EndOfChannelError:
            return events


def start_helper() -> None:
    """Before descriptors are counted: what stays for good, the helper threads (rule 8) and the default domain."""
    bulk.current_domain()
    with World("local") as world:
        tx, rx, alloc, _ = world.line(limits=bulk.Limits(slot_count=2))
        tx.move_many(alloc.alloc_many(4))
        rx.receive(PATIENCE_S)
    with World("tcp") as world:
        world.channel(*world.domains(2))


if "BULK_TEST_NO_HELPER" not in os.environ:
    start_helper()
