"""Waiting: for how long, who is served meanwhile, who may wait, and that nothing is lost on the way."""

from __future__ import annotations

import signal
import threading

import pytest

import bulktransfer as bulk
import meeting
from bulktransfer import ChannelState, EventKind
from meeting import Background, Interrupter, bind, create, receive_on
from worlds import PATIENCE_S, nothing_comes, take

scheme, world = meeting.scheme, meeting.world
WAITS = ["auto", "spin", "block"]


def waiting_in(channel, call):
    """`call` in a thread of its own, which sleeps on the channel when this returns."""
    before = channel.statistics()["waits"]
    task = Background(call)
    while channel.statistics()["waits"] == before:
        assert task.running
    return task


# -- for how long --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize("timeout", [0, 0.0, 0.001, -1])
def test_a_receive_that_gets_nothing_in_time_times_out_and_loses_nothing(world, wait, timeout):
    a, b = world.domains(2)
    tx, rx = world.channel(a, b, binder={"wait": wait})
    for call in (rx.receive, rx.receive_buffer):
        with pytest.raises(TimeoutError, match="nothing came"):
            call(timeout)
    with pytest.raises(TimeoutError):
        rx.receive_many(3, timeout)
    alloc = world.allocator(a)
    world.assign(tx, rx, alloc.pool)
    tx.move(alloc.alloc())
    assert rx.receive(timeout).kind is EventKind.MOVE_RECEIVED


@pytest.mark.parametrize("wait", WAITS)
def test_a_waiting_receive_wakes_for_what_comes(world, wait):
    a, b = world.domains(2)
    tx, rx = world.channel(a, b, wait=wait, binder={"wait": wait})
    alloc = world.allocator(a)
    world.assign(tx, rx, alloc.pool)
    for _ in range(20):
        waiting = Background(rx.receive)
        buffer = alloc.alloc()
        tx.move(buffer)
        back = Background(tx.receive)
        rx.pass_(waiting.result().buffer)
        alloc.free(back.result().buffer)


def test_a_timeout_that_is_no_number_is_a_type_error_and_the_channel_is_free(world):
    _, rx = world.channel(*world.domains(2))
    with pytest.raises((TypeError, ValueError)):
        rx.receive("soon")
    assert nothing_comes(rx)


def test_receive_on_a_channel_that_nobody_bound_waits_for_the_binder(world):
    creator = create(world)
    with pytest.raises(bulk.WouldBlock):
        creator.receive_nowait()
    with pytest.raises(TimeoutError):
        creator.receive(0.001)
    binder = Background(lambda: bind(world, creator.address))
    assert creator.receive().kind is EventKind.BIND_RECEIVED
    assert binder.result().state is ChannelState.CONNECTED


# -- what receive gives --------------------------------------------------------------------------------------------


def test_receive_buffer_leaves_other_events_in_order(world):
    tx, rx, alloc, _ = world.line(meta_size=1)
    second, third = world.allocator(tx.domain), world.allocator(tx.domain)
    outcomes = []
    tx.assign_pool(second.pool, done=outcomes.append)
    tx.assign_pool(third.pool, done=outcomes.append)
    while len(outcomes) < 2:
        rx.serve()
        with pytest.raises(bulk.WouldBlock):
            tx.receive_nowait()
    tx.move(alloc.alloc(), b"1")
    tx.move(second.alloc(), b"2")
    assert rx.receive_buffer().meta == b"1"
    assert rx.receive_buffer(0).meta == b"2"
    assert take(rx, EventKind.POOL_ASSIGNED).pool.id == second.pool.id
    assert take(rx, EventKind.POOL_ASSIGNED).pool.id == third.pool.id
    assert nothing_comes(rx)


