"""Create and bind: who asks for what, who is refused and why, and that a refusal leaves things as they were."""

from __future__ import annotations

import gc
import threading
import warnings

import pytest

import bulktransfer as bulk
import meeting
from bulktransfer import ChannelState, Direction, EventKind, Role, Trust
from meeting import bind, bound, create, refused
from worlds import PATIENCE_S, take, together

scheme, world = meeting.scheme, meeting.world
COMPLEMENT = {Role.MASTER: Role.SLAVE, Role.SLAVE: Role.MASTER}


def forget(held):
    held.clear()
    gc.collect()


# -- what is agreed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("here", list(Role))
@pytest.mark.parametrize("there", list(Role))
def test_roles_are_complements_and_equal_ones_are_refused(world, here, there):
    creator = create(world, role=here)
    if here is there and here is not Role.GENERIC:
        assert isinstance(refused(world, creator, role=there), bulk.RoleConflictError)
        assert creator.state is ChannelState.INITIALIZED
        assert creator.role is here
        return
    binder = bound(world, creator, role=there)
    expected = COMPLEMENT.get(there, Role.MASTER) if here is Role.GENERIC else here
    assert (creator.role, binder.role) == (expected, COMPLEMENT[expected])


@pytest.mark.parametrize("direction", list(Direction))
def test_the_binder_adopts_direction_trust_and_meta_size_of_the_creator(world, direction):
    creator = create(world, direction=direction, meta_size=100)
    binder = bound(world, creator)
    assert binder.direction is direction.other
    assert creator.direction is direction
    assert binder.trust is creator.trust is Trust.FULL
    assert binder.meta_size == creator.meta_size == 100
    assert creator.state is binder.state is ChannelState.CONNECTED


def test_a_role_refusal_leaves_the_creator_open_for_the_next_binder(world):
    creator = create(world, role=Role.MASTER)
    assert isinstance(refused(world, creator, role=Role.MASTER), bulk.RoleConflictError)
    assert bound(world, creator, role=Role.SLAVE).role is Role.SLAVE


def test_a_binder_that_names_another_trust_is_refused_by_name(world):
    creator = create(world)
    for trust in (Trust.HALF, Trust.NONE):
        error = refused(world, creator, trust=trust)
        assert isinstance(error, bulk.TrustMismatchError)
        assert trust.name in str(error)
    assert bound(world, creator, trust=Trust.FULL).trust is Trust.FULL


@pytest.mark.parametrize("act", ["create", "bind"])
def test_trust_none_is_a_type_error_that_says_what_to_say(world, act):
    address = f"{world.scheme}:x"
    call = {
        "create": lambda: bulk.create(address, direction=Direction.TX, trust=None),
        "bind": lambda: bulk.bind(address, trust=None, timeout=0),
    }
    with pytest.raises(TypeError, match=r"say Trust\.NONE, isolated, or leave it out"):
        call[act]()


def test_a_creator_names_a_trust(scheme):
    with pytest.raises(ValueError, match="the creator decides"):
        bulk.create(f"{scheme}:", direction=Direction.TX, trust=Trust.UNINITIALIZED)
    with pytest.raises(TypeError):
        bulk.create(f"{scheme}:", direction=Direction.TX)


def test_a_refused_argument_leaves_the_name_free(scheme):
    address = f"{scheme}:once"
    for wrong in ({"meta_size": 2049}, {"role": 1}, {"wait": "maybe"}, {"trust": None}, {"direction": 0}):
        with pytest.raises((ValueError, TypeError)):
            bulk.create(address, **{"direction": Direction.TX, "trust": Trust.FULL, **wrong})
    bulk.create(address, direction=Direction.TX, trust=Trust.FULL).close()


@pytest.mark.parametrize(("size", "fault"), [(-1, ValueError), (2049, ValueError), (1.0, TypeError), (True, TypeError)])
def test_meta_size_is_0_to_2048(scheme, size, fault):
    with pytest.raises(fault, match=r"meta_size"):
        bulk.create(f"{scheme}:", direction=Direction.TX, trust=Trust.FULL, meta_size=size)


@pytest.mark.parametrize("size", [0, 1, 32, 33, 2048])
def test_meta_size_bounds_hold_on_both_sides(world, size):
    a, b = world.domains(2)
    tx, rx = world.channel(a, b, meta_size=size)
    alloc = world.allocator(a)
    world.assign(tx, rx, alloc.pool)
    meta = bytes(i % 251 for i in range(size))
    tx.move(alloc.alloc(), meta)
    assert take(rx, EventKind.MOVE_RECEIVED).meta == meta
    with pytest.raises(bulk.MetaSizeError):
        tx.move(alloc.alloc(), meta + b"!")


