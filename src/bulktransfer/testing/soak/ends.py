"""One end of a lane: sends and receives over a channel, and holds what comes against what was sent.

Knows: the order of a lane, what an end of a channel may look like, what the journal must say. Must not know: what is
done with what came, or who else there is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import bulktransfer as bulk
from bulktransfer import BufferState, Direction, EventKind, Trust

from .brief import Journal, Lane, Slot
from .letters import META_BYTES, Label, Pen, Wrong

HANDSHAKE_S = 3600.0  # the whole soak may be stopped for a while: no deadline of ours must tell
ARRIVALS = (EventKind.MOVE_RECEIVED, EventKind.COPY_RECEIVED)
ENDS = (bulk.EndOfChannelError, bulk.BrokenChannelError, bulk.ClosedChannelError)


class End:
    """One end of a lane, from set-up to its end."""

    def __init__(self, lane: Lane, me: int, journal: Journal, pen: Pen, domain: bulk.Domain) -> None:
        self.lane = lane
        self.journal = journal
        self.pen = pen
        self.is_sender = lane.sender == me
        self.places = 0  # of what was sent, or of what came
        self.acknowledged = 0
        self.refused: Callable[[bulk.Buffer], object] | None = None  # who gets back what the other side refused
        self.ended: bulk.BulkError | None = None
        self.failed: BaseException | None = None  # the bind did not come about
        self.assigned: set[Any] = set()  # pools that this end may send from
        self.asked: set[Any] = set()
        self.pools_seen: list[bulk.Pool] = []
        limits = bulk.Limits(handshake_s=HANDSHAKE_S)
        consent = bulk.Callbacks(pool_assigned=self._consent)
        options: dict[str, Any] = {"callbacks": consent, "limits": limits, "wait": lane.waits, "domain": domain}
        if lane.creator == me:
            direction = Direction.TX if self.is_sender else Direction.RX
            self.channel = bulk.create(
                lane.address, direction=direction, trust=Trust[lane.trust], meta_size=META_BYTES, **options
            )
        else:
            self.channel = bulk.bind(lane.address, timeout=None, done=self._bound, **options)

    def _bound(self, outcome: bulk.Outcome) -> None:
        if outcome.error is not None:
            self.failed = outcome.error

    def _consent(self, event: bulk.Event) -> None:
        self.pools_seen.append(event.pool)

    @property
    def connected(self) -> bool:
        """Whether something can be sent."""
        return self.ended is None and self.channel.state is bulk.ChannelState.CONNECTED

    # ---- pools ----

    def ask(self, pool: bulk.Pool) -> None:
        """Have a pool on the lane, as soon as it may be."""
        if pool in self.asked or not self.connected:
            return
        self.asked.add(pool)

        def answered(outcome: bulk.Outcome) -> None:
            if outcome.error is None:
                self.assigned.add(pool)
            elif not isinstance(outcome.error, ENDS):
                raise Wrong(f"lane {self.lane}: an assignment was refused: {outcome.error!r}")

        try:
            self.channel.assign_pool(pool, timeout=None, done=answered)
        except ENDS:
            return  # receive says how it ended

    # ---- sending ----

    def send(self, act: str, buffer: bulk.Buffer, key: int, into: bulk.Buffer | None = None) -> bool:
        """Move, copy or full_copy; False if the lane has ended. The journal knows at once what must arrive."""
        label = Label(self.lane.number, self.places + 1, key)
        length = buffer.length
        shared = self.lane.trust != "NONE"
        done = None if shared else self._acknowledge(label, length)
        before = buffer.state
        try:
            if into is not None:
                self.channel.full_copy(buffer, into, label.pack(), done)
            elif act == "copy":
                self.channel.copy(buffer, label.pack(), done)
            else:
                self.channel.move(buffer, label.pack(), done)
        except ENDS:
            if buffer.state is not before:
                raise Wrong(f"{act} on {self.channel!r} failed, and the buffer is {buffer.state.name}") from None
            return False
        self.places += 1
        after = {"move": (BufferState.INVALID,), "copy": (BufferState.READ_ONLY_OWNED, BufferState.READ_ONLY)}
        gone = buffer if into is None else into
        local = self.lane.address.startswith("local:")
        if not local and gone.state not in after["copy" if act == "copy" else "move"]:
            raise Wrong(f"{act} on {self.channel!r} left the buffer {gone.state.name}")
        if shared:
            self._note(length)
        return True

    def _acknowledge(self, label: Label, length: int) -> Callable[[bulk.Outcome], None]:
        """Where contents have to leave first, what counts is what the other side's library has taken.

        It may refuse: who took a buffer back when the next stop of its route died has it, though it went round before.
        """

        def done(outcome: bulk.Outcome) -> None:
            if outcome.error is not None and isinstance(outcome.error, ENDS):
                return
            if label.place <= self.acknowledged:
                raise Wrong(f"lane {self.lane}: transfer {label.place} was answered after {self.acknowledged}")
            self.acknowledged = label.place
            if outcome.error is None:
                self._note(length)
                return
            if not isinstance(outcome.error, bulk.NotOwnedError | bulk.CopyRefusedError) or self.refused is None:
                raise Wrong(f"lane {self.lane}: transfer {label.place} was refused: {outcome.error!r}")
            buffer = outcome.buffer
            if buffer.state is BufferState.INVALID:
                raise Wrong(f"{buffer!r} was refused, and is {buffer.state.name}")
            self.pen.judge(buffer.tobytes(), label.key, f"{self.channel!r}: {buffer!r} was refused")
            self.journal.add(self.lane.number, True, Slot.REFUSED, 1)
            self.refused(buffer)

        return done

    def _note(self, length: int) -> None:
        self.journal.add(self.lane.number, True, Slot.SENT_BYTES, length)
        self.journal.add(self.lane.number, True, Slot.SENT, 1)

    # ---- receiving ----

    def events(self, most: int = 32) -> Iterator[bulk.Event]:
        """What has come, judged; at the channel's end it stops and `ended` is set. Raises: Wrong."""
        while most and self.ended is None:
            most -= 1
            try:
                event = self.channel.receive_nowait()
            except bulk.WouldBlock:
                return
            except ENDS as error:
                self.ended = error
                return
            if event.kind in ARRIVALS:
                self._judge(event)
            elif event.kind is EventKind.OPERATION_REFUSED:
                raise Wrong(f"{self.channel!r}: {event.buffer!r} was refused: {event.error!r}")
            yield event

    def _judge(self, event: bulk.Event) -> None:
        """Hold what arrived against the order of the lane and its contents."""
        label = Label.of(event.meta)
        self.places += 1
        if self.lane.trust == "NONE":  # some may have been refused, which only their sender knows
            self.places = max(self.places, label.place)
        if (label.lane, label.place) != (self.lane.number, self.places):
            raise Wrong(f"{self.channel!r}: {label} came where place {self.places} of lane {self.lane.number} was due")
        due = BufferState.READ_WRITE if event.kind is EventKind.MOVE_RECEIVED else BufferState.READ_ONLY
        if event.buffer.state is not due:
            raise Wrong(f"{self.channel!r}: {event.kind} left buffer {event.buffer!r} {event.buffer.state.name}")
        self.pen.judge(event.buffer.tobytes(), label.key, f"{self.channel!r}, place {label.place}")
        self.journal.add(self.lane.number, False, Slot.TAKEN_BYTES, event.buffer.length)
        self.journal.add(self.lane.number, False, Slot.TAKEN, 1)

    # ---- the end ----

    def give_up(self) -> None:
        """Leave if nobody came and nobody will."""
        if self.channel.state in (bulk.ChannelState.INITIALIZED, bulk.ChannelState.BINDING):
            self.close()

    def close(self) -> None:
        """Leave; what was sent still arrives."""
        self.channel.close()


def let_go(buffer: bulk.Buffer, end: End) -> None:
    """Give a buffer back over the lane that it came over, or drop it where that ended. Raises: Wrong."""
    try:
        if buffer.state is BufferState.READ_ONLY:
            end.channel.release(buffer)
        else:
            end.channel.pass_(buffer, Label(end.lane.number, 0, 0).pack())
    except ENDS:
        drop(buffer, end)
    if buffer.state is not BufferState.INVALID and not end.lane.address.startswith("local:"):
        raise Wrong(f"{end.channel!r}: {buffer!r} was given back and is {buffer.state.name}")


def drop(buffer: bulk.Buffer, end: End) -> None:
    """Let go of what came over a lane that ended."""
    end.channel.close()
    buffer.drop()
