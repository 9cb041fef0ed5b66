"""Which version of each part of a store there is, so that whoever keeps a copy learns cheaply whether it is current.

Knows: a clock of changes, and which parts are being changed. Must not know: the store, or who keeps copies.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections import Counter
from collections.abc import Iterator

PART = 64 << 10  # bytes that share a version, at least
PARTS_MAX = 1 << 16

UNKNOWN = 0  # the version of what is just being changed: of no copy


class Changes:
    """A version for any range of a store; another one after every change of it. Safe for threads.

    A version is sampled before the range is read. A change that begins later, or that is under way, makes a version
    that differs from the sampled one, so no copy is ever taken for what came after it, nor for what is half there. The
    clock begins at random: a server that was started again has none of the versions that it had.
    """

    def __init__(self, size_bytes: int) -> None:
        part = PART
        while part * PARTS_MAX < size_bytes:
            part *= 2
        self.part_bytes = part
        self._clock = secrets.randbits(62) | 1
        self._origin = self._clock
        self._last: dict[int, int] = {}  # the change that each part had last
        self._busy: Counter[int] = Counter()  # changes under way
        self._lock = threading.Lock()

    def _parts(self, offset: int, length: int) -> range:
        return range(offset // self.part_bytes, (offset + max(1, length) - 1) // self.part_bytes + 1)

    @contextlib.contextmanager
    def changing(self, offset: int, length: int) -> Iterator[None]:
        """While a range is changed, which may fail half way."""
        parts = self._parts(offset, length)
        with self._lock:
            self._busy.update(parts)
        try:
            yield
        finally:
            with self._lock:
                self._clock += 1
                for part in parts:
                    self._last[part] = self._clock
                    self._busy[part] -= 1
                    if not self._busy[part]:
                        del self._busy[part]

    def version(self, offset: int, length: int) -> int:
        """The version of a range now, or UNKNOWN."""
        parts = self._parts(offset, length)
        with self._lock:
            if self._busy and any(part in self._busy for part in parts):
                return UNKNOWN
            return max(self._last.get(part, self._origin) for part in parts)
