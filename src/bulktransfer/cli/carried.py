"""What became of a file that was sent or received: a line for people, a JSON object for programs.

Knows: how it is printed. Must not know: how it came about.
"""

from __future__ import annotations

import json
import sys
from typing import NamedTuple

import bulktransfer as bulk


class Carried(NamedTuple):
    """A file that arrived whole."""

    name: str
    size: int
    sha256: str
    buffers: int
    seconds: float
    channel: bulk.Channel


def say(act: str, carried: Carried, *, as_json: bool, to_stderr: bool = False) -> None:
    """Print it."""
    stream = sys.stderr if to_stderr else sys.stdout
    rate = carried.size / carried.seconds / 1e9
    if as_json:
        facts = {key: value for key, value in carried._asdict().items() if key != "channel"}
        where = {"address": carried.channel.address, "trust": carried.channel.trust.name}
        print(json.dumps({"act": act, **facts, "gb_per_s": rate, **where}), file=stream)
        return
    print(f"{act} {carried.name}, {carried.size:,} bytes in {carried.seconds:.2f} s ({rate:.2f} GB/s)", file=stream)
    print(f"SHA-256 {carried.sha256}, the same on both sides", file=stream)
