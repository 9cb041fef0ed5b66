"""One channel of a block device: requests out, answers in, for any number of threads.

Whoever waits for an answer receives for all, if nobody does; so a single thread waits for its channel itself, and many
share one.

Knows: the channel, its buffers, who waits for what. Must not know: what is asked (device.py).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import bulktransfer as bulk

from ..errors import NotConnectedError, Status
from .messages import Answer, Malformed, Message, unpack_answer

_BATCH = 64


class Pending:
    """A request and its buffer, until the answer is there."""

    __slots__ = ("abandoned", "answer", "buffer", "message")

    def __init__(self, message: Message, buffer: bulk.Buffer) -> None:
        self.message = message
        self.buffer = buffer
        self.answer: Answer | None = None
        self.abandoned = False


class Line:
    """One channel with a pool of its own."""

    def __init__(self, channel: bulk.Channel, allocator: bulk.Allocator, name: str) -> None:
        self._channel = channel
        self._allocator = allocator
        self._name = name
        self._sends = channel.direction is bulk.Direction.TX
        self._free = len(allocator.pool)  # buffers that nobody has claimed
        self._state = threading.Condition()
        self._receiving = False
        self._pending: dict[int, Pending] = {}
        self._last = 0
        self.broken = ""

    # -- buffers ---------------------------------------------------------------------------------------------------

    def claim(self, timeout: float | None) -> bool:
        """Take the right to one buffer; whether it was to be had in `timeout` seconds. Raises: NotConnectedError."""
        if timeout != 0:
            try:
                self._until(lambda: self._free > 0, timeout)
            except TimeoutError:
                return False
        with self._state:
            if self._free <= 0:
                return timeout != 0 and self.claim(timeout)  # another thread was faster
            self._free -= 1
            return True

    def unclaim(self) -> None:
        """Give the right back unused."""
        with self._state:
            self._free += 1
            self._state.notify_all()

    def take(self) -> bulk.Buffer:
        """The buffer of a claim. Raises: NotConnectedError."""
        try:
            return self._allocator.alloc()
        except (bulk.PoolExhaustedError, ValueError) as error:  # its memory went with the channel
            self.unclaim()
            raise self.lost(error) from error

    def give(self, buffer: bulk.Buffer) -> None:
        """Free a buffer, and its claim. Raises: BufferError (views are live)."""
        self._allocator.free(buffer)
        self.unclaim()

    # -- requests --------------------------------------------------------------------------------------------------

    def number(self) -> int:
        """The id of a new request."""
        with self._state:
            self._last += 1
            return self._last

    def submit(self, batch: Sequence[Pending]) -> None:
        """Send requests with one notification. Raises: NotConnectedError (none was sent; their buffers are free)."""
        with self._state:
            for pending in batch:
                self._pending[pending.message.request] = pending
        send = self._channel.move_many if self._sends else self._channel.pass_many
        try:
            send([pending.buffer for pending in batch], [pending.message.pack() for pending in batch])
        except bulk.BulkError as error:
            with self._state:
                for pending in batch:
                    self._pending.pop(pending.message.request, None)
            for pending in batch:
                self.give(pending.buffer)
            raise self.lost(error) from error

    def wait(self, pending: Pending, timeout: float | None) -> Answer:
        """The answer. Raises: NotConnectedError, TimeoutError (its buffer is freed when it comes)."""
        try:
            self._until(lambda: pending.answer is not None, timeout)
        except BaseException:
            self.abandon(pending)
            raise
        assert pending.answer is not None
        return pending.answer

    def _until(self, ready: Callable[[], bool], timeout: float | None) -> None:
        """Receive for all, or wait for who does, until `ready`. Raises: NotConnectedError, TimeoutError."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            with self._state:
                while not ready() and not self.broken and self._receiving:
                    left = None if deadline is None else deadline - time.monotonic()
                    if left is not None and left <= 0:
                        raise TimeoutError(f"{self._name}: no answer within {timeout} s")
                    self._state.wait(left)
                if ready():
                    return
                if self.broken:
                    raise NotConnectedError(self.broken)
                self._receiving = True
            self._receive(deadline)

    def _receive(self, deadline: float | None) -> None:
        """Receive for all, once. Raises: TimeoutError."""
        events: list[bulk.Event] = []
        try:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            events = self._channel.receive_many(_BATCH, left)
        except bulk.BulkError as error:
            self.lost(error)
        finally:
            with self._state:
                for event in events:
                    self._arrived(event)
                self._receiving = False
                self._state.notify_all()

    def _arrived(self, event: bulk.Event) -> None:
        """Bring an answer to who waits for it."""
        if event.kind is bulk.EventKind.OPERATION_REFUSED:  # by the server's library: the buffer never left
            self._refused(event)
        if event.kind not in (bulk.EventKind.MOVE_RECEIVED, bulk.EventKind.BUFFER_RECEIVED):
            return  # an end shows in the next receive
        try:
            answer = unpack_answer(event.meta)
        except Malformed as error:
            self.broken = self.broken or f"{self._name}: the server answered with {error}"
            return
        pending = self._pending.pop(answer.request, None)
        if pending is None or pending.buffer is not event.buffer:
            self.broken = self.broken or f"{self._name}: the server answered what was not asked"
        elif pending.abandoned:
            self.give(pending.buffer)
        else:
            pending.answer = answer

    def _refused(self, event: bulk.Event) -> None:
        pending = next((one for one in self._pending.values() if one.buffer is event.buffer), None)
        if pending is not None:
            asked = self._pending.pop(pending.message.request).message
            pending.answer = Answer(asked.operation, Status.NO_BUFS, asked.request)
            if pending.abandoned:
                self.give(pending.buffer)

    def abandon(self, pending: Pending) -> None:
        """Nobody waits for the answer any more: its buffer is freed when it comes."""
        with self._state:
            pending.abandoned = True
            if pending.answer is not None:
                self.give(pending.buffer)

    def lost(self, error: Exception) -> NotConnectedError:
        """The channel is of no more use; what to raise."""
        with self._state:
            self.broken = self.broken or f"{self._name}: {error}"
            self._state.notify_all()
            return NotConnectedError(self.broken)

    def close(self) -> None:
        """End the channel and the pool."""
        self._channel.close()
        self._allocator.close()
        self.lost(NotConnectedError("closed by this side"))
