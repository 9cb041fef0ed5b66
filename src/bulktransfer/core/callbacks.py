"""Who is told of events.

Knows: the nine kinds of events. Must not know: channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from ..states import EventKind

Callback = Callable[[Any], object]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Callbacks:
    """One callback(event) a kind of event; an event that has one goes to it only (I-6.2.2).

    They run in the thread that dispatches or receives, never under a lock. bind_received and pool_assigned (and
    pool_removed) may veto by raising: the text reaches the other side. Raises: TypeError (not callable).
    """

    bind_received: Callback | None = None
    teardown_received: Callback | None = None
    pool_assigned: Callback | None = None
    pool_removed: Callback | None = None
    move_received: Callback | None = None
    buffer_received: Callback | None = None
    copy_received: Callback | None = None
    copy_released: Callback | None = None
    operation_refused: Callback | None = None

    def __post_init__(self) -> None:
        for kind in EventKind:
            callback = getattr(self, kind.value)
            if callback is not None and not callable(callback):
                raise TypeError(f"Callbacks.{kind.value} is {callback!r}, which cannot be called")

    def handlers(self) -> tuple[Callback | None, ...]:
        """The callbacks in the order of EventKind; None for those that run where an answer depends on them."""
        vetoes = (EventKind.BIND_RECEIVED, EventKind.POOL_ASSIGNED, EventKind.POOL_REMOVED)
        return tuple(None if kind in vetoes else getattr(self, kind.value) for kind in EventKind)
