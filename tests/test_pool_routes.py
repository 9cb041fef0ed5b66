"""One pool on several channels: one identity, one memory, and nobody waits for nobody."""

from __future__ import annotations

import bulktransfer as bulk
import meeting
from bulktransfer import EventKind
from meeting import Background, create, pump
from worlds import INVALID, PATIENCE_S, READ_WRITE, take, together

scheme, world = meeting.scheme, meeting.world


def test_a_pool_travels_a_chain_under_one_id_and_is_one_object_in_each_domain(world):
    a, b, c = world.domains(3)
    ab, ba = world.channel(a, b)
    bc, cb = world.channel(b, c)
    ca, ac = world.channel(c, a)
    alloc = world.allocator(a)
    at_b = world.assign(ab, ba, alloc.pool)
    at_c = world.assign(bc, cb, at_b)
    back = world.assign(ca, ac, at_c)
    assert back is alloc.pool
    assert at_b.id == at_c.id == alloc.pool.id
    assert at_b[1] is at_b[1]
    buffer = alloc.alloc()
    buffer.put(b"round")
    for tx, rx, here, there in ((ab, ba, alloc.pool, at_b), (bc, cb, at_b, at_c), (ca, ac, at_c, alloc.pool)):
        tx.move(here[buffer.index])
        assert take(rx, EventKind.MOVE_RECEIVED).buffer is there[buffer.index]
    assert buffer.tobytes() == b"round"


def test_one_pool_on_several_channels_is_one_memory(world):
    a, b = world.domains(2)
    lines = [world.channel(a, b) for _ in range(3)]
    alloc = world.allocator(a)
    pools = {id(world.assign(tx, rx, alloc.pool)) for tx, rx in lines}
    assert len(pools) == 1
    for i, (tx, rx) in enumerate(lines):
        buffer = alloc.alloc()
        buffer.put(bytes([i]))
        tx.move(buffer)
        assert take(rx, EventKind.MOVE_RECEIVED).buffer.tobytes() == bytes([i])


def test_a_pool_within_one_domain_is_the_same_object_at_both_ends(world):
    domain = bulk.Domain()
    tx, rx = world.channel(domain, domain)
    alloc = world.allocator(domain)
    assert world.assign(tx, rx, alloc.pool) is alloc.pool
    buffer = alloc.alloc()
    tx.move(buffer)
    assert buffer.state is INVALID
    assert take(rx, EventKind.MOVE_RECEIVED).buffer is buffer
    assert buffer.state is READ_WRITE


def test_one_pool_announced_over_two_channels_at_once_is_one_pool(world):
    a, b = world.domains(2)
    first, second = world.channel(a, b), world.channel(a, b)
    alloc = world.allocator(a)
    outcomes = []
    for tx, _ in (first, second):
        tx.assign_pool(alloc.pool, done=outcomes.append)
    events = pump(lambda: len(outcomes) == 2, *first, *second)
    assert [outcome.error for outcome in outcomes] == [None, None]
    (one,), (two,) = events[first[1]], events[second[1]]
    assert one.pool is two.pool
    assert (one.present, two.present) == (False, True)


def test_many_assignments_of_many_pools_at_once_from_both_sides(world):
    tx, rx = world.channel(*world.domains(2))
    outcomes = []
    for _ in range(20):
        tx.assign_pool(world.allocator(tx.domain, count=1).pool, done=outcomes.append)
        rx.assign_pool(world.allocator(rx.domain, count=1).pool, done=outcomes.append)
    pump(lambda: len(outcomes) == 40, tx, rx)
    assert all(outcome.error is None for outcome in outcomes)
    assert {pool.id for pool in tx.pools} == {pool.id for pool in rx.pools}
    assert len(tx.pools) == 40


def test_blocking_assigns_from_both_sides_at_once_do_not_deadlock(world):
    tx, rx = world.channel(*world.domains(2))
    left, right = world.allocator(tx.domain), world.allocator(rx.domain)
    together(lambda: tx.assign_pool(left.pool), lambda: rx.assign_pool(right.pool))
    assert take(rx, EventKind.POOL_ASSIGNED).pool.id == left.pool.id
    assert take(tx, EventKind.POOL_ASSIGNED).pool.id == right.pool.id
    assert len(tx.pools) == len(rx.pools) == 2


def test_two_threads_of_one_domain_assign_to_their_own_channels(world):
    a, b = world.domains(2)
    lines = [world.channel(a, b) for _ in range(2)]
    allocs = [world.allocator(a) for _ in range(2)]
    tasks = [Background(lambda rx=rx: take(rx, EventKind.POOL_ASSIGNED)) for _, rx in lines]
    tasks += [Background(lambda t=tx, p=al.pool: t.assign_pool(p)) for (tx, _), al in zip(lines, allocs, strict=True)]
    for task in tasks:
        task.result()
    assert all(len(tx.pools) == len(rx.pools) == 1 for tx, rx in lines)


def test_a_side_that_waits_for_a_third_party_serves_an_assignment(world):
    a, b, c = world.domains(3)
    tx, rx = world.channel(a, b)
    alloc = world.allocator(a)
    third = create(world, c)
    waiting = Background(lambda: meeting.bind(world, third.address, domain=b))
    tx.assign_pool(alloc.pool)
    third.wait_bound(PATIENCE_S)
    waiting.result()
    assert take(rx, EventKind.POOL_ASSIGNED)
