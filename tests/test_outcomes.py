"""Promises of what a sender hears afterwards: continuations, refusals at the end, callbacks that raise."""

from __future__ import annotations

import contextlib
import math

import pytest

import bulktransfer as bulk
from bulktransfer import EventKind
from worlds import (
    PATIENCE_S,
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


# -- after the end -----------------------------------------------------------------------------------------------------


def test_a_closed_channel_sends_nothing_and_changes_nothing(world):
    tx, rx, alloc, theirs = world.line()
    buffer, lent = alloc.alloc_many(2)
    tx.copy(lent)
    rx.receive_buffer(PATIENCE_S)
    tx.close()
    for call in (tx.move, tx.copy):
        with unchanged(buffer), pytest.raises(bulk.ClosedChannelError):
            call(buffer)
        with unchanged(buffer), pytest.raises(bulk.ClosedChannelError):
            tx.move_many([buffer])
    until_the_end(rx)
    for call in (rx.release, rx.give_back, lambda b: rx.release_many([b])):
        with unchanged(theirs[lent.index]), pytest.raises(bulk.EndOfChannelError):
            call(theirs[lent.index])


def test_continuations_that_are_still_due_at_the_end_get_its_error(world):
    tx, rx, alloc, _ = world.line()
    outcomes = []
    tx.move(alloc.alloc(), done=outcomes.append)
    take(rx, EventKind.MOVE_RECEIVED)
    tx.move(alloc.alloc(), done=outcomes.append)
    tx.close()
    assert [type(o.error) for o in outcomes] == [type(None), bulk.ClosedChannelError]


# -- continuations and callbacks ---------------------------------------------------------------------------------------


def test_a_continuation_runs_when_the_peer_took_it_and_not_before(world):
    tx, rx, alloc, _ = world.line()
    outcomes = []
    buffer = alloc.alloc()
    tx.move(buffer, done=outcomes.append)
    assert nothing_comes(tx)
    assert not outcomes
    take(rx, EventKind.MOVE_RECEIVED)
    assert not outcomes  # never inside a call of the peer, nor inside the call that it answers
    assert nothing_comes(tx)
    assert [(o.error, o.operation, o.channel, o.buffer) for o in outcomes] == [(None, "move", tx, buffer)]


@pytest.mark.parametrize("done", [3, "text", object()], ids=["int", "str", "object"])
def test_a_continuation_that_cannot_be_called_is_refused(world, done):
    tx, _, alloc, _ = world.line()
    buffer = alloc.alloc()
    for call in (tx.move, tx.copy):
        with unchanged(buffer), pytest.raises(TypeError):
            call(buffer, done=done)


def test_events_taken_before_a_callback_raised_are_not_lost(world):
    def fail(event):
        raise KeyError("the callback's own")

    a, b = world.domains(2)
    tx, rx = world.channel(a, b, binder={"callbacks": bulk.Callbacks(copy_received=fail)})
    alloc = world.allocator(a)
    world.assign(tx, rx, alloc.pool)
    one, two, three = alloc.alloc_many(3)
    tx.move(one)
    tx.copy(two)
    tx.move(three)
    with pytest.raises(KeyError):
        rx.receive_many(10, PATIENCE_S)
    assert [e.buffer.index for e in rx.receive_many(10, PATIENCE_S)] == [one.index, three.index]


# -- how long ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [0, 0.0, -1, -math.inf, math.nan, 1e-12])
def test_a_timeout_that_is_over_at_once_polls_once(world, timeout):
    tx, rx, alloc, _ = world.line()
    for call in (rx.receive, rx.receive_buffer, lambda t: rx.receive_many(1, t)):
        with pytest.raises(TimeoutError):
            call(timeout)
        tx.move(alloc.alloc())
        call(timeout)


@pytest.mark.parametrize("timeout", [math.inf, 1e300, 1e10, None])
def test_a_timeout_beyond_all_years_waits_until_something_comes(world, timeout):
    tx, rx, alloc, _ = world.line()
    for call in (rx.receive, rx.receive_buffer):

        def send():
            while not rx.domain.waiters.waiting:
                pass
            tx.move(alloc.alloc())
            return True

        together(send, lambda call=call: call(timeout))
    more = world.allocator(tx.domain)
    outcomes = []
    tx.assign_pool(more.pool, timeout=timeout, done=outcomes.append)
    while not outcomes:
        for end in (rx, tx):
            with contextlib.suppress(bulk.WouldBlock):
                end.receive_nowait()
    assert outcomes[0].error is None


@pytest.mark.parametrize("timeout", ["1", b"1", [1], object()], ids=["str", "bytes", "list", "object"])
def test_a_timeout_that_is_no_number_is_refused_and_nothing_is_lost(world, timeout):
    tx, rx, _alloc, _ = world.line()
    more = world.allocator(tx.domain)
    for call in (tx.assign_pool, tx.remove_pool):
        for options in ({}, {"done": lambda outcome: None}):
            with pytest.raises(TypeError):
                call(more.pool, timeout=timeout, **options)
    with pytest.raises(TypeError):
        tx.destroy(timeout=timeout, done=lambda outcome: None)
    assert tx.state is bulk.ChannelState.CONNECTED
    world.assign(tx, rx, more.pool)
    tx.move(more.alloc())
    if timeout not in ("1", b"1"):  # float() takes them
        with pytest.raises(TypeError):
            rx.receive_buffer(timeout)
    assert rx.receive_buffer(PATIENCE_S).kind is EventKind.MOVE_RECEIVED
