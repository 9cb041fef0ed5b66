"""Listen, accept, connect: many clients, several channels each, all of them or none."""

from __future__ import annotations

import gc
import os
import select
import warnings

import pytest

import bulktransfer as bulk
import meeting
from bulktransfer import ChannelSpec, ChannelState, Direction, EventKind, Role, Trust
from meeting import Background, hello, knock, receive_on
from worlds import PATIENCE_S, take

scheme, world = meeting.scheme, meeting.world
BOTH = [
    ChannelSpec(direction=Direction.RX, trust=Trust.FULL, meta_size=16),
    ChannelSpec(direction=Direction.TX, trust=Trust.FULL, role=Role.SLAVE),
]


@pytest.fixture
def listener(world):
    made = bulk.listen(f"{world.scheme}:", BOTH, domain=bulk.Domain())
    world.made.append(made)
    return made


def connect(world, listener, **options):
    channels = bulk.connect(listener.address, domain=bulk.Domain(), **options)
    world.made.extend(channels)
    return channels


def met(world, listener, **options):
    """A client's channels, and those that the listener accepted."""
    client = Background(lambda: connect(world, listener, **options))
    accepted = listener.accept(PATIENCE_S)
    world.made.extend(accepted)
    return client.result(), accepted


def test_a_client_gets_a_channel_for_every_spec_in_order(world, listener):
    ours, theirs = met(world, listener)
    assert [channel.direction for channel in theirs] == [Direction.RX, Direction.TX]
    assert [channel.direction for channel in ours] == [Direction.TX, Direction.RX]
    assert [channel.meta_size for channel in ours] == [16, 0]
    assert [channel.role for channel in theirs] == [Role.MASTER, Role.SLAVE]
    assert all(channel.state is ChannelState.CONNECTED for channel in (*ours, *theirs))
    alloc = world.allocator(ours[0].domain)
    for mine, their in zip(ours, theirs, strict=True):
        world.assign(mine, their, alloc.pool)
    buffer = alloc.alloc()
    ours[0].move(buffer, b"there")
    event = take(theirs[0], EventKind.MOVE_RECEIVED)
    assert event.meta == b"there"
    theirs[1].move(event.buffer)
    assert take(ours[1], EventKind.MOVE_RECEIVED).buffer is buffer


def test_accepted_channels_live_on_their_own(world, listener):
    ours, theirs = met(world, listener)
    listener.close()
    ours[0].close()
    assert take(theirs[0], EventKind.TEARDOWN_RECEIVED)
    assert theirs[1].state is ChannelState.CONNECTED
    alloc = world.allocator(theirs[1].domain)
    world.assign(theirs[1], ours[1], alloc.pool)


def test_many_clients_at_once_are_all_accepted(world, listener):
    clients = [Background(lambda: connect(world, listener)) for _ in range(12)]
    accepted = [listener.accept(PATIENCE_S) for _ in clients]
    for channels in accepted:
        world.made.extend(channels)
    assert all(len(client.result()) == 2 for client in clients)
    with pytest.raises(TimeoutError):
        listener.accept(0)


def test_more_clients_than_the_backlog_get_in(world):
    listener = bulk.listen(f"{world.scheme}:", BOTH[:1], backlog=1, domain=bulk.Domain())
    world.made.append(listener)
    clients = [Background(lambda: connect(world, listener)) for _ in range(6)]
    for _ in clients:
        world.made.extend(listener.accept(PATIENCE_S))
    assert all(client.result() for client in clients)


def test_accept_times_out_and_goes_on(world, listener):
    for timeout in (0, 0.002):
        with pytest.raises(TimeoutError, match="nobody came"):
            listener.accept(timeout)
    assert met(world, listener)


def test_a_client_that_dies_in_the_middle_disturbs_nobody(world, listener):
    strangers = [knock(listener.address) for _ in range(3)]
    strangers[0].send(hello())
    strangers[1].send(b"garbage")
    with pytest.raises(TimeoutError):
        listener.accept(0.002)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for stranger in strangers:
            stranger.close()
        assert met(world, listener)
        gc.collect()
    assert listener._greeted == set()
    assert len(listener.domain.channels) == 2


def test_a_slow_client_does_not_keep_others_waiting(world, listener):
    with knock(listener.address) as slow:
        slow.send(hello())
        assert met(world, listener)


def test_a_client_that_never_confirms_is_dropped_at_the_deadline(world):
    listener = bulk.listen(f"{world.scheme}:", BOTH, limits=bulk.Limits(handshake_s=0.02), domain=bulk.Domain())
    world.made.append(listener)
    with knock(listener.address) as slow:
        slow.send(hello())
        while not listener._greeted:
            listener.domain.serve()
        while listener._greeted:
            listener.domain.wait_for(lambda: not listener._greeted, None)
        gc.collect()
        assert len(listener.domain.channels) == 0


