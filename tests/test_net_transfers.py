"""Promises of channels between machines, over real sockets: what arrives is what was sent, and all of it comes home."""

from __future__ import annotations

import hashlib
import random
import select
import shutil

import pytest

import bulktransfer as bulk
from bulktransfer import BufferState, ChannelSpec, Direction, EventKind, Trust
from certificates import Authority
from meeting import Background
from worlds import INVALID, PATIENCE_S, READ_ONLY, READ_WRITE, World, nothing_comes, take, together, until_the_end

BIG = 3 << 20


@pytest.fixture(scope="module")
def papers(tmp_path_factory):
    """What the two sides of a tls: channel say about their network."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl program to make certificates with")
    authority = Authority(tmp_path_factory.mktemp("papers"))
    mine = authority.papers("creator")
    return {
        "creator": bulk.Network(certificate=mine.certificate, key=mine.key),
        "binder": bulk.Network(authority=authority.certificate),
    }


@pytest.fixture(params=["tcp", "tls"])
def net(request):
    """`net(a, b, ...)`: a channel from a to b; `net.world` ends what it made."""
    sides = request.getfixturevalue("papers") if request.param == "tls" else {"creator": None, "binder": None}
    with World(request.param) as world:

        def connect(source, sink, **options):
            return world.channel(source, sink, network=sides["creator"], binder={"network": sides["binder"]}, **options)

        connect.world = world
        connect.sides = sides
        yield connect


def line(net, *, count=4, size=BIG, **options):
    """The usual: both ends, an allocator at the source, and its pool at the sink."""
    a, b = net.world.domains(2)
    tx, rx = net(a, b, **options)
    alloc = net.world.allocator(a, count=count, size=size)
    return tx, rx, alloc, net.world.assign(tx, rx, alloc.pool)


def noise(size, seed=0):
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize("length", [0, 1, 4096, 16383, 16385, 131072, BIG - 1, BIG])
def test_a_moved_buffer_arrives_as_it_was(net, length):
    tx, rx, alloc, there = line(net, meta_size=2048)
    buffer = alloc.alloc()
    contents, meta = noise(length), noise(length % 2049)
    buffer.put(contents)
    tx.move(buffer, meta)
    assert buffer.state is INVALID
    event = take(rx, EventKind.MOVE_RECEIVED)
    assert (event.buffer.tobytes(), event.meta, event.buffer.state) == (contents, meta, READ_WRITE)
    assert (event.buffer.pool, event.buffer.index) == (there, buffer.index)
    rx.pass_(event.buffer, b"back")
    event = take(tx, EventKind.BUFFER_RECEIVED)
    assert (event.buffer, event.meta, buffer.state) == (buffer, b"back", READ_WRITE)


def test_a_copy_is_read_on_both_sides_until_it_is_released(net):
    tx, rx, alloc, _ = line(net)
    buffer = alloc.alloc()
    buffer.put(b"one")
    tx.copy(buffer)
    event = take(rx, EventKind.COPY_RECEIVED)
    assert (event.buffer.tobytes(), event.buffer.state) == (b"one", READ_ONLY)
    assert buffer.state is BufferState.READ_ONLY_OWNED
    rx.release(event.buffer)
    assert take(tx, EventKind.COPY_RELEASED).buffer.state is READ_WRITE
    assert event.buffer.state is INVALID


def test_only_length_bytes_travel(net):
    tx, rx, alloc, _ = line(net)
    before = tx.statistics()["wire"]["bytes_sent"]
    buffer = alloc.alloc()
    buffer.put(b"x" * 10)
    tx.move(buffer)
    take(rx, EventKind.MOVE_RECEIVED)
    assert tx.statistics()["wire"]["bytes_sent"] - before < 1000


def test_more_than_the_ring_and_the_socket_hold_arrives_in_order(net):
    tx, rx, alloc, _ = line(net, count=24, size=1 << 20, limits=bulk.Limits(slot_count=4))
    digests = []
    for number, buffer in enumerate(alloc.alloc_many(24)):
        buffer.put(noise(1 << 20, number))
        digests.append(hashlib.sha256(buffer).digest())
        tx.move(buffer, b"")
    found = []
    for _ in digests:
        event = take(rx, EventKind.MOVE_RECEIVED)
        found.append(hashlib.sha256(event.buffer).digest())
        rx.pass_(event.buffer)
    assert found == digests
    for _ in digests:
        take(tx, EventKind.BUFFER_RECEIVED)
    assert alloc.pool.states()["READ_WRITE"] == 24


def test_batches_arrive_whole_and_in_order(net):
    tx, rx, alloc, _ = line(net, count=200, size=4096, meta_size=64)
    for round_number in range(5):
        buffers = alloc.alloc_many(200)
        for number, buffer in enumerate(buffers):
            buffer.put(f"{round_number}/{number}".encode())
        tx.move_many(buffers, [str(number).encode() * 16 for number in range(200)])
        events = []
        while len(events) < 200:
            events += rx.receive_many(200 - len(events), PATIENCE_S)
        assert [event.buffer.tobytes() for event in events] == [f"{round_number}/{n}".encode() for n in range(200)]
        assert [event.meta for event in events] == [str(number).encode() * 16 for number in range(200)]
        rx.pass_many([event.buffer for event in events])
        for _ in range(200):
            alloc.free(take(tx, EventKind.BUFFER_RECEIVED).buffer)


def test_continuations_tell_when_the_other_side_took_it(net):
    tx, rx, alloc, _ = line(net)
    outcomes = []
    tx.move(alloc.alloc(), done=outcomes.append)
    assert nothing_comes(tx)
    assert outcomes == []
    event, _ = together(lambda: take(rx, EventKind.MOVE_RECEIVED), lambda: tx.wait_for(tx.pending_outcomes, PATIENCE_S))
    assert nothing_comes(tx)
    assert [outcome.error for outcome in outcomes] == [None]
    assert event.buffer.state is READ_WRITE


def test_both_directions_at_once_do_not_hinder_each_other(net):
    a, b = net.world.domains(2)
    there, here = net(a, b), net(b, a)
    pools = [net.world.allocator(domain, count=16, size=1 << 20) for domain in (a, b)]
    net.world.assign(there[0], there[1], pools[0].pool)
    net.world.assign(here[0], here[1], pools[1].pool)

    def work(tx, rx, alloc, seed):
        for number, buffer in enumerate(alloc.alloc_many(16)):
            buffer.put(noise(1 << 20, seed + number))
            tx.move(buffer)
        return [hashlib.sha256(take(rx, EventKind.MOVE_RECEIVED).buffer).digest() for _ in range(16)]

    first, second = together(
        lambda: work(there[0], here[1], pools[0], 100), lambda: work(here[0], there[1], pools[1], 200)
    )
    assert first == [hashlib.sha256(noise(1 << 20, 200 + n)).digest() for n in range(16)]
    assert second == [hashlib.sha256(noise(1 << 20, 100 + n)).digest() for n in range(16)]


def test_a_second_copy_into_one_domain_is_refused_and_changes_nothing(net):
    a, b = net.world.domains(2)
    first, second = net(a, b), net(a, b)
    alloc = net.world.allocator(a)
    net.world.assign(*first, alloc.pool)
    net.world.assign(*second, alloc.pool)  # of the same domain at the same host: no consent is needed
    buffer = alloc.alloc()
    buffer.put(b"read by two")
    first[0].copy(buffer)
    copy = take(first[1], EventKind.COPY_RECEIVED).buffer
    second[0].copy(buffer)
    _, event = together(
        lambda: [second[1].wait_for(lambda: second[1].statistics()["refused_here"], PATIENCE_S)],
        lambda: take(second[0], EventKind.OPERATION_REFUSED),
    )
    assert isinstance(event.error, bulk.CopyRefusedError)
    assert copy.tobytes() == b"read by two"
    first[1].release(copy)
    assert take(first[0], EventKind.COPY_RELEASED).buffer.state is READ_WRITE


def test_a_pool_that_is_here_through_somebody_else_takes_consent(net):
    a, b, c = net.world.domains(3)
    tx, rx = net(a, b)
    alloc = net.world.allocator(a)
    there = net.world.assign(tx, rx, alloc.pool)
    back, end = net(b, c)
    net.world.assign(back, end, there)
    other, mine = net(c, a)
    third = next(iter(end.pools))
    with pytest.raises(bulk.PoolVetoError, match="through somebody else"):
        together(lambda: mine.wait_for(lambda: mine.assigning.incoming, 0.2) or True, lambda: other.assign_pool(third))


def test_a_receiver_may_bring_the_pool(net):
    a, b = net.world.domains(2)
    tx, rx = net(a, b)
    alloc = net.world.allocator(b)
    there = net.world.assign(rx, tx, alloc.pool)
    assert there[0].state is INVALID
    rx.pass_(alloc.alloc())
    blank = take(tx, EventKind.BUFFER_RECEIVED).buffer
    blank.put(b"filled")
    tx.move(blank)
    assert take(rx, EventKind.MOVE_RECEIVED).buffer.tobytes() == b"filled"


def test_what_comes_home_goes_on_the_free_list(net):
    a, b = net.world.domains(2)
    tx, rx = net(a, b)
    alloc = net.world.allocator(a, count=1, size=4096, reclaim=True)
    net.world.assign(tx, rx, alloc.pool)
    for number in range(20):
        buffer, _ = together(lambda: alloc.alloc(PATIENCE_S), lambda: None)
        buffer.put(str(number).encode())
        tx.move(buffer)
        got = take(rx, EventKind.MOVE_RECEIVED).buffer
        assert got.tobytes() == str(number).encode()
        rx.pass_(got)


def test_a_pool_leaves_the_channel_when_everything_is_home(net):
    tx, rx, alloc, _ = line(net)
    tx.move(alloc.alloc())
    away = take(rx, EventKind.MOVE_RECEIVED).buffer
    with pytest.raises(bulk.PoolBusyError):
        tx.remove_pool(alloc.pool)
    rx.pass_(away)
    take(tx, EventKind.BUFFER_RECEIVED)
    event, _ = together(lambda: take(rx, EventKind.POOL_REMOVED), lambda: tx.remove_pool(alloc.pool))
    assert (tx.pools, rx.pools) == ((), ())
    assert not event.pool.present


def test_the_descriptor_tells_of_everything(net):
    tx, rx, alloc, _ = line(net, count=8, size=65536)
    poll = select.poll()
    poll.register(rx.fileno(), select.POLLIN)
    with pytest.raises(bulk.WouldBlock):
        rx.receive_nowait()
    tx.move_many(alloc.alloc_many(8))
    got = 0
    while got < 8:
        assert poll.poll(PATIENCE_S * 1000)
        rx.receive_nowait()  # one at a time: what was read with it must not be forgotten
        got += 1
    tx.close()
    assert poll.poll(PATIENCE_S * 1000)
    assert [event.kind for event in until_the_end(rx)] == [EventKind.TEARDOWN_RECEIVED]


def test_a_wait_set_waits_for_channels_of_both_kinds(net):
    tx, rx, alloc, _ = line(net, count=8, size=4096)
    with World("local") as near:
        a, b = near.domains(2)
        out, into = near.channel(a, b)
        pool = near.allocator(a)
        near.assign(out, into, pool.pool)
        with bulk.WaitSet() as waits:
            waits.add(rx)
            waits.add(into)
            tx.move(alloc.alloc())
            assert waits.wait(PATIENCE_S) == [rx]
            take(rx, EventKind.MOVE_RECEIVED)
            out.move(pool.alloc())
            assert waits.wait(PATIENCE_S) == [into]


def test_what_was_accepted_arrives_after_a_close_though_nobody_calls(net):
    tx, rx, alloc, _ = line(net, count=8, size=BIG)
    for number, buffer in enumerate(alloc.alloc_many(8)):
        buffer.put(noise(BIG, number))
        tx.move(buffer)
    tx.close()
    events = until_the_end(rx)
    assert [event.kind for event in events] == [EventKind.MOVE_RECEIVED] * 8 + [EventKind.TEARDOWN_RECEIVED]
    for number, event in enumerate(events[:8]):
        assert event.buffer.tobytes() == noise(BIG, number)


def test_slots_are_free_again_once_their_last_byte_has_left(net):
    tx, rx, alloc, _ = line(net, count=2, size=BIG)
    tx.move_many(alloc.alloc_many(2))
    tx.close()
    with pytest.raises(bulk.ClosedChannelError) as ended:
        tx.receive(0)
    assert len(ended.value.buffers) == 2
    until_the_end(rx)
    assert alloc.pool.domain.wait_for(lambda: alloc.pool.states()["READ_WRITE"] == 2, PATIENCE_S)


def test_both_sides_may_end_it_in_order(net):
    tx, rx, alloc, _ = line(net)
    tx.move(alloc.alloc())
    _, events = together(lambda: [tx.destroy(PATIENCE_S)], lambda: until_the_end(rx))
    assert [event.kind for event in events] == [EventKind.MOVE_RECEIVED, EventKind.TEARDOWN_RECEIVED]


def test_a_listener_gives_each_client_all_its_channels(net):
    specs = [
        ChannelSpec(direction=Direction.RX, trust=Trust.NONE),
        ChannelSpec(direction=Direction.TX, trust=Trust.NONE, meta_size=9),
        ChannelSpec(direction=Direction.RX, trust=Trust.NONE),
    ]
    domain = bulk.Domain()
    listener = bulk.listen(f"{net.world.scheme}://127.0.0.1:0", specs, domain=domain, network=net.sides["creator"])
    net.world.made.append(listener)
    for _ in range(3):
        client, server = together(
            lambda: bulk.connect(listener.address, domain=bulk.Domain(), network=net.sides["binder"]),
            lambda: listener.accept(PATIENCE_S),
        )
        net.world.made += [*client, *server]
        assert [channel.direction for channel in client] == [Direction.TX, Direction.RX, Direction.TX]
        alloc = net.world.allocator(client[2].domain)
        net.world.assign(client[2], server[2], alloc.pool)
        buffer = alloc.alloc()
        buffer.put(b"third")
        client[2].move(buffer)
        assert take(server[2], EventKind.MOVE_RECEIVED).buffer.tobytes() == b"third"


def test_a_pool_may_go_on_to_channels_that_share_its_memory(net):
    a, b, c = net.world.domains(3)
    tx, rx = net(a, b)
    alloc = net.world.allocator(a)
    there = net.world.assign(tx, rx, alloc.pool)
    with World("shm") as near:
        out, into = near.channel(b, c)
        third = near.assign(out, into, there)
        assert third.id == alloc.pool.id  # one pool, whatever it travels over
        buffer = alloc.alloc()
        buffer.put(b"through two")
        tx.move(buffer)
        out.move(take(rx, EventKind.MOVE_RECEIVED).buffer)
        event = take(into, EventKind.MOVE_RECEIVED)
        assert event.buffer.tobytes() == b"through two"
        into.pass_(event.buffer)
        rx.pass_(take(out, EventKind.BUFFER_RECEIVED).buffer)
        assert take(tx, EventKind.BUFFER_RECEIVED).buffer is buffer


def test_more_trust_than_none_is_not_offered(net):
    with pytest.raises(bulk.TrustMismatchError, match="offers NONE only"):
        bulk.create(
            f"{net.world.scheme}://127.0.0.1:0", direction=Direction.TX, trust=Trust.FULL, network=net.sides["creator"]
        )


def test_what_grows_shows_nothing_of_an_earlier_transfer(net):
    tx, rx, alloc, _ = line(net, count=1, size=8192)
    buffer = alloc.alloc()
    buffer.put(b"secret" * 1000)
    tx.move(buffer)
    rx.pass_(take(rx, EventKind.MOVE_RECEIVED).buffer)
    take(tx, EventKind.BUFFER_RECEIVED)
    buffer.put(b"new")
    tx.move(buffer)
    twin = take(rx, EventKind.MOVE_RECEIVED).buffer
    twin.length = 6000
    assert twin.tobytes() == b"new" + bytes(5997)
    twin.put(b"x" * 4000)
    twin.length = 5
    twin.length = 8192
    assert twin.tobytes() == b"x" * 4000 + bytes(4192)  # what was written here, and what was zeroed


def test_what_is_passed_back_shows_nothing_of_an_earlier_transfer(net):
    """A forwarder whose next one passes gets its own twin: what did not come with the last contents is zero."""
    a, b, c = net.world.domains(3)
    tx, rx = net(a, b)
    out, into = net(b, c)
    alloc = net.world.allocator(a, count=1, size=8192)
    middle = net.world.assign(tx, rx, alloc.pool)
    net.world.assign(out, into, middle)
    buffer = alloc.alloc()
    for contents in (b"secret" * 1000, b"new"):
        buffer.put(contents)
        tx.move(buffer)
        out.move(take(rx, EventKind.MOVE_RECEIVED).buffer)
        into.pass_(take(into, EventKind.MOVE_RECEIVED).buffer)
        back = take(out, EventKind.BUFFER_RECEIVED).buffer
        assert back.tobytes() == contents + bytes(8192 - len(contents))
        rx.pass_(back)
        take(tx, EventKind.BUFFER_RECEIVED)


def test_what_comes_over_shared_memory_is_kept_whole_behind_what_came_over_a_network(world_of_both):
    """One twin, a network channel and one of this machine: `length` grows over what the latter's peer wrote."""
    (tx, rx, buffer), (out, into) = world_of_both
    buffer.put(b"few")
    tx.move(buffer)
    twin = take(rx, EventKind.MOVE_RECEIVED).buffer
    out.move(twin)
    near = take(into, EventKind.MOVE_RECEIVED).buffer
    near.put(b"many" * 1000)
    into.pass_(near)
    twin = take(out, EventKind.BUFFER_RECEIVED).buffer
    assert twin.tobytes()[:4000] == b"many" * 1000
    twin.length = 10
    twin.length = 4000
    assert twin.tobytes() == b"many" * 1000


