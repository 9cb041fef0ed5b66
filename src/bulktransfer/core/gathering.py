"""How an aggregate travels: its buffers as one batch, and in their meta data which bytes of which come in which order.

Knows: that meta data, and that a peer may say anything in it. Must not know: rings and rules (a batch is all or none).

The meta data of buffer i begins with "BkAg" and i (4 bytes each, little-endian); what follows, over all buffers, is one
text: how many buffers, parts, and bytes of the user's meta data there are (4 bytes each), then each part as the number
of its buffer (4 bytes), offset and length (8 bytes each), then the user's meta data.
"""

from __future__ import annotations

import struct
import time
from typing import Any, NamedTuple

from .._native.buffer import Buffer
from ..errors import (
    BrokenChannelError,
    ChannelStateError,
    ClosedChannelError,
    EndOfChannelError,
    ForkedError,
    MetaSizeError,
    ProtocolViolation,
)
from ..states import EventKind
from .aggregate import Aggregate

_SIGN = b"BkAg"
_HEAD = struct.Struct("<4sI")
_COUNTS = struct.Struct("<III")
_PART = struct.Struct("<IQQ")
_BRINGS = {EventKind.MOVE_RECEIVED, EventKind.BUFFER_RECEIVED, EventKind.COPY_RECEIVED, EventKind.COPY_RELEASED}
_ENDS = (ClosedChannelError, EndOfChannelError, BrokenChannelError, ProtocolViolation, ForkedError)
_MANY = {"move": "move_many", "copy": "copy_many", "pass_": "pass_many"}


class Arrival(NamedTuple):
    """What receive_aggregate returns; `kind` says how its buffers came."""

    aggregate: Aggregate
    meta: bytes
    kind: EventKind


def send(channel: Any, aggregate: Aggregate, act: str, meta: Any, done: Any) -> None:
    """Send the buffers of an aggregate as one unit. Raises: as the same of one buffer; MetaSizeError, ValueError."""
    buffers = aggregate.buffers
    if not buffers:
        raise ValueError(f"{act} of an aggregate without buffers")
    if act == "release":
        channel.release_many(buffers, done)
        return
    if act == "give_back":
        for buffer in buffers:
            channel.give_back(buffer, meta)
        return
    for part in aggregate.parts:
        if part.offset + part.length > part.buffer.length:
            raise ValueError(
                f"{act} of {aggregate!r}: a part ends at {part.offset + part.length} of buffer {part.buffer.index} of "
                f"pool {part.buffer.pool.name}, whose length is {part.buffer.length}"
            )
    getattr(channel, _MANY[act])(buffers, encode(aggregate, bytes(memoryview(meta)), channel.meta_size), done)


def encode(aggregate: Aggregate, meta: bytes, meta_size: int) -> list[bytes]:
    """The meta data of each of its buffers. Raises: MetaSizeError (the channel has not enough of it)."""
    number = {buffer: i for i, buffer in enumerate(aggregate.buffers)}
    parts = b"".join(_PART.pack(number[part.buffer], part.offset, part.length) for part in aggregate.parts)
    text = _COUNTS.pack(len(number), len(aggregate.parts), len(meta)) + parts + meta
    room = meta_size - _HEAD.size
    if room * len(number) < len(text) or room < _COUNTS.size:
        needed = _HEAD.size + max(_COUNTS.size, -(-len(text) // len(number)))
        raise MetaSizeError(f"{aggregate!r} with {len(meta)} bytes of meta data: it needs a meta size of {needed}")
    return [_HEAD.pack(_SIGN, i) + text[i * room : (i + 1) * room] for i in range(len(number))]


class Gathering:
    """The buffers of one aggregate, while they come."""

    def __init__(self) -> None:
        self.buffers: list[Buffer] = []
        self._text = bytearray()
        self._kind: EventKind | None = None
        self._count = 0

    def take(self, event: Any) -> Arrival | None:
        """One more transfer; the aggregate, if it is whole. Raises: ProtocolViolation (it makes no sense)."""
        meta = event.meta
        if not self.buffers and not meta.startswith(_SIGN):
            return Arrival(Aggregate([event.buffer]), meta, event.kind)
        if len(meta) < _HEAD.size or _HEAD.unpack_from(meta) != (_SIGN, len(self.buffers)):
            raise ProtocolViolation(f"buffer {len(self.buffers)} of an aggregate was due, not {meta[:16]!r}")
        if self._kind not in (None, event.kind):
            raise ProtocolViolation(f"{event.kind} in an aggregate that began with {self._kind}")
        self._kind = event.kind
        self._text += meta[_HEAD.size :]
        self.buffers.append(event.buffer)
        if len(self.buffers) == 1:
            self._count = self._counts()[0]
        return self._whole() if len(self.buffers) == self._count else None

    def _counts(self) -> tuple[int, int, int]:
        if len(self._text) < _COUNTS.size:
            raise ProtocolViolation("an aggregate that does not say how many buffers it has")
        buffers, parts, meta = _COUNTS.unpack_from(self._text)
        if not buffers:
            raise ProtocolViolation("an aggregate of no buffers")
        return buffers, parts, meta

    def _whole(self) -> Arrival:
        _, count, meta_length = self._counts()
        if len(self._text) != _COUNTS.size + count * _PART.size + meta_length:
            raise ProtocolViolation(f"an aggregate of {count} parts in {len(self._text)} bytes")
        parts = []
        for number, offset, length in _PART.iter_unpack(self._text[_COUNTS.size : _COUNTS.size + count * _PART.size]):
            if number >= len(self.buffers) or offset + length > self.buffers[number].length:
                raise ProtocolViolation(f"a part of {length} bytes at {offset} of buffer {number} of an aggregate")
            parts.append((self.buffers[number], offset, length))
        assert self._kind is not None
        return Arrival(Aggregate(parts), bytes(self._text[len(self._text) - meta_length :]), self._kind)


def receive(channel: Any, timeout: float | None) -> Arrival:
    """The next aggregate; see Channel.receive_aggregate."""
    end_s = None if timeout is None else time.monotonic() + timeout
    while True:
        try:
            event = channel.receive_buffer(None if end_s is None else max(0.0, end_s - time.monotonic()))
        except _ENDS:  # who sent it is gone, and the rest of it will not come
            gathering, channel.gathering = channel.gathering, None
            if gathering is not None:
                _let_go(gathering)
            raise
        arrival = gather(channel, event)
        if arrival is not None:
            return arrival


def gather(channel: Any, event: Any) -> Arrival | None:
    """One more transfer; see Channel.gather."""
    if event.kind not in _BRINGS:
        raise ValueError(f"gather of {event!r} on {channel!r}: it brings no buffer")
    gathering = channel.gathering = channel.gathering or Gathering()
    try:
        arrival: Arrival | None = gathering.take(event)
    except ProtocolViolation as error:
        channel.gathering = None
        channel.abort(f"broke a rule: {error}")
        raise
    if arrival is not None:
        channel.gathering = None
    return arrival


def _let_go(gathering: Gathering) -> None:
    for buffer in gathering.buffers:
        try:
            buffer.drop()
        except ChannelStateError:  # it is at home here, or over another channel, too
            continue
