"""The memory that one sender lends along with its messages: pools that grow and shrink with use.

Knows: the library's own pools (an Allocator each) and their free buffers, which buffer is lent out, how much there may
be. Must not know: sockets, pickles. A buffer that was lent is free again when the kernel has nobody left who holds its
lease (_parcel.pyx), so a receiver that is killed gives back like one that is done.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import select
import threading
import time
from typing import Any

from .. import Allocator, Buffer, LimitError, PoolExhaustedError
from ..core.memory import keep
from . import _parcel

SEGMENT_BYTES = 64 << 20  # a pool has more than one buffer up to here
IDLE_S = 30.0  # a pool that nobody used for so long goes
LOOKS = 16  # buffers that are out and looked at, each time one is wanted
GIVEN_UP_S = 1.0  # between looks for what a thread took and then had no lease of, of which no event tells
LOOK_MS = 10  # between looks where the kernel cannot say that a lease ended (no inotify instance left)


def default_limit() -> int:
    """Half of the machine's memory, in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def buffer_size(size: int) -> int:
    """The size of buffers that `size` bytes travel in: at most an eighth more, and whole pages."""
    step = max(4096, 1 << max(0, (size - 1).bit_length() - 4))
    return (size + step - 1) // step * step


class Slot:
    """A buffer to fill and lend."""

    def __init__(self, segment: Segment, buffer: Buffer) -> None:
        self.segment = segment
        self.buffer = buffer
        self.offset = buffer.index * buffer.size

    def write(self, data: Any, at: int) -> None:
        """Copy `data` in, without the GIL if there is much."""
        self.buffer.write(data, at)

    def lend(self, size: int) -> Any:
        """A lease of the first `size` bytes, a Descriptor. Raises: OSError."""
        return keep(_parcel.lend(self.segment.memory, self.offset, size))

    def is_lent(self) -> bool:
        """Whether somebody still holds a lease."""
        return _parcel.lent(self.segment.memory, self.offset, self.buffer.size)


class Segment:
    """One pool, and how much of it is in use."""

    def __init__(self, count: int, size: int) -> None:
        self.allocator = Allocator(count=count, size=size)
        memory = self.allocator.pool.memory
        assert memory is not None
        self.memory = memory.fileno()
        self.bytes = count * size
        self.used_at = time.monotonic()

    @property
    def is_unused(self) -> bool:
        """Whether every buffer is free."""
        return self.allocator.available == len(self.allocator.pool)

    def take(self) -> Slot | None:
        """A free buffer, the one that was freed last."""
        buffer = self.allocator.take()
        if buffer is None:
            return None
        self.used_at = time.monotonic()
        return Slot(self, buffer)


class Store:
    """The pools of one sender in this process. Threads may share it.

    limit: bytes of memory at most. wait: whether `take` waits there, until somebody lets go.
    """

    def __init__(self, limit: int, wait: bool) -> None:
        self.limit = limit
        self.wait = wait
        self.bytes = 0
        self._segments: dict[int, list[Segment]] = {}
        self._out: collections.deque[Slot] = collections.deque()
        self._lock = threading.Lock()

    def take(self, size: int) -> Slot:
        """A buffer of at least `size` bytes, to be handed to `sent` or `give_back`.

        Raises: LimitError (more than the limit), PoolExhaustedError (in use, and not to wait for), OSError (ENOMEM).
        """
        wanted = buffer_size(size)
        if wanted > self.limit:  # then without room to spare
            wanted = (size + 4095) // 4096 * 4096
        if wanted > self.limit:
            raise LimitError(f"an object of {size} bytes: the limit for all objects of this sender is {self.limit}")
        while True:
            with self._lock:
                slot = self._taken(wanted)
                out = len(self._out)
            if slot is not None:
                return slot
            if not self.wait:
                raise PoolExhaustedError(
                    f"an object of {size} bytes: {out} buffers are lent to receivers that have not let go, and "
                    f"{self.bytes} of {self.limit} bytes are in use"
                )
            self.await_return()

    def _taken(self, wanted: int) -> Slot | None:
        self._collect(LOOKS)
        self._trim(time.monotonic() - IDLE_S)
        for thorough in (False, True):
            if thorough:
                self._collect(len(self._out))
            for segment in reversed(self._segments.get(wanted, ())):
                slot = segment.take()
                if slot is not None:
                    return slot
            if thorough:
                self._trim(time.monotonic())
            slot = self._grown(wanted)
            if slot is not None:
                return slot
        return None

    def _grown(self, wanted: int) -> Slot | None:
        """A buffer of a new pool, which doubles what there is of its size; None at the limit."""
        segments = self._segments.get(wanted, [])
        have = sum(len(segment.allocator.pool) for segment in segments)
        count = max(1, min(have, SEGMENT_BYTES // wanted, (self.limit - self.bytes) // wanted))
        if self.bytes + count * wanted > self.limit:
            return None
        try:
            segment = Segment(count, wanted)
        except OSError as error:
            if error.errno != errno.ENOMEM or not self._out:
                raise
            return None  # the machine is as good a limit while something is to come back
        self._segments.setdefault(wanted, []).append(segment)
        self.bytes += segment.bytes
        return segment.take()

    def lent(self, slot: Slot) -> None:
        """The buffer went out with a lease, or its lease was closed: watch for its return."""
        with self._lock:
            self._out.append(slot)

    def collect(self) -> bool:
        """Free every buffer whose lease has ended; whether there was one. Raises: OSError."""
        with self._lock:
            return self._collect(len(self._out))

    def _collect(self, looks: int) -> bool:
        freed = False
        for _ in range(min(looks, len(self._out))):
            slot = self._out.popleft()
            if slot.is_lent():
                self._out.append(slot)
            else:
                slot.segment.allocator.free(slot.buffer)
                freed = True
        return freed

    def trim(self, idle_s: float = IDLE_S) -> None:
        """Let pools go that nobody used for so long. Raises: OSError."""
        with self._lock:
            self._collect(len(self._out))
            self._trim(time.monotonic() - idle_s)

    def _trim(self, before: float) -> None:
        for size, segments in list(self._segments.items()):
            for segment in [s for s in segments if s.used_at <= before and s.is_unused]:
                segments.remove(segment)
                segment.allocator.close()
                self.bytes -= segment.bytes
            if not segments:
                del self._segments[size]

    def await_return(self, timeout_s: float = GIVEN_UP_S) -> None:
        """Wait until some lease ended, or the time is over. Raises: OSError."""
        poller = select.poll()
        with contextlib.ExitStack() as stack:
            try:
                watch = stack.enter_context(contextlib.closing(keep(_parcel.watch())))
                with self._lock:
                    for segments in self._segments.values():
                        for segment in segments:
                            _parcel.watch_memory(watch.fileno(), segment.memory)
            except OSError:
                timeout_s = LOOK_MS / 1000  # the user's inotify instances or watches are used up
            else:
                poller.register(watch.fileno(), select.POLLIN)
            if not self.collect():  # what ended before the watch began
                poller.poll(timeout_s * 1000)

    @property
    def out(self) -> int:
        """Buffers that were lent when last looked at."""
        return len(self._out)

    def close(self) -> None:
        """Keep nothing; what is lent stays with those who hold it."""
        with self._lock:
            self._out.clear()
            for segments in self._segments.values():
                for segment in segments:
                    segment.allocator.close()
            self._segments.clear()
            self.bytes = 0
