"""The descriptor of a channel: readable while something is to be received, silent once one has looked."""

from __future__ import annotations

import os

import pytest

import bulktransfer as bulk
import meeting
from bulktransfer import EventKind
from meeting import Background, bind, create, line, readable, receive_on
from worlds import PATIENCE_S, nothing_comes, take

scheme, world = meeting.scheme, meeting.world


def test_the_descriptor_is_one_number_from_before_binding_to_the_end(world):
    creator = create(world)
    number = creator.fileno()
    binder = bind_quietly(world, creator)
    assert creator.fileno() == number
    binder.close()
    with pytest.raises(bulk.EndOfChannelError):
        receive_on(creator)
    assert readable(number)


def bind_quietly(world, creator):
    """A binder; its creator is served only while its descriptor is readable."""
    binder = Background(lambda: bind(world, creator.address))
    while binder.running:
        if readable(creator, 0.01):
            try:
                creator.receive_nowait()
            except bulk.WouldBlock:
                continue
    return binder.result()


def test_the_descriptor_is_silent_until_a_binder_knocks(world):
    creator = create(world)
    assert creator.fileno() >= 0
    with pytest.raises(bulk.WouldBlock):
        creator.receive_nowait()
    assert not readable(creator)
    outcomes = []
    binder = bulk.bind(creator.address, done=outcomes.append, domain=bulk.Domain())
    world.made.append(binder)
    assert readable(creator, PATIENCE_S)
    kinds = []
    while not (outcomes and kinds):
        for end in (creator, binder):
            try:
                kinds.append(end.receive_nowait().kind)
            except bulk.WouldBlock:
                continue
    assert kinds == [EventKind.BIND_RECEIVED]


def test_the_descriptor_of_a_binding_channel_tells_of_the_outcome(world):
    creator = create(world)
    outcomes = []
    binder = bulk.bind(creator.address, done=outcomes.append, domain=bulk.Domain())
    world.made.append(binder)
    number = binder.fileno()
    serving = Background(lambda: creator.wait_bound(PATIENCE_S))
    while not outcomes:
        assert readable(number, PATIENCE_S)
        with pytest.raises(bulk.WouldBlock):
            binder.receive_nowait()
    serving.result()
    assert binder.fileno() == number


def test_the_descriptor_stays_readable_until_receive_nowait_would_block(world):
    tx, rx, alloc = line(world)
    assert rx.fileno() >= 0
    assert nothing_comes(rx)
    assert not readable(rx)
    tx.move_many([alloc.alloc() for _ in range(3)])
    for _ in range(3):
        assert readable(rx, PATIENCE_S)
        assert rx.receive_nowait().kind is EventKind.MOVE_RECEIVED
    assert readable(rx)
    assert nothing_comes(rx)
    assert not readable(rx)
    tx.move(alloc.alloc())
    assert readable(rx, PATIENCE_S)


@pytest.mark.parametrize("call", ["receive", "receive_buffer", "receive_many", "serve", "other channel", "assign_pool"])
def test_what_other_calls_leave_keeps_the_descriptor_readable(world, call):
    tx, rx, alloc = line(world)
    rx.fileno()
    assert nothing_comes(rx)
    other, _ = world.channel(rx.domain, bulk.Domain())
    second = world.allocator(tx.domain)
    outcomes = []
    tx.assign_pool(second.pool, done=outcomes.append)
    while not outcomes:
        rx.serve()
        assert nothing_comes(tx)
    tx.move(alloc.alloc(), b"a")
    tx.move(alloc.alloc(), b"b")
    if call == "receive_buffer":
        assert rx.receive_buffer().meta == b"a"
    elif call == "serve":
        rx.serve()
    elif call == "assign_pool":
        own = world.allocator(rx.domain)
        with pytest.raises(TimeoutError):
            rx.assign_pool(own.pool, timeout=0.01)
    elif call == "other channel":
        with pytest.raises(TimeoutError):
            other.receive(0.001)
    else:
        rx.receive() if call == "receive" else rx.receive_many(1)
    assert readable(rx, PATIENCE_S)
    while not nothing_left(rx):
        continue
    assert not readable(rx)


def nothing_left(channel):
    try:
        channel.receive_nowait()
    except bulk.WouldBlock:
        return True
    return False


def test_a_blocking_receive_between_leaves_the_rest_readable(world):
    tx, rx, alloc = line(world)
    rx.fileno()
    assert nothing_comes(rx)
    waiting = Background(rx.receive)
    tx.move_many([alloc.alloc() for _ in range(3)])
    assert waiting.result().kind is EventKind.MOVE_RECEIVED
    assert readable(rx, PATIENCE_S)
    for _ in range(2):
        assert rx.receive_nowait()
    assert nothing_comes(rx)
    assert not readable(rx)


@pytest.mark.parametrize("how", ["close", "own close"])
def test_the_descriptor_is_readable_at_the_end(world, how):
    tx, rx, _ = line(world)
    number = rx.fileno()
    assert nothing_comes(rx)
    if how == "close":
        tx.close()
        assert readable(number, PATIENCE_S)
        assert take(rx, EventKind.TEARDOWN_RECEIVED)
        assert readable(number)
        with pytest.raises(bulk.EndOfChannelError):
            rx.receive_nowait()
        with pytest.raises(bulk.EndOfChannelError):
            rx.receive_nowait()
    else:
        rx.close()
        with pytest.raises(bulk.ClosedChannelError):
            rx.receive_nowait()
        with pytest.raises(bulk.ClosedChannelError):
            rx.fileno()


