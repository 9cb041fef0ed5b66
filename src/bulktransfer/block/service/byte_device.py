"""An export of a block service as bytes: how they are cut into requests, and how many are under way.

Knows: requests, the buffers' size. Must not know: how answers find who waits (line.py), or blocks (device.py).
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

import bulktransfer as bulk

from ..errors import (
    BadBlockError,
    BadRequestError,
    BlockError,
    NoBuffersError,
    NotConnectedError,
    ReadOnlyError,
    Status,
    StoreError,
    error_of,
)
from ..store import Extent
from .line import Line, Pending
from .messages import EXTENT, HOLE, ZERO, Answer, Flag, Message, Operation

_WINDOW = 16  # requests sent with one notification, at most
_SEND_BYTES = 256 << 10  # and so many bytes: what is filled is sent while it is hot, and the server goes on meanwhile
_ALL = slice(None)
Data = bytes | bytearray | memoryview


class Job:
    """One request to come: what it says, what goes into its buffer, what is taken out of it."""

    __slots__ = ("drain", "fill", "flags", "length", "offset", "operation")

    def __init__(
        self,
        operation: Operation,
        flags: int = 0,
        offset: int = 0,
        length: int = 0,
        fill: Data | None = None,
        drain: Callable[[memoryview], object] | None = None,
    ) -> None:
        self.operation = operation
        self.flags = flags
        self.offset = offset
        self.length = length
        self.fill = fill
        self.drain = drain


class ByteDevice:
    """An export of a block service as a range of bytes; what BlockDevice is built on.

    Raises: as BlockDevice.
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
        network: bulk.Network | None = None,
        domain: bulk.Domain | None = None,
    ) -> None:
        self.address = address
        self.export = export
        self._timeout = timeout
        self._buffers = buffers
        self._lines: list[Line] = []
        try:
            channels = bulk.connect(address, trust=trust, timeout=timeout, network=network, domain=domain)
        except bulk.EndpointNotFoundError as error:
            raise NotConnectedError(f"nobody serves blocks at {address}: {error}") from error
        try:
            self._join(channels, buffers, buffer_size, domain)
            answer = self._one(self._up, Job(Operation.HELLO, fill=export.encode()))
            if answer.length < 1 or answer.block >= 1 << 63:
                raise BadRequestError(f"the server of {self!r} has blocks of {answer.length} bytes")
        except BaseException as error:
            self.close()
            for channel in channels:
                channel.close()
            if isinstance(error, bulk.EndOfChannelError | bulk.BrokenChannelError | bulk.ProtocolViolation):
                raise NotConnectedError(f"{self!r} was sent away: {error}") from error
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

    def _prepare(self, line: Line, job: Job, *, whole: bool = False) -> Pending:
        """The request with its buffer, whose claim the caller has; whole: to be filled. Raises: NotConnectedError."""
        block, within = divmod(job.offset, self.block_size) if job.offset else (0, 0)
        message = Message(job.operation, job.flags, line.number(), block, within, job.length)
        buffer = line.take()
        if whole:
            buffer.length = job.length
        elif line is self._up:
            buffer.put(job.fill if job.fill is not None else b"")
        return Pending(message, buffer)

    def _settle(self, line: Line, job: Job, pending: Pending) -> Answer:
        """Wait; what came is in the buffer, which is the caller's to give. Raises: BlockError (it is given)."""
        answer = line.wait(pending, self._timeout)
        try:
            if answer.status != Status.OK:
                what = f"{job.operation.name.lower()} of {job.length} bytes at {job.offset} of {self!r}"
                raise error_of(Status(answer.status), f"{what}: {Status(answer.status).name}")
            if job.operation is Operation.READ and pending.buffer.length != job.length:
                raise StoreError(f"the server of {self!r} answered {pending.buffer.length} bytes, not {job.length}")
        except BlockError:
            line.give(pending.buffer)
            raise
        return answer

    def _finish(self, line: Line, job: Job, pending: Pending) -> Answer:
        """Wait, take what came, free the buffer. Raises: BlockError."""
        answer = self._settle(line, job, pending)
        try:
            if job.drain is not None:
                with memoryview(pending.buffer) as contents:
                    job.drain(contents)
        finally:
            line.give(pending.buffer)
        return answer

    def _one(self, line: Line, job: Job) -> Answer:
        """One request. Raises: BlockError."""
        self._claim(line)
        pending = self._prepare(line, job)
        line.submit([pending])
        return self._finish(line, job, pending)

    def _claim(self, line: Line) -> None:
        if not line.claim(self._timeout):
            raise NoBuffersError(f"{self!r}: every buffer is in use, and none came back within {self._timeout} s")

    def _all(self, line: Line, jobs: Iterable[Job]) -> None:
        """Requests with as many under way as there are buffers; all are seen to their end. Raises: the first error."""
        waiting: Iterator[Job] = iter(jobs)
        flight: deque[tuple[Job, Pending]] = deque()
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

    def _next_batch(self, line: Line, waiting: Iterator[Job], *, may_wait: bool) -> list[tuple[Job, Pending]]:
        """The next requests that there are buffers for. Raises: NoBuffersError, NotConnectedError."""
        batch: list[tuple[Job, Pending]] = []
        size = 0
        while len(batch) < _WINDOW and size < _SEND_BYTES:
            if may_wait and not batch:
                self._claim(line)
            elif not line.claim(0):
                break
            job = next(waiting, None)
            if job is None:
                line.unclaim()
                break
            batch.append((job, self._prepare(line, job)))
            size += len(job.fill) if job.fill is not None else 0
        return batch

    def _in_order(self, line: Line, jobs: Iterable[Job]) -> Iterator[memoryview]:
        """What comes, in the buffers that it came in, with as many requests under way as there are buffers left."""
        waiting = iter(jobs)
        flight: deque[tuple[Job, Pending]] = deque()
        try:
            while True:
                batch = self._next_batch(line, waiting, may_wait=not flight)
                if batch:
                    line.submit([pending for _, pending in batch])
                    flight += batch
                if not flight:
                    return
                job, pending = flight.popleft()
                self._settle(line, job, pending)
                try:
                    with memoryview(pending.buffer) as contents:
                        yield contents
                finally:
                    line.give(pending.buffer)
        finally:
            for _, pending in flight:
                line.abandon(pending)

    def _outward(self, line: Line, jobs: Iterable[Job]) -> Iterator[memoryview]:
        """The buffers that go there, to be filled; each is sent when the next is asked for."""
        flight: deque[tuple[Job, Pending]] = deque()
        try:
            for job in jobs:
                while not line.claim(0):
                    if not flight:  # other threads have them all
                        self._claim(line)
                        break
                    self._finish(line, *flight.popleft())
                pending = self._prepare(line, job, whole=True)
                try:
                    with memoryview(pending.buffer) as contents:
                        yield contents
                except BaseException:
                    line.give(pending.buffer)
                    raise
                line.submit([pending])
                flight.append((job, pending))
            while flight:
                self._finish(line, *flight.popleft())
        finally:
            for _, pending in flight:
                line.abandon(pending)

    def _reach(self, act: str, offset: int, length: int, *, change: bool = False) -> None:
        """Refuse what cannot be. Raises: ReadOnlyError, BadRequestError, BadBlockError."""
        if change and self.read_only:
            raise ReadOnlyError(f"{act} at {offset} of {self!r}: it is read-only")
        if offset < 0 or length < 0:
            raise BadRequestError(f"{act} of {length} bytes at {offset} of {self!r}")
        if offset + length > self.size_bytes:
            raise BadBlockError(f"{act} of {length} bytes at {offset} of {self!r}, which ends at {self.size_bytes}")

    def _read_jobs(self, offset: int, into: memoryview) -> Iterator[Job]:
        for at in range(0, len(into), self.buffer_size):
            piece = into[at : at + self.buffer_size]
            yield Job(Operation.READ, 0, offset + at, len(piece), drain=functools.partial(piece.__setitem__, _ALL))

    def _write_jobs(self, offset: int, data: memoryview, flags: int) -> Iterator[Job]:
        for at in range(0, len(data), self.buffer_size):
            piece = data[at : at + self.buffer_size]
            yield Job(Operation.WRITE, flags, offset + at, len(piece), fill=piece)

    def _begin(self, line: Line, jobs: Sequence[Job], wanted: Sequence[tuple[int, Data]]) -> Callable[[], None]:
        for offset, data in wanted:
            self._reach("transfer", offset, len(data))
        if len(jobs) > self._buffers or len(jobs) > len(wanted):
            raise NoBuffersError(f"{len(jobs)} requests at once to {self!r}, which has {self._buffers} buffers")
        flight: list[tuple[Job, Pending]] = []
        for job in jobs:
            self._claim(line)
            flight.append((job, self._prepare(line, job)))
        if flight:
            line.submit([pending for _, pending in flight])

        def finish() -> None:
            failed: bulk.BulkError | None = None
            while flight:
                job, pending = flight.pop()
                try:
                    self._finish(line, job, pending)
                except bulk.BulkError as error:
                    failed = error
            if failed is not None:
                raise failed

        return finish

    # -- bytes -----------------------------------------------------------------------------------------------------

    def read_at(self, offset: int, into: memoryview) -> None:
        """Fill `into` with the bytes from `offset` on. Raises: BlockError."""
        self._reach("read", offset, len(into))
        self._all(self._down, self._read_jobs(offset, into))

    def write_at(self, offset: int, data: Data, *, fua: bool = False) -> None:
        """Put `data` at `offset`; with `fua` it is durable when the call returns. Raises: BlockError."""
        with memoryview(data).cast("B") as flat:
            self._reach("write", offset, len(flat), change=True)
            self._all(self._up, self._write_jobs(offset, flat, Flag.FUA if fua else 0))

    def trim_at(self, offset: int, length: int, *, fua: bool = False) -> None:
        """Give back the memory of a range. Raises: BlockError."""
        self._reach("trim", offset, length, change=True)
        self._one(self._up, Job(Operation.TRIM, Flag.FUA if fua else 0, offset, length))

    def write_zeroes_at(
        self, offset: int, length: int, *, may_trim: bool = True, fast: bool = False, fua: bool = False
    ) -> None:
        """Make a range read as zeroes. Raises: BlockError (UnsupportedError: not fast)."""
        self._reach("write_zeroes", offset, length, change=True)
        flags = (0 if may_trim else Flag.NO_HOLE) | (Flag.FAST if fast else 0) | (Flag.FUA if fua else 0)
        self._one(self._up, Job(Operation.ZEROES, flags, offset, length))

    def extents_at(self, offset: int, length: int) -> list[Extent]:
        """The runs that make up a range. Raises: BlockError."""
        self._reach("extents", offset, length)
        found: list[Extent] = []
        end = offset + length
        while offset < end:
            said = bytearray()
            self._one(self._down, Job(Operation.EXTENTS, 0, offset, end - offset, drain=said.extend))
            if not said or len(said) % EXTENT.size:
                raise StoreError(f"extents at {offset} of {self!r}: the server answered {len(said)} bytes")
            for count, state in EXTENT.iter_unpack(said):
                if not 0 < count <= end - offset:
                    raise StoreError(f"extents at {offset} of {self!r}: the server said {count}")
                found.append(Extent(count, bool(state & HOLE), bool(state & ZERO)))
                offset += count
        return found

    # -- the end ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Leave the service; idempotent. What was not flushed is the server's to keep or lose."""
        for line in self._lines:
            line.close()
