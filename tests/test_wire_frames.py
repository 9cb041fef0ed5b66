"""Promises of the frames between machines: the two codecs agree, and nothing that a peer sends gets past its bounds."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bulktransfer._native.far import judge_head, pack_head
from bulktransfer.errors import ProtocolViolation
from bulktransfer.wire import control, frames
from bulktransfer.wire.frames import ASK, HEAD, HEAD_SIZE, Frame, Head, Kind, Reader

FIELDS = [field.name for field in dataclasses.fields(Head)]
AFTER_SETUP = [kind for kind in Kind if kind < Kind.SETUP]
HEADS = st.builds(
    Head,
    kind=st.sampled_from(AFTER_SETUP),
    flags=st.sampled_from([0, ASK]),
    meta_size=st.sampled_from([0, 1, 32, 2048]),
    slot=st.sampled_from([0, 1, 8191]),
    index=st.integers(0, 2**32 - 1),
    extra=st.sampled_from([0, 19 << 16 | 3]),
    length=st.integers(0, 2**64 - 1),
    serial=st.integers(0, 2**64 - 1),
    consumed=st.integers(0, 2**64 - 1),
    refused=st.integers(0, 2**64 - 1),
)
NEAR = st.builds(  # mostly zeros: heads that are nearly right
    lambda values: HEAD.pack(*values),
    st.tuples(
        st.integers(0, 9),
        st.sampled_from([0, 1, 2, 255]),
        st.sampled_from([0, 1, 2048, 2049, 65535]),
        st.sampled_from([0, 8191, 8192, 2**32 - 1]),
        st.sampled_from([0, 1]),
        st.sampled_from([0, 1]),
        st.sampled_from([0, 3, 4, 16, 2048, 2049, 2**64 - 1]),
        st.sampled_from([0, 1]),
        st.just(0),
        st.just(0),
    ),
)


def values(head):
    return tuple(getattr(head, name) for name in FIELDS)


@given(HEADS)
def test_both_codecs_write_the_same_bytes(head):
    assert pack_head(*values(head)) == head.pack()


@given(st.one_of(NEAR, st.binary(min_size=HEAD_SIZE, max_size=HEAD_SIZE)))
@example(Head(Kind.MOVE, length=4096, slot=2, index=7, meta_size=8).pack())
def test_both_codecs_read_the_same_and_refuse_the_same(data):
    fields, fault = judge_head(data)
    assert fields == HEAD.unpack(data)
    if data[0] in (Kind.SETUP, Kind.INVITE):
        assert fault == "a frame of an unknown kind"  # there is none any more once a channel is connected
        return
    try:
        head = frames.unpack(data)
    except ProtocolViolation as violation:
        assert violation.reason == f"frame from the peer: {fault}"
    else:
        assert fault is None
        assert values(head) == fields


@pytest.mark.parametrize(
    ("head", "rule"),
    [
        (Head(Kind.MOVE, flags=2), "unknown flags"),
        (Head(Kind.MOVE, meta_size=2049), "more meta data"),
        (Head(Kind.CONTROL, meta_size=1, length=4), "more meta data"),
        (Head(Kind.MOVE, slot=8192), "number of a pool"),
        (Head(Kind.NOTE, index=1), "names a buffer"),
        (Head(Kind.MOVE, extra=1), "refuses without"),
        (Head(Kind.PASS, serial=1), "serial number"),
        (Head(Kind.PASS, length=1), "contents that its kind has not"),
        (Head(Kind.REFUSE, length=1), "contents that its kind has not"),
        (Head(Kind.CONTROL, length=3), "of a length that cannot be"),
        (Head(Kind.SETUP, length=2049), "of a length that cannot be"),
        (Head(Kind.INVITE, length=16, extra=1), "an invitation that cannot be"),
        (Head(Kind.INVITE, length=15, extra=2), "an invitation that cannot be"),
    ],
)
def test_each_bound_of_a_head_has_its_rule(head, rule):
    with pytest.raises(ProtocolViolation, match=rule):
        frames.unpack(head.pack())


SOME = [
    Frame(Head(Kind.SETUP, length=4), body=b"BT\x01\x03"),
    Frame(Head(Kind.MOVE, meta_size=3, slot=2, index=1, length=70, consumed=5), b"abc", b"x" * 70),
    Frame(Head(Kind.NOTE, flags=ASK, consumed=9, refused=1)),
    Frame(Head(Kind.COPY, slot=1, length=0)),
    Frame(Head(Kind.REFUSE, slot=1, index=3, extra=19 << 16 | 3, serial=77)),
]


def test_frames_are_found_wherever_the_stream_is_cut():
    stream = b"".join(frame.pack() for frame in SOME)
    for cut in range(len(stream) + 1):
        reader = Reader()
        found = [*reader.feed(stream[:cut]), *reader.feed(stream[cut:])]
        assert found == SOME
        assert reader.wanted == HEAD_SIZE


def test_frames_are_found_byte_by_byte():
    reader = Reader()
    assert [frame for byte in b"".join(f.pack() for f in SOME) for frame in reader.feed(bytes([byte]))] == SOME


@given(st.lists(st.binary(max_size=200), max_size=8), NEAR)
def test_whatever_comes_is_frames_or_a_violation(pieces, head):
    reader = Reader()
    held = 0
    try:
        for piece in [head, *pieces]:
            for frame in reader.feed(piece):
                assert frame.head.fault() == ""
                assert len(frame.body) == frame.head.length <= frames.MESSAGE_SIZE_MAX
            held += len(piece)
            assert reader.wanted <= 2 * frames.MESSAGE_SIZE_MAX
    except ProtocolViolation:
        return


def test_a_message_of_the_set_up_and_an_invitation_are_frames():
    reader = Reader()
    hello = control.encode(control.Confirm())
    made = [*reader.feed(frames.setup(hello) + frames.invite(b"t" * 16, 3))]
    assert [(frame.head.kind, frame.body) for frame in made] == [(Kind.SETUP, hello), (Kind.INVITE, b"t" * 16)]
    with pytest.raises(ValueError, match="a message of 3 bytes"):
        frames.setup(b"abc")
    with pytest.raises(ValueError, match="an invitation to 1 connections"):
        frames.invite(b"t" * 16, 1)


def test_a_head_is_48_bytes():
    with pytest.raises(ProtocolViolation, match="a head of 47 bytes"):
        frames.unpack(bytes(47))
