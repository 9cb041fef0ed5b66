"""The NBD protocol without a socket: negotiation and transmission, right, wrong and hostile."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulktransfer import block
from bulktransfer.block.nbd import wire
from bulktransfer.block.nbd.negotiation import (
    OPTION_BYTES_MAX,
    OPTIONS_MAX,
    Agreement,
    Facts,
    NbdViolation,
    Negotiation,
    Tls,
)
from bulktransfer.block.nbd.server import ExportTable
from bulktransfer.block.nbd.transmission import Request, Transmission
from bulktransfer.block.nbd.wire import Command, CommandFlag, Option, OptionReply
from nbd_tools import text

STORE = block.MemoryStore(1 << 20)


def negotiation(*, names: tuple[str | None, ...] = (None,), tls: Tls = Tls.OFF, flags: int = 3) -> Negotiation:
    made = Negotiation(ExportTable(dict.fromkeys(names, STORE), description="a disk"), tls=tls)
    assert made.greeting() == struct.pack(">QQH", wire.NBD_MAGIC, wire.OPTION_MAGIC, 3)
    assert made.receive(struct.pack(">I", flags)) == b""
    return made


def option(number: int, data: bytes = b"") -> bytes:
    return wire.OPTION.pack(wire.OPTION_MAGIC, number, len(data)) + data


def replies(out: bytes) -> list[tuple[int, bytes]]:
    found = []
    while out:
        magic, _, kind, length = wire.OPTION_REPLY.unpack_from(out)
        assert magic == wire.OPTION_REPLY_MAGIC
        found.append((kind, out[20 : 20 + length]))
        out = out[20 + length :]
    return found


def kinds(out: bytes) -> list[int]:
    return [kind for kind, _ in replies(out)]


def test_go_agrees_and_keeps_what_follows() -> None:
    talk = negotiation()
    out = talk.receive(option(Option.GO, text("disk") + struct.pack(">HHHH", 3, 1, 2, 3)) + b"request")
    found = replies(out)
    assert [kind for kind, _ in found] == [OptionReply.INFO] * 4 + [OptionReply.ACK]
    assert wire.INFO_EXPORT.unpack(found[0][1])[1] == 1 << 20
    assert found[1][1] == b"\0\1disk"
    assert found[2][1] == b"\0\2a disk"
    assert struct.unpack(">HIII", found[3][1]) == (3, 1, 4096, 1 << 25)
    assert talk.agreement is not None
    assert talk.agreement.rest == b"request"
    assert not talk.agreement.structured


def test_bytes_may_come_one_at_a_time() -> None:
    talk = negotiation()
    whole = (
        option(Option.STRUCTURED_REPLY)
        + option(Option.INFO, text("x") + b"\0\0")
        + option(Option.GO, text("x") + b"\0\0")
    )
    out = b"".join(talk.receive(bytes([byte])) for byte in whole)
    ack, info = OptionReply.ACK, OptionReply.INFO
    assert kinds(out) == [ack, info, ack, info, ack]
    assert talk.agreement is not None
    assert talk.agreement.structured


@pytest.mark.parametrize(("flags", "zeroes"), [(3, 0), (1, 124), (0, 124)])
def test_export_name_answers_as_of_old(flags: int, zeroes: int) -> None:
    talk = negotiation(flags=flags)
    out = talk.receive(option(Option.EXPORT_NAME, b"any"))
    assert len(out) == 10 + zeroes
    assert struct.unpack_from(">Q", out)[0] == 1 << 20
    assert talk.agreement is not None


def test_a_named_export_is_the_only_one() -> None:
    talk = negotiation(names=("disk",))
    assert kinds(talk.receive(option(Option.GO, text("other") + b"\0\0"))) == [OptionReply.ERR_UNKNOWN]
    assert replies(talk.receive(option(Option.LIST)))[0] == (OptionReply.SERVER, text("disk") + b"a disk")
    with pytest.raises(NbdViolation):
        talk.receive(option(Option.EXPORT_NAME, b"other"))


def test_unknown_and_malformed_options_leave_the_session_alive() -> None:
    talk = negotiation()
    for data, kind in [
        (option(99, b"what"), OptionReply.ERR_UNSUP),
        (option(Option.PEEK_EXPORT), OptionReply.ERR_UNSUP),
        (option(Option.LIST, b"x"), OptionReply.ERR_INVALID),
        (option(Option.STRUCTURED_REPLY, b"x"), OptionReply.ERR_INVALID),
        (option(Option.GO, b"\0"), OptionReply.ERR_INVALID),
        (option(Option.GO, text("x") + b"\0\1"), OptionReply.ERR_INVALID),
        (option(Option.GO, text("x") + b"\0\0more"), OptionReply.ERR_INVALID),
        (option(Option.GO, struct.pack(">I", 1 << 31)), OptionReply.ERR_INVALID),
        (option(Option.GO, struct.pack(">I", 2) + b"\xff\xff\0\0"), OptionReply.ERR_INVALID),
        (option(Option.STARTTLS), OptionReply.ERR_POLICY),
        (option(Option.SET_META_CONTEXT, text("") + b"\0\0\0\0"), OptionReply.ERR_INVALID),
        (option(77, bytes(OPTION_BYTES_MAX + 1)), OptionReply.ERR_TOO_BIG),
    ]:
        assert kinds(talk.receive(data)) == [kind]
    assert kinds(talk.receive(option(Option.ABORT))) == [OptionReply.ACK]
    assert talk.ended


def test_meta_contexts_are_listed_and_set() -> None:
    talk = negotiation()
    talk.receive(option(Option.STRUCTURED_REPLY))
    base = text("base:allocation")
    for queries in (b"\0\0\0\0", b"\0\0\0\1" + text("base:"), b"\0\0\0\1" + base):
        assert (
            replies(talk.receive(option(Option.LIST_META_CONTEXT, text("") + queries)))[0][1][4:] == b"base:allocation"
        )
    assert kinds(talk.receive(option(Option.LIST_META_CONTEXT, text("") + b"\0\0\0\1" + text("qemu:")))) == [
        OptionReply.ACK
    ]
    assert kinds(talk.receive(option(Option.SET_META_CONTEXT, text("") + b"\0\0\0\1" + text("base:")))) == [
        OptionReply.ACK
    ]
    two = b"\0\0\0\2" + text("other:x") + base
    assert kinds(talk.receive(option(Option.SET_META_CONTEXT, text("a") + two))) == [
        OptionReply.META_CONTEXT,
        OptionReply.ACK,
    ]
    talk.receive(option(Option.GO, text("b") + b"\0\0"))
    assert talk.agreement is not None
    assert not talk.agreement.allocation, "the context was agreed for another export"


def test_a_failed_set_forgets_the_one_before() -> None:
    talk = negotiation(names=("a",))
    talk.receive(option(Option.STRUCTURED_REPLY))
    talk.receive(option(Option.SET_META_CONTEXT, text("a") + b"\0\0\0\1" + text("base:allocation")))
    assert kinds(talk.receive(option(Option.SET_META_CONTEXT, text("b") + b"\0\0\0\0"))) == [OptionReply.ERR_UNKNOWN]
    talk.receive(option(Option.GO, text("a") + b"\0\0"))
    assert talk.agreement is not None
    assert not talk.agreement.allocation


def test_required_tls_comes_first_and_forgets_what_was_said_in_the_clear() -> None:
    talk = negotiation(tls=Tls.REQUIRED)
    assert kinds(talk.receive(option(Option.GO, text("") + b"\0\0"))) == [OptionReply.ERR_TLS_REQD]
    assert kinds(talk.receive(option(Option.STRUCTURED_REPLY))) == [OptionReply.ERR_TLS_REQD]
    assert kinds(talk.receive(option(Option.STARTTLS))) == [OptionReply.ACK]
    assert talk.wants_tls
    talk.secured()
    assert kinds(talk.receive(option(Option.STARTTLS))) == [OptionReply.ERR_INVALID]
    talk.receive(option(Option.GO, text("") + b"\0\0"))
    assert talk.agreement is not None
    assert not talk.agreement.structured


def test_optional_tls_forgets_as_well() -> None:
    talk = negotiation(tls=Tls.OPTIONAL)
    talk.receive(option(Option.STRUCTURED_REPLY))
    talk.receive(option(Option.STARTTLS))
    talk.secured()
    talk.receive(option(Option.GO, text("") + b"\0\0"))
    assert talk.agreement is not None
    assert not talk.agreement.structured


def test_words_in_the_clear_behind_starttls_end_the_connection() -> None:
    talk = negotiation(tls=Tls.REQUIRED)
    with pytest.raises(NbdViolation, match="in the clear"):
        talk.receive(option(Option.STARTTLS) + option(Option.LIST))


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        option(5, b"")[:4] + b"\0" * 12,
        wire.OPTION.pack(wire.OPTION_MAGIC, Option.EXPORT_NAME, 1 << 20),
        wire.OPTION.pack(wire.OPTION_MAGIC, 77, 1 << 31),
    ],
)
def test_what_is_no_option_ends_the_connection(data: bytes) -> None:
    with pytest.raises(NbdViolation):
        negotiation().receive(data)


def test_unknown_client_flags_end_the_connection() -> None:
    talk = Negotiation(ExportTable({None: STORE}))
    with pytest.raises(NbdViolation, match="flags"):
        talk.receive(struct.pack(">I", 4))


def test_options_without_end_are_cut() -> None:
    talk = negotiation()
    with pytest.raises(NbdViolation, match="more than"):
        talk.receive(option(99) * (OPTIONS_MAX + 1))


@given(st.binary(max_size=300), st.sampled_from(Tls))
def test_no_bytes_crash_the_negotiation(data: bytes, tls: Tls) -> None:
    for begin in (b"", option(Option.STRUCTURED_REPLY)):
        talk = negotiation(tls=tls)
        try:
            talk.receive(begin + data)
        except NbdViolation:
            continue


@given(st.lists(st.tuples(st.integers(0, 12), st.binary(max_size=60)), max_size=12))
def test_no_option_crashes_the_negotiation(options: list[tuple[int, bytes]]) -> None:
    talk = negotiation(names=("", "a"))
    try:
        for number, data in options:
            out = talk.receive(option(number, data))
            if talk.agreement is None:
                assert kinds(out)[-1] == OptionReply.ACK or kinds(out)[-1] & 1 << 31
            if talk.agreement or talk.ended:
                return
    except NbdViolation:
        assert number == Option.EXPORT_NAME


# -- transmission --------------------------------------------------------------------------------------------------


def transmission(
    *, structured: bool = True, extended: bool = False, allocation: bool = True, flags: int = 1
) -> Transmission:
    return Transmission(Agreement(Facts("", 1 << 20, flags, 4096), structured, extended, allocation, b""))


def request(command: int, offset: int = 0, length: int = 0, flags: int = 0) -> Request:
    return Request(wire.REQUEST_MAGIC, flags, command, 7, offset, length)


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        (request(Command.READ, 0, 1 << 20), None),
        (request(Command.READ, 1 << 20, 0), None),
        (request(Command.READ, 0, 4096, CommandFlag.DF | CommandFlag.FUA), None),
        (request(Command.READ, 1, 1 << 20), errno.EINVAL),
        (request(Command.READ, (1 << 64) - 1, 2), errno.EINVAL),
        (request(Command.WRITE, 1, 1 << 20), errno.ENOSPC),
        (request(Command.WRITE_ZEROES, 1 << 20, 1), errno.ENOSPC),
        (request(Command.TRIM, 1 << 20, 1), errno.EINVAL),
        (request(Command.FLUSH), None),
        (request(Command.FLUSH, 1), errno.EINVAL),
        (request(Command.WRITE_ZEROES, 0, 1 << 20, CommandFlag.NO_HOLE | CommandFlag.FAST_ZERO), None),
        (request(Command.READ, 0, 1, CommandFlag.NO_HOLE), errno.EINVAL),
        (request(Command.READ, 0, 1, 1 << 6), errno.EINVAL),
        (request(Command.WRITE, 0, 1, CommandFlag.PAYLOAD_LEN), errno.EINVAL),
        (request(Command.RESIZE, 0, 1), errno.EINVAL),
        (request(4711), errno.EINVAL),
        (request(Command.BLOCK_STATUS, 0, 0), errno.EINVAL),
        (request(Command.BLOCK_STATUS, 0, 1), None),
    ],
)
def test_requests_are_judged(asked: Request, error: int | None) -> None:
    refusal = transmission().judge(asked)
    assert (refusal.error if refusal else None) == error


def test_requests_are_judged_by_what_was_agreed() -> None:
    plain = transmission(structured=False, allocation=False, flags=3)
    assert plain.judge(request(Command.READ, 0, 1, CommandFlag.DF)).error == errno.EINVAL
    assert plain.judge(request(Command.BLOCK_STATUS, 0, 1)).error == errno.EINVAL
    for command in (Command.WRITE, Command.TRIM, Command.WRITE_ZEROES):
        assert plain.judge(request(command, 0, 1)).error == errno.EPERM
    assert transmission(extended=True).judge(request(Command.WRITE, 0, 1)).error == errno.EINVAL


def test_a_payload_follows_a_write_or_what_says_so() -> None:
    plain, extended = transmission(), transmission(extended=True)
    assert plain.payload(request(Command.WRITE, 0, 5)) == 5
    assert plain.payload(request(Command.READ, 0, 5)) == 0
    assert extended.payload(request(Command.WRITE, 0, 5)) == 0
    assert extended.payload(request(Command.READ, 0, 5, CommandFlag.PAYLOAD_LEN)) == 5
    with pytest.raises(NbdViolation):
        extended.payload(request(Command.WRITE, 0, 1 << 40, CommandFlag.PAYLOAD_LEN))


def test_alike_extents_are_joined_and_counted() -> None:
    extents = [block.Extent(10, True, True), block.Extent(5, True, True), block.Extent(7, False, False)]
    out = transmission().status(request(Command.BLOCK_STATUS, 0, 22), extents)
    assert list(wire.EXTENT.iter_unpack(out[24:])) == [(15, 3), (7, 0)]
    out = transmission().status(request(Command.BLOCK_STATUS, 0, 22, CommandFlag.REQ_ONE), extents)
    assert list(wire.EXTENT.iter_unpack(out[24:])) == [(15, 3)]


def test_an_error_that_the_protocol_does_not_know_is_an_io_error() -> None:
    out = transmission(structured=False).error(request(Command.READ), errno.ENOENT, "x")
    assert wire.SIMPLE_REPLY.unpack(out) == (wire.SIMPLE_REPLY_MAGIC, errno.EIO, 7)
