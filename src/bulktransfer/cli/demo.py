"""`bulk demo`: sends a file every way there is, checks what arrives, and shows what is refused.

Knows: what is done in which order, and when that was a success. Must not know: how it is done, or printed.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING

import bulktransfer as bulk

from ..bench import options
from . import misdeeds, routes, show, strays
from .crew import CrewError
from .outcome import Outcome, Sent, arrived
from .progress import Progress
from .routes import Route
from .source import Source, SourceError, generated, opened

if TYPE_CHECKING:
    _Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

DEFAULT_BYTES = 1 << 30
_BIG_BYTES = 4 << 30
OK, WRONG, CANNOT = 0, 1, 2

_EPILOG = """\
exit status:
  0  every digest was right and every misdeed was refused
  1  a digest was wrong, a misdeed went through, or a process failed
  2  there was nothing to send: arguments, FILE, or no room for a temporary one
  130  interrupted
"""


def add_parser(commands: _Subparsers) -> None:
    """Mount the command."""
    parser = commands.add_parser(
        "demo",
        help="send a file between processes and threads, and see what is refused",
        description="Send a file in bulk buffers between processes, through a chain of three, and between threads; "
        "check a digest at the end; then have a process misbehave on purpose.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", nargs="?", metavar="FILE", help="what to send; default: a file that is generated")
    parser.add_argument(
        "--size",
        type=options.size,
        metavar="BYTES",
        help="how much to generate (default 1GiB), or to send of FILE (default: all); 256MiB and the like will do",
    )
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")


def run(args: argparse.Namespace) -> int:
    """Do it; the exit status, as the help says."""
    try:
        outcome = demonstrate(args.file, args.size)
    except SourceError as error:
        print(f"bulk demo: {error}", file=sys.stderr)
        return CANNOT
    except (CrewError, bulk.BulkError, OSError, MemoryError) as error:
        print(f"bulk demo: {type(error).__name__}: {error}", file=sys.stderr)
        return WRONG
    print(show.as_json(outcome) if args.json else show.as_text(outcome))
    return OK if outcome.ok else WRONG


def demonstrate(name: str | None, size: int | None) -> Outcome:
    """The whole demonstration. Raises: SourceError, CrewError, BulkError, OSError."""
    ways = routes.routes()
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(Progress())
        if name is None:
            wanted = size or DEFAULT_BYTES
            progress.expect((1 + _readings(wanted, ways)) * wanted)
            progress.show("writing a file")
            source = stack.enter_context(generated(wanted, progress.advance))
        else:
            source = stack.enter_context(opened(name, size))
            progress.expect(_readings(source.size, ways) * source.size)
        return _demonstrate(source, ways, progress)


def _repeats(size: int) -> int:
    """How often a pass without a digest is made: it is over soon, and one alone tells little."""
    return 3 if size <= _BIG_BYTES else 1


def _readings(size: int, ways: list[Route]) -> int:
    return (1 + _repeats(size)) * (1 + len(ways))


def _demonstrate(source: Source, ways: list[Route], progress: Progress) -> Outcome:
    advance, repeats = progress.advance, _repeats(source.size)
    progress.show("reading it")
    digest, checked = routes.read_digest(source, advance)
    bare = [routes.read_alone(source, advance) for _ in range(repeats)]
    outcome = Outcome(source.name, source.size, source.generated, digest)
    outcome.alone = Sent(None, bare, checked, True)
    for route in ways:
        progress.show(f"{route.name}, trust {route.trust.name}")
        with routes.standing(route) as line:
            bare = [line.send(source, checked=False, advance=advance) for _ in range(repeats)]
            checked = line.send(source, checked=True, advance=advance)
        outcome.sent.append(Sent(route, bare, checked, arrived(source.size, digest, bare, checked)))
    for trust in routes.trusts("shm"):
        progress.show(f"misbehaving, trust {trust.name}")
        outcome.refusals[trust] = [*misdeeds.commit(trust), *strays.commit(trust)]
    return outcome