def test_the_descriptor_tells_of_an_outcome(world):
    tx, rx, alloc = line(world)
    tx.fileno()
    outcomes = []
    tx.move(alloc.alloc(), done=outcomes.append)
    assert nothing_comes(tx)
    assert not readable(tx)
    assert take(rx, EventKind.MOVE_RECEIVED)
    assert readable(tx, PATIENCE_S)
    assert nothing_comes(tx)
    assert len(outcomes) == 1
    assert not readable(tx)


def test_what_was_served_without_an_event_leaves_the_descriptor_armed(world):
    a, b = world.domains(2)
    tx, rx = world.channel(a, b)
    alloc = world.allocator(a, reclaim=True)
    world.assign(tx, rx, alloc.pool)
    tx.fileno()
    assert nothing_comes(tx)
    tx.move_many(alloc.alloc_many(4))
    first, second = [take(rx, EventKind.MOVE_RECEIVED).buffer for _ in range(2)]
    rx.pass_(first)
    tx.serve()  # the bell is heard; the buffer is on the free list, and there is no event
    assert alloc.available == 1
    assert not readable(tx)
    rx.pass_(second)
    assert readable(tx, PATIENCE_S)


def test_before_binding_the_descriptor_is_silent_about_other_channels(world):
    tx, rx, alloc = line(world)
    creator = create(world, rx.domain)
    outcomes = []
    binder = bulk.bind(f"{world.scheme}:nobody-{id(world)}", done=outcomes.append, domain=rx.domain, timeout=None)
    world.made.append(binder)
    with bulk.listen(f"{world.scheme}:", [bulk.ChannelSpec(direction=creator.direction, trust=creator.trust)]) as other:
        waiting = (creator, binder, other)
        for thing in waiting:
            assert thing.fileno() >= 0
        for end in (creator, binder):
            assert nothing_comes(end)
        rx.domain.adopt_loose(None)  # as a thread of the domain that sleeps
        assert rx.watch()
        tx.move(alloc.alloc())
        assert readable(rx.domain.waiters.epoll, PATIENCE_S)
        assert not any(readable(thing) for thing in waiting)


def test_the_descriptor_of_a_bound_channel_is_silent_about_further_binders(world):
    creator = create(world)
    number = creator.fileno()
    meeting.bound(world, creator)
    assert nothing_left(creator)
    outcomes = []
    world.made.append(bulk.bind(creator.address, done=outcomes.append, domain=bulk.Domain()))
    assert not readable(number)
    creator.domain.serve()
    assert nothing_left(creator)
    assert not readable(number)


@pytest.mark.parametrize("operation", ["assign", "remove", "destroy"])
@pytest.mark.parametrize("first", ["descriptor", "request"])
def test_the_descriptor_is_readable_at_the_deadline_of_a_request(world, operation, first):
    tx, rx, alloc = line(world)
    outcomes = []
    options = {"done": outcomes.append, "timeout": 0.05}
    if first == "descriptor":
        tx.fileno()
        assert nothing_comes(tx)
    if operation == "assign":
        tx.assign_pool(world.allocator(tx.domain).pool, **options)
    elif operation == "remove":
        tx.remove_pool(alloc.pool, **options)
    else:
        tx.destroy(**options)
    number = tx.fileno()
    while not outcomes:
        assert readable(number, PATIENCE_S)
        with pytest.raises((bulk.WouldBlock, bulk.BrokenChannelError)):
            tx.receive_nowait()
    assert isinstance(outcomes[0].error, bulk.BrokenChannelError if operation == "destroy" else TimeoutError)
    if operation != "destroy":
        assert nothing_comes(tx)
        assert not readable(number)
    assert rx.address


def test_the_descriptor_is_readable_at_the_deadline_of_a_bind(world):
    outcomes = []
    binder = bulk.bind(f"{world.scheme}:nobody-{id(world)}", done=outcomes.append, domain=bulk.Domain(), timeout=0.05)
    world.made.append(binder)
    number = binder.fileno()
    while not outcomes:
        assert readable(number, PATIENCE_S)
        with pytest.raises((bulk.WouldBlock, bulk.ClosedChannelError)):
            binder.receive_nowait()
    assert isinstance(outcomes[0].error, bulk.EndpointNotFoundError)


def test_a_look_that_finds_nothing_reads_a_kick_only_if_there_was_one(world, monkeypatch):
    tx, rx, alloc = line(world)
    rx.fileno()
    assert nothing_comes(rx)
    reads = []
    read = os.eventfd_read
    monkeypatch.setattr(os, "eventfd_read", lambda fd: reads.append(fd) or read(fd))
    assert nothing_comes(rx)
    assert not reads
    tx.move(alloc.alloc())
    rx.serve()  # it waits in the queue, and the descriptor tells
    assert rx.receive_nowait().kind is EventKind.MOVE_RECEIVED
    assert nothing_comes(rx)
    assert len(reads) == 1
    assert not readable(rx)
