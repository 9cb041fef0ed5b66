"""The binder's side of set-up: what it waits for, how it gives up, and what half-open peers cannot hold up."""

from __future__ import annotations

import errno
import threading

import pytest

import bulktransfer as bulk
import meeting
from bulktransfer import ChannelState, Direction, EventKind, Role, Trust
from meeting import Background, Interrupter, bind, bound, create, hello, knock, pump, serve
from worlds import PATIENCE_S, take, together

scheme, world = meeting.scheme, meeting.world


# -- nobody is there -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [0, 0.005])
def test_an_address_that_nobody_created_is_not_found(scheme, timeout):
    with pytest.raises(bulk.EndpointNotFoundError, match="nobody created it") as caught:
        bulk.bind(f"{scheme}:nobody", timeout=timeout)
    assert isinstance(caught.value, TimeoutError)


def test_a_binder_may_come_before_its_creator(world):
    address = f"{world.scheme}:early"
    binder = Background(lambda: bind(world, address))
    creator = bulk.create(address, direction=Direction.TX, trust=Trust.FULL, domain=bulk.Domain())
    world.made.append(creator)
    creator.wait_bound(PATIENCE_S)
    assert binder.result().state is ChannelState.CONNECTED


def test_a_binder_outlives_creators_that_come_and_go(world):
    address = f"{world.scheme}:fickle"
    outcomes = []
    channel = bulk.bind(address, done=outcomes.append, domain=bulk.Domain())
    world.made.append(channel)
    for _ in range(3):  # closed before the binder looks again
        bulk.create(address, direction=Direction.TX, trust=Trust.FULL).close()
    creator = bulk.create(address, direction=Direction.TX, trust=Trust.FULL, domain=bulk.Domain())
    world.made.append(creator)
    pump(lambda: outcomes, channel, creator)
    assert outcomes[0].error is None
    assert channel.state is ChannelState.CONNECTED


def test_a_creator_that_does_not_serve_is_a_timeout_and_a_retry_is_legal(world):
    asked = []
    creator = create(world, callbacks=bulk.Callbacks(bind_received=asked.append))
    for timeout in (0, 0.002):
        with pytest.raises(TimeoutError) as caught:
            bind(world, creator.address, timeout=timeout)
        assert not isinstance(caught.value, bulk.EndpointNotFoundError)
    assert creator.state is ChannelState.INITIALIZED
    binder = bound(world, creator)
    assert binder.state is creator.state is ChannelState.CONNECTED


def test_a_creator_that_closes_while_a_binder_waits_ends_the_waiting(world):
    creator = create(world)
    outcomes = []
    binder = bulk.bind(creator.address, done=outcomes.append, domain=bulk.Domain())
    world.made.append(binder)
    creator.close()
    with pytest.raises(bulk.BulkError):
        pump(lambda: False, binder)
    assert isinstance(outcomes[0].error, bulk.BrokenChannelError)
    assert binder.state is ChannelState.CLOSED


def test_keyboard_interrupt_withdraws_and_a_retry_is_legal(world):
    begun, over = threading.Event(), threading.Event()

    def judge(_):
        begun.set()
        over.wait(PATIENCE_S)

    creator = create(world, callbacks=bulk.Callbacks(bind_received=judge))

    def serve():
        while not over.is_set():
            creator.domain.serve()

    serving = Background(serve)
    with Interrupter(begun.is_set), pytest.raises(KeyboardInterrupt):
        bulk.bind(creator.address, timeout=None, domain=bulk.Domain())
    over.set()
    serving.result()
    binder = bound(world, creator)
    assert binder.state is creator.state is ChannelState.CONNECTED


# -- with a continuation -------------------------------------------------------------------------------------------


def test_bind_with_done_returns_binding_and_tells_the_outcome_in_receive(world):
    creator = create(world)
    outcomes = []
    binder = bind(world, creator.address, done=outcomes.append)
    assert binder.state is ChannelState.BINDING
    together(lambda: creator.wait_bound(PATIENCE_S), lambda: pump(lambda: outcomes, binder))
    assert len(outcomes) == 1
    assert outcomes[0].error is None
    assert outcomes[0].operation == "bind"
    assert outcomes[0].channel is binder
    assert binder.state is ChannelState.CONNECTED


def test_bind_with_done_reports_a_refusal_and_the_channel_is_closed(world):
    creator = create(world, role=Role.SLAVE)
    outcomes = []
    binder = bind(world, creator.address, done=outcomes.append, role=Role.SLAVE)
    serving = Background(lambda: pump(lambda: outcomes, creator))
    with pytest.raises(bulk.ClosedChannelError):
        binder.receive(PATIENCE_S)
    serving.result()
    assert isinstance(outcomes[0].error, bulk.RoleConflictError)
    assert binder.state is ChannelState.CLOSED
    assert creator.state is ChannelState.INITIALIZED


