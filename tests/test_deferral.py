"""Promises of answers that a callback leaves open, and of ends that say what broke."""

from __future__ import annotations

import pytest

import bulktransfer as bulk
import meeting
from bulktransfer import EventKind, Trust
from bulktransfer.messages import AssignMemory, RemoveRequest
from meeting import Background, drain_until_end
from worlds import PATIENCE_S, nothing_comes, take

scheme, world = meeting.scheme, meeting.world


class Desk:
    """A sink whose pool callbacks leave every answer open; `answers` and `told` in the order of events."""

    def __init__(self, world, *, veto=None, at_once=None, **binder):
        self.answers, self.told = [], []
        self.veto, self.at_once = veto, at_once
        self.a, self.b = world.domains(2)
        callbacks = bulk.Callbacks(pool_assigned=self.asked, pool_removed=self.asked)
        self.tx, self.rx = world.channel(self.a, self.b, binder={"callbacks": callbacks, **binder})
        self.alloc = world.allocator(self.a)

    def asked(self, event):
        answer = event.channel.defer(event, self.told.append)
        self.answers.append(answer)
        if self.at_once is not None:
            self.at_once(answer)
        if self.veto is not None:
            raise self.veto

    def serve_until(self, condition):
        """Receive at the sink, which runs callbacks and continuations; no event comes out."""
        while not condition():
            with pytest.raises(TimeoutError):
                self.rx.receive(0.01)

    def assign(self):
        """Ask for the pool; returns once the answer is due."""
        asking = Background(lambda: self.tx.assign_pool(self.alloc.pool))
        self.serve_until(lambda: self.told)
        return asking


def test_an_assignment_waits_for_the_answer(world):
    desk = Desk(world)
    asking = desk.assign()
    (answer,) = desk.answers
    assert (answer.operation, answer.pool, answer.channel) == ("assign", desk.told[0].pool, desk.rx)
    assert desk.told[0].error is None
    assert answer.open
    assert desk.rx.pools == ()
    with pytest.raises(bulk.PoolNotAssignedError, match="still being assigned"):
        desk.tx.move(desk.alloc.alloc())
    assert answer.pool[0].state is bulk.BufferState.INVALID  # it is here, and may go on from here
    answer.accept()
    asking.result()
    assert desk.rx.pools == (answer.pool,)
    assert desk.tx.pools == (desk.alloc.pool,)
    assert nothing_comes(desk.rx)  # the callback was told
    desk.tx.move(desk.alloc.alloc())
    assert take(desk.rx, EventKind.MOVE_RECEIVED).buffer.pool is answer.pool
    with pytest.raises(ValueError, match="answered before"):
        answer.accept()


@pytest.mark.parametrize(
    ("reason", "kind", "text"),
    [
        ("not today", bulk.PoolVetoError, "not today"),
        (ValueError("a bad one"), bulk.PoolVetoError, "a bad one"),
        (bulk.LimitError("no room behind me"), bulk.LimitError, "no room behind me"),
    ],
)
def test_a_later_refusal_reaches_the_peer_with_its_class(world, reason, kind, text):
    desk = Desk(world)
    asking = desk.assign()
    desk.answers[0].refuse(reason)
    with pytest.raises(kind, match=text):
        asking.result()
    assert desk.rx.pools == desk.tx.pools == ()
    assert not desk.answers[0].pool.present  # a refused pool leaves nothing behind
    desk.told.clear()
    asking = desk.assign()  # and may come again
    desk.answers[1].accept()
    asking.result()


@pytest.mark.parametrize("at_once", [bulk.Answer.accept, lambda answer: answer.refuse("never")])
def test_an_answer_may_be_given_before_it_is_due(world, at_once):
    desk = Desk(world, at_once=at_once)
    asking = Background(lambda: desk.tx.assign_pool(desk.alloc.pool))
    desk.serve_until(lambda: not asking.running)
    if at_once is bulk.Answer.accept:
        asking.result()
        assert desk.rx.pools
    else:
        with pytest.raises(bulk.PoolVetoError, match="never"):
            asking.result()
    assert desk.told == []  # whoever has answered need not be told that it is due


