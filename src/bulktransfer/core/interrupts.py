"""What a peer asked for is answered before Ctrl-C is heard (design rule 13).

Knows: that Python may raise KeyboardInterrupt between any two steps of the main thread. Must not know: what is done.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any


class Interrupts:
    """While they are held off in the main thread, an interrupt waits; other threads are never interrupted."""

    def __init__(self) -> None:
        self._before: Callable[[int, FrameType | None], Any] | None = None  # the handler, while held off
        self._came = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came = True

    def _hold(self) -> bool:
        if self._before is not None or threading.current_thread() is not threading.main_thread():
            return False
        handler = signal.getsignal(signal.SIGINT)
        if not callable(handler):
            return False  # ignored, or not Python's
        self._before = handler
        signal.signal(signal.SIGINT, self._note)
        return True

    def _let_go(self) -> None:
        before, self._before = self._before, None
        signal.signal(signal.SIGINT, before)
        came, self._came = self._came, False
        if came:
            signal.raise_signal(signal.SIGINT)

    @contextlib.contextmanager
    def held_off(self) -> Iterator[None]:
        """An interrupt waits until the end of this."""
        if not self._hold():
            yield
            return
        try:
            yield
        finally:
            self._let_go()

    @contextlib.contextmanager
    def let_through(self) -> Iterator[None]:
        """Inside that, user code: an interrupt, also one that waits, is heard."""
        if self._before is None or threading.current_thread() is not threading.main_thread():
            yield
            return
        self._let_go()
        try:
            yield
        finally:
            self._hold()


INTERRUPTS = Interrupts()
