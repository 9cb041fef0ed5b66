"""Sealed frames: contents travel as memory that nobody can change any more, and what is no such memory is refused."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os

import pytest

import bulktransfer as bulk
from bulktransfer import EventKind, Trust
from worlds import INVALID, OWNED_COPIED, PATIENCE_S, READ_ONLY, READ_WRITE, World, take, together, unchanged

NONE = Trust.NONE
PAGE, BIG = 4096, 2 << 20
WRITE, SHRINK, GROW, SEAL = fcntl.F_SEAL_WRITE, fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW, fcntl.F_SEAL_SEAL
ALL = WRITE | SHRINK | GROW | SEAL


@pytest.fixture(params=["local", "shm"])
def world(request):
    with World(request.param) as world:
        yield world


def assign(tx, rx, pool, **options):
    event, _ = together(
        lambda: take(rx, EventKind.POOL_ASSIGNED), lambda: tx.assign_pool(pool, timeout=PATIENCE_S, **options)
    )
    return event.pool


def line(world, *, count=4, size=2 * PAGE, **options):
    a, b = world.domains(2)
    tx, rx = world.channel(a, b, trust=NONE, **options)
    alloc = world.allocator(a, count=count, size=size)
    return tx, rx, alloc, assign(tx, rx, alloc.pool, means="sealed")


def noise(size):
    return (os.urandom(997) * (size // 997 + 1))[:size]


def frames():
    """The frames that this process has open, as files."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if "bulktransfer-frame" in os.readlink(f"/proc/self/fd/{name}"):
                found.append(os.fstat(int(name)).st_ino)
        except FileNotFoundError:
            continue
    return found


def mapped(buffer):
    """How the kernel has the first page of a buffer: what it allows, and of which file it is."""
    with open("/proc/self/maps") as lines:
        for each in lines:
            span, rights, _, _, inode, *_ = each.split()
            first, end = (int(x, 16) for x in span.split("-"))
            if first <= buffer.pool.address + buffer.index * buffer.size < end:
                return rights, int(inode)
    raise AssertionError("not mapped")


def sent_sealed(channel):
    return channel.statistics()["contents"]["sealed"]


# ---- what arrives ----------------------------------------------------------------------------------------------------


def test_contents_of_any_length_arrive_by_move_and_by_copy(world):
    tx, rx, alloc, _ = line(world, count=1, size=BIG + PAGE, meta_size=100)
    buffer = alloc.alloc()
    for size in [1, PAGE - 1, PAGE, PAGE + 1, BIG - 1, BIG, BIG + PAGE]:
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
        assert (there.tobytes(), buffer.tobytes()) == (data, data)
        rx.release(there)
        take(tx, EventKind.COPY_RELEASED)
        assert (buffer.state, buffer.tobytes()) == (READ_WRITE, data)
    assert (sent_sealed(tx), sent_sealed(rx)) == (14, 14)
    assert tx.statistics()["contents"]["by_value"] == 0


def test_contents_without_bytes_take_no_frame(world):
    tx, rx, alloc, _ = line(world)
    buffer = alloc.alloc()
    buffer.length = 0
    tx.move(buffer)
    assert take(rx, EventKind.MOVE_RECEIVED).buffer.tobytes() == b""
    assert sent_sealed(tx) == 0


def test_after_the_first_time_contents_are_written_where_they_are_sealed(world):
    tx, rx, alloc, _ = line(world, count=1)
    for _ in range(3):
        buffer = alloc.alloc()
        buffer.put(b"written in place")
        tx.move(buffer)
        rx.pass_(take(rx, EventKind.MOVE_RECEIVED).buffer)
        take(tx, EventKind.BUFFER_RECEIVED)
        alloc.free(buffer)
    assert tx.statistics()["contents"]["sealed_after_a_copy"] == 1  # the first was written into the pool's own memory


