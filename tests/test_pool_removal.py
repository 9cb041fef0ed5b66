"""Pools leave channels: only when every buffer has come home, and with the peer's consent."""

from __future__ import annotations

import gc

import pytest

import bulktransfer as bulk
import meeting
from bulktransfer import EventKind, Role, Trust
from meeting import Background, pump
from worlds import INVALID, PATIENCE_S, nothing_comes, take, together

scheme, world = meeting.scheme, meeting.world


def remove(asker, other, pool):
    """Take a pool off; the event at the other end."""
    event, _ = together(lambda: other.receive(PATIENCE_S), lambda: asker.remove_pool(pool))
    assert event.kind is EventKind.POOL_REMOVED
    return event


def refused(asker, other, pool):
    """The error of a removal that the other side answers."""
    outcomes = []
    asker.remove_pool(pool, done=outcomes.append)
    events = pump(lambda: outcomes, asker, other)
    return outcomes[0].error, events


@pytest.mark.parametrize("by", ["source", "sink"])
def test_either_end_removes_and_the_pool_leaves_the_domain_that_did_not_allocate_it(world, by):
    tx, rx, alloc, there = world.line()
    asker, other, pool = (tx, rx, alloc.pool) if by == "source" else (rx, tx, there)
    remove(asker, other, pool)
    assert tx.pools == rx.pools == ()
    assert len(rx.domain.pools) == 0
    assert alloc.pool.id in tx.domain.pools
    assert not there.present
    assert there[0].state is INVALID
    with pytest.raises(bulk.PoolNotAssignedError, match="left this domain"):
        rx.assign_pool(there)
    with pytest.raises(bulk.PoolNotAssignedError):
        tx.move(alloc.alloc())


def test_a_removed_pool_is_free_for_another_trust_and_may_come_again(world):
    tx, rx, alloc, _ = world.line()
    remove(tx, rx, alloc.pool)
    assert alloc.pool.trust is Trust.UNINITIALIZED
    assert alloc.pool.channels == set()
    again = world.assign(tx, rx, alloc.pool)
    tx.move(alloc.alloc())
    assert take(rx, EventKind.MOVE_RECEIVED).buffer.pool is again


def test_a_pool_stays_in_the_domain_while_another_channel_has_it(world):
    tx, rx, alloc, there = world.line()
    tx2, rx2 = world.channel(tx.domain, rx.domain)
    assert world.assign(tx2, rx2, alloc.pool) is there
    remove(tx, rx, alloc.pool)
    assert there.present
    tx2.move(alloc.alloc())
    assert take(rx2, EventKind.MOVE_RECEIVED).buffer.pool is there


def test_a_pool_that_is_not_there_cannot_be_removed(world):
    tx, rx, alloc, there = world.line()
    remove(tx, rx, alloc.pool)
    for channel, pool in ((tx, alloc.pool), (rx, there)):
        with pytest.raises(bulk.PoolNotAssignedError):
            channel.remove_pool(pool)


def test_removal_with_done_tells_the_outcome(world):
    tx, rx, alloc, _ = world.line()
    error, events = refused(tx, rx, alloc.pool)
    assert error is None
    assert [event.kind for event in events[rx]] == [EventKind.POOL_REMOVED]


# -- busy ----------------------------------------------------------------------------------------------------------


def test_in_flight_is_busy_for_the_sender(world):
    tx, _, alloc, _ = world.line()
    tx.move(alloc.alloc())
    with pytest.raises(bulk.PoolBusyError):
        tx.remove_pool(alloc.pool)
    assert tx.pools == (alloc.pool,)


@pytest.mark.parametrize("by", ["source", "sink"])
@pytest.mark.parametrize("how", ["move", "copy"])
def test_what_the_receiver_owns_or_holds_keeps_the_pool_until_it_came_home(world, how, by):
    tx, rx, alloc, there = world.line()
    buffer = alloc.alloc()
    getattr(tx, how)(buffer)
    theirs = rx.receive_buffer(PATIENCE_S).buffer
    asker, pool = (tx, alloc.pool) if by == "source" else (rx, there)
    with pytest.raises(bulk.PoolBusyError):
        asker.remove_pool(pool)
    (rx.pass_ if how == "move" else rx.release)(theirs)
    assert tx.receive_buffer(PATIENCE_S).buffer is buffer
    other = rx if asker is tx else tx
    remove(asker, other, pool)


def test_a_buffer_on_its_way_back_is_busy_by_the_peers_account(world):
    tx, rx, alloc, there = world.line()
    tx.move(alloc.alloc())
    rx.pass_(rx.receive_buffer(PATIENCE_S).buffer)
    with pytest.raises(bulk.PoolBusyError):  # its own account: the pass was not taken yet
        rx.remove_pool(there)
    assert there in rx.pools


