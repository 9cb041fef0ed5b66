"""A block device as a file of bytes.

Knows: a position. Must not know: how bytes come and go.
"""

from __future__ import annotations

import errno
import io
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .device import BlockDevice


class BlockFile(io.RawIOBase):
    """A raw file over a device, of the device's size; made by BlockDevice.raw."""

    def __init__(self, device: BlockDevice) -> None:
        super().__init__()
        self._device = device
        self._position = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def writable(self) -> bool:
        """Unless the export is read-only."""
        return not self._device.read_only

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a position, which may lie beyond the end. Raises: ValueError (before the beginning)."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._device.size_bytes}[whence]
        if base + offset < 0:
            raise ValueError(f"seek to {base + offset} of {self._device!r}")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """The position."""
        return self._position

    def _room(self, length: int) -> int:
        return max(0, min(length, self._device.size_bytes - self._position))

    def readinto(self, into: Any) -> int:
        """Read on; 0 at the end. Raises: BlockError, ValueError (closed)."""
        self._check_open()
        with memoryview(into).cast("B") as view:
            count = self._room(len(view))
            if count:
                self._device.read_at(self._position, view[:count])
        self._position += count
        return count

    def write(self, data: Any) -> int:
        """Write on; how much fitted. Raises: BlockError, OSError (at the end), ValueError (closed)."""
        self._check_open()
        with memoryview(data).cast("B") as view:
            count = self._room(len(view))
            if len(view) and not count:
                raise OSError(errno.ENOSPC, f"write at the end of {self._device!r}")
            if count:
                self._device.write_at(self._position, view[:count])
        self._position += count
        return count

    def flush(self) -> None:
        """Make durable what was written. Raises: BlockError."""
        super().flush()
        if self.writable() and not self.closed:
            self._device.flush()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError(f"the file over {self._device!r} is closed")
