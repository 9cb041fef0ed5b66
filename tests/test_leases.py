"""What the peer keeps when a channel ends: detached, and READ_WRITE again once it let go."""

from __future__ import annotations

import gc
import pickle

import pytest

import bulktransfer as bulk
import meeting
from bulktransfer import EventKind
from worlds import INVALID, PATIENCE_S, READ_WRITE, take

scheme, world = meeting.scheme, meeting.world


def test_what_the_peer_kept_is_detached_until_it_drops_it(world):
    tx, rx, alloc, there = world.line()
    moved, copied = alloc.alloc(), alloc.alloc()
    tx.move(moved)
    tx.copy(copied)
    kept = [rx.receive_buffer(PATIENCE_S).buffer for _ in range(2)]
    tx.close()
    with pytest.raises(bulk.ClosedChannelError) as caught:
        tx.receive(0)
    assert set(caught.value.buffers) == {moved, copied}
    assert alloc.detached == 2
    assert moved.state is INVALID
    event = take(rx, EventKind.TEARDOWN_RECEIVED)
    assert event.kind is EventKind.TEARDOWN_RECEIVED
    assert kept[0].state is READ_WRITE
    kept[0].put(b"still mine")
    assert kept[1].is_copy
    kept[0].drop()
    assert alloc.detached == 2  # the lease is of the pool, not of a buffer
    kept[1].drop()
    assert not there.present
    assert alloc.detached == 0
    assert moved.state is copied.state is READ_WRITE
    alloc.free_many([moved, copied])
    assert alloc.available == 4


def test_a_view_keeps_a_dropped_channels_buffer_from_being_dropped(world):
    tx, rx, alloc, _ = world.line()
    tx.move(alloc.alloc())
    kept = rx.receive_buffer(PATIENCE_S).buffer
    with memoryview(kept), pytest.raises(bulk.ChannelStateError):
        kept.drop()  # still connected
    tx.close()
    take(rx, EventKind.TEARDOWN_RECEIVED)
    with memoryview(kept), pytest.raises(BufferError):
        kept.drop()
    assert alloc.detached == 1
    kept.drop()
    assert alloc.detached == 0


def test_objects_that_are_forgotten_let_the_lease_go(world):
    tx, rx, alloc, there = world.line()
    tx.move(alloc.alloc())
    kept = rx.receive_buffer(PATIENCE_S).buffer
    rx.close()
    assert take(tx, EventKind.TEARDOWN_RECEIVED).buffers == (alloc.pool[0],)
    assert alloc.detached == 1
    world.made.remove(rx)
    del rx, kept, there
    gc.collect()
    assert alloc.detached == 0
    assert alloc.pool[0].state is READ_WRITE


def test_what_is_home_is_not_listed_and_not_detached(world):
    tx, rx, alloc, _ = world.line()
    tx.move(alloc.alloc())
    rx.pass_(rx.receive_buffer(PATIENCE_S).buffer)
    take(tx, EventKind.BUFFER_RECEIVED)
    rx.close()
    assert take(tx, EventKind.TEARDOWN_RECEIVED).buffers == ()
    assert alloc.detached == 0
    with pytest.raises(bulk.EndOfChannelError) as caught:
        tx.receive()
    assert caught.value.buffers == ()


def test_detached_memory_is_never_allocated_again(world):
    tx, rx, alloc, _ = world.line()
    tx.move_many([alloc.alloc() for _ in range(4)])
    kept = [rx.receive_buffer(PATIENCE_S).buffer for _ in range(4)]
    tx.close()
    with pytest.raises(bulk.PoolExhaustedError, match="4 detached"):
        alloc.alloc()
    take(rx, EventKind.TEARDOWN_RECEIVED)
    for buffer in kept:
        buffer.drop()
    assert alloc.detached == 0


def test_the_pool_is_free_for_another_channel_after_the_end(world):
    tx, rx, alloc, _ = world.line()
    tx.close()
    take(rx, EventKind.TEARDOWN_RECEIVED)
    tx2, rx2 = world.channel(tx.domain, rx.domain)
    world.assign(tx2, rx2, alloc.pool)
    tx2.move(alloc.alloc())
    assert take(rx2, EventKind.MOVE_RECEIVED)


def test_continuations_learn_of_the_end(world):
    tx, rx, alloc, _ = world.line()
    outcomes = []
    tx.move(alloc.alloc(), done=outcomes.append)
    assert take(rx, EventKind.MOVE_RECEIVED)
    tx.move(alloc.alloc(), done=outcomes.append)
    tx.close()
    assert [type(outcome.error) for outcome in outcomes] == [type(None), bulk.ClosedChannelError]


@pytest.mark.parametrize(
    "cls", [bulk.ClosedChannelError, bulk.EndOfChannelError, bulk.BrokenChannelError, bulk.ProtocolViolation]
)
def test_the_errors_of_an_end_survive_pickle(cls):
    error = cls("the end of it", reason="because", buffers=(1, 2))
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is cls
    assert str(again) == str(error)
    assert (again.reason, again.buffers) == ("because", ())
    assert getattr(again, "errno", None) == getattr(error, "errno", None)


def test_after_the_end_nothing_is_left_to_serve(world):
    tx, rx = world.channel(*world.domains(2))
    tx.close()
    list(rx)
    rx.domain.serve()
    assert rx.domain._sources.keys() <= {rx.domain._kick.fileno()} | {
        c.reception.rendezvous.fileno() for c in rx.domain.channels.values() if c.reception
    }
