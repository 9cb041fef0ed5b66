"""A fork: the child has none of the parent's channels, and the parent's are unharmed, whatever the child does."""

from __future__ import annotations

import gc
import os
import warnings

import pytest

import bulktransfer as bulk
import meeting
from bulktransfer import ChannelSpec, Direction, EventKind, Trust
from forking import fork, in_child
from meeting import bound, create
from worlds import PATIENCE_S, take

scheme, world = meeting.scheme, meeting.world


def raises_forked(*calls):
    """The names of what each call raised."""
    found = []
    for call in calls:
        try:
            call()
        except Exception as error:
            found.append(type(error).__name__)
        else:
            found.append("nothing")
    return found


def test_every_call_on_an_inherited_channel_raises_forked_error(world):
    tx, rx, alloc, _ = world.line()
    waiting = create(world)
    buffer = alloc.alloc()
    names = in_child(
        lambda: raises_forked(
            lambda: tx.move(buffer),
            lambda: tx.copy(buffer),
            lambda: tx.move_many([buffer]),
            rx.receive,
            rx.receive_nowait,
            rx.receive_buffer,
            lambda: rx.receive_many(1),
            tx.destroy,
            lambda: tx.assign_pool(alloc.pool),
            lambda: tx.remove_pool(alloc.pool),
            rx.fileno,
            waiting.wait_bound,
            waiting.receive,
            alloc.alloc,
            lambda: alloc.alloc(timeout=None),
        )
    )
    assert set(names) == {"ForkedError"}, names
    tx.move(buffer)
    assert take(rx, EventKind.MOVE_RECEIVED)


def test_a_domain_of_the_parent_makes_nothing_in_the_child(world):
    domain = bulk.Domain()
    address = f"{world.scheme}:fresh"
    names = in_child(
        lambda: raises_forked(
            lambda: bulk.create(address, direction=Direction.TX, trust=Trust.FULL, domain=domain),
            lambda: bulk.bind(address, domain=domain, timeout=0),
            lambda: bulk.listen(address, [ChannelSpec(direction=Direction.TX, trust=Trust.FULL)], domain=domain),
            lambda: bulk.Allocator(count=1, size=4096, domain=domain),
        )
    )
    assert names == ["ForkedError"] * 4


def test_the_child_has_a_fresh_default_domain_that_works(world):
    inherited = bulk.current_domain().id

    def in_it():
        assert bulk.current_domain().id != inherited
        tx = bulk.create("shm:", direction=Direction.TX, trust=Trust.FULL)
        other = bulk.Domain()
        task = meeting.Background(lambda: bulk.bind(tx.address, domain=other))
        tx.wait_bound(PATIENCE_S)
        rx = task.result()
        with bulk.Allocator(count=1, size=4096) as alloc:
            serving = meeting.Background(rx.receive)
            tx.assign_pool(alloc.pool)
            serving.result()
            buffer = alloc.alloc()
            buffer.put(b"in the child")
            tx.move(buffer)
            return rx.receive_buffer().buffer.tobytes()

    assert in_child(in_it) == b"in the child"
    assert bulk.current_domain().id == inherited


def test_a_domain_that_was_current_at_the_fork_is_not_current_in_the_child():
    with bulk.Domain() as domain:
        assert in_child(lambda: bulk.current_domain() is not domain)
        assert bulk.current_domain() is domain


def test_the_child_sees_zeros_where_the_parent_has_pools_and_shares_nothing(world):
    tx, rx, alloc, there = world.line()
    buffer = alloc.alloc()
    buffer.put(b"secret")
    view = memoryview(buffer)

    def look():
        seen = bytes(view)
        view[:] = b"poison"
        return seen

    assert in_child(look) == bytes(6)
    assert bytes(view) == b"secret"
    view.release()
    tx.move(buffer)
    assert take(rx, EventKind.MOVE_RECEIVED).buffer.tobytes() == b"secret"
    assert there


def test_closing_everything_in_the_child_is_silent_and_harms_nobody(world):
    tx, rx, alloc, _ = world.line()
    waiting = create(world)
    with bulk.listen(f"{world.scheme}:", [ChannelSpec(direction=Direction.TX, trust=Trust.FULL)]) as listener:
        ws = bulk.WaitSet()
        ws.add(rx)

        def close_all():
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                for thing in (tx, rx, waiting, listener, ws, alloc):
                    thing.close()
                gc.collect()
            return True

        assert in_child(close_all)
        tx.move(alloc.alloc())
        assert ws.wait(PATIENCE_S) == [rx]
        assert take(rx, EventKind.MOVE_RECEIVED)
        bound(world, waiting)
        client = meeting.Background(lambda: bulk.connect(listener.address, domain=bulk.Domain()))
        world.made.extend(listener.accept(PATIENCE_S))
        world.made.extend(client.result())
        ws.close()


def test_objects_that_die_in_the_child_die_in_silence(world):
    things = [*world.line(), create(world), bulk.WaitSet(), bulk.Domain()]

    def drop():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            world.made.clear()
            things.clear()
            gc.collect()
        return [str(one.message) for one in caught]

    assert in_child(drop) == []
    things[4].close()


