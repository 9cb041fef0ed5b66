"""Ends: teardown in order, close, the death of a domain, drop, and what a lease gives back (design rules 15 to 17).

Knows: what each end leaves to whom. Must not know: transfers.
"""

from __future__ import annotations

from .account import dropped, reclaimed
from .mistakes import DETACHED_REUSED, DROPPED_WHILE_CONNECTED
from .setup import is_away, reclaims, settle
from .state import (
    ABSENT,
    ACTIVE,
    CARRY_LEASES,
    CLOSED,
    CONNECTED,
    DETACHED,
    END,
    GONE,
    INITIALIZED,
    INVALID,
    NOBODY,
    OVER,
    PARTED,
    PENDING,
    REMOVING,
    TEARDOWN,
    TRANSFERS,
    UNKNOWN,
    Message,
    Refused,
    State,
    View,
    bits,
    lease,
    listens,
    lose,
    post,
    with_copies,
    with_leases,
    with_owner,
    with_queue,
    with_stage,
    with_standing,
    with_view,
)


def destroy(state: State, channel: int, side: int) -> State | Refused:
    """The graceful end: no new sends from here; what the peer sent is taken until it has answered (rule 15)."""
    stage = state.channels[channel].stages[side]
    if stage != CONNECTED:
        return close(state, channel, side)
    return post(with_stage(state, channel, side, TEARDOWN), channel, 1 - side, Message(END))


def close(state: State, channel: int, side: int) -> State | Refused:
    """The end without waiting, also of a destroy whose deadline is over. What this side sent still arrives."""
    if state.channels[channel].stages[side] in OVER:
        return state  # idempotent
    return leave(state, channel, side, CLOSED)


def leave(state: State, channel: int, side: int, stage: str) -> State:
    """End a side, and tell the other one unless it was told."""
    told = state.channels[channel].stages[side] in (TEARDOWN, INITIALIZED)
    state = end_side(state, channel, side, stage)
    return state if told else post(state, channel, 1 - side, Message(END))


def end_side(state: State, channel: int, side: int, stage: str) -> State:
    """This side takes no more; a pool that it assigned here is detached until the lease hangs up (rule 16)."""
    state = lose(state, state.queues[channel][side])
    state = with_queue(state, channel, side, ())
    state = with_stage(state, channel, side, stage)
    domain = state.channels[channel].domains[side]
    for pool, standing in enumerate(state.standings[channel]):
        if standing.sides[side] in (ACTIVE, REMOVING):
            mine = reclaims(state, channel, side, pool)
            state = with_standing(state, channel, pool, side, DETACHED if mine else ABSENT)
            state = _nothing_detached(state, channel, side, pool)
        elif standing.sides[side] == PENDING:
            state = with_standing(state, channel, pool, side, ABSENT)
        state = settle(state, domain, pool)
    return state


def _nothing_detached(state: State, channel: int, side: int, pool: int) -> State:
    """A detached pool of which nothing is away any more needs no lease."""
    domain = state.channels[channel].domains[side]
    if state.standings[channel][pool].sides[side] != DETACHED:
        return state
    for buffer in state.pools[pool].buffers():
        view = state.views[domain][buffer]
        if (
            (view.out | view.held) >> channel & 1
            or is_away(state, channel, side, buffer)
            or _held_of_own(view, channel)
        ):
            return state
    return with_standing(state, channel, pool, side, ABSENT)


def _held_of_own(view: View, channel: int) -> bool:
    """It went away over the channel, and is here as a copy: the receive-master mode."""
    return not view.owned and view.held != 0 and view.via == channel


def die(state: State, domain: int) -> State:
    """A domain dies: what it had published is delivered first, what waited behind full rings is lost (rule 17)."""
    state = state._replace(alive=tuple(a and d != domain for d, a in enumerate(state.alive)))
    for channel, it in enumerate(state.channels):
        for side in (0, 1):
            if it.domains[side] == domain:
                state = _hang_up(state, channel, side)
    for buffer in range(len(state.owner)):
        if state.views[domain][buffer].owned:
            state = with_owner(state, buffer, NOBODY)
    state = state._replace(
        views=(*state.views[:domain], (View(),) * len(state.owner), *state.views[domain + 1 :]),
    )
    for pool in range(len(state.pools)):
        state = with_leases(state, domain, pool, 0)
    return state


def _hang_up(state: State, channel: int, side: int) -> State:
    state = lose(state, state.queues[channel][side])
    state = with_queue(state, channel, side, ())
    state = with_stage(state, channel, side, CLOSED)
    for pool in range(len(state.pools)):
        state = with_standing(state, channel, pool, side, ABSENT)
    if not listens(state, channel, 1 - side):
        return state
    queue, slots = state.queues[channel][1 - side], state.rules.slots
    sent = [m for m in queue if m.kind != END]
    published, waited = tuple(sent[:slots]), tuple(sent[slots:])
    in_order = any(m.kind == END for m in queue[:slots])
    end = Message(END, data=UNKNOWN if in_order else GONE)
    return with_queue(lose(state, waited), channel, 1 - side, (*published, end))


