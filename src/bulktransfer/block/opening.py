"""Stores by name, as commands have them: `memory:SIZE`, `file:PATH`.

Knows: the names. Must not know: what the stores do.
"""

from __future__ import annotations

import argparse

from .errors import BadRequestError
from .file_store import FileStore
from .memory_store import MemoryStore, parse_size
from .store import BLOCK_SIZE, Store


def open_store(
    name: str,
    *,
    block_size: int = BLOCK_SIZE,
    read_only: bool = False,
    direct: bool = False,
    create_bytes: int | None = None,
) -> Store:
    """The store of that name. Raises: BadRequestError (no such kind), ValueError (sizes), OSError, StoreError."""
    kind, _, rest = name.partition(":")
    if kind == "memory":
        if direct or create_bytes is not None:
            raise BadRequestError(f"{name}: only a file can be opened direct, or created")
        return MemoryStore(parse_size(rest), block_size=block_size, read_only=read_only)
    if kind == "file" and rest:
        return FileStore(rest, block_size=block_size, read_only=read_only, direct=direct, create_bytes=create_bytes)
    raise BadRequestError(f"{name!r} is no store; say memory:SIZE or file:PATH")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that say how stores are opened."""
    parser.add_argument("--read-only", action="store_true", help="refuse every change")
    parser.add_argument("--block-size", type=int, default=BLOCK_SIZE, metavar="BYTES", help="default 4096")
    parser.add_argument("--direct", action="store_true", help="file: pass the page cache by where requests are aligned")
    parser.add_argument("--create", metavar="SIZE", help="file: make it, all hole, if it is not there")


def from_arguments(name: str, args: argparse.Namespace) -> Store:
    """The store of that name, as the arguments say; what is said of files goes for files. Raises: as open_store."""
    is_file = name.startswith("file:")
    return open_store(
        name,
        block_size=args.block_size,
        read_only=args.read_only,
        direct=args.direct and is_file,
        create_bytes=parse_size(args.create) if is_file and args.create is not None else None,
    )
