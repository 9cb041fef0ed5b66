"""What a peer breaks on one channel concerns that channel only (design section 8, rule 5)."""

from __future__ import annotations

import pytest

import bulktransfer as bulk
import meeting
from bulktransfer import EventKind
from bulktransfer.messages import TeardownAnswer
from worlds import PATIENCE_S, take

scheme, world = meeting.scheme, meeting.world


class Neighbours:
    """Two channels from one domain to another; the sink's end of the first is about to break a rule."""

    def __init__(self, world):
        self.tx, self.rx, self.alloc, self.there = world.line()
        self.tx2, self.rx2 = world.channel(self.tx.domain, self.rx.domain)
        world.assign(self.tx2, self.rx2, self.alloc.pool)

    def break_a_rule(self):
        self.rx.say(TeardownAnswer())

    def blamed(self):
        with pytest.raises(bulk.ProtocolViolation, match="not asked for"):
            self.tx.receive(0)


def test_who_receives_elsewhere_does_not_notice(world):
    pair = Neighbours(world)
    pair.tx2.move(pair.alloc.alloc())
    buffer = take(pair.rx2, EventKind.MOVE_RECEIVED).buffer
    pair.break_a_rule()
    with pytest.raises(TimeoutError):
        pair.tx2.receive(0.05)
    assert pair.tx.ended is not None
    pair.rx2.pass_(buffer)
    assert take(pair.tx2, EventKind.BUFFER_RECEIVED).buffer.index == buffer.index
    pair.blamed()


def test_who_waits_in_the_domain_does_not_notice(world):
    pair = Neighbours(world)
    pair.break_a_rule()
    assert pair.tx.domain.wait_for(lambda: pair.tx.ended is not None, PATIENCE_S)
    pair.blamed()


def test_who_allocates_does_not_notice(world):
    pair = Neighbours(world)
    buffers = pair.alloc.alloc_many(4)
    pair.break_a_rule()
    with pytest.raises(bulk.PoolExhaustedError):
        pair.alloc.alloc()
    with pytest.raises(bulk.PoolExhaustedError):
        pair.alloc.alloc(timeout=0.01)
    pair.alloc.free_many(buffers)
    pair.blamed()
