"""`bulk bench network`: channels between machines beside plain sockets, over loopback; and chains of processes.

Knows: what is compared with what, in turn, and the limits. Must not know: how either side works.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import bulktransfer as bulk

from . import chain, machine, options, papers, plain, rtt, zeromq
from .handover import WINDOW, HandOver
from .hops import Hops, cpu_ns
from .report import Report, verdict_text
from .report import plain as as_plain
from .stats import Ratio, ratio
from .worker import Worker

PARTS = ("tcp", "tls", "zmq", "rtt", "chain")
_LONG_FROM = 1 << 20  # from here on `plain` is the reference, below it `batched`
_RATE_LONG, _RATE_SHORT, _RATE_TLS, _CPU_TIMES, _RTT_TIMES = 0.9, 0.8, 0.9, 1.15, 1.3
_ZMQ_TIMES = 2.5
_FORWARDERS = (1, 3)  # chains of 3 and of 5 processes
BATCH = WINDOW // 2  # as many as the batched program has in a call


class Mover(Protocol):
    """What moves many buffers or messages of one size."""

    def batches(self, count: int, /) -> int:
        """The ns that `count` take."""

    def close(self) -> None:
        """Let go of both sides."""


class Rates(NamedTuple):
    """Of one segment."""

    gb_per_s: float
    cpu_s_per_gb: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bulk bench network`."""
    parser.add_argument("--only", choices=PARTS, action="append", help="this part (may be given again)")
    parser.add_argument(
        "--size",
        type=options.sizes,
        default=options.sizes("4KiB,64KiB,1MiB,16MiB"),
        metavar="SIZE[,SIZE…]",
        help="default: 4KiB,64KiB,1MiB,16MiB",
    )
    parser.add_argument("--seconds", type=float, default=0.2, help="a segment (default 0.2)")
    parser.add_argument("--congestion", default="cubic", help="TCP's congestion control, of both (default cubic)")
    parser.add_argument("--wait", choices=("block", "auto", "spin"), default="block", help="default: block, as sockets")
    options.add_pairs(parser)
    options.add_placement(parser)
    options.add_output(parser)


def run(args: argparse.Namespace) -> Report:
    """Measure the parts that were asked for."""
    report = Report("network", as_plain(args))
    report.add_remark(f"loopback, congestion control {args.congestion} of every socket on both sides")
    parts = args.only or PARTS
    cores = machine.cores_for(args.pin, 2)
    limited = cores[0] != cores[1]
    with machine.pinned(cores[0]):
        with Worker(cores[1]) as worker:
            if "tcp" in parts:
                _throughput(report, args, worker, limited)
            if "tls" in parts:
                _tls(report, args, worker, limited)
            if "zmq" in parts:
                _zeromq(report, args, worker, limited)
            if "rtt" in parts:
                _round_trips(report, args, worker, limited)
        if "chain" in parts:
            _chains(report, args, cores, limited)
    report.finish()
    return report


# --- one way ---


def _throughput(report: Report, args: argparse.Namespace, worker: Worker, limited: bool) -> None:
    rows = []
    for size in args.size:
        way = "plain" if size >= _LONG_FROM else "batched"
        theirs = _plain(args, worker, way, size)
        ours = _ours(args, worker, "tcp", size, (f"?congestion={args.congestion}",) * 2)
        least = _RATE_LONG if size >= _LONG_FROM else _RATE_SHORT
        rows.append(_pair(report, args, worker, size, "tcp", ours, way, theirs, least if limited else None))
    _table(report, "tcp", rows)


def _tls(report: Report, args: argparse.Namespace, worker: Worker, limited: bool) -> None:
    rows = []
    with papers.self_signed() as paper:
        creator = f"?congestion={args.congestion}&certificate={paper['certificate']}&key={paper['key']}"
        binder = f"?congestion={args.congestion}&authority={paper['certificate']}"
        for size in args.size:
            theirs = _plain(args, worker, "tls", size, paper)
            ours = _ours(args, worker, "tls", size, (creator, binder))
            least = _RATE_TLS if limited else None
            rows.append(_pair(report, args, worker, size, "tls", ours, "tls", theirs, least))
    _table(report, "tls", rows)