def test_receive_buffer_that_times_out_keeps_the_other_events(world):
    tx, rx = world.channel(*world.domains(2))
    alloc = world.allocator(tx.domain)
    asking = Background(lambda: tx.assign_pool(alloc.pool))
    while asking.running:
        rx.serve()
    for timeout in (0, 0.002):
        with pytest.raises(TimeoutError):
            rx.receive_buffer(timeout)
    asking.result()
    assert take(rx, EventKind.POOL_ASSIGNED)


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_receive_many_gives_at_least_one_and_at_most_the_limit(world, limit):
    a, b = world.domains(2)
    tx, rx = world.channel(a, b, meta_size=1)
    alloc = world.allocator(a, count=7)
    world.assign(tx, rx, alloc.pool)
    tx.move_many([alloc.alloc() for _ in range(7)], [bytes([i]) for i in range(7)])
    seen = []
    while len(seen) < 7:
        events = rx.receive_many(limit)
        assert 1 <= len(events) <= limit
        seen += [event.meta[0] for event in events]
    assert seen == list(range(7))
    with pytest.raises(ValueError, match="0 events"):
        rx.receive_many(0)


def test_receive_many_gives_what_came_before_the_end(world):
    tx, rx, alloc, _ = world.line()
    tx.move_many([alloc.alloc(), alloc.alloc()])
    tx.close()
    kinds = [event.kind for event in rx.receive_many(10)]
    assert kinds == [EventKind.MOVE_RECEIVED] * 2 + [EventKind.TEARDOWN_RECEIVED]
    with pytest.raises(bulk.EndOfChannelError):
        rx.receive_many(10)


def test_a_callback_that_raises_leaves_receive_and_consumes_its_event_only(world):
    def copied(event):
        raise LookupError(event.meta.decode())

    tx, rx = world.channel(*world.domains(2), meta_size=4, binder={"callbacks": bulk.Callbacks(copy_received=copied)})
    alloc = world.allocator(tx.domain)
    world.assign(tx, rx, alloc.pool)
    for call in (lambda: [rx.receive()], rx.receive_nowait, lambda: rx.receive_many(9), rx.receive_buffer):
        first, second, third = (alloc.alloc() for _ in range(3))
        tx.move(first, b"a")
        tx.copy(second, b"b")
        tx.move(third, b"c")
        seen = []
        while True:
            try:
                got = call()
            except LookupError as error:
                seen.append(str(error))
            else:
                seen += [event.meta.decode() for event in (got if isinstance(got, list) else [got])]
            if len(seen) == 3:
                break
        assert sorted(seen) == ["a", "b", "c"]
        theirs = rx.pools[0]
        rx.pass_many([theirs[first.index], theirs[third.index]])
        rx.release(theirs[second.index])
        tx.receive_many(3)
        alloc.free_many([first, second, third])


# -- who may wait --------------------------------------------------------------------------------------------------


def test_a_second_receiving_thread_is_refused_and_the_first_goes_on(world):
    tx, rx, alloc, _ = world.line()
    waiting = waiting_in(rx, rx.receive)
    for call in (rx.receive, rx.receive_nowait, rx.receive_buffer, lambda: rx.receive_many(1)):
        with pytest.raises(bulk.ChannelBusyError):
            call()
    tx.move(alloc.alloc())
    assert waiting.result().kind is EventKind.MOVE_RECEIVED
    assert nothing_comes(rx)


def test_a_callback_may_receive_on_its_own_channel_without_waiting(world):
    inner = []

    def copied(event):
        inner.append(event.channel.receive_nowait().meta)
        with pytest.raises(bulk.WouldBlock):
            event.channel.receive()

    tx, rx = world.channel(*world.domains(2), meta_size=1, binder={"callbacks": bulk.Callbacks(copy_received=copied)})
    alloc = world.allocator(tx.domain)
    world.assign(tx, rx, alloc.pool)
    tx.copy(alloc.alloc(), b"1")
    tx.move(alloc.alloc(), b"2")
    assert nothing_comes(rx)
    assert inner == [b"2"]