def test_a_buffer_that_came_home_another_way_is_home(world):
    tx, rx, alloc, there = world.line()
    back_tx, back_rx = world.channel(rx.domain, tx.domain)
    world.assign(back_rx, back_tx, alloc.pool)
    buffer = alloc.alloc()
    tx.move(buffer)
    back_tx.move(rx.receive_buffer(PATIENCE_S).buffer)
    assert back_rx.receive_buffer(PATIENCE_S).buffer is buffer
    remove(tx, rx, alloc.pool)
    assert there.present  # the way back has it still
    with pytest.raises(bulk.WouldBlock):
        back_tx.receive_nowait()
    remove(back_rx, back_tx, alloc.pool)
    assert not there.present


def test_after_a_refused_removal_the_pool_works_on(world):
    tx, rx, alloc, _ = world.line()
    buffer = alloc.alloc()
    tx.move(buffer)
    theirs = rx.receive_buffer(PATIENCE_S).buffer
    with pytest.raises(bulk.PoolBusyError):
        tx.remove_pool(alloc.pool)
    rx.pass_(theirs)
    assert take(tx, EventKind.BUFFER_RECEIVED).buffer is buffer
    tx.move(buffer)
    assert take(rx, EventKind.MOVE_RECEIVED)


# -- refused, crossing, withdrawn ----------------------------------------------------------------------------------


def test_a_veto_reaches_the_asker_and_the_pool_works_on(world):
    def judge(_):
        raise RuntimeError("still needed")

    tx, rx = world.channel(*world.domains(2), binder={"callbacks": bulk.Callbacks(pool_removed=judge)})
    alloc = world.allocator(tx.domain)
    world.assign(tx, rx, alloc.pool)
    error, _ = refused(tx, rx, alloc.pool)
    assert isinstance(error, bulk.PoolVetoError)
    assert "still needed" in str(error)
    tx.move(alloc.alloc())
    assert take(rx, EventKind.MOVE_RECEIVED)


def test_a_pool_callback_that_agrees_has_the_event_alone(world):
    seen = []
    tx, rx = world.channel(*world.domains(2), binder={"callbacks": bulk.Callbacks(pool_removed=seen.append)})
    alloc = world.allocator(tx.domain)
    world.assign(tx, rx, alloc.pool)
    error, events = refused(tx, rx, alloc.pool)
    assert error is None
    assert events[rx] == []
    assert [event.kind for event in seen] == [EventKind.POOL_REMOVED]


def test_closing_the_channel_in_its_own_removal_callback_is_safe(world):
    tx, rx = world.channel(
        *world.domains(2), binder={"callbacks": bulk.Callbacks(pool_removed=lambda event: event.channel.close())}
    )
    alloc = world.allocator(tx.domain)
    world.assign(tx, rx, alloc.pool)
    serving = Background(lambda: pump(lambda: rx.ended is not None, rx))
    with pytest.raises(bulk.EndOfChannelError):
        tx.remove_pool(alloc.pool)
    try:
        serving.result()
    except bulk.ClosedChannelError:
        assert rx.ended is not None
    gc.collect()
    assert alloc.pool.channels == set()
    assert alloc.detached == 0


@pytest.mark.parametrize("vetoer", [None, Role.SLAVE])
def test_of_two_crossing_removals_the_masters_stands(world, vetoer):
    asked = []

    def judge(event):
        asked.append(event.channel.role)
        if event.channel.role is vetoer:
            raise RuntimeError("no")

    callbacks = bulk.Callbacks(pool_removed=judge)
    tx, rx = world.channel(*world.domains(2), role=Role.MASTER, callbacks=callbacks, binder={"callbacks": callbacks})
    alloc = world.allocator(tx.domain)
    there = world.assign(tx, rx, alloc.pool)
    outcomes = {tx: [], rx: []}
    tx.remove_pool(alloc.pool, done=outcomes[tx].append)
    rx.remove_pool(there, done=outcomes[rx].append)
    pump(lambda: outcomes[tx] and outcomes[rx], tx, rx)
    assert asked == [Role.SLAVE]
    errors = [outcomes[end][0].error for end in (tx, rx)]
    if vetoer is None:
        assert errors == [None, None]
        assert tx.pools == rx.pools == ()
    else:
        assert all(isinstance(error, bulk.PoolVetoError) for error in errors)
        tx.move(alloc.alloc())
        assert take(rx, EventKind.MOVE_RECEIVED)


