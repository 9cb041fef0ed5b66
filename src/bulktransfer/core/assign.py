"""Bringing pools onto a channel and taking them off (I-5.2.3, Fig 5.3; design rules 4, 13, 14).

Knows: the exchange of requests and answers, who yields when both ask at once, what must be checked where.
Must not know: how transfers work, or how a message becomes bytes.

Assign:  AssignRequest -> AssignAnswer -> AssignMemory -> AssignDone. The pool is pending from the call to the
answer: its trust is reserved, nothing of it travels. Remove: RemoveRequest -> RemoveAnswer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .._native import kernel
from .._native.pool import Pool
from ..errors import (
    ConstraintError,
    LimitError,
    PoolAlreadyAssignedError,
    PoolBusyError,
    PoolNotAssignedError,
    TrustMismatchError,
)
from ..messages import AssignRequest, RemoveRequest, Withdraw
from ..states import Means, Trust
from . import leases, memory, twin
from .answer import Answering
from .requests import Request


class Assigning(Answering):
    """The half that this side moves: it asks for pools to come and go."""

    # ---- asking ----

    def assign(self, pool: Pool, means: Means, done: Callable[[Any], object] | None) -> Request:
        """Ask the peer to take a pool. Raises: what assign_pool documents."""
        channel = self.channel
        with channel.domain.lock:
            self.check_assign(pool, means)
            assignment = self.new_assignment(pool, self.free_slot(), True)
            assignment.set_means(means)
            self.reserve(pool)
            if assignment.exposed:
                pool.set_solid()
            self.put(assignment)
            request = self.new_request("assign", assignment, done)
        message = AssignRequest(
            request=request.number,
            slot=assignment.slot,
            pool_id=pool.id.bytes,
            buffer_count=pool.buffer_count,
            buffer_size=pool.buffer_size,
            trust=channel.trust,
            means=means,
        )
        self.say_or_forget(request, message)
        return request

    def check_assign(self, pool: Pool, means: Means) -> None:
        """Everything that can be refused here."""
        channel = self.channel
        exposed = means is Means.EXPOSED
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
        if exposed and channel.is_far:
            raise ValueError(f"{what}: exposed=True is for memory that the peer can map; it has a stream only")
        if means in (Means.BY_VALUE, Means.SEALED) and (channel.trust is not Trust.NONE or channel.is_far):
            raise ValueError(f"{what}: means= is for trust NONE on one machine; the channel has {channel.trust.name}")
        self.check_seals(pool, exposed, what)
        if self.find(pool) is not None:
            raise PoolAlreadyAssignedError(f"{what}: it is there already, or about to be")
        if not channel.is_far and pool.trust not in (Trust.UNINITIALIZED, channel.trust):
            raise TrustMismatchError(f"{what}: the pool has trust {pool.trust.name}, the channel {channel.trust.name}")
        if sum(a is not None for a in channel.table) >= channel.limits.pools:
            raise LimitError(f"{what}: the limit is {channel.limits.pools} pools")
        leases.prune(pool)
        if len(pool.leases) >= leases.LEASES_MAX:
            raise LimitError(f"{what}: it has {len(pool.leases)} leases already, {leases.LEASES_MAX} at most")
        if channel.constraints is not None:
            fault = channel.constraints.fault(pool.address, pool.buffer_size, pool.buffer_count)
            if fault:
                raise ConstraintError(f"{what}: {fault}")

    def check_seals(self, pool: Pool, exposed: bool, what: str) -> None:
        """Who is exposed is sealed against others' writing, once and for all. Raises: ValueError, ConstraintError."""
        channel = self.channel
        if exposed and not channel.is_source:
            raise ValueError(f"{what}: exposed=True is for the source, whose contents are read in place")
        if exposed and pool.memory is None:
            raise ConstraintError(
                f"{what}: a twin, which is no memory that another domain could map, cannot be exposed"
            )
        if pool.memory is None or not (exposed or twin.shares_memory(channel.trust)):
            return
        seals = memory.seals_of(pool.memory)
        if exposed and seals & kernel.SEAL_SEAL and not seals & kernel.SEAL_FUTURE_WRITE:
            raise ConstraintError(f"{what}: it was shared before, so that it cannot be sealed against writing any more")
        if not exposed and seals & kernel.SEAL_FUTURE_WRITE:
            raise ConstraintError(f"{what}: it was exposed before, and is sealed against writing by others")

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
        request.drop_deadline()
        if request.operation == "remove":  # the peer may have let go already: its answer decides, also for a retry
            request.finished = request.abandoned = True
            request.done = None
            return
        if request.memory_sent and request.follows is None:
            request.finished = True
            self.requests.pop(request.number, None)
            self.bury(request)
        else:
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
