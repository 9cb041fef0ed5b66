"""Everything that can happen next: calls of every domain, deliveries, ends, deaths, leases.

Knows: which steps a state has, by kind. Must not know: which of them a configuration wants, or what must hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from .delivery import deliver, judge, waiting
from .ending import close, destroy, die, drop, reclaim
from .setup import assign, remove
from .state import (
    ABSENT,
    ACTIVE,
    ASSIGN,
    CONNECTED,
    DETACHED,
    OVER,
    REMOVE,
    SINK,
    SOURCE,
    TEARDOWN,
    UNBOUND,
    Refused,
    State,
)
from .transfer import copy, move, pass_, release

CALLS: tuple[tuple[str, int, Callable[[State, int, int, int], State | Refused]], ...] = (
    ("move", SOURCE, move),
    ("copy", SOURCE, copy),
    ("pass", SINK, pass_),
    ("release", SINK, release),
)


class Step(NamedTuple):
    """One step: what happens, in which domain, on which channel (-1: none), to which buffer or pool (-1: none)."""

    act: str
    domain: int
    channel: int = -1
    item: int = -1
    note: str = ""

    def __str__(self) -> str:
        over = f" over channel {self.channel}" if self.channel >= 0 else ""
        what = f" {self.item}" if self.item >= 0 else ""
        return f"domain {self.domain}: {self.act}{what}{over}{f' ({self.note})' if self.note else ''}"


def transfers(state: State, bound: int) -> Iterator[tuple[Step, State]]:
    """Every transfer that is not refused; a queue of `bound` messages takes no more."""
    for channel, it in enumerate(state.channels):
        for act, side, call in CALLS:
            if it.stages[side] != CONNECTED or len(state.queues[channel][1 - side]) >= bound:
                continue
            domain = it.domains[side]
            for buffer, view in enumerate(state.views[domain]):
                if not (view.owned or view.held):
                    continue
                after = call(state, domain, channel, buffer)
                if not isinstance(after, Refused):
                    yield Step(act, domain, channel, buffer), after


def deliveries(state: State, vetoes: bool) -> Iterator[tuple[Step, State]]:
    """Every message that is next in its queue."""
    for channel, it in enumerate(state.channels):
        for side in (SOURCE, SINK):
            message = waiting(state, channel, side)
            if message is None:
                continue
            step = Step(f"takes {message.kind}", it.domains[side], channel, message.item, judge(state, channel, side))
            yield step, deliver(state, channel, side)
            if vetoes and message.kind in (ASSIGN, REMOVE):
                yield step._replace(note="vetoed"), deliver(state, channel, side, veto=True)


def ends(state: State, graceful: bool) -> Iterator[tuple[Step, State]]:
    """Close, and if `graceful` destroy, by each side of each channel."""
    for channel, it in enumerate(state.channels):
        for side in (SOURCE, SINK):
            if graceful and it.stages[side] == CONNECTED:
                yield Step("destroy", it.domains[side], channel), _done(destroy(state, channel, side))
            if it.stages[side] in (CONNECTED, TEARDOWN):
                yield Step("close", it.domains[side], channel), _done(close(state, channel, side))


def drops(state: State) -> Iterator[tuple[Step, State]]:
    """Every drop that is not refused and changes something."""
    for domain, views in enumerate(state.views):
        for buffer, view in enumerate(views):
            if view.owned or view.held:
                after = drop(state, domain, buffer)
                if not isinstance(after, Refused):
                    yield Step("drop", domain, -1, buffer), after


def hang_ups(state: State) -> Iterator[tuple[Step, State]]:
    """Every lease that hung up and gives something back."""
    for channel, row in enumerate(state.standings):
        for pool, standing in enumerate(row):
            for side in (SOURCE, SINK):
                if standing.sides[side] == DETACHED:
                    after = reclaim(state, channel, side, pool)
                    if not isinstance(after, Refused) and after != state:
                        yield Step("reclaims pool", state.channels[channel].domains[side], channel, pool), after


def deaths(state: State, domains: tuple[int, ...]) -> Iterator[tuple[Step, State]]:
    """The death of each of these domains that lives."""
    for domain in domains:
        if state.alive[domain]:
            yield Step("dies", domain), die(state, domain)


def assignments(state: State, bound: int) -> Iterator[tuple[Step, State]]:
    """Every request to bring a pool onto a channel or to take it off."""
    for channel, it in enumerate(state.channels):
        for side in (SOURCE, SINK):
            if it.stages[side] != CONNECTED or len(state.queues[channel][1 - side]) >= bound:
                continue
            for pool, standing in enumerate(state.standings[channel]):
                if standing.sides[side] in (ABSENT, ACTIVE):
                    asks = standing.sides[side] == ABSENT
                    after = (assign if asks else remove)(state, channel, side, pool)
                    if not isinstance(after, Refused):
                        yield Step("assign pool" if asks else "remove pool", it.domains[side], channel, pool), after


def wound_down(state: State) -> bool:
    """Whether everybody let go: all channels over, nothing to deliver, drop or reclaim. Every state leads to such.

    Deliveries, ends, drops and what leases give back are never refused for ever and cannot go on for ever, so what
    holds in these states holds in some future of every state.
    """
    for channel, it in enumerate(state.channels):
        if any(stage not in OVER and stage != UNBOUND for stage in it.stages):
            return False
        if any(waiting(state, channel, side) is not None for side in (SOURCE, SINK)):
            return False
    return next(drops(state), None) is None and next(hang_ups(state), None) is None


def _done(after: State | Refused) -> State:
    assert not isinstance(after, Refused)
    return after
