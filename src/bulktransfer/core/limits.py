"""Bounds on what peers may make this domain do, and what a user demands of pools.

Knows: numbers. Must not know: who checks them.
"""

from __future__ import annotations

import dataclasses
import math

PAGE = 4096
STAGE_MIN, STAGE_MAX = 64 << 10, 64 << 20
POOLS_MAX = 4096  # on a channel: what any peer may be allowed


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """What a channel or listener grants its peers; the defaults are sane for a machine of one user.

    pools: pools on a channel · pool_bytes: of one pool that a peer assigns · buffers: of one such pool ·
    total_bytes: of all pools that came from peers into the domain · channels: of the domain ·
    handshake_s: for a peer to complete what it began · half_open: peers that knocked and have not finished ·
    slot_count: entries of a ring, a power of two · stage_size: bytes through which contents pass where memory is not
    shared, a power of two · frames: sealed frames of a peer that may be on their way at once, a descriptor each.
    Raises: ValueError.
    """

    pools: int = 64
    pool_bytes: int = 64 << 30
    buffers: int = 1 << 20
    total_bytes: int = 256 << 30
    channels: int = 4096
    handshake_s: float = 5.0
    half_open: int = 64
    slot_count: int = 1024
    stage_size: int = 2 << 20
    frames: int = 64

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "handshake_s":
                if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                    raise ValueError(f"Limits.handshake_s is {value!r}; it takes a positive number of seconds")
            elif isinstance(value, bool) or not isinstance(value, int) or value <= 0:
                raise ValueError(f"Limits.{field.name} is {value!r}; it takes a positive int")
        if not 2 <= self.slot_count <= 65536 or self.slot_count & (self.slot_count - 1):
            raise ValueError(f"Limits.slot_count is {self.slot_count}; it takes a power of two from 2 to 65536")
        if not STAGE_MIN <= self.stage_size <= STAGE_MAX or self.stage_size & (self.stage_size - 1):
            raise ValueError(
                f"Limits.stage_size is {self.stage_size}; it takes a power of two from {STAGE_MIN} to {STAGE_MAX}"
            )
        if self.pools > POOLS_MAX:
            raise ValueError(f"Limits.pools is {self.pools}; {POOLS_MAX} is the most")


@dataclasses.dataclass(frozen=True, slots=True)
class Constraints:
    """What every pool of an allocator or channel must meet (I-6.2.2).

    address_min, address_max: the range of addresses that a pool lies in (max excluded; None: any) ·
    alignment: of every buffer's address, a power of two. Raises: ValueError, TypeError.
    """

    address_min: int = 0
    address_max: int | None = None
    alignment: int = PAGE

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | (type(None) if "max" in field.name else int)):
                raise TypeError(f"Constraints.{field.name} is {value!r}; it takes an int")
        if self.alignment < 1 or self.alignment & (self.alignment - 1):
            raise ValueError(f"Constraints.alignment is {self.alignment}; it takes a power of two")
        if self.address_min < 0 or (self.address_max is not None and self.address_max <= self.address_min):
            raise ValueError(f"Constraints: no address lies from {self.address_min} to {self.address_max}")

    def fault(self, address: int, buffer_size: int, buffer_count: int) -> str:
        """What is wrong with a pool at `address`, or "" if it meets the constraints."""
        end = address + buffer_size * buffer_count
        if address < self.address_min or (self.address_max is not None and end > self.address_max):
            top = "the top" if self.address_max is None else hex(self.address_max)
            return f"addresses {address:#x} to {end:#x} are not within {self.address_min:#x} to {top}"
        if address % self.alignment or (buffer_count > 1 and buffer_size % self.alignment):
            return f"buffers of {buffer_size} bytes from {address:#x} are not aligned to {self.alignment}"
        return ""
