"""Promises of forwarding: two channels joined behave like one."""

from __future__ import annotations

import select

import pytest

import bulktransfer as bulk
import meeting
from bulktransfer import BufferState, EventKind
from joining import Chain, end_of, serve_until, step_until
from meeting import Background
from worlds import PATIENCE_S, nothing_comes, take, together

scheme, world = meeting.scheme, meeting.world
INVALID, READ_WRITE = BufferState.INVALID, BufferState.READ_WRITE


def test_a_pool_travels_through_with_its_id_and_is_there_once_the_far_side_has_it(world):
    chain = Chain(world)
    with chain.run():
        pool = chain.assign()
        assert pool.id == chain.alloc.pool.id
        assert [p.id for p in chain.outlet.pools] == [p.id for p in chain.inlet.pools] == [pool.id]
    assert chain.problems == []


def test_moves_travel_through_with_contents_and_meta_and_come_home(world):
    chain = Chain(world, meta_size=64)
    with chain.run():
        pool = chain.assign()
        for number in range(3 * len(pool)):
            frame = chain.alloc.alloc()
            frame.put(b"frame %d" % number)
            chain.tx.move(frame, meta=b"%d" % number * 20)
            event = take(chain.rx, EventKind.MOVE_RECEIVED)
            assert (event.buffer.tobytes(), event.meta) == (b"frame %d" % number, b"%d" % number * 20)
            assert (event.buffer.pool, event.buffer.index) == (pool, frame.index)
            chain.rx.pass_(event.buffer, meta=b"thanks")
            home = take(chain.tx, EventKind.BUFFER_RECEIVED)
            assert (home.buffer, home.meta) == (frame, b"thanks")
            chain.alloc.free(home.buffer)
        assert chain.junction.forwarded == 3 * len(pool)
    assert chain.problems == []


def test_nothing_is_copied_where_memory_is_shared(world):
    chain = Chain(world)
    with chain.run():
        chain.assign()
        frame = chain.alloc.alloc()
        frame.put(b"as sent")
        chain.tx.move(frame)
        got = take(chain.rx, EventKind.MOVE_RECEIVED).buffer
        got.put(b"changed in place")
        chain.rx.pass_(got)
        take(chain.tx, EventKind.BUFFER_RECEIVED)
        frame.length = len(b"changed in place")
        assert frame.tobytes() == b"changed in place"


def test_a_batch_arrives_in_order(world):
    chain = Chain(world, meta_size=8)
    with chain.run():
        chain.assign()
        chain.tx.move_many(frames := chain.alloc.alloc_many(4), metas=[b"%d" % i for i in range(4)])
        got = [take(chain.rx, EventKind.MOVE_RECEIVED) for _ in range(4)]
        assert [(e.buffer.index, e.meta) for e in got] == [(f.index, b"%d" % i) for i, f in enumerate(frames)]
        chain.rx.pass_many([e.buffer for e in got])
        assert [take(chain.tx, EventKind.BUFFER_RECEIVED).buffer for _ in got] == frames


def test_a_copy_is_released_when_the_far_side_releases_it(world):
    chain = Chain(world, meta_size=4)
    with chain.run():
        pool = chain.assign()
        frame = chain.alloc.alloc()
        frame.put(b"to read")
        chain.tx.copy(frame, meta=b"m")
        event = take(chain.rx, EventKind.COPY_RECEIVED)
        assert (event.buffer.tobytes(), event.meta, event.buffer.state) == (b"to read", b"m", BufferState.READ_ONLY)
        assert frame.state is BufferState.READ_ONLY_OWNED
        chain.rx.release(event.buffer)
        assert take(chain.tx, EventKind.COPY_RELEASED).buffer is frame
        assert (frame.state, pool[frame.index].state) == (READ_WRITE, INVALID)
        assert chain.inlet.pools[0][frame.index].state is INVALID


def test_a_full_copy_travels_through(world):
    chain = Chain(world)
    with chain.run():
        chain.assign()
        original, into = chain.alloc.alloc_many(2)
        original.put(b"kept")
        chain.tx.full_copy(original, into)
        assert take(chain.rx, EventKind.MOVE_RECEIVED).buffer.tobytes() == b"kept"
        assert original.state is READ_WRITE


