"""Promises of the control codec: what goes in comes out, and nothing else gets in.

Knows: the messages and the layout that `wire/control.py` states. Must not know: sockets or channels.
"""

from __future__ import annotations

import dataclasses
import struct
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulktransfer import abc, messages
from bulktransfer.errors import ProtocolViolation
from bulktransfer.messages import (
    AssignAnswer,
    AssignRequest,
    Confirm,
    Hello,
    Message,
    Refusal,
    RemoveRequest,
    Teardown,
    TeardownAnswer,
    Terms,
    Welcome,
    Withdraw,
)
from bulktransfer.states import Direction, Means, Role, Trust
from bulktransfer.wire import control
from bulktransfer.wire.control import decode, encode

ID = bytes(range(16))
TERMS = Terms(Direction.RX, Role.SLAVE, Trust.FULL, 64, 1024)
REQUEST = AssignRequest(7, 3, ID, 16, 1 << 20, Trust.FULL, Means.CHOSEN)

ids = st.binary(min_size=16, max_size=16)
requests, codes, slots = st.integers(0, 2**32 - 1), st.integers(0, 2**16 - 1), st.integers(0, 2**16 - 1)
texts = st.text(max_size=1100)  # some are longer than the limit
terms = st.builds(
    Terms,
    direction=st.sampled_from(Direction),
    role=st.sampled_from(Role),
    trust=st.sampled_from(Trust),
    meta_size=st.integers(0, 2048),
    slot_count=st.sampled_from([2**power for power in range(1, 17)]),
    stage_size=st.sampled_from([0, *(2**power for power in range(16, 27))]),
)
STRATEGIES: dict[type[Any], st.SearchStrategy[Any]] = {
    messages.Hello: st.builds(
        Hello,
        domain_id=ids,
        trust=st.sampled_from(Trust),
        role=st.sampled_from(Role),
        version=st.integers(1, 2**16 - 1),
    ),
    messages.Welcome: st.builds(Welcome, domain_id=ids, terms=st.lists(terms, min_size=1, max_size=64).map(tuple)),
    messages.Confirm: st.just(Confirm()),
    messages.Refusal: st.builds(Refusal, code=st.integers(1, 2**16 - 1), reason=texts),
    messages.AssignRequest: st.builds(
        AssignRequest,
        request=requests,
        slot=slots,
        pool_id=ids,
        buffer_count=st.integers(1, 2**32 - 1),
        buffer_size=st.integers(1, 2**64 - 1),
        trust=st.sampled_from(Trust),
        means=st.sampled_from(Means),
    ),
    messages.AssignAnswer: st.builds(AssignAnswer, request=requests, code=codes, reason=texts),
    messages.AssignMemory: st.builds(messages.AssignMemory, request=requests),
    messages.AssignDone: st.builds(messages.AssignDone, request=requests, code=codes, reason=texts),
    messages.Leases: st.builds(messages.Leases, slot=slots),
    messages.RemoveRequest: st.builds(RemoveRequest, request=requests, slot=slots),
    messages.RemoveAnswer: st.builds(messages.RemoveAnswer, request=requests, code=codes, reason=texts),
    messages.Withdraw: st.builds(Withdraw, request=requests),
    messages.Teardown: st.builds(Teardown, reason=texts, final=st.booleans()),
    messages.TeardownAnswer: st.just(TeardownAnswer()),
}
any_message: st.SearchStrategy[Message] = st.one_of(*STRATEGIES.values())

# One of each kind, small enough for every truncation and every bit flip of it.
SAMPLES: list[Message] = [
    Hello(ID, Trust.UNINITIALIZED, Role.GENERIC),
    Welcome(ID, (TERMS, dataclasses.replace(TERMS, direction=Direction.TX, slot_count=2))),
    Confirm(),
    Refusal(4, "trust: né"),
    REQUEST,
    AssignAnswer(7, 0, ""),
    messages.AssignMemory(7),
    messages.AssignDone(7, 7, "no memory"),
    messages.Leases(3),
    RemoveRequest(8, 3),
    messages.RemoveAnswer(8, 13, "busy"),
    Withdraw(8),
    Teardown("bye", final=True),
    TeardownAnswer(),
]
by_kind = pytest.mark.parametrize("message", SAMPLES, ids=lambda message: type(message).__name__)


def cut(text: str) -> str:
    return text.encode(errors="backslashreplace")[:1024].decode(errors="ignore")


def as_received(message: Message) -> Message:
    reason = getattr(message, "reason", None)
    return message if reason is None else dataclasses.replace(message, reason=cut(reason))  # type: ignore[call-arg]


def decodes_or_is_refused(data: bytes) -> Message | None:
    try:
        message = decode(data)
    except ProtocolViolation as violation:
        assert violation.reason.startswith("control message from the peer: ")
        return None
    assert isinstance(message, get_args(Message))
    return message


def test_every_message_has_a_sample_and_a_strategy() -> None:
    kinds = set(get_args(Message))
    assert kinds == set(STRATEGIES) == {type(sample) for sample in SAMPLES}


