"""A progress bar for people who wait: on a terminal only, and only from the second second on.

Knows: a terminal. Must not know: what takes so long.
"""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO

_PATIENCE_S = 1.0
_STEP_S = 0.1
_BAR = 30


class Progress:
    """Counts up to what `expect` said; a context manager that leaves no trace on the screen."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._total = 1
        self._done = 0
        self._label = ""
        self._stream = stream if stream is not None else sys.stderr
        self._next_s = time.monotonic() + _PATIENCE_S if self._stream.isatty() else float("inf")
        self._shown = False

    def expect(self, total: int) -> None:
        """How much there is to do in all."""
        self._total = max(1, total)

    def show(self, label: str) -> None:
        """What is done from now on."""
        self._label = label

    def advance(self, amount: int) -> None:
        """So much more is done."""
        self._done += amount
        now_s = time.monotonic()
        if now_s >= self._next_s:
            self._next_s = now_s + _STEP_S
            self._draw()

    def _draw(self) -> None:
        share = min(1.0, self._done / self._total)
        full = int(share * _BAR)
        text = f"[{'#' * full}{'.' * (_BAR - full)}] {share:4.0%} {self._label}"
        columns = shutil.get_terminal_size().columns
        print(f"\r\x1b[K{text[: columns - 1]}", end="", file=self._stream, flush=True)
        self._shown = True

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=self._stream, flush=True)
