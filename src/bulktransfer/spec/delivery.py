"""Delivery: what becomes of a message when it is taken, one at a time and in order (design rules 4, 6, 8, 9, 14).

Knows: how an arrival is judged, and how a refusal is rolled back. Must not know: who sends what when.
"""

from __future__ import annotations

from .account import answer, arrival
from .ending import end_side, leave
from .mistakes import ACCEPTED_TWICE, JUDGED_BY_LAST_WAY, LEASES_FOLLOW_ASSIGNMENTS, NOT_ROLLED_BACK
from .setup import is_away, may_remove, own_leases, reclaims, settle
from .state import (
    ABSENT,
    ACTIVE,
    ASSIGN_NO,
    ASSIGN_YES,
    BROKEN,
    CONNECTED,
    COPY,
    COPY_REFUSED,
    DETACHED,
    END,
    ENDED,
    GONE,
    LEASE,
    MOVE,
    MOVE_REFUSED,
    NOBODY,
    PASS,
    PENDING,
    RELEASE,
    REMOVE,
    REMOVE_NO,
    REMOVE_YES,
    REMOVING,
    THERE,
    TRANSFERS,
    Message,
    Refused,
    State,
    lease,
    listens,
    post,
    with_copies,
    with_leases,
    with_owner,
    with_queue,
    with_standing,
    with_view,
)

ACCEPTED, REFUSED, VIOLATION = "accepted", "refused", "violation"
_RECEIVED = {MOVE: "MOVE_RECEIVED", PASS: "BUFFER_RECEIVED", COPY: "COPY_RECEIVED"}
_ANSWERED = {RELEASE: "COPY_RELEASED", COPY_REFUSED: "COPY_REFUSED", MOVE_REFUSED: "MOVE_REFUSED"}
_REFUSAL = {MOVE: MOVE_REFUSED, PASS: MOVE_REFUSED, COPY: COPY_REFUSED}


def waiting(state: State, channel: int, side: int) -> Message | None:
    """The message that would be taken next at this side, if it still takes any."""
    queue = state.queues[channel][side]
    return queue[0] if queue and listens(state, channel, side) else None


def judge(state: State, channel: int, side: int) -> str:
    """What becomes of the next message: accepted; refused and rolled back; or a violation of the channel's history."""
    message = state.queues[channel][side][0]
    if message.kind not in TRANSFERS:
        return ACCEPTED
    standing = state.standings[channel][state.pool_of(message.item)]
    if standing.sides[side] not in THERE:
        return VIOLATION
    view = state.views[state.channels[channel].domains[side]][message.item]
    if message.kind in _ANSWERED:
        if answer(view, _ANSWERED[message.kind], channel) is not None:
            return ACCEPTED
        # A move that is rolled back may find a twin here: it came since over another channel, after a reclaim.
        return ACCEPTED if message.kind == MOVE_REFUSED and _twins_parted(state, message.item) else VIOLATION
    if message.kind == COPY:
        if view.held >> channel & 1:
            return VIOLATION
    elif view.owned or view.held:
        strict = JUDGED_BY_LAST_WAY in state.rules.mistakes
        own = view.held >> channel & 1 if view.held else view.via in (-1, channel)
        return VIOLATION if strict and own else REFUSED
    elif _not_its_to_return(state, channel, side, message.item):
        return REFUSED
    after = arrival(view, _RECEIVED[message.kind], channel, message.data, state.rules)
    return ACCEPTED if after is not None else REFUSED


def _twins_parted(state: State, buffer: int) -> bool:
    return not state.rules.shared and state.owner[buffer] < 0


def _not_its_to_return(state: State, channel: int, side: int, buffer: int) -> bool:
    """Where memory is not shared, the allocator takes a buffer back from the peer that it sent it to (section 8.5).

    The peer is a domain: what left over one channel to it may come back over another one.
    """
    pool = state.pool_of(buffer)
    domain, peer = state.channels[channel].domains[side], state.channels[channel].domains[1 - side]
    home = state.pools[pool].home == domain and state.standings[channel][pool].by == side
    if state.rules.shared or not home:
        return False
    via = state.views[domain][buffer].via
    return via == NOBODY or set(state.channels[via].domains) != {domain, peer}


def deliver(state: State, channel: int, side: int, veto: bool = False) -> State:
    """Take the next message at this side; `veto` is what the callback of an assignment or removal says."""
    message = state.queues[channel][side][0]
    verdict = judge(state, channel, side)
    if verdict == VIOLATION:
        return leave(state, channel, side, BROKEN)
    rest = state.queues[channel][side][1:]
    if ACCEPTED_TWICE in state.rules.mistakes and message.kind in _RECEIVED and not message.leases:
        rest = (message._replace(leases=1), *rest)  # marked, so that it comes twice only
    state = with_queue(state, channel, side, rest)
    if message.kind in TRANSFERS:
        return _transfer(state, channel, side, message, verdict)
    if message.kind == END:
        return _end(state, channel, side, message)
    if message.kind in (REMOVE, REMOVE_YES, REMOVE_NO):
        return _removal(state, channel, side, message, veto)
    return _assignment(state, channel, side, message, veto)


