"""The status codes of the block service (report I-7), and the error that each one raises.

Knows: codes and errors, both ways. Must not know: stores, channels, protocols.
"""

from __future__ import annotations

import enum
import errno

import bulktransfer as bulk


class Status(enum.IntEnum):
    """What a server answers; the first five are the report's."""

    OK = 0
    NOT_CONNECTED = 1
    BAD_REQUEST = 2
    BAD_BLOCK_ID = 3
    NO_BUFS = 4
    READ_ONLY = 5
    NO_SPACE = 6
    IO_ERROR = 7
    UNSUPPORTED = 8


class BlockError(bulk.BulkError):
    """Root of the block service's errors; `status` is the code that stands for it."""

    status = Status.IO_ERROR


class NotConnectedError(BlockError, ConnectionError):
    """The block service is not there, or no longer."""

    status = Status.NOT_CONNECTED


class BadRequestError(BlockError, ValueError):
    """The request makes no sense: a length, a flag or an export that there is not."""

    status = Status.BAD_REQUEST


class BadBlockError(BlockError, IndexError):
    """The request reaches beyond the last block."""

    status = Status.BAD_BLOCK_ID


class NoBuffersError(BlockError):
    """No buffer is left, or the one that was passed is too small for the answer."""

    status = Status.NO_BUFS


class ReadOnlyError(BlockError, PermissionError):
    """The store, or the export, is read-only."""

    status = Status.READ_ONLY


class NoSpaceError(BlockError, OSError):
    """The medium behind the store is full."""

    status = Status.NO_SPACE


class StoreError(BlockError, OSError):
    """The medium behind the store failed; after a failed flush, every later one fails as well."""

    status = Status.IO_ERROR


class UnsupportedError(BlockError):
    """The store cannot do that as fast as was asked."""

    status = Status.UNSUPPORTED


_ERRORS: dict[Status, type[BlockError]] = {
    kind.status: kind
    for kind in (
        NotConnectedError,
        BadRequestError,
        BadBlockError,
        NoBuffersError,
        ReadOnlyError,
        NoSpaceError,
        StoreError,
        UnsupportedError,
    )
}


def error_of(status: Status, text: str) -> BlockError:
    """The error that stands for a status other than OK."""
    return _ERRORS[status](text)


def of_system(error: OSError, act: str) -> BlockError:
    """What the system refused, as an error of the store."""
    if isinstance(error, BlockError):
        return error
    kind = NoSpaceError if error.errno in (errno.ENOSPC, errno.EDQUOT) else StoreError
    return kind(f"{act}: {error.strerror or error}")
