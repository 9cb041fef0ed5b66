"""What a name service is, and which one this process uses.

Knows: names, addresses, and that owners come and go. Must not know: where names are kept (directory.py keeps them for
one machine, zenoh.py across machines; others may follow).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol

_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Entry(NamedTuple):
    """One service that somebody offers: its name, where it is, and whose it is (-1: not known)."""

    name: str
    address: str
    pid: int = -1
    uid: int = -1
    host: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return self._asdict()


class Registration(Protocol):
    """A name that this process owns until it closes it or ends."""

    entry: Entry

    def close(self) -> None:
        """Give the name up; idempotent, never raises."""


class Watch(Protocol):
    """Watches for names that come and go."""

    def fileno(self) -> int:
        """A descriptor that is readable once `entries` or `resolve` may say something else. Raises: ValueError."""

    def clear(self) -> None:
        """Make it unreadable until the next change."""

    def close(self) -> None:
        """Stop watching; idempotent."""


class NameService(Protocol):
    """A place where names are registered and resolved; what is gone is not found any more."""

    def register(self, name: str, address: str) -> Registration:
        """Own `name`, which leads to `address`. Raises: OSError (EADDRINUSE: a living owner has it), ValueError."""

    def resolve(self, name: str) -> Entry | None:
        """Who owns `name` now, or None. Raises: OSError, ValueError."""

    def entries(self) -> Sequence[Entry]:
        """Every name that has a living owner, sorted. Raises: OSError."""

    def watch(self, name: str | None = None) -> Watch:
        """Watch one name, or all. Raises: OSError, ValueError."""


def check_name(act: str, name: str) -> str:
    """The name, if it is one. Raises: TypeError, ValueError."""
    if not isinstance(name, str):
        raise TypeError(f"{act}: a name is a str, not a {type(name).__name__}")
    if not _NAME.fullmatch(name) or name.startswith("."):
        raise ValueError(f"{act} {name!r}: a name is 1 to 64 of A-Z a-z 0-9 . _ - and does not start with a dot")
    return name


def _directory() -> NameService:
    from .directory import UserDirectory

    return UserDirectory()


def _zenoh() -> NameService:
    from .zenoh import ZenohNames

    return ZenohNames()


SERVICES: Final[dict[str, Callable[[], NameService]]] = {"directory": _directory, "zenoh": _zenoh}
ENVIRONMENT: Final = "BULKTRANSFER_NAMES"

_used: list[NameService] = []


def use(service: NameService | None) -> None:
    """Have `name:` addresses resolved by `service` in this process from now on; None: as the environment says."""
    _used[:] = [] if service is None else [service]


def current() -> NameService:
    """The name service of this process: that of `use`, else $BULKTRANSFER_NAMES, else the user's directory.

    Raises: ValueError (no such service), ImportError (it is not installed).
    """
    if not _used:
        chosen = os.environ.get(ENVIRONMENT) or "directory"
        if chosen not in SERVICES:
            raise ValueError(f"{ENVIRONMENT} is {chosen!r}; known are {', '.join(SERVICES)}")
        _used.append(SERVICES[chosen]())
    return _used[0]
