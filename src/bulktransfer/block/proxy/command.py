"""`bulk block client`: the block client as a program.

Knows: arguments, signals, the exit status. Must not know: what users ask.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING

import bulktransfer as bulk

from ..memory_store import parse_size
from .proxy import BlockProxy

if TYPE_CHECKING:
    _Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

OK, CANNOT = 0, 2

_EPILOG = """\
examples:
  bulk block client name:disks --connect tcp://127.0.0.1:7000
  bulk block client shm:disks --connect 'tls://store.example:7000?authority=ca.pem' --reconnect 60
  bulk block nbd --connect name:disks --unix /tmp/disk.sock
SIGTERM and SIGINT end it in order, and statistics are printed.
exit status: 0 ended in order, 2 it could not start
"""


def add_parser(commands: _Subparsers) -> None:
    """Mount the command."""
    parser = commands.add_parser(
        "client",
        help="serve on this machine what a block service serves on another",
        description="Connect to a block service, and serve it to the users of this machine over shared memory. Their "
        "buffers are forwarded without a copy.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("address", metavar="ADDRESS", help="where users come: name:SERVICE, shm:NAME")
    parser.add_argument("--connect", metavar="SERVER", required=True, help="tcp://HOST:PORT or tls://HOST:PORT")
    parser.add_argument(
        "--reconnect",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="have users wait that long for the server to come back (default: end their channels)",
    )
    parser.add_argument(
        "--cache", metavar="SIZE", default="0", help="keep that much of what was read: 64M; current, or read again"
    )
    parser.add_argument(
        "--timeout", type=float, default=10.0, metavar="SECONDS", help="for the server to answer (default 10)"
    )


def run(args: argparse.Namespace) -> int:
    """Serve until a signal; the exit status, as the help says."""
    try:
        proxy = BlockProxy(
            args.address,
            args.connect,
            reconnect=args.reconnect,
            cache_bytes=parse_size(args.cache),
            timeout=args.timeout,
        )
    except (OSError, ValueError, bulk.BulkError) as error:
        print(f"bulk block client: {error}", file=sys.stderr)
        return CANNOT

    def stop(number: int, frame: FrameType | None) -> None:
        proxy.stop()

    with contextlib.ExitStack() as stack:
        for number in (signal.SIGTERM, signal.SIGINT):
            stack.callback(signal.signal, number, signal.signal(number, stop))
        print(f"serving blocks at {proxy.address}", flush=True)
        proxy.serve()
    print(json.dumps(proxy.statistics()), flush=True)
    return OK