@pytest.mark.parametrize("address", ["nowhere:x", "local", "", "local:a/b", "shm:a b", "local:" + "n" * 65])
def test_an_address_that_is_none_is_a_value_error(address):
    with pytest.raises(ValueError, match=r"."):
        bulk.create(address, direction=Direction.TX, trust=Trust.FULL)
    with pytest.raises(ValueError, match=r"."):
        bulk.bind(address, timeout=0)


def test_a_name_that_is_taken_is_refused_and_the_first_lives_on(world):
    first = create(world)
    with pytest.raises(OSError, match=r"in use|exist|taken"):
        bulk.create(first.address, direction=Direction.RX, trust=Trust.FULL)
    assert bound(world, first).state is ChannelState.CONNECTED


def test_a_name_is_free_again_after_close(world):
    first = create(world)
    first.close()
    again = bulk.create(first.address, direction=Direction.TX, trust=Trust.FULL)
    world.made.append(again)
    assert again.address == first.address


def test_the_channel_limit_of_a_domain_is_kept(world):
    domain = bulk.Domain()
    first = create(world, domain, limits=bulk.Limits(channels=1))
    with pytest.raises(bulk.LimitError):
        create(world, domain, limits=bulk.Limits(channels=1))
    first.close()
    del first
    world.made.clear()
    gc.collect()
    create(world, domain, limits=bulk.Limits(channels=1))


def test_repr_shows_address_end_role_trust_and_state(world):
    creator = create(world, role=Role.MASTER)
    for word in (creator.address, "source", "MASTER", "FULL", "INITIALIZED"):
        assert word in repr(creator)
    binder = bound(world, creator)
    assert "CONNECTED" in repr(creator)
    assert "sink" in repr(binder)
    binder.close()
    assert "CLOSED" in repr(binder)


def test_a_channel_has_no_public_pickle(world):
    import pickle

    with pytest.raises(TypeError, match=r"bulk\.pair"):
        pickle.dumps(create(world))


# -- who is refused ------------------------------------------------------------------------------------------------


def test_a_second_binder_is_refused_without_touching_the_first(world):
    a, b = world.domains(2)
    tx, rx = world.channel(a, b)
    alloc = world.allocator(a)
    error = refused(world, tx)
    assert isinstance(error, bulk.BindRefusedError)
    assert tx.address in str(error)
    world.assign(tx, rx, alloc.pool)
    tx.move(alloc.alloc())
    assert take(rx, EventKind.MOVE_RECEIVED).buffer.owned
    assert tx.peer.pid > 0


