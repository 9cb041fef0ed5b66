"""A clock that waits ever longer between its ticks, for what nothing tells of.

Knows: timerfd. Must not know: what is waited for.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from typing import Final

from .._native.kernel import Descriptor

FIRST_NS: Final = 10_000_000
LAST_NS: Final = 1_000_000_000

_libc: Final = ctypes.CDLL(None, use_errno=True)


class Tick:
    """An abc.Appearance that becomes readable after 10 ms, then after ever longer pauses up to a second."""

    def __init__(self, what: str) -> None:
        fd = _libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if fd < 0:
            raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
        self._timer = Descriptor(fd)
        self._pause_ns = FIRST_NS
        self._arm()

    def _arm(self) -> None:
        seconds, rest = divmod(self._pause_ns, 1_000_000_000)
        _libc.timerfd_settime(self._timer.fileno(), 0, (ctypes.c_long * 4)(0, 0, seconds, rest), None)

    def fileno(self) -> int:
        """Readable when the pause is over. Raises: ValueError (closed)."""
        return self._timer.fileno()

    def clear(self) -> None:
        """Begin the next pause, half as long again."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._timer.fileno(), 8)
        self._pause_ns = min(self._pause_ns * 3 // 2, LAST_NS)
        self._arm()

    def close(self) -> None:
        """Stop; idempotent."""
        self._timer.close()
