"""Moves and passes, full copies, meta data, lengths, and the order of everything (design rules 5, 8, 9, 11, 20)."""

from __future__ import annotations

import bulktransfer as bulk
from bulktransfer import EventKind

from ..guarantees import pattern
from ..party import PATIENCE_S
from .world import BUFFER_BYTES, META_BYTES, Line, Suite, World, take, unchanged


class Transfers(Suite):
    """Ownership changes hands, and contents with it."""

    def test_a_move_gives_ownership_and_every_byte(self, line: Line) -> None:
        for index, buffer in enumerate(line.near):
            data = pattern(index, BUFFER_BYTES)
            buffer.put(data)
            event = line.send("move", index)
            assert event.buffer is line.far[index]
            assert event.buffer.tobytes() == data
            assert line.states(index) == ("INVALID", "READ_WRITE")

    def test_ownership_leaves_when_the_call_returns(self, line: Line) -> None:
        line.tx.move(line.near[0])
        assert line.near[0].state.name == "INVALID"
        take(line.rx, EventKind.MOVE_RECEIVED)

    def test_a_pass_gives_ownership_back_and_a_new_move_new_contents(self, line: Line) -> None:
        for turn in range(3):
            line.near[1].put(pattern(turn, 5000 + turn))
            line.send("move", 1)
            assert line.far[1].tobytes() == pattern(turn, 5000 + turn)
            line.far[1].put(b"changed by its new owner")
            line.send("pass", 1)
            assert line.states(1) == ("READ_WRITE", "INVALID")
            assert line.near[1].length == line.near[1].size

    def test_length_travels_and_nothing_beyond_it(self, line: Line) -> None:
        line.near[0].put(b"s" * BUFFER_BYTES)
        line.near[0].put(b"short")
        event = line.send("move", 0)
        assert (event.buffer.length, event.buffer.size) == (5, BUFFER_BYTES)
        assert event.buffer.tobytes() == b"short"

    def test_an_empty_buffer_travels(self, line: Line) -> None:
        line.near[0].put(b"")
        assert line.send("move", 0).buffer.tobytes() == b""

    def test_what_grows_beyond_what_was_received_shows_nothing_of_an_earlier_transfer(self, line: Line) -> None:
        line.near[0].put(b"secret" * 100)
        line.send("move", 0)
        line.send("pass", 0)
        line.near[0].put(b"new")
        line.send("move", 0)
        line.far[0].length = 600
        rest = line.far[0].tobytes()[3:]
        if not line.case.shared:
            assert rest == bytes(597)
        else:  # the memory is the same, and who shares it is trusted with it
            assert len(rest) == 597

    def test_meta_data_arrives_exactly_as_sent(self, line: Line) -> None:
        for meta in (b"", b"\0", bytes(range(META_BYTES)), b"x" * META_BYTES, b"end\0\0"):
            assert line.send("move", 0, meta).meta == meta
            assert line.send("pass", 0, meta[::-1]).meta == meta[::-1]
            assert line.send("copy", 0, meta).meta == meta
            line.send("release", 0)

    def test_meta_data_is_copied_at_the_call(self, line: Line) -> None:
        meta = bytearray(b"before")
        line.tx.move(line.near[0], meta)
        meta[:] = b"after!"
        assert take(line.rx, EventKind.MOVE_RECEIVED).meta == b"before"

    def test_the_longest_meta_data_is_2048_bytes(self, world: World) -> None:
        line = world.line(meta_size=2048)
        meta = pattern(3, 2048)[:2048]
        assert line.send("move", 0, meta).meta == meta

    def test_a_full_copy_leaves_its_source_and_moves_another(self, line: Line) -> None:
        line.near[0].put(pattern(7, 3000))
        line.tx.full_copy(line.near[0], line.near[1], b"meta")
        event = take(line.rx, EventKind.MOVE_RECEIVED)
        assert (event.buffer, event.meta) == (line.far[1], b"meta")
        assert event.buffer.tobytes() == line.near[0].tobytes() == pattern(7, 3000)
        assert (line.states(0), line.states(1)) == (("READ_WRITE", "INVALID"), ("INVALID", "READ_WRITE"))

    def test_everything_one_side_sends_arrives_in_order(self, line: Line) -> None:
        """Over all kinds: moves and copies one way, passes and releases the other."""
        there = [
            ("copy", 0, b"1"),
            ("move", 1, b"2"),
            ("copy", 2, b"3"),
            ("move", 3, b"4"),
        ]
        for act, index, meta in there:
            getattr(line.tx, act)(line.near[index], meta)
        for act, index, meta in there:
            event = line.rx.receive(PATIENCE_S)
            assert (event.kind.value, event.buffer.index, event.meta) == (f"{act}_received", index, meta)
        line.rx.pass_(line.far[3], b"a")
        line.rx.release(line.far[0])
        line.rx.pass_(line.far[1], b"b")
        line.rx.release(line.far[2])
        found = [line.tx.receive(PATIENCE_S) for _ in range(4)]
        assert [(e.kind, e.buffer.index, e.meta) for e in found] == [
            (EventKind.BUFFER_RECEIVED, 3, b"a"),
            (EventKind.COPY_RELEASED, 0, b""),
            (EventKind.BUFFER_RECEIVED, 1, b"b"),
            (EventKind.COPY_RELEASED, 2, b""),
        ]

    def test_more_than_a_ring_holds_arrives_in_order(self, world: World) -> None:
        line = world.line(count=24, limits=bulk.Limits(slot_count=4))
        for buffer in line.near:
            buffer.put(pattern(buffer.index, 100))
            line.tx.move(buffer, b"%d" % buffer.index)
        for index in range(24):
            event = take(line.rx, EventKind.MOVE_RECEIVED)
            assert (event.buffer.index, event.meta) == (index, b"%d" % index)
            assert event.buffer.tobytes() == pattern(index, 100)

    def test_a_sink_that_owns_a_buffer_may_pass_it_without_having_got_it(self, line: Line) -> None:
        """The receive-master mode fills its sender so; the other mode moves it there first."""
        line.send("move", 2)
        assert line.send("pass", 2).buffer is line.near[2]

    def test_big_buffers_arrive_byte_by_byte(self, world: World) -> None:
        size = 1 << 20
        source, sink = bulk.Domain(), bulk.Domain()
        tx, rx = world.channel(source, sink)
        alloc = world.allocator(source, count=2, size=size)
        world.assign(tx, rx, alloc.pool)
        for turn, buffer in enumerate(alloc.alloc_many(2)):
            data = pattern(turn, size)
            buffer.put(data)
            tx.move(buffer)
            assert take(rx, EventKind.MOVE_RECEIVED).buffer.tobytes() == data

    def test_what_is_done_to_one_buffer_leaves_the_others(self, line: Line) -> None:
        for buffer in line.near:
            buffer.put(pattern(buffer.index, 2000))
        line.send("move", 1)
        line.far[1].put(b"z" * BUFFER_BYTES)
        line.send("pass", 1)
        for index in (0, 2, 3):
            assert line.near[index].tobytes() == pattern(index, 2000)
        with unchanged(line.near):
            line.send("copy", 0)
            line.send("release", 0)
