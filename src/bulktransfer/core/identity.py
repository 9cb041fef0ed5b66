"""Who is behind a channel: a domain of a process of this machine, or of another host.

Knows: which of what a peer says of itself is believed. Must not know: what it may do.

The kernel says which process is at the other end of a socket, the network from which host somebody comes. The id of a
domain is the peer's own word: known to those that the domain has spoken to, and never enough alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .._native.pool import Pool
from ..abc import FarPeer, Peer


class Identity(NamedTuple):
    """A peer; two channels with equal ones lead to the same domain."""

    place: tuple[Any, ...]  # a process and its user, or a host
    domain: bytes


def identify(peer: Peer, domain_id: bytes) -> Identity | None:
    """Who it is, or None where nobody can say."""
    if isinstance(peer, FarPeer):
        return Identity(("host", peer.host.rpartition(":")[0]), domain_id)
    return Identity(("process", *peer), domain_id) if peer.pid >= 0 and domain_id else None


def same_peer(one: Any, other: Any) -> bool:
    """Whether two channels lead to one domain: what is sent over one may come back over the other."""
    return one.peer_identity is not None and one.peer_identity == other.peer_identity


def needs_consent(pool: Pool, channel: Any) -> bool:
    """Whether a pool that is here came from somebody else than the peer of `channel`, who now assigns it (rule 4)."""
    if channel.same_domain:
        return False
    others = [pool.domain.channel(number) for number in pool.channels]
    return not any(other is not None and same_peer(other, channel) for other in others)
