"""The explorer: small systems keep every invariant, a broken rule is noticed, and the page says what was found."""

from __future__ import annotations

import functools
import re
from collections import Counter

import pytest

import drawings
from bulktransfer.spec import mistakes
from bulktransfer.spec.configurations import PLANS, Configuration, configurations, start
from bulktransfer.spec.encode import canonical
from bulktransfer.spec.explore import Found, explore, main
from bulktransfer.spec.invariants import IN_THE_END, broken
from bulktransfer.spec.state import OVER, State, View, bits, with_view
from bulktransfer.spec.steps import Step
from bulktransfer.states import BUFFER_TABLE, CHANNEL_TABLE, When

QUICK = [c for c in configurations() if c.quick]
BY_NAME = {c.name: c for c in configurations()}

# Where each mistake shows, and the invariants of which it breaks one at least.
SEEDED = {
    mistakes.RELEASE_WITH_COPIES_OUT: (Configuration("chain", ends=""), "no_write_beside"),
    mistakes.MOVE_WITH_COPIES_OUT: (Configuration("pair", ends=""), "copies_reachable"),
    mistakes.COPY_WITH_COPIES_OUT_ACCEPTED: (Configuration("exchange", ends=""), "no_circle"),
    mistakes.DETACHED_REUSED: (Configuration("pair"), "one_owner"),
    mistakes.ACCEPTED_TWICE: (Configuration("pair", ends=""), "one_owner"),
    mistakes.NOT_ROLLED_BACK: (Configuration("echo", ends=""), "as_derived"),
    mistakes.REMOVED_WHILE_BUSY: (Configuration("pair", assignments=True), "nothing_lost"),
    mistakes.DROPPED_WHILE_CONNECTED: (Configuration("pair", ends=""), "as_derived"),
    # the rules as they were before the explorer looked at them; see docs/semantics.md
    mistakes.LEASES_FOLLOW_ASSIGNMENTS: (Configuration("twice", ends="close", deaths=(1,)), "one_owner"),
    mistakes.ASSIGNER_ALONE: (Configuration("echo"), "nothing_lost"),
    mistakes.JUDGED_BY_LAST_WAY: (Configuration("twice", shared=False, ends="close"), "an honest domain is accused"),
}


@functools.cache
def explored(name: str) -> tuple[Found, frozenset[tuple[str, ...]], frozenset[tuple[str, str]]]:
    """The search of a configuration; the changes of views and of stages that it saw."""
    views: set[tuple[str, ...]] = set()
    stages: set[tuple[str, str]] = set()

    def look(before: State, step: Step, after: State) -> None:
        views.update(changes_of_views(before, step, after))
        for old, new in zip(before.channels, after.channels, strict=True):
            stages.update(zip(map(closed, old.stages), map(closed, new.stages), strict=True))

    return explore(BY_NAME[name], observe=look), frozenset(views), frozenset(stages)


def closed(stage: str) -> str:
    return "CLOSED" if stage in OVER else stage


ACTS = {
    "takes MOVE": "MOVE_RECEIVED",
    "takes PASS": "BUFFER_RECEIVED",
    "takes COPY": "COPY_RECEIVED",
    "takes RELEASE": "COPY_RELEASED",
    "takes MOVE_REFUSED": "MOVE_REFUSED",
    "takes COPY_REFUSED": "COPY_REFUSED",
    "reclaims pool": "RECLAIMED",
    **{name: name.upper() for name in ("move", "pass", "copy", "release", "drop")},
}


def changes_of_views(before: State, step: Step, after: State):
    """(state, act, when, next) of every view that a step changed; a lease gives a copy back as if it were released."""
    act = ACTS.get(step.act)
    if act is None or step.note == "refused":
        return
    for buffer, (old, new) in enumerate(zip(before.views[step.domain], after.views[step.domain], strict=True)):
        if old == new:
            continue
        if act == "RECLAIMED":
            yield from reclaimed(old, new)
        else:
            assert buffer == step.item
            yield old.state, act, when(old), new.state


def when(view: View) -> str:
    return f"{min(view.out.bit_count(), 2)} {min(view.held.bit_count(), 2)}"


def reclaimed(old: View, new: View):
    for channel in bits(old.out & ~new.out):
        less = old._replace(out=old.out & ~(1 << channel))
        yield old.state, "COPY_RELEASED", when(old), less.state
        old = less
    if old.held:
        yield old.state, "DROP", when(old), "INVALID"
        old = View()
    if new.owned and not old.owned:
        yield old.state, "RECLAIMED", when(old), new.state


@pytest.mark.parametrize("name", [c.name for c in QUICK])
def test_every_invariant_holds_in_every_state(name: str) -> None:
    found = explored(name)[0]
    assert found.complaints == ()
    assert found.complete
    assert bool(found.ended) == bool(BY_NAME[name].ends)


@pytest.mark.parametrize("mistake", SEEDED)
def test_a_seeded_mistake_is_found_by_the_shortest_way(mistake: str) -> None:
    configuration, invariant = SEEDED[mistake]
    found = explore(configuration, frozenset([mistake]), limit=40_000)
    assert any(complaint.startswith(invariant) for complaint in found.complaints), found
    assert 0 < len(found.trace) <= found.depth + 1
    assert explore(configuration, limit=3_000).complaints == ()


