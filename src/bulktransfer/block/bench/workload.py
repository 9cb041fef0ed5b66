"""The report's work loads (I-7.5 and its network benchmark): what is written, read and checked, and how long it took.

Knows: the loads. Must not know: who serves, or how figures are printed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

from ..service.device import BlockDevice

BLOCKS = 1024  # the report's store
BUFFERS = 511  # of each of its two pools
RUN = 250  # transfers a run
BATCHES = 4  # of a run's reads
USER_BLOCKS, USER_RUNS = 10, 10


class WrongContents(Exception):
    """A block that was read is not as it was written."""


class Figures(NamedTuple):
    """Times of a kind, in microseconds, and what they say of the speed."""

    name: str
    samples: int
    mean_us: float
    median_us: float
    min_us: float
    p99_us: float
    max_us: float
    stddev_us: float
    blocks_per_s: float


def figures(name: str, times_s: list[float], blocks_each: int) -> Figures:
    """The report's columns, and blocks a second by the median."""
    ordered = sorted(time_s * 1e6 for time_s in times_s)
    median = statistics.median(ordered)
    return Figures(
        name,
        len(ordered),
        statistics.fmean(ordered),
        median,
        ordered[0],
        ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)],
        ordered[-1],
        statistics.pstdev(ordered),
        blocks_each * 1e6 / median if median else 0.0,
    )


def write_runs(device: BlockDevice, runs: int) -> list[Figures]:
    """Runs of 250 moves, block i % 1024 filled with (i + 1) % 256: until they are issued, until all are back."""
    issued, whole = [], []
    number = 0
    for _ in range(runs):
        begin = time.perf_counter()
        requests = [
            (i % BLOCKS, bytes([(i % BLOCKS + 1) % 256]) * device.block_size) for i in range(number, number + RUN)
        ]
        finish = device.begin_write_many(requests)
        issued.append(time.perf_counter() - begin)
        finish()
        whole.append(time.perf_counter() - begin)
        number += RUN
    return [figures("write: issue 250", issued, RUN), figures("write: 250 back", whole, RUN)]


def read_runs(device: BlockDevice, runs: int) -> list[Figures]:
    """Runs of four batches of 250 blocks, each checked (the report's loop stopped after the first: W29)."""
    times = []
    for _ in range(runs):
        begin = time.perf_counter()
        got: list[tuple[int, bytes]] = []
        for batch in range(BATCHES):
            blocks = [i % BLOCKS for i in range(batch * RUN, (batch + 1) * RUN)]
            got += zip(blocks, device.begin_read_many([(block, 1) for block in blocks])(), strict=True)
        times.append(time.perf_counter() - begin)
        for block, contents in got:
            _check(block, contents, (block + 1) % 256)
    return [figures(f"read: {BATCHES} batches of 250", times, BATCHES * RUN)]


def fill(device: BlockDevice) -> None:
    """Every block as the write runs leave it."""
    device.write_many((i, bytes([(i + 1) % 256]) * device.block_size) for i in range(BLOCKS))


def user_runs(device: BlockDevice, runs: int) -> list[Figures]:
    """I-7.5: write a block, await the status, read it, check it."""
    writes, reads = [], []
    for i in range(runs * USER_RUNS):
        value = (i % USER_BLOCKS + 5) % 255
        begin = time.perf_counter()
        device.write(i % USER_BLOCKS, bytes([value]) * device.block_size)
        middle = time.perf_counter()
        contents = device.read(i % USER_BLOCKS)
        reads.append(time.perf_counter() - middle)
        writes.append(middle - begin)
        _check(i % USER_BLOCKS, contents, value)
    return [figures("user: write, status", writes, 1), figures("user: read", reads, 1)]


def sequential(device: BlockDevice, runs: int) -> list[Figures]:
    """The whole of the report's store in pieces of 1 MiB, out and in, through one device."""
    step = (1 << 20) // device.block_size
    data = bytes(1 << 20)
    starts = range(0, BLOCKS - step + 1, step)
    measured: list[tuple[str, Callable[[int], object]]] = [
        ("sequential write 1 MiB", lambda block: device.write(block, data)),
        ("sequential read 1 MiB", lambda block: device.read(block, step)),
    ]
    found = []
    for name, act in measured:
        times = []
        for _ in range(runs):
            for block in starts:
                begin = time.perf_counter()
                act(block)
                times.append(time.perf_counter() - begin)
        found.append(figures(name, times, step))
    return found


def _check(block: int, contents: bytes, value: int) -> None:
    if contents != bytes([value]) * len(contents) or not contents:
        raise WrongContents(f"block {block} is not {value} throughout")