def test_the_exit_of_a_child_does_not_end_the_parents_channels(spawn):
    def parent(pipe):
        import os
        import sys

        import bulktransfer as bulk

        tx = bulk.create("shm:", direction=bulk.Direction.TX, trust=bulk.Trust.FULL)
        pipe.send(tx.address)
        tx.wait_bound()
        child = os.fork()
        if child == 0:
            sys.exit(0)  # with its atexit handlers
        assert os.waitpid(child, 0)[1] == 0
        alloc = bulk.Allocator(count=1, size=4096)
        tx.assign_pool(alloc.pool)
        tx.move(alloc.alloc())
        pipe.recv()
        tx.close()

    child = spawn(parent)
    rx = bulk.bind(child.receive())
    assert take(rx, EventKind.POOL_ASSIGNED)
    assert take(rx, EventKind.MOVE_RECEIVED)
    child.send("end")
    assert take(rx, EventKind.TEARDOWN_RECEIVED)
    child.join()
    rx.close()


def test_a_fork_while_another_thread_waits_leaves_both_working(world):
    tx, rx, alloc, _ = world.line()
    waiting = meeting.Background(rx.receive)
    for _ in range(3):
        assert in_child(lambda: bulk.current_domain() is not None)
    tx.move(alloc.alloc())
    assert waiting.result().kind is EventKind.MOVE_RECEIVED


def test_a_fork_inside_a_callback_leaves_the_child_able_to_wait(world):
    found = []

    def moved(_):
        found.append(in_child(wait_for_nothing))

    tx, rx = world.channel(*world.domains(2), binder={"callbacks": bulk.Callbacks(move_received=moved)})
    alloc = world.allocator(tx.domain)
    world.assign(tx, rx, alloc.pool)
    tx.move(alloc.alloc())
    with pytest.raises(bulk.WouldBlock):
        rx.receive_nowait()
    assert found == ["EndpointNotFoundError"]


def wait_for_nothing():
    return raises_forked(lambda: bulk.bind("shm:nobody", timeout=0.001))[0]


def test_a_dead_parent_is_noticed_though_its_child_lives_on(spawn):
    def parent(pipe, address):
        import os
        import signal

        import bulktransfer as bulk

        bulk.bind(address)
        child = os.fork()
        if child == 0:
            import ctypes

            ctypes.CDLL(None).prctl(1, 0)
            signal.pause()
        pipe.send(child)
        pipe.recv()

    tx = bulk.create("shm:", direction=Direction.TX, trust=Trust.FULL)
    child = spawn(parent, tx.address)
    tx.wait_bound(PATIENCE_S)
    orphan = child.receive()
    try:
        child.kill()
        with pytest.raises(bulk.BrokenChannelError):
            tx.receive(PATIENCE_S)
    finally:
        os.kill(orphan, 9)


def test_forked_children_talk_to_their_parent(world):
    if world.scheme == "local":
        pytest.skip("local: ends at the process")
    rx = create(world, direction=Direction.RX)

    def child(pipe):
        tx = bulk.bind(rx.address)
        alloc = bulk.Allocator(count=1, size=4096)
        tx.assign_pool(alloc.pool)
        buffer = alloc.alloc()
        buffer.put(b"from the child")
        tx.move(buffer)
        pipe.recv()
        tx.close()

    task = fork(child)
    rx.wait_bound(PATIENCE_S)
    assert rx.peer.pid == task.pid
    assert rx.receive_buffer(PATIENCE_S).buffer.tobytes() == b"from the child"
    task.pipe.send("end")
    task.result()


# -- the end of the interpreter ------------------------------------------------------------------------------------

EXITS = {
    "plain": "",
    "sys.exit": "import sys; sys.exit(0)",
    "live views": "view = memoryview(kept)",
    "wait set": "ws = bulk.WaitSet(); ws.add(tx)",
    "cycle": "tx.user_state = tx; kept_too = [kept]; kept_too.append(kept_too)",
    "waiting thread": "import threading; threading.Thread(target=tx.receive, daemon=True).start()",
    "unbound": "more = bulk.create('shm:', direction=bulk.Direction.TX, trust=bulk.Trust.FULL)",
    "listener": "more = bulk.listen('shm:', [bulk.ChannelSpec(direction=bulk.Direction.TX, trust=bulk.Trust.FULL)])",
    "pair": "more = bulk.pair(direction=bulk.Direction.TX, trust=bulk.Trust.FULL)",
    "full ring": "[tx.move(b) for b in alloc.alloc_many(900)]",
}


@pytest.mark.parametrize("way", EXITS)
def test_the_interpreter_exits_in_silence_with_everything_open_and_what_was_sent_arrives(spawn, way):
    source = f"""
    import bulktransfer as bulk
    tx = bulk.bind(pipe.recv())
    alloc = bulk.Allocator(count=1000, size=4096)
    tx.assign_pool(alloc.pool)
    first, kept = alloc.alloc(), alloc.alloc()
    first.put(b"last words")
    tx.move(first)
    pipe.send("sent")
    {EXITS[way]}
    """
    rx = bulk.create("shm:", direction=Direction.RX, trust=Trust.FULL, limits=bulk.Limits(slot_count=8))
    child = spawn(source)
    child.send(rx.address)
    rx.wait_bound(PATIENCE_S)
    assert take(rx, EventKind.POOL_ASSIGNED)
    assert take(rx, EventKind.MOVE_RECEIVED).buffer.tobytes() == b"last words"
    assert child.receive() == "sent"
    kinds = [event.kind for event in rx]
    assert kinds == [EventKind.MOVE_RECEIVED] * (900 if way == "full ring" else 0) + [EventKind.TEARDOWN_RECEIVED]
    assert child.join() == ""
    rx.close()
