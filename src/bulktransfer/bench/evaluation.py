"""`bulk bench report`: the report's evaluation (II-5.2) on this machine, and what it left out, as one page.

Knows: which benchmark with which options makes which figure. Must not know: how anything is measured or drawn.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import machine

LIMIT_S = 900  # a run's watchdog; the longest takes about two minutes
TRUSTS = ("full", "half", "none")
_NONE_UP_TO = 64 << 20  # by value each side has twins: four times the pool


@dataclass(frozen=True, slots=True)
class Run:
    """One call of a benchmark, and the figure of the report that it is for."""

    key: str
    figure: str
    arguments: tuple[str, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bulk bench report`."""
    parser.add_argument("directory", type=Path, help="where the page, the plots and the figures go; made if needed")
    parser.add_argument("--quick", action="store_true", help="few and small: to see that all of it works here")
    parser.add_argument("--only", action="append", metavar="KEY", help="runs whose key begins so (may be given again)")
    parser.add_argument("--redraw", action="store_true", help="measure nothing: plots and page from report.json")


def run(args: argparse.Namespace) -> int:
    """Measure, draw and write; 0 when every run gave figures, else 1. A missing matplotlib costs the plots only."""
    from . import page, plots

    kept = args.directory / "report.json"
    if args.redraw:
        whole = json.loads(kept.read_text())
    else:
        args.directory.mkdir(parents=True, exist_ok=True)
        wanted = [r for r in runs(quick=args.quick) if not args.only or r.key.startswith(tuple(args.only))]
        whole = measure(wanted, say=lambda text: print(text, file=sys.stderr, flush=True))
        kept.write_text(json.dumps(whole, indent=1))
    drawn = plots.draw(whole, args.directory)
    (args.directory / "report.md").write_text(page.write(whole, drawn))
    print(args.directory / "report.md")
    return 1 if any("error" in found for found in whole["runs"].values()) else 0


def runs(*, quick: bool) -> Iterator[Run]:
    """Every run of the evaluation, in the order of the report's figures."""
    pairs = ("--pairs", "5" if quick else "11")
    often, seldom = (("--runs", "50"), ("--runs", "5")) if quick else (("--runs", "2000"), ("--runs", "50"))
    burst = ("--runs", "5" if quick else "100")
    sizes = {"full": "4KiB,64KiB" if quick else "4KiB,64KiB,1MiB,16MiB,1GiB"}
    sizes["half"] = sizes["full"]
    sizes["none"] = sizes["full"].replace("1GiB", options_text(_NONE_UP_TO))

    for trust in TRUSTS:
        rounds = seldom if trust == "none" else often
        yield Run(
            f"size-{trust}",
            "5.5",
            ("rtt", "--trust", trust, "--size", sizes[trust], "--buffers", "2", *rounds, *pairs),
        )
    for trust, latency, throughput in (("full", "5.6", "5.7"), ("none", "5.8", "5.9"), ("half", "HALF", "HALF")):
        common = ("--trust", trust, "--size", "4KiB", *pairs)
        for pin, wait in (("same", "block"), ("split", "block"), ("split", "spin")):
            placed = ("--pin", pin, "--wait", wait)
            yield Run(f"latency-{trust}-{pin}-{wait}", latency, ("rtt", *common, *placed, *often))
            yield Run(
                f"throughput-{trust}-{pin}-{wait}",
                throughput,
                ("throughput", "--only", "report", *common, *placed, *burst),
            )
        if trust == "none":
            continue  # one pool round a ring of three reaches a partner by two ways, which it would have to agree to
        hops = ("--hops", "2", "--wait", "block")
        yield Run(f"latency-{trust}-hops", latency, ("rtt", *common, *hops, *often))
        yield Run(f"throughput-{trust}-hops", throughput, ("throughput", "--only", "report", *common, *hops, *burst))
    count = ("--transfers", "2000" if quick else "100000")
    yield Run(
        "network", "network", ("rtt", "--backend", "tcp", "--trust", "none", "--size", "4KiB,1MiB", *seldom, *pairs)
    )
    yield Run("handover", "hand-over", ("throughput", "--only", "handover", *count, *pairs))
    yield Run("handover-blocking", "hand-over", ("throughput", "--only", "handover", "--wait", "block", *count, *pairs))
    fill = ("--fill-size", "64KiB" if quick else "64KiB,1MiB,16MiB")
    for trust in ("full", "none"):
        yield Run(
            f"fill-{trust}", "produce + consume", ("throughput", "--only", "fill", "--trust", trust, *fill, *pairs)
        )
    yield Run("memory", "memory", ("memory", "--transfers", "20000" if quick else "1000000"))


def options_text(size: int) -> str:
    """A size as an option takes it."""
    return f"{size >> 20}MiB"


def measure(wanted: list[Run], say: Callable[[str], None]) -> dict[str, Any]:
    """Run each in a process of its own, one at a time; what fails is kept with its error, and the others go on."""
    whole: dict[str, Any] = {
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine.facts(),
        "runs": {},
    }
    for number, planned in enumerate(wanted, 1):
        say(f"{number} of {len(wanted)}: {planned.key}")
        whole["runs"][planned.key] = {"figure": planned.figure, "arguments": planned.arguments, **_outcome(planned)}
    return whole


def _outcome(planned: Run) -> dict[str, Any]:
    command = [sys.executable, "-m", "bulktransfer.bench.main", "bench", *planned.arguments, "--json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env=os.environ, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {LIMIT_S} s"}
    try:
        found = json.loads(done.stdout)
    except ValueError:
        return {"error": done.stderr.strip() or f"exit status {done.returncode}"}
    return {"found": found} | ({"error": "; ".join(found["failures"])} if found["failures"] else {})
