"""`bulk bench throughput`: many buffers in quick succession (II-5.2, `micro_throughput`), and the rates beside it.

Knows: the report's measure, the hand-over at window 32, and fill + sum against plain shared memory.
Must not know: how a partner is started or how channels are set up.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time

import bulktransfer as bulk

from . import chain, options, shared
from .chain import Chain
from .floor import RING
from .handover import hand_over
from .machine import CannotMeasure, quiet
from .partner import Session
from .report import Report, verdict_text
from .stage import Stage, stage
from .stats import SIX, ratio, spread_of, summarize

BUFFERS = 500  # the report's
BURST = 100
PARTS = ("report", "handover", "fill")
_ONE_BY_ONE_PER_S, _BATCHES_PER_S = 1.8e6, 3.0e6
_FILL_SIZES = [64 << 10, 1 << 20, 16 << 20]
_FILL_BYTES = 1 << 30  # a segment
_FILL_LIMITED_FROM = 1 << 20  # below, the hand-over itself shows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bulk bench throughput`."""
    options.add_measured(parser, default_sizes="4KiB")
    options.add_report(parser, buffers=BUFFERS, runs=100, of=f"runs of {BURST} moves")
    parser.add_argument("--only", choices=PARTS, help="one part: the report's measure, the hand-over, or fill + sum")
    parser.add_argument(
        "--hops", type=options.count, default=1, help="hops in each direction, for the report's measure (default 1)"
    )
    parser.add_argument("--transfers", type=options.count, default=200_000, help="per segment of the hand-over")
    parser.add_argument(
        "--fill-size", type=options.sizes, default=_FILL_SIZES, metavar="SIZE[,SIZE…]", help="default: 64KiB,1MiB,16MiB"
    )


def run(args: argparse.Namespace) -> Report:
    """Measure the parts that were asked for; wrong sums are failures of the report."""
    if args.hops > 1 and args.only != "report":
        raise CannotMeasure("more than one hop is for the report's measure: --only report")
    with stage("throughput", args, partners=2 * args.hops - 1) as on:
        if args.only in {None, "report"}:
            _the_reports(on, args)
        if args.only in {None, "handover"}:
            for size in args.size:
                _hand_over(on, args, size)
        if args.only in {None, "fill"}:
            _fill_and_sum(on, args)
    return on.report


# --- the report's: bursts of 100, timed until they are issued, and until the last echo ---


def _the_reports(on: Stage, args: argparse.Namespace) -> None:
    rows = []
    for size in args.size:
        buffers = max(BURST, chain.pool_count(args.buffers, size, BUFFERS))
        with contextlib.ExitStack() as stack:
            allocator = stack.enter_context(bulk.Allocator(count=buffers, size=size, trust=args.trust))
            there = chain.through(
                on.workers, allocator, name="echo", backend=args.backend, trust=args.trust, wait=on.wait
            )
            stack.callback(there.close)
            issued, echoed, sent_sum, echo_sum = bursts(there, args.runs)
        wanted = sent_sum + args.runs * BURST
        if echo_sum != wanted:
            on.report.fail(f"{on.report.size(size)}: the control sum of the echoes is {echo_sum}, not {wanted}")
        for what, times in (("[0] issued", issued), ("[1] last echo", echoed)):
            found = summarize(times)
            rows.append((on.report.size(size), buffers, what, *found.six(1e3), BURST / found.median * 1e9))
        on.report.add_remark(f"control sums, {on.report.size(size)}: sent {sent_sum:,}, echoed {echo_sum:,}")
        on.report.data.setdefault("report", {})[str(size)] = {
            "issued_ns": issued,
            "echoed_ns": echoed,
            "sent_sum": sent_sum,
            "echo_sum": echo_sum,
        }
    headings = ["size", "buffers", "until", *SIX, "buffers/s"]
    on.report.add_table(f"{args.runs} runs of {BURST} moves, each writing 32 bits; µs", headings, rows)


def bursts(there: Chain, runs: int) -> tuple[list[int], list[int], int, int]:
    """The ns of each run until all are issued, and until the last echo; the sums of what was sent and what came."""
    alloc, free = there.allocator.alloc, there.allocator.free
    move, receive = there.tx.move, there.rx.receive_buffer
    numbers = [number.to_bytes(4, "little") for number in range(BURST)]
    issued, echoed, echo_sum = [], [], 0
    with there.answering(runs * BURST, add=True), quiet():
        for _ in range(runs):
            start_ns = time.perf_counter_ns()
            for number in numbers:
                buffer = alloc()
                buffer.write(number)
                move(buffer)
            issued.append(time.perf_counter_ns() - start_ns)
            arrived = [receive().buffer for _ in numbers]
            echoed.append(time.perf_counter_ns() - start_ns)
            for buffer in arrived:
                with memoryview(buffer) as view:
                    echo_sum += int.from_bytes(view[:4], "little")
                free(buffer)
    return issued, echoed, runs * sum(range(BURST)), echo_sum


