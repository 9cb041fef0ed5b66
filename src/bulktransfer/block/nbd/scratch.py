"""Page-aligned memory for requests under way, kept for the next one, and a bound on all of it.

Knows: memory, and how much of it is out. Must not know: requests.
"""

from __future__ import annotations

import mmap
import threading

KEPT = 8  # pieces a size


class Scratch:
    """Memory for requests; `take` waits while more than `limit_bytes` are out."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._out = 0
        self._changed = threading.Condition()
        self._kept: dict[int, list[mmap.mmap]] = {}

    def take(self, length: int) -> mmap.mmap:
        """At least `length` bytes, aligned to a page; they come back by `give`."""
        size = max(mmap.PAGESIZE, 1 << (length - 1).bit_length()) if length else mmap.PAGESIZE
        with self._changed:
            # a single large one is let through, or it would wait for ever
            self._changed.wait_for(lambda: not self._out or self._out + size <= self._limit)
            self._out += size
            kept = self._kept.get(size)
            if kept:
                return kept.pop()
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def give(self, memory: mmap.mmap) -> None:
        """Take back what `take` gave."""
        with self._changed:
            self._out -= len(memory)
            kept = self._kept.setdefault(len(memory), [])
            if len(kept) < KEPT:
                kept.append(memory)
            self._changed.notify_all()
