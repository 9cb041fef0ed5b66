"""`bulk.pair` and a child of multiprocessing: a channel without an address, which nobody else can find.

The parent keeps one end; the other travels to the child like any argument. Here the child is given copies: both
sides may read a buffer at the same time, and the parent may not write to it until the child has released it.
"""

import hashlib
import multiprocessing

import bulktransfer as bulk


def child(endpoint: bulk.Endpoint) -> None:
    with endpoint.bind() as channel:
        for _ in range(2):
            with channel.receive_buffer() as buffer:  # given back at the end: a copy is released
                print("child: sha256", hashlib.sha256(buffer).hexdigest()[:16])
                print("child: may write:", not memoryview(buffer).readonly)


def main() -> None:
    channel, endpoint = bulk.pair(direction=bulk.Direction.TX, trust=bulk.Trust.FULL)
    with channel, bulk.Allocator(count=1, size=1 << 20) as buffers:
        process = multiprocessing.get_context("spawn").Process(target=child, args=(endpoint,))
        process.start()
        channel.wait_bound()
        channel.assign_pool(buffers.pool)
        buffer = buffers.alloc()
        for contents in (b"one", b"two"):
            buffer.put(contents * 1000)
            channel.copy(buffer)
            print("parent: sha256", hashlib.sha256(buffer).hexdigest()[:16])
            try:
                buffer.put(b"too early")
            except bulk.CopiesOutstandingError:
                print("parent: the child reads it")
            channel.receive_buffer(timeout=5)  # released: ours to write again
        process.join()


if __name__ == "__main__":
    main()
