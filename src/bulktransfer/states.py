"""The states of channels and buffers, and every legal transition, as rows of tables.

Knows: the words of the report (I-5.1.1, I-6.2.1, Fig 5.1) and which act leads from which state to which.
Must not know: who acts, or where memory lives. The hot core compiles these tables to C arrays at import;
code asks the table, and a missing row is the error.
"""

from __future__ import annotations

import enum
from typing import NamedTuple


class Direction(enum.Enum):
    """Which way data flows, seen from one end: TX is the source, RX the sink (I-4.2.3)."""

    TX = 0
    RX = 1

    @property
    def other(self) -> Direction:
        """The direction of the other end."""
        return Direction.RX if self is Direction.TX else Direction.TX


class Role(enum.Enum):
    """Who has the last word where both sides act at once (I-4.2.4); GENERIC leaves it to the binder."""

    GENERIC = 0
    MASTER = 1
    SLAVE = 2

    @property
    def other(self) -> Role:
        """The complement; GENERIC is its own."""
        return {Role.GENERIC: Role.GENERIC, Role.MASTER: Role.SLAVE, Role.SLAVE: Role.MASTER}[self]


class Trust(enum.Enum):
    """How far a transfer is enforced (I-4.2.4)."""

    UNINITIALIZED = 0
    NONE = 1
    HALF = 2
    FULL = 3


class Means(enum.Enum):
    """How contents travel where memory is not shared (trust NONE): as it turns out best, or as one side asked."""

    CHOSEN = 0
    EXPOSED = 1
    BY_VALUE = 2
    SEALED = 3


class ChannelState(enum.Enum):
    """The life of a channel (I-6.2.1)."""

    UNINITIALIZED = 0
    INITIALIZED = 1
    BINDING = 2
    BIND_NEGOTIATE = 3
    CONNECTED = 4
    TEARDOWN = 5
    CLOSED = 6


class BufferState(enum.Enum):
    """What one domain may do with one buffer (I-5.1.1)."""

    INVALID = 0
    READ_ONLY = 1
    READ_ONLY_OWNED = 2
    READ_WRITE = 3


class EventKind(enum.StrEnum):
    """What arrives at a channel (I-6.2.2)."""

    BIND_RECEIVED = "bind_received"
    TEARDOWN_RECEIVED = "teardown_received"
    POOL_ASSIGNED = "pool_assigned"
    POOL_REMOVED = "pool_removed"
    MOVE_RECEIVED = "move_received"
    BUFFER_RECEIVED = "buffer_received"
    COPY_RECEIVED = "copy_received"
    COPY_RELEASED = "copy_released"
    OPERATION_REFUSED = "operation_refused"


class BufferAct(enum.Enum):
    """What can happen to a buffer in a domain: calls made here, arrivals, answers, and ends."""

    MOVE = 0
    PASS = 1
    COPY = 2
    RELEASE = 3
    FULL_COPY = 4
    MOVE_RECEIVED = 5
    BUFFER_RECEIVED = 6
    COPY_RECEIVED = 7
    COPY_RELEASED = 8
    MOVE_REFUSED = 9
    COPY_REFUSED = 10
    RECLAIMED = 11
    DROP = 12


class When(enum.Enum):
    """What the counts must say for a row to hold; "last" is exactly one."""

    ALWAYS = "always"
    OUT_MANY = "out > 1"
    OUT_LAST = "out = 1"
    OUT_NONE = "out = 0"
    OUT_NONE_IN_MANY = "out = 0, in > 1"
    OUT_NONE_IN_LAST = "out = 0, in = 1"


class BufferRow(NamedTuple):
    """In `state`, `act` leads to `next` if the counts say `when`; `out` and `in_` change by so much.

    out: copies that this domain has sent and not got back; in: copies that it holds, by channel.
    """

    state: BufferState
    act: BufferAct
    next: BufferState
    when: When = When.ALWAYS
    out: int = 0
    in_: int = 0


_S, _A = BufferState, BufferAct

