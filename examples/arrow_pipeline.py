"""Three processes work on Arrow record batches: one makes them, one filters, one sums up. Columns are read in place.

Every stage writes its batches straight into a buffer, in Arrow's IPC format; the next one computes on that memory.
"""

import multiprocessing

import pyarrow as pa
import pyarrow.compute as pc

import bulktransfer as bulk
from bulktransfer import arrow

ROWS, BATCHES = 10_000, 8
SIZE = 1 << 20


def send(channel: bulk.Channel, pool: bulk.Allocator, table: pa.Table) -> None:
    buffer = pool.alloc(timeout=30)
    arrow.write(buffer, table)
    channel.move(buffer)


def keep_the_warm(inbound: str, onward: str) -> None:
    with (
        bulk.bind(inbound) as readings,
        bulk.create(onward, direction=bulk.Direction.TX, trust=bulk.Trust.FULL) as warm,
        bulk.Allocator(count=4, size=SIZE, reclaim=True) as pool,
    ):
        warm.wait_bound(timeout=30)
        warm.assign_pool(pool.pool)
        for arrival in readings.buffers():
            table = arrow.read(arrival.buffer)
            send(warm, pool, table.filter(pc.field("celsius") > 20))
            del table  # its columns lie in the buffer
            readings.give_back(arrival.buffer)
        warm.destroy()


def sum_up(address: str) -> None:
    rows, total = 0, 0.0
    with bulk.bind(address, timeout=30) as warm:
        for arrival in warm.buffers():
            table = arrow.read(arrival.buffer)
            rows += table.num_rows
            total += pc.sum(table["celsius"]).as_py()
            del table
            warm.give_back(arrival.buffer)
    print(f"{rows} warm readings, mean {total / rows:.2f}")


def main() -> None:
    spawn = multiprocessing.get_context("spawn")
    with (
        bulk.create("shm:", direction=bulk.Direction.TX, trust=bulk.Trust.FULL) as readings,
        bulk.Allocator(count=4, size=SIZE, reclaim=True) as pool,
    ):
        onward = readings.address + "-warm"
        stages = [
            spawn.Process(target=keep_the_warm, args=(readings.address, onward)),
            spawn.Process(target=sum_up, args=(onward,)),
        ]
        for stage in stages:
            stage.start()
        readings.wait_bound(timeout=30)
        readings.assign_pool(pool.pool)
        for number in range(BATCHES):
            celsius = pa.array([float((number + row) % 40) for row in range(ROWS)])
            send(readings, pool, pa.table({"sensor": pa.array(range(ROWS)), "celsius": celsius}))
        readings.destroy()
        for stage in stages:
            stage.join()


if __name__ == "__main__":
    main()