def test_of_many_binders_at_once_exactly_one_is_bound(world):
    creator = create(world)
    results = []

    def attempt():
        try:
            results.append(bind(world, creator.address))
        except bulk.BindRefusedError as error:
            results.append(error)

    threads = [threading.Thread(target=attempt) for _ in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        creator.domain.serve()
    connected = [r for r in results if not isinstance(r, Exception)]
    assert len(results) == 8
    assert len(connected) == 1
    assert connected[0].state is ChannelState.CONNECTED


def test_a_veto_reaches_the_binder_and_a_retry_works(world):
    asked = []

    def judge(event):
        asked.append((event.kind, event.channel.peer.pid, event.channel.state))
        if len(asked) == 1:
            raise RuntimeError("not before tea")

    creator = create(world, callbacks=bulk.Callbacks(bind_received=judge))
    error = refused(world, creator)
    assert isinstance(error, bulk.BindRefusedError)
    assert "not before tea" in str(error)
    assert creator.state is ChannelState.INITIALIZED
    assert creator.peer.pid == -1
    assert creator.role is Role.GENERIC
    binder = bound(world, creator)
    assert binder.state is ChannelState.CONNECTED
    assert [kind for kind, *_ in asked] == [EventKind.BIND_RECEIVED] * 2
    assert asked[0][2] is ChannelState.BIND_NEGOTIATE
    with pytest.raises(bulk.WouldBlock):  # the callback had the event; there is no other
        creator.receive_nowait()


def test_closing_the_channel_in_its_own_bind_callback_refuses_the_binder(world):
    creator = create(world, callbacks=bulk.Callbacks(bind_received=lambda event: event.channel.close()))
    error = refused(world, creator)
    assert isinstance(error, bulk.BulkError)
    assert creator.state is ChannelState.CLOSED


def test_keyboard_interrupt_in_a_veto_callback_leaves_the_creator_open(world):
    calls = []

    def judge(_):
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt

    creator = create(world, callbacks=bulk.Callbacks(bind_received=judge))
    outcome = []
    waiting = bulk.bind(creator.address, done=outcome.append, domain=bulk.Domain())
    world.made.append(waiting)
    with pytest.raises(KeyboardInterrupt):
        meeting.serve(creator, lambda: False)
    assert creator.state is ChannelState.INITIALIZED
    assert bound(world, creator).state is ChannelState.CONNECTED


def test_a_blocking_bind_in_a_callback_would_block(world):
    other = create(world)
    seen = []

    def judge(_):
        try:
            bulk.bind(other.address)
        except bulk.WouldBlock as error:
            seen.append(error)

    creator = create(world, callbacks=bulk.Callbacks(bind_received=judge))
    assert bound(world, creator).state is ChannelState.CONNECTED
    assert len(seen) == 1
    assert other.state is ChannelState.INITIALIZED


# -- the end of a set-up that nobody finishes ----------------------------------------------------------------------


def test_wait_bound_takes_the_event_and_receive_gets_it_otherwise(world):
    creator = create(world)
    bound(world, creator)
    with pytest.raises(bulk.WouldBlock):
        creator.receive_nowait()
    second = create(world)
    _, event = together(lambda: bind(world, second.address), lambda: second.receive(PATIENCE_S))
    assert event.kind is EventKind.BIND_RECEIVED
    assert event.channel is second
    second.wait_bound(0)  # connected: nothing to wait for


def test_wait_bound_times_out_and_may_be_called_again(world):
    creator = create(world)
    for timeout in (0, 0.001):
        with pytest.raises(TimeoutError, match="nobody bound"):
            creator.wait_bound(timeout)
    bound(world, creator)


def test_wait_bound_on_a_closed_channel_raises_its_end(world):
    creator = create(world)
    creator.close()
    with pytest.raises(bulk.ClosedChannelError):
        creator.wait_bound()


def test_a_channel_closed_by_another_thread_ends_wait_bound(world):
    creator = create(world)

    def wait():
        with pytest.raises(bulk.ClosedChannelError):
            creator.wait_bound()

    thread = threading.Thread(target=wait)
    thread.start()
    creator.close()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def test_an_initialized_channel_refuses_what_needs_a_peer(world):
    domain = bulk.Domain()
    creator = create(world, domain)
    alloc = world.allocator(domain)
    buffer = alloc.alloc()
    for act in (
        lambda: creator.assign_pool(alloc.pool),
        lambda: creator.remove_pool(alloc.pool),
        lambda: creator.move(buffer),
        creator.destroy,
    ):
        with pytest.raises(bulk.ChannelStateError, match="INITIALIZED"):
            act()
    assert creator.state is ChannelState.INITIALIZED
    assert creator.pools == ()


def test_a_dropped_channel_closes_with_a_resource_warning_and_frees_its_name(world):
    channel = bulk.create(f"{world.scheme}:", direction=Direction.TX, trust=Trust.FULL)
    address = channel.address
    held = [channel]
    del channel
    with pytest.warns(ResourceWarning, match="dropped without close"):
        forget(held)
    bulk.create(address, direction=Direction.TX, trust=Trust.FULL).close()


def test_a_dropped_connected_channel_tells_its_peer(world):
    a, b = world.domains(2)
    tx, rx = world.channel(a, b)
    world.made.remove(tx)
    held = [tx]
    del tx
    with pytest.warns(ResourceWarning, match="dropped without close"):
        forget(held)
    assert take(rx, EventKind.TEARDOWN_RECEIVED)
    with pytest.raises(bulk.EndOfChannelError):
        rx.receive(0)


def test_a_closed_channel_is_dropped_in_silence(world):
    channel = create(world)
    channel.close()
    world.made.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del channel
        gc.collect()


def test_an_address_that_nobody_could_be_received_at_is_free_again(world, monkeypatch):
    from bulktransfer._native import kernel

    address = f"{world.scheme}:twice"
    add = kernel.poller_add

    def full(poller, fd):
        monkeypatch.setattr(kernel, "poller_add", add)
        raise OSError(12, "no memory to watch it")

    domain = bulk.Domain()
    monkeypatch.setattr(kernel, "poller_add", full)
    with pytest.raises(OSError, match="no memory to watch"):
        bulk.create(address, direction=bulk.Direction.TX, trust=bulk.Trust.FULL, domain=domain)
    bulk.create(address, direction=bulk.Direction.TX, trust=bulk.Trust.FULL, domain=domain).close()
