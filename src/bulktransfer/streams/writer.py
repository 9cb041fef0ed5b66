"""The writing end of a stream of arrays.

Knows: slots, readers, what to do when a reader is slow. Must not know: how an array is described (label.py).
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import bulktransfer as bulk
from bulktransfer import BufferState

from .label import FORM_BYTES_MAX, HEAD, form_of, numpy, pack, size_of
from .link import ENDS, Frame, Link
from .slot import Slot

SLOW = ("wait", "drop oldest", "drop newest", "error")
WINDOW_OF_DROPPERS = 2  # where the oldest is dropped a reader has one array to work on and one to go on with


class Writer:
    """Sends arrays to all readers of an address; made by bulk.writer. For one thread at a time.

    sent: arrays that went to readers · dropped: how often one did not go to a reader that was there, or to nobody.
    """

    def __init__(
        self,
        address: str,
        like: Any,
        slots: int,
        slow: str,
        stop_with_reader: bool,
        meta_size: int,
        trust: bulk.Trust,
        limits: bulk.Limits | None,
        allow_users: Sequence[int | str],
    ) -> None:
        if slow not in SLOW:
            raise ValueError(f"slow={slow!r}; it takes one of {', '.join(map(repr, SLOW))}")
        if slots < 2:
            raise ValueError(f"slots={slots}; one to write and one to read are the least")
        self._dtype, self._shape = kind_of(like)
        form_of(self._dtype, self._shape)
        self._slow = slow
        self._stop_with_reader = stop_with_reader
        self._meta_size = meta_size
        self._window = WINDOW_OF_DROPPERS if slow == "drop oldest" else slots
        self._links: dict[int, Link] = {}
        self._taken: set[int] = set()  # slots that the user has
        self._number = self.sent = self.dropped = 0
        self._closed = False
        self._domain = domain = bulk.Domain()  # what is waited for here concerns nothing else in the program
        spec = bulk.ChannelSpec(
            direction=bulk.Direction.TX,
            trust=trust,
            meta_size=HEAD.size + FORM_BYTES_MAX + meta_size,
            callbacks=bulk.Callbacks(pool_assigned=refuse_pool),
        )
        size = max(1, size_of(self._dtype, self._shape))
        self._alloc = bulk.Allocator(count=slots, size=size, domain=domain)
        self._buffers = self._alloc.alloc_many(slots)
        self._listener = bulk.listen(address, [spec], limits=limits, allow_users=allow_users, domain=domain)
        self.address = self._listener.address
        self._poll = select.poll()
        self._listening = self._listener.fileno()
        self._poll.register(self._listening, select.POLLIN)

    # ---- writing ----

    def send(self, array: Any, meta: bytes = b"", timeout: float | None = None) -> int:
        """Copy the array into a slot and hand it out; the number of readers that get it.

        Its dtype and shape may differ from `like`, as long as a slot holds it. timeout: where `slow` is "wait".
        Raises: ValueError (too big, a dtype that cannot travel, too much meta), TimeoutError, PoolExhaustedError
        (where `slow` is "error"), BrokenChannelError or EndOfChannelError (a reader is gone, with stop_with_reader),
        ClosedChannelError.
        """
        end = None if timeout is None else time.monotonic() + timeout
        source = numpy().asarray(array)
        slot = self._slot(source.dtype, source.shape, timeout)
        try:
            slot.array[...] = source
            return slot.send(meta, None if end is None else end - time.monotonic())
        finally:
            slot.discard()

    def next(self, timeout: float | None = None) -> Slot:
        """A slot to fill in place, for an array like `like`.

        Raises: PoolExhaustedError (you have all the slots, or readers have, where `slow` is "error"), TimeoutError, and
        as send.
        """
        return self._slot(self._dtype, self._shape, timeout)

    def _slot(self, dtype: Any, shape: tuple[int, ...], timeout: float | None) -> Slot:
        self._check_open()
        size, room = size_of(dtype, shape), self._alloc.pool.buffer_size
        if size > room:
            raise ValueError(f"an array of {shape} {dtype} takes {size} bytes; a slot of {self!r} has {room}")
        form_of(dtype, shape)
        if len(self._taken) == len(self._buffers):
            raise bulk.PoolExhaustedError(f"next of {self!r}: you have all its {len(self._taken)} slots")
        buffer = self.take()
        if buffer is None and self._slow == "wait":
            self._await(lambda: self._free_buffer() is not None, timeout, "a free slot")
            buffer = self.take()
        if buffer is None and self._slow == "drop oldest":
            self._drop_oldest()
            buffer = self.take()
        if buffer is None and self._slow == "error":
            raise bulk.PoolExhaustedError(f"next of {self!r}: readers have all the slots that you do not have")
        return Slot(self, buffer, dtype, shape)

    # ---- slots ----

    def take(self) -> bulk.Buffer | None:
        """The memory of a slot that nobody has, if there is one; it is the caller's."""
        buffer = self._free_buffer()
        if buffer is None:
            self._serve()
            buffer = self._free_buffer()
        if buffer is not None:
            self._taken.add(buffer.index)
        return buffer

    def put_back(self, buffer: bulk.Buffer) -> None:
        """The caller does not send it."""
        self._taken.discard(buffer.index)

    def hand_out(self, buffer: bulk.Buffer | None, form: bytes, meta: bytes, timeout: float | None) -> int:
        """Send what a slot holds to the readers that are there; how many. Raises: as Slot.send."""
        self._check_open()
        if len(meta) > self._meta_size:
            raise ValueError(f"{len(meta)} bytes of meta data; the writer takes {self._meta_size}")
        self._serve()
        if self._slow == "wait":
            self._await(self._audience, timeout, "a reader")
        audience = self._audience()
        number = self._number
        self._number += 1
        if buffer is None or not audience:
            self.dropped += max(1, len(audience))
            audience = []
        else:
            self.sent += 1
        if buffer is not None:
            self._taken.discard(buffer.index)
            frame = Frame(number, buffer, pack(number, form, meta))
            for link in audience:
                link.send(frame)
        return len(audience)

    def _free_buffer(self) -> bulk.Buffer | None:
        waiting = {frame.buffer.index for link in self._links.values() for frame in link.waiting}
        for buffer in self._buffers:
            if buffer.state is BufferState.READ_WRITE and buffer.index not in self._taken | waiting:
                return buffer
        return None

    def _drop_oldest(self) -> None:
        """Take back, the oldest first, what readers do not have yet, until a slot is free or nothing is left."""
        while self._free_buffer() is None:
            links = [link for link in self._links.values() if link.waiting]
            if not links:
                return
            oldest = min(link.waiting[0].number for link in links)
            for link in links:
                if link.waiting[0].number == oldest:
                    link.waiting.popleft()
                    self.dropped += 1

    # ---- readers ----

    @property
    def readers(self) -> int:
        """How many readers there are now."""
        if not self._closed:
            self._serve()
        return len(self._audience())

    def wait_for_readers(self, count: int = 1, timeout: float | None = None) -> None:
        """Wait until `count` readers are there. Raises: TimeoutError, and as send."""
        self._check_open()
        self._await(lambda: len(self._audience()) >= count, timeout, f"{count} readers")

    def _audience(self) -> list[Link]:
        return [link for link in self._links.values() if link.ready]

    def _await(self, met: Callable[[], Any], timeout: float | None, what: str) -> None:
        """Serve readers until a condition is met. Raises: TimeoutError, and why a reader left, if that stops it."""

        def look() -> bool:
            self._serve()
            return bool(met())

        # the domain also wakes for what no channel tells: that a reader, gone for long, let go of its last array
        if not self._domain.wait_for(look, timeout):
            raise TimeoutError(f"{self!r}: {what} did not come within {timeout} s")

    def _serve(self) -> None:
        """Take in who has come, what has come back, and who has left."""
        for fd, _ in self._poll.poll(0):
            if fd == self._listening:
                self._welcome()
            elif fd in self._links:
                self._links[fd].look()
        for link in list(self._links.values()):
            link.flush(self._window)
            if link.lost is not None:
                self._part(link)

    def _welcome(self) -> None:
        """Take in who has connected."""
        while True:
            try:
                (channel,) = self._listener.accept(timeout=0)
            except TimeoutError:
                return
            try:
                link = Link(channel, self._alloc.pool, self._window)
            except ENDS:  # it has gone again
                channel.close()
                continue
            self._links[link.fd] = link
            self._poll.register(link.fd, select.POLLIN)

    def _part(self, link: Link) -> None:
        """A reader is gone. Raises: why, if that is to stop the writer."""
        self._poll.unregister(link.fd)
        del self._links[link.fd]
        was_ready = link.ready
        link.close()
        if self._stop_with_reader and was_ready and link.lost is not None:
            raise link.lost

    # ---- the end ----

    def close(self) -> None:
        """End the stream; what was sent still arrives. Idempotent, never waits."""
        if self._closed:
            return
        self._closed = True
        for link in self._links.values():
            link.flush(len(self._buffers))
            link.close()
        self._links.clear()
        self._listener.close()
        self._alloc.close()

    def _check_open(self) -> None:
        if self._closed:
            raise bulk.ClosedChannelError(f"{self!r}: this side closed it")

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self._links)} readers"
        return f"<Writer of {self._shape} {self._dtype} at {self.address}: {state}>"


