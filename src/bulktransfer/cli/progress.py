"""A progress bar for people who wait: on a terminal only, and only from the second second on.

Knows: a terminal, and whether rich is installed, which draws a nicer one. Must not know: what takes so long.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Protocol, TextIO

_PATIENCE_S = 1.0
_STEP_S = 0.1
_BAR = 30


class Bar(Protocol):
    """What is told how far things are."""

    def advance(self, amount: int) -> None: ...


class Progress:
    """Counts up to what `expect` said; a context manager that leaves no trace on the screen.

    `bytes_too`: it says how many bytes were done, and how fast.
    """

    def __init__(self, stream: TextIO | None = None, *, bytes_too: bool = False) -> None:
        self._total: int | None = 1
        self._done = 0
        self._label = ""
        self._bytes_too = bytes_too
        self._stream = stream if stream is not None else sys.stderr
        self._start_s = time.monotonic()
        self._next_s = self._start_s + _PATIENCE_S if self._stream.isatty() else float("inf")
        self._shown = False

    def expect(self, total: int | None) -> None:
        """How much there is to do in all; None if nobody knows."""
        self._total = total if total is None else max(1, total)

    def show(self, label: str) -> None:
        """What is done from now on."""
        self._label = label

    def advance(self, amount: int) -> None:
        """So much more is done."""
        self._done += amount
        now_s = time.monotonic()
        if now_s >= self._next_s:
            self._next_s = now_s + _STEP_S
            self._draw(now_s)

    def _draw(self, now_s: float) -> None:
        text = self._label
        if self._total is not None:
            share = min(1.0, self._done / self._total)
            full = int(share * _BAR)
            text = f"[{'#' * full}{'.' * (_BAR - full)}] {share:4.0%} {text}"
        if self._bytes_too:
            text += f"  {self._done / 1e6:,.0f} MB, {self._done / 1e6 / (now_s - self._start_s):,.0f} MB/s"
        columns = shutil.get_terminal_size().columns
        print(f"\r\x1b[K{text[: columns - 1]}", end="", file=self._stream, flush=True)
        self._shown = True

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=self._stream, flush=True)


@contextlib.contextmanager
def progress(label: str, total: int | None, *, quiet: bool = False, stream: TextIO | None = None) -> Iterator[Bar]:
    """A bar for so many bytes: rich's where that is installed, else a plain one; none where nobody looks."""
    stream = stream if stream is not None else sys.stderr
    if quiet:
        yield _Nothing()
    elif stream.isatty() and importlib.util.find_spec("rich") is not None:
        with importlib.import_module(f"{__package__}.richbar").bar(label, total, stream) as bar:
            yield bar
    else:
        with Progress(stream, bytes_too=True) as plain:
            plain.expect(total)
            plain.show(label)
            yield plain


class _Nothing:
    def advance(self, amount: int) -> None:
        pass
