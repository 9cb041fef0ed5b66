"""Answering about pools: what the peer asks, and what it answered (I-5.2.3, Fig 5.3; design rules 4, 13, 14).

Knows: what is judged when, who yields when both ask at once, what a callback may veto. Must not know: bytes.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from .._native import kernel
from .._native.assignment import Assignment
from .._native.event import Event, make_event
from .._native.pool import Pool, make_pool
from ..errors import (
    BrokenChannelError,
    BulkError,
    ChannelStateError,
    ConstraintError,
    LimitError,
    PoolAlreadyAssignedError,
    PoolBusyError,
    PoolVetoError,
    ProtocolViolation,
    TrustMismatchError,
    code_of,
    from_code,
)
from ..messages import (
    AssignAnswer,
    AssignDone,
    AssignMemory,
    AssignRequest,
    Leases,
    RemoveAnswer,
    RemoveRequest,
    Withdraw,
)
from ..states import EventKind, Means, Role, Trust
from . import ending, far, identity, leases, memory, twin
from .deferral import Answer
from .limits import POOLS_MAX
from .requests import Request, RequestBook


class Answering(RequestBook):
    """The half that the peer moves."""

    # ---- the peer's requests ----

    def on_assign_request(self, message: AssignRequest) -> Event | None:
        """The peer asks: judge, ask the callback, answer. Raises: ProtocolViolation."""
        channel = self.channel
        parity = 0 if channel.role is Role.SLAVE else 1
        if message.slot % 2 != parity or message.slot >= 2 * POOLS_MAX:
            raise ProtocolViolation(f"pool number {message.slot} is not the peer's to give")
        if message.request in self.incoming or (
            message.slot < len(channel.table) and channel.table[message.slot] is not None
        ):
            raise ProtocolViolation(f"pool number {message.slot} or request {message.request} is in use")
        pool_id = uuid.UUID(bytes=message.pool_id)
        own = next(
            (r for r in self.requests.values() if r.operation == "assign" and r.assignment.pool.id == pool_id), None
        )
        if own is not None and channel.role is Role.MASTER:
            return None  # crossing requests for one pool: the MASTER's stands, and the peer knows
        if message.means is Means.EXPOSED and (channel.is_source or twin.shares_memory(channel.trust)):
            raise ProtocolViolation("a pool is exposed by a source at trust NONE, and by nobody else")
        error: BulkError | None = None
        try:
            assignment = self.judge_assign(message, pool_id, own)
        except BulkError as refused:
            error = refused
        if channel.ended is not None:
            return None
        if error is None and own is not None:
            own.follows = assignment
        code, reason = (0, "") if error is None else (code_of(error, PoolVetoError), str(error))
        if error is None:
            assignment.request = message.request
            self.incoming[message.request] = assignment
        elif own is not None:
            self.finish(own, from_code(code, reason))
        channel.say(AssignAnswer(message.request, code, reason))
        if error is not None:
            raise_interrupt(error.__cause__)
        return None

    def judge_assign(self, message: AssignRequest, pool_id: uuid.UUID, own: Request | None) -> Assignment:
        """The pending assignment. Raises: BulkError (refused)."""
        channel = self.channel
        domain = channel.domain
        name = pool_id.hex[:8]
        if message.trust is not channel.trust:
            raise TrustMismatchError(
                f"pool {name} for trust {message.trust.name}; the channel has {channel.trust.name}"
            )
        limits = channel.limits
        memory.check_geometry(message.buffer_count, message.buffer_size, limits.buffers, limits.pool_bytes, name)
        if sum(a is not None for a in channel.table) - (own is not None) >= limits.pools:
            raise LimitError(f"pool {name}: the limit is {limits.pools} pools")
        pool = domain.pools.get(pool_id)
        present = pool is not None
        if pool is not None:
            if (pool.buffer_count, pool.buffer_size) != (message.buffer_count, message.buffer_size):
                raise ConstraintError(f"pool {name} is here with another shape")
            if self.find(pool) is not None and own is None:
                raise PoolAlreadyAssignedError(f"pool {name} is on the channel already")
            if not channel.is_far and pool.trust not in (Trust.UNINITIALIZED, channel.trust):
                raise TrustMismatchError(f"pool {name} has trust {pool.trust.name} at the other side")
            stranger = not twin.shares_memory(channel.trust) and identity.needs_consent(pool, channel)
            if stranger and channel.callbacks.pool_assigned is None:
                raise PoolVetoError(f"pool {name} is at the other side through somebody else: that takes its consent")
        elif domain.foreign_bytes + message.buffer_count * message.buffer_size > limits.total_bytes:
            raise LimitError(f"pool {name}: {limits.total_bytes} bytes of pools from peers are the limit")
        else:
            trust = Trust.UNINITIALIZED if channel.is_far else channel.trust
            count, size = message.buffer_count, message.buffer_size
            pool = make_pool(pool_id, domain, trust, None, count, size, True, False)
            domain.pools[pool_id] = pool  # one pool of an id in a domain, though two channels announce it at once
        callback = channel.callbacks.pool_assigned
        answer = None
        if callback is not None:
            event = make_event(EventKind.POOL_ASSIGNED, channel, pool=pool, present=present)
            try:
                answer = channel.run_veto(callback, event)
            except BaseException as veto:
                domain.pool_quiet(pool)
                raise PoolVetoError(f"assign of pool {name} was vetoed: {veto}") from veto
        assignment = self.new_assignment(pool, message.slot, False)
        assignment.present = present
        assignment.set_means(message.means)
        try:
            self.reserve(pool)
        except (BulkError, OSError) as error:  # the kernel grants no further mapping
            domain.pool_quiet(pool)
            refused = error if isinstance(error, BulkError) else LimitError(f"pool {name}: {error}")
            if answer is not None:
                answer.lapse(refused)
            raise refused from error
        if own is not None:  # the peer's request replaces this side's
            self.forget(own.assignment)
            self.reserve(pool)
        self.put(assignment)
        if channel.ended is not None:  # by the callback, or another thread
            self.forget(assignment)
            gone = ChannelStateError(f"assign of pool {name}: the channel was closed meanwhile")
            if answer is not None:
                answer.lapse(gone)
            raise gone
        if callback is not None:
            self.asked.add(message.request)
        if answer is not None:
            self.deferred[message.request] = answer
        return assignment

    def on_assign_answer(self, message: AssignAnswer) -> None:
        """Accepted: the memory follows; or not."""
        request = self.answered(message.request, "assign")
        if request is None:
            return
        if message.code:
            self.finish(
                request, from_code(message.code, f"assign of pool {request.assignment.pool.name}: {message.reason}")
            )
            return
        pool = request.assignment.pool
        shared, exposed = twin.shares_memory(self.channel.trust), request.assignment.exposed
        given: list[kernel.Descriptor] = []
        try:
            if self.channel.is_far:
                far.land(self.channel, request.assignment)
            else:
                given = [*leases.make(request.assignment), *(pool.leases if shared else [])]
            if shared or exposed:  # else the description is all that it takes
                assert pool.memory is not None
                memory.seal_for_good(pool.memory, kernel.SEAL_FUTURE_WRITE if exposed else 0)
                given.insert(0, pool.memory)
            self.channel.say(AssignMemory(message.request), given)
        except ConnectionError:
            raise
        except OSError as error:  # no descriptors left
            self.finish(request, error)
            self.channel.say_if_possible(Withdraw(request.number))
            return
        request.memory_sent = True

    def on_assign_memory(self, message: AssignMemory, fds: Sequence[kernel.Descriptor]) -> Event | None:
        """The memory of an accepted pool: check, map, tell. Raises: ProtocolViolation."""
        channel = self.channel
        assignment = self.incoming.get(message.request)
        answer = self.deferred.get(message.request)
        if assignment is None or assignment.active or (answer is not None and answer.is_due):
            if message.request in self.removed:
                return None  # withdrawn meanwhile
            raise ProtocolViolation(f"memory for request {message.request}, which was not accepted")
        shared, exposed = twin.shares_memory(channel.trust), assignment.exposed
        if not (2 <= len(fds) <= leases.LEASES_MAX + 2 if shared else len(fds) == 2 * exposed):
            raise ProtocolViolation(f"{len(fds)} descriptors with the memory of a pool")
        pool = assignment.pool
        try:
            if shared:
                self.attach(pool, fds[0])
            elif pool.address is None:
                far.attach(pool) if channel.is_far else twin.attach(pool, assignment.means)
            if exposed:
                assignment.look_through(memory.adopt_window(fds[0], len(pool) * pool.buffer_size, pool.name), fds[1])
            if channel.constraints is not None:
                fault = channel.constraints.fault(pool.address, pool.buffer_size, pool.buffer_count)
                if fault:
                    raise ConstraintError(f"pool {pool.name} at the other side: {fault}")
            if channel.is_far:
                far.land(channel, assignment)
            leases.take(channel, pool, fds[1:] if shared else ())
        except ProtocolViolation:
            raise
        except (BulkError, OSError) as error:
            refused = (
                error if isinstance(error, BulkError) else LimitError(f"pool {pool.name} could not be mapped: {error}")
            )
            self.refuse_memory(message, refused)
            return None
        if answer is not None:
            answer.due(lambda error: self.conclude_assign(message.request, assignment, error))
            return None
        self.conclude_assign(message.request, assignment, None)
        if message.request in self.asked:
            return None
        return make_event(EventKind.POOL_ASSIGNED, channel, pool=pool, present=assignment.present)

    def conclude_assign(self, number: int, assignment: Assignment, error: BulkError | None) -> None:
        """The pool is mapped: buffers may travel, or who was to decide refused. Raises: OSError."""
        self.deferred.pop(number, None)
        if error is not None:
            self.drop_incoming(number, error)
            self.channel.say(AssignDone(number, code_of(error, PoolVetoError), str(error)))
            return
        given = [] if self.channel.is_far else [*leases.make(assignment), *assignment.pool.leases]
        assignment.set_active()
        self.channel.say(AssignDone(number, 0, ""), given)
        for request in [r for r in self.requests.values() if r.follows is assignment]:
            self.finish(request, None)

    def refuse_memory(self, message: AssignMemory, error: BulkError) -> None:
        """Say that the memory of an accepted pool is of no use."""
        if message.request in self.incoming:
            self.drop_incoming(message.request, error)
        self.channel.say(AssignDone(message.request, code_of(error, LimitError), str(error)))

    def attach(self, pool: Pool, source: kernel.Descriptor) -> None:
        """Map a pool that is new here; one that is here already must be the same memory. Raises: BulkError, OSError."""
        if pool.memory is not None:
            if memory.identity(source) != pool.identity:
                raise ProtocolViolation(f"the memory of pool {pool.name} is not the one that this domain has")
            return
        size = pool.buffer_size * pool.buffer_count
        pool.attach(memory.adopt_pool(source, size, pool.name))
        pool.memory = source
        pool.identity = memory.identity(source)

    def on_assign_done(self, message: AssignDone, fds: Sequence[kernel.Descriptor]) -> None:
        """The peer mapped it, or could not. Raises: ProtocolViolation."""
        if message.request in self.withdrawn:
            self.on_withdrawn(message)
            return
        request = self.answered(message.request, "assign")
        if request is None:
            return
        pool = request.assignment.pool
        if message.code:
            self.finish(request, from_code(message.code, f"assign of pool {pool.name}: {message.reason}"))
            return
        try:
            self.take_leases(pool, fds)
        except LimitError as error:
            self.give_up(message.request, error)
            return
        request.assignment.set_active()
        self.finish(request, None)

    def on_withdrawn(self, message: AssignDone) -> None:
        """The answer to what was withdrawn meanwhile: no more comes once the peer said that it is off."""
        request = self.withdrawn[message.request]
        if message.code == 0:
            request.accepted = True
            return
        del self.withdrawn[message.request]
        self.forget(request.assignment)
        if request.accepted:  # everything that it sent is refused by now: it may forget the pool
            self.channel.say_if_possible(Withdraw(message.request))

    def give_up(self, number: int, error: BulkError) -> None:
        """The peer accepted, but this side cannot keep what came with that."""
        request = self.answered(number, "assign")
        if request is None:
            return
        self.bury(request)
        request.accepted = True
        self.finish(request, error)
        self.channel.say_if_possible(Withdraw(number))

    # ---- leases ----

    def on_leases(self, message: Leases, fds: Sequence[kernel.Descriptor]) -> None:
        """More leases of a pool that is on the channel. Raises: ProtocolViolation."""
        channel = self.channel
        assignment = channel.table[message.slot] if message.slot < len(channel.table) else None
        if not fds or message.slot >= 2 * POOLS_MAX:
            raise ProtocolViolation(f"{len(fds)} leases of pool number {message.slot}")
        if (
            assignment is None
            or assignment.retired
            or not (assignment.active or assignment.removing or not assignment.mine)
        ):
            return  # they crossed its removal or withdrawal: nothing comes that they are for
        try:
            self.take_leases(assignment.pool, fds)
        except LimitError as error:
            self.no_leases(error)

    def take_leases(self, pool: Pool, fds: Sequence[kernel.Descriptor]) -> None:
        """Keep leases. Raises: ProtocolViolation, LimitError."""
        if len(fds) > leases.LEASES_MAX + 1:
            raise ProtocolViolation(f"{len(fds)} leases in one message")
        leases.take(self.channel, pool, fds)

    def no_leases(self, error: BulkError) -> None:
        """Leases came that cannot be kept, and buffers may follow: the channel ends, since nothing else is safe."""
        channel = self.channel
        ending.finish(channel, BrokenChannelError, f"{channel.describe()}: leases could not be kept: {error}")

    def pass_leases(self, pool: Pool, new: Sequence[kernel.Descriptor]) -> None:
        """Leases reached this domain over another channel; whoever gets buffers over this one keeps them, too."""
        assignment = self.find(pool)
        if self.channel.is_far:
            return  # nobody there sees this memory
        if assignment is None or not (assignment.active or assignment.removing or assignment.lease is not None):
            return  # they go with its memory, or with the answer
        try:
            self.channel.say(Leases(assignment.slot), new)
        except ConnectionError:
            return  # the peer is gone
        except (OSError, MemoryError) as error:
            self.no_leases(LimitError(f"pool {pool.name}: {error}"))

    def on_withdraw(self, message: Withdraw) -> Event | None:
        """The peer no longer wants what it asked for."""
        assignment = self.incoming.get(message.request)
        if assignment is None:
            return None  # a removal, or refused already
        if assignment.retired:  # what this side sent meanwhile was refused and is back
            self.forget(assignment)
            return None
        delivered = assignment.active or assignment.removing
        pool = assignment.pool
        withdrawn = PoolVetoError(f"assign of pool {pool.name}: the peer withdrew its request")
        if delivered:
            self.retire_incoming(message.request, withdrawn)
        else:
            self.drop_incoming(message.request, withdrawn)
        self.channel.say(AssignDone(message.request, code_of(withdrawn, PoolVetoError), str(withdrawn)))
        if not delivered:
            return None
        event = make_event(EventKind.POOL_REMOVED, self.channel, pool=pool)
        if self.channel.callbacks.pool_removed is None:
            return event
        answer = self.channel.run_veto(self.channel.callbacks.pool_removed, event)
        if answer is not None:
            answer.due(lambda error: None)  # too late for a veto
        return None

    def on_remove_request(self, message: RemoveRequest) -> Event | None:
        """The peer wants a pool off the channel. Raises: ProtocolViolation."""
        channel = self.channel
        assignment = channel.table[message.slot] if message.slot < len(channel.table) else None
        if assignment is None:
            raise ProtocolViolation(f"removal of pool number {message.slot}, which is not assigned")
        if assignment.retired:
            return None  # it is withdrawn, which the peer will hear
        own = self.own_removal(assignment)
        if own is not None and channel.role is Role.MASTER:
            return None  # the MASTER's request stands
        pool = assignment.pool
        if any(a.operation == "remove" and a.pool is pool for a in self.deferred.values()):
            raise ProtocolViolation(f"removal of pool number {message.slot}, which is under way")
        answer: Answer | None = None
        error: BulkError | None = None
        cause: BaseException | None = None
        if not channel.may_remove(assignment):
            error = PoolBusyError(f"pool {pool.name}: a buffer that travelled over the channel has not come home")
        elif channel.callbacks.pool_removed is not None:
            try:
                event = make_event(EventKind.POOL_REMOVED, channel, pool=pool)
                answer = channel.run_veto(channel.callbacks.pool_removed, event)
            except BaseException as veto:  # noqa: BLE001 - whatever a callback raises is the veto
                error, cause = PoolVetoError(f"remove of pool {pool.name} was vetoed: {veto}"), veto
            if channel.ended is not None:
                if answer is not None:
                    answer.lapse(ChannelStateError(f"remove of pool {pool.name}: the channel was closed meanwhile"))
                return None
        if answer is not None:
            self.deferred[message.request] = answer
            answer.due(lambda error: self.conclude_remove(message.request, assignment, error))
            return None
        self.conclude_remove(message.request, assignment, error)
        raise_interrupt(cause)
        if error is None and channel.callbacks.pool_removed is None:
            return make_event(EventKind.POOL_REMOVED, channel, pool=pool)
        return None

    def own_removal(self, assignment: Assignment) -> Request | None:
        """This side's own request to remove what the peer wants removed."""
        return next((r for r in self.requests.values() if r.operation == "remove" and r.assignment is assignment), None)

    def conclude_remove(self, number: int, assignment: Assignment, error: BulkError | None) -> None:
        """The pool leaves the channel, or whoever was asked keeps it. Raises: OSError."""
        self.deferred.pop(number, None)
        if error is None and not self.channel.may_remove(assignment):
            error = PoolBusyError(f"pool {assignment.pool.name}: a buffer of it has not come home")
        if error is None:
            self.forget(assignment)
        code = 0 if error is None else code_of(error, PoolVetoError)
        self.channel.say(RemoveAnswer(number, code, str(error or "")))
        own = self.own_removal(assignment)
        if own is not None:
            if error is not None:
                assignment.set_active()
            self.finish(own, error)

    def on_remove_answer(self, message: RemoveAnswer) -> None:
        """The peer let it go, or not."""
        request = self.answered(message.request, "remove")
        if request is None:
            return
        if message.code:
            request.assignment.set_active()
            self.finish(
                request, from_code(message.code, f"remove of pool {request.assignment.pool.name}: {message.reason}")
            )
        else:
            self.finish(request, None)
            self.forget(request.assignment)
            if request.abandoned:  # nobody waits for the answer
                self.channel.queue_event(make_event(EventKind.POOL_REMOVED, self.channel, pool=request.assignment.pool))


def raise_interrupt(cause: BaseException | None) -> None:
    """A callback was interrupted, which is its veto: now that the peer knows, the interrupt goes on."""
    if cause is not None and not isinstance(cause, Exception):
        raise cause
