"""Promises of fan-out and fan-in: many producers, many consumers (I-4.1, goals 3 and 4)."""

from __future__ import annotations

import contextlib

import pytest

import bulktransfer as bulk
import meeting
from bulktransfer import BufferState, EventKind
from joining import end_of, step_until
from meeting import Background
from worlds import PATIENCE_S, nothing_comes, take

scheme, world = meeting.scheme, meeting.world


class Star:
    """A hub with a source's end and several sinks' ends; `txs` and `rxs` are the far ends."""

    def __init__(self, world, sources, sinks, *, sink=None, count=4, **options):
        self.world = world
        self.hub = bulk.Domain()
        self.problems = []
        self.forwarder = bulk.Forwarder(report=self.problems.append)
        world.made.append(self.forwarder)
        ins = [world.channel(bulk.Domain(), self.hub, meta_size=8, **options) for _ in range(sources)]
        outs = [world.channel(self.hub, bulk.Domain(), meta_size=8, binder=sink or {}) for _ in range(sinks)]
        self.txs, self.inlets = [tx for tx, _ in ins], [inlet for _, inlet in ins]
        self.outlets, self.rxs = [outlet for outlet, _ in outs], [rx for _, rx in outs]
        self.allocs = [world.allocator(tx.domain, count=count) for tx in self.txs]

    def assign(self, number=0):
        """A source's pool at all sinks."""
        asking = Background(lambda: self.txs[number].assign_pool(self.allocs[number].pool))
        step_until(self.forwarder, lambda: not asking.running, *self.rxs)
        asking.result()
        for rx in self.rxs:
            take(rx, EventKind.POOL_ASSIGNED)

    def until_idle(self):
        """Dispatch until nothing is left to do."""
        with contextlib.suppress(TimeoutError):
            while True:
                self.forwarder.dispatch(0.02)

    def step(self, condition):
        step_until(self.forwarder, condition, *self.txs, *self.rxs)


def arrived(channel):
    """The event that has to be there now."""
    channel.serve()
    return channel.receive_nowait()


def waits(channel):
    channel.serve()
    return channel.queued_events


# -- one to all ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["move", "copy"])
def test_a_broadcast_reaches_every_sink_and_comes_home_when_all_have_released(world, call):
    star = Star(world, 1, 3)
    star.forwarder.broadcast(star.inlets[0], star.outlets)
    star.assign()
    frame = star.allocs[0].alloc()
    frame.put(b"to all")
    getattr(star.txs[0], call)(frame, b"m")
    star.step(lambda: all(waits(rx) for rx in star.rxs))
    got = [arrived(rx) for rx in star.rxs]
    assert [(e.kind, e.buffer.tobytes(), e.meta) for e in got] == [(EventKind.COPY_RECEIVED, b"to all", b"m")] * 3
    for event in got[:2]:
        event.channel.release(event.buffer)
    star.until_idle()
    assert nothing_comes(star.txs[0])
    got[2].channel.release(got[2].buffer)
    star.step(lambda: waits(star.txs[0]))
    home = arrived(star.txs[0])
    assert home.kind is (EventKind.BUFFER_RECEIVED if call == "move" else EventKind.COPY_RELEASED)
    assert (home.buffer, frame.state) == (frame, BufferState.READ_WRITE)
    assert star.problems == []


def test_a_sink_that_goes_is_left_out_and_what_it_held_comes_home(world):
    star = Star(world, 1, 2)
    junction = star.forwarder.broadcast(star.inlets[0], star.outlets)
    star.assign()
    star.txs[0].copy(frame := star.allocs[0].alloc())
    star.step(lambda: all(waits(rx) for rx in star.rxs))
    stays, goes = star.rxs
    held = arrived(goes)
    goes.abort("out of paper")
    stays.release(arrived(stays).buffer)
    star.step(lambda: len(junction.outlets) == 1)
    assert frame.state is BufferState.READ_ONLY_OWNED  # the one that went may still read it
    held.buffer.drop()
    star.step(lambda: waits(star.txs[0]))
    assert arrived(star.txs[0]).kind is EventKind.COPY_RELEASED
    star.txs[0].copy(frame)
    star.step(lambda: waits(stays))
    stays.release(arrived(stays).buffer)
    star.step(lambda: waits(star.txs[0]))
    stays.abort("me too")
    star.step(lambda: junction.over)
    assert isinstance(junction.error, bulk.BrokenChannelError)


