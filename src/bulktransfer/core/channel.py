"""The public channel: its attributes, its set-up calls, its control messages, its end.

Knows: how a channel lives, from creation to its last event, and which part answers what. Must not know: rings and
ledgers (ChannelCore has the hot half), bytes (the codec of its backend), or the details of assignment (assign.py),
set-up (setup.py) and end (ending.py).
"""

from __future__ import annotations

import contextlib
import numbers
import warnings
from collections.abc import Iterator
from typing import Any

from .._native import kernel
from .._native.buffer import Buffer
from .._native.event import Event, Transfer
from .._native.outcome import Outcome
from .._native.pool import Pool
from .._native.waiting import in_callback
from ..errors import (
    BrokenChannelError,
    BulkError,
    ChannelStateError,
    ClosedChannelError,
    EndOfChannelError,
    WouldBlock,
)
from ..messages import Teardown
from ..states import ChannelAct, ChannelState, EventKind
from . import ending
from . import gathering as aggregates
from .aggregate import Aggregate
from .arguments import means_of
from .deferral import Answer
from .domain import Alarm
from .gathering import Arrival, Gathering
from .interrupts import INTERRUPTS
from .plane import ChannelPlane, Done
from .requests import Request


class Channel(ChannelPlane):
    """One direction of data between two endpoints (I-4.2.3); made by create, bind, listen, connect and pair."""

    gathering: Gathering | None = None  # an aggregate that is coming

    def wait_bound(self, timeout: float | None = None) -> None:
        """Wait until a binder is bound, and take the bind_received event.

        Raises: TimeoutError, the channel's end, WouldBlock (inside a callback), ForkedError.
        """
        self.check_fork()
        if not self.wait_for(lambda: self.stage >= ChannelState.CONNECTED.value, timeout):
            raise TimeoutError(f"wait_bound of {self!r}: nobody bound within {timeout} s")
        if self.ended is not None and not self.queued_events:
            self._raise_end("wait_bound")
        self.drop_queued(EventKind.BIND_RECEIVED)

    # ---- pools ----

    def assign_pool(
        self,
        pool: Pool,
        *,
        exposed: bool = False,
        means: str | None = None,
        timeout: float | None = 10.0,
        done: Done | None = None,
    ) -> None:
        """Have the pool on the channel, at both ends (I-5.2.3); it changes nobody's ownership.

        exposed: the peer may read the whole pool at any time (trust NONE only). means: how contents travel at trust
        NONE, "by value" or "sealed" (statistics() tells); left out, each transfer takes what costs less. With `done`
        the call returns after local checks, and `timeout` bounds the outcome.
        Raises: PoolAlreadyAssignedError, TrustMismatchError, PoolVetoError, ConstraintError, LimitError,
        PoolNotAssignedError (the pool left this domain), ValueError (of another domain), TypeError, TimeoutError,
        ChannelStateError or the channel's end, WouldBlock (inside a callback; use `done`).
        """
        self.check_blocking("assign_pool", done, timeout)
        self.settle(self.assigning.assign(pool, means_of(exposed, means), done), timeout)

    def remove_pool(self, pool: Pool, *, timeout: float | None = 10.0, done: Done | None = None) -> None:
        """Take the pool off the channel, at both ends; nothing is sent from it here until the answer (rule 14).

        Raises: PoolNotAssignedError, PoolBusyError (a buffer has not come home), PoolVetoError, TimeoutError,
        ChannelStateError or the channel's end, WouldBlock (inside a callback; use `done`).
        """
        self.check_blocking("remove_pool", done, timeout)
        self.settle(self.assigning.remove(pool, done), timeout)

    def defer(self, event: Event, done: Done) -> Answer:
        """Leave the answer open, inside the pool_assigned or pool_removed callback that is asked for it.

        `done(outcome)` is told once the answer is due: the pool is present here (of a removal: at once), or with the
        error that ended the request. The peer waits for Answer.accept or refuse, as long as its own timeout allows.
        Raises: ChannelStateError (not this callback, or deferred before), TypeError.
        """
        if not callable(done):
            raise TypeError(f"done={done!r} cannot be called")
        if event is not self.asked or event.kind not in (EventKind.POOL_ASSIGNED, EventKind.POOL_REMOVED):
            raise ChannelStateError(f"defer of {event!r}: only the pool callback that is asked may leave it open")
        if self.answer is not None:
            raise ChannelStateError(f"defer of {event!r}: it was deferred before")
        operation = "assign" if event.kind is EventKind.POOL_ASSIGNED else "remove"
        self.answer = Answer(self, operation, event.pool, done)
        return self.answer

    def withdraw(self, pool: Pool) -> bool:
        """No longer wait for the answer about a pool that was asked for with `done` (rule 13); False if none is due.

        An assignment is undone, an acceptance that crosses as well, and a retry is legal; after a removal the peer's
        answer decides. The continuation is not called. Raises: ForkedError.
        """
        self.check_fork()
        for request in list(self.assigning.requests.values()):
            if request.assignment.pool is pool and request.done is not None:
                self.assigning.withdraw(request)
                return True
        return False

    def check_blocking(self, act: str, done: Done | None, timeout: Any) -> None:
        """A call that would wait inside a callback is refused before it does anything."""
        if done is not None and not callable(done):
            raise TypeError(f"done={done!r} cannot be called")
        if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, numbers.Real)):
            raise TypeError(f"timeout={timeout!r}; it takes seconds or None")
        if done is None and in_callback():
            raise WouldBlock(f"{act} on {self!r}: it would wait inside a callback; use done=")

    def settle(self, request: Request, timeout: float | None) -> None:
        """Wait for the answer to a request, or leave it to its continuation."""
        if request.done is not None:
            if timeout is not None:
                request.deadline = Deadline(self, request, timeout)
            return
        try:
            answered = self.wait_for(lambda: request.finished, timeout)
        except BaseException:
            self.assigning.withdraw(request)
            raise
        if not answered:
            self.assigning.withdraw(request)
            raise TimeoutError(f"{request.operation} of {request.assignment.pool!r}: no answer within {timeout} s")
        if request.error is not None:
            raise request.error

    # ---- transfers that are more than one step ----

    def full_copy(self, buffer: Buffer, into: Buffer, meta: bytes = b"", done: Done | None = None) -> None:
        """Copy the contents into another owned buffer and move that one (I-5.1.11).

        Raises: ValueError (`into` is the same or too small), InvalidBufferError (nothing to read); as move, of `into`.
        """
        if not isinstance(buffer, Buffer) or not isinstance(into, Buffer):
            raise TypeError("full_copy takes two buffers")
        if into is buffer:
            raise ValueError(f"full_copy of buffer {buffer.index} of pool {buffer.pool.name} into itself")
        if done is not None and not callable(done):
            raise TypeError(f"done={done!r} cannot be called")
        if into.size < buffer.length:
            raise ValueError(f"full_copy of {buffer.length} bytes into buffer {into.index}: it holds {into.size}")
        meta = bytes(memoryview(meta))  # what is no bytes is refused before anything changes
        before = into.length
        with memoryview(buffer) as source:
            self.check_move(into, meta)
            into.put(source)
        try:
            self.move(into, meta, done)
        except BaseException:
            into.length = before
            raise

    # ---- aggregates ----

    def _send_parts(self, act: str, thing: Any, meta: Any, done: Done | None) -> None:
        """What is sent is no buffer: an aggregate, or a mistake."""
        if not isinstance(thing, Aggregate):
            raise TypeError(f"{act} takes a Buffer or an Aggregate, not {type(thing).__name__}")
        aggregates.send(self, thing, act, meta, done)

    def receive_aggregate(self, timeout: float | None = None) -> Arrival:
        """What was sent next, whole or not at all: `.aggregate`, `.meta`, `.kind`; a buffer sent alone is one, too.

        Other events stay for receive. A timeout loses nothing: the next call goes on. Where the peer dies half way,
        what came of it is let go. Raises: as receive_buffer; ProtocolViolation (it is put together wrongly).
        """
        return aggregates.receive(self, timeout)

    def gather(self, transfer: Transfer) -> Arrival | None:
        """What receive_aggregate would return, once this transfer makes it whole; None before.

        For who receives in another way: in a callback, from receive, in an event loop. Every transfer, in order.
        Raises: ProtocolViolation (it is put together wrongly), ValueError (an event that brings no buffer).
        """
        return aggregates.gather(self, transfer)

    # ---- the descriptor ----

    def fileno(self) -> int:
        """A descriptor that is readable while something is to be received (one number for the channel's life).

        It is level-triggered: readable from the first event, bind request or death, until receive_nowait raised
        WouldBlock, which arms it again. Raises: ForkedError, ClosedChannelError and its kin (nothing left to come).
        """
        self.check_fork()
        if self._poller is None:
            if self.ended is not None and not self.queued_events:
                self._raise_end("fileno")
            self._poller = self.beacon.light()
            self.kick_descriptor()
            kernel.poller_add(self._poller.fileno(), self.kick_fd)
            self.watch_poller()
            self.descriptor_mode = True
            self.serve()
            if self.queued_events or self.ended is not None or not self.rearm():
                self._poke()
        if self._poller.closed:
            self._raise_end("fileno")
        return self._poller.fileno()

    # ---- the end ----

    def destroy(self, timeout: float | None = 5.0, done: Done | None = None) -> None:
        """End the channel in order: nothing new is sent, what was sent arrives, the peer agrees (I-6.3.2).

        What has arrived can still be received. A peer that does not answer in `timeout` seconds counts as dead.
        Raises: BrokenChannelError (it did not answer, or is gone), ChannelStateError, the channel's end, WouldBlock,
        OSError (nothing could be sent, and the channel goes on). After KeyboardInterrupt the end goes its way.
        """
        self.check_blocking("destroy", done, timeout)
        self.check_connected("destroy")
        farewell = Farewell(self, done)
        try:
            with INTERRUPTS.held_off():
                self._say_farewell()
                self.farewell = farewell
            if done is None:
                answered = self.wait_for(lambda: self.ended is not None, timeout)
        except BaseException:
            self._bound_farewell(farewell, timeout)  # nobody waits, and its time is bounded all the same
            raise
        if done is not None:
            self._bound_farewell(farewell, timeout)
            return
        if not answered:
            farewell.expire()
        if self.ended is not None and self.ended[0] not in (ClosedChannelError, EndOfChannelError):
            self._raise_end("destroy")

    def _bound_farewell(self, farewell: Farewell, timeout: float | None) -> None:
        if timeout is not None and self.farewell is farewell:
            farewell.set_deadline(timeout)

    def _say_farewell(self) -> None:
        """Tell the peer that this is to be the end. Raises: the channel's end, OSError (it was not tried, then)."""
        self.step(ChannelAct.DESTROY)
        try:
            self.say(Teardown(reason="", final=False))
        except (OSError, MemoryError) as error:
            if self.ended is None:
                self.step(ChannelAct.WITHDRAWN)
            if isinstance(error, ConnectionError):  # its last words say why, if it had any
                self.serve()
                self.check_connected("destroy")
            raise

    def _strand(self, buffer: Buffer) -> None:
        """What was to go back when unused is unused, and nothing is sent any more: let it go with the channel."""
        if self.ended is not None:
            buffer.let_go(self)
        else:
            self.stranded.append(buffer)

    def close(self) -> None:
        """End the channel at once; idempotent, never raises, never waits. What was accepted still arrives."""
        self._end_now("")

    def abort(self, reason: str) -> None:
        """End the channel at once as broken; idempotent, never waits. What was accepted still arrives.

        Then the peer's calls raise BrokenChannelError with `reason`, not EndOfChannelError: for whoever stands between
        others, so that none takes what broke for complete. Raises: TypeError, ValueError (no reason).
        """
        if not isinstance(reason, str):
            raise TypeError(f"reason={reason!r}; it takes a str")
        if not reason:
            raise ValueError("abort without a reason; close ends a channel in order")
        self._end_now(reason)

    def _end_now(self, reason: str) -> None:
        try:
            self.check_fork()
        except BulkError:
            return
        if self.ended is not None:
            self._release_descriptors()
            return
        if self.linked and not self.hung_up:
            self.say_if_possible(Teardown(reason=reason, final=True))
        ending.finish(self, ClosedChannelError, f"{self.describe()}: closed by this side")
        if not self._finalizing:
            self.fire_settled()
        self._release_descriptors()

    def _release_descriptors(self) -> None:
        if self.busy != 1 or self._finalizing:  # a waiting thread still looks at them
            self.beacon.close()
            if self._pidfd is not None:
                self._pidfd.close()

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        try:
            event: Event = self.receive()
        except EndOfChannelError:
            raise StopIteration from None
        return event

    def __del__(self) -> None:
        if getattr(self, "ended", True) is None and self.state is not ChannelState.UNINITIALIZED:
            self._finalizing = True
            with contextlib.suppress(BulkError):
                self.check_fork()
                try:
                    warnings.warn(f"{self!r} was dropped without close", ResourceWarning, stacklevel=2, source=self)
                finally:  # the warning may be an error
                    self.close()

    def __reduce__(self) -> Any:
        raise TypeError(f"pickling {self!r}: a channel belongs to its process; see bulk.pair for one that travels")

    def buffers(self) -> Iterator[Event]:
        """The transfers as they arrive, until the peer ends the channel; other events are passed over.

        Raises: as receive, but for EndOfChannelError, which ends the iteration.
        """
        while True:
            try:
                transfer = self.receive_buffer()
            except EndOfChannelError:
                return
            yield transfer

    def statistics(self) -> dict[str, Any]:
        """Counts since the channel was made, and the states of the buffers of its pools."""
        pools = {pool.id.hex: pool.states() for pool in self.pools}
        means: dict[str, Any] = {"means": "shared"}
        if self.is_far:
            means = {"means": "network", "wire": self.wire_counts()}
        elif self.by_value:
            means = {"means": "private", "contents": self.means_used()}
        return {"address": self.address, "state": self.state.name, **means, **self.counters(), "pools": pools}


