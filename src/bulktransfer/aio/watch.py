"""One descriptor in the running loop.

Knows: `fileno()` and `add_reader`, who waits. Must not know: what makes the descriptor readable.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Protocol


class HasFileno(Protocol):
    """What has a descriptor."""

    def fileno(self) -> int:
        """The descriptor."""


class Watch:
    """Calls `on_readable` in the running loop while the descriptor of `thing` is readable."""

    def __init__(self, thing: HasFileno, on_readable: Callable[[], None]) -> None:
        self._thing = thing
        self._on_readable = on_readable
        self._waiters: set[asyncio.Future[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._fd = -1

    def start(self) -> asyncio.AbstractEventLoop:
        """Watch in the running loop. Raises: RuntimeError (tasks of another loop wait), what fileno raises."""
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return loop
        if self._loop is not None and not self._loop.is_closed() and self._waiters:
            raise RuntimeError(f"{self._thing!r} is awaited in two event loops at once")
        self.stop()
        self._waiters.clear()
        if self._fd < 0:  # one number for life
            self._fd = self._thing.fileno()
        loop.add_reader(self._fd, self._on_readable)
        self._loop = loop
        return loop

    def start_again(self) -> None:
        """Watch, if this is called in a running loop and nobody watches yet; the first wait does it otherwise."""
        if self._loop is None or self._loop.is_closed():
            with contextlib.suppress(RuntimeError):
                asyncio.get_running_loop()
                self.start()

    def stop(self) -> None:
        """Watch no longer; idempotent. It comes before the descriptor is closed."""
        loop, self._loop = self._loop, None
        if loop is not None and not loop.is_closed():
            loop.remove_reader(self._fd)

    def wake(self) -> None:
        """There is news: have every waiting task look."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def join(self, waiter: asyncio.Future[None]) -> None:
        """Have `waiter` woken with the others; the watch must have been started."""
        self._waiters.add(waiter)

    def leave(self, waiter: asyncio.Future[None]) -> None:
        """The same no longer."""
        self._waiters.discard(waiter)

    async def news(self) -> None:
        """Wait until woken. Nothing is taken here, so a cancelled wait loses nothing."""
        waiter = self.start().create_future()
        self.join(waiter)
        try:
            await waiter
        finally:
            self.leave(waiter)
