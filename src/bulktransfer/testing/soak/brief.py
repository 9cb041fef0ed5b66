"""What a player is told to do, and the journal in which both sides note what they did.

Knows: plain data, and memory that outlives whoever wrote it. Must not know: how a task is done.
"""

from __future__ import annotations

import enum
import mmap
import os
from dataclasses import dataclass, field
from typing import NamedTuple

LANES_MAX = 64  # of a troupe


class Task(enum.StrEnum):
    """What a player does with its lanes."""

    FEED = "feed"  # sends from a pool of its own
    KEEP = "keep"  # receives, keeps a while, gives back
    HOP = "hop"  # hands on what comes over one lane over another


class Slot(enum.IntEnum):
    """What the journal says of one end of a lane."""

    SENT = 0  # how many transfers that end published: those that must arrive
    SENT_BYTES = 1
    TAKEN = 2  # how many that end received and judged
    TAKEN_BYTES = 3
    REFUSED = 4  # how many that end published, and got back


@dataclass(frozen=True, slots=True)
class Lane:
    """One channel of a troupe, as its ends are told of it.

    sender, receiver, creator: players by number, -1 is the auditor. waits: how its ends wait.
    """

    number: int
    address: str
    trust: str
    sender: int
    receiver: int
    creator: int
    waits: str = "auto"


@dataclass(frozen=True, slots=True)
class Order:
    """One task of a player: its lanes, by number (of a HOP: where it receives, where it sends)."""

    task: Task
    lanes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Brief:
    """What one player is told."""

    player: int
    seed: int
    letters: int  # the seed of contents
    lanes: dict[int, Lane]
    orders: tuple[Order, ...]
    sizes: tuple[int, ...] = field(default=(4096,))  # of buffers


class Sums(NamedTuple):
    """A lane when it is over."""

    taken: int  # transfers that came, and were right
    taken_bytes: int
    refused: int
    lost: int  # transfers that were published and did not come
    lost_bytes: int


class Journal:
    """Numbers in memory that the auditor and the players of a troupe share, each cell with one writer."""

    def __init__(self, fd: int | None = None) -> None:
        size = LANES_MAX * 2 * len(Slot) * 8
        self.fd = os.memfd_create("soak-journal", os.MFD_CLOEXEC) if fd is None else fd
        os.ftruncate(self.fd, size)
        self._map = mmap.mmap(self.fd, size)
        self._cells = memoryview(self._map).cast("Q")

    def _cell(self, lane: int, sender: bool, slot: Slot) -> int:
        return ((lane % LANES_MAX) * 2 + sender) * len(Slot) + slot

    def add(self, lane: int, sender: bool, slot: Slot, number: int) -> None:
        """Count on; one store, so that whoever dies leaves the old number or the new one."""
        self._cells[self._cell(lane, sender, slot)] += number

    def read(self, lane: int, sender: bool, slot: Slot) -> int:
        """What stands there."""
        return int(self._cells[self._cell(lane, sender, slot)])

    def sums(self, lane: int) -> Sums:
        """A lane whose receiver lived: what was published must have come."""
        sent, taken = self.read(lane, True, Slot.SENT), self.read(lane, False, Slot.TAKEN)
        sent_bytes, taken_bytes = self.read(lane, True, Slot.SENT_BYTES), self.read(lane, False, Slot.TAKEN_BYTES)
        lost = max(0, sent - taken), max(0, sent_bytes - taken_bytes)
        return Sums(taken, taken_bytes, self.read(lane, True, Slot.REFUSED), *lost)

    def close(self) -> None:
        """Let the memory go."""
        self._cells.release()
        self._map.close()
        os.close(self.fd)