@pytest.mark.parametrize("kind", ["veto", "limit"])
def test_what_the_far_side_refuses_comes_back_with_reason_and_class(world, kind):
    def veto(event):
        raise RuntimeError("the far end has no room")

    options = (
        {"callbacks": bulk.Callbacks(pool_assigned=veto)} if kind == "veto" else {"limits": bulk.Limits(buffers=1)}
    )
    chain = Chain(world, sink=options)
    with chain.run():
        asking = Background(lambda: chain.tx.assign_pool(chain.alloc.pool))
        serve_until(chain.rx, lambda: not asking.running)
        kind, text = (bulk.PoolVetoError, "no room") if kind == "veto" else (bulk.LimitError, "1 to 1 are accepted")
        with pytest.raises(kind, match=text):
            asking.result()
        assert chain.tx.pools == chain.inlet.pools == chain.outlet.pools == chain.rx.pools == ()
        assert [problem.pool.id for problem in chain.problems] == [chain.alloc.pool.id]


def test_a_pool_may_come_from_the_far_side(world):
    chain = Chain(world)
    empties = world.allocator(chain.c)
    with chain.run():
        asking = Background(lambda: chain.rx.assign_pool(empties.pool))
        pool = take(chain.tx, EventKind.POOL_ASSIGNED).pool
        asking.result()
        assert pool.id == empties.pool.id
        chain.rx.pass_(empties.alloc())
        empty = take(chain.tx, EventKind.BUFFER_RECEIVED).buffer
        empty.put(b"filled")
        chain.tx.move(empty)
        assert take(chain.rx, EventKind.MOVE_RECEIVED).buffer.tobytes() == b"filled"
    assert chain.problems == []


def test_a_removal_travels_through(world):
    chain = Chain(world)
    with chain.run():
        chain.assign()
        removing = Background(lambda: chain.tx.remove_pool(chain.alloc.pool))
        take(chain.rx, EventKind.POOL_REMOVED)
        removing.result()
        assert chain.tx.pools == chain.inlet.pools == chain.outlet.pools == chain.rx.pools == ()
        chain.assign()  # it may come again


def test_a_removal_that_the_far_side_vetoes_is_refused(world):
    def veto(event):
        raise RuntimeError("I like it")

    chain = Chain(world, sink={"callbacks": bulk.Callbacks(pool_removed=veto)})
    with chain.run():
        chain.assign()
        removing = Background(lambda: chain.tx.remove_pool(chain.alloc.pool))
        serve_until(chain.rx, lambda: not removing.running)
        with pytest.raises(bulk.PoolVetoError, match="I like it"):
            removing.result()
        frame = chain.alloc.alloc()
        chain.tx.move(frame)  # it is still there
        take(chain.rx, EventKind.MOVE_RECEIVED)


def test_a_pool_with_a_buffer_under_way_stays(world):
    chain = Chain(world)
    with chain.run():
        chain.assign()
        chain.tx.move(chain.alloc.alloc())
        event = take(chain.rx, EventKind.MOVE_RECEIVED)
        with pytest.raises(bulk.PoolBusyError):
            chain.tx.remove_pool(chain.alloc.pool)
        chain.rx.pass_(event.buffer)


def test_a_copy_that_the_far_side_refuses_goes_home_and_is_reported(world):
    chain = Chain(world)
    tail, loop = world.channel(chain.m, chain.a)  # a ring: the owner would be sent a copy of what it owns
    forwarder = chain.forwarder
    forwarder.add(chain.inlet, tail)
    with pytest.raises(ValueError, match="joined already"):
        forwarder.add(chain.inlet, chain.outlet)
    running = Background(forwarder.run)
    asking = Background(lambda: chain.tx.assign_pool(chain.alloc.pool))
    take(loop, EventKind.POOL_ASSIGNED)
    asking.result()
    frame = chain.alloc.alloc()
    chain.tx.copy(frame)
    serve_until(loop, lambda: chain.problems)
    assert take(chain.tx, EventKind.COPY_RELEASED).buffer is frame
    assert frame.state is READ_WRITE
    (problem,) = chain.problems
    assert isinstance(problem.error, bulk.CopyRefusedError)
    assert (problem.channel, problem.buffer.index) == (tail, frame.index)
    chain.tx.move(frame)  # but a move around the ring is legal
    assert take(loop, EventKind.MOVE_RECEIVED).buffer is frame
    forwarder.close()
    running.result()


