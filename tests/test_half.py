"""Trust HALF: each domain's own mapping allows what its ledger says, and a stray access faults."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal

import pytest

import bulktransfer as bulk
from bulktransfer import Direction, EventKind, Trust
from bulktransfer.core import guard
from worlds import INVALID, PATIENCE_S, READ_WRITE, World, take, unchanged

HALF = Trust.HALF
libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(params=["local", "shm"])
def world(request):
    with World(request.param) as world:
        yield world


def reach(buffer):
    """What this process may do at the buffer's address, as the kernel says: "rw", "r" or "" (it says EFAULT)."""
    here, there = os.pipe()
    try:
        at = ctypes.c_void_p(buffer.address)
        readable = libc.write(there, at, 1) == 1
        writable = readable and libc.read(here, at, 1) == 1  # the byte that it read: nothing changes
        if not readable:  # a mapping that can be written can be read
            assert ctypes.get_errno() == 14
        return "rw" if writable else "r" if readable else ""
    finally:
        os.close(here)
        os.close(there)


def pair(world, **options):
    return world.line(trust=HALF, **options)


@contextlib.contextmanager
def no_more_mappings():
    """Until the end of the block this process has as many mappings as the kernel grants it, or all but a few."""
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    pages = 80_000
    base = libc.mmap(None, pages * 4096, 0, 0x4022, -1, 0)  # PRIVATE, ANONYMOUS, NORESERVE; no access
    assert base != ctypes.c_void_p(-1).value
    try:
        at = 1
        while libc.mprotect(base + at * 4096, 4096, 1) == 0:  # each splits one mapping into three
            at += 2
            assert at < pages, "vm.max_map_count is larger than this test knows"
        yield
    finally:
        libc.munmap(base, pages * 4096)


def test_the_mapping_follows_the_ledger_from_state_to_state(world):
    tx, rx, alloc, theirs = pair(world)
    buffer = alloc.alloc()
    there = theirs[buffer.index]
    assert (reach(buffer), reach(there)) == ("rw", "")
    buffer.put(b"mine")
    tx.move(buffer)
    assert (reach(buffer), reach(there)) == ("", "")
    take(rx, EventKind.MOVE_RECEIVED)
    assert (reach(buffer), reach(there), there.tobytes()) == ("", "rw", b"mine")
    rx.pass_(there)
    assert reach(there) == ""
    take(tx, EventKind.BUFFER_RECEIVED)
    assert reach(buffer) == "rw"
    buffer.put(b"look")
    tx.copy(buffer)
    assert reach(buffer) == "r"
    take(rx, EventKind.COPY_RECEIVED)
    assert (reach(there), there.tobytes()) == ("r", b"look")
    rx.release(there)
    assert reach(there) == ""
    take(tx, EventKind.COPY_RELEASED)
    assert reach(buffer) == "rw"
    alloc.free(buffer)
    assert reach(buffer) == "rw"


def test_a_batch_is_protected_before_it_goes(world):
    tx, rx, alloc, theirs = pair(world)
    buffers = alloc.alloc_many(4)
    tx.move_many(buffers)
    assert [reach(b) for b in buffers] == [""] * 4
    events = [take(rx, EventKind.MOVE_RECEIVED) for _ in range(4)]
    assert [reach(e.buffer) for e in events] == ["rw"] * 4
    rx.pass_many([e.buffer for e in events])
    assert [reach(b) for b in theirs] == [""] * 4
    for _ in range(4):
        take(tx, EventKind.BUFFER_RECEIVED)
    assert [reach(b) for b in buffers] == ["rw"] * 4


