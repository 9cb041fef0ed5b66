"""`bulk bench echo A B`: the report's echo server alone, until it is told to stop (II-5.2, `micro_echo`).

Knows: two addresses: it receives at A and sends from B. Must not know: what its clients measure.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

import bulktransfer as bulk

from . import options
from .chain import SETUP_S, Link, add_one


class _Stop(Exception):
    """The server was told to stop."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bulk bench echo`."""
    parser.add_argument("receive_at", metavar="A", help="the address where it receives")
    parser.add_argument("send_from", metavar="B", help="the address from which it sends back")
    parser.add_argument("--bind", action="store_true", help="bind both addresses, which somebody else created")
    parser.add_argument("--add", action="store_true", help="add 1 to the first 32 bits of every buffer")
    parser.add_argument("--once", action="store_true", help="end with the first client")
    options.add_channel(parser)


def run(args: argparse.Namespace) -> int:
    """Serve one client after the other until SIGINT or SIGTERM; the exit status is 0 then."""
    with contextlib.suppress(_Stop), _stoppable():
        while True:
            link = _open(args)
            with contextlib.closing(link):
                echoed = _echo(link, add=args.add)
            print(f"echoed {echoed:,} buffers", flush=True)
            if args.once or args.bind:
                break
    return 0


def _open(args: argparse.Namespace) -> Link:
    wait = args.wait or "auto"
    if args.bind:
        rx = bulk.bind(args.receive_at, trust=args.trust, wait=wait, timeout=SETUP_S)
        with _closing_unless_done(rx):
            return Link(rx, bulk.bind(args.send_from, trust=args.trust, wait=wait, timeout=SETUP_S))
    rx = bulk.create(args.receive_at, direction=bulk.Direction.RX, trust=args.trust, wait=wait)
    with _closing_unless_done(rx):
        tx = bulk.create(args.send_from, direction=bulk.Direction.TX, trust=args.trust, wait=wait)
        with _closing_unless_done(tx):
            print(f"echo from {rx.address} to {tx.address}", flush=True)
            rx.wait_bound()
            tx.wait_bound()
            return Link(rx, tx)


@contextlib.contextmanager
def _closing_unless_done(channel: bulk.Channel) -> Iterator[None]:
    try:
        yield
    except BaseException:
        channel.close()
        raise


def _echo(link: Link, *, add: bool) -> int:
    """Send back what comes until the client ends; how many buffers that were."""
    receive, move = link.rx.receive_buffer, link.onward.move
    echoed = 0
    with contextlib.suppress(bulk.EndOfChannelError, bulk.BrokenChannelError):
        while True:
            buffer = receive().buffer
            if add:
                add_one(buffer)
            move(buffer)
            echoed += 1
    return echoed


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise _Stop

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
