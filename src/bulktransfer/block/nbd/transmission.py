"""The transmission of NBD, without a socket: requests judged, replies laid out.

Knows: which request is allowed, which error answers what is not, and every layout of a reply. Must not know: sockets,
threads, stores.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import NamedTuple

from ..errors import Status
from ..store import Extent
from .negotiation import CONTEXT_ID, Agreement, NbdViolation
from .wire import (
    CHUNK_DONE,
    DATA_CHUNK,
    ERRNOS,
    ERROR_CHUNK,
    EXTENDED_DATA_CHUNK,
    EXTENDED_EXTENT,
    EXTENDED_REPLY,
    EXTENDED_REPLY_MAGIC,
    EXTENDED_REQUEST,
    EXTENDED_REQUEST_MAGIC,
    EXTENT,
    HOLE,
    MAX_PAYLOAD,
    REQUEST,
    REQUEST_MAGIC,
    SIMPLE_REPLY,
    SIMPLE_REPLY_MAGIC,
    STATE_HOLE,
    STATE_ZERO,
    STRUCTURED_REPLY,
    STRUCTURED_REPLY_MAGIC,
    U32,
    Chunk,
    Command,
    CommandFlag,
    TransmissionFlag,
)

EXTENTS_MAX = 1 << 14  # of one answer; the client asks again for the rest
DRAIN_MAX = 1 << 30  # bytes of a refused write that are worth reading for the sake of the next request
MAX_ERROR_TEXT = 1024

# As plain numbers: the arithmetic of enums takes longer than all the rest of a request, and the complement of a flag is
# only that of the flags that have names.
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN = map(int, CommandFlag)
READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS, _ = map(int, Command)
_OFFSET_DATA = int(Chunk.OFFSET_DATA)
_pack_simple, _pack_data = SIMPLE_REPLY.pack, DATA_CHUNK.pack

_ALLOWED: dict[int, int] = {
    READ: FUA | DF,
    WRITE: FUA | PAYLOAD_LEN,
    FLUSH: FUA,
    TRIM: FUA,
    CACHE: FUA,
    WRITE_ZEROES: FUA | NO_HOLE | FAST_ZERO,
    BLOCK_STATUS: FUA | REQ_ONE,
}
_CHANGES = frozenset({WRITE, TRIM, WRITE_ZEROES})
_BEYOND = {WRITE: errno.ENOSPC, WRITE_ZEROES: errno.ENOSPC}

_OF_STATUS = {
    Status.NOT_CONNECTED: errno.ESHUTDOWN,
    Status.BAD_REQUEST: errno.EINVAL,
    Status.BAD_BLOCK_ID: errno.EINVAL,
    Status.NO_BUFS: errno.ENOMEM,
    Status.READ_ONLY: errno.EPERM,
    Status.NO_SPACE: errno.ENOSPC,
    Status.IO_ERROR: errno.EIO,
    Status.UNSUPPORTED: errno.ENOTSUP,
}


def errno_of(status: Status) -> int:
    """The protocol's number for a status other than OK."""
    return _OF_STATUS[status]


class Request(NamedTuple):
    """One request, as it came; the payload of a write follows it in the stream."""

    magic: int
    flags: int
    command: int
    cookie: int
    offset: int
    length: int


class Refusal(NamedTuple):
    """The answer to a request that is not allowed."""

    error: int
    text: str


