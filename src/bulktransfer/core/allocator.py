"""The allocator: a pool's memory, all of it at once, and its free list (I-6.4).

Knows: how a pool comes into being, and what waiting for a free buffer means. Must not know: channels beyond
asking them to take what has arrived.
"""

from __future__ import annotations

import operator
import time
import uuid
from typing import Any, cast

from .._native import kernel
from .._native.allocator import AllocatorCore
from .._native.buffer import Buffer
from .._native.pool import make_pool
from ..errors import ConstraintError, PoolExhaustedError
from ..states import Trust
from . import guard, leases, memory
from .arguments import check_optional
from .domain import Domain, Sleeper, chosen_domain
from .limits import Constraints


class Allocator(AllocatorCore):
    """A new pool of `count` buffers of `size` bytes (rounded up to whole pages), all of them free.

    trust: reserves the pool for channels of that trust; left out, the first assignment decides. reclaim: what comes
    back goes on the free list by itself, without an event, and wakes a waiting alloc.
    Raises: ValueError, TypeError, ConstraintError, OSError (ENOMEM: the machine has not so much; EMFILE).
    """

    def __init__(
        self,
        *,
        count: int,
        size: int,
        trust: Trust = Trust.UNINITIALIZED,
        constraints: Constraints | None = None,
        reclaim: bool = False,
        domain: Domain | None = None,
    ) -> None:
        count, size, trust = _checked(count, size, trust)
        check_optional("constraints", constraints, Constraints)
        chosen_domain(domain).check_fork()
        guard.check(count, trust, f"a pool of {count} x {size} bytes")
        source, mapping = memory.make(count * size, huge=trust is not Trust.HALF or size % memory.HUGE == 0)
        self._adopt(source, mapping, count, size, trust, constraints, reclaim, domain)
        self.pool.made_here = True

    @classmethod
    def from_fd(
        cls,
        fd: int,
        *,
        size: int,
        trust: Trust = Trust.UNINITIALIZED,
        constraints: Constraints | None = None,
        reclaim: bool = False,
        domain: Domain | None = None,
    ) -> Allocator:
        """A pool over the memory of a memfd that exists, as it is; every `size` bytes are a buffer.

        The descriptor is duplicated; the memory is sealed against shrinking and growing.
        Raises: ValueError (no memfd, not whole buffers, it cannot be sealed), and as the constructor.
        """
        import os

        total = os.fstat(fd).st_size
        if total == 0 or size <= 0 or total % size:
            raise ValueError(f"descriptor {fd} has {total} bytes, which is not a whole number of buffers of {size}")
        count, size, trust = _checked(total // size, size, trust)
        check_optional("constraints", constraints, Constraints)
        chosen_domain(domain).check_fork()
        if count * size != total:
            raise ValueError(f"buffers over a descriptor take whole pages; {size} bytes are not")
        source, mapping = memory.from_fd(fd, total)
        self = cls.__new__(cls)
        self._adopt(source, mapping, count, size, trust, constraints, reclaim, domain)
        return self

    def _adopt(
        self,
        source: kernel.Descriptor,
        mapping: kernel.Mapping,
        count: int,
        size: int,
        trust: Trust,
        constraints: Constraints | None,
        reclaim: bool,
        domain: Domain | None,
    ) -> None:
        domain = chosen_domain(domain)
        domain.check_fork()
        fault = constraints.fault(mapping.address, size, count) if constraints is not None else ""
        if fault:
            raise ConstraintError(f"a pool of {count} x {size} bytes: {fault}")
        pool = make_pool(uuid.uuid4(), domain, trust, mapping, count, size, True, True)
        pool.memory = source
        pool.identity = memory.identity(source)
        guard.follow(pool, trust)
        pool.reclaim = reclaim
        pool.on_return = domain.kick
        domain.pools[pool.id] = pool
        AllocatorCore.__init__(self, pool)

    # ---- taking and giving ----

    def alloc_slow(self, timeout: float | None) -> Buffer:
        """What alloc does where the free list is empty, or the allocator closed."""
        return self._taken(1, timeout)[0]

    def alloc_many(self, n: int, timeout: float | None = 0) -> list[Buffer]:
        """`n` buffers, all or none. Raises: as alloc; ValueError (fewer than 0, or more than the pool has)."""
        n = operator.index(n)
        if not 0 <= n <= len(self.pool):
            raise ValueError(f"alloc_many of {n} buffers from pool {self.pool.name}: it has {len(self.pool)}")
        return self._taken(n, timeout) if n else []

    def _taken(self, n: int, timeout: float | None) -> list[Buffer]:
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            self._await(n, timeout)
            taken = self.take_many(n)
            if taken is not None:
                return taken
            if end is not None:  # another thread was faster
                timeout = end - time.monotonic()

    def _await(self, count: int, timeout: float | None) -> None:
        """See to it that `count` buffers are free. Raises: what alloc documents."""
        pool = self.pool
        domain = cast(Domain, pool.domain)
        domain.check_fork()
        self._check_open()
        if pool.free_count >= count or (self._look() and pool.free_count >= count):
            return
        if timeout is None or timeout > 0:
            sleeper = _Hungry(domain, self, count)
            pool.wait_for_return(True)
            try:
                if sleeper.wait_for(lambda: pool.free_count >= count or not pool.allocator_open, timeout):
                    self._check_open()
                    return
            finally:
                pool.wait_for_return(False)
        raise PoolExhaustedError(
            f"alloc of {count} from pool {pool.name}: {pool.free_count} of its {len(pool)} buffers are free "
            f"({self.detached} detached)"
        )

    def _look(self) -> bool:
        """Take what has come back meanwhile; whether a buffer is free now."""
        pool = self.pool
        for number in list(pool.channels):
            channel = pool.domain.channel(number)
            if channel is not None:
                channel.on_readable()
        leases.check(pool)
        return bool(pool.free_count)

    def _check_open(self) -> None:
        if not self.pool.allocator_open:
            raise ValueError(f"alloc from pool {self.pool.name}: the allocator is closed")

    @property
    def available(self) -> int:
        """Buffers on the free list."""
        return self.pool.free_count

    @property
    def detached(self) -> int:
        """Buffers that left over channels which ended, and that somebody may still hold (rule 16)."""
        leases.check(self.pool)
        return self.pool.detached_count()

    def close(self) -> None:
        """Allocate no more; idempotent, never raises. Buffers that are out stay valid, and the memory with them."""
        self.pool.allocator_open = False
        self.pool.close_free_list()
        self.pool.domain.kick()

    def __enter__(self) -> Allocator:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError(f"pickling {self!r}: memory stays; Channel.assign_pool has a peer share the pool")

    def __repr__(self) -> str:
        state = "open" if self.pool.allocator_open else "closed"
        return f"<Allocator of {self.pool!r}: {self.available} free, {state}>"


class _Hungry(Sleeper):
    """Waits for a buffer: every channel of the pool wakes it."""

    def __init__(self, domain: Domain, allocator: Allocator, count: int) -> None:
        super().__init__(domain)
        self.allocator = allocator
        self.count = count

    def _before_block(self) -> int:
        pool = self.allocator.pool
        hint = super()._before_block()
        for number in list(pool.channels):
            channel = pool.domain.channel(number)
            if channel is not None and channel.busy != 1 and not channel.watch():
                channel.on_readable()
                hint = 2
        return 2 if pool.free_count >= self.count else hint


def _checked(count: Any, size: Any, trust: Any) -> tuple[int, int, Trust]:
    """Judge an allocator's arguments. Raises: TypeError, ValueError."""
    for name, value, most in (("count", count, 1 << 32), ("size", size, 1 << 46)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name}={value!r}; it takes an int")
        if not 1 <= value < most:
            raise ValueError(f"{name}={value}; it takes 1 to {most - 1}")
    if not isinstance(trust, Trust):
        raise TypeError(f"trust={trust!r}; say Trust.NONE, isolated, or leave it out")
    if count * size >= 1 << 46:
        raise OSError(12, f"a pool of {count} x {size} bytes: more than a process can address")
    return count, memory.round_to_pages(size), trust
