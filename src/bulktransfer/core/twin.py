"""Twins: where memory is not shared, each domain has its own of every pool (design rule 7, section 5).

Knows: how a twin is made, which end stages contents. Must not know: how contents travel, or what is said about pools.
"""

from __future__ import annotations

from typing import Any

from .._native import kernel
from .._native.pool import Pool
from ..states import Means, Trust
from . import memory


def shares_memory(trust: Trust) -> bool:
    """Whether channels of this trust level map one memory on both sides; else each side has a twin."""
    return trust is not Trust.NONE


def stages(is_source: bool, part: Any) -> tuple[int, int]:
    """The staging areas of a new connection, of what goes out and of what comes in; 0: none."""
    size = 0 if part.same_domain else part.terms.stage_size  # within one domain there is nothing to copy
    return (size, 0) if is_source else (0, size)


def attach(pool: Pool, means: Means) -> None:
    """Give an announced pool memory of this domain alone, all of it there. Raises: OSError (ENOMEM).

    Where contents come as sealed frames, which take its place, there are addresses only, and pages on first touch.
    """
    size = pool.buffer_size * pool.buffer_count
    memory.check_room(size, f"the twin of pool {pool.name}")
    pool.attach(kernel.Mapping(None, size, True, means is not Means.SEALED))
