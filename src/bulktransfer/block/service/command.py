"""`bulk block serve`: the block service as a program.

Knows: arguments, signals, the exit status. Must not know: what clients ask.
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

from .. import opening
from ..errors import BadRequestError
from ..store import Store
from .server import BlockService

if TYPE_CHECKING:
    _Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

OK, FAILED, CANNOT = 0, 1, 2

_EPILOG = """\
examples:
  bulk block serve shm:disks --store memory:1G
  bulk block serve shm:disks --store a=file:a.img --store b=file:b.img --read-only
  bulk block nbd --connect shm:disks --connect-export a --unix /tmp/a.sock
SIGTERM and SIGINT end it in order: stores are flushed, and statistics are printed.
exit status: 0 ended in order, 1 the last flush failed, 2 it could not start
"""


def add_parser(commands: _Subparsers) -> None:
    """Mount the command."""
    parser = commands.add_parser(
        "serve",
        help="serve stores over bulk channels, for BlockDevice",
        description="Serve stores as named exports to many clients, over two bulk channels each.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("address", metavar="ADDRESS", help="shm:NAME, or what else there is a backend for")
    parser.add_argument(
        "--store",
        metavar="[EXPORT=]STORE",
        action="append",
        required=True,
        help="memory:SIZE or file:PATH, under a name; without one, for clients that name none",
    )
    parser.add_argument(
        "--trust",
        choices=[trust.name.lower() for trust in bulk.Trust if trust is not bulk.Trust.UNINITIALIZED],
        help="default: full where memory is shared, none elsewhere",
    )
    opening.add_arguments(parser)


def exports_of(args: argparse.Namespace, stack: contextlib.ExitStack) -> dict[str, Store]:
    """The stores that the arguments name. Raises: BadRequestError (a name twice), and as open_store."""
    exports: dict[str, Store] = {}
    for text in args.store:
        export, equals, name = text.partition("=")
        if not equals or ":" in export:  # an equals sign in a file's name
            export, name = "", text
        if export in exports:
            raise BadRequestError(f"two stores are named {export!r}")
        exports[export] = stack.enter_context(opening.from_arguments(name, args))
    return exports


def run(args: argparse.Namespace) -> int:
    """Serve until a signal; the exit status, as the help says."""
    try:
        with contextlib.ExitStack() as stack:
            service = BlockService(
                args.address,
                exports_of(args, stack),
                trust=None if args.trust is None else bulk.Trust[args.trust.upper()],
                read_only=args.read_only,
            )

            def stop(number: int, frame: FrameType | None) -> None:
                service.stop()

            for number in (signal.SIGTERM, signal.SIGINT):
                stack.callback(signal.signal, number, signal.signal(number, stop))
            print(f"serving blocks at {service.address}", flush=True)
            return _serve(service)
    except (OSError, ValueError, bulk.BulkError) as error:
        print(f"bulk block serve: {error}", file=sys.stderr)
        return CANNOT


def _serve(service: BlockService) -> int:
    try:
        service.serve()
    except bulk.BulkError as error:
        print(f"bulk block serve: {error}", file=sys.stderr)
        return FAILED
    print(json.dumps(service.statistics()), flush=True)
    return OK
