"""Bringing pools onto a channel and taking them off (I-5.2.3, Fig 5.3; design rules 4, 13, 14).

Knows: the exchange of requests and answers, who yields when both ask at once, what must be checked where.
Must not know: how transfers work, or how a message becomes bytes.

Assign:  AssignRequest -> AssignAnswer -> AssignMemory -> AssignDone. The pool is pending from the call to the
answer: its trust is reserved, nothing of it travels. Remove: RemoveRequest -> RemoveAnswer.
"""

from __future__ import annotations

import os
import uuid
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from .._native import kernel
from .._native.channel import Outcome
from .._native.event import Event, make_event
from .._native.pool import Assignment, Pool, make_pool
from ..errors import (
    BulkError,
    ChannelStateError,
    ConstraintError,
    LimitError,
    PoolAlreadyAssignedError,
    PoolBusyError,
    PoolNotAssignedError,
    PoolVetoError,
    ProtocolViolation,
    TrustMismatchError,
    code_of,
    from_code,
)
from ..messages import AssignAnswer, AssignDone, AssignMemory, AssignRequest, RemoveAnswer, RemoveRequest, Withdraw
from ..states import EventKind, Role, Trust
from . import memory
from .limits import POOLS_MAX

LEASES_MAX = 64  # hops that a pool may travel: each adds one lease to those that are passed on


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
        self.error: BulkError | OSError | None = None
        self.abandoned = False  # nobody waits for it any more
        self.follows: Assignment | None = None  # the peer's crossing request, whose outcome this one shares