def test_a_callback_that_raises_after_it_deferred_has_vetoed(world):
    desk = Desk(world, veto=RuntimeError("after all"))
    asking = Background(lambda: desk.tx.assign_pool(desk.alloc.pool))
    desk.serve_until(lambda: not asking.running)
    with pytest.raises(bulk.PoolVetoError, match="after all"):
        asking.result()
    with pytest.raises(bulk.ChannelStateError, match="its callback raised"):
        desk.answers[0].accept()


def test_an_answer_to_a_request_that_was_withdrawn_is_refused(world):
    desk = Desk(world)
    outcomes = []
    desk.tx.assign_pool(desk.alloc.pool, timeout=None, done=outcomes.append)
    desk.serve_until(lambda: nothing_comes(desk.tx) and desk.told)
    with pytest.raises(bulk.PoolAlreadyAssignedError):
        desk.tx.assign_pool(desk.alloc.pool)
    asked = next(iter(desk.tx.assigning.requests.values()))
    desk.tx.assigning.withdraw(asked)  # as its timeout would
    desk.serve_until(lambda: not desk.answers[0].open)
    with pytest.raises(bulk.PoolVetoError, match="withdrew"):
        desk.answers[0].accept()
    assert len(desk.told) == 1
    desk.told.clear()
    asking = desk.assign()  # a retry is legal
    desk.answers[1].accept()
    asking.result()


def test_the_end_of_the_channel_ends_the_question(world):
    desk = Desk(world)
    asking = desk.assign()
    desk.tx.close()
    with pytest.raises(bulk.ClosedChannelError):
        asking.result()
    assert drain_until_end(desk.rx) is bulk.EndOfChannelError
    with pytest.raises(bulk.EndOfChannelError):
        desk.answers[0].accept()
    with pytest.raises(bulk.EndOfChannelError):
        desk.answers[0].refuse("too late")


def assigned(world, **options):
    desk = Desk(world, **options)
    asking = desk.assign()
    desk.answers.pop().accept()
    asking.result()
    desk.told.clear()
    return desk


def test_a_removal_waits_for_the_answer(world):
    desk = assigned(world)
    removing = Background(lambda: desk.tx.remove_pool(desk.alloc.pool))
    desk.serve_until(lambda: desk.told)
    (answer,) = desk.answers
    assert answer.operation == "remove"
    assert desk.rx.pools
    answer.refuse("still in use behind me")
    with pytest.raises(bulk.PoolVetoError, match="still in use behind me"):
        removing.result()
    desk.told.clear()
    removing = Background(lambda: desk.tx.remove_pool(desk.alloc.pool))
    desk.serve_until(lambda: desk.told)
    desk.answers[1].accept()
    removing.result()
    assert desk.rx.pools == desk.tx.pools == ()


def test_a_second_removal_of_a_pool_whose_removal_is_open_breaks_the_rules(world):
    desk = assigned(world)
    desk.tx.remove_pool(desk.alloc.pool, done=lambda outcome: None)
    desk.serve_until(lambda: desk.told)
    desk.tx.say(RemoveRequest(99, desk.tx.table[0].slot))
    with pytest.raises(bulk.ProtocolViolation, match="which is under way"):
        desk.rx.receive(PATIENCE_S)
    with pytest.raises(bulk.ProtocolViolation):
        desk.answers[0].accept()


def test_memory_that_comes_twice_breaks_the_rules(world):
    desk = Desk(world)
    asking = desk.assign()
    pool = desk.alloc.pool
    desk.tx.say(AssignMemory(1), [pool.memory, pool.memory])
    with pytest.raises(bulk.ProtocolViolation, match="which was not accepted"):
        desk.rx.receive(PATIENCE_S)
    with pytest.raises(bulk.BrokenChannelError):
        asking.result()


