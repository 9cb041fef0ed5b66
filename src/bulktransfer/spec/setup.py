"""Channels and pools: Algorithms 3 to 6 of the report, and the way back, removal (design rules 1 to 4, 14).

Knows: what create, bind, pool create, assign and remove require and ensure. Must not know: transfers; what a request
leads to at the other side is delivery.py's.
"""

from __future__ import annotations

from .mistakes import ASSIGNER_ALONE, REMOVED_WHILE_BUSY
from .state import (
    ABSENT,
    ACTIVE,
    ASSIGN,
    BROKEN,
    CLOSED,
    CONNECTED,
    COPY_REFUSED,
    DETACHED,
    ENDED,
    INITIALIZED,
    MOVE_REFUSED,
    NOBODY,
    PENDING,
    REMOVE,
    REMOVING,
    SINK,
    SOURCE,
    THERE,
    TRANSFERS,
    UNBOUND,
    Channel,
    Message,
    Pool,
    Refused,
    Standing,
    State,
    View,
    lease,
    post,
    with_channel,
    with_leases,
    with_standing,
    with_view,
)

OTHER_ROLE = {"MASTER": "SLAVE", "SLAVE": "MASTER"}
_END_ERROR = {CLOSED: "ClosedChannelError", ENDED: "EndOfChannelError", BROKEN: "BrokenChannelError"}


def create(state: State, domain: int, side: int, role: str = "GENERIC", trust: str = "FULL") -> State | Refused:
    """Algorithm 3: a new channel with one endpoint, which fixes direction, role and trust (rules 1, 2).

    The report's "ep not in valid_eps" holds by construction: an endpoint is a side of a channel here.
    """
    if trust == "UNINITIALIZED":
        return Refused("ValueError", "the creator says the trust")
    domains = (domain, NOBODY) if side == SOURCE else (NOBODY, domain)
    roles = (role, "GENERIC") if side == SOURCE else ("GENERIC", role)
    stages = (INITIALIZED, UNBOUND) if side == SOURCE else (UNBOUND, INITIALIZED)
    return state._replace(
        channels=(*state.channels, Channel(domains, roles, stages, trust)),
        standings=(*state.standings, (Standing(),) * len(state.pools)),
        queues=(*state.queues, ((), ())),
    )


def bind(
    state: State, domain: int, channel: int, role: str = "GENERIC", trust: str = "UNINITIALIZED", veto: bool = False
) -> State | Refused:
    """Algorithm 4: the other endpoint, with the complements; a refusal leaves the creator as it was (rules 1 to 3)."""
    it = state.channels[channel]
    side = SINK if it.stages[SINK] == UNBOUND else SOURCE
    creator = 1 - side
    if it.stages[creator] in _END_ERROR or not state.alive[it.domains[creator]]:
        return Refused("EndpointNotFoundError", "nobody waits there")
    if it.stages[creator] != INITIALIZED:
        return Refused("BindRefusedError", "it is bound already, and the first binder is not touched")
    if trust not in ("UNINITIALIZED", it.trust):
        return Refused("TrustMismatchError", "trust is the creator's")
    pair = agree_roles(it.roles[creator], role)
    if pair is None:
        return Refused("RoleConflictError", "both ask for the same role")
    if veto:
        return Refused("BindRefusedError", "the creator's callback said no")
    roles = (pair[0], pair[1]) if creator == SOURCE else (pair[1], pair[0])
    domains = (it.domains[0], domain) if side == SINK else (domain, it.domains[1])
    return with_channel(state, channel, it._replace(domains=domains, roles=roles, stages=(CONNECTED, CONNECTED)))


def agree_roles(creator: str, binder: str) -> tuple[str, str] | None:
    """The roles of both once connected: never GENERIC (rule 1)."""
    if creator == "GENERIC":
        creator = OTHER_ROLE.get(binder, "MASTER")
    if binder == "GENERIC":
        binder = OTHER_ROLE[creator]
    return None if creator == binder else (creator, binder)


def pool_create(
    state: State, domain: int, count: int, trust: str = "UNINITIALIZED", free: bool = False
) -> State | Refused:
    """Algorithm 5: new buffers, all owned by the domain; `free` puts them on the allocator's free list."""
    if count < 1:
        return Refused("ValueError", "a pool has a buffer at least")
    first = len(state.owner)
    new = View(owned=True, data=0, free=free)
    return state._replace(
        pools=(*state.pools, Pool(domain, first, count, trust)),
        standings=tuple((*row, Standing()) for row in state.standings),
        views=tuple(
            (*row, *(new if number == domain else View() for _ in range(count)))
            for number, row in enumerate(state.views)
        ),
        leases=tuple((*row, 0) for row in state.leases),
        owner=(*state.owner, *(domain,) * count),
        copies=(*state.copies, *(0,) * count),
    )


def allocate(state: State, buffer: int) -> State | Refused:
    """Take a buffer off its allocator's free list."""
    home = state.pools[state.pool_of(buffer)].home
    view = state.views[home][buffer]
    if not view.free:
        return Refused("PoolExhaustedError", "it is not free")
    return with_view(state, home, buffer, view._replace(free=False))


def free(state: State, domain: int, buffer: int) -> State | Refused:
    """Put a buffer back on its allocator's free list: only there, and only READ_WRITE."""
    view = state.views[domain][buffer]
    if state.pools[state.pool_of(buffer)].home != domain or view.free:
        return Refused("NotAllocatedError" if view.free else "ValueError", "it is not this allocator's to free")
    if view.owned and not view.out:
        return with_view(state, domain, buffer, view._replace(free=True, via=NOBODY))
    error = "CopiesOutstandingError" if view.owned else "NotOwnedError" if view.held else "InvalidBufferError"
    return Refused(error, "it is not READ_WRITE")


