"""docs/protocol.md holds: an implementation written from that page alone talks to the library over real sockets."""

from __future__ import annotations

import struct
import threading

import pytest

import bulktransfer as bulk
import foreign
from bulktransfer import BufferState, ChannelSpec, Direction, EventKind, Role, Trust
from meeting import Background
from worlds import PATIENCE_S, World, nothing_comes, take, together, until_the_end

SECRET = b"sixteen bytes or more, in a file"


@pytest.fixture
def world():
    with World("tcp") as world:
        yield world


def meet(world, direction, *, secret=None, **options):
    """A channel that the library created, and the foreign binder of it."""
    network = bulk.Network(secret=secret) if secret is not None else None
    channel = bulk.create(
        "tcp:", direction=direction, trust=Trust.NONE, domain=bulk.Domain(), network=network, **options
    )
    world.made.append(channel)
    port = int(channel.address.rpartition(":")[2])
    stranger, _ = together(lambda: foreign.Binder(port, secret), lambda: channel.wait_bound(PATIENCE_S))
    world.made.append(stranger.sock)
    return channel, stranger


def test_a_stranger_takes_what_the_library_moves_and_passes_it_back(world):
    channel, stranger = meet(world, Direction.TX, meta_size=100)
    assert stranger.terms == [foreign.Terms(foreign.RX, foreign.SLAVE, foreign.NONE, 100, 1024)]
    alloc = world.allocator(channel.domain, count=4, size=1 << 20)
    (slot, pool, count, size), _ = together(stranger.take_pool, lambda: channel.assign_pool(alloc.pool))
    assert (pool, count, size) == (alloc.pool.id.bytes, 4, 1 << 20)
    buffer = alloc.alloc()
    contents = bytes(range(256)) * 3000
    buffer.put(contents)
    outcomes = []
    channel.move(buffer, b"three quarters", outcomes.append)
    frame = stranger.entry(foreign.MOVE)
    assert (frame.slot, frame.index, frame.meta) == (slot, buffer.index, b"three quarters")
    assert frame.body == contents  # exactly `length` bytes travelled
    stranger.send(foreign.PASS, slot=slot, index=frame.index)
    assert take(channel, EventKind.BUFFER_RECEIVED).buffer is buffer
    assert nothing_comes(channel)  # the frame that passed it back said that it was taken
    assert [outcome.error for outcome in outcomes] == [None]
    assert buffer.state is BufferState.READ_WRITE


def test_a_stranger_reads_a_copy_and_releases_it(world):
    channel, stranger = meet(world, Direction.TX)
    alloc = world.allocator(channel.domain)
    (slot, *_), _ = together(stranger.take_pool, lambda: channel.assign_pool(alloc.pool))
    buffer = alloc.alloc()
    buffer.put(b"read me")
    channel.copy(buffer)
    frame = stranger.entry(foreign.COPY)
    assert frame.body == b"read me"
    assert buffer.state is BufferState.READ_ONLY_OWNED
    stranger.send(foreign.RELEASE, slot=slot, index=frame.index)
    assert take(channel, EventKind.COPY_RELEASED).buffer is buffer
    assert buffer.state is BufferState.READ_WRITE


def test_a_stranger_assigns_moves_and_copies_and_gets_its_buffers_back(world):
    channel, stranger = meet(world, Direction.RX, meta_size=8)
    _, event = together(
        lambda: stranger.assign(1, bytes(range(16)), 3, 8192), lambda: take(channel, EventKind.POOL_ASSIGNED)
    )
    assert (event.pool.id.bytes, len(event.pool), event.pool.buffer_size) == (bytes(range(16)), 3, 8192)
    assert all(buffer.state is BufferState.INVALID for buffer in event.pool)
    stranger.send(foreign.MOVE, slot=1, index=2, meta=b"hello", body=b"x" * 5000)
    got = take(channel, EventKind.MOVE_RECEIVED)
    assert (got.buffer.index, got.meta, got.buffer.tobytes()) == (2, b"hello", b"x" * 5000)
    channel.pass_(got.buffer)
    frame = stranger.entry(foreign.PASS)
    assert (frame.slot, frame.index, frame.body) == (1, 2, b"")
    stranger.send(foreign.COPY, slot=1, index=0, body=b"look")
    copy = take(channel, EventKind.COPY_RECEIVED).buffer
    assert (copy.tobytes(), copy.state) == (b"look", BufferState.READ_ONLY)
    channel.release(copy)
    assert stranger.entry(foreign.RELEASE).index == 0


