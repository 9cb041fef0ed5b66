"""The model's side of the comparison: the specification's state, and what users would have been told by now.

Knows: spec, and which message of it is which event of the library. Must not know: the library, beyond what it counts.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

from ..spec import model as m
from ..spec.setup import present
from ..spec.state import (
    ABSENT,
    ASSIGN,
    ASSIGN_NO,
    ASSIGN_YES,
    BROKEN,
    CLOSED,
    CONNECTED,
    COPY,
    COPY_REFUSED,
    END,
    ENDED,
    LEASE,
    MOVE,
    MOVE_REFUSED,
    OVER,
    PASS,
    PENDING,
    RELEASE,
    REMOVE,
    REMOVE_NO,
    REMOVE_YES,
    REMOVING,
    TEARDOWN,
    THERE,
    TRANSFERS,
    Message,
    with_queue,
)
from ..spec.steps import hang_ups
from .party import Line

_EVENTS = {
    MOVE: "move_received",
    PASS: "buffer_received",
    COPY: "copy_received",
    RELEASE: "copy_released",
    MOVE_REFUSED: "operation_refused",
    COPY_REFUSED: "operation_refused",
}
_WITH_META = (MOVE, PASS, COPY)
_ERRORS = {MOVE_REFUSED: "NotOwnedError", COPY_REFUSED: "CopyRefusedError"}

_END_ERRORS = {CLOSED: "ClosedChannelError", ENDED: "EndOfChannelError", BROKEN: "BrokenChannelError"}
_ASKED = {PENDING: "assign", REMOVING: "remove"}

End = tuple[int, int]  # channel, side


class Due(NamedTuple):
    """An event that a user is to receive; buffers are numbered through all pools, -1: none."""

    kind: str
    buffer: int = -1
    meta: bytes = b""
    error: str = ""


class Oracle:
    """A state of the specification, driven beside the library."""

    def __init__(self, domains: int, shared: bool, mistakes: frozenset[str] = frozenset()) -> None:
        self.state = m.begin(domains, m.Rules(shared=shared, slots=1 << 30, mistakes=mistakes))
        self.events: dict[End, deque[Due]] = {}
        self.outcomes: dict[int, list[tuple[str, str]]] = {d: [] for d in range(domains)}
        self.taken: dict[End, int] = {}
        self.refused: dict[End, int] = {}
        self._metas: dict[End, deque[bytes]] = {}
        self._wanted: dict[End, int] = {}  # how many transfers the library has taken
        self._control: dict[End, int] = {}  # how many of its control messages are accounted for

    # ---- calls ----

    def apply(self, after: m.State | m.Refused) -> str:
        """Take the state that a call led to; the name of the error, or nothing."""
        if isinstance(after, m.Refused):
            return after.error
        before, self.state = self.state, after
        self._tell_of_ends(before, delivered=False)
        self._trim()
        return ""

    def connect(self, source: int, sink: int, creator: int) -> int:
        """A channel; the side that creates it is its master. Its number."""
        number = len(self.state.channels)
        domains = (source, sink)
        assert not self.apply(m.create(self.state, domains[creator], creator, "MASTER"))
        assert not self.apply(m.bind(self.state, domains[1 - creator], number))
        for side in (m.SOURCE, m.SINK):
            self.events[number, side] = deque()
            self._metas[number, side] = deque()
            self.taken[number, side] = self.refused[number, side] = self._control[number, side] = 0
        return number

    def send(self, act: str, domain: int, channel: int, buffer: int, meta: bytes) -> str:
        """Move, copy, pass or release: the name of the error, or nothing."""
        calls = {"move": m.move, "copy": m.copy, "pass": m.pass_, "release": m.release}
        after = calls[act](self.state, domain, channel, buffer)
        if not isinstance(after, m.Refused) and act != "release":
            self.note(channel, act in ("move", "copy"), meta)
        return self.apply(after)

    def note(self, channel: int, to_sink: bool, meta: bytes) -> None:
        """These bytes travel with what is sent next."""
        self._metas[channel, m.SINK if to_sink else m.SOURCE].append(meta)

    # ---- deliveries ----

    def head(self, channel: int, side: int) -> Message | None:
        """What that side would take next."""
        return m.waiting(self.state, channel, side)

    def deliver(self, channel: int, side: int) -> None:
        """Take it, and note what the user is told. Raises: AssertionError (an honest domain would be accused)."""
        self._end_last(channel, side)
        message = self.head(channel, side)
        assert message is not None, f"nothing is on its way over channel {channel} to side {side}"
        verdict = m.judge(self.state, channel, side)
        assert verdict != m.VIOLATION, f"the model calls {message} over channel {channel} a violation"
        stage = self.state.channels[channel].stages[side]
        before = self._standing(channel, side, message)
        state, self.state = self.state, m.deliver(self.state, channel, side)
        self._tell_of_ends(state, delivered=True)
        if message.kind in TRANSFERS:
            self.taken[channel, side] += 1
            self.refused[channel, side] += verdict == m.REFUSED
        meta = self._metas[channel, side].popleft() if message.kind in _WITH_META else b""
        if verdict == m.ACCEPTED:
            self._tell(channel, side, message, meta, stage, before)
        self._trim()

    def _end_last(self, channel: int, side: int) -> None:
        """Refusals may be published behind the end of a side that is torn down; the library takes what is there.

        The specification loses them, and leases give back what they were about.
        """
        queue = self.state.queues[channel][side]
        if len(queue) > 1 and queue[0].kind == END and self.taken[channel, side] < self._wanted.get((channel, side), 0):
            self.state = with_queue(self.state, channel, side, (*queue[1:], queue[0]))

    def _standing(self, channel: int, side: int, message: Message) -> str:
        return self.state.standings[channel][message.item].sides[side] if message.kind in (REMOVE, ASSIGN) else ""

    def _tell(self, channel: int, side: int, message: Message, meta: bytes, stage: str, before: str) -> None:
        it = self.state.channels[channel]
        events, outcomes = self.events[channel, side], self.outcomes[it.domains[side]]
        kind = message.kind
        if kind in _EVENTS:
            events.append(Due(_EVENTS[kind], message.item, meta, _ERRORS.get(kind, "")))
        elif kind == END and stage == CONNECTED and self.stage(channel, side) == ENDED:
            events.append(Due("teardown_received"))
        elif kind in (ASSIGN_YES, ASSIGN_NO, REMOVE_YES, REMOVE_NO):
            operation = "assign" if kind in (ASSIGN_YES, ASSIGN_NO) else "remove"
            refused = {ASSIGN_NO: "PoolVetoError", REMOVE_NO: "PoolBusyError"}
            outcomes.append((operation, refused.get(kind, "")))
        elif kind in (ASSIGN, REMOVE):
            after = self.state.standings[channel][message.item].sides[side]
            if kind == ASSIGN and after in THERE:
                events.append(Due("pool_assigned"))
            elif kind == REMOVE and after == ABSENT:
                events.append(Due("pool_removed"))
            if before in ("PENDING", "REMOVING") and after != before:  # it shares the outcome of the crossing request
                outcomes.append((kind.lower(), "" if (kind == ASSIGN) == (after in THERE) else "PoolBusyError"))

    def follow(self, channel: int, side: int, line: Line) -> bool:
        """Take what the library took, as far as it is there: so many transfers and refusals in all, so many control
        messages, of which between two steps leases are the only ones, and the end if it is over there. Whether anything
        was taken.
        """
        moved, end = False, (channel, side)
        self._wanted[end] = line.taken
        while (head := self.head(channel, side)) is not None:
            more = self.taken[end] < line.taken
            told = self._control[end] < line.control
            if head.kind in TRANSFERS:
                due = more
            else:
                ended = line.state == "CLOSED" or (line.state == "TEARDOWN" and self.stage(channel, side) == CONNECTED)
                due = (head.kind == LEASE and told) or ended or (more and len(self.state.queues[channel][side]) > 1)
            if not due:
                break
            if head.kind == LEASE and told:
                self._control[end] += 1
            self.deliver(channel, side)
            moved = True
        return moved

    def followed(self, lines: Mapping[End, Line]) -> None:
        """All was taken that the library took; what else it was told is nothing that the model has."""
        for end, line in lines.items():
            if not any(message.kind == LEASE for message in self.state.queues[end[0]][end[1]]):
                self._control[end] = line.control

    def take_leases(self, channel: int, side: int) -> None:
        """Nothing is left there: leases that were the next have come, or were of no use to anybody any more."""
        while (head := self.head(channel, side)) is not None and head.kind == LEASE:
            self.deliver(channel, side)

    def deliver_all(self, channel: int, side: int) -> None:
        """Take everything that is on its way to that side."""
        while self.head(channel, side) is not None:
            self.deliver(channel, side)

    def next_event(self, channel: int, side: int, kind: str) -> Due:
        """The event that a user is to receive next; an end may come before refusals that were published behind it.

        Where memory is not shared a callback consents to pools, and is asked before what came earlier is received.
        """
        events = self.events[channel, side]
        if kind == "pool_assigned" and Due(kind) in events and not self.state.rules.shared:
            events.remove(Due(kind))
            return Due(kind)
        if kind == "teardown_received" and Due(kind) in events:
            number = events.index(Due(kind))
            if all(due.kind == "operation_refused" for due in list(events)[:number]):
                events.rotate(-number)
                due = events.popleft()
                events.rotate(number)
                return due
        return events.popleft()

    def reclaim(self) -> None:
        """Take back what leases give back."""
        while True:
            step = next(hang_ups(self.state), None)
            if step is None:
                return
            self.state = step[1]

    # ---- going back ----

    def remember(self) -> Oracle:
        """As it is now, to be restored."""
        kept = copy.copy(self)
        kept._hold(self)
        return kept

    def restore(self, kept: Oracle) -> None:
        """As it was."""
        self.state = kept.state
        self._hold(kept)

    def _hold(self, other: Oracle) -> None:
        self.events = {end: deque(events) for end, events in other.events.items()}
        self.outcomes = {domain: list(outcomes) for domain, outcomes in other.outcomes.items()}
        self._metas = {end: deque(metas) for end, metas in other._metas.items()}
        self.taken, self.refused = dict(other.taken), dict(other.refused)
        self._wanted, self._control = dict(other._wanted), dict(other._control)

    # ---- looking ----

    def stage(self, channel: int, side: int) -> str:
        """CONNECTED, TEARDOWN, or one of three ends."""
        return self.state.channels[channel].stages[side]

    def over(self, channel: int, side: int) -> bool:
        """Whether that side has ended, or its domain."""
        domain = self.state.channels[channel].domains[side]
        return self.stage(channel, side) in OVER or not self.state.alive[domain]

    def present(self, domain: int, pool: int) -> bool:
        """Whether the pool is in the domain."""
        return present(self.state, domain, pool)

    def pools_on(self, channel: int, side: int) -> tuple[int, ...]:
        """The pools that are assigned, as that side sees it."""
        row = self.state.standings[channel]
        return tuple(pool for pool, standing in enumerate(row) if standing.sides[side] in THERE)

    def _tell_of_ends(self, before: m.State, *, delivered: bool) -> None:
        """What was asked of a channel that ended since has an outcome now."""
        for channel, (old, new) in enumerate(zip(before.channels, self.state.channels, strict=False)):
            for side in (m.SOURCE, m.SINK):
                stage = new.stages[side]
                if stage not in OVER or old.stages[side] in OVER:
                    continue
                outcomes, error = self.outcomes[new.domains[side]], _END_ERRORS[stage]
                for standing in before.standings[channel]:
                    if standing.sides[side] in _ASKED:
                        outcomes.append((_ASKED[standing.sides[side]], error))
                if old.stages[side] == TEARDOWN:
                    outcomes.append(("destroy", "" if delivered and stage == CLOSED else error))

    def _trim(self) -> None:
        """Meta data of messages that were lost is lost with them."""
        for (channel, side), metas in self._metas.items():
            count = sum(x.kind in _WITH_META for x in self.state.queues[channel][side])
            while len(metas) > count:
                metas.pop()
