"""The negotiation of NBD's fixed newstyle, without a socket: bytes in, bytes out, and at last an export.

Knows: options, what may follow what, the limits of a client's words. Must not know: sockets, TLS, stores.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from .wire import (
    BASE_ALLOCATION,
    CLIENT_FLAGS,
    EXPORT_NAME_REPLY,
    GREETING,
    INFO_BLOCK_SIZE,
    INFO_EXPORT,
    MAX_NAME,
    MAX_PAYLOAD,
    NBD_MAGIC,
    OPTION,
    OPTION_MAGIC,
    OPTION_REPLY,
    OPTION_REPLY_MAGIC,
    U16,
    U32,
    HandshakeFlag,
    Info,
    Option,
    OptionReply,
    TransmissionFlag,
)

OPTION_BYTES_MAX = 1 << 16  # of one option; longer ones are drained and answered
OPTION_DRAIN_MAX = 1 << 25
OPTIONS_MAX = 1024  # of one client
CONTEXT_ID = 1


class NbdViolation(Exception):
    """The client broke the protocol where no answer is possible; the connection ends."""


class Facts(NamedTuple):
    """What a client is told of an export."""

    name: str
    size_bytes: int
    flags: int
    block_size: int
    description: str = ""


class Exports(Protocol):
    """Where exports are looked up."""

    def names(self) -> Iterable[tuple[str, str]]:
        """Names and descriptions for a client that asks for a list."""

    def facts(self, name: str) -> Facts | None:
        """What is known of an export, or None where there is none of that name."""


class Tls(enum.Enum):
    """NOTLS, SELECTIVETLS and FORCEDTLS of the specification."""

    OFF = "off"
    OPTIONAL = "optional"
    REQUIRED = "required"


class Agreement(NamedTuple):
    """What the two sides agreed on."""

    export: Facts
    structured: bool
    extended: bool
    allocation: bool  # block status with base:allocation
    rest: bytes  # what the client sent after it, already in the transmission


class Negotiation:
    """One client's negotiation; feed it with `receive`, send what that returns, until one of its ends is reached.

    agreement: set when an export was chosen. ended: the client is done, or not worth going on with. wants_tls: send
    what was returned, do the TLS handshake, call `secured`.
    """

    def __init__(self, exports: Exports, *, tls: Tls = Tls.OFF) -> None:
        self._exports = exports
        self._tls = tls
        self._secure = False
        self._buffer = bytearray()
        self._drain = 0
        self._options = 0
        self._flags: HandshakeFlag | None = None
        self._out: list[bytes] = []
        self.agreement: Agreement | None = None
        self.ended = False
        self.wants_tls = False
        self._forget()

    def _forget(self) -> None:
        self._structured = self._extended = False
        self._context_of: str | None = None  # the export that base:allocation was agreed for

    def greeting(self) -> bytes:
        """What the server says first."""
        return GREETING.pack(NBD_MAGIC, OPTION_MAGIC, HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES)

    def secured(self) -> None:
        """The TLS handshake is done; what was agreed in the clear is forgotten."""
        self.wants_tls = False
        self._secure = True
        self._forget()

    def receive(self, data: bytes | bytearray | memoryview) -> bytes:
        """What to answer to the bytes that came. Raises: NbdViolation (end the connection)."""
        self._buffer += data
        self._out.clear()
        if self._flags is None:
            if len(self._buffer) < CLIENT_FLAGS.size:
                return b""
            self._take_flags()
        while self.agreement is None and not self.ended and not self.wants_tls and self._step():
            pass
        if self.wants_tls and self._buffer:
            raise NbdViolation("the client sent more in the clear after it asked for TLS")
        return b"".join(self._out)

    def _take_flags(self) -> None:
        (number,) = CLIENT_FLAGS.unpack_from(self._buffer)
        del self._buffer[: CLIENT_FLAGS.size]
        if number >= 1 << len(HandshakeFlag):
            raise NbdViolation(f"the client's flags {number:#x} say what this server does not know")
        self._flags = HandshakeFlag(number)

    def _step(self) -> bool:
        """Take one option, if it is there whole; whether it was."""
        if self._drain:
            count = min(self._drain, len(self._buffer))
            del self._buffer[:count]
            self._drain -= count
            if self._drain:
                return False
        if len(self._buffer) < OPTION.size:
            return False
        magic, option, length = OPTION.unpack_from(self._buffer)
        if magic != OPTION_MAGIC:
            raise NbdViolation(f"an option begins with {magic:#x}")
        self._options += 1
        if self._options > OPTIONS_MAX:
            raise NbdViolation(f"more than {OPTIONS_MAX} options")
        if length > OPTION_BYTES_MAX:
            self._too_big(option, length)
            return True
        if len(self._buffer) < OPTION.size + length:
            self._options -= 1  # it is counted when it is whole
            return False
        data = bytes(self._buffer[OPTION.size : OPTION.size + length])
        del self._buffer[: OPTION.size + length]
        self._option(option, data)
        return True

    def _too_big(self, option: int, length: int) -> None:
        if length > OPTION_DRAIN_MAX or option == Option.EXPORT_NAME:
            raise NbdViolation(f"option {option} of {length} bytes")
        del self._buffer[: OPTION.size]
        self._drain = length
        self._say(option, OptionReply.ERR_TOO_BIG, b"the option is too long")

    def _say(self, option: int, reply: OptionReply, data: bytes = b"") -> None:
        self._out.append(OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, reply, len(data)) + data)

    def _option(self, option: int, data: bytes) -> None:
        secure = self._secure or self._tls is not Tls.REQUIRED
        if not secure and option not in (Option.STARTTLS, Option.ABORT):
            if option == Option.EXPORT_NAME:
                raise NbdViolation("the client asked for an export in the clear, where TLS is required")
            self._say(option, OptionReply.ERR_TLS_REQD, b"this server requires TLS")
            return
        handler = _HANDLERS.get(option)
        if handler is None:
            self._say(option, OptionReply.ERR_UNSUP)
            return
        try:
            handler(self, option, data)
        except _Malformed as error:
            self._say(option, OptionReply.ERR_INVALID, str(error).encode())

    # -- one option each -------------------------------------------------------------------------------------------

    def _export_name(self, option: int, data: bytes) -> None:
        try:
            facts = self._exports.facts(data[: MAX_NAME + 1].decode())
        except UnicodeDecodeError:
            facts = None
        if facts is None:
            raise NbdViolation(f"no export {data[:64]!r}, and EXPORT_NAME has no way to say so")
        self._out.append(EXPORT_NAME_REPLY.pack(facts.size_bytes, self._export_flags(facts)))
        assert self._flags is not None
        if not self._flags & HandshakeFlag.NO_ZEROES:
            self._out.append(bytes(124))
        self._agree(facts)

    def _abort(self, option: int, data: bytes) -> None:
        self._say(option, OptionReply.ACK)
        self.ended = True

    def _list(self, option: int, data: bytes) -> None:
        if data:
            raise _Malformed("LIST takes no data")
        for name, description in self._exports.names():
            encoded = name.encode()
            self._say(option, OptionReply.SERVER, U32.pack(len(encoded)) + encoded + description.encode())
        self._say(option, OptionReply.ACK)

    def _starttls(self, option: int, data: bytes) -> None:
        if data or self._secure:
            raise _Malformed("STARTTLS takes no data, and once")
        if self._tls is Tls.OFF:
            self._say(option, OptionReply.ERR_POLICY, b"this server has no certificate")
            return
        self._say(option, OptionReply.ACK)
        self.wants_tls = True

    def _info(self, option: int, data: bytes) -> None:
        words = _Words(data)
        name = words.text()
        wanted = {words.u16() for _ in range(words.u16())}
        words.end()
        facts = self._exports.facts(name)
        if facts is None:
            self._say(option, OptionReply.ERR_UNKNOWN, b"no such export")
            return
        self._say(option, OptionReply.INFO, INFO_EXPORT.pack(Info.EXPORT, facts.size_bytes, self._export_flags(facts)))
        if Info.NAME in wanted:
            self._say(option, OptionReply.INFO, U16.pack(Info.NAME) + facts.name.encode())
        if Info.DESCRIPTION in wanted and facts.description:
            self._say(option, OptionReply.INFO, U16.pack(Info.DESCRIPTION) + facts.description.encode())
        if Info.BLOCK_SIZE in wanted:
            sizes = INFO_BLOCK_SIZE.pack(Info.BLOCK_SIZE, 1, facts.block_size, MAX_PAYLOAD)
            self._say(option, OptionReply.INFO, sizes)
        self._say(option, OptionReply.ACK)
        if option == Option.GO:
            self._agree(facts)

    def _structured_reply(self, option: int, data: bytes) -> None:
        if data:
            raise _Malformed("STRUCTURED_REPLY takes no data")
        if self._extended:
            self._say(option, OptionReply.ERR_EXT_HEADER_REQD, b"extended headers are agreed already")
            return
        self._structured = True
        self._say(option, OptionReply.ACK)

    def _extended_headers(self, option: int, data: bytes) -> None:
        if data:
            raise _Malformed("EXTENDED_HEADERS takes no data")
        self._structured = self._extended = True
        self._say(option, OptionReply.ACK)

    def _meta_context(self, option: int, data: bytes) -> None:
        if option == Option.SET_META_CONTEXT:
            self._context_of = None
        words = _Words(data)
        name = words.text()
        queries = [words.text() for _ in range(words.u32())]
        words.end()
        if not self._structured:
            raise _Malformed("structured replies come first")
        facts = self._exports.facts(name)
        if facts is None:
            self._say(option, OptionReply.ERR_UNKNOWN, b"no such export")
            return
        listing = option == Option.LIST_META_CONTEXT
        if BASE_ALLOCATION in queries or (listing and (not queries or "base:" in queries)):
            number = 0 if listing else CONTEXT_ID
            self._say(option, OptionReply.META_CONTEXT, U32.pack(number) + BASE_ALLOCATION.encode())
            if not listing:
                self._context_of = facts.name
        self._say(option, OptionReply.ACK)

    def _export_flags(self, facts: Facts) -> int:
        return facts.flags | (TransmissionFlag.SEND_DF if self._structured else 0)

    def _agree(self, facts: Facts) -> None:
        allocation = self._context_of is not None and self._context_of == facts.name
        rest = bytes(self._buffer)
        self._buffer.clear()
        self.agreement = Agreement(facts, self._structured, self._extended, allocation, rest)


_HANDLERS: dict[int, Callable[[Negotiation, int, bytes], None]] = {
    Option.EXPORT_NAME: Negotiation._export_name,
    Option.ABORT: Negotiation._abort,
    Option.LIST: Negotiation._list,
    Option.STARTTLS: Negotiation._starttls,
    Option.INFO: Negotiation._info,
    Option.GO: Negotiation._info,
    Option.STRUCTURED_REPLY: Negotiation._structured_reply,
    Option.LIST_META_CONTEXT: Negotiation._meta_context,
    Option.SET_META_CONTEXT: Negotiation._meta_context,
    Option.EXTENDED_HEADERS: Negotiation._extended_headers,
}


class _Malformed(Exception):
    """The data of an option is not what the option takes; the session goes on."""


class _Words:
    """The data of an option, taken piece by piece."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def _take(self, length: int) -> bytes:
        piece = self._data[self._at : self._at + length]
        if len(piece) != length:
            raise _Malformed("the option ends early")
        self._at += length
        return piece

    def _number(self, kind: struct.Struct) -> int:
        return int(kind.unpack(self._take(kind.size))[0])

    def u16(self) -> int:
        return self._number(U16)

    def u32(self) -> int:
        return self._number(U32)

    def text(self) -> str:
        length = self.u32()
        if length > MAX_NAME:
            raise _Malformed(f"a text of {length} bytes")
        try:
            return self._take(length).decode()
        except UnicodeDecodeError:
            raise _Malformed("a text that is not UTF-8") from None

    def end(self) -> None:
        if self._at != len(self._data):
            raise _Malformed("the option goes on beyond its end")
