"""The small systems that the explorer enumerates.

Knows: who is connected with whom, whose pool travels, what may happen there. Must not know: how states are searched.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

from .delivery import run_to_rest
from .encode import Symmetry
from .setup import assign, bind, create, pool_create
from .state import SINK, SOURCE, Refused, Rules, State, begin


class Plan(NamedTuple):
    """Channels as (source, sink, the side that assigns the pool there, or -1), in order of assignment; domain 0 or
    `home` allocates the pool. `symmetry`: places of domains and channels that may be exchanged.
    """

    channels: tuple[tuple[int, int, int], ...]
    home: int = 0
    symmetry: tuple[tuple[int, ...], tuple[int, ...]] | None = None


class Configuration(NamedTuple):
    """A system, and what may happen in it beside transfers and deliveries."""

    plan: str
    buffers: int = 1
    shared: bool = True
    ends: str = "all"  # destroy and close; "close": at once only; "": none
    deaths: tuple[int, ...] = ()
    assignments: bool = False
    bound: int = 2  # of a queue, as far as calls fill it
    slots: int = 1  # of a ring: what waits behind is lost at a death
    quick: bool = False  # part of the short version
    depth: int = 0  # steps from the start; 0: all

    @property
    def name(self) -> str:
        """What it is called on the command line."""
        parts = [self.plan, f"{self.buffers}b", "shared" if self.shared else "apart"]
        parts += (
            {"all": ["ends"], "close": ["close"], "": []}[self.ends]
            + ["deaths"] * bool(self.deaths)
            + ["assign"] * self.assignments
        )
        return "-".join(parts + ([f"d{self.depth}"] if self.depth else []))


PLANS = {
    "pair": Plan(((0, 1, SOURCE),)),
    "receive-master": Plan(((0, 1, SINK),), home=1),
    "echo": Plan(((0, 1, SOURCE), (1, 0, SOURCE))),
    "loopback": Plan(((0, 0, SOURCE), (0, 1, SOURCE))),
    "chain": Plan(((0, 1, SOURCE), (1, 2, SOURCE))),
    "inlet": Plan(((1, 2, SINK), (0, 1, SINK)), home=2),  # a chain in receive-master mode
    "middle": Plan(((0, 1, SINK), (1, 2, SOURCE)), home=1),
    "fan": Plan(((0, 1, SOURCE), (0, 2, SOURCE)), symmetry=((0, 2, 1), (1, 0))),
    "twice": Plan(((0, 1, SOURCE), (1, 2, SOURCE), (0, 1, SOURCE))),  # a second way to a domain that has the pool
    "diamond": Plan(
        ((0, 1, SOURCE), (0, 2, SOURCE), (1, 3, SOURCE), (2, 3, SOURCE)), symmetry=((0, 2, 1, 3), (1, 0, 3, 2))
    ),
    "exchange": Plan(((0, 1, SOURCE), (1, 2, SOURCE), (2, 1, SOURCE))),  # a circle that the owner is not part of
    "ring": Plan(((0, 1, SOURCE), (1, 2, SOURCE), (2, 0, SOURCE))),
}


_QUICK = {"pair", "receive-master", "loopback", "chain", "inlet", "middle", "fan", "echo"}
_QUICK_APART = {"pair", "receive-master", "loopback", "chain", "fan"}
_DEADLY = {name: tuple(range(1 + max(max(c[:2]) for c in plan.channels))) for name, plan in PLANS.items()}


def configurations() -> list[Configuration]:
    """Everything that is explored: `--quick` takes those that are marked, the whole takes about half an hour."""
    found = []
    for shared, quick in ((True, _QUICK), (False, _QUICK_APART)):
        for plan in PLANS:
            if plan != "diamond":
                found.append(Configuration(plan, 1, shared, "close", _DEADLY[plan], quick=plan in quick))
                large = plan in ("twice", "ring", "exchange")
                found.append(Configuration(plan, 1, shared, "all", depth=12 if large else 0))
        found += [
            Configuration("pair", 1, shared, "close", (0, 1), assignments=True, quick=True),
            Configuration("echo", 1, shared, "", assignments=True),
            Configuration("twice", 1, shared, "", quick=True),
            Configuration("diamond", 1, shared, "", quick=True),
            Configuration("diamond", 1, shared, "close", depth=0 if shared else 14),
            Configuration("diamond", 1, shared, "close", _DEADLY["diamond"], depth=10),
            Configuration("pair", 2, shared, "all", (0, 1), quick=shared),
            Configuration("chain", 2, shared, "", quick=True),
            Configuration("fan", 2, shared, ""),
            Configuration("echo", 2, shared, "close", depth=0 if shared else 12),
            Configuration("chain", 2, shared, "close", _DEADLY["chain"]),
            Configuration("fan", 2, shared, "close", depth=0 if shared else 16),
            Configuration("diamond", 2, shared, "", depth=0 if shared else 16),
            Configuration("fan", 2, shared, "close", _DEADLY["fan"], depth=12),
            Configuration("diamond", 2, shared, "close", _DEADLY["diamond"], depth=8),
        ]
    return found


def start(configuration: Configuration, mistakes: frozenset[str] = frozenset()) -> State:
    """The state in which everything is connected and assigned, as Algorithms 3 to 6 lead to it."""
    plan = PLANS[configuration.plan]
    rules = Rules(configuration.shared, configuration.slots, mistakes)
    count = 1 + max(max(source, sink) for source, sink, _ in plan.channels)
    state = done(pool_create(begin(count, rules), plan.home, configuration.buffers))
    for number, (source, sink, by) in enumerate(plan.channels):
        state = done(create(state, source, SOURCE))
        state = done(bind(state, sink, number))
        if by >= 0 and not configuration.assignments:
            state = run_to_rest(done(assign(state, number, by, 0)))
    return state


def symmetries(configuration: Configuration) -> tuple[Symmetry, ...]:
    """The changes of places that leave the configuration as it is; no change is not among them."""
    plan = PLANS[configuration.plan]
    state = start(configuration)
    keep = (tuple(range(len(state.alive))), tuple(range(len(state.channels))))
    orders = tuple(itertools.permutations(range(configuration.buffers)))
    places: list[tuple[tuple[int, ...], tuple[int, ...]]] = [keep]
    if plan.symmetry is not None and set(configuration.deaths) in (set(), set(keep[0])):
        places.append(plan.symmetry)
    found = [Symmetry(domains, channels, order) for domains, channels in places for order in orders]
    return tuple(found[1:])


def done(after: State | Refused) -> State:
    """The state after a call that must not be refused."""
    assert not isinstance(after, Refused), after
    return after
