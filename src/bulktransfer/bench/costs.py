"""`bulk bench costs`: what a transfer costs in instructions, system calls and page faults.

Knows: how to have a program counted (callgrind, strace). Must not know: what the loops of selfsend.py do.

A count is the difference between a long and a short run, so that start and end fall out. It depends neither on the
clock nor on who else uses the machine: what a test can hold.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import bulktransfer as bulk

from . import options
from .machine import CannotMeasure
from .report import Report, plain
from .selfsend import LOOPS

SHORT, LONG = 2_000, 12_000
LIMIT_S = 300
HALVES = 2  # a round is one transfer there and one back


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bulk bench costs`."""
    parser.add_argument("--trust", type=options.trust, default=bulk.Trust.FULL, metavar="full|half|none")
    parser.add_argument("--backend", default="shm", help="default: shm")
    parser.add_argument("--loop", choices=[*LOOPS], action="append", help="one of these loops only; may be repeated")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> Report:
    """Count each loop. Raises: CannotMeasure (there is neither valgrind nor strace)."""
    if not shutil.which("valgrind") and not shutil.which("strace"):
        raise CannotMeasure("it takes valgrind, strace, or both")
    report = Report("costs", plain(args))
    rows = []
    for loop in args.loop or LOOPS:
        found = {
            "instructions": instructions(loop, args.backend, args.trust),
            "system_calls": system_calls(loop, args.backend, args.trust),
            "page_faults": page_faults(loop, args.backend, args.trust),
        }
        report.data[loop] = found
        rows.append((loop, *found.values()))
    title = f"A move or pass with its receive at trust {args.trust.name} over {args.backend}:, one process to itself"
    report.add_table(title, ["loop", "instructions", "system calls", "page faults"], rows)
    report.add_remark(
        "instructions: the interpreter, the loop and the library, by callgrind; -: the tool is not installed"
    )
    report.finish()
    return report


def instructions(loop: str, backend: str, trust: bulk.Trust) -> float | None:
    """Instructions a transfer; None without valgrind. Raises: CannotMeasure."""
    if not shutil.which("valgrind"):
        return None
    tool = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    counts = []
    for rounds in (SHORT, LONG):
        said = _counted(tool, loop, backend, trust, rounds).stderr
        found = re.search(r"Collected : (\d+)", said)
        if not found:
            raise CannotMeasure(f"callgrind counted nothing: {said[-500:]}")
        counts.append(int(found[1]))
    return (counts[1] - counts[0]) / (LONG - SHORT) / HALVES


def system_calls(loop: str, backend: str, trust: bulk.Trust) -> float | None:
    """System calls a transfer; None without strace, or where nobody may be traced."""
    each = calls_a_round(lambda rounds: _command(loop, backend, trust, rounds), SHORT, LONG)
    return None if each is None else each / HALVES


def calls_a_round(command: Callable[[int], list[str]], short: int, long: int) -> float | None:
    """System calls that a program and its children make for each further round; None where that cannot be counted."""
    if not shutil.which("strace"):
        return None
    counts = []
    with tempfile.TemporaryDirectory() as directory:
        table = Path(directory, "counts")
        for rounds in (short, long):
            try:
                _run(["strace", "-f", "-c", "-o", str(table), *command(rounds)])
            except CannotMeasure:
                return None
            total = table.read_text().splitlines()[-1].split()
            counts.append(int(total[3] if len(total) > 4 and total[-1] == "total" else total[2]))
    return (counts[1] - counts[0]) / (long - short)


def page_faults(loop: str, backend: str, trust: bulk.Trust) -> float:
    """Page faults a transfer, after a warm-up. Raises: CannotMeasure."""
    return int(_counted([], loop, backend, trust, LONG).stdout) / LONG / HALVES


def _counted(
    tool: list[str], loop: str, backend: str, trust: bulk.Trust, rounds: int
) -> subprocess.CompletedProcess[str]:
    return _run([*tool, *_command(loop, backend, trust, rounds)])


def _command(loop: str, backend: str, trust: bulk.Trust, rounds: int) -> list[str]:
    return [sys.executable, "-m", "bulktransfer.bench.selfsend", loop, backend, trust.name, str(rounds)]


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    surroundings = {**os.environ, "PYTHONHASHSEED": "0"}  # else the two runs differ by more than their rounds
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env=surroundings, check=False)
    if done.returncode:
        raise CannotMeasure(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    return done
