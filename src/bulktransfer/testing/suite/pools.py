"""Pools come onto channels and leave them (design rules 4, 14; I-5.2.3)."""

from __future__ import annotations

import pytest

import bulktransfer as bulk
from bulktransfer import EventKind

from ..party import PATIENCE_S
from .world import Background, Line, Suite, World, take, together, unchanged


class Pools(Suite):
    """Assignment changes nobody's ownership, removal loses nothing."""

    def pair(self, world: World, **options: object) -> tuple[bulk.Channel, bulk.Channel]:
        """Two ends without a pool."""
        return world.channel(bulk.Domain(), bulk.Domain(), **options)  # type: ignore[arg-type]

    @pytest.mark.parametrize("by_source", [True, False])
    def test_either_side_may_assign_and_keeps_every_buffer(self, world: World, by_source: bool) -> None:
        tx, rx = self.pair(world, by_source=world.case.mode.source_is_master)
        asker, other = (tx, rx) if by_source else (rx, tx)
        alloc = world.allocator(asker.domain)
        buffers = alloc.alloc_many(2)
        far = world.assign(asker, other, alloc.pool)
        assert (far.id, len(far), far.buffer_size) == (alloc.pool.id, len(alloc.pool), alloc.pool.buffer_size)
        assert [b.state.name for b in buffers] == ["READ_WRITE"] * 2
        assert {b.state.name for b in far} == {"INVALID"}
        assert (asker.pools, other.pools) == ((alloc.pool,), (far,))

    def test_the_same_pool_twice_is_refused(self, line: Line) -> None:
        for channel, pool in ((line.tx, line.near), (line.rx, line.far)):
            with unchanged(*line.both), pytest.raises(bulk.PoolAlreadyAssignedError):
                channel.assign_pool(pool)

    def test_a_veto_leaves_nothing_behind(self, world: World) -> None:
        def no(event: bulk.Event) -> None:
            raise RuntimeError("not today")

        by_source = world.case.mode.source_is_master
        tx, rx = self.pair(world, by_source=by_source, binder={"callbacks": bulk.Callbacks(pool_assigned=no)})
        asker, other = (tx, rx) if by_source else (rx, tx)
        alloc = world.allocator(asker.domain)
        asking = Background(lambda: asker.assign_pool(alloc.pool, timeout=PATIENCE_S))
        while asking.running:  # it is asked while it waits, and hears of nothing
            with pytest.raises(TimeoutError):
                other.receive(0.01)
        with pytest.raises(bulk.PoolVetoError, match="not today"):
            asking.result()
        assert (asker.pools, other.pools) == ((), ())
        with pytest.raises(bulk.PoolNotAssignedError):
            (asker.move if by_source else asker.pass_)(alloc.alloc())

    def test_a_pool_belongs_to_one_trust_level(self, world: World) -> None:
        tx, rx = self.pair(world)
        if world.case.far:  # trust is a matter of those who see the memory: nobody does, over a network
            full = world.allocator(tx.domain, trust=bulk.Trust.FULL)
            assert world.assign(tx, rx, full.pool).trust is bulk.Trust.UNINITIALIZED
            assert full.pool.trust is bulk.Trust.FULL
            return
        wrong = next(trust for trust in (bulk.Trust.FULL, bulk.Trust.NONE) if trust is not world.case.trust)
        alloc = world.allocator(tx.domain, trust=wrong)
        with pytest.raises(bulk.TrustMismatchError):
            tx.assign_pool(alloc.pool)
        assert tx.pools == ()

    def test_assignment_is_for_pools_of_this_domain(self, world: World) -> None:
        tx, rx = self.pair(world)
        alloc = world.allocator(rx.domain)
        with pytest.raises(ValueError, match="another domain"):
            tx.assign_pool(alloc.pool)

    def test_a_pool_that_is_at_home_leaves(self, line: Line) -> None:
        line.send("move", 0)
        line.send("pass", 0)
        line.send("copy", 1)
        line.send("release", 1)
        asker, other = self.by_home(line)
        if asker is line.rx:  # the sink allocated: everything goes there first
            for buffer in line.near:
                line.send("move", buffer.index)
        event, _ = together(lambda: take(other, EventKind.POOL_REMOVED), lambda: asker.remove_pool(line.alloc.pool))
        assert event.pool in line.both
        assert (line.tx.pools, line.rx.pools) == ((), ())
        with pytest.raises(bulk.PoolNotAssignedError):
            asker.remove_pool(line.alloc.pool)

    def by_home(self, line: Line) -> tuple[bulk.Channel, bulk.Channel]:
        """The end whose domain allocated the pool, and the other."""
        return (line.tx, line.rx) if line.alloc.pool is line.near else (line.rx, line.tx)

    def test_a_pool_that_left_comes_again(self, world: World) -> None:
        tx, rx = self.pair(world)
        alloc = world.allocator(tx.domain)
        buffer = alloc.alloc()
        for turn in range(3):
            far = world.assign(tx, rx, alloc.pool)
            buffer.put(b"%d" % turn)
            tx.move(buffer)
            assert take(rx, EventKind.MOVE_RECEIVED).buffer.tobytes() == b"%d" % turn
            rx.pass_(far[buffer.index])
            take(tx, EventKind.BUFFER_RECEIVED)
            together(lambda: take(rx, EventKind.POOL_REMOVED), lambda: tx.remove_pool(alloc.pool))

    @pytest.mark.parametrize("act", ["move", "copy"])
    def test_a_pool_with_a_buffer_away_stays(self, world: World, act: str) -> None:
        tx, rx = self.pair(world)
        alloc = world.allocator(tx.domain)
        buffer = alloc.alloc()
        far = world.assign(tx, rx, alloc.pool)
        getattr(tx, act)(buffer)
        rx.receive(PATIENCE_S)
        for channel, pool in ((tx, alloc.pool), (rx, far)):
            with unchanged(alloc.pool, far), pytest.raises(bulk.PoolBusyError):
                channel.remove_pool(pool)
        (rx.pass_ if act == "move" else rx.release)(far[buffer.index])
        tx.receive(PATIENCE_S)
        together(lambda: take(rx, EventKind.POOL_REMOVED), lambda: tx.remove_pool(alloc.pool))

    def test_a_removal_may_be_vetoed(self, world: World) -> None:
        def no(event: bulk.Event) -> None:
            raise RuntimeError("I need it")

        tx, rx = self.pair(world, binder={"callbacks": bulk.Callbacks(pool_removed=no)})
        alloc = world.allocator(tx.domain)
        far = world.assign(tx, rx, alloc.pool)
        removing = Background(lambda: tx.remove_pool(alloc.pool, timeout=PATIENCE_S))
        while removing.running:
            with pytest.raises(TimeoutError):
                rx.receive(0.01)
        with pytest.raises(bulk.PoolVetoError, match="I need it"):
            removing.result()
        assert (tx.pools, rx.pools) == ((alloc.pool,), (far,))
        tx.move(alloc.alloc())
        take(rx, EventKind.MOVE_RECEIVED)

    def test_several_pools_share_a_channel(self, line: Line, world: World) -> None:
        other = world.allocator(line.tx.domain, count=2, size=4096)
        far = world.assign(line.tx, line.rx, other.pool)
        buffer = other.alloc()
        buffer.put(b"of the other pool")
        line.near[0].put(b"of the first")
        line.tx.move(buffer)
        line.tx.move(line.near[0])
        assert take(line.rx, EventKind.MOVE_RECEIVED).buffer is far[buffer.index]
        assert take(line.rx, EventKind.MOVE_RECEIVED).buffer is line.far[0]
        assert far[buffer.index].tobytes() == b"of the other pool"

    def test_reclaim_puts_what_comes_back_on_the_free_list_without_an_event(self, world: World) -> None:
        tx, rx = self.pair(world)
        alloc = world.allocator(tx.domain, count=1, reclaim=True)
        world.assign(tx, rx, alloc.pool)
        for act, back in ((tx.move, rx.pass_), (tx.copy, rx.release)):
            act(alloc.alloc())
            if act == tx.copy:
                assert alloc.available == 0
            back(rx.receive(PATIENCE_S).buffer)
            buffer = alloc.alloc(PATIENCE_S)
            alloc.free(buffer)
        with pytest.raises(bulk.WouldBlock):
            tx.receive_nowait()