def test_a_stranger_that_asks_hears_at_once_how_far_it_was_read(world):
    channel, stranger = meet(world, Direction.RX)
    together(lambda: stranger.assign(1, bytes(16), 3, 4096), lambda: take(channel, EventKind.POOL_ASSIGNED))
    stranger.send(foreign.MOVE, slot=1, index=0, body=b"first")
    stranger.send(foreign.MOVE, slot=1, index=1, flags=foreign.ASK, body=b"second")
    for _ in range(2):
        take(channel, EventKind.MOVE_RECEIVED)
    while stranger.frame().consumed < stranger.sent:  # nothing but notes comes, and the last says all
        continue


def test_what_nobody_asks_about_is_told_when_there_is_nothing_else_to_do(world):
    channel, stranger = meet(world, Direction.RX)
    together(lambda: stranger.assign(1, bytes(16), 3, 4096), lambda: take(channel, EventKind.POOL_ASSIGNED))
    stranger.send(foreign.MOVE, slot=1, index=0, body=b"only")
    take(channel, EventKind.MOVE_RECEIVED)  # and never calls again: the helper tells
    while stranger.frame().consumed < stranger.sent:
        continue


def everything_is_told(stranger):
    """Until the library has told, without being asked, that it took all there is."""
    while stranger.frame().consumed < stranger.sent:  # a TimeoutError where nobody tells
        continue


@pytest.mark.parametrize("later", ["receive", "receive_nowait", "receive_buffer", "receive_many"])
def test_what_is_taken_long_after_it_was_read_is_told_too(world, later):
    channel, stranger = meet(world, Direction.RX)
    together(lambda: stranger.assign(1, bytes(16), 2, 4096), lambda: take(channel, EventKind.POOL_ASSIGNED))
    arguments = (9,) if later == "receive_many" else ()
    for _ in range(5):
        read = channel.statistics()["wire"]["bytes_taken"]
        for index in range(2):
            stranger.send(foreign.MOVE, slot=1, index=index, body=b"which")
        while channel.statistics()["wire"]["bytes_taken"] < read + 2 * (foreign.HEAD.size + 5):
            continue  # the helper reads: both entries are in the ring
        got = [take(channel, EventKind.MOVE_RECEIVED).buffer]
        while stranger.frame().consumed < stranger.sent - 1:
            continue
        found = getattr(channel, later)(*arguments)  # which finds it in the ring; the helper has nothing else to do
        got += [event.buffer for event in (found if isinstance(found, list) else [found])]
        everything_is_told(stranger)
        for buffer in got:
            channel.pass_(buffer)
            stranger.entry(foreign.PASS)


def test_what_is_taken_by_somebody_who_goes_on_calling_is_told(world):
    channel, stranger = meet(world, Direction.RX)
    together(lambda: stranger.assign(1, bytes(16), 3, 4096), lambda: take(channel, EventKind.POOL_ASSIGNED))
    for index in range(3):
        stranger.send(foreign.MOVE, slot=1, index=index, body=b"one at a time")
        take(channel, EventKind.MOVE_RECEIVED)
        heard = Background(lambda: everything_is_told(stranger))
        while heard.thread.is_alive():  # no tick passes without a call, and no call sends
            assert nothing_comes(channel)
        heard.result()