# ---- pools on channels ----


def present(state: State, domain: int, pool: int) -> bool:
    """Whether the pool is in the domain's list: allocated here, on a channel, or a buffer of it owned or held."""
    if not state.alive[domain]:
        return False
    it = state.pools[pool]
    if it.home == domain:
        return True
    views = state.views[domain]
    if any(views[b].owned or views[b].held for b in it.buffers()):
        return True
    return any(
        row[pool].sides[side] in THERE
        for channel, row in zip(state.channels, state.standings, strict=True)
        for side in (SOURCE, SINK)
        if channel.domains[side] == domain
    )


def settle(state: State, domain: int, pool: int) -> State:
    """A pool that lost its last use leaves the domain, with its leases and what waits for leases (rules 14, 16)."""
    if present(state, domain, pool):
        return state
    for channel, it in enumerate(state.channels):
        for side in (SOURCE, SINK):
            if it.domains[side] == domain and state.standings[channel][pool].sides[side] == DETACHED:
                state = with_standing(state, channel, pool, side, ABSENT)
    return with_leases(state, domain, pool, 0) if state.leases[domain][pool] else state


def why_not(state: State, channel: int, side: int) -> Refused | None:
    """What keeps this side of a channel from sending or asking."""
    it = state.channels[channel]
    stage = it.stages[side]
    if stage == CONNECTED and state.alive[it.domains[side]]:
        return None
    return Refused(_END_ERROR.get(stage, "ChannelStateError"), f"the channel is {stage}")


def reclaims(state: State, channel: int, side: int, pool: int) -> bool:
    """Whether this side takes back what went over the channel when it ended (rule 16).

    The side that assigned the pool there does, and so does the allocator of the pool: nobody else would.
    """
    if state.standings[channel][pool].by == side:
        return True
    home = state.pools[pool].home == state.channels[channel].domains[side]
    return home and ASSIGNER_ALONE not in state.rules.mistakes


def own_leases(state: State, domain: int) -> int:
    """The leases that this domain makes: it reads them, and never keeps a write end that finds its way back."""
    mask = 0
    for channel, it in enumerate(state.channels):
        for side in (SOURCE, SINK):
            if it.domains[side] == domain:
                mask |= lease(channel, side)
    return mask


def assign(state: State, channel: int, side: int, pool: int) -> State | Refused:
    """Algorithm 6, the request: the pool is pending until the answer (rule 4). Changes nobody's ownership."""
    refused = why_not(state, channel, side)
    if refused:
        return refused
    it = state.channels[channel]
    domain = it.domains[side]
    if not present(state, domain, pool):
        return Refused("PoolNotAssignedError", "the pool is not in this domain")
    if state.standings[channel][pool].sides[side] != ABSENT:
        return Refused("PoolAlreadyAssignedError", "it is there already, or about to be")
    if trust_of(state, pool) not in ("UNINITIALIZED", it.trust):
        return Refused("TrustMismatchError", "the pool is reserved for another trust")
    state = with_standing(state, channel, pool, side, PENDING)
    leases = state.leases[domain][pool] | lease(channel, side)
    return post(state, channel, 1 - side, Message(ASSIGN, pool, leases=leases))


def trust_of(state: State, pool: int) -> str:
    """The trust that a pool is bound to: what it was made for, or that of the channels that it is on."""
    if state.pools[pool].trust != "UNINITIALIZED":
        return state.pools[pool].trust
    on = (it for it, row in zip(state.channels, state.standings, strict=True) if row[pool].sides != (ABSENT, ABSENT))
    return next((it.trust for it in on), "UNINITIALIZED")


def is_away(state: State, channel: int, side: int, buffer: int) -> bool:
    """Whether by this side's account the buffer left over this channel and has not come home by any way."""
    it = state.channels[channel]
    view = state.views[it.domains[side]][buffer]
    if view.owned or view.held or view.via != channel:
        return False
    if it.domains[0] != it.domains[1]:
        return True
    return not any(m.item == buffer and m.kind in TRANSFERS for queue in state.queues[channel] for m in queue)


def may_remove(state: State, channel: int, side: int, pool: int) -> bool:
    """Whether by this side's account all of the pool that travelled over the channel is home (rule 14)."""
    if REMOVED_WHILE_BUSY in state.rules.mistakes:
        return True
    it = state.channels[channel]
    domain = it.domains[side]
    mine = reclaims(state, channel, side, pool)
    for buffer in state.pools[pool].buffers():
        view = state.views[domain][buffer]
        if (view.out | view.held) >> channel & 1:
            return False
        if mine and not view.owned and view.via == channel:  # also where a copy of it came back
            return False
        if view.owned and view.via == channel and not mine:
            return False
    sent = state.queues[channel][1 - side]
    refused = (m for m in state.queues[channel][side] if m.kind in (MOVE_REFUSED, COPY_REFUSED))
    return not any(m.kind in TRANSFERS and state.pool_of(m.item) == pool for m in (*sent, *refused))


def remove(state: State, channel: int, side: int, pool: int) -> State | Refused:
    """Ask for a pool to leave the channel; until the answer this side sends nothing of it there (rule 14)."""
    refused = why_not(state, channel, side)
    if refused:
        return refused
    if state.standings[channel][pool].sides[side] != ACTIVE:
        return Refused("PoolNotAssignedError", "it is not assigned, or its removal is under way")
    if not may_remove(state, channel, side, pool):
        return Refused("PoolBusyError", "a buffer that travelled over the channel has not come home")
    state = with_standing(state, channel, pool, side, REMOVING)
    return post(state, channel, 1 - side, Message(REMOVE, pool))
