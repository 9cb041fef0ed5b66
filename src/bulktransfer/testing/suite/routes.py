"""Copies and moves through more than two domains: chains, diamonds, two sinks of one source (design rules 6 and 7)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import bulktransfer as bulk
from bulktransfer import EventKind

from ..guarantees import pattern
from ..party import PATIENCE_S
from .world import BUFFER_BYTES, Background, Suite, World, come_back, take, unchanged


class Net:
    """Domains that are connected, with the first one's pool everywhere."""

    def __init__(self, world: World, *ways: tuple[int, int], count: int = 2) -> None:
        self.world = world
        self.domains = [bulk.Domain() for _ in range(1 + max(map(max, ways)))]
        self.alloc = world.allocator(self.domains[0], count=count)
        self.pools: dict[int, bulk.Pool] = {0: self.alloc.pool}
        self.ends: dict[tuple[int, int], tuple[bulk.Channel, bulk.Channel]] = {}
        by_source = world.case.mode.source_is_master
        for source, sink in ways:
            known = self.pools.get(sink)
            ends = self.domains[source], self.domains[sink]
            if known is None:
                self.ends[source, sink] = tx, rx = world.channel(*ends, by_source=by_source)
                self.pools[sink] = world.assign(tx, rx, self.pools[source])
            else:
                self.ends[source, sink], event = world.consenting(*ends, self.pools[source], by_source=by_source)
                assert event.pool is known
                assert event.present
        self.alloc.alloc_many(count)

    def send(self, act: str, source: int, sink: int, index: int = 0) -> Any:
        """Move or copy downstream, pass or release upstream, and receive it."""
        tx, rx = self.ends[source, sink]
        kinds: dict[str, tuple[Callable[[bulk.Buffer], None], int, bulk.Channel, EventKind]] = {
            "move": (tx.move, source, rx, EventKind.MOVE_RECEIVED),
            "copy": (tx.copy, source, rx, EventKind.COPY_RECEIVED),
            "pass": (rx.pass_, sink, tx, EventKind.BUFFER_RECEIVED),
            "release": (rx.release, sink, tx, EventKind.COPY_RELEASED),
        }
        call, domain, other, kind = kinds[act]
        call(self.pools[domain][index])
        return take(other, kind)

    def states(self, index: int = 0) -> list[str]:
        """The buffer in every domain."""
        return [self.pools[domain][index].state.name for domain in sorted(self.pools)]


