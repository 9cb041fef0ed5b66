"""A block device as a store: what another process or machine serves, served on.

Knows: both interfaces. Must not know: protocols.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..store import Extent, Store
from .device import BlockDevice


class RemoteStore(Store):
    """The blocks of a device, which it closes with itself; durable as far as the device's server is."""

    can_fast_zero = True

    def __init__(self, device: BlockDevice) -> None:
        super().__init__(device.size_bytes, block_size=device.block_size, read_only=device.read_only)
        self._device = device

    def __repr__(self) -> str:
        return f"<RemoteStore of {self._device!r}>"

    def _read_into(self, offset: int, into: memoryview) -> None:
        self._device.read_at(offset, into)

    def _write(self, offset: int, data: memoryview, fua: bool) -> None:
        self._device.write_at(offset, data, fua=fua)

    def _trim(self, offset: int, length: int) -> None:
        self._device.trim_at(offset, length)

    def _write_zeroes(self, offset: int, length: int, may_trim: bool, fast: bool) -> None:
        self._device.write_zeroes_at(offset, length, may_trim=may_trim, fast=fast)

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        return iter(self._device.extents_at(offset, length))

    def _flush(self) -> None:
        if not self.read_only:
            self._device.flush()

    def close(self) -> None:
        """Leave the service."""
        self._device.close()
