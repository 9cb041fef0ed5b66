"""Many channels, one place to wait (I-6.2.2, per-channel wait sets of the report).

Knows: the channels' descriptors. Must not know: what arrives.
"""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Iterator
from typing import Any

from .._native import kernel
from .._native.waiting import in_callback
from ..errors import BulkError, WouldBlock
from .channel import Channel

RECHECK_S = 0.05  # while other threads have channels that this one could serve
FAIR_SHARE = 64  # events of one channel before the next has its turn


class WaitSet:
    """A set of channels to wait on together; dispatch runs their callbacks. Raises: OSError (no descriptors left)."""

    def __init__(self) -> None:
        self._poller = kernel.make_poller()
        self._channels: dict[int, weakref.ref[Channel]] = {}
        self._ended: set[int] = set()
        self.waiting = 0

    def add(self, channel: Channel) -> None:
        """Take a channel in; it stays its user's to close.

        Raises: TypeError, ValueError (it is in already), the channel's end.
        """
        self._check_open()
        if not isinstance(channel, Channel):
            raise TypeError(f"a wait set takes channels, not {type(channel).__name__}")
        if any(reference() is channel for reference in self._channels.values()):
            raise ValueError(f"{channel!r} is in the wait set already")
        fd = channel.fileno()
        kernel.poller_add(self._poller.fileno(), fd)
        self._ended.discard(fd)  # of a channel that had the number before
        self._channels[fd] = weakref.ref(channel)
        channel.waitsets.add(self)

    def remove(self, channel: Channel) -> None:
        """Let a channel go. Raises: ValueError (it is not in the set)."""
        self._check_open()
        for fd, reference in self._channels.items():
            if reference() is channel:
                kernel.poller_drop(self._poller.fileno(), fd)
                del self._channels[fd]
                self._ended.discard(fd)
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

    def wait(self, timeout: float | None = None) -> list[Channel]:
        """Wait until channels have something to receive (an end counts); those channels.

        Raises: TimeoutError, WouldBlock (inside a callback).
        """
        end = None if timeout is None else time.monotonic() + max(0.0, timeout)
        while True:
            found = [channel for channel in self._ready(also_waiting=True) if self._has_news(channel)]
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
        for fd, domain in domains.items():
            if fd in ready or domain.waiters.deadline_ns:
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
        self._poller.close()

    def _check_open(self) -> None:
        if self._poller.closed:
            raise ValueError("the wait set is closed")

    def __len__(self) -> int:
        return sum(reference() is not None for reference in self._channels.values())

    def __enter__(self) -> WaitSet:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<WaitSet of {len(self)} channels{', closed' if self._poller.closed else ''}>"
