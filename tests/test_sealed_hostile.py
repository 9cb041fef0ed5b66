"""A source that is written to break its sink: frames that are not sealed, not whole, not memory, or not there.

The attacker is below the library: it writes the ring of its own outbox, and sends on the channel's socket, as any
process that is connected could.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import os
import socket
import struct

import pytest

import bulktransfer as bulk
from bulktransfer import EventKind, Trust
from worlds import INVALID, PATIENCE_S, World, nothing_comes, take, together

PAGE, SIZE = 4096, 4 * 4096
ALL = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
MOVE, COPY, FRAMED = 1, 3, 1


@pytest.fixture
def world():
    with World("shm") as world:
        yield world


@pytest.fixture
def victim(world):
    return Victim(world)


class Victim:
    """An honest sink, and a source whose sending half is the attacker's."""

    def __init__(self, world, **options):
        source, sink = world.domains(2)
        self.tx, self.rx = world.channel(source, sink, trust=Trust.NONE, **options)
        self.alloc = world.allocator(source, count=2, size=SIZE)
        event, _ = together(
            lambda: take(self.rx, EventKind.POOL_ASSIGNED),
            lambda: self.tx.assign_pool(self.alloc.pool, means="sealed", timeout=PATIENCE_S),
        )
        self.pool = event.pool
        self.slot = self.tx.table.index(next(a for a in self.tx.table if a is not None))
        self.outbox = own_outbox()

    def frame(self, fds, serial=0, data=None):
        """Send what the library sends ahead of an entry, with these descriptors."""
        with socket.socket(fileno=os.dup(self.tx.socket_fd())) as sock:
            beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            sock.sendmsg([data or struct.pack("=4sIQ", b"BTFR", 0, serial)], beside)

    def entry(self, *, kind=MOVE, index=0, length=SIZE, serial=0, flags=FRAMED, slot=None, count=1):
        """Publish an entry that says so."""
        tail = ctypes.c_uint64.from_address(self.outbox + 64)
        at = self.outbox + PAGE + (tail.value % 1024) * 64
        slot = self.slot if slot is None else slot
        ctypes.memmove(at, struct.pack("=HHIIIQQ", kind, flags, slot, index, 0, length, serial), 32)
        tail.value += count

    def refuses(self, rule):
        """The sink ends the channel, naming the rule, and nothing of what came is to be seen."""
        with pytest.raises(bulk.ProtocolViolation, match=rule):
            self.rx.receive(PATIENCE_S)
        assert all(buffer.state is INVALID for buffer in self.pool)


def own_outbox():
    """Where this process has the outbox that it stages contents in."""
    found = []
    with open("/proc/self/maps") as maps:
        for each in maps:
            if "bulktransfer-outbox" in each and " rw-s " in each:
                address = int(each.partition("-")[0], 16)
                if ctypes.c_uint64.from_address(address + 16).value:
                    found.append(address)
    (address,) = found
    return address


def memory(size=SIZE, seals=ALL, filled=None):
    fd = os.memfd_create("bulktransfer-frame", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, b"f" * (size if filled is None else filled))
    os.ftruncate(fd, size)
    if seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


@pytest.fixture
def give():
    """Descriptors that are closed after the test."""
    kept = []

    def keep(fd):
        kept.append(fd)
        return fd

    yield keep
    for fd in kept:
        os.close(fd)


@pytest.mark.parametrize("kind", [MOVE, COPY])
def test_a_frame_made_by_hand_is_taken_as_any_other(victim, give, kind):
    victim.frame([give(memory())])
    victim.entry(kind=kind)
    assert victim.rx.receive(PATIENCE_S).buffer.tobytes() == b"f" * SIZE


@pytest.mark.parametrize("missing", [0, 1, 2, 3])
def test_a_frame_that_lacks_a_seal_is_refused(victim, give, missing):
    one = [fcntl.F_SEAL_WRITE, fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW, fcntl.F_SEAL_SEAL][missing]
    victim.frame([give(memory(seals=ALL & ~one))])
    victim.entry()
    victim.refuses("lacks a seal")


@pytest.mark.parametrize("size", [PAGE, SIZE - PAGE, SIZE + PAGE, SIZE + (4 << 20)])
def test_a_frame_of_another_size_than_its_contents_is_refused(victim, give, size):
    victim.frame([give(memory(size))])
    victim.entry()
    victim.refuses("not of the announced size")


def test_a_frame_without_its_pages_is_refused(victim, give):
    """To read it would allocate them, in the reader's name."""
    victim.frame([give(memory(filled=1))])
    victim.entry()
    victim.refuses("sparse")


def test_what_is_no_memory_is_refused(victim, give, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"f" * SIZE)
    victim.frame([give(os.open(path, os.O_RDWR))])
    victim.entry()
    victim.refuses("not anonymous memory|lacks a seal")


