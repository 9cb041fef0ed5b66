"""Many channels and listeners, one place to wait (I-6.2.2, per-channel wait sets of the report).

Knows: their descriptors. Must not know: what arrives.
"""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from .._native import kernel
from .._native.waiting import call_back, in_callback
from ..errors import BulkError, WouldBlock
from .channel import Channel
from .listener import Listener

RECHECK_S = 0.05  # while other threads have channels that this one could serve
FAIR_SHARE = 64  # events of one channel before the next has its turn


class WaitSet:
    """A set of channels and listeners to wait on together; dispatch runs their callbacks.

    It keeps what is in it alive, a channel until that ends, a listener until it is closed.
    Raises: OSError (no descriptors left).
    """

    def __init__(self) -> None:
        self._poller = kernel.make_poller()
        self._channels: dict[int, weakref.ref[Channel]] = {}
        self._kept: set[Channel] = set()  # those that have not ended
        self._ended: set[int] = set()
        self._listeners: dict[int, tuple[Listener, Callable[[tuple[Channel, ...]], object] | None]] = {}
        self._full: set[int] = set()  # listeners with clients that wait for accept, and whom a dispatch passes over
        self.waiting = 0

    def add(
        self, channel: Channel | Listener, *, accepted: Callable[[tuple[Channel, ...]], object] | None = None
    ) -> None:
        """Take a channel or a listener in; it stays its user's to close.

        accepted: of a listener, called by dispatch with the channels of each client; without it they wait for accept.
        Raises: TypeError, ValueError (it is in already), the channel's or listener's end.
        """
        self._check_open()
        if isinstance(channel, Listener):
            self._add_listener(channel, accepted)
            return
        if not isinstance(channel, Channel):
            raise TypeError(f"a wait set takes channels and listeners, not {type(channel).__name__}")
        if accepted is not None:
            raise TypeError("accepted= is for listeners")
        if any(reference() is channel for reference in self._channels.values()):
            raise ValueError(f"{channel!r} is in the wait set already")
        fd = channel.fileno()
        kernel.poller_add(self._poller.fileno(), fd)
        self._ended.discard(fd)  # of a channel that had the number before
        self._channels[fd] = weakref.ref(channel)
        self._kept.add(channel)
        channel.waitsets.add(self)

    def _add_listener(self, listener: Listener, accepted: Callable[[tuple[Channel, ...]], object] | None) -> None:
        if accepted is not None and not callable(accepted):
            raise TypeError(f"accepted={accepted!r} cannot be called")
        self._forget_closed()
        if any(known is listener for known, _ in self._listeners.values()):
            raise ValueError(f"{listener!r} is in the wait set already")
        fd = listener.fileno()
        kernel.poller_add(self._poller.fileno(), fd)
        self._listeners[fd] = (listener, accepted)

    def _forget_closed(self) -> None:
        """A listener that was closed leaves; one whose clients were accepted is heard again."""
        for fd, (listener, _) in list(self._listeners.items()):
            if listener.closed:
                del self._listeners[fd]
                self._full.discard(fd)
            elif fd in self._full and not listener.clients:
                self._full.discard(fd)
                kernel.poller_add(self._poller.fileno(), fd)

    def remove(self, channel: Channel | Listener) -> None:
        """Let a channel or listener go. Raises: ValueError (it is not in the set)."""
        self._check_open()
        self._forget_closed()
        for fd, (listener, _) in self._listeners.items():
            if listener is channel:
                kernel.poller_drop(self._poller.fileno(), fd)
                del self._listeners[fd]
                self._full.discard(fd)
                return
        for fd, reference in self._channels.items():
            if reference() is channel:
                kernel.poller_drop(self._poller.fileno(), fd)
                del self._channels[fd]
                self._ended.discard(fd)
                self._kept.discard(channel)
                channel.waitsets.discard(self)
                return
        raise ValueError(f"{channel!r} is not in the wait set")

    def dispatch(self, timeout: float | None = None) -> int:
        """Wait for events and run their callbacks; the number of callbacks that ran, at least one.

        Events without a callback wait for receive. Raises: TimeoutError, WouldBlock (inside a callback), what a
        callback raises (its event is consumed).
        """
        end = None if timeout is None else time.monotonic() + max(0.0, timeout)
        while True:
            count = self._round()
            if count:
                return count
            if not self._wait(end):
                raise TimeoutError(f"dispatch of {self!r}: nothing came within {timeout} s")

    def dispatch_nowait(self) -> int:
        """Run the callbacks of what is there; 0 if there is nothing. Raises: what a callback raises."""
        return self._round()

    def ended(self, channel: Channel) -> None:
        """A channel ended: it is in the set as long as its user keeps it."""
        self._kept.discard(channel)

    def wait(self, timeout: float | None = None) -> list[Any]:
        """Wait until channels have something to receive (an end counts), or listeners a client to accept; those.

        Raises: TimeoutError, WouldBlock (inside a callback).
        """
        end = None if timeout is None else time.monotonic() + max(0.0, timeout)
        while True:
            found: list[Any] = [c for c in self._ready(also_waiting=True) if self._has_news(c)]
            found += [listener for listener, _ in self._served_listeners() if listener.clients]
            if found:
                return found
            if not self._wait(end):
                raise TimeoutError(f"wait of {self!r}: nothing came within {timeout} s")

    def _round(self) -> int:
        """Dispatch what is there."""
        self._check_open()
        count = 0
        for channel in self._ready():
            ran = channel.dispatch_events(FAIR_SHARE)
            count += ran
            if ran < FAIR_SHARE:
                self._rest(channel)
        for listener, accepted in self._served_listeners():
            count += self._admit(listener, accepted)
        return count

    def _served_listeners(self) -> list[tuple[Listener, Callable[[tuple[Channel, ...]], object] | None]]:
        """The listeners, with what their clients asked for served."""
        self._forget_closed()
        for domain in {listener.domain for listener, _ in self._listeners.values()}:
            domain.serve()
        for listener, _ in self._listeners.values():
            listener.beacon.settle()
        return list(self._listeners.values())

    def _admit(self, listener: Listener, accepted: Callable[[tuple[Channel, ...]], object] | None) -> int:
        """Call back for the clients of a listener; how often."""
        count = 0
        while accepted is not None and count < FAIR_SHARE and listener.clients:
            count += 1
            call_back(accepted, listener.accept(0))
        fd = next((f for f, known in self._listeners.items() if known[0] is listener), None)
        if fd is not None and accepted is None and listener.clients and fd not in self._full:
            self._full.add(fd)
            kernel.poller_drop(self._poller.fileno(), fd)
        return count

    def _rest(self, channel: Channel) -> None:
        """Nothing more to dispatch: silent until there is news. An end is reported once."""
        if channel.ended is not None:
            with contextlib.suppress(BulkError):
                channel.dispatch_events(FAIR_SHARE)
            fd = next((f for f, reference in self._channels.items() if reference() is channel), None)
            if fd is not None and fd not in self._ended:  # a callback may have removed it, or closed the set
                self._ended.add(fd)
                kernel.poller_drop(self._poller.fileno(), fd)
        elif not channel.rearm(channel.passed_over):
            channel._poke()

    def _has_news(self, channel: Channel) -> bool:
        channel.serve()
        if not channel.linked:
            channel.domain.serve()
        if channel.queued_events or channel.ended is not None or channel.pending_outcomes():
            return True
        if not channel.rearm():
            channel._poke()
        return False

    def _ready(self, also_waiting: bool = False) -> Iterator[Channel]:
        """The channels whose descriptors are readable, and those that ended.

        also_waiting: and those where a dispatch left events to receive.
        """
        self._check_open()
        ready = {*kernel.poller_ready(self._poller.fileno()), *self._ended}
        if also_waiting:
            for fd, reference in self._channels.items():
                channel = reference()
                if channel is not None and (channel.queued_events or channel.ended is not None):
                    ready.add(fd)
        for fd in ready:
            known = self._channels.get(fd)
            channel = known() if known is not None else None
            if channel is not None:
                yield channel
            elif known is not None:
                del self._channels[fd]
                self._ended.discard(fd)

    def _wait(self, end: float | None) -> bool:
        """Sleep until a descriptor is readable or a domain needs service; False when the time is over."""
        if in_callback():
            raise WouldBlock(f"dispatch of {self!r}: it would wait inside a callback")
        left = None if end is None else end - time.monotonic()
        if left is not None and left <= 0:
            return False
        domains: dict[int, Any] = {}
        for listener, _ in self._listeners.values():
            domains[listener.domain.waiters.epoll] = listener.domain
        for reference in self._channels.values():
            channel = reference()
            if channel is not None:
                domains[channel.domain.waiters.epoll] = channel.domain
        deadlines = [d.waiters.deadline_ns for d in domains.values() if d.waiters.deadline_ns]
        if deadlines:
            due = max(0.0, (min(deadlines) - time.monotonic_ns()) / 1e9)
            left = due if left is None else min(left, due)
        self.waiting += 1
        for domain in domains.values():
            domain.waiters.waiting += 1
            if domain.adopt_loose(None):  # other threads have some of its channels
                left = RECHECK_S if left is None else min(left, RECHECK_S)
        try:
            ready = kernel.wait_readable([self._poller.fileno(), *list(domains)[:60]], left)
        finally:
            self.waiting -= 1
            for domain in domains.values():
                domain.waiters.waiting -= 1
        now_ns = time.monotonic_ns()
        for fd, domain in domains.items():
            if fd in ready or 0 < domain.waiters.deadline_ns <= now_ns:
                domain.serve()
        return True

    def fileno(self) -> int:
        """A descriptor that is readable while dispatch_nowait has something to do. Raises: ValueError (closed)."""
        self._check_open()
        return self._poller.fileno()

    def close(self) -> None:
        """Let every channel go; they stay open. Idempotent."""
        for reference in self._channels.values():
            channel = reference()
            if channel is not None:
                channel.waitsets.discard(self)
        self._channels.clear()
        self._kept.clear()
        self._listeners.clear()
        self._poller.close()

    def _check_open(self) -> None:
        if self._poller.closed:
            raise ValueError("the wait set is closed")

    def __len__(self) -> int:
        listeners = sum(not listener.closed for listener, _ in self._listeners.values())
        return listeners + sum(reference() is not None for reference in self._channels.values())

    def __enter__(self) -> WaitSet:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<WaitSet of {len(self)}{', closed' if self._poller.closed else ''}>"
