"""`bulk doctor`: what this machine offers, and what to change.

Knows: how it is printed, and which findings are a failure. Must not know: what is examined.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from typing import TYPE_CHECKING

import bulktransfer as bulk

from .examine import BAD, NOTE, Finding, examine

if TYPE_CHECKING:
    _Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

OK, MISSING = 0, 1
_MARKS = {NOTE: "note", BAD: "BAD"}

_EPILOG = """\
exit status:
  0  everything that the library needs is there
  1  something is missing: see BAD
"""


def add_parser(commands: _Subparsers) -> None:
    """Mount the command."""
    parser = commands.add_parser(
        "doctor",
        help="what this machine offers, and what to change",
        description="Try what the library needs of the kernel, look at limits, and say what to change.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(args: argparse.Namespace) -> int:
    """Do it; the exit status, as the help says."""
    findings = examine()
    bad = [finding for finding in findings if finding.verdict == BAD]
    if args.json:
        whole = {"version": bulk.__version__, "ok": not bad, "findings": [finding._asdict() for finding in findings]}
        print(json.dumps(whole, indent=1))
    else:
        print("\n".join(line(finding) for finding in findings))
        print(f"\n{len(bad)} things are missing: see BAD." if bad else "\nEverything that bulktransfer needs is there.")
    return MISSING if bad else OK


def line(finding: Finding) -> str:
    """One finding, with its advice on a line of its own."""
    text = f"{_MARKS.get(finding.verdict, 'good'):<5} {finding.name}: {finding.found}"
    if finding.advice:
        text += "\n" + textwrap.indent(f"-> {finding.advice}", " " * 6)
    return text
