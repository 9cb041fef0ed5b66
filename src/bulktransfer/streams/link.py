"""One reader, from the writer's side.

Knows: what it has and what waits for it. Must not know: which slots there are, or what happens when it is slow.
"""

from __future__ import annotations

import dataclasses
from collections import deque

import bulktransfer as bulk
from bulktransfer import EventKind

ENDS = (bulk.ClosedChannelError, bulk.EndOfChannelError, bulk.BrokenChannelError, bulk.ProtocolViolation)


@dataclasses.dataclass(frozen=True, slots=True)
class Frame:
    """An array on its way: its number in the stream, where it lies, how it is labelled."""

    number: int
    buffer: bulk.Buffer
    meta: bytes


class Link:
    """The channel to one reader. At most `window` arrays are with it at a time, the others wait here.

    ready: it has the pool, and gets what is sent · lost: why it is gone. Raises: one of ENDS (it is gone already).
    """

    def __init__(self, channel: bulk.Channel, pool: bulk.Pool, window: int) -> None:
        self.channel = channel
        self.window = window
        self.waiting: deque[Frame] = deque()
        self.ready = False
        self.lost: BaseException | None = None
        self._there: set[int] = set()
        self.fd = channel.fileno()
        channel.assign_pool(pool, timeout=None, done=self._assigned)
        self.look()

    def _assigned(self, outcome: bulk.Outcome) -> None:
        self.ready = outcome.error is None
        self.lost = outcome.error

    def look(self) -> None:
        """Take what the reader gave back, and notice its end; the descriptor is silent afterwards."""
        while self.lost is None:
            try:
                event = self.channel.receive_nowait()
            except bulk.WouldBlock:
                return
            except ENDS as error:
                self.lost = error
            else:
                if event.kind in (EventKind.COPY_RELEASED, EventKind.OPERATION_REFUSED):
                    self._there.discard(event.buffer.index)

    def send(self, frame: Frame) -> None:
        """Hand the frame out, now or when the reader gave others back."""
        self.waiting.append(frame)
        self.flush(self.window)

    def flush(self, window: int) -> None:
        """Hand out what waits, while the reader has fewer than `window` arrays."""
        while self.waiting and self.lost is None and len(self._there) < window:
            frame = self.waiting[0]
            try:
                self.channel.copy(frame.buffer, frame.meta)
            except ENDS as error:
                self.lost = error
                return
            self._there.add(frame.buffer.index)
            self.waiting.popleft()

    def close(self) -> None:
        """Let the reader go; what was handed out still arrives."""
        self.ready = False
        self.waiting.clear()
        self.channel.close()
