"""Streams of arrays: what a writer sends, readers see in place; who is slow is dealt with as the writer said."""

from __future__ import annotations

import gc
import signal

import hypothesis.strategies as st
import pytest
from hypothesis import given

import bulktransfer as bulk
from bulktransfer import Direction, Trust
from bulktransfer.streams.label import HEAD, form_of, pack, unpack
from meeting import Background
from worlds import PATIENCE_S

np = pytest.importorskip("numpy")


@pytest.fixture(params=["local", "shm"])
def address(request):
    return f"{request.param}:stream"


def numbered(number):
    return np.full((4, 5), number, "<f4")


def joined(writer, **options):
    """A reader that has joined."""
    count = writer.readers + 1
    joining = Background(lambda: bulk.reader(writer.address, **options))
    writer.wait_for_readers(count, PATIENCE_S)
    return joining.result()


def values(reader):
    """What has arrived, until nothing is left: the first item of each array."""
    found = []
    while True:
        try:
            found.append(reader.receive(0)[0, 0].item())
        except TimeoutError:
            return found


# -- between processes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["reader", "writer"])
def test_a_process_reads_what_another_writes_in_place(spawn, first):
    def consumer(pipe):
        import bulktransfer as bulk

        pipe.send("started")
        with bulk.reader("shm:camera", timeout=20) as reader:
            pool = reader.channel.pools[0]
            inside = range(pool.address, pool.address + pool.buffer_size * pool.buffer_count)
            for array in reader:
                read_only = not array.flags.writeable
                pipe.send((array.copy(), reader.meta, array.ctypes.data in inside, read_only, reader.missed))
        pipe.send("end")

    child = spawn(consumer) if first == "reader" else None
    if child:
        assert child.receive() == "started"
    with bulk.writer("shm:camera", like=numbered(0), slots=3) as writer:
        if child is None:
            child = spawn(consumer)
            assert child.receive() == "started"
        for number in range(10):
            if number % 2:
                assert writer.send(numbered(number), str(number).encode(), PATIENCE_S) == 1
            else:
                slot = writer.next(PATIENCE_S)
                slot.array[:] = number
                assert slot.send(str(number).encode(), PATIENCE_S) == 1
    for number in range(10):
        array, meta, inside, read_only, missed = child.receive()
        assert (array == numbered(number)).all()
        assert array.dtype == np.dtype("<f4")
        assert (meta, inside, read_only, missed) == (str(number).encode(), True, True, 0)
    assert child.receive() == "end"
    child.join()


def holder(pipe, address):
    """Holds an array until it is killed."""
    import bulktransfer as bulk

    reader = bulk.reader(address)
    array = reader.receive()
    pipe.send(float(array[0, 0]))
    pipe.recv()


def test_a_killed_reader_does_not_stop_the_writer_and_its_slots_come_back(spawn):
    with bulk.writer("shm:", like=numbered(0), slots=2) as writer:
        child = spawn(holder, writer.address)
        assert writer.send(numbered(1), timeout=PATIENCE_S) == 1
        assert child.receive() == 1.0
        writer.send(numbered(2), timeout=PATIENCE_S)  # on its way to it
        child.signal(signal.SIGSTOP)
        with pytest.raises(TimeoutError, match="a free slot"):
            writer.next(0.01)
        child.kill()
        slots = [writer.next(PATIENCE_S) for _ in range(2)]
        assert writer.readers == 0
        for slot in slots:
            slot.discard()
        with joined(writer) as reader:
            writer.send(numbered(3))
            assert values(reader) == [3]


def test_a_slot_comes_back_when_a_reader_that_left_lets_go_of_its_array(spawn):
    def leaver(pipe, address):
        import gc

        import bulktransfer as bulk

        reader = bulk.reader(address)
        array = reader.receive()
        reader.close()
        pipe.send("left")
        pipe.recv()
        del reader, array
        gc.collect()
        pipe.send("gone")
        pipe.recv()

    with bulk.writer("shm:", like=numbered(0), slots=2) as writer:
        child = spawn(leaver, writer.address)
        writer.send(numbered(1), timeout=PATIENCE_S)
        assert child.receive() == "left"
        slot = writer.next(PATIENCE_S)
        with pytest.raises(TimeoutError):
            writer.next(0.01)
        waiting = Background(lambda: writer.next(PATIENCE_S))
        child.send("let go")
        assert child.receive() == "gone"
        for each in (slot, waiting.result()):
            each.discard()
        child.send("end")
        child.join()


