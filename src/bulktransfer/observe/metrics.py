"""What this process shows of itself, as OpenTelemetry metrics (the extra `otel`).

Knows: OpenTelemetry's API, which does nothing until the program installs an SDK. Must not know: exporters.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import bulktransfer as bulk

from .finding import view
from .view import ProcessView

NAME = "bulktransfer"


def instrument(meter_provider: Any = None) -> None:
    """Have the channels and pools of this process measured, each time that somebody collects metrics.

    bulktransfer.transfers: buffers by `address`, `end`, `direction` (sent, received) and `kind` (move, pass, copy,
    release). bulktransfer.buffers: buffers by `pool` and `state`, with FREE for those that may be allocated.
    bulktransfer.channels: channels by `state` and `trust`. Nothing is done between two collections. `meter_provider`:
    another one than the program's. Raises: ImportError (the extra `otel` is not installed).
    """
    metrics = importlib.import_module("opentelemetry.metrics")
    meter = metrics.get_meter(NAME, bulk.__version__, meter_provider)

    def observed(read: Callable[[ProcessView], Iterable[tuple[int, dict[str, str]]]]) -> list[Callable[..., Any]]:
        def collect(options: object) -> list[Any]:
            mine = view(os.getpid())
            return [metrics.Observation(*one) for one in read(mine)] if mine is not None else []

        return [collect]

    meter.create_observable_counter(
        "bulktransfer.transfers", observed(_transfers), unit="{buffer}", description="Buffers sent and received"
    )
    meter.create_observable_up_down_counter(
        "bulktransfer.buffers", observed(_buffers), unit="{buffer}", description="Buffers of each pool by state"
    )
    meter.create_observable_up_down_counter(
        "bulktransfer.channels", observed(_channels), unit="{channel}", description="Channels by state and trust"
    )


def _transfers(process: ProcessView) -> Iterator[tuple[int, dict[str, str]]]:
    sums: dict[tuple[str, str, str, str], int] = {}
    for channel in process.channels:
        for direction, counts in (("sent", channel.sent), ("received", channel.received)):
            for kind, count in counts.items():
                key = (channel.address, channel.end, direction, kind)
                sums[key] = sums.get(key, 0) + count
    names = ("address", "end", "direction", "kind")
    yield from ((count, dict(zip(names, key, strict=True))) for key, count in sums.items() if count)


def _buffers(process: ProcessView) -> Iterator[tuple[int, dict[str, str]]]:
    for pool in process.pools:
        states = dict(pool.states)
        if states:
            states[bulk.BufferState.READ_WRITE.name] -= pool.free
            states["FREE"] = pool.free
        yield from ((count, {"pool": pool.name, "state": state}) for state, count in states.items())


def _channels(process: ProcessView) -> Iterator[tuple[int, dict[str, str]]]:
    sums: dict[tuple[str, str], int] = {}
    for channel in process.channels:
        key = (channel.state, channel.trust)
        sums[key] = sums.get(key, 0) + 1
    yield from ((count, {"state": state, "trust": trust}) for (state, trust), count in sums.items())
