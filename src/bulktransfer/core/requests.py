"""The pools of one channel, and the requests about them that are under way.

Knows: who asked for what, which numbers are taken, how a pool comes on a channel and goes off it. Must not know: what
is said to the peer (assign.py asks, answer.py answers).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from .._native.assignment import Assignment
from .._native.outcome import Outcome
from .._native.pool import Pool
from ..errors import (
    BulkError,
    ChannelStateError,
    ProtocolViolation,
)
from ..messages import Withdraw
from ..states import Role
from . import far, guard, identity, showing, twin
from .deferral import Answer

REMOVED_MAX = 256


class Request:
    """An assignment or removal that this side asked for."""

    def __init__(
        self, number: int, operation: str, assignment: Assignment, done: Callable[[Any], object] | None
    ) -> None:
        self.number = number
        self.operation = operation
        self.assignment = assignment
        self.done = done
        self.finished = False
        self.memory_sent = False
        self.accepted = False  # the peer said that the pool is mapped
        self.error: BulkError | OSError | None = None
        self.abandoned = False  # nobody waits for it any more
        self.deadline: Any = None  # a channel.Deadline, where a continuation waits for the outcome
        self.follows: Assignment | None = None  # the peer's crossing request, whose outcome this one shares

    def settle(self, error: BulkError | OSError | None) -> None:
        """It is known what became of it."""
        self.finished = True
        self.error = error
        self.drop_deadline()

    def drop_deadline(self) -> None:
        """Nobody waits for it any more."""
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None


class RequestBook:
    """The pools of one channel, and the requests about them that are under way."""

    def __init__(self, channel: Any) -> None:
        self._channel = weakref.ref(channel)  # a channel that is dropped goes at once
        self.requests: dict[int, Request] = {}
        self.next_request = 1
        self.withdrawn: dict[int, Request] = {}  # after the memory went out: the peer may be sending from the pool
        self.incoming: dict[int, Assignment] = {}  # accepted or pending requests of the peer, by number
        self.removed: dict[int, None] = {}  # the last ones that were dropped: their memory may be on its way
        self.asked: set[int] = set()  # requests of the peer that a callback was asked about
        self.deferred: dict[int, Answer] = {}  # and those that it left open, by number

    @property
    def channel(self) -> Any:
        """The channel that this is a part of."""
        return self._channel()

    # ---- looking ----

    def find(self, pool: Pool) -> Assignment | None:
        """The pool's assignment on this channel, whatever its standing; not one that was withdrawn."""
        return next((a for a in self.channel.table if a is not None and a.pool is pool and not a.retired), None)

    def pools(self) -> tuple[Pool, ...]:
        """The pools whose buffers may travel."""
        return tuple(a.pool for a in self.channel.table if a is not None and (a.active or a.removing))

    # ---- common parts ----

    def answered(self, number: int, operation: str) -> Request | None:
        """The own request that was answered; None if it was withdrawn. Raises: ProtocolViolation."""
        request = self.requests.get(number)
        if request is None:
            if 0 < number < self.next_request:
                return None
            raise ProtocolViolation(f"an answer to request {number}, which was never made")
        if request.operation != operation:
            raise ProtocolViolation(
                f"an answer about {operation} to request {number}, which is about {request.operation}"
            )
        return request

    def new_request(self, operation: str, assignment: Assignment, done: Callable[[Any], object] | None) -> Request:
        """Number a request."""
        request = Request(self.next_request, operation, assignment, done)
        self.next_request += 1
        self.requests[request.number] = request
        return request

    def finish(self, request: Request, error: BulkError | OSError | None) -> None:
        """A request is answered; its continuation runs with the next dispatch or receive."""
        self.requests.pop(request.number, None)
        request.settle(error)
        self.channel.kick_all()
        kept = request.follows is not None or request.number in self.withdrawn
        if error is not None and request.operation == "assign" and not kept:
            self.forget(request.assignment)
        if request.done is not None:
            outcome = Outcome(request.operation, self.channel, error, None, request.assignment.pool)
            self.channel.expect_now(request.done, outcome)

    def free_slot(self) -> int:
        """The next free number of this side: even for the MASTER, odd for the SLAVE."""
        slot = 0 if self.channel.role is Role.MASTER else 1
        while slot < len(self.channel.table) and self.channel.table[slot] is not None:
            slot += 2
        return slot

    def put(self, assignment: Assignment) -> None:
        """Enter an assignment under its number."""
        table = self.channel.table
        table.extend([None] * (assignment.slot + 1 - len(table)))
        table[assignment.slot] = assignment
        self.channel.enter_pool(assignment.slot, assignment)
        showing.show(self.channel)

    def new_assignment(self, pool: Pool, slot: int, mine: bool) -> Assignment:
        """A pending assignment of a pool to this channel."""
        assignment = Assignment(pool, slot, self.channel.number, mine, self.channel.same_domain)
        if self.channel.is_far:
            assignment.set_far()
        others = [self.channel.domain.channel(number) for number in pool.channels]
        for other in others:
            same = other is not None and identity.same_peer(other, self.channel)
            theirs = other.assigning.find(pool) if same else None
            if theirs is not None:  # what left over one of them may come back over the other (design section 8, rule 5)
                assignment.share_peer(theirs)
                break
        return assignment

    def reserve(self, pool: Pool) -> None:
        """The pool belongs to this channel's trust level from now on. Raises: ConstraintError, OSError (trust HALF)."""
        if self.channel.is_far:
            far.reserve(pool, self.channel)
            return
        far.check_trust(pool, self.channel.trust)
        guard.follow(pool, self.channel.trust)
        pool.set_shared(twin.shares_memory(self.channel.trust))
        pool.channels.add(self.channel.number)
        pool.trust = self.channel.trust

    def forget(self, assignment: Assignment) -> None:
        """Take a pool off the channel as if it had never been on it; a pool that is nowhere else leaves."""
        channel = self.channel
        pool = assignment.pool
        assignment.retire()
        if assignment.slot < len(channel.table) and channel.table[assignment.slot] is assignment:
            channel.table[assignment.slot] = None
            channel.enter_pool(assignment.slot, None)
            channel.unland(assignment.slot)
            showing.show(channel)
        if assignment.request is not None:
            self.incoming.pop(assignment.request, None)
            self.asked.discard(assignment.request)
        for lease in (assignment.lease, assignment.held):
            if lease is not None:
                lease.close()
        if self.find(pool) is None:
            pool.channels.discard(channel.number)
        if not pool.channels and not pool.ended:
            pool.trust = pool.given_trust if pool.home else pool.trust
        channel.domain.pool_quiet(pool)

    def bury(self, request: Request) -> None:
        """An assignment is withdrawn whose memory went out, so that the peer may be sending from the pool already.

        What arrives is refused until the peer has said that it is off there, too: the assignment stays, retired.
        """
        request.assignment.retire()
        self.withdrawn[request.number] = request

    def retire_incoming(self, number: int, error: BulkError) -> None:
        """The peer withdrew what is on the channel already: nothing is sent any more, what was sent will be refused."""
        assignment = self.incoming[number]
        assignment.retire()
        for request in [r for r in self.requests.values() if r.operation == "remove" and r.assignment is assignment]:
            self.finish(request, None)
        self.end_followers(assignment, error)

    def end_followers(self, assignment: Assignment, error: BulkError) -> None:
        """Own requests that crossed one of the peer share its outcome."""
        for request in [r for r in self.requests.values() if r.follows is assignment]:
            self.finish(request, error)
            self.channel.say_if_possible(Withdraw(request.number))  # the peer may have accepted that one meanwhile

    def drop_incoming(self, number: int, error: BulkError) -> None:
        """An accepted assignment of the peer is off, and with it an own request that crossed it."""
        self.removed[number] = None
        if len(self.removed) > REMOVED_MAX:
            del self.removed[next(iter(self.removed))]
        assignment = self.incoming[number]
        answer = self.deferred.pop(number, None)
        self.forget(assignment)
        if answer is not None:
            answer.lapse(error)
        self.end_followers(assignment, error)

    def end(self, error: BulkError | ChannelStateError) -> None:
        """The channel ended: nobody will answer."""
        for answer in list(self.deferred.values()):
            answer.lapse(error)
        self.deferred.clear()
        self.withdrawn.clear()
        for request in list(self.requests.values()):
            self.requests.pop(request.number, None)
            request.settle(error)
            if request.done is not None:
                self.channel.expect_now(
                    request.done, Outcome(request.operation, self.channel, error, None, request.assignment.pool)
                )
