"""One client in the transmission: requests from its stream, executed, and answered in batches.

One thread receives. It does at once what needs no waiting (memory, the page cache), with one system call for all
replies to the requests that came together; what waits for a medium goes to threads of the connection's own, so that
requests are answered as they get done. Payloads are received where they belong, and sent from where they lie, where the
store has memory to be used in place.

Knows: the stream, the store, the order of things. Must not know: layouts (transmission.py), or what a socket is.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import mmap
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from ..errors import BlockError
from ..store import Store
from .negotiation import Agreement, NbdViolation
from .scratch import Scratch
from .stream import Piece, Stream
from .transmission import (
    BLOCK_STATUS,
    CACHE,
    DF,
    DISC,
    FAST_ZERO,
    FLUSH,
    FUA,
    NO_HOLE,
    READ,
    TRIM,
    WRITE,
    WRITE_ZEROES,
    Request,
    Transmission,
    errno_of,
)

_IN = 1 << 18  # bytes received at once
_SMALL = 1 << 15
_LARGE = 1 << 16  # a payload that is worth a system call of its own
_PIECE = 1 << 20  # of a large write on its way through the page cache
_BATCH = 1 << 18  # bytes of replies that are not held back for more
_ARENA = 1 << 20  # for contents read from the page cache, until they are sent
_HOLE_MIN = 1 << 16  # a read that is worth looking for a hole
_SCRATCH = 1 << 27
WORKERS = 8

_log = logging.getLogger("bulktransfer.block")


def _report(task: Future[None]) -> None:
    """A worker failed in a way that no client can be blamed for."""
    if task.exception() is not None:
        _log.error("an answer to an NBD client failed", exc_info=task.exception())


class Connection:
    """One client, from its agreement to its end; `serve` in a thread of its own."""

    def __init__(self, stream: Stream, agreement: Agreement, store: Store) -> None:
        self._stream = stream
        self._store = store
        self._protocol = Transmission(agreement)
        self._in = bytearray(_IN)
        self._in_view = memoryview(self._in)
        self._begin, self._end = 0, len(agreement.rest)
        self._in[: self._end] = agreement.rest
        self._after_large = False
        self._in_memory = not agreement.extended and store.size_bytes > 0 and store.view(0, 1) is not None
        self._sending = threading.Lock()
        self._out: list[Piece] = []
        self._out_bytes = 0
        self._arena = memoryview(mmap.mmap(-1, _ARENA, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        self._arena_used = 0
        self._scratch = Scratch(_SCRATCH)
        self._workers: ThreadPoolExecutor | None = None
        self._acts: dict[int, Callable[[Request], None]] = {
            READ: self._read,
            WRITE: self._write,
            FLUSH: self._other,
            TRIM: self._other,
            CACHE: self._other,
            WRITE_ZEROES: self._other,
            BLOCK_STATUS: self._other,
        }

    def serve(self) -> None:
        """Answer until the client goes, or is sent away; never raises for what a client does."""
        try:
            self._receive()
        except (EOFError, OSError) as error:
            _log.debug("an NBD client went away: %s", error)
        except NbdViolation as error:
            _log.info("an NBD client broke the protocol: %s", error)
        finally:
            if self._workers is not None:
                self._workers.shutdown(wait=True)

    def _receive(self) -> None:
        """The loop. Raises: EOFError, OSError, NbdViolation."""
        protocol = self._protocol
        size = protocol.header.size
        while True:
            if self._in_memory:
                self._ordinary()
            while self._end - self._begin >= size:
                request = protocol.parse(self._in, self._begin)
                self._begin += size
                if request.command == DISC:
                    self._send()
                    return
                refusal = protocol.judge(request)
                if refusal is None:
                    self._acts[request.command](request)
                else:
                    self._drain(protocol.payload(request))
                    self._answer(protocol.error(request, refusal.error, refusal.text))
            self._send()
            if not self._fill():
                return

    def _ordinary(self) -> None:
        """Answer small reads and writes of memory that are here whole, without flags and within the export.

        They are most of what a client with many requests under way sends; this way takes a third of the time of the
        other, which sees to all else. It stops at the first request that is not so. Raises: OSError.
        """
        protocol, store, buffer, view, out = self._protocol, self._store, self._in, self._in_view, self._out
        header, magic, limit, writable = protocol.header, protocol.magic, store.size_bytes, protocol.writable
        size, begin, end = header.size, self._begin, self._end
        while end - begin >= size:
            found, flags, command, cookie, offset, length = header.unpack_from(buffer, begin)
            if found != magic or flags or not 0 < length <= _SMALL or offset + length > limit:
                break
            if command == READ:
                begin += size
                contents = store.view(offset, length)
                assert contents is not None
                out.append(protocol.head(cookie, offset, length))
                out.append(contents)
                self._out_bytes += length
            elif command == WRITE and writable and end - begin >= size + length:
                begin += size + length
                slot = store.slot(offset, length)
                assert slot is not None
                slot[:] = view[begin - length : begin]
                out.append(protocol.ok(cookie))
            else:
                break
            if self._out_bytes >= _BATCH:
                self._send()
        self._begin = begin

    def _fill(self) -> bool:
        """Wait for bytes; whether there are any. Raises: OSError."""
        rest = self._end - self._begin
        if rest:
            self._in[:rest] = self._in[self._begin : self._end]
        self._begin, self._end = 0, rest
        # behind a large payload comes another one, as a rule: have it go where it belongs, not through this buffer
        until = max(rest + 1, self._protocol.header.size) if self._after_large else _IN
        self._after_large = False
        count = self._stream.recv_into(self._in_view[rest:until])
        self._end += count
        return count > 0

    # -- payloads --------------------------------------------------------------------------------------------------

    def _take(self, into: memoryview) -> None:
        """Receive a payload, or a piece of it. Raises: EOFError, OSError."""
        here = min(len(into), self._end - self._begin)
        if here:
            into[:here] = self._in_view[self._begin : self._begin + here]
            self._begin += here
        if here < len(into):
            self._send()
            self._after_large = len(into) >= _LARGE
            self._stream.recv_all(into[here:])

    def _drain(self, length: int) -> None:
        """Read a payload that nobody wants. Raises: EOFError, OSError."""
        here = min(length, self._end - self._begin)
        self._begin += here
        length -= here
        if length:
            self._send()
            memory = self._scratch.take(min(length, _PIECE))
            try:
                with memoryview(memory) as view:
                    while length:
                        count = min(length, len(view))
                        self._stream.recv_all(view[:count])
                        length -= count
            finally:
                self._scratch.give(memory)

    # -- replies ---------------------------------------------------------------------------------------------------

    def _answer(self, *pieces: Piece) -> None:
        """Send this with the next batch. Raises: OSError."""
        self._out += pieces
        for piece in pieces:
            self._out_bytes += len(piece)
        if self._out_bytes >= _BATCH:
            self._send()

    def _send(self) -> None:
        """Send what is waiting. Raises: OSError."""
        if self._out:
            with self._sending:
                self._stream.send(self._out)
            self._out.clear()
            self._out_bytes = self._arena_used = 0

    def _later(self, act: Callable[..., list[Piece]], request: Request, memory: mmap.mmap | None = None) -> None:
        """Have a worker do it and answer."""
        if self._workers is None:
            self._workers = ThreadPoolExecutor(WORKERS, thread_name_prefix="nbd")
        self._workers.submit(self._work, act, request, memory).add_done_callback(_report)

    def _work(self, act: Callable[..., list[Piece]], request: Request, memory: mmap.mmap | None) -> None:
        """A worker's task: the act, its answer, its memory given back."""
        try:
            pieces = self._attempt(act, request, *(() if memory is None else (memory,)))
            with self._sending:
                self._stream.send(pieces)
            pieces.clear()
        except OSError as error:
            _log.debug("an NBD client went away before its answer: %s", error)
            self._stream.break_off()
        except BaseException:
            self._stream.break_off()  # there is nothing right to say to it
            raise
        finally:
            if memory is not None:
                self._scratch.give(memory)

    def _attempt(self, act: Callable[..., list[Piece]], request: Request, *args: mmap.mmap) -> list[Piece]:
        """The answer, or the protocol's error for what the store raised."""
        try:
            return act(request, *args)
        except BlockError as error:
            return [self._protocol.error(request, errno_of(error.status), str(error))]
        except MemoryError:
            return [self._protocol.error(request, errno.ENOMEM, "the server is out of memory")]

    # -- requests --------------------------------------------------------------------------------------------------

    def _read(self, request: Request) -> None:
        store, offset, length = self._store, request.offset, request.length
        if not length:
            self._answer(self._protocol.done(request))
            return
        if length >= _HOLE_MIN and self._protocol.structured and not request.flags & DF:
            with contextlib.suppress(BlockError):  # then the read says so
                if store.all_hole(offset, length):
                    self._answer(self._protocol.hole(request, offset, length))
                    return
        view = store.view(offset, length)
        if view is None:
            if length > _ARENA:
                self._later(self._read_now, request, self._scratch.take(length))
                return
            if self._arena_used + length > _ARENA:
                self._send()
            view = self._arena[self._arena_used : self._arena_used + length]
            if not store.try_read(offset, view):
                self._later(self._read_now, request, self._scratch.take(length))
                return
            self._arena_used += length
        self._answer(self._protocol.data_head(request, offset, length), view)

    def _read_now(self, request: Request, memory: mmap.mmap) -> list[Piece]:
        view = memoryview(memory)[: request.length]
        self._store.read_into(request.offset, view)
        return [self._protocol.data_head(request, request.offset, request.length), view]

    def _write(self, request: Request) -> None:
        store, offset, length = self._store, request.offset, request.length
        fua = bool(request.flags & FUA)
        if not length:
            self._other(request)
            return
        slot = store.slot(offset, length)
        if slot is not None:
            self._take(slot)
            self._answer(self._protocol.done(request))
        elif store.prompt_writes and not fua:
            self._write_through(request)
        else:
            memory = self._scratch.take(length)
            try:
                with memoryview(memory) as view:
                    self._take(view[:length])
            except BaseException:
                self._scratch.give(memory)
                raise
            self._later(self._write_now, request, memory)

    def _write_through(self, request: Request) -> None:
        """Write as the payload comes in: from where it was received, or piece by piece."""
        offset, left = request.offset, request.length
        try:
            if left <= self._end - self._begin:
                begin = self._begin
                self._begin += left
                self._store.write(offset, self._in_view[begin : begin + left])
                left = 0
            memory = self._scratch.take(min(left, _PIECE)) if left else None
            try:
                while memory is not None and left:
                    piece = memoryview(memory)[: min(left, _PIECE)]
                    left -= len(piece)  # whatever comes, these bytes are read
                    self._take(piece)
                    self._store.write(offset, piece)
                    offset += len(piece)
            finally:
                if memory is not None:
                    self._scratch.give(memory)
        except BlockError as error:
            self._drain(left)
            self._answer(self._protocol.error(request, errno_of(error.status), str(error)))
        else:
            self._answer(self._protocol.done(request))

    def _write_now(self, request: Request, memory: mmap.mmap) -> list[Piece]:
        with memoryview(memory) as view:
            self._store.write(request.offset, view[: request.length], fua=bool(request.flags & FUA))
        return [self._protocol.done(request)]

    def _other(self, request: Request) -> None:
        if self._store.prompt:
            self._answer(*self._attempt(self._other_now, request))
        else:
            self._later(self._other_now, request)

    def _other_now(self, request: Request) -> list[Piece]:
        store, command, offset, length = self._store, request.command, request.offset, request.length
        fua = bool(request.flags & FUA)
        if command == FLUSH:
            store.flush()
        elif command == TRIM:
            store.trim(offset, length, fua=fua)
        elif command == WRITE_ZEROES:
            may_trim = not request.flags & NO_HOLE
            store.write_zeroes(offset, length, may_trim=may_trim, fast=bool(request.flags & FAST_ZERO), fua=fua)
        elif command == CACHE:
            store.cache(offset, length)
        elif command == BLOCK_STATUS:
            return [self._protocol.status(request, store.extents(offset, length))]
        return [self._protocol.done(request)]
