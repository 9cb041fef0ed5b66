"""Promises of aggregates: parts of buffers of any pools travel, map and meet files as one, and no copy goes unsaid."""

from __future__ import annotations

import errno
import os
import random
import struct

import numpy as np
import pytest

import bulktransfer as bulk
from bulktransfer import BufferState, EventKind, Trust
from bulktransfer.core import gathering
from worlds import PATIENCE_S, World

INVALID, READ_WRITE, READ_ONLY = BufferState.INVALID, BufferState.READ_WRITE, BufferState.READ_ONLY
PAGE = 4096
TX = bulk.Direction.TX


@pytest.fixture
def frames():
    with bulk.Allocator(count=6, size=2 * PAGE) as made:
        yield made


def filled(allocator, *texts):
    found = []
    for text in texts:
        buffer = allocator.alloc()
        buffer.put(text)
        found.append(buffer)
    return found


# -- putting together and taking apart -----------------------------------------------------------------------------


def test_parts_are_put_together_and_taken_apart_without_copying(frames):
    a, b = filled(frames, b"hello world", b"BIG ")
    whole = bulk.Aggregate([a])
    whole.insert(6, b)
    assert whole.tobytes() == b"hello BIG world"
    assert [tuple(part[1:]) for part in whole.parts] == [(0, 6), (0, 4), (6, 5)]
    assert whole.buffers == (a, b)
    assert len(whole) == 15
    removed = whole.remove(5, 5)
    assert (whole.tobytes(), removed.tobytes()) == (b"helloworld"[:5] + b"world", b" BIG ")
    tail = whole.split(5)
    assert (whole.tobytes(), tail.tobytes()) == (b"hello", b"world")
    whole.join((a, 5, 1))
    whole.join(tail)
    assert whole.tobytes() == b"hello world"
    assert all(buffer.exports == 0 for buffer in (a, b))


def test_edits_are_those_of_bytes(frames):
    noise = random.Random(3)
    buffers = filled(frames, *(noise.randbytes(100) for _ in range(4)))
    for _ in range(300):
        whole, text = bulk.Aggregate(), b""
        for _ in range(8):
            act, at = noise.randrange(4), noise.randrange(len(text) + 1)
            length = noise.randrange(len(text) - at + 1)
            buffer = noise.choice(buffers)
            start = noise.randrange(100)
            part = (buffer, start, noise.randrange(100 - start + 1))
            piece = buffer.tobytes()[start : start + part[2]]
            if act == 0:
                whole.insert(at, part)
                text = text[:at] + piece + text[at:]
            elif act == 1:
                whole.join(bulk.Aggregate([part]))
                text += piece
            elif act == 2:
                assert whole.remove(at, length).tobytes() == text[at : at + length]
                text = text[:at] + text[at + length :]
            else:
                assert whole.split(at).tobytes() == text[at:]
                text = text[:at]
            assert whole.tobytes() == text
            assert len(whole) == len(text)


@pytest.mark.parametrize(
    ("act", "error"),
    [
        (lambda a, whole: whole.insert(12, a), ValueError),
        (lambda a, whole: whole.insert(-1, a), ValueError),
        (lambda a, whole: whole.remove(5, 10), ValueError),
        (lambda a, whole: whole.remove(5, -1), ValueError),
        (lambda a, whole: whole.insert(1.5, a), TypeError),
        (lambda a, whole: whole.insert(5, (a, 0, 3 * PAGE)), ValueError),
        (lambda a, whole: whole.remove(1.5, 2), TypeError),
        (lambda a, whole: whole.split(12), ValueError),
        (lambda a, whole: whole.split(1.0), TypeError),
        (lambda a, whole: whole.join(b"bytes"), TypeError),
        (lambda a, whole: whole.join((a, 1)), TypeError),
        (lambda a, whole: whole.join((a, -1, 2)), ValueError),
        (lambda a, whole: whole.join((a, 0, 3 * PAGE)), ValueError),
        (lambda a, whole: whole.join((a, True, 1)), ValueError),
    ],
)
def test_what_makes_no_sense_is_refused_and_changes_nothing(frames, act, error):
    (a,) = filled(frames, b"hello world")
    whole = bulk.Aggregate([a])
    with pytest.raises(error, match=r"."):
        act(a, whole)
    assert whole.parts == ((a, 0, 11),)


# -- travelling ----------------------------------------------------------------------------------------------------