def test_one_frame_serves_every_reader_and_is_never_written_again(world):
    home, *others = world.domains(4)
    lines = [world.channel(home, other, trust=NONE) for other in others]
    alloc = world.allocator(home, count=1, size=4 * PAGE)
    for tx, rx in lines:
        assign(tx, rx, alloc.pool, means="sealed")
    buffer = alloc.alloc()
    buffer.put(b"for all" * 100)
    for tx, _ in lines:
        tx.copy(buffer)
    there = [take(rx, EventKind.COPY_RECEIVED).buffer for _, rx in lines]
    assert {mapped(each)[1] for each in there} == {mapped(buffer)[1]}  # one file, one memory
    for (tx, rx), each in zip(lines, there, strict=True):
        assert (each.tobytes(), mapped(each)[0]) == (b"for all" * 100, "r--p")
        rx.release(each)
        take(tx, EventKind.COPY_RELEASED)
    seen = mapped(buffer)[1]
    alloc.free(buffer)
    again = alloc.alloc()
    again.put(b"anew")
    assert mapped(again)[1] != seen  # a frame is not used again after another domain has seen it


def test_nothing_beyond_the_length_reaches_the_other_side(world):
    tx, rx, alloc, _ = line(world, count=1, size=4 * PAGE)
    buffer = alloc.alloc()
    for _ in range(2):  # out of the pool's own memory, then out of a frame
        buffer.put(b"secret" * 2000)
        buffer.put(b"public")
        tx.copy(buffer)
        there = take(rx, EventKind.COPY_RECEIVED).buffer
        assert ctypes.string_at(there.address, there.size) == b"public".ljust(there.size, b"\0")
        rx.release(there)
        take(tx, EventKind.COPY_RELEASED)
        alloc.free(buffer)
        buffer = alloc.alloc()


def test_what_the_receiver_writes_is_its_own(world):
    tx, rx, alloc, _ = line(world, count=1, size=4 * PAGE)
    buffer = alloc.alloc()
    buffer.put(b"a" * 4 * PAGE)
    tx.move(buffer)
    there = take(rx, EventKind.MOVE_RECEIVED).buffer
    inode = mapped(there)[1]
    with open_frame(inode) as frame:
        with memoryview(there) as view:
            view[PAGE] = ord("b")
        assert os.pread(frame.fileno(), 4 * PAGE, 0) == b"a" * 4 * PAGE
    assert there.tobytes() == b"a" * PAGE + b"b" + b"a" * (3 * PAGE - 1)
    there.length = PAGE
    there.length = 2 * PAGE
    assert there.tobytes()[PAGE:] in (b"b" + b"a" * (PAGE - 1), bytes(PAGE))


def open_frame(inode):
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # a helper thread closes others meanwhile
            if os.fstat(int(name)).st_ino == inode and "frame" in os.readlink(f"/proc/self/fd/{name}"):
                return os.fdopen(os.dup(int(name)), "rb")
    raise AssertionError("the frame is not open")


def test_a_batch_arrives_whole_and_in_order(world):
    tx, rx, alloc, _ = line(world, count=6, meta_size=64, limits=bulk.Limits(slot_count=4))
    buffers = alloc.alloc_many(6)
    for i, buffer in enumerate(buffers):
        buffer.put(noise(5000 + i))
    sent = [buffer.tobytes() for buffer in buffers]
    tx.move_many(buffers, [b"%d" % i * 50 for i in range(6)])
    for i, data in enumerate(sent):
        event = take(rx, EventKind.MOVE_RECEIVED)
        assert (event.buffer.tobytes(), event.meta) == (data, b"%d" % i * 50)
    rx.pass_many(list(event.buffer.pool))
    for _ in range(6):
        take(tx, EventKind.BUFFER_RECEIVED)
    assert sent_sealed(rx) == 6


