"""The line on which two sides set channels up: whole messages in order, and what each channel gets at the end.

Knows: that on one machine descriptors travel beside messages, so that both sides see each other's outboxes, and that
between machines nothing does, so that each side makes both for itself. Must not know: what messages mean, or how a
backend made the connection.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from .._native import kernel, outbox
from .._native.channel import ChannelCore
from ..abc import Connection, Wire
from ..errors import BrokenChannelError, ProtocolViolation
from ..messages import Terms
from . import memory

Heard = tuple[bytes, list[kernel.Descriptor], bool, tuple[int, int, int] | None]


class Ends(NamedTuple):
    """What one channel gets of a line."""

    sock: kernel.Descriptor
    own: kernel.Mapping
    there: kernel.Mapping  # the peer's outbox, or what stands in for it
    apart: bool = False
    tls: Any = None

    def open(
        self, channel: ChannelCore, terms: Terms, stage_out: int, stage_in: int, lingers: bool, one_core: bool
    ) -> None:
        """Give it to a channel. Raises: OSError, MemoryError."""
        sock, own, there, apart, tls = self
        if apart:
            channel.open_far(sock, tls, own, there, terms.slot_count, terms.meta_size)
        else:
            shape = terms.slot_count, terms.meta_size
            channel.open_link(sock, own, there, *shape, stage_out, stage_in, lingers, one_core)


class Line(Protocol):
    """What both kinds of lines offer. Each call may raise OSError."""

    @property
    def closed(self) -> bool:
        """Whether it was closed, or taken over by channels."""

    def fileno(self) -> int:
        """A descriptor that is readable while `hear` has something to do."""

    def say(self, data: bytes) -> bool:
        """Send a message; False if it is not read."""

    def hear(self) -> Heard | None:
        """The next message: bytes (none at the end), descriptors, whether some were lost, who spoke; None: not yet."""

    def welcome(self, data: bytes, terms: Sequence[Terms]) -> bool:
        """The creator's yes, with all that goes beside it; False if it is not read."""

    def confirmed(self, fds: list[kernel.Descriptor], terms: Sequence[Terms]) -> list[Ends]:
        """The binder confirmed: what the creator's channels get. Raises: ProtocolViolation."""

    def accept(self, fds: list[kernel.Descriptor], terms: Sequence[Terms], data: bytes) -> list[Ends]:
        """The binder takes what was offered and says so: what its channels get. Raises: ProtocolViolation."""

    def close(self) -> None:
        """Idempotent."""


class LocalLine:
    """A line between processes of one machine: a SOCK_SEQPACKET socket."""

    def __init__(self, fd: int) -> None:
        self._sock = kernel.to_peer(fd)
        self._more: list[kernel.Descriptor] = []
        self._own: list[kernel.Mapping] = []

    @property
    def closed(self) -> bool:
        """Whether it was closed, or taken over by channels."""
        return self._sock.closed

    def fileno(self) -> int:
        """The socket. Raises: ValueError."""
        return self._sock.fileno()

    def say(self, data: bytes, fds: Sequence[kernel.Descriptor] = ()) -> bool:
        """Send a message with descriptors beside it. Raises: OSError."""
        return kernel.send_message(self._sock.fileno(), data, fds)

    def hear(self) -> Heard | None:
        """The next message. Raises: OSError."""
        return kernel.receive_message(self._sock.fileno())

    def welcome(self, data: bytes, terms: Sequence[Terms]) -> bool:
        """The creator's yes: beside it a socket for each channel after the first, and an outbox for each."""
        boxes: list[kernel.Descriptor] = []
        extra: list[kernel.Descriptor] = []
        for number, item in enumerate(terms):
            source, mapping = memory.make_outbox(item, binder=False)
            boxes.append(source)
            self._own.append(mapping)
            if number:
                here, there = socket_pair()
                self._more.append(here)
                extra.append(there)
        return self.say(data, [*extra, *boxes])

    def confirmed(self, fds: list[kernel.Descriptor], terms: Sequence[Terms]) -> list[Ends]:
        """The binder's outboxes came. Raises: ProtocolViolation, OSError."""
        if len(fds) != len(terms):
            raise ProtocolViolation(f"{len(fds)} outboxes for {len(terms)} channels")
        boxes = [memory.adopt_outbox(fd, t, binder=True) for fd, t in zip(fds, terms, strict=True)]
        socks = [self._take_over(), *self._more]
        return [Ends(*parts) for parts in zip(socks, self._own, boxes, strict=True)]

    def accept(self, fds: list[kernel.Descriptor], terms: Sequence[Terms], data: bytes) -> list[Ends]:
        """The creator's outboxes came; the binder's go. Raises: ProtocolViolation, BrokenChannelError, OSError."""
        count = len(terms)
        if len(fds) != 2 * count - 1:
            raise ProtocolViolation(f"{len(fds)} descriptors for {count} channels")
        boxes = [memory.adopt_outbox(fd, t, binder=False) for fd, t in zip(fds[count - 1 :], terms, strict=True)]
        own = [memory.make_outbox(t, binder=True) for t in terms]
        if not self.say(data, [source for source, _ in own]):
            raise BrokenChannelError("the creator does not read")
        socks = [self._take_over(), *fds[: count - 1]]
        return [Ends(*parts) for parts in zip(socks, [mapping for _, mapping in own], boxes, strict=True)]

    def _take_over(self) -> kernel.Descriptor:
        return kernel.Descriptor(self._sock.detach())

    def close(self) -> None:
        """Hang up; idempotent."""
        self._sock.close()


