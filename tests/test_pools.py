"""Promises of buffers, pools and events as Python objects: made by nobody else, one each, gone when unused."""

from __future__ import annotations

import copy
import ctypes
import gc
import pickle
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest

import bulktransfer as bulk
from worlds import (
    INVALID,
    PATIENCE_S,
    READ_WRITE,
    World,
    unchanged,
    until_the_end,
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


# -- objects -----------------------------------------------------------------------------------------------------------


def test_nobody_makes_buffers_events_and_pools_by_hand(alloc):
    for cls in (bulk.Buffer, bulk.Event, bulk.Pool):
        for make in (cls, lambda cls=cls: cls.__new__(cls), lambda cls=cls: object.__new__(cls)):
            with pytest.raises(TypeError):
                make()
        with pytest.raises(TypeError):
            type("Mine", (cls,), {})
    with pytest.raises(TypeError):
        bulk.Pool(alloc.pool.id, alloc.pool.domain, alloc.pool.trust, None, 4, 4096, True, True)
    with pytest.raises(TypeError):
        copy.copy(alloc.pool[0])


def test_half_made_objects_raise_and_never_crash():
    allocator = bulk.Allocator.__new__(bulk.Allocator)
    for call in (allocator.alloc, lambda: allocator.alloc_many(1), allocator.close, lambda: allocator.available):
        with pytest.raises((AttributeError, TypeError)):
            call()
    channel = bulk.Channel.__new__(bulk.Channel)
    for call in (
        lambda: channel.receive(0),
        lambda: channel.receive(1),
        channel.receive_nowait,
        lambda: channel.move(None),
        channel.close,
        channel.destroy,
        lambda: repr(channel),
    ):
        with pytest.raises((AttributeError, TypeError)):
            call()


def test_buffers_events_channels_and_domain_things_do_not_pickle(world):
    tx, rx, alloc, _ = world.line()
    buffer = alloc.alloc()
    tx.move(buffer)
    for thing in (buffer, rx.receive_buffer(PATIENCE_S), tx, alloc.pool, alloc):
        with pytest.raises(TypeError):
            pickle.dumps(thing)


def test_a_pool_is_indexed_and_each_buffer_is_one_object(alloc):
    pool = alloc.pool
    assert len(pool) == pool.buffer_count == 4
    assert pool.buffer_size == 8192
    assert pool[1] is pool[1]
    assert pool[-1] is pool[3]
    assert pool[3].index == 3
    assert pool[0].pool is pool
    assert [b.index for b in pool] == [0, 1, 2, 3]
    for index in (4, -5, 2**62, -(2**63)):
        with pytest.raises(IndexError):
            pool[index]
    for odd in ("0", None, 1.0, slice(0, 2)):
        with pytest.raises(TypeError):
            pool[odd]
    with pytest.raises((IndexError, OverflowError)):
        pool[2**64]
    with pytest.raises(AttributeError):
        pool.id = 5


def test_pools_have_ids_of_their_own():
    domain = bulk.Domain()
    made = [bulk.Allocator(count=1, size=1, domain=domain) for _ in range(3)]
    assert len({a.pool.id for a in made}) == 3
    assert len({a.pool.address for a in made}) == 3


def test_a_dying_buffer_is_not_handed_out_again(alloc):
    buffer = alloc.alloc()
    seen = []
    watch = weakref.ref(buffer, lambda _: seen.append(alloc.pool[0]))
    assert buffer.index == 0
    del buffer
    gc.collect()
    assert watch() is None
    assert seen[0] is alloc.pool[0]
    assert seen[0].state is READ_WRITE


def test_repr_shows_the_state(world):
    tx, _, alloc, _ = world.line()
    buffer = alloc.alloc()
    assert "READ_WRITE" in repr(buffer)
    tx.move(buffer)
    assert "INVALID" in repr(buffer)
    assert "free" in repr(alloc.pool[3])
    assert "4 x 4096" in repr(alloc.pool)


def test_buffers_are_used_from_any_thread(world):
    tx, rx, alloc, _ = world.line()
    buffer = alloc.alloc()
    done = []

    def work():
        buffer.put(b"from a thread")
        view = memoryview(buffer)
        done.append(bytes(view))
        view.release()
        tx.move(buffer)
        done.append(rx.receive_buffer(PATIENCE_S).buffer)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done[0] == b"from a thread"
    done[1].put(b"and back")
    assert done[1].tobytes() == b"and back"


def test_threads_that_make_and_drop_views_and_buffers_keep_the_counts(alloc):
    def work(seed):
        for number in range(3000):
            buffer = alloc.pool[(seed + number) % 2]
            with memoryview(buffer):
                alloc.pool[(seed + number + 1) % 2]
            np.frombuffer(buffer, np.uint8, 8)

    held = alloc.alloc_many(2)
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [b.exports for b in held] == [0, 0]


def test_drop_is_for_guests_only(world):
    tx, rx, alloc, _theirs = world.line()
    buffer = alloc.alloc()
    tx.move(buffer)
    there = rx.receive_buffer(PATIENCE_S).buffer
    with unchanged(there), pytest.raises(bulk.ChannelStateError):
        there.drop()
    own = alloc.alloc()
    tx.close()
    until_the_end(rx)
    with unchanged(own), pytest.raises(bulk.ChannelStateError):
        own.drop()
    with pytest.raises(bulk.NotAllocatedError):
        alloc.pool[3].drop()
    there.drop()
    assert there.state is INVALID
    there.drop()  # nothing is left to let go of


# -- what they cost ----------------------------------------------------------------------------------------------------


def mapped_bytes():
    maps = Path("/proc/self/maps").read_text().splitlines()
    ranges = [line.split("-", 1)[0:1] + line.split(" ", 1)[0].split("-")[1:] for line in maps if "bulktransfer" in line]
    return sum(int(end, 16) - int(start, 16) for start, end in ranges)


def test_pools_that_nobody_uses_give_their_memory_back():
    gc.collect()
    before = mapped_bytes()
    domain = bulk.Domain()
    for _ in range(20):
        allocator = bulk.Allocator(count=4, size=1 << 20, domain=domain)
        buffer = allocator.alloc()
        buffer.put(b"x" * 1000)
        del allocator, buffer
        gc.collect()
        assert mapped_bytes() == before


def test_channels_and_pools_that_are_gone_leave_no_mapping(world):
    gc.collect()
    before = mapped_bytes()
    for _ in range(3):
        tx, rx, alloc, _ = world.line()
        tx.move(alloc.alloc())
        rx.pass_(rx.receive_buffer(PATIENCE_S).buffer)
        tx.receive_buffer(PATIENCE_S)
        world.__exit__()
        del tx, rx, alloc, _
        gc.collect()
        assert mapped_bytes() == before


def test_a_transfer_leaves_no_object_behind(world):
    import sys

    tx, rx, alloc, _ = world.line(meta_size=64)

    def some(count):
        for _ in range(count):
            tx.move(alloc.alloc(), b"m" * 40, done=lambda outcome: None)
            event = rx.receive_buffer(PATIENCE_S)
            rx.pass_(event.buffer, b"short")
            alloc.free(tx.receive_buffer(PATIENCE_S).buffer)
            tx.copy_many([alloc.pool[0]]) if alloc.pool[0].state is not READ_WRITE else None

    some(200)
    gc.collect()
    before = sys.getallocatedblocks()
    some(2000)
    gc.collect()
    assert sys.getallocatedblocks() - before < 200