def test_more_frames_than_the_peer_has_room_for_go_by_value(world):
    tx, rx, alloc, _ = line(world, count=4, limits=bulk.Limits(frames=2), creator="sink")
    buffers = alloc.alloc_many(4)
    for i, buffer in enumerate(buffers):
        buffer.put(b"%d" % i * 100)
        tx.move(buffer)
    for i in range(4):
        assert take(rx, EventKind.MOVE_RECEIVED).buffer.tobytes() == b"%d" % i * 100
    contents = tx.statistics()["contents"]
    assert (contents["sealed"], contents["by_value"]) == (2, 2)


def test_an_option_overrides_the_choice(world):
    a, b = world.domains(2)
    tx, rx = world.channel(a, b, trust=NONE)
    alloc = world.allocator(a, count=1, size=BIG)
    assign(tx, rx, alloc.pool, means="by value")
    buffer = alloc.alloc()
    buffer.put(noise(BIG))
    tx.move(buffer)
    take(rx, EventKind.MOVE_RECEIVED)
    assert tx.statistics()["contents"] == {
        "by_value": 1, "sealed": 0, "sealed_after_a_copy": 0, "sealed_before": 0
    }  # fmt: skip
    other = world.allocator(a)
    with pytest.raises(ValueError, match="takes one of by value, sealed"):
        tx.assign_pool(other.pool, means="magic")
    with pytest.raises(ValueError, match="by no other means"):
        tx.assign_pool(other.pool, means="sealed", exposed=True)
    full = world.channel(a, b, trust=Trust.FULL)[0]
    with pytest.raises(ValueError, match="is for trust NONE on one machine"):
        full.assign_pool(other.pool, means="sealed")


# ---- who may do what -------------------------------------------------------------------------------------------------


def test_a_mapping_follows_its_state(world):
    tx, rx, alloc, _ = line(world, count=1)
    buffer = alloc.alloc()
    buffer.put(b"x")
    tx.move(buffer)
    assert mapped(buffer)[0] == "---p"
    there = take(rx, EventKind.MOVE_RECEIVED).buffer
    assert mapped(there)[0] == "rw-p"
    rx.pass_(there)
    assert mapped(there) == ("---p", 0)
    take(tx, EventKind.BUFFER_RECEIVED)
    buffer.put(b"y")
    assert mapped(buffer)[0] == "rw-s"  # a frame of its own, until it is sealed
    with memoryview(buffer):
        pass
    tx.copy(buffer)
    assert (mapped(buffer)[0], buffer.state) == ("r--p", OWNED_COPIED)
    there = take(rx, EventKind.COPY_RECEIVED).buffer
    assert (mapped(there)[0], there.state) == ("r--p", READ_ONLY)
    rx.release(there)
    assert (mapped(there), there.state) == (("---p", 0), INVALID)
    take(tx, EventKind.COPY_RELEASED)
    assert (mapped(buffer)[0], buffer.state) == ("rw-p", READ_WRITE)


def test_a_live_reading_view_goes_on_reading_while_the_memory_is_sealed(world):
    tx, rx, alloc, _ = line(world, count=1)
    buffer = alloc.alloc()
    for _ in range(2):
        buffer.put(b"still here")
        with memoryview(buffer).toreadonly() as writable:
            with pytest.raises(BufferError):
                tx.copy(buffer)  # the view was made while it could be written
            assert bytes(writable) == b"still here"
        tx.copy(buffer)
        with memoryview(buffer) as view:
            there = take(rx, EventKind.COPY_RECEIVED).buffer
            assert bytes(view) == there.tobytes() == b"still here"
            rx.release(there)
            take(tx, EventKind.COPY_RELEASED)
            assert bytes(view) == b"still here"
        alloc.free(buffer)
        buffer = alloc.alloc()


