"""What could not go on, and was refused back or is reported.

Knows: the error, and what it is about. Must not know: who joins what.
"""

from __future__ import annotations

import collections
import logging
from collections.abc import Callable
from typing import NamedTuple

import bulktransfer as bulk

KEPT = 100  # of the latest problems; all are counted

_log = logging.getLogger("bulktransfer.flow")


class Problem(NamedTuple):
    """Something that a forwarder could not pass on; the buffer went back to where it came from."""

    error: BaseException
    channel: bulk.Channel  # that did not take it
    buffer: bulk.Buffer | None = None
    pool: bulk.Pool | None = None

    def __str__(self) -> str:
        return f"{self.channel!r}: {type(self.error).__name__}: {self.error}"


Report = Callable[[Problem], object]


class Reports:
    """Where problems go: to the user's function, else to the log; the latest are kept as well."""

    def __init__(self, report: Report | None) -> None:
        self._report = report
        self.count = 0
        self.latest: collections.deque[Problem] = collections.deque(maxlen=KEPT)

    def add(self, problem: Problem) -> None:
        """Tell of one. Raises: what the user's function raises."""
        self.count += 1
        self.latest.append(problem)
        if self._report is not None:
            self._report(problem)
        else:
            _log.warning("not forwarded: %s", str(problem))  # a record keeps no channel alive
