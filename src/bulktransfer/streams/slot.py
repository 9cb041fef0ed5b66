"""Memory for one array, from the moment that it is asked for until it is sent.

Knows: its own memory, the writer that it is of. Must not know: readers.
"""

from __future__ import annotations

from typing import Any, Protocol

import bulktransfer as bulk

from .label import form_of, numpy, size_of


class Owner(Protocol):
    """What a slot asks of its writer."""

    def take(self) -> bulk.Buffer | None:
        """The memory of a slot that nobody has, if there is one."""

    def put_back(self, buffer: bulk.Buffer) -> None:
        """It is not to be sent."""

    def hand_out(self, buffer: bulk.Buffer | None, form: bytes, meta: bytes, timeout: float | None) -> int:
        """Send it; None stands for an array that found no slot."""


class Slot:
    """Memory for one array; `array` is a view of it. Fill it, then `send` it."""

    def __init__(self, owner: Owner, buffer: bulk.Buffer | None, dtype: Any, shape: tuple[int, ...]) -> None:
        self._owner = owner
        self._buffer = buffer
        self._form = form_of(dtype, shape)
        self._dtype = dtype
        self._shape = shape
        self._array: Any = None
        self._used = False
        if buffer is not None:
            buffer.length = size_of(dtype, shape)
        else:  # readers have all the slots: where none gets free until it is sent, it is dropped
            self._array = numpy().empty(shape, dtype)

    @property
    def array(self) -> Any:
        """The array to fill, with whatever the memory held before. Raises: ValueError (sent or discarded)."""
        self._check("array")
        if self._array is None and self._buffer is not None:
            self._array = self._buffer.array(self._dtype, self._shape)
        return self._array

    def send(self, meta: bytes = b"", timeout: float | None = None) -> int:
        """Hand the array out; the number of readers that get it. The slot is used up, unless this raises.

        Raises: BufferError (somebody else has a view of it), ValueError (used up; too much meta), TimeoutError (no
        reader came; where `slow` is "wait"), and what Writer.send documents.
        """
        self._check("send")
        if self._buffer is None:
            self._settle()
        else:
            self._let_go("send")
        count = self._owner.hand_out(self._buffer, self._form, meta, timeout)
        self._used = True
        return count

    def discard(self) -> None:
        """Send nothing; idempotent. Raises: BufferError (somebody else has a view of it)."""
        if not self._used:
            if self._buffer is not None:
                self._let_go("discard")
                self._owner.put_back(self._buffer)
            self._used = True

    def _settle(self) -> None:
        """Move into a slot that has become free meanwhile."""
        buffer = self._owner.take()
        if buffer is not None:
            buffer.length = size_of(self._dtype, self._shape)
            buffer.array(self._dtype, self._shape)[...] = self._array
            self._buffer, self._array = buffer, None

    def _let_go(self, act: str) -> None:
        self._array = None
        if self._buffer is not None and self._buffer.exports:
            views = self._buffer.exports
            raise BufferError(f"{act} of {self!r}: {views} views of its array are live{self._buffer.where_views()}")

    def _check(self, act: str) -> None:
        if self._used:
            raise ValueError(f"{act} of {self!r}")

    def __repr__(self) -> str:
        return f"<Slot for {self._shape} {self._dtype}{', sent or discarded' if self._used else ''}>"