def test_memory_that_is_pinned_or_mapped_elsewhere_is_not_sealed_and_nothing_changes(world):
    tx, rx, alloc, _ = line(world, count=1)
    buffer = alloc.alloc()
    buffer.put(b"first")
    tx.move(buffer)
    rx.pass_(take(rx, EventKind.MOVE_RECEIVED).buffer)
    take(tx, EventKind.BUFFER_RECEIVED)
    buffer.put(b"secret, then")
    buffer.put(b"second")
    with open_frame(mapped(buffer)[1]) as frame:
        held = os.open(f"/proc/self/fd/{frame.fileno()}", os.O_RDWR)
    with mmap.mmap(held, PAGE) as mine:
        os.close(held)
        for act in (tx.move, tx.copy):
            with unchanged(buffer), pytest.raises(BufferError, match="mapped for writing elsewhere"):
                act(buffer)
        assert (mapped(buffer)[0], buffer.tobytes()) == ("rw-s", b"second")
        buffer.length = 12
        assert buffer.tobytes() == b"second, then"
        mine[0:6] = b"fourth"
        assert buffer.tobytes() == b"fourth, then"  # it is as it was before
    tx.move(buffer)
    assert take(rx, EventKind.MOVE_RECEIVED).buffer.tobytes() == b"fourth, then"


def test_what_was_kept_cannot_be_written_after_the_move(world):
    tx, rx, alloc, _ = line(world, count=1)
    buffer = alloc.alloc()
    for data in (b"out of the pool", b"out of a frame"):
        buffer.put(data)
        tx.move(buffer)
        there = take(rx, EventKind.MOVE_RECEIVED).buffer
        with open_frame(mapped(there)[1]) as kept:
            again = os.open(f"/proc/self/fd/{kept.fileno()}", os.O_RDWR)
        for attempt in (
            lambda fd: os.pwrite(fd, b"changed", 0),
            lambda fd: os.ftruncate(fd, 0),
            lambda fd: os.ftruncate(fd, 1 << 20),
            lambda fd: mmap.mmap(fd, PAGE),
            lambda fd: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, WRITE),
            lambda fd: os.posix_fallocate(fd, 0, 1 << 20),
        ):
            with pytest.raises(PermissionError):
                attempt(again)
        os.close(again)
        assert there.tobytes() == data
        rx.pass_(there)
        take(tx, EventKind.BUFFER_RECEIVED)


def test_a_refused_copy_is_rolled_back_and_stays_as_it_was(world):
    home, middle = world.domains(2)
    first, second = world.channel(home, middle, trust=NONE), world.channel(home, middle, trust=NONE)
    alloc = world.allocator(home, count=1)
    for tx, rx in (first, second):
        assign(tx, rx, alloc.pool, means="sealed")
    buffer = alloc.alloc()
    buffer.put(b"once")
    first[0].copy(buffer)
    second[0].copy(buffer)
    there = take(first[1], EventKind.COPY_RECEIVED).buffer
    with pytest.raises(TimeoutError):
        second[1].receive(0)  # a second copy would change what is read: refused, where memory is not shared
    assert isinstance(take(second[0], EventKind.OPERATION_REFUSED).error, bulk.CopyRefusedError)
    assert there.tobytes() == b"once"
    first[1].release(there)
    take(first[0], EventKind.COPY_RELEASED)
    assert (buffer.state, buffer.tobytes(), mapped(buffer)[0]) == (READ_WRITE, b"once", "rw-p")


# ---- further on ------------------------------------------------------------------------------------------------------


def chain(world, means="sealed", size=4 * PAGE):
    a, b, c = world.domains(3)
    first, second = world.channel(a, b, trust=NONE), world.channel(b, c, trust=NONE)
    alloc = world.allocator(a, count=1, size=size)
    middle = assign(*first, alloc.pool, means=means)
    assign(*second, middle, means=means)
    return first, second, alloc


