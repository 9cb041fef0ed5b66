"""Four workers share the blocks of one big array: whoever is done gets the next block.

All blocks come from one pool, which is assigned to four channels. A worker reads its block in place and passes it
back; the result comes with it, as meta data.
"""

import multiprocessing
import struct

import bulktransfer as bulk

WORKERS, BLOCKS, BLOCK_BYTES = 4, 40, 1 << 18
RESULT = struct.Struct("<Q")


def worker(endpoint: bulk.Endpoint) -> None:
    with endpoint.bind() as jobs:
        try:
            while True:
                block = jobs.receive_buffer().buffer
                with memoryview(block) as view:
                    result = sum(view)
                jobs.pass_(block, meta=RESULT.pack(result))
        except bulk.EndOfChannelError:
            return


def start() -> bulk.Channel:
    """A channel to a new worker."""
    jobs, endpoint = bulk.pair(direction=bulk.Direction.TX, trust=bulk.Trust.FULL, meta_size=RESULT.size)
    multiprocessing.get_context("spawn").Process(target=worker, args=(endpoint,), daemon=True).start()
    return jobs


def main() -> None:
    workers = [start() for _ in range(WORKERS)]
    total = done = given = 0
    with bulk.Allocator(count=2 * WORKERS, size=BLOCK_BYTES) as blocks, bulk.WaitSet() as results:
        for jobs in workers:
            jobs.wait_bound()
            jobs.assign_pool(blocks.pool)
            results.add(jobs)
        idle = workers * 2  # two blocks each: one to work on, one that waits
        while done < BLOCKS:
            while idle and given < BLOCKS:
                block = blocks.alloc()
                block.put(bytes([given]) * BLOCK_BYTES)
                idle.pop().move(block)
                given += 1
            for jobs in results.wait(timeout=10):
                result = jobs.receive_buffer()
                total += RESULT.unpack(result.meta)[0]
                blocks.free(result.buffer)
                idle.append(jobs)
                done += 1
        for jobs in workers:
            jobs.destroy()
    print("the sum is", total, "and", "right" if total == sum(range(BLOCKS)) * BLOCK_BYTES else "wrong")


if __name__ == "__main__":
    main()
