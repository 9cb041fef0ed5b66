"""The library and the specification, side by side: each step is done in both, and everything is compared after it.

Knows: which step of one is which of the other. Must not know: which steps are taken, or when.

Every domain is a party (party.py), in this process or in one of its own. What the library has taken from a channel is
read off its own counts, and the model follows; what it makes of it must be the same.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import bulktransfer as bulk

from ..spec import model as m
from ..spec.state import COPY_REFUSED, MOVE_REFUSED, OVER, View
from .oracle import Due, Oracle
from .party import Arrived, Line, Seen, Survey
from .places import Answer, Here, Seat, There
from .plans import Plan
from .subject import Subject, memory_is_shared

META_BYTES = 16
BUFFER_BYTES = 4096
CHANNELS_MAX = 12
_ORDERS = 720  # in which a domain that serves may have taken from its channels
_ROUNDS = 5  # an assignment takes four messages
SLOTS = 1024  # more than may wait: everything that is sent is published at once


class Discrepancy(AssertionError):
    """The library and the specification differ; the text says what was done, and how."""


class SideBySide:
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
        try:
            self.places: list[Here | There] = []
            if processes:
                self.places = [self.stack.enter_context(There(subject)) for _ in range(plan.domains)]
            else:
                self.places = [self.stack.enter_context(Here(subject))] * plan.domains
            self.seats: list[Seat] = [place.party() for place in self.places]
            self._begin()
        except BaseException:
            self.stack.close()
            raise

    def __enter__(self) -> SideBySide:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End everything."""
        self.stack.close()

    def _begin(self) -> None:
        self.seats[self.plan.home].call("allocate", 0, self.buffers, BUFFER_BYTES)
        self.oracle.apply(m.pool_create(self.oracle.state, self.plan.home, self.buffers))
        for buffer in range(self.buffers):
            self._done(self.plan.home, "put", 0, buffer, b"%d" % buffer)
            self.oracle.apply(m.write(self.oracle.state, self.plan.home, buffer, b"%d" % buffer))
        for source, sink, by in self.plan.channels:
            channel = self._connect(source, sink, by)
            self.ask("assign", channel, by)
        for _ in range(len(self.plan.channels)):  # leases have gone as far as they go
            for channel in range(len(self.plan.channels)):
                self.receive_all(channel)

    # ---- what can be done ----

    def send(self, act: str, domain: int, channel: int, buffer: int) -> None:
        """Move, copy, pass or release, whether it may be or not."""
        meta = b"" if act == "release" else b"%d" % len(self.steps)
        self._step(f"domain {domain}: {act} {buffer} over channel {channel}")
        it = self.oracle.state.channels[channel]
        wanted = m.SOURCE if act in ("move", "copy") else m.SINK
        end = wanted if it.domains[wanted] == domain else 1 - wanted
        answer = self._try(domain, "send", act, self._key(channel, end), 0, buffer, meta)
        self._follow_end(channel, answer)
        self._same(answer, self.oracle.send(act, domain, channel, buffer, meta))
        self._compare()

    def full_copy(self, domain: int, channel: int, buffer: int, into: int) -> None:
        """Copy into another buffer, and move that one."""
        self._step(f"domain {domain}: full copy of {buffer} into {into} over channel {channel}")
        answer = self._try(domain, "full_copy", self._key(channel, m.SOURCE), 0, buffer, into)
        self._follow_end(channel, answer)
        state = self.oracle.state
        after = m.full_copy(state, domain, channel, buffer, into)
        if not isinstance(after, m.Refused):
            self.oracle.note(channel, True, b"")
        error = self.oracle.apply(after)
        if error and self.view(domain, buffer).state == m.INVALID and answer.error == "InvalidBufferError":
            error = answer.error  # two things are wrong, and either may be said
        self._same(answer, error)
        self._compare()

    def write(self, domain: int, buffer: int) -> None:
        """Write something new."""
        self.written += 1
        data = b"%d of %d " % (self.written, domain) * (1 + self.written * 7 % 40)
        self._step(f"domain {domain}: write {self.written} to {buffer}")
        answer = self._try(domain, "put", 0, buffer, data)
        self._same(answer, self.oracle.apply(m.write(self.oracle.state, domain, buffer, data)))
        self._compare()

    def receive(self, channel: int, side: int) -> bool:
        """The next event of one end; whether there was one."""
        domain = self._domain(channel, side)
        self._step(f"domain {domain}: receives on channel {channel}")
        due = self.oracle.head(channel, side) is not None or self.oracle.events[channel, side]
        answer = self._try(domain, "receive", self._key(channel, side), 0)
        self._follow()
        events = self.oracle.events[channel, side]
        if answer.error:
            self._check(self.oracle.over(channel, side), f"the end came, {answer.error}, but not in the model")
            self._check(not events, f"the end came before {list(events)}")
            self._compare()
            return False
        if answer.value is None:
            self._check(not events, f"nothing came, but the model has {list(events)}")
            head = self.oracle.head(channel, side)
            self._check(head is None, f"nothing came, but {head} is on its way")
            self._compare()
            return False
        self._check(bool(due), f"{answer.value} came of nothing")
        self._check(bool(events), f"{answer.value} came, but no event in the model")
        self._same_event(answer.value, self.oracle.next_event(channel, side, answer.value.kind))
        self._compare()
        return True

    def receive_all(self, channel: int) -> None:
        """Everything that is on its way over a channel, and what that leads to."""
        more = True
        while more:
            more = False
            for side in (m.SOURCE, m.SINK):
                if self._alive(channel, side) and (
                    not self.oracle.over(channel, side) or self.oracle.events[channel, side]
                ):
                    more = self.receive(channel, side) or more

    def close_end(self, channel: int, side: int) -> None:
        """Close one end."""
        domain = self._domain(channel, side)
        self._step(f"domain {domain}: closes channel {channel}")
        self._done(domain, "close", self._key(channel, side))
        taken = self._look(domain).lines[self._key(channel, side)].taken
        self.oracle.follow(channel, side, taken, "")
        self._same(Answer(), self.oracle.apply(m.close(self.oracle.state, channel, side)))
        self._compare()

    def ask(self, act: str, channel: int, *sides: int) -> None:
        """Ask for the pool to come or go or for the end, at these sides at once; then everything is received."""
        for side in sides:
            domain = self._domain(channel, side)
            self._step(f"domain {domain}: {act} on channel {channel}")
            if act == "remove" and self._within_one_domain(channel):
                continue
            if act != "destroy" and self._half_over(channel):
                continue
            if act == "remove" and self._refusal_is_on_its_way(channel, 1 - side):
                self.receive_all(channel)
            answer = self._try(domain, "ask", act, self._key(channel, side), 0)
            self._follow_end(channel, answer)
            state = self.oracle.state
            if act == "destroy":
                if self.oracle.stage(channel, side) != "CONNECTED":
                    self._check(bool(answer.error), "destroy of a channel that is not connected")
                    continue
                after = m.destroy(state, channel, side)
            else:
                after = (m.assign if act == "assign" else m.remove)(state, channel, side, 0)
            self._same(answer, self.oracle.apply(after))
        if act == "destroy":
            self._compare()
        else:
            self._settle(channel)
            self._outcomes_came(channel, act)

    def _within_one_domain(self, channel: int) -> bool:
        """There the library's two ends keep two accounts, and the model one: a removal may be refused by the other."""
        return len(set(self.oracle.state.channels[channel].domains)) == 1

    def _half_over(self, channel: int) -> bool:
        """What is asked of a peer that has ended the channel fails in one way or another, as its end is noticed."""
        return any(self.oracle.stage(channel, side) != "CONNECTED" for side in (m.SOURCE, m.SINK))

    def _refusal_is_on_its_way(self, channel: int, side: int) -> bool:
        """Then the model has the removal refused at the call; the library asks, since its answer comes behind."""
        return any(x.kind in (MOVE_REFUSED, COPY_REFUSED) for x in self.oracle.state.queues[channel][side])

    def _settle(self, channel: int) -> None:
        """Receive at both ends until requests and answers are through: they are more messages than in the model."""
        quiet = 0
        sides = [side for side in (m.SOURCE, m.SINK) if self._alive(channel, side)]
        got: dict[int, list[Arrived]] = {side: [] for side in sides}
        while quiet < _ROUNDS:
            quiet += 1
            for side in sides:
                answer = self._try(self._domain(channel, side), "receive", self._key(channel, side), 0)
                if answer.value is not None:
                    got[side].append(answer.value)
                    quiet = 0
                while self.oracle.head(channel, side) is not None:
                    if answer.value is not None and len(self.oracle.events[channel, side]) >= len(got[side]):
                        break  # what is behind the event that came is still there
                    self.oracle.deliver(channel, side)
        self._follow()
        for side in sides:
            for arrived in got[side]:
                self._check(bool(self.oracle.events[channel, side]), f"{arrived} came, but no event in the model")
                self._same_event(arrived, self.oracle.next_event(channel, side, arrived.kind))
            self._check(not self.oracle.events[channel, side], f"{self.oracle.events[channel, side]} did not come")
        self._compare()

    def drop(self, domain: int, buffer: int) -> None:
        """Let go of a buffer."""
        self._step(f"domain {domain}: drop {buffer}")
        answer = self._try(domain, "drop", 0, buffer)
        if not self.oracle.present(domain, 0):
            self._check(not answer.error or answer.error == "InvalidBufferError", f"drop after the pool left: {answer}")
        else:
            self._same(answer, self.oracle.apply(m.drop(self.oracle.state, domain, buffer)))
        self._compare()

    def connect(self, source: int, sink: int, creator: int) -> int | None:
        """A new channel between these, with the pool if who creates it has it; None: there are enough."""
        if len(self.oracle.state.channels) >= CHANNELS_MAX or not self.alive(source) or not self.alive(sink):
            return None
        channel = self._connect(source, sink, creator)
        self._compare()
        if self.oracle.present(self._domain(channel, creator), 0):
            self.ask("assign", channel, creator)
        return channel

    def leave(self, domain: int) -> None:
        """A domain closes all its channels abruptly, and drops what it has of others'."""
        for channel, side in self._ends(domain):
            if not self.oracle.over(channel, side):
                self.close_end(channel, side)
        if self.oracle.present(domain, 0) and domain != self.plan.home:
            for buffer in range(self.buffers):
                view = self.view(domain, buffer)
                if view.owned or view.held:
                    self.drop(domain, buffer)

    def kill(self, domain: int) -> None:
        """The process of a domain dies, by SIGKILL."""
        self._step(f"domain {domain}: dies")
        place = self.places[domain]
        assert isinstance(place, There)
        place.kill()
        self.oracle.apply(m.die(self.oracle.state, domain))
        self._compare()

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

    # ---- both sides of a step ----

    def _connect(self, source: int, sink: int, creator: int) -> int:
        number = len(self.oracle.state.channels)
        ends = (source, sink)
        first, second = self.seats[ends[creator]], self.seats[ends[1 - creator]]
        self._step(f"channel {number}: {source} -> {sink}, created by {ends[creator]}")
        keys = self._keys(number, source, sink)
        address = first.call(
            "create", keys[creator], creator == m.SOURCE, self.trust.name, "MASTER", meta_size=META_BYTES, slots=SLOTS
        )
        bound = first.begin("wait_bound", keys[creator])
        second.call("bind", keys[1 - creator], address)
        bound()
        self.oracle.connect(source, sink, creator)
        return number

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
        kept = self.oracle.remember()
        late = [end for end, line in sorted(lines.items()) if kept.taken[end] != line.taken]
        for order in itertools.islice(itertools.permutations(late), _ORDERS):
            self._take((*order, *sorted(lines)), lines)
            if all(self.oracle.taken[end] == line.taken for end, line in lines.items()):
                return surveys
            self.oracle.restore(kept)
        self._take(sorted(lines), lines)
        for (channel, side), line in lines.items():
            sent = self.oracle.taken[channel, side]
            where = f"channel {channel}, side {side}"
            self._check(sent == line.taken, f"{where}: {line.taken} transfers were taken, in the model {sent}")
        return surveys

    def _take(self, order: Sequence[tuple[int, int]], lines: Mapping[tuple[int, int], Line]) -> None:
        """Have the model take from one end after the other; what one took may be the answer to what another took."""
        moved = True
        while moved:
            moved = False
            for end in order:
                moved = self.oracle.follow(*end, lines[end].taken, lines[end].state) or moved

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
        """Everything must be the same in both."""
        surveys = self._follow()
        self.oracle.reclaim()
        for domain, survey in enumerate(surveys):
            if survey is not None:
                self._compare_domain(domain, survey)

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
