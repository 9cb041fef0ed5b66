"""The end of a channel in order: destroy, close, and what still arrives."""

from __future__ import annotations

import contextlib
import errno
import gc
import threading

import pytest

import bulktransfer as bulk
import meeting
from bulktransfer import ChannelState, EventKind
from meeting import Background, Interrupter, serve
from worlds import PATIENCE_S, READ_WRITE, take, together

scheme, world = meeting.scheme, meeting.world


def ends(channel, error):
    """The channel raises this, again and again, from every call that it concerns."""
    for call in (
        lambda: channel.receive(0),
        channel.receive,
        channel.receive_nowait,
        lambda: channel.receive_many(4),
        channel.receive_buffer,
        channel.destroy,
        channel.receive,
    ):
        with pytest.raises(error) as caught:
            call()
        assert type(caught.value) is error
        assert caught.value.reason
    return caught.value


# -- close ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("closer", ["creator", "binder"])
def test_close_ends_both_sides_each_with_its_own_error_for_good(world, closer):
    a, b = world.domains(2)
    tx, rx = world.channel(a, b)
    mine, theirs = (tx, rx) if closer == "creator" else (rx, tx)
    mine.close()
    assert mine.state is ChannelState.CLOSED
    ends(mine, bulk.ClosedChannelError)
    assert take(theirs, EventKind.TEARDOWN_RECEIVED)
    assert theirs.state is ChannelState.CLOSED
    ends(theirs, bulk.EndOfChannelError)


def test_close_is_idempotent_and_never_raises(world):
    tx, rx = world.channel(*world.domains(2))
    for _ in range(3):
        tx.close()
    rx.close()
    rx.close()
    ends(rx, bulk.ClosedChannelError)


def test_close_from_many_threads_at_once_is_one_close(world):
    tx, rx = world.channel(*world.domains(2))
    start = threading.Barrier(6)

    def close():
        start.wait()
        tx.close()

    tasks = [Background(close) for _ in range(6)]
    for task in tasks:
        task.result()
    assert take(rx, EventKind.TEARDOWN_RECEIVED)
    ends(rx, bulk.EndOfChannelError)


def test_with_closes(world):
    tx, rx = world.channel(*world.domains(2))
    with tx as same:
        assert same is tx
    ends(tx, bulk.ClosedChannelError)
    assert rx.state is ChannelState.CONNECTED  # until it looks


def test_what_was_sent_before_close_still_arrives_in_order(world):
    tx, rx, alloc, _ = world.line(meta_size=8)
    for i in range(4):
        tx.move(alloc.alloc(), bytes([i]))
    tx.close()
    assert [rx.receive(PATIENCE_S).meta for _ in range(4)] == [bytes([i]) for i in range(4)]
    assert take(rx, EventKind.TEARDOWN_RECEIVED)
    ends(rx, bulk.EndOfChannelError)


def test_what_waits_beyond_a_full_ring_still_arrives_after_close(world):
    a, b = world.domains(2)
    tx, rx = world.channel(a, b, limits=bulk.Limits(slot_count=4), meta_size=2000)
    alloc = world.allocator(a, count=100)
    world.assign(tx, rx, alloc.pool)
    for i in range(100):
        tx.move(alloc.alloc(), i.to_bytes(2, "big") * (1000 if i % 2 else 1))
    tx.close()
    del tx
    for i in range(100):
        assert rx.receive(PATIENCE_S).meta[:2] == i.to_bytes(2, "big")
    assert take(rx, EventKind.TEARDOWN_RECEIVED)
    ends(rx, bulk.EndOfChannelError)


def test_what_had_arrived_is_received_after_ones_own_close(world):
    tx, rx, alloc, _ = world.line()
    tx.move(alloc.alloc())
    tx.copy(alloc.alloc())
    rx.close()
    assert take(rx, EventKind.MOVE_RECEIVED).buffer.owned
    assert take(rx, EventKind.COPY_RECEIVED).buffer.is_copy
    ends(rx, bulk.ClosedChannelError)


def test_sending_after_the_end_raises_it_and_changes_nothing(world):
    tx, rx, alloc, _ = world.line()
    buffer = alloc.alloc()
    tx.close()
    for act in (tx.move, tx.copy):
        with pytest.raises(bulk.ClosedChannelError):
            act(buffer)
    with pytest.raises(bulk.ClosedChannelError):
        tx.move_many([buffer])
    with pytest.raises(bulk.ClosedChannelError):
        tx.assign_pool(alloc.pool)
    assert buffer.state is READ_WRITE
    alloc.free(buffer)
    assert rx.receive(PATIENCE_S)


