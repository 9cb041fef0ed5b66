"""A channel whose waiting calls are awaited.

Knows: the public channel, what has been taken from it and not received yet. Must not know: rules; the channel
underneath holds them. Whatever waits, waits in Watch.news, and takes only after it: a cancelled call loses nothing.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, TypeVar, cast

import bulktransfer as bulk
from bulktransfer import ChannelState, EventKind

from .arrivals import LateRefusal, Raised, of_callback
from .watch import Watch

FAIR_SHARE = 64  # events that one look takes, before other tasks have their turn
CARRIES_BUFFER = {
    EventKind.MOVE_RECEIVED,
    EventKind.BUFFER_RECEIVED,
    EventKind.COPY_RECEIVED,
    EventKind.COPY_RELEASED,
}
BOUND = {ChannelState.CONNECTED, ChannelState.TEARDOWN, ChannelState.CLOSED}
ENDS = (
    bulk.ClosedChannelError,
    bulk.EndOfChannelError,
    bulk.BrokenChannelError,
    bulk.ProtocolViolation,
    bulk.ForkedError,
)
Done = Callable[[bulk.Outcome], object]
T = TypeVar("T")


class Channel:
    """One end of a channel, for tasks of one event loop; made by create, bind, connect, listen and wrap.

    While the loop runs it serves the channel, whether a task waits or not: control requests are answered, callbacks
    run, and some events wait here for receive. `sync` is the channel underneath: its calls that do not wait (`move` and
    its kin, `give_back`, `statistics`) may be used beside the awaited ones. Receive and close here only.
    """

    def __init__(self, channel: bulk.Channel) -> None:
        if not isinstance(channel, bulk.Channel):
            raise TypeError(f"an awaitable channel is made of a bulk.Channel, not of {type(channel).__name__}")
        self.sync = channel
        self._arrived: deque[bulk.Event | LateRefusal | Raised] = deque()
        self.watch = Watch(channel, self._on_readable)
        self._awaited = 0  # outcomes that tasks wait for
        self._silent = False  # a look found nothing, and the descriptor has not told of anything since
        self._over = False  # the channel ended, and what had arrived was taken
        self._look_is_due: asyncio.AbstractEventLoop | None = None

    # ---- what it is ----

    @property
    def address(self) -> str:
        """The address, as others bind to it."""
        return self.sync.address

    @property
    def peer(self) -> Any:
        """Who is at the other end."""
        return self.sync.peer

    @property
    def state(self) -> ChannelState:
        """Where the channel is in its life."""
        return self.sync.state

    @property
    def pools(self) -> tuple[bulk.Pool, ...]:
        """The pools that are assigned to the channel."""
        return self.sync.pools

    def fileno(self) -> int:
        """The channel's descriptor. Raises: as bulk.Channel.fileno."""
        return self.sync.fileno()

    def __repr__(self) -> str:
        return f"<aio {self.sync!r}, {len(self._arrived)} events to receive>"

    # ---- receiving ----

    async def receive(self) -> bulk.Event:
        """The next event that no callback takes. Raises: as bulk.Channel.receive, but for TimeoutError."""
        return await self._until(self._take)

    def receive_nowait(self) -> bulk.Event:
        """The next event, if one is there. Raises: WouldBlock, and as receive."""
        self._silent = False
        event = self._take()
        if event is None:
            raise bulk.WouldBlock(f"receive on {self!r}: nothing is there")
        return event

    async def receive_many(self, limit: int) -> list[bulk.Event]:
        """At least one event and at most `limit`. Raises: as receive; ValueError (limit < 1)."""
        if limit < 1:
            raise ValueError(f"receive_many of {limit} events")
        events = [await self._until(self._take)]
        while len(events) < limit and self._arrived and not isinstance(self._arrived[0], Raised):
            events.append(cast(bulk.Event, self._arrived.popleft()))
        return events

    async def receive_buffer(self) -> bulk.Transfer:
        """The next event that brings a buffer; other events stay for receive. Raises: as receive."""
        return await self._until(self._take_transfer)

    async def receive_aggregate(self) -> bulk.Arrival:
        """What was sent next, whole or not at all; cancelled half way, the next call goes on.

        Other events stay for receive. Raises: as bulk.Channel.receive_aggregate, but for TimeoutError.
        """
        return await self._until(self._take_aggregate)

    async def buffers(self) -> AsyncIterator[bulk.Transfer]:
        """The transfers as they arrive, until the peer ends the channel. Raises: as receive, but for the end."""
        while True:
            try:
                transfer = await self.receive_buffer()
            except bulk.EndOfChannelError:
                return
            yield transfer

    def __aiter__(self) -> Channel:
        return self

    async def __anext__(self) -> bulk.Event:
        try:
            return await self.receive()
        except bulk.EndOfChannelError:
            raise StopAsyncIteration from None

    # ---- set-up ----

    async def wait_bound(self) -> None:
        """Wait until a binder is bound, and take the bind_received event. Raises: the channel's end, ForkedError."""
        await self._until(self._see_bound)

    async def assign_pool(self, pool: bulk.Pool, *, exposed: bool = False, means: str | None = None) -> None:
        """Have the pool on the channel, at both ends. Cancelled before the answer, the request is withdrawn.

        Raises: as bulk.Channel.assign_pool, but for TimeoutError.
        """
        try:
            await self._outcome(
                lambda done: self.sync.assign_pool(pool, exposed=exposed, means=means, timeout=None, done=done)
            )
        except asyncio.CancelledError:
            self.sync.withdraw(pool)
            raise

    async def remove_pool(self, pool: bulk.Pool) -> None:
        """Take the pool off the channel, at both ends. Cancelled, the peer's answer comes as an event.

        Raises: as bulk.Channel.remove_pool, but for TimeoutError.
        """
        try:
            await self._outcome(lambda done: self.sync.remove_pool(pool, timeout=None, done=done))
        except asyncio.CancelledError:
            self.sync.withdraw(pool)
            raise

    # ---- transfers: each returns when the peer's library accepted, and raises what it refused; an aggregate, too ----

    async def move(self, buffer: bulk.Buffer | bulk.Aggregate, meta: bytes = b"") -> None:
        """Give the buffer away to the sink. Cancelled, the move stands; a refusal then comes as an event.

        Raises: as bulk.Channel.move at once; NotOwnedError (the peer refused), the channel's end.
        """
        await self._outcome(lambda done: self.sync.move(buffer, meta, done))

    async def copy(self, buffer: bulk.Buffer | bulk.Aggregate, meta: bytes = b"") -> None:
        """Let the sink read the buffer. Cancelled, the copy stands, as with move.

        Raises: as bulk.Channel.copy at once; CopyRefusedError (the peer refused), the channel's end.
        """
        await self._outcome(lambda done: self.sync.copy(buffer, meta, done))

    async def pass_(self, buffer: bulk.Buffer | bulk.Aggregate, meta: bytes = b"") -> None:
        """Give the buffer back to the source. Cancelled, the pass stands, as with move.

        Raises: as bulk.Channel.pass_ at once; NotOwnedError (the peer refused), the channel's end.
        """
        await self._outcome(lambda done: self.sync.pass_(buffer, meta, done))

    async def release(self, buffer: bulk.Buffer | bulk.Aggregate) -> None:
        """Let go of a copy. Cancelled, the release stands. Raises: as bulk.Channel.release; the channel's end."""
        await self._outcome(lambda done: self.sync.release(buffer, done))

    async def full_copy(self, buffer: bulk.Buffer, into: bulk.Buffer, meta: bytes = b"") -> None:
        """Copy the contents into another owned buffer and move that one. Cancelled, the move stands.

        Raises: as bulk.Channel.full_copy at once; NotOwnedError (the peer refused), the channel's end.
        """
        await self._outcome(lambda done: self.sync.full_copy(buffer, into, meta, done))

    async def move_many(self, buffers: Iterable[bulk.Buffer], metas: Iterable[bytes] | None = None) -> None:
        """Move a batch: all or none. Raises: as move; ValueError (a buffer twice)."""
        await self._outcome_of_batch(self.sync.move_many, list(buffers), metas)

    async def copy_many(self, buffers: Iterable[bulk.Buffer], metas: Iterable[bytes] | None = None) -> None:
        """Copy a batch: all or none. Raises: as copy; ValueError (a buffer twice)."""
        await self._outcome_of_batch(self.sync.copy_many, list(buffers), metas)

    async def pass_many(self, buffers: Iterable[bulk.Buffer], metas: Iterable[bytes] | None = None) -> None:
        """Pass a batch: all or none. Raises: as pass_; ValueError (a buffer twice)."""
        await self._outcome_of_batch(self.sync.pass_many, list(buffers), metas)

    async def release_many(self, buffers: Iterable[bulk.Buffer]) -> None:
        """Release a batch: all or none. Raises: as release; ValueError (a buffer twice)."""
        batch = list(buffers)
        if batch:
            await self._outcome(lambda done: self.sync.release_many(batch, done))

    # ---- the end ----

    async def destroy(self, timeout: float = 5.0) -> None:
        """End the channel in order and wait for the peer's consent; after `timeout` seconds the peer counts as dead.

        What has arrived can still be received. Cancelled, the teardown goes on. Raises: as bulk.Channel.destroy.
        """
        await self._outcome(lambda done: self.sync.destroy(timeout, done))

    def close(self) -> None:
        """End the channel at once; idempotent, never raises, never waits. Tasks that wait get ClosedChannelError."""
        self.watch.stop()
        self.sync.close()
        self._over = True
        self.watch.wake()

    async def __aenter__(self) -> Channel:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    # ---- looking ----

    def _on_readable(self) -> None:
        if len(self._arrived) < FAIR_SHARE or self._awaited:
            self._look()
        else:  # the rest stays where it is, which holds the peer up, until a task has taken some of this
            self._silent = False
            self.watch.stop()

    def _look(self) -> None:
        """Take what is there, and tell whoever waits."""
        self._look_is_due = None
        if self._pull():
            self.watch.stop()
        self.watch.wake()

    def _pull(self) -> bool:
        """Take what is there, a fair share at most; True if the channel is over."""
        for _ in range(FAIR_SHARE):
            try:
                self._arrived.append(self.sync.receive_nowait())
            except BaseException as error:
                if not isinstance(error, Exception):
                    raise
                if isinstance(error, bulk.WouldBlock) and not of_callback(error):
                    self._silent = True
                    return False
                if isinstance(error, ENDS) and self.sync.state is ChannelState.CLOSED:
                    self._over = True
                    return True
                self._arrived.append(Raised(error))
                return False
        return False

    def _see(self) -> None:
        """Take what is there, unless the descriptor would have told of it."""
        if not self._silent and not self._over:
            self._pull()

    def _take(self) -> bulk.Event | None:
        """The next event, None if there is none yet. Raises: what a callback raised, the end."""
        if not self._arrived:
            self._see()
        if self._arrived:
            item = self._arrived.popleft()
            if not self._over and len(self._arrived) < FAIR_SHARE:
                self.watch.start_again()
            if isinstance(item, Raised):
                raise item.error
            return cast(bulk.Event, item)
        return self.sync.receive_nowait() if self._over else None

    def _take_transfer(self) -> bulk.Transfer | None:
        self._see()
        for place, item in enumerate(self._arrived):
            if isinstance(item, Raised) or item.kind in CARRIES_BUFFER:
                del self._arrived[place]
                if isinstance(item, Raised):
                    raise item.error
                return cast(bulk.Transfer, item)
        return self.sync.receive_buffer(0) if self._over else None

    def _take_aggregate(self) -> bulk.Arrival | None:
        arrival: bulk.Arrival | None = None
        while arrival is None:
            try:
                transfer = self._take_transfer()
            except ENDS:
                if self._over:
                    self.sync.receive_aggregate(0)  # raises it again, and lets go of what came
                raise
            if transfer is None:
                return None
            arrival = self.sync.gather(transfer)
        return arrival

    def _see_bound(self) -> bool | None:
        self._see()
        if self.state not in BOUND:
            return None
        if self._over and not self._arrived:
            self.sync.receive_nowait()  # raises how it ended
        for place, item in enumerate(self._arrived):
            if not isinstance(item, Raised) and item.kind is EventKind.BIND_RECEIVED:
                del self._arrived[place]
                break
        return True

    async def _until(self, look: Callable[[], T | None]) -> T:
        """Look, and wait for news while there is nothing to see."""
        while True:
            found = look()
            if found is not None:
                return found
            await self.watch.news()

    # ---- outcomes ----

    async def _outcome(self, start: Callable[[Done], object]) -> None:
        """Start an operation and wait until it is known how it ended. Raises: its error."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[bulk.Outcome] = loop.create_future()

        def done(outcome: bulk.Outcome) -> None:
            if not ended.done():
                ended.set_result(outcome)
            else:  # cancelled
                self._late(outcome)

        if self.sync.state is not ChannelState.CLOSED:
            self.watch.start()
        start(done)  # it raises, or calls `done` later: never inside the call
        try:
            outcome = await self.see(ended)
        except asyncio.CancelledError:
            if ended.done() and not ended.cancelled():
                self._late(ended.result())
            raise
        if outcome.error is not None:
            raise outcome.error

    async def see(self, ended: asyncio.Future[bulk.Outcome]) -> bulk.Outcome:
        """Serve the channel until a continuation has told an outcome."""
        loop = asyncio.get_running_loop()
        if self.state is ChannelState.CLOSED:
            self._look()
            return await ended
        self.watch.start()
        if self._look_is_due is not loop:  # one look for all that tasks start in this round; it has the peer ring
            self._look_is_due = loop
            loop.call_soon(self._look)
        self._awaited += 1
        try:
            return await ended
        finally:
            self._awaited -= 1

    async def _outcome_of_batch(
        self, send: Callable[[list[bulk.Buffer], Any, Done], None], batch: list[bulk.Buffer], metas: Any
    ) -> None:
        if not batch:  # nothing is sent, and nobody calls a continuation
            send(batch, metas, lambda outcome: None)
            return
        await self._outcome(lambda done: send(batch, metas, done))

    def _late(self, outcome: bulk.Outcome) -> None:
        """Nobody waits for this outcome any more: a transfer that was refused is an event."""
        buffers = outcome.buffer
        if outcome.error is not None and buffers is not None and not isinstance(outcome.error, ENDS):
            each = buffers if isinstance(buffers, tuple) else (buffers,)
            self._arrived.append(LateRefusal(self.sync, outcome.operation, each, outcome.error))
            self.watch.wake()


async def news_of(channels: Sequence[Channel]) -> None:
    """Wait until something, if only a buffer that came home, arrives at one of the channels."""
    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    for channel in channels:
        channel.watch.start()
        channel.watch.join(waiter)
    try:
        await waiter
    finally:
        for channel in channels:
            channel.watch.leave(waiter)


_channels: weakref.WeakValueDictionary[int, Channel] = weakref.WeakValueDictionary()


def wrap(channel: bulk.Channel) -> Channel:
    """The awaitable face of a channel, always the same while somebody holds it. Raises: TypeError."""
    known = _channels.get(id(channel))
    if known is None:
        known = _channels[id(channel)] = Channel(channel)
        if channel.state is not ChannelState.CLOSED:
            known.watch.start_again()
    return known


def channels_with(pool: bulk.Pool) -> list[Channel]:
    """The channels of this room that have the pool."""
    return [channel for channel in list(_channels.values()) if pool in channel.pools]
