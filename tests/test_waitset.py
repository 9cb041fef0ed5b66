"""Wait sets and descriptors: many channels, one place to wait, and nothing that stays unseen."""

from __future__ import annotations

import gc

import pytest

import bulktransfer as bulk
import meeting
from bulktransfer import EventKind
from meeting import Background, bind, create, line, readable
from worlds import PATIENCE_S, take, together

scheme, world = meeting.scheme, meeting.world


@pytest.fixture
def ws():
    with bulk.WaitSet() as made:
        yield made


# -- the set -------------------------------------------------------------------------------------------------------


def test_dispatch_runs_callbacks_of_many_channels_and_counts_them(world, ws):
    seen = []
    callbacks = bulk.Callbacks(move_received=lambda event: seen.append(event.meta))
    lines = [line(world, callbacks) for _ in range(3)]
    for _, rx, _ in lines:
        ws.add(rx)
    assert ws.dispatch_nowait() == 0
    for i, (tx, _, alloc) in enumerate(lines):
        tx.move(alloc.alloc(), bytes([i]))
    assert ws.dispatch() >= 1
    while len(seen) < 3:
        ws.dispatch()
    assert sorted(seen) == [b"\0", b"\1", b"\2"]
    assert ws.dispatch_nowait() == 0
    assert not readable(ws)
    with pytest.raises(TimeoutError):
        ws.dispatch(0.001)


def test_more_events_than_a_fair_share_are_all_dispatched(world, ws):
    seen = []
    tx, rx, alloc = line(world, bulk.Callbacks(move_received=lambda e: seen.append(e.meta)), count=200)
    ws.add(rx)
    tx.move_many([alloc.alloc() for _ in range(200)], [bytes([i]) for i in range(200)])
    while len(seen) < 200:
        assert ws.dispatch() >= 1
    assert seen == [bytes([i]) for i in range(200)]


def test_a_busy_channel_does_not_keep_the_others_waiting(world, ws):
    order = []

    def note(event):
        order.append(event.meta)

    callbacks = bulk.Callbacks(move_received=note)
    busy, quiet = line(world, callbacks, count=300), line(world, callbacks)
    for _, rx, _ in (busy, quiet):
        ws.add(rx)
    busy[0].move_many([busy[2].alloc() for _ in range(300)], [b"busy"] * 300)
    quiet[0].move(quiet[2].alloc(), b"quiet")
    ws.dispatch()
    assert b"quiet" in order
    assert len(order) < 300


def test_a_callback_that_raises_leaves_dispatch_and_the_rest_is_dispatched_next(world, ws):
    seen = []

    def note(event):
        seen.append(event.meta)
        if event.meta == b"0":
            raise LookupError("first")

    tx, rx, alloc = line(world, bulk.Callbacks(move_received=note))
    ws.add(rx)
    tx.move_many([alloc.alloc() for _ in range(3)], [b"0", b"1", b"2"])
    with pytest.raises(LookupError):
        ws.dispatch()
    while len(seen) < 3:
        ws.dispatch()
    assert seen == [b"0", b"1", b"2"]


def test_events_without_a_callback_wait_for_receive_in_order_and_do_not_spin(world, ws):
    seen = []
    tx, rx, alloc = line(world, bulk.Callbacks(copy_received=lambda event: seen.append(event.meta)))
    ws.add(rx)
    tx.move(alloc.alloc(), b"1")
    tx.copy(alloc.alloc(), b"2")
    tx.move(alloc.alloc(), b"3")
    assert ws.dispatch() == 1
    assert seen == [b"2"]
    assert not readable(ws)
    with pytest.raises(TimeoutError):
        ws.dispatch(0.001)
    assert ws.wait() == [rx]
    assert [rx.receive_nowait().meta for _ in range(2)] == [b"1", b"3"]
    tx.copy(alloc.alloc(), b"4")
    assert ws.dispatch() == 1


