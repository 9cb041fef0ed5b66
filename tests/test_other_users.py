"""Channels between processes of different users: only whom both sides named, and then all that channels do."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

import bulktransfer as bulk
from bulktransfer import Direction, EventKind, Trust
from forking import SOMEBODY_ELSE, fork, in_child, needs_root
from worlds import PATIENCE_S, READ_WRITE, take

pytestmark = needs_root


@pytest.fixture
def address():
    """A path that other users can enter and write, as in /tmp."""
    path = Path(tempfile.mkdtemp(prefix="bulk-users-", dir=os.environ.get("BULK_TEST_TMP", "/tmp")))
    path.chmod(0o1777)
    yield f"shm:{path}/camera"
    shutil.rmtree(path)


def echo(pipe, channel):
    """Give one buffer back, with what it says."""
    buffer = channel.receive_buffer(PATIENCE_S).buffer
    said = buffer.tobytes()
    buffer.put(said.upper())
    channel.pass_(buffer)
    pipe.recv()
    channel.close()
    return said, channel.peer.uid


def test_a_named_user_binds_and_transfers(address):
    with bulk.create(address, direction=Direction.TX, trust=Trust.FULL, allow_users=[SOMEBODY_ELSE]) as tx:
        child = fork(lambda pipe: echo(pipe, bulk.bind(address, owner=0)), uid=SOMEBODY_ELSE)
        tx.wait_bound(PATIENCE_S)
        assert tx.peer.uid == SOMEBODY_ELSE
        with bulk.Allocator(count=1, size=4096) as alloc:
            tx.assign_pool(alloc.pool)
            buffer = alloc.alloc()
            buffer.put(b"to somebody else")
            tx.move(buffer)
            assert take(tx, EventKind.BUFFER_RECEIVED).buffer.tobytes()[:16] == b"TO SOMEBODY ELSE"
            child.pipe.send("end")
            assert child.result() == (b"to somebody else", 0)
            assert take(tx, EventKind.TEARDOWN_RECEIVED).buffers == ()


def test_the_death_of_another_user_s_process_gives_its_buffers_back(address):
    with bulk.create(address, direction=Direction.TX, trust=Trust.FULL, allow_users=[SOMEBODY_ELSE]) as tx:

        def keep(pipe):
            channel = bulk.bind(address, owner=0)
            kept = channel.receive_buffer(PATIENCE_S)
            pipe.send("kept")
            pipe.recv()
            return kept

        child = fork(keep, uid=SOMEBODY_ELSE)
        tx.wait_bound(PATIENCE_S)
        with bulk.Allocator(count=1, size=4096) as alloc:
            tx.assign_pool(alloc.pool)
            buffer = alloc.alloc()
            tx.move(buffer)
            assert child.receive() == "kept"
            child.kill()
            with pytest.raises(bulk.BrokenChannelError):
                tx.receive(PATIENCE_S)
            assert alloc.detached == 0
            assert buffer.state is READ_WRITE


def test_who_is_not_named_is_kept_out_and_the_creator_waits_on(address):
    with bulk.create(address, direction=Direction.TX, trust=Trust.FULL, allow_users=[SOMEBODY_ELSE]) as tx:
        stranger = fork(lambda _: bulk.bind(address, owner=0, timeout=PATIENCE_S), uid=SOMEBODY_ELSE - 1)
        while not stranger.pipe.poll(0.01):
            tx.domain.serve()
        with pytest.raises((PermissionError, bulk.BulkError)):
            stranger.result()
        assert tx.state is bulk.ChannelState.INITIALIZED


def test_a_binder_that_did_not_name_the_owner_does_not_bind(address):
    with bulk.create(address, direction=Direction.TX, trust=Trust.FULL, allow_users=[SOMEBODY_ELSE]) as tx:
        with pytest.raises(PermissionError):
            in_child(lambda: bulk.bind(address, timeout=5), uid=SOMEBODY_ELSE)
        with pytest.raises(PermissionError):
            in_child(lambda: bulk.bind(address, owner=SOMEBODY_ELSE - 1, timeout=5), uid=SOMEBODY_ELSE)
        tx.domain.serve()
        assert tx.state is bulk.ChannelState.INITIALIZED


def test_root_binds_to_another_users_channel_by_naming_it(address):
    def serve(pipe):
        with bulk.create(address, direction=Direction.RX, trust=Trust.FULL, allow_users=[0]) as rx:
            pipe.send("there")
            rx.wait_bound(PATIENCE_S)
            return echo(pipe, rx)

    child = fork(serve, uid=SOMEBODY_ELSE)
    assert child.receive() == "there"
    with bulk.bind(address, owner=SOMEBODY_ELSE) as tx, bulk.Allocator(count=1, size=4096) as alloc:
        assert tx.peer.uid == SOMEBODY_ELSE
        tx.assign_pool(alloc.pool)
        buffer = alloc.alloc()
        buffer.put(b"from root")
        tx.move(buffer)
        assert take(tx, EventKind.BUFFER_RECEIVED)
        child.pipe.send("end")
        assert child.result() == (b"from root", 0)