@pytest.mark.parametrize("act", ["move", "copy"])
def test_a_frame_that_nobody_wrote_travels_on_as_it_is(world, act):
    (tx, rx), (on, end), alloc = chain(world)
    buffer = alloc.alloc()
    buffer.put(b"unchanged" * 1000)
    getattr(tx, act)(buffer)
    there = rx.receive(PATIENCE_S).buffer
    inode = mapped(there)[1]
    with memoryview(there) as view:  # to look at it changes nothing
        assert bytes(view) == b"unchanged" * 1000
    getattr(on, act)(there)
    last = end.receive(PATIENCE_S).buffer
    assert (last.tobytes(), mapped(last)[1]) == (b"unchanged" * 1000, inode)
    assert on.statistics()["contents"]["sealed_before"] == 1
    (end.pass_ if act == "move" else end.release)(last)
    on.receive(PATIENCE_S)
    (rx.pass_ if act == "move" else rx.release)(there)
    tx.receive(PATIENCE_S)
    assert buffer.state is READ_WRITE


def test_what_is_written_through_an_address_that_was_kept_is_sent(world):
    """NumPy's ndarray keeps no view, and ctypes an address: who owns the buffer may write there, and nobody sees it."""
    a, b = world.domains(2)
    tx, rx = world.channel(a, b, trust=Trust.NONE)
    alloc = world.allocator(a, count=1)
    assign(tx, rx, alloc.pool, means="sealed")
    buffer = alloc.alloc()
    kept = (ctypes.c_char * buffer.size).from_address(buffer.address)
    for turn, (act, back) in enumerate([("copy", "release"), ("copy", "release"), ("move", "pass_")] * 2):
        kept.value = text = b"written in turn %d" % turn  # it is READ_WRITE: this neither faults nor is it lost
        getattr(tx, act)(buffer)
        there = rx.receive(PATIENCE_S).buffer
        assert there.tobytes()[: len(text)] == text
        getattr(rx, back)(there)
        tx.receive(PATIENCE_S)
    assert sent_sealed(tx) == 6
    alloc.free(buffer)
    assert alloc.alloc() is buffer
    kept.value = b"again"
    assert buffer.tobytes()[:5] == b"again"


def test_an_address_that_was_kept_costs_no_copy_of_what_was_not_written(world):
    a, b = world.domains(2)
    tx, rx = world.channel(a, b, trust=Trust.NONE)
    alloc = world.allocator(a, count=1)
    assign(tx, rx, alloc.pool, means="sealed")
    buffer = alloc.alloc()
    assert buffer.address
    buffer.put(b"the same" * 100)
    for _ in range(3):
        tx.copy(buffer)
        rx.release(rx.receive(PATIENCE_S).buffer)
        tx.receive(PATIENCE_S)
    assert tx.statistics()["contents"]["sealed_before"] == 2


def test_left_to_itself_a_channel_sends_on_a_big_frame_that_is_there_and_copies_what_is_small(world):
    a, b, c = world.domains(3)
    (tx, rx), (on, end) = world.channel(a, b, trust=NONE), world.channel(b, c, trust=NONE)
    alloc = world.allocator(a, count=1, size=BIG)
    middle = assign(tx, rx, alloc.pool, means="sealed")
    assign(on, end, middle)
    buffer = alloc.alloc()
    for size in (BIG, PAGE):
        buffer.put(noise(size))
        data = buffer.tobytes()
        tx.move(buffer)
        on.move(take(rx, EventKind.MOVE_RECEIVED).buffer)
        there = take(end, EventKind.MOVE_RECEIVED).buffer
        assert there.tobytes() == data
        end.pass_(there)
        rx.pass_(take(on, EventKind.BUFFER_RECEIVED).buffer)
        take(tx, EventKind.BUFFER_RECEIVED)
    contents = on.statistics()["contents"]
    assert (contents["sealed"], contents["sealed_before"], contents["by_value"]) == (1, 1, 1)


def test_a_frame_that_was_written_is_copied_into_a_new_one(world):
    (tx, rx), (on, end), alloc = chain(world)
    buffer = alloc.alloc()
    buffer.put(b"a" * 4 * PAGE)
    tx.move(buffer)
    there = rx.receive(PATIENCE_S).buffer
    inode = mapped(there)[1]
    there.write(b"b", PAGE)
    on.move(there)
    last = end.receive(PATIENCE_S).buffer
    assert last.tobytes() == b"a" * PAGE + b"b" + b"a" * (3 * PAGE - 1)
    assert mapped(last)[1] != inode
    assert on.statistics()["contents"]["sealed_after_a_copy"] == 1