def test_a_killed_reader_stops_the_writer_where_that_was_asked(spawn):
    with bulk.writer("shm:", like=numbered(0), stop_with_reader=True) as writer:
        child = spawn(holder, writer.address)
        writer.send(numbered(1), timeout=PATIENCE_S)
        assert child.receive() == 1.0
        child.kill()
        with pytest.raises(bulk.BrokenChannelError):
            writer.wait_for_readers(2, PATIENCE_S)


def test_a_killed_writer_breaks_the_stream_after_what_it_sent(spawn):
    def camera(pipe):
        import numpy as np

        import bulktransfer as bulk

        writer = bulk.writer("shm:camera", like=np.zeros((4, 5), "<f4"))
        for number in range(3):
            writer.send(np.full((4, 5), number, "<f4"))
        pipe.send("sent")
        pipe.recv()

    child = spawn(camera)
    with bulk.reader("shm:camera", timeout=PATIENCE_S) as reader:
        kept = [reader.receive(PATIENCE_S) for _ in range(2)]
        assert child.receive() == "sent"
        child.kill()
        kept.append(reader.receive(PATIENCE_S))
        with pytest.raises(bulk.BrokenChannelError):
            reader.receive(PATIENCE_S)
    assert [array[0, 0] for array in kept] == [0, 1, 2]  # arrays outlive the reader, and the writer


# -- who is slow -------------------------------------------------------------------------------------------------------


def test_a_slot_is_used_again_when_the_last_view_of_its_array_died(address):
    with bulk.writer(address, like=numbered(0), slots=2) as writer, joined(writer) as reader:
        writer.send(numbered(1))
        writer.send(numbered(2))
        first = reader.receive(PATIENCE_S)
        part = first[1:, ::2]
        with pytest.raises(TimeoutError):
            writer.send(numbered(3), timeout=0.01)
        del first
        with pytest.raises(TimeoutError):
            writer.send(numbered(3), timeout=0.01)
        del part
        assert writer.send(numbered(3), timeout=PATIENCE_S) == 1
        assert values(reader) == [2, 3]


def test_wait_waits_for_the_first_reader_and_loses_nothing(address):
    with bulk.writer(address, like=numbered(0)) as writer:
        with pytest.raises(TimeoutError, match="a reader"):
            writer.send(numbered(1), timeout=0.01)
        slot = writer.next()
        slot.array[:] = 2
        with pytest.raises(TimeoutError, match="a reader"):
            slot.send(timeout=0.01)
        with joined(writer) as reader:
            assert slot.send() == 1
            assert values(reader) == [2]
        assert (writer.sent, writer.dropped) == (1, 0)


def test_a_reader_that_waits_with_an_array_in_hand_gets_the_next(address):
    with bulk.writer(address, like=numbered(0), slots=2) as writer, joined(writer) as one, joined(writer) as other:
        found = []
        reading = [Background(lambda r=r: found.append([a[0, 0].item() for a in r])) for r in (one, other)]
        for number in range(50):
            writer.send(numbered(number), timeout=PATIENCE_S)
        writer.close()
        for one_reads in reading:
            one_reads.result()
        assert found == [list(range(50))] * 2


def test_drop_newest_drops_what_finds_no_slot(address):
    with bulk.writer(address, like=numbered(0), slots=3, slow="drop newest") as writer:
        assert writer.send(numbered(0)) == 0  # nobody is there
        with joined(writer) as reader:
            assert [writer.send(numbered(n)) for n in range(1, 6)] == [1, 1, 1, 0, 0]
            assert values(reader) == [1, 2, 3]
            assert reader.missed == 0
            slot = writer.next()
            slot.array[:] = 6
            assert slot.send() == 1
            assert values(reader) == [6]
            assert reader.missed == 2
        assert (writer.sent, writer.dropped) == (4, 3)


