"""Memory that bytes are still moved in, though nobody has the pool any more, stays until the last of them has left."""

from __future__ import annotations

import os
import signal


def keeper(pipe):
    """Takes one buffer by value, after it was stopped for a while."""
    import os
    import signal

    import bulktransfer as bulk

    rx = bulk.create("shm:", direction=bulk.Direction.RX, trust=bulk.Trust.NONE)
    pipe.send(rx.address)
    assert rx.receive().kind is bulk.EventKind.BIND_RECEIVED
    assert rx.receive().kind is bulk.EventKind.POOL_ASSIGNED
    os.kill(os.getpid(), signal.SIGSTOP)
    data = rx.receive_buffer().buffer.tobytes()
    pipe.send(data == bytes(range(256)) * (len(data) // 256))


def between(pipe, address):
    """A pool that came over the network goes on by value; all of it is forgotten here before it has left."""
    import gc
    import os
    import threading

    import bulktransfer as bulk
    from bulktransfer import Direction, EventKind, Trust

    events = []

    def serve(until, *channels):
        while not until():
            for channel in channels:
                try:
                    events.append(channel.receive(0.001))
                except TimeoutError:
                    continue

    here, middle = bulk.Domain(), bulk.Domain()
    on = bulk.bind(address, domain=middle)
    first = bulk.create("tcp://127.0.0.1:0", direction=Direction.TX, trust=Trust.NONE, domain=here)
    entry = bulk.bind(first.address, domain=middle, timeout=None, done=lambda outcome: None)
    serve(lambda: first.state is entry.state is bulk.ChannelState.CONNECTED, first, entry)
    size = 16 << 20
    alloc = bulk.Allocator(count=1, size=size, domain=here)
    first.assign_pool(alloc.pool, timeout=None, done=lambda outcome: None)
    serve(lambda: alloc.pool in first.pools, first, entry)
    buffer = alloc.alloc()
    buffer.put(bytes(range(256)) * (size // 256))
    first.move(buffer)
    serve(lambda: any(event.kind is EventKind.MOVE_RECEIVED for event in events), entry, first)
    pool = entry.pools[0]
    on.assign_pool(pool)
    pipe.send("assigned")
    assert pipe.recv() == "it is stopped"
    on.move(pool[0])  # most of it waits for room
    for channel in (entry, on, first):
        channel.close()
    events.clear()
    pool = entry = on = middle = channel = None
    gc.collect()
    pause = threading.Event()
    while sum("socket:" in os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")) > 2:
        pause.wait(0.01)  # until the network has let go: the test's pipe and the channel by value are left
    pipe.send("forgotten")
    assert pipe.recv() == "end"


def test_what_waits_to_leave_by_value_outlives_a_pool_that_the_network_used_as_well(spawn):
    last = spawn(keeper)
    child = spawn(between, last.receive())
    assert child.receive() == "assigned"
    os.waitid(os.P_PID, last.pid, os.WSTOPPED | os.WNOWAIT)
    child.send("it is stopped")
    assert child.receive() == "forgotten"
    last.signal(signal.SIGCONT)
    assert last.receive() is True
    child.send("end")
    child.join()
    last.join()
