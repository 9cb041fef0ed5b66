"""`done`: when it is called, in which order, with what, and by whom."""

from __future__ import annotations

import threading

import pytest

import bulktransfer as bulk
import meeting
from bulktransfer import EventKind
from meeting import Background, pump, receive_on
from worlds import READ_WRITE, nothing_comes, take

scheme, world = meeting.scheme, meeting.world


def test_done_fires_after_the_peer_took_the_entry_and_not_before(world):
    tx, rx, alloc, _ = world.line()
    outcomes = []
    buffer = alloc.alloc()
    tx.move(buffer, done=outcomes.append)
    assert nothing_comes(tx)
    assert outcomes == []
    assert take(rx, EventKind.MOVE_RECEIVED)
    assert outcomes == []  # it runs where its user receives
    assert nothing_comes(tx)
    (outcome,) = outcomes
    assert outcome.error is None
    assert (outcome.operation, outcome.buffer, outcome.channel) == ("move", buffer, tx)
    assert "done" in repr(outcome)


def test_each_operation_has_its_own_name_and_order(world):
    tx, rx, alloc, _ = world.line()
    seen = []

    def note(outcome):
        seen.append(outcome.operation)

    first, second = alloc.alloc(), alloc.alloc()
    tx.move(first, done=note)
    tx.copy(second, done=note)
    moved, copied = (event.buffer for event in rx.receive_many(2))
    rx.pass_(moved, done=note)
    rx.release(copied, done=note)
    assert [event.kind for event in tx.receive_many(2)] == [EventKind.BUFFER_RECEIVED, EventKind.COPY_RELEASED]
    assert seen == ["move", "copy"]
    assert nothing_comes(rx)
    assert seen == ["move", "copy", "pass", "release"]


def test_a_batch_has_one_continuation_once_all_was_taken(world):
    tx, rx, alloc, _ = world.line()
    outcomes = []
    buffers = [alloc.alloc() for _ in range(3)]
    tx.move_many(buffers, done=outcomes.append)
    for _ in range(2):
        assert rx.receive()
    assert nothing_comes(tx)
    assert outcomes == []
    assert rx.receive()
    assert nothing_comes(tx)
    assert len(outcomes) == 1
    assert outcomes[0].buffer == tuple(buffers)


def test_an_empty_batch_calls_nobody(world):
    tx, _, _, _ = world.line()
    outcomes = []
    tx.move_many([], done=outcomes.append)
    assert nothing_comes(tx)
    assert outcomes == []


def test_a_local_refusal_calls_nobody(world):
    tx, _, alloc, _ = world.line()
    outcomes = []
    buffer = alloc.alloc()
    with memoryview(buffer), pytest.raises(BufferError):
        tx.move(buffer, done=outcomes.append)
    assert nothing_comes(tx)
    assert outcomes == []
    with pytest.raises(TypeError):
        tx.move(buffer, done="call me")
    assert buffer.state is READ_WRITE


def test_a_blocked_receive_wakes_to_run_a_continuation_and_waits_on(world):
    tx, rx, alloc, _ = world.line()
    called = threading.Event()
    threads = []

    def done(_):
        threads.append(threading.get_ident())
        called.set()

    tx.move(alloc.alloc(), done=done)
    waiting = Background(tx.receive)
    theirs = take(rx, EventKind.MOVE_RECEIVED).buffer
    assert called.wait(20)
    assert threads == [waiting.thread.ident]
    assert waiting.running
    rx.pass_(theirs)
    assert waiting.result().kind is EventKind.BUFFER_RECEIVED


def test_a_continuation_may_send_and_ask_for_more(world):
    tx, rx, alloc, _ = world.line()
    buffers = [alloc.alloc() for _ in range(4)]
    sent = []

    def done(outcome):
        sent.append(outcome.buffer)
        if len(sent) < 4:
            tx.move(buffers[len(sent)], done=done)

    tx.move(buffers[0], done=done)
    events = pump(lambda: len(sent) == 4, tx, rx)
    assert [event.buffer.index for event in events[rx]] == [buffer.index for buffer in buffers]
    assert sent == buffers


def test_a_continuation_that_raises_leaves_receive_and_the_next_runs_later(world):
    tx, rx, alloc, _ = world.line()
    seen = []

    def bad(_):
        raise LookupError("mine")

    tx.move(alloc.alloc(), done=bad)
    tx.move(alloc.alloc(), done=seen.append)
    rx.receive_many(2)
    with pytest.raises(LookupError):
        tx.receive_nowait()
    assert nothing_comes(tx)
    assert len(seen) == 1


