"""The user's library of the block service (report I-7.1.3): a device of blocks that a server owns.

Knows: requests, how they are cut to the buffers' size, and how many are under way. Must not know: how answers find who
waits (line.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import bulktransfer as bulk

from ..errors import (
    BadBlockError,
    BadRequestError,
    NoBuffersError,
    NotConnectedError,
    ReadOnlyError,
    Status,
    StoreError,
    error_of,
)
from ..store import Extent
from .file import BlockFile
from .line import Line, Pending
from .messages import EXTENT, HOLE, ZERO, Answer, Flag, Message, Operation

_WINDOW = 16  # requests sent with one notification, at most
_Result = TypeVar("_Result")
_Data = bytes | bytearray | memoryview


class _Job:
    """One request to come: what it says, what goes into its buffer, what is taken out of it."""

    __slots__ = ("drain", "fill", "flags", "length", "offset", "operation")

    def __init__(
        self,
        operation: Operation,
        flags: int = 0,
        offset: int = 0,
        length: int = 0,
        fill: _Data | None = None,
        drain: Callable[[memoryview], object] | None = None,
    ) -> None:
        self.operation = operation
        self.flags = flags
        self.offset = offset
        self.length = length
        self.fill = fill
        self.drain = drain


class BlockDevice:
    """An export of a block service, at an address; for any number of threads.

    buffers: how many requests of each kind (reads; everything else) are under way at most; buffer_size: bytes of one.
    timeout: seconds for the connection, and for each answer (None: for ever).
    Raises: NotConnectedError (nobody serves there), BadRequestError (no such export), NoBuffersError (buffers smaller
    than a block), BulkError (refused), ValueError.
    """

    def __init__(
        self,
        address: str,
        *,
        export: str = "",
        buffers: int = 16,
        buffer_size: int = 1 << 20,
        timeout: float | None = 30.0,
        trust: bulk.Trust = bulk.Trust.UNINITIALIZED,
        domain: bulk.Domain | None = None,
    ) -> None:
        self.address = address
        self.export = export
        self._timeout = timeout
        self._lines: list[Line] = []
        self._executor: ThreadPoolExecutor | None = None
        try:
            channels = bulk.connect(address, trust=trust, timeout=timeout, domain=domain)
        except bulk.EndpointNotFoundError as error:
            raise NotConnectedError(f"nobody serves blocks at {address}: {error}") from error
        try:
            self._join(channels, buffers, buffer_size, domain)
            answer = self._one(self._up, _Job(Operation.HELLO, fill=export.encode()))
            if answer.length < 1 or answer.block >= 1 << 63:
                raise BadRequestError(f"the server of {self!r} has blocks of {answer.length} bytes")
        except BaseException:
            self.close()
            for channel in channels:
                channel.close()
            raise
        self.size_bytes, self.block_size = answer.block, answer.length
        self.read_only = bool(answer.within & Flag.READ_ONLY)

    def _join(
        self, channels: tuple[bulk.Channel, ...], buffers: int, buffer_size: int, domain: bulk.Domain | None
    ) -> None:
        """A pool for each channel, at both ends (I-7.3)."""
        if len(channels) != 2:
            raise BadRequestError(f"{self.address} offers {len(channels)} channels; a block service has two")
        for channel, name in zip(channels, ("requests", "reads"), strict=True):
            allocator = bulk.Allocator(count=buffers, size=buffer_size, domain=domain)
            self._lines.append(Line(channel, allocator, f"{name} of {self!r}"))
            self.buffer_size = allocator.pool.buffer_size
            channel.assign_pool(allocator.pool, timeout=self._timeout)
        self._up, self._down = self._lines

    def __repr__(self) -> str:
        return f"<BlockDevice {self.export!r} at {self.address}>"

    @property
    def block_count(self) -> int:
        """The number of whole blocks."""
        return self.size_bytes // self.block_size

    # -- requests --------------------------------------------------------------------------------------------------

    def _prepare(self, line: Line, job: _Job) -> Pending:
        """The request with its buffer, whose claim the caller has. Raises: NotConnectedError."""
        block, within = divmod(job.offset, self.block_size) if job.offset else (0, 0)
        message = Message(job.operation, job.flags, line.number(), block, within, job.length)
        buffer = line.take()
        if line is self._up:
            buffer.put(job.fill if job.fill is not None else b"")
        return Pending(message, buffer)

    def _finish(self, line: Line, job: _Job, pending: Pending) -> Answer:
        """Wait, take what came, free the buffer. Raises: BlockError."""
        answer = line.wait(pending, self._timeout)
        try:
            if answer.status != Status.OK:
                what = f"{job.operation.name.lower()} of {job.length} bytes at {job.offset} of {self!r}"
                raise error_of(Status(answer.status), f"{what}: {Status(answer.status).name}")
            if job.operation is Operation.READ and pending.buffer.length != job.length:
                raise StoreError(f"the server of {self!r} answered {pending.buffer.length} bytes, not {job.length}")
            if job.drain is not None:
                with memoryview(pending.buffer) as contents:
                    job.drain(contents)
        finally:
            line.give(pending.buffer)
        return answer

    def _one(self, line: Line, job: _Job) -> Answer:
        """One request. Raises: BlockError."""
        self._claim(line)
        pending = self._prepare(line, job)
        line.submit([pending])
        return self._finish(line, job, pending)

    def _claim(self, line: Line) -> None:
        if not line.claim(self._timeout):
            raise NoBuffersError(f"{self!r}: every buffer is in use, and none came back within {self._timeout} s")

    def _all(self, line: Line, jobs: Iterable[_Job]) -> None:
        """Requests with as many under way as there are buffers; all are seen to their end. Raises: the first error."""
        waiting: Iterator[_Job] = iter(jobs)
        flight: deque[tuple[_Job, Pending]] = deque()
        failed: bulk.BulkError | None = None
        try:
            while True:
                batch = [] if failed else self._next_batch(line, waiting, may_wait=not flight)
                if batch:
                    line.submit([pending for _, pending in batch])
                    flight += batch
                if not flight:
                    break
                job, pending = flight.popleft()
                try:
                    self._finish(line, job, pending)
                except bulk.BulkError as error:
                    failed = failed or error
        except BaseException:
            for _, pending in flight:
                line.abandon(pending)
            raise
        if failed is not None:
            raise failed

    def _next_batch(self, line: Line, waiting: Iterator[_Job], *, may_wait: bool) -> list[tuple[_Job, Pending]]:
        """The next requests that there are buffers for. Raises: NoBuffersError, NotConnectedError."""
        batch: list[tuple[_Job, Pending]] = []
        while len(batch) < _WINDOW:
            if may_wait and not batch:
                self._claim(line)
            elif not line.claim(0):
                break
            job = next(waiting, None)
            if job is None:
                line.unclaim()
                break
            batch.append((job, self._prepare(line, job)))
        return batch

    def _reach(self, act: str, offset: int, length: int, *, change: bool = False) -> None:
        """Refuse what cannot be. Raises: ReadOnlyError, BadRequestError, BadBlockError."""
        if change and self.read_only:
            raise ReadOnlyError(f"{act} at {offset} of {self!r}: it is read-only")
        if offset < 0 or length < 0:
            raise BadRequestError(f"{act} of {length} bytes at {offset} of {self!r}")
        if offset + length > self.size_bytes:
            raise BadBlockError(f"{act} of {length} bytes at {offset} of {self!r}, which ends at {self.size_bytes}")

    def _read_jobs(self, offset: int, into: memoryview) -> Iterator[_Job]:
        for at in range(0, len(into), self.buffer_size):
            piece = into[at : at + self.buffer_size]
            yield _Job(Operation.READ, 0, offset + at, len(piece), drain=functools.partial(piece.__setitem__, _ALL))

    def _write_jobs(self, offset: int, data: memoryview, flags: int) -> Iterator[_Job]:
        for at in range(0, len(data), self.buffer_size):
            piece = data[at : at + self.buffer_size]
            yield _Job(Operation.WRITE, flags, offset + at, len(piece), fill=piece)

    # -- bytes -----------------------------------------------------------------------------------------------------

    def read_at(self, offset: int, into: memoryview) -> None:
        """Fill `into` with the bytes from `offset` on. Raises: BlockError."""
        self._reach("read", offset, len(into))
        self._all(self._down, self._read_jobs(offset, into))

    def write_at(self, offset: int, data: _Data, *, fua: bool = False) -> None:
        """Put `data` at `offset`; with `fua` it is durable when the call returns. Raises: BlockError."""
        with memoryview(data).cast("B") as flat:
            self._reach("write", offset, len(flat), change=True)
            self._all(self._up, self._write_jobs(offset, flat, Flag.FUA if fua else 0))

    def trim_at(self, offset: int, length: int, *, fua: bool = False) -> None:
        """Give back the memory of a range. Raises: BlockError."""
        self._reach("trim", offset, length, change=True)
        self._one(self._up, _Job(Operation.TRIM, Flag.FUA if fua else 0, offset, length))

    def write_zeroes_at(
        self, offset: int, length: int, *, may_trim: bool = True, fast: bool = False, fua: bool = False
    ) -> None:
        """Make a range read as zeroes. Raises: BlockError (UnsupportedError: not fast)."""
        self._reach("write_zeroes", offset, length, change=True)
        flags = (0 if may_trim else Flag.NO_HOLE) | (Flag.FAST if fast else 0) | (Flag.FUA if fua else 0)
        self._one(self._up, _Job(Operation.ZEROES, flags, offset, length))

    def extents_at(self, offset: int, length: int) -> list[Extent]:
        """The runs that make up a range. Raises: BlockError."""
        self._reach("extents", offset, length)
        found: list[Extent] = []
        end = offset + length
        while offset < end:
            said = bytearray()
            self._one(self._down, _Job(Operation.EXTENTS, 0, offset, end - offset, drain=said.extend))
            if not said or len(said) % EXTENT.size:
                raise StoreError(f"extents at {offset} of {self!r}: the server answered {len(said)} bytes")
            for count, state in EXTENT.iter_unpack(said):
                if not 0 < count <= end - offset:
                    raise StoreError(f"extents at {offset} of {self!r}: the server said {count}")
                found.append(Extent(count, bool(state & HOLE), bool(state & ZERO)))
                offset += count
        return found

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

    def write(self, block: int, data: _Data, *, fua: bool = False) -> None:
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

    def write_many(self, requests: Iterable[tuple[int, _Data]], *, fua: bool = False) -> None:
        """Put data at blocks, sent in batches; what else was asked is done even if one fails. Raises: BlockError."""
        wanted = [(block * self.block_size, memoryview(data).cast("B")) for block, data in requests]
        for offset, data in wanted:
            self._whole("write", len(data))
            self._reach("write", offset, len(data), change=True)
        flags = Flag.FUA if fua else 0
        self._all(self._up, (job for offset, data in wanted for job in self._write_jobs(offset, data, flags)))

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
        job = _Job(Operation.READ, 0, block * self.block_size, length)
        pending = self._prepare(self._down, job)
        self._down.submit([pending])
        answer = self._down.wait(pending, self._timeout)
        try:
            if answer.status != Status.OK:
                raise error_of(Status(answer.status), f"read of block {block} of {self!r}")
            with memoryview(pending.buffer) as contents:
                yield contents
        finally:
            self._down.give(pending.buffer)

    def flush(self) -> None:
        """Make durable every write that was answered before the call. Raises: BlockError."""
        self._one(self._up, _Job(Operation.FLUSH))

    def trim(self, block: int, count: int = 1) -> None:
        """Give back the memory of blocks whose contents nobody needs. Raises: BlockError."""
        self.trim_at(block * self.block_size, self._length(count))

    def write_zeroes(self, block: int, count: int = 1, *, may_trim: bool = True) -> None:
        """Make blocks read as zeroes. Raises: BlockError."""
        self.write_zeroes_at(block * self.block_size, self._length(count), may_trim=may_trim)

    def exports(self) -> list[str]:
        """The names that the server has. Raises: BlockError."""
        said = bytearray()
        self._one(self._down, _Job(Operation.NAMES, drain=said.extend))
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

    async def awrite(self, block: int, data: _Data, *, fua: bool = False) -> None:
        """As write. Raises: BlockError."""
        await self._elsewhere(self.write, block, data, fua=fua)

    async def aread_many(self, requests: Iterable[tuple[int, int]]) -> list[bytes]:
        """As read_many. Raises: BlockError."""
        return await self._elsewhere(self.read_many, requests)

    async def awrite_many(self, requests: Iterable[tuple[int, _Data]], *, fua: bool = False) -> None:
        """As write_many. Raises: BlockError."""
        await self._elsewhere(self.write_many, requests, fua=fua)

    async def aflush(self) -> None:
        """As flush. Raises: BlockError."""
        await self._elsewhere(self.flush)

    async def atrim(self, block: int, count: int = 1) -> None:
        """As trim. Raises: BlockError."""
        await self._elsewhere(self.trim, block, count)

    # -- a file ----------------------------------------------------------------------------------------------------

    def raw(self) -> io.RawIOBase:
        """The device as a raw file of bytes, which does not close the device; wrap it as io.BufferedRandom does."""
        return BlockFile(self)

    # -- the end ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Leave the service; idempotent. What was not flushed is the server's to keep or lose."""
        for line in self._lines:
            line.close()
        if self._executor is not None:
            self._executor.shutdown(wait=True)

    def __enter__(self) -> BlockDevice:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


_ALL = slice(None)
