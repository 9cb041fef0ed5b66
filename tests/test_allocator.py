"""Promises of the allocator: a pool's memory, its free list, who waits for it, what it refuses."""

from __future__ import annotations

import errno
import gc
import mmap
import os
import re
import threading
from pathlib import Path

import pytest

import bulktransfer as bulk
from bulktransfer import EventKind, Trust
from worlds import PATIENCE_S, READ_WRITE, World, nothing_comes, take, together, unchanged, until_the_end

PAGE = mmap.PAGESIZE


@pytest.fixture(params=["local", "shm"])
def world(request):
    with World(request.param) as world:
        yield world


def make(**options):
    return bulk.Allocator(**{"count": 4, "size": PAGE, "domain": bulk.Domain(), **options})


# -- the free list -----------------------------------------------------------------------------------------------------


def test_all_buffers_are_free_at_first_and_the_last_freed_goes_first():
    alloc = make()
    assert alloc.available == 4
    first, second, third = (alloc.alloc() for _ in range(3))
    assert [b.index for b in (first, second, third)] == [0, 1, 2]
    alloc.free(first)
    alloc.free(third)
    assert alloc.alloc() is third
    assert alloc.alloc() is first
    assert alloc.available == 1


def test_an_allocated_buffer_is_zeroed_writable_and_of_full_length():
    alloc = make(size=PAGE + 1)
    buffer = alloc.alloc()
    assert (buffer.state, buffer.length, buffer.size) == (READ_WRITE, 2 * PAGE, 2 * PAGE)
    assert buffer.tobytes() == bytes(2 * PAGE)
    buffer.put(b"short")
    alloc.free(buffer)
    assert alloc.alloc().length == 2 * PAGE


def test_free_refuses_what_is_free_already_or_not_its_own():
    alloc, other = make(), make()
    buffer, foreign = alloc.alloc(), other.alloc()
    with unchanged(foreign), pytest.raises(ValueError, match="this allocator has pool"):
        alloc.free(foreign)
    alloc.free(buffer)
    with unchanged(buffer), pytest.raises(bulk.NotAllocatedError, match="free list"):
        alloc.free(buffer)
    assert (alloc.available, other.available) == (4, 3)
    for odd in (None, 0, "buffer", alloc.pool, memoryview(alloc.alloc())):
        with pytest.raises(TypeError):
            alloc.free(odd)


def test_free_refuses_what_this_domain_does_not_fully_own(world):
    tx, rx, alloc, theirs = world.line()
    moved, lent = alloc.alloc_many(2)
    tx.move(moved)
    tx.copy(lent)
    for buffer, error in ((moved, bulk.InvalidBufferError), (lent, bulk.CopiesOutstandingError)):
        with unchanged(buffer), pytest.raises(error) as caught:
            alloc.free(buffer)
        assert type(caught.value) is error
    rx.receive_buffer(PATIENCE_S)
    with pytest.raises(ValueError, match="this allocator has pool"):
        alloc.free(theirs[moved.index])  # the other domain's


def test_exhaustion_is_an_error_that_says_so():
    alloc = make()
    alloc.alloc_many(4)
    for call in (
        alloc.alloc,
        lambda: alloc.alloc(timeout=0),
        lambda: alloc.alloc(timeout=0.001),
        lambda: alloc.alloc_many(1),
    ):
        with pytest.raises(bulk.PoolExhaustedError, match=alloc.pool.name):
            call()


