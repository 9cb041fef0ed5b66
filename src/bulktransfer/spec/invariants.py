"""What holds in every state: the report's Algorithm 2, and what design section 4 adds for ends and refusals.

Knows: what must never be seen. Must not know: which steps lead where; it looks at one state alone.

Each function returns complaints: sentences that say what is wrong, none where all is well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .setup import reclaims
from .state import (
    COPY,
    DETACHED,
    INVALID,
    NOBODY,
    OVER,
    PARTED,
    READ_ONLY,
    READ_ONLY_OWNED,
    READ_WRITE,
    SINK,
    SOURCE,
    THERE,
    TOKENS,
    TRANSFERS,
    State,
    View,
    bits,
)


def one_owner(state: State) -> Iterator[str]:
    """At most one domain owns a buffer, or is about to: what is under way counts."""
    for buffer, owner in enumerate(state.owner):
        if owner == PARTED:
            continue
        owners = [f"domain {d}" for d, views in enumerate(state.views) if views[buffer].owned]
        owners += [f"a {kind} over channel {c}" for c, _, kind in _under_way(state, buffer) if kind in TOKENS]
        if len(owners) > 1:
            yield f"buffer {buffer} is owned by {' and by '.join(owners)}"


def no_write_beside(state: State) -> Iterator[str]:
    """Where memory is shared, nobody has access of any kind while somebody may write (Algorithm 2, lines 2 to 4)."""
    if not state.rules.shared:
        return
    for buffer in range(len(state.owner)):
        if not any(views[buffer].state == READ_WRITE for views in state.views):
            continue
        access = [f"{views[buffer].state} in domain {d}" for d, views in enumerate(state.views) if _here(views[buffer])]
        access += [f"a {kind} over channel {c}" for c, _, kind in _under_way(state, buffer) if kind in (COPY, *TOKENS)]
        if len(access) > 1:
            yield f"buffer {buffer} is {' beside '.join(access)}"


def copies_reachable(state: State) -> Iterator[str]:
    """From every copy a path of copies leads back to the owner (line 5, meant truly: a cycle is no path).

    A copy whose channel ended has nobody to go back to; where memory is shared, a lease stands for it (rule 16).
    """
    for buffer in range(len(state.owner)):
        roots = {d for d, views in enumerate(state.views) if views[buffer].owned or _orphan(state, d, buffer)}
        edges = [
            (it.domains[SOURCE], it.domains[SINK])
            for c, it in enumerate(state.channels)
            if state.copies[buffer] >> c & 1
        ]
        while grown := {sink for source, sink in edges if source in roots} - roots:
            roots |= grown
        for domain, views in enumerate(state.views):
            if views[buffer].state == READ_ONLY and domain not in roots:
                yield f"the copy of buffer {buffer} in domain {domain} is not reachable from the owner"


def no_circle(state: State) -> Iterator[str]:
    """No domain lends a buffer to one from whom it has it: none of them could release first (rule 6)."""
    alive = _connected(state)
    for buffer, copies in enumerate(state.copies):
        edges = [
            (it.domains[SOURCE], it.domains[SINK])
            for c, it in enumerate(state.channels)
            if (copies & alive & state.views[it.domains[SINK]][buffer].held) >> c & 1
        ]
        while edges:
            lent_on = [edge for edge in edges if any(edge[1] == source for source, _ in edges)]
            if len(lent_on) == len(edges):
                yield f"copies of buffer {buffer} go in a circle: {edges}"
                break
            edges = lent_on


def no_reuse_while_held(state: State) -> Iterator[str]:
    """Memory that somebody may still hold over a channel that ended is nobody else's to write (rule 16)."""
    if not state.rules.shared:
        return
    for buffer in range(len(state.owner)):
        writers = [d for d, views in enumerate(state.views) if views[buffer].state == READ_WRITE]
        for domain in range(len(state.views)):
            if _orphan(state, domain, buffer) and any(w != domain for w in writers):
                yield f"buffer {buffer} is in use again in domain {writers[0]}, and domain {domain} still has it"


def nothing_lost(state: State) -> Iterator[str]:
    """Who owns nothing waits for something: a buffer without an owner is one that its allocator will reclaim."""
    for buffer, owner in enumerate(state.owner):
        pool = state.pool_of(buffer)
        home = state.pools[pool].home
        if owner != NOBODY or not state.alive[home]:
            continue
        awaited = any(
            it.domains[side] == home
            and reclaims(state, c, side, pool)
            and state.standings[c][pool].sides[side] in (*THERE, DETACHED)
            and state.views[home][buffer].via == c
            for c, it in enumerate(state.channels)
            for side in (SOURCE, SINK)
        )
        if not awaited:
            yield f"buffer {buffer} belongs to nobody, and its allocator waits for nothing"


