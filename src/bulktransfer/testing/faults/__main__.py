"""`python -m bulktransfer.testing.faults kill|fail`: every step of every scene, and a table of what became of it.

Knows: how it is asked for, and how it is told of. Must not know: what a step is.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import bulktransfer as bulk

from . import fails, kills
from .kills import SCENES, Scene
from .tracing import may_trace

OK, WRONG, CANNOT = 0, 1, 2


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    made = argparse.ArgumentParser(prog="python -m bulktransfer.testing.faults", description=__doc__)
    made.add_argument("what", choices=("kill", "fail"))
    made.add_argument("--every", type=int, default=1, help="try one step of so many; default: each")
    made.add_argument("--start", type=int, default=1, help="the first step; default: 1")
    made.add_argument("--scene", type=int, action="append", choices=range(len(SCENES)), help="default: all")
    return made


def run(what: str, scenes: list[Scene], every: int, start: int) -> int:
    """Try, print; the exit status."""
    if not may_trace():
        print("this machine does not let a process trace its child, or is no x86-64", file=sys.stderr)
        return CANNOT
    tries: Callable[[Scene, str, int, int], Iterator[Any]]
    tries, table = (kills.kill_all, kills.table) if what == "kill" else (fails.fail_all, fails.table)
    found: list[Any] = []
    with tempfile.TemporaryDirectory(prefix="bulk-") as directory, warnings.catch_warnings():
        warnings.simplefilter("ignore", bulk.SecurityWarning)
        os.environ["BULKTRANSFER_DIR"] = directory
        for scene in scenes:
            kills.warm_up(scene, directory)
            before = len(found)
            for one in tries(scene, directory, every, start):
                found.append(one)
                if one.wrong:
                    print(f"WRONG: {one}", flush=True)
            print(f"{scene.name}: {len(found) - before} tried", flush=True)
    print(table(found), flush=True)
    return WRONG if any(one.wrong for one in found) else OK


if __name__ == "__main__":
    args = parser().parse_args()
    sys.exit(run(args.what, [SCENES[i] for i in args.scene or range(len(SCENES))], args.every, args.start))
