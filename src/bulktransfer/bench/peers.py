"""`bulk bench peers`: the same hand-over by other libraries, in turn with ours.

Knows: an adapter a library, and that a library may not be installed. Must not know: how ours works.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import secrets
import statistics
import time
from collections.abc import Callable
from typing import Any, Protocol

from . import options
from .handover import hand_over
from .iceoryx import Service
from .machine import quiet
from .partner import Session
from .report import Report, verdict_text
from .rivals.roster import ROSTER
from .stage import Stage, stage
from .stats import ratio
from .worker import Worker

TIMES = 3.0
WORK = ("hand-over", "fill")


class Peer(Protocol):
    """The source of a hand-over by another library; its sink is an operation of the partner."""

    def one_by_one(self, count: int) -> int:
        """The ns that `count` buffers take, at most WINDOW on their way, until the sink has the last."""
        ...

    def close(self) -> None: ...


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bulk bench peers`."""
    options.add_measured(parser, default_sizes="4KiB,1MiB")
    options.add_pairs(parser)
    parser.add_argument("--only", choices=ROSTER, action="append", help="this one (may be given again)")
    parser.add_argument("--work", choices=WORK, help="one of the two: hand-over alone, or fill + sum; default: both")
    parser.add_argument("--transfers", type=options.count, default=50_000, help="per segment of the hand-over")
    parser.add_argument("--buffers", type=options.count, help="per segment of fill + sum (default: 256 MiB of them)")


def run(args: argparse.Namespace) -> Report:
    """Measure ours and each peer in turn; a peer that is not installed is named and left out."""
    with stage("peers", args) as on:
        rows: list[tuple[object, ...]] = []
        for name in sorted(PEERS) if args.work != "fill" else []:
            if args.only and name not in args.only:
                continue
            if importlib.util.find_spec(name) is None:
                on.report.add_remark(f"{name} is not installed: left out")
                on.report.data[name] = None
                continue
            for size in args.size:
                rows += _compare(on, args, name, size)
        if rows:
            on.report.add_table(
                "Hand-over, window 32, buffers/s", ["peer", "size", "peer's", "ours", "ours, batches"], rows
            )
        if args.work != "hand-over" and importlib.util.find_spec("numpy") is not None:
            from . import consume  # with NumPy

            for size in args.size:
                consume.compare(on, args, size)
    return on.report


def _compare(on: Stage, args: argparse.Namespace, name: str, size: int) -> list[tuple[object, ...]]:
    theirs, ours, batched = [], [], []
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(contextlib.closing(hand_over(args, on.workers[0], size=size, wait=on.wait)))
        peer = stack.enter_context(contextlib.closing(PEERS[name](on.workers[0], size, on.share_core)))
        warm_up = args.transfers // 10 + 1
        for step in (source.one_by_one, source.batches, peer.one_by_one):
            step(warm_up)
        for _ in range(args.pairs):
            theirs.append(args.transfers / peer.one_by_one(args.transfers) * 1e9)
            ours.append(args.transfers / source.one_by_one(args.transfers) * 1e9)
            batched.append(args.transfers / source.batches(args.transfers) * 1e9)
    for what, rates in (("one by one", ours), ("batches", batched)):
        found = ratio(rates, theirs)
        verdict = found.at_least(TIMES) if on.limited and on.wait == "spin" else None
        text = f"{what}, {on.report.size(size)}, as a multiple of {name}"
        on.report.add_remark(verdict_text(text, found, TIMES, verdict))
    on.report.data.setdefault(name, {})[str(size)] = {
        "peer_per_s": theirs,
        "one_by_one_per_s": ours,
        "batched_per_s": batched,
    }
    return [(name, on.report.size(size), *(statistics.median(rates) for rates in (theirs, ours, batched)))]


class Iceoryx2:
    """iceoryx2's Python binding, polling: loan, send; receive, release."""

    def __init__(self, worker: Worker, size: int, share_core: bool) -> None:
        self._worker = worker
        self._size = size
        self._share_core = share_core
        service = f"bulktransfer-bench-{os.getpid()}-{secrets.token_hex(4)}"
        worker.call(iceoryx2_open, name="iceoryx2", service=service, size=size)
        self._source = Service(service, size, publishes=True)

    def one_by_one(self, count: int) -> int:
        """See Peer."""
        loan, size = self._source.port.loan_slice_uninit, self._size
        arguments: dict[str, Any] = {"name": "iceoryx2", "count": count, "share_core": self._share_core}
        with self._worker.running(iceoryx2_take, **arguments), quiet():
            start_ns = time.perf_counter_ns()
            for _ in range(count):
                loan(size).assume_init().send()
        return time.perf_counter_ns() - start_ns

    def close(self) -> None:
        """Let go of the service on both sides."""
        self._source.close()
        self._worker.drop("iceoryx2")


PEERS: dict[str, Callable[[Worker, int, bool], Peer]] = {"iceoryx2": Iceoryx2}


# --- what the partner does ---


def iceoryx2_open(session: Session, *, name: str, service: str, size: int) -> None:
    """Subscribe."""
    session.keep(name, Service(service, size, publishes=False))


def iceoryx2_take(session: Session, *, name: str, count: int, share_core: bool) -> None:
    """Receive and release."""
    receive = session.get(Service, name).port.receive
    for _ in range(count):
        while (sample := receive()) is None:
            if share_core:
                os.sched_yield()
        sample.delete()
