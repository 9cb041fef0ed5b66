"""Stores: contents, holes, durability, refusals; memory and file alike."""

from __future__ import annotations

import errno
import mmap
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bulktransfer import block
from bulktransfer.block import fallocate
from bulktransfer.block.memory_store import parse_size

SIZE = 1 << 20


@pytest.fixture(params=["memory", "file", "direct"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[block.Store]:
    if request.param == "memory":
        made = block.open_store(f"memory:{SIZE}")
    else:
        made = block.open_store(f"file:{tmp_path / 'image'}", create_bytes=SIZE, direct=request.param == "direct")
    with made:
        yield made


def contents(store: block.Store) -> bytes:
    return store.read(0, store.size_bytes)


def test_what_was_written_is_read(store: block.Store) -> None:
    store.write(4096, b"a" * 8192)
    store.write(5000, b"unaligned", fua=True)
    assert store.read(4090, 8) == b"\0" * 6 + b"aa"
    assert store.read(4999, 11) == b"aunaligneda"
    store.flush()


def test_a_fresh_store_is_one_hole(store: block.Store) -> None:
    assert list(store.extents(0, SIZE)) == [block.Extent(SIZE, hole=True, zero=True)]
    assert store.all_hole(0, SIZE)
    assert contents(store) == bytes(SIZE)


def test_extents_say_where_data_is(store: block.Store) -> None:
    store.write(3 << 16, b"x" * (1 << 16))
    store.flush()
    assert [tuple(run) for run in store.extents(0, SIZE)] == [
        (3 << 16, True, True),
        (1 << 16, False, False),
        (12 << 16, True, True),
    ]
    assert [run.length for run in store.extents((3 << 16) + 10, 20)] == [20]
    assert not store.all_hole((3 << 16) + 10, 20)
    assert store.all_hole(0, 3 << 16)


def test_trim_makes_a_hole(store: block.Store) -> None:
    store.write(0, b"x" * SIZE)
    store.trim(1 << 16, 2 << 16, fua=True)
    assert store.read(1 << 16, 2 << 16) == bytes(2 << 16)
    assert [run.hole for run in store.extents(0, SIZE)] == [False, True, False]


@pytest.mark.parametrize("may_trim", [True, False])
def test_write_zeroes_reads_as_zeroes(store: block.Store, may_trim: bool) -> None:
    store.write(0, b"x" * SIZE)
    store.write_zeroes(5000, 300_000, may_trim=may_trim)
    assert contents(store) == b"x" * 5000 + bytes(300_000) + b"x" * (SIZE - 305_000)
    whole = list(store.extents(0, SIZE))
    assert any(run.hole for run in whole) is may_trim or fallocate_shows_zero_range_as_hole(store)


def fallocate_shows_zero_range_as_hole(store: block.Store) -> bool:
    """Some file systems report allocated zeroes as a hole (ext4: unwritten extents); memory never does."""
    return isinstance(store, block.FileStore)


def test_a_write_after_a_trim_is_seen(store: block.Store) -> None:
    store.write(0, b"x" * SIZE)
    store.trim(0, SIZE)
    store.write(70_000, b"new")
    assert contents(store) == bytes(70_000) + b"new" + bytes(SIZE - 70_003)


@pytest.mark.parametrize(("offset", "length"), [(SIZE, 1), (SIZE - 1, 2), (1 << 62, 1)])
def test_what_lies_beyond_the_end_is_refused(store: block.Store, offset: int, length: int) -> None:
    for act in (store.read, store.trim, store.write_zeroes, store.extents, store.cache):
        with pytest.raises(block.BadBlockError, match="ends at"):
            act(offset, length)
    with pytest.raises(block.BadBlockError):
        store.write(offset, bytes(length))
    with pytest.raises(block.BadRequestError):
        store.read(-1, 1)
    assert list(store.extents(0, SIZE)) == [block.Extent(SIZE, hole=True, zero=True)]


def test_a_read_only_store_refuses_changes(store: block.Store) -> None:
    store.read_only = True
    for act in (lambda: store.write(0, b"x"), lambda: store.trim(0, 1), lambda: store.write_zeroes(0, 1)):
        with pytest.raises(block.ReadOnlyError, match="read-only"):
            act()
    assert contents(store) == bytes(SIZE)


def test_direct_requests_go_past_the_page_cache_where_they_are_aligned(tmp_path: Path) -> None:
    with block.FileStore(tmp_path / "image", create_bytes=SIZE, direct=True) as store:
        assert store.direct
        memory = memoryview(mmap.mmap(-1, 8192))
        memory[:] = b"d" * 8192
        assert store._descriptor(4096, memory) == store._direct_fd
        for offset, piece in ((1, memory), (4096, memory[:4095]), (4096, memory[1:4097]), (0, memory.toreadonly())):
            assert store._descriptor(offset, piece) == store._fd
        store.write(4096, memory)
        store.write(6000, memory[:5])
        memory[:] = bytes(8192)
        store.read_into(4096, memory)
        assert bytes(memory) == b"d" * 8192


def test_a_cached_page_is_read_without_waiting(tmp_path: Path) -> None:
    with block.FileStore(tmp_path / "image", create_bytes=SIZE) as store:
        store.write(0, b"c" * 4096)
        into = memoryview(bytearray(4096))
        if store.try_read(0, into):  # where the file system knows the flag
            assert bytes(into) == b"c" * 4096
    with block.FileStore(tmp_path / "image", direct=True) as store:
        assert not store.try_read(0, into)


def test_a_flush_that_failed_once_is_never_believed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with block.FileStore(tmp_path / "image", create_bytes=SIZE) as store:
        store.write(0, b"x")

        def fail(fd: int) -> None:
            raise OSError(errno.EIO, "the medium is gone")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", fail)
            with pytest.raises(block.StoreError, match="in doubt"):
                store.flush()
        with pytest.raises(block.StoreError, match="in doubt"):
            store.flush()
        with pytest.raises(block.StoreError, match="in doubt"):
            store.write(0, b"y", fua=True)


def test_a_file_that_is_made_shorter_is_an_error_and_not_zeroes(tmp_path: Path) -> None:
    with block.FileStore(tmp_path / "image", create_bytes=SIZE) as store:
        os.truncate(tmp_path / "image", 100)
        with pytest.raises(block.StoreError, match="made shorter"):
            store.read(50, 100)


def test_a_full_medium_has_an_error_of_its_own() -> None:
    with block.FileStore("/dev/shm/bulk-test-full", create_bytes=1 << 40) as store:
        os.unlink("/dev/shm/bulk-test-full")
        room = os.statvfs("/dev/shm")
        if not 0 < room.f_blocks * room.f_frsize < 1 << 40:  # then the kernel refuses at once, without trying
            pytest.skip("/dev/shm has more than 1 TiB")
        with pytest.raises(block.NoSpaceError):
            fallocate_all(store)


def fallocate_all(store: block.Store) -> None:
    store.write_zeroes(0, store.size_bytes, may_trim=False, fast=True)


def test_a_medium_without_holes_is_written_unless_it_must_be_fast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fallocate, "_call", lambda *args: False)
    with block.FileStore(tmp_path / "image", create_bytes=SIZE) as store:
        store.write(0, b"x" * SIZE)
        with pytest.raises(block.UnsupportedError):
            store.write_zeroes(0, SIZE, fast=True)
        store.trim(0, SIZE)
        assert contents(store) == b"x" * SIZE
        store.write_zeroes(10, SIZE - 20)
        assert contents(store) == b"x" * 10 + bytes(SIZE - 20) + b"x" * 10


def test_only_files_and_block_devices_are_stores(tmp_path: Path) -> None:
    with pytest.raises(block.StoreError, match="neither"):
        block.FileStore("/dev/null")
    with pytest.raises(FileNotFoundError):
        block.FileStore(tmp_path / "nothing")
    with pytest.raises(ValueError, match="block_size"):
        block.MemoryStore(4096, block_size=1000)
    with pytest.raises(ValueError, match="bytes"):
        block.MemoryStore(-1)
    for name in ("disk:x", "memory:many", "file:", "memory:1X"):
        with pytest.raises(block.BadRequestError):
            block.open_store(name)
    with pytest.raises(block.BadRequestError):
        block.open_store("memory:1M", direct=True)


def test_creating_leaves_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"old" * 1000)
    with block.FileStore(tmp_path / "image", create_bytes=SIZE) as store:
        assert store.size_bytes == 3000
        assert store.read(0, 3) == b"old"
        assert store.block_count == 0


