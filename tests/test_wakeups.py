"""No wake-up is lost, on one core or two, however full the rings are."""

from __future__ import annotations

import os

import pytest

import bulktransfer as bulk
import meeting
from bulktransfer import Direction, EventKind, Trust
from meeting import Background
from worlds import PATIENCE_S

scheme, world = meeting.scheme, meeting.world
WAITS = ["auto", "spin", "block"]


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("wait", WAITS)
def test_no_wake_up_is_lost_between_two_processes(spawn, wait, cores):
    def echo(pipe, address, back, wait, core):
        import os

        import bulktransfer as bulk

        os.sched_setaffinity(0, {core})
        rx, tx = bulk.bind(address, wait=wait), bulk.bind(back, wait=wait)
        pipe.send("ready")
        try:
            while True:
                for event in rx.receive_many(64):
                    if event.buffer is not None:
                        tx.move(event.buffer)
        except bulk.EndOfChannelError:
            pipe.send("end")

    available = sorted(os.sched_getaffinity(0))
    if len(available) < cores:
        pytest.skip("one core only")
    try:
        os.sched_setaffinity(0, {available[0]})
        out = bulk.create("shm:", direction=Direction.TX, trust=Trust.FULL, wait=wait, limits=bulk.Limits(slot_count=4))
        back = bulk.create("shm:", direction=Direction.RX, trust=Trust.FULL, wait=wait)
        child = spawn(echo, out.address, back.address, wait, available[cores - 1])
        out.wait_bound(PATIENCE_S)
        back.wait_bound(PATIENCE_S)
        assert child.receive() == "ready"
        with bulk.Allocator(count=16, size=4096) as alloc:
            out.assign_pool(alloc.pool)
            back.assign_pool(alloc.pool)
            for i in range(1500):
                window = 1 + i % 16  # rings that are empty, part full, full, and beyond
                for buffer in alloc.alloc_many(window):
                    out.move(buffer)
                for _ in range(window):
                    alloc.free(back.receive_buffer().buffer)
        out.close()
        assert child.receive() == "end"
        back.close()
        child.join()
    finally:
        os.sched_setaffinity(0, available)


def test_a_blocked_alloc_of_a_reclaiming_pool_is_woken(spawn):
    def sink(pipe, address):
        import bulktransfer as bulk

        rx = bulk.bind(address)
        try:
            while True:
                rx.pass_(rx.receive_buffer().buffer)
        except bulk.EndOfChannelError:
            return

    tx = bulk.create("shm:", direction=Direction.TX, trust=Trust.FULL)
    child = spawn(sink, tx.address)
    tx.wait_bound(PATIENCE_S)
    with bulk.Allocator(count=2, size=4096, reclaim=True) as alloc:
        tx.assign_pool(alloc.pool)
        for _ in range(2000):
            tx.move(alloc.alloc(timeout=None))
        tx.close()
        child.join()


def test_close_wakes_everybody_who_waits_on_the_channel(world):
    for _ in range(25):
        tx, rx = world.channel(*world.domains(2))
        allocs = [world.allocator(tx.domain, count=1) for _ in range(3)]
        waiting = [Background(tx.receive)]
        waiting += [Background(lambda t=tx, p=one.pool: t.assign_pool(p, timeout=None)) for one in allocs]
        while len(tx.assigning.requests) < 3:
            assert waiting[0].running
        tx.close()
        for task in waiting:
            with pytest.raises(bulk.ClosedChannelError):
                task.result()
        rx.close()


def test_threads_that_accept_and_threads_that_wait_do_not_wake_each_other_away(world):
    server = bulk.Domain()
    specs = [bulk.ChannelSpec(direction=Direction.RX, trust=Trust.FULL)]
    with bulk.listen(f"{world.scheme}:", specs, domain=server) as listener:
        quiet_tx, quiet = world.channel(bulk.Domain(), server)
        idle = Background(quiet.receive)
        for _ in range(10):
            accepting = [Background(listener.accept) for _ in range(3)]
            clients = [Background(lambda: bulk.connect(listener.address, domain=bulk.Domain())) for _ in range(3)]
            for task in (*accepting, *clients):
                for channel in task.result():
                    channel.close()
        quiet_tx.close()
        assert idle.result().kind is EventKind.TEARDOWN_RECEIVED