def test_every_mistake_is_seeded() -> None:
    assert set(SEEDED) == set(mistakes.ALL)


@pytest.mark.parametrize("plan", PLANS)
def test_every_plan_begins_with_everything_assigned(plan: str) -> None:
    state = start(Configuration(plan))
    assert broken(state) == []
    assert {standing.sides for row in state.standings for standing in row} == {("ACTIVE", "ACTIVE")}


def test_places_may_be_exchanged_where_nothing_tells_them_apart() -> None:
    from bulktransfer.spec.configurations import symmetries
    from bulktransfer.spec.transfer import move

    configuration = Configuration("diamond", 2)
    state, same = start(configuration), symmetries(configuration)
    assert len(same) == 3
    keys = {canonical(move(state, 0, channel, buffer), same) for channel in (0, 1) for buffer in (0, 1)}
    assert len(keys) == 1
    assert canonical(state, same) not in keys


# -- the tables, as far as the searches went -----------------------------------------------------------------------

DEEP = [c.name for c in QUICK if c.ends]
COUNTS = {
    When.ALWAYS: ("0", "1", "2"),
    When.OUT_MANY: ("2",),
    When.OUT_LAST: ("1",),
    When.OUT_NONE: ("0",),
    When.OUT_NONE_IN_MANY: ("0",),
    When.OUT_NONE_IN_LAST: ("0",),
}


def test_every_change_that_was_seen_is_a_row_and_almost_every_row_was_seen() -> None:
    seen = frozenset().union(*(explored(c.name)[1] for c in QUICK))
    rows = {(row.state.name, row.act.name, row.next.name) for row in BUFFER_TABLE}
    found = {(state, act, following) for state, act, _, following in seen}
    assert sorted(found - rows) == []
    unseen = {row for row in rows - found if row[1] != "FULL_COPY"}  # a copy within the domain, and a move
    assert unseen == {("INVALID", "DROP", "INVALID")}  # it changes nothing
    counts = Counter(
        (row.state.name, row.act.name, row.next.name)
        for row in BUFFER_TABLE
        for state, act, count, following in seen
        if (row.state.name, row.act.name, row.next.name) == (state, act, following) and count[0] in COUNTS[row.when]
    )
    assert set(counts) == found


def test_every_change_of_a_channel_that_was_seen_is_a_way_through_its_table() -> None:
    seen = frozenset().union(*(explored(name)[2] for name in DEEP))
    steps = {(a.name, b.name) for (a, _), b in CHANNEL_TABLE.items()}
    ways = steps | {(a, c) for a, b in steps for b2, c in steps if b == b2}
    assert {(a, b) for a, b in seen if a != b} <= ways
    assert ("CONNECTED", "TEARDOWN") in seen
    assert ("TEARDOWN", "CLOSED") in seen


# -- the invariants themselves -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("domain", "view", "complaint"),
    [
        (1, View(owned=True), "one_owner"),
        (1, View(owned=True), "no_write_beside"),
        (1, View(held=1), "copies_reachable"),
        (0, View(), "as_derived"),
        (0, View(owned=True, out=1), "as_derived"),
    ],
)
def test_an_invariant_sees_what_it_is_for(domain: int, view: View, complaint: str) -> None:
    state = with_view(start(Configuration("chain")), domain, 0, view)
    if complaint == "copies_reachable":
        state = with_view(state, 0, 0, View())
    assert complaint in {line.partition(":")[0] for line in broken(state)}


def test_a_buffer_that_stays_away_is_seen_in_the_end() -> None:
    state = with_view(start(Configuration("pair")), 0, 0, View())
    assert [line.partition(":")[0] for line in broken(state, IN_THE_END)] == ["all_home"]


# -- the command and the page --------------------------------------------------------------------------------------


def test_the_command_prints_a_table(capsys) -> None:
    assert main(["--config", "pair-1b-shared-ends"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("configuration")
    assert "all states" in out
    assert main(["--config", "pair-1b-shared-ends", "--mistake", mistakes.DETACHED_REUSED]) == 1
    out = capsys.readouterr().out
    assert "BROKEN" in out
    assert "1. domain 0: move 0 over channel 0" in out


def test_a_limit_bounds_the_search() -> None:
    found = explore(Configuration("chain"), limit=50)
    assert not found.complete
    assert found.states >= 50
    assert explore(Configuration("chain", depth=2)).depth == 2


def test_the_pages_diagrams_are_drawn_from_the_tables() -> None:
    text = drawings.PAGE.read_text()
    assert drawings.redrawn(text) == text
    assert text.count("```mermaid") == len(drawings.DRAWINGS)


def test_the_pages_figures_are_what_the_explorer_finds() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| ([\d,]+) \| ([\d,]+) \|", drawings.PAGE.read_text(), re.MULTILINE)
    figures = {name: (int(states.replace(",", "")), int(steps.replace(",", ""))) for name, states, steps in rows}
    assert set(figures) == set(BY_NAME)
    found = {c.name: (explored(c.name)[0].states, explored(c.name)[0].transitions) for c in QUICK}
    assert {name: figures[name] for name in found} == found