def test_a_slot_that_was_full_when_asked_for_is_sent_where_one_got_free_meanwhile(address):
    with bulk.writer(address, like=numbered(0), slots=2, slow="drop newest") as writer, joined(writer) as reader:
        writer.send(numbered(1))
        writer.send(numbered(2))
        slot = writer.next()
        slot.array[:] = 3
        assert values(reader) == [1, 2]
        assert slot.send() == 1
        assert values(reader) == [3]


def test_drop_oldest_keeps_the_newest_for_a_slow_reader(address):
    with bulk.writer(address, like=numbered(0), slots=4, slow="drop oldest") as writer:
        with joined(writer) as reader, joined(writer) as quick:
            for number in range(1, 10):
                assert writer.send(numbered(number)) == 2
                assert quick.receive(PATIENCE_S)[0, 0] == number
            assert reader.receive(PATIENCE_S)[0, 0] == 1  # it has two at a time, which cannot be taken back
            assert writer.readers == 2
            assert reader.receive(PATIENCE_S)[0, 0] == 2
            assert writer.readers == 2
            assert values(reader) == [8, 9]
            assert reader.missed == 5
            assert quick.missed == 0
        assert (writer.sent, writer.dropped) == (9, 5)


def test_drop_oldest_still_delivers_what_waited_when_the_stream_ends(address):
    writer = bulk.writer(address, like=numbered(0), slots=4, slow="drop oldest")
    with writer, joined(writer) as reader:
        for number in range(1, 10):
            writer.send(numbered(number))
        writer.close()
        assert [array[0, 0] for array in reader] == [1, 2, 8, 9]


def test_error_says_that_readers_have_all_the_slots(address):
    with bulk.writer(address, like=numbered(0), slots=2, slow="error") as writer, joined(writer) as reader:
        writer.send(numbered(1))
        writer.send(numbered(2))
        with pytest.raises(bulk.PoolExhaustedError, match="readers have all the slots"):
            writer.send(numbered(3))
        with pytest.raises(bulk.PoolExhaustedError):
            writer.next()
        assert values(reader) == [1, 2]
        writer.send(numbered(4))
        assert values(reader) == [4]
        assert reader.missed == 0  # what raised was not sent, so nobody missed it


# -- readers come and go -----------------------------------------------------------------------------------------------


def test_each_reader_gets_what_is_sent_while_it_is_there(address):
    with bulk.writer(address, like=numbered(0)) as writer:
        with joined(writer) as first:
            assert writer.send(numbered(1)) == 1
            with joined(writer) as second:
                assert writer.send(numbered(2)) == 2
                assert values(second) == [2]
            assert values(first) == [1, 2]
            assert writer.send(numbered(3), timeout=PATIENCE_S) >= 1
            assert values(first) == [3]
        assert writer.readers == 0


@pytest.mark.parametrize("stop", [False, True])
def test_a_reader_that_leaves_stops_the_writer_only_where_asked(address, stop):
    with bulk.writer(address, like=numbered(0), slow="drop newest", stop_with_reader=stop) as writer:
        joined(writer).close()
        if stop:
            with pytest.raises(bulk.EndOfChannelError):
                writer.send(numbered(1))
        else:
            assert writer.send(numbered(1)) == 0


def test_an_array_that_is_kept_outlives_its_reader_and_its_writer(address):
    with bulk.writer(address, like=numbered(0)) as writer:
        reader = joined(writer)
        writer.send(numbered(7))
        array = reader.receive(PATIENCE_S)
        reader.close()
    del reader, writer
    gc.collect()
    assert (array == numbered(7)).all()


def test_only_a_stream_can_be_read(address):
    spec = bulk.ChannelSpec(direction=Direction.RX, trust=Trust.FULL)
    with bulk.listen(address, [spec], domain=bulk.Domain()) as listener:
        joining = Background(lambda: bulk.reader(address))
        (channel,) = listener.accept(PATIENCE_S)
        with pytest.raises(bulk.BindRefusedError, match="no stream"):
            joining.result()
        channel.close()
    with pytest.raises(bulk.EndpointNotFoundError):
        bulk.reader(address, timeout=0.01)