class Routes(Suite):
    """One buffer, several domains."""

    def test_a_pool_that_is_here_through_somebody_else_takes_consent_where_memory_is_apart(self, world: World) -> None:
        net = Net(world, (0, 1), (0, 2), (1, 3))
        tx, rx = world.channel(net.domains[2], net.domains[3])
        if world.case.shared:
            assert world.assign(tx, rx, net.pools[2]) is net.pools[3]
            return
        asking = Background(lambda: tx.assign_pool(net.pools[2], timeout=PATIENCE_S))
        while asking.running:
            with pytest.raises(TimeoutError):
                rx.receive(0.01)
        with pytest.raises(bulk.PoolVetoError, match="consent"):
            asking.result()
        assert (tx.pools, rx.pools) == ((), ())

    def test_a_move_goes_down_a_chain_and_a_pass_comes_back_up(self, world: World) -> None:
        net = Net(world, (0, 1), (1, 2))
        net.pools[0][0].put(pattern(5, BUFFER_BYTES))
        net.send("move", 0, 1)
        net.send("move", 1, 2)
        assert net.states() == ["INVALID", "INVALID", "READ_WRITE"]
        assert net.pools[2][0].tobytes() == pattern(5, BUFFER_BYTES)
        net.send("pass", 1, 2)
        net.send("pass", 0, 1)
        assert net.states() == ["READ_WRITE", "INVALID", "INVALID"]

    def test_a_forwarder_changes_what_it_owns(self, world: World) -> None:
        net = Net(world, (0, 1), (1, 2))
        net.pools[0][0].put(b"one")
        net.send("move", 0, 1)
        net.pools[1][0].put(net.pools[1][0].tobytes() + b", two")
        net.send("move", 1, 2)
        assert net.pools[2][0].tobytes() == b"one, two"

    def test_a_holder_forwards_its_copy_and_releases_after_its_reader(self, world: World) -> None:
        net = Net(world, (0, 1), (1, 2))
        net.pools[0][0].put(pattern(6, 6000))
        net.send("copy", 0, 1)
        net.send("copy", 1, 2)
        assert net.states() == ["READ_ONLY_OWNED", "READ_ONLY", "READ_ONLY"]
        assert net.pools[2][0].tobytes() == pattern(6, 6000)
        tx, rx = net.ends[0, 1][1], net.ends[1, 2][0]
        with unchanged(*net.pools.values()):
            with pytest.raises(bulk.CopiesOutstandingError):
                tx.release(net.pools[1][0])
            with pytest.raises(bulk.NotOwnedError):
                rx.move(net.pools[1][0])
            with pytest.raises(bulk.NotOwnedError):
                tx.pass_(net.pools[1][0])
        net.send("release", 1, 2)
        net.send("release", 0, 1)
        assert net.states() == ["READ_WRITE", "INVALID", "INVALID"]

    def test_two_sinks_read_one_buffer_and_the_last_release_gives_it_back(self, world: World) -> None:
        net = Net(world, (0, 1), (0, 2))
        net.pools[0][0].put(b"for both")
        net.send("copy", 0, 1)
        net.send("copy", 0, 2)
        assert net.states() == ["READ_ONLY_OWNED", "READ_ONLY", "READ_ONLY"]
        assert net.pools[1][0].tobytes() == net.pools[2][0].tobytes() == b"for both"
        assert net.alloc.pool.counts(0)[0] == 2
        net.send("release", 0, 1)
        assert net.states() == ["READ_ONLY_OWNED", "INVALID", "READ_ONLY"]
        net.send("release", 0, 2)
        assert net.states() == ["READ_WRITE", "INVALID", "INVALID"]

    def test_a_second_copy_into_one_domain_is_taken_only_where_memory_is_shared(self, world: World) -> None:
        net = Net(world, (0, 1), (0, 2), (1, 3), (2, 3))
        net.pools[0][0].put(b"by two ways")
        for source, sink in ((0, 1), (0, 2), (1, 3)):
            net.send("copy", source, sink)
        if world.case.shared:
            net.send("copy", 2, 3)
            assert net.pools[3][0].pool.counts(0) == (0, 2)
            net.send("release", 1, 3)
            assert net.states()[3] == "READ_ONLY"
            net.send("release", 2, 3)
        else:
            tx, rx = net.ends[2, 3]
            tx.copy(net.pools[2][0])
            event = come_back(tx, rx)
            assert event.buffer is net.pools[2][0]
            assert isinstance(event.error, bulk.CopyRefusedError)
            assert net.pools[3][0].tobytes() == b"by two ways"
            net.send("release", 1, 3)
        assert net.states() == ["READ_ONLY_OWNED", "READ_ONLY", "READ_ONLY", "INVALID"]
        net.send("release", 0, 1)
        net.send("release", 0, 2)
        assert net.states()[0] == "READ_WRITE"

    def test_a_move_through_a_diamond_ends_at_home(self, world: World) -> None:
        net = Net(world, (0, 1), (0, 2), (1, 3), (2, 3))
        for middle, index in ((1, 0), (2, 1)):
            net.pools[0][index].put(pattern(middle, 3000))
            net.send("move", 0, middle, index)
            net.send("move", middle, 3, index)
            assert net.pools[3][index].tobytes() == pattern(middle, 3000)
        for middle, index in ((1, 0), (2, 1)):
            net.send("pass", middle, 3, index)
            net.send("pass", 0, middle, index)
        assert [net.states(index)[0] for index in (0, 1)] == ["READ_WRITE", "READ_WRITE"]
