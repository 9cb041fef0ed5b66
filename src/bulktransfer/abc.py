"""The Protocols that authors of backends implement.

Knows: what the core needs from a backend: a place where peers knock, a way to knock, and a codec.
Must not know: how any backend does it. A backend chooses where memory lives and how descriptors travel,
never what is allowed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from .messages import Message


class Peer(NamedTuple):
    """Who is at the other end, as the kernel says it (ids are -1 where it cannot)."""

    pid: int
    uid: int
    gid: int

    @property
    def host(self) -> str:
        """Host and port, where it is on another machine or may be; else ""."""
        return ""

    def __str__(self) -> str:
        return f"process {self.pid} of user {self.uid}"


class FarPeer(Peer):
    """Who is at the other end of a network; the kernel knows nothing else of it."""

    _host = ""

    @classmethod
    def at(cls, host: str) -> FarPeer:
        """The one at `host`, which names a port, too."""
        peer = cls(-1, -1, -1)
        peer._host = host
        return peer

    @property
    def host(self) -> str:
        """Host and port."""
        return self._host

    def __str__(self) -> str:
        return self._host


@runtime_checkable
class Codec(Protocol):
    """Messages to bytes and back; `decode` raises ProtocolViolation for anything that is not one."""

    def encode(self, message: Message) -> bytes:
        """The bytes of `message`, 2048 at most."""

    def decode(self, data: bytes) -> Message:
        """The message in `data`. Raises: ProtocolViolation."""


class Wire(Protocol):
    """A connection to another machine while channels are set up on it, which never waits.

    Whatever comes first (a name to be looked up, TLS, proofs) is its own business; `hear` carries it on.
    """

    @property
    def closed(self) -> bool:
        """Whether it was closed or taken over."""

    @property
    def count(self) -> int:
        """How many connections there are: one for each channel."""

    def fileno(self) -> int:
        """A descriptor that is readable while `hear` has something to do."""

    def say(self, data: bytes) -> None:
        """Send a message as soon as it can be. Raises: OSError."""

    def hear(self) -> bytes | None:
        """The next message; None: not yet; b"": the peer hung up.

        Raises: ConnectionRefusedError (nobody is there yet), OSError, ProtocolViolation.
        """

    def invite(self, count: int) -> None:
        """Have the binder make so many connections, this one included, before it hears the next message."""

    def take_over(self) -> list[tuple[int, Any]]:
        """The raw descriptor of each connection, and what speaks TLS on it or None: the caller's from now on."""

    def close(self) -> None:
        """Hang up; idempotent, never raises."""


class Connection(NamedTuple):
    """A connected SOCK_SEQPACKET socket: a raw descriptor that the taker owns; or a wire (`fd` is -1 then)."""

    fd: int
    peer: Peer
    wire: Wire | None = None


@runtime_checkable
class Rendezvous(Protocol):
    """An address that somebody created, where peers knock."""

    @property
    def address(self) -> str:
        """The address to give to others; chosen here where the user left it open."""

    def fileno(self) -> int:
        """A descriptor that is readable while somebody knocks."""

    def accept(self) -> Connection | None:
        """The next peer that knocked and may enter, or None; never blocks."""

    def close(self) -> None:
        """Give the address up; idempotent, never raises."""


class Appearance(Protocol):
    """Watches for an address to be created."""

    def fileno(self) -> int:
        """A descriptor that is readable once trying again may help."""

    def clear(self) -> None:
        """Make it unreadable until the next change."""

    def close(self) -> None:
        """Stop watching; idempotent."""


@runtime_checkable
class Backend(Protocol):
    """One scheme of addresses."""

    scheme: str
    spins: bool  # False where both ends share one GIL, so that spinning would keep the peer from running
    trusts: Sequence[Any]  # the trust levels that it offers, of states.Trust
    codec: Codec

    def listen(self, address: str, *, backlog: int, allow_users: Sequence[int | str]) -> Rendezvous:
        """Create `address`. Raises: OSError (EADDRINUSE: the name is taken), ValueError, PermissionError.

        A backend with `takes_network` gets what the user said as `network=`, too, here and in `connect`. One with
        `is_far` hands over wires to processes of this machine; the suite holds it to what is so between machines.
        """

    def connect(self, address: str, *, owner: int | str | None) -> Connection | None:
        """Knock once: a connection, or None if nobody created `address`; never waits for it to appear.

        Raises: OSError, ValueError, PermissionError (it belongs to somebody else).
        """

    def appearance(self, address: str) -> Appearance:
        """A watch on `address`, to be set up before the try that it saves from missing a creation."""
