"""Ways to carry bytes from this process to a partner's private memory: ours at any trust, and the kernel's two.

Knows: the source and the sink of each. Must not know: which is compared with which.

What is done to the contents is the same everywhere: the source writes one byte into each page, the sink reads and
compares one byte of each page, where its own memory is. Each source has at most WINDOW_BYTES of buffers in turn (three
at least), so that both sides work on what is in cache, as a socket does that is read into one place.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing.connection
import socket
import time
from collections.abc import Iterator
from typing import Any, Protocol

import bulktransfer as bulk

from .chain import SETUP_S, fresh_address, next_pool
from .machine import quiet
from .partner import Closable, Session
from .shared import WrongSum
from .worker import Worker

PAGE = 4096
WINDOW_BYTES = 2 << 20
_numbers = itertools.count(1)
_FORCE = 32  # SO_SNDBUFFORCE, for those who may go beyond net.core.wmem_max


class Carrier(Protocol):
    """The source of one way."""

    def carry(self, count: int) -> int:
        """The ns that `count` messages take until the sink has looked at the last."""
        ...

    def close(self) -> None: ...


class Pages:
    """What is written into a message and looked for in it: in each page one byte, another one each time."""

    def __init__(self, size: int) -> None:
        pages = (size + PAGE - 1) // PAGE
        self.stamps = [bytes([i]) * pages for i in range(251)]

    def write(self, view: memoryview, number: int) -> None:
        """Into the first byte of every page."""
        view[::PAGE] = self.stamps[number % 251]

    def check(self, view: memoryview, number: int) -> None:
        """Raises WrongSum unless every page is of message `number`."""
        if view[::PAGE].tobytes() != self.stamps[number % 251]:
            raise WrongSum(f"message {number} is not what was sent")


@contextlib.contextmanager
def _closed_on_failure(sink: Closable) -> Iterator[None]:
    """A source that waits hears of a failure here by the end of its connection."""
    try:
        yield
    except BaseException:
        sink.close()
        raise


# --- ours ---


class Ours:
    """By value, exposed, or with memory shared, as the trust says: buffers there by move, back by pass."""

    def __init__(
        self,
        worker: Worker,
        size: int,
        *,
        trust: bulk.Trust,
        wait: str,
        exposed: bool = False,
        stage: int | None = None,
    ) -> None:
        self._worker = worker
        self._name = f"carrier {next(_numbers)}"  # a partner may have several
        self._pages = Pages(size)
        count = max(3, min(16, WINDOW_BYTES // size))
        self._allocator = bulk.Allocator(count=count, size=size, trust=trust)
        self._home = self._allocator.alloc_many(count)
        common: dict[str, Any] = {"name": self._name, "size": size}
        address = worker.call(ours_open, trust=trust.name, wait=wait, stage=stage, **common)
        with worker.running(ours_join, name=self._name):
            self.channel = bulk.bind(address, trust=trust, wait=wait, timeout=SETUP_S)
            means = "by value" if trust is bulk.Trust.NONE and not exposed else None
            self.channel.assign_pool(self._allocator.pool, exposed=exposed, means=means, timeout=SETUP_S)

    def carry(self, count: int) -> int:
        """See Carrier; every buffer is at home again afterwards."""
        home, move, back = self._home, self.channel.move, self.channel.receive_buffer
        away, write = 0, self._pages.write
        with self._worker.running(ours_take, name=self._name, count=count), quiet():
            start_ns = time.perf_counter_ns()
            for number in range(count):
                if home:
                    buffer = home.pop()
                    away += 1
                else:
                    buffer = back().buffer
                with memoryview(buffer) as view:
                    write(view, number)
                move(buffer)
            while away:
                home.append(back().buffer)
                away -= 1
            return time.perf_counter_ns() - start_ns

    def close(self) -> None:
        """Close the channel on both sides, and the pool."""
        self.channel.close()
        self._worker.drop(self._name)
        self._allocator.close()


class OurSink:
    """The other end of Ours."""

    def __init__(self, trust: bulk.Trust, wait: str, size: int, stage: int | None) -> None:
        limits = bulk.Limits(stage_size=stage) if stage else None
        self.channel = bulk.create(
            fresh_address("shm"), direction=bulk.Direction.RX, trust=trust, wait=wait, limits=limits
        )
        self.pages = Pages(size)

    def close(self) -> None:
        self.channel.close()


def ours_open(session: Session, *, name: str, trust: str, wait: str, size: int, stage: int | None) -> str:
    """Create the channel that receives; its address."""
    sink = OurSink(bulk.Trust[trust], wait, size, stage)
    session.keep(name, sink)
    return sink.channel.address


def ours_join(session: Session, *, name: str) -> None:
    """Be bound, and accept the pool."""
    sink = session.get(OurSink, name)
    sink.channel.wait_bound(SETUP_S)
    next_pool(sink.channel)


def ours_take(session: Session, *, name: str, count: int) -> None:
    """Receive, look at every page, pass back."""
    sink = session.get(OurSink, name)
    receive, pass_, check = sink.channel.receive_buffer, sink.channel.pass_, sink.pages.check
    with _closed_on_failure(sink):
        for number in range(count):
            buffer = receive().buffer
            with memoryview(buffer) as view:
                check(view, number)
            pass_(buffer)


# --- a UNIX socket ---


class UnixSocket:
    """sendall from one buffer, recv_into one other, over a connected pair of stream sockets.

    buffer: bytes of the kernel's send buffer, 0: its default. step: bytes that one call sends or takes, 0: all.
    """

    def __init__(self, worker: Worker, size: int, *, buffer: int = 0, step: int = 0) -> None:
        self._worker = worker
        self._name = f"carrier {next(_numbers)}"  # a partner may have several
        self._pages = Pages(size)
        self._data = bytearray(size)
        self._step = step or size
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            for end in (self._socket, theirs):
                if buffer:
                    _set_send_buffer(end, buffer)
            worker.call(unix_open, fds=[theirs.fileno()], name=self._name, size=size, step=self._step)

    def carry(self, count: int) -> int:
        """See Carrier."""
        view, write, send, step = memoryview(self._data), self._pages.write, self._socket.sendall, self._step
        starts = range(0, len(view), step)
        with self._worker.running(unix_take, name=self._name, count=count), quiet():
            start_ns = time.perf_counter_ns()
            for number in range(count):
                write(view, number)
                if len(starts) == 1:
                    send(view)
                else:
                    for start in starts:
                        send(view[start : start + step])
            if not self._socket.recv(1):
                raise ConnectionResetError("the sink of the socket is gone")
            return time.perf_counter_ns() - start_ns

    def close(self) -> None:
        """Close both ends."""
        self._socket.close()
        self._worker.drop(self._name)


def _set_send_buffer(end: socket.socket, size: int) -> None:
    try:
        end.setsockopt(socket.SOL_SOCKET, _FORCE, size // 2)  # the kernel doubles it
    except PermissionError:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size // 2)


class UnixSink:
    """The other end of UnixSocket."""

    def __init__(self, fd: int, size: int, step: int) -> None:
        self.socket = socket.socket(fileno=fd)
        self.data = memoryview(bytearray(size))
        self.parts = [self.data[start : start + step] for start in range(0, size, step)]
        self.pages = Pages(size)

    def close(self) -> None:
        self.socket.close()


def unix_open(session: Session, *, name: str, size: int, step: int) -> None:
    """Take over the socket that came with the command."""
    (fd,) = session.descriptors
    session.keep(name, UnixSink(fd, size, step))


def unix_take(session: Session, *, name: str, count: int) -> None:
    """Read each message whole into the same memory, and look at every page."""
    sink = session.get(UnixSink, name)
    receive, parts, data, check = sink.socket.recv_into, sink.parts, sink.data, sink.pages.check
    whole = socket.MSG_WAITALL
    with _closed_on_failure(sink):
        for number in range(count):
            for part in parts:
                if receive(part, 0, whole) != len(part):  # no signal interrupts it here
                    raise ConnectionResetError("the source of the socket is gone")
            check(data, number)
        sink.socket.send(b"!")


# --- multiprocessing.Pipe ---


class MultiprocessingPipe:
    """send_bytes from one buffer, recv_bytes_into one other."""

    def __init__(self, worker: Worker, size: int) -> None:
        self._worker = worker
        self._name = f"carrier {next(_numbers)}"  # a partner may have several
        self._pages = Pages(size)
        self._data = bytearray(size)
        self._pipe, theirs = multiprocessing.connection.Pipe()
        with theirs:
            worker.call(pipe_open, fds=[theirs.fileno()], name=self._name, size=size)

    def carry(self, count: int) -> int:
        """See Carrier."""
        view, write, send = memoryview(self._data), self._pages.write, self._pipe.send_bytes
        with self._worker.running(pipe_take, name=self._name, count=count), quiet():
            start_ns = time.perf_counter_ns()
            for number in range(count):
                write(view, number)
                send(view)
            self._pipe.recv_bytes()
            return time.perf_counter_ns() - start_ns

    def close(self) -> None:
        """Close both ends."""
        self._pipe.close()
        self._worker.drop(self._name)


class PipeSink:
    """The other end of MultiprocessingPipe."""

    def __init__(self, fd: int, size: int) -> None:
        self.pipe: Any = multiprocessing.connection.Connection(fd)
        self.data = bytearray(size)
        self.pages = Pages(size)

    def close(self) -> None:
        self.pipe.close()


def pipe_open(session: Session, *, name: str, size: int) -> None:
    """Take over the pipe that came with the command."""
    (fd,) = session.descriptors
    session.keep(name, PipeSink(fd, size))


def pipe_take(session: Session, *, name: str, count: int) -> None:
    """Read each message into the same memory, and look at every page."""
    sink = session.get(PipeSink, name)
    receive, data, view, check = sink.pipe.recv_bytes_into, sink.data, memoryview(sink.data), sink.pages.check
    with _closed_on_failure(sink):
        for number in range(count):
            receive(data)
            check(view, number)
        sink.pipe.send_bytes(b"!")
