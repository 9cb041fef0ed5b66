"""`bulk bench compare A B`: what changed between two runs of `bulk bench report`, and what may be said of it.

Knows: two rows of samples of the same thing. Must not know: how they were measured.

The two runs were not interleaved, so nothing pairs their samples: the interval of the quotient is that of the two
medians' own intervals, which is wide, and true whatever the distribution.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import extract
from .machine import CannotMeasure
from .stats import NOISE, lower_bound, upper_bound
from .table import number_text, render


@dataclass(frozen=True, slots=True)
class Change:
    """B against A: the quotient of the medians, and its interval."""

    key: str
    what: str
    unit: str
    a: float
    b: float
    ratio: float
    lower: float
    upper: float
    verdict: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bulk bench compare`."""
    parser.add_argument("a", type=Path, metavar="A", help="report.json, or the directory that has it: before")
    parser.add_argument("b", type=Path, metavar="B", help="the same: after")
    parser.add_argument("--json", action="store_true", help="print the changes as JSON")


def run(args: argparse.Namespace) -> int:
    """Print every figure that both have; 0, or 2 where they share nothing. Raises: CannotMeasure (no report there)."""
    changes = list(compare(_load(args.a), _load(args.b)))
    if args.json:
        print(json.dumps([{name: getattr(c, name) for name in Change.__slots__} for c in changes], indent=1))
    else:
        headings = ["run", "figure", "unit", "A", "B", "B / A", "from", "to", "verdict"]
        body = [(c.key, c.what, c.unit, c.a, c.b, c.ratio, c.lower, c.upper, c.verdict) for c in changes]
        print(render(headings, body))
        print(f"\nA verdict needs an interval beside 1 and a difference above {number_text(NOISE * 100)} %.")
    return 0 if changes else 2


def compare(a: dict[str, Any], b: dict[str, Any]) -> Iterator[Change]:
    """What both reports measured, with enough samples for an interval at 95 % on either side."""
    after = {(row.key, row.what): row for row in extract.rows(b)}
    for before in extract.rows(a):
        row = after.get((before.key, before.what))
        if row is None or min(len(before.samples), len(row.samples)) < 5:
            continue
        ratio = statistics.median(row.samples) / statistics.median(before.samples)
        lower = lower_bound(row.samples) / upper_bound(before.samples)
        upper = upper_bound(row.samples) / lower_bound(before.samples)
        yield Change(
            before.key,
            before.what,
            before.unit,
            statistics.median(before.samples),
            statistics.median(row.samples),
            ratio,
            lower,
            upper,
            _verdict(ratio, lower, upper, less_is_better=row.less_is_better),
        )


def _verdict(ratio: float, lower: float, upper: float, *, less_is_better: bool) -> str:
    if lower <= 1 <= upper or abs(ratio - 1) <= NOISE:
        return "no difference"
    return "better" if (ratio < 1) == less_is_better else "worse"


def _load(path: Path) -> dict[str, Any]:
    try:
        whole = json.loads((path / "report.json" if path.is_dir() else path).read_text())
    except (OSError, ValueError) as error:
        raise CannotMeasure(f"{path} cannot be read as a report: {error}") from error
    if not isinstance(whole, dict) or "runs" not in whole:
        raise CannotMeasure(f"{path} is no report of `bulk bench report`")
    return whole
