"""`bulk check`: the report's tests 0 to 6 on this machine, and what they saw.

Knows: which levels are tested on which cores, and how that is printed. Must not know: how a test goes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import bulktransfer as bulk

from ..bench import options
from ..bench.table import render
from ..testing import MODES, Subject, guarantees
from ..testing.guarantees import CannotPin, Finding

if TYPE_CHECKING:
    _Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

OK, WRONG, CANNOT = 0, 1, 2
_BUILT_IN = {"shm": "shm:", "local": "local:", "tcp": "tcp://127.0.0.1:0"}
_ONE_PROCESS = ("local",)
_CORES = {"same": "on one core", "split": "on two cores"}

_EPILOG = """\
tests (the report's section II-5.1):
  0, 1  what is moved and copied arrives as it was, on a trusted and on a non-trusted channel
  2-6   what was passed, moved or released is out of reach, what is copied is read-only: one process
        goes around the library and reads or writes from C. At trust HALF the kernel must stop it;
        at NONE it meets a copy of its own, and the other process must be unharmed; at FULL nothing
        stops it. In Python it is refused at every level.
exit status:
  0  everything was as expected
  1  something was not
  2  nothing could be tested: arguments, or one core only
"""


class Level(NamedTuple):
    """One group of tests."""

    subject: Subject
    trust: bulk.Trust
    pin: str

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.subject.scheme}:, trust {self.trust.name}, {_CORES[self.pin]}"


def add_parser(commands: _Subparsers) -> None:
    """Mount the command."""
    parser = commands.add_parser(
        "check",
        help="test on this machine that what was given away is out of reach",
        description="Run the report's tests 0 to 6 with real processes and say what they saw.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--backend",
        action="append",
        metavar="SCHEME|ADDRESS",
        help="shm, local or another scheme, or an address to create; may be repeated; default: all that need no set-up",
    )
    parser.add_argument(
        "--trust", type=options.trust, action="append", metavar="full|half|none", help="default: all that it offers"
    )
    parser.add_argument("--pin", choices=("same", "split", "both"), default="both", help="cores; default: both")
    parser.add_argument("--json", action="store_true", help="print what was seen as JSON")


def run(args: argparse.Namespace) -> int:
    """Do it; the exit status, as the help says."""
    try:
        levels = list(_levels(args.backend, args.trust, args.pin))
        if not levels:
            raise ValueError("no backend that was named offers a level that was named")
        for level in levels:
            guarantees.cores_for(level.pin)
    except (CannotPin, ValueError, ImportError) as error:
        print(f"bulk check: {error}", file=sys.stderr)
        return CANNOT
    found = []
    for level in levels:
        findings = [
            guarantees.run(n, level.subject, level.trust, MODES[0], level.pin) for n in guarantees.tests_of(level.trust)
        ]
        found += findings
        if not args.json:
            print(f"{level.name}\n{_table(findings)}\n", flush=True)
    wrong = [finding for finding in found if not finding.right]
    print(_as_json(found) if args.json else _verdict(found, wrong))
    return WRONG if wrong else OK


def _levels(backends: list[str] | None, trusts: list[bulk.Trust] | None, pin: str) -> Iterator[Level]:
    """What is to be tested. Raises: ValueError (an unknown scheme)."""
    pins = ("same", "split") if pin == "both" else (pin,)
    for subject in _subjects(backends):
        for trust in subject.trusts:
            if trusts is None or trust in trusts:
                yield from (Level(subject, trust, one) for one in pins)


def _subjects(backends: list[str] | None) -> Iterator[Subject]:
    for name in backends or [name for name in _BUILT_IN if _is_there(name)]:
        address = _BUILT_IN.get(name, name if ":" in name else f"{name}:")
        yield Subject(address, processes=address.partition(":")[0] not in _ONE_PROCESS)


def _is_there(name: str) -> bool:
    try:
        bulk.backends.backend_for(_BUILT_IN[name])
    except (ValueError, ImportError):
        return False
    return True


def _table(findings: list[Finding]) -> str:
    rows = [
        (f.test, guarantees.TITLES[f.test], f.seen.python, f.seen.c, "ok" if f.right else f"WRONG, not: {f.expected}")
        for f in findings
    ]
    return render(("test", "promise", "in Python", "from C", ""), rows)


def _verdict(found: list[Finding], wrong: list[Finding]) -> str:
    if wrong:
        return f"{len(wrong)} of {len(found)} tests saw something else than expected: see WRONG above."
    return f"All {len(found)} tests saw what was expected."


def _as_json(found: list[Finding]) -> str:
    return json.dumps(
        {
            "version": bulk.__version__,
            "tests": [
                {
                    "test": f.test,
                    "promise": guarantees.TITLES[f.test],
                    "backend": f.scheme,
                    "trust": f.trust.name,
                    "cores": f.pin,
                    "seen": f.seen._asdict(),
                    "expected": f.expected._asdict(),
                    "ok": f.right,
                }
                for f in found
            ],
            "ok": all(f.right for f in found),
        },
        indent=1,
    )