def test_iteration_ends_at_the_peers_end(world):
    tx, rx, alloc, _ = world.line()
    for _ in range(3):
        tx.move(alloc.alloc())
    tx.close()
    assert [event.kind for event in rx] == [EventKind.MOVE_RECEIVED] * 3 + [EventKind.TEARDOWN_RECEIVED]
    assert list(rx) == []


def test_iteration_raises_ones_own_close(world):
    tx, _ = world.channel(*world.domains(2))
    tx.close()
    with pytest.raises(bulk.ClosedChannelError):
        next(iter(tx))


@pytest.mark.parametrize("wait", ["auto", "spin", "block"])
@pytest.mark.parametrize("call", ["receive", "receive_many", "receive_buffer", "iteration"])
def test_close_from_another_thread_wakes_a_blocked_receive(world, wait, call):
    tx, rx = world.channel(*world.domains(2), wait=wait)
    calls = {
        "receive": tx.receive,
        "receive_many": lambda: tx.receive_many(3),
        "receive_buffer": tx.receive_buffer,
        "iteration": lambda: next(tx),
    }
    waiting = Background(calls[call])
    while not tx.statistics()["waits"] and wait != "spin":
        assert waiting.running
    tx.close()
    with pytest.raises(bulk.ClosedChannelError):
        waiting.result()
    assert take(rx, EventKind.TEARDOWN_RECEIVED)


def test_close_from_another_thread_ends_a_waiting_assignment(world):
    tx, rx = world.channel(*world.domains(2))
    alloc = world.allocator(tx.domain)
    waiting = Background(lambda: tx.assign_pool(alloc.pool, timeout=None))
    while not tx.assigning.requests:
        assert waiting.running
    tx.close()
    with pytest.raises(bulk.ClosedChannelError):
        waiting.result()
    assert alloc.pool.channels == set()
    assert rx.pools == ()


def test_close_in_a_callback_ends_the_receive_that_ran_it(world):
    tx, rx = world.channel(
        *world.domains(2), binder={"callbacks": bulk.Callbacks(move_received=lambda event: event.channel.close())}
    )
    alloc = world.allocator(tx.domain)
    world.assign(tx, rx, alloc.pool)
    tx.move(alloc.alloc())
    with pytest.raises(bulk.ClosedChannelError):
        rx.receive()
    assert take(tx, EventKind.TEARDOWN_RECEIVED)


def test_close_in_a_continuation_is_safe(world):
    tx, rx, alloc, _ = world.line()
    seen = []

    def done(outcome):
        seen.append(outcome)
        tx.close()

    tx.move(alloc.alloc(), done=done)
    tx.move(alloc.alloc(), done=seen.append)
    rx.receive_many(2)
    with pytest.raises(bulk.ClosedChannelError):
        tx.receive()
    assert [outcome.error for outcome in seen] == [None, None]


# -- destroy -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["source", "sink"])
def test_destroy_is_agreed_and_delivers_what_was_sent(world, by):
    tx, rx, alloc, _ = world.line()
    buffers = [alloc.alloc() for _ in range(3)]
    tx.move_many(buffers)
    mine, theirs = (tx, rx) if by == "source" else (rx, tx)
    serving = Background(lambda: [event.kind for event in theirs])
    mine.destroy()
    assert mine.state is ChannelState.CLOSED
    moves = [EventKind.MOVE_RECEIVED] * 3
    if by == "source":
        assert serving.result() == [*moves, EventKind.TEARDOWN_RECEIVED]
    else:
        assert serving.result() == [EventKind.TEARDOWN_RECEIVED]
        assert [rx.receive(0).kind for _ in range(3)] == moves
    ends(mine, bulk.ClosedChannelError)
    ends(theirs, bulk.EndOfChannelError)


def test_crossing_destroys_answer_each_other(world):
    tx, rx = world.channel(*world.domains(2))
    together(tx.destroy, rx.destroy)
    assert tx.state is rx.state is ChannelState.CLOSED
    for end in (tx, rx):
        with pytest.raises((bulk.ClosedChannelError, bulk.EndOfChannelError)):
            end.receive(0)


def test_crossing_destroys_with_done_both_succeed(world):
    tx, rx = world.channel(*world.domains(2))
    outcomes = []
    tx.destroy(done=outcomes.append)
    rx.destroy(done=outcomes.append)
    for end in (tx, rx, tx, rx):
        with contextlib.suppress(bulk.EndOfChannelError, bulk.ClosedChannelError):
            meeting.drain(end)
    assert [outcome.error for outcome in outcomes] == [None, None]
    ends(tx, bulk.ClosedChannelError)
    ends(rx, bulk.ClosedChannelError)


