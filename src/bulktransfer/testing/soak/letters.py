"""What is written into buffers: contents that say what they are, so that whoever gets them can judge them.

Knows: how contents follow from a seed and a key, and what travels as meta data beside them. Must not know: channels.
"""

from __future__ import annotations

import hashlib
import struct
from typing import NamedTuple

HEAD = struct.Struct("<QQ")  # key, length
META = struct.Struct("<IQQ")  # lane, place in the lane's order from 1, key
META_BYTES = META.size


class Wrong(AssertionError):
    """The library broke a promise; the text says which."""


class Label(NamedTuple):
    """Meta data of a transfer."""

    lane: int
    place: int
    key: int

    def pack(self) -> bytes:
        """As it travels."""
        return META.pack(*self)

    @classmethod
    def of(cls, meta: bytes) -> Label:
        """From the meta data of an event. Raises: Wrong (it is not what was sent)."""
        if len(meta) != META_BYTES:
            raise Wrong(f"meta data of {len(meta)} bytes where {META_BYTES} were sent")
        return cls(*META.unpack(meta))


class Pen:
    """Writes and judges contents; they differ by seed."""

    def __init__(self, seed: int) -> None:
        self._seed = seed.to_bytes(8, "little", signed=True)

    def write(self, key: int, length: int) -> bytes:
        """Contents of `length` bytes (at least a head)."""
        head = HEAD.pack(key, length)
        return head + hashlib.shake_128(self._seed + head).digest(length - HEAD.size)

    def judge(self, data: bytes, key: int, where: str) -> None:
        """Raise Wrong unless these are the contents of that key, whole."""
        if len(data) < HEAD.size:
            raise Wrong(f"{where}: {len(data)} bytes where contents of key {key} were due")
        found, length = HEAD.unpack_from(data)
        if (found, length) != (key, len(data)):
            raise Wrong(f"{where}: contents of key {found}, {length} bytes, where key {key}, {len(data)} were due")
        due = self.write(key, length)
        if data != due:
            first = next(i for i in range(length) if data[i] != due[i])
            raise Wrong(f"{where}: byte {first} of {length} of key {key} is {data[first]}, not {due[first]}")