# --- the hand-over, window 32 ---


def _hand_over(on: Stage, args: argparse.Namespace, size: int) -> None:
    ring, single, batched, cpu = [], [], [], []
    with contextlib.closing(hand_over(args, on.workers[0], size=size, wait=on.wait)) as source:
        source.one_by_one(args.transfers // 10 + 1)
        source.batches(args.transfers // 10 + 1)
        for _ in range(args.pairs):
            ring.append(args.transfers / on.floor.ring(args.transfers) * 1e9)
            busy_ns = time.process_time_ns() + on.workers[0].call(busy)
            single.append(args.transfers / source.one_by_one(args.transfers) * 1e9)
            cpu.append((time.process_time_ns() + on.workers[0].call(busy) - busy_ns) / args.transfers)
            batched.append(args.transfers / source.batches(args.transfers) * 1e9)
    rows = []
    for what, rates, limit in (("one by one", single, _ONE_BY_ONE_PER_S), ("batches", batched, _BATCHES_PER_S)):
        found, to_ring = spread_of(rates), ratio(rates, ring)
        rows.append((what, found.median, found.lower, found.upper, to_ring.median))
        part = spread_of([rate / limit for rate in rates])
        verdict = part.at_least(1.0) if on.limited and on.wait == "spin" else None
        text = f"hand-over of {on.report.size(size)}, {what}, as a multiple of {limit:,.0f}/s"
        on.report.add_remark(verdict_text(text, part, 1.0, verdict))
    on.report.add_table(
        f"Hand-over of {on.report.size(size)}, window 32, buffers/s",
        ["way", "median", "bound below", "bound above", f"of the C {RING}"],
        [*rows, ("C ring", statistics.median(ring), None, None, 1.0)],
    )
    on.report.data.setdefault("handover", {})[str(size)] = {
        "ring_per_s": ring,
        "single_per_s": single,
        "batched_per_s": batched,
        "cpu_of_both_sides_ns": cpu,
    }
    if args.backend != "local":
        on.report.add_remark(
            f"CPU of both sides a buffer, one by one: {statistics.median(cpu):,.0f} ns, waiting ({on.wait}) included"
        )


def busy(_session: Session) -> int:
    """A command: the ns that the partner has used of its core."""
    return time.process_time_ns()


# --- fill + sum of every buffer ---


def _fill_and_sum(on: Stage, args: argparse.Namespace) -> None:
    rows = []
    for size in args.fill_size:
        count = max(2 * shared.SLOTS, _FILL_BYTES // size)
        ours, theirs = [], []
        with contextlib.ExitStack() as stack:
            source = stack.enter_context(contextlib.closing(hand_over(args, on.workers[0], size=size, wait=on.wait)))
            ring = shared.PlainRing(on.workers[0], slot_size=size, share_core=on.share_core)
            stack.callback(ring.close)
            for step in (source.fill, ring.fill):
                step(2 * shared.SLOTS)
            for _ in range(args.pairs):
                theirs.append(size * count / ring.fill(count))
                ours.append(size * count / source.fill(count))
        found = ratio(ours, theirs)
        rows.append(
            (
                on.report.size(size),
                count,
                statistics.median(ours),
                statistics.median(theirs),
                found.median,
                found.lower,
                found.upper,
            )
        )
        verdict = found.at_least(1.0) if on.limited and size >= _FILL_LIMITED_FROM else None
        text = f"fill + sum, {on.report.size(size)}, as a part of plain shared memory"
        on.report.add_remark(verdict_text(text, found, 1.0, verdict))
        on.report.data.setdefault("fill", {})[str(size)] = {
            "bulk_GB_per_s": ours,
            "plain_GB_per_s": theirs,
            "ratio": found,
        }
    on.report.add_table(
        "Fill + sum of every buffer with NumPy, window 32; GB/s, sums checked",
        ["size", "buffers", "bulk", "plain memory", "ratio", "bound below", "bound above"],
        rows,
    )