def test_a_pool_is_at_all_sinks_or_at_none(world):
    star = Star(world, 1, 2)

    def veto(event):
        raise RuntimeError("too big for me")

    star.forwarder.broadcast(star.inlets[0], star.outlets)
    star.rxs[1].set_callbacks(bulk.Callbacks(pool_assigned=veto))
    asking = Background(lambda: star.txs[0].assign_pool(star.allocs[0].pool))
    star.step(lambda: not asking.running and not star.outlets[0].pools)
    with pytest.raises(bulk.PoolVetoError, match="too big for me"):
        asking.result()
    take(star.rxs[0], EventKind.POOL_ASSIGNED)
    take(star.rxs[0], EventKind.POOL_REMOVED)
    assert [c.pools for c in (*star.txs, *star.inlets, *star.outlets, *star.rxs)] == [()] * 6


def test_broadcast_returns_when_the_source_ends(world):
    star = Star(world, 1, 2)
    running = Background(lambda: bulk.broadcast(star.inlets[0], star.outlets))
    star.txs[0].close()
    for rx in star.rxs:
        assert type(end_of(rx)[0]) is bulk.EndOfChannelError
    running.result()


# -- one to each in turn -------------------------------------------------------------------------------------------


def test_a_scatter_takes_turns_and_waits_for_buffers_to_come_home(world):
    star = Star(world, 1, 2, count=6)
    star.forwarder.scatter(star.inlets[0], star.outlets, depth=2)
    star.assign()
    frames = star.allocs[0].alloc_many(6)
    star.txs[0].move_many(frames, [b"%d" % n for n in range(6)])
    star.step(lambda: all(waits(rx) == 2 for rx in star.rxs))
    star.until_idle()
    first, second = star.rxs
    got = [arrived(first) for _ in range(2)]
    assert [event.meta for event in got] == [b"0", b"2"]
    assert [arrived(second).meta for _ in range(2)] == [b"1", b"3"]
    assert nothing_comes(first)
    first.pass_many([event.buffer for event in got])  # only it has room again
    star.step(lambda: waits(first) == 2)
    assert [arrived(first).meta for _ in range(2)] == [b"4", b"5"]
    star.step(lambda: waits(star.txs[0]) == 2)
    assert [arrived(star.txs[0]).buffer for _ in range(2)] == [frames[0], frames[2]]


def test_what_waits_goes_to_those_who_are_left_and_is_delivered_before_the_end(world):
    star = Star(world, 1, 2, count=6)
    junction = star.forwarder.scatter(star.inlets[0], star.outlets, depth=1)
    star.assign()
    star.txs[0].move_many(star.allocs[0].alloc_many(4), [b"%d" % n for n in range(4)])
    star.txs[0].close()
    stays, goes = star.rxs
    star.step(lambda: waits(stays) and waits(goes))
    assert arrived(goes).meta == b"1"
    goes.abort("tired")
    numbers = []
    while not junction.over:
        star.step(lambda: waits(stays) or junction.over)
        if junction.over:
            break
        event = arrived(stays)
        if event.kind is EventKind.MOVE_RECEIVED:
            numbers.append(event.meta)
            with contextlib.suppress(bulk.EndOfChannelError):  # behind the last the source's end comes
                stays.pass_(event.buffer)
        else:
            assert event.kind is EventKind.TEARDOWN_RECEIVED
    assert numbers == [b"0", b"2", b"3"]
    assert type(end_of(stays)[0]) is bulk.EndOfChannelError


