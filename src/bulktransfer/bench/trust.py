"""`bulk bench trust`: what each trust level costs, beside what one would use in its place.

Knows: which ways of carriers.py are compared with which, and the limits that this project set itself.
Must not know: how a way works.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
from collections.abc import Callable

import bulktransfer as bulk

from . import costs, machine, options
from .carriers import Carrier, MultiprocessingPipe, Ours, UnixSocket
from .report import Report, verdict_text
from .stage import Stage, stage
from .stats import ratio
from .worker import Worker

UNIX, PIPE = "UNIX socket", "multiprocessing.Pipe"
BY_VALUE, EXPOSED, HALF, FULL = "NONE by value", "NONE exposed", "HALF", "FULL"
KINDS = (UNIX, PIPE, BY_VALUE, EXPOSED, HALF, FULL)
_MIB = 1 << 20
_TIMES_UNIX = {64 << 10: 2.0, _MIB: 1.6, 16 << 20: 2.0}
_TIMES_PIPE = 2.5
_TIMES_BY_VALUE = {_MIB: 1.8}
_MPROTECTS = 2  # a side, of a transfer there and one back
_SEND_BUFFERS = (0, _MIB, 4 << 20)  # 0: the kernel's default
_STEPS = (0, 256 << 10, 64 << 10)  # 0: all at once
_TRIAL_ROUNDS = 3
_TRIAL_BYTES = 16 << 20
_CALL_ROUNDS = 200, 1_200
_CALLED = (BY_VALUE, EXPOSED, HALF, FULL)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bulk bench trust`."""
    parser.add_argument(
        "--size",
        type=options.sizes,
        default=options.sizes("64KiB,1MiB,16MiB"),
        metavar="SIZE[,SIZE…]",
        help="default: 64KiB,1MiB,16MiB",
    )
    parser.add_argument("--only", choices=KINDS, action="append", help="this way (may be given again); default: all")
    parser.add_argument("--wait", choices=("spin", "block", "auto"), help="default: spin where there are two cores")
    parser.add_argument("--stage", type=options.size, help="bytes of the staging area (default: that of Limits)")
    parser.add_argument(
        "--segment", type=options.count, default=100, help="about how long each is, in ms (default 100)"
    )
    parser.add_argument("--calls", action="store_true", help="count system calls, too, with strace")
    options.add_placement(parser)
    options.add_pairs(parser)
    options.add_output(parser)


def run(args: argparse.Namespace) -> Report:
    """Carry the same bytes by each way in turn; wrong contents are an error."""
    args.backend = "shm"
    with stage("trust", args) as on:
        on.report.add_remark(
            "the source writes and the sink compares one byte of every page, where its memory is; "
            "sockets and pipes are read into one place"
        )
        for size in args.size:
            _compare(on, args, size)
        if args.calls:
            _count_calls(on, args)
    return on.report


def _makers(on: Stage, args: argparse.Namespace, size: int) -> dict[str, Callable[[Worker], Carrier]]:
    none = {"trust": bulk.Trust.NONE, "wait": on.wait, "stage": args.stage}
    makers: dict[str, Callable[[Worker], Carrier]] = {
        UNIX: lambda worker: _best_socket(on, worker, size),
        PIPE: lambda worker: MultiprocessingPipe(worker, size),
        BY_VALUE: lambda worker: Ours(worker, size, **none),
        EXPOSED: lambda worker: Ours(worker, size, exposed=True, **none),
        HALF: lambda worker: Ours(worker, size, trust=bulk.Trust.HALF, wait=on.wait),
        FULL: lambda worker: Ours(worker, size, trust=bulk.Trust.FULL, wait=on.wait),
    }
    return {kind: make for kind, make in makers.items() if not args.only or kind in args.only}


