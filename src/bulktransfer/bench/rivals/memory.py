"""Libraries that share memory: iceoryx2, faster-fifo.

Knows: their calls. Must not know: how they are timed.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import numpy as np

from ..iceoryx import Service
from .rival import WINDOW


class Iceoryx2:
    """iceoryx2's Python binding."""

    mode = "spinning"
    note = "publish-subscribe of bytes, loan and send, 32 samples, retry until delivered"

    @staticmethod
    def shared(_context: Any, _size: int, tag: str) -> Any:
        return tag

    def __init__(self, *, sink: bool, size: int, shared: Any, share_core: bool) -> None:
        self._service = Service(shared, size, publishes=not sink)
        self._port = self._service.port
        self._size = size
        self._share_core = share_core

    def produce(self, number: int) -> None:
        sample = self._port.loan_slice_uninit(self._size)
        np.frombuffer(sample.payload().as_memory_view(), np.uint64)[:] = number
        sample.assume_init().send()

    def consume(self) -> int:
        while (sample := self._port.receive()) is None:
            if self._share_core:
                os.sched_yield()
        total = int(np.frombuffer(sample.payload().as_memory_view(), np.uint64).sum())
        sample.delete()
        return total

    def flush(self) -> None: ...

    def close(self) -> None:
        self._service.close()


def _same(data: Any) -> Any:
    return data


class FasterFifo:
    """faster-fifo's queue."""

    mode = "blocking"
    note = "bytes without pickling, a ring in shared memory: copied in and out"

    @staticmethod
    def shared(_context: Any, size: int, _tag: str) -> Any:
        faster_fifo: Any = importlib.import_module("faster_fifo")

        return faster_fifo.Queue(max_size_bytes=WINDOW * (size + 64), loads=memoryview, dumps=_same)

    def __init__(self, *, sink: bool, size: int, shared: Any, share_core: bool) -> None:
        self._queue = shared
        self._array = np.empty(size // 8, np.uint64)
        if sink:
            self._queue.reallocate_msg_buffer(WINDOW * (size + 64))

    def produce(self, number: int) -> None:
        self._array[:] = number
        self._queue.put(self._array.tobytes(), timeout=30.0)

    def consume(self) -> int:
        return int(np.frombuffer(self._queue.get(timeout=30.0), np.uint64).sum())

    def flush(self) -> None: ...

    def close(self) -> None:
        self._queue.close()
