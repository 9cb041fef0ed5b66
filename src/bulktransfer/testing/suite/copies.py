"""Copies between two domains: who may read, who may write, and when (design rules 5 to 7)."""

from __future__ import annotations

import pytest

import bulktransfer as bulk
from bulktransfer import EventKind

from ..guarantees import pattern
from .world import Line, Suite, World, come_back, take, unchanged


class Copies(Suite):
    """While a copy is out nobody writes."""

    def test_a_copy_is_read_by_both_and_written_by_nobody(self, line: Line) -> None:
        line.near[0].put(pattern(1, 4000))
        event = line.send("copy", 0, b"m")
        assert (event.buffer, event.meta) == (line.far[0], b"m")
        assert line.states(0) == ("READ_ONLY_OWNED", "READ_ONLY")
        assert line.far[0].is_copy
        assert not line.far[0].owned
        assert line.near[0].tobytes() == line.far[0].tobytes() == pattern(1, 4000)
        with unchanged(*line.both):
            with pytest.raises(bulk.CopiesOutstandingError):
                line.near[0].put(b"x")
            with pytest.raises(bulk.NotOwnedError):
                line.far[0].put(b"x")

    def test_a_release_gives_the_owner_its_write_access_back(self, line: Line) -> None:
        line.near[0].put(b"contents")
        line.send("copy", 0)
        event = line.send("release", 0)
        assert event.buffer is line.near[0]
        assert line.states(0) == ("READ_WRITE", "INVALID")
        assert line.near[0].tobytes() == b"contents"
        line.near[0].put(b"more")

    def test_the_owner_writes_only_after_it_has_heard_of_the_release(self, line: Line) -> None:
        line.send("copy", 0)
        line.rx.release(line.far[0])
        assert line.near[0].state.name == "READ_ONLY_OWNED"
        take(line.tx, EventKind.COPY_RELEASED)
        assert line.near[0].state.name == "READ_WRITE"

    def test_a_released_buffer_can_be_copied_again_with_new_contents(self, line: Line) -> None:
        for turn in range(3):
            line.near[2].put(pattern(turn, 1000 * (turn + 1)))
            line.send("copy", 2)
            assert line.far[2].tobytes() == pattern(turn, 1000 * (turn + 1))
            line.send("release", 2)

    def test_a_copy_within_one_domain_is_refused_at_the_call(self, world: World) -> None:
        domain = bulk.Domain()
        tx, rx = world.channel(domain, domain)
        alloc = world.allocator(domain)
        done: list[bulk.Outcome] = []
        tx.assign_pool(alloc.pool, done=done.append)
        take(rx, EventKind.POOL_ASSIGNED)
        while not done:
            tx.domain.serve()
            tx.dispatch_events(1)
        buffer = alloc.alloc()
        if world.case.far:  # whether that is the same domain is the peer's word: it comes back
            tx.copy(buffer)
            assert come_back(tx, rx).buffer is buffer
        else:
            with unchanged(alloc.pool), pytest.raises(bulk.CopyRefusedError):
                tx.copy(buffer)
        tx.move(buffer)
        assert buffer.state.name == "INVALID"  # until it is received
        assert take(rx, EventKind.MOVE_RECEIVED).buffer is buffer
        assert buffer.state.name == "READ_WRITE"

    def test_a_copy_comes_back_to_its_owner_as_refused(self, world: World) -> None:
        """A domain refuses a copy of what it owns: there are no circles."""
        line = world.line()
        tx, rx = world.channel(line.rx.domain, line.tx.domain)
        if line.alloc.pool is line.near:
            world.assign(tx, rx, line.far)
        else:
            world.assign(rx, tx, line.near)
        line.near[0].put(b"mine")
        line.send("copy", 0)
        tx.copy(line.far[0])
        event = come_back(tx, rx)
        assert isinstance(event.error, bulk.CopyRefusedError)
        assert event.buffer is line.far[0]
        assert line.states(0) == ("READ_ONLY_OWNED", "READ_ONLY")
        line.send("release", 0)
