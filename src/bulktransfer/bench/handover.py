"""One way through a window of 32: a source that moves, a sink that passes back.

Knows: both sides of the hand-over, one by one, in batches, and with NumPy working on every buffer.
Must not know: what it is compared with.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import bulktransfer as bulk

from .chain import SETUP_S, fresh_address, next_pool
from .machine import quiet
from .partner import Session
from .shared import SLOTS, check_sum
from .worker import LIMIT_S, Worker

WINDOW = SLOTS
BATCH = WINDOW // 4  # so that both sides work at the same time


class HandOver:
    """The source: WINDOW buffers of one pool, all at home between two runs."""

    def __init__(
        self,
        worker: Worker,
        *,
        backend: str,
        trust: bulk.Trust,
        wait: str,
        size: int,
        batch: int = BATCH,
        options: tuple[str, str] = ("", ""),
        via: Callable[[str], str] | None = None,
    ) -> None:
        """`options`: behind the address of who creates, and of who binds; `via`: to bind, instead of the sink's."""
        self._worker = worker
        self.size = size
        self._batch = batch
        self._allocator = bulk.Allocator(count=WINDOW, size=size, trust=trust)
        self._home = self._allocator.alloc_many(WINDOW)
        create, bind = options
        address = worker.call(open_sink, name="sink", backend=backend, trust=trust.name, wait=wait, options=create)
        with worker.running(join_sink, name="sink"):
            onward = address if via is None else via(address)
            self.channel = bulk.bind(onward + bind, trust=trust, wait=wait, timeout=SETUP_S)
            self.channel.assign_pool(self._allocator.pool, timeout=SETUP_S)

    def one_by_one(self, count: int) -> int:
        """The ns that `count` buffers take, one call each, until the last is home again."""
        move, back = self.channel.move, self.channel.receive_buffer
        first = self._first(count)
        with self._worker.running(take_one_by_one, name="sink", count=count), quiet():
            start_ns = time.perf_counter_ns()
            for buffer in first:
                move(buffer)
            for _ in range(count - len(first)):
                move(back().buffer)
            self._home += [back().buffer for _ in first]
            return time.perf_counter_ns() - start_ns

    def batches(self, count: int, *, limit_s: int = LIMIT_S) -> int:
        """The ns that `count` buffers take with `move_many`, `receive_many` and `pass_many`."""
        move_many, back_many = self.channel.move_many, self.channel.receive_many
        first, batch = self._first(count), self._batch
        with self._worker.running(take_batches, name="sink", count=count, batch=batch, limit_s=limit_s), quiet():
            start_ns = time.perf_counter_ns()
            move_many(first)
            left = count - len(first)
            while left:
                buffers = buffers_of(back_many(min(left, batch)))
                move_many(buffers)
                left -= len(buffers)
            while len(self._home) < WINDOW:
                self._home += buffers_of(back_many(WINDOW))
            return time.perf_counter_ns() - start_ns

    def fill(self, count: int) -> int:
        """The ns that `count` buffers take when NumPy fills each here and sums each there. Checks the sum."""
        import numpy as np

        array_of = np.frombuffer
        move, back = self.channel.move, self.channel.receive_buffer
        first = self._first(count)
        with self._worker.running(take_summing, name="sink", count=count) as reply, quiet():
            start_ns = time.perf_counter_ns()
            for i in range(count):
                buffer = first[i] if i < len(first) else back().buffer
                array_of(buffer, np.uint64)[:] = i
                move(buffer)
            self._home += [back().buffer for _ in first]
            elapsed_ns = time.perf_counter_ns() - start_ns
        check_sum(reply.value, count, self.size)
        return elapsed_ns

    def _first(self, count: int) -> list[bulk.Buffer]:
        first, self._home = self._home[:count], self._home[count:]
        return first

    def close(self) -> None:
        """Close the channel on both sides, and the pool."""
        self.channel.close()
        self._worker.drop("sink")
        self._allocator.close()


def hand_over(args: argparse.Namespace, worker: Worker, *, size: int, wait: str) -> HandOver:
    """A hand-over as the options ask."""
    return HandOver(worker, backend=args.backend, trust=args.trust, wait=wait, size=size)


def buffers_of(events: list[bulk.Event]) -> list[bulk.Buffer]:
    """The buffers of events that bring one."""
    return [buffer for event in events if (buffer := event.buffer) is not None]


# --- what the partner does ---


def open_sink(session: Session, *, name: str, backend: str, trust: str, wait: str, options: str) -> str:
    """Create the channel that receives; its address."""
    address = fresh_address(backend) + options
    sink = bulk.create(address, direction=bulk.Direction.RX, trust=bulk.Trust[trust], wait=wait)
    session.keep(name, sink)
    return sink.address


def join_sink(session: Session, *, name: str) -> None:
    """Be bound, and accept the pool."""
    sink = session.get(bulk.Channel, name)
    sink.wait_bound(SETUP_S)
    next_pool(sink)


def take_one_by_one(session: Session, *, name: str, count: int) -> None:
    """Receive and pass back, one by one."""
    sink = session.get(bulk.Channel, name)
    receive, pass_ = sink.receive_buffer, sink.pass_
    for _ in range(count):
        pass_(receive().buffer)


def take_batches(session: Session, *, name: str, count: int, batch: int) -> None:
    """Receive and pass back what is there, many at once."""
    sink = session.get(bulk.Channel, name)
    receive_many, pass_many = sink.receive_many, sink.pass_many
    while count:
        buffers = buffers_of(receive_many(min(count, batch)))
        pass_many(buffers)
        count -= len(buffers)


def take_summing(session: Session, *, name: str, count: int) -> int:
    """Sum every buffer with NumPy and pass it back; the sum of all."""
    import numpy as np

    array_of = np.frombuffer
    sink = session.get(bulk.Channel, name)
    receive, pass_ = sink.receive_buffer, sink.pass_
    total = 0
    for _ in range(count):
        buffer = receive().buffer
        total += int(array_of(buffer, np.uint64).sum())
        pass_(buffer)
    return total
