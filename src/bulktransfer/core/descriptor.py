"""What threads and event loops wait on: the descriptors of one channel.

Knows: which of them a thread sleeps in, which one is handed out, how another thread reaches a waiting one. Must not
know: what arrives, or why the channel lives or ends.
"""

from __future__ import annotations

import contextlib
import os

from .._native import kernel
from .._native.channel import ChannelCore
from .beacon import Beacon
from .domain import Domain


class Descriptors(ChannelCore):
    """The descriptors of a channel."""

    domain: Domain

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.beacon = Beacon(domain)
        self._poller: kernel.Descriptor | None = None
        self._kick: kernel.Descriptor | None = None
        self._pidfd: kernel.Descriptor | None = None
        self._bed: kernel.Descriptor | None = None
        self._poked = False

    def watch_peer(self, pid: int) -> None:
        """Notice the death of the peer's process (rule 17)."""
        if pid > 0 and pid != os.getpid():
            with contextlib.suppress(ProcessLookupError):  # dead already: the socket tells
                self._pidfd = kernel.Descriptor(os.pidfd_open(pid))
                self.pidfd = self._pidfd.fileno()

    def watch_poller(self) -> None:
        """Have the channel's own descriptor watch the connection."""
        if self._poller is not None and self.linked:
            kernel.poller_add(self._poller.fileno(), self.socket_fd())
            if self._pidfd is not None:
                kernel.poller_add(self._poller.fileno(), self._pidfd.fileno())

    def unwatch_poller(self) -> None:
        """The connection goes; the descriptor stays, readable."""
        if self._poller is not None and self.linked and not self._poller.closed:
            kernel.poller_drop(self._poller.fileno(), self.socket_fd())
            if self._pidfd is not None and not self._pidfd.closed:
                kernel.poller_drop(self._poller.fileno(), self._pidfd.fileno())

    def kick_descriptor(self) -> int:
        """The eventfd with which other threads of this domain reach a waiting one; private to this process."""
        if self._kick is None:
            self._kick = kernel.Descriptor(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
            self.kick_fd = self._kick.fileno()
        return self.kick_fd

    def kick_all(self) -> None:
        """Have whoever waits on this channel look around."""
        if self.domain.exiting:
            return
        self.set_kicked()
        if self._kick is not None and not self._kick.closed:
            self._poke()
        self.domain.kick()

    def _poke(self) -> None:
        os.eventfd_write(self.kick_fd, 1)
        self._poked = True  # after the write: where it is seen late, the descriptor stays readable until it is seen

    def _clear_kick(self) -> None:
        self.beacon.settle()
        if self._poked:  # most looks that find nothing have no kick to clear
            self._poked = False  # before the read: a kick in between leaves a read too many, not one too few
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self.kick_fd)

    def _await_server(self) -> None:
        self.domain.await_server()
        if self.busy == 2:  # a thread serves this channel alone
            kernel.wait_readable([self.kick_descriptor()], 0.001)

    def _rouse(self) -> None:
        self.domain.kick()

    def lay_bed(self) -> None:
        """Where a thread that waits on this channel sleeps. Raises: OSError."""
        self.kick_descriptor()
        self._bed = kernel.make_poller()
        self.make_bed(self._bed.fileno(), -1 if self._pidfd is None else self._pidfd.fileno())

    def _before_block(self) -> int:
        self.kick_descriptor()
        if self.linked:
            if self.bed < 0:
                self.lay_bed()
            if not self.loose:
                self.domain.set_loose(self)
        waiters = self.domain.waiters
        return int(len(waiters.loose) > self.loose and self.domain.adopt_loose(self))
