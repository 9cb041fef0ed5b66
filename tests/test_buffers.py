"""Promises of a buffer's bytes: views and their counts, writing, and what goes back when the last view dies."""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path

import numpy as np
import pytest

import bulktransfer as bulk
from bulktransfer import EventKind
from worlds import (
    INVALID,
    OWNED_COPIED,
    PATIENCE_S,
    READ_ONLY,
    READ_WRITE,
    World,
    ledger,
    nothing_comes,
    take,
    unchanged,
)


@pytest.fixture(params=["local", "shm"])
def world(request):
    with World(request.param) as world:
        yield world


@pytest.fixture
def alloc():
    with bulk.Allocator(count=4, size=8192, domain=bulk.Domain()) as alloc:
        yield alloc


VIEWS = {
    "memoryview": memoryview,
    "frombuffer": lambda buffer: np.frombuffer(buffer, np.uint8),
    "asarray": np.asarray,
    "ctypes": lambda buffer: (ctypes.c_char * buffer.length).from_buffer(buffer),
}
every_view = pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
readonly_view = pytest.mark.parametrize("view", [v for k, v in VIEWS.items() if k != "ctypes"], ids=[*VIEWS][:3])


# -- views -------------------------------------------------------------------------------------------------------------


@every_view
def test_a_view_is_the_memory_itself_and_is_counted(alloc, view):
    buffer = alloc.alloc()
    buffer.put(b"abcd")
    seen = view(buffer)
    assert bytes(seen) == b"abcd"
    assert buffer.exports == 1
    second = memoryview(buffer)
    assert buffer.exports == 2
    second[0] = ord("z")
    assert bytes(seen) == b"zbcd"
    second.release()
    assert buffer.exports == 1
    del seen
    gc.collect()
    assert buffer.exports == 0


