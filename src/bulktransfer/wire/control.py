"""The codec of the control messages: what `messages` describes, as bytes.

Knows: how each field is packed, what it is bounded by, and that the bytes may come from a hostile peer.
Must not know: sockets and descriptors, or which message is legal when (`core` has those rules).

Layout: magic "BT", version of this encoding (u8), type (u8), then the fields of `_LAYOUT` in order, integers
in network order, nothing after them. A message is at least `HEADER_SIZE` bytes long, so a single byte on the
same socket is never one: it is a doorbell.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Any, Final, Protocol

from ..errors import ProtocolViolation
from ..messages import (
    AssignAnswer,
    AssignDone,
    AssignMemory,
    AssignRequest,
    Confirm,
    Hello,
    Leases,
    Message,
    Refusal,
    RemoveAnswer,
    RemoveRequest,
    Teardown,
    TeardownAnswer,
    Terms,
    Welcome,
    Withdraw,
)
from ..states import Direction, Means, Role, Trust

MAGIC: Final = b"BT"
ENCODING: Final = 1  # how a message is packed; `Hello.version` says which conversation the sender speaks
MESSAGE_SIZE_MAX: Final = 2048
TEXT_SIZE_MAX: Final = 1024
TERMS_COUNT_MAX: Final = 64
META_SIZE_MAX: Final = 2048
SLOT_COUNT_MAX: Final = 65536
STAGE_SIZE_MAX: Final = 64 << 20

_HEADER = struct.Struct("!2sBB")
HEADER_SIZE: Final = _HEADER.size


class _Cursor:
    """The bytes not yet taken of one message, and which message it is, for the text of a violation."""

    __slots__ = ("data", "message", "offset")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.offset = 0
        self.message = "a message"

    def take(self, size: int, field: str) -> bytes:
        """The next `size` bytes. Raises: ProtocolViolation (there are fewer)."""
        end = self.offset + size
        if end > len(self.data):
            raise self.violation(f"{field} needs {size} bytes, {len(self.data) - self.offset} are left")
        taken = self.data[self.offset : end]
        self.offset = end
        return taken

    def violation(self, rule: str) -> ProtocolViolation:
        """The error for a broken `rule`, to be raised by the caller."""
        return ProtocolViolation(f"control message from the peer: {self.message}: {rule}")


class _Field(Protocol):
    """How one field is packed. `pack` raises ValueError or TypeError, `unpack` only ProtocolViolation."""

    def pack(self, value: Any, field: str) -> bytes: ...

    def unpack(self, cursor: _Cursor, field: str) -> Any: ...


class _Integer:
    """An unsigned integer of a struct `form`, between `least` and `most`."""

    def __init__(self, form: str, least: int = 0, most: int | None = None, *, power_of_two: bool = False) -> None:
        self._struct = struct.Struct("!" + form)
        self._least = least
        self._most = (1 << 8 * self._struct.size) - 1 if most is None else most
        self._power_of_two = power_of_two

    def _problem(self, value: int, field: str) -> str | None:
        if not self._least <= value <= self._most:
            return f"{field} is {value}, not between {self._least} and {self._most}"
        if self._power_of_two and value & (value - 1):
            return f"{field} is {value}, not a power of two"
        return None

    def pack(self, value: Any, field: str) -> bytes:
        if type(value) is not int:
            raise TypeError(f"{field} is a {type(value).__name__}, not an int")
        problem = self._problem(value, field)
        if problem is not None:
            raise ValueError(problem)
        return self._struct.pack(value)

    def unpack(self, cursor: _Cursor, field: str) -> int:
        value: int = self._struct.unpack(cursor.take(self._struct.size, field))[0]
        problem = self._problem(value, field)
        if problem is not None:
            raise cursor.violation(problem)
        return value


class _Enum:
    """A member of `cls`, as its number in one byte."""

    def __init__(self, cls: type[enum.Enum]) -> None:
        self._cls = cls
        self._members = {member.value: member for member in cls}

    def pack(self, value: Any, field: str) -> bytes:
        if not isinstance(value, self._cls):
            raise TypeError(f"{field} is {value!r}, not a {self._cls.__name__}")
        return bytes((value.value,))

    def unpack(self, cursor: _Cursor, field: str) -> enum.Enum:
        number = cursor.take(1, field)[0]
        if number not in self._members:
            raise cursor.violation(f"{field} is {number}, which is no {self._cls.__name__}")
        return self._members[number]


class _Bool:
    """0 or 1 in one byte, and nothing else."""

    def pack(self, value: Any, field: str) -> bytes:
        if type(value) is not bool:
            raise TypeError(f"{field} is {value!r}, not a bool")
        return bytes((value,))

    def unpack(self, cursor: _Cursor, field: str) -> bool:
        number = cursor.take(1, field)[0]
        if number > 1:
            raise cursor.violation(f"{field} is {number}, neither 0 nor 1")
        return number == 1


class _Bytes:
    """Exactly `size` bytes."""

    def __init__(self, size: int) -> None:
        self._size = size

    def pack(self, value: Any, field: str) -> bytes:
        if not isinstance(value, bytes):
            raise TypeError(f"{field} is a {type(value).__name__}, not bytes")
        if len(value) != self._size:
            raise ValueError(f"{field} has {len(value)} bytes, not {self._size}")
        return value

    def unpack(self, cursor: _Cursor, field: str) -> bytes:
        return cursor.take(self._size, field)


class _Text:
    """A u16 length, and as much UTF-8; too long a text is cut when packed and a violation when unpacked."""

    _length = struct.Struct("!H")

    def pack(self, value: Any, field: str) -> bytes:
        if not isinstance(value, str):
            raise TypeError(f"{field} is a {type(value).__name__}, not a str")
        # A reason often quotes a file name, which may hold surrogates; it has to reach the peer all the same.
        data = value.encode(errors="backslashreplace")
        if len(data) > TEXT_SIZE_MAX:
            data = data[:TEXT_SIZE_MAX].decode(errors="ignore").encode()  # drops the character that was cut in two
        return self._length.pack(len(data)) + data

    def unpack(self, cursor: _Cursor, field: str) -> str:
        length: int = self._length.unpack(cursor.take(self._length.size, field))[0]
        if length > TEXT_SIZE_MAX:
            raise cursor.violation(f"{field} has {length} bytes, {TEXT_SIZE_MAX} are allowed")
        try:
            return cursor.take(length, field).decode()
        except UnicodeDecodeError:
            raise cursor.violation(f"{field} is not UTF-8") from None


class _TermsTuple:
    """A u8 count from 1 to `TERMS_COUNT_MAX`, and as many `Terms`."""

    def pack(self, value: Any, field: str) -> bytes:
        terms = tuple(value)
        if not 1 <= len(terms) <= TERMS_COUNT_MAX:
            raise ValueError(f"{field} has {len(terms)} items, not between 1 and {TERMS_COUNT_MAX}")
        for item in terms:
            if type(item) is not Terms:
                raise TypeError(f"{field} holds a {type(item).__name__}, not Terms")
        return bytes((len(terms),)) + b"".join(
            kind.pack(getattr(item, name), f"{field}[{index}].{name}")
            for index, item in enumerate(terms)
            for name, kind in _TERMS_LAYOUT.items()
        )

    def unpack(self, cursor: _Cursor, field: str) -> tuple[Terms, ...]:
        count = cursor.take(1, field)[0]
        if not 1 <= count <= TERMS_COUNT_MAX:
            raise cursor.violation(f"{field} has {count} items, not between 1 and {TERMS_COUNT_MAX}")
        return tuple(
            Terms(**{name: kind.unpack(cursor, f"{field}[{index}].{name}") for name, kind in _TERMS_LAYOUT.items()})
            for index in range(count)
        )


_ID, _TEXT = _Bytes(16), _Text()
_REQUEST, _SLOT, _CODE = _Integer("I"), _Integer("H"), _Integer("H")

_TERMS_LAYOUT: Final[dict[str, _Field]] = {
    "direction": _Enum(Direction),
    "role": _Enum(Role),
    "trust": _Enum(Trust),
    "meta_size": _Integer("H", most=META_SIZE_MAX),
    "slot_count": _Integer("I", least=2, most=SLOT_COUNT_MAX, power_of_two=True),
    "stage_size": _Integer("I", most=STAGE_SIZE_MAX, power_of_two=True),
}

_ANSWER: Final[dict[str, _Field]] = {"request": _REQUEST, "code": _CODE, "reason": _TEXT}


@dataclass(frozen=True, slots=True)
class _Layout:
    """The number of a message, fixed for ever, and its fields in order."""

    number: int
    fields: dict[str, _Field]


_LAYOUT: Final[dict[type[Any], _Layout]] = {
    Hello: _Layout(
        1,
        {"version": _Integer("H", least=1), "domain_id": _ID, "trust": _Enum(Trust), "role": _Enum(Role)},
    ),
    Welcome: _Layout(2, {"domain_id": _ID, "terms": _TermsTuple()}),
    Confirm: _Layout(3, {}),
    Refusal: _Layout(4, {"code": _Integer("H", least=1), "reason": _TEXT}),
    AssignRequest: _Layout(
        5,
        {
            "request": _REQUEST,
            "slot": _SLOT,
            "pool_id": _ID,
            "buffer_count": _Integer("I", least=1),
            "buffer_size": _Integer("Q", least=1),
            "trust": _Enum(Trust),
            "means": _Enum(Means),
        },
    ),
    AssignAnswer: _Layout(6, _ANSWER),
    AssignMemory: _Layout(7, {"request": _REQUEST}),
    AssignDone: _Layout(8, _ANSWER),
    RemoveRequest: _Layout(9, {"request": _REQUEST, "slot": _SLOT}),
    RemoveAnswer: _Layout(10, _ANSWER),
    Withdraw: _Layout(11, {"request": _REQUEST}),
    Teardown: _Layout(12, {"reason": _TEXT, "final": _Bool()}),
    TeardownAnswer: _Layout(13, {}),
    Leases: _Layout(14, {"slot": _SLOT}),
}
_CLASS_OF: Final[dict[int, type[Any]]] = {layout.number: cls for cls, layout in _LAYOUT.items()}


def encode(message: Message) -> bytes:
    """The bytes of `message`: at least `HEADER_SIZE`, at most `MESSAGE_SIZE_MAX`; texts are cut to 1024 bytes.

    Raises:
        TypeError: `message` is none, or a field has the wrong type.
        ValueError: a field is out of its bounds.
    """
    layout = _LAYOUT.get(type(message))
    if layout is None:
        raise TypeError(f"encode: {type(message).__name__} is not a control message")
    name = type(message).__name__
    parts = [_HEADER.pack(MAGIC, ENCODING, layout.number)]
    parts += [kind.pack(getattr(message, field), f"encode {name}: {field}") for field, kind in layout.fields.items()]
    return b"".join(parts)


def decode(data: bytes) -> Message:
    """The message in `data`, which may come from anybody.

    Raises:
        ProtocolViolation: `data` is not exactly one message within the bounds; the text names the rule.
    """
    cursor = _Cursor(data)
    if len(data) > MESSAGE_SIZE_MAX:
        raise cursor.violation(f"it has {len(data)} bytes, {MESSAGE_SIZE_MAX} are allowed")
    magic, encoding, number = _HEADER.unpack(cursor.take(HEADER_SIZE, "the header"))
    if magic != MAGIC:
        raise cursor.violation(f"it starts with {magic!r}, not {MAGIC!r}")
    if encoding != ENCODING:
        raise cursor.violation(f"it is packed by encoding {encoding}, this side knows {ENCODING}")
    cls = _CLASS_OF.get(number)
    if cls is None:
        raise cursor.violation(f"type {number} is unknown")
    cursor.message = cls.__name__
    message: Message = cls(**{field: kind.unpack(cursor, field) for field, kind in _LAYOUT[cls].fields.items()})
    if cursor.offset != len(data):
        raise cursor.violation(f"{len(data) - cursor.offset} bytes follow its end")
    return message


class ControlCodec:
    """`encode` and `decode` as an `abc.Codec`."""

    def encode(self, message: Message) -> bytes:
        """See `encode` of this module."""
        return encode(message)

    def decode(self, data: bytes) -> Message:
        """See `decode` of this module."""
        return decode(data)


CODEC: Final = ControlCodec()