def test_an_end_in_order_travels_behind_all_that_was_sent(world):
    chain = Chain(world)
    with chain.run() as running:
        chain.assign()
        chain.tx.move_many(chain.alloc.alloc_many(3))
        chain.tx.destroy()
        end, events = end_of(chain.rx)
        assert type(end) is bulk.EndOfChannelError
        assert [e.kind for e in events] == [EventKind.MOVE_RECEIVED] * 3 + [EventKind.TEARDOWN_RECEIVED]
        running.result()
        assert chain.junction.over
        assert chain.junction.error is None
        for event in events[:3]:
            event.buffer.drop()
        while chain.alloc.detached:
            chain.a.serve()  # the lease of the whole chain
        assert chain.alloc.pool.states() == {"INVALID": 0, "READ_ONLY": 0, "READ_ONLY_OWNED": 0, "READ_WRITE": 4}


def test_an_end_of_the_far_side_in_order_travels_back_behind_what_came_home(world):
    chain = Chain(world)
    with chain.run() as running:
        chain.assign()
        chain.tx.move_many(frames := chain.alloc.alloc_many(3))
        chain.rx.pass_many([take(chain.rx, EventKind.MOVE_RECEIVED).buffer for _ in frames])
        chain.rx.destroy()
        end, events = end_of(chain.tx)
        assert type(end) is bulk.EndOfChannelError
        assert [e.buffer for e in events[:3]] == frames
        running.result()


@pytest.mark.parametrize("who", ["tx", "rx"])
def test_what_breaks_at_one_end_is_broken_at_the_other(world, who):
    chain = Chain(world)
    with chain.run() as running:
        chain.assign()
        getattr(chain, who).abort("the lens is cracked")
        end, _ = end_of(chain.rx if who == "tx" else chain.tx)
        assert type(end) is bulk.BrokenChannelError
        assert "the lens is cracked" in end.reason
        running.result()
        assert isinstance(chain.junction.error, bulk.BrokenChannelError)


def test_what_arrived_goes_on_before_the_break_does(world):
    chain = Chain(world)
    with chain.run():
        chain.assign()
        chain.tx.move(chain.alloc.alloc())
        chain.tx.abort("and then")
        end, events = end_of(chain.rx)
        assert type(end) is bulk.BrokenChannelError
        assert events[0].kind is EventKind.MOVE_RECEIVED


def test_a_forwarder_that_closes_breaks_what_it_joined(world):
    chain = Chain(world)
    with chain.run():
        chain.assign()
    for channel in (chain.tx, chain.rx):
        end, _ = end_of(channel)
        assert type(end) is bulk.BrokenChannelError
        assert "forwarder" in end.reason
    with pytest.raises(ValueError, match="closed"):
        chain.join()
    chain.forwarder.close()


def test_what_the_far_side_did_not_take_comes_home_before_the_end(world):
    chain = Chain(world)
    with chain.run() as running:
        chain.assign()
        chain.tx.move_many(frames := chain.alloc.alloc_many(4))
        kept = take(chain.rx, EventKind.MOVE_RECEIVED).buffer
        chain.rx.close()  # with three of them in its ring, which it lets go, and one that it keeps
        end, events = end_of(chain.tx)
        assert type(end) is bulk.EndOfChannelError
        running.result()
        home = {e.buffer for e in events if e.kind is EventKind.BUFFER_RECEIVED}
        assert home <= set(frames[1:])
        assert kept.index == frames[0].index
        assert set(end.buffers) == set(frames) - home  # detached: the far side may hold them as long as it likes
        for buffer in kept.pool:
            buffer.drop()
        while chain.alloc.detached:
            chain.a.serve()
        assert all(frame.state is READ_WRITE for frame in frames)