def _transfer(state: State, channel: int, side: int, message: Message, verdict: str) -> State:
    domain = state.channels[channel].domains[side]
    sender = state.channels[channel].domains[1 - side]
    buffer = message.item
    view = state.views[domain][buffer]
    if verdict == REFUSED:
        if message.kind != COPY:
            state = with_owner(state, buffer, sender)
        if NOT_ROLLED_BACK in state.rules.mistakes:
            return state
        return post(state, channel, 1 - side, Message(_REFUSAL[message.kind], buffer, message.data))
    if message.kind in _RECEIVED:
        after = arrival(view, _RECEIVED[message.kind], channel, message.data, state.rules)
        assert after is not None
        return with_view(state, domain, buffer, after)
    after = answer(view, _ANSWERED[message.kind], channel)
    if after is None:
        return state  # the twin that was refused is forgotten
    if message.kind != MOVE_REFUSED:
        state = with_copies(state, buffer, state.copies[buffer] & ~(1 << channel))
    return with_view(state, domain, buffer, after)


def _end(state: State, channel: int, side: int, message: Message) -> State:
    """The other side ended the channel, or is gone; everything that it sent before was taken (rules 15, 17).

    Whoever ended the channel in order and died afterwards has ended it in order.
    """
    mine = state.channels[channel].stages[side]
    if message.data == GONE:
        return end_side(state, channel, side, BROKEN)
    if mine == CONNECTED:
        return leave(state, channel, side, ENDED)
    return end_side(state, channel, side, "CLOSED")  # crossing: each answers the other


def _assignment(state: State, channel: int, side: int, message: Message, veto: bool) -> State:
    it = state.channels[channel]
    domain, pool = it.domains[side], message.item
    standing = state.standings[channel][pool]
    if message.kind == LEASE:
        return _take_leases(state, channel, domain, pool, message.leases) if standing.sides[side] in THERE else state
    if message.kind == ASSIGN_NO:
        return with_standing(state, channel, pool, side, ABSENT)
    if message.kind == ASSIGN_YES:
        state = with_standing(state, channel, pool, side, ACTIVE)
        return _take_leases(state, channel, domain, pool, message.leases)
    if standing.sides[side] == PENDING and it.roles[side] == "MASTER":
        return state  # crossing requests: the MASTER's stands, and the peer knows (rule 4)
    if veto:
        state = with_standing(state, channel, pool, side, ABSENT)
        return post(state, channel, 1 - side, Message(ASSIGN_NO, pool))
    back = state.leases[domain][pool] if _leases_spread(state) else 0
    state = with_standing(state, channel, pool, side, ACTIVE, by=1 - side)
    if reclaims(state, channel, side, pool):
        back |= lease(channel, side)
    state = post(state, channel, 1 - side, Message(ASSIGN_YES, pool, leases=back))
    return _take_leases(state, channel, domain, pool, message.leases)


def _leases_spread(state: State) -> bool:
    return LEASES_FOLLOW_ASSIGNMENTS not in state.rules.mistakes and state.rules.shared


def _take_leases(state: State, channel: int, domain: int, pool: int, leases: int) -> State:
    """Keep what is new, and tell every other channel that has the pool: a buffer may leave over each of them."""
    if not state.rules.shared:
        return state
    new = leases & ~state.leases[domain][pool] & ~own_leases(state, domain)
    if not new:
        return state
    state = with_leases(state, domain, pool, state.leases[domain][pool] | new)
    if not _leases_spread(state):
        return state
    for other, it in enumerate(state.channels):
        for side in (0, 1):
            standing = state.standings[other][pool].sides[side]
            if other != channel and it.domains[side] == domain and standing not in (ABSENT, DETACHED):
                state = post(state, other, 1 - side, Message(LEASE, pool, leases=new))
    return state


def _removal(state: State, channel: int, side: int, message: Message, veto: bool) -> State:
    it = state.channels[channel]
    domain, pool = it.domains[side], message.item
    if message.kind == REMOVE_NO:
        return with_standing(state, channel, pool, side, ACTIVE)
    if message.kind == REMOVE_YES:
        return settle(with_standing(state, channel, pool, side, ABSENT), domain, pool)
    standing = state.standings[channel][pool].sides[side]
    if standing == REMOVING and it.roles[side] == "MASTER":
        return state  # crossing requests: the MASTER's stands (rule 14)
    if veto or not may_remove(state, channel, side, pool):
        state = with_standing(state, channel, pool, side, ACTIVE)
        return post(state, channel, 1 - side, Message(REMOVE_NO, pool))
    state = with_standing(state, channel, pool, side, ABSENT)
    return settle(post(state, channel, 1 - side, Message(REMOVE_YES, pool)), domain, pool)


def run_to_rest(state: State) -> State:
    """Deliver everything that is under way, in the order of the channels."""
    while True:
        ready = [(c, s) for c in range(len(state.channels)) for s in (0, 1) if waiting(state, c, s) is not None]
        if not ready:
            return state
        for channel, side in ready:
            if waiting(state, channel, side) is not None:
                state = deliver(state, channel, side)


def detached(state: State, domain: int, pool: int) -> list[int]:
    """The buffers that left this domain over channels that ended, and wait for a lease (rule 16)."""
    found = []
    for buffer in state.pools[pool].buffers():
        for channel, it in enumerate(state.channels):
            for side in (0, 1):
                ended = state.standings[channel][pool].sides[side] == DETACHED and it.domains[side] == domain
                lent = state.views[domain][buffer].out >> channel & 1
                if ended and (lent or is_away(state, channel, side, buffer)):
                    found.append(buffer)
    return sorted(set(found))


def outcome(state: State | Refused) -> str:
    """The name of the error, or nothing."""
    return state.error if isinstance(state, Refused) else ""
