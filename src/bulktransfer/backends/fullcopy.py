"""The backend `fullcopy:`: nothing is shared, and every transfer copies (the naive channel of II-6).

Knows: that trust NONE is by value, and that shm: brings two processes together. Must not know: how contents travel.
It is the honest baseline of every comparison: the same rules, calls and errors, and at each transfer the bytes are
copied out of one private memory and into another. It offers no level at which memory would be shared.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from typing import Final

from ..abc import Appearance, Backend, Codec, Connection, Rendezvous
from ..states import Trust
from ..wire import control
from . import backend_for

_APART: Final = "shm:fullcopy-"  # before a name


class FullCopyRendezvous:
    """An address of shm: under the name of this scheme."""

    def __init__(self, carrier: Rendezvous) -> None:
        self._carrier = carrier

    @property
    def address(self) -> str:
        """The address to give to others."""
        return f"fullcopy:{self._carrier.address.removeprefix(_APART).removeprefix('shm:')}"

    def fileno(self) -> int:
        """Readable while somebody knocks."""
        return self._carrier.fileno()

    def accept(self) -> Connection | None:
        """The next peer that knocked and may enter, or None; never blocks."""
        return self._carrier.accept()

    def close(self) -> None:
        """Give the address up; idempotent, never raises."""
        self._carrier.close()

    def __repr__(self) -> str:
        return f"<FullCopyRendezvous {self.address}>"


class FullCopyBackend:
    """The scheme `fullcopy:`, with the names and paths of shm: but apart from them."""

    scheme = "fullcopy"
    spins = True
    copies = True  # never a frame that is passed on
    trusts: Sequence[Trust] = (Trust.NONE,)
    codec: Codec = control.CODEC

    def listen(self, address: str, *, backlog: int, allow_users: Sequence[int | str] = ()) -> FullCopyRendezvous:
        """Create `address`; `fullcopy:` chooses a free name. Raises: as shm:."""
        if address == "fullcopy:":
            address += f"{os.getpid()}-{secrets.token_hex(8)}"
        carrier = carried(address)
        return FullCopyRendezvous(backend_for(carrier).listen(carrier, backlog=backlog, allow_users=allow_users))

    def connect(self, address: str, *, owner: int | str | None = None) -> Connection | None:
        """Knock once; None: nobody created it. Raises: as shm:."""
        carrier = carried(address)
        return backend_for(carrier).connect(carrier, owner=owner)

    def appearance(self, address: str) -> Appearance:
        """A watch on the address. Raises: as shm:."""
        carrier = carried(address)
        return backend_for(carrier).appearance(carrier)

    def __repr__(self) -> str:
        return "<FullCopyBackend>"


def carried(address: str) -> str:
    """The address of shm: that carries one of this scheme: a path is the same, a name is kept apart."""
    rest = address.removeprefix("fullcopy:")
    return f"shm:{rest}" if rest.startswith("/") else f"{_APART}{rest}"


BACKEND: Final[Backend] = FullCopyBackend()
