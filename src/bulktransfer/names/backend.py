"""The addresses `name:SERVICE`: created under a name, bound by it.

Knows: which name service this process uses, and that another backend carries the channel. Must not know: how that
one works, or where names are kept.

    create("name:camera")                        carried by shm:, at an address that is chosen
    create("name:camera@tcp://127.0.0.1:0")      carried by what follows the @
    bind("name:camera")                          wherever it is now, or appears in time
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import bulktransfer as bulk

from .service import check_name, current

DEFAULT: Final = "shm:"
_backend_for = bulk.backends.backend_for


class NameBackend:
    """The scheme `name:`; for each address, what it really is says the backend that carries it."""

    scheme = "name"

    def __init__(self) -> None:
        carrier = _backend_for(DEFAULT)
        self.codec, self.trusts, self.spins = carrier.codec, carrier.trusts, carrier.spins

    def at(self, address: str) -> Named:
        """The backend of one address. Raises: ValueError, TypeError, ImportError, OSError."""
        return Named(address)

    def listen(self, address: str, *, backlog: int, allow_users: Sequence[int | str]) -> NamedRendezvous:
        """Create `address`; see Named."""
        return self.at(address).listen(address, backlog=backlog, allow_users=allow_users)

    def connect(self, address: str, *, owner: int | str | None) -> Any:
        """Knock once; see Named."""
        return self.at(address).connect(address, owner=owner)

    def appearance(self, address: str) -> NamedAppearance:
        """A watch; see Named."""
        return self.at(address).appearance(address)

    def __repr__(self) -> str:
        return "<NameBackend>"


class Named:
    """One `name:` address, and the backend that carries it."""

    scheme = "name"

    def __init__(self, address: str) -> None:
        name, at, carrier = address.removeprefix("name:").partition("@")
        self._name = check_name(f"address {address!r}: name", name)
        self._carrier = carrier if at else None
        if carrier.partition(":")[0] in ("local", "name"):
            raise ValueError(f"address {address!r}: {carrier!r} cannot carry what others find by name")
        entry = None if at else current().resolve(name)
        self._backend = _backend_for(carrier if at else DEFAULT if entry is None else entry.address)
        self.codec, self.trusts, self.spins = self._backend.codec, self._backend.trusts, self._backend.spins

    def listen(self, address: str, *, backlog: int, allow_users: Sequence[int | str]) -> NamedRendezvous:
        """Create an address of the carrier, and own the name that leads there.

        Raises: OSError (EADDRINUSE: the name or the address is taken), what the carrier's listen raises.
        """
        carrier = self._carrier or DEFAULT
        rendezvous = _backend_for(carrier).listen(carrier, backlog=backlog, allow_users=allow_users)
        try:
            registration = current().register(self._name, rendezvous.address)
        except BaseException:
            rendezvous.close()
            raise
        return NamedRendezvous(rendezvous, registration)

    def connect(self, address: str, *, owner: int | str | None) -> Any:
        """Knock once where the name leads; None: nobody has it. Raises: what the carrier's connect raises."""
        entry = current().resolve(self._name)
        if entry is None:
            return None
        backend = _backend_for(entry.address)
        if backend.codec is not self.codec:
            raise ValueError(f"bind to {address!r}: it is at {entry.address} now, which speaks otherwise; bind again")
        return backend.connect(entry.address, owner=owner)

    def appearance(self, address: str) -> NamedAppearance:
        """A watch on the name."""
        return NamedAppearance(current().watch(self._name))

    def __repr__(self) -> str:
        return f"<Named {self._name}>"


class NamedRendezvous:
    """An address of another backend that has a name; see listen."""

    def __init__(self, rendezvous: Any, registration: Any) -> None:
        self._rendezvous = rendezvous
        self._registration = registration

    @property
    def address(self) -> str:
        """The address to give to others."""
        return f"name:{self._registration.entry.name}"

    def fileno(self) -> int:
        """Readable while somebody knocks."""
        number: int = self._rendezvous.fileno()
        return number

    def accept(self) -> Any:
        """The next that knocked, or None."""
        return self._rendezvous.accept()

    def close(self) -> None:
        """Give name and address up."""
        self._registration.close()
        self._rendezvous.close()

    def __repr__(self) -> str:
        return f"<NamedRendezvous {self.address} at {self._rendezvous!r}>"


class NamedAppearance:
    """Readable once the name may lead somewhere."""

    def __init__(self, watch: Any) -> None:
        self._watch = watch

    def fileno(self) -> int:
        """The watch's descriptor."""
        number: int = self._watch.fileno()
        return number

    def clear(self) -> None:
        """Unreadable until the next change."""
        self._watch.clear()

    def close(self) -> None:
        """Stop watching."""
        self._watch.close()


BACKEND: Final = NameBackend()
