"""`bulk forward FROM TO`: joins two channels until they end.

Knows: which of the two ends decides direction, trust and meta size. Must not know: how anything is forwarded.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from typing import TYPE_CHECKING

import bulktransfer as bulk

from .ends import End, add_network, end, network_for, network_of

if TYPE_CHECKING:
    _Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

OK, BROKEN, CANNOT = 0, 1, 2

_EPILOG = """\
FROM and TO are addresses (shm:NAME, tcp://HOST:PORT, …). bind:ADDRESS, or the address alone, binds to a channel that
somebody created or creates in time; create:ADDRESS creates one for somebody to bind. What is created takes direction,
trust and meta size from what is bound; where both are created, data flows from FROM to TO, and --trust says the level.
Channels to other machines (tcp:, tls:) are at trust NONE whatever the other end is at, which is FULL or NONE then.

exit status:
  0  the channels ended in order
  1  one of them broke, and the other was told
  2  they could not be joined: arguments, an address, a refusal
  130  interrupted
"""


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
    parser.add_argument(
        "--trust", choices=["none", "half", "full"], help="demanded of both channels, but tcp: and tls:"
    )
    parser.add_argument("--meta-size", type=int, metavar="BYTES", help="of channels that are created (default 0)")
    parser.add_argument("--timeout", type=float, default=10.0, metavar="SECONDS", help="for a bind (default 10)")
    parser.add_argument("--json", action="store_true", help="print the result as a JSON object")
    add_network(parser)


def run(args: argparse.Namespace) -> int:
    """Do it; the exit status, as the help says."""
    trust = bulk.Trust[args.trust.upper()] if args.trust else bulk.Trust.UNINITIALIZED
    with contextlib.ExitStack() as stack:
        forwarder = stack.enter_context(bulk.Forwarder(report=tell))
        try:
            network = network_of(args)
            a, b = open_ends(stack, args.source, args.sink, trust, args.meta_size, args.timeout, network)
            junction = forwarder.add(a, b)
        except (bulk.BulkError, OSError, ValueError, ImportError) as error:
            print(f"bulk forward: {type(error).__name__}: {error}", file=sys.stderr)
            return CANNOT
        for named, channel in ((args.source, a), (args.sink, b)):
            if named.created:
                print(
                    json.dumps({"created": channel.address}) if args.json else f"created {channel.address}", flush=True
                )
        forwarder.run()
    if args.json:
        print(
            json.dumps(
                {"forwarded": junction.forwarded, "error": None if junction.error is None else str(junction.error)}
            )
        )
    else:
        print(f"forwarded {junction.forwarded} buffers")
    if junction.error is not None:
        print(f"bulk forward: {type(junction.error).__name__}: {junction.error}", file=sys.stderr)
        return BROKEN
    return OK


def tell(problem: object) -> None:
    """Say what could not go on; it went back to where it came from."""
    print(f"bulk forward: refused: {problem}", file=sys.stderr, flush=True)


def open_ends(
    stack: contextlib.ExitStack,
    source: End,
    sink: End,
    trust: bulk.Trust,
    meta_size: int | None,
    timeout: float,
    network: bulk.Network | None = None,
) -> tuple[bulk.Channel, bulk.Channel]:
    """The two channels, those that are bound first. Raises: BulkError, OSError, ValueError, ImportError."""
    if not (source.created and sink.created) and meta_size is not None:
        raise ValueError("--meta-size is for two channels that are created; the bound one has a size of its own")
    if source.created and sink.created and trust is bulk.Trust.UNINITIALIZED:
        raise ValueError("--trust is needed where both channels are created: nobody else says how far to trust")
    ends = (source, sink)
    nets = [network_for(named.address, network) for named in ends]
    if network is not None and nets == [None, None]:
        raise ValueError("options for channels between machines, and neither end is one")
    bound = [
        None
        if named.created
        else stack.enter_context(bulk.bind(named.address, trust=level(named, trust), timeout=timeout, network=net))
        for named, net in zip(ends, nets, strict=True)
    ]
    found = []
    for named, net, channel, other, direction in zip(
        ends, nets, bound, reversed(bound), (bulk.Direction.RX, bulk.Direction.TX), strict=True
    ):
        if channel is None:
            said = other.trust if other and trust is bulk.Trust.UNINITIALIZED else trust
            direction, size = (other.direction.other, other.meta_size) if other else (direction, meta_size or 0)
            channel = stack.enter_context(
                bulk.create(named.address, direction=direction, trust=level(named, said), meta_size=size, network=net)
            )
        found.append(channel)
    return found[0], found[1]


def level(named: End, trust: bulk.Trust) -> bulk.Trust:
    """The trust level to name at an address: on a network there is one only."""
    return bulk.Trust.NONE if named.address.startswith(("tcp:", "tls:")) else trust
