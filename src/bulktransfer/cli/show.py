"""The outcome of a demonstration, as tables for people and as one JSON object for programs.

Knows: how it is laid out. Must not know: how it came about.
"""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterator
from typing import Any

import bulktransfer as bulk

from ..bench.table import render, size_text
from .outcome import Outcome, Sent
from .refusal import Refusal
from .routes import BUFFER_BYTES, BUFFERS, Pass

_HEADINGS = ("route", "trust", "GB/s", "buffers/s", "CPU s/GB", "GB/s+digest", "CPU s/GB+digest", "digest")
_TIMING = """\
Timed from the first read of the file to the receiver's last word. First nobody looks at what arrives: that is the
cost of reading the file into the buffers and handing them over (the median of three, up to 4 GiB). Then (+digest)
the receiver takes SHA-256 of every buffer, where it lies, while the sender reads on. CPU: of all domains together.
The first row only reads the file (+digest: both in turns, in one thread). 1 GB is 10^9 bytes."""
_FULL = """\
At trust FULL it is the library inside the misbehaving process that refuses. A process that goes around the library
can write to a pool that it shares; for peers like that there are the other levels of trust: there it is the kernel
that ends a process which goes around the library (SIGSEGV), or refuses what it asks for (EACCES)."""
_TEXT_AT_LEAST = 40


def as_text(outcome: Outcome) -> str:
    """The tables."""
    what = f"{outcome.name}, {outcome.size:,} bytes" if not outcome.generated else outcome.name
    head = f"Sending {what}, in buffers of {size_text(BUFFER_BYTES)} from a pool of {BUFFERS}\nSHA-256 {outcome.digest}"
    rows = [_row(sent, outcome.size) for sent in ([outcome.alone] if outcome.alone else []) + outcome.sent]
    parts = [head, render(_HEADINGS, rows), _TIMING]
    for trust, refusals in outcome.refusals.items():
        refused = sum(refusal.right for refusal in refusals)
        count = f"{refused} of {len(refusals)} misdeeds were refused"
        parts.append(f"A process misbehaved on purpose, at trust {trust.name}: {count}\n{_refusals(refusals)}")
    if bulk.Trust.FULL in outcome.refusals:
        parts.append(_FULL)
    parts.append("All is well." if outcome.ok else "NOT ALL IS WELL: see WRONG above.")
    return "\n\n".join(parts)


def _row(sent: Sent, size: int) -> list[object]:
    bare, checked = _figures(sent.bare, size), _figures(sent.checked, size)
    name, trust = ("(file read only)", "-") if sent.route is None else (sent.route.name, sent.route.trust.name)
    verdict = "-" if sent.route is None else "ok" if sent.right else "WRONG"
    keys = ("gb_per_s", "buffers_per_s", "cpu_s_per_gb")
    return [name, trust, *(bare[key] for key in keys), checked["gb_per_s"], checked["cpu_s_per_gb"], verdict]


def _figures(found: Pass, size: int) -> dict[str, float | None]:
    """Rates; None where there is nothing to divide by."""
    return {
        "seconds": found.seconds,
        "gb_per_s": size / found.seconds / 1e9 if size else None,
        "buffers_per_s": found.buffers / found.seconds if size else None,
        "cpu_s_per_gb": found.cpu_seconds / size * 1e9 if size else None,
    }


def _refusals(refusals: list[Refusal]) -> str:
    columns = shutil.get_terminal_size((120, 24)).columns
    room = columns - max(len(r.tried) for r in refusals) - max(len(r.error or "WRONG") for r in refusals) - 5
    return render(("it tried to", "refused with", "saying"), _refusal_rows(refusals, max(room, _TEXT_AT_LEAST)))


def _refusal_rows(refusals: list[Refusal], width: int) -> Iterator[tuple[str, str, str]]:
    for refusal in refusals:
        wrong = "" if refusal.right else f"WRONG, {refusal.expected} was to come: "
        first, *more = textwrap.wrap(wrong + refusal.text, width) or [""]
        yield refusal.tried, refusal.error or "nothing", first
        for line in more:
            yield "", "", line


def as_json(outcome: Outcome) -> str:
    """Everything, as one JSON object."""
    whole: dict[str, Any] = {
        "version": bulk.__version__,
        "file": {"name": outcome.name, "bytes": outcome.size, "generated": outcome.generated, "sha256": outcome.digest},
        "pool": {"buffers": BUFFERS, "buffer_bytes": BUFFER_BYTES},
        "read_only": _sent(outcome.alone, outcome.size) if outcome.alone else None,
        "transfers": [_sent(sent, outcome.size) for sent in outcome.sent],
        "refusals": [
            {
                "trust": trust.name,
                "tried": refusal.tried,
                "expected": refusal.expected,
                "error": refusal.error,
                "text": refusal.text,
                "refused": refusal.right,
            }
            for trust, refusals in outcome.refusals.items()
            for refusal in refusals
        ],
        "ok": outcome.ok,
    }
    return json.dumps(whole, indent=1)


def _sent(sent: Sent, size: int) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "buffers": sent.bare.buffers,
        "bare": _figures(sent.bare, size),
        "with_digest": _figures(sent.checked, size),
    }
    if sent.route is None:
        return figures
    return {
        "route": sent.route.name,
        "backend": sent.route.scheme,
        "domains": sent.route.domains,
        "hops": sent.route.hops,
        "trust": sent.route.trust.name,
        **figures,
        "sha256": sent.checked.digest,
        "digest_ok": sent.right,
    }