def test_a_writer_that_ends_before_its_reader_has_joined_ended_in_order(address):
    with bulk.listen(address, [bulk.ChannelSpec(direction=Direction.TX, trust=Trust.FULL)]) as listener:
        joining = Background(lambda: bulk.reader(listener.address))
        (channel,) = listener.accept(PATIENCE_S)
        channel.destroy(PATIENCE_S)
        with pytest.raises(bulk.EndOfChannelError):
            joining.result()


def test_a_writer_takes_no_pools_from_a_reader(address):
    with (
        bulk.writer(address, like=numbered(0)) as writer,
        joined(writer) as reader,
        bulk.Allocator(count=1, size=4096, domain=reader.channel.domain) as alloc,
    ):
        asking = Background(lambda: reader.channel.assign_pool(alloc.pool))
        while asking.running:
            assert writer.readers == 1
        with pytest.raises(bulk.PoolVetoError, match="takes no pools"):
            asking.result()


# -- slots and arguments -----------------------------------------------------------------------------------------------


def test_a_slot_with_a_live_view_is_not_sent_and_stays(address):
    with bulk.writer(address, like=numbered(0)) as writer, joined(writer) as reader:
        slot = writer.next()
        view = slot.array
        view[:] = 1
        with pytest.raises(BufferError, match="1 views of its array are live"):
            slot.send()
        with pytest.raises(BufferError):
            slot.discard()
        del view
        assert slot.send() == 1
        for use in (slot.send, lambda: slot.array):
            with pytest.raises(ValueError, match="sent or discarded"):
                use()
        slot.discard()
        assert values(reader) == [1]


def test_a_writer_whose_user_has_all_the_slots_says_so(address):
    with bulk.writer(address, like=numbered(0), slots=2) as writer:
        slots = [writer.next(), writer.next()]
        with pytest.raises(bulk.PoolExhaustedError, match="you have all its 2 slots"):
            writer.next()
        slots[0].discard()
        assert writer.next() is not None


def test_arrays_of_any_kind_that_a_slot_holds_may_be_sent(address):
    with bulk.writer(address, like=("<f8", (100,)), slots=8) as writer, joined(writer) as reader:
        sent = [
            np.arange(100.0),
            np.arange(6, dtype=">i2").reshape(2, 3)[:, ::-1],
            np.asfortranarray(np.arange(12, dtype="u1").reshape(3, 4)),
            np.array([(1, 2.5), (3, 4.5)], [("a", "<i4"), ("b", "<f8")]),
            np.array(["ab", "c"]),
            np.float32(1.5),
            np.empty((0, 3), "<f4"),
        ]
        for array in sent:
            writer.send(array)
        for array in sent:
            found = reader.receive(PATIENCE_S)
            assert found.dtype == array.dtype
            assert found.shape == array.shape
            assert (found == array).all()


@pytest.mark.parametrize(
    ("array", "what"),
    [
        (np.zeros(1025, "<f4"), "takes 4100 bytes"),
        (np.array([object()]), "cannot travel"),
        (np.zeros(1, np.dtype([("a", "i1"), ("b", "<i4")], align=True)), "cannot travel"),
    ],
)
def test_an_array_that_cannot_travel_is_refused(address, array, what):
    with bulk.writer(address, like=numbered(0)) as writer:
        with pytest.raises(ValueError, match=what):
            writer.send(array)
        with pytest.raises(ValueError, match=r"65 bytes of meta data"):
            writer.send(numbered(0), bytes(65))
        assert all(writer.next() for _ in range(4))  # every slot is free


@pytest.mark.parametrize("wrong", [{"slow": "later"}, {"slots": 1}, {"like": ("O", (2,))}, {"address": "x:y"}])
def test_a_writer_judges_its_arguments(wrong):
    with pytest.raises(ValueError, match=r"slow|slots|cannot travel|scheme|backend"):
        bulk.writer(**{"address": "shm:", "like": numbered(0), **wrong})