@pytest.fixture
def ends(request):
    """A channel between two domains of this process, with two pools of the source's on it."""
    trust, meta_size = getattr(request, "param", (Trust.FULL, 64))
    with World("local") as world:
        here, there = world.domains(2)
        tx, rx = world.channel(here, there, trust=trust, meta_size=meta_size)
        small = world.allocator(here, count=4, size=PAGE, trust=trust)
        big = world.allocator(here, count=2, size=4 * PAGE, trust=trust)
        for allocator in (small, big):
            world.assign(tx, rx, allocator.pool)
        yield tx, rx, small, big


EVERY_TRUST = pytest.mark.parametrize("ends", [(trust, 64) for trust in list(Trust)[1:]], indirect=True)


@EVERY_TRUST
def test_an_aggregate_of_two_pools_travels_as_one(ends):
    tx, rx, small, big = ends
    a, b = filled(small, b"head", b"tail")
    (c,) = filled(big, b"x" * PAGE + b"middle")
    whole = bulk.Aggregate([a, (c, PAGE, 6), b])
    outcomes = []
    tx.move(whole, b"meta data", outcomes.append)
    assert [buffer.state for buffer in (a, b, c)] == [INVALID] * 3
    arrived = rx.receive_aggregate(PATIENCE_S)
    assert arrived.aggregate.tobytes() == b"headmiddletail"
    assert (arrived.meta, arrived.kind) == (b"meta data", EventKind.MOVE_RECEIVED)
    assert [buffer.pool.id for buffer in arrived.aggregate.buffers] == [p.pool.id for p in (small, big, small)]
    rx.pass_(arrived.aggregate, b"thanks")
    home = tx.receive_aggregate(PATIENCE_S)
    assert (home.meta, home.kind) == (b"thanks", EventKind.BUFFER_RECEIVED)
    assert set(home.aggregate.buffers) == {a, b, c}
    assert [outcome.error for outcome in outcomes] == [None]
    assert set(outcomes[0].buffer) == {a, b, c}


@EVERY_TRUST
def test_a_copied_aggregate_is_read_and_released(ends):
    tx, rx, small, _ = ends
    a, b = filled(small, b"one", b"two")
    tx.copy(bulk.Aggregate([b, a]))
    assert a.state is BufferState.READ_ONLY_OWNED
    arrived = rx.receive_aggregate(PATIENCE_S)
    assert (arrived.aggregate.tobytes(), arrived.kind) == (b"twoone", EventKind.COPY_RECEIVED)
    assert [buffer.state for buffer in arrived.aggregate.buffers] == [READ_ONLY] * 2
    rx.release(arrived.aggregate)
    for _ in range(2):
        assert tx.receive(PATIENCE_S).kind is EventKind.COPY_RELEASED
    assert a.state is READ_WRITE


@pytest.mark.parametrize("ends", [(Trust.FULL, 80)], indirect=True)
def test_one_buffer_in_many_parts_travels_once(ends):
    tx, rx, small, _ = ends
    (a,) = filled(small, b"abcd")
    tx.move(bulk.Aggregate([(a, 3, 1), (a, 0, 1), (a, 1, 0)]))
    arrived = rx.receive_aggregate(PATIENCE_S)
    assert arrived.aggregate.tobytes() == b"da"
    rx.give_back(arrived.aggregate)
    assert tx.receive_buffer(PATIENCE_S).buffer is a


def test_what_cannot_be_sent_whole_is_not_sent_at_all(ends):
    tx, _, small, big = ends
    a, b = filled(small, b"one", b"two")
    (c,) = filled(big, b"three")
    with memoryview(c), pytest.raises(BufferError):
        tx.move(bulk.Aggregate([a, b, c]))
    with pytest.raises(ValueError, match="whose length is 3"):
        tx.move(bulk.Aggregate([b, (a, 0, 4)]))
    with pytest.raises(ValueError, match="without buffers"):
        tx.move(bulk.Aggregate())
    with pytest.raises(bulk.MetaSizeError, match="needs a meta size of 137"):
        tx.move(bulk.Aggregate([a]), b"x" * 97)
    with pytest.raises(bulk.NotAllocatedError):
        tx.move(bulk.Aggregate([a, small.pool[0]] if small.pool[0] not in (a, b) else [a, small.pool[3]]))
    for nothing in (b"bytes", None, [a]):
        for act in (tx.move, tx.copy):
            with pytest.raises(TypeError, match="takes a Buffer or an Aggregate"):
                act(nothing)
    assert [buffer.state for buffer in (a, b, c)] == [READ_WRITE] * 3
    assert tx.statistics()["sent"]["move"] == 0


