"""`bulk ls` and `bulk top`: the channels and pools of all processes of the user, once or again and again.

Knows: how they are laid out, and rates. Must not know: where they are found (observe).
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..bench import options
from ..bench.table import render, size_text
from ..observe import ChannelView, PoolView, ProcessView, Views, look

if TYPE_CHECKING:
    _Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

OK, NOTHING, CANNOT = 0, 1, 2
CLEAR = "\x1b[H\x1b[2J"
_COMMAND_CHARACTERS = 48
Key = tuple[int, int]  # a process and a channel's number in it
Rates = Mapping[Key, tuple[float, float]]

_EPILOG = """\
channels  "sent" and "received" count buffers by any transfer: what a source moved and copied, what a sink gave back.
pools     each process's own account: buffers that it may allocate (free), owns and uses (owned), reads as copies of
          others' (reads), and that are elsewhere (away).
A process that called bulk.harden() lets no other process of its user look; it is listed where somebody seen here is its
peer. Looking costs the processes nothing: their counts lie in memory that others may read.

exit status:
  0  shown (ls: there is at least one process that uses the library)
  1  ls: there is none
  2  it cannot be looked
  130  interrupted (top ends so)
"""


def add_parsers(commands: _Subparsers) -> None:
    """Mount both commands."""
    for name, text in (("ls", "what channels and pools there are"), ("top", "the same with rates, again and again")):
        parser = commands.add_parser(
            name,
            help=text,
            description=f"Show {text}, of all processes of the user.",
            epilog=_EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("--json", action="store_true", help="as JSON (top: one object a line)")
        if name == "top":
            parser.add_argument("--interval", type=seconds, default=1.0, metavar="SECONDS", help="default 1")
            parser.add_argument("--count", type=options.count, metavar="N", help="so often; default: until interrupted")


def seconds(text: str) -> float:
    """A time above zero; for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"not a time: {text!r}")
    return value


def run(args: argparse.Namespace) -> int:
    """`ls`; the exit status, as the help says."""
    try:
        views = look()
    except OSError as error:
        print(f"bulk ls: {error}", file=sys.stderr)
        return CANNOT
    print(json.dumps(as_object(views), indent=1) if args.json else as_text(views))
    return OK if views.processes else NOTHING


def run_top(args: argparse.Namespace) -> int:
    """`top`; the exit status, as the help says."""
    pause = threading.Event()
    before, before_s = look(), time.monotonic()
    for _ in itertools.repeat(None) if args.count is None else range(args.count):
        pause.wait(args.interval)
        now, now_s = look(), time.monotonic()
        rates = rates_of(before, now, now_s - before_s)
        before, before_s = now, now_s
        if args.json:
            print(json.dumps(as_object(now, rates)), flush=True)
        else:
            print(f"{CLEAR if sys.stdout.isatty() else ''}{as_text(now, rates)}\n", flush=True)
    return OK


def rates_of(before: Views, now: Views, seconds: float) -> dict[Key, tuple[float, float]]:
    """Buffers a second that were sent and received, by channel, of those that were there before."""
    known = dict(_channels(before))
    return {
        key: (
            (channel.total_sent - known[key].total_sent) / seconds,
            (channel.total_received - known[key].total_received) / seconds,
        )
        for key, channel in _channels(now)
        if key in known
    }


def _channels(views: Views) -> Iterator[tuple[Key, ChannelView]]:
    for process in views.processes:
        for channel in process.channels:
            yield (process.pid, channel.number), channel


def as_object(views: Views, rates: Rates | None = None) -> dict[str, Any]:
    """Everything, for programs."""
    return {
        "time": time.time(),
        "closed_processes": views.closed,
        "processes": [_process(process, rates) for process in views.processes],
    }


def _process(process: ProcessView, rates: Rates | None) -> dict[str, Any]:
    facts = dataclasses.asdict(process)
    for channel in facts["channels"]:
        if rates is not None:
            sent, received = rates.get((process.pid, channel["number"]), (None, None))
            channel.update(sent_per_s=sent, received_per_s=received)
    for pool, view in zip(facts["pools"], process.pools, strict=True):
        pool.update(count=view.count, owned=view.owned, read=view.read, away=view.away)
    return facts


def as_text(views: Views, rates: Rates | None = None) -> str:
    """Tables, for people."""
    parts = []
    channels = [row for process in views.processes for row in _channel_rows(process, rates)]
    pools = [row for process in views.processes for row in _pool_rows(process)]
    if views.processes:
        rows = [(str(p.pid), _short(p.command), _remark(p)) for p in views.processes]
        parts.append(render(("PID", "process", ""), rows))
    if channels:
        rated = ("sent/s", "received/s") if rates is not None else ()
        headings = ("PID", "channel", "end", "trust", "state", "peer", "sent", "received", *rated, "pools")
        parts.append(render(headings, channels))
    if pools:
        parts.append(render(("PID", "pool", "buffers of", "count", "free", "owned", "reads", "away", ""), pools))
    if not views.processes:
        parts.append("No process of this user uses bulktransfer.")
    if views.closed:
        parts.append(
            f"{views.closed} other processes of this user let nobody look: hardened ones, or not of this library."
        )
    return "\n\n".join(parts)


def _remark(process: ProcessView) -> str:
    if process.hardened:
        return "hardened" if process.channels or process.pools else "hardened: it lets nobody look"
    return ""


def _channel_rows(process: ProcessView, rates: Rates | None) -> Iterator[list[object]]:
    for channel in process.channels:
        pools = " ".join(channel.pools) + (f" and {channel.more_pools} more" if channel.more_pools else "")
        rated = list(rates.get((process.pid, channel.number), (None, None))) if rates is not None else []
        yield [
            str(process.pid),
            channel.address or f"number {channel.number}",
            channel.end,
            channel.trust,
            channel.state,
            _peer(channel, process.pid),
            channel.total_sent,
            channel.total_received,
            *rated,
            pools,
        ]


def _peer(channel: ChannelView, pid: int) -> str:
    if channel.peer >= 0:
        return "itself" if channel.peer == pid else f"process {channel.peer}"
    return channel.host or "-"


def _pool_rows(process: ProcessView) -> Iterator[list[object]]:
    for pool in process.pools:
        yield [str(process.pid), pool.name, size_text(pool.size), *_counts(pool), "its own" if pool.home else ""]


def _counts(pool: PoolView) -> list[int | None]:
    if not pool.count:
        return [None] * 5
    return [pool.count, pool.free, pool.owned, pool.read, pool.away]


def _short(command: str) -> str:
    words = command.split(" ", 1)
    text = " ".join([os.path.basename(words[0]), *words[1:]])
    return text if len(text) <= _COMMAND_CHARACTERS else text[: _COMMAND_CHARACTERS - 1] + "…"
