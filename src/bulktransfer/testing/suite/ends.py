"""How channels end: in order, at once, by death; and what becomes of buffers (design rules 15 to 17)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import bulktransfer as bulk
from bulktransfer import Direction, EventKind

from ..guarantees import pattern
from ..party import PATIENCE_S
from ..places import Seat, There
from .world import Line, Suite, World, all_back, take, together, until_the_end


class Home:
    """The two sides of a line, by where the pool was allocated."""

    def __init__(self, line: Line) -> None:
        at_source = line.alloc.pool is line.near
        self.channel, self.other = (line.tx, line.rx) if at_source else (line.rx, line.tx)
        self.pool, self.far = (line.near, line.far) if at_source else (line.far, line.near)


class Ends(Suite):
    """Nothing that was accepted is lost, and memory that somebody may hold is not used again."""

    def test_an_end_in_order_delivers_what_was_sent(self, line: Line) -> None:
        line.near[0].put(b"last words")
        line.tx.move(line.near[0])
        line.tx.copy(line.near[1])
        (events, error), _ = together(lambda: until_the_end(line.rx), lambda: line.tx.destroy(PATIENCE_S))
        assert [e.kind for e in events] == [
            EventKind.MOVE_RECEIVED,
            EventKind.COPY_RECEIVED,
            EventKind.TEARDOWN_RECEIVED,
        ]
        assert type(error) is bulk.EndOfChannelError
        assert line.far[0].tobytes() == b"last words"
        assert line.tx.state is line.rx.state is bulk.ChannelState.CLOSED

    @pytest.mark.parametrize("by_source", [True, False])
    def test_close_returns_at_once_and_what_was_sent_arrives(self, line: Line, by_source: bool) -> None:
        here, there = (line.tx, line.rx) if by_source else (line.rx, line.tx)
        if by_source:
            line.tx.move(line.near[0], b"m")
        else:
            line.send("move", 0)
            line.rx.pass_(line.far[0], b"m")
        here.close()
        here.close()  # idempotent
        events, error = until_the_end(there)
        assert [e.meta for e in events if e.buffer is not None] == [b"m"]
        assert type(error) is bulk.EndOfChannelError

    def test_after_the_end_every_call_says_how_it_ended_again_and_again(self, line: Line) -> None:
        line.tx.close()
        until_the_end(line.rx)
        for _ in range(2):
            for call in (lambda: line.tx.move(line.near[0]), lambda: line.tx.receive(0), line.tx.receive_nowait):
                with pytest.raises(bulk.ClosedChannelError):
                    call()
            for call in (lambda: line.rx.pass_(line.far[0]), lambda: line.rx.receive(0), line.rx.receive_nowait):
                with pytest.raises(bulk.EndOfChannelError):
                    call()

    def test_crossing_ends_are_one_end(self, line: Line) -> None:
        together(lambda: line.rx.destroy(PATIENCE_S), lambda: line.tx.destroy(PATIENCE_S))
        for channel in (line.tx, line.rx):
            with pytest.raises((bulk.ClosedChannelError, bulk.EndOfChannelError)):
                channel.receive(0)

    def test_the_other_side_keeps_what_it_has(self, line: Line) -> None:
        line.near[0].put(pattern(4, 4000))
        line.near[1].put(pattern(5, 5000))
        line.send("move", 0)
        line.send("copy", 1)
        line.tx.close()
        until_the_end(line.rx)
        assert line.far[0].tobytes() == pattern(4, 4000)
        if line.case.shared or line.far is not line.alloc.pool:  # else its slot is free at once for who allocated it
            assert line.far[1].tobytes() == pattern(5, 5000)
        line.far[0].put(b"mine now")
        assert line.far[0].tobytes() == b"mine now"

    def test_what_is_away_is_used_again_only_when_everybody_let_go(self, line: Line) -> None:
        home = Home(line)
        line.send("move", 0)
        line.send("copy", 1)
        theirs = [b for b in home.far if b.state is not bulk.BufferState.INVALID]
        away = [b for b in theirs if home.pool[b.index].state.name in ("INVALID", "READ_ONLY_OWNED")]
        home.channel.close()
        until_the_end(home.other)
        if line.case.shared:
            assert line.alloc.detached == len(away)
            for buffer in theirs[:-1]:
                buffer.drop()
            assert line.alloc.detached == len(away)  # one buffer keeps them all
            theirs[-1].drop()
        assert all_back(line.alloc)
        assert {buffer.state.name for buffer in home.pool} == {"READ_WRITE"}

    def test_a_buffer_is_not_dropped_while_its_channel_lives(self, line: Line) -> None:
        home = Home(line)
        index = next(i for i, b in enumerate(home.far) if b.owned) if line.near is home.far else 0
        if line.far is home.far:
            line.send("move", index)
        with pytest.raises(bulk.ChannelStateError):
            home.far[index].drop()
        assert home.far[index].owned

    def test_one_channel_ends_and_another_goes_on(self, line: Line) -> None:
        with World(line.case) as other:
            tx, rx = other.channel(line.tx.domain, line.rx.domain)
            alloc = other.allocator(line.tx.domain)
            far = other.assign(tx, rx, alloc.pool)
            line.tx.close()
            until_the_end(line.rx)
            buffer = alloc.alloc()
            buffer.put(b"goes on")
            tx.move(buffer)
            assert take(rx, EventKind.MOVE_RECEIVED).buffer.tobytes() == b"goes on"
            rx.pass_(far[buffer.index])
            take(tx, EventKind.BUFFER_RECEIVED)

    # ---- death ----

    @pytest.fixture
    def child(self, world: World) -> Iterator[There]:
        """A process of its own, which is in no hurry to end while the other end of a network channel is open."""
        if not world.case.subject.processes:
            pytest.skip(f"{world.case.subject.scheme}: connects domains of one process only")
        with There(world.case.subject) as there:
            yield there
            world.end()

    def meet(self, world: World, seat: Seat) -> tuple[bulk.Channel, bulk.Allocator]:
        """The end of this process, which is the master and has the allocator; the child has the other."""
        by_source = world.case.mode.source_is_master
        here = world.create(bulk.Domain(), Direction.TX if by_source else Direction.RX, role=bulk.Role.MASTER)
        bound = seat.begin("bind", 0, here.address)
        here.wait_bound(PATIENCE_S)
        bound()
        alloc = world.allocator(here.domain)
        took = seat.begin("take_pool", 0, 0)
        here.assign_pool(alloc.pool, timeout=PATIENCE_S, **world.case.subject.assign)
        took()
        return here, alloc

    def test_the_death_of_a_process_is_heard_and_gives_everything_back(self, world: World, child: There) -> None:
        seat = child.party()
        here, alloc = self.meet(world, seat)
        first, second = alloc.alloc_many(2)
        if world.case.mode.source_is_master:
            first.put(b"moved")
            second.put(b"copied")
            here.move(first)
            here.copy(second)
        else:
            here.pass_(first)
            here.pass_(second)
        for _ in range(2):
            assert seat.call("receive", 0) is not None
        child.kill()
        with pytest.raises(bulk.BrokenChannelError) as caught:
            here.receive(PATIENCE_S)
        assert set(caught.value.buffers) <= {first, second}
        if world.case.shared:
            assert set(caught.value.buffers) == {first, second}
        assert all_back(alloc)
        assert [b.state.name for b in (first, second)] == ["READ_WRITE"] * 2
        if world.case.mode.source_is_master:
            assert second.tobytes() == b"copied"  # nobody could write to it
        with pytest.raises(bulk.BrokenChannelError):
            here.receive(0)

    def test_what_the_dead_had_sent_is_delivered_first(self, world: World, child: There) -> None:
        seat = child.party()
        here, alloc = self.meet(world, seat)
        buffers = alloc.alloc_many(2)
        for buffer in buffers:
            (here.move if world.case.mode.source_is_master else here.pass_)(buffer)
            seat.call("receive", 0)
        back, kind = ("pass", "buffer_received") if world.case.mode.source_is_master else ("move", "move_received")
        for buffer in buffers:
            seat.call("put", 0, buffer.index, pattern(buffer.index, 3000))
            seat.call("send", back, 0, 0, buffer.index, b"%d" % buffer.index)
        child.kill()
        for buffer in buffers:
            event = here.receive(PATIENCE_S)
            assert (event.kind.value, event.buffer, event.meta) == (kind, buffer, b"%d" % buffer.index)
            if back == "move":
                assert buffer.tobytes() == pattern(buffer.index, 3000)
        with pytest.raises(bulk.BrokenChannelError):
            here.receive(PATIENCE_S)

    def test_a_waiting_call_hears_of_the_death(self, world: World, child: There) -> None:
        seat = child.party()
        here, _ = self.meet(world, seat)
        _, (events, error) = together(child.kill, lambda: until_the_end(here))
        assert (events, type(error)) == ([], bulk.BrokenChannelError)

    def test_another_process_reads_byte_by_byte_what_this_one_wrote(self, world: World, child: There) -> None:
        seat = child.party()
        here, alloc = self.meet(world, seat)
        for turn in range(6):
            buffer = alloc.alloc()
            data = pattern(turn, buffer.size - turn)
            if world.case.mode.source_is_master:
                buffer.put(data)
                here.move(buffer)
                arrived = seat.call("receive", 0)
                assert seat.call("read", 0, arrived.buffer) == data
                seat.call("send", "pass", 0, 0, arrived.buffer)
            else:
                here.pass_(buffer)
                arrived = seat.call("receive", 0)
                seat.call("put", 0, arrived.buffer, data)
                seat.call("send", "move", 0, 0, arrived.buffer)
            assert here.receive(PATIENCE_S).buffer is buffer
            if not world.case.mode.source_is_master:
                assert buffer.tobytes() == data
            alloc.free(buffer)