def test_a_view_has_the_valid_bytes(alloc):
    buffer = alloc.alloc()
    for length in (0, 1, 5000, buffer.size):
        buffer.length = length
        with memoryview(buffer) as view:
            assert (view.nbytes, view.itemsize, view.format, view.ndim, view.contiguous) == (length, 1, "B", 1, True)
            assert view.shape == (length,)
        assert len(buffer) == length
    assert np.frombuffer(buffer, np.float64).shape == (buffer.size // 8,)


@readonly_view
def test_views_are_read_only_in_read_only_states(world, view):
    tx, rx, alloc, _ = world.line()
    buffer = alloc.alloc()
    buffer.put(b"fixed")
    tx.copy(buffer)
    held = rx.receive_buffer(PATIENCE_S).buffer
    for shared, state in ((buffer, OWNED_COPIED), (held, READ_ONLY)):
        assert shared.state is state
        seen = view(shared)
        assert bytes(seen) == b"fixed"
        with pytest.raises((TypeError, ValueError), match=r"read-only|readonly"):
            seen[0] = 1
        with pytest.raises((BufferError, TypeError), match=r"not writable|its state is"):
            (ctypes.c_char * 5).from_buffer(shared)
        assert shared.exports == 1


@every_view
def test_views_of_what_is_not_here_are_refused(world, view):
    tx, _rx, alloc, _ = world.line()
    buffer, free = alloc.alloc_many(2)
    alloc.free(free)
    with unchanged(free), pytest.raises(bulk.NotAllocatedError):
        view(free)
    tx.move(buffer)
    with unchanged(buffer), pytest.raises(bulk.InvalidBufferError) as caught:
        view(buffer)
    assert isinstance(caught.value, BufferError)
    with pytest.raises(bulk.InvalidBufferError):
        buffer.tobytes()
    with pytest.raises(bulk.NotOwnedError):
        buffer.put(b"")
    with pytest.raises(bulk.NotOwnedError):
        buffer.write(b"")
    with pytest.raises(bulk.NotOwnedError):
        buffer.length = 3


@every_view
def test_move_refuses_while_a_view_is_live(world, view):
    tx, rx, alloc, _ = world.line()
    buffer = alloc.alloc()
    seen = view(buffer)
    for call in (tx.move, lambda b: tx.move_many([b]), tx.copy, alloc.free, lambda b: alloc.free_many([b])):
        with unchanged(buffer), pytest.raises(BufferError, match=r"1 view is live"):
            call(buffer)
    other = memoryview(buffer)
    with pytest.raises(BufferError, match=r"2 views are live"):
        tx.move(buffer)
    other.release()
    del seen
    gc.collect()
    tx.move(buffer)
    there = rx.receive_buffer(PATIENCE_S).buffer
    seen = view(there)
    with unchanged(there), pytest.raises(BufferError, match="1 view is live"):
        rx.pass_(there)
    assert len(seen) == there.length


def test_release_refuses_while_a_view_is_live_but_copy_allows_readers(world):
    tx, rx, alloc, _ = world.line()
    buffer = alloc.alloc()
    tx.copy(buffer)
    held = rx.receive_buffer(PATIENCE_S).buffer
    with memoryview(held):
        with unchanged(held), pytest.raises(BufferError):
            rx.release(held)
        with unchanged(held), pytest.raises(BufferError):
            rx.give_back(held, when_unused=False)
    with memoryview(buffer):  # of an owner that reads: no obstacle for further copies
        down = world.channel(tx.domain, world.domains(1)[0])
        world.assign(*down, alloc.pool)
        down[0].copy(buffer)
    assert alloc.pool.counts(buffer.index) == (2, 0)


def test_a_readers_view_stays_read_only_when_its_owner_may_write_again(world):
    tx, rx, alloc, _ = world.line()
    buffer = alloc.alloc()
    tx.copy(buffer)
    view = memoryview(buffer)
    rx.release(rx.receive_buffer(PATIENCE_S).buffer)
    take(tx, EventKind.COPY_RELEASED)
    assert view.readonly
    with pytest.raises(BufferError):
        buffer.put(b"x")
    tx.copy(buffer)  # nobody writes through that view
    view.release()


def test_trace_views_says_where_a_view_was_made(alloc):
    buffer = alloc.alloc()
    with bulk.trace_views():
        view = memoryview(buffer)  # the line that is named
        with pytest.raises(BufferError, match=r"(?s)1 view is live.*test_buffers\.py.*the line that is named"):
            alloc.free(buffer)
    view.release()
    view = memoryview(buffer)
    with pytest.raises(BufferError, match=r"1 view is live$"):
        alloc.free(buffer)


def test_an_array_of_another_type_is_a_copy(alloc):
    buffer = alloc.alloc()
    buffer.put(bytes(range(8)))
    assert np.asarray(buffer, dtype=np.float32).tolist() == list(range(8))
    assert buffer.exports == 0
    assert np.array(buffer, copy=True).tolist() == list(range(8))
    assert buffer.exports == 0


def test_views_keep_the_memory_mapped_after_everything_else_is_gone(world):
    tx, rx, alloc, _ = world.line()
    one, two = alloc.alloc_many(2)
    one.put(b"still here")
    two.put(b"here, too")
    tx.move(one)
    event = rx.receive_buffer(PATIENCE_S)
    there, here = memoryview(event.buffer), np.frombuffer(two, np.uint8)
    tx.close()
    rx.close()
    alloc.close()
    with pytest.raises(BufferError):
        event.buffer.drop()
    world.made.clear()
    del tx, rx, alloc, one, two, event, _
    gc.collect()
    assert (bytes(there), bytes(here)) == (b"still here", b"here, too")
    here[0] = 1


def test_a_buffer_keeps_its_pool_s_addresses(world):
    tx, rx, alloc, theirs = world.line()
    tx.move(alloc.alloc())
    buffer = rx.receive_buffer(PATIENCE_S).buffer
    address = theirs.address
    tx.close()
    rx.close()
    buffer.drop()
    assert buffer.state is INVALID
    maps = Path("/proc/self/maps").read_text()
    entry = re.search(rf"^{address:x}-\w+ (\S+)", maps, re.MULTILINE)
    assert entry, "the addresses are mapped to nothing, not free for others"
    assert entry[1].startswith("---")
    with pytest.raises(bulk.InvalidBufferError):
        memoryview(buffer)
    del entry


# -- writing -----------------------------------------------------------------------------------------------------------


def test_put_sets_the_length_and_write_leaves_it(alloc):
    buffer = alloc.alloc()
    assert buffer.length == buffer.size == 8192
    buffer.put(b"0123456789")
    assert buffer.length == 10
    buffer.write(b"ab", 3)
    buffer.write(b"", 10)
    buffer.write(b"Z")
    assert buffer.tobytes() == b"Z12ab56789"
    buffer.put(np.arange(4, dtype=np.int32))
    assert np.frombuffer(buffer, np.int32).tolist() == [0, 1, 2, 3]
    buffer.put(b"")
    assert (buffer.length, buffer.tobytes()) == (0, b"")


def test_writing_beyond_the_bounds_is_refused(alloc):
    buffer = alloc.alloc()
    buffer.put(b"0123456789")
    for call in (
        lambda: buffer.put(bytes(8193)),
        lambda: buffer.write(b"x", 10),
        lambda: buffer.write(bytes(11)),
        lambda: buffer.write(b"", 11),
        lambda: buffer.write(b"x", -1),
        lambda: buffer.write(b"xy", 2**63 - 1),
    ):
        with unchanged(buffer), pytest.raises(ValueError, match="buffer 0 of pool"):
            call()
    with unchanged(buffer), pytest.raises(OverflowError):
        buffer.write(b"x", 2**64)
    for odd in (None, "text", 5, [1]):
        with unchanged(buffer), pytest.raises(TypeError):
            buffer.put(odd)
        with unchanged(buffer), pytest.raises(TypeError):
            buffer.write(odd)
    with unchanged(buffer), pytest.raises(BufferError):
        buffer.put(memoryview(b"every other")[::2])
    assert buffer.tobytes() == b"0123456789"


def test_a_big_put_arrives_whole(alloc):
    with bulk.Allocator(count=1, size=4 << 20, domain=alloc.pool.domain) as big:
        data = np.random.default_rng(1).bytes(3 << 20)
        buffer = big.alloc()
        buffer.put(data)
        assert buffer.tobytes() == data
        assert buffer.exports == 0


def test_overlapping_bytes_of_the_buffer_itself_are_written_as_they_were(alloc):
    buffer = alloc.alloc()
    buffer.put(b"0123456789")
    with memoryview(buffer) as view:
        buffer.write(view[:8], 2)
        assert bytes(view) == b"0101234567"
        with unchanged(buffer), pytest.raises(BufferError):
            buffer.put(view)
    with unchanged(buffer), pytest.raises(BufferError):
        buffer.put(buffer)


def test_the_length_is_set_within_the_size_and_without_views(alloc):
    buffer = alloc.alloc()
    buffer.length = 0
    buffer.length = buffer.size
    for value in (-1, buffer.size + 1, 2**64, -(2**70)):
        with unchanged(buffer), pytest.raises(ValueError, match="it holds 0 to 8192"):
            buffer.length = value
    for odd in ("5", None, 1.5, b"1"):
        with unchanged(buffer), pytest.raises(TypeError):
            buffer.length = odd
    with pytest.raises((AttributeError, TypeError, NotImplementedError)):
        del buffer.length
    with memoryview(buffer), unchanged(buffer), pytest.raises(BufferError, match="1 view is live"):
        buffer.length = 5
    with pytest.raises(AttributeError):
        buffer.state = READ_WRITE
    with pytest.raises(AttributeError):
        buffer.index = 5


class Sly:
    """A number whose asking gives the buffer away."""

    def __init__(self, action):
        self.action = action

    def __index__(self):
        self.action()
        return 5


def test_what_a_user_s_number_does_is_done_before_anything_is_checked(world):
    tx, _, alloc, _ = world.line()
    buffer = alloc.alloc()
    with pytest.raises(bulk.InvalidBufferError):
        buffer.length = Sly(lambda: tx.move(buffer))
    assert buffer.length == buffer.size
    other = alloc.alloc()
    with pytest.raises(bulk.InvalidBufferError):
        other.write(b"x", Sly(lambda: tx.move(other)))


# -- going back when unused --------------------------------------------------------------------------------------------


def test_give_back_waits_for_the_last_view_and_then_goes_by_itself(world):
    tx, rx, alloc, _ = world.line()
    moved, lent = alloc.alloc_many(2)
    tx.move(moved)
    tx.copy(lent)
    for kind in (EventKind.BUFFER_RECEIVED, EventKind.COPY_RELEASED):
        there = rx.receive_buffer(PATIENCE_S).buffer
        first, second = memoryview(there), np.frombuffer(there, np.uint8)
        rx.give_back(there)
        for call in (rx.give_back, rx.pass_, rx.release, memoryview, lambda b: b.put(b""), lambda b: b.tobytes()):
            with unchanged(there), pytest.raises((bulk.BulkError, BufferError)):
                call(there)
        first.release()
        assert nothing_comes(tx)
        assert second[0] == 0
        del second
        gc.collect()
        assert there.state is INVALID
        take(tx, kind)


def test_give_back_over_a_channel_that_closed_meanwhile_lets_the_buffer_go(world):
    tx, rx, alloc, _ = world.line()
    one, two = alloc.alloc_many(2)
    tx.move(one)
    tx.copy(two)
    for state in (READ_WRITE, READ_ONLY):
        there = rx.receive_buffer(PATIENCE_S).buffer
        view = memoryview(there)
        rx.give_back(there)
        if state is READ_ONLY:
            continue
        view.release()
        take(tx, EventKind.BUFFER_RECEIVED)
    rx.close()
    view.release()
    assert ledger(there) == (INVALID, there.length, 0, 0, 0)


def test_an_event_gives_its_buffer_back_at_the_end_of_the_block(world):
    tx, rx, alloc, _ = world.line()
    moved, lent = alloc.alloc_many(2)
    moved.put(b"data")
    tx.move(moved)
    tx.copy(lent)
    with rx.receive_buffer(PATIENCE_S) as there:
        assert there.tobytes() == b"data"
        array = np.frombuffer(there, np.uint8)
    assert nothing_comes(tx)  # the array is still used
    del array
    gc.collect()
    assert take(tx, EventKind.BUFFER_RECEIVED).buffer is moved
    with pytest.raises(KeyError), rx.receive_buffer(PATIENCE_S) as there:
        raise KeyError("the user's own")
    assert take(tx, EventKind.COPY_RELEASED).buffer is lent


def test_a_block_that_sent_its_buffer_on_gives_nothing_back(world):
    tx, rx, alloc, _ = world.line()
    tx.move(alloc.alloc())
    with rx.receive_buffer(PATIENCE_S) as there:
        rx.pass_(there, b"")
    assert there.state is INVALID
    take(tx, EventKind.BUFFER_RECEIVED)
    rx.close()
    event = take(tx, EventKind.TEARDOWN_RECEIVED)
    with pytest.raises(TypeError, match="carries no buffer"), event:
        pass


def test_what_comes_back_under_a_view_is_free_only_when_the_view_died(world):
    a, b = world.domains(2)
    tx, rx = world.channel(a, b)
    alloc = world.allocator(a, count=1, reclaim=True)
    world.assign(tx, rx, alloc.pool)
    buffer = alloc.alloc()
    tx.copy(buffer)
    view = memoryview(buffer)
    rx.release(rx.receive_buffer(PATIENCE_S).buffer)
    assert nothing_comes(tx)
    assert alloc.available == 0
    view.release()
    assert alloc.available == 1
    assert alloc.alloc() is buffer