def as_derived(state: State) -> Iterator[str]:
    """What each domain sees is what ownership, copies and messages say (lines 2 to 4, with what is under way)."""
    for buffer, owner in enumerate(state.owner):
        moving = [(c, side) for c, side, kind in _under_way(state, buffer) if kind in TOKENS]
        for domain, views in enumerate(state.views):
            if not state.alive[domain]:
                continue
            view = views[buffer]
            out, held = _expected_copies(state, domain, buffer)
            alive = _connected(state)
            if ((view.out ^ out) | (view.held ^ held)) & alive:
                seen = f"out {list(bits(view.out))}, held {list(bits(view.held))}"
                due = f"out {list(bits(out))}, held {list(bits(held))}"
                yield f"buffer {buffer} in domain {domain}: copies {seen}, derived {due}"
            if owner == PARTED:
                continue
            state_due = READ_ONLY if view.held else INVALID
            if owner == domain and not moving:
                state_due = READ_ONLY_OWNED if out & alive | view.out & ~alive else READ_WRITE
            if view.state != state_due:
                yield f"buffer {buffer} in domain {domain} is {view.state}, derived {state_due}"


def all_home(state: State) -> Iterator[str]:
    """Asked where nothing can happen any more and everybody let go: every allocator has its buffers again."""
    for buffer in range(len(state.owner)):
        home = state.pools[state.pool_of(buffer)].home
        for domain, views in enumerate(state.views):
            if domain != home and _here(views[buffer]):
                yield f"buffer {buffer} is stuck in domain {domain} ({views[buffer].state})"
        if state.alive[home] and state.views[home][buffer].state != READ_WRITE:
            yield f"buffer {buffer} never comes home: {state.views[home][buffer].state} in domain {home}"


def no_lease_waited_for(state: State) -> Iterator[str]:
    """Asked in the same states: nothing waits for a lease that nobody will let go."""
    for channel, row in enumerate(state.standings):
        for standing in row:
            if DETACHED in standing.sides:
                yield f"what went over channel {channel} is detached for ever"


Invariant = Callable[[State], Iterator[str]]

ALWAYS: tuple[Invariant, ...] = (
    one_owner,
    no_write_beside,
    no_reuse_while_held,
    copies_reachable,
    no_circle,
    as_derived,
    nothing_lost,
)
IN_THE_END: tuple[Invariant, ...] = (all_home, no_lease_waited_for)


def broken(state: State, invariants: tuple[Invariant, ...] = ALWAYS) -> list[str]:
    """The complaints of all invariants, each with the invariant's name."""
    return [f"{invariant.__name__}: {complaint}" for invariant in invariants for complaint in invariant(state)]


# ---- what the invariants look at ----


def _here(view: View) -> bool:
    return view.owned or view.held != 0


def _under_way(state: State, buffer: int) -> list[tuple[int, int, str]]:
    """Messages about a buffer: the channel, the side that will take it, the kind."""
    return [
        (c, side, m.kind)
        for c, queues in enumerate(state.queues)
        for side, queue in enumerate(queues)
        for m in queue
        if m.item == buffer and m.kind in TRANSFERS
    ]


def _connected(state: State) -> int:
    """The channels of which no side has ended."""
    mask = 0
    for c, it in enumerate(state.channels):
        if not OVER.intersection(it.stages):
            mask |= 1 << c
    return mask


def _orphan(state: State, domain: int, buffer: int) -> bool:
    """Whether a domain has a buffer over a channel that ended at either side."""
    view = state.views[domain][buffer]
    if view.owned:
        return view.via != NOBODY and not _connected(state) >> view.via & 1
    return bool(view.held & ~_connected(state))


def _expected_copies(state: State, domain: int, buffer: int) -> tuple[int, int]:
    """Copies out and held, as the report's buffer_copies and the messages under way have it."""
    out = held = 0
    under_way = {c for c, _, kind in _under_way(state, buffer) if kind not in TOKENS}
    for channel in bits(state.copies[buffer]):
        source, sink = state.channels[channel].domains
        if source == domain:
            out |= 1 << channel
        if sink == domain and channel not in under_way:
            held |= 1 << channel
    return out, held
