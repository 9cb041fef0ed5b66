"""Promises of move, copy, pass, release and full copy: who may, and what arrives."""

from __future__ import annotations

import array

import pytest

import bulktransfer as bulk
from bulktransfer import BufferState, EventKind
from worlds import (
    INVALID,
    OWNED_COPIED,
    PATIENCE_S,
    READ_ONLY,
    READ_WRITE,
    World,
    ledger,
    nothing_comes,
    take,
    unchanged,
)


@pytest.fixture(params=["local", "shm"])
def world(request):
    with World(request.param) as world:
        yield world


# -- what a transfer brings --------------------------------------------------------------------------------------------


def test_move_brings_contents_length_and_meta_and_leaves_nothing_behind(world):
    tx, rx, alloc, theirs = world.line(meta_size=16)
    buffer = alloc.alloc()
    buffer.put(b"a big frame")
    assert tx.move(buffer, b"frame 1") is None
    assert buffer.state is INVALID
    event = take(rx, EventKind.MOVE_RECEIVED)
    assert event.buffer is theirs[buffer.index]
    assert (event.buffer.tobytes(), event.buffer.length, event.meta) == (b"a big frame", 11, b"frame 1")
    assert (event.channel, event.pool, event.error) == (rx, None, None)
    assert event.buffer.state is READ_WRITE
    assert event.buffer.owned
    assert not buffer.owned


def test_pass_brings_the_buffer_back_at_full_length(world):
    tx, rx, alloc, _ = world.line(meta_size=16)
    buffer = alloc.alloc()
    buffer.put(b"short")
    tx.move(buffer)
    there = rx.receive_buffer(PATIENCE_S).buffer
    rx.pass_(there, b"thanks")
    event = take(tx, EventKind.BUFFER_RECEIVED)
    assert (event.buffer, event.meta) == (buffer, b"thanks")
    assert (buffer.length, buffer.state, there.state) == (buffer.size, READ_WRITE, INVALID)


def test_copy_lets_both_read_and_nobody_write(world):
    tx, rx, alloc, _ = world.line(meta_size=16)
    buffer = alloc.alloc()
    buffer.put(b"look")
    tx.copy(buffer, b"at")
    event = take(rx, EventKind.COPY_RECEIVED)
    assert (event.buffer.tobytes(), event.buffer.length, event.meta) == (b"look", 4, b"at")
    assert (buffer.state, event.buffer.state) == (OWNED_COPIED, READ_ONLY)
    assert event.buffer.is_copy
    assert not event.buffer.owned
    assert buffer.owned
    with unchanged(buffer), pytest.raises(bulk.CopiesOutstandingError):
        buffer.put(b"x")
    with unchanged(event.buffer), pytest.raises(bulk.NotOwnedError):
        event.buffer.put(b"x")
    rx.release(event.buffer)
    event = take(tx, EventKind.COPY_RELEASED)
    assert (event.buffer, event.meta) == (buffer, b"")
    assert (buffer.state, buffer.length) == (READ_WRITE, 4)


def test_full_copy_moves_the_contents_in_another_buffer(world):
    tx, rx, alloc, theirs = world.line(meta_size=16)
    one, two = alloc.alloc_many(2)
    one.put(b"master copy")
    tx.full_copy(one, into=two, meta=b"m")
    assert (one.state, two.state) == (READ_WRITE, INVALID)
    event = take(rx, EventKind.MOVE_RECEIVED)
    assert event.buffer is theirs[two.index]
    assert (event.buffer.tobytes(), event.meta) == (b"master copy", b"m")


def test_full_copy_of_a_copy_that_is_held_is_fine(world):
    a, b, c = world.domains(3)
    up, down = world.channel(a, b), world.channel(b, c)
    alloc = world.allocator(a)
    own = world.allocator(b)
    world.assign(*up, alloc.pool)
    world.assign(*down, own.pool)
    buffer = alloc.alloc()
    buffer.put(b"seen")
    up[0].copy(buffer)
    held = take(up[1], EventKind.COPY_RECEIVED).buffer
    with unchanged(held):
        down[0].full_copy(held, into=own.alloc())
    assert take(down[1], EventKind.MOVE_RECEIVED).buffer.tobytes() == b"seen"


def test_full_copy_refuses_and_spoils_nothing(world):
    tx, _, alloc, _theirs = world.line(meta_size=4)
    one, two, out = alloc.alloc_many(3)
    one.put(b"one")
    two.put(b"two")
    tx.move(out)
    small = world.allocator(tx.domain, count=1, size=4096)
    for error, args in (
        (ValueError, (one, one)),
        (bulk.InvalidBufferError, (out, two)),
        (bulk.InvalidBufferError, (one, out)),
        (bulk.MetaSizeError, (one, two, b"12345")),
        (bulk.PoolNotAssignedError, (one, small.alloc())),
        (TypeError, (one, None)),
        (TypeError, (None, two)),
        (TypeError, (one, two, b"", 5)),
        (TypeError, (one, two, None)),
    ):
        with unchanged(one, two, out), pytest.raises(error):
            tx.full_copy(*args)
        assert two.tobytes() == b"two"
    with memoryview(two), unchanged(one, two), pytest.raises(BufferError):
        tx.full_copy(one, two)
    assert two.tobytes() == b"two"


