"""Forwarding where nothing is shared: each hop has a twin of its own, and contents and ends still travel."""

from __future__ import annotations

import contextlib
import os

import pytest

import bulktransfer as bulk
from bulktransfer import BufferState, Direction, EventKind, Trust
from joining import end_of
from meeting import Background
from worlds import PATIENCE_S, take


@pytest.fixture(params=["shm:", "fullcopy:"])
def chain(request, rendezvous_dir):
    """A source's end and a sink's end with a forwarder of its own domain in between, trust NONE."""
    with contextlib.ExitStack() as stack:
        ends = []
        for source, sink in ((bulk.Domain(), middle := bulk.Domain()), (middle, bulk.Domain())):
            created = stack.enter_context(
                bulk.create(request.param, direction=Direction.TX, trust=Trust.NONE, meta_size=8, domain=source)
            )
            binding = Background(lambda created=created, sink=sink: bulk.bind(created.address, domain=sink))
            created.wait_bound(PATIENCE_S)
            ends += [created, stack.enter_context(binding.result())]
        tx, inlet, outlet, rx = ends
        alloc = stack.enter_context(bulk.Allocator(count=3, size=1 << 20, domain=tx.domain))
        forwarding = Background(lambda: bulk.forward(inlet, outlet))
        asking = Background(lambda: tx.assign_pool(alloc.pool))
        take(rx, EventKind.POOL_ASSIGNED)
        asking.result()
        yield tx, rx, alloc
        tx.close()
        end_of(rx)
        forwarding.result()


def test_contents_travel_through_twins_and_come_home(chain):
    tx, rx, alloc = chain
    for number in range(7):
        data = os.urandom(1_000_000 - number)
        frame = alloc.alloc()
        frame.put(data)
        call = tx.move if number % 2 else tx.copy
        call(frame, b"%d" % number)
        event = take(rx, EventKind.MOVE_RECEIVED if number % 2 else EventKind.COPY_RECEIVED)
        assert (event.buffer.tobytes(), event.meta) == (data, b"%d" % number)
        rx.give_back(event.buffer)
        home = take(tx, EventKind.BUFFER_RECEIVED if number % 2 else EventKind.COPY_RELEASED).buffer
        assert (home, home.state) == (frame, BufferState.READ_WRITE)
        alloc.free(home)


def test_the_pool_keeps_its_id_over_every_hop(chain):
    tx, rx, _ = chain
    assert [pool.id for pool in rx.pools] == [pool.id for pool in tx.pools]
    assert rx.pools[0].address != tx.pools[0].address
