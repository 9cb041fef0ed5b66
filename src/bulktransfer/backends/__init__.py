"""The registry of backends: from the scheme of an address to the backend that serves it.

Knows: the names of the built-in backends, and the entry points of the group `bulktransfer.backends`.
Must not know: what any backend does; none is imported before its scheme is asked for.
"""

from __future__ import annotations

import importlib
import re
from importlib.metadata import entry_points
from typing import Final

from ..abc import Backend
from ..core import scheme as _scheme

ENTRY_POINT_GROUP: Final = "bulktransfer.backends"

# scheme -> module with a BACKEND, or with BACKENDS, a dict from schemes; see announce
_BUILT_IN: Final = {
    "local": ".local",
    "shm": ".shm",
    "fullcopy": ".fullcopy",
    "tcp": ".net",
    "tls": ".net",
}
_SCHEME: Final = re.compile(r"[a-z][a-z0-9+.-]{0,31}")

# Filled by setdefault alone, which is atomic: a lock held while a plug-in is imported could deadlock with a thread
# that imports the same plug-in, and a lock held while another thread forks would be lost to the child.
_registered: dict[str, Backend] = {}


def announce(scheme: str, module: str) -> None:
    """Serve `scheme` by the BACKEND of a module of this library, which is imported when it is first asked for.

    Raises: ValueError (the scheme has another module).
    """
    if _BUILT_IN.setdefault(scheme, module) != module:
        raise ValueError(f"announce: the scheme {scheme!r} belongs to {_BUILT_IN[scheme]}")


def register(backend: Backend) -> None:
    """Serve the addresses of `backend.scheme` by `backend`; doing it again with the same object is harmless.

    Raises:
        TypeError: it is not a `Backend`.
        ValueError: the scheme is malformed, or belongs to another backend.
    """
    if isinstance(backend, type) or not isinstance(backend, Backend):
        raise TypeError(f"register: {backend!r} is not a Backend")
    scheme = backend.scheme
    if not isinstance(scheme, str) or not _SCHEME.fullmatch(scheme):
        raise ValueError(f"register: {scheme!r} is not a scheme (lower case letters, digits and +.-, at most 32)")
    if scheme in _BUILT_IN and backend is not _load_built_in(scheme):
        raise ValueError(f"register: the scheme {scheme!r} belongs to a built-in backend")
    present = _registered.setdefault(scheme, backend)
    if present is not backend:
        raise ValueError(f"register: the scheme {scheme!r} belongs to {present!r}")


def backend_for(address: str) -> Backend:
    """The backend of `address`, which is loaded where it has to be.

    A backend that has a method `at(address)` stands for others: that says which one it is.

    Raises:
        TypeError: `address` is not a str, or an entry point is not a `Backend`.
        ValueError: the scheme is missing or unknown; the text lists the known ones.
        ImportError: the backend's module, or something that it needs, is missing.
    """
    if not isinstance(address, str):
        raise TypeError(f"an address is a str, not a {type(address).__name__}")
    scheme, colon, _ = address.partition(":")
    if not colon:
        raise ValueError(f"address {address!r} has no scheme; known are {_known()}")
    backend = _registered.get(scheme)
    if backend is None:
        backend = _load_built_in(scheme) if scheme in _BUILT_IN else _load_entry_point(scheme)
    if backend is None:
        raise ValueError(f"address {address!r}: the scheme {scheme!r} is unknown; known are {_known()}")
    at = getattr(_registered.setdefault(scheme, backend), "at", None)
    found: Backend = _registered[scheme] if at is None else at(address)
    return found


def _load_built_in(scheme: str) -> Backend:
    """The backend that comes with the library."""
    module = importlib.import_module(_BUILT_IN[scheme], __name__)
    backend: Backend = module.BACKENDS[scheme] if hasattr(module, "BACKENDS") else module.BACKEND
    return backend


def _load_entry_point(scheme: str) -> Backend | None:
    """The backend that an installed package offers for `scheme`; None if there is none."""
    for point in entry_points(group=ENTRY_POINT_GROUP, name=scheme):
        loaded = point.load()
        backend = loaded() if isinstance(loaded, type) else loaded
        if not isinstance(backend, Backend) or backend.scheme != scheme:
            raise TypeError(f"entry point {point.value!r} of {ENTRY_POINT_GROUP} is not a Backend of {scheme!r}")
        return backend
    return None


def _known() -> str:
    """The schemes that an address may have, as a list to be read."""
    names = {*_BUILT_IN, *_registered, *entry_points(group=ENTRY_POINT_GROUP).names}
    return ", ".join(f"{name}:" for name in sorted(names))


_scheme.set_finder(backend_for)
