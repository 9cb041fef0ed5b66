"""The frames that two machines exchange, as bytes: the reference for `_native/frame.h`, and what set-up speaks in.

Knows: where each field lies, and what no frame may say whatever the channel. Must not know: sockets, rings, pools, or
which frame is legal when.

A frame is a head of 48 bytes in network order, then `meta_size` bytes of meta data, then `length` bytes: the contents
of a buffer, or a message of `control`. docs/protocol.md has the whole.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ..errors import ProtocolViolation

HEAD: Final = struct.Struct("!BBHIIIQQQQ")
HEAD_SIZE: Final = HEAD.size
ASK: Final = 1  # the one flag: say your consumed index as soon as it moves
META_SIZE_MAX: Final = 2048
SLOTS_MAX: Final = 8192
MESSAGE_SIZE_MIN: Final = 4
MESSAGE_SIZE_MAX: Final = 2048
TOKEN_SIZE: Final = 16
CONNECTIONS_MAX: Final = 64


class Kind(enum.IntEnum):
    """What a frame is. 1 to 6 take a place in the FIFO of their direction; 8 and 9 come before it begins."""

    MOVE = 1
    PASS = 2
    COPY = 3
    RELEASE = 4
    REFUSE = 5
    CONTROL = 6
    NOTE = 7
    SETUP = 8
    INVITE = 9


TRANSFERS: Final = frozenset((Kind.MOVE, Kind.PASS, Kind.COPY, Kind.RELEASE))
WITH_CONTENTS: Final = frozenset((Kind.MOVE, Kind.COPY))
WITH_MESSAGE: Final = frozenset((Kind.CONTROL, Kind.SETUP, Kind.INVITE))


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a frame.

    length: of what follows the meta data · extra: of a refusal the wire code << 16 | the kind of what is refused, of an
    invitation the number of connections · serial: of a refusal the position refused, of a control message its number ·
    consumed, refused: how many of the receiver's entries the sender has taken, and how many of those it refused.
    """

    kind: Kind
    flags: int = 0
    meta_size: int = 0
    slot: int = 0
    index: int = 0
    extra: int = 0
    length: int = 0
    serial: int = 0
    consumed: int = 0
    refused: int = 0

    def pack(self) -> bytes:
        """The 48 bytes. Raises: struct.error (a field is out of its bounds)."""
        return HEAD.pack(
            self.kind,
            self.flags,
            self.meta_size,
            self.slot,
            self.index,
            self.extra,
            self.length,
            self.serial,
            self.consumed,
            self.refused,
        )

    def fault(self) -> str:
        """What no head may say, whatever the channel; "" if it may."""
        transfer, refusal = self.kind in TRANSFERS, self.kind is Kind.REFUSE
        if self.flags & ~ASK:
            return "a frame with unknown flags"
        if self.meta_size > (META_SIZE_MAX if transfer else 0):
            return "a frame with more meta data than its kind may have"
        if self.slot >= SLOTS_MAX:
            return "a frame with a number of a pool that cannot be"
        if not transfer and not refusal and (self.slot or self.index):
            return "a frame that names a buffer without need"
        if not refusal and self.kind is not Kind.INVITE and self.extra:
            return "a frame that refuses without being a refusal"
        if not refusal and self.kind is not Kind.CONTROL and self.serial:
            return "a frame with a serial number without need"
        if self.kind is Kind.INVITE:
            if self.length != TOKEN_SIZE or not 2 <= self.extra <= CONNECTIONS_MAX:
                return "an invitation that cannot be"
        elif self.kind in WITH_MESSAGE:
            if not MESSAGE_SIZE_MIN <= self.length <= MESSAGE_SIZE_MAX:
                return "a control message of a length that cannot be"
        elif self.length and self.kind not in WITH_CONTENTS:
            return "a frame with contents that its kind has not"
        return ""


def unpack(data: bytes) -> Head:
    """The head in 48 bytes, which may come from anybody. Raises: ProtocolViolation."""
    if len(data) != HEAD_SIZE:
        raise ProtocolViolation(f"frame from the peer: a head of {len(data)} bytes, not {HEAD_SIZE}")
    number, *fields = HEAD.unpack(data)
    try:
        kind = Kind(number)
    except ValueError:
        raise ProtocolViolation("frame from the peer: a frame of an unknown kind") from None
    head = Head(kind, *fields)
    fault = head.fault()
    if fault:
        raise ProtocolViolation(f"frame from the peer: {fault}")
    return head


def setup(message: bytes) -> bytes:
    """A message of the set-up as a frame. Raises: ValueError (too long)."""
    if not MESSAGE_SIZE_MIN <= len(message) <= MESSAGE_SIZE_MAX:
        raise ValueError(f"a message of {len(message)} bytes")
    return Head(Kind.SETUP, length=len(message)).pack() + message


def invite(token: bytes, count: int) -> bytes:
    """An invitation to make `count` connections in all, each after the first with `token`. Raises: ValueError."""
    if len(token) != TOKEN_SIZE or not 2 <= count <= CONNECTIONS_MAX:
        raise ValueError(f"an invitation to {count} connections with a token of {len(token)} bytes")
    return Head(Kind.INVITE, extra=count, length=TOKEN_SIZE).pack() + token


@dataclass(frozen=True, slots=True)
class Frame:
    """A whole frame, for those that have the memory to hold it."""

    head: Head
    meta: bytes = b""
    body: bytes = b""

    def pack(self) -> bytes:
        """Its bytes."""
        return self.head.pack() + self.meta + self.body


class Reader:
    """Bytes in any pieces to whole frames.

    length_max: of contents, which bounds what it holds.
    """

    def __init__(self, length_max: int = MESSAGE_SIZE_MAX) -> None:
        self._length_max = length_max
        self._data = bytearray()
        self._head: Head | None = None

    @property
    def wanted(self) -> int:
        """How many bytes the present frame lacks, as far as is known."""
        size = HEAD_SIZE if self._head is None else self._head.meta_size + self._head.length
        return max(size - len(self._data), 0)

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are whole with `data`. Raises: ProtocolViolation (and is of no use any more)."""
        self._data += data
        while not self.wanted:
            if self._head is None:
                self._head = unpack(bytes(self._data[:HEAD_SIZE]))
                del self._data[:HEAD_SIZE]
                if self._head.length > self._length_max:
                    raise ProtocolViolation(f"frame from the peer: {self._head.length} bytes where they have no place")
                continue
            head, self._head = self._head, None
            end = head.meta_size + head.length
            meta, body = bytes(self._data[: head.meta_size]), bytes(self._data[head.meta_size : end])
            del self._data[:end]
            yield Frame(head, meta, body)