def _zeromq(report: Report, args: argparse.Namespace, worker: Worker, limited: bool) -> None:
    if not zeromq.installed():
        report.add_remark("pyzmq is not installed: left out")
        return
    rows = []
    for size in args.size:
        theirs = lambda size=size: zeromq.Zeromq(worker, size=size)  # noqa: E731
        ours = _ours(args, worker, "tcp", size, (f"?congestion={args.congestion}",) * 2)
        least = _ZMQ_TIMES * _RATE_SHORT if limited and size < _LONG_FROM else None
        rows.append(_pair(report, args, worker, size, "tcp", ours, "pyzmq", theirs, least))
    _table(report, "tcp beside pyzmq (its congestion control is the system's)", rows)


def _plain(
    args: argparse.Namespace, worker: Worker, way: str, size: int, paper: plain.Credentials | None = None
) -> Callable[[], Mover]:
    return lambda: plain.Source(worker, way, size=size, congestion=args.congestion, papers=paper)


def _ours(
    args: argparse.Namespace, worker: Worker, scheme: str, size: int, ends: tuple[str, str]
) -> Callable[[], Mover]:
    return lambda: HandOver(
        worker, backend=scheme, trust=bulk.Trust.NONE, wait=args.wait, size=size, batch=BATCH, options=ends
    )


def _pair(
    report: Report,
    args: argparse.Namespace,
    worker: Worker,
    size: int,
    what: str,
    ours: Callable[[], Mover],
    reference: str,
    theirs: Callable[[], Mover],
    least: float | None,
) -> tuple[object, ...]:
    """Measure both in turn, judge them, and return a row of the table; `least`: the limit of the rate, if any."""
    found: list[list[Rates]] = [[], []]
    with contextlib.ExitStack() as stack:
        movers = [stack.enter_context(contextlib.closing(make())) for make in (ours, theirs)]
        counts = [calibrated(mover, args.seconds) for mover in movers]
        for _ in range(args.pairs):
            for mover, count, rates in zip(movers, counts, found, strict=True):
                rates.append(_segment(mover, worker, size, count))
    rate = ratio(*([one.gb_per_s for one in side] for side in found))
    cpu = ratio(*([one.cpu_s_per_gb for one in side] for side in found))
    text = f"{what}, {report.size(size)}, as a part of {reference}"
    report.add_remark(verdict_text(text, rate, least or 0.0, rate.at_least(least) if least else None))
    if what == "tcp" and reference == "plain":
        verdict = cpu.at_most(_CPU_TIMES) if least else None
        report.add_remark(verdict_text("  CPU seconds per GB, as a multiple", cpu, _CPU_TIMES, verdict))
    report.data.setdefault(f"{what} beside {reference}", {})[str(size)] = {
        "ours": [one._asdict() for one in found[0]],
        "theirs": [one._asdict() for one in found[1]],
        "rate": rate,
        "cpu": cpu,
    }
    medians = [statistics.median(column) for side in found for column in zip(*side, strict=True)]
    return (report.size(size), reference, *medians, rate.median, cpu.median)


def calibrated(mover: Mover, seconds: float) -> int:
    """How many take about so long, after as many to warm up; two windows at least."""
    count = WINDOW
    mover.batches(count)
    while (took_ns := mover.batches(count)) < seconds * 1e9 / 4:
        count *= 2
    return max(2 * WINDOW, int(count * seconds * 1e9 / took_ns))


def _segment(mover: Mover, worker: Worker, size: int, count: int) -> Rates:
    before = cpu_ns([worker])
    wall_ns = mover.batches(count)
    used_ns = cpu_ns([worker]) - before
    gb = count * size / 1e9
    return Rates(gb / wall_ns * 1e9, used_ns / 1e9 / gb)


