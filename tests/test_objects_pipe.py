"""Pipes of objects: multiprocessing's manners, and big buffers that are lent instead of copied."""

from __future__ import annotations

import contextlib
import errno
import gc
import multiprocessing
import multiprocessing.connection
import os
import pickle
import resource
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import bulktransfer as bulk
import object_tasks
from bulktransfer.objects import _parcel, store
from forking import needs_root
from object_children import child

MIB = 1 << 20

bulk.current_domain()  # it keeps two descriptors, and is no test's


@pytest.fixture
def pipe() -> Iterator[Any]:
    """Makes pipes that are closed after the test."""
    with contextlib.ExitStack() as stack:

        def make(*args: Any, **options: Any) -> tuple[Any, Any]:
            ends = bulk.Pipe(*args, **options)
            for end in ends:
                stack.enter_context(end)
            return ends

        yield make


@pytest.mark.parametrize(
    "thing",
    [
        None,
        7,
        "text",
        {"a": [1, 2, (3,)]},
        b"x" * 100,
        b"x" * 40_000,
        bytearray(b"y" * MIB),
        b"z" * (3 * MIB),
        [b"q" * 70_000] * 2,
    ],
    ids=["none", "int", "text", "nested", "bytes", "one-message", "bytearray", "bytes-3MiB", "twice"],
)
def test_an_object_arrives_as_it_was(pipe: Any, thing: object) -> None:
    a, b = pipe()
    a.send(thing)
    received = b.recv()
    assert received == thing
    assert type(received) is type(thing)


@pytest.mark.parametrize("size", [0, 1, 32 * 1024 - 9, 32 * 1024, 32 * 1024 + 1, 100_000, 5 * MIB + 3])
def test_bytes_of_any_size_arrive(pipe: Any, size: int) -> None:
    a, b = pipe()
    data = os.urandom(size)
    a.send_bytes(data)
    assert b.recv_bytes() == data
    a.send_bytes(data)
    room = bytearray(size + 3)
    assert b.recv_bytes_into(room, 2) == size
    assert bytes(room) == b"\0\0" + data + b"\0"


def test_a_sent_object_can_be_received_as_its_pickle(pipe: Any) -> None:
    a, b = pipe()
    for thing in ([1, 2], b"x" * 100_000, np.arange(50_000)):
        a.send(thing)
        assert np.array_equal(pickle.loads(b.recv_bytes()), thing)
    b.send_bytes(pickle.dumps("pickled by hand"))
    assert a.recv() == "pickled by hand"


def test_a_received_array_is_a_view_of_lent_memory_that_goes_back_with_it(pipe: Any) -> None:
    a, b = pipe()
    a.send({"first": np.arange(MIB), "second": np.ones(MIB, np.uint8), "small": np.zeros(3)})
    pools = a._sender.store
    size = pools.bytes
    received = b.recv()
    assert received["first"].sum() == MIB * (MIB - 1) // 2
    second = received["second"]
    second += 1  # writable, as an array that was pickled would be
    del received
    assert not pools.collect()
    assert second.sum() == 2 * MIB
    del second
    assert pools.collect()
    a.send(np.ones(9 * MIB, np.uint8))
    assert pools.bytes == size  # the same memory
    assert b.recv().sum() == 9 * MIB  # and not what the receiver had written


def test_a_receiver_writes_to_pages_of_its_own(pipe: Any) -> None:
    a, b = pipe()
    a.send(np.zeros(MIB, np.uint8))
    slot = a._sender.store._out[0]
    received = b.recv()
    received[:] = 7
    assert bytes(memoryview(slot.buffer)[:MIB]) == bytes(MIB)


def test_arrow_tables_arrive_without_a_copy(pipe: Any) -> None:
    pa = pytest.importorskip("pyarrow")
    a, b = pipe()
    table = pa.table({"n": pa.array(range(100_000)), "x": pa.array(np.random.default_rng(1).random(100_000))})
    a.send(table)
    received = b.recv()
    assert received.equals(table)
    pools = a._sender.store
    assert not pools.collect()
    del received
    gc.collect()
    assert pools.collect()


