"""`bulk bench rtt`: how long one buffer takes there and back (II-5.2, `micro_rtt`).

Knows: the report's timed section: allocate, move, receive on the other channel, free; the payload is not touched.
Must not know: how a partner is started or how channels are set up.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from array import array
from dataclasses import dataclass, field
from typing import Any

import bulktransfer as bulk

from . import chain, options
from .chain import Chain
from .floor import LINE
from .machine import CannotMeasure, quiet
from .report import Report, plain, verdict_text
from .stage import Stage, stage
from .stats import SIX, Ratio, ratio, summarize

BUFFERS = 32  # the report's
_SPIN_TIMES, _SPIN_PLUS_NS = 2.5, 700.0
_BLOCK_TIMES = 1.3
_FLOOR_ROUNDS_AT_MOST = 5_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bulk bench rtt`."""
    options.add_measured(parser, default_sizes="4KiB,64KiB,1MiB,16MiB,1GiB")
    options.add_report(parser, buffers=BUFFERS, runs=10_000, of="round trips a segment")
    parser.add_argument(
        "--hops", type=options.count, default=1, help="hops in each direction, by forwarders (default 1)"
    )
    parser.add_argument("addresses", nargs="*", metavar="ADDRESS", help="A and B of a running `bulk bench echo A B`")


@dataclass(slots=True)
class Samples:
    """Of one size: all round trips in ns, and the medians of the interleaved segments."""

    direct: array[int] = field(default_factory=lambda: array("q"))
    far: array[int] = field(default_factory=lambda: array("q"))
    floor_medians: list[float] = field(default_factory=list)
    direct_medians: list[float] = field(default_factory=list)
    far_medians: list[float] = field(default_factory=list)


def run(args: argparse.Namespace) -> Report:
    """Measure every size; with `--hops`, the chain beside the single hop."""
    if args.addresses:
        return _against_running(args)
    with stage("rtt", args, partners=2 * args.hops - 1) as on:
        rows = []
        for size in args.size:
            buffers = chain.pool_count(args.buffers, size, BUFFERS)
            samples = _measure(on, args, size, buffers)
            rows.append(_row(size, buffers, 1, samples.direct))
            if args.hops > 1:
                rows.append(_row(size, buffers, args.hops, samples.far))
            _judge(on, args, size, samples)
        _add_latencies(on.report, rows)
    return on.report


def round_trips(there: Chain, rounds: int) -> array[int]:
    """The ns of each of `rounds` round trips, after a tenth as many to warm up."""
    times = array("q", bytes(8 * rounds))
    warm_up = rounds // 10 + 1
    with there.answering(warm_up + rounds), quiet():
        _time_round_trips(there, warm_up, array("q", bytes(8 * warm_up)))
        _time_round_trips(there, rounds, times)
    return times


def _time_round_trips(there: Chain, rounds: int, times: array[int]) -> None:
    alloc, free = there.allocator.alloc, there.allocator.free
    move, receive = there.tx.move, there.rx.receive_buffer
    clock = time.perf_counter_ns
    for i in range(rounds):
        start_ns = clock()
        move(alloc())
        free(receive().buffer)
        times[i] = clock() - start_ns


def _measure(on: Stage, args: argparse.Namespace, size: int, buffers: int) -> Samples:
    found = Samples()
    opening: dict[str, Any] = {"backend": args.backend, "trust": args.trust, "wait": on.wait}
    with contextlib.ExitStack() as stack:
        allocator = stack.enter_context(bulk.Allocator(count=buffers, size=size, trust=args.trust))
        direct = stack.enter_context(
            contextlib.closing(chain.through(on.workers[:1], allocator, name="direct", **opening))
        )
        far = None
        if args.hops > 1:
            far = stack.enter_context(contextlib.closing(chain.through(on.workers, allocator, name="far", **opening)))

        def floor_segment() -> None:
            echoes = on.floor.echo(on.echo_floor, min(args.runs, _FLOOR_ROUNDS_AT_MOST))
            found.floor_medians.append(statistics.median(echoes))

        def direct_segment() -> None:
            times = round_trips(direct, args.runs)
            found.direct.extend(times)
            found.direct_medians.append(statistics.median(times))

        def far_segment() -> None:
            if far is not None:
                times = round_trips(far, args.runs)
                found.far.extend(times)
                found.far_medians.append(statistics.median(times))

        segments = [floor_segment, direct_segment, far_segment]
        for _ in range(args.pairs):
            for segment in segments:
                segment()
            segments.reverse()  # so that a drift favours neither
    return found


