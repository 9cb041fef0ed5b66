"""The receiver decides where the data goes: it owns the pool, and lends the sender empty buffers to fill.

That is the receive-master mode: the sink creates the channel as MASTER and assigns its pool; it passes empty buffers
to the source, which moves them back full. A slow receiver thereby holds the sender up, without another protocol.
"""

import multiprocessing

import bulktransfer as bulk


def sensor(address: str) -> None:
    with bulk.bind(address, role=bulk.Role.SLAVE) as channel:
        try:
            for reading in range(1000):
                empty = channel.receive_buffer().buffer
                empty.put(f"reading {reading}".encode())
                channel.move(empty)
        except bulk.EndOfChannelError:
            print("sensor: nobody wants more")


def main() -> None:
    channel = bulk.create("shm:", direction=bulk.Direction.RX, trust=bulk.Trust.FULL, role=bulk.Role.MASTER)
    with channel, bulk.Allocator(count=3, size=4096) as buffers:
        process = multiprocessing.get_context("spawn").Process(target=sensor, args=(channel.address,))
        process.start()
        channel.wait_bound()
        channel.assign_pool(buffers.pool)
        channel.pass_many(buffers.alloc_many(3))  # from here on the sensor has something to write to
        for _ in range(6):
            full = channel.receive_buffer(timeout=5).buffer
            print("master:", full.tobytes().decode())
            channel.pass_(full)  # empty now: to be filled again
        channel.destroy()
        process.join()


if __name__ == "__main__":
    main()
