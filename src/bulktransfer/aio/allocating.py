"""Waiting for a buffer to come home.

Knows: allocators that reclaim, and the channels over which their buffers come home. Must not know: free lists.
"""

from __future__ import annotations

import bulktransfer as bulk

from .channel import channels_with, news_of


async def alloc(allocator: bulk.Allocator) -> bulk.Buffer:
    """A buffer of an allocator with reclaim=True, as soon as one has come home over a channel of this loop.

    Raises: ValueError (it does not reclaim, so only its user frees; or it is closed), PoolExhaustedError (none is
    free, and the pool is on no channel of this loop).
    """
    if not allocator.pool.reclaim:
        raise ValueError(f"aio.alloc from pool {allocator.pool.name}: its allocator was made without reclaim=True")
    while True:
        try:
            return allocator.alloc()
        except bulk.PoolExhaustedError:
            channels = [c for c in channels_with(allocator.pool) if c.state is not bulk.ChannelState.CLOSED]
            if not channels:
                raise
        await news_of(channels)
