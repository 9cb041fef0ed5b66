"""Deadlines of a domain: kept, or taken back without a trace."""

from __future__ import annotations

import time

import bulktransfer as bulk
from bulktransfer import Direction, Trust
from worlds import PATIENCE_S, World, together

HOUR_NS = 3_600_000_000_000


class Caller:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def first(self) -> None:
        self.calls.append("first")

    def second(self) -> None:
        self.calls.append("second")


def test_what_is_cancelled_is_not_called_and_wakes_nobody():
    domain, caller = bulk.Domain(), Caller()
    now = time.monotonic_ns()
    later = domain.call_at(now + HOUR_NS, caller.second)
    sooner = domain.call_at(now, caller.first)
    assert domain.waiters.deadline_ns == sooner.when_ns == now
    sooner.cancel()
    sooner.cancel()
    assert domain.waiters.deadline_ns == later.when_ns
    domain.serve()
    assert caller.calls == []
    later.cancel()
    assert domain.waiters.deadline_ns == 0


def test_what_is_left_is_called_in_its_order():
    domain, caller = bulk.Domain(), Caller()
    now = time.monotonic_ns()
    alarms = [domain.call_at(now + offset, caller.second) for offset in (5, 3, 4)]
    domain.call_at(now + 1, caller.first)
    domain.call_at(now + 2, caller.second)
    for alarm in alarms:
        alarm.cancel()
    while domain.waiters.deadline_ns:
        domain.serve()
    assert caller.calls == ["first", "second"]
    alarms[0].cancel()


def test_a_handshake_leaves_no_deadline_behind():
    for scheme in ("local", "shm", "tcp"):
        with World(scheme) as world:
            a, b = world.domains(2)
            tx, rx = world.channel(a, b)
            assert (a.waiters.deadline_ns, b.waiters.deadline_ns) == (0, 0), scheme
            del tx, rx


def test_a_refused_binder_leaves_none_either():
    with World("shm") as world:
        a, b = world.domains(2)
        tx = bulk.create("shm:", direction=Direction.TX, trust=Trust.FULL, domain=a)
        world.made.append(tx)

        def refused():
            try:
                bulk.bind(tx.address, trust=Trust.NONE, domain=b)
            except bulk.TrustMismatchError:
                return "refused"

        def serve():
            while not tried:
                a.serve()

        tried: list[bool] = []

        def both():
            try:
                return refused()
            finally:
                tried.append(True)

        found, _ = together(both, serve)
        assert found == "refused"
        assert (a.waiters.deadline_ns, b.waiters.deadline_ns) == (0, 0)


def test_an_answered_request_leaves_no_deadline_behind():
    with World("local") as world:
        a, b = world.domains(2)
        tx, rx = world.channel(a, b)
        alloc = world.allocator(a)
        outcomes: list[bulk.Outcome] = []
        for act in (tx.assign_pool, tx.remove_pool):
            act(alloc.pool, timeout=PATIENCE_S, done=outcomes.append)
            assert a.waiters.deadline_ns > 0
            before = len(outcomes)
            while len(outcomes) == before:
                for channel in (rx, tx):
                    try:
                        channel.receive_nowait()
                    except bulk.WouldBlock:
                        continue
            assert a.waiters.deadline_ns == 0
        tx.destroy(timeout=PATIENCE_S, done=outcomes.append)
        assert a.waiters.deadline_ns > 0
        rx.receive(PATIENCE_S)
        while len(outcomes) < 3:
            tx.dispatch_events(1)
            a.serve()
        assert [outcome.error for outcome in outcomes] == [None] * 3
        assert a.waiters.deadline_ns == 0
