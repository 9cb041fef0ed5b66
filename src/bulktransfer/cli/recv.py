"""`bulk recv ADDRESS`: takes the file that somebody sends with `bulk send`, and puts it in its place when it is whole.

Knows: the receiving side, from its arguments to its exit status. Must not know: words (parcel.py), files (target.py).
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import bulktransfer as bulk

from . import parcel
from .carried import Carried, say
from .ends import end, open_end
from .progress import progress
from .send import BROKEN, CANNOT, EPILOG, OK, add_common
from .target import STDOUT, Target, Unwanted, name_for

if TYPE_CHECKING:
    _Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_parser(commands: _Subparsers) -> None:
    """Mount the command."""
    parser = commands.add_parser(
        "recv",
        help="receive what somebody sends with `bulk send`",
        description="Receive a file, compare digests, and put it in its place when it is whole: under the name that "
        "the sender says, in the current directory, and never over what is there.",
        epilog=EPILOG.replace("nothing was sent: arguments, FILE,", "nothing was received: arguments,"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("address", type=end, metavar="ADDRESS", help="where it is offered")
    parser.add_argument("-o", "--output", metavar="FILE", help="where it goes; - is the standard output")
    parser.add_argument("--force", action="store_true", help="replace a file that is there")
    add_common(parser)


def run(args: argparse.Namespace) -> int:
    """Do it; the exit status, as the help says."""
    if args.output == STDOUT and args.json:
        print("bulk recv: the standard output takes the file or the JSON, not both", file=sys.stderr)
        return CANNOT
    try:
        with open_end(args, bulk.Direction.RX, parcel.META_SIZE) as channel:
            if args.address.created:
                print(f"bulk recv: waiting at {channel.address}", file=sys.stderr, flush=True)
                channel.wait_bound()
            return accept(channel, args)
    except (bulk.BulkError, OSError, ValueError, ImportError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        print(f"bulk recv: {type(error).__name__}: {error}", file=sys.stderr)
        return CANNOT


def accept(channel: bulk.Channel, args: argparse.Namespace) -> int:
    """Take it, and say how it went."""
    try:
        carried = Receiver(channel).run(args)
    except Unwanted as error:
        return _break_off(channel, error, CANNOT)
    except (bulk.BulkError, OSError, parcel.NotAParcel) as error:
        return _break_off(channel, error, BROKEN)
    except KeyboardInterrupt:
        channel.abort("the receiver was interrupted")
        raise
    say("received", carried, as_json=args.json, to_stderr=args.output == STDOUT)
    return OK


def _break_off(channel: bulk.Channel, error: Exception, status: int) -> int:
    channel.abort(f"the receiver broke off: {error}"[:200])
    print(f"bulk recv: {type(error).__name__}: {error}", file=sys.stderr)
    return status


class Receiver:
    """The sink's end of a channel over which one file comes."""

    def __init__(self, channel: bulk.Channel) -> None:
        self._channel = channel
        self._arrivals: Iterator[bulk.Event] = channel.buffers()

    def run(self, args: argparse.Namespace) -> Carried:
        """All of it. Raises: Unwanted, NotAParcel, OSError, BulkError."""
        offered = self._offer()
        start_s = time.perf_counter()
        name = args.output or name_for(offered.name)
        digest, size, buffers = hashlib.sha256(), 0, 0
        with (
            Target(name, force=args.force) as target,
            progress(f"recv {offered.name}", offered.size, quiet=args.quiet) as bar,
        ):
            while (arrived := self._next(parcel.CONTENTS, parcel.END)).meta == parcel.CONTENTS:
                length = arrived.buffer.length
                with memoryview(arrived.buffer) as view:
                    digest.update(view)
                    target.write(view)
                self._channel.pass_(arrived.buffer)
                size, buffers = size + length, buffers + 1
                bar.advance(length)
            self._compare(parcel.total(self._letter(arrived)), parcel.Sum(size, digest.hexdigest()))
            target.commit()
        self._channel.pass_(arrived.buffer, parcel.TAKEN)
        for _ in self._arrivals:
            raise parcel.NotAParcel("something came behind the end")
        return Carried(name, size, digest.hexdigest(), buffers, time.perf_counter() - start_s, self._channel)

    def _offer(self) -> parcel.Offer:
        arrived = self._next(parcel.OFFER)
        offered = parcel.offer(self._letter(arrived))
        self._channel.pass_(arrived.buffer)
        return offered

    def _next(self, *due: bytes) -> bulk.Event:
        arrived = next(self._arrivals, None)
        if arrived is None:
            raise parcel.NotAParcel("the channel ended before the file did")
        parcel.expect(arrived.meta, *due)
        return arrived

    @staticmethod
    def _letter(arrived: bulk.Event) -> bytes:
        with memoryview(arrived.buffer) as view:
            return bytes(view[: parcel.LETTER_BYTES + 1])

    @staticmethod
    def _compare(said: parcel.Sum, found: parcel.Sum) -> None:
        if said.size != found.size:
            raise parcel.NotAParcel(f"{found.size:,} bytes arrived, and {said.size:,} were sent")
        if said.sha256 != found.sha256:
            raise parcel.NotAParcel(f"what arrived has the digest {found.sha256}, what was sent {said.sha256}")