def test_what_is_refused_is_writable_again(world):
    a, b = world.domains(2)
    one, other = world.channel(a, b, trust=HALF), world.channel(a, b, trust=HALF)
    alloc = world.allocator(a)
    world.assign(*one, alloc.pool)
    world.assign(*other, alloc.pool)
    buffer = alloc.alloc()
    one[0].move(buffer)
    there = one[1].receive_buffer(PATIENCE_S).buffer
    one[1].pass_(there)
    take(one[0], EventKind.BUFFER_RECEIVED)
    with unchanged(buffer), pytest.raises(bulk.DirectionError):
        one[0].pass_(buffer)
    assert reach(buffer) == "rw"


def test_reclaim_puts_a_writable_buffer_on_the_free_list(world):
    a, b = world.domains(2)
    tx, rx = world.channel(a, b, trust=HALF)
    alloc = world.allocator(a, count=1, reclaim=True)
    world.assign(tx, rx, alloc.pool)
    tx.move(alloc.alloc())
    rx.pass_(rx.receive_buffer(PATIENCE_S).buffer)
    again = alloc.alloc(PATIENCE_S)
    assert reach(again) == "rw"


def test_what_comes_back_with_a_lease_is_writable_and_what_is_dropped_is_not(world):
    tx, rx, alloc, _ = pair(world)
    moved, copied = alloc.alloc_many(2)
    tx.move(moved)
    tx.copy(copied)
    kept = [rx.receive_buffer(PATIENCE_S).buffer for _ in range(2)]
    tx.close()
    assert (reach(moved), reach(copied)) == ("", "r")
    take(rx, EventKind.TEARDOWN_RECEIVED)
    assert [reach(k) for k in kept] == ["rw", "r"]
    kept[0].drop()
    assert [reach(k) for k in kept] == ["", "r"]
    kept[1].drop()
    assert [reach(k) for k in kept] == ["", ""]
    assert alloc.detached == 0
    assert (reach(moved), reach(copied)) == ("rw", "rw")


def test_a_removed_pool_is_out_of_reach_there_and_free_for_full_here(world):
    tx, rx, alloc, theirs = pair(world)
    assert alloc.pool.guarded
    there = theirs[0]
    tx.remove_pool(alloc.pool, done=lambda outcome: None)
    take(rx, EventKind.POOL_REMOVED)
    with pytest.raises(bulk.WouldBlock):
        tx.receive_nowait()
    assert reach(there) == ""
    assert {reach(b) for b in alloc.pool} == {"rw"}
    full = world.channel(tx.domain, rx.domain)
    theirs = world.assign(*full, alloc.pool)
    assert {reach(b) for b in theirs} == {"rw"}
    assert not alloc.pool.guarded


def test_full_copy_leaves_the_target_out_of_reach(world):
    tx, rx, alloc, _ = pair(world)
    one, two = alloc.alloc_many(2)
    one.put(b"twice")
    tx.full_copy(one, into=two)
    assert (reach(one), reach(two)) == ("rw", "")
    event = take(rx, EventKind.MOVE_RECEIVED)
    assert event.buffer.tobytes() == b"twice"


def test_within_one_domain_nobody_reaches_what_is_under_way(world):
    (a,) = world.domains(1)
    tx, rx = world.channel(a, a, trust=HALF)
    alloc = world.allocator(a)
    tx.assign_pool(alloc.pool, done=lambda outcome: None)
    rx.receive(PATIENCE_S)
    with pytest.raises(bulk.WouldBlock):
        tx.receive_nowait()
    buffer = alloc.alloc()
    tx.move(buffer)
    assert reach(buffer) == ""
    take(rx, EventKind.MOVE_RECEIVED)
    assert reach(buffer) == "rw"