@pytest.mark.parametrize(("text", "size"), [("512", 512), ("64K", 1 << 16), ("1GiB", 1 << 30), ("2tb", 2 << 40)])
def test_sizes_have_units(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_a_store_far_larger_than_memory_costs_what_is_written() -> None:
    with block.open_store("memory:4T") as store:
        store.write((4 << 40) - 5, b"end")
        assert store.read((4 << 40) - 5, 5) == b"end\0\0"
        assert sum(run.length for run in store.extents(0, 4 << 40) if not run.hole) <= 1 << 16


def test_every_status_has_its_error_and_survives_pickle() -> None:
    from bulktransfer.block import errors

    for status in block.Status:
        if status is block.Status.OK:
            continue
        error = errors.error_of(status, "text")
        assert error.status is status
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert str(again) == "text"


ACTS = st.lists(
    st.tuples(
        st.sampled_from(["write", "trim", "zero", "zero_keep"]),
        st.integers(0, 300_000),
        st.integers(0, 200_000),
        st.integers(1, 255),
    ),
    max_size=8,
)


def _check_against_bytes(make: Callable[[], block.Store], acts: list[tuple[str, int, int, int]]) -> None:
    size = 400_001
    model = bytearray(size)
    with make() as store:
        for act, offset, length, fill in acts:
            length = min(length, size - offset)
            if act == "write":
                store.write(offset, bytes([fill]) * length)
                model[offset : offset + length] = bytes([fill]) * length
                continue
            if act == "trim":
                store.trim(offset, length)
            else:
                store.write_zeroes(offset, length, may_trim=act == "zero")
            model[offset : offset + length] = bytes(length)
        assert store.read(0, size) == model
        at = 0
        for run in store.extents(0, size):
            assert run.length > 0
            if run.zero:
                assert not any(model[at : at + run.length])
            at += run.length
        assert at == size


@given(ACTS)
def test_a_memory_store_is_a_range_of_bytes(acts: list[tuple[str, int, int, int]]) -> None:
    _check_against_bytes(lambda: block.MemoryStore(400_001), acts)


@settings(max_examples=30)
@given(ACTS)
def test_a_file_store_is_a_range_of_bytes(
    tmp_path_factory: pytest.TempPathFactory, acts: list[tuple[str, int, int, int]]
) -> None:
    path = tmp_path_factory.mktemp("store") / "image"
    _check_against_bytes(lambda: block.FileStore(path, create_bytes=400_001), acts)