def test_only_the_callback_that_is_asked_may_defer(world):
    seen = []

    def moved(event):
        with pytest.raises(bulk.ChannelStateError, match="only the pool callback that is asked"):
            event.channel.defer(event, print)
        seen.append(event)

    def twice(event):
        with pytest.raises(TypeError, match="cannot be called"):
            event.channel.defer(event, None)
        event.channel.defer(event, lambda outcome: None).accept()
        with pytest.raises(bulk.ChannelStateError, match="deferred before"):
            event.channel.defer(event, print)
        seen.append(event)

    desk = Desk(world)
    desk.rx.set_callbacks(bulk.Callbacks(pool_assigned=twice, move_received=moved))
    asking = Background(lambda: desk.tx.assign_pool(desk.alloc.pool))
    desk.serve_until(lambda: not asking.running)
    asking.result()
    desk.tx.move(desk.alloc.alloc())
    desk.serve_until(lambda: len(seen) == 2)
    with pytest.raises(bulk.ChannelStateError):
        desk.rx.defer(seen[0], print)


def test_callbacks_may_be_set_later_and_get_what_is_there(world):
    tx, rx, alloc, _ = world.line()
    tx.move_many(alloc.alloc_many(2))
    rx.serve()
    seen = []
    rx.set_callbacks(bulk.Callbacks(move_received=seen.append))
    assert nothing_comes(rx)
    assert [event.kind for event in seen] == [EventKind.MOVE_RECEIVED] * 2
    with pytest.raises(TypeError, match=r"takes bulk\.Callbacks"):
        rx.set_callbacks(None)


def test_a_pool_that_no_callback_was_asked_about_is_told_of_though_one_came_meanwhile(world):
    a, b = world.domains(2)
    tx, rx = world.channel(a, b)
    alloc = world.allocator(a)
    asking = Background(lambda: tx.assign_pool(alloc.pool))
    while not rx.assigning.incoming:
        rx.serve()
    asked = []
    if not rx.pools:  # accepted, and its memory is not here yet
        rx.set_callbacks(bulk.Callbacks(pool_assigned=asked.append))
    assert take(rx, EventKind.POOL_ASSIGNED).pool.id == alloc.pool.id
    asking.result()
    assert asked == []


def test_abort_tells_the_peer_what_broke_after_what_was_sent(world):
    tx, rx, alloc, _ = world.line()
    tx.move(alloc.alloc())
    tx.abort("the camera fell off")
    tx.abort("again")
    assert take(rx, EventKind.MOVE_RECEIVED).buffer.owned
    take(rx, EventKind.TEARDOWN_RECEIVED)
    for _ in range(2):
        with pytest.raises(bulk.BrokenChannelError, match="the camera fell off"):
            rx.receive(PATIENCE_S)
    with pytest.raises(bulk.ClosedChannelError):
        tx.receive(PATIENCE_S)


def test_abort_wants_a_reason(world):
    tx, rx, _, _ = world.line()
    with pytest.raises(ValueError, match="close ends a channel in order"):
        tx.abort("")
    with pytest.raises(TypeError):
        tx.abort(None)
    assert nothing_comes(rx)


def test_an_abort_that_crosses_a_destroy_is_not_taken_for_an_answer(world):
    tx, rx, _, _ = world.line()
    outcomes = []
    tx.destroy(done=outcomes.append)
    rx.abort("it broke here first")
    with pytest.raises(bulk.BrokenChannelError, match="it broke here first"):
        drain_all(tx)
    assert isinstance(outcomes[0].error, bulk.BrokenChannelError)


def drain_all(channel):
    while True:
        channel.receive(PATIENCE_S)


def test_a_trust_level_is_reserved_while_the_answer_is_open(world):
    desk = Desk(world)
    asking = desk.assign()
    assert desk.answers[0].pool.trust is Trust.FULL
    desk.answers[0].refuse("no")
    with pytest.raises(bulk.PoolVetoError):
        asking.result()
    assert desk.alloc.pool.trust is Trust.UNINITIALIZED