def test_a_pool_that_is_forwarded_has_one_mapping_and_one_guard(world):
    a, b, c = world.domains(3)
    up, down, second = (world.channel(*ends, trust=HALF) for ends in ((a, b), (b, c), (a, b)))
    alloc = world.allocator(a)
    at_b = world.assign(*up, alloc.pool)
    at_c = world.assign(*down, at_b)
    assert world.assign(*second, alloc.pool) is at_b
    buffer = alloc.alloc()
    buffer.put(b"for two")
    up[0].copy(buffer)
    there = take(up[1], EventKind.COPY_RECEIVED).buffer
    second[0].copy(buffer)
    assert take(second[1], EventKind.COPY_RECEIVED).buffer is there
    down[0].copy(there)
    take(down[1], EventKind.COPY_RECEIVED)
    assert (reach(buffer), reach(there), reach(at_c[buffer.index])) == ("r", "r", "r")
    down[1].release(at_c[buffer.index])
    take(down[0], EventKind.COPY_RELEASED)
    assert reach(at_c[buffer.index]) == ""
    up[1].release(there)
    assert reach(there) == "r"  # the other channel's copy is still held
    second[1].release(there)
    assert reach(there) == ""


# ---- the kernel's limit ----------------------------------------------------------------------------------------------


def test_a_pool_that_could_cost_too_many_mappings_is_refused(monkeypatch):
    monkeypatch.setattr(guard, "mappings_granted", lambda: guard.mappings_taken() + 10)
    with pytest.raises(bulk.ConstraintError, match="12 mappings"):
        bulk.Allocator(count=6, size=4096, trust=HALF)
    bulk.Allocator(count=5, size=4096, trust=HALF).close()


def test_half_of_what_the_kernel_grants_is_the_limit():
    with open("/proc/sys/vm/max_map_count") as file:
        assert guard.mappings_granted() == int(file.read()) // 2


def test_assignment_counts_mappings_on_both_sides(world, monkeypatch):
    a, b = world.domains(2)
    tx, rx = world.channel(a, b, trust=HALF)
    alloc = world.allocator(a)
    before = guard.mappings_taken()
    monkeypatch.setattr(guard, "mappings_granted", lambda: before + 7)
    with pytest.raises(bulk.ConstraintError, match="pool"):
        tx.assign_pool(alloc.pool)
    assert (tx.pools, alloc.pool.trust, alloc.pool.guarded) == ((), Trust.UNINITIALIZED, False)
    monkeypatch.setattr(guard, "mappings_granted", lambda: before + 8)
    found = []
    tx.assign_pool(alloc.pool, done=found.append)  # here there is room, there is none for the other side
    with pytest.raises(bulk.WouldBlock):
        rx.receive_nowait()
    with pytest.raises(bulk.WouldBlock):
        tx.receive_nowait()
    assert isinstance(found[0].error, bulk.ConstraintError)
    assert (tx.pools, rx.pools, alloc.pool.trust) == ((), (), Trust.UNINITIALIZED)
    assert alloc.pool.id not in b.pools


@pytest.mark.skipif(guard.mappings_granted() > 35_000, reason="filling up vm.max_map_count would take too long")
def test_a_send_that_the_kernel_cannot_protect_changes_nothing():
    with World("local") as world:
        tx, rx, alloc, theirs = pair(world)
        one, two = alloc.alloc_many(2)
        one.put(b"here")
        with no_more_mappings():
            for call in (lambda: tx.move(one), lambda: tx.copy(one), lambda: tx.move_many([one, two])):
                with unchanged(one, two), pytest.raises(OSError, match="protecting") as caught:
                    call()
                assert caught.value.errno == 12
                assert (reach(one), reach(two)) == ("rw", "rw")
        tx.move(one)
        with no_more_mappings(), unchanged(theirs[one.index]), pytest.raises(OSError, match="protecting") as caught:
            rx.receive(PATIENCE_S)
        assert caught.value.errno == 12
        assert take(rx, EventKind.MOVE_RECEIVED).buffer.tobytes() == b"here"


def test_huge_pages_are_for_buffers_that_fill_them():
    """Buffers of part of a huge page would split it with the first transfer."""
    for size, huge in ((2 << 20, True), (1 << 20, False)):
        with bulk.Allocator(count=4, size=size, trust=HALF) as alloc:
            found = huge_kib(alloc.pool.address)
            if huge:
                with bulk.Allocator(count=4, size=size) as other:  # does this machine have any?
                    assert found == huge_kib(other.pool.address)
            else:
                assert found == 0


