"""`bulk bench sealed`: contents to one reader and to several, by sealed frames, by value, and as one would without us.

Knows: what is compared, and the limit that this project set itself. Must not know: how each way works.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
from collections.abc import Callable, Sequence

from . import means, options
from .means import Channels, PrivateCopies, Streams, Writer
from .report import Report, verdict_text
from .stage import Stage, stage
from .stats import ratio
from .worker import Worker

READERS = (1, 4)
SIZES = "64KiB,1MiB,2MiB,16MiB"
SEGMENT_BYTES = 64 << 20  # that the writer fills, in one turn
COUNT_MAX = 200
TIMES, LIMITED_FROM, LIMITED_READERS = 2.0, 16 << 20, 4  # sealed against by value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bulk bench sealed`."""
    options.add_measured(parser, default_sizes=SIZES)
    options.add_pairs(parser)
    parser.add_argument(
        "--readers", type=lambda text: [options.count(part) for part in text.split(",")], default=list(READERS),
        metavar="N[,N…]", help="default: 1,4",
    )  # fmt: skip
    parser.add_argument("--segment", type=options.size, default=SEGMENT_BYTES, help="bytes that are filled in one turn")


def run(args: argparse.Namespace) -> Report:
    """Measure all ways in turn, for every size and number of readers."""
    with stage("sealed", args, partners=max(args.readers)) as on:
        rows: list[tuple[object, ...]] = []
        for size in args.size:
            rows += [_compare(on, args, size, readers) for readers in args.readers]
        names = [name for name, _ in _ways(args, on.wait)]
        on.report.add_table(
            "Fill, bring to every reader, sum there; MiB/s that are filled", ["size", "readers", *names, "chosen"], rows
        )
    return on.report


def _ways(args: argparse.Namespace, wait: str) -> list[tuple[str, Callable[[Sequence[Worker], int], Writer]]]:
    def channels(how: str | None) -> Callable[[Sequence[Worker], int], Writer]:
        return lambda workers, size: Channels(workers, size, means=how, backend=args.backend, wait=wait)

    return [
        ("sealed", channels("sealed")),
        ("by value", channels("by value")),
        ("as it chooses", channels(None)),
        ("Pipe", lambda workers, size: Streams(workers, size, kind="pipe")),
        ("UNIX socket", lambda workers, size: Streams(workers, size, kind="socket")),
        ("shared + copy", PrivateCopies),
    ]


def _compare(on: Stage, args: argparse.Namespace, size: int, readers: int) -> tuple[object, ...]:
    count = max(means.AT_ONCE, min(COUNT_MAX, args.segment // size))
    ways = _ways(args, on.wait)
    found: dict[str, list[float]] = {name: [] for name, _ in ways}
    with contextlib.ExitStack() as stack:
        made = {name: stack.enter_context(contextlib.closing(make(on.workers[:readers], size))) for name, make in ways}
        for writer in made.values():
            writer.write(means.AT_ONCE)
        for _ in range(args.pairs):
            for name, writer in made.items():
                found[name].append(count * size / (1 << 20) / writer.write(count) * 1e9)
        choosing = made["as it chooses"]
        assert isinstance(choosing, Channels)
        contents = choosing.contents()
    what = f"{on.report.size(size)}, {readers} reader{'s' if readers > 1 else ''}"
    compared = ratio(found["sealed"], found["by value"])
    limited = on.limited and size >= LIMITED_FROM and readers >= LIMITED_READERS
    verdict = compared.at_least(TIMES) if limited else None
    on.report.add_remark(verdict_text(f"sealed as a multiple of by value, {what}", compared, TIMES, verdict))
    on.report.data[f"{size} x {readers}"] = {"mib_per_s": found, "contents": contents}
    chosen = "sealed" if contents["sealed"] > contents["by_value"] else "by value"
    return (on.report.size(size), readers, *(statistics.median(found[name]) for name, _ in ways), chosen)
