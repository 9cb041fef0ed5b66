"""A channel end here and an endpoint for a child, however the child comes about."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import subprocess
import sys

import pytest

import bulktransfer as bulk
from bulktransfer import ChannelState, Direction, EventKind, Role, Trust
from meeting import Background, child_main, receive_on
from worlds import PATIENCE_S, take


def pair(**options):
    return bulk.pair(**{"direction": Direction.TX, "trust": Trust.FULL, **options})


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_the_endpoint_travels_to_a_multiprocessing_child(method):
    context = multiprocessing.get_context(method)
    here, there = pair(meta_size=8)
    mine, theirs = context.Pipe()
    child = context.Process(target=child_main, args=(there, theirs))
    child.start()
    there.close()
    theirs.close()
    here.wait_bound(PATIENCE_S)
    assert here.peer.pid == child.pid
    with bulk.Allocator(count=1, size=4096) as alloc:
        here.assign_pool(alloc.pool)
        buffer = alloc.alloc()
        buffer.put(b"to the child")
        here.move(buffer, b"meta")
        assert mine.recv() == (b"to the child", b"meta")
        assert take(here, EventKind.BUFFER_RECEIVED).buffer is buffer
        here.close()
        assert mine.recv() == "end"
    child.join(PATIENCE_S)
    assert child.exitcode == 0
    child.close()
    mine.close()


def test_the_endpoint_travels_by_number(spawn):
    def target(pipe, number):
        import os

        import bulktransfer as bulk

        there = bulk.Endpoint.from_fd(number)
        assert not os.get_inheritable(number)
        with there.bind() as rx:
            pipe.send(rx.receive_buffer().buffer.tobytes())

    here, there = pair()
    child = spawn(target, there.fileno(), pass_fds=(there.fileno(),))
    there.close()
    here.wait_bound(PATIENCE_S)
    with bulk.Allocator(count=1, size=4096) as alloc:
        here.assign_pool(alloc.pool)
        buffer = alloc.alloc()
        buffer.put(b"by number")
        here.move(buffer)
        assert child.receive() == b"by number"
        child.join()
        with pytest.raises(bulk.EndOfChannelError):
            receive_on(here)


def test_both_ends_in_one_process_agree_on_roles_and_trust():
    here, there = pair(role=Role.SLAVE, meta_size=5, direction=Direction.RX)
    other = Background(lambda: there.bind(trust=Trust.FULL, domain=bulk.Domain(), user_state="mine"))
    here.wait_bound(PATIENCE_S)
    with other.result() as tx, here:
        assert (tx.direction, tx.role, tx.meta_size, tx.user_state) == (Direction.TX, Role.MASTER, 5, "mine")
        assert tx.state is here.state is ChannelState.CONNECTED


def test_an_endpoint_is_used_up_by_binding():
    here, there = pair()
    other = Background(lambda: there.bind(domain=bulk.Domain()))
    here.wait_bound(PATIENCE_S)
    with other.result(), here:
        for call in (there.bind, there.fileno):
            with pytest.raises(ValueError, match="bound or closed"):
                call()
        assert "used up" in repr(there)


def test_a_closed_endpoint_breaks_the_end_here():
    here, there = pair()
    there.close()
    there.close()
    with pytest.raises(bulk.BrokenChannelError, match="other end of the pair"):
        here.wait_bound(PATIENCE_S)
    for _ in range(2):
        with pytest.raises(bulk.BrokenChannelError):
            here.receive()


def test_a_child_that_dies_before_it_bound_breaks_the_end_here(spawn):
    here, there = pair()
    child = spawn("pipe.recv()", pass_fds=(there.fileno(),))
    there.close()
    child.kill()
    with pytest.raises(bulk.BrokenChannelError):
        here.wait_bound(PATIENCE_S)


def test_a_refused_endpoint_gets_the_reason_and_the_pair_is_over():
    here, there = pair(role=Role.MASTER)
    other = Background(lambda: there.bind(role=Role.MASTER, domain=bulk.Domain()))
    with pytest.raises(bulk.BrokenChannelError):
        here.wait_bound(PATIENCE_S)
    with pytest.raises(bulk.RoleConflictError):
        other.result()


def test_the_end_here_closed_first_refuses_the_binder():
    here, there = pair()
    here.close()
    with pytest.raises(bulk.BrokenChannelError):
        there.bind(domain=bulk.Domain(), timeout=PATIENCE_S)


def test_the_other_end_may_bind_as_late_as_it_likes():
    here, there = pair(limits=bulk.Limits(handshake_s=0.01))
    for _ in range(3):
        with pytest.raises(TimeoutError):
            here.wait_bound(0.02)
    other = Background(lambda: there.bind(domain=bulk.Domain()))
    here.wait_bound(PATIENCE_S)
    other.result().close()
    here.close()


def test_an_endpoint_pickles_only_while_a_child_is_started():
    here, there = pair()
    with there, here, pytest.raises(RuntimeError, match=r"inheritance|spawning"):
        pickle.dumps(there)


@pytest.mark.parametrize("kind", ["pipe", "stream", "closed"])
def test_what_is_no_endpoint_is_refused_and_stays_open(kind):
    if kind == "pipe":
        read_end, write_end = os.pipe()
        try:
            with pytest.raises(ValueError, match="not the end of a pair"):
                bulk_endpoint(read_end)
            os.fstat(read_end)
        finally:
            os.close(read_end)
            os.close(write_end)
    elif kind == "stream":
        left, right = socket.socketpair()
        with left, right:
            with pytest.raises(ValueError, match="not the end of a pair"):
                bulk_endpoint(left.fileno())
            left.send(b"x")
    else:
        with pytest.raises(OSError, match="Bad file descriptor"):
            bulk_endpoint(10_000)


def bulk_endpoint(number):
    return bulk.Endpoint.from_fd(number)


def test_pair_takes_a_domain_and_refuses_what_create_refuses():
    domain = bulk.Domain()
    here, there = pair(domain=domain, user_state=7)
    with here, there:
        assert here.domain is domain
        assert here.user_state == 7
    with pytest.raises(TypeError):
        pair(trust=None)
    with pytest.raises(ValueError, match="the creator decides"):
        pair(trust=Trust.UNINITIALIZED)
    with pytest.raises(ValueError, match="meta_size"):
        pair(meta_size=-1)


def test_an_example_of_a_child_by_subprocess_and_number():
    here, there = pair()
    code = "import sys, bulktransfer as b; b.Endpoint.from_fd(int(sys.argv[1])).bind().receive_buffer()"
    with subprocess.Popen([sys.executable, "-c", code, str(there.fileno())], pass_fds=(there.fileno(),)) as child:
        there.close()
        here.wait_bound(PATIENCE_S)
        with bulk.Allocator(count=1, size=4096) as alloc:
            here.assign_pool(alloc.pool)
            here.move(alloc.alloc())
            assert child.wait(PATIENCE_S) == 0
            with pytest.raises((bulk.EndOfChannelError, bulk.BrokenChannelError)):
                receive_on(here)
            assert alloc.detached == 0
