"""What a benchmark found: tables for people, one JSON object for programs.

Knows: how figures are laid out. Must not know: how they were measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import json
from collections.abc import Iterable, Sequence
from typing import Any

from . import machine, table
from .stats import NOISE, Ratio

Figures = dict[str, dict[str, float]]
_VERDICTS = {"held": "held", "noise": f"within {NOISE:.0%}, a tie", "missed": "missed"}


def plain(args: argparse.Namespace) -> dict[str, Any]:
    """The options of a run, as JSON can carry them."""
    return {
        name: value.name.lower() if isinstance(value, enum.Enum) else value
        for name, value in vars(args).items()
        if isinstance(value, str | int | float | list | enum.Enum | None)
    }


class Report:
    """Made when a benchmark begins, filled while it runs, finished when its partners have ended."""

    def __init__(self, benchmark: str, options: dict[str, Any]) -> None:
        self.benchmark = benchmark
        self.options = options
        self.floor_before: Figures = {}
        self.floor_after: Figures = {}
        self.data: dict[str, Any] = {}
        self.failures: list[str] = []
        self._machine = machine.facts()
        self._load = machine.Load()
        self._load_figures: dict[str, float] = {}
        self._tables: list[str] = []
        self._remarks: list[str] = []

    size = staticmethod(table.size_text)

    def add_table(self, title: str, headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """A table of the text form; what programs need goes into `data`."""
        self._tables.append(f"{title}\n{table.render(headings, rows)}")

    def add_remark(self, text: str) -> None:
        """A sentence below the tables of the text form."""
        self._remarks.append(text)

    def fail(self, text: str) -> None:
        """Something was wrong, not merely slow: the exit status will say so."""
        self.failures.append(text)

    def finish(self) -> None:
        """Take the machine's load, now that the partners have ended."""
        self._load_figures = self._load.figures()

    def as_json(self) -> str:
        """Everything, as one JSON object."""
        whole = {
            "benchmark": self.benchmark,
            "options": self.options,
            "machine": self._machine,
            "load": self._load_figures,
            "floor": {"before": self.floor_before, "after": self.floor_after},
            "data": self.data,
            "failures": self.failures,
        }
        return json.dumps(whole, default=_encode, indent=1)

    def as_text(self) -> str:
        """Everything that people read."""
        facts, load = self._machine, self._load_figures
        head = (
            f"{self.benchmark}: {facts['cpu']}, {facts['cores']} cores, Linux {facts['kernel']}, {facts['python']}; "
            f"others used {load.get('foreign_cores', 0):.2f} cores, the hypervisor {load.get('steal_cores', 0):.2f}"
        )
        floor = [self._floor_table()] if self.floor_before else []
        failures = [f"FAILED: {failure}" for failure in self.failures]
        return "\n\n".join([head, *floor, *self._tables, "\n".join([*self._remarks, *failures])]).rstrip()

    def _floor_table(self) -> str:
        rows = [
            (what, figure, before, self.floor_after.get(what, {}).get(figure))
            for what, figures in self.floor_before.items()
            for figure, before in figures.items()
        ]
        return "The machine's floor, in C\n" + table.render(["what", "figure", "before", "after"], rows)

    def emit(self, *, as_json: bool) -> int:
        """Print it; the exit status: 0, or 1 where something was wrong."""
        print(self.as_json() if as_json else self.as_text())
        return 1 if self.failures else 0


def verdict_text(what: str, found: Ratio, limit: float, verdict: str | None) -> str:
    """A sentence on a ratio and the limit that it is held against, by `Ratio.at_most` or `at_least`; None: no limit."""
    bounds = f"95 % bounds {found.lower:.3g} and {found.upper:.3g} over {found.pairs} pairs"
    judged = f", limit {limit:.3g}: {_VERDICTS[verdict]}" if verdict else ""
    return f"{what}: median {found.median:.3g}, {bounds}{judged}"


def _encode(value: object) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, enum.Enum):
        return value.name.lower()
    return list(value)  # type: ignore[call-overload]