@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 64, 2047, 2048])
def test_meta_arrives_exactly_as_sent(world, size):
    tx, rx, alloc, _ = world.line(meta_size=2048)
    meta = bytes(i * 7 % 256 for i in range(size))
    buffer = alloc.alloc()
    tx.move(buffer, meta)
    event = rx.receive_buffer(PATIENCE_S)
    assert event.meta == meta
    assert type(event.meta) is bytes
    rx.pass_(event.buffer, meta[::-1])
    assert tx.receive_buffer(PATIENCE_S).meta == meta[::-1]
    assert event.meta == meta  # an event keeps its own


def test_meta_is_anything_like_bytes_and_copied_at_the_call(world):
    tx, rx, alloc, _ = world.line(meta_size=64)
    mutable = bytearray(b"first")
    for meta in (mutable, memoryview(mutable), array.array("B", mutable), memoryview(bytes(mutable))[:], alloc.pool):
        buffer = alloc.alloc()
        if meta is alloc.pool:  # a buffer is like bytes, too
            meta = alloc.alloc()
            meta.put(b"first")
        tx.move(buffer, meta)
        mutable[:] = b"later"
        assert rx.receive_buffer(PATIENCE_S).meta == b"first"
        mutable[:] = b"first"
        rx.pass_(rx.pools[0][buffer.index])
        alloc.free(tx.receive_buffer(PATIENCE_S).buffer)


def test_a_buffer_is_not_its_own_meta(world):
    tx, rx, alloc, _ = world.line(meta_size=64)
    buffer = alloc.alloc()
    buffer.put(b"x")
    with unchanged(buffer), pytest.raises(BufferError, match="1 view is live"):
        tx.move(buffer, buffer)
    assert nothing_comes(rx)


@pytest.mark.parametrize("meta", [None, "text", 5, [1, 2]], ids=repr)
def test_meta_that_is_not_like_bytes_is_a_type_error(world, meta):
    tx, rx, alloc, _ = world.line(meta_size=64)
    buffer = alloc.alloc()
    for call in (lambda: tx.move(buffer, meta), lambda: tx.copy(buffer, meta), lambda: tx.move_many([buffer], [meta])):
        with unchanged(buffer), pytest.raises(TypeError):
            call()
    assert nothing_comes(rx)


def test_meta_too_long_is_refused(world):
    tx, rx, alloc, _ = world.line(meta_size=33)
    buffer = alloc.alloc()
    for call in (tx.move, tx.copy):
        for meta in (bytes(34), bytearray(34), bytes(5000)):
            with unchanged(buffer), pytest.raises(bulk.MetaSizeError, match=r"takes 33"):
                call(buffer, meta)
    with unchanged(buffer), pytest.raises(bulk.MetaSizeError):
        tx.move_many([buffer], [bytes(34)])
    tx.move(buffer, bytes(33))
    assert rx.receive_buffer(PATIENCE_S).meta == bytes(33)


# -- who may not -------------------------------------------------------------------------------------------------------


def test_each_end_has_its_own_operations(world):
    tx, rx, alloc, theirs = world.line()
    mine, other = alloc.alloc_many(2)
    tx.move(other)
    rx.receive_buffer(PATIENCE_S)
    there = theirs[other.index]
    for call, buffer in ((tx.pass_, mine), (tx.release, mine), (rx.move, there), (rx.copy, there)):
        with unchanged(mine, there), pytest.raises(bulk.DirectionError, match="belong here"):
            call(buffer)
    for call, buffer in ((tx.pass_many, mine), (tx.release_many, mine), (rx.move_many, there), (rx.copy_many, there)):
        with unchanged(mine, there), pytest.raises(bulk.DirectionError):
            call([buffer])
    with unchanged(there), pytest.raises(bulk.DirectionError):
        rx.full_copy(there, into=theirs[0] if theirs[0] is not there else theirs[1])


def test_a_buffer_of_a_pool_that_is_not_assigned_is_refused(world):
    tx, _rx, alloc, theirs = world.line()
    stranger, mine = world.allocator(tx.domain).alloc(), alloc.alloc()
    foreign = theirs[0]  # the same pool, but as the other domain has it
    for buffer in (stranger, foreign):
        for call in (tx.move, tx.copy):
            with unchanged(buffer), pytest.raises(bulk.PoolNotAssignedError, match=r"is not assigned to"):
                call(buffer)
        with unchanged(buffer), pytest.raises(bulk.PoolNotAssignedError):
            tx.move_many([mine, buffer])