@pytest.mark.parametrize("ends", [(Trust.FULL, 24)], indirect=True)
def test_a_long_list_of_parts_is_spread_over_the_meta_data_of_its_buffers(ends):
    tx, rx, small, _ = ends
    buffers = filled(small, *(bytes([65 + i]) * 8 for i in range(4)))
    with pytest.raises(bulk.MetaSizeError, match="needs a meta size of"):
        tx.move(bulk.Aggregate([(buffer, i, 1) for i in range(4) for buffer in buffers]))
    whole = bulk.Aggregate([(buffers[3], 1, 2), buffers[1]])
    with pytest.raises(bulk.MetaSizeError):
        tx.move(whole)
    one = bulk.Aggregate([*buffers])
    with pytest.raises(bulk.MetaSizeError, match="needs a meta size of 31"):
        tx.move(one)
    assert all(buffer.state is READ_WRITE for buffer in buffers)
    assert rx.statistics()["received"]["move"] == 0


@pytest.mark.parametrize("ends", [(Trust.FULL, 31)], indirect=True)
def test_the_least_meta_data_that_is_enough_is_enough(ends):
    tx, rx, small, _ = ends
    buffers = filled(small, *(bytes([65 + i]) * 8 for i in range(4)))
    tx.move(bulk.Aggregate(reversed(buffers)))
    assert rx.receive_aggregate(PATIENCE_S).aggregate.tobytes() == b"DDDDDDDDCCCCCCCCBBBBBBBBAAAAAAAA"


def test_a_buffer_that_was_sent_alone_is_an_aggregate_of_one(ends):
    tx, rx, small, _ = ends
    (a,) = filled(small, b"alone")
    tx.move(a, b"note")
    arrived = rx.receive_aggregate(PATIENCE_S)
    assert (arrived.aggregate.tobytes(), arrived.meta) == (b"alone", b"note")


def test_a_timeout_half_way_loses_nothing(ends):
    tx, rx, small, _ = ends
    buffers = filled(small, b"one", b"two")
    metas = gathering.encode(bulk.Aggregate(buffers), b"", 64)
    tx.move(buffers[0], metas[0])
    with pytest.raises(TimeoutError):
        rx.receive_aggregate(0)
    tx.move(buffers[1], metas[1])
    assert rx.receive_aggregate(0).aggregate.tobytes() == b"onetwo"


def test_who_may_not_receive_half_way_loses_nothing(ends):
    tx, rx, small, _ = ends
    buffers = filled(small, b"one", b"two")
    metas = gathering.encode(bulk.Aggregate(buffers), b"", 64)
    tx.move(buffers[0], metas[0])
    with pytest.raises(TimeoutError):
        rx.receive_aggregate(0)

    refused = []

    def receive_inside(event):
        with pytest.raises(bulk.WouldBlock) as error:
            rx.receive_aggregate(PATIENCE_S)
        refused.append(error)

    rx.set_callbacks(bulk.Callbacks(copy_received=receive_inside))
    other = small.alloc()
    tx.copy(other)
    with pytest.raises(TimeoutError):
        rx.receive(0)
    assert len(refused) == 1
    rx.set_callbacks(bulk.Callbacks())
    tx.move(buffers[1], metas[1])
    assert rx.receive_aggregate(0).aggregate.tobytes() == b"onetwo"


def test_transfers_that_came_another_way_are_put_together(ends):
    tx, rx, small, _ = ends
    tx.move(bulk.Aggregate(filled(small, b"one", b"two")), b"note")
    first, second = rx.receive(PATIENCE_S), rx.receive(PATIENCE_S)
    assert rx.gather(first) is None
    arrived = rx.gather(second)
    assert (arrived.aggregate.tobytes(), arrived.meta) == (b"onetwo", b"note")
    tx.destroy(done=lambda outcome: None)
    with pytest.raises(ValueError, match="brings no buffer"):
        rx.gather(rx.receive(PATIENCE_S))


