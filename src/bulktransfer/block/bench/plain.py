"""The network backend alone: buffers of 1 MiB, handed over and back, with nobody who looks into them.

    python -m bulktransfer.block.bench.plain ADDRESS

is the far side. Knows: two channels and a window. Must not know: blocks.
"""

from __future__ import annotations

import sys
import threading
import time

import bulktransfer as bulk

SIZE = 1 << 20
WINDOW = 16
META = bytes(40)


def _serve(channel: bulk.Channel) -> None:
    """Give every buffer back over the channel that it came over, until the end."""
    send = channel.pass_many if channel.direction is bulk.Direction.RX else channel.move_many
    try:
        while True:
            buffers = [event.buffer for event in channel.receive_many(WINDOW) if event.buffer is not None]
            if channel.direction is bulk.Direction.TX:
                for buffer in buffers:
                    buffer.length = buffer.size
            if buffers:
                send(buffers, [META] * len(buffers))
    except bulk.EndOfChannelError:
        return


def serve(address: str) -> None:
    """One client, then no more. Raises: BulkError."""
    specs = [
        bulk.ChannelSpec(direction=direction, trust=bulk.Trust.NONE, meta_size=len(META))
        for direction in (bulk.Direction.RX, bulk.Direction.TX)
    ]
    with bulk.listen(address, specs) as listener:
        sys.stdout.write(f"serving at {listener.address}\n")
        sys.stdout.flush()
        channels = listener.accept(timeout=60)
    threads = [threading.Thread(target=_serve, args=(channel,)) for channel in channels]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class Plain:
    """The near side."""

    def __init__(self, address: str) -> None:
        self.up, self.down = bulk.connect(address)
        self._up_pool = bulk.Allocator(count=WINDOW, size=SIZE)
        self._down_pool = bulk.Allocator(count=WINDOW, size=SIZE)
        self.up.assign_pool(self._up_pool.pool)
        self.down.assign_pool(self._down_pool.pool)

    def write_s(self, count: int) -> float:
        """Seconds that `count` buffers take to the far side; they come back empty."""
        return self._go(self.up, self._up_pool, count, full=True)

    def read_s(self, count: int) -> float:
        """Seconds that `count` buffers take from the far side; they go there empty."""
        return self._go(self.down, self._down_pool, count, full=False)

    @staticmethod
    def _go(channel: bulk.Channel, allocator: bulk.Allocator, count: int, *, full: bool) -> float:
        send = channel.move_many if full else channel.pass_many
        buffers = allocator.alloc_many(WINDOW)
        begin = time.perf_counter()
        send(buffers, [META] * WINDOW)
        sent, back = WINDOW, 0
        while back < count:
            came = [event.buffer for event in channel.receive_many(WINDOW)]
            back += len(came)
            again = came[: max(0, count - sent)]
            for buffer in again:
                buffer.length = buffer.size if full else 0
            if again:
                send(again, [META] * len(again))
                sent += len(again)
        taken = time.perf_counter() - begin
        allocator.free_many(buffers)
        return taken

    def close(self) -> None:
        """End both channels."""
        for thing in (self.up, self.down, self._up_pool, self._down_pool):
            thing.close()


if __name__ == "__main__":
    serve(sys.argv[1])