def test_one_thread_forwards_many_pairs_and_none_waits_for_another(world):
    first = Chain(world)
    chains = [first, *(Chain(world) for _ in range(5))]
    for chain in chains:
        first.forwarder.add(chain.inlet, chain.outlet)
    assert len(first.forwarder) == 6
    outcomes = []
    first.tx.assign_pool(first.alloc.pool, done=outcomes.append)  # nobody serves its far side: it stays open
    running = Background(first.forwarder.run)
    for chain in chains[1:]:
        chain.assign()
        chain.tx.move(chain.alloc.alloc())
    for chain in chains[1:]:
        take(chain.rx, EventKind.MOVE_RECEIVED)
    assert outcomes == []
    assert nothing_comes(first.tx)
    take(first.rx, EventKind.POOL_ASSIGNED)
    serve_until(first.tx, lambda: outcomes)
    assert outcomes[0].error is None
    first.forwarder.close()
    running.result()


def test_a_request_that_was_withdrawn_is_undone_behind(world):
    chain = Chain(world)
    chain.join()
    outcomes = []
    chain.tx.assign_pool(chain.alloc.pool, done=outcomes.append)
    step_until(chain.forwarder, lambda: chain.outlet.assigning.requests, chain.tx)
    chain.tx.assigning.withdraw(next(iter(chain.tx.assigning.requests.values())))  # as its timeout would
    step_until(chain.forwarder, lambda: not chain.inlet.assigning.incoming)
    step_until(chain.forwarder, lambda: chain.outlet.pools, chain.rx)  # the far side agrees, too late
    step_until(chain.forwarder, lambda: not chain.outlet.pools, chain.rx)
    assert chain.inlet.pools == chain.rx.pools == ()
    take(chain.rx, EventKind.POOL_ASSIGNED)
    take(chain.rx, EventKind.POOL_REMOVED)
    again = Background(lambda: chain.tx.assign_pool(chain.alloc.pool))
    step_until(chain.forwarder, lambda: not again.running, chain.rx)
    again.result()
    assert chain.rx.pools


def test_a_far_side_that_does_not_answer_is_a_refusal_with_its_reason(world):
    chain = Chain(world)
    forwarder = bulk.Forwarder(patience=0.05)
    world.made.append(forwarder)
    forwarder.add(chain.inlet, chain.outlet)
    asking = Background(lambda: chain.tx.assign_pool(chain.alloc.pool))
    step_until(forwarder, lambda: not asking.running)
    with pytest.raises(bulk.PoolVetoError, match=r"no answer within 0.05 s"):
        asking.result()
    assert forwarder.problem_count == len(forwarder.problems) == 1


def test_pools_that_were_there_before_are_brought_on_and_transfers_wait_for_them(world):
    chain = Chain(world, meta_size=4)
    world.assign(chain.tx, chain.inlet, chain.alloc.pool)
    chain.tx.move_many(chain.alloc.alloc_many(3), metas=[b"0", b"1", b"2"])
    chain.join()
    step_until(chain.forwarder, lambda: chain.outlet.assigning.requests)
    chain.forwarder.dispatch_nowait()
    assert chain.junction.forwarded == 0
    step_until(chain.forwarder, lambda: chain.junction.forwarded == 3, chain.rx)
    take(chain.rx, EventKind.POOL_ASSIGNED)
    assert [take(chain.rx, EventKind.MOVE_RECEIVED).meta for _ in range(3)] == [b"0", b"1", b"2"]


def test_what_came_of_a_pool_that_the_far_side_refuses_goes_home(world):
    def veto(event):
        raise RuntimeError("not here")

    chain = Chain(world, sink={"callbacks": bulk.Callbacks(pool_assigned=veto)})
    world.assign(chain.tx, chain.inlet, chain.alloc.pool)
    chain.tx.move_many(frames := chain.alloc.alloc_many(2))
    with chain.run():
        together(lambda: serve_until(chain.rx, lambda: chain.problems), lambda: None)
        assert [take(chain.tx, EventKind.BUFFER_RECEIVED).buffer for _ in frames] == frames
        take(chain.tx, EventKind.POOL_REMOVED)
        assert any(isinstance(p.error, bulk.PoolVetoError) for p in chain.problems)