class Assigning:
    """The pools of one channel, and the requests about them that are under way."""

    def __init__(self, channel: Any) -> None:
        self._channel = weakref.ref(channel)  # a channel that is dropped goes at once
        self.requests: dict[int, Request] = {}
        self.next_request = 1
        self.incoming: dict[int, Assignment] = {}  # accepted or pending requests of the peer, by number
        self.removed: set[int] = set()

    @property
    def channel(self) -> Any:
        """The channel that this is a part of."""
        return self._channel()

    # ---- looking ----

    def find(self, pool: Pool) -> Assignment | None:
        """The pool's assignment on this channel, whatever its standing."""
        return next((a for a in self.channel.table if a is not None and a.pool is pool), None)

    def pools(self) -> tuple[Pool, ...]:
        """The pools whose buffers may travel."""
        return tuple(a.pool for a in self.channel.table if a is not None and (a.active or a.removing))

    # ---- asking ----

    def assign(self, pool: Pool, exposed: bool, done: Callable[[Any], object] | None) -> Request:
        """Ask the peer to take a pool. Raises: what assign_pool documents."""
        channel = self.channel
        with channel.domain.lock:
            self.check_assign(pool, exposed)
            assignment = Assignment(pool, self.free_slot(), channel.number, True, channel.same_domain)
            self.put(assignment)
            self.reserve(pool)
            request = self.new_request("assign", assignment, done)
        message = AssignRequest(
            request=request.number,
            slot=assignment.slot,
            pool_id=pool.id.bytes,
            buffer_count=pool.buffer_count,
            buffer_size=pool.buffer_size,
            trust=channel.trust,
            exposed=exposed,
        )
        self.say_or_forget(request, message)
        return request

    def check_assign(self, pool: Pool, exposed: bool) -> None:
        """Everything that can be refused here."""
        channel = self.channel
        if not isinstance(pool, Pool):
            raise TypeError(f"assign_pool takes a pool, not {type(pool).__name__}")
        what = f"assign of pool {pool.name} to {channel!r}"
        channel.check_connected("assign_pool")
        if pool.domain is not channel.domain:
            raise ValueError(f"{what}: the pool is in another domain of this process")
        if not pool.present:
            raise PoolNotAssignedError(f"{what}: the pool left this domain")
        if exposed and channel.trust is not Trust.NONE:
            raise ValueError(f"{what}: exposed=True is for trust NONE; the channel has {channel.trust.name}")
        if self.find(pool) is not None:
            raise PoolAlreadyAssignedError(f"{what}: it is there already, or about to be")
        if pool.trust not in (Trust.UNINITIALIZED, channel.trust):
            raise TrustMismatchError(f"{what}: the pool has trust {pool.trust.name}, the channel {channel.trust.name}")
        if sum(a is not None for a in channel.table) >= channel.limits.pools:
            raise LimitError(f"{what}: the limit is {channel.limits.pools} pools")
        if len(pool.leases) >= LEASES_MAX:
            raise LimitError(f"{what}: it travelled over {len(pool.leases)} channels already, {LEASES_MAX} at most")
        if channel.constraints is not None:
            fault = channel.constraints.fault(pool.address, pool.buffer_size, pool.buffer_count)
            if fault:
                raise ConstraintError(f"{what}: {fault}")

    def remove(self, pool: Pool, done: Callable[[Any], object] | None) -> Request:
        """Ask the peer to let a pool go. Raises: what remove_pool documents."""
        channel = self.channel
        if not isinstance(pool, Pool):
            raise TypeError(f"remove_pool takes a pool, not {type(pool).__name__}")
        what = f"remove of pool {pool.name} from {channel!r}"
        with channel.domain.lock:
            channel.check_connected("remove_pool")
            assignment = self.find(pool)
            earlier = next((r for r in self.requests.values() if r.assignment is assignment and r.abandoned), None)
            if earlier is not None:
                self.requests[earlier.number] = request = Request(earlier.number, "remove", earlier.assignment, done)
                return request
            if assignment is None or not assignment.active:
                raise PoolNotAssignedError(f"{what}: it is not assigned, or its removal is under way")
            if not channel.may_remove(assignment):
                raise PoolBusyError(f"{what}: a buffer that travelled over the channel has not come home")
            assignment.set_removing()
            request = self.new_request("remove", assignment, done)
        self.say_or_forget(request, RemoveRequest(request.number, assignment.slot))
        return request

    def say_or_forget(self, request: Request, message: AssignRequest | RemoveRequest) -> None:
        """Send a request; where that fails nothing has happened. Raises: OSError, MemoryError."""
        try:
            self.channel.say(message)
        except (OSError, MemoryError) as error:
            self.undo(request)
            if isinstance(error, ConnectionError):  # its last words say why, if it had any
                self.channel.serve()
                self.channel.check_connected(request.operation)
            raise

    def withdraw(self, request: Request) -> None:
        """The user no longer waits (rule 13): an acceptance that crosses is undone, a retry is legal."""
        if request.finished:
            return
        if request.operation == "remove":  # the peer may have let go already: its answer decides, also for a retry
            request.finished = request.abandoned = True
            request.done = None
            return
        self.undo(request)
        self.channel.say_if_possible(Withdraw(request.number))

    def undo(self, request: Request) -> None:
        """Back to before the call."""
        request.finished = True
        self.requests.pop(request.number, None)
        if request.operation == "assign":
            if request.follows is None:
                self.forget(request.assignment)
        else:
            request.assignment.set_active()

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
            if pool.trust not in (Trust.UNINITIALIZED, channel.trust):
                raise TrustMismatchError(f"pool {name} has trust {pool.trust.name} at the other side")
        elif domain.foreign_bytes + message.buffer_count * message.buffer_size > limits.total_bytes:
            raise LimitError(f"pool {name}: {limits.total_bytes} bytes of pools from peers are the limit")
        else:
            pool = make_pool(
                pool_id, domain, channel.trust, None, message.buffer_count, message.buffer_size, True, False
            )
            domain.pools[pool_id] = pool  # one pool of an id in a domain, though two channels announce it at once
        callback = channel.callbacks.pool_assigned
        if callback is not None:
            event = make_event(EventKind.POOL_ASSIGNED, channel, pool=pool, present=present)
            try:
                channel.run_veto(callback, event)
            except Exception as veto:
                domain.pool_quiet(pool)
                raise PoolVetoError(f"assign of pool {name} was vetoed: {veto}") from veto
        assignment = Assignment(pool, message.slot, channel.number, False, channel.same_domain)
        assignment.present = present
        if own is not None:  # the peer's request replaces this side's
            self.forget(own.assignment)
        self.put(assignment)
        self.reserve(pool)
        if channel.ended is not None:  # by the callback, or another thread
            self.forget(assignment)
            raise ChannelStateError(f"assign of pool {name}: the channel was closed meanwhile")
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
        try:
            read_end, write_end = (kernel.Descriptor(fd) for fd in os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK))
            seal_pool(pool)
            request.assignment.lease = read_end
            self.channel.say(AssignMemory(message.request), [pool.memory, write_end, *pool.leases])
        except ConnectionError:
            raise
        except OSError as error:  # no descriptors left
            self.finish(request, error)
            self.channel.say_if_possible(Withdraw(request.number))
            return
        write_end.close()

    def on_assign_memory(self, message: AssignMemory, fds: Sequence[kernel.Descriptor]) -> Event | None:
        """The memory of an accepted pool: check, map, tell. Raises: ProtocolViolation."""
        channel = self.channel
        assignment = self.incoming.get(message.request)
        if assignment is None or assignment.active:
            if message.request in self.removed:
                return None  # withdrawn meanwhile
            raise ProtocolViolation(f"memory for request {message.request}, which was not accepted")
        if len(fds) < 2 or len(fds) > LEASES_MAX + 2:
            raise ProtocolViolation(f"{len(fds)} descriptors with the memory of a pool")
        pool = assignment.pool
        try:
            self.attach(pool, fds[0])
            if channel.constraints is not None:
                fault = channel.constraints.fault(pool.address, pool.buffer_size, pool.buffer_count)
                if fault:
                    raise ConstraintError(f"pool {pool.name} at the other side: {fault}")
        except ProtocolViolation:
            raise
        except (BulkError, OSError) as error:
            refused = (
                error if isinstance(error, BulkError) else LimitError(f"pool {pool.name} could not be mapped: {error}")
            )
            self.refuse_memory(message, refused)
            return None
        assignment.leases = list(fds[1:])
        pool.leases = [*pool.leases, *fds[1:]]
        assignment.set_active()
        channel.say(AssignDone(message.request, 0, ""))
        for request in [r for r in self.requests.values() if r.follows is assignment]:
            self.finish(request, None)
        if channel.callbacks.pool_assigned is not None:
            return None
        return make_event(EventKind.POOL_ASSIGNED, channel, pool=pool, present=assignment.present)

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

    def on_assign_done(self, message: AssignDone) -> None:
        """The peer mapped it, or could not."""
        request = self.answered(message.request, "assign")
        if request is None:
            return
        if message.code:
            self.finish(
                request, from_code(message.code, f"assign of pool {request.assignment.pool.name}: {message.reason}")
            )
        else:
            request.assignment.set_active()
            self.finish(request, None)

    def on_withdraw(self, message: Withdraw) -> Event | None:
        """The peer no longer wants what it asked for."""
        assignment = self.incoming.get(message.request)
        if assignment is None:
            return None  # a removal, or refused already
        delivered = assignment.active
        pool = assignment.pool
        self.drop_incoming(message.request, PoolVetoError(f"assign of pool {pool.name}: the peer withdrew its request"))
        if not delivered:
            return None
        event = make_event(EventKind.POOL_REMOVED, self.channel, pool=pool)
        if self.channel.callbacks.pool_removed is None:
            return event
        self.channel.run_veto(self.channel.callbacks.pool_removed, event)  # too late for a veto
        return None

    def on_remove_request(self, message: RemoveRequest) -> Event | None:
        """The peer wants a pool off the channel. Raises: ProtocolViolation."""
        channel = self.channel
        assignment = channel.table[message.slot] if message.slot < len(channel.table) else None
        if assignment is None:
            raise ProtocolViolation(f"removal of pool number {message.slot}, which is not assigned")
        own = next((r for r in self.requests.values() if r.operation == "remove" and r.assignment is assignment), None)
        if own is not None and channel.role is Role.MASTER:
            return None  # the MASTER's request stands
        pool = assignment.pool
        error: BulkError | None = None
        if not channel.may_remove(assignment):
            error = PoolBusyError(f"pool {pool.name}: a buffer that travelled over the channel has not come home")
        elif channel.callbacks.pool_removed is not None:
            try:
                channel.run_veto(channel.callbacks.pool_removed, make_event(EventKind.POOL_REMOVED, channel, pool=pool))
            except Exception as veto:  # noqa: BLE001 - whatever a callback raises is the veto
                error = PoolVetoError(f"remove of pool {pool.name} was vetoed: {veto}")
            if channel.ended is not None:
                return None
        if error is None:
            self.forget(assignment)
        channel.say(
            RemoveAnswer(message.request, 0 if error is None else code_of(error, PoolVetoError), str(error or ""))
        )
        if own is not None:
            if error is not None:
                assignment.set_active()
            self.finish(own, error)
        if error is None and channel.callbacks.pool_removed is None:
            return make_event(EventKind.POOL_REMOVED, channel, pool=pool)
        return None

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
                self.channel.queue_event(
                    make_event(EventKind.POOL_REMOVED, self.channel, pool=request.assignment.pool)
                )

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
        request.finished = True
        request.error = error
        self.channel.kick_all()
        if error is not None and request.operation == "assign" and request.follows is None:
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

    def reserve(self, pool: Pool) -> None:
        """The pool belongs to this channel's trust level from now on."""
        pool.channels.add(self.channel.number)
        pool.trust = self.channel.trust

    def forget(self, assignment: Assignment) -> None:
        """Take a pool off the channel as if it had never been on it; a pool that is nowhere else leaves."""
        channel = self.channel
        pool = assignment.pool
        assignment.retire()
        if assignment.slot < len(channel.table) and channel.table[assignment.slot] is assignment:
            channel.table[assignment.slot] = None
        if assignment.request is not None:
            self.incoming.pop(assignment.request, None)
        if assignment.lease is not None:
            assignment.lease.close()
        if self.find(pool) is None:
            pool.channels.discard(channel.number)
        for lease in assignment.leases:
            lease.close()
        pool.leases = [lease for lease in pool.leases if not lease.closed]
        if not pool.channels and not pool.ended:
            pool.trust = pool.given_trust if pool.home else pool.trust
        channel.domain.pool_quiet(pool)

    def drop_incoming(self, number: int, error: BulkError) -> None:
        """An accepted assignment of the peer is off, and with it an own request that crossed it."""
        self.removed.add(number)
        assignment = self.incoming[number]
        self.forget(assignment)
        for request in [r for r in self.requests.values() if r.follows is assignment]:
            self.finish(request, error)
            self.channel.say_if_possible(Withdraw(request.number))  # the peer may have accepted that one meanwhile

    def end(self, error: BulkError | ChannelStateError) -> None:
        """The channel ended: nobody will answer."""
        for request in list(self.requests.values()):
            self.requests.pop(request.number, None)
            request.finished = True
            request.error = error
            if request.done is not None:
                self.channel.expect_now(
                    request.done, Outcome(request.operation, self.channel, error, None, request.assignment.pool)
                )


def seal_pool(pool: Pool) -> None:
    """No further seals on a pool's memory: at the first assignment (design section 5). Raises: OSError."""
    assert pool.memory is not None
    if not kernel_sealed(pool.memory):
        kernel.add_seals(pool.memory, kernel.SEAL_SEAL)


def kernel_sealed(source: kernel.Descriptor) -> bool:
    """Whether the memory takes no further seals."""
    import fcntl

    return bool(fcntl.fcntl(source.fileno(), fcntl.F_GET_SEALS) & kernel.SEAL_SEAL)
