"""What waits for receive beside the events of the channel underneath.

Knows: how a refusal and a callback's error look among events. Must not know: who receives them.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import bulktransfer as bulk
from bulktransfer import EventKind


@dataclasses.dataclass(frozen=True, slots=True)
class LateRefusal:
    """An OPERATION_REFUSED event for a call that was cancelled before its outcome was known; it reads as an Event."""

    channel: bulk.Channel
    operation: str
    buffers: tuple[bulk.Buffer, ...]
    error: BaseException
    kind: EventKind = EventKind.OPERATION_REFUSED
    meta: bytes = b""
    pool: None = None
    present: bool = False

    @property
    def buffer(self) -> bulk.Buffer | None:
        """The buffer that is here again; of a batch see `buffers`."""
        return self.buffers[0] if len(self.buffers) == 1 else None


class Raised(NamedTuple):
    """What a callback raised, in its place among the events."""

    error: Exception


def of_callback(error: bulk.WouldBlock) -> bool:
    """Whether a callback raised it, which wanted to wait, and not the call that found nothing."""
    trace = error.__traceback__
    depth = 0
    while trace is not None:
        depth += 1
        trace = trace.tb_next
    return depth > 2