def test_pandas_frames_arrive(pipe: Any) -> None:
    pd = pytest.importorskip("pandas")
    a, b = pipe()
    frame = pd.DataFrame({"n": range(100_000), "x": np.arange(100_000) / 7})
    a.send(frame)
    pd.testing.assert_frame_equal(b.recv(), frame)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_torch_tensors_arrive_without_a_copy(pipe: Any, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    a, b = pipe()
    tensor = torch.arange(1 << 18, dtype=getattr(torch, dtype)).reshape(512, -1)
    a.send([tensor])
    (received,) = b.recv()
    assert torch.equal(received, tensor)
    assert not a._sender.store.collect()


def test_a_fortran_array_and_a_strided_one_arrive(pipe: Any) -> None:
    a, b = pipe()
    for array in (np.asfortranarray(np.arange(MIB).reshape(1024, -1)), np.arange(MIB)[::2]):
        a.send(array)
        assert np.array_equal(b.recv(), array)


def test_pools_shrink_when_they_are_not_used(pipe: Any) -> None:
    a, b = pipe()
    pools = a._sender.store
    for size in (MIB, 2 * MIB, 5 * MIB):
        a.send(np.zeros(size, np.uint8))
    assert pools.bytes >= 8 * MIB
    held = [b.recv() for _ in range(3)]
    pools.trim(0)
    assert pools.bytes >= 8 * MIB
    del held
    pools.trim(0)
    assert pools.bytes == 0


def test_a_thousand_held_arrays_take_few_descriptors(pipe: Any) -> None:
    a, b = pipe()
    before = len(os.listdir("/proc/self/fd"))
    held = []
    for n in range(1100):
        a.send(np.full(16 * 1024, n % 256, np.uint8))
        held.append(b.recv())
    assert len(os.listdir("/proc/self/fd")) < before + 40
    assert [int(array[-1]) for array in held] == [n % 256 for n in range(1100)]


def test_at_the_limit_a_send_says_so_until_somebody_lets_go(pipe: Any) -> None:
    a, b = pipe(limit=4 * MIB, when_full="error")
    for _ in range(4):
        a.send(np.zeros(MIB, np.uint8))
    with pytest.raises(bulk.PoolExhaustedError, match=r"4 buffers are lent .* of 4194304 bytes"):
        a.send(np.zeros(3 * MIB, np.uint8))
    for _ in range(4):
        b.recv()
    a.send(np.zeros(3 * MIB, np.uint8))
    with pytest.raises(bulk.LimitError, match="the limit for all objects of this sender is 4194304"):
        a.send(np.zeros(5 * MIB, np.uint8))
    assert b.recv().nbytes == 3 * MIB


@pytest.mark.parametrize("watched", [True, False], ids=["inotify", "without-inotify"])
def test_at_the_limit_a_send_waits_for_the_last_view(pipe: Any, monkeypatch: pytest.MonkeyPatch, watched: bool) -> None:
    if not watched:

        def refused() -> int:
            raise OSError(24, "no instance left")

        monkeypatch.setattr(_parcel, "watch", refused)
    a, b = pipe(limit=2 * MIB)
    a.send(np.zeros(2 * MIB, np.uint8))
    held = b.recv()
    sent = threading.Event()
    sender = threading.Thread(target=lambda: (a.send(np.ones(2 * MIB, np.uint8)), sent.set()))
    sender.start()
    assert not sent.wait(0.1)
    assert not b.poll()
    del held
    assert sent.wait(30)
    sender.join()
    assert b.recv().sum() == 2 * MIB


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_killed_receiver_gives_its_memory_back(pipe: Any, method: str) -> None:
    a, b = pipe(limit=2 * MIB, when_full="error")
    here, there = multiprocessing.Pipe()
    with here, there, child(method, object_tasks.hold, b, there) as holder:
        a.send(np.zeros(2 * MIB, np.uint8))
        assert here.recv() == 2 * MIB
        with pytest.raises(bulk.PoolExhaustedError):
            a.send(np.zeros(2 * MIB, np.uint8))
        holder.kill()
        holder.join()
        a.send(np.ones(2 * MIB, np.uint8))
        assert b.recv().sum() == 2 * MIB


def test_what_a_killed_sender_had_sent_arrives(pipe: Any) -> None:
    a, b = pipe()
    here, there = multiprocessing.Pipe()
    things = [np.full(MIB, n, np.uint8) for n in range(3)]
    with here, there, child("fork", object_tasks.put_and_hang, _Sends(a), things, there) as sender:
        assert here.recv() == "put"
        sender.kill()
        sender.join()
        assert [int(b.recv()[-1]) for _ in range(3)] == [0, 1, 2]


class _Sends:
    def __init__(self, conn: Any) -> None:
        self.put = conn.send


def test_a_forked_child_keeps_a_received_array_and_its_lease(pipe: Any) -> None:
    a, b = pipe()
    a.send(np.ones(MIB, np.uint8))
    held = b.recv()
    here, there = multiprocessing.Pipe()
    with here, there, child("fork", object_tasks.tell_sum, held, there) as other:
        assert here.recv() == MIB
        del held
        assert not a._sender.store.collect()
        other.kill()
        other.join()
    assert a._sender.store.collect()


def test_a_forked_child_sends_from_pools_of_its_own(pipe: Any) -> None:
    a, b = pipe()
    a.send(np.zeros(MIB, np.uint8))
    with child("fork", object_tasks.send_all, a, [np.ones(MIB, np.uint8)]) as other:
        other.join()
        assert other.exitcode == 0
    assert [int(b.recv().sum()) for _ in range(2)] == [0, MIB]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_an_end_travels_to_a_child(pipe: Any, method: str) -> None:
    a, b = pipe()
    with child(method, object_tasks.echo, b) as other:
        b.close()
        for thing in ("small", np.arange(MIB)):
            a.send(thing)
            assert np.array_equal(a.recv(), thing)
        a.send(None)  # a forked child has the other end, too, and would wait for ever for its own word
        other.join()
        assert other.exitcode == 0


@needs_root
def test_what_another_user_sent_is_not_unpickled_unless_allowed(pipe: Any) -> None:
    r, w = pipe(False)
    with child("fork", object_tasks.send_as, 65534, w, "from nobody") as other:
        with pytest.raises(bulk.TrustMismatchError, match=r"user 65534 .*allow_pickle=True"):
            r.recv()
        other.join()
    r, w = pipe(False, allow_pickle=True)
    with child("fork", object_tasks.send_as, 65534, w, "from nobody") as other:
        assert r.recv() == "from nobody"
        other.join()


def test_wait_takes_an_end(pipe: Any) -> None:
    a, b = pipe()
    c, d = multiprocessing.Pipe()
    with c, d:
        assert multiprocessing.connection.wait([b, d], 0) == []
        a.send(1)
        assert multiprocessing.connection.wait([b, d]) == [b]
        assert b.fileno() in [b.fileno()]


def test_the_end_is_an_eof_and_a_broken_pipe(pipe: Any) -> None:
    a, b = pipe()
    a.send("last")
    a.close()
    assert b.poll()
    assert b.recv() == "last"
    assert b.poll()
    with pytest.raises(EOFError):
        b.recv()
    with pytest.raises(BrokenPipeError):
        b.send("nobody hears it")
    assert a.closed
    with pytest.raises(OSError, match="handle is closed"):
        a.send(1)


@pytest.mark.parametrize("maker", [multiprocessing.Pipe, bulk.Pipe], ids=["theirs", "ours"])
def test_misuse_is_refused_as_multiprocessing_does(maker: Callable[..., tuple[Any, Any]]) -> None:
    r, w = maker(duplex=False)
    with r, w:
        assert (r.readable, r.writable, w.readable, w.writable) == (True, False, False, True)
        with pytest.raises(OSError, match="connection is read-only"):
            r.send(1)
        with pytest.raises(OSError, match="connection is write-only"):
            w.recv()
        with pytest.raises(OSError, match="connection is write-only"):
            w.poll()
        for arguments, text in (
            ((b"abc", -1), "offset is negative"),
            ((b"abc", 4), "buffer length < offset"),
            ((b"abc", 1, -1), "size is negative"),
            ((b"abc", 1, 3), "buffer length < offset \\+ size"),
        ):
            with pytest.raises(ValueError, match=text):
                w.send_bytes(*arguments)
        w.send_bytes(b"0123456789", 2, 5)
        with pytest.raises(multiprocessing.BufferTooShort) as caught:
            r.recv_bytes_into(bytearray(3))
        assert caught.value.args == (b"23456",)
        with pytest.raises(ValueError, match="negative maxlength"):
            r.recv_bytes(-1)
        w.send_bytes(b"0123456789")
        with pytest.raises(OSError, match="bad message length"):
            r.recv_bytes(9)
        assert r.closed
        with pytest.raises(Exception, match=r"pickle|travels"):
            w.send(lambda: None)


def test_an_end_does_not_pickle_by_itself(pipe: Any) -> None:
    a, _ = pipe()
    with pytest.raises(TypeError, match="travels only while multiprocessing starts a process"):
        pickle.dumps(a)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"when_full": "drop"}, ValueError),
        ({"limit": 0}, ValueError),
        ({"limit": "1G"}, TypeError),
        ({"limit": True}, TypeError),
    ],
)
def test_arguments_are_judged(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=r"limit=|when_full="):
        bulk.Pipe(**options)