def test_the_codec_object_is_a_codec() -> None:
    assert isinstance(control.CODEC, abc.Codec)
    assert control.CODEC.decode(control.CODEC.encode(REQUEST)) == REQUEST


@by_kind
def test_the_layout_names_exactly_the_fields_of_the_message(message: Message) -> None:
    laid_out = control._LAYOUT[type(message)].fields
    assert set(laid_out) == {field.name for field in dataclasses.fields(message)}


def test_the_numbers_of_the_messages_are_fixed() -> None:
    assert {cls.__name__: layout.number for cls, layout in control._LAYOUT.items()} == {
        "Hello": 1,
        "Welcome": 2,
        "Confirm": 3,
        "Refusal": 4,
        "AssignRequest": 5,
        "AssignAnswer": 6,
        "AssignMemory": 7,
        "AssignDone": 8,
        "RemoveRequest": 9,
        "RemoveAnswer": 10,
        "Withdraw": 11,
        "Teardown": 12,
        "TeardownAnswer": 13,
        "Leases": 14,
    }


def test_the_bytes_of_an_assign_request_are_fixed() -> None:
    assert encode(REQUEST) == b"BT\x01\x05" + struct.pack("!IH16sIQBB", 7, 3, ID, 16, 1 << 20, 3, 0)


@given(any_message)
def test_a_message_comes_back_as_it_was_sent(message: Message) -> None:
    data = encode(message)
    assert 4 <= len(data) <= 2048  # never 1: that is a doorbell
    assert decode(data) == as_received(message)


@by_kind
def test_every_truncation_is_refused(message: Message) -> None:
    data = encode(message)
    for length in range(len(data)):
        assert decodes_or_is_refused(data[:length]) is None, length


@by_kind
def test_every_bit_flip_decodes_or_is_refused(message: Message) -> None:
    data = encode(message)
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        other = decodes_or_is_refused(bytes(flipped))
        assert other is None or encode(other) == flipped, bit  # one message, one encoding


@by_kind
def test_a_trailing_byte_is_refused(message: Message) -> None:
    with pytest.raises(ProtocolViolation, match=r"1 bytes follow its end"):
        decode(encode(message) + b"\0")


@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda data: b"BT\x01" + data))
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    message = decodes_or_is_refused(data)
    assert message is None or encode(message) == data


@given(any_message, st.data())
def test_any_overwritten_message_decodes_or_is_refused(message: Message, data: st.DataObject) -> None:
    packed = bytearray(encode(message))
    start = data.draw(st.integers(3, len(packed) - 1))
    packed[start : start + 4] = data.draw(st.binary(min_size=1, max_size=4))
    decodes_or_is_refused(bytes(packed))


def test_a_doorbell_is_no_message() -> None:
    for byte in range(256):
        assert decodes_or_is_refused(bytes((byte,))) is None


def packed(number: int, fields: bytes) -> bytes:
    return b"BT\x01" + bytes((number,)) + fields


