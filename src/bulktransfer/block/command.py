"""`bulk block …`: the commands of this room.

Knows: which commands there are. Must not know: what they do.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Protocol

from .bench import command as bench
from .nbd import command as nbd
from .proxy import command as client
from .service import command as serve

if TYPE_CHECKING:
    _Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


class _Command(Protocol):
    """A module that is a command."""

    def add_parser(self, commands: _Subparsers, /) -> None: ...

    def run(self, args: argparse.Namespace, /) -> int: ...


_COMMANDS: dict[str, _Command] = {"nbd": nbd, "serve": serve, "client": client, "bench": bench}


def add_parser(commands: _Subparsers) -> None:
    """Mount `block` and its commands."""
    block = commands.add_parser(
        "block",
        help="serve blocks to other processes and machines",
        epilog="exit status: 0 ended in order, 1 it went wrong, 2 it could not start; each command says more",
    )
    inner = block.add_subparsers(dest="block_command", required=True, metavar="COMMAND")
    for module in _COMMANDS.values():
        module.add_parser(inner)


def run(args: argparse.Namespace) -> int:
    """Run the command that was named; its exit status."""
    return _COMMANDS[args.block_command].run(args)