def test_a_shorter_length_does_not_take_the_rest_along(world):
    (tx, rx), (on, end), alloc = chain(world)
    buffer = alloc.alloc()
    buffer.put(b"head" + b"secret" * 100)
    tx.move(buffer)
    there = rx.receive(PATIENCE_S).buffer
    there.length = 4
    on.move(there)
    last = end.receive(PATIENCE_S).buffer
    assert ctypes.string_at(last.address, last.size) == b"head".ljust(last.size, b"\0")


def test_both_means_take_turns_on_one_channel(world):
    (tx, rx), _, alloc = chain(world)
    extra = world.channel(tx.domain, rx.domain, trust=NONE)
    assign(*extra, alloc.pool, means="by value")
    buffer = alloc.alloc()
    for turn, (out, into) in enumerate([extra, (tx, rx), extra, (tx, rx), (tx, rx), extra]):
        buffer.put(b"%d" % turn * 5000)
        out.move(buffer)
        there = take(into, EventKind.MOVE_RECEIVED).buffer
        assert there.tobytes() == b"%d" % turn * 5000
        there.write(b"!", 1)
        into.pass_(there)
        take(out, EventKind.BUFFER_RECEIVED)


def test_what_nobody_touched_since_it_came_home_is_zeros_by_whatever_means(world):
    a, b = world.domains(2)
    sealed, value = world.channel(a, b, trust=NONE), world.channel(a, b, trust=NONE)
    alloc = world.allocator(a, count=3)
    assign(*sealed, alloc.pool, means="sealed")
    assign(*value, alloc.pool, means="by value")
    buffers = alloc.alloc_many(3)
    for turn, (tx, rx) in enumerate([sealed, value, sealed, value]):
        for buffer in buffers if turn % 2 == 0 else []:
            buffer.put(b"old")
        if turn >= 2:
            tx.move(buffers[0])
            tx.move_many(buffers[1:])
        else:
            tx.move_many(buffers)
        there = [take(rx, EventKind.MOVE_RECEIVED).buffer for _ in buffers]
        wanted = b"old" if turn % 2 == 0 else bytes(PAGE)
        assert [each.tobytes() for each in there] == [wanted] * 3
        rx.pass_many(there)
        for _ in buffers:
            take(tx, EventKind.BUFFER_RECEIVED)


def test_what_is_in_a_frame_is_no_part_of_a_mapped_aggregate(world):
    tx, rx, alloc, _ = line(world, count=1)
    buffer = alloc.alloc()
    buffer.put(b"a" * PAGE)
    with bulk.Aggregate([buffer]).mapped() as whole:
        assert bytes(whole) == b"a" * PAGE
    tx.copy(buffer)
    rx.release(take(rx, EventKind.COPY_RECEIVED).buffer)
    take(tx, EventKind.COPY_RELEASED)
    with pytest.raises(ValueError, match="in a frame that was sealed"):
        bulk.Aggregate([buffer]).mapped()
    with bulk.Aggregate([buffer]).mapped(copy=True) as whole:
        assert bytes(whole) == b"a" * PAGE