def _table(report: Report, what: str, rows: list[tuple[object, ...]]) -> None:
    headings = ["size", "beside", "GB/s", "CPU s/GB", "its GB/s", "its CPU s/GB", "rate, ratio", "CPU, ratio"]
    report.add_table(f"One way over {what}, window {WINDOW}", headings, rows)


# --- there and back ---


def _round_trips(report: Report, args: argparse.Namespace, worker: Worker, limited: bool) -> None:
    size = min(args.size)
    rows, ours, theirs = [], [], []
    with contextlib.ExitStack() as stack:
        reference = stack.enter_context(contextlib.closing(_echoing(args, worker, size)))
        allocator = stack.enter_context(bulk.Allocator(count=rtt.BUFFERS, size=size))
        ends = {"backend": "tcp", "trust": bulk.Trust.NONE, "wait": args.wait}
        there = stack.enter_context(contextlib.closing(chain.through([worker], allocator, name="echo", **ends)))
        one = statistics.median(reference.echoes(200))
        count = max(20, int(args.seconds * 1e9 / one))
        for _ in range(args.pairs):
            theirs.append(statistics.median(reference.echoes(count)))
            ours.append(statistics.median(rtt.round_trips(there, count)))
    found: Ratio = ratio(ours, theirs)
    rows.append((report.size(size), statistics.median(ours) / 1e3, statistics.median(theirs) / 1e3, found.median))
    report.add_table("Round trip; µs", ["size", "tcp", "plain", "ratio"], rows)
    verdict = found.at_most(_RTT_TIMES) if limited else None
    text = f"round trip of {report.size(size)}, as a multiple of plain sockets"
    report.add_remark(verdict_text(text, found, _RTT_TIMES, verdict))
    report.data["round trip"] = {str(size): {"ours_ns": ours, "theirs_ns": theirs, "ratio": found}}


def _echoing(args: argparse.Namespace, worker: Worker, size: int) -> plain.Source:
    return plain.Source(worker, "plain", size=size, congestion=args.congestion)


# --- chains ---


def _chains(report: Report, args: argparse.Namespace, cores: list[int], limited: bool) -> None:
    """Throughput per CPU second of chains over shm, FULL, beside that of two processes."""
    size = args.size[0]
    rows = []
    with contextlib.ExitStack() as stack:
        direct = stack.enter_context(_hops(stack, cores, 0, size))
        count = calibrated(direct.source, args.seconds)
        for forwarders in _FORWARDERS:
            hops = forwarders + 1
            with contextlib.ExitStack() as these:
                far = these.enter_context(_hops(these, cores, forwarders, size))
                far.cpu_of(count)
                used: list[list[float]] = [[], []]
                for _ in range(args.pairs):
                    for row, one in zip(used, (direct, far), strict=True):
                        row.append(one.cpu_of(count)[1] / count)
            part = ratio([hops * mine for mine in used[0]], used[1])
            rows.append((hops + 1, *(statistics.median(row) / 1e3 for row in reversed(used)), part.median))
            verdict = part.at_least(1.0) if limited else None
            text = f"{hops + 1} processes: throughput per CPU second, as a part of 1/{hops} of that of two"
            report.add_remark(verdict_text(text, part, 1.0, verdict))
            report.data.setdefault("chain", {})[str(hops + 1)] = {
                "direct_ns": used[0],
                "chain_ns": used[1],
                "part": part,
            }
    report.add_table(
        f"Chains over shm, FULL, {report.size(size)}, window {WINDOW}, blocking; CPU µs a buffer, all processes",
        ["processes", "chain", "two processes", "of 1/hops"],
        rows,
    )


@contextlib.contextmanager
def _hops(stack: contextlib.ExitStack, cores: list[int], forwarders: int, size: int) -> Iterator[Hops]:
    workers = [stack.enter_context(Worker(cores[(place + 1) % 2])) for place in range(forwarders + 1)]
    hops = Hops(
        workers[-1], list(reversed(workers[:-1])), backend="shm", trust=bulk.Trust.FULL, wait="block", size=size
    )
    with contextlib.closing(hops):
        yield hops
