"""Twins: where memory is not shared, each domain has its own of every pool (design rule 7, section 5).

Knows: how a twin is made, whose consent a second assignment needs, when what left may be used again. Must not know:
how contents travel, or what is said about pools.
"""

from __future__ import annotations

import time
from typing import Any

from .._native import kernel
from .._native.assignment import Assignment
from .._native.buffer import Buffer
from .._native.pool import Pool
from ..states import Trust
from . import memory

LOOK_NS = 5_000_000  # between looks at bytes that leave after the channel ended


def shares_memory(trust: Trust) -> bool:
    """Whether channels of this trust level map one memory on both sides; else each side has a twin."""
    return trust is not Trust.NONE


def attach(pool: Pool) -> None:
    """Give an announced pool memory of this domain alone, all of it there. Raises: OSError (ENOMEM)."""
    size = pool.buffer_size * pool.buffer_count
    memory.check_room(size, f"the twin of pool {pool.name}")
    pool.attach(kernel.Mapping(None, size, True))


def needs_consent(pool: Pool, channel: Any) -> bool:
    """Whether a pool that is here came from somebody else than the peer of `channel`, who now assigns it (rule 4)."""
    if channel.same_domain or channel.peer.pid < 0:
        return not channel.same_domain
    others = [pool.domain.channel(number) for number in pool.channels]
    return not others or any(other is None or other.peer != channel.peer for other in others)


class Departure:
    """Waits until the last byte of what left over an ended assignment is out, then takes it back (rule 16)."""

    def __init__(self, domain: Any, assignment: Assignment) -> None:
        self.domain = domain
        self.assignment = assignment

    def check(self) -> tuple[Buffer, ...] | None:
        """The buffers that came back once nothing of them is on its way, else None."""
        return None if self.assignment.leaving() else tuple(self.assignment.reclaim())

    def start(self) -> None:
        """Look from time to time: a byte that leaves makes no noise."""
        self.domain.call_at(time.monotonic_ns() + LOOK_NS, self.on_readable)

    def on_readable(self) -> None:
        """It may be out by now."""
        pool = self.assignment.pool
        if self not in pool.lease_watches:
            return
        if self.check() is None:
            self.start()
            return
        pool.ended.remove(self.assignment)
        pool.lease_watches.discard(self)
        self.domain.pool_quiet(pool)

    def stop(self) -> None:
        """No longer look."""