class FarLine:
    """A line to another machine: a stream that its backend speaks for, and nothing beside it."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    @property
    def closed(self) -> bool:
        """Whether it was closed, or taken over by channels."""
        return self._wire.closed

    def fileno(self) -> int:
        """A descriptor that is readable while there is something to be done. Raises: ValueError."""
        return self._wire.fileno()

    def say(self, data: bytes) -> bool:
        """Send a message. Raises: OSError."""
        self._wire.say(data)
        return True

    def hear(self) -> Heard | None:
        """The next message. Raises: OSError, ProtocolViolation."""
        data = self._wire.hear()
        return None if data is None else (data, [], False, None)

    def welcome(self, data: bytes, terms: Sequence[Terms]) -> bool:
        """The creator's yes; a connection more for each channel after the first is asked for. Raises: OSError."""
        if len(terms) > 1:
            self._wire.invite(len(terms))
        return self.say(data)

    def confirmed(self, fds: list[kernel.Descriptor], terms: Sequence[Terms]) -> list[Ends]:
        """Nothing came beside it. Raises: OSError (no memory for outboxes), ProtocolViolation."""
        return self._take_over(terms)

    def accept(self, fds: list[kernel.Descriptor], terms: Sequence[Terms], data: bytes) -> list[Ends]:
        """Say so. Raises: OSError, ProtocolViolation."""
        if len(terms) != self._wire.count:
            raise ProtocolViolation(f"{self._wire.count} connections for {len(terms)} channels")
        self.say(data)
        return self._take_over(terms)

    def _take_over(self, terms: Sequence[Terms]) -> list[Ends]:
        boxes = [[_private_outbox(t) for _ in range(2)] for t in terms]
        parts = self._wire.take_over()
        return [
            Ends(kernel.Descriptor(fd), own, there, True, tls)
            for (fd, tls), (own, there) in zip(parts, boxes, strict=True)
        ]

    def close(self) -> None:
        """Hang up; idempotent."""
        self._wire.close()


def line_of(connection: Connection) -> Line:
    """The line that a connection is."""
    return LocalLine(connection.fd) if connection.wire is None else FarLine(connection.wire)


def socket_pair() -> tuple[kernel.Descriptor, kernel.Descriptor]:
    """Two connected sockets that keep message boundaries. Raises: OSError."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    return kernel.to_peer(here.detach()), kernel.Descriptor(there.detach())


def _private_outbox(terms: Terms) -> kernel.Mapping:
    size = outbox.outbox_size(terms.slot_count, terms.meta_size, 0)
    return kernel.create_memory(b"bulktransfer-outbox", size)[1]