def test_a_pool_goes_on_to_channels_that_share_it_with_what_it_holds(world):
    a, b = world.domains(2)
    tx, rx = world.channel(a, b, trust=NONE)
    alloc = world.allocator(a, count=3, size=BIG)
    assign(tx, rx, alloc.pool, means="sealed")
    kept, moved, fresh = alloc.alloc_many(3)
    kept.put(b"kept")
    tx.copy(kept)
    rx.release(take(rx, EventKind.COPY_RECEIVED).buffer)
    take(tx, EventKind.COPY_RELEASED)
    moved.put(b"moved")
    tx.move(moved)
    rx.pass_(take(rx, EventKind.MOVE_RECEIVED).buffer)
    take(tx, EventKind.BUFFER_RECEIVED)
    moved.put(b"written since")
    fresh.put(b"never sent")
    together(lambda: take(rx, EventKind.POOL_REMOVED), lambda: tx.remove_pool(alloc.pool))
    shared = world.channel(a, b, trust=Trust.FULL)
    there = assign(*shared, alloc.pool)
    for buffer, data in ((kept, b"kept"), (moved, b"written since"), (fresh, b"never sent")):
        assert buffer.tobytes() == data
        shared[0].move(buffer)
        assert take(shared[1], EventKind.MOVE_RECEIVED).buffer.tobytes() == data
        assert there[buffer.index].tobytes() == data
    while frames():  # one that is being made ahead of need goes when it is made
        os.sched_yield()


@pytest.mark.parametrize("means", ["by value", "sealed"])
def test_what_is_still_leaving_leaves_though_the_pool_is_exposed_meanwhile(world, means):
    a, b = world.domains(2)
    sealed = world.channel(a, b, trust=NONE)
    slow = world.channel(a, b, trust=NONE, limits=bulk.Limits(slot_count=2))
    alloc = world.allocator(a, count=4, size=1 << 20)
    assign(*sealed, alloc.pool, means="sealed")
    assign(*slow, alloc.pool, means=means)
    buffers = alloc.alloc_many(4)
    for buffer in buffers:  # from now on each is written into a frame
        sealed[0].move(buffer)
        sealed[1].pass_(take(sealed[1], EventKind.MOVE_RECEIVED).buffer)
        take(sealed[0], EventKind.BUFFER_RECEIVED)
    contents = [noise(1 << 20) for _ in buffers]
    for buffer, data in zip(buffers, contents, strict=True):
        buffer.put(data)
        slow[0].move(buffer)
    third = world.channel(a, b, trust=NONE)
    assign(*third, alloc.pool, exposed=True)
    for data in contents:
        there = take(slow[1], EventKind.MOVE_RECEIVED).buffer
        assert there.tobytes() == data
        slow[1].pass_(there)
    for _ in buffers:
        take(slow[0], EventKind.BUFFER_RECEIVED)
    buffers[0].put(b"read in place")
    third[0].move(buffers[0])
    assert take(third[1], EventKind.MOVE_RECEIVED).buffer.tobytes() == b"read in place"


# ---- the end ---------------------------------------------------------------------------------------------------------


def test_frames_are_gone_with_their_pool(world):
    tx, rx, alloc, pool = line(world, count=4)
    for buffer in alloc.alloc_many(3):
        buffer.put(b"x")
        tx.move(buffer)
    take(rx, EventKind.MOVE_RECEIVED)
    assert frames()
    tx.close()
    rx.close()
    for left in pool:
        if left.state is not INVALID:
            assert left.tobytes() == b"x"  # what was received stays, though the channel ended
            left.drop()
    alloc.close()
    del buffer, left, pool, alloc, tx, rx
    world.made.clear()


def test_buffers_come_back_when_the_channel_ends_and_are_not_seen_by_who_has_the_frame(world):
    tx, rx, alloc, _ = line(world, count=1)
    buffer = alloc.alloc()
    buffer.put(b"away")
    tx.move(buffer)
    there = take(rx, EventKind.MOVE_RECEIVED).buffer
    tx.close()
    assert alloc.detached == 0
    assert buffer.state is READ_WRITE
    buffer.put(b"anew")
    assert there.tobytes() == b"away"


def test_a_child_of_a_fork_has_neither_frames_nor_what_is_in_them(world):
    tx, rx, alloc, _ = line(world, count=1)
    buffer = alloc.alloc()
    buffer.put(b"of the parent")
    tx.move(buffer)
    there = take(rx, EventKind.MOVE_RECEIVED).buffer
    address = there.address
    child = os.fork()
    if child == 0:
        right = not frames() and ctypes.string_at(address, 13) == bytes(13)
        os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert there.tobytes() == b"of the parent"
