"""Ways to bring the contents of a buffer to several readers, each of which reads all of it.

Knows: the writer's and the readers' side of each way, ours and those that one would write without the library.
Must not know: how often, or what is compared with what.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, Protocol

import bulktransfer as bulk

from .chain import SETUP_S, fresh_address, next_pool
from .partner import Session
from .shared import SharedMemory, check_sum
from .worker import Worker

AT_ONCE = 2  # buffers on their way
_READER = 16  # 8-byte words between two readers' counters
_COUNT = 256  # first of them, behind the words of the C floor


class Writer(Protocol):
    """The writing side of a way."""

    def write(self, count: int) -> int:
        """The ns until every reader has summed `count` buffers, of which the i-th is full of words i."""
        ...

    def close(self) -> None: ...


class _Way:
    """What the ways have in common: the readers sum while the writer writes."""

    name: str
    take: Callable[..., int]

    def __init__(self, workers: Sequence[Worker], size: int) -> None:
        self.workers = workers
        self.size = size

    def write(self, count: int) -> int:
        """See Writer."""
        with contextlib.ExitStack() as stack:
            replies = [stack.enter_context(w.running(self.take, name=self.name, count=count)) for w in self.workers]
            start_ns = time.perf_counter_ns()
            self.send(count)
            stack.close()
            elapsed_ns = time.perf_counter_ns() - start_ns
        for reply in replies:
            check_sum(reply.value, count, self.size)
        return elapsed_ns

    def send(self, count: int) -> None:
        """Fill and send so many."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go on both sides."""
        for worker in self.workers:
            worker.drop(self.name)


class Channels(_Way):
    """Copies of a buffer over a channel to each reader."""

    def __init__(self, workers: Sequence[Worker], size: int, *, means: str | None, backend: str, wait: str) -> None:
        super().__init__(workers, size)
        self.name = f"channel {means}"
        self.take = take_copies
        self.allocator = bulk.Allocator(count=AT_ONCE, size=size, trust=bulk.Trust.NONE, reclaim=True)
        self.channels = []
        for worker in workers:
            address = worker.call(open_reader, name=self.name, backend=backend, wait=wait)
            with worker.running(join_reader, name=self.name):
                channel = bulk.bind(address, trust=bulk.Trust.NONE, wait=wait, timeout=SETUP_S)
                channel.assign_pool(self.allocator.pool, means=means, timeout=SETUP_S)
            self.channels.append(channel)

    def send(self, count: int) -> None:
        """See _Way."""
        import numpy as np

        for i in range(count):
            buffer = self.allocator.alloc(timeout=None)
            np.frombuffer(buffer, np.uint64)[:] = i
            for channel in self.channels:
                channel.copy(buffer)
        for _ in range(AT_ONCE):  # until all are home
            self.allocator.alloc(timeout=None)
        self.allocator.free_many(list(self.allocator.pool))

    def contents(self) -> dict[str, int]:
        """How contents travelled."""
        found: dict[str, int] = self.channels[0].statistics()["contents"]
        return found

    def close(self) -> None:
        """Close the channels on both sides, and the pool."""
        for channel in self.channels:
            channel.close()
        super().close()
        self.allocator.close()


