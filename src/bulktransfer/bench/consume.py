"""Produce + consume, ours and each rival's in turn: fill every buffer with NumPy here, sum it there.

Knows: who competes, and that not everybody is installed. Must not know: how any of them works.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import statistics
from collections.abc import Callable, Iterator
from typing import Any

from .handover import hand_over
from .rivals.rival import WINDOW, Match
from .rivals.roster import ROSTER
from .shared import check_sum
from .stage import Stage
from .stats import ratio

_BYTES = 256 << 20  # a segment
_AT_MOST, _AT_LEAST = 10_000, 2 * WINDOW


def segment(size: int, asked: int | None) -> int:
    """How many buffers a segment has: as asked, else 256 MiB of them, within bounds."""
    return asked or min(_AT_MOST, max(_AT_LEAST, _BYTES // size))


def compare(on: Stage, args: argparse.Namespace, size: int) -> None:
    """All of one size; a table, and the raw figures of every segment."""
    count = segment(size, args.buffers)
    rows: list[tuple[object, ...]] = []
    with contextlib.closing(hand_over(args, on.workers[0], size=size, wait=on.wait)) as source:
        source.fill(count // 10 + 1)
        for name, mode, opened in _rivals(on, args, size):
            theirs, ours = [], []
            try:
                with opened as fill:
                    fill(count // 10 + 1)
                    for _ in range(args.pairs):
                        theirs.append(size * count / fill(count))
                        ours.append(size * count / source.fill(count))
            except (RuntimeError, OSError, TimeoutError) as error:  # a rival that fails is named, ours goes on
                on.report.add_remark(f"{name}, {on.report.size(size)}: {type(error).__name__}: {error}")
                continue
            found = ratio(ours, theirs)
            rows.append(
                (name, mode, statistics.median(theirs), statistics.median(ours), found.median, found.lower, found.upper)
            )
            on.report.data.setdefault("produce + consume", {}).setdefault(str(size), {})[name] = {
                "peer_GB_per_s": theirs,
                "bulk_GB_per_s": ours,
                "ratio": found,
            }
    if rows:
        on.report.add_table(
            f"Fill + sum of {on.report.size(size)} buffers, window {WINDOW}, {count:,} a segment; GB/s, sums checked; "
            f"ours waits by: {on.wait}",
            ["peer", "its waiting", "peer's", "ours", "ours / peer's", "from", "to"],
            sorted(rows, key=lambda row: str(row[0])),
        )


Fill = Callable[[int], int]


def _rivals(
    on: Stage, args: argparse.Namespace, size: int
) -> Iterator[tuple[str, str, contextlib.AbstractContextManager[Fill]]]:
    for name, entry in ROSTER.items():
        if args.only and name not in args.only:
            continue
        if entry.needs and importlib.util.find_spec(entry.needs) is None:
            left_out = on.report.data.setdefault("left out", [])
            if name not in left_out:
                left_out.append(name)
                on.report.add_remark(f"{name} is not installed: left out")
            continue
        kind = entry.load()
        yield name, kind.mode, _alone(kind, size) if entry.alone else _between_two(on, kind, size)


@contextlib.contextmanager
def _between_two(on: Stage, kind: Any, size: int) -> Iterator[Fill]:
    core = on.workers[0].core
    with contextlib.closing(Match(kind, size=size, core=core, share_core=on.share_core)) as match:
        yield match.fill


@contextlib.contextmanager
def _alone(kind: Any, size: int) -> Iterator[Fill]:
    with contextlib.closing(kind(size=size)) as rival:
        yield lambda count: _checked(rival.fill(count), count, size)


def _checked(found: tuple[int, int], count: int, size: int) -> int:
    elapsed_ns, total = found
    check_sum(total, count, size)
    return elapsed_ns
