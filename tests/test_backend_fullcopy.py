"""fullcopy: shares nothing, and every transfer copies; test_conformance.py runs the suite on it."""

from __future__ import annotations

import os
import socket

import pytest

import bulktransfer as bulk
import foreign
import worlds  # noqa: F401 - it starts the helper thread before descriptors are counted
from bulktransfer import Direction, EventKind, Trust
from meeting import Background
from worlds import PATIENCE_S, take, together


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
            assert tx.statistics()["wire"]["bytes_sent"] > len(data)  # through the socket
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


def test_a_client_of_many_channels_gets_in_though_the_backlog_is_short(rendezvous_dir):
    specs = [bulk.ChannelSpec(direction=Direction.RX, trust=Trust.NONE, meta_size=size) for size in range(12)]
    with bulk.listen("fullcopy:", specs, backlog=1, domain=bulk.Domain()) as listener:
        asking = Background(lambda: bulk.connect(listener.address, domain=bulk.Domain()))
        theirs = listener.accept(PATIENCE_S)
        ours = asking.result()
        assert [channel.meta_size for channel in ours] == [channel.meta_size for channel in theirs] == [*range(12)]
        for channel in (*ours, *theirs):
            channel.close()


def test_a_name_is_reached_though_it_is_created_after_the_bind(rendezvous_dir):
    binding = Background(lambda: bulk.bind("fullcopy:late", timeout=PATIENCE_S, domain=bulk.Domain()))
    with bulk.create("fullcopy:late", direction=Direction.TX, trust=Trust.NONE, domain=bulk.Domain()) as channel:
        channel.wait_bound(PATIENCE_S)
        binding.result().close()


def test_descriptors_beside_the_bytes_end_the_channel_and_are_not_kept(rendezvous_dir):
    """tests/adversary/streams.py has what else may be tried so; here it is a binder of tests/foreign.py."""
    with bulk.create("fullcopy:x", direction=Direction.RX, trust=Trust.NONE) as channel:
        stranger, _ = together(
            lambda: foreign.Binder(f"{rendezvous_dir}/fullcopy-x"), lambda: channel.wait_bound(PATIENCE_S)
        )
        read_end, write_end = os.pipe()
        socket.send_fds(stranger.sock, [bytes(48)], [write_end])
        os.close(write_end)
        with pytest.raises(bulk.ProtocolViolation, match="descriptors beside the bytes of a stream"):
            channel.receive(PATIENCE_S)
        stranger.sock.close()
        assert os.read(read_end, 1) == b""  # nobody has the other end any more
        os.close(read_end)