def test_an_object_that_cannot_be_pickled_leaves_nothing_behind(pipe: Any) -> None:
    a, b = pipe()
    with pytest.raises(TypeError):
        a.send([np.zeros(MIB), threading.Lock()])
    assert not b.poll()
    assert a._sender.store.bytes == 0


def test_foreign_memory_is_not_mapped() -> None:
    fd = os.memfd_create("loose", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, 8192)
        with pytest.raises(bulk.ProtocolViolation, match="no such memory"):
            _parcel.Parcel(fd, 0, 4096)  # it could shrink under the mapping
    finally:
        os.close(fd)


@pytest.mark.parametrize("size", [1, 4096, 4097, 65_537, MIB, MIB + 1, 16 * MIB, 100_000_007])
def test_buffers_are_at_most_an_eighth_too_big(size: int) -> None:
    found = store.buffer_size(size)
    assert size <= found <= max(4096 * -(-size // 4096), size * 9 / 8)
    assert found % 4096 == 0
    assert store.buffer_size(found) == found


def test_an_object_as_big_as_the_limit_is_sent(pipe: Any) -> None:
    a, b = pipe(limit=2 * MIB + 4096)
    a.send(bytes(2 * MIB))  # with its pickle more than a buffer size, which the limit would not allow
    assert b.recv() == bytes(2 * MIB)


def test_without_a_free_descriptor_an_object_is_lost_with_an_error_and_the_next_arrives(pipe: Any) -> None:
    a, b = pipe()
    for n in (1, 2):
        a.send(np.full(MIB, n, np.uint8))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    blockers = [os.dup(0) for _ in range(highest)]  # so that every number below the limit is in use
    limit = max(blockers) + 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        with pytest.raises(OSError, match="no descriptor left to take its memory with"):
            b.recv()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for fd in blockers:
            os.close(fd)
    assert b.recv()[0] == 2
    assert a._sender.store.collect()


def test_threads_that_share_an_end_take_turns_at_the_limit(pipe: Any) -> None:
    a, b = pipe(limit=MIB)
    threads = [threading.Thread(target=a.send, args=(np.full(MIB, n, np.uint8),)) for n in range(6)]
    for thread in threads:
        thread.start()
    assert sorted(int(b.recv()[-1]) for _ in threads) == list(range(6))
    for thread in threads:
        thread.join()


def test_a_machine_without_memory_is_a_limit_while_something_is_to_come_back(
    pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pipe(when_full="error")
    a.send(np.zeros(MIB, np.uint8))
    held = b.recv()

    def refused(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOMEM, "no memory")

    monkeypatch.setattr("bulktransfer.core.memory.make", refused)
    with pytest.raises(bulk.PoolExhaustedError):
        a.send(np.zeros(MIB, np.uint8))
    assert held.sum() == 0
    del held
    a.send(np.ones(MIB, np.uint8))
    assert b.recv().sum() == MIB
    with pytest.raises(OSError, match="no memory"):
        a.send(np.zeros(2 * MIB, np.uint8))
