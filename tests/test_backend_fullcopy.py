"""fullcopy: shares nothing, and every transfer copies; test_conformance.py runs the suite on it."""

from __future__ import annotations

import os

import pytest

import bulktransfer as bulk
import worlds  # noqa: F401 - it starts the helper thread before descriptors are counted
from bulktransfer import Direction, EventKind, Trust
from meeting import Background
from worlds import PATIENCE_S, take


@pytest.mark.parametrize("trust", [Trust.FULL, Trust.HALF])
def test_no_level_that_shares_memory_is_offered(trust):
    with pytest.raises(bulk.TrustMismatchError, match="fullcopy: offers NONE only"):
        bulk.create("fullcopy:", direction=Direction.TX, trust=trust)


def mappings(address):
    """What file is mapped at an address of this process, as device and inode."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            span, _, _, device, inode, *_ = line.split()
            first, last = (int(end, 16) for end in span.split("-"))
            if first <= address < last:
                return device, inode
    raise AssertionError(f"nothing is mapped at {address:#x}")


def test_contents_are_copied_from_one_private_memory_into_another(rendezvous_dir):
    here, there = bulk.Domain(), bulk.Domain()
    with bulk.create("fullcopy:frames", direction=Direction.TX, trust=Trust.NONE, domain=here) as tx:
        assert tx.address == "fullcopy:frames"
        binding = Background(lambda: bulk.bind("fullcopy:frames", domain=there))
        tx.wait_bound(PATIENCE_S)
        with binding.result() as rx, bulk.Allocator(count=2, size=1 << 16, domain=here) as frames:
            asking = Background(lambda: tx.assign_pool(frames.pool))
            pool = take(rx, EventKind.POOL_ASSIGNED).pool
            asking.result()
            assert mappings(frames.pool.address) != mappings(pool.address)
            data = os.urandom(60_000)
            frame = frames.alloc()
            frame.put(data)
            tx.copy(frame)
            got = take(rx, EventKind.COPY_RECEIVED).buffer
            assert got.tobytes() == data == frame.tobytes()
            rx.release(got)
            take(tx, EventKind.COPY_RELEASED)
            tx.move(frame)
            got = take(rx, EventKind.MOVE_RECEIVED).buffer
            got.put(b"mine now")
            assert got.tobytes() == b"mine now"
            rx.pass_(got)
            assert take(tx, EventKind.BUFFER_RECEIVED).buffer is frame


def test_a_name_of_fullcopy_is_none_of_shm(rendezvous_dir):
    with bulk.create("fullcopy:x", direction=Direction.TX, trust=Trust.NONE) as channel:
        with pytest.raises(OSError, match="in use"):
            bulk.create("fullcopy:x", direction=Direction.TX, trust=Trust.NONE)
        with bulk.create("shm:x", direction=Direction.TX, trust=Trust.FULL) as other:
            assert other.address == "shm:x"
        assert channel.address == "fullcopy:x"
