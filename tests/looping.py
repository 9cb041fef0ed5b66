"""Tools for tests of the asyncio face: loops to run in, and a connected pair of awaitable channels."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Coroutine
from typing import Any

import pytest

import bulktransfer as bulk
from bulktransfer import Direction, EventKind, Trust, aio
from worlds import PATIENCE_S

HAS_UVLOOP = importlib.util.find_spec("uvloop") is not None
no_uvloop = pytest.mark.skipif(not HAS_UVLOOP, reason="uvloop is not installed")
LOOPS = ["asyncio", pytest.param("uvloop", marks=no_uvloop)]


def run_in(loop: str, main: Coroutine[Any, Any, Any]) -> Any:
    """Run `main` in a new loop of that kind, for PATIENCE_S at most."""
    factory = None
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(asyncio.wait_for(main, PATIENCE_S))


class Meeting:
    """Channels between domains of this process, which all close at the end of `async with`."""

    def __init__(self, scheme: str) -> None:
        self.scheme = scheme
        self.made: list[Any] = []

    async def __aenter__(self) -> Meeting:
        return self

    async def __aexit__(self, *exc: object) -> None:
        for thing in reversed(self.made):
            thing.close()

    def created(self, **options: Any) -> aio.Channel:
        options = {"direction": Direction.TX, "trust": Trust.FULL, "domain": bulk.Domain(), "meta_size": 16, **options}
        channel = aio.create(f"{self.scheme}:", **options)
        self.made.append(channel)
        return channel

    async def bound(self, address: str, **options: Any) -> aio.Channel:
        channel = await aio.bind(address, **{"domain": bulk.Domain(), **options})
        self.made.append(channel)
        return channel

    async def channel(self, source: Any = None, sink: Any = None, **options: Any) -> tuple[aio.Channel, aio.Channel]:
        """A connected channel: its source's end and its sink's."""
        binder = options.pop("binder", {})
        tx = self.created(domain=source or bulk.Domain(), **options)
        rx, _ = await asyncio.gather(self.bound(tx.address, domain=sink or bulk.Domain(), **binder), tx.wait_bound())
        return tx, rx

    def allocator(self, channel: aio.Channel, **options: Any) -> bulk.Allocator:
        alloc = bulk.Allocator(**{"count": 4, "size": 4096, "domain": channel.sync.domain, **options})
        self.made.append(alloc)
        return alloc

    async def assigned(self, channel: aio.Channel, other: aio.Channel, pool: bulk.Pool) -> bulk.Pool:
        """Bring a pool onto a channel; the pool as the other side has it."""
        _, event = await asyncio.gather(channel.assign_pool(pool), other.receive())
        assert event.kind is EventKind.POOL_ASSIGNED
        return event.pool

    async def line(self, **options: Any) -> tuple[aio.Channel, aio.Channel, bulk.Allocator]:
        """A connected channel with a pool of its source's."""
        pool = options.pop("pool", {})
        tx, rx = await self.channel(**options)
        alloc = self.allocator(tx, **pool)
        await self.assigned(tx, rx, alloc.pool)
        return tx, rx, alloc


async def settle(rounds: int = 5) -> None:
    """Let the loop turn."""
    for _ in range(rounds):
        await asyncio.sleep(0)


def mute(channel: aio.Channel) -> None:
    """Have the loop leave a channel alone until a task waits on it: a peer that does not answer."""
    channel.watch.stop()


async def filled(channel: aio.Channel, alloc: bulk.Allocator, *texts: bytes) -> None:
    """Move a buffer for each text, without waiting."""
    for text in texts:
        buffer = alloc.alloc()
        buffer.put(text)
        channel.sync.move(buffer, text[:16])


if HAS_UVLOOP:  # before descriptors are counted: libuv keeps a pipe for good
    run_in("uvloop", settle())
