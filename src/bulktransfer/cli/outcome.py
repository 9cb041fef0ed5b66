"""What a demonstration found, and whether it went well.

Knows: figures, digests, refusals. Must not know: how they came about, or how they are printed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import bulktransfer as bulk

from .refusal import Refusal
from .routes import Pass, Route


@dataclass(frozen=True, slots=True)
class Sent:
    """A row: the file over one route, several times; no route: it was only read."""

    route: Route | None
    bares: list[Pass]  # nobody looked at what arrived
    checked: Pass  # the sink took a digest
    right: bool

    @property
    def bare(self) -> Pass:
        """The one of them that took the median time."""
        return sorted(self.bares, key=lambda found: found.seconds)[len(self.bares) // 2]


@dataclass(slots=True)
class Outcome:
    """All of it; `digest` is what the file's bytes should come to."""

    name: str
    size: int
    generated: bool
    digest: str
    alone: Sent | None = None
    sent: list[Sent] = field(default_factory=list)
    refusals: dict[bulk.Trust, list[Refusal]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every digest was right and every misdeed was refused."""
        refused = all(refusal.right for refusals in self.refusals.values() for refusal in refusals)
        return all(sent.right for sent in self.sent) and refused


def arrived(size: int, digest: str, bares: list[Pass], checked: Pass) -> bool:
    """Whether the passes brought what was sent: all bytes, each time, and the same ones."""
    return all(found.length == size for found in [*bares, checked]) and checked.digest == digest