def _judge(on: Stage, args: argparse.Namespace, size: int, found: Samples) -> None:
    report, text = on.report, on.report.size(size)
    spinning = on.echo_floor == LINE
    if spinning:
        allowed = [_SPIN_TIMES * floor + _SPIN_PLUS_NS for floor in found.floor_medians]
        limit_text = f"{_SPIN_TIMES} x C {on.echo_floor} + {_SPIN_PLUS_NS / 1e3} µs"
    else:
        allowed = [_BLOCK_TIMES * floor for floor in found.floor_medians]
        limit_text = f"{_BLOCK_TIMES} x C {on.echo_floor}"
    to_floor = ratio(found.direct_medians, found.floor_medians)
    to_limit = ratio(found.direct_medians, allowed)
    verdict = to_limit.at_most(1.0) if on.limited and on.wait != "auto" else None
    floor_us = statistics.median(found.floor_medians) / 1e3
    report.add_remark(f"{text}: {to_floor.median:.3g} x the C {on.echo_floor} of {floor_us:.3g} µs")
    report.add_remark(verdict_text(f"  as a part of {limit_text}", to_limit, 1.0, verdict))
    figures: dict[str, object] = {
        "latency_ns": summarize(found.direct),
        "floor_medians_ns": found.floor_medians,
        "direct_medians_ns": found.direct_medians,
        "ratio_to_floor": to_floor,
        "limit": limit_text,
        "part_of_limit": to_limit,
        "verdict": verdict,
    }
    if found.far_medians:
        hops: Ratio = ratio(found.far_medians, found.direct_medians)
        report.add_remark(
            verdict_text(f"  {args.hops} hops as a multiple of one", hops, float(args.hops), hops.at_most(args.hops))
        )
        figures["hops"] = {
            "latency_ns": summarize(found.far),
            "far_medians_ns": found.far_medians,
            "multiple_of_one_hop": hops,
            "verdict": hops.at_most(args.hops),
        }
    report.data[str(size)] = figures


def _row(size: int, buffers: int, hops: int, times: array[int]) -> tuple[object, ...]:
    return (Report.size(size), buffers, hops, *summarize(times).six(1e3))


def _add_latencies(report: Report, rows: list[tuple[object, ...]]) -> None:
    title = "Round trip of one buffer: alloc, move, receive, free; µs"
    report.add_table(title, ["size", "buffers", "hops", *SIX], rows)


def _against_running(args: argparse.Namespace) -> Report:
    """The latency of an echo that somebody else runs; its cores are not ours, so no floor is measured beside it."""
    if len(args.addresses) != 2:
        raise CannotMeasure(f"an echo has two addresses, A and B, not {len(args.addresses)}")
    sink, source = args.addresses
    report = Report("rtt", plain(args))
    size = args.size[0]
    buffers = chain.pool_count(args.buffers, size, BUFFERS)
    with contextlib.ExitStack() as stack:
        allocator = stack.enter_context(bulk.Allocator(count=buffers, size=size, trust=args.trust))
        there = chain.to(sink, source, allocator, trust=args.trust, wait=args.wait or "auto")
        stack.callback(there.close)
        there.tx.assign_pool(allocator.pool)
        there.rx.assign_pool(allocator.pool)
        times = round_trips(there, args.runs)
    report.data[str(size)] = {"latency_ns": summarize(times)}
    _add_latencies(report, [_row(size, buffers, 1, times)])
    report.finish()
    return report
