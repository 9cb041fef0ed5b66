"""A store in memory, sparse: what was never written takes no memory.

Knows: the mapping, and which chunks of it were written. Must not know: requests, protocols.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator

from .errors import BadRequestError
from .store import BLOCK_SIZE, Extent, Store

CHUNK = 1 << 16  # the grain of holes
HUGE = 1 << 21
LARGE = 1 << 17  # a write that is one of many in a row, as a rule
_NO_RESERVE = 0x4000  # MAP_NORESERVE, which mmap does not name before Python 3.13
_SHIFT = CHUNK.bit_length() - 1


class MemoryStore(Store):
    """Blocks in this process's memory (the report's store); flush has nothing to do, and nothing outlives it.

    Memory is taken from the system when it is first written: in huge pages (where it has them) by large writes, which
    would otherwise fault for each 4 KiB; in small pages by small ones, which would otherwise clear 2 MiB each.
    """

    prompt = prompt_writes = True
    can_fast_zero = True

    def __init__(self, size_bytes: int, *, block_size: int = BLOCK_SIZE, read_only: bool = False) -> None:
        super().__init__(size_bytes, block_size=block_size, read_only=read_only)
        chunks = max(1, -(-size_bytes // CHUNK))
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
        self._memory = mmap.mmap(-1, chunks * CHUNK, flags=flags)
        with contextlib.suppress(OSError):  # a kernel without transparent huge pages
            self._memory.madvise(mmap.MADV_NOHUGEPAGE)
        self._huge = bytearray(-(-chunks * CHUNK // HUGE))  # 1 where an area was asked for in huge pages
        self._view = memoryview(self._memory)
        self._written = bytearray(chunks)  # 1 where a chunk was written

    def __repr__(self) -> str:
        return f"<MemoryStore of {self.size_bytes} bytes>"

    def view(self, offset: int, length: int) -> memoryview:
        """The bytes in place."""
        return self._view[offset : offset + length]

    def slot(self, offset: int, length: int) -> memoryview:
        """The place of the bytes; its chunks count as written from now on."""
        end = offset + length
        first, last = offset >> _SHIFT, (end - 1) >> _SHIFT
        if first == last:
            self._written[first] = 1
        else:
            self._written[first : last + 1] = b"\1" * (last + 1 - first)
            if length >= LARGE:
                self._ask_for_huge_pages(offset, end)
        return self._view[offset:end]

    def _ask_for_huge_pages(self, offset: int, end: int) -> None:
        first, last = offset // HUGE, (end - 1) // HUGE
        for area in range(first, last + 1):
            if not self._huge[area]:
                self._huge[area] = 1
                with contextlib.suppress(OSError):  # small ones do as well
                    self._memory.madvise(mmap.MADV_HUGEPAGE, area * HUGE, min(HUGE, len(self._memory) - area * HUGE))

    def _read_into(self, offset: int, into: memoryview) -> None:
        into[:] = self._view[offset : offset + len(into)]

    def _write(self, offset: int, data: memoryview, fua: bool) -> None:
        if data:
            self.slot(offset, len(data))[:] = data

    def _flush(self) -> None:
        pass

    def _trim(self, offset: int, length: int) -> None:
        self._write_zeroes(offset, length, True, False)

    def _write_zeroes(self, offset: int, length: int, may_trim: bool, fast: bool) -> None:
        end = offset + length
        if not may_trim:
            for begin in range(offset, end, CHUNK):
                piece = min(CHUNK, end - begin)
                self.slot(begin, piece)[:] = bytes(piece)
            return
        first, last = -(-offset // CHUNK), end // CHUNK
        if end == self.size_bytes:
            last = len(self._written)
        if first >= last:
            self._wipe(offset, end)
            return
        self._wipe(offset, first * CHUNK)
        self._wipe(last * CHUNK, end)
        self._memory.madvise(mmap.MADV_DONTNEED, first * CHUNK, (last - first) * CHUNK)
        self._written[first:last] = bytes(last - first)

    def _wipe(self, begin: int, end: int) -> None:
        """Zero less than a chunk on either side of a border; what is a hole stays one."""
        while begin < end:
            piece = min(end, (begin // CHUNK + 1) * CHUNK)
            if self._written[begin // CHUNK]:
                self._view[begin:piece] = bytes(piece - begin)
            begin = piece

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        end = offset + length
        while offset < end:
            chunk = offset >> _SHIFT
            written = self._written[chunk]
            other = self._written.find(1 - written, chunk, -(-end // CHUNK))
            until = end if other < 0 else min(end, other * CHUNK)
            yield Extent(until - offset, hole=not written, zero=not written)
            offset = until

    def all_hole(self, offset: int, length: int) -> bool:
        """Whether nothing of a range was ever written."""
        return self._written.find(1, offset >> _SHIFT, (offset + length - 1 >> _SHIFT) + 1) < 0

    def close(self) -> None:
        """Give the memory back; views that are still in use keep it until they die."""
        self._view.release()
        with contextlib.suppress(BufferError):
            self._memory.close()


_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_size(text: str) -> int:
    """`4096`, `64K`, `1G`, `10MiB` as bytes. Raises: BadRequestError."""
    lower = text.strip().lower().removesuffix("ib").removesuffix("b")
    number, unit = lower.rstrip("kmgt"), lower[len(lower.rstrip("kmgt")) :]
    if not number.isdecimal() or unit not in _UNITS:
        raise BadRequestError(f"{text!r} is no size; say 4096, 64K, 10M, 1G or 2T")
    return int(number) * _UNITS[unit]
