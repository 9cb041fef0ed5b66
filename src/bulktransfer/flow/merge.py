"""Many sources, one loop: what arrives at any of them, in turn.

Knows: the channels. Must not know: what becomes of what arrives; it goes home over `event.channel`.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Iterable, Iterator

import bulktransfer as bulk

FAIR_SHARE = 16  # events of one source before the next has its turn


class Merge:
    """Iterates over what arrives at many channels, fairly, until all have ended; made by bulk.merge.

    A source that broke raises its error once, when all that it had sent was delivered; iteration may go on.
    """

    def __init__(self, sources: Iterable[bulk.Channel]) -> None:
        self._waitset = bulk.WaitSet()
        self._sources: set[bulk.Channel] = set()
        self._events: collections.deque[bulk.Event] = collections.deque()
        self._broken: collections.deque[BaseException] = collections.deque()
        try:
            for source in sources:
                self.add(source)
        except BaseException:
            self.close()
            raise

    def add(self, source: bulk.Channel) -> None:
        """One source more. Raises: TypeError, ValueError (it is in already), the channel's end."""
        self._waitset.add(source)
        self._sources.add(source)

    def receive(self, timeout: float | None = None) -> bulk.Event:
        """The next event of any source.

        Raises: TimeoutError, EndOfChannelError (all have ended), BrokenChannelError, ProtocolViolation (one broke; the
        others go on), WouldBlock (inside a callback).
        """
        end = None if timeout is None else time.monotonic() + timeout
        while not self._events and not self._broken:
            if not self._sources:
                raise bulk.EndOfChannelError("receive of a merge: every source has ended")
            left = None if end is None else max(0.0, end - time.monotonic())
            for channel in self._waitset.wait(left):
                self._take(channel)
        if self._events:
            return self._events.popleft()
        raise self._broken.popleft()

    def _take(self, channel: bulk.Channel) -> None:
        try:
            self._events.extend(channel.receive_many(FAIR_SHARE, 0))
        except TimeoutError:
            return  # a continuation ran
        except (bulk.BrokenChannelError, bulk.ProtocolViolation) as error:
            self._broken.append(error)
        except (bulk.EndOfChannelError, bulk.ClosedChannelError):
            pass  # in order
        else:
            return
        self._sources.discard(channel)
        self._waitset.remove(channel)

    def __iter__(self) -> Iterator[bulk.Event]:
        return self

    def __next__(self) -> bulk.Event:
        """The next event that brings a buffer; others are passed over, except refusals."""
        kinds = bulk.EventKind
        while True:
            try:
                event = self.receive()
            except bulk.EndOfChannelError:
                raise StopIteration from None
            if event.kind is kinds.OPERATION_REFUSED and event.error is not None:
                raise event.error
            if event.buffer is not None:
                return event

    def close(self) -> None:
        """Let the sources go; they stay open. Idempotent."""
        self._waitset.close()
        self._sources.clear()

    def __enter__(self) -> Merge:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Merge of {len(self._sources)} sources>"


def merge(sources: Iterable[bulk.Channel]) -> Merge:
    """Iterate over the transfers that arrive at any of `sources`, fairly, until all have ended (I-4.1, goals 3, 4).

    Give each back over `event.channel`. See Forwarder.merge to send them on over one channel instead.
    Raises: TypeError, ValueError (a source twice), the end of a source.
    """
    return Merge(sources)
