"""Plain shared memory between the measuring side and a partner, as one would write it without the library.

Knows: a memfd with the floor's words and 32 slots, and the two NumPy loops over a hand-written ring in it.
Must not know: the library's channels.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import time
from typing import Any

from . import _floor
from .partner import Session
from .worker import Worker

SLOTS = _floor.WINDOW
PATIENCE_S = 30.0
_HEAD_BYTES = 4096
# The ring's two counters, in 8-byte words: a line of each side's own, behind the words of the C floor.
_MADE, _USED = 256, 272
_SPINS_PER_LOOK = 4096


class WrongSum(RuntimeError):
    """What arrived is not what was sent."""


class SharedMemory:
    """One mapping of the words and, if `slot_size` is not 0, of the slots. Both sides make one over the same memfd."""

    def __init__(self, fd: int, slot_size: int) -> None:
        flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
        self.slot_size = slot_size
        self.words = mmap.mmap(fd, _HEAD_BYTES, flags)
        self.slots = mmap.mmap(fd, SLOTS * slot_size, flags, offset=_HEAD_BYTES) if slot_size else None

    def close(self) -> None:
        """Unmap; what a traceback still refers to is unmapped later."""
        for mapping in (self.words, self.slots):
            if mapping is not None:
                with contextlib.suppress(BufferError):
                    mapping.close()

    def counters(self) -> memoryview:
        """The ring's counters, `_MADE` and `_USED`. A store is one 8-byte store, which x86 keeps in order."""
        return memoryview(self.words).cast("Q")

    def arrays(self) -> list[Any]:
        """The slots as NumPy arrays of 64-bit words."""
        import numpy as np

        assert self.slots is not None
        words = self.slot_size // 8
        return [np.frombuffer(self.slots, np.uint64, words, i * self.slot_size) for i in range(SLOTS)]


def make(slot_size: int) -> tuple[int, SharedMemory]:
    """Fresh shared memory, and the descriptor to hand to the partner."""
    fd = os.memfd_create("bulktransfer-bench", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, _HEAD_BYTES + SLOTS * slot_size)
        return fd, SharedMemory(fd, slot_size)
    except BaseException:
        os.close(fd)
        raise


class PlainRing:
    """The source's side: fills every slot with NumPy and spins on the partner's counter."""

    def __init__(self, worker: Worker, *, slot_size: int, share_core: bool) -> None:
        self._worker = worker
        self._share_core = share_core
        fd, self.memory = make(slot_size)
        try:
            worker.call(attach, fds=[fd], name="plain", slot_size=slot_size)
        finally:
            os.close(fd)

    def fill(self, count: int) -> int:
        """Fill and hand over `count` buffers; the ns until the partner has summed the last. Checks the sum."""
        counters, slots = self.memory.counters(), self.memory.arrays()
        counters[_MADE] = counters[_USED] = 0
        with self._worker.running(take, name="plain", count=count, share_core=self._share_core) as reply:
            start_ns = time.perf_counter_ns()
            for i in range(count):
                if i - counters[_USED] >= SLOTS:
                    _until(counters, _USED, i - SLOTS + 1, self._share_core)
                slots[i % SLOTS][:] = i
                counters[_MADE] = i + 1
            _until(counters, _USED, count, self._share_core)
            elapsed_ns = time.perf_counter_ns() - start_ns
        check_sum(reply.value, count, self.memory.slot_size)
        return elapsed_ns

    def close(self) -> None:
        """Let go of the memory on both sides."""
        self.memory.close()
        self._worker.drop("plain")


def check_sum(total: int, count: int, size: int) -> None:
    """Raises WrongSum unless `total` is that of `count` buffers of which the i-th is full of words i."""
    wanted = sum(range(count)) * (size // 8)
    if total != wanted:
        raise WrongSum(f"the sum over {count} buffers of {size} bytes is {total}, not {wanted}")


def _until(counters: memoryview, word: int, value: int, share_core: bool) -> None:
    spins = 0
    until_s = 0.0
    while counters[word] < value:
        if share_core:
            os.sched_yield()
        spins += 1
        if spins % _SPINS_PER_LOOK == 0:
            now_s = time.monotonic()
            until_s = until_s or now_s + PATIENCE_S
            if now_s > until_s:
                raise TimeoutError("the partner of the plain ring died or stalled")


# --- what the partner does ---


def attach(session: Session, *, name: str, slot_size: int) -> None:
    """Map the memory that came with the command."""
    (fd,) = session.descriptors
    try:
        session.keep(name, SharedMemory(fd, slot_size))
    finally:
        os.close(fd)


def take(session: Session, *, name: str, count: int, share_core: bool) -> int:
    """Sum `count` buffers with NumPy."""
    memory = session.get(SharedMemory, name)
    counters, slots = memory.counters(), memory.arrays()
    total = 0
    for i in range(count):
        if counters[_MADE] <= i:
            _until(counters, _MADE, i + 1, share_core)
        total += int(slots[i % SLOTS].sum())
        counters[_USED] = i + 1
    return total