def huge_kib(address):
    """How much of the mapping at `address` is in huge pages."""
    with open("/proc/self/smaps") as file:
        lines = iter(file)
        for line in lines:
            if line.startswith(f"{address:x}-"):
                return next(int(item.split()[1]) for item in lines if item.startswith("ShmemPmdMapped:"))
    raise AssertionError(f"no mapping at {address:x}")


# ---- stray accesses of a real process --------------------------------------------------------------------------------


def stray(pipe, address, role, steps, access):
    """One end of a channel: take some steps, then touch the buffer from C behind the library's back."""
    import ctypes

    import bulktransfer as bulk

    chan = bulk.bind(address, timeout=20)
    if role == "source":
        alloc = bulk.Allocator(count=1, size=8192)
        chan.assign_pool(alloc.pool)
        buffer = alloc.alloc()
        buffer.put(b"x" * 8192)
    else:
        buffer = chan.receive(20).pool[0]
    for step in steps:
        if step == "receive":
            assert chan.receive_buffer(20).buffer is buffer
        else:
            getattr(chan, step)(buffer)
    pipe.send("ready")
    at, here = ctypes.c_void_p(buffer.address + 5000), ctypes.create_string_buffer(8)
    if access == "write":
        ctypes.memmove(at, here, 8)
    else:
        ctypes.memmove(here, at, 8)
    pipe.send("reached it")
    pipe.recv()


FAULTS = [
    ("source", ["move"], "read", ["receive"], True),
    ("source", ["move"], "write", ["receive"], True),
    ("source", ["copy"], "write", ["receive"], True),
    ("source", ["copy"], "read", ["receive"], False),
    ("source", [], "write", [], False),
    ("source", ["move", "receive"], "write", ["receive", "pass_"], False),
    ("source", ["copy", "receive"], "write", ["receive", "release"], False),
    ("sink", [], "read", [], True),
    ("sink", ["receive"], "write", ["move"], False),
    ("sink", ["receive", "pass_"], "write", ["move"], True),
    ("sink", ["receive", "pass_"], "read", ["move"], True),
    ("sink", ["receive"], "write", ["copy"], True),
    ("sink", ["receive"], "read", ["copy"], False),
    ("sink", ["receive", "release"], "read", ["copy"], True),
]


@pytest.mark.parametrize(("role", "steps", "access", "ours", "faults"), FAULTS)
def test_a_stray_access_from_c_faults_where_the_state_forbids_it(spawn, role, steps, access, ours, faults):
    mine = Direction.RX if role == "source" else Direction.TX
    with bulk.create("shm:", direction=mine, trust=HALF) as chan:
        child = spawn(stray, chan.address, role, steps, access)
        chan.wait_bound(PATIENCE_S)
        if role == "source":
            buffer = chan.receive(PATIENCE_S).pool[0]
        else:
            alloc = bulk.Allocator(count=1, size=8192)
            chan.assign_pool(alloc.pool)
            buffer = alloc.alloc()
        for step in ours:
            if step == "receive":
                assert chan.receive_buffer(PATIENCE_S).buffer is buffer
            else:
                getattr(chan, step)(buffer)
        assert child.receive() == "ready"
        if faults:
            child.join(-signal.SIGSEGV)
        else:
            assert child.receive() == "reached it"
            child.send("go on")
            child.join()


def test_states_without_transfers_stay_as_they_were():
    """A guard is not a ledger: what the mapping allows never decides what is legal."""
    with World("local") as world:
        tx, rx, alloc, theirs = pair(world)
        buffer = alloc.alloc()
        tx.move(buffer)
        with unchanged(buffer), pytest.raises(bulk.InvalidBufferError):
            tx.move(buffer)
        assert buffer.state is INVALID
        rx.receive(PATIENCE_S)
        assert theirs[buffer.index].state is READ_WRITE
