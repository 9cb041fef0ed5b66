"""The stage of a benchmark: partners on their cores, the floor measured before and after.

Knows: who stands where. Must not know: what is measured in between.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import bulktransfer as bulk

from . import machine
from .floor import LINE, SOCKET, Floor
from .report import Report, plain
from .worker import Worker


@dataclass(frozen=True, slots=True)
class Stage:
    """What a benchmark works with."""

    report: Report
    workers: list[Worker]
    floor: Floor  # between the caller and the first worker
    wait: str
    share_core: bool
    limited: bool  # the limits hold at trust FULL for processes, each on a core of its own

    @property
    def echo_floor(self) -> str:
        """The floor that belongs to the way of waiting: LINE, or SOCKET where both sides sleep."""
        return SOCKET if self.wait == "block" else LINE


@contextlib.contextmanager
def stage(benchmark: str, args: argparse.Namespace, partners: int = 1) -> Iterator[Stage]:
    """Set the caller and its partners on their cores; when all went well, the report is finished on leaving.

    Raises: CannotMeasure; PartnerError.
    """
    report = Report(benchmark, plain(args))
    cores = machine.cores_for(args.pin, partners + 1)
    crowded = len(set(cores[:2])) < 2
    repeated = len(set(cores)) < len(cores)
    wait = args.wait or ("auto" if args.backend == "local" else "block" if repeated else "spin")
    if wait == "spin" and repeated:
        report.add_remark(f"{len(cores)} processes spin on {len(set(cores))} cores: each burns the time of another")
    report.options["wait"] = wait
    size = max(args.size)
    with contextlib.ExitStack() as stack:
        stack.enter_context(machine.pinned(cores[0]))
        workers = [stack.enter_context(Worker(core, thread=args.backend == "local")) for core in cores[1:]]
        share_core = cores[0] == cores[1]
        floor = stack.enter_context(contextlib.closing(Floor(workers[0], share_core=share_core)))
        report.floor_before = floor.figures(size)
        at_full = getattr(args, "trust", bulk.Trust.FULL) is bulk.Trust.FULL  # the others are judged by trust.py
        limited = args.backend != "local" and not crowded and at_full
        yield Stage(report, workers, floor, wait, share_core, limited)
        report.floor_after = floor.figures(size)
    report.finish()
