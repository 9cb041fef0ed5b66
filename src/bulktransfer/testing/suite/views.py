"""What Python sees of a buffer, and what live views hold up (design rules 18 and 19)."""

from __future__ import annotations

import gc

import pytest

import bulktransfer as bulk
from bulktransfer import EventKind

from .world import Line, Suite, take, unchanged


class Views(Suite):
    """Views follow the state, and the state waits for views."""

    def test_a_view_is_writable_only_for_an_owner_without_copies_out(self, line: Line) -> None:
        with memoryview(line.near[0]) as view:
            assert not view.readonly
            view[:4] = b"abcd"
        line.send("copy", 0)
        for buffer in (line.near[0], line.far[0]):
            with memoryview(buffer) as view:
                assert view.readonly
                assert bytes(view[:4]) == b"abcd"

    def test_a_live_view_holds_up_whatever_would_take_its_access(self, line: Line) -> None:
        with memoryview(line.near[0]) as view:
            for call in (line.tx.move, line.tx.copy):
                with unchanged(*line.both), pytest.raises(BufferError, match="1 view is live"):
                    call(line.near[0])
            view[:5] = b"still"
        line.send("move", 0)
        with memoryview(line.far[0]), unchanged(*line.both), pytest.raises(BufferError):
            line.rx.pass_(line.far[0])
        line.send("pass", 0)

    def test_a_reading_view_does_not_hold_up_a_further_copy_but_a_release(self, line: Line) -> None:
        line.send("copy", 0)
        with memoryview(line.far[0]), unchanged(*line.both), pytest.raises(BufferError):
            line.rx.release(line.far[0])
        line.send("release", 0)

    def test_give_back_waits_for_the_last_view(self, line: Line) -> None:
        line.send("move", 0)
        line.send("copy", 1)
        views = [memoryview(line.far[0]), memoryview(line.far[1])]
        line.rx.give_back(line.far[0])
        line.rx.give_back(line.far[1])
        assert [line.near[i].state.name for i in (0, 1)] == ["INVALID", "READ_ONLY_OWNED"]
        for view in views:
            view.release()
        assert take(line.tx, EventKind.BUFFER_RECEIVED).buffer is line.near[0]
        assert take(line.tx, EventKind.COPY_RELEASED).buffer is line.near[1]

    def test_with_event_gives_back_at_the_end(self, line: Line) -> None:
        line.near[0].put(b"look")
        line.tx.move(line.near[0])
        with take(line.rx, EventKind.MOVE_RECEIVED) as buffer:
            assert buffer.tobytes() == b"look"
        assert take(line.tx, EventKind.BUFFER_RECEIVED).buffer is line.near[0]

    def test_the_same_buffer_is_the_same_object(self, line: Line) -> None:
        event = line.send("move", 3)
        assert event.buffer is line.far[3]
        assert line.send("pass", 3).buffer is line.near[3]

    def test_the_address_of_a_buffer_stays(self, line: Line) -> None:
        before = [(near.address, far.address) for near, far in zip(*line.both, strict=True)]
        for act in ("move", "pass", "copy", "release"):
            line.send(act, 0)
        assert [(near.address, far.address) for near, far in zip(*line.both, strict=True)] == before

    def test_what_is_read_outlives_nothing_it_should_not(self, line: Line) -> None:
        line.near[0].put(b"kept")
        event = line.send("move", 0)
        text = event.buffer.tobytes()
        line.send("pass", 0)
        del event
        gc.collect()
        assert text == b"kept"
        with pytest.raises(bulk.InvalidBufferError):
            line.far[0].tobytes()
