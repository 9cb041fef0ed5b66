"""`bulk block bench`: the report's work loads, against a server of its own or one that runs.

Knows: arguments, the server's process, how figures are printed. Must not know: the loads (workload.py).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import bulktransfer as bulk

from ..service.device import BlockDevice
from . import chain, plain, workload
from .workload import Figures

if TYPE_CHECKING:
    _Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

OK, WRONG, CANNOT = 0, 1, 2
_SIZE = workload.BLOCKS * 4096


def add_parser(commands: _Subparsers) -> None:
    """Mount the command."""
    parser = commands.add_parser(
        "bench",
        help="measure the report's work loads on the block service",
        description="Measure the report's work loads (I-7.5, network benchmark) on the block service; every block that "
        "is read is checked. Without --connect, a server in a process of its own has the report's store: 1024 blocks "
        "of 4096 bytes in memory.",
        epilog="exit status: 0 measured, 1 a block was wrong, 2 it cannot be measured here",
    )
    parser.add_argument("--connect", metavar="ADDRESS", help="a block service that runs; overwrites 4 MiB")
    parser.add_argument("--export", default="", metavar="NAME", help="which of its exports")
    parser.add_argument("--runs", type=int, default=100, help="runs of each load (default 100; the report: 1000)")
    parser.add_argument(
        "--chain",
        action="store_true",
        help="instead: 1 MiB after 1 MiB through Figure 7.1 (shm, client, tcp), beside the network backend alone",
    )
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")


@contextlib.contextmanager
def served() -> Iterator[str]:
    """A server of our own; its address. Raises: OSError (it did not start)."""
    command = [sys.executable, "-m", "bulktransfer", "block", "serve", "shm:", "--store", f"memory:{_SIZE}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith("serving"):
                raise OSError("the server did not start")
            yield line.split()[-1]
        finally:
            process.terminate()
            process.communicate()


def measure(address: str, export: str, runs: int) -> list[Figures]:
    """All loads. Raises: BulkError, WrongContents."""
    found = []
    with BlockDevice(address, export=export, buffers=workload.BUFFERS, buffer_size=4096) as device:
        found += workload.write_runs(device, runs)
        workload.fill(device)
        found += workload.read_runs(device, runs)
        found += workload.user_runs(device, runs)
    with BlockDevice(address, export=export, buffers=16, buffer_size=1 << 20) as device:
        found += workload.sequential(device, runs)
    return found


def show(found: list[Figures], as_json: bool) -> None:
    """Print what was found."""
    if as_json:
        print(json.dumps([figures._asdict() for figures in found]))
        return
    print(f"load (1-minute load of the machine: {os.getloadavg()[0]:.1f}), times in microseconds")
    print(f"{'':26}{'median':>10}{'mean':>10}{'min':>10}{'p99':>10}{'max':>10}{'stddev':>10}{'blocks/s':>12}")
    for one in found:
        times = (one.median_us, one.mean_us, one.min_us, one.p99_us, one.max_us, one.stddev_us)
        print(f"{one.name:26}" + "".join(f"{time:10.1f}" for time in times) + f"{one.blocks_per_s:12,.0f}")


def show_chain(found: dict[str, list[chain.Way]], as_json: bool) -> None:
    """Print what was found of Figure 7.1."""
    if as_json:
        print(json.dumps({what: [way._asdict() for way in ways] for what, ways in found.items()}))
        return
    for what, ways in found.items():
        print(
            f"sequential {what}, 1 MiB, {plain.WINDOW} under way{'GB/s':>14}   part of plain (to reach: {chain.REACH})"
        )
        for way in ways:
            print(f"  {way.name:40}{way.gb_per_s:10.2f}   {way.part:.2f} ({way.least:.2f}-{way.most:.2f})")


def run_chain(args: argparse.Namespace) -> int:
    """Measure Figure 7.1; the exit status."""
    try:
        found = chain.measure(rounds=max(3, min(11, args.runs)), count=16 * min(args.runs, 50))
    except (OSError, bulk.BulkError) as error:
        print(f"bulk block bench: {error}", file=sys.stderr)
        return CANNOT
    show_chain(found, args.json)
    return OK


def run(args: argparse.Namespace) -> int:
    """Measure, and print; the exit status, as the help says."""
    if args.runs < 1:
        print("bulk block bench: --runs takes a positive number", file=sys.stderr)
        return CANNOT
    if args.chain:
        return run_chain(args)
    try:
        with contextlib.ExitStack() as stack:
            address = args.connect or stack.enter_context(served())
            found = measure(address, args.export, args.runs)
    except workload.WrongContents as error:
        print(f"bulk block bench: {error}", file=sys.stderr)
        return WRONG
    except (OSError, bulk.BulkError) as error:
        print(f"bulk block bench: {error}", file=sys.stderr)
        return CANNOT
    show(found, args.json)
    return OK