def test_a_buffer_on_the_free_list_does_not_travel(world):
    tx, _, alloc, _ = world.line()
    buffer = alloc.alloc()
    alloc.free(buffer)
    for call in (tx.move, tx.copy):
        with unchanged(buffer), pytest.raises(bulk.NotAllocatedError, match="free list"):
            call(buffer)


def test_an_owner_with_copies_out_neither_moves_nor_passes(world):  # W18
    tx, rx, alloc, _theirs = world.line()
    back_tx, back_rx = world.channel(rx.domain, tx.domain)  # here the owner is the sink
    world.assign(back_rx, back_tx, alloc.pool)
    buffer = alloc.alloc()
    tx.copy(buffer)
    rx.receive_buffer(PATIENCE_S)
    for call in (tx.move, back_rx.pass_):
        with unchanged(buffer), pytest.raises(bulk.CopiesOutstandingError, match=r"not back: 1"):
            call(buffer)
    with unchanged(buffer), pytest.raises(bulk.CopiesOutstandingError):
        alloc.free(buffer)


def test_an_owner_does_not_release_its_own_buffer(world):  # W19
    tx, rx, alloc, _theirs = world.line()
    back_tx, back_rx = world.channel(rx.domain, tx.domain)
    world.assign(back_rx, back_tx, alloc.pool)
    buffer = alloc.alloc()
    with unchanged(buffer), pytest.raises(bulk.NotACopyError):
        back_rx.release(buffer)
    tx.copy(buffer)
    with unchanged(buffer), pytest.raises(bulk.NotACopyError):
        back_rx.release(buffer)
    tx.close()


def test_a_copy_is_released_once_and_over_the_channel_that_brought_it(world):
    a, b = world.domains(2)
    one, two = world.channel(a, b), world.channel(a, b)
    alloc = world.allocator(a)
    world.assign(*one, alloc.pool)
    theirs = world.assign(*two, alloc.pool)
    buffer = alloc.alloc()
    one[0].copy(buffer)
    take(one[1], EventKind.COPY_RECEIVED)
    with unchanged(theirs[0]), pytest.raises(bulk.NotACopyError, match="no copy of it came over this channel"):
        two[1].release(theirs[buffer.index])
    one[1].release(theirs[buffer.index])
    with unchanged(theirs[0]), pytest.raises(bulk.NotACopyError):
        one[1].release(theirs[buffer.index])


def test_a_copy_goes_out_once_on_a_channel_and_on_many_channels(world):
    a, b, c = world.domains(3)
    one, two = world.channel(a, b), world.channel(a, c)
    alloc = world.allocator(a)
    world.assign(*one, alloc.pool)
    world.assign(*two, alloc.pool)
    buffer = alloc.alloc()
    one[0].copy(buffer)
    with unchanged(buffer), pytest.raises(bulk.AlreadyCopiedError):
        one[0].copy(buffer)
    two[0].copy(buffer)
    assert alloc.pool.counts(buffer.index) == (2, 0)
    for tx, rx in (one, two):
        rx.release(take(rx, EventKind.COPY_RECEIVED).buffer)
        take(tx, EventKind.COPY_RELEASED)
    assert ledger(buffer) == (READ_WRITE, buffer.size, 0, 0, 0)
    one[0].copy(buffer)  # and again
    assert buffer.state is OWNED_COPIED


def test_a_held_copy_is_forwarded_but_never_moved_or_passed(world):
    a, b, c = world.domains(3)
    up, down = world.channel(a, b), world.channel(b, c)
    alloc = world.allocator(a)
    middle = world.assign(*up, alloc.pool)
    world.assign(*down, middle)
    buffer = alloc.alloc()
    buffer.put(b"news")
    up[0].copy(buffer)
    held = take(up[1], EventKind.COPY_RECEIVED).buffer
    for call in (down[0].move, up[1].pass_):
        with unchanged(held), pytest.raises(bulk.NotOwnedError) as caught:
            call(held)
        assert type(caught.value) is bulk.NotOwnedError
    down[0].copy(held)
    assert (held.state, *middle.counts(held.index)) == (READ_ONLY, 1, 1)
    far = take(down[1], EventKind.COPY_RECEIVED).buffer
    assert far.tobytes() == b"news"
    with unchanged(held), pytest.raises(bulk.CopiesOutstandingError):
        up[1].release(held)  # out must be 0
    with unchanged(held), pytest.raises(bulk.CopiesOutstandingError):
        up[1].give_back(held)
    down[1].release(far)
    take(down[0], EventKind.COPY_RELEASED)
    up[1].release(held)
    take(up[0], EventKind.COPY_RELEASED)
    assert [b.state for b in (buffer, held, far)] == [READ_WRITE, INVALID, INVALID]


