"""A forwarder by hand: A sends to B, B looks and sends the same buffers on to C, and they come home the same way.

B assigns the pool, which it has from A, onward to C. It owns a buffer while it has it, so it may also change it.
"""

import multiprocessing

import bulktransfer as bulk

TX, FULL = bulk.Direction.TX, bulk.Trust.FULL


def last(address: str) -> None:
    with bulk.bind(address) as channel:
        for _ in range(3):
            buffer = channel.receive_buffer().buffer
            print("C got:", buffer.tobytes().decode())
            channel.pass_(buffer)


def middle(address: str, onward_address: str) -> None:
    with bulk.create(onward_address, direction=TX, trust=FULL) as onward, bulk.bind(address) as inbound:
        onward.wait_bound()
        onward.assign_pool(inbound.receive().pool)  # the first event: A has assigned its pool
        for _ in range(3):
            buffer = inbound.receive_buffer().buffer
            buffer.put(buffer.tobytes() + b", seen by B")
            onward.move(buffer)
            inbound.pass_(onward.receive_buffer().buffer)


def main() -> None:
    spawn = multiprocessing.get_context("spawn")
    with bulk.create("shm:", direction=TX, trust=FULL) as channel, bulk.Allocator(count=2, size=4096) as buffers:
        onward_address = f"{channel.address}-onward"
        others = [
            spawn.Process(target=middle, args=(channel.address, onward_address)),
            spawn.Process(target=last, args=(onward_address,)),
        ]
        for process in others:
            process.start()
        channel.wait_bound()
        channel.assign_pool(buffers.pool)
        for number in range(3):
            buffer = buffers.alloc()
            buffer.put(f"message {number}".encode())
            channel.move(buffer)
            home = channel.receive_buffer(timeout=5).buffer
            print("A has it back:", home is buffer)
            buffers.free(home)
        for process in others:
            process.join()


if __name__ == "__main__":
    main()
