"""The reading end of a stream of arrays.

Knows: that arrays are views of buffers, which go back by themselves. Must not know: slots, or other readers.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import bulktransfer as bulk

from .label import Label, numpy, unpack
from .link import ENDS


class Reader:
    """The arrays of one writer, from now on; made by bulk.reader. For one thread at a time.

    label: of the array that was received last, with its number in the stream and its meta data · missed: how many
    numbers were left out since the first one that came: dropped, since a reader was slow.
    """

    def __init__(self, channel: bulk.Channel) -> None:
        self.channel = channel
        self.label: Label | None = None
        self.missed = 0

    def receive(self, timeout: float | None = None) -> Any:
        """The next array: a view of the writer's memory, read-only; the memory goes back when its last view dies.

        Raises: TimeoutError, EndOfChannelError (the writer closed the stream), BrokenChannelError (it died),
        ProtocolViolation (what came is no array), ClosedChannelError.
        """
        transfer = self.channel.receive_buffer(timeout)
        buffer = transfer.buffer
        try:
            label = unpack(transfer.meta, buffer.length)
        except ValueError as error:
            self._give_back(buffer)
            self.channel.close()
            raise bulk.ProtocolViolation(f"{self!r}: what came is no array: {error}") from error
        array = buffer.array(label.dtype, label.shape)
        self._give_back(buffer)
        if self.label is not None:
            self.missed += label.number - self.label.number - 1
        self.label = label
        return array

    def _give_back(self, buffer: bulk.Buffer) -> None:
        with contextlib.suppress(*ENDS):  # nobody is there to take it back; the memory lives as long as the array
            self.channel.give_back(buffer, when_unused=True)

    @property
    def meta(self) -> bytes:
        """The meta data of the array that was received last."""
        return self.label.meta if self.label is not None else b""

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return self.receive()
        except bulk.EndOfChannelError:
            raise StopIteration from None

    def fileno(self) -> int:
        """A descriptor that is readable while an array may be there. Raises: as Channel.fileno."""
        return self.channel.fileno()

    def close(self) -> None:
        """Read no more; arrays that live stay valid. Idempotent, never raises."""
        self.channel.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Reader of {self.channel.address}: {self.channel.state.name}>"


def reader(
    address: str,
    *,
    timeout: float | None = 10.0,
    trust: bulk.Trust = bulk.Trust.UNINITIALIZED,
    limits: bulk.Limits | None = None,
    owner: int | str | None = None,
) -> Reader:
    """Read the stream that a writer makes, or will make within `timeout` seconds, at `address`: the arrays from now on.

    Raises: BindRefusedError (no stream is offered there), EndOfChannelError and BrokenChannelError (its writer is gone
    again), ImportError (no NumPy), and as bulk.connect.
    """
    numpy()
    end = None if timeout is None else time.monotonic() + timeout
    domain = bulk.Domain()  # of its own: a writer in this process lends it copies, too
    channels = bulk.connect(address, trust=trust, limits=limits, owner=owner, timeout=timeout, domain=domain)
    try:
        if len(channels) != 1 or channels[0].direction is not bulk.Direction.RX:
            raise bulk.BindRefusedError(f"reader of {address}: no stream is offered there")
        event = channels[0].receive(None if end is None else max(0.0, end - time.monotonic()))
        if event.kind is bulk.EventKind.TEARDOWN_RECEIVED:
            event = channels[0].receive(None if end is None else max(0.0, end - time.monotonic()))  # raises the end
        if event.kind is not bulk.EventKind.POOL_ASSIGNED:
            raise bulk.BindRefusedError(f"reader of {address}: no stream is offered there, {event!r} came")
    except BaseException:
        for channel in channels:
            channel.close()
        raise
    return Reader(channels[0])