@pytest.mark.parametrize("depth", [0, True, 1.5])
def test_a_depth_is_a_number_of_buffers(world, depth):
    star = Star(world, 1, 1)
    with pytest.raises(ValueError, match="depth"):
        bulk.scatter(star.inlets[0], star.outlets, depth=depth)
    with pytest.raises(ValueError, match="a source and a sink at least"):
        bulk.broadcast(star.inlets[0], [])


# -- many to one ---------------------------------------------------------------------------------------------------


def test_what_many_sources_send_reaches_one_sink_and_each_gets_its_own_back(world):
    star = Star(world, 3, 1)
    star.forwarder.merge(star.inlets, star.outlets[0])
    for number in range(3):
        star.assign(number)
    frames = [alloc.alloc() for alloc in star.allocs]
    for number, (tx, frame) in enumerate(zip(star.txs, frames, strict=True)):
        tx.move(frame, b"%d" % number)
    rx = star.rxs[0]
    star.step(lambda: waits(rx) == 3)
    got = [arrived(rx) for _ in range(3)]
    assert sorted(event.meta for event in got) == [b"0", b"1", b"2"]
    rx.pass_many([event.buffer for event in got])
    star.step(lambda: all(waits(tx) for tx in star.txs))
    assert [arrived(tx).buffer for tx in star.txs] == frames
    star.txs[0].close()
    star.step(lambda: len(star.forwarder) == 1 and star.inlets[0].state is bulk.ChannelState.CLOSED)
    star.txs[1].move(frames[1], b"on")
    star.step(lambda: waits(rx))
    assert arrived(rx).meta == b"on"  # the others go on
    assert star.problems == []


def test_a_merge_iterates_over_what_arrives_until_all_have_ended(world):
    sink = bulk.Domain()
    ends = [world.channel(bulk.Domain(), sink, meta_size=8) for _ in range(3)]
    allocs = [world.allocator(tx.domain, count=20) for tx, _ in ends]
    for (tx, rx), alloc in zip(ends, allocs, strict=True):
        world.assign(tx, rx, alloc.pool)
        tx.move_many(alloc.alloc_many(20), [b"%d" % n for n in range(20)])
        tx.close()
    seen = {rx: [] for _, rx in ends}
    with bulk.merge([rx for _, rx in ends]) as merged:
        for event in merged:
            seen[event.channel].append(int(event.meta))
        with pytest.raises(bulk.EndOfChannelError):
            merged.receive(PATIENCE_S)
    assert [*seen.values()] == [list(range(20))] * 3


def test_a_source_that_broke_is_told_once_and_the_others_go_on(world):
    sink = bulk.Domain()
    (tx, rx), (bad, broken) = (world.channel(bulk.Domain(), sink) for _ in range(2))
    alloc = world.allocator(tx.domain)
    world.assign(tx, rx, alloc.pool)
    merged = bulk.merge([rx, broken])
    bad.abort("short circuit")
    with pytest.raises(bulk.BrokenChannelError, match="short circuit"):
        next(merged)
    tx.move(alloc.alloc())
    assert next(merged).channel is rx
    with pytest.raises(TimeoutError):
        merged.receive(0)
    tx.close()
    assert list(merged) == []
    with pytest.raises(TypeError):
        bulk.merge([rx, None])
    merged.close()


def test_fan_out_serves_while_another_channel_is_waited_on(world):
    """The forwarder's channels are in one domain with others: a wait there does not hold it up, nor the reverse."""
    star = Star(world, 1, 1)
    star.forwarder.broadcast(star.inlets[0], star.outlets)
    tx, rx = world.channel(bulk.Domain(), star.hub)
    waiting = Background(lambda: rx.receive(PATIENCE_S))
    running = Background(star.forwarder.run)
    asking = Background(lambda: star.txs[0].assign_pool(star.allocs[0].pool))
    take(star.rxs[0], EventKind.POOL_ASSIGNED)
    asking.result()
    tx.close()
    assert waiting.result().kind is EventKind.TEARDOWN_RECEIVED
    star.forwarder.close()
    running.result()