def test_a_thread_that_takes_over_during_a_callback_keeps_the_channel(world):
    entered, leave = threading.Event(), threading.Event()

    def copied(_):
        entered.set()
        leave.wait(PATIENCE_S)

    tx, rx = world.channel(*world.domains(2), binder={"callbacks": bulk.Callbacks(copy_received=copied)})
    alloc = world.allocator(tx.domain)
    world.assign(tx, rx, alloc.pool)
    tx.copy(alloc.alloc())
    first = Background(rx.receive)
    assert entered.wait(PATIENCE_S)
    second = waiting_in(rx, rx.receive)
    leave.set()
    with pytest.raises(bulk.ChannelBusyError, match="took over"):
        first.result()
    with pytest.raises(bulk.ChannelBusyError):
        rx.receive_nowait()
    tx.move(alloc.alloc())
    assert second.result().kind is EventKind.MOVE_RECEIVED
    assert nothing_comes(rx)


def test_one_thread_waits_for_an_answer_while_another_receives(world):
    tx, rx, alloc, _ = world.line()
    other = world.allocator(tx.domain)
    receiving = waiting_in(tx, tx.receive)
    asking = Background(lambda: tx.assign_pool(other.pool))
    assert take(rx, EventKind.POOL_ASSIGNED)
    asking.result()
    tx.move(alloc.alloc())
    rx.pass_(rx.receive_buffer().buffer)
    assert receiving.result().kind is EventKind.BUFFER_RECEIVED


def test_many_threads_ask_on_one_channel_at_once(world):
    tx, rx = world.channel(*world.domains(2))
    allocs = [world.allocator(tx.domain, count=1) for _ in range(12)]
    tasks = [Background(lambda p=one.pool: tx.assign_pool(p)) for one in allocs]
    for _ in allocs:
        assert rx.receive(PATIENCE_S).kind is EventKind.POOL_ASSIGNED
    for task in tasks:
        task.result()
    assert len(tx.pools) == 12
    assert nothing_comes(tx)
    assert tx.busy == 0


def test_threads_of_one_domain_each_wait_on_their_own_channel(world):
    a, b = world.domains(2)
    rounds = 150
    lines = [world.channel(a, b) for _ in range(4)]
    allocs = [world.allocator(a) for _ in lines]
    for (tx, rx), alloc in zip(lines, allocs, strict=True):
        world.assign(tx, rx, alloc.pool)

    def ask(tx, alloc):
        for _ in range(rounds):
            tx.move(alloc.alloc())
            alloc.free(tx.receive().buffer)

    def answer(rx):
        for _ in range(rounds):
            rx.pass_(rx.receive().buffer)

    tasks = [Background(lambda rx=rx: answer(rx)) for _, rx in lines]
    tasks += [Background(lambda t=tx, al=al: ask(t, al)) for (tx, _), al in zip(lines, allocs, strict=True)]
    for task in tasks:
        task.result()
    assert all(alloc.available == 4 for alloc in allocs)


# -- who is served meanwhile ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("wait", WAITS)
def test_a_wait_on_one_channel_serves_the_requests_of_the_others(world, wait):
    a, b = world.domains(2)
    _, quiet = world.channel(a, b, binder={"wait": wait})
    tx, rx = world.channel(a, b)
    alloc = world.allocator(a)
    waiting = Background(quiet.receive)
    tx.assign_pool(alloc.pool)  # nobody receives on rx
    tx.remove_pool(alloc.pool)
    tx.assign_pool(alloc.pool)
    tx.move(alloc.alloc())
    tx.destroy()
    quiet.close()
    with pytest.raises(bulk.ClosedChannelError):
        waiting.result()
    kinds = [event.kind for event in rx]
    assert kinds == [
        EventKind.POOL_ASSIGNED,
        EventKind.POOL_REMOVED,
        EventKind.POOL_ASSIGNED,
        EventKind.MOVE_RECEIVED,
        EventKind.TEARDOWN_RECEIVED,
    ]


def test_data_of_another_channel_is_queued_and_its_callbacks_wait_for_its_receiver(world):
    a, b = world.domains(2)
    seen = []
    _, quiet = world.channel(a, b)
    tx, rx = world.channel(a, b, binder={"callbacks": bulk.Callbacks(move_received=seen.append)})
    alloc = world.allocator(a)
    waiting = Background(quiet.receive)
    tx.assign_pool(alloc.pool)
    tx.move(alloc.alloc())
    quiet.close()
    with pytest.raises(bulk.ClosedChannelError):
        waiting.result()
    assert seen == []
    assert take(rx, EventKind.POOL_ASSIGNED)
    assert nothing_comes(rx)
    assert len(seen) == 1