def test_wait_names_the_channels_with_news_and_runs_nothing(world, ws):
    seen = []
    lines = [line(world, bulk.Callbacks(move_received=seen.append)) for _ in range(3)]
    for _, rx, _ in lines:
        ws.add(rx)
    with pytest.raises(TimeoutError):
        ws.wait(0)
    tx, rx, alloc = lines[1]
    tx.move(alloc.alloc())
    assert ws.wait() == [rx]
    assert seen == []
    assert ws.wait(0) == [rx]
    assert ws.dispatch() == 1


def test_a_wait_set_serves_binders_of_channels_that_are_not_bound_yet(world, ws):
    seen = []
    creator = create(world, callbacks=bulk.Callbacks(bind_received=lambda event: seen.append(event.kind)))
    ws.add(creator)
    binder = Background(lambda: bind(world, creator.address))
    while binder.running:
        try:
            ws.dispatch(0.01)
        except TimeoutError:
            continue
    assert binder.result()
    assert seen == [EventKind.BIND_RECEIVED]


def test_an_end_is_news_once_and_does_not_spin(world, ws):
    seen = []
    tx, rx, _ = line(world, bulk.Callbacks(teardown_received=lambda event: seen.append(event.kind)))
    ws.add(rx)
    tx.close()
    assert ws.dispatch() == 1
    assert seen == [EventKind.TEARDOWN_RECEIVED]
    assert not readable(ws)
    with pytest.raises(TimeoutError):
        ws.dispatch(0.001)
    assert ws.wait() == [rx]
    ws.remove(rx)
    with pytest.raises(TimeoutError):
        ws.wait(0)


def test_a_channel_closed_here_is_named_by_wait(world, ws):
    _, rx, _ = line(world)
    ws.add(rx)
    waiting = Background(lambda: ws.wait(PATIENCE_S))
    rx.close()
    assert waiting.result() == [rx]


def test_descriptors_that_are_used_again_are_not_mistaken_for_the_dead(world, ws):
    seen = []
    for i in range(6):
        tx, rx, alloc = line(world, bulk.Callbacks(move_received=lambda event: seen.append(event.meta)))
        ws.add(rx)
        tx.move(alloc.alloc(), bytes([i]))
        assert ws.dispatch() == 1
        (tx if i % 2 else rx).close()
        if i % 3 == 0:
            with pytest.raises(TimeoutError):
                ws.dispatch(0.001)
        rx.close()
    assert len(seen) == 6


def test_a_dropped_channel_leaves_the_set(world, ws):
    _, rx, _ = line(world)
    ws.add(rx)
    assert len(ws) == 1
    rx.close()
    world.made.remove(rx)
    del rx
    gc.collect()
    assert len(ws) == 0
    assert ws.dispatch_nowait() == 0
    tx, rx, alloc = line(world, bulk.Callbacks(move_received=lambda _: None))
    ws.add(rx)
    tx.move(alloc.alloc())
    assert ws.dispatch() == 1


def test_add_and_remove_refuse_what_makes_no_sense(world, ws):
    tx, rx, _ = line(world)
    with pytest.raises(TypeError):
        ws.add("channel")
    ws.add(rx)
    with pytest.raises(ValueError, match="already"):
        ws.add(rx)
    ws.remove(rx)
    with pytest.raises(ValueError, match="not in the wait set"):
        ws.remove(rx)
    rx.close()
    with pytest.raises(bulk.ClosedChannelError):
        ws.add(rx)
    ws.add(tx)
    assert len(ws) == 1


def test_a_removed_channel_is_dispatched_no_more(world, ws):
    seen = []
    tx, rx, alloc = line(world, bulk.Callbacks(move_received=seen.append))
    ws.add(rx)
    ws.remove(rx)
    tx.move(alloc.alloc())
    assert ws.dispatch_nowait() == 0
    assert seen == []
    ws.add(rx)  # readable from what is there already
    assert ws.dispatch() == 1