def test_many_are_taken_and_freed_all_or_none():
    alloc, other = make(), make()
    batch = alloc.alloc_many(3)
    assert [b.index for b in batch] == [0, 1, 2]
    with pytest.raises(bulk.PoolExhaustedError):
        alloc.alloc_many(2)
    assert alloc.available == 1
    assert alloc.alloc_many(0) == []
    with pytest.raises(ValueError, match="-1"):
        alloc.alloc_many(-1)
    for odd in ("2", None, 1.5):
        with pytest.raises(TypeError):
            alloc.alloc_many(odd)
    foreign = other.alloc()
    for error, wrong in (
        (ValueError, [batch[0], batch[1], batch[0]]),
        (ValueError, [batch[0], foreign]),
        (bulk.NotAllocatedError, [batch[0], alloc.pool[3]]),
        (TypeError, [batch[0], None]),
        (TypeError, 5),
    ):
        with unchanged(*batch), pytest.raises(error):
            alloc.free_many(wrong)
        assert alloc.available == 1
    alloc.free_many(iter(batch))
    assert alloc.available == 4


def test_threads_share_a_free_list_and_nobody_gets_what_another_has():
    alloc = make(count=8)
    held, clashes = set(), []

    def work(seed):
        for number in range(2000):
            try:
                mine = alloc.alloc_many(2) if (seed + number) % 3 else [alloc.alloc()]
            except bulk.PoolExhaustedError:
                continue
            for buffer in mine:
                if buffer is None or buffer.index in held:
                    clashes.append(buffer)
                held.add(buffer.index)
            held.difference_update(b.index for b in mine)
            alloc.free_many(mine)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not clashes
    assert alloc.available == 8


# -- waiting -----------------------------------------------------------------------------------------------------------


def freed_after(alloc, buffers):
    """Another thread frees `buffers`, one after the other, as the waiting ones take them."""

    def work():
        for buffer in buffers:
            while not alloc.pool.domain.waiters.waiting:
                pass
            alloc.free(buffer)
        return True

    return work


def test_alloc_waits_until_another_thread_frees():
    alloc = make(count=1)
    buffer = alloc.alloc()
    _, got = together(freed_after(alloc, [buffer]), lambda: alloc.alloc(timeout=None))
    assert got is buffer


def test_every_waiting_thread_is_woken():
    alloc = make(count=6)
    buffers = alloc.alloc_many(6)
    got = []
    threads = [threading.Thread(target=lambda: got.append(alloc.alloc(timeout=PATIENCE_S))) for _ in range(6)]
    for thread in threads:
        thread.start()
    while alloc.pool.domain.waiters.waiting < 6:
        pass
    for buffer in buffers:
        alloc.free(buffer)
    for thread in threads:
        thread.join()
    assert {b.index for b in got} == set(range(6))


def test_alloc_waits_for_a_pass_that_reclaims(world):
    a, b = world.domains(2)
    tx, rx = world.channel(a, b)
    alloc = world.allocator(a, count=1, reclaim=True)
    world.assign(tx, rx, alloc.pool)
    tx.move(alloc.alloc())
    there = rx.receive_buffer(PATIENCE_S).buffer

    def give():
        while not a.waiters.waiting:
            pass
        rx.pass_(there)
        return True

    _, got = together(give, lambda: alloc.alloc(timeout=PATIENCE_S))
    assert got.index == 0


def test_alloc_waits_for_a_lease_that_ends(world):
    tx, rx, alloc, _ = world.line()
    batch = alloc.alloc_many(4)
    tx.move_many(batch)
    held = [e.buffer for e in rx.receive_many(4, PATIENCE_S)]
    tx.close()
    assert alloc.detached == 4
    with pytest.raises(bulk.PoolExhaustedError, match="4 detached"):
        alloc.alloc()
    until_the_end(rx)
    for buffer in held:
        buffer.drop()
    assert alloc.detached == 0
    assert {b.state for b in batch} == {READ_WRITE}
    alloc.free_many(batch)


def test_a_closed_allocator_wakes_who_waits_for_it():
    alloc = make(count=1)
    alloc.alloc()

    def close():
        while not alloc.pool.domain.waiters.waiting:
            pass
        alloc.close()
        return True

    def wait():
        with pytest.raises(ValueError, match="closed"):
            alloc.alloc(timeout=None)

    together(close, wait)


