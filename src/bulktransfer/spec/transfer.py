"""The transfers as calls: Algorithms 7 to 10 of the report and the full copy (design rules 5, 6, 8, 10).

Knows: what each call requires, in the order in which the library looks, and what it ensures at once. Must not know:
what becomes of the message (delivery.py).
"""

from __future__ import annotations

from .account import call
from .setup import why_not
from .state import (
    ACTIVE,
    COPY,
    INVALID,
    MOVE,
    PASS,
    READ_ONLY,
    READ_WRITE,
    RELEASE,
    UNKNOWN,
    Message,
    Refused,
    State,
    View,
    post,
    with_copies,
    with_owner,
    with_view,
)


def move(state: State, domain: int, channel: int, buffer: int) -> State | Refused:
    """Algorithm 7: ownership and contents go to the sink, at the call; until it is accepted neither side has it."""
    return _send(state, domain, channel, buffer, MOVE)


def pass_(state: State, domain: int, channel: int, buffer: int) -> State | Refused:
    """Algorithm 8: ownership goes to the source; nobody promises the contents. Any owner may pass, not a holder."""
    return _send(state, domain, channel, buffer, PASS)


def copy(state: State, domain: int, channel: int, buffer: int) -> State | Refused:
    """Algorithm 9: the sink may read, nobody may write; (buffer, channel) is tracked until it is back."""
    return _send(state, domain, channel, buffer, COPY)


def release(state: State, domain: int, channel: int, buffer: int) -> State | Refused:
    """Algorithm 10: the sink lets go; (buffer, channel) stays tracked until the source has heard of it."""
    return _send(state, domain, channel, buffer, RELEASE)


def full_copy(state: State, domain: int, channel: int, buffer: int, into: int) -> State | Refused:
    """I-5.1.11: a local copy of the contents into another owned buffer, and a move of that one."""
    moved = _send(state, domain, channel, into, MOVE)
    if isinstance(moved, Refused):
        return moved
    source = call(state.views[domain][buffer], "FULL_COPY", channel, state.rules)
    if isinstance(source, Refused):
        return source
    if buffer == into:
        return Refused("ValueError", "into another buffer")
    target = state.views[domain][into]._replace(data=source.data)
    return _send(with_view(state, domain, into, target), domain, channel, into, MOVE)


def write(state: State, domain: int, buffer: int, data: object) -> State | Refused:
    """Change the contents: for the owner alone, while nobody reads."""
    view = state.views[domain][buffer]
    if view.state != READ_WRITE or view.free:
        if view.free:
            return Refused("NotAllocatedError", "it is on its allocator's free list")
        error = {INVALID: "InvalidBufferError", READ_ONLY: "NotOwnedError"}.get(view.state, "CopiesOutstandingError")
        return Refused(error, f"it is {view.state}")
    return with_view(state, domain, buffer, view._replace(data=data))


def _send(state: State, domain: int, channel: int, buffer: int, act: str) -> State | Refused:
    it = state.channels[channel]
    side = it.side_of(domain, act)
    own_side = side if side >= 0 else it.domains.index(domain)
    refused = why_not(state, channel, own_side)
    if refused:
        return refused
    if side < 0:
        return Refused("DirectionError", "move and copy belong to the source, pass and release to the sink")
    if state.standings[channel][state.pool_of(buffer)].sides[side] != ACTIVE:
        return Refused("PoolNotAssignedError", "the pool is not assigned, or is leaving")
    before = state.views[domain][buffer]
    after = call(before, act, channel, state.rules, loopback=it.domains[0] == it.domains[1])
    if isinstance(after, Refused):
        return after
    state = with_view(state, domain, buffer, after)
    return post(_in_the_report(state, act, channel, side, buffer), channel, 1 - side, _message(act, buffer, before))


def _message(act: str, buffer: int, view: View) -> Message:
    return Message(act, buffer, view.data if act in (MOVE, COPY) else UNKNOWN)


def _in_the_report(state: State, act: str, channel: int, side: int, buffer: int) -> State:
    """The report's own variables: ownership is the peer's from the call on, a copy is tracked from the call on."""
    if act in (MOVE, PASS):
        return with_owner(state, buffer, state.channels[channel].domains[1 - side])
    if act == COPY:
        return with_copies(state, buffer, state.copies[buffer] | 1 << channel)
    return state
