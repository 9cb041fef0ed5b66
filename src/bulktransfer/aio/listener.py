"""A listener whose accept is awaited.

Knows: the public listener. Must not know: how a client joins.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Sequence
from typing import Any

import bulktransfer as bulk

from .channel import Channel, wrap
from .watch import Watch

WAITING_MAX = 64  # clients that have their channels and wait for accept


class Listener:
    """Accepts many clients at one address, several channels each; made by listen."""

    def __init__(self, listener: bulk.Listener) -> None:
        self.sync = listener
        self._clients: deque[tuple[Channel, ...]] = deque()  # accepted, and not fetched yet
        self._watch = Watch(listener, self._on_readable)
        self._watch.start_again()

    @property
    def address(self) -> str:
        """The address, as clients connect to it."""
        return self.sync.address

    async def accept(self) -> tuple[Channel, ...]:
        """The channels of the next client, in the order of the specs. Cancelled, no client is lost.

        Raises: ClosedChannelError (the listener was closed), ForkedError.
        """
        while not self._clients and not self._look():
            await self._watch.news()
        self._watch.start_again()
        return self._clients.popleft()

    def close(self) -> None:
        """Accept nobody any more; accepted channels live on. Idempotent, never raises."""
        self._watch.stop()
        self.sync.close()
        while self._clients:
            for channel in self._clients.popleft():
                channel.close()
        self._watch.wake()

    def _look(self) -> bool:
        """Serve who knocks; whether a client is there. Raises: ClosedChannelError, ForkedError."""
        with contextlib.suppress(TimeoutError):
            self._clients.append(tuple(wrap(channel) for channel in self.sync.accept(timeout=0)))
        return bool(self._clients)

    def _on_readable(self) -> None:
        if len(self._clients) >= WAITING_MAX:  # others knock in vain until a task has accepted some of these
            self._watch.stop()
        elif self._look():
            self._watch.wake()

    def __aiter__(self) -> Listener:
        return self

    async def __anext__(self) -> tuple[Channel, ...]:
        try:
            return await self.accept()
        except bulk.ClosedChannelError:
            raise StopAsyncIteration from None

    async def __aenter__(self) -> Listener:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<aio {self.sync!r}>"


def listen(address: str, specs: Sequence[bulk.ChannelSpec], **options: Any) -> Listener:
    """Create `address` for many clients; it does not wait, so it is not awaited. Options and Raises: as bulk.listen."""
    return Listener(bulk.listen(address, specs, **options))
