"""Promises of Allocator.from_fd: a pool over memory that exists, and what cannot be one."""

from __future__ import annotations

import gc
import mmap
import os
import tempfile

import pytest

import bulktransfer as bulk
from worlds import INVALID, PATIENCE_S, World

PAGE = mmap.PAGESIZE


@pytest.fixture(params=["local", "shm"])
def world(request):
    with World(request.param) as world:
        yield world


def make(**options):
    return bulk.Allocator(**{"count": 4, "size": PAGE, "domain": bulk.Domain(), **options})


@pytest.fixture
def memfd():
    made = []

    def make(size, content=b"", flags=os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING, reserve=True):
        fd = os.memfd_create("users", flags)
        made.append(fd)
        os.ftruncate(fd, size)
        if reserve and size:
            os.posix_fallocate(fd, 0, size)
        os.pwrite(fd, content, 0)
        return fd

    yield make
    for fd in made:
        os.close(fd)


def adopt(fd, **options):
    return bulk.Allocator.from_fd(fd, **{"size": PAGE, "domain": bulk.Domain(), **options})


def test_a_pool_over_a_memfd_shares_its_memory_and_keeps_its_contents(memfd):
    fd = memfd(4 * PAGE, b"was here")
    alloc = adopt(fd)
    assert (len(alloc.pool), alloc.available) == (4, 4)
    buffer = alloc.alloc()
    assert buffer.tobytes()[:8] == b"was here"
    buffer.write(b"now")
    assert os.pread(fd, 8, 0) == b"nows her" or os.pread(fd, 8, 0) == b"now here"
    os.pwrite(fd, b"outside", 0)
    assert buffer.tobytes()[:7] == b"outside"


def test_an_adopted_memfd_no_longer_changes_its_size(memfd):
    fd = memfd(4 * PAGE)
    alloc = adopt(fd)
    for size in (0, PAGE, 8 * PAGE):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size)
    del alloc


def test_an_adopted_pool_travels(world, memfd):
    a, b = world.domains(2)
    tx, rx = world.channel(a, b)
    alloc = adopt(memfd(2 * PAGE, b"from outside"), domain=a)
    world.assign(tx, rx, alloc.pool)
    tx.move(alloc.alloc())
    assert rx.receive_buffer(PATIENCE_S).buffer.tobytes()[:12] == b"from outside"


def test_a_sparse_memfd_is_filled_first(memfd):
    fd = memfd(16 * PAGE, reserve=False)
    assert os.fstat(fd).st_blocks == 0
    alloc = adopt(fd)
    assert os.fstat(fd).st_blocks * 512 == 16 * PAGE
    del alloc


def test_descriptors_that_cannot_be_a_pool_are_refused_by_name(memfd):
    with tempfile.TemporaryFile() as file:
        file.truncate(4 * PAGE)
        with pytest.raises(ValueError, match=f"descriptor {file.fileno()}"):
            adopt(file.fileno())
    unsealable = memfd(4 * PAGE, flags=os.MFD_CLOEXEC)
    with pytest.raises(ValueError, match="cannot be sealed"):
        adopt(unsealable)
    ragged = memfd(4 * PAGE + 1)
    with pytest.raises(ValueError, match="not a whole number of buffers"):
        adopt(ragged)
    with pytest.raises(ValueError, match="0 bytes"):
        adopt(memfd(0))
    whole = memfd(4 * PAGE)
    for size, error in (
        (3 * PAGE, ValueError),
        (0, ValueError),
        (-PAGE, ValueError),
        (100, ValueError),
        (512, ValueError),
        (8 * PAGE, ValueError),
    ):
        with pytest.raises(error):
            adopt(whole, size=size)
    for odd in (True, None, "4096", 4096.0):
        with pytest.raises(TypeError):
            adopt(whole, size=odd)
    for fd, error in ((-1, OSError), (10**6, OSError), (None, TypeError), ("x", (TypeError, OSError))):
        with pytest.raises(error):
            adopt(fd)
    read, write = os.pipe()
    for fd in (read, write):
        with pytest.raises(ValueError, match=f"descriptor {fd}"):
            adopt(fd)
        os.close(fd)


def test_a_memfd_sealed_against_writing_is_refused(memfd):
    import fcntl

    fd = memfd(4 * PAGE)
    fcntl.fcntl(fd, 1033, 0x0008)  # F_ADD_SEALS, F_SEAL_WRITE
    with pytest.raises((ValueError, PermissionError)):
        adopt(fd)


def test_a_memfd_that_is_sealed_for_good_already_is_fine(memfd):
    import fcntl

    fd = memfd(4 * PAGE)
    fcntl.fcntl(fd, 1033, 0x0001 | 0x0002 | 0x0004)  # SEAL, SHRINK, GROW
    assert adopt(fd).available == 4


def test_a_refused_descriptor_leaves_nothing_behind(memfd):
    fd = memfd(4 * PAGE, flags=os.MFD_CLOEXEC)
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    domain = bulk.Domain()
    with_domain = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(ValueError, match="sealed"):
            adopt(fd, domain=domain)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == with_domain >= before
    assert not domain.pools


def test_moved_buffers_are_not_available(world):
    tx, _rx, alloc, _ = world.line()
    buffer = alloc.alloc()
    tx.move(buffer)
    assert (alloc.available, alloc.detached, buffer.state) == (3, 0, INVALID)
