"""What the standard library has: Pipe, Queue, and what people build of shared_memory.

Knows: multiprocessing. Must not know: how they are timed.
"""

from __future__ import annotations

import contextlib
import os
import struct
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np

from .rival import WINDOW

_SLOT = struct.Struct("I")


class Pipe:
    """multiprocessing.Pipe."""

    mode = "blocking"
    note = "send_bytes of a view, recv_bytes_into fixed memory: the kernel copies twice"

    @staticmethod
    def shared(context: Any, _size: int, _tag: str) -> Any:
        return context.Pipe()

    def __init__(self, *, sink: bool, size: int, shared: Any, share_core: bool) -> None:
        self._end = shared[1 if sink else 0]
        shared[0 if sink else 1].close()
        self._array = np.empty(size // 8, np.uint64)
        self._bytes = self._array.view(np.uint8)

    def produce(self, number: int) -> None:
        self._array[:] = number
        self._end.send_bytes(self._bytes)

    def consume(self) -> int:
        self._end.recv_bytes_into(self._bytes)
        return int(self._array.sum())

    def flush(self) -> None: ...

    def close(self) -> None:
        self._end.close()


class Queue:
    """multiprocessing.Queue."""

    mode = "blocking"
    note = "a fresh array each time, pickled by the feeder thread"

    @staticmethod
    def shared(context: Any, _size: int, _tag: str) -> Any:
        return context.Queue(WINDOW)

    def __init__(self, *, sink: bool, size: int, shared: Any, share_core: bool) -> None:
        self._queue = shared
        self._words = size // 8

    def produce(self, number: int) -> None:
        self._queue.put(np.full(self._words, number, np.uint64))

    def consume(self) -> int:
        return int(self._queue.get().sum())

    def flush(self) -> None: ...

    def close(self) -> None:
        self._queue.cancel_join_thread()
        self._queue.close()


class _Slots:
    """WINDOW slots in one SharedMemory, which the source makes and unlinks."""

    def __init__(self, name: str, size: int, extra: int, *, sink: bool) -> None:
        self.memory = SharedMemory(name=name, create=False)
        self.sink = sink
        memory: Any = self.memory.buf
        self.arrays = [np.frombuffer(memory, np.uint64, size // 8, i * size) for i in range(WINDOW)]
        self.extra = memory[WINDOW * size : WINDOW * size + extra].cast("Q") if extra else None

    @staticmethod
    def make(size: int, extra: int, tag: str) -> str:
        memory = SharedMemory(name=tag, create=True, size=WINDOW * size + extra)
        memory.close()
        return memory.name

    def close(self) -> None:
        self.arrays = []
        self.extra = None
        with contextlib.suppress(BufferError):  # what a loop variable still refers to is unmapped with the process
            self.memory.close()
        if not self.sink:
            self.memory.unlink()


class SharedMemoryPipe:
    """Slots in shared memory, their numbers through a pipe, and back when they are free."""

    mode = "blocking"
    note = "32 slots; numbers go and come back through a pipe, nobody guards them"

    @staticmethod
    def shared(context: Any, size: int, tag: str) -> Any:
        return context.Pipe(), _Slots.make(size, 0, tag)

    def __init__(self, *, sink: bool, size: int, shared: Any, share_core: bool) -> None:
        ends, name = shared
        self._end = ends[1 if sink else 0]
        ends[0 if sink else 1].close()
        self._slots = _Slots(name, size, 0, sink=sink)
        self._free = list(range(WINDOW))

    def produce(self, number: int) -> None:
        while not self._free or self._end.poll():
            self._free.append(_SLOT.unpack(self._end.recv_bytes())[0])
        slot = self._free.pop()
        self._slots.arrays[slot][:] = number
        self._end.send_bytes(_SLOT.pack(slot))

    def consume(self) -> int:
        number = self._end.recv_bytes()
        total = int(self._slots.arrays[_SLOT.unpack(number)[0]].sum())
        self._end.send_bytes(number)
        return total

    def flush(self) -> None:
        while len(self._free) < WINDOW:
            self._free.append(_SLOT.unpack(self._end.recv_bytes())[0])

    def close(self) -> None:
        self._end.close()
        self._slots.close()


class PythonRing:
    """A ring that is written by hand in Python over shared memory, and spins."""

    mode = "spinning"
    note = "slot i % 32 and two counters in shared memory, in pure Python; right on x86 only"

    @staticmethod
    def shared(_context: Any, size: int, tag: str) -> Any:
        return _Slots.make(size, 4096, tag)

    def __init__(self, *, sink: bool, size: int, shared: Any, share_core: bool) -> None:
        self._slots = _Slots(shared, size, 4096, sink=sink)
        self._share_core = share_core
        self._at = 0

    def produce(self, number: int) -> None:
        counters = self._slots.extra
        assert counters is not None
        while self._at - counters[64] >= WINDOW:
            if self._share_core:
                os.sched_yield()
        self._slots.arrays[self._at % WINDOW][:] = number
        self._at += 1
        counters[0] = self._at

    def consume(self) -> int:
        counters = self._slots.extra
        assert counters is not None
        while counters[0] <= self._at:
            if self._share_core:
                os.sched_yield()
        total = int(self._slots.arrays[self._at % WINDOW].sum())
        self._at += 1
        counters[64] = self._at
        return total

    def flush(self) -> None: ...

    def close(self) -> None:
        self._slots.close()