def test_a_closed_writer_says_so(address):
    writer = bulk.writer(address, like=numbered(0))
    slot = writer.next()
    writer.close()
    writer.close()
    for call in (lambda: writer.send(numbered(0)), writer.next, slot.send, writer.wait_for_readers):
        with pytest.raises(bulk.ClosedChannelError):
            call()
    assert writer.readers == 0


# -- what is said about an array ---------------------------------------------------------------------------------------

PLAIN = st.sampled_from(["|b1", "|u1", "<i2", ">i4", "<f2", "<f8", ">c16", "|S5", "<U3", "<M8[ns]", "<m8[25us]", "|V6"])


@st.composite
def dtypes(draw, depth=2):
    if depth == 0 or draw(st.booleans()):
        return np.dtype(draw(PLAIN))
    names = draw(st.lists(st.text("abcxyzµ", min_size=1, max_size=4), min_size=1, max_size=3, unique=True))
    sides = st.one_of(st.just(()), st.tuples(st.integers(1, 3)))
    return np.dtype([(name, draw(dtypes(depth - 1)), draw(sides)) for name in names])


@given(dtypes(), st.lists(st.integers(0, 5), max_size=4).map(tuple), st.integers(0, 2**64 - 1), st.binary(max_size=20))
def test_a_label_arrives_as_it_was(dtype, shape, number, meta):
    size = dtype.itemsize * int(np.prod(shape, dtype="i8"))
    label = unpack(pack(number, form_of(dtype, shape), meta), size)
    assert (label.number, label.dtype, label.shape, label.meta) == (number, dtype, shape, meta)
    with pytest.raises(ValueError, match="an array of"):
        unpack(pack(number, form_of(dtype, shape), meta), size + 1)


FORMS = [
    b"",
    b"[",
    b"{}",
    b'["|u1"]',
    b'["|u1",[1],2]',
    b'["|u1",5]',
    b'["|u1",[-1]]',
    b'["|u1",[true]]',
    b'["|u1",[1.0]]',
    b'["|u1",[281474976710656]]',
    b'["|O8",[1]]',
    b'["O",[1]]',
    b'["|S0",[1]]',
    b'["<f3",[1]]',
    b'["i4,f4",[1]]',
    b'["<M8[years]",[1]]',
    b"[7,[1]]",
    b"[[],[1]]",
    b'[[["a"]],[1]]',
    b'[[["a","|O8"]],[1]]',
    b'[[["a","|u1"],["a","|u1"]],[1]]',
    b'[[["a","|u1",[0]]],[1]]',
    b'[[["a","|u1",[-5]]],[1]]',
    b'[[[["a"],"|u1"]],[1]]',
    b"\xff\xfe",
    b'["|u1",[' + b"1," * 32 + b"1]]",
    b"[" * 500,
]


@pytest.mark.parametrize("form", FORMS)
def test_a_label_of_another_form_is_refused(form):
    with pytest.raises(ValueError, match=r"."):
        unpack(pack(1, form, b""), 1)


@given(st.binary(max_size=600), st.integers(0, 4096))
def test_whatever_a_peer_says_of_an_array_is_a_label_or_a_value_error(data, length):
    for said in (data, HEAD.pack(1, len(data)) + data):
        try:
            assert unpack(said, length).size == length
        except ValueError:
            continue


def test_a_writer_that_lies_about_an_array_ends_the_stream(address):
    spec = bulk.ChannelSpec(direction=Direction.TX, trust=Trust.FULL, meta_size=100)
    domain = bulk.Domain()
    with bulk.listen(address, [spec], domain=domain) as listener:
        joining = Background(lambda: bulk.reader(address))
        (channel,) = listener.accept(PATIENCE_S)
        with channel, bulk.Allocator(count=1, size=4096, domain=domain) as alloc:
            channel.assign_pool(alloc.pool)
            buffer = alloc.alloc()
            buffer.put(bytes(8))
            channel.copy(buffer, pack(0, b'["|u1",[9]]', b""))
            with joining.result() as reader:
                with pytest.raises(bulk.ProtocolViolation, match="an array of"):
                    reader.receive(PATIENCE_S)
                with pytest.raises(bulk.ClosedChannelError):
                    reader.receive(PATIENCE_S)
