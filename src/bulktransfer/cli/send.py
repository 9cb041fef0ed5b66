"""`bulk send FILE ADDRESS`: offers a file at an address, and sends it to whoever comes.

Knows: the sending side, from its arguments to its exit status. Must not know: words (parcel.py), bars (progress.py).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import stat
import sys
import time
from typing import TYPE_CHECKING

import bulktransfer as bulk

from ..bench import options
from . import parcel
from .carried import Carried, say
from .ends import add_network, end_to_create, open_end
from .progress import Bar, progress

if TYPE_CHECKING:
    _Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

OK, BROKEN, CANNOT = 0, 1, 2
STDIN = "-"
BUFFER_BYTES, BUFFERS = 1 << 20, 16

EPILOG = """\
ADDRESS is shm:NAME, tcp://HOST:PORT, tls://HOST:PORT, …; create:ADDRESS and bind:ADDRESS say which side creates it and
which one binds to it. By default `bulk send` creates and `bulk recv` binds; `bulk forward` may stand between them.
What is created is of trust NONE unless --trust says otherwise.

exit status:
  0  the whole file arrived: the digests of both sides are the same
  1  it did not: a side broke off, or the digests differ
  2  nothing was sent: arguments, FILE, an address, a refusal
  130  interrupted
"""


def add_parser(commands: _Subparsers) -> None:
    """Mount the command."""
    parser = commands.add_parser(
        "send",
        help="send a file to whoever says `bulk recv`",
        description="Offer a file at an address, send it to whoever comes, and compare digests.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", help="what to send; - is the standard input")
    parser.add_argument("address", type=end_to_create, metavar="ADDRESS", help="where it is offered")
    parser.add_argument("--name", help="what the file is called at the other side (default: as here)")
    parser.add_argument(
        "--buffer-size", type=options.size, default=BUFFER_BYTES, metavar="BYTES", help="of a buffer (default 1MiB)"
    )
    parser.add_argument("--buffers", type=options.count, default=BUFFERS, metavar="COUNT", help="default 16")
    add_common(parser)


def add_common(parser: argparse.ArgumentParser) -> None:
    """The options of both sides."""
    parser.add_argument("--trust", type=options.trust, default=bulk.Trust.UNINITIALIZED, metavar="full|half|none")
    parser.add_argument("--timeout", type=float, default=10.0, metavar="SECONDS", help="for a bind (default 10)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--json", action="store_true", help="print the result as a JSON object")
    add_network(parser)


def run(args: argparse.Namespace) -> int:
    """Do it; the exit status, as the help says."""
    try:
        if args.buffer_size < parcel.LETTER_BYTES:
            raise ValueError(f"buffers of {args.buffer_size} bytes; {parcel.LETTER_BYTES} at least")
        with opened(args.file) as file, open_end(args, bulk.Direction.TX, parcel.META_SIZE) as channel:
            if args.address.created:
                print(f"bulk send: offered at {channel.address}", file=sys.stderr, flush=True)
                channel.wait_bound()
            with bulk.Allocator(count=args.buffers, size=args.buffer_size, trust=channel.trust) as frames:
                channel.assign_pool(frames.pool, timeout=None)
                sender = Sender(channel, frames, file, args.name or os.path.basename(args.file))
                return deliver(sender, args)
    except (bulk.BulkError, OSError, ValueError, ImportError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        print(f"bulk send: {type(error).__name__}: {error}", file=sys.stderr)
        return CANNOT


def deliver(sender: Sender, args: argparse.Namespace) -> int:
    """Send it, and say how it went. Raises: nothing that says that it broke."""
    try:
        with progress(f"send {sender.offer.name}", sender.offer.size, quiet=args.quiet) as bar:
            carried = sender.run(bar)
    except (bulk.BulkError, OSError, parcel.NotAParcel) as error:
        sender.channel.abort(f"the sender broke off: {error}"[:200])
        print(f"bulk send: {type(error).__name__}: {error}", file=sys.stderr)
        return BROKEN
    except KeyboardInterrupt:
        sender.channel.abort("the sender was interrupted")
        raise
    say("sent", carried, as_json=args.json)
    return OK


def opened(name: str) -> io.FileIO:
    """The file to read. Raises: OSError, ValueError (a directory)."""
    file = io.FileIO(os.dup(sys.stdin.fileno()) if name == STDIN else name)
    if stat.S_ISDIR(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError(f"{name} is a directory")
    return file


class Sender:
    """One file on its way over a channel; its pool is assigned."""

    def __init__(self, channel: bulk.Channel, frames: bulk.Allocator, file: io.FileIO, name: str) -> None:
        facts = os.fstat(file.fileno())
        self.channel = channel
        self.offer = parcel.Offer(name, facts.st_size if stat.S_ISREG(facts.st_mode) else None)
        self._frames = frames
        self._file = file
        self._answer = b""  # what came with the buffer that came home last

    def run(self, bar: Bar) -> Carried:
        """All of it. Raises: OSError, BulkError, NotAParcel."""
        start_s = time.perf_counter()
        self._say(parcel.OFFER, self.offer.encode())
        digest, size, buffers = hashlib.sha256(), 0, 0
        while length := self._send_next(digest):
            size, buffers = size + length, buffers + 1
            bar.advance(length)
        if self.offer.size not in (None, size):
            raise OSError(f"{self.offer.name} had {self.offer.size:,} bytes, and {size:,} when it was read")
        self._say(parcel.END, parcel.Sum(size, digest.hexdigest()).encode())
        while self._frames.available < len(self._frames.pool):
            self._take_home()
        parcel.expect(self._answer, parcel.TAKEN)
        carried = Carried(
            self.offer.name, size, digest.hexdigest(), buffers, time.perf_counter() - start_s, self.channel
        )
        self.channel.destroy()
        return carried

    def _send_next(self, digest: hashlib._Hash) -> int:
        """One buffer of contents; the number of bytes, 0 at the end."""
        frame = self._alloc()
        with memoryview(frame) as view:
            length = self._read(view)
            digest.update(view[:length])
        if not length:
            self._frames.free(frame)
            return 0
        frame.length = length
        self.channel.move(frame, parcel.CONTENTS)
        return length

    def _read(self, view: memoryview) -> int:
        """Fill it, as far as there is something: a pipe gives less at a time."""
        done = 0
        while done < len(view) and (got := self._file.readinto(view[done:])):
            done += got
        return done

    def _say(self, word: bytes, letter: bytes) -> None:
        frame = self._alloc()
        frame.put(letter)
        self.channel.move(frame, word)

    def _alloc(self) -> bulk.Buffer:
        while not self._frames.available:
            self._take_home()
        return self._frames.alloc()

    def _take_home(self) -> None:
        event = self.channel.receive()
        if event.kind is bulk.EventKind.BUFFER_RECEIVED:
            self._answer = event.meta
            self._frames.free(event.buffer)
        elif event.kind is bulk.EventKind.OPERATION_REFUSED and event.error is not None:
            raise event.error
        # A teardown: the end that it speaks of is raised next.
