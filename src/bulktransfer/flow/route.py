"""To which outlets a buffer goes on: one, all, or each in turn.

Knows: the outlets of a junction. Must not know: how a buffer comes home, or pools.
"""

from __future__ import annotations

import collections
from typing import Protocol

import bulktransfer as bulk

RUN = 64  # transfers with one notification


class Joint(Protocol):
    """What a route needs of its junction."""

    outlets: list[bulk.Channel]

    def ready(self, event: bulk.Event) -> bool:
        """Whether nothing but its turn keeps a transfer from going on."""

    def send(self, outlet: bulk.Channel, events: list[bulk.Event], *, copies: bool) -> list[bulk.Event] | None:
        """Send a run over one outlet; what was sent, None if it has ended."""

    def settle(self, buffers: list[bulk.Buffer]) -> None:
        """What is here and has no copies out goes home."""


class Route(Protocol):
    """Where what waits goes."""

    def send(self, joint: Joint, backlog: collections.deque[bulk.Event]) -> bool:
        """Take transfers from the left of `backlog` and send them on; False if none can go now."""

    def back(self, outlet: bulk.Channel, events: list[bulk.Event]) -> None:
        """Buffers came back over `outlet`, or were refused there."""

    def gone(self, outlet: bulk.Channel) -> None:
        """The outlet is over."""


class Through:
    """All over the one outlet, as they came: moves as moves, copies as copies."""

    def send(self, joint: Joint, backlog: collections.deque[bulk.Event]) -> bool:
        """Send a run of one kind."""
        run = take_run(joint, backlog)
        copies = run[0].kind is bulk.EventKind.COPY_RECEIVED
        sent = joint.send(joint.outlets[0], run, copies=copies)
        if sent is None:
            backlog.extendleft(reversed(run))
            return False
        if len(sent) < len(run):
            joint.settle([event.buffer for event in run if event not in sent])
        return True

    def back(self, outlet: bulk.Channel, events: list[bulk.Event]) -> None:
        """Nothing to remember."""

    def gone(self, outlet: bulk.Channel) -> None:
        """Nothing to remember."""


class Copies:
    """A copy over every outlet; the buffer goes home when all are released."""

    def send(self, joint: Joint, backlog: collections.deque[bulk.Event]) -> bool:
        """Send a run to all."""
        run = take_run(joint, backlog)
        for outlet in list(joint.outlets):
            joint.send(outlet, run, copies=True)
        joint.settle([event.buffer for event in run])  # what nobody took
        return True

    def back(self, outlet: bulk.Channel, events: list[bulk.Event]) -> None:
        """Nothing to remember: the ledger counts the copies."""

    def gone(self, outlet: bulk.Channel) -> None:
        """Nothing to remember."""


class Turns:
    """Each over the next outlet in turn that has less than `depth` buffers; the rest waits for one to come back."""

    def __init__(self, outlets: list[bulk.Channel], depth: int) -> None:
        self._depth = depth
        self._busy: dict[bulk.Channel, set[bulk.Buffer]] = {outlet: set() for outlet in outlets}
        self._order = collections.deque(outlets)

    def send(self, joint: Joint, backlog: collections.deque[bulk.Event]) -> bool:
        """Send the first to whoever is next."""
        for _ in range(len(self._order)):
            outlet = self._order[0]
            self._order.rotate(-1)
            if len(self._busy[outlet]) >= self._depth:
                continue
            event = backlog.popleft()
            sent = joint.send(outlet, [event], copies=event.kind is bulk.EventKind.COPY_RECEIVED)
            if sent is None:
                backlog.appendleft(event)
                continue
            if sent:
                self._busy[outlet].add(event.buffer)
            else:
                joint.settle([event.buffer])
            return True
        return False

    def back(self, outlet: bulk.Channel, events: list[bulk.Event]) -> None:
        """The outlet has room again."""
        if outlet in self._busy:
            self._busy[outlet].difference_update(event.buffer for event in events)

    def gone(self, outlet: bulk.Channel) -> None:
        """Its turn does not come again."""
        self._busy.pop(outlet, None)
        if outlet in self._order:
            self._order.remove(outlet)


def take_run(joint: Joint, backlog: collections.deque[bulk.Event]) -> list[bulk.Event]:
    """The transfers of one kind at the left of `backlog` that may go on, at least one."""
    run = [backlog.popleft()]
    kind = run[0].kind
    while backlog and len(run) < RUN and backlog[0].kind is kind and joint.ready(backlog[0]):
        run.append(backlog.popleft())
    return run
