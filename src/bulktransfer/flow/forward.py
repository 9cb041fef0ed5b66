"""Forwarding in one call each: they return when everything that they joined is over.

Knows: a Forwarder of one junction. Must not know: how it works.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import bulktransfer as bulk

from .forwarder import Forwarder
from .junction import Junction
from .problem import Report


def forward(a: bulk.Channel, b: bulk.Channel, *, report: Report | None = None, patience: float | None = 10.0) -> None:
    """Join two channels of any backends, and forward until they end (II-5.2.1).

    Returns when the end was in order; both channels are closed then. See Forwarder, which does it for many in one
    thread, for `report` and `patience`. Raises: what broke (BrokenChannelError, ProtocolViolation), as Forwarder.add,
    WouldBlock (inside a callback).
    """
    _run(lambda forwarder: forwarder.add(a, b), report, patience)


def broadcast(
    source: bulk.Channel,
    sinks: Sequence[bulk.Channel],
    *,
    report: Report | None = None,
    patience: float | None = 10.0,
) -> None:
    """Copy what arrives at `source` to all `sinks` until they end; buffers go home when all have released them.

    A sink that ends is left out from then on. Raises: as forward; ValueError (no sinks).
    """
    _run(lambda forwarder: forwarder.broadcast(source, sinks), report, patience)


def scatter(
    source: bulk.Channel,
    sinks: Sequence[bulk.Channel],
    *,
    depth: int = 4,
    report: Report | None = None,
    patience: float | None = 10.0,
) -> None:
    """Send what arrives at `source` to `sinks` in turn, each at most `depth` buffers at a time, until they end.

    A sink that ends is left out from then on. Raises: as forward; ValueError (no sinks, depth).
    """
    _run(lambda forwarder: forwarder.scatter(source, sinks, depth=depth), report, patience)


def _run(join: Callable[[Forwarder], Junction], report: Report | None, patience: float | None) -> None:
    with Forwarder(report=report, patience=patience) as forwarder:
        junction = join(forwarder)
        forwarder.run()
    if junction.error is not None:
        raise junction.error
