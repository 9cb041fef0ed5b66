"""The library and the specification, side by side: each step is done in both, and everything is compared after it.

Knows: which steps there are, and what each is in either. Must not know: which steps are taken, or when; how the two are
compared (both.py).
"""

from __future__ import annotations

import bulktransfer as bulk

from ..spec import model as m
from ..spec.state import COPY_REFUSED, MOVE_REFUSED
from .both import BUFFER_BYTES, Both, Discrepancy
from .party import Arrived
from .places import Answer, There
from .plans import Plan
from .subject import Subject, memory_is_shared

__all__ = ["Discrepancy", "SideBySide"]

META_BYTES = 16
CHANNELS_MAX = 12
_ROUNDS = 5  # an assignment takes four messages
SLOTS = 1024  # more than may wait: everything that is sent is published at once


class SideBySide(Both):
    """One system, and what can be done in it."""

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
        super().__init__(subject, trust, plan, buffers=buffers, processes=processes, mistakes=mistakes)
        try:
            self._begin()
        except BaseException:
            self.stack.close()
            raise

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
        events = self.oracle.events[channel, side]
        for _ in self._patiently():
            answer = self._try(domain, "receive", self._key(channel, side), 0)
            self._follow()
            if answer.error or answer.value is not None or self.oracle.head(channel, side) is None:
                break
        if answer.error:
            self._check(self.oracle.over(channel, side), f"the end came, {answer.error}, but not in the model")
            self._check(not events, f"the end came before {list(events)}")
            self._compare()
            return False
        if answer.value is None:
            self.oracle.take_leases(channel, side)
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
        line = self._look(domain).lines[self._key(channel, side)]
        self.oracle.follow(channel, side, line._replace(state=""))
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
            answer = self._ask(act, channel, side)
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
            self._settle(channel, act)
            self._outcomes_came(channel, act)

    def _ask(self, act: str, channel: int, side: int) -> Answer:
        """Ask. Between machines what was taken is in flight until the peer has said so, which it does by and by."""
        for _ in self._patiently():
            answer = self._try(self._domain(channel, side), "ask", act, self._key(channel, side), 0)
            if act != "remove" or answer.error != "PoolBusyError":
                break
            if isinstance(m.remove(self.oracle.state, channel, side, 0), m.Refused):
                break
        return answer

    def _within_one_domain(self, channel: int) -> bool:
        """There the library's two ends keep two accounts, and the model one: a removal may be refused by the other."""
        return len(set(self.oracle.state.channels[channel].domains)) == 1

    def _half_over(self, channel: int) -> bool:
        """What is asked of a peer that has ended the channel fails in one way or another, as its end is noticed."""
        return any(self.oracle.stage(channel, side) != "CONNECTED" for side in (m.SOURCE, m.SINK))

    def _refusal_is_on_its_way(self, channel: int, side: int) -> bool:
        """Then the model has the removal refused at the call; the library asks, since its answer comes behind."""
        return any(x.kind in (MOVE_REFUSED, COPY_REFUSED) for x in self.oracle.state.queues[channel][side])

    def _settle(self, channel: int, act: str) -> None:
        """Receive at both ends until requests and answers are through: they are more messages than in the model."""
        quiet = 0
        sides = [side for side in (m.SOURCE, m.SINK) if self._alive(channel, side)]
        got: dict[int, list[Arrived]] = {side: [] for side in sides}
        patience = self._patiently()
        while quiet < _ROUNDS or not (self._is_settled(channel, act, got) or next(patience, None) is None):
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

    def _is_settled(self, channel: int, act: str, got: dict[int, list[Arrived]]) -> bool:
        """Whether as many events came as the model has, and every outcome of such a request."""
        for side, arrived in got.items():
            domain = self._domain(channel, side)
            self._look(domain)
            if len(arrived) < len(self.oracle.events[channel, side]):
                return False
            due = [outcome for outcome in self.oracle.outcomes[domain] if outcome[0] == act]
            if any(outcome not in self.told[domain] for outcome in due):
                return False
        return True

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

    def _connect(self, source: int, sink: int, creator: int) -> int:
        number = len(self.oracle.state.channels)
        ends = (source, sink)
        first, second = self.seats[ends[creator]], self.seats[ends[1 - creator]]
        self._step(f"channel {number}: {source} -> {sink}, created by {ends[creator]}")
        keys = self._keys(number, source, sink)
        consent = not memory_is_shared(self.trust)  # what comes by a second way takes it there (rule 4)
        options = {"meta_size": META_BYTES, "slots": SLOTS, "consent": consent}
        address = first.call("create", keys[creator], creator == m.SOURCE, self.trust.name, "MASTER", **options)
        bound = first.begin("wait_bound", keys[creator])
        second.call("bind", keys[1 - creator], address, consent=consent)
        bound()
        self.oracle.connect(source, sink, creator)
        return number
