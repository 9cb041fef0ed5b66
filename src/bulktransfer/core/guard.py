"""What a trust level asks of a pool's mapping (design section 5).

Knows: which levels protect it, and how many mappings that may cost the process. Must not know: channels, or when a
buffer's state changes (the compiled core protects each buffer as it goes).
"""

from __future__ import annotations

import pathlib

from .._native.pool import Pool
from ..errors import ConstraintError
from ..states import Trust
from .domain import all_domains

MAPPINGS_A_BUFFER = 2  # a buffer that differs from both its neighbours splits one mapping into three


def mappings_granted() -> int:
    """How many mappings the guarded pools of this process may take: half of what the kernel allows."""
    return int(pathlib.Path("/proc/sys/vm/max_map_count").read_text()) // 2


def mappings_taken() -> int:
    """How many the guarded pools of this process may need at worst."""
    return sum(
        MAPPINGS_A_BUFFER * pool.buffer_count
        for domain in all_domains()
        for pool in list(domain.pools.values())
        if pool.guarded and pool.trust is Trust.HALF
    )


def check(count: int, trust: Trust, what: str) -> None:
    """Hold a pool of `count` buffers that is not guarded yet against the kernel's limit. Raises: ConstraintError."""
    if trust is not Trust.HALF:
        return
    granted, taken = mappings_granted(), mappings_taken()
    if taken + MAPPINGS_A_BUFFER * count > granted:
        raise ConstraintError(
            f"{what}: at trust HALF {count} buffers may cost {MAPPINGS_A_BUFFER * count} mappings; pools have {taken} "
            f"of {granted}, half of vm.max_map_count, already"
        )


def follow(pool: Pool, trust: Trust) -> None:
    """Have the pool's mapping be as its trust level asks. Raises: ConstraintError, OSError (nothing changed)."""
    guarded = trust is Trust.HALF
    if guarded and not pool.guarded:
        check(pool.buffer_count, trust, f"pool {pool.name}")
    pool.set_guarded(guarded)
