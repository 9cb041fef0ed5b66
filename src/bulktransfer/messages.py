"""What the two sides of a channel say to each other outside the transfers: set-up, pools, the end.

Knows: the fields of each message. Must not know: bytes (`wire` turns messages into them), descriptors
(a backend carries them beside a message), or rules (`core` has them).

A channel's life on the wire (creator C, binder B):
    B Hello, C Welcome | Refusal, B Confirm                       before the rings exist
    then, each ordered by an entry of the sender's ring:
    AssignRequest, AssignAnswer, AssignMemory, AssignDone         request by either side (I-5.2.3)
    Leases                                                        of a pool that is there
    RemoveRequest, RemoveAnswer · Withdraw · Teardown, TeardownAnswer
"""

from __future__ import annotations

from dataclasses import dataclass

from .states import Direction, Means, Role, Trust

PROTOCOL_VERSION = 1


@dataclass(frozen=True, slots=True)
class Hello:
    """A binder introduces itself: who it is, and what it asks for (UNINITIALIZED, GENERIC: anything)."""

    domain_id: bytes  # 16 bytes
    trust: Trust
    role: Role
    version: int = PROTOCOL_VERSION


@dataclass(frozen=True, slots=True)
class Terms:
    """One channel as the creator set it up; direction and role are those of the binder's end."""

    direction: Direction
    role: Role
    trust: Trust
    meta_size: int
    slot_count: int
    stage_size: int = 0  # of the source's staging area; 0 where memory is shared


@dataclass(frozen=True, slots=True)
class Welcome:
    """The creator accepts: the terms of every channel of the connection.

    Descriptors beside it: a socket for each channel after the first, then an outbox for each channel.
    """

    domain_id: bytes
    terms: tuple[Terms, ...]


@dataclass(frozen=True, slots=True)
class Confirm:
    """The binder has everything; the channels are connected. Descriptors: an outbox for each channel."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """No: `code` is a number of `errors.WIRE_CODES`, `reason` the text for the user."""

    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class AssignRequest:
    """May this pool come onto the channel, under `slot`? (MASTER numbers even slots, SLAVE odd ones.)"""

    request: int
    slot: int
    pool_id: bytes  # 16 bytes
    buffer_count: int
    buffer_size: int
    trust: Trust
    means: Means


@dataclass(frozen=True, slots=True)
class AssignAnswer:
    """Yes (code 0) or no; a yes does not change who owns what."""

    request: int
    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class AssignMemory:
    """The memory of an accepted pool. Descriptors: the pool's memfd, then the leases of the assigner (rule 16)."""

    request: int


@dataclass(frozen=True, slots=True)
class AssignDone:
    """The pool is mapped (code 0), or could not be; only now may buffers of it travel.

    Descriptors: the leases of the acceptor (rule 16). After a Withdraw of what was accepted, `code` says that it is
    off there, too.
    """

    request: int
    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Leases:
    """More leases of the pool under `slot` reached the sender, and buffers may come that they are for (rule 16).

    Descriptors: the write ends of their pipes.
    """

    slot: int


@dataclass(frozen=True, slots=True)
class RemoveRequest:
    """May the pool under `slot` leave the channel? The sender sends nothing from it until the answer."""

    request: int
    slot: int


@dataclass(frozen=True, slots=True)
class RemoveAnswer:
    """Yes (code 0) or no."""

    request: int
    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Withdraw:
    """The assignment or removal asked for in `request` is no longer wanted (rule 13)."""

    request: int


@dataclass(frozen=True, slots=True)
class Teardown:
    """No new sends from here; `final`: the sender does not wait for an answer (close; with a reason: it broke)."""

    reason: str
    final: bool


@dataclass(frozen=True, slots=True)
class TeardownAnswer:
    """Everything that came before the teardown is taken, and nothing more will be sent from here."""


Message = (
    Hello
    | Welcome
    | Confirm
    | Refusal
    | AssignRequest
    | AssignAnswer
    | AssignMemory
    | AssignDone
    | Leases
    | RemoveRequest
    | RemoveAnswer
    | Withdraw
    | Teardown
    | TeardownAnswer
)