def test_a_client_that_closes_right_after_connecting_is_accepted_and_ended(world, listener):
    client = Background(lambda: [channel.close() for channel in connect(world, listener)])
    accepted = listener.accept(PATIENCE_S)
    world.made.extend(accepted)
    client.result()
    for channel in accepted:
        assert take(channel, EventKind.TEARDOWN_RECEIVED)


def test_one_veto_refuses_all_channels_and_nothing_is_left(world):
    def judge(_):
        raise RuntimeError("members only")

    callbacks = bulk.Callbacks(bind_received=judge)
    specs = [BOTH[0], ChannelSpec(direction=Direction.TX, trust=Trust.FULL, callbacks=callbacks)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        listener = bulk.listen(f"{world.scheme}:", specs, domain=bulk.Domain())
        world.made.append(listener)
        client = Background(lambda: connect(world, listener))
        while client.running:
            listener.domain.serve()
        with pytest.raises(TimeoutError):
            listener.accept(0)
        with pytest.raises(bulk.BindRefusedError, match="members only"):
            client.result()
        gc.collect()
    assert len(listener.domain.channels) == 0


@pytest.mark.parametrize(
    ("options", "error"),
    [({"trust": Trust.NONE}, bulk.TrustMismatchError), ({"role": Role.SLAVE}, bulk.RoleConflictError)],
    ids=["trust", "role"],
)
def test_a_client_that_asks_for_something_else_is_refused_without_a_trace(world, listener, options, error):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        client = Background(lambda: connect(world, listener, **options))
        while client.running:
            listener.domain.serve()
        with pytest.raises(error):
            client.result()
        gc.collect()
    assert len(listener.domain.channels) == 0
    assert met(world, listener)


def test_the_channel_limit_refuses_a_client_in_words_and_the_listener_lives(world):
    listener = bulk.listen(f"{world.scheme}:", BOTH, limits=bulk.Limits(channels=3), domain=bulk.Domain())
    world.made.append(listener)
    first = met(world, listener)
    client = Background(lambda: connect(world, listener))
    while client.running:
        listener.domain.serve()
    with pytest.raises(bulk.LimitError):
        client.result()
    for channel in (*first[0], *first[1]):
        channel.close()
    world.made = [listener]
    del first, channel
    gc.collect()
    assert met(world, listener)


def test_bind_is_not_enough_where_several_channels_are_offered(world, listener):
    client = Background(lambda: bulk.bind(listener.address, domain=bulk.Domain()))
    while client.running:
        listener.domain.serve()
    with pytest.raises(bulk.BindRefusedError, match=r"bulk\.connect"):
        client.result()


def test_bind_and_connect_reach_a_single_channel_alike(world):
    with bulk.listen(f"{world.scheme}:", BOTH[:1], domain=bulk.Domain()) as listener:
        client = Background(lambda: bulk.bind(listener.address, domain=bulk.Domain()))
        world.made.extend(listener.accept(PATIENCE_S))
        world.made.append(client.result())
    creator = meeting.create(world)
    client = Background(lambda: bulk.connect(creator.address, domain=bulk.Domain()))
    creator.wait_bound(PATIENCE_S)
    world.made.extend(client.result())


def test_close_ends_accept_and_refuses_those_that_wait(world, listener):
    waiting = Background(listener.accept)
    client = Background(lambda: connect(world, listener))
    assert waiting.result()
    world.made.extend(waiting.result())
    client.result()
    again = Background(listener.accept)
    listener.close()
    listener.close()
    with pytest.raises(bulk.ClosedChannelError):
        again.result()
    with pytest.raises(bulk.ClosedChannelError):
        listener.accept(0)
    with pytest.raises(bulk.EndpointNotFoundError):
        connect(world, listener, timeout=0)
    assert list(listener) == []


def test_clients_that_nobody_accepted_are_told_at_close(world, listener):
    client = Background(lambda: connect(world, listener))
    while client.running or not listener._ready:
        listener.domain.serve()
    ours = client.result()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        listener.close()
        gc.collect()
    for channel in ours:
        assert take(channel, EventKind.TEARDOWN_RECEIVED)


def test_iteration_accepts_until_close(world, listener):
    clients = [Background(lambda: connect(world, listener)) for _ in range(3)]
    for count, channels in enumerate(listener, 1):
        world.made.extend(channels)
        if count == 3:
            listener.close()
    assert all(client.result() for client in clients)


def test_the_descriptor_tells_of_clients(world, listener):
    number = listener.fileno()
    assert not select.select([number], [], [], 0)[0]
    client = Background(lambda: connect(world, listener))
    accepted = None
    while accepted is None:
        assert select.select([number], [], [], PATIENCE_S)[0]
        try:
            accepted = listener.accept(0)
        except TimeoutError:
            continue
    world.made.extend(accepted)
    client.result()
    assert listener.fileno() == number
    with pytest.raises(TimeoutError):
        listener.accept(0)
    assert not select.select([number], [], [], 0)[0]


def test_what_is_no_spec_is_refused_and_the_name_stays_free(scheme):
    address = f"{scheme}:specs"
    with pytest.raises(ValueError, match="without channels"):
        bulk.listen(address, [])
    with pytest.raises(TypeError, match="ChannelSpec"):
        bulk.listen(address, [Direction.TX])
    with pytest.raises(TypeError):
        ChannelSpec(direction=Direction.TX, trust=None)
    with pytest.raises(ValueError, match="meta_size"):
        ChannelSpec(direction=Direction.TX, trust=Trust.FULL, meta_size=4096)
    bulk.listen(address, BOTH).close()


def test_repr_says_where_and_how_many_wait(world, listener):
    assert listener.address in repr(listener)
    listener.close()
    assert "closed" in repr(listener)


def test_a_server_process_serves_clients_that_are_killed_one_after_the_other(spawn):
    def client(pipe, address, stop):
        import bulktransfer as bulk

        up, down = bulk.connect(address)
        alloc = bulk.Allocator(count=2, size=4096)
        up.assign_pool(alloc.pool)
        down.assign_pool(alloc.pool)
        buffer = alloc.alloc()
        buffer.put(b"ping")
        up.move(buffer)
        back = down.receive_buffer().buffer
        pipe.send(back.tobytes())
        pipe.recv()

    with bulk.listen("shm:", BOTH) as listener:
        for _ in range(3):
            child = spawn(client, listener.address, False)
            down, up = listener.accept(PATIENCE_S)
            event = down.receive_buffer(PATIENCE_S)
            event.buffer.put(b"pong")
            up.move(event.buffer)
            assert child.receive() == b"pong"
            child.kill()
            for channel in (down, up):
                with pytest.raises(bulk.BrokenChannelError):
                    receive_on(channel)
        gc.collect()
        assert len(listener.domain.pools) == 0


def test_connect_with_a_continuation_returns_at_once_and_tells_of_all_channels(world, listener):
    outcomes = []
    (first,) = connect(world, listener, done=outcomes.append)
    assert first.state is ChannelState.BINDING
    accepting = Background(lambda: listener.accept(PATIENCE_S))
    while not outcomes:
        with pytest.raises(bulk.WouldBlock):
            first.receive_nowait()
    world.made.extend(accepting.result())
    (outcome,) = outcomes
    world.made.extend(outcome.channel)
    assert outcome.error is None
    assert outcome.channel[0] is first
    assert [channel.direction for channel in outcome.channel] == [Direction.TX, Direction.RX]
    assert all(channel.state is ChannelState.CONNECTED for channel in outcome.channel)


def readable(listener) -> bool:
    return bool(select.select([listener], [], [], 0)[0])


def test_a_client_that_another_thread_brings_while_one_is_accepted_keeps_the_descriptor_readable(world, listener):
    class Interrupted(type(listener._ready)):
        """Another thread brings a client just after this one saw that nobody waits."""

        def __len__(self):
            count = super().__len__()
            if not count and waiting:
                self.append(waiting.pop())
                os.eventfd_write(listener._signal.fileno(), 1)
            return count

    waiting: list[tuple[bulk.Channel, ...]] = []
    listener.fileno()
    _, first = met(world, listener)
    listener._ready = Interrupted([first])
    waiting.append(first)
    listener.accept(0)
    assert readable(listener)
    assert listener.accept(0) is first
    assert not readable(listener)


def test_a_signal_that_came_late_does_not_keep_the_descriptor_readable(world, listener):
    listener.fileno()
    os.eventfd_write(listener._signal.fileno(), 1)  # its client was accepted before the other thread signalled
    assert readable(listener)
    with pytest.raises(TimeoutError):
        listener.accept(0)
    assert not readable(listener)


def test_the_descriptor_is_readable_though_a_client_came_while_it_was_made(world, listener, monkeypatch):
    _, theirs = met(world, listener)
    made = os.eventfd

    def slow(*args):
        descriptor = made(*args)
        listener._ready.append(theirs)  # by another thread, which saw no descriptor to signal on
        return descriptor

    monkeypatch.setattr("bulktransfer.core.listener.os.eventfd", slow)
    assert readable(listener)
    assert listener.accept(0) is theirs
