"""A progress bar drawn by rich (the extra `cli`).

Knows: rich. Must not know: what takes so long. Imported on demand (progress.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TextIO

from rich import progress
from rich.console import Console
from rich.markup import escape


class RichBar:
    """One task of rich's."""

    def __init__(self, shown: progress.Progress, task: progress.TaskID) -> None:
        self._shown = shown
        self._task = task

    def advance(self, amount: int) -> None:
        """So much more is done."""
        self._shown.advance(self._task, amount)


@contextlib.contextmanager
def bar(label: str, total: int | None, stream: TextIO) -> Iterator[RichBar]:
    """A bar for so many bytes, which leaves no trace on the screen."""
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(file=stream), transient=True) as shown:
        yield RichBar(shown, shown.add_task(escape(label), total=total))
