"""Pools on channels to other machines: each side has memory of its own for them, its twin (design rule 7).

Knows: how a twin is made, and that memory stays until the last byte of what was sent has left. Must not know: how
contents travel, or what is said about pools.
"""

from __future__ import annotations

import os
from typing import Any

from .._native import kernel
from .._native.assignment import Assignment
from .._native.pool import Pool
from ..errors import ConstraintError
from ..states import Trust
from . import memory


def attach(pool: Pool) -> None:
    """Memory of this machine for an announced pool, all of its pages there; it may go on to channels that share it.

    Raises: OSError (ENOMEM, EMFILE).
    """
    source, mapping = memory.make(pool.buffer_size * pool.buffer_count)
    pool.attach(mapping)
    pool.memory = source
    pool.identity = memory.identity(source)


def reserve(pool: Pool, channel: Any) -> None:
    """Have the pool on the channel; its trust is a matter of those that see its memory. Raises: ConstraintError."""
    if pool.guarded:
        raise ConstraintError(f"pool {pool.name} has trust HALF, which forbids what a network channel writes")
    pool.set_solid()  # contents land in its memory, and leave from there
    pool.channels.add(channel.number)


def check_trust(pool: Pool, trust: Trust) -> None:
    """Judge a pool that comes on a channel of this machine. Raises: ConstraintError."""
    others = [pool.domain.channel(number) for number in pool.channels]
    if trust is Trust.HALF and any(other is not None and other.is_far for other in others):
        raise ConstraintError(f"pool {pool.name} is on a network channel, which writes where HALF forbids it")


def land(channel: Any, assignment: Assignment) -> None:
    """Buffers of the pool may come and go. Raises: OSError (no descriptors), MemoryError.

    A pipe stands for the lease (rule 16). This process has both ends: the link closes one when nothing can leave any
    more, so that "over the network a slot is free once its last byte has left".
    """
    read_end, write_end = (kernel.Descriptor(fd) for fd in os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK))
    channel.land(assignment.pool, assignment.slot, assignment.peer, assignment.mine, write_end)
    assignment.lease = read_end


class Tether:
    """Keeps a pool here whose channel ended until what this side has sent of it has left."""

    tethers = True

    def __init__(self, domain: Any, assignment: Assignment) -> None:
        self.domain = domain
        self.pool = assignment.pool
        self.lease = assignment.lease

    def start(self) -> None:
        """Watch, if something is still on its way."""
        self.pool.lease_watches.add(self)
        assert self.lease is not None
        self.domain.watch(self.lease.fileno(), self.look)
        self.look()

    def look(self) -> None:
        """Let go if everything has left."""
        if self.lease is None or self.lease.closed or not kernel.hung_up(self.lease.fileno()):
            return
        self.domain.unwatch(self.lease.fileno())
        self.lease.close()
        self.pool.lease_watches.discard(self)
        self.domain.pool_quiet(self.pool)

    def due(self) -> None:
        """Nothing that comes back makes a byte leave sooner."""
