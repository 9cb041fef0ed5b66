"""The backend `fullcopy:`: nothing is shared, and every transfer copies through a socket (the naive channel of II-6).

Knows: how two processes of one machine find each other, and that they speak as machines do over the stream between
them. Must not know: how contents travel. It is the honest baseline of every comparison: the same rules, calls and
errors, and at each transfer the bytes go into the kernel and out of it again, into memory of the receiver's own.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Sequence
from typing import Final

from .._native.kernel import to_peer
from ..abc import Appearance, Backend, Codec, Connection, FarPeer, Peer, Rendezvous
from ..core.network import Network
from ..states import Trust
from ..wire import control
from . import backend_for
from ._net_stream import Stream
from ._net_wire import BinderWire, CreatorWire, Invitations
from ._shm_door import knock, open_door

_APART: Final = "shm:fullcopy-"  # before a name
_PLAIN: Final = Network()  # no TLS and no secret: the kernel says who is at the other end


class FullCopyRendezvous:
    """A node where processes knock, under the name of this scheme."""

    def __init__(self, door: Rendezvous) -> None:
        self._door = door
        self._invitations = Invitations()

    @property
    def address(self) -> str:
        """The address to give to others."""
        return f"fullcopy:{self._door.address.removeprefix(_APART).removeprefix('shm:')}"

    def fileno(self) -> int:
        """Readable while somebody knocks. Raises: ForkedError, ValueError (closed)."""
        return self._door.fileno()

    def accept(self) -> Connection | None:
        """The next peer that knocked and may enter, or None; never blocks. Raises: as shm:."""
        found = self._door.accept()
        if found is None:
            return None
        wire = CreatorWire(_PLAIN, None, self._invitations)
        wire.accept(to_peer(found.fd), host_of(found.peer))
        return Connection(-1, FarPeer.at(wire.host), wire)

    def close(self) -> None:
        """Give the address up; idempotent, never raises."""
        self._invitations.close()
        self._door.close()

    def __repr__(self) -> str:
        return f"<FullCopyRendezvous {self.address}>"


class FullCopyBackend:
    """The scheme `fullcopy:`, with the names and paths of shm: but apart from them."""

    scheme = "fullcopy"
    is_far = True
    spins = True
    trusts: Sequence[Trust] = (Trust.NONE,)
    codec: Codec = control.CODEC

    def listen(self, address: str, *, backlog: int, allow_users: Sequence[int | str] = ()) -> FullCopyRendezvous:
        """Create `address`; `fullcopy:` chooses a free name. Raises: as shm:."""
        if address == "fullcopy:":
            address += f"{os.getpid()}-{secrets.token_hex(8)}"
        door = open_door(carried(address), backlog=backlog, allow_users=allow_users, kind=socket.SOCK_STREAM)
        return FullCopyRendezvous(door)

    def connect(self, address: str, *, owner: int | str | None = None) -> Connection | None:
        """Knock once; None: nobody created it. Raises: as shm:."""

        def join(stream: Stream) -> None:
            found = knock(carried(address), owner=owner, kind=socket.SOCK_STREAM)
            if found is None:
                raise ConnectionRefusedError(f"nobody is at {address}")
            stream.accept(to_peer(found.fd), host_of(found.peer))

        try:
            wire = BinderWire(_PLAIN, lambda: None, None, join)
        except ConnectionRefusedError:
            return None
        return Connection(-1, FarPeer.at(wire.host), wire)

    def appearance(self, address: str) -> Appearance:
        """A watch on the address. Raises: as shm:."""
        place = carried(address)
        return backend_for(place).appearance(place)

    def __repr__(self) -> str:
        return "<FullCopyBackend>"


def carried(address: str) -> str:
    """The address of shm: whose node it has: a path is the same, a name is kept apart."""
    rest = address.removeprefix("fullcopy:")
    return f"shm:{rest}" if rest.startswith("/") else f"{_APART}{rest}"


def host_of(peer: Peer) -> str:
    """A process as the host that it stands for: what is assigned to one is not another's."""
    return f"process-{peer.pid}:{peer.uid}"


BACKEND: Final[Backend] = FullCopyBackend()
