"""Leases follow the buffer over every channel that has its pool, and what was published is taken before they count."""

from __future__ import annotations

import os
import uuid

import pytest

import bulktransfer as bulk
import meeting
from bulktransfer import Direction, EventKind, Trust
from bulktransfer._native import kernel
from bulktransfer._native.pool import make_pool
from bulktransfer.core import leases
from worlds import INVALID, OWNED_COPIED, PATIENCE_S, READ_ONLY, READ_WRITE, World, nothing_comes, take, until_the_end

scheme, world = meeting.scheme, meeting.world


class Ways:
    """Three domains: a pool of the first, and channels as a test asks for them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.a, self.b, self.c = world.domains(3)
        self.alloc = world.allocator(self.a)

    def way(self, source, sink, pool, by="source"):
        """A channel with the pool on it: its ends."""
        tx, rx = self.world.channel(source, sink)
        here, there = (tx, rx) if by == "source" else (rx, tx)
        self.world.assign(here, there, pool)
        return tx, rx

    def pool_at(self, domain):
        return domain.pools[self.alloc.pool.id]


@pytest.fixture
def ways(world):
    return Ways(world)


def test_a_lease_is_kept_by_who_closes_the_channel_before_it_has_read_of_it(ways):
    first, _ = ways.way(ways.a, ways.b, ways.alloc.pool)
    on, end = ways.way(ways.b, ways.c, ways.pool_at(ways.b))
    second, entry = ways.way(ways.a, ways.b, ways.alloc.pool)  # the lease is on its way to c
    buffer = ways.alloc.alloc()
    second.move(buffer)
    on.move(take(entry, EventKind.MOVE_RECEIVED).buffer)
    end.close()  # c takes what was published, the buffer with it
    kept = ways.pool_at(ways.c)[buffer.index]
    assert kept.state is READ_WRITE
    entry.close()
    assert until_the_end(second)
    on.close()
    first.close()
    ways.b.serve()
    assert ways.alloc.detached == 1
    assert buffer.state is INVALID
    kept.drop()
    assert ways.alloc.detached == 0
    assert buffer.state is READ_WRITE


def test_a_lease_that_nobody_reads_any_more_is_not_passed_on(ways):
    """Where channels make a circle it would go round for ever: who let go of it would not know it again."""
    _, entry = ways.way(ways.a, ways.b, ways.alloc.pool)
    on, end = ways.way(ways.b, ways.c, ways.pool_at(ways.b))
    assert nothing_comes(end)
    here, there = (kernel.Descriptor(fd) for fd in os.pipe())
    here.close()
    kept = list(ways.pool_at(ways.b).leases)
    leases.take(entry, ways.pool_at(ways.b), [there])
    assert ways.pool_at(ways.b).leases == kept
    assert on.statistics()["waiting_to_be_sent"] == 0
    passed = len(ways.pool_at(ways.c).leases)
    assert nothing_comes(end)
    assert len(ways.pool_at(ways.c).leases) == passed


def test_a_pool_that_leaves_takes_nothing_back(ways):
    """A forwarder's last channel ends: what it had sent on is the owner's at once, though nobody has it."""
    first, entry = ways.way(ways.a, ways.b, ways.alloc.pool)
    on, end = ways.way(ways.b, ways.c, ways.pool_at(ways.b))
    buffer = ways.alloc.alloc()
    first.move(buffer)
    end.close()
    on.move(take(entry, EventKind.MOVE_RECEIVED).buffer)
    entry.close()
    on.close()
    assert ways.b.pools == {}
    assert until_the_end(first)
    assert ways.alloc.detached == 0
    assert buffer.state is READ_WRITE


def test_a_lease_that_comes_by_a_second_way_reaches_those_who_had_the_pool_before(ways):
    first, _ = ways.way(ways.a, ways.b, ways.alloc.pool)
    on, end = ways.way(ways.b, ways.c, ways.pool_at(ways.b))
    second, entry = ways.way(ways.a, ways.b, ways.alloc.pool)
    buffer = ways.alloc.alloc()
    buffer.put(b"one owner")
    second.move(buffer)
    on.move(take(entry, EventKind.MOVE_RECEIVED).buffer)
    kept = take(end, EventKind.MOVE_RECEIVED).buffer
    for channel in (entry, on):
        channel.close()
    assert until_the_end(second)
    first.close()
    ways.b.serve()
    assert ways.b.pools == {}
    assert ways.alloc.detached == 1
    assert buffer.state is INVALID
    assert kept.tobytes() == b"one owner"
    assert until_the_end(end)
    kept.drop()
    assert ways.alloc.detached == 0
    assert buffer.state is READ_WRITE


def test_an_acceptance_carries_the_acceptors_leases_back(ways):
    _, _ = ways.way(ways.a, ways.b, ways.alloc.pool)
    side, far = ways.way(ways.a, ways.c, ways.alloc.pool)
    on, end = ways.way(ways.b, ways.c, ways.pool_at(ways.b))
    buffer = ways.alloc.alloc()
    side.move(buffer)
    end.pass_(take(far, EventKind.MOVE_RECEIVED).buffer)  # up, over a channel that brought it nothing
    kept = take(on, EventKind.BUFFER_RECEIVED).buffer
    for channel in (far, end):
        channel.close()
    assert ways.c.pools == {}
    assert until_the_end(side)
    assert ways.alloc.detached == 1
    assert buffer.state is INVALID
    assert kept.state is READ_WRITE
    until_the_end(on)
    kept.drop()
    for number in list(kept.pool.channels):
        ways.b.channel(number).close()
    assert ways.alloc.detached == 0
    assert buffer.state is READ_WRITE


def test_the_allocator_takes_back_what_it_sent_where_the_peer_assigned_its_pool(ways):
    ways.way(ways.a, ways.b, ways.alloc.pool)
    tx, rx = ways.way(ways.a, ways.b, ways.pool_at(ways.b), by="sink")
    moved, copied = ways.alloc.alloc(), ways.alloc.alloc()
    tx.move(moved)
    tx.copy(copied)
    kept = [rx.receive_buffer(PATIENCE_S).buffer for _ in range(2)]
    rx.close()
    events = until_the_end(tx)
    assert set(events[-1].buffers) == {moved, copied}
    assert ways.alloc.detached == 2
    for buffer in kept:
        buffer.drop()
    for number in list(kept[0].pool.channels):
        ways.b.channel(number).close()
    assert ways.alloc.detached == 0
    assert moved.state is copied.state is READ_WRITE


def test_what_was_published_arrives_though_its_lease_hung_up(ways):
    tx, rx = ways.way(ways.a, ways.b, ways.alloc.pool)
    back, home = ways.way(ways.b, ways.a, ways.pool_at(ways.b))
    buffer = ways.alloc.alloc()
    tx.move(buffer)
    guest = take(rx, EventKind.MOVE_RECEIVED).buffer
    guest.put(b"come home")
    back.move(guest)
    back.close()
    rx.close()
    assert ways.b.pools == {}
    until_the_end(tx)
    assert ways.alloc.detached == 0
    event = take(home, EventKind.MOVE_RECEIVED)
    assert event.buffer is buffer
    assert buffer.tobytes() == b"come home"


def test_a_forwarder_drops_a_copy_that_others_have_over_channels_that_ended(ways):
    tx, rx = ways.way(ways.a, ways.b, ways.alloc.pool)
    on, end = ways.way(ways.b, ways.c, ways.pool_at(ways.b))
    buffer = ways.alloc.alloc()
    buffer.put(b"lent")
    tx.copy(buffer)
    held = take(rx, EventKind.COPY_RECEIVED).buffer
    on.copy(held)
    last = take(end, EventKind.COPY_RECEIVED).buffer
    rx.close()
    with pytest.raises(bulk.ChannelStateError):
        held.drop()  # the channel that its copy went over is connected
    on.close()
    held.drop()
    assert held.state is INVALID
    assert ways.b.pools == {}
    until_the_end(tx)
    until_the_end(end)
    assert ways.alloc.detached == 1
    assert last.tobytes() == b"lent"
    last.drop()
    assert ways.alloc.detached == 0
    assert buffer.state is READ_WRITE


def test_two_domains_that_lent_each_other_buffers_do_not_wait_for_each_other(world):
    a, b = world.domains(2)
    mine, yours = world.allocator(a), world.allocator(b)
    there, here = world.channel(a, b)
    back, home = world.channel(b, a)
    world.assign(there, here, mine.pool)
    world.assign(back, home, yours.pool)
    lent, given = mine.alloc(), yours.alloc()
    there.copy(lent)
    back.copy(given)
    at_b, at_a = take(here, EventKind.COPY_RECEIVED).buffer, take(home, EventKind.COPY_RECEIVED).buffer
    for channel in (there, back):
        channel.close()
    until_the_end(here)
    until_the_end(home)
    at_a.drop()
    at_b.drop()
    assert mine.detached == yours.detached == 0
    assert lent.state is given.state is READ_WRITE


def test_what_is_here_as_a_copy_that_was_lent_on_comes_back_once_those_copies_did(ways):
    tx, rx = ways.way(ways.a, ways.b, ways.alloc.pool)
    back, home = ways.way(ways.b, ways.a, ways.pool_at(ways.b))
    on, end = ways.way(ways.a, ways.c, ways.alloc.pool)
    buffer = ways.alloc.alloc()
    tx.move(buffer)
    owned = take(rx, EventKind.MOVE_RECEIVED).buffer
    back.copy(owned)
    assert take(home, EventKind.COPY_RECEIVED).buffer is buffer
    on.copy(buffer)
    far = take(end, EventKind.COPY_RECEIVED).buffer
    rx.close()
    back.close()
    owned.drop()
    until_the_end(tx)
    until_the_end(home)
    assert ways.alloc.detached == 0  # it is here
    assert buffer.state is READ_ONLY
    end.release(far)
    assert take(on, EventKind.COPY_RELEASED)
    ways.a.serve()
    assert buffer.state is READ_WRITE
    assert not ways.alloc.pool.ended


def test_a_buffer_that_was_dropped_is_not_given_back_by_a_lease(ways):
    tx, rx = ways.way(ways.a, ways.b, ways.alloc.pool)
    on, end = ways.way(ways.b, ways.c, ways.pool_at(ways.b))
    back, home = ways.way(ways.c, ways.b, ways.pool_at(ways.c))
    tx.move_many(ways.alloc.alloc_many(2))
    first, second = (rx.receive_buffer(PATIENCE_S).buffer for _ in range(2))
    on.move(first)
    back.copy(take(end, EventKind.MOVE_RECEIVED).buffer)
    assert take(home, EventKind.COPY_RECEIVED).buffer is first
    for channel in (rx, on, home):
        channel.close()
    assert first.state is READ_ONLY
    first.drop()  # given away over a channel that ended, and held
    for channel in (end, back):
        channel.close()
    for buffer in ways.pool_at(ways.c):
        if buffer.owned:
            buffer.drop()
    ways.b.serve()
    assert first.state is INVALID
    assert second.state is READ_WRITE
    second.drop()
    until_the_end(tx)
    assert ways.alloc.detached == 0


def test_leases_are_counted_once_and_let_go_as_soon_as_nobody_reads_them(ways):
    first, _ = ways.way(ways.a, ways.b, ways.alloc.pool)
    pool = ways.pool_at(ways.b)
    one, _ = ways.way(ways.b, ways.c, pool)
    ways.way(ways.b, ways.c, pool)
    ways.way(ways.c, ways.b, ways.pool_at(ways.c))
    first.serve()
    assert len(ways.alloc.pool.leases) == 1  # of the assignment that leads from C to B
    kept = {leases.identity(lease) for lease in ways.pool_at(ways.c).leases}
    assert len(kept) == len(ways.pool_at(ways.c).leases) == 3
    one.close()
    ways.c.serve()
    assert len(ways.pool_at(ways.c).leases) == 2


@pytest.mark.parametrize("what", ["too many", "no pipe", "none"])
def test_leases_that_cannot_be_kept_end_the_channel_they_came_over_and_no_other(ways, what, monkeypatch):
    from bulktransfer.messages import Leases

    tx, rx = ways.way(ways.a, ways.b, ways.alloc.pool)
    other, end = ways.way(ways.a, ways.b, ways.alloc.pool)
    pipes = [tuple(leases.kernel.Descriptor(fd) for fd in os.pipe()) for _ in range(3)]
    if what == "too many":
        monkeypatch.setattr(leases, "LEASES_MAX", 4)
    given = {"too many": [write for _, write in pipes], "no pipe": [ways.alloc.pool.memory], "none": []}[what]
    tx.say(Leases(tx.assigning.find(ways.alloc.pool).slot), given)
    with pytest.raises(bulk.BrokenChannelError if what == "too many" else bulk.ProtocolViolation):
        rx.receive(PATIENCE_S)
    buffer = ways.alloc.alloc()
    other.move(buffer)
    assert take(end, EventKind.MOVE_RECEIVED)


def test_leases_where_memory_is_not_shared_are_a_violation(ways):
    tx, _ = ways.way(ways.a, ways.b, ways.alloc.pool)
    twin = make_pool(uuid.uuid4(), ways.a, Trust.NONE, None, 4, 4096, False, False)
    read, write = (leases.kernel.Descriptor(fd) for fd in os.pipe())
    leases.take(tx, twin, [])
    with pytest.raises(bulk.ProtocolViolation, match="not shared"):
        leases.take(tx, twin, [write])
    assert twin.leases == []
    assert not leases.kernel.hung_up(read.fileno())


def test_leases_of_a_pool_that_left_are_let_go(ways):
    from bulktransfer.messages import Leases

    tx, rx = ways.way(ways.a, ways.b, ways.alloc.pool)
    read, write = (leases.kernel.Descriptor(fd) for fd in os.pipe())
    tx.say(Leases(40), [write])
    write.close()
    assert nothing_comes(rx)
    assert leases.kernel.hung_up(read.fileno())


def test_a_killed_middle_by_a_second_way_leaves_what_lies_behind_it_away(spawn):
    def keeper(pipe, address):
        import bulktransfer as bulk

        rx = bulk.bind(address)
        kept = rx.receive_buffer().buffer
        pipe.send("ready")
        pipe.recv()
        rx.close()
        pipe.send(kept.tobytes())
        kept.drop()
        pipe.send("dropped")
        pipe.recv()

    def middle(pipe, first, second):
        import bulktransfer as bulk

        tx = bulk.create("shm:", direction=bulk.Direction.TX, trust=bulk.Trust.FULL)
        pipe.send(tx.address)
        tx.wait_bound()
        one = bulk.bind(first)
        tx.assign_pool(one.receive().pool)
        two = bulk.bind(second)
        two.receive()
        tx.move(two.receive_buffer().buffer)
        pipe.recv()

    ends = [bulk.create("shm:", direction=Direction.TX, trust=Trust.FULL) for _ in range(2)]
    alloc = bulk.Allocator(count=2, size=4096)
    hop = spawn(middle, *[tx.address for tx in ends])
    end = spawn(keeper, hop.receive())
    for tx in ends:
        tx.wait_bound(PATIENCE_S)
        tx.assign_pool(alloc.pool)
    buffer = alloc.alloc()
    buffer.put(b"nobody else writes")
    ends[1].move(buffer)
    assert end.receive() == "ready"
    hop.kill()
    for tx in ends:
        with pytest.raises(bulk.BrokenChannelError):
            tx.receive()
    assert alloc.detached == 1
    assert buffer.state is INVALID
    end.send("let go")
    assert end.receive() == b"nobody else writes"
    assert end.receive() == "dropped"
    assert alloc.detached == 0
    assert buffer.state is READ_WRITE
    end.send("end")
    end.join()
    alloc.close()
    for tx in ends:
        tx.close()


def test_copies_that_are_out_over_a_channel_that_lives_keep_a_buffer(ways):
    tx, rx = ways.way(ways.a, ways.b, ways.alloc.pool)
    on, end = ways.way(ways.b, ways.c, ways.pool_at(ways.b))
    tx.move(ways.alloc.alloc())
    owned = take(rx, EventKind.MOVE_RECEIVED).buffer
    on.copy(owned)
    assert take(end, EventKind.COPY_RECEIVED)
    rx.close()
    with pytest.raises(bulk.ChannelStateError):
        owned.drop()
    assert owned.state is OWNED_COPIED
