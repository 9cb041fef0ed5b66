"""The calls that make channels, for tasks.

Knows: which of them wait. Must not know: how a handshake goes.
"""

from __future__ import annotations

import asyncio
from typing import Any

import bulktransfer as bulk

from .channel import Channel, Done, wrap


def create(address: str, *, direction: bulk.Direction, trust: bulk.Trust, **options: Any) -> Channel:
    """Create `address` and one end of a channel there; it does not wait, so it is not awaited (see wait_bound).

    Options and Raises: as bulk.create.
    """
    return wrap(bulk.create(address, direction=direction, trust=trust, **options))


async def bind(address: str | bulk.Endpoint, **options: Any) -> Channel:
    """Bind to the channel that somebody created, or will create, at `address`; or bind the endpoint of a bulk.pair.

    There is no timeout: use asyncio.timeout. Cancelled, nothing is left. Options: as bulk.bind.
    Raises: as bulk.bind, but for EndpointNotFoundError and TimeoutError.
    """

    def start(done: Done) -> bulk.Channel:
        if isinstance(address, bulk.Endpoint):
            return address.bind(timeout=None, done=done, **options)
        return bulk.bind(address, timeout=None, done=done, **options)

    channel, _ = await bound(start)
    return channel


async def connect(address: str, **options: Any) -> tuple[Channel, ...]:
    """Bind to every channel that a listener offers at `address`: all of them or none.

    There is no timeout: use asyncio.timeout. Cancelled, nothing is left. Options: as bulk.connect.
    Raises: as bulk.connect, but for EndpointNotFoundError and TimeoutError.
    """
    _, outcome = await bound(lambda done: bulk.connect(address, timeout=None, done=done, **options)[0])
    return tuple(wrap(channel) for channel in outcome.channel)


async def bound(start: Any) -> tuple[Channel, bulk.Outcome]:
    """Wait until a binding channel is bound; the channel and the outcome. Raises: why it is not."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[bulk.Outcome] = loop.create_future()

    def done(outcome: bulk.Outcome) -> None:
        if not ended.done():
            ended.set_result(outcome)

    channel = wrap(start(done))
    try:
        outcome = await channel.see(ended)
        if outcome.error is not None:
            raise outcome.error
    except BaseException:
        channel.close()
        raise
    return channel, outcome