def test_nothing_is_sent_while_a_destroy_is_under_way(world):
    tx, rx, alloc, _ = world.line()
    buffer = alloc.alloc()
    outcomes = []
    tx.destroy(done=outcomes.append)
    assert tx.state is ChannelState.TEARDOWN
    with pytest.raises(bulk.ChannelStateError):
        tx.move(buffer)
    with pytest.raises(bulk.ChannelStateError):
        tx.destroy()
    assert buffer.state is READ_WRITE
    assert take(rx, EventKind.TEARDOWN_RECEIVED)
    with pytest.raises(bulk.ClosedChannelError):
        tx.receive()
    assert [outcome.error for outcome in outcomes] == [None]
    assert outcomes[0].operation == "destroy"


def test_what_the_peer_sends_while_a_destroy_is_under_way_is_delivered(world):
    tx, rx, alloc, _ = world.line()
    tx.move(alloc.alloc())
    theirs = rx.receive_buffer(PATIENCE_S).buffer
    outcomes = []
    tx.destroy(done=outcomes.append)
    rx.pass_(theirs)
    assert take(rx, EventKind.TEARDOWN_RECEIVED)
    assert take(tx, EventKind.BUFFER_RECEIVED).buffer.state is READ_WRITE
    ends(tx, bulk.ClosedChannelError)
    assert outcomes[0].error is None


@pytest.mark.parametrize("timeout", [0, 0.005])
def test_a_peer_that_does_not_answer_a_destroy_counts_as_dead(world, timeout):
    tx, rx = world.channel(*world.domains(2))
    with pytest.raises(bulk.BrokenChannelError, match="did not answer"):
        tx.destroy(timeout=timeout)
    ends(tx, bulk.BrokenChannelError)
    assert take(rx, EventKind.TEARDOWN_RECEIVED)


def test_the_deadline_of_a_destroy_with_done_is_kept(world):
    tx, _ = world.channel(*world.domains(2))
    outcomes = []
    tx.destroy(timeout=0.005, done=outcomes.append)
    serve(tx, lambda: tx.ended is not None)
    with pytest.raises(bulk.BrokenChannelError):
        tx.receive()
    assert isinstance(outcomes[0].error, bulk.BrokenChannelError)


def test_an_interrupted_destroy_goes_its_way_and_keeps_its_deadline(world):
    tx, rx, _, _ = world.line()
    with Interrupter(lambda: tx.farewell is not None), pytest.raises(KeyboardInterrupt):
        tx.destroy(timeout=0.2)
    assert tx.state is ChannelState.TEARDOWN
    with pytest.raises(bulk.BrokenChannelError, match="did not answer"):
        tx.receive()
    take(rx, EventKind.TEARDOWN_RECEIVED)


def test_a_destroy_that_cannot_be_said_has_not_been_tried(world):
    tx, rx, alloc, _ = world.line()
    say = tx.say

    def full(*_):
        del tx.say
        raise OSError(errno.ENOBUFS, "no room")

    tx.say = full
    with pytest.raises(OSError, match="no room"):
        tx.destroy()
    assert tx.state is ChannelState.CONNECTED
    assert tx.say == say
    buffer = alloc.alloc()
    tx.move(buffer)
    assert take(rx, EventKind.MOVE_RECEIVED)
    serving = Background(lambda: [event.kind for event in rx])
    tx.destroy()
    assert serving.result() == [EventKind.TEARDOWN_RECEIVED]


def test_destroy_in_a_callback_takes_done(world):
    outcomes, seen = [], []

    def moved(event):
        try:
            event.channel.destroy()
        except bulk.WouldBlock as error:
            seen.append(error)
        event.channel.destroy(done=outcomes.append)

    tx, rx = world.channel(*world.domains(2), binder={"callbacks": bulk.Callbacks(move_received=moved)})
    alloc = world.allocator(tx.domain)
    world.assign(tx, rx, alloc.pool)
    tx.move(alloc.alloc())
    serving = Background(lambda: list(tx))
    with pytest.raises(bulk.ClosedChannelError):
        rx.receive()
    serving.result()
    assert len(seen) == 1
    assert [outcome.error for outcome in outcomes] == [None]


def test_a_teardown_callback_has_the_event_alone(world):
    seen = []
    tx, rx = world.channel(*world.domains(2), binder={"callbacks": bulk.Callbacks(teardown_received=seen.append)})
    tx.close()
    with pytest.raises(bulk.EndOfChannelError):
        rx.receive()
    assert [event.kind for event in seen] == [EventKind.TEARDOWN_RECEIVED]


def test_many_channels_closed_and_destroyed_leave_no_descriptors(world):
    a, b = world.domains(2)
    world.channel(a, b)[0].close()
    gc.collect()
    before = meeting.descriptors()
    for _ in range(10):
        tx, rx = world.channel(a, b)
        together(tx.destroy, lambda rx=rx: list(rx))
        tx, rx = world.channel(a, b)
        tx.close()
        list(rx)
    world.made.clear()
    del tx, rx
    gc.collect()
    assert meeting.descriptors() <= before