@pytest.mark.parametrize("act", ["remove", "close channel", "remove and close", "close set", "add"])
def test_a_callback_may_change_the_set(world, ws, act):
    fresh = line(world)

    def moved(event):
        if "remove" in act:
            ws.remove(event.channel)
        if "close" in act and "set" not in act:
            event.channel.close()
        if act == "close set":
            ws.close()
        if act == "add":
            ws.add(fresh[1])

    tx, rx, alloc = line(world, bulk.Callbacks(move_received=moved))
    ws.add(rx)
    tx.move(alloc.alloc())
    assert ws.dispatch() == 1
    if act == "close set":
        with pytest.raises(ValueError, match="closed"):
            ws.dispatch_nowait()
    else:
        assert ws.dispatch_nowait() == 0


def test_waiting_inside_a_callback_would_block(world, ws):
    seen = []

    def moved(_):
        for call in (ws.dispatch, ws.wait):
            with pytest.raises(bulk.WouldBlock):
                call()
        seen.append(ws.dispatch_nowait())

    tx, rx, alloc = line(world, bulk.Callbacks(move_received=moved))
    ws.add(rx)
    tx.move(alloc.alloc())
    assert ws.dispatch() == 1
    assert seen == [0]


def test_a_closed_set_leaves_its_channels_open(world):
    tx, rx, alloc = line(world)
    ws = bulk.WaitSet()
    ws.add(rx)
    ws.close()
    ws.close()
    for call in (ws.dispatch_nowait, ws.dispatch, ws.wait, ws.fileno, lambda: ws.add(rx)):
        with pytest.raises(ValueError, match="closed"):
            call()
    tx.move(alloc.alloc())
    assert take(rx, EventKind.MOVE_RECEIVED)


def test_sets_nest_in_select(world, ws):
    tx, rx, alloc = line(world, bulk.Callbacks(move_received=lambda _: None))
    ws.add(rx)
    ws.dispatch_nowait()
    assert not readable(ws)
    tx.move(alloc.alloc())
    assert readable(ws, PATIENCE_S)
    assert ws.dispatch_nowait() == 1
    assert not readable(ws)


def test_the_continuation_of_a_transfer_is_called_though_nothing_else_comes(world, ws):
    tx, rx, pool = line(world)
    outcomes = []
    ws.add(tx)
    with pytest.raises(TimeoutError):
        ws.wait(0)  # from here on only a bell wakes it
    tx.move(pool.alloc(), done=outcomes.append)
    with pytest.raises(TimeoutError):
        ws.wait(0.01)
    taking = Background(lambda: take(rx, EventKind.MOVE_RECEIVED))
    assert ws.wait(PATIENCE_S) == [tx]
    with pytest.raises(bulk.WouldBlock):
        tx.receive_nowait()
    assert [outcome.error for outcome in outcomes] == [None]
    taking.result()


def test_dispatch_keeps_the_deadline_of_a_request_with_done(world, ws):
    tx, rx, _ = line(world)
    alloc = world.allocator(tx.domain)
    ws.add(tx)
    outcomes = []
    tx.assign_pool(alloc.pool, timeout=0.005, done=outcomes.append)
    while not outcomes:
        try:
            ws.dispatch(0.05)
        except TimeoutError:
            continue
    assert isinstance(outcomes[0].error, TimeoutError)
    assert len(tx.pools) == len(rx.pools) == 1  # the one that was there


def test_two_sets_in_two_threads_lose_nothing(world):
    a, b = world.domains(2)
    rounds = 200
    counts = [0, 0]
    lines = []
    for i in range(2):

        def moved(event, i=i):
            counts[i] += 1
            event.channel.pass_(event.buffer)

        tx, rx = world.channel(a, b, binder={"callbacks": bulk.Callbacks(move_received=moved)})
        alloc = world.allocator(a, count=2)
        together(lambda rx=rx: take(rx, EventKind.POOL_ASSIGNED), lambda t=tx, al=alloc: t.assign_pool(al.pool))
        lines.append((tx, rx, alloc))

    def serve_one(i):
        with bulk.WaitSet() as mine:
            mine.add(lines[i][1])
            while counts[i] < rounds:
                mine.dispatch()

    def ask(i):
        tx, _, alloc = lines[i]
        for _ in range(rounds):
            tx.move(alloc.alloc())
            alloc.free(tx.receive().buffer)

    for task in [Background(lambda i=i, f=f: f(i)) for i in range(2) for f in (serve_one, ask)]:
        task.result()
    assert counts == [rounds, rounds]


