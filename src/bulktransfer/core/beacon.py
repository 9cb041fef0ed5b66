"""A descriptor that is readable while something concerns its owner: set-ups under way, deadlines, what others signal.

Knows: which descriptors and deadlines are the owner's, though the domain serves them. Must not know: what they mean.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable

from .._native import kernel
from .domain import Alarm, Domain


class Beacon:
    """The owner's part of what its domain watches, as one descriptor of its own once somebody asks for it."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self._watched: set[int] = set()
        self._due: list[int] = []
        self._set_to = 0  # what the timer waits for
        self._dim = False
        self._poller: kernel.Descriptor | None = None
        self._timer: kernel.Descriptor | None = None

    def light(self) -> kernel.Descriptor:
        """The descriptor, level-triggered. Raises: OSError."""
        if self._poller is None:
            poller, timer = kernel.make_poller(), kernel.make_timer()
            kernel.poller_add(poller.fileno(), timer.fileno())
            for fd in () if self._dim else self._watched:
                kernel.poller_add(poller.fileno(), fd)
            self._poller, self._timer = poller, timer
            self.settle()
        return self._poller

    def watch(self, fd: int, handler: Callable[[], None]) -> None:
        """As Domain.watch, and the owner's descriptor is readable while `fd` is."""
        self.domain.watch(fd, handler)
        self._watched.add(fd)
        if self._poller is not None and not self._poller.closed and not self._dim:
            kernel.poller_add(self._poller.fileno(), fd)

    def unwatch(self, fd: int) -> None:
        """Stop watching `fd`; it must not be closed yet."""
        self.domain.unwatch(fd)
        if fd in self._watched:
            self._watched.discard(fd)
            if self._poller is not None and not self._poller.closed:
                kernel.poller_drop(self._poller.fileno(), fd)

    def dim(self) -> None:
        """The set-up is over: who still knocks does not concern the owner, only its domain."""
        self._dim = True
        if self._poller is not None and not self._poller.closed:
            for fd in self._watched:
                kernel.poller_drop(self._poller.fileno(), fd)

    def call_at(self, when_ns: int, handler: Callable[[], None]) -> Alarm:
        """As Domain.call_at, and the owner's descriptor is readable from then on, until it is settled."""
        alarm = self.domain.call_at(when_ns, handler)
        heapq.heappush(self._due, when_ns)
        self.settle()
        return alarm

    def call_after(self, timeout: float, handler: Callable[[], None]) -> Alarm:
        """The same in `timeout` seconds; what is more than years is years."""
        return self.call_at(time.monotonic_ns() + int(min(timeout if timeout > 0 else 0.0, 1e9) * 1e9), handler)

    def cancel(self, alarm: Alarm) -> None:
        """What call_at promised is off, also for the owner's descriptor."""
        alarm.cancel()
        if alarm.when_ns in self._due:
            self._due.remove(alarm.when_ns)
            heapq.heapify(self._due)
            self.settle()

    def settle(self) -> None:
        """The domain served what was due: wait for the next deadline."""
        now, due = time.monotonic_ns(), self.domain.waiters.deadline_ns
        while self._due and self._due[0] <= now and not 0 < due <= self._due[0]:
            heapq.heappop(self._due)
        first = self._due[0] if self._due else 0
        if self._timer is not None and not self._timer.closed and first != self._set_to:
            kernel.set_timer(self._timer.fileno(), first)
            self._set_to = first

    def close(self) -> None:
        """Put it out; idempotent."""
        for descriptor in (self._poller, self._timer):
            if descriptor is not None:
                descriptor.close()