WELCOME_ONE = encode(Welcome(ID, (TERMS,)))


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b"", "the header needs 4 bytes, 0 are left"),
        (b"XT\x01\x03", "starts with b'XT', not b'BT'"),
        (b"BT\x02\x03", "encoding 2, this side knows 1"),
        (b"BT\x01\x00", "type 0 is unknown"),
        (b"BT\x01\x0f", "type 15 is unknown"),
        (packed(3, bytes(2045)), "2049 bytes, 2048 are allowed"),
        (packed(1, struct.pack("!H16sBB", 0, ID, 0, 0)), "Hello: version is 0, not between 1 and 65535"),
        (packed(1, struct.pack("!H16sBB", 1, ID, 4, 0)), "Hello: trust is 4, which is no Trust"),
        (packed(1, struct.pack("!H16sBB", 1, ID, 0, 3)), "Hello: role is 3, which is no Role"),
        (packed(2, ID + b"\0"), "Welcome: terms has 0 items"),
        (packed(2, ID + b"\x41" + WELCOME_ONE[21:] * 65), "Welcome: terms has 65 items, not between 1 and 64"),
        (packed(2, ID + struct.pack("!BBBBHI", 1, 2, 0, 0, 0, 2)), r"terms\[0\].direction is 2, which is no Direction"),
        (packed(2, ID + struct.pack("!BBBBHI", 1, 0, 0, 0, 2049, 2)), r"meta_size is 2049, not between 0 and 2048"),
        (packed(2, ID + struct.pack("!BBBBHI", 1, 0, 0, 0, 0, 1)), r"slot_count is 1, not between 2 and 65536"),
        (packed(2, ID + struct.pack("!BBBBHI", 1, 0, 0, 0, 0, 0)), r"slot_count is 0, not between 2 and 65536"),
        (packed(2, ID + struct.pack("!BBBBHI", 1, 0, 0, 0, 0, 131072)), r"slot_count is 131072, not between"),
        (packed(2, ID + struct.pack("!BBBBHI", 1, 0, 0, 0, 0, 1023)), r"slot_count is 1023, not a power of two"),
        (packed(2, ID + struct.pack("!BBBBHII", 1, 0, 0, 0, 0, 2, 65537)), r"stage_size is 65537, not a power of two"),
        (packed(2, ID + struct.pack("!BBBBHII", 1, 0, 0, 0, 0, 2, 1 << 27)), r"stage_size is 134217728, not between"),
        (packed(4, struct.pack("!HH", 0, 0)), "Refusal: code is 0, not between 1 and 65535"),
        (packed(4, struct.pack("!HH", 1, 1025) + b"a" * 1025), "Refusal: reason has 1025 bytes, 1024 are allowed"),
        (packed(4, struct.pack("!HH", 1, 65535)), "Refusal: reason has 65535 bytes, 1024 are allowed"),
        (packed(4, struct.pack("!HH", 1, 3) + b"ab"), "Refusal: reason needs 3 bytes, 2 are left"),
        (packed(4, struct.pack("!HH", 1, 2) + b"\xc3("), "Refusal: reason is not UTF-8"),
        (packed(4, struct.pack("!HH", 1, 3) + b"\xed\xa0\x80"), "Refusal: reason is not UTF-8"),  # a surrogate
        (packed(4, struct.pack("!HH", 1, 2) + b"\xc0\x80"), "Refusal: reason is not UTF-8"),  # overlong
        (packed(5, struct.pack("!IH16sIQBB", 7, 3, ID, 0, 4096, 3, 0)), "AssignRequest: buffer_count is 0"),
        (packed(5, struct.pack("!IH16sIQBB", 7, 3, ID, 1, 0, 3, 0)), "AssignRequest: buffer_size is 0"),
        (packed(5, struct.pack("!IH16sIQBB", 7, 3, ID, 1, 4096, 3, 4)), "means is 4, which is no Means"),
        (packed(12, b"\0\0\xff"), "Teardown: final is 255, neither 0 nor 1"),
    ],
)
def test_a_broken_rule_is_named(data: bytes, rule: str) -> None:
    with pytest.raises(ProtocolViolation, match=rule):
        decode(data)


def test_text_is_cut_on_a_character_boundary() -> None:
    for prefix in range(4):
        data = encode(Teardown("a" * prefix + "𝄞" * 300, final=False))
        received = decode(data)
        assert received == Teardown("a" * prefix + "𝄞" * ((1024 - prefix) // 4), final=False)


def test_text_with_surrogates_reaches_the_peer() -> None:
    assert decode(encode(Refusal(5, "no file \udcff"))) == Refusal(5, "no file \\udcff")


def test_the_largest_messages_fit() -> None:
    assert len(encode(Welcome(ID, (TERMS,) * 64))) <= 2048
    assert len(encode(AssignAnswer(1, 1, "é" * 5000))) <= 2048


@pytest.mark.parametrize(
    ("message", "error", "text"),
    [
        (dataclasses.replace(REQUEST, request=2**32), ValueError, "encode AssignRequest: request is 4294967296"),
        (dataclasses.replace(REQUEST, request=-1), ValueError, "request is -1"),
        (dataclasses.replace(REQUEST, slot=65536), ValueError, "slot is 65536"),
        (dataclasses.replace(REQUEST, buffer_count=2**32), ValueError, "buffer_count"),
        (dataclasses.replace(REQUEST, buffer_size=2**64), ValueError, "buffer_size"),
        (dataclasses.replace(REQUEST, buffer_size=4096.0), TypeError, "buffer_size is a float"),
        (dataclasses.replace(REQUEST, request=True), TypeError, "request is a bool"),
        (dataclasses.replace(REQUEST, means=1), TypeError, "means is 1, not a Means"),
        (dataclasses.replace(REQUEST, trust=3), TypeError, "trust is 3, not a Trust"),
        (dataclasses.replace(REQUEST, pool_id=b"short"), ValueError, "pool_id has 5 bytes, not 16"),
        (dataclasses.replace(REQUEST, pool_id="x" * 16), TypeError, "pool_id is a str, not bytes"),
        (Refusal(1, None), TypeError, "reason is a NoneType, not a str"),
        (Refusal(0, ""), ValueError, "code is 0"),
        (Welcome(ID, ()), ValueError, "terms has 0 items"),
        (Welcome(ID, (TERMS,) * 65), ValueError, "terms has 65 items"),
        (Welcome(ID, (1,)), TypeError, "terms holds a int, not Terms"),
        (Welcome(ID, (dataclasses.replace(TERMS, meta_size=2049),)), ValueError, r"terms\[0\].meta_size is 2049"),
        (Welcome(ID, (dataclasses.replace(TERMS, slot_count=3),)), ValueError, "slot_count is 3, not a power of two"),
        (TERMS, TypeError, "encode: Terms is not a control message"),
        (None, TypeError, "encode: NoneType is not a control message"),
    ],
)
def test_encode_refuses_what_decode_would(message: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        encode(message)
