"""What is refused, with which error; a refused call leaves everything as it was (design rules 5, 6, 10)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import bulktransfer as bulk

from .world import BUFFER_BYTES, META_BYTES, Line, Suite, World, unchanged


class Refusals(Suite):
    """Each call in each state in which it may not be made."""

    def refuse(self, line: Line, error: type[Exception], call: Callable[..., Any], *args: Any) -> None:
        """The call raises exactly that and changes nothing, at either side."""
        sent = line.tx.statistics()["sent"], line.rx.statistics()["sent"]
        with unchanged(*line.both), pytest.raises(error) as caught:
            call(*args)
        assert type(caught.value) is error
        assert (line.tx.statistics()["sent"], line.rx.statistics()["sent"]) == sent

    def test_in_state_invalid_nothing_is_allowed(self, line: Line) -> None:
        line.send("move", 0)
        gone = line.near[0]
        for call in (line.tx.move, line.tx.copy, gone.put, memoryview):
            args = (b"x",) if call == gone.put else (gone,)
            self.refuse(line, bulk.InvalidBufferError, call, *args)
        never = line.far[1]
        self.refuse(line, bulk.InvalidBufferError, line.rx.pass_, never)
        self.refuse(line, bulk.NotACopyError, line.rx.release, never)

    def test_a_holder_neither_passes_nor_writes(self, line: Line) -> None:
        line.send("copy", 0)
        held = line.far[0]
        self.refuse(line, bulk.NotOwnedError, line.rx.pass_, held)
        self.refuse(line, bulk.NotOwnedError, held.put, b"x")
        self.refuse(line, bulk.NotOwnedError, setattr, held, "length", 1)

    def test_with_a_copy_out_the_owner_neither_moves_nor_writes_nor_copies_it_there_again(self, line: Line) -> None:
        line.send("copy", 0)
        lent = line.near[0]
        self.refuse(line, bulk.CopiesOutstandingError, line.tx.move, lent)
        self.refuse(line, bulk.CopiesOutstandingError, lent.put, b"x")
        self.refuse(line, bulk.AlreadyCopiedError, line.tx.copy, lent)

    def test_what_was_not_copied_is_not_released(self, line: Line) -> None:
        line.send("move", 0)
        self.refuse(line, bulk.NotACopyError, line.rx.release, line.far[0])
        line.send("pass", 0)
        line.send("copy", 0)
        line.send("release", 0)
        self.refuse(line, bulk.NotACopyError, line.rx.release, line.far[0])

    def test_each_call_belongs_to_its_end(self, line: Line) -> None:
        for call in (line.tx.pass_, line.tx.release):
            self.refuse(line, bulk.DirectionError, call, line.near[0])
        for call in (line.rx.move, line.rx.copy):
            self.refuse(line, bulk.DirectionError, call, line.far[0])

    def test_more_meta_data_than_agreed_is_refused(self, line: Line) -> None:
        for call in (line.tx.move, line.tx.copy):
            self.refuse(line, bulk.MetaSizeError, call, line.near[0], bytes(META_BYTES + 1))
        line.send("move", 1)
        self.refuse(line, bulk.MetaSizeError, line.rx.pass_, line.far[1], bytes(META_BYTES + 1))

    def test_a_channel_without_meta_data_takes_none(self, world: World) -> None:
        line = world.line(meta_size=0)
        self.refuse(line, bulk.MetaSizeError, line.tx.move, line.near[0], b"x")
        assert line.send("move", 0).meta == b""

    def test_a_buffer_of_a_pool_that_is_not_on_the_channel_is_refused(self, line: Line, world: World) -> None:
        stranger = world.allocator(line.tx.domain).alloc()
        self.refuse(line, bulk.PoolNotAssignedError, line.tx.move, stranger)
        assert stranger.owned

    def test_a_free_buffer_is_refused(self, line: Line) -> None:
        home, call = (line.near, line.tx.move) if line.alloc.pool is line.near else (line.far, line.rx.pass_)
        if home is line.far:
            line.send("move", 0)
        line.alloc.free(home[0])
        self.refuse(line, bulk.NotAllocatedError, call, home[0])
        self.refuse(line, bulk.NotAllocatedError, line.alloc.free, home[0])

    def test_what_does_not_fit_is_refused(self, line: Line) -> None:
        self.refuse(line, ValueError, line.near[0].put, bytes(BUFFER_BYTES + 1))
        self.refuse(line, ValueError, setattr, line.near[0], "length", BUFFER_BYTES + 1)
        self.refuse(line, ValueError, line.tx.full_copy, line.near[0], line.near[0])

    def test_a_full_copy_is_refused_where_its_target_may_not_be_moved(self, line: Line) -> None:
        line.send("copy", 1)
        self.refuse(line, bulk.CopiesOutstandingError, line.tx.full_copy, line.near[0], line.near[1])
        line.send("move", 2)
        self.refuse(line, bulk.InvalidBufferError, line.tx.full_copy, line.near[2], line.near[0])

    def test_what_no_call_takes_is_refused(self, line: Line) -> None:
        nothing: Any = None
        for call in (line.tx.move, line.tx.copy, line.rx.pass_, line.rx.release):
            self.refuse(line, TypeError, call, nothing)
        self.refuse(line, TypeError, line.tx.move, line.near[0], b"", 5)

    def test_after_every_refusal_the_channel_works(self, line: Line) -> None:
        line.send("move", 0)
        for _ in range(3):
            self.refuse(line, bulk.InvalidBufferError, line.tx.move, line.near[0])
        line.send("pass", 0)
        line.send("copy", 0)
        line.send("release", 0)
        assert line.states(0) == ("READ_WRITE", "INVALID")
