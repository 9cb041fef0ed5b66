"""Where memory is not shared each domain has a twin of a pool: how it comes, whose consent it takes, when it goes."""

from __future__ import annotations

import ctypes
import os

import pytest

import bulktransfer as bulk
from bulktransfer import Callbacks, Trust
from bulktransfer.core import memory
from worlds import INVALID, PATIENCE_S, READ_WRITE, World, take, together

NONE = Trust.NONE


@pytest.fixture(params=["local", "shm"])
def world(request):
    with World(request.param) as world:
        yield world


def two(world, **options):
    return world.channel(*world.domains(2), trust=NONE, **options)


def pool_descriptors():
    """How many descriptors this process has of the memory of pools."""
    names = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    return sum("bulktransfer-pool" in os.readlink(name) for name in names if os.path.lexists(name))


def pages_there(pool):
    """How many pages of the pool are in memory, and whether they are nobody else's."""
    with open("/proc/self/smaps") as file:
        for line in file:
            first = line.split(" ", 1)[0].split("-")
            if len(first) == 2 and int(first[0], 16) <= pool.address < int(first[1], 16):
                what = line.split()
                rss = next(int(other.split()[1]) for other in file if other.startswith("Rss:"))
                return rss * 1024, len(what) == 5
    raise AssertionError("no mapping")


def test_a_twin_is_memory_of_its_own_and_no_descriptor_travels(world):
    tx, rx = two(world)
    before = pool_descriptors()
    alloc = world.allocator(tx.domain, count=4, size=8192)
    buffer = alloc.alloc()
    buffer.put(b"not to be seen")
    there = world.assign(tx, rx, alloc.pool)
    assert pool_descriptors() == before + 1  # the allocator's own
    assert (alloc.pool.shared, there.shared, there.memory) == (False, False, None)
    assert there.address != alloc.pool.address
    rss, anonymous = pages_there(there)
    assert anonymous
    assert rss >= 4 * 8192  # no transfer will fault
    assert ctypes.string_at(there.address, 4 * 8192) == bytes(4 * 8192)
    assert all(b.state is INVALID for b in there)
    assert buffer.state is READ_WRITE


def test_a_twin_that_the_machine_has_no_room_for_is_refused(world, monkeypatch):
    tx, rx = two(world)
    alloc = world.allocator(tx.domain, count=4, size=8192)
    monkeypatch.setattr(memory, "_mem_available", lambda: 4 * 8192 - 1)
    found = []
    tx.assign_pool(alloc.pool, done=found.append)
    for end in (rx, tx, rx, tx):
        with pytest.raises(bulk.WouldBlock):
            end.receive_nowait()
    assert isinstance(found[0].error, bulk.LimitError)
    assert alloc.pool.id not in rx.domain.pools
    assert (tx.pools, rx.pools) == ((), ())


def test_twins_count_against_the_limits(world):
    tx, rx = two(world, binder={"limits": bulk.Limits(total_bytes=3 * 8192)})
    fits, more = (world.allocator(tx.domain, count=2, size=8192) for _ in range(2))
    world.assign(tx, rx, fits.pool)
    assert rx.domain.foreign_bytes == 2 * 8192
    with pytest.raises(bulk.LimitError):
        together(lambda: rx.wait_for(lambda: False, 0.5), lambda: tx.assign_pool(more.pool))


def test_a_pool_that_is_here_through_somebody_else_takes_consent(world, monkeypatch):
    asked = []
    a, b, c = world.domains(3)
    one = world.channel(a, b, trust=NONE)
    alloc = world.allocator(a)
    at_b = world.assign(*one, alloc.pool)
    to_c = world.channel(b, c, trust=NONE)
    at_c = world.assign(*to_c, at_b)
    for callbacks in (None, Callbacks(pool_assigned=lambda event: asked.append(event.present))):
        tx, rx = world.channel(a, c, trust=NONE, binder={"callbacks": callbacks})
        rx.peer = rx.peer._replace(pid=rx.peer.pid + 1)  # all are in one process here
        found = []
        tx.assign_pool(alloc.pool, done=found.append)
        for end in (rx, tx, rx, tx):
            with pytest.raises(bulk.WouldBlock):
                end.receive_nowait()
        (outcome,) = found
        if callbacks is None:
            assert isinstance(outcome.error, bulk.PoolVetoError)
            assert "consent" in str(outcome.error)
        else:
            assert outcome.error is None
            assert rx.pools == (at_c,)
    assert asked == [True]


def test_two_channels_from_one_peer_share_a_twin_without_being_asked(world):
    a, b = world.domains(2)
    one, other = world.channel(a, b, trust=NONE), world.channel(b, a, trust=NONE)
    alloc = world.allocator(a)
    there = world.assign(*one, alloc.pool)
    assert world.assign(other[1], other[0], alloc.pool) is there


def test_a_twin_leaves_with_its_last_channel_and_another_trust_may_follow(world):
    tx, rx = two(world)
    alloc = world.allocator(tx.domain)
    there = world.assign(tx, rx, alloc.pool)
    together(lambda: take(rx, bulk.EventKind.POOL_REMOVED), lambda: tx.remove_pool(alloc.pool))
    assert not there.present
    full = world.channel(tx.domain, rx.domain)
    again = world.assign(*full, alloc.pool)
    assert (again.shared, alloc.pool.shared) == (True, True)
    with pytest.raises(bulk.TrustMismatchError):
        tx.assign_pool(alloc.pool)


def test_within_one_domain_the_twin_is_the_buffer_itself(world):
    (a,) = world.domains(1)
    tx, rx = world.channel(a, a, trust=NONE)
    alloc = world.allocator(a)
    rx.assign_pool(alloc.pool, done=lambda outcome: None)
    tx.receive(PATIENCE_S)
    with pytest.raises(bulk.WouldBlock):
        rx.receive_nowait()
    buffer = alloc.alloc()
    buffer.put(b"stays")
    tx.move(buffer)
    assert buffer.state is INVALID
    assert rx.receive_buffer(PATIENCE_S).buffer is buffer
    assert buffer.tobytes() == b"stays"
    rx.pass_(buffer)
    tx.receive(PATIENCE_S)
    alloc.free(buffer)


def test_buffers_come_back_when_the_channel_ends(world):
    """There is no lease: what left is free at once."""
    tx, rx = two(world)
    alloc = world.allocator(tx.domain, count=1)
    world.assign(tx, rx, alloc.pool)
    buffer = alloc.alloc()
    tx.move(buffer)
    tx.close()
    assert buffer.state is READ_WRITE
    assert alloc.detached == 0


# ---- whom a buffer may come back from (design section 8, rule 5) -----------------------------------------------------


def test_what_left_over_one_channel_comes_back_over_another_of_the_same_peer(world):
    a, b = world.domains(2)
    there, back = world.channel(a, b, trust=Trust.NONE), world.channel(b, a, trust=Trust.NONE)
    alloc = world.allocator(a, count=1)
    world.assign(*there, alloc.pool)
    world.assign(back[1], back[0], alloc.pool)
    buffer = alloc.alloc()
    buffer.put(b"question")
    there[0].move(buffer)
    theirs = there[1].receive_buffer(PATIENCE_S).buffer
    theirs.put(b"answer")
    back[0].move(theirs)
    assert back[1].receive_buffer(PATIENCE_S).buffer is buffer
    assert buffer.owned
    assert buffer.tobytes() == b"answer"
    assert (alloc.detached, there[0].statistics()["refused_by_peer"], back[1].statistics()["refused_here"]) == (0, 0, 0)
