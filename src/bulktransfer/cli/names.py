"""`bulk names`: which services there are, where one is, and what comes and goes.

Knows: how it is printed. Must not know: where names are kept.
"""

from __future__ import annotations

import argparse
import json
import select
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

import bulktransfer as bulk

if TYPE_CHECKING:
    _Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

OK, NOTHING, CANNOT = 0, 1, 2

_EPILOG = """\
exit status:
  0  done (list: also where there is none)
  1  nobody has the name
  2  the name service cannot be asked
  130  interrupted (watch ends so)
"""


def add_parser(commands: _Subparsers) -> None:
    """Mount the command."""
    parser = commands.add_parser(
        "names",
        help="what services there are by name",
        description="Ask the name service that name: addresses are resolved by.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    acts = parser.add_subparsers(dest="act", required=True, metavar="ACT")
    acts.add_parser("list", help="every name that has a living owner")
    acts.add_parser("resolve", help="where a name leads").add_argument("name", metavar="NAME")
    watch = acts.add_parser("watch", help="what comes and goes, until interrupted")
    watch.add_argument("name", nargs="?", metavar="NAME", help="this one only")
    for act in acts.choices.values():
        act.add_argument("--json", action="store_true", help="one JSON object a line")


def run(args: argparse.Namespace) -> int:
    """Do it; the exit status, as the help says."""
    try:
        service = bulk.names.current()
        if args.act == "list":
            for entry in service.entries():
                show(entry, args.json)
        elif args.act == "resolve":
            found = service.resolve(args.name)
            if found is None:
                print(f"bulk names: nobody has {args.name!r}", file=sys.stderr)
                return NOTHING
            show(found, args.json)
        else:
            watch(service, args.name, args.json)
    except (OSError, ValueError, ImportError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        print(f"bulk names: {type(error).__name__}: {error}", file=sys.stderr)
        return CANNOT
    return OK


def watch(service: bulk.names.NameService, name: str | None, as_json: bool) -> None:
    """Say what is there, and what comes and goes, until interrupted."""
    watching = service.watch(name)
    known: set[bulk.names.Entry] = set()
    try:
        while True:
            watching.clear()
            found = set(service.entries() if name is None else filter(None, [service.resolve(name)]))
            report(sorted(known - found), "gone", as_json)
            report(sorted(found - known), "there", as_json)
            known = found
            select.select([watching], [], [])
    finally:
        watching.close()


def report(entries: Iterable[bulk.names.Entry], what: str, as_json: bool) -> None:
    """Say of each that it is there, or gone."""
    for entry in entries:
        show(entry, as_json, what)


def show(entry: bulk.names.Entry, as_json: bool, what: str = "") -> None:
    """One line."""
    if as_json:
        print(json.dumps(entry.as_dict() | ({"event": what} if what else {})), flush=True)
    else:
        whose = f"process {entry.pid} of user {entry.uid} on {entry.host}"
        print(f"{what + ' ' if what else ''}{entry.name}  {entry.address}  {whose}", flush=True)