@pytest.fixture
def world_of_both():
    """A buffer that goes on from a network channel to one with shared memory."""
    with World("tcp") as far, World("shm") as near:
        a, b = far.domains(2)
        (c,) = near.domains(1)
        tx, rx = far.channel(a, b)
        out, into = near.channel(b, c, trust=Trust.FULL)
        alloc = far.allocator(a, count=1, size=8192)
        near.assign(out, into, far.assign(tx, rx, alloc.pool))
        yield (tx, rx, alloc.alloc()), (out, into)


def test_behind_a_further_assignment_a_buffer_comes_home_from_somebody_else(net):
    """The pool's own allocator consents to have it brought by one that it never sent to (design section 8, rule 5)."""
    a, b, c = net.world.domains(3)
    came = []
    first, second = net(a, b), net(b, c)
    alloc = net.world.allocator(a, count=1, size=8192)
    middle = net.world.assign(*first, alloc.pool)
    third = net.world.assign(*second, middle)
    source, sink = net.world.channel(
        c, a, network=net.sides["creator"],
        binder={"network": net.sides["binder"], "callbacks": bulk.Callbacks(pool_assigned=came.append)},
    )  # fmt: skip
    asking = Background(lambda: source.assign_pool(third))
    while asking.thread.is_alive():
        nothing_comes(sink)
    asking.result()
    assert [(event.pool, event.present) for event in came] == [(alloc.pool, True)]
    buffer = alloc.alloc()
    buffer.put(b"round")
    first[0].move(buffer)
    second[0].move(take(first[1], EventKind.MOVE_RECEIVED).buffer)
    last = take(second[1], EventKind.MOVE_RECEIVED).buffer
    last.put(b"round it went")
    source.move(last)
    assert take(sink, EventKind.MOVE_RECEIVED).buffer is buffer
    assert buffer.tobytes() == b"round it went"


def test_an_answer_comes_home_over_another_channel_of_the_same_peer(net):
    a, b = net.world.domains(2)
    there, back = net(a, b), net(b, a)
    alloc = net.world.allocator(a, count=1, size=BIG)
    net.world.assign(*there, alloc.pool)
    net.world.assign(back[1], back[0], alloc.pool)
    buffer, question, answer = alloc.alloc(), noise(BIG), noise(BIG, seed=1)
    buffer.put(question)
    there[0].move(buffer)
    theirs = there[1].receive_buffer(PATIENCE_S).buffer
    assert theirs.tobytes() == question
    theirs.put(answer)
    back[0].move(theirs)
    assert back[1].receive_buffer(PATIENCE_S).buffer is buffer
    assert buffer.tobytes() == answer
