"""The library and the specification as two systems that must be the same: what is in them, and the comparison.

Knows: which part of one is which of the other, and how the model follows what the library took. Must not know: which
steps there are (sidebyside.py).

Every domain is a party (party.py), in this process or in one of its own. What the library has taken from a channel is
read off its own counts, and the model follows; what it makes of it must be the same. Between machines what was sent may
still be on its way: there a difference counts only if it stays.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import bulktransfer as bulk

from ..spec import model as m
from ..spec.state import OVER, View
from .oracle import Due, Oracle
from .party import Arrived, Line, Seen, Survey
from .places import Answer, Gone, Here, Seat, There
from .plans import Plan
from .subject import Subject, memory_is_shared

BUFFER_BYTES = 4096
_ORDERS = 720  # in which a domain that serves may have taken from its channels
_LATE_S = 3.0  # after which nothing is on its way any more; less than a closed link waits for its peer to hang up
_PAUSE_S = 0.001  # between looks at what is still on its way


_pause = threading.Event()


class Discrepancy(AssertionError):
    """The library and the specification differ; the text says what was done, and how."""


class Both:
    """One system in both; a context manager that ends what it made."""

    def __init__(
        self,
        subject: Subject,
        trust: bulk.Trust,
        plan: Plan,
        *,
        buffers: int = 2,
        processes: bool = False,
        mistakes: frozenset[str] = frozenset(),
    ) -> None:
        self.subject, self.trust, self.plan, self.buffers, self.processes = subject, trust, plan, buffers, processes
        self.stack = contextlib.ExitStack()
        self.oracle = Oracle(plan.domains, memory_is_shared(trust), mistakes)
        self.steps: list[str] = []
        self.told: dict[int, list[tuple[str, str]]] = {domain: [] for domain in range(plan.domains)}
        self.written = 0
        self.late = subject.is_far  # what was sent may still be on its way when the call returns
        try:
            self.places: list[Here | There] = []
            if processes:
                self.places = [self.stack.enter_context(There(subject)) for _ in range(plan.domains)]
            else:
                self.places = [self.stack.enter_context(Here(subject))] * plan.domains
            self.seats: list[Seat] = [place.party() for place in self.places]
        except BaseException:
            self.stack.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End everything: first all channels, since a process waits a while for its peers to hang up."""
        for seat in self.seats:
            with contextlib.suppress(Gone):
                seat.call("end")
        self.stack.close()

    # ---- looking ----

    def alive(self, domain: int) -> bool:
        """Whether the domain lives."""
        return self.oracle.state.alive[domain]

    def view(self, domain: int, buffer: int) -> View:
        """A buffer as the model's domain sees it."""
        return self.oracle.state.views[domain][buffer]

    def _domain(self, channel: int, side: int) -> int:
        return self.oracle.state.channels[channel].domains[side]

    def _alive(self, channel: int, side: int) -> bool:
        return self.alive(self._domain(channel, side))

    def _ends(self, domain: int) -> Iterator[tuple[int, int]]:
        for channel, it in enumerate(self.oracle.state.channels):
            yield from ((channel, side) for side in (m.SOURCE, m.SINK) if it.domains[side] == domain)

    # ---- both at once ----

    def _keys(self, channel: int, source: int, sink: int) -> tuple[int, int]:
        """By which numbers the two ends know the channel: one party may have both ends."""
        return (channel, channel if source != sink else channel + 1000)

    def _key(self, channel: int, side: int) -> int:
        return self._keys(channel, *self.oracle.state.channels[channel].domains)[side]

    def _try(self, domain: int, method: str, *args: Any) -> Answer:
        return self.seats[domain].attempt(method, *args)

    def _done(self, domain: int, method: str, *args: Any) -> Any:
        return self.seats[domain].call(method, *args)

    def _look(self, domain: int) -> Survey:
        survey: Survey = self.seats[domain].call("look_around")
        self.told[domain] += survey.outcomes
        return survey._replace(outcomes=[])

    def _step(self, text: str) -> None:
        self.steps.append(text)

    def _check(self, right: bool, text: str) -> None:
        if not right:
            raise Discrepancy("after\n  " + "\n  ".join(self.steps) + f"\n{text}")

    def _same(self, answer: Answer, error: str) -> None:
        got = "" if answer.error == "" else f"{answer.error} ({answer.text})"
        self._check(answer.error == error, f"the library: {got or 'accepted'}; the model: {error or 'accepted'}")

    def _same_event(self, got: Arrived, due: Due) -> None:
        found = Due(got.kind, got.buffer, got.meta, got.error)
        self._check(found == due, f"the library's event: {found}; the model's: {due}")

    def _follow_end(self, channel: int, answer: Answer) -> None:
        """A call that was refused since the channel ended took the end first."""
        if answer.error in ("EndOfChannelError", "BrokenChannelError", "ClosedChannelError"):
            self._follow()

    def _outcomes_came(self, channel: int, act: str) -> None:
        for side in (m.SOURCE, m.SINK):
            if self._alive(channel, side):
                due = [outcome for outcome in self.oracle.outcomes[self._domain(channel, side)] if outcome[0] == act]
                self._check(not due, f"domain {self._domain(channel, side)} was not told {due}")

    def _follow(self) -> list[Survey | None]:
        """Have the model take what the library took; the surveys."""
        surveys = self._at_rest()
        lines = {
            (channel, side): survey.lines[self._key(channel, side)]
            for domain, survey in enumerate(surveys)
            if survey is not None
            for channel, side in self._ends(domain)
        }
        oracle = self.oracle
        kept = oracle.remember()
        late = [end for end, line in sorted(lines.items()) if kept.taken[end] != line.taken]
        for order in itertools.islice(itertools.permutations(late), _ORDERS):
            self._take((*order, *sorted(lines)), lines)
            if all((oracle.taken[end], oracle.refused[end]) == (it.taken, it.refused) for end, it in lines.items()):
                self.oracle.followed(lines)
                return surveys
            self.oracle.restore(kept)
        self._take(sorted(lines), lines)
        for (channel, side), line in lines.items():
            sent = self.oracle.taken[channel, side]
            where = f"channel {channel}, side {side}"
            self._check(sent == line.taken, f"{where}: {line.taken} transfers were taken, in the model {sent}")
        self.oracle.followed(lines)
        return surveys

    def _take(self, order: Sequence[tuple[int, int]], lines: Mapping[tuple[int, int], Line]) -> None:
        """Have the model take from one end after the other; what one took may be the answer to what another took.

        What leases give back is taken back before others go on, as in the library.
        """
        moved = True
        self.oracle.reclaim()
        while moved:
            moved = False
            for end in order:
                if self.oracle.follow(*end, lines[end]):
                    moved = True
                    self.oracle.reclaim()

    def _at_rest(self) -> list[Survey | None]:
        """What every domain that lives sees, once serving them all changes nothing more."""
        surveys: list[Survey | None] = []
        while True:
            before = surveys
            for domain, seat in enumerate(self.seats):
                if self.alive(domain):
                    seat.call("serve")
            surveys = [self._look(domain) if self.alive(domain) else None for domain in range(len(self.seats))]
            if surveys == before:
                return surveys

    def _compare(self) -> None:
        """Everything must be the same in both, at once, or when what is on its way has come."""
        for _ in self._patiently():
            try:
                surveys = self._follow()
                self.oracle.reclaim()
                for domain, survey in enumerate(surveys):
                    if survey is not None:
                        self._compare_domain(domain, survey)
            except Discrepancy as found:
                difference = found
            else:
                return
        raise difference

    def _patiently(self) -> Iterator[bool]:
        """Once; between machines again and again, for as long as something may be on its way."""
        yield True
        end = time.monotonic() + _LATE_S
        while self.late and time.monotonic() < end:
            _pause.wait(_PAUSE_S)
            yield True

    def _compare_domain(self, domain: int, survey: Survey) -> None:
        due = self.oracle.outcomes[domain]
        for outcome in self.told[domain]:
            self._check(outcome in due, f"domain {domain} was told {outcome}; due are {due}")
            due.remove(outcome)
        self.told[domain] = []
        for channel, side in self._ends(domain):
            line = survey.lines[self._key(channel, side)]
            stage = self.oracle.stage(channel, side)
            expected = "CLOSED" if stage in OVER else stage
            where = f"channel {channel} in domain {domain}"
            self._check(line.state == expected, f"{where} is {line.state}, in the model {expected}")
            if expected != "CLOSED":
                on = self.oracle.pools_on(channel, side)
                self._check(line.pools == on, f"pools on {where}: {line.pools}, in the model {on}")
        here = self.oracle.present(domain, 0)
        self._check((0 in survey.pools) == here, f"the pool in domain {domain}: {not here}, in the model {here}")
        if here:
            for buffer, seen in enumerate(survey.pools[0]):
                self._compare_buffer(domain, buffer, seen)
        if domain == self.plan.home:
            away = len(m.detached(self.oracle.state, domain, 0))
            self._check(survey.detached[0] == away, f"{survey.detached[0]} are detached, in the model {away}")

    def _compare_buffer(self, domain: int, buffer: int, seen: Seen) -> None:
        view = self.view(domain, buffer)
        mine = (view.state, view.out.bit_count(), view.held.bit_count())
        found = (seen.state, seen.out, seen.held)
        where = f"buffer {buffer} in domain {domain}"
        self._check(found == mine, f"{where}: (state, out, in) are {found}, in the model {mine}")
        if seen.data is not None:
            if isinstance(view.data, bytes):
                self._check(
                    seen.data == view.data, f"{where} holds {seen.data[:40]!r}, in the model {view.data[:40]!r}"
                )
            else:
                self._check(seen.length == BUFFER_BYTES, f"{where}: length {seen.length}")
