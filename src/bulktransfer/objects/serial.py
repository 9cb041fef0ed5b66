"""Objects as letters: a kind, a body that fits into a message, and a lease of memory for what does not.

Knows: pickle protocol 5, which buffers travel outside the pickle, how a letter is laid out. Must not know: sockets.

    PLAIN    the body is the pickle, or the bytes
    PARCEL   the body is a Frame, then what follows the buffers if that is short: their sizes and the pickle
"""

from __future__ import annotations

import collections
import copyreg
import os
import pickle
import struct
import sys
from collections.abc import Sequence
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple, Protocol

from .. import ProtocolViolation
from . import _post
from ._parcel import Parcel
from .store import Store

PLAIN, PARCEL = 0, 1
FRAME = struct.Struct("<QQQI4x")  # where the buffer begins, bytes in it, bytes of the tail, number of buffers
LARGE = 16 << 10  # buffers from here on travel outside the pickle
ALIGNED = 64
INLINE_MAX = _post.BODY_MAX - FRAME.size


class Letter(NamedTuple):
    """What is sent; `lease` (a Descriptor) is to be closed afterwards."""

    kind: int
    body: bytes
    lease: Any = None


class Lender(Protocol):
    """Who has pools."""

    @property
    def store(self) -> Store:
        """Those of this process."""
        ...


_SIMPLE = frozenset({int, float, bool, type(None)})
_SHORT = frozenset({bytes, str})


class _Parts(list[Any]):
    """Where a pickler writes: big bytes come as they are, in a call of their own, and are not copied."""

    write = list.append


class _Pickler(pickle.Pickler):
    # As ForkingPickler, which makes such a table anew for every object; both maps are the living ones.
    dispatch_table = collections.ChainMap[Any, Any](  # noqa: RUF012  (typeshed has it as an instance's)
        ForkingPickler._extra_reducers,  # type: ignore[attr-defined]
        copyreg.dispatch_table,
    )


class _TensorPickler(_Pickler):
    def reducer_override(self, thing: Any) -> Any:
        """How a tensor in ordinary memory travels; all else as ever."""
        from .tensor import reduced

        return reduced(thing)


def _flattened(thing: Any) -> tuple[_Parts, list[memoryview]]:
    """The pickle in parts, and the big buffers that are outside it. Raises: what pickling `thing` raises."""
    parts = _Parts()
    buffers: list[memoryview] = []

    def inside(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < LARGE:
            return True
        buffers.append(raw)
        return False

    pickler = _TensorPickler if "torch" in sys.modules else _Pickler
    pickler(parts, 5, True, inside).dump(thing)
    return parts, buffers


def packed(thing: Any, sender: Lender) -> Letter:
    """An object as a letter. Raises: what pickling it raises; as Store.take."""
    if type(thing) in _SIMPLE or (type(thing) in _SHORT and len(thing) < LARGE):
        return Letter(PLAIN, pickle.dumps(thing, 5))
    parts, buffers = _flattened(thing)
    if not buffers:
        if len(parts) == 1 and len(parts[0]) <= _post.BODY_MAX:
            return Letter(PLAIN, parts[0])
        return packed_bytes(parts, sender)
    return _parcelled(buffers, parts, sender)


def packed_bytes(parts: Sequence[Any], sender: Lender) -> Letter:
    """Bytes, in parts, as a letter. Raises: as Store.take."""
    if sum(memoryview(part).nbytes for part in parts) <= _post.BODY_MAX:
        return Letter(PLAIN, b"".join(parts))
    return _parcelled([], parts, sender)


def _parcelled(buffers: Sequence[memoryview], parts: Sequence[Any], sender: Lender) -> Letter:
    sizes = struct.pack(f"<{len(buffers)}Q", *(buffer.nbytes for buffer in buffers))
    tail = [sizes, *parts]
    tail_size = sum(memoryview(part).nbytes for part in tail)
    inline = tail_size <= INLINE_MAX and bool(buffers)
    placed: list[tuple[int, Any]] = []
    at = 0
    for buffer in buffers:
        placed.append((at, buffer))
        at += -(-buffer.nbytes // ALIGNED) * ALIGNED
    if not inline:
        for part in tail:
            placed.append((at, part))
            at += memoryview(part).nbytes
    store = sender.store
    slot = store.take(at)
    try:
        for where, part in placed:
            slot.write(part, where)
        lease = slot.lend(at)
    finally:
        store.lent(slot)  # where nothing was lent it is free again when next looked at
    head = FRAME.pack(slot.offset, at, tail_size, len(buffers))
    return Letter(PARCEL, b"".join((head, *tail)) if inline else head, lease)


def _taken_apart(body: bytes, fd: int) -> tuple[memoryview, list[memoryview]]:
    """The pickle and the buffers of a parcel: views of its memory. Raises: OSError, ProtocolViolation."""
    try:
        offset, size, tail_size, count = FRAME.unpack_from(body)
        memory = memoryview(Parcel(fd, offset, size))
        tail = memoryview(body)[FRAME.size :] if len(body) > FRAME.size else memory[max(size - tail_size, 0) :]
        sizes = struct.unpack_from(f"<{count}Q", tail)
    except (struct.error, OverflowError) as error:
        raise ProtocolViolation(f"a letter that is none: {error}") from error
    buffers = []
    at = 0
    for nbytes in sizes:
        buffers.append(memory[at : at + nbytes])
        at += -(-nbytes // ALIGNED) * ALIGNED
    return tail[8 * count :], buffers


def unpacked(letter: tuple[int, bytes, int]) -> Any:
    """The object of a letter, whose descriptor is closed. Raises: what unpickling raises; OSError."""
    kind, body, fd = letter
    if kind == PLAIN:
        return pickle.loads(body)
    try:
        stream, buffers = _taken_apart(body, fd)
    finally:
        os.close(fd)
    return pickle.loads(stream, buffers=buffers)


def unpacked_bytes(letter: tuple[int, bytes, int]) -> memoryview | bytes:
    """The bytes of a letter: what was sent as bytes, or a pickle. Raises: OSError."""
    kind, body, fd = letter
    if kind == PLAIN:
        return body
    try:
        stream, buffers = _taken_apart(body, fd)
    finally:
        os.close(fd)
    if not buffers:
        return stream
    return bytes(ForkingPickler.dumps(pickle.loads(stream, buffers=buffers)))
