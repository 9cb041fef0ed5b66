"""States as short byte strings, equal exactly where nothing that can ever happen differs.

Knows: which facts no longer matter, and how domains, channels and buffers may change places. Must not know: what
steps there are.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from .mistakes import JUDGED_BY_LAST_WAY
from .state import (
    ABSENT,
    ACTIVE,
    CONNECTED,
    DETACHED,
    INITIALIZED,
    MESSAGES,
    OVER,
    PENDING,
    REMOVING,
    TEARDOWN,
    UNBOUND,
    State,
)

_STAGE = {UNBOUND: 0, INITIALIZED: 1, CONNECTED: 2, TEARDOWN: 3, **dict.fromkeys(OVER, 4)}
_STANDING = {ABSENT: 0, PENDING: 1, ACTIVE: 2, REMOVING: 3, DETACHED: 4}
_KIND = {kind: number for number, kind in enumerate(MESSAGES)}


class Symmetry(NamedTuple):
    """A change of places under which a configuration stays itself: the new place of each old one."""

    domains: tuple[int, ...]
    channels: tuple[int, ...]
    buffers: tuple[int, ...]


@functools.cache
def identity(domains: int, channels: int, buffers: int) -> Symmetry:
    """Everything where it is."""
    return Symmetry(tuple(range(domains)), tuple(range(channels)), tuple(range(buffers)))


def encode(state: State, place: Symmetry | None = None) -> bytes:
    """The state, with everything in its new place. What buffers contain decides nothing and is left out.

    At most 4 channels: a set of leases is one byte. At most 100 buffers: see `item`.
    """
    domains, channels, buffers = place or identity(len(state.alive), len(state.channels), len(state.owner))
    plain = place is None
    found = bytearray()
    for d in _order(domains):
        found.append(state.alive[d])
        for mask in state.leases[d]:
            found.append(mask if plain else _moved_leases(mask, channels))
        row = state.views[d]
        for b in _order(buffers):
            view = row[b]
            via = _via(state, d, b)
            found += bytes((
                view.owned + 2 * view.free,
                view.out if plain else _moved(view.out, channels),
                view.held if plain else _moved(view.held, channels),
                channels[via] if via >= 0 else 255,
            ))  # fmt: skip
    for b in _order(buffers):
        owner = state.owner[b]
        copies = state.copies[b]
        found += bytes((domains[owner] if owner >= 0 else 256 + owner, copies if plain else _moved(copies, channels)))
    for c in _order(channels):
        stages = state.channels[c].stages
        found += bytes((_STAGE[stages[0]], _STAGE[stages[1]]))
        for by, sides in state.standings[c]:
            found += bytes((by + 1, _STANDING[sides[0]], _STANDING[sides[1]]))
        for queue in state.queues[c]:
            found.append(len(queue))
            for kind, item, _, leases in queue:
                number = _KIND[kind]
                item = buffers[item] if number < 6 else item + 1
                found += bytes((number, item, leases if plain or number < 6 else _moved_leases(leases, channels)))
    return bytes(found)


@functools.cache
def _order(places: tuple[int, ...]) -> list[int]:
    return sorted(range(len(places)), key=places.__getitem__)


def _moved(mask: int, channels: tuple[int, ...]) -> int:
    moved = 0
    for channel, place in enumerate(channels):
        if mask >> channel & 1:
            moved |= 1 << place
    return moved


def _moved_leases(mask: int, channels: tuple[int, ...]) -> int:
    moved = 0
    for channel, place in enumerate(channels):
        moved |= (mask >> 2 * channel & 3) << 2 * place
    return moved


def _via(state: State, domain: int, buffer: int) -> int:
    """The way by which a buffer last came or left; none where its channel ended and waits for nothing."""
    via = state.views[domain][buffer].via
    if via < 0 or JUDGED_BY_LAST_WAY in state.rules.mistakes:
        return via
    pool = state.pool_of(buffer)
    it = state.channels[via]
    for side in (0, 1):
        if it.domains[side] == domain and (
            it.stages[side] not in OVER or state.standings[via][pool].sides[side] != ABSENT
        ):
            return via
    return -1


def canonical(state: State, symmetries: tuple[Symmetry, ...]) -> bytes:
    """The least encoding among those that symmetry makes one."""
    key = encode(state)
    for symmetry in symmetries:
        other = encode(state, symmetry)
        if other < key:
            key = other
    return key
