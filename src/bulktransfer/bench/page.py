"""The evaluation as a page of Markdown.

Knows: the JSON of the benchmarks, and how a table of Markdown looks. Must not know: how anything was measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from . import extract
from .stats import lower_bound, upper_bound
from .table import number_text, size_text


def write(whole: dict[str, Any], drawn: dict[str, str]) -> str:
    """The page; `drawn` are the plots beside it, with their titles."""
    facts = whole["machine"]
    parts = [
        "# What this machine does",
        f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_bytes'] / (1 << 30):.0f} GiB, "
        f"Linux {facts['kernel']}, {facts['python']}; {whole['made']}. "
        "Medians, with 95 % intervals that hold whatever the distribution. The report: "
        '"Bulk Transfer over Shared Memory", Part II, section 5.2.',
    ]
    parts += [f"![{title}]({name})" for name, title in drawn.items()]
    parts += [_latencies(whole), _samples(whole), _memory(whole), _loads(whole), _failures(whole)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _latencies(whole: dict[str, Any]) -> str:
    body = []
    for key, kept in whole["runs"].items():
        found = kept.get("found", {})
        if found.get("benchmark") != "rtt":
            continue
        for size, figures in found["data"].items():
            latencies = [("1", figures["latency_ns"])]
            if "hops" in figures:
                latencies.append((str(found["options"]["hops"]), figures["hops"]["latency_ns"]))
            for hops, summary in latencies:
                percentiles = [number_text(summary[name] / 1e3) for name in ("median", "p99", "p999", "maximum")]
                to_floor = number_text(figures["ratio_to_floor"]["median"]) if hops == "1" else "-"
                body.append((kept["figure"], key, size_text(int(size)), hops, *percentiles, to_floor))
    headings = ("figure", "run", "size", "hops", "p50, µs", "p99", "p99.9", "max", "x the C echo")
    return _section("Round trips", headings, body)


def _samples(whole: dict[str, Any]) -> str:
    body = []
    for row in extract.rows(whole):
        if row.what.startswith("round trip") or len(row.samples) < 5:
            continue
        figures = (statistics.median(row.samples), lower_bound(row.samples), upper_bound(row.samples))
        body.append((row.key, row.what, row.unit, *map(number_text, figures)))
    return _section("Rates, bursts and CPU", ("run", "what", "unit", "median", "from", "to"), body)


def _memory(whole: dict[str, Any]) -> str:
    data = whole["runs"].get("memory", {}).get("found", {}).get("data", {})
    body = [
        (side, what, f"{data[side][0][what]:,}", f"{data[side][-1][what]:,}")
        for side in ("source", "sink")
        if side in data
        for what in ("rss", "anonymous", "blocks", "descriptors")
    ]
    body += [
        (side, f"{what} of a pool, beside its pages", "", number_text(data[f"{side}_of_a_pool"][what]))
        for side in ("source", "sink")
        if f"{side}_of_a_pool" in data
        for what in ("anonymous", "descriptors")
    ]
    return _section("Memory", ("side", "what", "after the warm-up", "at the end"), body)


def _loads(whole: dict[str, Any]) -> str:
    body = [
        (key, number_text(load["wall_s"]), number_text(load["foreign_cores"]), number_text(load["steal_cores"]))
        for key, kept in whole["runs"].items()
        if (load := kept.get("found", {}).get("load"))
    ]
    return _section("Who else used the machine", ("run", "seconds", "cores used by others", "taken by the host"), body)


def _failures(whole: dict[str, Any]) -> str:
    body = [(key, kept["error"].replace("\n", " ")) for key, kept in whole["runs"].items() if "error" in kept]
    return _section("What gave no figures", ("run", "why"), body)


def _section(title: str, headings: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in body]
    if not lines:
        return ""
    head = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    return "\n".join([f"## {title}", "", *head, *lines])