def test_waiting_in_a_continuation_would_block(world):
    tx, rx, alloc, _ = world.line()
    seen = []

    def done(_):
        for call in (tx.receive, lambda: tx.assign_pool(alloc.pool), tx.destroy, lambda: alloc.alloc(timeout=None)):
            try:
                call()
            except bulk.BulkError as error:
                seen.append(type(error))

    while alloc.available:
        tx.move(alloc.alloc(), done=done if alloc.available == 0 else None)
    rx.receive_many(4)
    assert nothing_comes(tx)
    assert set(seen) <= {bulk.WouldBlock, bulk.PoolExhaustedError}
    assert len(seen) == 4


def test_continuations_wait_for_what_waits_beyond_a_full_ring(world):
    a, b = world.domains(2)
    tx, rx = world.channel(a, b, limits=bulk.Limits(slot_count=2))
    alloc = world.allocator(a, count=9)
    world.assign(tx, rx, alloc.pool)
    seen = []
    for _ in range(9):
        tx.move(alloc.alloc(), done=lambda outcome: seen.append(outcome.buffer.index))
    assert nothing_comes(tx)
    assert seen == []
    events = pump(lambda: len(seen) == 9, tx, rx)
    assert seen == [event.buffer.index for event in events[rx]]


def test_a_refused_copy_reaches_its_continuation_and_is_rolled_back(world):
    a, b = world.domains(2)
    tx, rx = world.channel(a, b)
    back_tx, back_rx = world.channel(b, a)
    alloc = world.allocator(a)
    there = world.assign(tx, rx, alloc.pool)
    world.assign(back_tx, back_rx, there)
    buffer = alloc.alloc()
    tx.copy(buffer)
    held = take(rx, EventKind.COPY_RECEIVED).buffer
    outcomes = []
    back_tx.copy(held, done=outcomes.append)  # to a domain that owns it
    pump(lambda: outcomes, back_tx, back_rx)
    assert isinstance(outcomes[0].error, bulk.CopyRefusedError)
    assert outcomes[0].buffer is held
    rx.release(held)
    assert take(tx, EventKind.COPY_RELEASED).buffer is buffer
    assert buffer.state is READ_WRITE


def test_what_is_refused_while_its_channel_ends_is_not_called_taken(world):
    a, b = world.domains(2)
    tx, rx = world.channel(a, b)
    back_tx, back_rx = world.channel(b, a)
    alloc = world.allocator(a)
    there = world.assign(tx, rx, alloc.pool)
    world.assign(back_tx, back_rx, there)
    tx.copy(alloc.alloc())
    outcomes = []
    back_tx.copy(take(rx, EventKind.COPY_RECEIVED).buffer, done=outcomes.append)  # to a domain that owns it
    last_look = back_tx.drain_all

    def drain_all():
        last_look()
        take(back_rx, EventKind.TEARDOWN_RECEIVED)  # it has refused, just after that look

    back_tx.drain_all = drain_all
    back_tx.close()
    assert [type(outcome.error) for outcome in outcomes] == [bulk.ClosedChannelError]


def test_a_refusal_without_a_continuation_is_an_event(world):
    a, b = world.domains(2)
    tx, rx = world.channel(a, b)
    back_tx, back_rx = world.channel(b, a)
    alloc = world.allocator(a)
    there = world.assign(tx, rx, alloc.pool)
    world.assign(back_tx, back_rx, there)
    buffer = alloc.alloc()
    tx.copy(buffer)
    held = take(rx, EventKind.COPY_RECEIVED).buffer
    back_tx.copy(held)
    assert nothing_comes(back_rx)
    event = take(back_tx, EventKind.OPERATION_REFUSED)
    assert event.buffer is held
    assert isinstance(event.error, bulk.CopyRefusedError)


def test_the_peers_end_settles_every_continuation_in_order(world):
    tx, rx, alloc, _ = world.line()
    seen = []
    for _ in range(3):
        tx.move(alloc.alloc(), done=lambda outcome: seen.append(type(outcome.error)))
    assert rx.receive()
    rx.close()
    with pytest.raises(bulk.EndOfChannelError):
        receive_on(tx)
    # close takes what was published: the two others were taken by the peer's library
    assert seen[0] is type(None)
    assert len(seen) == 3
    assert set(seen) <= {type(None), bulk.EndOfChannelError}


def test_a_close_from_another_thread_runs_each_continuation_once(world):
    for _ in range(20):
        tx, rx = world.channel(*world.domains(2))
        alloc = world.allocator(tx.domain)
        world.assign(tx, rx, alloc.pool)
        seen = []
        for _ in range(4):
            tx.move(alloc.alloc(), done=seen.append)
        waiting = Background(tx.receive)
        rx.receive_many(2)
        tx.close()
        with pytest.raises(bulk.ClosedChannelError):
            waiting.result()
        assert len(seen) == len(set(map(id, seen))) == 4