BUFFER_TABLE: tuple[BufferRow, ...] = (
    BufferRow(_S.INVALID, _A.MOVE_RECEIVED, _S.READ_WRITE),
    BufferRow(_S.INVALID, _A.BUFFER_RECEIVED, _S.READ_WRITE),
    BufferRow(_S.INVALID, _A.COPY_RECEIVED, _S.READ_ONLY, in_=+1),
    BufferRow(_S.READ_WRITE, _A.MOVE, _S.INVALID),
    BufferRow(_S.READ_WRITE, _A.PASS, _S.INVALID),
    BufferRow(_S.INVALID, _A.MOVE_REFUSED, _S.READ_WRITE),
    BufferRow(_S.READ_WRITE, _A.COPY, _S.READ_ONLY_OWNED, out=+1),
    BufferRow(_S.READ_ONLY_OWNED, _A.COPY, _S.READ_ONLY_OWNED, out=+1),
    BufferRow(_S.READ_ONLY_OWNED, _A.COPY_RELEASED, _S.READ_ONLY_OWNED, When.OUT_MANY, out=-1),
    BufferRow(_S.READ_ONLY_OWNED, _A.COPY_RELEASED, _S.READ_WRITE, When.OUT_LAST, out=-1),
    BufferRow(_S.READ_ONLY_OWNED, _A.COPY_REFUSED, _S.READ_ONLY_OWNED, When.OUT_MANY, out=-1),
    BufferRow(_S.READ_ONLY_OWNED, _A.COPY_REFUSED, _S.READ_WRITE, When.OUT_LAST, out=-1),
    BufferRow(_S.READ_ONLY, _A.COPY, _S.READ_ONLY, out=+1),
    BufferRow(_S.READ_ONLY, _A.COPY_RELEASED, _S.READ_ONLY, out=-1),
    BufferRow(_S.READ_ONLY, _A.COPY_REFUSED, _S.READ_ONLY, out=-1),
    BufferRow(_S.READ_ONLY, _A.COPY_RECEIVED, _S.READ_ONLY, When.OUT_NONE, in_=+1),
    BufferRow(_S.READ_ONLY, _A.RELEASE, _S.READ_ONLY, When.OUT_NONE_IN_MANY, in_=-1),
    BufferRow(_S.READ_ONLY, _A.RELEASE, _S.INVALID, When.OUT_NONE_IN_LAST, in_=-1),
    BufferRow(_S.READ_ONLY, _A.FULL_COPY, _S.READ_ONLY),
    BufferRow(_S.READ_ONLY_OWNED, _A.FULL_COPY, _S.READ_ONLY_OWNED),
    BufferRow(_S.READ_WRITE, _A.FULL_COPY, _S.READ_WRITE),
    BufferRow(_S.INVALID, _A.RECLAIMED, _S.READ_WRITE),
    BufferRow(_S.INVALID, _A.DROP, _S.INVALID),
    BufferRow(_S.READ_ONLY, _A.DROP, _S.INVALID),
    BufferRow(_S.READ_ONLY_OWNED, _A.DROP, _S.INVALID),
    BufferRow(_S.READ_WRITE, _A.DROP, _S.INVALID),
)
"""The table of design section 3; a lease that hangs up gives a moved buffer back by RECLAIMED (rule 16)."""


class ChannelAct(enum.Enum):
    """What can happen to a channel: set-up seen from both sides, and its end."""

    CREATE = 0
    BIND = 1
    HELLO_RECEIVED = 2
    WITHDRAWN = 3
    WELCOMED = 4
    CONFIRMED = 5
    REFUSED = 6
    DESTROY = 7
    TEARDOWN_RECEIVED = 8
    TORN_DOWN = 9
    CLOSE = 10


_C, _B = ChannelState, ChannelAct

CHANNEL_TABLE: dict[tuple[ChannelState, ChannelAct], ChannelState] = {
    (_C.UNINITIALIZED, _B.CREATE): _C.INITIALIZED,
    (_C.UNINITIALIZED, _B.BIND): _C.BINDING,
    (_C.INITIALIZED, _B.HELLO_RECEIVED): _C.BIND_NEGOTIATE,
    (_C.BIND_NEGOTIATE, _B.WITHDRAWN): _C.INITIALIZED,
    (_C.BIND_NEGOTIATE, _B.CONFIRMED): _C.CONNECTED,
    (_C.BINDING, _B.WELCOMED): _C.CONNECTED,
    (_C.BINDING, _B.REFUSED): _C.CLOSED,
    (_C.CONNECTED, _B.DESTROY): _C.TEARDOWN,
    (_C.TEARDOWN, _B.WITHDRAWN): _C.CONNECTED,
    (_C.CONNECTED, _B.TEARDOWN_RECEIVED): _C.TEARDOWN,
    (_C.TEARDOWN, _B.TEARDOWN_RECEIVED): _C.TEARDOWN,
    (_C.TEARDOWN, _B.TORN_DOWN): _C.CLOSED,
    **{(state, _B.CLOSE): _C.CLOSED for state in ChannelState},
}
"""The life of a channel: a creator waits INITIALIZED, negotiates, and goes back there after a veto (rule 3).

A teardown that could not be said never was."""


def step_channel(state: ChannelState, act: ChannelAct) -> ChannelState | None:
    """The state that `act` leads to, or None where the table has no row."""
    return CHANNEL_TABLE.get((state, act))


def agree_roles(creator: Role, binder: Role) -> tuple[Role, Role] | None:
    """The roles of a connected channel (rule 1): never GENERIC; None where both ask for the same."""
    if creator is Role.GENERIC and binder is Role.GENERIC:
        return Role.MASTER, Role.SLAVE
    if creator is Role.GENERIC:
        return binder.other, binder
    if binder is Role.GENERIC:
        return creator, creator.other
    return None if creator is binder else (creator, binder)
