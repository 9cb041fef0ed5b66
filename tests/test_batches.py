"""Promises of many transfers at once: batches, rings that are full, threads that share a channel."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import bulktransfer as bulk
from bulktransfer import EventKind
from worlds import (
    INVALID,
    OWNED_COPIED,
    PATIENCE_S,
    READ_WRITE,
    World,
    nothing_comes,
    take,
    together,
    unchanged,
    until_the_end,
)


@pytest.fixture(params=["local", "shm"])
def world(request):
    with World(request.param) as world:
        yield world


def drain(*channels):
    """Have both sides take what is there, so that refusals and outcomes have come back."""
    for _ in range(3):
        for channel in channels:
            channel.serve()


# -- batches -----------------------------------------------------------------------------------------------------------


def test_a_batch_arrives_in_order_with_its_metas_and_one_outcome(world):
    tx, rx, alloc, _ = world.line(meta_size=40)
    batch = alloc.alloc_many(4)
    outcomes = []
    metas = [b"", b"x", bytes(32), bytes(40)]
    tx.move_many(batch, metas, done=outcomes.append)
    assert {b.state for b in batch} == {INVALID}
    events = rx.receive_many(10, PATIENCE_S)
    assert [e.buffer.index for e in events] == [b.index for b in batch]
    assert [e.meta for e in events] == metas
    assert nothing_comes(tx)
    (outcome,) = outcomes
    assert (outcome.error, outcome.operation, outcome.buffer) == (None, "move", tuple(batch))
    rx.pass_many([e.buffer for e in events])
    assert [e.buffer for e in tx.receive_many(10, PATIENCE_S)] == batch


def test_copies_travel_and_return_in_batches(world):
    tx, rx, alloc, _ = world.line()
    batch = alloc.alloc_many(4)
    tx.copy_many(iter(batch))
    assert {b.state for b in batch} == {OWNED_COPIED}
    held = [e.buffer for e in rx.receive_many(4, PATIENCE_S)]
    rx.release_many(held)
    assert {e.kind for e in tx.receive_many(4, PATIENCE_S)} == {EventKind.COPY_RELEASED}
    assert {b.state for b in batch} == {READ_WRITE}


def test_a_batch_is_all_or_nothing(world):
    tx, rx, alloc, _theirs = world.line(meta_size=4)
    one, two, gone = alloc.alloc_many(3)
    tx.move(gone)
    rx.receive_buffer(PATIENCE_S)
    stranger = world.allocator(tx.domain).alloc()

    def spoiled():
        yield one
        raise KeyError("the user's own")

    for error, batch, metas in (
        (ValueError, [one, two, one], None),
        (ValueError, [one, two], [b"x"]),
        (ValueError, [one], [b"x", b"y"]),
        (ValueError, [], [b"x"]),
        (bulk.InvalidBufferError, [one, two, gone], None),
        (bulk.PoolNotAssignedError, [one, stranger], None),
        (bulk.MetaSizeError, [one, two], [b"", b"12345"]),
        (TypeError, [one, None], None),
        (TypeError, [one, "two"], None),
        (TypeError, [one, memoryview(b"two")], None),
        (TypeError, None, None),
        (TypeError, 5, None),
        (TypeError, [one, two], [b"", None]),
        (TypeError, [one, two], 7),
        (KeyError, spoiled, None),
    ):
        for call in (tx.move_many, tx.copy_many):
            with unchanged(one, two, gone, stranger), pytest.raises(error):
                call(batch() if callable(batch) else batch, metas)
    with memoryview(two), unchanged(one, two), pytest.raises(BufferError):
        tx.move_many([one, two])
    with unchanged(one), pytest.raises(TypeError, match="cannot be called"):
        tx.move_many([one], done=3)
    assert nothing_comes(rx)
    tx.move_many([one, two])  # no mark was left on them


def test_an_empty_batch_does_nothing(world):
    tx, rx, *_ = world.line()
    for call in (tx.move_many, tx.copy_many):
        assert call([]) is None
    for call in (rx.pass_many, rx.release_many):
        assert call(()) is None
    assert nothing_comes(rx)


def test_a_user_s_iterator_that_closes_the_channel_spoils_nothing(world):
    tx, _, alloc, _ = world.line(meta_size=8)
    one, two, _three, _four = alloc.alloc_many(4)

    def closing():
        yield one
        tx.close()
        yield two

    with unchanged(one, two), pytest.raises(bulk.ClosedChannelError):
        tx.move_many(closing())
    tx, _, alloc, _ = world.line(meta_size=8)
    one, two = alloc.alloc_many(2)

    def freeing():
        yield b""
        alloc.free(one)
        yield b""

    with pytest.raises(bulk.NotAllocatedError):
        tx.move_many([one, two], freeing())
    assert two.state is READ_WRITE
    assert alloc.available == 3


class Tricky:
    """Like bytes, but asking for the bytes runs code (Python 3.12)."""

    def __init__(self, action):
        self.action = action

    def __buffer__(self, flags):
        self.action()
        return memoryview(b"meta")

    def __release_buffer__(self, view):
        self.action()


def test_a_user_s_meta_that_closes_the_channel_spoils_nothing(world):
    tx, _, alloc, _ = world.line(meta_size=8)
    buffer = alloc.alloc()
    with unchanged(buffer), pytest.raises((bulk.ClosedChannelError, TypeError)):
        tx.move(buffer, Tricky(tx.close))
    tx, _, alloc, _ = world.line(meta_size=8)
    buffer = alloc.alloc()
    with pytest.raises((bulk.BulkError, TypeError)):
        tx.move(buffer, Tricky(lambda: alloc.free(buffer)))


def test_a_batch_larger_than_the_ring_arrives_whole(world):
    a, b = world.domains(2)
    tx, rx = world.channel(a, b, meta_size=40, limits=bulk.Limits(slot_count=2))
    alloc = world.allocator(a, count=50)
    world.assign(tx, rx, alloc.pool)
    outcomes = []
    batch = alloc.alloc_many(50)
    tx.move_many(batch, [b"%d" % i * 20 for i in range(50)], done=outcomes.append)
    events = [rx.receive(PATIENCE_S) for _ in range(50)]
    assert [e.buffer.index for e in events] == [b.index for b in batch]
    assert [e.meta for e in events] == [b"%d" % i * 20 for i in range(50)]
    while not outcomes:
        assert nothing_comes(tx)
    assert outcomes[0].error is None
    assert len(outcomes) == 1


# -- rings that are full -----------------------------------------------------------------------------------------------


def test_more_than_the_ring_holds_arrives_though_its_sender_never_calls_again(world):
    a, b = world.domains(2)
    tx, rx = world.channel(a, b, meta_size=64, limits=bulk.Limits(slot_count=2))
    alloc = world.allocator(a, count=100)
    world.assign(tx, rx, alloc.pool)
    batch = alloc.alloc_many(100)
    for number, buffer in enumerate(batch):
        tx.move(buffer, b"%d" % number * (number % 20))  # short and long meta
    assert {buffer.state for buffer in batch} == {INVALID}
    for number, buffer in enumerate(batch):  # only the sink calls from here on
        event = rx.receive(PATIENCE_S)
        assert (event.buffer.index, event.meta) == (buffer.index, b"%d" % number * (number % 20))


def _without_descriptors(pipe):
    import os
    import resource

    from bulktransfer import Domain, Limits
    from worlds import World

    with World("local") as world:
        tx, rx = world.channel(Domain(), Domain(), limits=Limits(slot_count=2))
        alloc = world.allocator(tx.domain)
        world.assign(tx, rx, alloc.pool)
        batch = alloc.alloc_many(4)
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, most))
        for buffer in batch[:3]:
            tx.move(buffer)
        tx.move_many(batch[3:])
        pipe.send([b.state.name for b in batch])
        order = []
        while len(order) < 4:  # without the helper, calls of the sender carry what waits
            order += [e.buffer.index for e in rx.receive_many(2, 0)]
            tx.serve()
        pipe.send(order)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    os._exit(0)


def test_where_the_helper_cannot_start_what_was_accepted_waits_for_a_call(spawn):
    here = str(Path(__file__).parent)
    child = spawn(_without_descriptors, env={"PYTHONPATH": here, "BULK_TEST_NO_HELPER": "1"})
    assert child.receive() == ["INVALID"] * 4
    assert child.receive() == [0, 1, 2, 3]
    child.join()


def test_all_kinds_share_one_order(world):
    a, b = world.domains(2)
    tx, rx = world.channel(a, b, limits=bulk.Limits(slot_count=2))
    alloc = world.allocator(a, count=40)
    theirs = world.assign(tx, rx, alloc.pool)
    batch = alloc.alloc_many(40)
    for buffer in batch[::2]:
        tx.move(buffer)
    for buffer in batch[1::2]:
        tx.copy(buffer)
    for _ in batch:
        rx.receive(PATIENCE_S)
    for number in range(0, 40, 2):  # to the source: passes and releases in turn, far more than slots
        rx.pass_(theirs[batch[number].index])
        rx.release(theirs[batch[number + 1].index])
    for number in range(40):
        event = tx.receive(PATIENCE_S)
        assert event.kind is (EventKind.COPY_RELEASED if number % 2 else EventKind.BUFFER_RECEIVED)
        assert event.buffer is batch[number]


def test_a_full_ring_does_not_stop_pool_requests_and_the_end(world):
    a, b = world.domains(2)
    tx, rx = world.channel(a, b, limits=bulk.Limits(slot_count=2))
    alloc, other = world.allocator(a, count=20), world.allocator(a)
    world.assign(tx, rx, alloc.pool)
    tx.move_many(alloc.alloc_many(20))
    tx.assign_pool(other.pool, done=lambda outcome: None)
    tx.close()
    kinds = [event.kind for event in until_the_end(rx)]
    assert kinds[:20] == [EventKind.MOVE_RECEIVED] * 20  # close: what was accepted still arrives


def test_copies_that_are_refused_while_the_ring_is_full_are_rolled_back(world):
    a, b = world.domains(2)
    small = bulk.Limits(slot_count=2)
    there, back = world.channel(a, b, limits=small), world.channel(b, a, limits=small)
    alloc = world.allocator(a, count=20)
    theirs = world.assign(*there, alloc.pool)
    world.assign(*back, theirs)
    there[0].copy_many(alloc.alloc_many(20))
    held = [there[1].receive(PATIENCE_S).buffer for _ in range(20)]
    outcomes = []
    for buffer in held:
        back[0].copy(buffer, done=outcomes.append)
    while len(outcomes) < 20:
        assert nothing_comes(back[1])
        assert nothing_comes(back[0])
    assert {type(o.error) for o in outcomes} == {bulk.CopyRefusedError}
    assert {theirs.counts(b.index) for b in held} == {(0, 1)}


# -- threads -----------------------------------------------------------------------------------------------------------


def test_many_threads_send_on_one_channel_and_nothing_is_lost(world):
    a, b = world.domains(2)
    tx, rx = world.channel(a, b, meta_size=16, limits=bulk.Limits(slot_count=4))
    alloc = world.allocator(a, count=8, reclaim=True)
    world.assign(tx, rx, alloc.pool)
    rounds = 200

    def send(name):
        for number in range(rounds):
            tx.move(alloc.alloc(timeout=PATIENCE_S), b"%s %d" % (name, number))

    def receive():
        seen = {name: [] for name in (b"a", b"b", b"c")}
        for _ in range(3 * rounds):
            event = rx.receive_buffer(PATIENCE_S)
            name, number = event.meta.split()
            seen[name].append(int(number))
            rx.pass_(event.buffer)
        return seen

    senders = [threading.Thread(target=send, args=(name,)) for name in (b"a", b"b", b"c")]
    for sender in senders:
        sender.start()
    seen = receive()
    for sender in senders:
        sender.join()
    assert seen == {name: list(range(rounds)) for name in (b"a", b"b", b"c")}
    drain(tx, rx)
    assert alloc.available == 8


def test_one_thread_at_a_time_receives(world):
    tx, rx, alloc, _ = world.line()
    caught = []

    def second():
        while not caught:
            try:
                rx.receive_nowait()
            except bulk.ChannelBusyError as error:
                caught.append(error)
                tx.move(alloc.alloc())
            except bulk.WouldBlock:
                continue  # the first does not wait yet
        return True

    def first():
        while True:
            try:
                return rx.receive(PATIENCE_S)
            except bulk.ChannelBusyError:
                continue  # the second just looked

    _, event = together(second, first)
    assert event.kind is EventKind.MOVE_RECEIVED


def test_the_outcome_of_a_batch_names_every_buffer_that_was_refused(world):
    tx, rx, alloc, there = world.line()
    back, home = world.channel(rx.domain, tx.domain)
    world.assign(back, home, there)
    lent, also, given = alloc.alloc_many(3)
    tx.copy_many([lent, also])
    tx.move(given)
    held = [rx.receive_buffer(PATIENCE_S).buffer for _ in range(3)]
    outcomes = []
    back.copy_many([held[0], held[2], held[1]], done=outcomes.append)  # what it owns it refuses as a copy
    back.copy_many([], done=outcomes.append)
    assert take(home, EventKind.COPY_RECEIVED).buffer is given
    home.serve()
    assert nothing_comes(back)
    assert [type(outcome.error) for outcome in outcomes] == [bulk.CopyRefusedError]
    assert outcomes[0].buffer == (held[0], held[2], held[1])
    assert outcomes[0].buffers == (held[0], held[1])


def test_the_outcome_of_a_batch_names_what_was_not_taken_when_the_channel_ended(world):
    tx, rx, alloc, _ = world.line()
    batch = alloc.alloc_many(3)
    outcomes = []
    tx.move_many(batch, done=outcomes.append)
    last = alloc.alloc()
    tx.move(last, done=outcomes.append)
    assert take(rx, EventKind.MOVE_RECEIVED)
    tx.close()
    assert [outcome.buffers for outcome in outcomes] == [tuple(batch[1:]), (last,)]
    assert all(isinstance(outcome.error, bulk.ClosedChannelError) for outcome in outcomes)


def test_the_outcome_of_what_was_accepted_names_no_buffers(world):
    tx, rx, alloc, _ = world.line()
    outcomes = []
    tx.move(alloc.alloc(), done=outcomes.append)
    assert take(rx, EventKind.MOVE_RECEIVED)
    assert nothing_comes(tx)
    assert [(outcome.error, outcome.buffers) for outcome in outcomes] == [(None, ())]
