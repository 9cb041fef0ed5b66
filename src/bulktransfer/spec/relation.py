"""The transitions of one buffer in one domain, as a finite relation: to be held against a table.

Knows: how to ask account.py about every kind of view. Must not know: the library's table.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from .account import ACTS, answer, arrival, call, dropped, reclaimed
from .state import READ_ONLY, Refused, Rules, View

HERE, ELSEWHERE = 0, 1  # the channel that the act is about, and the first of the others


class Transition(NamedTuple):
    """In `state`, with so many copies out and held (2: two or more), `act` leads to `next` and changes the counts."""

    state: str
    out: int
    held: int
    act: str
    next: str
    out_change: int
    held_change: int


def views() -> Iterator[View]:
    """Every kind of view: its copies go over channels beside HERE, and are 0, 1 or 2."""
    yield View()
    yield View(owned=True)
    for out in (1, 2):
        yield View(owned=True, out=_channels(out))
    for out in (0, 1, 2):
        for held in (1, 2):
            yield View(out=_channels(out), held=_channels(held))


def _channels(count: int) -> int:
    return ((1 << count) - 1) << ELSEWHERE


def transitions(rules: Rules) -> Iterator[Transition]:
    """Every transition that the specification has; where an act has no transition it is refused."""
    for view in views():
        for act in ACTS:
            before = _prepared(view, act)
            after = _after(before, act, rules)
            if after is None:
                continue
            out, held = before.out.bit_count(), before.held.bit_count()
            yield Transition(
                before.state, out, held, act, after.state, after.out.bit_count() - out, after.held.bit_count() - held
            )


def _prepared(view: View, act: str) -> View:
    """The view, with HERE among the channels that the act takes a copy from."""
    if act == "RELEASE":
        return view._replace(held=view.held >> 1) if view.state == READ_ONLY else view
    if act in ("COPY_RELEASED", "COPY_REFUSED"):
        return view._replace(out=view.out >> 1) if view.out else view
    return view._replace(via=HERE) if act == "MOVE_REFUSED" else view


def _after(view: View, act: str, rules: Rules) -> View | None:
    if act in ("MOVE", "PASS", "COPY", "RELEASE", "FULL_COPY"):
        after = call(view, act, HERE, rules)
        return None if isinstance(after, Refused) else after
    if act in ("MOVE_RECEIVED", "BUFFER_RECEIVED", "COPY_RECEIVED"):
        return arrival(view, act, HERE, None, rules)
    if act == "RECLAIMED":
        return reclaimed(view)
    return dropped(view) if act == "DROP" else answer(view, act, HERE)
