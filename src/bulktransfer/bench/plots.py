"""The plots of the evaluation, as SVG and PNG.

Knows: matplotlib, where it is installed. Must not know: how the figures came about.
"""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import extract
from .stats import lower_bound, upper_bound
from .table import size_text

TRUST_COLOURS = {"full": "#1b6ca8", "half": "#c77d0a", "none": "#8c2f39"}
_CONFIGURATIONS = ("same-block", "split-block", "split-spin", "hops")
_NAMES = ("one core", "two cores,\nsleeping", "two cores,\nspinning", "two hops,\nsleeping")


def draw(whole: dict[str, Any], directory: Path) -> dict[str, str]:
    """Draw what can be drawn; the title of each file that was written. Nothing where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return {}
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    drawn: dict[str, str] = {}
    figures: list[tuple[str, str, Callable[[dict[str, Any], Any], bool]]] = [
        ("fig5-5", "Latency by buffer size (report's Figure 5.5)", _by_size),
        ("fig5-6-8", "Latency by configuration, 4 KiB (Figures 5.6 and 5.8)", _latency),
        ("fig5-7-9", "Throughput by configuration, 4 KiB (Figures 5.7 and 5.9)", _throughput),
        ("fill", "Produce + consume with NumPy", _fill),
    ]
    for name, title, plot in figures:
        figure, axes = pyplot.subplots(figsize=(7.5, 4.2), layout="constrained")
        if plot(whole, axes):
            axes.set_title(title)
            axes.spines[["top", "right"]].set_visible(False)
            for suffix in ("svg", "png"):
                figure.savefig(directory / f"{name}.{suffix}", dpi=130)
            drawn[f"{name}.svg"] = title
        pyplot.close(figure)
    return drawn


def _by_size(whole: dict[str, Any], axes: Any) -> bool:
    found = False
    for trust, colour in TRUST_COLOURS.items():
        data = _data(whole, f"size-{trust}")
        if not data:
            continue
        found = True
        sizes = sorted(map(int, data))
        summaries = [data[str(size)]["latency_ns"] for size in sizes]
        axes.plot(sizes, [s["median"] / 1e3 for s in summaries], "o-", color=colour, label=f"{trust.upper()}, median")
        axes.plot(sizes, [s["p99"] / 1e3 for s in summaries], ":", color=colour, label=f"{trust.upper()}, p99")
        floor = [statistics.median(data[str(size)]["floor_medians_ns"]) / 1e3 for size in sizes]
        if trust == "full":
            axes.plot(sizes, floor, "--", color="#666666", label="C echo of one cache line")
            axes.set_xticks(sizes, [size_text(size) for size in sizes])
    if found:
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        ticks = sorted({int(s) for trust in TRUST_COLOURS for s in _data(whole, f"size-{trust}")})
        axes.set_xticks(ticks, [size_text(size) for size in ticks], minor=False)
        axes.minorticks_off()
        axes.set_xlabel("buffer size")
        axes.set_ylabel("round trip, µs")
        axes.set_ylim(top=axes.get_ylim()[1] * 30)  # room for the legend
        axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper left")
    return found


def _latency(whole: dict[str, Any], axes: Any) -> bool:
    def rows(key: str) -> list[float] | None:
        wanted = "several hops" if key.endswith("hops") else "round trip"
        return _samples(whole, key, wanted)

    found = _bars(axes, "latency", rows, 1e-3)
    axes.set_ylabel("round trip, µs (median, its 95 % interval)")
    axes.set_yscale("log")
    return found


def _throughput(whole: dict[str, Any], axes: Any) -> bool:
    def rows(key: str) -> list[float] | None:
        times = _samples(whole, key, "until the last echo")
        return times and [100e9 / time_ns for time_ns in times]

    found = _bars(axes, "throughput", rows, 1e-3)
    axes.set_ylabel("thousand buffers there and back a second")
    axes.set_yscale("log")
    return found


def _bars(axes: Any, kind: str, rows: Callable[[str], list[float] | None], unit: float) -> bool:
    found = False
    for place, (trust, colour) in enumerate(TRUST_COLOURS.items()):
        for group, configuration in enumerate(_CONFIGURATIONS):
            samples = rows(f"{kind}-{trust}-{configuration}")
            if not samples or len(samples) < 5:
                continue
            found = True
            middle = statistics.median(samples)
            error = [[(middle - lower_bound(samples)) * unit], [(upper_bound(samples) - middle) * unit]]
            label = trust.upper() if group == 0 else None
            at = group + 0.26 * (place - 1)
            axes.bar(at, middle * unit, 0.24, color=colour, label=label, yerr=error, capsize=2, ecolor="#333333")
    axes.set_xticks(range(len(_NAMES)), _NAMES)
    if found:
        axes.legend(frameon=False)
    return found


def _fill(whole: dict[str, Any], axes: Any) -> bool:
    found = False
    bars = [("fill-full", "bulk_GB_per_s", "FULL", TRUST_COLOURS["full"])]
    bars += [("fill-none", "bulk_GB_per_s", "NONE", TRUST_COLOURS["none"])]
    bars += [("fill-full", "plain_GB_per_s", "plain shared memory", "#999999")]
    ticks: list[str] = []
    for place, (key, name, label, colour) in enumerate(bars):
        data = _data(whole, key).get("fill", {})
        for group, size in enumerate(sorted(data, key=int)):
            found = True
            middle = statistics.median(data[size][name])
            axes.bar(group + 0.26 * (place - 1), middle, 0.24, color=colour, label=None if group else label)
        ticks = [size_text(int(size)) for size in sorted(data, key=int)] or ticks
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set_ylabel("GB/s, filled and summed")
    if found:
        axes.legend(frameon=False)
    return found


def _data(whole: dict[str, Any], key: str) -> dict[str, Any]:
    data: dict[str, Any] = whole["runs"].get(key, {}).get("found", {}).get("data", {})
    return data


def _samples(whole: dict[str, Any], key: str, wanted: str) -> list[float] | None:
    return next((row.samples for row in extract.rows(whole) if row.key == key and wanted in row.what), None)
