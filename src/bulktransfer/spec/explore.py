"""Enumerates every state that a small system can reach, breadth first, and holds each against the invariants.

Knows: how to search, and how to tell the shortest way to what is wrong. Must not know: the rules.

    python -m bulktransfer.spec.explore [--config NAME] [--quick] [--limit N] [--mistake NAME] [--markdown]
"""

from __future__ import annotations

import argparse
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from typing import NamedTuple

from . import mistakes as known
from .configurations import Configuration, configurations, start, symmetries
from .delivery import VIOLATION
from .encode import canonical
from .invariants import IN_THE_END, broken
from .state import State
from .steps import Step, assignments, deaths, deliveries, drops, ends, hang_ups, transfers, wound_down

Observer = Callable[[State, Step, State], None]


class Found(NamedTuple):
    """What a search saw; `complaints` and the steps that lead there, the shortest way, if something was wrong."""

    name: str
    states: int
    transitions: int
    depth: int
    ended: int  # states in which everybody had let go
    seconds: float
    complete: bool
    complaints: tuple[str, ...] = ()
    trace: tuple[Step, ...] = ()


def successors(state: State, configuration: Configuration) -> Iterator[tuple[Step, State]]:
    """Every step that the configuration allows."""
    yield from transfers(state, configuration.bound)
    yield from deliveries(state, vetoes=configuration.assignments)
    if configuration.assignments:
        yield from assignments(state, configuration.bound)
    if configuration.ends:
        yield from ends(state, graceful=configuration.ends == "all")
    yield from drops(state)
    yield from hang_ups(state)
    if configuration.deaths:
        yield from deaths(state, configuration.deaths)


def explore(
    configuration: Configuration,
    mistakes: frozenset[str] = frozenset(),
    limit: int = 0,
    observe: Observer | None = None,
) -> Found:
    """Search all states, up to `limit` (0: no limit), until an invariant is broken."""
    began = time.perf_counter()
    same = symmetries(configuration)
    first = start(configuration, mistakes)
    seen = {canonical(first, same): 0}
    parents = array("q", [-1])
    layer = [(0, first)]
    transitions = depth = ended = 0

    def result(complete: bool, complaints: list[str] | None = None, last: int = 0, step: Step | None = None) -> Found:
        trace = _trace(configuration, mistakes, seen, parents, last) if complaints else ()
        trace += (step,) if step is not None else ()
        seconds = time.perf_counter() - began
        complaint = tuple(complaints or ())
        return Found(configuration.name, len(seen), transitions, depth, ended, seconds, complete, complaint, trace)

    while layer:
        following = []
        for number, state in layer:
            for step, after in successors(state, configuration):
                transitions += 1
                if step.note == VIOLATION:
                    return result(False, [f"an honest domain is accused: {step}"], number, step)
                if observe is not None:
                    observe(state, step, after)
                key = canonical(after, same)
                if key in seen:
                    continue
                seen[key] = len(parents)
                parents.append(number)
                complaints = broken(after)
                if configuration.ends and wound_down(after):
                    ended += 1
                    complaints += broken(after, IN_THE_END)
                if complaints:
                    return result(False, complaints, number, step)
                following.append((len(parents) - 1, after))
            if limit and len(seen) >= limit:
                return result(False)
        layer = following
        depth += bool(layer)
        if configuration.depth and depth >= configuration.depth:
            return result(False)
    return result(True)


def _trace(
    configuration: Configuration, mistakes: frozenset[str], seen: dict[bytes, int], parents: array[int], last: int
) -> tuple[Step, ...]:
    """The steps from the start to state number `last`: walked again, since only the numbers were kept."""
    way = [last]
    while parents[way[-1]] >= 0:
        way.append(parents[way[-1]])
    state = start(configuration, mistakes)
    steps = []
    for number in reversed(way[:-1]):
        for step, after in successors(state, configuration):
            if seen.get(canonical(after, symmetries(configuration))) == number:
                steps.append(step)
                state = after
                break
    return tuple(steps)


def verdict(found: Found) -> str:
    """How a search ended, in words."""
    if found.complaints:
        return "BROKEN"
    return "all states" if found.complete else f"{found.depth} steps"


def table(results: list[Found]) -> str:
    """The results, one a line."""
    lines = [f"{'configuration':<40}{'states':>10}{'transitions':>13}{'depth':>7}{'ended':>8}{'seconds':>9}  searched"]
    for r in results:
        numbers = f"{r.states:>10,}{r.transitions:>13,}{r.depth:>7}{r.ended:>8,}{r.seconds:>9.1f}"
        lines.append(f"{r.name:<40}{numbers}  {verdict(r)}")
    return "\n".join(lines)


def markdown(results: list[Found]) -> str:
    """The same for docs/semantics.md."""
    lines = ["| configuration | states | transitions | deepest | everybody let go | seconds | searched |"]
    lines.append("|---|---|---|---|---|---|---|")
    for r in results:
        cells = (f"`{r.name}`", f"{r.states:,}", f"{r.transitions:,}", r.depth, f"{r.ended:,}", f"{r.seconds:.1f}")
        lines.append(f"| {' | '.join(map(str, cells))} | {verdict(r)} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """The command; 1 if an invariant was broken."""
    parser = argparse.ArgumentParser(prog="python -m bulktransfer.spec.explore", description=__doc__.split("\n")[0])
    parser.add_argument("--config", action="append", help="a configuration, or the beginning of its name")
    parser.add_argument("--quick", action="store_true", help="the short version")
    parser.add_argument("--markdown", action="store_true", help="print the table as docs/semantics.md has it")
    parser.add_argument("--limit", type=int, default=0, help="stop after so many states of a configuration")
    parser.add_argument("--mistake", action="append", default=[], choices=known.ALL, help="break a rule on purpose")
    options = parser.parse_args(arguments)
    chosen = [c for c in configurations() if not options.quick or c.quick]
    if options.config:
        chosen = [c for c in chosen if any(c.name.startswith(name) for name in options.config)]
    results = []
    for configuration in chosen:
        found = explore(configuration, frozenset(options.mistake), options.limit)
        results.append(found)
        text = (markdown if options.markdown else table)([found])
        head = 0 if len(results) == 1 else 2 if options.markdown else 1
        sys.stdout.write("\n".join(text.split("\n")[head:]) + "\n")
        for complaint in found.complaints:
            sys.stdout.write(f"  {complaint}\n")
        for number, step in enumerate(found.trace, 1):
            sys.stdout.write(f"    {number:>3}. {step}\n")
        sys.stdout.flush()
    return int(any(r.complaints for r in results))


if __name__ == "__main__":
    sys.exit(main())
