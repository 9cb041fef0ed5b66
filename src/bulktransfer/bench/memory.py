"""`bulk bench memory`: does anything grow over very many transfers?

Knows: the hand-over in batches, and what a process holds. Must not know: where memory would leak.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import Any

import bulktransfer as bulk

from . import machine, options
from .chain import next_pool
from .handover import hand_over
from .partner import Session
from .report import Report
from .stage import Stage, stage

STEPS = 10
POOLS = 32  # within the 64 that a channel may have by default
SLACK_BYTES = 256 << 10  # an arena of Python's allocator is 256 KiB or 1 MiB; a leak of a byte a transfer is 10 MB
SLACK_BLOCKS = 1_000
_PER_S_AT_LEAST = 20_000  # for the watchdog only


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bulk bench memory`."""
    options.add_measured(parser, default_sizes="4KiB")
    parser.add_argument("--transfers", type=options.count, default=10_000_000, help="default 10 million")


def run(args: argparse.Namespace) -> Report:
    """Hand over that many buffers, look at both processes ten times; growth is a failure of the report."""
    with stage("memory", args) as on:
        step = max(1, args.transfers // STEPS)
        limit_s = 60 + step // _PER_S_AT_LEAST
        with contextlib.closing(hand_over(args, on.workers[0], size=args.size[0], wait=on.wait)) as source:
            looks = []
            for _ in range(STEPS + 1):
                source.batches(step, limit_s=limit_s)  # the first is the warm-up
                looks.append((held(), on.workers[0].call(look)))
        rows = []
        for side, name in enumerate(("source", "sink")):
            seen = [pair[side] for pair in looks]
            for what, slack in (
                ("rss", SLACK_BYTES),
                ("anonymous", SLACK_BYTES),
                ("blocks", SLACK_BLOCKS),
                ("descriptors", 0),
            ):
                grown = seen[-1][what] - seen[0][what]
                flat = grown <= slack
                rows.append((name, what, seen[0][what], seen[-1][what], grown, "flat" if flat else "GROWS"))
                if not flat:
                    on.report.fail(f"the {name}'s {what} grew by {grown:,} over {step * STEPS:,} transfers")
            on.report.data[name] = seen
        _pools(on, args)
        headings = ["side", "what", "after warm-up", "at the end", "grown", "verdict"]
        on.report.add_table(f"What both sides hold, over {step * STEPS:,} transfers", headings, rows)
    return on.report


def held() -> dict[str, int]:
    """What this process holds: bytes of memory, Python's blocks, descriptors."""
    return {**machine.memory(), "blocks": sys.getallocatedblocks()}


def _pools(on: Stage, args: argparse.Namespace) -> None:
    """What a pool costs beside its own pages, on each side: tables, mappings, descriptors."""
    size, count = args.size[0], 64
    with (
        contextlib.closing(hand_over(args, on.workers[0], size=size, wait=on.wait)) as source,
        contextlib.ExitStack() as pools,
    ):
        before = (held(), on.workers[0].call(look))
        with on.workers[0].running(take_pools, name="sink", count=POOLS):
            for _ in range(POOLS):
                allocator = pools.enter_context(bulk.Allocator(count=count, size=size, trust=args.trust))
                source.channel.assign_pool(allocator.pool)
        after = (held(), on.workers[0].call(look))
    rows = []
    for side, name in enumerate(("source", "sink")):
        cost = {what: (after[side][what] - before[side][what]) / POOLS for what in ("anonymous", "descriptors")}
        rows.append((name, cost["anonymous"], cost["descriptors"]))
        on.report.data[f"{name}_of_a_pool"] = cost
    title = f"What a pool of {count} x {on.report.size(size)} costs beside its shared pages"
    on.report.add_table(title, ["side", "private bytes", "descriptors"], rows)


# --- what the partner does ---


def take_pools(session: Session, *, name: str, count: int) -> None:
    """Accept that many pools."""
    for _ in range(count):
        next_pool(session.get(bulk.Channel, name))


def look(_session: Session) -> dict[str, Any]:
    """What the partner holds."""
    return held()
