"""A store of fixed-size blocks: what every kind of store offers, and the checks that they share.

Knows: offsets, lengths and blocks, and when a request is refused. Must not know: where the bytes lie (memory_store.py,
file_store.py), who asks, or over which protocol.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
from typing import NamedTuple

from .errors import BadBlockError, BadRequestError, ReadOnlyError

BLOCK_SIZE = 4096  # the report's
LARGEST_BLOCK = 1 << 25


class Extent(NamedTuple):
    """A run of bytes that are alike: a hole has no memory behind it, what is zero reads as zeroes."""

    length: int
    hole: bool
    zero: bool


class Store(abc.ABC):
    """Bytes in blocks of one size. Safe for threads, as far as their requests do not overlap.

    prompt: every request ends without waiting for a medium, so nothing is gained by doing several at a time.
    prompt_writes: a write without fua does.
    """

    prompt = False
    prompt_writes = False
    can_fast_zero = False

    def __init__(self, size_bytes: int, *, block_size: int = BLOCK_SIZE, read_only: bool = False) -> None:
        if size_bytes < 0 or size_bytes >= 1 << 63:
            raise ValueError(f"a store of {size_bytes} bytes")
        if block_size < 512 or block_size > LARGEST_BLOCK or block_size & (block_size - 1):
            raise ValueError(f"block_size={block_size}: it takes a power of two from 512 to {LARGEST_BLOCK}")
        self.size_bytes = size_bytes
        self.block_size = block_size
        self.read_only = read_only

    @property
    def block_count(self) -> int:
        """The number of whole blocks."""
        return self.size_bytes // self.block_size

    # -- what the stores do; offset and length are checked ---------------------------------------------------------

    @abc.abstractmethod
    def _read_into(self, offset: int, into: memoryview) -> None: ...

    @abc.abstractmethod
    def _write(self, offset: int, data: memoryview, fua: bool) -> None: ...

    @abc.abstractmethod
    def _trim(self, offset: int, length: int) -> None: ...

    @abc.abstractmethod
    def _write_zeroes(self, offset: int, length: int, may_trim: bool, fast: bool) -> None: ...

    @abc.abstractmethod
    def _extents(self, offset: int, length: int) -> Iterator[Extent]: ...

    @abc.abstractmethod
    def _flush(self) -> None: ...

    @abc.abstractmethod
    def close(self) -> None:
        """Give up memory and descriptors; idempotent."""

    # -- what others call ------------------------------------------------------------------------------------------

    def check(self, act: str, offset: int, length: int, *, write: bool = False) -> None:
        """Refuse what lies beyond the end, or changes a read-only store.

        Raises: ReadOnlyError, BadBlockError, BadRequestError (a negative number).
        """
        if write and self.read_only:
            raise ReadOnlyError(f"{act} at {offset}: {self!r} is read-only")
        if offset < 0 or length < 0:
            raise BadRequestError(f"{act} of {length} bytes at {offset}")
        if offset + length > self.size_bytes:
            raise BadBlockError(f"{act} of {length} bytes at {offset}: {self!r} ends at {self.size_bytes}")

    def read_into(self, offset: int, into: memoryview) -> None:
        """Fill `into` with what lies at `offset`. Raises: BadBlockError, BadRequestError, StoreError."""
        self.check("read", offset, len(into))
        self._read_into(offset, into)

    def read(self, offset: int, length: int) -> bytes:
        """What lies at `offset`, as bytes of its own. Raises: as read_into."""
        self.check("read", offset, length)
        data = bytearray(length)
        with memoryview(data) as into:
            self._read_into(offset, into)
        return bytes(data)

    def write(self, offset: int, data: bytes | bytearray | memoryview, *, fua: bool = False) -> None:
        """Put `data` at `offset`; with `fua` it is durable when the call returns.

        Raises: ReadOnlyError, BadBlockError, BadRequestError, NoSpaceError, StoreError.
        """
        with memoryview(data).cast("B") as flat:
            self.check("write", offset, len(flat), write=True)
            self._write(offset, flat, fua)

    def flush(self) -> None:
        """Make durable what was written before the call. Raises: NoSpaceError, StoreError."""
        self._flush()

    def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        """Give back the memory of a range whose contents nobody needs; it then reads as zeroes, where that is cheap.

        Raises: ReadOnlyError, BadBlockError, BadRequestError, StoreError.
        """
        self.check("trim", offset, length, write=True)
        self._trim(offset, length)
        if fua:
            self._flush()

    def write_zeroes(
        self, offset: int, length: int, *, may_trim: bool = True, fast: bool = False, fua: bool = False
    ) -> None:
        """Make a range read as zeroes; without `may_trim`, with memory behind it.

        fast: refuse where that would take as long as writing.
        Raises: UnsupportedError (fast), ReadOnlyError, BadBlockError, BadRequestError, NoSpaceError, StoreError.
        """
        self.check("write_zeroes", offset, length, write=True)
        self._write_zeroes(offset, length, may_trim, fast)
        if fua:
            self._flush()

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """The runs that make up a range, in order. Raises: BadBlockError, BadRequestError, StoreError."""
        self.check("extents", offset, length)
        return self._extents(offset, length)

    def cache(self, offset: int, length: int) -> None:
        """Announce that a range will be read. Raises: BadBlockError, BadRequestError."""
        self.check("cache", offset, length)

    # -- what some stores have; offset and length were checked -----------------------------------------------------

    def try_read(self, offset: int, into: memoryview) -> bool:
        """Fill `into` if that needs no waiting for a medium; whether it did."""
        return False

    def all_hole(self, offset: int, length: int) -> bool:
        """Whether a range is known to be one hole."""
        return False

    def view(self, offset: int, length: int) -> memoryview | None:
        """The bytes in place, to be sent from there, or None."""
        return None

    def slot(self, offset: int, length: int) -> memoryview | None:
        """The place of the bytes, to be received into, or None."""
        return None

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