class Transmission:
    """What one client's agreement makes of its requests and replies; pure functions of the agreement."""

    def __init__(self, agreement: Agreement) -> None:
        self.structured = agreement.structured
        self.extended = agreement.extended
        self.header = EXTENDED_REQUEST if agreement.extended else REQUEST
        self.magic = EXTENDED_REQUEST_MAGIC if agreement.extended else REQUEST_MAGIC
        self._allocation = agreement.allocation
        self._size = agreement.export.size_bytes
        self._read_only = bool(agreement.export.flags & TransmissionFlag.READ_ONLY)
        self.writable = not self._read_only
        self._plain = READ if self._read_only or self.extended else WRITE  # up to which command flags may be missing

    # -- requests --------------------------------------------------------------------------------------------------

    def parse(self, buffer: bytes | bytearray | memoryview, at: int) -> Request:
        """The request whose header lies at `at`. Raises: NbdViolation (it does not begin as one)."""
        request = Request(*self.header.unpack_from(buffer, at))
        if request.magic != self.magic:
            raise NbdViolation(f"a request begins with {request.magic:#x}")
        return request

    def payload(self, request: Request) -> int:
        """How many bytes follow the header. Raises: NbdViolation (more than is worth reading)."""
        if self.extended:
            length = request.length if request.flags & PAYLOAD_LEN else 0
        else:
            length = request.length if request.command == WRITE else 0
        if length > DRAIN_MAX:
            raise NbdViolation(f"a payload of {length} bytes")
        return length

    def judge(self, request: Request) -> Refusal | None:
        """Why the request is refused, or None if it is allowed."""
        command, offset, length = request.command, request.offset, request.length
        if not request.flags and command <= self._plain and length <= MAX_PAYLOAD and offset + length <= self._size:
            return None  # what most requests are
        allowed = _ALLOWED.get(command)
        if allowed is None:
            return Refusal(errno.EINVAL, f"there is no command {command}")
        if self._read_only and command in _CHANGES:
            return Refusal(errno.EPERM, "the export is read-only")
        if request.flags & ~allowed:
            return Refusal(errno.EINVAL, f"flags {request.flags:#x} do not go with command {command}")
        if command == FLUSH:
            return Refusal(errno.EINVAL, "a flush is of all") if offset or length else None
        if offset + length > self._size:
            return Refusal(_BEYOND.get(command, errno.EINVAL), f"the export ends at {self._size}")
        if command in (READ, WRITE):
            return self._judge_data(request)
        if command == BLOCK_STATUS and (not self._allocation or not length):
            return Refusal(errno.EINVAL, "no context was agreed, or no bytes asked for")
        return None

    def _judge_data(self, request: Request) -> Refusal | None:
        if request.length > MAX_PAYLOAD:
            return Refusal(errno.EINVAL, f"{MAX_PAYLOAD} bytes a request at most")
        if request.command == READ:
            if request.flags & DF and not self.structured:
                return Refusal(errno.EINVAL, "DF goes with structured replies")
        elif self.extended != bool(request.flags & PAYLOAD_LEN):
            return Refusal(errno.EINVAL, "a write has PAYLOAD_LEN with extended headers, and only there")
        return None

    # -- replies ---------------------------------------------------------------------------------------------------

    def ok(self, cookie: int) -> bytes:
        """The same as done, of a write, without extended headers."""
        return _pack_simple(SIMPLE_REPLY_MAGIC, 0, cookie)

    def head(self, cookie: int, offset: int, length: int) -> bytes:
        """The same as data_head, of all that was asked, without extended headers."""
        if self.structured:
            return _pack_data(STRUCTURED_REPLY_MAGIC, CHUNK_DONE, _OFFSET_DATA, cookie, length + 8, offset)
        return _pack_simple(SIMPLE_REPLY_MAGIC, 0, cookie)

    def done(self, request: Request) -> bytes:
        """It was done, and there is nothing to tell."""
        if self.extended or (self.structured and request.command == READ):
            return self._chunk(request, Chunk.NONE, b"", True)
        return SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, 0, request.cookie)

    def error(self, request: Request, number: int, text: str) -> bytes:
        """It was not done."""
        if number not in ERRNOS:
            number = errno.EIO
        if not self.structured:
            return SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, number, request.cookie)
        said = text.encode()[:MAX_ERROR_TEXT]
        return self._chunk(request, Chunk.ERROR, ERROR_CHUNK.pack(number, len(said)) + said, True)

    def data_head(self, request: Request, offset: int, length: int, *, last: bool = True) -> bytes:
        """What comes before `length` bytes of data; without structured replies they are all of the reply."""
        flags = CHUNK_DONE if last else 0
        if self.extended:
            return EXTENDED_DATA_CHUNK.pack(
                EXTENDED_REPLY_MAGIC, flags, _OFFSET_DATA, request.cookie, request.offset, length + 8, offset
            )
        if self.structured:
            return _pack_data(STRUCTURED_REPLY_MAGIC, flags, _OFFSET_DATA, request.cookie, length + 8, offset)
        return SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, 0, request.cookie)

    def hole(self, request: Request, offset: int, length: int, *, last: bool = True) -> bytes:
        """`length` bytes of data that are zero (structured replies only)."""
        return self._chunk(request, Chunk.OFFSET_HOLE, HOLE.pack(offset, length), last)

    def status(self, request: Request, extents: Iterable[Extent]) -> bytes:
        """What the bytes from the request's offset on are like, as far as one answer goes."""
        limit = 1 if request.flags & REQ_ONE else EXTENTS_MAX
        runs: list[tuple[int, int]] = []
        for extent in extents:
            state = (STATE_HOLE if extent.hole else 0) | (STATE_ZERO if extent.zero else 0)
            if runs and runs[-1][1] == state:
                runs[-1] = (runs[-1][0] + extent.length, state)
            elif len(runs) == limit:
                break
            else:
                runs.append((extent.length, state))
        if self.extended:
            body = b"".join(EXTENDED_EXTENT.pack(*run) for run in runs)
            head = U32.pack(CONTEXT_ID) + U32.pack(len(runs))
            return self._chunk(request, Chunk.BLOCK_STATUS_EXT, head + body, True)
        body = b"".join(EXTENT.pack(*run) for run in runs)
        return self._chunk(request, Chunk.BLOCK_STATUS, U32.pack(CONTEXT_ID) + body, True)

    def _chunk(self, request: Request, kind: Chunk, body: bytes, last: bool) -> bytes:
        flags = CHUNK_DONE if last else 0
        if self.extended:
            head = EXTENDED_REPLY.pack(EXTENDED_REPLY_MAGIC, flags, kind, request.cookie, request.offset, len(body))
        else:
            head = STRUCTURED_REPLY.pack(STRUCTURED_REPLY_MAGIC, flags, kind, request.cookie, len(body))
        return head + body
