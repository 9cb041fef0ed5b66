"""Whatever a peer on the network sends: the channel closes with the rule that was broken, and nothing else happens."""

from __future__ import annotations

import os
import socket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bulktransfer as bulk
import foreign
from adversary.network import raw, receive_all
from bulktransfer import Direction, EventKind, Trust
from foreign import HEAD
from worlds import PATIENCE_S, World, take, together

POOL = bytes(range(16))


@pytest.fixture
def world():
    with World("tcp") as world:
        yield world


def meet(world, **options):
    """A library's sink, and a stranger that has assigned a pool of 3 buffers of 8192 bytes to it, under slot 1."""
    channel = bulk.create("tcp:", direction=Direction.RX, trust=Trust.NONE, domain=bulk.Domain(), **options)
    world.made.append(channel)
    port = int(channel.address.rpartition(":")[2])
    stranger, _ = together(lambda: foreign.Binder(port), lambda: channel.wait_bound(PATIENCE_S))
    world.made.append(stranger.sock)
    together(lambda: [stranger.assign(1, POOL, 3, 8192)], lambda: take(channel, EventKind.POOL_ASSIGNED))
    return channel, stranger


def test_what_came_before_a_violation_is_delivered_first(world):
    channel, stranger = meet(world)
    stranger.send(foreign.MOVE, slot=1, index=0, body=b"good")
    raw(stranger, 99)
    assert take(channel, EventKind.MOVE_RECEIVED).buffer.tobytes() == b"good"
    with pytest.raises(bulk.ProtocolViolation, match="a frame of an unknown kind"):
        channel.receive(PATIENCE_S)


def test_more_entries_than_the_ring_are_a_violation(world):
    channel, stranger = meet(world, limits=bulk.Limits(slot_count=4))
    for _ in range(8):
        stranger.sock.sendall(HEAD.pack(foreign.COPY, 0, 0, 1, 0, 0, 0, 0, stranger.taken, 0))
    with pytest.raises(bulk.ProtocolViolation):
        receive_all(channel)


def test_a_buffer_that_the_peer_has_not_is_refused_and_stays_as_it_is(world):
    channel, stranger = meet(world)
    stranger.send(foreign.MOVE, slot=1, index=0, body=b"mine now")
    mine = take(channel, EventKind.MOVE_RECEIVED).buffer
    stranger.send(foreign.MOVE, slot=1, index=0, body=b"scribble")  # it gave that one away
    stranger.send(foreign.MOVE, slot=1, index=1, body=b"another")
    assert take(channel, EventKind.MOVE_RECEIVED).buffer.tobytes() == b"another"
    assert mine.tobytes() == b"mine now"
    assert stranger.entry(foreign.REFUSE).index == 0


def test_an_answer_before_the_contents_have_left_is_a_violation(world):
    channel = bulk.create("tcp:", direction=Direction.TX, trust=Trust.NONE, domain=bulk.Domain())
    world.made.append(channel)
    port = int(channel.address.rpartition(":")[2])
    stranger, _ = together(lambda: foreign.Binder(port), lambda: channel.wait_bound(PATIENCE_S))
    world.made.append(stranger.sock)
    alloc = world.allocator(channel.domain, count=2, size=64 << 20)
    (slot, *_), _ = together(stranger.take_pool, lambda: channel.assign_pool(alloc.pool))
    for buffer in alloc.alloc_many(2):  # more than any socket holds, to a peer that reads nothing
        channel.move(buffer)
    stranger.send(foreign.PASS, slot=slot, index=1)
    with pytest.raises(bulk.ProtocolViolation, match="whose contents have not left"):
        channel.receive(PATIENCE_S)
    assert alloc.pool[1].state is bulk.BufferState.INVALID


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_stream_of_frames_does_harm(data):
    """Heads that are nearly right, in any order, with any contents, cut anywhere."""
    with World("tcp") as world:
        channel, stranger = meet(world, meta_size=32)
        mine = channel.pools[0]
        for _ in range(data.draw(st.integers(1, 6))):
            length = data.draw(st.sampled_from([0, 1, 4, 100, 8192, 8193]))
            head = HEAD.pack(
                data.draw(st.integers(1, 8)),
                data.draw(st.sampled_from([0, 0, 0, 1])),
                meta_size := data.draw(st.sampled_from([0, 0, 5, 33])),
                data.draw(st.sampled_from([1, 1, 1, 0, 3])),
                data.draw(st.integers(0, 3)),
                0,
                length,
                0,
                stranger.taken,
                0,
            )
            body = os.urandom(meta_size + length)
            cut = data.draw(st.integers(0, 200)) if data.draw(st.integers(0, 9)) == 0 else None
            try:
                stranger.sock.sendall((head + body)[:cut])
            except OSError:
                break  # it hung up already
        stranger.sock.shutdown(socket.SHUT_WR)
        with pytest.raises((bulk.ProtocolViolation, bulk.BrokenChannelError)):
            receive_all(channel)
        for buffer in mine:
            if buffer.state is not bulk.BufferState.INVALID:
                assert len(buffer.tobytes()) == buffer.length <= buffer.size


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\n\r\n" + bytes(64), bytes(48), b"bulktran" + bytes(40)])
def test_whoever_does_not_speak_the_protocol_is_hung_up_on_and_others_get_in(world, said):
    channel = bulk.create(
        "tcp:", direction=Direction.RX, trust=Trust.NONE, domain=bulk.Domain(), limits=bulk.Limits(handshake_s=0.2)
    )
    world.made.append(channel)
    port = int(channel.address.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as sock:
        sock.sendall(said)
        stranger, _ = together(lambda: foreign.Binder(port), lambda: channel.wait_bound(PATIENCE_S))
        world.made.append(stranger.sock)
        assert channel.state is bulk.ChannelState.CONNECTED
