"""Twins: where memory is not shared, each domain has its own of every pool (design rule 7, section 5).

Knows: how a twin is made, whose consent a second assignment needs, which end stages contents. Must not know: how
contents travel, or what is said about pools.
"""

from __future__ import annotations

from typing import Any

from .._native import kernel
from .._native.pool import Pool
from ..states import Trust
from . import far, memory


def shares_memory(trust: Trust) -> bool:
    """Whether channels of this trust level map one memory on both sides; else each side has a twin."""
    return trust is not Trust.NONE


def stages(is_source: bool, part: Any) -> tuple[int, int]:
    """The staging areas of a new connection, of what goes out and of what comes in; 0: none."""
    size = 0 if part.same_domain else part.terms.stage_size  # within one domain there is nothing to copy
    return (size, 0) if is_source else (0, size)


def attach(pool: Pool) -> None:
    """Give an announced pool memory of this domain alone, all of it there. Raises: OSError (ENOMEM)."""
    size = pool.buffer_size * pool.buffer_count
    memory.check_room(size, f"the twin of pool {pool.name}")
    pool.attach(kernel.Mapping(None, size, True))


def same_peer(one: Any, other: Any) -> bool:
    """Whether two channels lead to one domain of one process: what is sent over one may come back over the other."""
    if one.is_far or other.is_far:
        return one.is_far and other.is_far and far.whereabouts(one) == far.whereabouts(other)
    return (
        one.peer.pid >= 0 and bool(one.peer_domain) and (one.peer, one.peer_domain) == (other.peer, other.peer_domain)
    )


def needs_consent(pool: Pool, channel: Any) -> bool:
    """Whether a pool that is here came from somebody else than the peer of `channel`, who now assigns it (rule 4)."""
    if channel.is_far:
        return far.needs_consent(pool, channel)
    if channel.same_domain or channel.peer.pid < 0:
        return not channel.same_domain
    others = [pool.domain.channel(number) for number in pool.channels]
    return not others or any(other is None or other.peer != channel.peer for other in others)
