"""Ctrl-C while a request of the peer is being answered: the answer goes out, no event is lost, then it is heard."""

from __future__ import annotations

import os
import signal
import threading

import pytest

import bulktransfer as bulk
import meeting
from bulktransfer import EventKind
from bulktransfer.core.interrupts import INTERRUPTS
from worlds import PATIENCE_S, nothing_comes, take

scheme, world = meeting.scheme, meeting.world


def ctrl_c(*_):
    os.kill(os.getpid(), signal.SIGINT)


def asked(world, callbacks=None):
    """A pool that is about to come onto a channel, and what its assigner hears."""
    tx, rx = world.channel(*world.domains(2), binder={"callbacks": callbacks})
    alloc = world.allocator(tx.domain)
    outcomes = []
    tx.assign_pool(alloc.pool, done=outcomes.append)
    return tx, rx, alloc, outcomes


@pytest.mark.parametrize("where", ["judge_assign", "attach", "conclude_assign"])
def test_an_interrupted_answer_goes_out_and_its_event_waits(world, where, monkeypatch):
    tx, rx, alloc, outcomes = asked(world)
    method = getattr(type(rx.assigning), where)
    struck = []

    def interrupted(self, *arguments):
        if self is rx.assigning and not struck:
            struck.append(where)
            ctrl_c()
        return method(self, *arguments)

    monkeypatch.setattr(type(rx.assigning), where, interrupted)
    interrupts = 0
    while not outcomes:
        try:
            rx.serve()
        except KeyboardInterrupt:
            interrupts += 1
        tx.serve()
        assert nothing_comes(tx)
    assert interrupts == len(struck) == 1
    assert [outcome.error for outcome in outcomes] == [None]
    assert take(rx, EventKind.POOL_ASSIGNED).pool.id == alloc.pool.id
    tx.move(alloc.alloc())
    assert take(rx, EventKind.MOVE_RECEIVED)


def test_an_interrupted_callback_refuses_and_the_interrupt_is_heard(world):
    tx, rx, alloc, outcomes = asked(world, bulk.Callbacks(pool_assigned=ctrl_c))
    with pytest.raises(KeyboardInterrupt):
        rx.receive(PATIENCE_S)
    assert nothing_comes(tx)
    assert [type(outcome.error) for outcome in outcomes] == [bulk.PoolVetoError]
    assert rx.pools == tx.pools == ()
    rx.set_callbacks(bulk.Callbacks())
    world.assign(tx, rx, alloc.pool)
    rx.set_callbacks(bulk.Callbacks(pool_removed=ctrl_c))
    removed = []
    tx.remove_pool(alloc.pool, done=removed.append)
    with pytest.raises(KeyboardInterrupt):
        rx.receive(PATIENCE_S)
    assert nothing_comes(tx)
    assert [type(outcome.error) for outcome in removed] == [bulk.PoolVetoError]
    assert tx.pools == (alloc.pool,)


def test_an_interrupt_before_anything_was_done_leaves_the_request_for_the_next_call(world, monkeypatch):
    tx, rx, _, outcomes = asked(world)
    control = type(rx)._control
    struck = []

    def early(self):
        if self is rx and not struck:
            struck.append(True)
            raise KeyboardInterrupt
        control(self)

    monkeypatch.setattr(type(rx), "_control", early)
    with pytest.raises(KeyboardInterrupt):
        rx.receive(PATIENCE_S)
    while not outcomes:
        rx.serve()
        tx.serve()
        assert nothing_comes(tx)
    assert [outcome.error for outcome in outcomes] == [None]
    assert take(rx, EventKind.POOL_ASSIGNED)


def test_the_users_handler_is_back_afterwards_and_others_threads_touch_none(world):
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def look():
        with INTERRUPTS.held_off():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [before]
    with INTERRUPTS.held_off():
        assert signal.getsignal(signal.SIGINT) is not before
        with INTERRUPTS.let_through():
            assert signal.getsignal(signal.SIGINT) is before
        with INTERRUPTS.held_off():
            assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt), INTERRUPTS.held_off():
        ctrl_c()
    assert signal.getsignal(signal.SIGINT) is before
    assert world.made == []


@pytest.mark.parametrize("side", ["creator", "binder"])
def test_an_interrupt_between_reading_and_handling_a_message_of_the_set_up_loses_nothing(world, side, monkeypatch):
    from bulktransfer.core.line import LocalLine

    creator = meeting.create(world)
    outcomes = []
    binder = meeting.bind(world, creator.address, done=outcomes.append)
    me = {"creator": creator, "binder": binder}[side]
    hear = LocalLine.hear
    struck = []

    def interrupted(line):
        got = hear(line)
        if got is not None and serving[0] is me and len(struck) < 2:
            struck.append(got)
            ctrl_c()
        return got

    monkeypatch.setattr(LocalLine, "hear", interrupted)
    interrupts = 0
    serving = [None]
    while not creator.state is binder.state is bulk.ChannelState.CONNECTED:
        for serving[0] in (creator, binder):
            try:
                serving[0].domain.serve()
            except KeyboardInterrupt:
                interrupts += 1
    assert interrupts == len(struck) > 0


def test_a_bind_that_is_interrupted_once_it_was_confirmed_ends_in_order(world, monkeypatch):
    from bulktransfer.core.knock import Knock

    creator = meeting.create(world)
    finish = Knock.finish

    def interrupted(knock, error):
        finish(knock, error)
        if error is None:
            ctrl_c()

    monkeypatch.setattr(Knock, "finish", interrupted)
    over = []
    serving = meeting.Background(lambda: meeting.serve(creator, lambda: over))
    try:
        with pytest.raises(KeyboardInterrupt):
            bulk.bind(creator.address, domain=bulk.Domain(), timeout=None)
    finally:
        over.append(True)
        serving.result()
    assert take(creator, EventKind.BIND_RECEIVED)
    assert take(creator, EventKind.TEARDOWN_RECEIVED)
    with pytest.raises(bulk.EndOfChannelError):
        creator.receive()
