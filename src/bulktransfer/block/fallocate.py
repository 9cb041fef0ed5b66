"""Holes in files: the system call fallocate, which Python's os does not have, and where data begins and ends.

Knows: modes, and which refusals mean "cannot". Must not know: stores.
"""

from __future__ import annotations

import ctypes
import errno
import os

_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 0x01, 0x02, 0x10
_CANNOT = (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV, errno.EINVAL, errno.ENOTTY)

_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong]


def _call(fd: int, mode: int, offset: int, length: int) -> bool:
    """Whether the medium could. Raises: OSError (it can, and failed)."""
    while _fallocate(fd, mode, offset, length) != 0:
        number = ctypes.get_errno()
        if number in _CANNOT:
            return False
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
    return True


def punch_hole(fd: int, offset: int, length: int) -> bool:
    """Take the memory from a range, which then reads as zeroes; whether the medium could. Raises: OSError."""
    return _call(fd, _PUNCH_HOLE | _KEEP_SIZE, offset, length)


def zero_range(fd: int, offset: int, length: int) -> bool:
    """Zero a range and keep memory behind it; whether the medium could without writing. Raises: OSError."""
    if _call(fd, _ZERO_RANGE | _KEEP_SIZE, offset, length):
        return True
    # tmpfs has the one without the other
    return punch_hole(fd, offset, length) and _call(fd, _KEEP_SIZE, offset, length)


def next_run(fd: int, offset: int, end: int) -> tuple[int, bool]:
    """Where the run of data or hole at `offset` ends, at most at `end`, and whether it is a hole. Raises: OSError."""
    try:
        data = os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return end, True
    if data > offset:
        return min(data, end), True
    return min(os.lseek(fd, offset, os.SEEK_HOLE), end), False
