"""Blocks of fixed size, served to threads, processes and machines (report I-7, I-8.3).

An ordinary user of the public names. `bulktransfer.block.nbd` serves the same stores to programs that speak NBD.
"""

from .errors import (
    BadBlockError,
    BadRequestError,
    BlockError,
    NoBuffersError,
    NoSpaceError,
    NotConnectedError,
    ReadOnlyError,
    Status,
    StoreError,
    UnsupportedError,
)
from .file_store import FileStore
from .memory_store import MemoryStore
from .opening import open_store
from .proxy import BlockProxy
from .service import BlockDevice, BlockService, RemoteStore
from .store import Extent, Store

__all__ = [
    "Store",
    "MemoryStore",
    "FileStore",
    "Extent",
    "open_store",
    "BlockService",
    "BlockDevice",
    "BlockProxy",
    "RemoteStore",
    "Status",
    "BlockError",
    "BadBlockError",
    "BadRequestError",
    "NoBuffersError",
    "NoSpaceError",
    "NotConnectedError",
    "ReadOnlyError",
    "StoreError",
    "UnsupportedError",
]
