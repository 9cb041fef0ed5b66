"""The rows of samples in what `bulk bench report` keeps: what is plotted, tabulated and compared.

Knows: the JSON of the benchmarks. Must not know: where it is shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from .table import size_text


class Row(NamedTuple):
    """Samples of one thing under one configuration; `unit` says whether less or more is better."""

    key: str
    what: str
    unit: str
    samples: list[float]

    @property
    def less_is_better(self) -> bool:
        return self.unit == "ns"


def rows(whole: dict[str, Any]) -> Iterator[Row]:
    """Every row of samples of a whole report."""
    for key, kept in whole["runs"].items():
        found = kept.get("found")
        if found is not None:
            yield from _rows_of(key, found["benchmark"], found["data"])


def _rows_of(key: str, benchmark: str, data: dict[str, Any]) -> Iterator[Row]:
    if benchmark == "rtt":
        for size, figures in data.items():
            text = f"round trip, {size_text(int(size))}"
            yield Row(key, text, "ns", figures["direct_medians_ns"])
            if "hops" in figures:
                yield Row(key, f"{text}, several hops", "ns", figures["hops"]["far_medians_ns"])
    elif benchmark == "throughput":
        for size, figures in data.get("report", {}).items():
            text = size_text(int(size))
            yield Row(key, f"100 moves until the last echo, {text}", "ns", figures["echoed_ns"])
            yield Row(key, f"100 moves until issued, {text}", "ns", figures["issued_ns"])
        for size, figures in data.get("handover", {}).items():
            text = size_text(int(size))
            yield Row(key, f"hand-over one by one, {text}", "/s", figures["single_per_s"])
            yield Row(key, f"hand-over in batches, {text}", "/s", figures["batched_per_s"])
            yield Row(key, f"CPU of both sides a buffer, {text}", "ns", figures["cpu_of_both_sides_ns"])
        for size, figures in data.get("fill", {}).items():
            text = f"fill + sum, {size_text(int(size))}"
            yield Row(key, text, "GB/s", figures["bulk_GB_per_s"])
            yield Row(key, f"{text}, plain shared memory", "GB/s", figures["plain_GB_per_s"])
