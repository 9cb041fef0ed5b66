"""One service writes blocks of log lines, three readers look at the same memory: an archive, an alarm and a counter.

The writer copies each block to every reader in turn: "copy" shares the one buffer read-only, and it may be written
again when all have released it.
"""

import multiprocessing
import zlib

import bulktransfer as bulk

BLOCKS, LINES = 20, 1000


def archive(address: str) -> None:
    packer, size = zlib.compressobj(), 0
    with bulk.bind(address, timeout=30) as log:
        for arrival in log.buffers():
            with arrival as block:
                size += len(packer.compress(block))
    size += len(packer.flush())
    print("archive:", "smaller than the log" if size < BLOCKS * LINES * 20 else "no gain")


def alarm(address: str) -> None:
    errors = 0
    with bulk.bind(address, timeout=30) as log:
        for arrival in log.buffers():
            with arrival as block:
                errors += block.tobytes().count(b"ERROR")
    print("alarm:", errors, "errors")


def counter(address: str) -> None:
    lines = 0
    with bulk.bind(address, timeout=30) as log:
        for arrival in log.buffers():
            with arrival as block, memoryview(block) as view:
                lines += bytes(view).count(b"\n")
    print("counter:", lines, "lines")


def main() -> None:
    spawn = multiprocessing.get_context("spawn")
    with bulk.Allocator(count=4, size=1 << 16, reclaim=True) as blocks:
        channels, readers = [], []
        for reader in (archive, alarm, counter):
            channel = bulk.create("shm:", direction=bulk.Direction.TX, trust=bulk.Trust.FULL)
            process = spawn.Process(target=reader, args=(channel.address,))
            process.start()
            channels.append(channel)
            readers.append(process)
        for channel in channels:
            channel.wait_bound(timeout=30)
            channel.assign_pool(blocks.pool)
        for number in range(BLOCKS):
            block = blocks.alloc(timeout=30)  # waits until the slowest reader let one go
            block.put(b"".join(log_line(number * LINES + line) for line in range(LINES)))
            for channel in channels:
                channel.copy(block)
        for channel in channels:
            channel.destroy()
        for process in readers:
            process.join()


def log_line(number: int) -> bytes:
    return b"%08d %s request served\n" % (number, b"ERROR" if number % 100 == 0 else b"INFO ")


if __name__ == "__main__":
    main()
