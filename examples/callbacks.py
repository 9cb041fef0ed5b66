"""Callbacks and a wait set: one thread serves two sensors, and nowhere is a loop that asks who has what.

Each kind of event goes to the function that is named for it. `dispatch` waits, runs what is due, and returns.
"""

import multiprocessing

import bulktransfer as bulk

counts: dict[str, int] = {}
open_sensors = 2


def sensor(endpoint: bulk.Endpoint, readings: int) -> None:
    with endpoint.bind() as channel, bulk.Allocator(count=2, size=4096, reclaim=True) as buffers:
        channel.assign_pool(buffers.pool)
        for number in range(readings):
            buffer = buffers.alloc(timeout=5)
            buffer.put(f"reading {number}".encode())
            channel.move(buffer)
        for _ in range(2):
            buffers.alloc(timeout=5)  # all are home: every reading was taken


def on_assigned(event: bulk.Event) -> None:
    if event.pool.buffer_size > 1 << 20:
        raise ValueError("a sensor with such big buffers is not one of ours")  # a veto: the sensor gets the error


def on_reading(event: bulk.Event) -> None:
    counts[event.channel.user_state] += 1
    event.channel.pass_(event.buffer)


def on_end(event: bulk.Event) -> None:
    global open_sensors
    open_sensors -= 1
    event.channel.close()


def main() -> None:
    callbacks = bulk.Callbacks(pool_assigned=on_assigned, move_received=on_reading, teardown_received=on_end)
    with bulk.WaitSet() as sensors:
        channels = []  # a wait set does not keep channels alive
        for name, readings in (("left", 30), ("right", 20)):
            counts[name] = 0
            channel, endpoint = bulk.pair(
                direction=bulk.Direction.RX, trust=bulk.Trust.FULL, callbacks=callbacks, user_state=name
            )
            channels.append(channel)
            multiprocessing.get_context("spawn").Process(target=sensor, args=(endpoint, readings), daemon=True).start()
            sensors.add(channel)
        while open_sensors:
            sensors.dispatch(timeout=10)
    print("readings:", counts)


if __name__ == "__main__":
    main()