def test_a_far_side_that_nobody_has_bound_yet_is_waited_for(world):
    a, m, c = world.domains(3)
    tx, inlet = world.channel(a, m)
    outlet = meeting.create(world, m)
    alloc = world.allocator(a)
    forwarder = bulk.Forwarder()
    world.made.append(forwarder)
    forwarder.add(outlet, inlet)  # in any order
    running = Background(forwarder.run)
    asking = Background(lambda: tx.assign_pool(alloc.pool))
    rx = meeting.bind(world, outlet.address, domain=c)
    take(rx, EventKind.POOL_ASSIGNED)
    asking.result()
    tx.close()
    assert type(end_of(rx)[0]) is bulk.EndOfChannelError
    running.result()


def test_forward_returns_at_an_end_in_order_and_raises_what_broke(world):
    chain = Chain(world)
    running = Background(lambda: bulk.forward(chain.inlet, chain.outlet))
    chain.tx.close()
    assert type(end_of(chain.rx)[0]) is bulk.EndOfChannelError
    running.result()
    chain = Chain(world)
    running = Background(lambda: bulk.forward(chain.outlet, chain.inlet))
    chain.rx.abort("gone")
    assert type(end_of(chain.tx)[0]) is bulk.BrokenChannelError
    with pytest.raises(bulk.BrokenChannelError, match="gone"):
        running.result()


def test_problems_are_logged_where_nobody_is_told(world, caplog):
    chain = Chain(world, sink={"limits": bulk.Limits(buffers=1)})
    running = Background(lambda: bulk.forward(chain.inlet, chain.outlet))
    asking = Background(lambda: chain.tx.assign_pool(chain.alloc.pool))
    serve_until(chain.rx, lambda: not asking.running)
    with pytest.raises(bulk.LimitError):
        asking.result()
    chain.tx.close()
    end_of(chain.rx)
    running.result()
    assert "LimitError" in caplog.text


def test_the_descriptor_is_readable_while_there_is_something_to_forward(world):
    chain = Chain(world)
    world.assign(chain.tx, chain.inlet, chain.alloc.pool)
    chain.join()
    asking = Background(lambda: take(chain.rx, EventKind.POOL_ASSIGNED))
    step_until(chain.forwarder, lambda: not asking.running)
    while chain.forwarder.dispatch_nowait():
        pass
    with pytest.raises(TimeoutError):
        chain.forwarder.dispatch(0)
    assert not select.select([chain.forwarder], [], [], 0)[0]
    chain.tx.move(chain.alloc.alloc())
    assert select.select([chain.forwarder], [], [], PATIENCE_S)[0]
    assert chain.forwarder.dispatch_nowait() == 1
    take(chain.rx, EventKind.MOVE_RECEIVED)


def test_a_wait_inside_a_callback_is_refused(world):
    chain = Chain(world)
    chain.join()
    tx, rx, alloc, _ = world.line()
    raised = []

    def moved(event):
        try:
            chain.forwarder.dispatch()
        except bulk.WouldBlock as error:
            raised.append(error)

    rx.set_callbacks(bulk.Callbacks(move_received=moved))
    tx.move(alloc.alloc())
    assert nothing_comes(rx)
    assert raised


def test_channels_that_do_not_fit_are_refused_and_left_alone(world):
    chain = Chain(world)
    add = chain.forwarder.add
    other, _ = world.channel(chain.m, chain.c, meta_size=8)
    with pytest.raises(bulk.MetaSizeError):
        add(chain.inlet, other)
    with pytest.raises(bulk.DirectionError):
        add(other, chain.outlet)
    with pytest.raises(ValueError, match="another domain"):
        add(chain.inlet, chain.tx)
    with pytest.raises(ValueError, match="with itself"):
        add(chain.inlet, chain.inlet)
    with pytest.raises(TypeError, match="joins channels"):
        add(chain.inlet, None)
    with pytest.raises(ValueError, match="nothing is joined"):
        chain.forwarder.dispatch()
    chain.outlet.set_callbacks(bulk.Callbacks(buffer_received=print))
    with pytest.raises(ValueError, match="callbacks of its own"):
        add(chain.inlet, chain.outlet)
    chain.outlet.set_callbacks(bulk.Callbacks())
    other, _ = world.channel(chain.m, chain.c)
    other.close()
    with pytest.raises(bulk.ClosedChannelError):
        add(chain.inlet, other)
    chain.join()  # nothing of all that is left