def test_alloc_does_not_wait_inside_a_callback(world):
    a, b = world.domains(2)
    raised = []

    def hungry(event):
        with pytest.raises(bulk.WouldBlock) as caught:
            own.alloc(timeout=5)
        raised.append(caught.value)

    tx, rx = world.channel(a, b, binder={"callbacks": bulk.Callbacks(move_received=hungry)})
    alloc, own = world.allocator(a), world.allocator(b, count=1)
    own.alloc()
    world.assign(tx, rx, alloc.pool)
    tx.move(alloc.alloc())
    assert nothing_comes(rx)
    assert len(raised) == 1


# -- reclaiming --------------------------------------------------------------------------------------------------------


def test_what_comes_back_is_free_without_an_event(world):
    a, b = world.domains(2)
    tx, rx = world.channel(a, b)
    alloc = world.allocator(a, count=4, reclaim=True)
    world.assign(tx, rx, alloc.pool)
    moved, lent, twice = alloc.alloc_many(3)
    tx.move(moved)
    tx.copy(lent)
    for event in rx.receive_many(2, PATIENCE_S):
        rx.give_back(event.buffer)
    assert nothing_comes(tx)
    assert alloc.available == 3
    for buffer in (moved, lent):
        with unchanged(buffer), pytest.raises(bulk.NotAllocatedError):
            alloc.free(buffer)
    del twice


def test_a_buffer_lent_twice_is_reclaimed_when_the_last_copy_is_back(world):
    a, b = world.domains(2)
    one, two = world.channel(a, b), world.channel(a, b)
    alloc = world.allocator(a, count=1, reclaim=True)
    world.assign(*one, alloc.pool)
    world.assign(*two, alloc.pool)
    buffer = alloc.alloc()
    one[0].copy(buffer)
    two[0].copy(buffer)
    one[1].release(one[1].receive_buffer(PATIENCE_S).buffer)
    assert take(one[0], EventKind.COPY_RELEASED).buffer is buffer  # not yet back: said as ever
    assert alloc.available == 0
    two[1].release(two[1].receive_buffer(PATIENCE_S).buffer)
    assert nothing_comes(two[0])
    assert alloc.available == 1


def test_a_move_that_comes_home_is_not_reclaimed_but_received(world):
    a, b = world.domains(2)
    there, back = world.channel(a, b), world.channel(b, a)
    alloc = world.allocator(a, count=1, reclaim=True)
    world.assign(*back, world.assign(*there, alloc.pool))
    there[0].move(alloc.alloc())
    back[0].move(there[1].receive_buffer(PATIENCE_S).buffer)
    assert take(back[1], EventKind.MOVE_RECEIVED).buffer.state is READ_WRITE
    assert alloc.available == 0


def test_alloc_finds_by_itself_what_came_back(world):
    a, b = world.domains(2)
    tx, rx = world.channel(a, b)
    alloc = world.allocator(a, count=1, reclaim=True)
    world.assign(tx, rx, alloc.pool)
    for _ in range(20):
        tx.move(alloc.alloc())
        rx.pass_(rx.receive_buffer(PATIENCE_S).buffer)


# -- making a pool -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"count": 0}, ValueError),
        ({"size": 0}, ValueError),
        ({"count": -1}, ValueError),
        ({"size": -4096}, ValueError),
        ({"count": True}, TypeError),
        ({"size": False}, TypeError),
        ({"count": 1.0}, TypeError),
        ({"size": "4096"}, TypeError),
        ({"count": None}, TypeError),
        ({"count": 2**32}, ValueError),
        ({"size": 2**46}, ValueError),
        ({"size": 2**100}, ValueError),
        ({"trust": None}, TypeError),
        ({"trust": 3}, TypeError),
        ({"trust": "FULL"}, TypeError),
    ],
    ids=str,
)
def test_odd_counts_sizes_and_trusts_are_refused_by_name(options, error):
    with pytest.raises(error, match=next(iter(options))):
        make(**options)


