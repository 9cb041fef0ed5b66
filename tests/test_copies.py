"""Promises of copies that meet: two ways into one domain, cycles, channels within one domain."""

from __future__ import annotations

import pytest

import bulktransfer as bulk
from bulktransfer import EventKind
from worlds import (
    INVALID,
    PATIENCE_S,
    READ_ONLY,
    READ_WRITE,
    World,
    ledger,
    nothing_comes,
    take,
    unchanged,
    until_the_end,
)


@pytest.fixture(params=["local", "shm"])
def world(request):
    with World(request.param) as world:
        yield world


# -- diamonds and cycles -----------------------------------------------------------------------------------------------


def test_two_channels_into_one_domain_both_carry_a_copy(world):
    a, b = world.domains(2)
    one, two = world.channel(a, b), world.channel(a, b)
    alloc = world.allocator(a)
    world.assign(*one, alloc.pool)
    theirs = world.assign(*two, alloc.pool)
    buffer = alloc.alloc()
    one[0].copy(buffer)
    two[0].copy(buffer)
    held = take(one[1], EventKind.COPY_RECEIVED).buffer
    assert take(two[1], EventKind.COPY_RECEIVED).buffer is held
    assert theirs.counts(held.index) == (0, 2)
    with memoryview(held):
        one[1].release(held)  # it stays readable by the other copy, views and all
        with unchanged(held), pytest.raises(BufferError):
            two[1].release(held)
    assert held.state is READ_ONLY
    two[1].release(held)
    assert held.state is INVALID
    for tx in (one[0], two[0]):
        take(tx, EventKind.COPY_RELEASED)
    assert buffer.state is READ_WRITE


def cycle(world):
    """A copy from a to b that b sends on to a: (there and back, buffer of a, buffer of b)."""
    a, b = world.domains(2)
    there, back = world.channel(a, b), world.channel(b, a)
    alloc = world.allocator(a)
    theirs = world.assign(*there, alloc.pool)
    world.assign(*back, theirs)
    buffer = alloc.alloc()
    there[0].copy(buffer)
    return there, back, buffer, take(there[1], EventKind.COPY_RECEIVED).buffer


def test_a_copy_that_comes_back_to_its_owner_is_refused_by_an_event(world):
    there, back, buffer, held = cycle(world)
    back[0].copy(held)
    with unchanged(buffer):
        assert nothing_comes(back[1])
    event = take(back[0], EventKind.OPERATION_REFUSED)
    assert event.buffer is held
    assert type(event.error) is bulk.CopyRefusedError
    assert ledger(held) == (READ_ONLY, buffer.length, 0, 0, 1)
    there[1].release(held)
    take(there[0], EventKind.COPY_RELEASED)
    assert ledger(buffer) == (READ_WRITE, buffer.length, 0, 0, 0)
    assert back[0].statistics()["refused_by_peer"] == back[1].statistics()["refused_here"] == 1


def test_a_refusal_reaches_the_continuation_instead_of_an_event(world):
    _, back, _buffer, held = cycle(world)
    outcomes = []
    back[0].copy(held, done=outcomes.append)
    assert nothing_comes(back[1])
    assert nothing_comes(back[0])
    (outcome,) = outcomes
    assert type(outcome.error) is bulk.CopyRefusedError
    assert (outcome.operation, outcome.channel, outcome.buffer) == ("copy", back[0], held)
    assert back[0].pools[0].counts(held.index) == (0, 1)


def test_a_holder_that_lent_a_copy_on_refuses_another(world):
    a, b, c = world.domains(3)
    one, two, down = world.channel(a, b), world.channel(a, b), world.channel(b, c)
    alloc = world.allocator(a)
    world.assign(*one, alloc.pool)
    middle = world.assign(*two, alloc.pool)
    world.assign(*down, middle)
    buffer = alloc.alloc()
    one[0].copy(buffer)
    held = take(one[1], EventKind.COPY_RECEIVED).buffer
    down[0].copy(held)
    two[0].copy(buffer)
    with unchanged(held):
        assert nothing_comes(two[1])
    assert take(two[0], EventKind.OPERATION_REFUSED).buffer is buffer
    assert alloc.pool.counts(buffer.index) == (1, 0)


def test_a_refusal_keeps_its_place_among_what_the_peer_sent(world):
    _there, back, _buffer, held = cycle(world)
    alloc = world.allocator(back[0].domain)
    theirs = world.assign(*back, alloc.pool)
    first, second = alloc.alloc_many(2)
    back[0].move(first)
    back[0].copy(held)
    back[0].move(second)
    rx = back[1]
    rx.pass_(take(rx, EventKind.MOVE_RECEIVED).buffer)
    take(rx, EventKind.MOVE_RECEIVED)
    rx.pass_(theirs[second.index])
    kinds = [back[0].receive(PATIENCE_S).kind for _ in range(3)]
    assert kinds == [EventKind.BUFFER_RECEIVED, EventKind.OPERATION_REFUSED, EventKind.BUFFER_RECEIVED]


# -- a channel within one domain ---------------------------------------------------------------------------------------


def loop(world):
    (a,) = world.domains(1)
    tx, rx = world.channel(a, a, meta_size=40)
    alloc = world.allocator(a)
    tx.assign_pool(alloc.pool)
    take(rx, EventKind.POOL_ASSIGNED)
    return tx, rx, alloc


