"""The command `bulk`, from its arguments to its exit status.

Knows: which commands there are. Must not know: what they do.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence

import bulktransfer as bulk

from ..bench import main as bench
from ..block import command as block
from . import check, completion, demo, doctor, forward, ls, names, recv, send

INTERRUPTED = 130
RUN = {
    "demo": demo.run,
    "check": check.run,
    "send": send.run,
    "recv": recv.run,
    "forward": forward.run,
    "names": names.run,
    "ls": ls.run,
    "top": ls.run_top,
    "doctor": doctor.run,
    "completion": lambda args: completion.run(args, parser()),
    "bench": bench.run,
    "block": block.run,
}


def parser() -> argparse.ArgumentParser:
    """The arguments of every command."""
    whole = argparse.ArgumentParser(
        prog="bulk", description="Hands big buffers between processes without copying them, and says who owns each."
    )
    whole.add_argument("--version", action="version", version=f"bulk {bulk.__version__}")
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo.add_parser(commands)
    send.add_parser(commands)
    recv.add_parser(commands)
    forward.add_parser(commands)
    check.add_parser(commands)
    names.add_parser(commands)
    ls.add_parsers(commands)
    doctor.add_parser(commands)
    bench.add_parsers(commands)
    block.add_parser(commands)
    completion.add_parser(commands)
    return whole


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit status. Raises: SystemExit (arguments that make no sense: 2; --help, --version: 0)."""
    args = parser().parse_args(argv)
    warnings.simplefilter("ignore", bulk.SecurityWarning)  # at trust NONE: the other processes are its own
    try:
        status = RUN[args.command](args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"bulk {args.command}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `bulk … | head`: whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