@pytest.mark.watchdog(60)
@pytest.mark.parametrize("creator", ["source", "sink"])
def test_what_the_helper_tells_another_link_of_its_process_is_read_there(world, creator):
    """It reads the one and tells on the other in one look at both, after which it has nothing more to do."""
    a, b = world.domains(2)
    tx, rx = world.channel(a, b, creator=creator)
    alloc = world.allocator(a, count=1, size=4096)
    for _ in range(10):
        pool = world.assign(tx, rx, alloc.pool)
        tx.move(alloc.alloc())
        rx.pass_(take(rx, EventKind.MOVE_RECEIVED).buffer)
        alloc.free(take(tx, EventKind.BUFFER_RECEIVED).buffer)
        outcomes = []
        while True:
            try:
                rx.remove_pool(pool, done=outcomes.append)  # it looks at what is known here, and reads nothing
                break
            except bulk.PoolBusyError:
                continue
        take(tx, EventKind.POOL_REMOVED)
        while not outcomes:
            assert nothing_comes(rx)
        assert outcomes[0].error is None


def test_words_that_come_before_contents_do_not_send_a_sleeper_back_to_sleep(world):
    channel, stranger = meet(world, Direction.RX, wait="block")
    together(lambda: stranger.assign(1, bytes(16), 3, 65536), lambda: take(channel, EventKind.POOL_ASSIGNED))
    contents = bytes(range(200)) * 100
    stranger.send(foreign.MOVE, slot=1, index=0, body=contents)
    channel.pass_(take(channel, EventKind.MOVE_RECEIVED).buffer)
    stranger.entry(foreign.PASS)
    before = channel.statistics()["waits"]
    receiving = Background(lambda: take(channel, EventKind.MOVE_RECEIVED))
    while channel.statistics()["waits"] == before:  # it sleeps, or is about to
        continue
    # One segment, one wake-up: the head says that the pass was taken, and most of the contents are left to be read.
    stranger.send(foreign.MOVE, slot=1, index=1, body=contents)
    assert receiving.result().buffer.tobytes() == contents


def test_what_a_stranger_refuses_comes_back(world):
    channel, stranger = meet(world, Direction.TX)
    alloc = world.allocator(channel.domain)
    (slot, *_), _ = together(stranger.take_pool, lambda: channel.assign_pool(alloc.pool))
    buffer = alloc.alloc()
    channel.copy(buffer)
    frame = stranger.entry(foreign.COPY)
    stranger.refused += 1
    stranger.send(
        foreign.REFUSE, slot=slot, index=frame.index, extra=19 << 16 | foreign.COPY, serial=stranger.taken - 1
    )
    event = take(channel, EventKind.OPERATION_REFUSED)
    assert event.buffer is buffer
    assert isinstance(event.error, bulk.CopyRefusedError)
    assert buffer.state is BufferState.READ_WRITE


def test_a_stranger_with_the_secret_is_let_in(world):
    channel, stranger = meet(world, Direction.RX, secret=SECRET)
    assert channel.state is bulk.ChannelState.CONNECTED
    _, events = together(lambda: [stranger.end()], lambda: until_the_end(channel))
    assert [event.kind for event in events] == [EventKind.TEARDOWN_RECEIVED]


@pytest.mark.parametrize("secret", [None, b"sixteen other bytes or even more"])
def test_a_stranger_without_the_secret_is_not(world, secret):
    channel = bulk.create(
        "tcp:", direction=Direction.RX, trust=Trust.NONE, domain=bulk.Domain(), network=bulk.Network(secret=SECRET)
    )
    world.made.append(channel)
    port = int(channel.address.rpartition(":")[2])
    found = []

    def knock():
        try:
            foreign.Binder(port, secret)
        except (foreign.Refused, EOFError, ConnectionError) as error:
            found.append(error)

    thread = threading.Thread(target=knock)
    thread.start()
    while thread.is_alive():
        with pytest.raises(TimeoutError):
            channel.wait_bound(0.01)
    thread.join()
    assert len(found) == 1
    assert isinstance(found[0], foreign.Refused if secret is None else (EOFError, ConnectionError))
    assert channel.state is bulk.ChannelState.INITIALIZED


