"""The command-line options that the benchmarks share.

Knows: argparse, sizes as people write them. Must not know: how anything is measured.
"""

from __future__ import annotations

import argparse
import re

import bulktransfer as bulk

_FACTORS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def size(text: str) -> int:
    """`4096`, `4KiB`, `1M` or `1 GiB` as bytes. Raises argparse.ArgumentTypeError for anything else."""
    found = re.fullmatch(r"(\d+)\s*([kmg]?)(?:i?b)?", text.strip().lower())
    if not found or not int(found[1]):
        raise argparse.ArgumentTypeError(f"not a size: {text!r} (try 4096, 64KiB, 1MiB, 1GiB)")
    return int(found[1]) * _FACTORS[found[2]]


def sizes(text: str) -> list[int]:
    """Several sizes, separated by commas."""
    return [size(part) for part in text.split(",")]


def count(text: str) -> int:
    """A whole number above zero, with `_` or `,` between its digits if one likes."""
    digits = text.replace(",", "").replace("_", "")
    if not digits.isdecimal() or not int(digits):
        raise argparse.ArgumentTypeError(f"not a count: {text!r}")
    return int(digits)


def pairs(text: str) -> int:
    """A number of interleaved pairs: at least 5, fewer give no bound at 95 %."""
    number = count(text)
    if number < 5:
        raise argparse.ArgumentTypeError(f"{number} pairs give no bound at 95 %: 5 or more")
    return number


def trust(text: str) -> bulk.Trust:
    """`full`, `half` or `none`."""
    try:
        return {"full": bulk.Trust.FULL, "half": bulk.Trust.HALF, "none": bulk.Trust.NONE}[text.lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"not a trust level: {text!r} (full, half or none)") from None


def add_channel(parser: argparse.ArgumentParser) -> None:
    """Options of everything that opens channels."""
    parser.add_argument("--trust", type=trust, default=bulk.Trust.FULL, metavar="full|half|none", help="default: full")
    parser.add_argument(
        "--wait",
        choices=("spin", "block", "auto"),
        help="how both sides wait; default: spin where every process has a core of its own, else block",
    )


def add_output(parser: argparse.ArgumentParser) -> None:
    """How the figures are printed."""
    parser.add_argument("--json", action="store_true", help="print all figures, and the machine's facts, as JSON")


def add_placement(parser: argparse.ArgumentParser) -> None:
    """Where the processes run."""
    parser.add_argument("--pin", choices=("split", "same"), default="split", help="two cores (default), or one for all")


def add_pairs(parser: argparse.ArgumentParser) -> None:
    """How often the library is compared with what it is held against."""
    parser.add_argument("--pairs", type=pairs, default=11, help="interleaved pairs with the reference (default 11)")


def add_measured(parser: argparse.ArgumentParser, *, default_sizes: str) -> None:
    """All options of a benchmark that opens channels between processes of its own and measures them."""
    parser.add_argument(
        "--backend", default="shm", help="shm (default), local (the echo is a thread), or another scheme"
    )
    parser.add_argument(
        "--size", type=sizes, default=sizes(default_sizes), metavar="SIZE[,SIZE…]", help=f"default: {default_sizes}"
    )
    add_channel(parser)
    add_placement(parser)
    add_output(parser)


def add_report(parser: argparse.ArgumentParser, *, buffers: int, runs: int, of: str) -> None:
    """What the report's two benchmarks have in common."""
    parser.add_argument("--buffers", type=count, help=f"buffers in the pool (default {buffers}, fewer if they are big)")
    parser.add_argument("--runs", type=count, default=runs, help=f"{of} (default {runs:,})")
    add_pairs(parser)