# -- what a set keeps ------------------------------------------------------------------------------------------------


def test_a_set_keeps_its_channels_alive_until_they_end(world, ws):
    seen = []
    tx, rx, alloc = line(world, bulk.Callbacks(move_received=lambda event: seen.append(event.meta)))
    ws.add(rx)
    world.made.remove(rx)
    del rx
    gc.collect()
    assert len(ws) == 1
    tx.move(alloc.alloc(), b"kept")
    assert ws.dispatch() == 1
    assert seen == [b"kept"]
    tx.close()
    assert ws.dispatch_nowait() == 0
    gc.collect()
    assert ws.dispatch_nowait() == 0
    assert len(ws) == 0


def listening(world):
    spec = bulk.ChannelSpec(direction=bulk.Direction.RX, trust=bulk.Trust.FULL)
    listener = bulk.listen(f"{world.scheme}:", [spec, spec], domain=bulk.Domain())
    world.made.append(listener)
    return listener


def client(world, listener):
    """Connects in a thread of its own."""

    def connect():
        channels = bulk.connect(listener.address, domain=bulk.Domain())
        world.made.extend(channels)
        return channels

    return Background(connect)


def test_a_set_takes_listeners_and_calls_back_with_the_channels_of_each_client(world, ws):
    listener = listening(world)
    came = []
    ws.add(listener, accepted=came.append)
    assert len(ws) == 1
    assert ws.dispatch_nowait() == 0
    clients = [client(world, listener) for _ in range(3)]
    while len(came) < 3:
        assert ws.dispatch(PATIENCE_S) >= 1
    for one in clients:
        assert len(one.result()) == 2
    for channels in came:
        world.made.extend(channels)
        assert [channel.direction for channel in channels] == [bulk.Direction.RX] * 2
    with pytest.raises(TimeoutError):
        ws.dispatch(0.001)
    assert not readable(ws)


def test_wait_names_a_listener_with_a_client_and_dispatch_passes_it_over(world, ws):
    listener = listening(world)
    tx, rx, alloc = line(world, bulk.Callbacks(move_received=lambda _: None))
    ws.add(listener)
    ws.add(rx)
    one = client(world, listener)
    assert ws.wait(PATIENCE_S) == [listener]
    assert ws.wait() == [listener]
    with pytest.raises(TimeoutError):
        ws.dispatch(0.001)
    assert not readable(ws)
    tx.move(alloc.alloc())
    assert ws.dispatch(PATIENCE_S) == 1
    world.made.extend(listener.accept(0))
    one.result()
    two = client(world, listener)
    assert ws.wait(PATIENCE_S) == [listener]
    world.made.extend(listener.accept(0))
    two.result()


def test_a_listener_is_added_once_and_leaves_when_it_is_removed_or_closed(world, ws):
    listener, other = listening(world), listening(world)
    _, rx, _ = line(world)
    ws.add(listener)
    ws.add(other)
    with pytest.raises(ValueError, match="already"):
        ws.add(listener)
    with pytest.raises(TypeError, match="listeners"):
        ws.add(rx, accepted=print)
    with pytest.raises(TypeError, match="called"):
        ws.add(listening(world), accepted=1)
    ws.remove(listener)
    with pytest.raises(ValueError, match="not in"):
        ws.remove(listener)
    assert len(ws) == 1
    other.close()
    assert len(ws) == 0
    assert ws.dispatch_nowait() == 0
    with pytest.raises(bulk.ClosedChannelError):
        ws.add(other)