def test_bind_with_done_and_a_timeout_reports_that_nobody_came(scheme):
    outcomes = []
    channel = bulk.bind(f"{scheme}:nobody", timeout=0.005, done=outcomes.append, domain=bulk.Domain())
    with pytest.raises(bulk.ClosedChannelError):
        channel.receive(PATIENCE_S)
    assert isinstance(outcomes[0].error, bulk.EndpointNotFoundError)


def test_bind_with_done_works_inside_a_callback(world):
    there = create(world)
    made, outcomes = [], []

    def judge(event):
        made.append(bulk.bind(there.address, done=outcomes.append, domain=event.channel.domain))

    creator = create(world, callbacks=bulk.Callbacks(bind_received=judge))
    bound(world, creator)
    world.made.extend(made)
    together(lambda: there.wait_bound(PATIENCE_S), lambda: pump(lambda: outcomes, made[0]))
    assert outcomes[0].error is None


def test_closing_a_binding_channel_withdraws(world):
    creator = create(world)
    outcomes = []
    binder = bind(world, creator.address, done=outcomes.append)
    binder.close()
    assert [type(o.error) for o in outcomes] == [bulk.ClosedChannelError]
    assert bound(world, creator).state is ChannelState.CONNECTED


@pytest.mark.parametrize("act", ["bind", "assign_pool", "remove_pool", "destroy"])
def test_done_takes_a_callable_only_and_a_wrong_one_changes_nothing(world, act):
    a, b = world.domains(2)
    tx, rx = world.channel(a, b)
    alloc = world.allocator(a)
    calls = {
        "bind": lambda: bulk.bind(tx.address, done=3),
        "assign_pool": lambda: tx.assign_pool(alloc.pool, done=3),
        "remove_pool": lambda: tx.remove_pool(alloc.pool, done=3),
        "destroy": lambda: tx.destroy(done=3),
    }
    with pytest.raises(TypeError, match="done=3"):
        calls[act]()
    world.assign(tx, rx, alloc.pool)


def test_a_wait_set_takes_the_bound_channel_in(world):
    with bulk.WaitSet() as ws:
        creator = create(world, waitset=ws)
        binder, _ = together(lambda: bind(world, creator.address, waitset=ws), lambda: creator.wait_bound(PATIENCE_S))
        assert len(ws) == 2
        assert binder.state is ChannelState.CONNECTED


# -- nobody can hold others up -------------------------------------------------------------------------------------


def test_two_sides_that_create_and_bind_each_other_do_not_deadlock(world):
    names = [f"{world.scheme}:left", f"{world.scheme}:right"]

    def side(mine, theirs):
        domain = bulk.Domain()
        created = bulk.create(mine, direction=Direction.TX, trust=Trust.FULL, domain=domain)
        world.made.append(created)
        taken = bind(world, theirs, domain=domain, timeout=PATIENCE_S)
        created.wait_bound(PATIENCE_S)
        return created, taken

    for channels in together(lambda: side(*names), lambda: side(*reversed(names))):
        assert all(channel.state is ChannelState.CONNECTED for channel in channels)


def test_a_ring_of_processes_that_create_and_bind_does_not_deadlock(spawn):
    def member(pipe, mine, theirs):
        import bulktransfer as bulk

        created = bulk.create(mine, direction=bulk.Direction.TX, trust=bulk.Trust.FULL)
        taken = bulk.bind(theirs, timeout=30)
        created.wait_bound(30)
        pipe.send((created.state.name, taken.state.name))
        pipe.recv()
        created.close()
        taken.close()

    children = [spawn(member, f"shm:{i}", f"shm:{(i + 1) % 3}") for i in range(3)]
    assert [child.receive() for child in children] == [("CONNECTED", "CONNECTED")] * 3
    for child in children:
        child.send("end")
        child.join()


@pytest.mark.parametrize("words", [None, b"", b"\0", b"garbage" * 9, b"\xff" * 4096], ids=str)
def test_garbage_and_silence_do_not_keep_others_out(world, words):
    creator = create(world)
    with knock(creator.address) as stranger:
        if words:
            stranger.send(words)
        binder = bound(world, creator)
        assert binder.state is ChannelState.CONNECTED


