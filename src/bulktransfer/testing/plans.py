"""Who is connected with whom in the systems that are driven beside the specification.

Knows: domains and channels by number. Must not know: what happens in them.
"""

from __future__ import annotations

from typing import NamedTuple

from ..spec import model as m


class Plan(NamedTuple):
    """Who is connected with whom: (source, sink, the side that creates and assigns), in order of assignment."""

    channels: tuple[tuple[int, int, int], ...]
    home: int = 0

    @property
    def domains(self) -> int:
        """How many there are."""
        return 1 + max(max(channel[:2]) for channel in self.channels)


PLANS = {
    "pair": Plan(((0, 1, m.SOURCE),)),
    "receive-master": Plan(((0, 1, m.SINK),), home=1),
    "echo": Plan(((0, 1, m.SOURCE), (1, 0, m.SOURCE))),
    "chain": Plan(((0, 1, m.SOURCE), (1, 2, m.SOURCE))),
    "inlet": Plan(((1, 2, m.SINK), (0, 1, m.SINK)), home=2),
    "fan": Plan(((0, 1, m.SOURCE), (0, 2, m.SOURCE))),
    "twice": Plan(((0, 1, m.SOURCE), (1, 2, m.SOURCE), (0, 1, m.SOURCE))),
    "diamond": Plan(((0, 1, m.SOURCE), (0, 2, m.SOURCE), (1, 3, m.SOURCE), (2, 3, m.SOURCE))),
    "ring": Plan(((0, 1, m.SOURCE), (1, 2, m.SOURCE), (2, 0, m.SOURCE))),
    "loopback": Plan(((0, 0, m.SOURCE), (0, 1, m.SOURCE))),
}
