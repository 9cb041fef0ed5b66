"""An assignment that is withdrawn after its memory went out: what the other side sent meanwhile is refused and back."""

from __future__ import annotations

import pytest

import bulktransfer as bulk
import meeting
from bulktransfer import ChannelState, EventKind
from bulktransfer.states import Means
from worlds import OWNED_COPIED, READ_WRITE, take, until_the_end

scheme, world = meeting.scheme, meeting.world


class Late:
    """A pool of A's, of which B has a buffer, on its way onto a second channel that B sends over.

    A asked, B has accepted and mapped it, and A has not heard of that.
    """

    def __init__(self, world, first=lambda late: None):
        self.tx, self.rx, self.alloc, self.there = world.line()
        self.back, self.home = world.channel(self.rx.domain, self.tx.domain)
        first(self)
        self.tx.move(self.alloc.alloc())
        self.buffer = take(self.rx, EventKind.MOVE_RECEIVED).buffer
        self.buffer.put(b"on its way")
        self.request = self.home.assigning.assign(self.alloc.pool, Means.CHOSEN, None)
        self.back.serve()
        self.home.serve()
        self.back.serve()
        assert take(self.back, EventKind.POOL_ASSIGNED)
        assert not self.request.finished

    def settle(self):
        for _ in range(3):
            self.home.serve()
            self.back.serve()
        for channel in (self.home, self.back):
            assert channel.state is ChannelState.CONNECTED

    def clean(self):
        assert self.home.pools == self.back.pools == ()
        assert [a for a in (*self.home.table, *self.back.table) if a is not None] == []
        assert not self.home.assigning.withdrawn
        assert not self.back.assigning.incoming


@pytest.mark.parametrize("copied", [False, True])
def test_what_was_sent_before_a_withdrawal_was_heard_is_refused_and_rolled_back(world, copied):
    late = Late(world)
    (late.back.copy if copied else late.back.move)(late.buffer)
    late.home.assigning.withdraw(late.request)
    late.settle()
    assert take(late.back, EventKind.POOL_REMOVED).pool is late.there
    event = take(late.back, EventKind.OPERATION_REFUSED)
    assert event.buffer is late.buffer
    assert isinstance(event.error, bulk.PoolNotAssignedError)
    assert "off the channel" in str(event.error)
    assert late.buffer.state is READ_WRITE
    assert late.buffer.tobytes() == b"on its way"
    late.clean()
    late.rx.pass_(late.buffer)
    assert take(late.tx, EventKind.BUFFER_RECEIVED)


def test_a_retry_is_legal_while_the_withdrawal_is_under_way(world):
    late = Late(world)
    late.back.move(late.buffer)
    late.home.assigning.withdraw(late.request)
    outcomes = []
    late.home.assign_pool(late.alloc.pool, done=outcomes.append)
    late.settle()
    meeting.drain(late.home)
    assert [outcome.error for outcome in outcomes] == [None]
    assert take(late.back, EventKind.POOL_REMOVED)
    assert take(late.back, EventKind.OPERATION_REFUSED)
    assert take(late.back, EventKind.POOL_ASSIGNED).pool is late.there
    late.back.move(late.buffer)
    assert take(late.home, EventKind.MOVE_RECEIVED).buffer.tobytes() == b"on its way"


def test_the_pool_stays_with_the_sender_until_the_refusal_is_back(world):
    late = Late(world)
    late.back.move(late.buffer)
    late.rx.close()  # so that the withdrawn assignment alone keeps the pool here
    late.home.assigning.withdraw(late.request)
    late.back.serve()
    assert late.there.present
    late.settle()
    assert late.buffer.state is READ_WRITE
    assert late.there.present
    late.clean()


def test_a_removal_that_crosses_a_withdrawal_shares_its_outcome(world):
    late = Late(world)
    outcomes = []
    late.back.remove_pool(late.there, done=outcomes.append)
    late.home.assigning.withdraw(late.request)
    late.settle()
    late.clean()
    assert take(late.back, EventKind.POOL_REMOVED)
    with pytest.raises(bulk.WouldBlock):
        late.back.receive_nowait()
    assert [outcome.error for outcome in outcomes] == [None]


def test_nothing_is_sent_from_a_pool_that_was_withdrawn(world):
    late = Late(world)
    late.home.assigning.withdraw(late.request)
    late.back.serve()
    with pytest.raises(bulk.PoolNotAssignedError):
        late.back.move(late.buffer)
    late.settle()
    late.clean()


def test_the_end_of_the_channel_ends_a_withdrawal_too(world):
    late = Late(world)
    late.back.copy(late.buffer)
    late.home.assigning.withdraw(late.request)
    late.back.serve()
    late.home.close()
    kinds = [event.kind for event in until_the_end(late.back)]  # the refusal is told before the end, or by it
    assert [kinds[0], kinds[-1]] == [EventKind.POOL_REMOVED, EventKind.TEARDOWN_RECEIVED]
    assert late.buffer.state in (READ_WRITE, OWNED_COPIED)
    assert late.there[late.buffer.index] is late.buffer
    late.back.close()


def test_leases_that_come_with_an_acceptance_and_cannot_be_kept_take_it_back(world, monkeypatch):
    from bulktransfer.core import leases

    _, rx, alloc, there = world.line()
    other, far = world.channel(rx.domain, *world.domains(1))
    world.assign(other, far, there)  # so that the sink has a lease to give
    up, down = world.channel(far.domain, rx.domain)
    asked = up.assigning.assign(far.domain.pools[alloc.pool.id], Means.CHOSEN, None)
    down.serve()
    up.serve()
    down.serve()
    with monkeypatch.context() as patch:
        patch.setattr(leases, "LEASES_MAX", 1)  # it has one, and reads another itself
        patch.setattr(leases, "own", lambda pool: set())
        up.serve()
    assert isinstance(asked.error, bulk.LimitError)
    for _ in range(3):
        down.serve()
        up.serve()
    assert up.pools == down.pools == ()
    assert up.state is down.state is ChannelState.CONNECTED


def test_a_refusal_of_another_pool_behind_a_removal_does_not_hold_it_up(world):
    others = []

    def first(late):
        others.append(world.allocator(late.tx.domain))
        world.assign(late.home, late.back, others[0].pool)

    late = Late(world, first)
    late.back.move(late.buffer)
    late.home.assigning.withdraw(late.request)
    outcomes = []
    late.home.remove_pool(others[0].pool, done=outcomes.append)
    late.settle()
    meeting.drain(late.home)
    assert [outcome.error for outcome in outcomes] == [None]
    assert late.buffer.state is READ_WRITE


@pytest.mark.parametrize("act", ["copy", "move"])
def test_an_end_before_the_refusal_gives_the_sender_back_what_will_be_refused(world, act):
    late = Late(world)
    getattr(late.back, act)(late.buffer)
    late.home.assigning.withdraw(late.request)
    late.back.serve()  # it hears of the withdrawal, and the peer has not refused yet
    late.back.close()
    assert late.buffer.state is READ_WRITE
    assert late.buffer.tobytes() == b"on its way"
    late.rx.pass_(late.buffer)
    assert take(late.tx, EventKind.BUFFER_RECEIVED)