def test_a_source_that_ends_half_way_leaves_no_half(ends):
    tx, rx, small, _ = ends
    buffers = filled(small, b"one", b"two")
    tx.move(buffers[0], gathering.encode(bulk.Aggregate(buffers), b"", 64)[0])
    tx.close()
    with pytest.raises(bulk.EndOfChannelError):
        rx.receive_aggregate(PATIENCE_S)
    bulk.current_domain().serve()
    assert rx.gathering is None


SIGN = b"BkAg"


def heads(*texts):
    return [struct.pack("<4sI", SIGN, i) + text for i, text in enumerate(texts)]


COUNTS, PART = struct.Struct("<III"), struct.Struct("<IQQ")


@pytest.mark.parametrize(
    "metas",
    [
        [SIGN],
        [SIGN + b"\x01\0\0\0"],
        heads(b"short"),
        heads(COUNTS.pack(0, 0, 0)),
        heads(COUNTS.pack(1, 1, 0)),
        heads(COUNTS.pack(1, 0, 0) + b"more"),
        heads(COUNTS.pack(1, 0xFFFFFFFF, 0)),
        heads(COUNTS.pack(1, 0, 0xFFFFFFFF)),
        heads(COUNTS.pack(1, 1, 0) + PART.pack(1, 0, 0)),
        heads(COUNTS.pack(1, 1, 0) + PART.pack(0, 0, 5)),
        heads(COUNTS.pack(1, 1, 0) + PART.pack(0, (1 << 64) - 1, 2)),
        [heads(COUNTS.pack(2, 0, 0))[0], b"something else"],
        [heads(COUNTS.pack(2, 0, 0))[0], heads(b"")[0]],
    ],
)
def test_an_aggregate_that_is_put_together_wrongly_ends_the_channel(ends, metas):
    tx, rx, small, _ = ends
    for buffer, meta in zip(filled(small, b"data", b"data"), metas, strict=False):
        tx.move(buffer, meta)
    with pytest.raises(bulk.ProtocolViolation):
        rx.receive_aggregate(PATIENCE_S)
    with pytest.raises(bulk.BrokenChannelError, match="broke a rule"):
        [tx.receive(PATIENCE_S) for _ in range(9)]


def test_an_aggregate_reaches_another_process_and_comes_back(spawn):
    def turn_round(pipe, address):
        import bulktransfer as bulk

        with bulk.bind(address) as rx:
            for _ in range(3):
                arrived = rx.receive_aggregate()
                with arrived.aggregate.mapped() as whole:
                    pipe.send((bytes(whole), whole.copied))
                    try:
                        rx.pass_(arrived.aggregate)
                    except BufferError as error:
                        pipe.send(str(error))
                rx.pass_(arrived.aggregate)
            pipe.recv()

    with (
        bulk.create("shm:", direction=TX, trust=Trust.FULL, meta_size=64) as tx,
        bulk.Allocator(count=4, size=2 * PAGE) as one,
        bulk.Allocator(count=2, size=PAGE) as two,
    ):
        child = spawn(turn_round, tx.address)
        tx.wait_bound(PATIENCE_S)
        tx.assign_pool(one.pool)
        tx.assign_pool(two.pool)
        for number in range(3):
            a, b = filled(one, bytes([number]) * 2 * PAGE, b"b" * PAGE)
            (c,) = filled(two, b"the end")
            whole = bulk.Aggregate([(a, PAGE, PAGE), b, c])
            text = whole.tobytes()
            tx.move(whole)
            assert child.receive() == (text, False)
            assert "view" in child.receive()
            for buffer in tx.receive_aggregate(PATIENCE_S).aggregate.buffers:
                (two if buffer.pool is two.pool else one).free(buffer)
        child.send("end")
        child.join()


# -- mapped --------------------------------------------------------------------------------------------------------


def test_whole_pages_are_mapped_side_by_side_and_seen_as_they_change(frames):
    a, b, c = filled(frames, b"a" * 2 * PAGE, b"b" * 2 * PAGE, b"the rest")
    whole = bulk.Aggregate([b, (a, PAGE, PAGE), c])
    with whole.mapped() as mapped:
        assert (mapped.copied, len(mapped)) == (False, 3 * PAGE + 8)
        assert bytes(mapped) == whole.tobytes()
        array = np.frombuffer(mapped, "u1")
        a.write(b"!", PAGE + 5)
        assert array[2 * PAGE + 5] == ord("!")
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
        with pytest.raises(BufferError, match="1 view is live"):
            mapped.close()
        del array
    assert [buffer.exports for buffer in (a, b, c)] == [0, 0, 0]
    with pytest.raises(BufferError, match="closed"):
        memoryview(mapped)


