"""What is seen of a process, its channels and its pools.

Knows: the facts, as one looks at them. Must not know: where they come from.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import bulktransfer as bulk

ACTS = ("move", "pass", "copy", "release")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelView:
    """One end of a channel. `peer`: the process at the other end, -1 where it is elsewhere; then `host` says where."""

    number: int
    address: str
    state: str
    end: str
    role: str
    trust: str
    peer: int
    host: str
    pools: tuple[str, ...]
    more_pools: int = 0
    sent: dict[str, int] = field(default_factory=dict)
    received: dict[str, int] = field(default_factory=dict)

    @property
    def total_sent(self) -> int:
        """Buffers that left over this end, by any transfer."""
        return sum(self.sent.values())

    @property
    def total_received(self) -> int:
        """Buffers that came."""
        return sum(self.received.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolView:
    """One pool as one process has it: how many of its buffers are in which state, and free of those it may allocate."""

    id: str
    size: int
    home: bool
    states: dict[str, int] = field(default_factory=dict)
    free: int = 0

    @property
    def name(self) -> str:
        """The first digits of the id, as channels list it."""
        return self.id[:8]

    @property
    def count(self) -> int:
        """Its buffers; 0 where the process could not show them."""
        return sum(self.states.values())

    @property
    def owned(self) -> int:
        """Buffers that this process owns and uses: not free, copies of them out or not."""
        names = (bulk.BufferState.READ_WRITE.name, bulk.BufferState.READ_ONLY_OWNED.name)
        return sum(self.states.get(name, 0) for name in names) - self.free

    @property
    def read(self) -> int:
        """Copies of others' buffers that this process holds."""
        return self.states.get(bulk.BufferState.READ_ONLY.name, 0)

    @property
    def away(self) -> int:
        """Buffers that are elsewhere."""
        return self.states.get(bulk.BufferState.INVALID.name, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessView:
    """One process that uses the library. `hardened`: closed to others of its user, who see only that it is there."""

    pid: int
    command: str
    hardened: bool
    channels: tuple[ChannelView, ...] = ()
    pools: tuple[PoolView, ...] = ()