def test_a_buffer_moves_along_a_chain_and_comes_home_another_way(world):
    a, b, c = world.domains(3)
    ab, bc, ca = world.channel(a, b), world.channel(b, c), world.channel(c, a)
    alloc = world.allocator(a)
    at_b = world.assign(*ab, alloc.pool)
    at_c = world.assign(*bc, at_b)
    assert world.assign(*ca, at_c) is alloc.pool  # a pool is in a domain once
    buffer = alloc.alloc()
    for number in range(5):
        buffer.put(b"%d" % number)
        ab[0].move(buffer)
        bc[0].move(take(ab[1], EventKind.MOVE_RECEIVED).buffer)
        ca[0].move(take(bc[1], EventKind.MOVE_RECEIVED).buffer)
        assert take(ca[1], EventKind.MOVE_RECEIVED).buffer is buffer
        assert buffer.tobytes() == b"%d" % number
    alloc.free(buffer)
    assert alloc.available == 4


# -- who allocates -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("creator", ["source", "sink"])
def test_in_receive_master_mode_the_sink_s_buffers_go_to_the_source_first(world, creator):
    a, b = world.domains(2)
    tx, rx = world.channel(a, b, creator=creator, meta_size=8)
    alloc = world.allocator(b, reclaim=False)
    theirs = world.assign(rx, tx, alloc.pool)
    buffer = alloc.alloc()
    rx.pass_(buffer, b"fill me")
    event = take(tx, EventKind.BUFFER_RECEIVED)
    assert event.buffer is theirs[buffer.index]
    event.buffer.put(b"filled")
    tx.move(event.buffer)
    assert take(rx, EventKind.MOVE_RECEIVED).buffer is buffer
    assert buffer.tobytes() == b"filled"
    alloc.free(buffer)


def test_both_sides_bring_pools_and_both_travel(world):
    tx, rx, alloc, theirs = world.line()
    other = world.allocator(rx.domain)
    here = world.assign(rx, tx, other.pool)
    assert {p.id for p in tx.pools} == {p.id for p in rx.pools} == {alloc.pool.id, other.pool.id}
    rx.pass_(other.alloc())
    event = take(tx, EventKind.BUFFER_RECEIVED)
    assert event.buffer.pool is here
    tx.move(alloc.alloc())
    tx.move(event.buffer)
    assert [take(rx, EventKind.MOVE_RECEIVED).buffer.pool for _ in range(2)] == [theirs, other.pool]


# -- processes ---------------------------------------------------------------------------------------------------------


def _echo(pipe, address):
    import bulktransfer as bulk

    rx = bulk.bind(address)
    back = bulk.bind(address + "-back")
    held = []
    for event in rx:
        if event.kind is bulk.EventKind.MOVE_RECEIVED:
            event.buffer.put(event.buffer.tobytes()[::-1])
            back.move(event.buffer, event.meta)
        elif event.kind is bulk.EventKind.COPY_RECEIVED:
            held.append(event.buffer)
            pipe.send((event.buffer.tobytes(), event.buffer.state.name))
            rx.release(event.buffer)
    back.close()
    rx.close()


def test_buffers_go_to_another_process_and_back(spawn):
    with World("shm") as world:
        (a,) = world.domains(1)
        tx = bulk.create("shm:echo", direction=bulk.Direction.TX, trust=bulk.Trust.FULL, meta_size=100, domain=a)
        rx = bulk.create("shm:echo-back", direction=bulk.Direction.RX, trust=bulk.Trust.FULL, meta_size=100, domain=a)
        world.made += [tx, rx]
        child = spawn(_echo, "shm:echo")
        tx.wait_bound(PATIENCE_S)
        rx.wait_bound(PATIENCE_S)
        alloc = world.allocator(a, count=3)
        tx.assign_pool(alloc.pool)
        rx.assign_pool(alloc.pool)
        for number in range(50):
            buffer = alloc.alloc()
            buffer.put(b"forth %d" % number)
            tx.move(buffer, b"%d" % number * 30)
            event = rx.receive_buffer(PATIENCE_S)
            assert event.buffer is buffer
            assert (buffer.tobytes(), event.meta) == ((b"forth %d" % number)[::-1], b"%d" % number * 30)
            tx.copy(buffer)
            assert child.receive() == ((b"forth %d" % number)[::-1], "READ_ONLY")
            assert take(tx, EventKind.COPY_RELEASED).buffer is buffer
            assert buffer.state is BufferState.READ_WRITE
            alloc.free(buffer)
        tx.destroy()
        child.join()