class Streams(_Way):
    """All of it through a pipe or a socket to each reader."""

    def __init__(self, workers: Sequence[Worker], size: int, *, kind: str) -> None:
        super().__init__(workers, size)
        self.name = kind
        self.take = take_stream
        self.ends: list[Any] = []
        for worker in workers:
            if kind == "pipe":
                read_fd, write_fd = os.pipe()
                self.ends.append(Connection(write_fd, readable=False))
            else:
                here, there = socket.socketpair()
                read_fd = there.detach()
                self.ends.append(here)
            try:
                worker.call(attach_stream, fds=[read_fd], name=self.name, kind=kind, size=size)
            finally:
                os.close(read_fd)

    def send(self, count: int) -> None:
        """See _Way."""
        import numpy as np

        array = np.empty(self.size // 8, np.uint64)
        for i in range(count):
            array[:] = i
            for end in self.ends:
                (end.send_bytes if isinstance(end, Connection) else end.sendall)(array.data.cast("B"))

    def close(self) -> None:
        """Close both ends of all."""
        for end in self.ends:
            end.close()
        super().close()


class PrivateCopies(_Way):
    """Plain shared memory, from which each reader makes a copy of its own before it looks."""

    def __init__(self, workers: Sequence[Worker], size: int) -> None:
        super().__init__(workers, size)
        self.name = "shared"
        self.take = take_private_copies
        fd = os.memfd_create("bulktransfer-bench", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, 4096 + 32 * size)
            self.memory = SharedMemory(fd, size)
            for number, worker in enumerate(workers):
                worker.call(attach_memory, fds=[fd], name=self.name, size=size, number=number)
        finally:
            os.close(fd)

    def write(self, count: int) -> int:
        """See Writer; before the readers look, nothing is there."""
        counters = self.memory.counters()
        for number in range(1 + len(self.workers)):
            counters[_COUNT + _READER * number] = 0
        return super().write(count)

    def send(self, count: int) -> None:
        """See _Way."""
        counters, slots = self.memory.counters(), self.memory.arrays()
        readers = [_COUNT + _READER * (1 + number) for number in range(len(self.workers))]
        for i in range(count):
            while any(i - counters[word] >= AT_ONCE for word in readers):
                os.sched_yield()
            slots[i % AT_ONCE][:] = i
            counters[_COUNT] = i + 1
        while any(counters[word] < count for word in readers):
            os.sched_yield()

    def close(self) -> None:
        """Let go of the memory on both sides."""
        self.memory.close()
        super().close()


# --- what the readers do ---


def open_reader(session: Session, *, name: str, backend: str, wait: str) -> str:
    """Create the channel that receives; its address."""
    sink = bulk.create(fresh_address(backend), direction=bulk.Direction.RX, trust=bulk.Trust.NONE, wait=wait)
    session.keep(name, sink)
    return sink.address


def join_reader(session: Session, *, name: str) -> None:
    """Be bound, and accept the pool."""
    sink = session.get(bulk.Channel, name)
    sink.wait_bound(SETUP_S)
    next_pool(sink)


def take_copies(session: Session, *, name: str, count: int) -> int:
    """Sum every copy, and release it."""
    import numpy as np

    sink = session.get(bulk.Channel, name)
    total = 0
    for _ in range(count):
        buffer = sink.receive_buffer().buffer
        total += int(np.frombuffer(buffer, np.uint64).sum())
        sink.release(buffer)
    return total


class _Stream:
    """A reader's end of a pipe or a socket."""

    def __init__(self, fd: int, kind: str, size: int) -> None:
        self.end: Any = Connection(fd, writable=False) if kind == "pipe" else socket.socket(fileno=fd)
        self.room = bytearray(size)

    def next(self) -> bytes | bytearray:
        """All of the next."""
        if isinstance(self.end, Connection):
            return self.end.recv_bytes()
        view = memoryview(self.room)
        while view.nbytes:
            got = self.end.recv_into(view)
            if not got:
                raise EOFError("the writer is gone")
            view = view[got:]
        return self.room

    def close(self) -> None:
        self.end.close()


def attach_stream(session: Session, *, name: str, kind: str, size: int) -> None:
    """Keep the end that came with the command."""
    session.keep(name, _Stream(session.descriptors.pop(), kind, size))


def take_stream(session: Session, *, name: str, count: int) -> int:
    """Read and sum."""
    import numpy as np

    stream = session.get(_Stream, name)
    return sum(int(np.frombuffer(stream.next(), np.uint64).sum()) for _ in range(count))


class _Reader:
    """A reader's mapping of plain shared memory, and room for its copies."""

    def __init__(self, fd: int, size: int, number: int) -> None:
        self.memory = SharedMemory(fd, size)
        self.word = _COUNT + _READER * (1 + number)

    def close(self) -> None:
        self.memory.close()


def attach_memory(session: Session, *, name: str, size: int, number: int) -> None:
    """Map the memory that came with the command."""
    fd = session.descriptors.pop()
    try:
        session.keep(name, _Reader(fd, size, number))
    finally:
        os.close(fd)


def take_private_copies(session: Session, *, name: str, count: int) -> int:
    """Copy each out, then sum the copy."""
    import numpy as np

    reader = session.get(_Reader, name)
    counters, slots = reader.memory.counters(), reader.memory.arrays()
    own = np.empty_like(slots[0])
    total = 0
    for i in range(count):
        while counters[_COUNT] <= i:
            os.sched_yield()
        own[:] = slots[i % AT_ONCE]
        counters[reader.word] = i + 1
        total += int(own.sum())
    return total