def _best_socket(on: Stage, worker: Worker, size: int) -> UnixSocket:
    """The buffer and the step by which this machine carries most, as a short trial of each finds."""
    count = max(2, _TRIAL_BYTES // size)
    found = {}
    for buffer in _SEND_BUFFERS:
        for step in _STEPS:
            if step < size:
                with contextlib.closing(UnixSocket(worker, size, buffer=buffer, step=step)) as way:
                    found[buffer, step] = min(way.carry(count) for _ in range(_TRIAL_ROUNDS))
    buffer, step = min(found, key=lambda choice: found[choice])
    text = f"send buffer {on.report.size(buffer) if buffer else 'as it is'}, {on.report.size(step or size)} a call"
    on.report.add_remark(f"{on.report.size(size)}: the best of {len(found)} ways to use a UNIX socket: {text}")
    return UnixSocket(worker, size, buffer=buffer, step=step)


def _compare(on: Stage, args: argparse.Namespace, size: int) -> None:
    rates: dict[str, list[float]] = {}
    counts: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        ways = {
            kind: stack.enter_context(contextlib.closing(make(on.workers[0])))
            for kind, make in _makers(on, args, size).items()
        }
        trial = max(4, _TRIAL_BYTES // size)
        for kind, way in ways.items():
            took_ns = min(way.carry(trial) for _ in range(_TRIAL_ROUNDS))
            counts[kind] = max(4, int(trial * args.segment * 1e6 / took_ns))
            rates[kind] = []
        for _ in range(args.pairs):
            for kind, way in ways.items():
                rates[kind].append(size * counts[kind] / way.carry(counts[kind]))
    on.report.data[str(size)] = {"GB_per_s": rates}
    _judge(on, size, rates)


def _judge(on: Stage, size: int, rates: dict[str, list[float]]) -> None:
    limits: list[tuple[str, str, float | None]] = [
        (BY_VALUE, UNIX, _TIMES_UNIX.get(size)),
        (BY_VALUE, PIPE, _TIMES_PIPE if size in _TIMES_UNIX else None),
        (EXPOSED, BY_VALUE, _TIMES_BY_VALUE.get(size)),
        (HALF, FULL, None),
    ]
    text = on.report.size(size)
    for ours, reference, limit in limits:
        if ours not in rates or reference not in rates:
            continue
        found = ratio(rates[ours], rates[reference])
        verdict = found.at_least(limit) if limit and on.limited and on.wait != "block" else None
        on.report.add_remark(verdict_text(f"{text}, {ours}, times {reference}", found, limit or 0, verdict))
        on.report.data[str(size)].setdefault("ratios", {})[f"{ours} / {reference}"] = {
            "ratio": found,
            "verdict": verdict,
        }
    on.report.add_table(
        f"Carried from process to process, {text} each; GB/s",
        ["way", "median", "slowest", "fastest", "µs each"],
        [(kind, statistics.median(r), min(r), max(r), size / statistics.median(r) / 1e3) for kind, r in rates.items()],
    )


# --- system calls ---


def _count_calls(on: Stage, args: argparse.Namespace) -> None:
    rows = []
    (here,) = os.sched_getaffinity(0)  # as the stage has it
    cores = here, on.workers[0].core
    for size in args.size:
        for kind in _CALLED:
            each = costs.calls_a_round(carrying(kind, size, on.wait, cores), *_CALL_ROUNDS)
            on.report.data.setdefault("calls", {}).setdefault(kind, {})[str(size)] = each
            rows.append((kind, on.report.size(size), each))
    title = "System calls of both processes for a buffer there and back, by strace"
    on.report.add_table(title, ["way", "size", "calls"], rows)
    on.report.add_remark(f"HALF may take {2 * _MPROTECTS} calls, {_MPROTECTS} mprotect on each side; the others none")


def carrying(kind: str, size: int, wait: str, cores: tuple[int, int]) -> Callable[[int], list[str]]:
    """The command that carries so many buffers and does nothing else."""
    module = [sys.executable, "-W", "ignore", "-m", "bulktransfer.bench.trust"]
    return lambda rounds: [*module, kind, str(size), wait, *map(str, cores), str(rounds)]


def main(arguments: list[str]) -> int:
    """`python -m bulktransfer.bench.trust KIND SIZE WAIT CORE CORE ROUNDS`: carry, for whoever counts."""
    kind, size, wait, here, there, rounds = arguments
    trust = {HALF: bulk.Trust.HALF, FULL: bulk.Trust.FULL}.get(kind, bulk.Trust.NONE)
    with machine.pinned(int(here)), Worker(int(there)) as worker:
        ours = Ours(worker, int(size), trust=trust, wait=wait, exposed=kind == EXPOSED)
        with contextlib.closing(ours):
            ours.carry(int(rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