def test_within_one_domain_a_buffer_is_invalid_until_it_is_received(world):
    tx, rx, alloc = loop(world)
    buffer = alloc.alloc()
    buffer.put(b"round")
    tx.move(buffer, b"and round")
    assert buffer.state is INVALID
    rx.serve()  # it is taken from the ring, but nobody has it
    assert buffer.state is INVALID
    for call in (
        lambda: tx.move(buffer),
        lambda: rx.pass_(buffer),
        lambda: memoryview(buffer),
        lambda: alloc.free(buffer),
    ):
        with unchanged(buffer), pytest.raises(bulk.InvalidBufferError):
            call()
    event = take(rx, EventKind.MOVE_RECEIVED)
    assert (event.buffer, event.meta, buffer.tobytes()) == (buffer, b"and round", b"round")
    assert (buffer.state, buffer.length) == (READ_WRITE, 5)
    rx.pass_(buffer, b"home")
    assert buffer.state is INVALID
    event = take(tx, EventKind.BUFFER_RECEIVED)
    assert (event.meta, buffer.state, buffer.length) == (b"home", READ_WRITE, buffer.size)
    alloc.free(buffer)


def test_within_one_domain_a_copy_is_refused_at_the_call(world):
    tx, rx, alloc = loop(world)
    buffer = alloc.alloc()
    with unchanged(buffer), pytest.raises(bulk.CopyRefusedError):
        tx.copy(buffer)
    with unchanged(buffer), pytest.raises(bulk.CopyRefusedError):
        tx.copy_many([buffer])
    with unchanged(buffer), pytest.raises(bulk.NotACopyError):
        rx.release(buffer)


def test_within_one_domain_what_nobody_received_comes_out_of_a_closed_channel(world):
    tx, rx, alloc = loop(world)
    one, two = alloc.alloc_many(2)
    tx.move(one)
    tx.move(two)
    tx.close()
    assert rx.receive_buffer(PATIENCE_S).buffer is one
    assert rx.receive_buffer(PATIENCE_S).buffer is two
    until_the_end(rx)
    alloc.free_many([one, two])
    assert (alloc.available, alloc.detached) == (4, 0)


# -- give back ---------------------------------------------------------------------------------------------------------


def test_give_back_passes_what_is_owned_and_releases_what_is_held(world):
    tx, rx, alloc, _ = world.line()
    one, two = alloc.alloc_many(2)
    tx.move(one)
    tx.copy(two)
    for kind in (EventKind.BUFFER_RECEIVED, EventKind.COPY_RELEASED):
        rx.give_back(rx.receive_buffer(PATIENCE_S).buffer)
        take(tx, kind)
    assert (one.state, two.state) == (READ_WRITE, READ_WRITE)


def test_give_back_refuses_what_is_not_here(world):
    tx, rx, alloc, theirs = world.line()
    with pytest.raises(bulk.InvalidBufferError):
        rx.give_back(theirs[0])
    with pytest.raises(TypeError):
        rx.give_back(None)
    buffer = alloc.alloc()
    with unchanged(buffer), pytest.raises(bulk.DirectionError):
        tx.give_back(buffer)
    with memoryview(buffer), unchanged(buffer), pytest.raises(bulk.DirectionError):
        tx.give_back(buffer)


@pytest.mark.parametrize("act", ["move", "copy"])
@pytest.mark.parametrize("closer", ["tx", "rx"])
def test_what_was_to_go_back_when_unused_is_let_go_where_its_channel_ended(world, act, closer):
    tx, rx, alloc, _ = world.line()
    buffer = alloc.alloc()
    getattr(tx, act)(buffer)
    held = rx.receive_buffer(PATIENCE_S).buffer
    view = memoryview(held)
    rx.give_back(held)
    {"tx": tx, "rx": rx}[closer].close()
    assert take(rx if closer == "tx" else tx, EventKind.TEARDOWN_RECEIVED)
    assert alloc.detached == 1
    view.release()
    assert held.state is INVALID
    assert alloc.detached == 0
    assert buffer.state is READ_WRITE


@pytest.mark.parametrize("act", ["move", "copy"])
def test_what_was_to_go_back_when_unused_is_let_go_where_its_channel_is_torn_down_meanwhile(world, act):
    tx, rx, alloc, _ = world.line()
    buffer = alloc.alloc()
    getattr(tx, act)(buffer)
    held = rx.receive_buffer(PATIENCE_S).buffer
    view = memoryview(held)
    rx.give_back(held)
    rx.destroy(done=lambda outcome: None)
    assert rx.state is bulk.ChannelState.TEARDOWN
    view.release()  # too late to go back, and too early to be dropped
    assert held.state is not INVALID
    assert take(tx, EventKind.TEARDOWN_RECEIVED)
    with pytest.raises(bulk.ClosedChannelError):
        rx.receive(PATIENCE_S)
    assert held.state is INVALID
    assert alloc.detached == 0
    assert buffer.state is READ_WRITE


def test_an_event_that_was_left_with_a_view_alive_after_the_end_lets_its_buffer_go_with_the_view(world):
    tx, rx, alloc, _ = world.line()
    tx.move(alloc.alloc())
    with rx.receive_buffer(PATIENCE_S) as held:
        view = memoryview(held)
        rx.close()
        assert take(tx, EventKind.TEARDOWN_RECEIVED)
    assert alloc.detached == 1
    view.release()
    assert (held.state, alloc.detached) == (INVALID, 0)
