"""`bulk forward FROM TO`: joins two channels until they end.

Knows: how the two ends are named, and which of them decides direction, trust and meta size. Must not know: how
anything is forwarded.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING, NamedTuple

import bulktransfer as bulk

if TYPE_CHECKING:
    _Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

OK, BROKEN, CANNOT = 0, 1, 2

_EPILOG = """\
FROM and TO are addresses (shm:NAME, tcp://HOST:PORT, …). bind:ADDRESS, or the address alone, binds to a channel that
somebody created or creates in time; create:ADDRESS creates one for somebody to bind. What is created takes direction,
trust and meta size from what is bound; where both are created, data flows from FROM to TO, and --trust says the level.

exit status:
  0  the channels ended in order
  1  one of them broke, and the other was told
  2  they could not be joined: arguments, an address, a refusal
  130  interrupted
"""


class End(NamedTuple):
    """One of the two ends as the user named it."""

    created: bool
    address: str


def end(text: str) -> End:
    """What FROM or TO says; for argparse."""
    for prefix in ("create:", "bind:"):
        if text.startswith(prefix):
            return End(prefix == "create:", text.removeprefix(prefix))
    return End(False, text)


def add_parser(commands: _Subparsers) -> None:
    """Mount the command."""
    parser = commands.add_parser(
        "forward",
        help="join two channels of any backends",
        description="Forward between two channels until they end: pools, vetoes, transfers, removals and errors.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=end, metavar="FROM", help="where the data comes from")
    parser.add_argument("sink", type=end, metavar="TO", help="where it goes")
    parser.add_argument("--trust", choices=["none", "half", "full"], help="demanded of both channels")
    parser.add_argument("--meta-size", type=int, metavar="BYTES", help="of channels that are created (default 0)")
    parser.add_argument("--timeout", type=float, default=10.0, metavar="SECONDS", help="for a bind (default 10)")


def run(args: argparse.Namespace) -> int:
    """Do it; the exit status, as the help says."""
    trust = bulk.Trust[args.trust.upper()] if args.trust else bulk.Trust.UNINITIALIZED
    with contextlib.ExitStack() as stack:
        forwarder = stack.enter_context(bulk.Forwarder(report=tell))
        try:
            a, b = open_ends(stack, args.source, args.sink, trust, args.meta_size, args.timeout)
            junction = forwarder.add(a, b)
        except (bulk.BulkError, OSError, ValueError, ImportError) as error:
            print(f"bulk forward: {type(error).__name__}: {error}", file=sys.stderr)
            return CANNOT
        for named, channel in ((args.source, a), (args.sink, b)):
            if named.created:
                print(f"created {channel.address}", flush=True)
        forwarder.run()
    print(f"forwarded {junction.forwarded} buffers")
    if junction.error is not None:
        print(f"bulk forward: {type(junction.error).__name__}: {junction.error}", file=sys.stderr)
        return BROKEN
    return OK


def tell(problem: object) -> None:
    """Say what could not go on; it went back to where it came from."""
    print(f"bulk forward: refused: {problem}", file=sys.stderr, flush=True)


def open_ends(
    stack: contextlib.ExitStack, source: End, sink: End, trust: bulk.Trust, meta_size: int | None, timeout: float
) -> tuple[bulk.Channel, bulk.Channel]:
    """The two channels, those that are bound first. Raises: BulkError, OSError, ValueError."""
    if not (source.created and sink.created) and meta_size is not None:
        raise ValueError("--meta-size is for two channels that are created; the bound one has a size of its own")
    if source.created and sink.created and trust is bulk.Trust.UNINITIALIZED:
        raise ValueError("--trust is needed where both channels are created: nobody else says how far to trust")
    ends = (source, sink)
    bound = [
        None if named.created else stack.enter_context(bulk.bind(named.address, trust=trust, timeout=timeout))
        for named in ends
    ]
    found = []
    for named, channel, other, direction in zip(
        ends, bound, reversed(bound), (bulk.Direction.RX, bulk.Direction.TX), strict=True
    ):
        if channel is None and other is not None:
            channel = bulk.create(
                named.address, direction=other.direction.other, trust=other.trust, meta_size=other.meta_size
            )
        elif channel is None:
            channel = bulk.create(named.address, direction=direction, trust=trust, meta_size=meta_size or 0)
        found.append(channel if channel in bound else stack.enter_context(channel))
    return found[0], found[1]