def kind_of(like: Any) -> tuple[Any, tuple[int, ...]]:
    """The dtype and shape of an array, of what has both, or of a pair (dtype, shape)."""
    if isinstance(like, tuple) and len(like) == 2:
        dtype, shape = like
        return numpy().dtype(dtype), tuple(shape) if isinstance(shape, tuple | list) else (int(shape),)
    if not isinstance(getattr(like, "dtype", None), numpy().dtype):
        like = numpy().asarray(like)
    return like.dtype, tuple(like.shape)


def refuse_pool(event: bulk.Event) -> None:
    """A reader has no pools to bring."""
    raise ValueError("a stream's writer takes no pools")


def writer(
    address: str,
    *,
    like: Any,
    slots: int = 4,
    slow: str = "wait",
    stop_with_reader: bool = False,
    meta_size: int = 64,
    trust: bulk.Trust = bulk.Trust.FULL,
    limits: bulk.Limits | None = None,
    allow_users: Sequence[int | str] = (),
) -> Writer:
    """A stream of arrays at `address`, for any number of readers, which come and go (bulk.reader).

    like: an array, or (dtype, shape): what a slot holds · slots: how many there are, at least 2; more let readers lag
    behind further · slow: what happens while readers have all the slots: "wait" (also for the first reader), "drop
    oldest" (of what no reader took yet), "drop newest" (what is being sent), "error" (PoolExhaustedError) ·
    stop_with_reader: a reader's end or death stops the writer · meta_size: bytes beside each array.
    Raises: ValueError, TypeError, ImportError (no NumPy), and as bulk.listen and bulk.Allocator.
    """
    return Writer(address, like, slots, slow, stop_with_reader, meta_size, trust, limits, allow_users)
