"""What the calls that make channels take.

Knows: which values are legal. Must not know: what becomes of them.
"""

from __future__ import annotations

from typing import Any

from ..abc import Backend
from ..errors import (
    TrustMismatchError,
)
from ..states import Means, Trust

META_MAX = 2048
WAITS = {"block": 0, "auto": 1, "spin": 2}
MEANS = {"by value": Means.BY_VALUE, "sealed": Means.SEALED}


def check_trust(trust: Any, backend: Backend | None, *, open_allowed: bool) -> Trust:
    """Judge a trust argument. Raises: TypeError, ValueError, TrustMismatchError (the backend does not offer it)."""
    if not isinstance(trust, Trust):
        raise TypeError(f"trust={trust!r}; say Trust.NONE, isolated, or leave it out")
    if trust is Trust.UNINITIALIZED:
        if open_allowed:
            return trust
        raise ValueError("trust=UNINITIALIZED: the creator decides on the trust level, so it names one")
    if backend is not None and trust not in backend.trusts:
        offered = ", ".join(t.name for t in backend.trusts)
        raise TrustMismatchError(f"trust {trust.name}: {backend.scheme}: offers {offered} only")
    return trust


def check_kind(name: str, value: Any, cls: type) -> None:
    """Judge an enum argument. Raises: TypeError."""
    if not isinstance(value, cls):
        raise TypeError(f"{name}={value!r}; it takes a {cls.__name__}")


def check_optional(name: str, value: Any, cls: type) -> None:
    """Judge an argument that may be left out. Raises: TypeError."""
    if value is not None and not isinstance(value, cls):
        raise TypeError(f"{name}={value!r}; it takes bulk.{cls.__name__}")


def check_wait(wait: Any) -> None:
    """Judge how a channel waits. Raises: ValueError."""
    if not isinstance(wait, str) or wait not in WAITS:
        raise ValueError(f"wait={wait!r}; it takes one of {', '.join(WAITS)}")


def means_of(exposed: Any, means: Any) -> Means:
    """How contents are to travel. Raises: ValueError (no such means, or two of them)."""
    if means is None:
        return Means.EXPOSED if exposed else Means.CHOSEN
    if not isinstance(means, str) or means not in MEANS:
        raise ValueError(f"means={means!r}; it takes one of {', '.join(MEANS)}, or None")
    if exposed:
        raise ValueError(f"exposed=True with means={means!r}: contents are read in place, and travel by no other means")
    return MEANS[means]


def check_meta_size(meta_size: Any) -> None:
    """Judge a meta size. Raises: TypeError, ValueError."""
    if isinstance(meta_size, bool) or not isinstance(meta_size, int):
        raise TypeError(f"meta_size={meta_size!r}; it takes an int")
    if not 0 <= meta_size <= META_MAX:
        raise ValueError(f"meta_size={meta_size}; it takes 0 to {META_MAX} bytes")
