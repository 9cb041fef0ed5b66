"""What client and server of the block service say: 40 bytes of meta data beside each buffer.

Two channels a client. On `up` (the client is the source) the client moves buffers, and each is passed back with its
status. On `down` (the server is the source) the client passes empty buffers, each with what is to be put into it, and
each is moved back with its status. So every request brings the buffer of its answer, which is the flow control, and
every request has exactly one answer.

Knows: operations, flags, the layout. Must not know: channels, stores.
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

from ..errors import Status

# operation, flags (in an answer: status), none, offset within the block, request id, block, length in bytes, version
LAYOUT = struct.Struct("<BBHIQQQQ")
EXTENT = struct.Struct("<QQ")  # length, HOLE and ZERO
META_SIZE = LAYOUT.size
HOLE, ZERO = 1, 2


class Operation(enum.IntEnum):
    """What is asked."""

    HELLO = 1  # up: the buffer holds an export's name; the answer's block is the size, its length the block size
    WRITE = 2  # up: the buffer holds what is written
    FLUSH = 3  # up
    TRIM = 4  # up
    ZEROES = 5  # up
    READ = 6  # down
    EXTENTS = 7  # down: the buffer comes back with EXTENT records
    NAMES = 8  # down: the buffer comes back with the exports' names, each ended by a zero byte


class Flag(enum.IntFlag):
    """How it is asked; READ_ONLY is HELLO's answer.

    VERSIONED, of READ: the answer says which version was read (changes.py). If that is the one that the request names,
    its length is 0 and nothing comes: whoever asks has it.
    """

    FUA = 1
    NO_HOLE = 2
    FAST = 4
    READ_ONLY = 8
    VERSIONED = 16


class Message(NamedTuple):
    """One request."""

    operation: int
    flags: int
    request: int
    block: int = 0
    within: int = 0
    length: int = 0
    version: int = 0

    def pack(self) -> bytes:
        """As meta data."""
        return LAYOUT.pack(
            self.operation, self.flags, 0, self.within, self.request, self.block, self.length, self.version
        )


class Answer(NamedTuple):
    """The answer to one."""

    operation: int
    status: int
    request: int
    block: int = 0
    within: int = 0
    length: int = 0
    version: int = 0

    def pack(self) -> bytes:
        """As meta data."""
        return LAYOUT.pack(
            self.operation, self.status, 0, self.within, self.request, self.block, self.length, self.version
        )


class Malformed(Exception):
    """Meta data that is no message."""


def unpack_message(meta: bytes) -> Message:
    """The request that `meta` is. Raises: Malformed."""
    if len(meta) != LAYOUT.size:
        raise Malformed(f"{len(meta)} bytes of meta data")
    operation, flags, _, within, request, block, length, version = LAYOUT.unpack(meta)
    return Message(operation, flags, request, block, within, length, version)


def unpack_answer(meta: bytes) -> Answer:
    """The answer that `meta` is. Raises: Malformed."""
    message = unpack_message(meta)
    try:
        Status(message.flags)
    except ValueError:
        raise Malformed(f"the status {message.flags}") from None
    return Answer(*message)
