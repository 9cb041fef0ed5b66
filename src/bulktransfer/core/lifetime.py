"""What must happen at the end of the interpreter, and switches for the whole process.

Knows: every domain. Must not know: more of a channel than that it can be closed.
"""

from __future__ import annotations

import atexit
import multiprocessing.util  # its exit handler joins children: ours, registered later, runs before it
from types import TracebackType

from .._native import buffer
from .._native.far import finish_sending
from .._native.link import finish_carrying
from .domain import all_domains

CARRY_S = 5.0  # for what was accepted and finds no room at its peer


def close_all() -> None:
    """Close every channel, and give what they accepted a last chance to arrive (rule 15)."""
    for domain in all_domains():
        domain.exiting = True
        for channel in list(domain.channels.values()):
            channel.close()
    finish_carrying(CARRY_S)
    finish_sending(CARRY_S)


assert multiprocessing.util is not None
atexit.register(close_all)


class trace_views:  # it reads as a call
    """Record where views of buffers are made, so that errors about live views can say it.

    `bulk.trace_views()` switches it on for good; `with bulk.trace_views():` for a while.
    """

    def __init__(self) -> None:
        self._before = buffer.set_tracing(True)

    def __enter__(self) -> trace_views:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        buffer.set_tracing(self._before)