@pytest.mark.parametrize("make", ["pipe", "socket", "null", "path", "directory"])
def test_a_foreign_descriptor_is_refused(victim, give, make):
    def opened():
        if make == "pipe":
            read, write = os.pipe()
            os.close(write)
            return read
        if make == "socket":
            return socket.socket().detach()
        if make == "path":
            inner = give(memory())
            return os.open(f"/proc/self/fd/{inner}", os.O_PATH)
        return os.open("/dev/null" if make == "null" else "/dev/shm", os.O_RDONLY)

    victim.frame([give(opened())])
    victim.entry()
    victim.refuses("not anonymous memory|lacks a seal")


def test_a_frame_that_may_not_be_read_is_refused(victim, give):
    inner = give(memory())
    victim.frame([give(os.open(f"/proc/self/fd/{inner}", os.O_WRONLY))])
    victim.entry()
    victim.refuses("cannot be read")


@pytest.mark.parametrize("count", [0, 2, 253])
def test_a_frame_comes_with_one_descriptor(victim, give, count):
    fd = give(memory())
    victim.frame([fd] * count)
    victim.entry()
    victim.refuses(f"came with {count} descriptors")


def test_an_entry_without_its_frame_is_a_violation(victim):
    victim.entry()
    victim.refuses("announced a frame that did not come")


@pytest.mark.parametrize(("named", "sent"), [(1, 1), (0, 1), (1, 0), (2**64 - 1, 0)])
def test_frames_and_entries_are_in_one_order(victim, give, named, sent):
    victim.frame([give(memory())], sent)
    victim.entry(serial=named)
    victim.refuses("was due")


def test_an_entry_may_not_promise_what_no_frame_can_hold(victim, give):
    victim.frame([give(memory())])
    victim.entry(length=SIZE + 1)
    victim.refuses(f"a move of {SIZE + 1} bytes in a buffer of {SIZE}")


def test_a_frame_of_nothing_is_a_violation(victim, give):
    victim.frame([give(memory())])
    victim.entry(length=0)
    victim.refuses("a frame of nothing")


@pytest.mark.parametrize(("slot", "index", "rule"), [(9, 0, "not assigned"), (None, 2, "buffer 2 of 2")])
def test_a_frame_for_what_is_not_there_is_a_violation(victim, give, slot, index, rule):
    victim.frame([give(memory())])
    victim.entry(slot=slot, index=index)
    victim.refuses(rule)


def test_a_frame_for_a_buffer_that_the_sink_has_changes_nothing_there(victim, give):
    victim.frame([give(memory())])
    victim.entry(kind=COPY)
    there = take(victim.rx, EventKind.COPY_RECEIVED).buffer
    other = os.memfd_create("bulktransfer-frame", os.MFD_ALLOW_SEALING)
    os.write(give(other), b"g" * SIZE)
    fcntl.fcntl(other, fcntl.F_ADD_SEALS, ALL)
    victim.frame([other], 1)
    victim.entry(kind=COPY, serial=1)
    with pytest.raises(bulk.ProtocolViolation, match="which it does not have"):
        victim.rx.receive(PATIENCE_S)
    assert there.tobytes() == b"f" * SIZE


def test_more_frames_than_were_granted_are_a_violation_and_are_closed(world, give):
    victim = Victim(world, creator="sink", limits=bulk.Limits(frames=3))
    fd = give(memory())
    before = len(os.listdir("/proc/self/fd"))
    for serial in range(3):
        victim.frame([fd], serial)
    assert nothing_comes(victim.rx)
    victim.frame([fd], 3)
    victim.refuses("more than the 3 frames at once that it was granted")
    del victim
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_frame_message_where_memory_is_shared_is_a_violation(world, give):
    tx, rx, _, _ = world.line()
    with socket.socket(fileno=os.dup(tx.socket_fd())) as sock:
        beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [give(memory())]))]
        sock.sendmsg([struct.pack("=4sIQ", b"BTFR", 0, 0)], beside)
    tx.assign_pool(world.allocator(tx.domain).pool, done=lambda outcome: None)
    with pytest.raises(bulk.ProtocolViolation):
        rx.receive(PATIENCE_S)


def test_a_full_descriptor_table_refuses_the_transfer_and_the_contents_stay(world, give):
    victim = Victim(world)
    buffer = victim.alloc.alloc()
    buffer.put(b"to come back")
    victim.tx.move(buffer)
    with no_more_descriptors():
        assert nothing_comes(victim.rx)
    event = take(victim.tx, EventKind.OPERATION_REFUSED)
    assert isinstance(event.error, bulk.LimitError)
    assert buffer.tobytes() == b"to come back"
    victim.tx.move(buffer)
    assert take(victim.rx, EventKind.MOVE_RECEIVED).buffer.tobytes() == b"to come back"


class no_more_descriptors:
    def __enter__(self):
        self.kept = []
        try:
            while True:
                self.kept.append(os.dup(0))
        except OSError:
            return self

    def __exit__(self, *exc):
        for fd in self.kept:
            os.close(fd)


def test_a_source_that_grants_itself_anything_is_bounded_by_what_the_sink_reads(victim):
    """The word that grants is the sink's own: the source can only read it."""
    with open("/proc/self/maps") as maps:
        outboxes = [line.split()[1] for line in maps if "bulktransfer-outbox" in line]
    assert sorted(outboxes) == ["r--s", "r--s", "rw-s", "rw-s"]
