"""Which backend an address belongs to.

Knows: that somebody registered a finder. Must not know: any backend (they import core, not the reverse).
"""

from __future__ import annotations

from collections.abc import Callable

from ..abc import Backend

_finder: list[Callable[[str], Backend]] = []


def set_finder(finder: Callable[[str], Backend]) -> None:
    """Have `finder` answer from now on; the backends' registry calls this when it is imported."""
    _finder[:] = [finder]


def backend_for(address: str) -> Backend:
    """The backend of an address. Raises: ValueError (no such scheme), TypeError (not a string)."""
    return _finder[0](address)
