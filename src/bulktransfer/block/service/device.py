"""The user's library of the block service (report I-7.1.3): a device of blocks that a server owns.

Knows: blocks, and the forms in which they are asked for. Must not know: how requests are cut (byte_device.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from ..errors import BadBlockError, BadRequestError, NoBuffersError
from .byte_device import ByteDevice, Data, Job
from .file import BlockFile
from .messages import Flag, Operation

_Result = TypeVar("_Result")


class BlockDevice(ByteDevice):
    """An export of a block service, at an address; for any number of threads.

    buffers: how many requests of each kind (reads; everything else) are under way at most; buffer_size: bytes of one.
    timeout: seconds for the connection, and for each answer (None: for ever). network: of `tcp:` and `tls:` addresses.
    Raises: NotConnectedError (nobody serves there), BadRequestError (no such export), NoBuffersError (buffers smaller
    than a block), BulkError (refused), ValueError.
    """

    _executor: ThreadPoolExecutor | None = None

    # -- blocks ----------------------------------------------------------------------------------------------------

    def read(self, block: int, count: int = 1) -> bytes:
        """The contents of `count` blocks. Raises: BlockError."""
        into = bytearray(self._length(count))
        with memoryview(into) as view:
            self.read_at(block * self.block_size, view)
        return bytes(into)

    def _length(self, count: int) -> int:
        if not 0 <= count <= self.block_count:
            raise BadBlockError(f"{count} blocks of {self!r}, which has {self.block_count}")
        return count * self.block_size

    def read_into(self, block: int, into: bytearray | memoryview) -> None:
        """Fill `into`, of whole blocks, from `block` on. Raises: BlockError."""
        with memoryview(into).cast("B") as view:
            self._whole("read", len(view))
            self.read_at(block * self.block_size, view)

    def _whole(self, act: str, length: int) -> None:
        if length % self.block_size:
            raise BadRequestError(f"{act} of {length} bytes: they are no whole blocks of {self.block_size}")

    def write(self, block: int, data: Data, *, fua: bool = False) -> None:
        """Put whole blocks at `block`; with `fua` they are durable when the call returns. Raises: BlockError."""
        self._whole("write", memoryview(data).nbytes)
        self.write_at(block * self.block_size, data, fua=fua)

    def read_many(self, requests: Iterable[tuple[int, int]]) -> list[bytes]:
        """The contents of runs (block, count), asked in batches. Raises: BlockError (of the first that failed)."""
        wanted = [(block * self.block_size, bytearray(self._length(count))) for block, count in requests]
        for offset, into in wanted:
            self._reach("read", offset, len(into))
        self._all(self._down, (job for offset, into in wanted for job in self._read_jobs(offset, memoryview(into))))
        return [bytes(into) for _, into in wanted]

    def write_many(self, requests: Iterable[tuple[int, Data]], *, fua: bool = False) -> None:
        """Put data at blocks, sent in batches; what else was asked is done even if one fails. Raises: BlockError."""
        wanted = [(block * self.block_size, memoryview(data).cast("B")) for block, data in requests]
        for offset, data in wanted:
            self._whole("write", len(data))
            self._reach("write", offset, len(data), change=True)
        flags = Flag.FUA if fua else 0
        self._all(self._up, (job for offset, data in wanted for job in self._write_jobs(offset, data, flags)))

    def begin_read_many(self, requests: Iterable[tuple[int, int]]) -> Callable[[], list[bytes]]:
        """Ask for runs (block, count) that fit into a buffer each; what it returns waits for all of them, once.

        Raises: NoBuffersError (more requests than buffers, or a larger one), BlockError; later, as read_many.
        """
        wanted = [(block * self.block_size, bytearray(self._length(count))) for block, count in requests]
        jobs = [job for offset, into in wanted for job in self._read_jobs(offset, memoryview(into))]
        finish = self._begin(self._down, jobs, wanted)

        def contents() -> list[bytes]:
            finish()
            return [bytes(into) for _, into in wanted]

        return contents

    def begin_write_many(self, requests: Iterable[tuple[int, Data]], *, fua: bool = False) -> Callable[[], None]:
        """Send data that fits into a buffer each; what it returns waits for all of them, once.

        Raises: NoBuffersError (more requests than buffers, or a larger one), BlockError; later, as write_many.
        """
        wanted = [(block * self.block_size, memoryview(data).cast("B")) for block, data in requests]
        flags = Flag.FUA if fua else 0
        for offset, data in wanted:
            self._whole("write", len(data))
            self._reach("write", offset, len(data), change=True)
        return self._begin(
            self._up, [job for offset, data in wanted for job in self._write_jobs(offset, data, flags)], wanted
        )

    @contextlib.contextmanager
    def borrow(self, block: int, count: int = 1) -> Iterator[memoryview]:
        """The contents of blocks in the buffer that they came in, without a copy, while the context lasts.

        Raises: NoBuffersError (more than a buffer holds), BlockError, BufferError (views of it are live at the end).
        """
        length = self._length(count)
        self._reach("read", block * self.block_size, length)
        if length > self.buffer_size:
            raise NoBuffersError(f"{count} blocks of {self!r} do not fit into a buffer of {self.buffer_size} bytes")
        self._claim(self._down)
        job = Job(Operation.READ, 0, block * self.block_size, length)
        pending = self._prepare(self._down, job)
        self._down.submit([pending])
        self._settle(self._down, job, pending)
        try:
            with memoryview(pending.buffer) as contents:
                yield contents
        finally:
            self._down.give(pending.buffer)

    def stream(self, block: int = 0, count: int | None = None) -> Iterator[memoryview]:
        """The contents of blocks in order, a buffer at a time where they came in; what follows is under way meanwhile.

        Each view lasts until the next is asked for. Without `count`, to the end of the device. Raises: BlockError,
        BufferError (other views of it are live).
        """
        length = self._length(self.block_count - block if count is None else count)
        begin = block * self.block_size
        self._reach("read", begin, length)
        size = self.buffer_size
        jobs = (Job(Operation.READ, 0, begin + at, min(size, length - at)) for at in range(0, length, size))
        return self._in_order(self._down, jobs)

    def compose(self, block: int, count: int, *, fua: bool = False) -> Iterator[memoryview]:
        """Write blocks in place: views to be filled whole, in order, in the buffers that go to the server.

        A view is sent when the next is asked for, and all are written when there is none left. A loop that is left
        early leaves the view that it had unsent. Raises: BlockError, BufferError (other views of it are live).
        """
        length = self._length(count)
        begin = block * self.block_size
        self._reach("write", begin, length, change=True)
        flags = Flag.FUA if fua else 0
        size = self.buffer_size
        jobs = (Job(Operation.WRITE, flags, begin + at, min(size, length - at)) for at in range(0, length, size))
        return self._outward(self._up, jobs)

    def flush(self) -> None:
        """Make durable every write that was answered before the call. Raises: BlockError."""
        self._one(self._up, Job(Operation.FLUSH))

    def trim(self, block: int, count: int = 1) -> None:
        """Give back the memory of blocks whose contents nobody needs. Raises: BlockError."""
        self.trim_at(block * self.block_size, self._length(count))

    def write_zeroes(self, block: int, count: int = 1, *, may_trim: bool = True) -> None:
        """Make blocks read as zeroes. Raises: BlockError."""
        self.write_zeroes_at(block * self.block_size, self._length(count), may_trim=may_trim)

    def exports(self) -> list[str]:
        """The names that the server has. Raises: BlockError."""
        said = bytearray()
        self._one(self._down, Job(Operation.NAMES, drain=said.extend))
        return said.decode(errors="replace").split("\0")[:-1]

    # -- asyncio ---------------------------------------------------------------------------------------------------

    async def _elsewhere(self, call: Callable[..., _Result], *args: Any, **named: Any) -> _Result:
        """Wait in a thread of the device's own."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(8, thread_name_prefix="block device")
        return await asyncio.get_running_loop().run_in_executor(self._executor, functools.partial(call, *args, **named))

    async def aread(self, block: int, count: int = 1) -> bytes:
        """As read. Raises: BlockError."""
        return await self._elsewhere(self.read, block, count)

    async def awrite(self, block: int, data: Data, *, fua: bool = False) -> None:
        """As write. Raises: BlockError."""
        await self._elsewhere(self.write, block, data, fua=fua)

    async def aread_many(self, requests: Iterable[tuple[int, int]]) -> list[bytes]:
        """As read_many. Raises: BlockError."""
        return await self._elsewhere(self.read_many, requests)

    async def awrite_many(self, requests: Iterable[tuple[int, Data]], *, fua: bool = False) -> None:
        """As write_many. Raises: BlockError."""
        await self._elsewhere(self.write_many, requests, fua=fua)

    async def aflush(self) -> None:
        """As flush. Raises: BlockError."""
        await self._elsewhere(self.flush)

    async def atrim(self, block: int, count: int = 1) -> None:
        """As trim. Raises: BlockError."""
        await self._elsewhere(self.trim, block, count)

    async def awrite_zeroes(self, block: int, count: int = 1, *, may_trim: bool = True) -> None:
        """As write_zeroes. Raises: BlockError."""
        await self._elsewhere(self.write_zeroes, block, count, may_trim=may_trim)

    # -- a file ----------------------------------------------------------------------------------------------------

    def raw(self) -> io.RawIOBase:
        """The device as a raw file of bytes, which does not close the device; wrap it as io.BufferedRandom does."""
        return BlockFile(self)

    # -- the end ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Leave the service; idempotent. What was not flushed is the server's to keep or lose."""
        super().close()
        if self._executor is not None:
            self._executor.shutdown(wait=True)

    def __enter__(self) -> BlockDevice:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
