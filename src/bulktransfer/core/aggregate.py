"""Aggregates: parts of buffers of any pools as one sequence of bytes (I-4.4, 8.4).

Knows: which bytes of which buffers, in which order, and how they are mapped, read and written as one. Must not know:
how they travel (gathering.py).
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import operator
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, TypeAlias

from .._native.buffer import Buffer
from .._native.span import Span

PAGE = mmap.PAGESIZE
_VECTORS = os.sysconf("SC_IOV_MAX")


class Part(NamedTuple):
    """Some bytes of one buffer."""

    buffer: Buffer
    offset: int
    length: int


Parts: TypeAlias = "Buffer | tuple[Buffer, int, int] | Aggregate"


class Aggregate:
    """A list of parts of buffers, sent, received, mapped, read and written as one (I-4.4, 8.4).

    Given a buffer it means the buffer's valid bytes; (buffer, offset, length) are some of them. It is a description
    only: nothing is copied, and whoever has it may change it. Sent over a channel by `channel.move(aggregate)` and its
    kin, it takes its buffers along, whole. Raises: TypeError, ValueError (beyond a buffer's size).
    """

    def __init__(self, parts: Iterable[Parts] = ()) -> None:
        self._parts: list[Part] = [part for thing in parts for part in _parts_of(thing)]

    @property
    def parts(self) -> tuple[Part, ...]:
        """What it consists of, in order."""
        return tuple(self._parts)

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        """The buffers, each once, in the order in which they first appear."""
        return tuple(dict.fromkeys(part.buffer for part in self._parts))

    def __len__(self) -> int:
        return sum(part.length for part in self._parts)

    def __repr__(self) -> str:
        return f"<Aggregate of {len(self)} bytes: {len(self._parts)} parts of {len(self.buffers)} buffers>"

    # ---- putting together and taking apart, without copying ----

    def insert(self, offset: int, thing: Parts) -> None:
        """Have `thing` begin at byte `offset`. Raises: ValueError (beyond the end), TypeError."""
        things = _parts_of(thing)
        index = self._cut(operator.index(offset))
        self._parts[index:index] = things

    def join(self, thing: Parts) -> None:
        """Have `thing` behind what is here. Raises: ValueError, TypeError."""
        self._parts.extend(_parts_of(thing))

    def remove(self, offset: int, length: int) -> Aggregate:
        """Take `length` bytes from `offset` on out of it; they are returned.

        Raises: ValueError (beyond the end), TypeError (no whole numbers).
        """
        offset, length = operator.index(offset), operator.index(length)
        if length < 0 or offset < 0 or offset + length > len(self):
            raise ValueError(f"remove of {length} bytes at {offset} of {self!r}")
        first, end = self._cut(offset), self._cut(offset + length)
        taken = self._parts[first:end]
        del self._parts[first:end]
        return Aggregate(taken)

    def split(self, offset: int) -> Aggregate:
        """Keep what is before byte `offset`; the rest is returned. Raises: ValueError (beyond the end), TypeError."""
        offset = operator.index(offset)
        if offset > len(self):
            raise ValueError(f"split at byte {offset} of {self!r}")
        return self.remove(offset, len(self) - offset)

    def _cut(self, offset: int) -> int:
        """The index of the part that begins at `offset`; the one that it falls into becomes two."""
        at = 0
        for index, part in enumerate(self._parts):
            if offset == at:
                return index
            if at < offset < at + part.length:
                head = offset - at
                self._parts[index : index + 1] = [
                    Part(part.buffer, part.offset, head),
                    Part(part.buffer, part.offset + head, part.length - head),
                ]
                return index + 1
            at += part.length
        if offset != at:
            raise ValueError(f"byte {offset} of {self!r}")
        return len(self._parts)

    # ---- reading and writing ----

    @contextmanager
    def views(self) -> Iterator[list[memoryview]]:
        """The bytes of each part, writable where the buffer is; live views, until the `with` ends.

        Raises: InvalidBufferError, NotAllocatedError, ValueError (beyond a buffer's length).
        """
        with ExitStack() as stack:
            yield [stack.enter_context(_view(part)) for part in self._parts]

    def tobytes(self) -> bytes:
        """A copy of all of it. Raises: as views."""
        with self.views() as views:
            return b"".join(views)

    def mapped(self, *, copy: bool = False) -> Span:
        """One contiguous read-only view: `with aggregate.mapped() as whole: numpy.frombuffer(whole)`.

        The kernel maps the pages side by side. That needs parts of whole pages (the last one may end anywhere) in
        memory that has a descriptor; else a copy is unavoidable and made with `copy=True` only (`whole.copied` says
        so). While it is mapped its buffers count as viewed: calls that would send or free them raise BufferError.
        Raises: ValueError (why a copy is unavoidable), OSError, as views.
        """
        why = next(filter(None, map(self._hindrance, range(len(self._parts)))), None)
        if why is not None and not copy:
            raise ValueError(f"mapped of {self!r}: {why}: a copy is unavoidable, which copy=True makes")
        span = Span(len(self), copied=why is not None)
        try:
            at = 0
            for part in self._parts:
                view = _view(part)
                if span.copied:
                    with view:
                        span.fill(at, view)
                else:
                    span.keep(view)
                    pool: Any = part.buffer.pool
                    if part.length:
                        span.lay(at, pool.memory, part.buffer.index * pool.buffer_size + part.offset, part.length)
                at += part.length
        except BaseException:
            span.close()
            raise
        return span

    def _hindrance(self, index: int) -> str:
        """Why a part cannot be mapped beside the others; "" if it can."""
        part = self._parts[index]
        if not part.length:
            return ""
        pool = part.buffer.pool
        if pool.memory is None or pool.memory.closed:
            return f"part {index} is memory of this process alone (a twin)"
        if not pool.in_own_memory(part.buffer.index):
            return f"part {index} lies in a frame that was sealed and sent (trust NONE)"
        if part.offset % PAGE:
            return f"part {index} begins inside a page, at {part.offset} of its buffer"
        if part.length % PAGE and any(later.length for later in self._parts[index + 1 :]):
            return f"part {index} ends inside a page, after {part.length} bytes"
        return ""

    # ---- files ----

    def readv_from(self, fd: int, offset: int | None = None) -> int:
        """Read from a file into the parts, at `offset` or where it stands; the bytes read, fewer at its end.

        Raises: OSError (O_DIRECT: which part is not aligned), BufferError (a part is read-only), ValueError (an
        offset before the file), TypeError, as views.
        """
        return self._transfer(fd, offset, os.readv, os.preadv, "readv_from")

    def writev_to(self, fd: int, offset: int | None = None) -> int:
        """Write the parts to a file, at `offset` or where it stands; the bytes written, all of them.

        Raises: OSError (O_DIRECT: which part is not aligned), ValueError (an offset before the file), TypeError, as
        views.
        """
        return self._transfer(fd, offset, os.writev, os.pwritev, "writev_to")

    def _transfer(self, fd: int, offset: int | None, plain: Any, placed: Any, act: str) -> int:
        if offset is not None and operator.index(offset) < 0:  # -1 would mean "where the file stands" to the kernel
            raise ValueError(f"{act} of {self!r}: offset {offset} lies before the file")
        self._check_alignment(fd, offset, act)
        done = 0
        with self.views() as views:
            if act == "readv_from" and any(view.readonly for view in views):
                raise BufferError(f"{act} of {self!r}: a part of it is read-only here")
            left = [view for view in views if view]
            while left:
                now = left[:_VECTORS]
                got = plain(fd, now) if offset is None else placed(fd, now, offset + done)
                if got == 0:
                    break
                done += got
                while left and got >= len(left[0]):
                    got -= len(left.pop(0))
                if got:
                    left[0] = left[0][got:]
            del views, left
        return done

    def _check_alignment(self, fd: int, offset: int | None, act: str) -> None:
        """With O_DIRECT each part has to be whole blocks of the device; 512 bytes is the least that any has."""
        if not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            return
        for index, part in enumerate(self._parts):
            if part.offset % 512 or part.length % 512:
                raise OSError(errno.EINVAL, f"{act} with O_DIRECT: part {index} of {self!r} is not whole blocks")
        if offset is not None and offset % 512:
            raise OSError(errno.EINVAL, f"{act} with O_DIRECT: offset {offset} is not that of a block")


def _view(part: Part) -> memoryview:
    whole = memoryview(part.buffer)
    if part.offset + part.length > len(whole):
        length = len(whole)
        whole.release()
        raise ValueError(
            f"bytes {part.offset} to {part.offset + part.length} of buffer {part.buffer.index} of pool "
            f"{part.buffer.pool.name}: its length is {length}"
        )
    with whole:
        return whole[part.offset : part.offset + part.length]


def _parts_of(thing: Parts) -> list[Part]:
    if isinstance(thing, Buffer):
        return [Part(thing, 0, thing.length)]
    if isinstance(thing, Aggregate):
        return list(thing._parts)
    if not isinstance(thing, tuple) or len(thing) != 3 or not isinstance(thing[0], Buffer):
        raise TypeError(f"a part of an aggregate is a buffer or (buffer, offset, length), not {thing!r}")
    buffer, offset, length = thing
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in (offset, length)):
        raise ValueError(f"a part of {length!r} bytes at {offset!r}")
    if offset + length > buffer.size:
        raise ValueError(f"a part of {length} bytes at {offset} of buffer {buffer.index}: it has {buffer.size}")
    return [Part(buffer, offset, length)]
