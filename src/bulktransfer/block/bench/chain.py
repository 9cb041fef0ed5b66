"""Figure 7.1 measured: a user over shared memory, the client, a server over TCP, beside the network backend alone.

Knows: which processes there are, what goes through them, in which order it is measured. Must not know: how figures are
printed.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ..service.device import BlockDevice
from .plain import SIZE, WINDOW, Plain

STORE_MIB = 16  # the report's store is smaller; this one fits into a cache as well
REACH = 0.8


class Way(NamedTuple):
    """One way that 1 MiB pieces go, in GB/s: the median of the rounds, and of its part of the plain backend's."""

    name: str
    gb_per_s: float
    part: float
    least: float
    most: float


@contextlib.contextmanager
def process(*arguments: str) -> Iterator[str]:
    """A Python module that serves; its address. Raises: OSError (it did not start)."""
    command = [sys.executable, "-u", "-m", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as child:
        try:
            assert child.stdout is not None
            line = child.stdout.readline()
            if not line.startswith("serving"):
                raise OSError(f"{' '.join(arguments)} did not start")
            yield line.split()[-1]
        finally:
            child.terminate()
            child.communicate()


class Loads:
    """What is measured, each call of `count` pieces of 1 MiB; seconds."""

    def __init__(self, plain: Plain, direct: BlockDevice, chain: BlockDevice) -> None:
        self._data = os.urandom(STORE_MIB * SIZE)
        self._into = bytearray(STORE_MIB * SIZE)
        self.writes: dict[str, Callable[[int], float]] = {
            "plain network backend": plain.write_s,
            "device over tcp": lambda count: self._write(direct, count),
            "device, client, tcp": lambda count: self._write(chain, count),
            "device, client, tcp, in place": lambda count: self._compose(chain, count),
        }
        self.reads: dict[str, Callable[[int], float]] = {
            "plain network backend": plain.read_s,
            "device over tcp": lambda count: self._read(direct, count),
            "device, client, tcp": lambda count: self._read(chain, count),
            "device, client, tcp, in place": lambda count: self._stream(chain, count),
        }

    def _turns(self, act: Callable[[], object], count: int) -> float:
        begin = time.perf_counter()
        for _ in range(count // STORE_MIB):
            act()
        return time.perf_counter() - begin

    def _write(self, device: BlockDevice, count: int) -> float:
        return self._turns(lambda: device.write(0, self._data), count)

    def _read(self, device: BlockDevice, count: int) -> float:
        return self._turns(lambda: device.read_into(0, self._into), count)

    def _compose(self, device: BlockDevice, count: int) -> float:
        return self._turns(lambda: [len(view) for view in device.compose(0, device.block_count)], count)

    def _stream(self, device: BlockDevice, count: int) -> float:
        return self._turns(lambda: [len(contents) for contents in device.stream()], count)


def measure(rounds: int, count: int) -> dict[str, list[Way]]:
    """Sequential writes and reads of 1 MiB, every way in every round, in changing order. Raises: OSError, BulkError."""
    with contextlib.ExitStack() as stack:
        store = f"memory:{STORE_MIB}M"
        far = stack.enter_context(process("bulktransfer.block.bench.plain", "tcp://127.0.0.1:0"))
        server = stack.enter_context(process("bulktransfer", "block", "serve", "tcp://127.0.0.1:0", "--store", store))
        local = stack.enter_context(process("bulktransfer", "block", "client", "shm:", "--connect", server))
        plain = stack.enter_context(contextlib.closing(Plain(far)))
        direct = stack.enter_context(BlockDevice(server, buffers=WINDOW, buffer_size=SIZE))
        chain = stack.enter_context(BlockDevice(local, buffers=WINDOW, buffer_size=SIZE))
        loads = Loads(plain, direct, chain)
        return {
            "write": _compare(loads.writes, rounds, count),
            "read": _compare(loads.reads, rounds, count),
        }


def _compare(ways: dict[str, Callable[[int], float]], rounds: int, count: int) -> list[Way]:
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for act in ways.values():
        act(2 * STORE_MIB)  # pages and caches
    for turn in range(rounds):
        for name in sorted(ways, reverse=turn % 2 == 1):
            speeds[name].append(count * SIZE / 1e9 / ways[name](count))
    base = speeds[next(iter(ways))]
    found = []
    for name in ways:
        parts = sorted(mine / other for mine, other in zip(speeds[name], base, strict=True))
        found.append(Way(name, statistics.median(speeds[name]), statistics.median(parts), parts[0], parts[-1]))
    return found
