"""Channels joined: what arrives at an inlet goes on over the outlets, and comes home the same way.

Knows: where each buffer that is under way came from, and what the end of one channel means for the others. Must not
know: who waits (forwarder.py), to which outlet a buffer goes (route.py), how pools are agreed on (pools.py).

A state machine without waits: `pump` takes what is there. No thread but the forwarder's calls it.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterable, Sequence

import bulktransfer as bulk

from .pools import Pools, has_ended
from .problem import Problem, Reports
from .route import Route

FAIR_SHARE = 64  # events of one channel before the next has its turn


class Junction:
    """Channels that a Forwarder joined: `inlets`, where buffers arrive, and `outlets`, over which they go on.

    `over`: every channel has ended; `error`: what broke, None if the end was in order.
    """

    def __init__(
        self,
        inlets: Sequence[bulk.Channel],
        outlets: Sequence[bulk.Channel],
        route: Route,
        reports: Reports,
        patience: float | None,
        leave: Callable[[bulk.Channel], None],
    ) -> None:
        self.inlets = list(inlets)
        self.outlets = list(outlets)
        self.patience = patience
        self.error: BaseException | None = None
        self.forwarded = 0
        self._ending = False
        self._route = route
        self._reports = reports
        self.pools = Pools(self)
        self._home: dict[bulk.Buffer, bulk.Channel] = {}  # every buffer under way, and the inlet that it came over
        self._backlog: collections.deque[bulk.Event] = collections.deque()  # what cannot go on yet, in order
        self.lost: set[bulk.Buffer] = set()  # away when their outlet ended; a lease may bring them back
        self._turn = 0  # among the inlets, for buffers that came over none
        self._leave = leave  # told of each channel that has ended
        self._cause: tuple[BaseException, str] | None = None  # why one side is over

    # ---- start ----

    @property
    def channels(self) -> list[bulk.Channel]:
        """Every channel that has not ended."""
        return [*self.inlets, *self.outlets]

    @property
    def over(self) -> bool:
        """Whether every channel has ended."""
        return not self.inlets and not self.outlets

    def start(self) -> None:
        """Answer for pools from now on, and bring those that are here already onto the other channels."""
        callbacks = self.pools.callbacks()
        there = [(channel, pool) for channel in self.channels for pool in channel.pools]
        for channel in self.channels:
            channel.set_callbacks(callbacks)
        for channel, pool in there:
            self.pools.adopt(channel, pool)

    # ---- what arrives ----

    def pump(self, channel: bulk.Channel) -> int:
        """Take what is there and send it on; how many events that were. Never waits."""
        try:
            events = channel.receive_many(FAIR_SHARE, 0)
        except TimeoutError:
            return 0  # a continuation ran, or nothing was there
        except bulk.ChannelBusyError as error:
            self.report(Problem(error, channel))
            return 0
        except bulk.BulkError as end:
            if not has_ended(end):
                raise
            self._on_end(channel, end)
            return 1
        kinds = [event.kind for event in events]
        if kinds.count(kinds[0]) == len(kinds):  # mostly
            self._take(channel, kinds[0], events)
        else:
            for kind, run in itertools.groupby(events, lambda event: event.kind):
                self._take(channel, kind, list(run))
        self.drain()
        return len(events)

    def _take(self, channel: bulk.Channel, kind: bulk.EventKind, events: list[bulk.Event]) -> None:
        kinds = bulk.EventKind
        if kind in (kinds.MOVE_RECEIVED, kinds.COPY_RECEIVED):
            self._home.update(dict.fromkeys([event.buffer for event in events], channel))
            self._backlog.extend(events)
        elif kind is kinds.BUFFER_RECEIVED:
            self._route.back(channel, events)
            self._send_home([(event.buffer, event.meta) for event in events])
        elif kind is kinds.COPY_RELEASED:
            self._route.back(channel, events)
            self.settle(event.buffer for event in events)
        elif kind is kinds.OPERATION_REFUSED:
            self._route.back(channel, events)
            for event in events:
                self.report(Problem(event.error or bulk.BulkError("refused"), channel, event.buffer))
                if channel in self.outlets:
                    self.settle([event.buffer])
        elif kind is kinds.POOL_ASSIGNED:
            for event in events:
                self.pools.adopt(channel, event.pool)
        elif kind is kinds.POOL_REMOVED:
            for event in events:
                self.pools.gone(channel, event.pool)
        elif kind is kinds.BIND_RECEIVED:
            self.pools.bound(channel)

    # ---- onward ----

    def drain(self) -> None:
        """Send on what can go now."""
        while self._backlog and self.outlets and not self._ending:
            if not self.ready(self._backlog[0]):
                return
            if not self._route.send(self, self._backlog):
                return
        self._conclude()

    def ready(self, event: bulk.Event) -> bool:
        """Whether nothing but its turn keeps a transfer from going on."""
        return not self.pools.unready or event.buffer.pool.id not in self.pools.unready

    def send(self, outlet: bulk.Channel, events: list[bulk.Event], *, copies: bool) -> list[bulk.Event] | None:
        """Send a run over one outlet; what was sent, or None if the outlet has ended (its end follows)."""
        buffers = [event.buffer for event in events]
        metas = [event.meta for event in events]
        try:
            (outlet.copy_many if copies else outlet.move_many)(buffers, metas)
        except (bulk.BulkError, OSError) as error:
            if has_ended(error):
                return None
        else:
            self.forwarded += len(events)
            return events
        sent: list[bulk.Event] = []
        for event in events:  # not all of them can go: which?
            try:
                (outlet.copy if copies else outlet.move)(event.buffer, event.meta)
            except (bulk.BulkError, OSError) as error:
                if has_ended(error) and not sent:
                    return None
                self.report(Problem(error, outlet, event.buffer))
            else:
                sent.append(event)
        self.forwarded += len(sent)
        return sent

    # ---- home ----

    def settle(self, buffers: Iterable[bulk.Buffer]) -> None:
        """What has no copies out any more, and is not away, goes home."""
        here = [b for b in buffers if b.owned or b.is_copy]
        self._send_home([(b, b"") for b in here if b.pool.counts(b.index)[0] == 0])

    def _send_home(self, items: list[tuple[bulk.Buffer, bytes]]) -> None:
        """Pass what is owned, release what is held, each to where it came from; what nobody takes is dropped."""
        homes = [self._home.get(buffer) for buffer, _ in items]
        copies = [buffer.is_copy for buffer, _ in items]
        if homes and homes[0] and homes.count(homes[0]) == len(homes) and copies.count(copies[0]) == len(copies):
            self._return(homes[0], copies[0], items)  # mostly
            return
        runs = itertools.groupby(items, lambda item: (self._inlet_of(item[0]), item[0].is_copy))
        for (inlet, is_copy), run in runs:
            self._return(inlet, is_copy, list(run))

    def _inlet_of(self, buffer: bulk.Buffer) -> bulk.Channel | None:
        inlet = self._home.get(buffer)
        if inlet is None and self.inlets:  # the other side allocated it: any producer may fill it
            self._turn += 1
            inlet = self.inlets[self._turn % len(self.inlets)]
        return inlet

    def _return(self, inlet: bulk.Channel | None, is_copy: bool, items: list[tuple[bulk.Buffer, bytes]]) -> None:
        buffers = [buffer for buffer, _ in items]
        if inlet in self.inlets:
            assert inlet is not None
            done = (lambda outcome: self.pools.expel()) if self.pools.unwanted else None
            try:
                if is_copy:
                    inlet.release_many(buffers, done)
                else:
                    inlet.pass_many(buffers, [meta for _, meta in items], done)
            except (bulk.BulkError, OSError) as error:
                if len(items) > 1:
                    for item in items:
                        self._return(inlet, is_copy, [item])
                    return
                if not has_ended(error):
                    if not self._ending:
                        self.report(Problem(error, inlet, buffers[0]))
                    return  # it stays here until the channel ends, and is dropped then
            else:
                for buffer in buffers:
                    self._home.pop(buffer, None)
                return
        for buffer in buffers:
            self._drop(buffer)

    def _drop(self, buffer: bulk.Buffer) -> None:
        """Let go of a buffer that nobody takes back: its lease tells whoever assigned it."""
        if buffer.pool.present and not buffer.pool.home:
            try:
                buffer.drop()
            except bulk.ChannelStateError:
                return  # copies of it are out, or the end of its channel is on its way: later
        self._home.pop(buffer, None)

    def reclaim(self) -> None:
        """Leases may have brought back what was lost with an outlet."""
        back = [b for b in self.lost if (b.owned or b.is_copy) and b.pool.counts(b.index)[0] == 0]
        self.lost.difference_update(back)
        self.settle(back)

    # ---- the end ----

    def _on_end(self, channel: bulk.Channel, end: BaseException) -> None:
        """One channel is over, all that came over it is taken."""
        is_inlet = channel in self.inlets
        (self.inlets if is_inlet else self.outlets).remove(channel)
        self._leave(channel)
        channel.close()
        self.pools.bound(channel)
        if not is_inlet:
            self._route.gone(channel)
            self.lost.update(b for b in getattr(end, "buffers", ()) if b in self._home)
            self.reclaim()
        if self._cause is None and not (self.inlets and self.outlets):
            self._cause = (end, f"behind {channel.address}: {end}")
        self.drain()
        self._conclude()
        if self.over:
            self._let_go()

    def _conclude(self) -> None:
        """One side is over and what it sent has gone on: so is the other side, in order or with what broke."""
        if self._cause is None or self._ending or (self._backlog and self.outlets):
            return
        self._ending = True
        end, why = self._cause
        in_order = isinstance(end, bulk.EndOfChannelError | bulk.ClosedChannelError)
        self.error = None if in_order else end
        waiting = [event.buffer for event in self._backlog]
        self._backlog.clear()
        self.settle(waiting)  # before the inlets end: nobody is left to send it to
        for channel in self.channels:
            self._end(channel, None if in_order else why)

    def _end(self, channel: bulk.Channel, broken: str | None) -> None:
        """Begin the end of a channel; pump sees it through."""
        if broken is not None:
            channel.abort(broken)
        elif channel.state is bulk.ChannelState.CONNECTED:
            try:
                channel.destroy(self.patience, done=lambda outcome: None)  # its end is received like any other
            except bulk.BulkError:
                channel.close()  # it ends already
        else:
            channel.close()

    def _let_go(self) -> None:
        """Nothing is joined any more: let go of what nobody takes back."""
        for buffer in list(self._home):
            self._drop(buffer)
        self.lost = {buffer for buffer in self._home if buffer.pool.present}

    def abort(self, reason: str) -> None:
        """End every channel at once, as broken; what waits to go on goes home."""
        if self._cause is None:
            self._cause = (bulk.BrokenChannelError(reason), reason)
        ends, self.outlets = self.outlets, []
        self._conclude()
        self.outlets = ends
        for channel in self.channels:
            channel.abort(reason)
            self._on_end(channel, bulk.ClosedChannelError(reason))

    def report(self, problem: Problem) -> None:
        """Tell of what was refused."""
        self._reports.add(problem)

    def __repr__(self) -> str:
        state = "over" if self.over else "ending" if self._ending else f"{self.forwarded} forwarded"
        return f"<Junction of {len(self.inlets)} inlets and {len(self.outlets)} outlets: {state}>"