def test_a_stranger_gets_every_channel_of_a_listener(world):
    specs = [
        ChannelSpec(direction=Direction.RX, trust=Trust.NONE, role=Role.MASTER),
        ChannelSpec(direction=Direction.TX, trust=Trust.NONE, meta_size=16),
        ChannelSpec(direction=Direction.RX, trust=Trust.NONE),
    ]
    listener = bulk.listen("tcp:", specs, domain=bulk.Domain())
    world.made.append(listener)
    port = int(listener.address.rpartition(":")[2])
    stranger, channels = together(lambda: foreign.Binder(port), lambda: listener.accept(PATIENCE_S))
    world.made += [stranger.sock, *[wire.sock for wire in stranger.more], *channels]
    assert [terms.direction for terms in stranger.terms] == [foreign.TX, foreign.RX, foreign.TX]
    third = stranger.more[1]
    request = foreign.message(foreign.ASSIGN_REQUEST, "IH16sIQBB", 1, 1, bytes(16), 2, 4096, foreign.NONE, 0)
    third.control(request)
    assert channels[2].wait_for(lambda: bool(channels[2].assigning.incoming), PATIENCE_S)
    assert struct.unpack_from("!IH", third.hear(foreign.ASSIGN_ANSWER)) == (1, 0)


def test_both_ends_may_end_it_in_order(world):
    channel, stranger = meet(world, Direction.TX)

    def answer():
        assert stranger.hear(foreign.TEARDOWN)[-1] == 0
        stranger.control(foreign.message(foreign.TEARDOWN_ANSWER))
        stranger.hang_up()

    together(lambda: [answer()], lambda: channel.destroy(PATIENCE_S))
    with pytest.raises(bulk.ClosedChannelError):
        channel.receive(0)


def test_what_was_sent_before_a_close_arrives(world):
    channel, stranger = meet(world, Direction.TX)
    alloc = world.allocator(channel.domain, count=4, size=8 << 20)
    together(stranger.take_pool, lambda: channel.assign_pool(alloc.pool))
    buffers = alloc.alloc_many(4)
    for number, buffer in enumerate(buffers):
        buffer.put(bytes([number]) * (8 << 20))
    channel.move_many(buffers)
    channel.close()
    for number in range(4):
        assert stranger.entry(foreign.MOVE).body == bytes([number]) * (8 << 20)
    assert stranger.hear(foreign.TEARDOWN)[-1] == 1
    with pytest.raises(EOFError):
        stranger.frame()


def leave_early(pipe):
    import bulktransfer as bulk
    from bulktransfer import Direction, Trust
    from bulktransfer._native.far import finish_sending

    channel = bulk.create("tcp:", direction=Direction.TX, trust=Trust.NONE)
    pipe.send(int(channel.address.rpartition(":")[2]))
    channel.wait_bound(20)
    with bulk.Allocator(count=1, size=4096) as alloc:
        channel.assign_pool(alloc.pool)
        buffer = alloc.alloc()
        buffer.put(b"the last words")
        channel.move(buffer)
        channel.close()
        pipe.send(finish_sending(4))  # less than a closed channel waits for its peer to hang up


def test_a_process_that_exits_waits_for_no_idle_peer_and_what_it_sent_arrives(spawn):
    child = spawn(leave_early)
    stranger = foreign.Binder(child.receive())
    with stranger.sock:
        stranger.take_pool()
        assert child.receive() == 0  # all of it is here, though nobody has read it, and nobody has hung up
        child.join()
        stranger.send(foreign.NOTE)  # which finds nobody
        assert stranger.entry(foreign.MOVE).body == b"the last words"
        assert stranger.hear(foreign.TEARDOWN)[-1] == 1