class Deadline:
    """Bounds the outcome of a request whose caller does not wait."""

    def __init__(self, channel: Channel, request: Request, timeout: float) -> None:
        self.channel = channel
        self.request = request
        self.timeout = timeout
        self.alarm = channel.beacon.call_after(timeout, self.expire)

    def cancel(self) -> None:
        """The outcome is there."""
        self.channel.beacon.cancel(self.alarm)

    def expire(self) -> None:
        """The time is over."""
        request = self.request
        if request.finished:
            return
        done = request.done
        assert done is not None
        self.channel.assigning.withdraw(request)
        error = TimeoutError(f"{request.operation} of {request.assignment.pool!r}: no answer within {self.timeout} s")
        self.channel.expect_now(done, Outcome(request.operation, self.channel, error, None, request.assignment.pool))


class Farewell:
    """A teardown under way."""

    def __init__(self, channel: Channel, done: Done | None) -> None:
        self.channel = channel
        self.done = done
        self.alarm: Alarm | None = None

    def set_deadline(self, timeout: float) -> None:
        """The peer has so many seconds to answer."""
        self.alarm = self.channel.beacon.call_after(timeout, self.expire)

    def expire(self) -> None:
        """The peer did not answer in time: it counts as dead."""
        if self.channel.ended is None:
            ending.finish(
                self.channel, BrokenChannelError, f"{self.channel.describe()}: the peer did not answer the teardown"
            )

    def ended(self, error: BulkError | None) -> None:
        """The channel ended: tell the continuation."""
        if self.alarm is not None:
            self.channel.beacon.cancel(self.alarm)
            self.alarm = None
        if self.done is not None:
            self.channel.expect_now(self.done, Outcome("destroy", self.channel, error))
            self.done = None
