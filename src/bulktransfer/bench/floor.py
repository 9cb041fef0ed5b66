"""The machine's floor between two processes: what the C loops of `_floor` see on these cores.

Knows: the measuring side and the partner's side of every floor. Must not know: the library's channels.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
from array import array
from typing import Any

from . import _floor, machine, options, shared, table
from .partner import Session
from .report import Report, plain
from .shared import SharedMemory, WrongSum
from .stats import summarize
from .worker import Worker

PATIENCE_S = 20.0
LINE, SOCKET, EVENT = "cache-line echo", "one-byte socket echo", "eventfd echo"
RING, COPY = "hand-over ring", "memcpy"
_ROUNDS = {LINE: 20_000, SOCKET: 2_000, EVENT: 2_000}
_RING_COUNT = 500_000
_COPY_BYTES_AT_MOST = 64 << 20  # beyond, it is the memory's speed, and the machine might not have twice the size


class _End:
    """One side's ends: shared words, a socket, and an eventfd in each direction."""

    def __init__(self, words: SharedMemory, sock: socket.socket, event_out: int, event_in: int) -> None:
        self.words = words
        self.sock = sock
        self.event_out = event_out
        self.event_in = event_in

    def close(self) -> None:
        self.words.close()
        self.sock.close()
        os.close(self.event_out)
        os.close(self.event_in)


class Floor:
    """The floors between the caller and `worker`; `share_core` says that both run on one."""

    def __init__(self, worker: Worker, *, share_core: bool) -> None:
        self._worker = worker
        self._share_core = share_core
        with contextlib.ExitStack() as undo:
            fd, words = shared.make(0)
            undo.callback(os.close, fd)
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            undo.callback(theirs.close)
            self._end = _End(words, ours, os.eventfd(0, os.EFD_CLOEXEC), os.eventfd(0, os.EFD_CLOEXEC))
            fds = [fd, theirs.fileno(), self._end.event_in, self._end.event_out]
            try:
                worker.call(attach, fds=fds, name="floor")
            except BaseException:
                self._end.close()
                raise

    def echo(self, what: str, rounds: int | None = None) -> array[int]:
        """The ns of each of `rounds` echoes: LINE, SOCKET or EVENT."""
        rounds = rounds or _ROUNDS[what]
        end = self._end
        _floor.reset(end.words.words)
        arguments: dict[str, Any] = {"name": "floor", "what": what, "rounds": rounds, "share_core": self._share_core}
        with self._worker.running(pong, **arguments), machine.quiet():
            if what == LINE:
                return _floor.line_ping(end.words.words, rounds, share_core=self._share_core, patience_s=PATIENCE_S)
            if what == SOCKET:
                return _floor.socket_ping(end.sock.fileno(), rounds, patience_s=PATIENCE_S)
            return _floor.event_ping(end.event_out, end.event_in, rounds, patience_s=PATIENCE_S)

    def ring(self, count: int = _RING_COUNT) -> int:
        """The ns that `count` hand-overs through a ring of 32 take."""
        return self._ring(self._end.words, "floor", count)

    def fill_sum(self, size: int, count: int) -> int:
        """The ns that `count` buffers of `size` bytes take, filled in C here and summed in C there."""
        fd, memory = shared.make(size)
        try:
            self._worker.call(shared.attach, fds=[fd], name="floor slots", slot_size=size)
            self._ring(memory, "floor slots", 2 * shared.SLOTS)  # touch every page on both sides
            return self._ring(memory, "floor slots", count)
        finally:
            os.close(fd)
            memory.close()
            self._worker.drop("floor slots")

    def _ring(self, memory: SharedMemory, name: str, count: int) -> int:
        _floor.reset(memory.words)
        share_core = self._share_core
        with self._worker.running(consume, name=name, count=count, share_core=share_core) as reply:
            elapsed_ns = _floor.ring_produce(
                memory.words, memory.slots, count, share_core=share_core, patience_s=PATIENCE_S
            )
        wanted = sum(range(count)) * (memory.slot_size // 8 or 1) % 2**64
        if reply.value != wanted:
            raise WrongSum(f"the sum over {count} hand-overs in C is {reply.value}, not {wanted}")
        return elapsed_ns

    def figures(self, size: int) -> dict[str, dict[str, float]]:
        """All floors, briefly: echoes in µs, the ring in hand-overs a second, memcpy of `size` bytes in GB/s."""
        found: dict[str, dict[str, float]] = {}
        for what in (LINE, SOCKET, EVENT):
            echoes = summarize(self.echo(what))
            found[what] = {"median_us": echoes.median / 1e3, "p99_us": echoes.p99 / 1e3, "min_us": echoes.minimum / 1e3}
        found[RING] = {"per_s": _RING_COUNT / self.ring() * 1e9}
        size = min(size, _COPY_BYTES_AT_MOST)
        copy_ns = statistics.median(_floor.copy_times(size, 20))
        found[f"{COPY} of {table.size_text(size)}"] = {"GB_per_s": size / copy_ns}
        return found

    def close(self) -> None:
        """Let go of everything on both sides."""
        self._end.close()
        self._worker.drop("floor")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bulk bench floor`."""
    options.add_placement(parser)
    parser.add_argument("--size", type=options.sizes, default=[1 << 20], metavar="SIZE[,SIZE…]", help="default: 1MiB")
    options.add_output(parser)


def run(args: argparse.Namespace) -> Report:
    """Measure every floor, and fill + sum in C for each size."""
    report = Report("floor", plain(args))
    own, its = machine.cores_for(args.pin, 2)
    with machine.pinned(own), Worker(its) as worker:
        floor = Floor(worker, share_core=own == its)
        with contextlib.closing(floor):
            report.floor_before = floor.figures(args.size[0])
            rows: list[tuple[object, ...]] = []
            for size in args.size:
                count = max(64, (1 << 30) // size)
                rates = [size * count / floor.fill_sum(size, count) for _ in range(3)]
                rows.append((report.size(size), statistics.median(rates)))
                report.data.setdefault("fill_sum_GB_per_s", {})[str(size)] = rates
            report.add_table("fill + sum in C, window 32", ["size", "GB/s"], rows)
            report.floor_after = floor.figures(args.size[0])
    report.finish()
    return report


# --- what the partner does ---


def attach(session: Session, *, name: str) -> None:
    """Take the other ends, which came with the command."""
    fd, sock_fd, event_out, event_in = session.descriptors
    try:
        session.keep(name, _End(SharedMemory(fd, 0), socket.socket(fileno=sock_fd), event_out, event_in))
    finally:
        os.close(fd)


def pong(session: Session, *, name: str, what: str, rounds: int, share_core: bool) -> None:
    """Answer an echo of that kind."""
    end = session.get(_End, name)
    if what == LINE:
        _floor.line_pong(end.words.words, rounds, share_core=share_core, patience_s=PATIENCE_S)
    elif what == SOCKET:
        _floor.socket_pong(end.sock.fileno(), rounds, patience_s=PATIENCE_S)
    else:
        _floor.event_pong(end.event_out, end.event_in, rounds, patience_s=PATIENCE_S)


def consume(session: Session, *, name: str, count: int, share_core: bool) -> int:
    """Answer a ring, with or without slots; the sum of what came."""
    memory = session.get(_End, name).words if name == "floor" else session.get(SharedMemory, name)
    return _floor.ring_consume(memory.words, memory.slots, count, share_core=share_core, patience_s=PATIENCE_S)