@pytest.mark.parametrize(
    "options", [{"size": 2**44}, {"count": 2**31}, {"count": 2**32 - 1, "size": 1}, {"count": 2**20, "size": 2**40}]
)
def test_more_than_the_machine_has_is_enomem_and_nobody_is_killed(options):
    with pytest.raises(OSError, match="pool of") as caught:
        make(**options)
    assert caught.value.errno == errno.ENOMEM


def test_constraints_are_held_and_refuse_by_name():
    fine = make(constraints=bulk.Constraints(alignment=PAGE))
    assert fine.pool.address % PAGE == 0
    for constraints in (
        bulk.Constraints(address_max=PAGE),
        bulk.Constraints(address_min=1 << 62),
        bulk.Constraints(alignment=1 << 40),
        bulk.Constraints(alignment=2 * PAGE),
    ):
        with pytest.raises(bulk.ConstraintError, match="a pool of 4 x 4096 bytes"):
            make(constraints=constraints)
    for odd in ({"alignment": 3}, {"alignment": 0}, {"address_min": -1}, {"address_min": 5, "address_max": 5}):
        with pytest.raises(ValueError, match="Constraints"):
            bulk.Constraints(**odd)


def test_the_trust_that_is_given_is_reserved(world):
    tx, _rx, alloc, _ = world.line()
    other = world.allocator(tx.domain, trust=Trust.NONE)
    assert other.pool.trust is Trust.NONE
    with pytest.raises(bulk.TrustMismatchError):
        tx.assign_pool(other.pool)
    assert alloc.pool.trust is Trust.FULL  # by its first assignment


def test_a_pool_of_huge_buffers_uses_huge_pages_where_the_kernel_has_them():
    with make(count=2, size=2 << 20) as alloc:
        smaps = Path("/proc/self/smaps").read_text()
        entry = re.search(rf"^{alloc.pool.address:x}-.*?^ShmemPmdMapped:\s+(\d+) kB", smaps, re.MULTILINE | re.DOTALL)
        assert entry
        if not Path("/sys/kernel/mm/transparent_hugepage/enabled").exists():
            pytest.skip("a kernel without huge pages")
        if int(entry[1]) == 0:
            pytest.skip("the kernel gave no huge page")
        assert int(entry[1]) == 4096


def test_an_allocator_reserves_every_page():
    with make(count=8, size=1 << 16) as alloc:
        assert os.fstat(alloc.pool.memory.fileno()).st_blocks * 512 >= 8 << 16


# -- the end -----------------------------------------------------------------------------------------------------------


def test_close_keeps_what_is_out_and_allocates_no_more():
    alloc = make()
    buffer = alloc.alloc()
    buffer.put(b"kept")
    with alloc:
        pass
    alloc.close()
    assert alloc.available == 0
    for call in (alloc.alloc, lambda: alloc.alloc(timeout=None), lambda: alloc.alloc_many(1)):
        with pytest.raises(ValueError, match="the allocator is closed"):
            call()
    assert buffer.tobytes() == b"kept"
    alloc.free(buffer)
    with pytest.raises(ValueError, match="the allocator is closed"):
        alloc.alloc()
    with pytest.raises(bulk.NotAllocatedError):
        alloc.free(buffer)


def test_close_with_buffers_on_the_other_side_raises_nothing_and_they_come_home(world):
    tx, rx, alloc, _ = world.line()
    buffer = alloc.alloc()
    buffer.put(b"far away")
    tx.move(buffer)
    alloc.close()
    there = rx.receive_buffer(PATIENCE_S).buffer
    assert there.tobytes() == b"far away"
    rx.pass_(there)
    assert take(tx, EventKind.BUFFER_RECEIVED).buffer is buffer


def test_a_dropped_allocator_lets_its_descriptor_and_memory_go():
    domain = bulk.Domain()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        make(domain=domain)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
    assert not domain.pools