def test_nothing_is_sent_from_a_pool_that_is_being_removed(world):
    tx, rx, alloc, _ = world.line()
    buffer = alloc.alloc()
    outcomes = []
    tx.remove_pool(alloc.pool, done=outcomes.append)
    with pytest.raises(bulk.PoolNotAssignedError, match="being removed"):
        tx.move(buffer)
    pump(lambda: outcomes, tx, rx)
    assert outcomes[0].error is None


def test_a_transfer_that_crosses_a_removal_makes_the_pool_busy(world):
    tx, rx, alloc, there = world.line()
    buffer = alloc.alloc()
    outcomes = []
    rx.remove_pool(there, done=outcomes.append)
    tx.move(buffer, b"")
    events = pump(lambda: outcomes, rx, tx)
    assert isinstance(outcomes[0].error, bulk.PoolBusyError)
    assert [event.kind for event in events[rx]] == [EventKind.MOVE_RECEIVED]
    rx.pass_(events[rx][0].buffer)
    assert take(tx, EventKind.BUFFER_RECEIVED).buffer is buffer


@pytest.mark.parametrize("answer", ["agrees", "vetoes"])
def test_a_removal_that_timed_out_is_decided_by_the_peer_and_a_retry_is_legal(world, answer):
    def judge(_):
        if answer == "vetoes":
            raise RuntimeError("no")

    tx, rx = world.channel(*world.domains(2), binder={"callbacks": bulk.Callbacks(pool_removed=judge)})
    alloc = world.allocator(tx.domain)
    world.assign(tx, rx, alloc.pool)
    for timeout in (0, 0.002):
        with pytest.raises(TimeoutError):
            tx.remove_pool(alloc.pool, timeout=timeout)
    error, _ = refused(tx, rx, alloc.pool)  # the retry
    if answer == "agrees":
        assert error is None
        assert tx.pools == rx.pools == ()
        world.assign(tx, rx, alloc.pool)
    else:
        assert isinstance(error, bulk.PoolVetoError)
    tx.move(alloc.alloc())
    assert take(rx, EventKind.MOVE_RECEIVED)
    assert nothing_comes(tx)


def test_a_removal_that_timed_out_and_was_agreed_to_is_an_event(world):
    tx, rx, alloc, _ = world.line()
    with pytest.raises(TimeoutError):
        tx.remove_pool(alloc.pool, timeout=0)
    assert take(rx, EventKind.POOL_REMOVED)
    assert take(tx, EventKind.POOL_REMOVED).pool is alloc.pool
    assert tx.pools == rx.pools == ()
    world.assign(tx, rx, alloc.pool)


def test_removal_in_a_callback_would_block(world):
    seen = []

    def moved(event):
        try:
            event.channel.remove_pool(event.buffer.pool)
        except bulk.WouldBlock as error:
            seen.append(error)

    tx, rx = world.channel(*world.domains(2), binder={"callbacks": bulk.Callbacks(move_received=moved)})
    alloc = world.allocator(tx.domain)
    world.assign(tx, rx, alloc.pool)
    tx.move(alloc.alloc())
    assert nothing_comes(rx)
    assert len(seen) == 1


def test_assigning_and_removing_over_and_over_leaves_nothing(world):
    tx, rx, alloc, _ = world.line()
    remove(tx, rx, alloc.pool)
    before = meeting.descriptors()
    for _ in range(20):
        world.assign(tx, rx, alloc.pool)
        remove(tx, rx, alloc.pool)
    gc.collect()
    assert meeting.descriptors() == before


def test_a_copy_that_came_back_over_another_channel_is_not_the_buffer_come_home(world):
    tx, rx, alloc, there = world.line()
    back, home = world.channel(rx.domain, tx.domain)
    world.assign(back, home, there)
    tx.move(alloc.alloc())
    kept = take(rx, EventKind.MOVE_RECEIVED).buffer
    back.copy(kept)
    lent = take(home, EventKind.COPY_RECEIVED).buffer
    with pytest.raises(bulk.PoolBusyError):
        tx.remove_pool(alloc.pool)
    home.release(lent)
    assert take(back, EventKind.COPY_RELEASED)
    rx.pass_(kept)
    assert take(tx, EventKind.BUFFER_RECEIVED)
    remove(tx, rx, alloc.pool)


def test_a_forwarder_that_got_back_what_it_sent_may_take_the_pool_off(world):
    tx, rx, alloc, there = world.line()
    on, end = world.channel(rx.domain, *world.domains(1))
    world.assign(on, end, there)
    tx.move(alloc.alloc())
    on.move(take(rx, EventKind.MOVE_RECEIVED).buffer)
    end.pass_(take(end, EventKind.MOVE_RECEIVED).buffer)
    assert take(on, EventKind.BUFFER_RECEIVED)
    remove(on, end, there)