def test_what_is_mapped_neither_travels_nor_is_freed(ends):
    tx, _, small, _ = ends
    (a,) = filled(small, b"a" * PAGE)
    with bulk.Aggregate([a]).mapped():
        for act in (lambda: tx.move(a), lambda: small.free(a), lambda: a.put(b"new")):
            with pytest.raises(BufferError):
                act()
    tx.move(a)


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        (lambda a, b: [(a, 1, PAGE)], "part 0 begins inside a page, at 1"),
        (lambda a, b: [(a, 0, 5), b], "part 0 ends inside a page, after 5"),
        (lambda a, b: [a, (b, 0, PAGE), (a, 8, 1)], "part 2 begins inside a page"),
    ],
)
def test_a_copy_that_is_unavoidable_is_said_and_made_on_demand(frames, parts, why):
    a, b = filled(frames, b"a" * 2 * PAGE, b"b" * 2 * PAGE)
    whole = bulk.Aggregate(parts(a, b))
    with pytest.raises(ValueError, match=f"{why}.*a copy is unavoidable"):
        whole.mapped()
    assert a.exports == 0
    with whole.mapped(copy=True) as mapped:
        assert mapped.copied
        assert bytes(mapped) == whole.tobytes()
        assert a.exports == 0  # a copy holds nobody up


@pytest.mark.parametrize("ends", [(Trust.NONE, 64)], indirect=True)
def test_a_twin_is_mapped_by_copying_only(ends):
    tx, rx, small, _ = ends
    (a,) = filled(small, b"a" * PAGE)
    tx.move(bulk.Aggregate([a]))
    arrived = rx.receive_aggregate(PATIENCE_S)
    with pytest.raises(ValueError, match="memory of this process alone"):
        arrived.aggregate.mapped()
    with arrived.aggregate.mapped(copy=True) as mapped:
        assert bytes(mapped) == b"a" * PAGE


@pytest.mark.parametrize("how", ["copy", "move"])
def test_what_a_sealed_frame_holds_is_mapped_by_copying_only(how):
    with World("shm") as world:
        here, there = world.domains(2)
        tx, rx = world.channel(here, there, trust=Trust.NONE)
        frames = world.allocator(here, count=1, size=256 << 10)
        outcomes = []
        tx.assign_pool(frames.pool, means="sealed", done=outcomes.append)
        while not outcomes:
            for channel in (rx, tx):
                _look(channel)
        (a,) = filled(frames, b"stale" * PAGE)
        with bulk.Aggregate([a]).mapped() as mapped:
            assert bytes(mapped) == b"stale" * PAGE
        getattr(tx, how)(a)
        rx.give_back(rx.receive_buffer(PATIENCE_S).buffer)
        assert tx.receive(PATIENCE_S).buffer is a
        a.put(b"fresh" * PAGE)
        whole = bulk.Aggregate([a])
        try:
            mapped = whole.mapped()
        except ValueError as error:
            assert "in a frame that was sealed" in str(error)
            mapped = whole.mapped(copy=True)
        with mapped:
            assert bytes(mapped) == b"fresh" * PAGE


def _look(channel):
    try:
        channel.receive_nowait()
    except bulk.WouldBlock:
        return


def test_nothing_is_mapped_of_what_is_away_or_beyond_the_length(ends):
    tx, _, small, _ = ends
    a, b = filled(small, b"a" * PAGE, b"b")
    gone = bulk.Aggregate([a])
    tx.move(a)
    with pytest.raises(bulk.InvalidBufferError):
        gone.mapped()
    with pytest.raises(ValueError, match="its length is 1"):
        bulk.Aggregate([(b, 0, PAGE)]).mapped()
    with bulk.Aggregate().mapped() as nothing:
        assert bytes(nothing) == b""


def test_a_forked_child_sees_nothing_of_what_was_mapped(frames):
    (a,) = filled(frames, b"secret" + bytes(PAGE - 6))
    with bulk.Aggregate([a]).mapped() as mapped:
        pid = os.fork()
        if pid == 0:
            os._exit(0 if bytes(mapped) == bytes(PAGE) else 1)
        assert os.waitpid(pid, 0)[1] == 0
        assert bytes(mapped)[:6] == b"secret"


