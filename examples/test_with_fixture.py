"""A pytest fixture: code that takes buffers from a channel is tested within one process, over `local:`.

The code under test runs in a thread with a domain of its own, which is what another process would be to it.
Run it with `pytest examples/test_with_fixture.py`.
"""

import threading
from collections.abc import Iterator
from typing import NamedTuple

import pytest

import bulktransfer as bulk


def invert(address: str) -> None:
    """The code under test: turns every bit of each buffer around and passes it back."""
    with bulk.bind(address) as channel:
        try:
            while True:
                with channel.receive_buffer() as buffer:
                    buffer.write(bytes(255 - byte for byte in buffer.tobytes()))
        except bulk.EndOfChannelError:
            return


class Line(NamedTuple):
    channel: bulk.Channel
    buffers: bulk.Allocator


@pytest.fixture
def line() -> Iterator[Line]:
    """A channel to `invert`, and buffers to send."""

    def run() -> None:
        with bulk.Domain():
            invert(channel.address)

    with (
        bulk.create("local:", direction=bulk.Direction.TX, trust=bulk.Trust.FULL, domain=bulk.Domain()) as channel,
        bulk.Allocator(count=2, size=4096, domain=channel.domain) as buffers,
    ):
        thread = threading.Thread(target=run)
        thread.start()
        channel.wait_bound(timeout=5)
        channel.assign_pool(buffers.pool)
        yield Line(channel, buffers)
        channel.destroy()
        thread.join()


def test_every_bit_is_turned_around(line: Line) -> None:
    buffer = line.buffers.alloc()
    buffer.put(b"\x00\x0f\xff")
    line.channel.move(buffer)
    assert line.channel.receive_buffer(timeout=5).buffer is buffer
    assert memoryview(buffer)[:3].tolist() == [0xFF, 0xF0, 0x00]


def test_a_buffer_that_was_sent_is_out_of_reach(line: Line) -> None:
    buffer = line.buffers.alloc()
    line.channel.move(buffer)
    with pytest.raises(bulk.InvalidBufferError):
        buffer.put(b"too late")
    line.channel.receive_buffer(timeout=5)
