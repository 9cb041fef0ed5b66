"""`bulk completion SHELL`: the script that completes this command's arguments, for a shell to read.

Knows: shtab, which writes it (the extra `cli`). Must not know: which commands there are.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    _Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

OK, CANNOT = 0, 2
SHELLS = ("bash", "zsh", "tcsh")

_EPILOG = """\
for bash:  bulk completion bash > ~/.local/share/bash-completion/completions/bulk
for zsh:   bulk completion zsh > a directory of $fpath/_bulk

exit status:
  0  printed
  2  the extra `cli` is not installed
"""


def add_parser(commands: _Subparsers) -> None:
    """Mount the command."""
    parser = commands.add_parser(
        "completion",
        help="the script that completes arguments in a shell",
        description="Print a script for a shell; it needs the extra `cli` now, and nothing later.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=SHELLS)


def run(args: argparse.Namespace, whole: argparse.ArgumentParser) -> int:
    """Do it, for all arguments of `whole`; the exit status, as the help says."""
    try:
        shtab = importlib.import_module("shtab")
    except ImportError:
        print("bulk completion: it needs the extra `cli`: pip install 'bulktransfer[cli]'", file=sys.stderr)
        return CANNOT
    print(shtab.complete(whole, shell=args.shell))
    return OK