# -- files ---------------------------------------------------------------------------------------------------------


def test_files_are_read_into_parts_and_written_from_them(frames, tmp_path):
    data = os.urandom(2 * PAGE + 100)
    (tmp_path / "in").write_bytes(data)
    a, b = frames.alloc(), frames.alloc()
    whole = bulk.Aggregate([(b, 7, 100), (a, 0, PAGE), (b, PAGE, PAGE)])
    with open(tmp_path / "in", "rb", buffering=0) as file:
        assert whole.readv_from(file.fileno()) == len(data)
        assert whole.tobytes() == data
        assert whole.readv_from(file.fileno(), 10) == len(data) - 10
    assert whole.tobytes() == data[10:] + data[-10:]
    with open(tmp_path / "out", "wb", buffering=0) as file:
        file.write(b"head")
        assert whole.writev_to(file.fileno(), 8) == len(data)
        assert whole.writev_to(file.fileno()) == len(data)
    assert (tmp_path / "out").read_bytes() == b"head" + whole.tobytes() + whole.tobytes()[-4:]
    assert a.exports == b.exports == 0


@pytest.mark.parametrize(("offset", "error"), [(-1, ValueError), ("x", TypeError), (1.5, TypeError)])
def test_an_offset_that_is_none_reads_and_writes_nothing(frames, tmp_path, offset, error):
    (a,) = filled(frames, b"kept")
    with open(tmp_path / "file", "w+b", buffering=0) as file:
        file.write(b"file")
        for act in (bulk.Aggregate([a]).writev_to, bulk.Aggregate([a]).readv_from):
            with pytest.raises(error):
                act(file.fileno(), offset)
    assert (a.tobytes(), (tmp_path / "file").read_bytes()) == (b"kept", b"file")


def test_more_parts_than_the_kernel_takes_at_once_are_written(frames, tmp_path):
    (a,) = filled(frames, os.urandom(3000))
    whole = bulk.Aggregate([(a, 2999 - i, 1) for i in range(3000)])
    with open(tmp_path / "out", "w+b", buffering=0) as file:
        assert whole.writev_to(file.fileno()) == 3000
        assert os.pread(file.fileno(), 5000, 0) == a.tobytes()[::-1]
        assert whole.readv_from(file.fileno(), 0) == 3000


def test_a_pipe_that_takes_little_at_a_time_gets_all(frames):
    (a,) = filled(frames, os.urandom(2 * PAGE))
    here, there = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(there)
        total = 0
        while got := os.read(here, 100):
            total += len(got)
        os._exit(0 if total == 40 * PAGE else 1)
    os.close(here)
    assert bulk.Aggregate([a] * 20).writev_to(there) == 40 * PAGE
    os.close(there)
    assert os.waitpid(pid, 0)[1] == 0


def test_what_may_not_be_written_is_not_read_into(ends, tmp_path):
    tx, rx, small, _ = ends
    (a,) = filled(small, b"data")
    tx.copy(bulk.Aggregate([a]))
    copy = rx.receive_aggregate(PATIENCE_S).aggregate
    (tmp_path / "in").write_bytes(b"evil")
    with open(tmp_path / "in", "rb") as file, pytest.raises(BufferError, match="read-only"):
        copy.readv_from(file.fileno())
    assert copy.tobytes() == b"data"


def test_direct_io_works_where_parts_are_blocks_and_says_where_not(frames, tmp_path):
    a, b = filled(frames, os.urandom(2 * PAGE), os.urandom(2 * PAGE))
    try:
        fd = os.open(tmp_path / "direct", os.O_RDWR | os.O_CREAT | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        pytest.skip(f"no O_DIRECT here: {error}")
    try:
        whole = bulk.Aggregate([(a, PAGE, PAGE), b])
        assert whole.writev_to(fd, 0) == 3 * PAGE
        text = whole.tobytes()
        a.put(bytes(2 * PAGE))
        b.put(bytes(2 * PAGE))
        assert whole.readv_from(fd, 0) == 3 * PAGE
        assert whole.tobytes() == text
        with pytest.raises(OSError, match=r"part 1 .*not whole blocks") as refused:
            bulk.Aggregate([a, (b, 0, 100)]).writev_to(fd, 0)
        assert refused.value.errno == errno.EINVAL
        with pytest.raises(OSError, match="offset 5"):
            whole.writev_to(fd, 5)
    finally:
        os.close(fd)
