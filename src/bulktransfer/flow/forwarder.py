"""One thread that forwards between many channels.

Knows: which channels belong to which junction, and how to wait for all of them. Must not know: what a junction does
with what arrives.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import bulktransfer as bulk

from .junction import Junction
from .problem import Problem, Report, Reports
from .route import Copies, Route, Through, Turns

RECHECK_S = 0.05  # while buffers are lost with an outlet: nothing but their leases tells, and only the domain hears it


class Forwarder:
    """Joins channels of any backends, as many as one likes, and forwards between them in one thread (II-5.2.1).

    Pools, vetoes, the four transfers with their meta data, removals and ends travel through. Nothing is copied where
    memory is shared, and nothing waits inside a callback. `report(problem)` is told what could not go on; without it
    such things are logged, and the latest are in `problems`. `patience`: seconds that the far side has to answer.
    """

    def __init__(self, *, report: Report | None = None, patience: float | None = 10.0) -> None:
        self._patience = patience
        self._reports = Reports(report)
        self._waitset = bulk.WaitSet()
        self._junctions: dict[bulk.Channel, Junction] = {}
        self._over: list[Junction] = []  # whose lost buffers a lease may still bring back
        self._lock = threading.RLock()  # whoever dispatches has it, but not while waiting
        self._closed = False

    # ---- what is joined ----

    def add(self, a: bulk.Channel, b: bulk.Channel) -> Junction:
        """Join two channels: what arrives at the one goes on over the other, and comes home the same way.

        One end is a sink, the other a source, in any order. Raises: TypeError, DirectionError, TrustMismatchError,
        MetaSizeError, ChannelStateError (still binding), ValueError (of two domains, joined already, with callbacks of
        its own), the channel's end.
        """
        check_channels([a, b])
        inlet, outlet = (b, a) if a.direction is bulk.Direction.TX else (a, b)
        return self._join([inlet], [outlet], Through())

    def broadcast(self, source: bulk.Channel, sinks: Sequence[bulk.Channel]) -> Junction:
        """Copy what arrives at `source` to all `sinks`; it goes home when all have released it.

        A sink that ends is left out from then on. Raises: as add; ValueError (no sinks).
        """
        return self._join([source], sinks, Copies())

    def scatter(self, source: bulk.Channel, sinks: Sequence[bulk.Channel], *, depth: int = 4) -> Junction:
        """Send what arrives at `source` to `sinks` in turn, each at most `depth` buffers at a time.

        What finds no sink with room waits for a buffer to come back. Raises: as add; ValueError (no sinks, depth).
        """
        if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
            raise ValueError(f"scatter with depth={depth!r}; it takes an int of at least 1")
        return self._join([source], sinks, Turns(list(sinks), depth))

    def merge(self, sources: Sequence[bulk.Channel], sink: bulk.Channel) -> Junction:
        """Send what arrives at any of `sources` to `sink`; each buffer goes home to where it came from.

        A source that ends is left out from then on. Raises: as add; ValueError (no sources).
        """
        return self._join(sources, [sink], Through())

    def _join(self, inlets: Sequence[bulk.Channel], outlets: Sequence[bulk.Channel], route: Route) -> Junction:
        with self._lock:
            if self._closed:
                raise ValueError("the forwarder is closed")
            for channel in (*inlets, *outlets):
                if channel in self._junctions:
                    raise ValueError(f"{channel!r} is joined already")
            check_joint(inlets, outlets)
            junction = Junction(inlets, outlets, route, self._reports, self._patience, self._let_go)
            added = []
            try:
                for channel in junction.channels:
                    self._waitset.add(channel)
                    added.append(channel)
            except BaseException:
                for channel in added:
                    self._waitset.remove(channel)
                raise
            self._junctions.update(dict.fromkeys(junction.channels, junction))
            junction.start()
            return junction

    def _let_go(self, channel: bulk.Channel) -> None:
        """A channel has ended."""
        self._waitset.remove(channel)
        junction = self._junctions.pop(channel)
        if junction.over:
            self._over.append(junction)

    # ---- the work ----

    def dispatch(self, timeout: float | None = None) -> int:
        """Wait until something arrives and forward what is there; the number of events.

        Raises: TimeoutError, ValueError (nothing is joined, closed), WouldBlock (inside a callback), what `report`
        raises.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            if not self._junctions:
                raise ValueError(f"dispatch of {self!r}: nothing is joined")
            left = None if end is None else max(0.0, end - time.monotonic())
            count = self._round(left)
            if count:
                return count
            if left == 0.0:
                raise TimeoutError(f"dispatch of {self!r}: nothing came within {timeout} s")

    def dispatch_nowait(self) -> int:
        """Forward what is there; the number of events. Raises: what `report` raises, ValueError (closed)."""
        return self._round(0.0)

    def _round(self, left: float | None) -> int:
        """Wait for up to `left` seconds and take what is there, once from each channel."""
        lost = self._has_lost()
        if lost and (left is None or left > RECHECK_S):
            left = RECHECK_S
        try:
            ready = self._waitset.wait(left)
        except TimeoutError:
            ready = []
        except ValueError:
            if not self._closed:  # meanwhile, by another thread
                raise
            ready = []
        count = 0
        with self._lock:
            for channel in ready:
                junction = self._junctions.get(channel)
                if junction is not None:
                    count += junction.pump(channel)
            if lost:
                for junction in {*self._junctions.values(), *self._over}:
                    junction.reclaim()
            self._over = [junction for junction in self._over if junction.lost]
        return count

    def _has_lost(self) -> bool:
        return bool(self._over) or any(junction.lost for junction in self._junctions.values())

    def run(self) -> None:
        """Forward until every junction is over; each says in `error` what broke.

        Raises: WouldBlock (inside a callback), what `report` raises.
        """
        while self._junctions and not self._closed:
            self._round(None)

    def fileno(self) -> int:
        """A descriptor that is readable while dispatch_nowait has something to do. Raises: ValueError (closed)."""
        return self._waitset.fileno()

    # ---- what it says ----

    @property
    def problems(self) -> tuple[Problem, ...]:
        """The latest things that could not go on, up to a hundred."""
        return tuple(self._reports.latest)

    @property
    def problem_count(self) -> int:
        """How many things could not go on since it was made."""
        return self._reports.count

    def __len__(self) -> int:
        return len(set(self._junctions.values()))

    # ---- the end ----

    def close(self) -> None:
        """End every channel that is still joined, as broken; idempotent, never waits."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for junction in list(dict.fromkeys(self._junctions.values())):
                junction.abort("the forwarder in between was closed")
            self._waitset.close()

    def __enter__(self) -> Forwarder:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Forwarder of {len(self)} junctions{', closed' if self._closed else ''}>"


def check_channels(channels: Sequence[bulk.Channel]) -> None:
    """Channels, none of them twice. Raises: TypeError, ValueError, ChannelStateError."""
    for channel in channels:
        if not isinstance(channel, bulk.Channel):
            raise TypeError(f"a forwarder joins channels, not {type(channel).__name__}")
        if channel.state in (bulk.ChannelState.UNINITIALIZED, bulk.ChannelState.BINDING):
            raise bulk.ChannelStateError(f"joining {channel!r}: it is not bound yet")
    if len(set(channels)) < len(channels):
        raise ValueError("joining a channel with itself")


def check_joint(inlets: Sequence[bulk.Channel], outlets: Sequence[bulk.Channel]) -> None:
    """Whether they fit together. Raises: what Forwarder.add documents."""
    channels = [*inlets, *outlets]
    check_channels(channels)
    if not inlets or not outlets:
        raise ValueError("a junction needs a source and a sink at least")
    for channel in channels:
        wanted = bulk.Direction.RX if channel in inlets else bulk.Direction.TX
        if channel.direction is not wanted:
            raise bulk.DirectionError(
                f"joining {channel!r}: its direction here is {wanted.other.name}, not {wanted.name}"
            )
        if channel.domain is not channels[0].domain:
            raise ValueError(f"joining {channel!r}: it is in another domain than {channels[0]!r}")
        if channel.meta_size != channels[0].meta_size:
            raise bulk.MetaSizeError(
                f"joining {channel!r}: its meta data has {channel.meta_size} bytes, that of {channels[0]!r} "
                f"{channels[0].meta_size}"
            )
        if channel.callbacks != bulk.Callbacks():
            raise ValueError(f"joining {channel!r}: it has callbacks of its own, which would take its events")
    check_trust(channels)


def check_trust(channels: Sequence[bulk.Channel]) -> None:
    """Whether one pool can be on all: where it has a twin on another machine, that is at NONE, and goes with FULL, too.

    Raises: TrustMismatchError.
    """
    near = [channel for channel in channels if not may_lead_away(channel)]
    for channel in near:
        if channel.trust is not near[0].trust:
            raise bulk.TrustMismatchError(
                f"joining {channel!r}: a pool has one trust level, and {near[0]!r} has another"
            )
        if channel.trust is bulk.Trust.HALF and len(near) < len(channels):
            raise bulk.TrustMismatchError(f"joining {channel!r}: HALF forbids what a channel to another machine writes")


def may_lead_away(channel: bulk.Channel) -> bool:
    """Whether there is, or may be once it is bound, no memory shared with the peer of a channel at NONE."""
    return channel.trust is bulk.Trust.NONE and channel.peer.pid < 0  # of a process on this machine it is known
