"""Trust NONE: contents travel by value, nothing else is visible, and what was received never changes."""

from __future__ import annotations

import contextlib
import gc
import os

import pytest

import bulktransfer as bulk
from bulktransfer import EventKind, Trust
from worlds import INVALID, PATIENCE_S, READ_WRITE, World, nothing_comes, take, together, unchanged, until_the_end

NONE = Trust.NONE
STAGE = bulk.Limits().stage_size


@pytest.fixture(params=["local", "shm"])
def world(request):
    with World(request.param) as world:
        yield world


@pytest.fixture(params=["local", "shm", "local sealed", "shm sealed"])
def either(request):
    """A world where contents travel by value, and one where they travel as sealed frames."""
    scheme, _, means = request.param.partition(" ")
    with World(scheme) as world:
        world.assigning = {"means": means or "by value"}
        yield world


def line(world, *, count=4, size=4096, **options):
    a, b = world.domains(2)
    tx, rx = world.channel(a, b, trust=NONE, **options)
    alloc = world.allocator(a, count=count, size=size)
    return tx, rx, alloc, world.assign(tx, rx, alloc.pool)


def noise(size, seed=1):
    """Bytes that repeat nowhere near."""
    return (os.urandom(997) * (size // 997 + 1))[:size]


def until(channel, happened):
    """Serve a channel on which no event comes."""
    while not happened():
        with contextlib.suppress(TimeoutError):
            channel.receive(0.01)


def receive_on(channel):
    while True:
        channel.receive(PATIENCE_S)


def stall(world, tx, rx):
    """From here on nothing that is sent gets beyond the staging area, until the sink's user calls: a question of the
    source waits for its answer, and the helper leaves that to the user."""
    found = []
    tx.assign_pool(world.allocator(tx.domain).pool, done=found.append)
    return found


# ---- what arrives ----------------------------------------------------------------------------------------------------


SIZES = [0, 1, 63, 64, 65, 4095, 65535, 65536, 65537, STAGE - 1, STAGE, STAGE + 1, 3 * STAGE + 77]


def test_contents_of_any_length_arrive_by_move_and_by_copy(either):
    tx, rx, alloc, _ = line(either, count=1, size=4 * STAGE, meta_size=100)
    buffer = alloc.alloc()
    for size in SIZES:
        data = noise(size)
        buffer.put(data)
        tx.move(buffer, b"m" * (size % 100))
        event = take(rx, EventKind.MOVE_RECEIVED)
        assert event.buffer.tobytes() == data
        assert event.meta == b"m" * (size % 100)
        rx.pass_(event.buffer)
        take(tx, EventKind.BUFFER_RECEIVED)
        assert (buffer.state, buffer.length) == (READ_WRITE, buffer.size)
        buffer.put(data)
        tx.copy(buffer)
        there = take(rx, EventKind.COPY_RECEIVED).buffer
        assert there.tobytes() == data
        rx.release(there)
        take(tx, EventKind.COPY_RELEASED)


def test_a_batch_arrives_whole_whether_it_fits_or_not(either):
    for size in (4096, 2 * STAGE):
        tx, rx, alloc, _ = line(either, count=8, size=size, meta_size=64)
        buffers = alloc.alloc_many(8)
        sent = [noise(size - i) for i in range(8)]
        for buffer, data in zip(buffers, sent, strict=True):
            buffer.put(data)
        tx.move_many(buffers, [b"%d" % i * 5 for i in range(8)])
        for i, data in enumerate(sent):
            event = take(rx, EventKind.MOVE_RECEIVED)
            assert event.buffer.tobytes() == data
            assert event.meta == b"%d" % i * 5


def test_a_ring_that_is_full_keeps_contents_and_order(either):
    tx, rx, alloc, _ = line(either, count=16, size=8192, limits=bulk.Limits(slot_count=2))
    sent = []
    for i in range(16):
        buffer = alloc.alloc()
        buffer.put(noise(8000 - i))
        sent.append(buffer.tobytes())
        tx.move(buffer)
    assert [take(rx, EventKind.MOVE_RECEIVED).buffer.tobytes() for _ in range(16)] == sent


def test_nothing_beyond_the_length_reaches_the_other_side(either):
    tx, rx, alloc, _ = line(either)
    buffer = alloc.alloc()
    buffer.put(b"secret" * 100)
    buffer.put(b"public")
    tx.move(buffer)
    there = take(rx, EventKind.MOVE_RECEIVED).buffer
    assert there.tobytes() == b"public"
    assert not any(b"secret" in memory for memory in outboxes())


def outboxes():
    """What is in every outbox that this process has mapped."""
    with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb") as memory:
        for each in maps:
            if "bulktransfer-outbox" in each:
                first, end = (int(x, 16) for x in each.split()[0].split("-"))
                memory.seek(first)
                yield memory.read(end - first)


def test_what_the_length_grows_over_is_zeroed(either):
    tx, rx, alloc, _ = line(either, count=1)
    buffer = alloc.alloc()
    buffer.put(b"a long one" * 10)
    tx.move(buffer)
    there = take(rx, EventKind.MOVE_RECEIVED).buffer
    rx.pass_(there)
    take(tx, EventKind.BUFFER_RECEIVED)
    buffer.put(b"short")
    tx.move(buffer)
    take(rx, EventKind.MOVE_RECEIVED)
    there.length = 100
    assert there.tobytes() == b"short" + bytes(95)
    there.put(b"mine" * 20)
    there.length = 100
    assert there.tobytes() == b"mine" * 20 + bytes(20)


# ---- it completes by itself ------------------------------------------------------------------------------------------


def send_and_go(pipe, address, size, count):
    """Move more than is staged, close, and end: nobody receives meanwhile."""
    import bulktransfer as bulk

    with bulk.create(address, direction=bulk.Direction.TX, trust=bulk.Trust.NONE) as chan:
        chan.wait_bound(20)
        alloc = bulk.Allocator(count=count, size=size)
        chan.assign_pool(alloc.pool)
        for i in range(count):
            buffer = alloc.alloc()
            buffer.put(bytes([i + 1]) * size)
            chan.move(buffer)
    pipe.send("closed")


def test_what_was_accepted_arrives_though_neither_side_calls_again(spawn, tmp_path):
    size, count = 3 * STAGE, 6
    child = spawn(send_and_go, "shm:once-sent", size, count)
    with bulk.bind("shm:once-sent", timeout=PATIENCE_S) as chan:
        take(chan, EventKind.POOL_ASSIGNED)
        assert child.receive() == "closed"
        child.join()  # its memory is gone; 18 areas full of contents went without a call here
        for i in range(count):
            assert take(chan, EventKind.MOVE_RECEIVED).buffer.tobytes() == bytes([i + 1]) * size
        assert [event.kind for event in until_the_end(chan)] == [EventKind.TEARDOWN_RECEIVED]


def dies(pipe, address, means):
    """Copies a buffer, and waits to be killed."""
    import bulktransfer as bulk

    with bulk.create(address, direction=bulk.Direction.TX, trust=bulk.Trust.NONE) as chan:
        chan.wait_bound(20)
        alloc = bulk.Allocator(count=1, size=8192)
        chan.assign_pool(alloc.pool, means=means)
        buffer = alloc.alloc()
        buffer.put(b"last words")
        chan.copy(buffer)
        pipe.send("sent")
        pipe.recv()


@pytest.mark.parametrize("means", ["by value", "sealed"])
def test_a_sink_that_begins_to_wait_when_its_source_is_dead_hears_of_it(spawn, means):
    child = spawn(dies, "shm:dies", means)
    with bulk.bind("shm:dies", timeout=PATIENCE_S) as chan:
        take(chan, EventKind.POOL_ASSIGNED)
        assert child.receive() == "sent"
        there = take(chan, EventKind.COPY_RECEIVED).buffer
        child.kill()
        with pytest.raises(bulk.BrokenChannelError):
            chan.receive()  # for ever, if it had to be told by a bell
        assert there.tobytes() == b"last words"


def test_a_buffer_is_not_used_again_before_its_last_byte_is_out(world):
    tx, rx, alloc, _ = line(world, count=2, size=4 * STAGE)
    stall(world, tx, rx)
    moved, copied = alloc.alloc_many(2)
    for buffer, data in ((moved, b"1"), (copied, b"2")):
        buffer.put(data * 4 * STAGE)
    tx.move(moved)
    tx.copy(copied)
    tx.close()
    assert (moved.state, alloc.detached) == (INVALID, 2)
    with unchanged(copied), pytest.raises(bulk.CopiesOutstandingError):
        copied.put(b"x")
    assert take(rx, EventKind.MOVE_RECEIVED).buffer.tobytes() == b"1" * 4 * STAGE
    assert take(rx, EventKind.COPY_RECEIVED).buffer.tobytes() == b"2" * 4 * STAGE
    until_the_end(rx)
    assert alloc.detached == 0
    assert moved.state is copied.state is READ_WRITE


def test_memory_that_nobody_has_any_more_stays_until_its_last_byte_is_out(either):
    tx, rx, alloc, _ = line(either, count=1, size=4 * STAGE)
    stall(either, tx, rx)
    buffer = alloc.alloc()
    data = noise(4 * STAGE)
    buffer.put(data)
    tx.move(buffer)
    tx.close()
    either.made.remove(tx)
    either.made.remove(alloc)
    alloc.close()
    del tx, alloc, buffer
    gc.collect()
    assert take(rx, EventKind.MOVE_RECEIVED).buffer.tobytes() == data
    until_the_end(rx)


def test_a_source_that_closes_waits_for_nobody_who_is_gone(either):
    tx, rx, alloc, _ = line(either, count=1, size=4 * STAGE)
    stall(either, tx, rx)
    buffer = alloc.alloc()
    tx.move(buffer)
    rx.close()
    with pytest.raises((bulk.EndOfChannelError, bulk.BrokenChannelError)):
        receive_on(tx)
    assert alloc.detached == 0
    assert buffer.state is READ_WRITE


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_a_second_copy_is_drained_unread_and_what_was_read_stays(either):
    a, b = either.domains(2)
    one, other = either.channel(a, b, trust=NONE), either.channel(a, b, trust=NONE)
    alloc = either.allocator(a, count=2, size=3 * STAGE)
    there = either.assign(*one, alloc.pool)
    assert either.assign(*other, alloc.pool) is there
    buffer, next_one = alloc.alloc_many(2)
    data = noise(3 * STAGE)
    buffer.put(data)
    one[0].copy(buffer)
    held = take(one[1], EventKind.COPY_RECEIVED).buffer
    other[0].copy(buffer)
    next_one.put(b"after it" * 1000)
    other[0].move(next_one)
    assert take(other[1], EventKind.MOVE_RECEIVED).buffer.tobytes() == b"after it" * 1000
    event = take(other[0], EventKind.OPERATION_REFUSED)
    assert isinstance(event.error, bulk.CopyRefusedError)
    assert held.tobytes() == data
    one[1].release(held)
    take(one[0], EventKind.COPY_RELEASED)
    assert buffer.state is READ_WRITE


def test_a_buffer_comes_home_from_whom_it_was_sent_to_only(either):
    a, b, c = either.domains(3)
    to_b, to_c = either.channel(a, b, trust=NONE), either.channel(a, c, trust=NONE)
    consented = []  # C has the pool through A already
    callbacks = bulk.Callbacks(pool_assigned=consented.append)
    between = either.channel(b, c, trust=NONE, binder={"callbacks": callbacks})
    alloc = either.allocator(a, count=1)
    at_b = either.assign(*to_b, alloc.pool)
    either.assign(*to_c, alloc.pool)
    together(lambda: until(between[1], lambda: at_b in between[0].pools), lambda: between[0].assign_pool(at_b))
    assert len(consented) == 1
    buffer = alloc.alloc()
    buffer.put(b"a loan")
    to_b[0].move(buffer)
    between[0].move(take(to_b[1], EventKind.MOVE_RECEIVED).buffer)
    there = take(between[1], EventKind.MOVE_RECEIVED).buffer
    assert there.tobytes() == b"a loan"
    to_c[1].pass_(there)  # it never was A's to take from C
    nothing_comes(to_c[0])
    assert isinstance(take(to_c[1], EventKind.OPERATION_REFUSED).error, bulk.NotOwnedError)
    assert there.state is READ_WRITE
    between[1].pass_(there)
    to_b[1].pass_(take(between[0], EventKind.BUFFER_RECEIVED).buffer)
    assert take(to_b[0], EventKind.BUFFER_RECEIVED).buffer is buffer


def test_a_channel_that_closes_half_way_leaves_the_twin_free(either):
    a, b = either.domains(2)
    one, other = either.channel(a, b, trust=NONE), either.channel(a, b, trust=NONE)
    alloc = either.allocator(a, count=1, size=4 * STAGE)
    there = either.assign(*one, alloc.pool)
    either.assign(*other, alloc.pool)
    stall(either, *one)
    buffer = alloc.alloc()
    buffer.put(b"x" * 4 * STAGE)
    one[0].move(buffer)
    one[1].close()
    with pytest.raises((bulk.EndOfChannelError, bulk.BrokenChannelError)):
        receive_on(one[0])
    assert alloc.detached == 0
    if there[0].owned:  # the other half came in while the channel closed
        there[0].drop()
    buffer.put(b"y" * 3 * STAGE)
    other[0].move(buffer)
    assert take(other[1], EventKind.MOVE_RECEIVED).buffer is there[0]
    assert there[0].tobytes() == b"y" * 3 * STAGE


# ---- a peer that is hostile ------------------------------------------------------------------------------------------


def scribble(pipe, address, size, everything):
    """Move buffers, and all the time overwrite the memory that the other side reads."""
    import ctypes
    import os
    import threading

    import bulktransfer as bulk

    libc = ctypes.CDLL(None)
    libc.memcpy.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
    chan = bulk.bind(address, timeout=20)
    alloc = bulk.Allocator(count=8, size=size)
    chan.assign_pool(alloc.pool)
    with open("/proc/self/maps") as maps:
        own = [x.split() for x in maps if "bulktransfer-outbox" in x and " rw-s " in x]
    (first, end), *_ = [[int(y, 16) for y in x[0].split("-")] for x in own]
    begin = first if everything else end - bulk.Limits().stage_size
    junk = os.urandom(end - begin)

    def run():
        while True:
            libc.memcpy(begin, junk, end - begin)  # without the GIL

    threading.Thread(target=run, daemon=True).start()
    for _ in range(8 if everything else 40):  # it never looks at the end: its outbox must stay where it is
        buffer = alloc.alloc() if alloc.available else chan.receive_buffer(20).buffer
        buffer.put(b"v" * size)
        chan.move(buffer)
    pipe.send("all sent")
    pipe.recv()
    os._exit(0)


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("size", [4096, 3 << 20])
def test_a_sender_that_scribbles_all_the_time_changes_nothing_that_was_received(spawn, everything, size):
    with bulk.create("shm:", direction=bulk.Direction.RX, trust=NONE) as chan:
        child = spawn(scribble, chan.address, size, everything)
        chan.wait_bound(PATIENCE_S)
        take(chan, EventKind.POOL_ASSIGNED)
        received = []
        kinds = set()
        try:
            for _ in range(40):
                event = chan.receive(PATIENCE_S if not everything else 5)
                kinds.add(event.kind)
                if event.kind is not EventKind.MOVE_RECEIVED:
                    continue
                assert event.buffer.length <= size
                received.append((event.buffer, event.buffer.tobytes()))
                if len(received) > 4:
                    buffer, contents = received.pop(0)
                    assert buffer.tobytes() == contents  # five transfers and a lot of scribbling later
                    chan.pass_(buffer)
        except (bulk.ProtocolViolation, bulk.EndOfChannelError, bulk.BrokenChannelError, TimeoutError):
            assert everything
        for buffer, contents in received:
            assert buffer.tobytes() == contents
        child.send("enough")
        child.join()


def test_the_other_side_maps_nothing_of_the_pool(spawn):
    def look(pipe, address):
        import bulktransfer as bulk

        with bulk.bind(address, timeout=20) as chan:
            buffer = chan.receive_buffer(20).buffer
            pipe.send(buffer.tobytes())
            with open("/proc/self/maps") as maps:
                pipe.send([line for line in maps if "memfd:bulktransfer" in line])
            chan.pass_(buffer)
            pipe.recv()

    with bulk.create("shm:", direction=bulk.Direction.TX, trust=NONE) as chan:
        child = spawn(look, chan.address)
        chan.wait_bound(PATIENCE_S)
        with bulk.Allocator(count=1, size=8192) as alloc:
            chan.assign_pool(alloc.pool)
            buffer = alloc.alloc()
            buffer.put(b"all that is sent")
            chan.move(buffer)
            assert child.receive() == b"all that is sent"
            lines = child.receive()
            others = [line for line in lines if "bulktransfer-statistics" not in line]  # which anybody may see
            assert others
            assert all("bulktransfer-outbox" in line for line in others)
            assert sorted(line.split()[1] for line in others) == ["r--s", "rw-s"]
            take(chan, EventKind.BUFFER_RECEIVED)
        child.send("done")
        child.join()


# ---- exposed pools ---------------------------------------------------------------------------------------------------


def exposed(world, **options):
    a, b = world.domains(2)
    tx, rx = world.channel(a, b, trust=NONE)
    alloc = world.allocator(a, **options)
    event, _ = together(
        lambda: take(rx, EventKind.POOL_ASSIGNED), lambda: tx.assign_pool(alloc.pool, exposed=True, timeout=PATIENCE_S)
    )
    return tx, rx, alloc, event.pool


def test_an_exposed_pool_is_read_in_place_and_received_into_a_twin(world):
    tx, rx, alloc, there = exposed(world, count=2, size=3 * STAGE)
    one, two = alloc.alloc_many(2)
    for buffer, send, kind in ((one, tx.move, "move_received"), (two, tx.copy, "copy_received")):
        data = noise(3 * STAGE - 5)
        buffer.put(data)
        send(buffer)
        event = take(rx, EventKind(kind))
        assert event.buffer is there[buffer.index]
        assert event.buffer.tobytes() == data
    rx.pass_(there[one.index])
    take(tx, EventKind.BUFFER_RECEIVED)
    one.put(b"changed")
    tx.move(one)
    assert take(rx, EventKind.MOVE_RECEIVED).buffer.tobytes() == b"changed"
    with open("/proc/self/maps") as maps:
        ours = [line.split() for line in maps if "bulktransfer-pool" in line]
    numbers = {line[4] for line in ours if line[0].startswith(f"{alloc.pool.address:x}-")}
    assert sorted(line[1] for line in ours if line[4] in numbers) == ["r--s", "rw-s"]


def test_an_exposed_slot_is_free_when_nobody_can_read_it_any_more(world):
    tx, rx, alloc, _ = exposed(world, count=1, size=8192)
    buffer = alloc.alloc()
    buffer.put(b"sent before the end")
    tx.move(buffer)
    tx.close()
    assert alloc.detached == 1
    received = take(rx, EventKind.MOVE_RECEIVED).buffer
    until_the_end(rx)
    assert alloc.detached == 0
    buffer.put(b"other contents")
    assert received.tobytes() == b"sent before the end"


def test_what_cannot_be_exposed_is_refused_at_the_call(world):
    tx, rx, _, there = line(world)
    back = world.channel(rx.domain, tx.domain, trust=NONE)
    with pytest.raises(bulk.ConstraintError, match="twin"):
        back[0].assign_pool(there, exposed=True)
    own = world.allocator(rx.domain)
    with pytest.raises(ValueError, match="source"):
        rx.assign_pool(own.pool, exposed=True)
    with pytest.raises(ValueError, match="NONE"):
        world.channel(tx.domain, rx.domain)[0].assign_pool(world.allocator(tx.domain).pool, exposed=True)


def test_an_exposed_pool_cannot_be_shared_later(world):
    tx, rx, alloc, _ = exposed(world)
    tx.remove_pool(alloc.pool, done=lambda outcome: None)
    take(rx, EventKind.POOL_REMOVED)
    nothing_comes(tx)
    full, _ = world.channel(tx.domain, rx.domain)
    with pytest.raises(bulk.ConstraintError, match="exposed before"):
        full.assign_pool(alloc.pool)
