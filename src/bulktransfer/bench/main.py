"""`bulk bench …`: the benchmarks as commands.

Knows: which benchmarks there are. Must not know: what they measure.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Protocol

import bulktransfer as bulk

from . import (
    compare,
    costs,
    echo,
    evaluation,
    floor,
    memory,
    network,
    peers,
    queue,
    rtt,
    sealed,
    throughput,
    trust,
)
from .machine import CannotMeasure
from .report import Report
from .shared import WrongSum
from .worker import PartnerError

if TYPE_CHECKING:
    _Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


class Benchmark(Protocol):
    """A module of this room that is a command."""

    def add_arguments(self, parser: argparse.ArgumentParser, /) -> None: ...

    def run(self, args: argparse.Namespace, /) -> Report | int: ...


BENCHMARKS: dict[str, tuple[Benchmark, str]] = {
    "rtt": (rtt, "the round trip of one buffer, beside the machine's floor"),
    "throughput": (throughput, "many buffers in quick succession; hand-over; fill + sum"),
    "echo": (echo, "nothing: echo for others, who say `bulk bench rtt A B`"),
    "floor": (floor, "what the machine can do at best, in C"),
    "memory": (memory, "whether anything grows over ten million transfers"),
    "costs": (costs, "the instructions, system calls and page faults of a transfer"),
    "trust": (trust, "what each trust level costs, beside a UNIX socket and a pipe"),
    "peers": (peers, "the same hand-over by other libraries"),
    "sealed": (sealed, "contents to one reader and to several, sealed, by value, and without the library"),
    "network": (network, "channels between machines beside plain sockets, and chains of processes"),
    "queue": (queue, "objects through a queue, beside multiprocessing's, torch's and Ray"),
    "report": (evaluation, "the report's evaluation, whole: a page with plots"),
    "compare": (compare, "nothing: compare two of those pages' figures"),
}

_EPILOG = "exit status: 0 measured, 1 a sum was wrong, memory grew or a partner failed, 2 it cannot be measured here"


def add_parsers(subparsers: _Subparsers) -> None:
    """Mount `bench` and its commands; `run` takes the parsed arguments."""
    bench = subparsers.add_parser("bench", help="measure this machine, and the library on it", epilog=_EPILOG)
    commands = bench.add_subparsers(dest="benchmark", required=True)
    for name, (benchmark, text) in BENCHMARKS.items():
        benchmark.add_arguments(commands.add_parser(name, help=text, description=f"Measure {text}.", epilog=_EPILOG))


def run(args: argparse.Namespace) -> int:
    """Run the benchmark that was named and print what it found; the exit status.

    0: measured. 1: a sum was wrong, memory grew or a partner failed. 2: it cannot be measured here. A limit that
    was missed is printed and is no failure: another machine is another matter.
    """
    benchmark, _ = BENCHMARKS[args.benchmark]
    try:
        outcome = benchmark.run(args)
    except CannotMeasure as error:
        print(f"bulk bench {args.benchmark}: {error}", file=sys.stderr)
        return 2
    except (PartnerError, WrongSum, bulk.BulkError, OSError) as error:
        print(f"bulk bench {args.benchmark}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return outcome if isinstance(outcome, int) else outcome.emit(as_json=args.json)


def main(argv: list[str] | None = None) -> int:
    """`python -m bulktransfer.bench.main bench …`."""
    parser = argparse.ArgumentParser(prog="bulk")
    add_parsers(parser.add_subparsers(required=True))
    return run(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
