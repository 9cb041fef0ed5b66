"""A signal to stop, which a loop waits for beside its sockets, and which a signal handler may give.

Knows: one descriptor, and who may still use it. Must not know: what stops.
"""

from __future__ import annotations

import os
import threading


class StopSignal:
    """Given once, seen for ever; readable as a descriptor from then on."""

    def __init__(self) -> None:
        self._given = False
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = threading.RLock()  # a handler may interrupt the thread that has it

    @property
    def given(self) -> bool:
        """Whether it was given."""
        return self._given

    def fileno(self) -> int:
        """The descriptor, until `close`."""
        return self._fd

    def give(self) -> None:
        """Give it; harmless when it was given, or nobody waits any more."""
        self._given = True
        with self._lock:
            if self._fd >= 0:
                os.eventfd_write(self._fd, 1)

    def close(self) -> None:
        """Nobody waits for it any more; idempotent."""
        with self._lock:
            fd, self._fd = self._fd, -1
            if fd >= 0:
                os.close(fd)

    def __del__(self) -> None:
        self.close()
