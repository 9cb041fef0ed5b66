"""Batches: all or nothing, in order, one continuation (design rule 10)."""

from __future__ import annotations

import pytest

import bulktransfer as bulk

from ..guarantees import pattern
from ..party import PATIENCE_S
from .world import META_BYTES, Line, Suite, take, unchanged, until_told


class Batches(Suite):
    """Several buffers as one operation."""

    def test_a_batch_arrives_in_order_with_its_meta_data(self, line: Line) -> None:
        for buffer in line.near:
            buffer.put(pattern(buffer.index, 3000 + buffer.index))
        order = (2, 0, 3, 1)
        line.tx.move_many([line.near[i] for i in order], [b"%d" % i for i in order])
        for index in order:
            event = line.rx.receive(PATIENCE_S)
            assert (event.kind.value, event.buffer.index, event.meta) == ("move_received", index, b"%d" % index)
            assert event.buffer.tobytes() == pattern(index, 3000 + index)

    @pytest.mark.parametrize(("there", "back"), [("move", "pass"), ("copy", "release")])
    def test_batches_of_each_kind_go_there_and_back(self, line: Line, there: str, back: str) -> None:
        getattr(line.tx, f"{there}_many")(list(line.near))
        kinds = {
            "move": "move_received",
            "copy": "copy_received",
            "pass": "buffer_received",
            "release": "copy_released",
        }
        assert [line.rx.receive(PATIENCE_S).kind.value for _ in line.near] == [kinds[there]] * len(line.near)
        getattr(line.rx, f"{back}_many")(list(line.far))
        assert [line.tx.receive(PATIENCE_S).kind.value for _ in line.near] == [kinds[back]] * len(line.near)
        assert [buffer.state.name for buffer in line.near] == ["READ_WRITE"] * len(line.near)

    def test_a_batch_with_one_that_may_not_go_sends_none(self, line: Line) -> None:
        line.send("copy", 2)
        with unchanged(*line.both), pytest.raises(bulk.CopiesOutstandingError):
            line.tx.move_many([line.near[0], line.near[2]])
        with unchanged(*line.both), pytest.raises(bulk.MetaSizeError):
            line.tx.move_many([line.near[0], line.near[1]], [b"", bytes(META_BYTES + 1)])
        line.tx.move(line.near[3])  # and nothing of them is on its way
        assert line.rx.receive(PATIENCE_S).buffer is line.far[3]

    def test_a_buffer_twice_in_a_batch_is_refused(self, line: Line) -> None:
        for call in (line.tx.move_many, line.tx.copy_many):
            with unchanged(*line.both), pytest.raises(ValueError, match="twice"):
                call([line.near[0], line.near[1], line.near[0]])

    def test_a_batch_has_one_continuation(self, line: Line) -> None:
        done: list[bulk.Outcome] = []
        line.tx.move_many([line.near[0], line.near[1]], done=done.append)
        for _ in range(2):
            take(line.rx, bulk.EventKind.MOVE_RECEIVED)
        line.rx.pass_(line.far[0])
        take(line.tx, bulk.EventKind.BUFFER_RECEIVED)
        until_told(line.tx, done)
        assert [(o.operation, o.error) for o in done] == [("move", None)]

    def test_receive_many_takes_what_is_there(self, line: Line) -> None:
        line.tx.move_many(list(line.near))
        found: list[bulk.Event] = []
        while len(found) < len(line.near):
            found += line.rx.receive_many(3, PATIENCE_S)
        assert [event.buffer.index for event in found] == [buffer.index for buffer in line.near]