def drop(state: State, domain: int, buffer: int) -> State | Refused:
    """Let go of a buffer after the channel that it came over ended (rule 16).

    Copies of it may still be out over channels that ended: whoever has them holds the leases of those who lent the
    buffer here. If this were refused, two domains could wait for each other's leases for ever.
    """
    view = state.views[domain][buffer]
    pool = state.pool_of(buffer)
    if view.free:
        return Refused("NotAllocatedError", "it is on its allocator's free list")
    if state.pools[pool].home == domain:
        return Refused("ChannelStateError", "it is at home here")
    ways = list(bits(view.held)) + ([view.via] if view.owned and view.via != NOBODY else [])
    if any(_side_lives(state, c, domain, pool) for c in ways) and DROPPED_WHILE_CONNECTED not in state.rules.mistakes:
        return Refused("ChannelStateError", "the channel that it came over is still connected")
    if any(_side_lives(state, c, domain, pool) for c in bits(view.out)):
        return Refused("ChannelStateError", "copies of it are not back")
    if view.state == INVALID and view.via != NOBODY and _side_lives(state, view.via, domain, pool):
        return state  # it left over a channel that lives, and is still to come back
    if view.owned:
        state = with_owner(state, buffer, NOBODY)
    return settle(with_view(state, domain, buffer, dropped(view)), domain, pool)


def _side_lives(state: State, channel: int, domain: int, pool: int) -> bool:
    it = state.channels[channel]
    sides = [s for s in (0, 1) if it.domains[s] == domain]
    return any(it.stages[s] not in OVER and state.standings[channel][pool].sides[s] != ABSENT for s in sides)


def hung_up(state: State, channel: int, side: int, pool: int) -> bool:
    """Whether nobody has the write end of this side's lease, also not on its way (rule 16)."""
    if not state.rules.shared or DETACHED_REUSED in state.rules.mistakes:
        return True
    mine = lease(channel, side)
    if any(row[pool] & mine for row in state.leases):
        return False
    return not any(
        m.leases & mine and m.item == pool and m.kind in CARRY_LEASES
        for queues in state.queues
        for queue in queues
        for m in queue
    )


def reclaim(state: State, channel: int, side: int, pool: int) -> State | Refused:
    """The lease of an ended assignment hung up: its assigner has READ_WRITE again what was away (rule 16).

    A buffer that is here as a copy waits while the channel that it came over lives here, and until what this domain
    lent of it is back.
    """
    if state.standings[channel][pool].sides[side] != DETACHED:
        return Refused("PoolNotAssignedError", "nothing of it is detached")
    if not hung_up(state, channel, side, pool):
        return Refused("PoolBusyError", "somebody may still hold it")
    domain = state.channels[channel].domains[side]
    if _arriving(state, domain, pool):
        return Refused("PoolBusyError", "what was published before is taken first")
    for buffer in state.pools[pool].buffers():
        state = _reclaim_one(state, channel, side, domain, buffer)
    return _nothing_detached(state, channel, side, pool)


def _arriving(state: State, domain: int, pool: int) -> bool:
    """Whether something of the pool is on its way to this domain: it may be what is to be reclaimed (rule 17)."""
    return any(
        m.kind in TRANSFERS and state.pool_of(m.item) == pool
        for it, queues in zip(state.channels, state.queues, strict=True)
        for side, queue in enumerate(queues)
        if it.domains[side] == domain
        for m in queue
    )


def _reclaim_one(state: State, channel: int, side: int, domain: int, buffer: int) -> State:
    view = state.views[domain][buffer]
    if view.out >> channel & 1:
        view = view._replace(out=view.out & ~(1 << channel))
        state = with_copies(state, buffer, state.copies[buffer] & ~(1 << channel))
        state = _part(with_view(state, domain, buffer, view), domain, buffer)
    pool = state.pool_of(buffer)
    lent_here = any(_side_lives(state, c, domain, pool) for c in bits(view.held))
    readable = _held_of_own(view, channel) and not view.out and not lent_here
    if readable:
        state = with_copies(state, buffer, state.copies[buffer] & ~view.held)
        view = view._replace(held=0)
        state = with_view(state, domain, buffer, view)
    if is_away(state, channel, side, buffer):
        after = reclaimed(view)
        assert after is not None
        after = after._replace(data=view.data if readable else UNKNOWN)  # what could be read here is unchanged
        state = _part(with_owner(state, buffer, domain), domain, buffer)
        state = with_view(state, domain, buffer, after)
    return state


def _part(state: State, domain: int, buffer: int) -> State:
    """Where memory is not shared, a slot is free at once; whoever has the twin keeps it, and they part."""
    if state.rules.shared:
        return state
    others = (views[buffer] for d, views in enumerate(state.views) if d != domain)
    elsewhere = any(v.owned or v.held for v in others) or any(
        m.item == buffer and m.kind not in (END,) for queues in state.queues for queue in queues for m in queue
    )
    return with_owner(state, buffer, PARTED) if elsewhere else state
