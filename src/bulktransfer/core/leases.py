"""Leases: pipes whose hang-up says that everybody behind a channel let go of a pool (design rule 16).

Knows: who makes one, who keeps which write ends and passes them on, and what comes back when one hangs up.
Must not know: how a message becomes bytes, or why a channel ended.

A buffer travels over any channel that has its pool, not only over the one that brought the pool. So whoever gets a
lease passes it on to all its channels that have the pool, before any data; an acceptance carries the acceptor's leases
back.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import time
import weakref
from collections.abc import Sequence
from typing import Any

from .._native import kernel
from .._native.assignment import Assignment
from .._native.pool import Pool
from ..errors import BulkError, LimitError, ProtocolViolation

LEASES_MAX = 64  # of one pool in one domain
_PIPE = re.compile(r"pipe:\[\d+\]")
RETRY_NS = 2_000_000  # until another thread has taken what has arrived
LEAVING_NS = 5_000_000  # between looks at contents that leave after the channel ended


def make(assignment: Assignment) -> list[kernel.Descriptor]:
    """A new lease for an assignment that reclaims: its write end. None where no memory is seen. Raises: OSError."""
    if not (assignment.pool.shared or assignment.exposed) or not assignment.reclaims:
        return []
    read_end, write_end = (kernel.Descriptor(fd) for fd in os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK))
    assignment.lease = read_end
    return [write_end]


def identity(lease: kernel.Descriptor) -> str:
    """Which pipe a descriptor is of; no file system is asked, since some never answer. Raises: ProtocolViolation."""
    found = os.readlink(f"/proc/self/fd/{lease.fileno()}")
    if not _PIPE.fullmatch(found):
        raise ProtocolViolation("a lease that is not a pipe", reason="lease")
    return found


def own(pool: Pool) -> set[str]:
    """The leases that this domain reads: a write end that finds its way back would keep them from hanging up."""
    assignments = list(pool.ended)
    for number in pool.channels:
        channel = pool.domain.channel(number)
        if channel is not None:
            assignments += [a for a in channel.table if a is not None and a.pool is pool]
    return {identity(a.lease) for a in assignments if a.lease is not None and not a.lease.closed}


def is_read(lease: kernel.Descriptor) -> bool:
    """Whether whoever made it still waits for it."""
    looking = select.poll()
    looking.register(lease.fileno(), 0)
    return not any(bits & select.POLLERR for _, bits in looking.poll(0))


class Kept(kernel.Descriptor):
    """A lease that this domain keeps, until its maker no longer reads it: a dead one leaves nothing behind."""

    _pool: Any = None
    _domain: Any = None

    def watch(self, pool: Pool) -> None:
        """Keep it for `pool`."""
        self._pool = weakref.ref(pool)
        with contextlib.suppress(OSError):  # no room for one more to watch: `prune` looks, too
            pool.domain.watch(self.fileno(), self.look)
            self._domain = pool.domain

    def look(self) -> None:
        """If nobody reads it any more, let it go."""
        pool = self._pool()
        if pool is not None and not self.closed and not is_read(self):
            self.close()
            pool.leases = [lease for lease in pool.leases if lease is not self]

    def close(self) -> None:
        """No longer keep it; idempotent."""
        if not self.closed and self._domain is not None:
            self._domain.unwatch(self.fileno())  # first: others have the same pipe, and it would be watched for ever
        super().close()

    def __del__(self) -> None:
        self.close()


def prune(pool: Pool) -> None:
    """Let go of leases that nobody reads any more."""
    for lease in pool.leases:
        if not is_read(lease):
            lease.close()
    pool.leases = [lease for lease in pool.leases if not lease.closed]


def take(channel: Any, pool: Pool, given: Sequence[kernel.Descriptor]) -> None:
    """Keep what is new among the leases that came over `channel`, and tell every other channel that has the pool.

    Raises: LimitError (more than LEASES_MAX; nothing is kept), ProtocolViolation (not leases).
    """
    if not given:
        return
    if not pool.shared:
        raise ProtocolViolation(f"{len(given)} leases of pool {pool.name}, whose memory is not shared", reason="lease")
    # One that nobody reads any more would not be known here, and go round for ever where channels make a circle.
    new = {number: lease for lease in given for number in [identity(lease)] if is_read(lease)}
    prune(pool)
    for known in own(pool) | {identity(lease) for lease in pool.leases}:
        new.pop(known, None)
    if len(pool.leases) + len(new) > LEASES_MAX:
        raise LimitError(f"pool {pool.name}: {len(pool.leases)} leases, {len(new)} more came, {LEASES_MAX} at most")
    if not new:
        return
    kept = [Kept(lease.detach()) for lease in new.values()]
    pool.leases = [*pool.leases, *kept]
    for lease in kept:
        lease.watch(pool)
    for number in sorted(pool.channels - {channel.number}):
        other = pool.domain.channel(number)
        if other is not None:
            other.assigning.pass_leases(pool, kept)


class LeaseWatch:
    """Waits for everybody behind an ended assignment to let go, then takes back what was away (rule 16).

    What was published before is taken first: the buffer may be on its way home over another channel (rule 17). What is
    here as a copy that this domain lent on waits until those copies are back.
    """

    def __init__(self, domain: Any, assignment: Assignment) -> None:
        self.domain = domain
        self.assignment = assignment
        self.ripe = assignment.lease is None  # nobody has anything that could be reused too early
        self.looking = False

    def start(self) -> None:
        """Watch the lease."""
        pool = self.assignment.pool
        pool.ended.append(self.assignment)
        pool.lease_watches.add(self)
        lease = self.assignment.lease
        if lease is not None:
            self.domain.watch(lease.fileno(), self.look)
        else:
            self.due()

    def look(self) -> None:
        """If the lease hung up, take back what can be; look again later for the rest."""
        assignment, pool = self.assignment, self.assignment.pool
        if self.looking or self not in pool.lease_watches:
            return
        lease = assignment.lease
        if not self.ripe:
            if lease is None or lease.closed or not kernel.hung_up(lease.fileno()):
                return
            self.ripe = True
            self.stop()
        self.looking = True
        try:
            taken = take_arrivals(pool)
        finally:
            self.looking = False
        if self not in pool.lease_watches:
            return
        if not taken:
            self.domain.call_at(time.monotonic_ns() + RETRY_NS, self.look)
            return
        back = assignment.reclaim()
        if not assignment.outstanding:
            self.end()
        elif assignment.leaving():  # which makes no noise when it is over
            self.domain.call_at(time.monotonic_ns() + LEAVING_NS, self.look)
        if back:
            due(pool)

    def due(self) -> None:
        """Look again as soon as somebody serves the domain, if the lease hung up."""
        if self.ripe:
            self.domain.call_at(time.monotonic_ns(), self.look)

    def end(self) -> None:
        """Nothing is away any more, or the pool leaves the domain."""
        pool = self.assignment.pool
        self.stop()
        pool.lease_watches.discard(self)
        if self.assignment in pool.ended:
            pool.ended.remove(self.assignment)
        if not pool.channels and not pool.ended and pool.home:
            pool.trust = pool.given_trust
        self.domain.pool_quiet(pool)

    def stop(self) -> None:
        """No longer watch the lease."""
        lease = self.assignment.lease
        if lease is not None and not lease.closed:
            self.domain.unwatch(lease.fileno())
            lease.close()


def take_arrivals(pool: Any) -> bool:
    """Take what the channels of a pool have; False where another thread is at one of them, which has some left."""
    taken = True
    for number in sorted(pool.channels):
        channel = pool.domain.channel(number)
        if channel is not None:
            with contextlib.suppress(BulkError):  # a violation of its own peer, and its own end
                taken = channel.take_arrivals() and taken
    return taken


def due(pool: Any) -> None:
    """Something of the pool came back: what waits for it may go on."""
    for watch in list(pool.lease_watches):
        watch.due()


def check(pool: Any) -> None:
    """Take back at once what leases give free; one may lie unread in a socket of this domain."""
    if pool.lease_watches:
        take_arrivals(pool)
    for watch in list(pool.lease_watches):
        watch.look()