def test_a_veto_callback_of_an_unattended_channel_runs_in_the_waiting_thread(world):
    a, b = world.domains(2)
    threads = []

    def judge(_):
        threads.append(threading.get_ident())
        raise RuntimeError("no")

    _, quiet = world.channel(a, b)
    tx, rx = world.channel(a, b, binder={"callbacks": bulk.Callbacks(pool_assigned=judge)})
    alloc = world.allocator(a)
    waiting = Background(quiet.receive)
    with pytest.raises(bulk.PoolVetoError):
        tx.assign_pool(alloc.pool)
    assert threads == [waiting.thread.ident]
    quiet.close()
    with pytest.raises(bulk.ClosedChannelError):
        waiting.result()
    assert rx.busy == 0


def test_a_long_veto_callback_does_not_keep_other_threads_from_their_channels(world):
    a, b = world.domains(2)
    entered, leave = threading.Event(), threading.Event()

    def judge(_):
        entered.set()
        leave.wait(PATIENCE_S)

    quiet_tx, quiet = world.channel(a, b)
    tx, rx = world.channel(a, b, binder={"callbacks": bulk.Callbacks(pool_assigned=judge)})
    slow, quick = world.allocator(a), world.allocator(a)
    waiting = Background(quiet.receive)
    asking = Background(lambda: tx.assign_pool(slow.pool))
    assert entered.wait(PATIENCE_S)
    here, there = world.channel(a, b)  # bound though the domain is being served
    world.assign(here, there, quick.pool)
    here.move(quick.alloc())
    assert take(there, EventKind.MOVE_RECEIVED)
    own = Background(rx.receive)  # waits until the callback is over
    leave.set()
    asking.result()
    tx.move(slow.alloc())
    assert own.result().kind is EventKind.MOVE_RECEIVED
    quiet_tx.close()
    assert waiting.result().kind is EventKind.TEARDOWN_RECEIVED


# -- interruptions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wait", WAITS)
def test_keyboard_interrupt_leaves_a_receive_and_loses_no_event(world, wait):
    a, b = world.domains(2)
    tx, rx = world.channel(a, b, binder={"wait": wait}, meta_size=2)
    alloc = world.allocator(a, count=1)
    world.assign(tx, rx, alloc.pool)
    for call in (rx.receive, rx.receive_buffer, lambda: rx.receive_many(2)):
        with Interrupter(), pytest.raises(KeyboardInterrupt):
            call()
        assert nothing_comes(rx)
    for i in range(20):
        tx.move(alloc.alloc(), bytes([i, i]))
        events = []
        with Interrupter(lambda events=events: events), pytest.raises(KeyboardInterrupt):
            receive_on(rx, None, events)
        assert [event.meta for event in events] == [bytes([i, i])]
        rx.pass_(events[0].buffer)
        alloc.free(tx.receive_buffer(PATIENCE_S).buffer)


def test_signals_with_handlers_that_return_do_not_end_a_wait(world):
    tx, rx, alloc, _ = world.line()
    hits = []
    before = signal.signal(signal.SIGUSR1, lambda *_: hits.append(1))
    try:

        def disturb():
            main = threading.main_thread().ident
            while len(hits) < 5:
                signal.pthread_kill(main, signal.SIGUSR1)
                threading.Event().wait(0.002)
            tx.move(alloc.alloc())

        disturbing = Background(disturb)
        assert rx.receive().kind is EventKind.MOVE_RECEIVED
        disturbing.result()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(hits) >= 5


@pytest.mark.parametrize("timeout", [0, 0.01, -1])
def test_a_wait_that_is_over_names_the_time_that_was_asked_for(world, timeout):
    tx, _, _, _ = world.line()
    for receive in (tx.receive, tx.receive_buffer):
        with pytest.raises(TimeoutError, match=rf"within {timeout} s$"):
            receive(timeout)