def test_a_stranger_that_comes_and_goes_leaves_nothing(world):
    creator = create(world)
    for words in (None, b"x", hello()):
        with knock(creator.address) as stranger:
            if words:
                stranger.send(words)
    creator.domain.serve()  # takes them in
    serve(creator, lambda: not creator.reception.candidates)
    assert creator.state is ChannelState.INITIALIZED
    assert bound(world, creator).state is ChannelState.CONNECTED


def test_a_binder_that_never_confirms_gives_way_at_the_deadline(world):
    creator = create(world, limits=bulk.Limits(handshake_s=0.05))
    with knock(creator.address) as stranger:
        stranger.send(hello())
        serve(creator, lambda: creator.state is ChannelState.BIND_NEGOTIATE)
        assert bound(world, creator).state is ChannelState.CONNECTED


def test_more_strangers_than_are_received_at_once_keep_nobody_out(world):
    creator = create(world, limits=bulk.Limits(half_open=2, handshake_s=0.05))
    strangers = []
    try:
        for _ in range(2):
            strangers.append(knock(creator.address))  # noqa: PERF401 - closed below, also where one fails
        creator.domain.serve()
        assert len(creator.reception.candidates) == 2
        assert bound(world, creator).state is ChannelState.CONNECTED
    finally:
        for stranger in strangers:
            stranger.close()


def test_a_full_backlog_is_waited_for(world):
    creator = create(world, limits=bulk.Limits(half_open=1, handshake_s=0.05))
    strangers = []
    try:
        while True:
            try:
                strangers.append(knock(creator.address))
            except BlockingIOError:
                break
        with pytest.raises(TimeoutError):
            bind(world, creator.address, timeout=0.01)
        assert bound(world, creator).state is ChannelState.CONNECTED
    finally:
        for stranger in strangers:
            stranger.close()


@pytest.mark.parametrize("second", [hello(), b"garbage"], ids=["hello", "garbage"])
def test_words_out_of_turn_end_that_handshake_only(world, second):
    creator = create(world)
    with knock(creator.address) as stranger:
        stranger.send(hello())
        serve(creator, lambda: creator.state is ChannelState.BIND_NEGOTIATE)
        stranger.send(second)
        serve(creator, lambda: creator.state is ChannelState.INITIALIZED)
        assert bound(world, creator).state is ChannelState.CONNECTED


def test_another_protocol_version_is_refused_in_words(world):
    from bulktransfer.messages import Refusal
    from bulktransfer.wire.control import CODEC

    creator = create(world)
    with knock(creator.address) as stranger:
        stranger.send(hello(version=99))
        creator.domain.serve()
        serve(creator, lambda: not creator.reception.candidates)
        answer = CODEC.decode(stranger.recv(4096))
    assert isinstance(answer, Refusal)
    assert "99" in answer.reason
    assert creator.state is ChannelState.INITIALIZED


def test_a_waiting_call_on_another_channel_serves_the_binder(world):
    domain = bulk.Domain()
    first, _ = world.channel(domain, bulk.Domain())
    second = create(world, domain)
    binder = Background(lambda: bind(world, second.address))
    waiting = Background(lambda: first.receive(PATIENCE_S))
    assert binder.result().state is ChannelState.CONNECTED
    first.close()
    with pytest.raises(bulk.ClosedChannelError):
        waiting.result()
    assert take(second, EventKind.BIND_RECEIVED)


def test_a_creator_that_cannot_be_told_is_a_broken_channel(world, monkeypatch):
    from bulktransfer.core.line import LocalLine

    creator = create(world)
    monkeypatch.setattr(LocalLine, "say", lambda *arguments: False)
    with pytest.raises(bulk.BrokenChannelError, match="does not read"):
        bind(world, creator.address, timeout=None)


@pytest.mark.parametrize("where", ["say", "hear", "accept"])
def test_a_creator_that_is_gone_is_a_broken_channel_however_the_system_says_it(world, monkeypatch, where):
    from bulktransfer.core.line import LocalLine

    creator = create(world)

    def gone(*arguments):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    over = []
    serving = Background(lambda: serve(creator, lambda: over))
    original = {"say": LocalLine.say, "hear": LocalLine.hear, "accept": LocalLine.accept}[where]
    binder = bulk.Domain()

    def only_there(line, *arguments):
        return gone() if threading.current_thread() is threading.main_thread() else original(line, *arguments)

    monkeypatch.setattr(LocalLine, where, only_there)
    try:
        with pytest.raises(bulk.BrokenChannelError, match="went away"):
            bind(world, creator.address, domain=binder, timeout=PATIENCE_S)
    finally:
        over.append(True)
        serving.result()
