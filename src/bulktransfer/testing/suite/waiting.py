"""Who is told of what: continuations, callbacks, wait sets, descriptors, iteration (design rules 8 and 12)."""

from __future__ import annotations

import select

import pytest

import bulktransfer as bulk
from bulktransfer import EventKind

from ..party import PATIENCE_S
from .world import Background, Line, Suite, World, come_back, take, until_told


class Waiting(Suite):
    """Events and outcomes reach whoever asked for them, once."""

    def test_a_continuation_hears_of_acceptance_and_not_before(self, line: Line) -> None:
        done: list[bulk.Outcome] = []
        line.tx.move(line.near[0], done=done.append)
        assert done == []
        take(line.rx, EventKind.MOVE_RECEIVED)
        line.rx.pass_(line.far[0])
        take(line.tx, EventKind.BUFFER_RECEIVED)
        until_told(line.tx, done)
        (outcome,) = done
        assert (outcome.operation, outcome.error, outcome.channel) == ("move", None, line.tx)
        assert outcome.buffer is line.near[0]

    def test_a_continuation_hears_of_a_refusal_instead_of_an_event(self, world: World) -> None:
        line = world.line()
        back, home = world.channel(line.rx.domain, line.tx.domain)
        if line.alloc.pool is line.near:
            world.assign(back, home, line.far)
        else:
            world.assign(home, back, line.near)
        line.send("copy", 0)
        done: list[bulk.Outcome] = []
        back.copy(line.far[0], done=done.append)
        while not done:
            with pytest.raises(bulk.WouldBlock):
                home.receive_nowait()
            with pytest.raises(TimeoutError):
                back.receive(0.01)
        assert isinstance(done[0].error, bulk.CopyRefusedError)
        back.copy(line.far[0])
        assert come_back(back, home).buffer is line.far[0]

    def test_a_callback_gets_its_kind_and_receive_the_rest(self, world: World) -> None:
        got: list[bulk.Event] = []
        callbacks = bulk.Callbacks(move_received=got.append)
        by_source = world.case.mode.source_is_master
        options = {"binder": {"callbacks": callbacks}} if by_source else {"callbacks": callbacks}
        line = world.line(**options)
        line.tx.move(line.near[0], b"to the callback")
        line.tx.copy(line.near[1], b"to receive")
        assert take(line.rx, EventKind.COPY_RECEIVED).meta == b"to receive"
        assert [event.meta for event in got] == [b"to the callback"]

    def test_a_blocking_call_inside_a_callback_is_refused(self, world: World) -> None:
        found: list[Exception] = []

        def block(event: bulk.Event) -> None:
            try:
                event.channel.receive(1)
            except bulk.BulkError as error:
                found.append(error)

        callbacks = bulk.Callbacks(move_received=block)
        by_source = world.case.mode.source_is_master
        options = {"binder": {"callbacks": callbacks}} if by_source else {"callbacks": callbacks}
        line = world.line(**options)
        line.tx.move(line.near[0])
        while not found:
            with pytest.raises(TimeoutError):
                line.rx.receive(0.01)
        assert [type(error) for error in found] == [bulk.WouldBlock]
        line.tx.copy(line.near[1])
        take(line.rx, EventKind.COPY_RECEIVED)

    def test_a_wait_set_dispatches_several_channels(self, world: World) -> None:
        domain = bulk.Domain()
        got: list[tuple[bulk.Channel, bytes]] = []
        callbacks = bulk.Callbacks(move_received=lambda event: got.append((event.channel, event.meta)))
        waitset = world.keep(bulk.WaitSet())
        ends = []
        for _ in range(3):
            tx, rx = world.channel(bulk.Domain(), domain, binder={"callbacks": callbacks})
            alloc = world.allocator(tx.domain, count=2)
            world.assign(tx, rx, alloc.pool)
            waitset.add(rx)
            ends.append((tx, rx, alloc))
        for number, (tx, _, alloc) in enumerate(ends):
            tx.move(alloc.alloc(), b"%d" % number)
        while len(got) < 3:
            waitset.dispatch(PATIENCE_S)
        assert sorted(meta for _, meta in got) == [b"0", b"1", b"2"]
        assert {channel for channel, _ in got} == {rx for _, rx, _ in ends}

    def test_a_descriptor_is_readable_from_the_first_event_until_nothing_is_left(self, line: Line) -> None:
        fd = line.rx.fileno()
        with pytest.raises(bulk.WouldBlock):
            line.rx.receive_nowait()
        assert select.select([fd], [], [], 0)[0] == []
        line.tx.move(line.near[0])
        assert select.select([fd], [], [], PATIENCE_S)[0] == [fd]
        assert line.rx.receive(PATIENCE_S).buffer is line.far[0]
        with pytest.raises(bulk.WouldBlock):
            line.rx.receive_nowait()
        assert select.select([fd], [], [], 0)[0] == []

    def test_a_waiting_thread_is_woken_by_what_comes(self, line: Line) -> None:
        for index in range(len(line.near)):
            waiting = Background(lambda: line.rx.receive(PATIENCE_S))
            line.tx.move(line.near[index], b"%d" % index)
            assert waiting.result().meta == b"%d" % index

    def test_a_timeout_is_an_error_and_loses_nothing(self, line: Line) -> None:
        for timeout in (0, 0.01):
            with pytest.raises(TimeoutError):
                line.rx.receive(timeout)
        line.tx.move(line.near[0], b"late")
        assert take(line.rx, EventKind.MOVE_RECEIVED).meta == b"late"

    def test_iteration_ends_with_the_channel(self, line: Line) -> None:
        line.tx.move(line.near[0])
        line.tx.move(line.near[1])
        line.tx.close()
        kinds = [event.kind for event in line.rx]
        assert kinds == [EventKind.MOVE_RECEIVED, EventKind.MOVE_RECEIVED, EventKind.TEARDOWN_RECEIVED]
