"""Arrays over buffers: NumPy, DLPack, Arrow, torch. Each is a live view: the buffer does not leave under it."""

from __future__ import annotations

import ctypes
import gc
import threading

import pytest

import bulktransfer as bulk
from bulktransfer import BufferState, EventKind
from worlds import PATIENCE_S, World, nothing_comes, take

np = pytest.importorskip("numpy")


class Tensor(ctypes.Structure):
    """DLTensor, as the specification of DLPack has it."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)  # it drops the GIL, as a consumer in C++ does


class Legacy(ctypes.Structure):
    _fields_ = [("tensor", Tensor), ("context", ctypes.c_void_p), ("deleter", DELETER)]


class Versioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", DELETER),
        ("flags", ctypes.c_uint64),
        ("tensor", Tensor),
    ]


pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
rename = ctypes.pythonapi.PyCapsule_SetName
rename.restype, rename.argtypes = ctypes.c_int, [ctypes.py_object, ctypes.c_char_p]


class Consumer:
    """Takes a capsule over as an array library does, and lets it go."""

    NAMES = ((Legacy, b"dltensor", b"used_dltensor"), (Versioned, b"dltensor_versioned", b"used_dltensor_versioned"))

    def __init__(self, capsule, versioned):
        kind, name, used = self.NAMES[versioned]
        self._used = used  # the capsule keeps the pointer
        self.managed = kind.from_address(pointer_of(capsule, name))
        assert rename(capsule, used) == 0
        self._alive = True

    def bytes(self):
        return ctypes.string_at(self.managed.tensor.data, self.managed.tensor.shape[0])

    def let_go(self):
        if self._alive:
            self._alive = False
            self.managed.deleter(ctypes.addressof(self.managed))

    def __del__(self):
        self.let_go()


@pytest.fixture
def world():
    with World("shm") as world:
        yield world


dlpack_of_numpy = np.from_dlpack


def arrow_buffer(buffer):
    return pytest.importorskip("pyarrow").py_buffer(buffer)


def arrow_column(buffer):
    pa = pytest.importorskip("pyarrow")
    from bulktransfer import arrow

    if buffer.state is BufferState.READ_WRITE:
        arrow.write(buffer, pa.table({"x": list(range(100))}))
    return arrow.read(buffer)["x"].chunk(0)


VIEWS = {
    "memoryview": memoryview,
    "a slice of a memoryview": lambda b: memoryview(b)[1:],
    "numpy.frombuffer": lambda b: np.frombuffer(b, np.uint8),
    "numpy.asarray": np.asarray,
    "buffer.array": lambda b: b.array(),
    "a part of buffer.array": lambda b: b.array("<u2", (4, 4))[1:, ::2].T,
    "numpy.from_dlpack": dlpack_of_numpy,
    "a part of numpy.from_dlpack": lambda b: dlpack_of_numpy(b)[3:],
    "a capsule": lambda b: b.__dlpack__(max_version=(1, 0)),
    "an older capsule": lambda b: b.__dlpack__(),
    "a consumed capsule": lambda b: Consumer(b.__dlpack__(max_version=(1, 2)), True),
    "an older consumed capsule": lambda b: Consumer(b.__dlpack__(), False),
    "ctypes": (ctypes.c_char * 16).from_buffer,
    "pyarrow.py_buffer": arrow_buffer,
    "an Arrow column": arrow_column,
    "torch.frombuffer": lambda b: torch().frombuffer(b, dtype=torch().uint8),
    "torch.from_dlpack": lambda b: torch().from_dlpack(b),
}


def torch():
    return pytest.importorskip("torch")


@pytest.mark.parametrize("make", VIEWS.values(), ids=VIEWS.keys())
def test_move_refuses_while_a_view_is_live_and_goes_when_it_died(world, make):
    tx, rx, alloc, _ = world.line()
    buffer = alloc.alloc()
    buffer.put(bytes(range(64)))
    view = make(buffer)
    assert buffer.exports == 1
    with pytest.raises(BufferError, match="1 view is live"):
        tx.move(buffer)
    with pytest.raises(BufferError):
        alloc.free(buffer)
    assert buffer.state is BufferState.READ_WRITE
    del view
    gc.collect()
    assert buffer.exports == 0
    tx.move(buffer)
    assert take(rx, EventKind.MOVE_RECEIVED).buffer.index == buffer.index


@pytest.mark.parametrize("make", VIEWS.values(), ids=VIEWS.keys())
def test_a_buffer_that_is_elsewhere_has_no_views(world, make):
    tx, _rx, alloc, _ = world.line()
    buffer = alloc.alloc()
    buffer.put(bytes(range(64)))
    tx.move(buffer)
    with pytest.raises(bulk.InvalidBufferError):
        make(buffer)


@pytest.mark.parametrize("make", VIEWS.values(), ids=VIEWS.keys())
def test_what_is_to_go_back_goes_when_the_last_view_died(world, make):
    tx, rx, alloc, _ = world.line()
    buffer = alloc.alloc()
    buffer.put(bytes(range(64)))
    if make is arrow_column:
        make(buffer)  # there has to be a table to be read
    tx.move(buffer)
    here = take(rx, EventKind.MOVE_RECEIVED).buffer
    view = make(here)
    rx.give_back(here)
    assert nothing_comes(tx)
    del view
    gc.collect()
    assert take(tx, EventKind.BUFFER_RECEIVED).buffer is buffer


# -- buffer.array ------------------------------------------------------------------------------------------------------


def test_an_array_is_the_memory_itself_in_the_shape_that_was_asked(world):
    buffer = world.allocator(bulk.Domain()).alloc()
    buffer.length = 100
    pixels = buffer.array("<f4", (2, 3, 4))
    assert (pixels.shape, pixels.dtype) == ((2, 3, 4), np.dtype("<f4"))
    pixels[1, 2, 3] = 1.5
    assert np.frombuffer(buffer, "<f4", 24)[23] == 1.5
    assert buffer.array("<f4").shape == (25,)
    assert buffer.array().shape == (100,)
    assert buffer.array("<u8", 3).shape == (3,)
    record = buffer.array([("a", "<i4"), ("b", "<f8")], [2])
    assert record.dtype.names == ("a", "b")
    assert buffer.array("<f4", ()).shape == ()
    assert buffer.array("<f4", (3, 0)).shape == (3, 0)


@pytest.mark.parametrize(
    ("dtype", "shape"), [("<f4", 26), ("<f4", (5, 6)), ("u1", -1), ("u1", (-2, -3)), ("O", 1), ("V0", 1)]
)
def test_an_array_that_does_not_fit_is_refused(world, dtype, shape):
    buffer = world.allocator(bulk.Domain()).alloc()
    buffer.length = 100
    with pytest.raises(ValueError, match="buffer 0 of pool"):
        buffer.array(dtype, shape)
    assert buffer.exports == 0


def copied(world):
    """A buffer of which the sink has a copy; both ends' objects."""
    tx, rx, alloc, _ = world.line()
    buffer = alloc.alloc()
    buffer.put(bytes(range(64)))
    tx.copy(buffer)
    return tx, rx, buffer, take(rx, EventKind.COPY_RECEIVED).buffer


@pytest.mark.parametrize("end", ["owner", "holder"])
def test_an_array_of_a_copied_buffer_is_read_only_at_both_ends(world, end):
    _, _, owned, held = copied(world)
    buffer = owned if end == "owner" else held
    for make in (lambda b: b.array("<u2"), dlpack_of_numpy, np.asarray):
        array = make(buffer)
        assert not array.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    assert not buffer.array().flags.writeable


# -- DLPack ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("versioned", [False, True])
def test_a_tensor_describes_the_bytes_of_the_buffer(world, versioned):
    buffer = world.allocator(bulk.Domain()).alloc()
    buffer.put(b"0123456789")
    assert buffer.__dlpack_device__() == (1, 0)
    consumer = Consumer(buffer.__dlpack__(max_version=(1, 0) if versioned else None), versioned)
    tensor = consumer.managed.tensor
    assert (tensor.data, tensor.byte_offset) == (buffer.address, 0)
    assert (tensor.device_type, tensor.device_id) == (1, 0)
    assert (tensor.ndim, tensor.shape[0], tensor.strides[0]) == (1, 10, 1)
    assert (tensor.code, tensor.bits, tensor.lanes) == (1, 8, 1)
    assert consumer.bytes() == b"0123456789"
    if versioned:
        assert (consumer.managed.major, consumer.managed.minor, consumer.managed.flags) == (1, 0, 0)


def test_a_read_only_buffer_is_flagged_where_the_form_can_say_it_and_refused_where_not(world):
    _, rx, _, held = copied(world)
    consumer = Consumer(held.__dlpack__(max_version=(1, 0)), True)
    assert consumer.managed.flags == 1
    consumer.let_go()
    for version in (None, (0, 8)):
        with pytest.raises(BufferError, match="read-only"):
            held.__dlpack__(max_version=version)
    assert held.exports == 0
    rx.release(held)


@pytest.mark.parametrize("versioned", [False, True])
def test_a_copy_for_the_consumer_is_no_view(world, versioned):
    tx, rx, alloc, _ = world.line()
    buffer = alloc.alloc()
    buffer.put(b"before")
    consumer = Consumer(buffer.__dlpack__(max_version=(1, 0) if versioned else None, copy=True), versioned)
    assert buffer.exports == 0
    buffer.put(b"after!")
    assert consumer.bytes() == b"before"
    if versioned:
        assert consumer.managed.flags == 2
    tx.copy(buffer)
    held = take(rx, EventKind.COPY_RECEIVED).buffer
    assert Consumer(held.__dlpack__(copy=True), False).bytes() == b"after!"  # a copy may be written


@pytest.mark.parametrize("wrong", [{"stream": 1}, {"dl_device": (2, 0)}, {"dl_device": (1, 1)}])
def test_what_memory_of_the_cpu_cannot_be_is_refused(world, wrong):
    buffer = world.allocator(bulk.Domain()).alloc()
    with pytest.raises(BufferError):
        buffer.__dlpack__(**wrong)
    assert buffer.exports == 0
    assert buffer.__dlpack__(dl_device=(1, 0), copy=False) is not None


def test_the_empty_buffer_has_an_empty_tensor(world):
    buffer = world.allocator(bulk.Domain()).alloc()
    buffer.length = 0
    assert np.from_dlpack(buffer).shape == (0,)
    assert buffer.array().shape == (0,)
    assert buffer.exports == 0


def test_a_consumer_lets_go_in_a_thread_of_its_own_without_the_gil(world):
    tx, rx, alloc, _ = world.line()
    buffer = alloc.alloc()
    tx.move(buffer)
    here = take(rx, EventKind.MOVE_RECEIVED).buffer
    consumer = Consumer(here.__dlpack__(max_version=(1, 0)), True)
    rx.give_back(here)
    thread = threading.Thread(target=consumer.let_go)
    thread.start()
    thread.join(PATIENCE_S)
    assert take(tx, EventKind.BUFFER_RECEIVED).buffer is buffer


def test_traced_views_say_where_an_array_was_made(world):
    tx, _, alloc, _ = world.line()
    buffer = alloc.alloc()
    with bulk.trace_views():
        array = np.from_dlpack(buffer)
        with pytest.raises(BufferError, match="test_traced_views_say_where"):
            tx.move(buffer)
    del array
    tx.move(buffer)


# -- torch -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", ["frombuffer", "from_dlpack"])
def test_a_tensor_of_torch_is_the_memory_itself(world, make):
    made = getattr(torch(), make)
    buffer = world.allocator(bulk.Domain()).alloc()
    buffer.put(bytes(64))
    tensor = made(buffer, dtype=torch().uint8) if make == "frombuffer" else made(buffer)
    tensor[3] = 7
    assert buffer.tobytes()[3] == 7
    assert tensor.data_ptr() == buffer.address


# -- Arrow -------------------------------------------------------------------------------------------------------------


def table(rows):
    pa = pytest.importorskip("pyarrow")
    return pa.table({"number": list(range(rows)), "text": [f"row {n}" for n in range(rows)]})


def test_a_table_written_by_a_process_is_read_in_place_by_another(spawn):
    pa = pytest.importorskip("pyarrow")
    from bulktransfer import arrow

    def producer(pipe, address):
        import pyarrow as pa

        import bulktransfer as bulk
        from bulktransfer import arrow

        with bulk.bind(address) as channel, bulk.Allocator(count=1, size=1 << 20) as alloc:
            channel.assign_pool(alloc.pool)
            buffer = alloc.alloc()
            arrow.write(buffer, pa.table({"number": list(range(1000)), "text": [f"row {n}" for n in range(1000)]}))
            channel.move(buffer)
            pipe.send(channel.receive_buffer(20).buffer is buffer)

    with bulk.create("shm:", direction=bulk.Direction.RX, trust=bulk.Trust.FULL) as channel:
        child = spawn(producer, channel.address)
        channel.wait_bound(PATIENCE_S)
        with channel.receive_buffer(PATIENCE_S) as buffer:
            found = arrow.read(buffer, validate=True)
            start, end = buffer.address, buffer.address + buffer.size
        assert found.equals(table(1000))
        parts = [part for column in found.columns for chunk in column.chunks for part in chunk.buffers() if part]
        assert parts
        assert all(start <= part.address < end for part in parts)  # not one copied
        assert pa.total_allocated_bytes() < 1 << 20
        del found, parts
        child.join()


def test_batches_are_written_in_order_and_the_length_is_theirs(world):
    pytest.importorskip("pyarrow")
    from bulktransfer import arrow

    buffer = world.allocator(bulk.Domain(), size=1 << 16).alloc()
    batches = table(100).to_batches(max_chunksize=30)
    assert len(batches) == 4
    size = arrow.write(buffer, batches)
    assert size == buffer.length == arrow.size_of(batches)
    found = arrow.read(buffer)
    assert found.equals(table(100))
    assert found["number"].num_chunks == 4
    del found
    assert arrow.write(buffer, batches[0]) < size
    assert arrow.read(buffer).equals(table(30))


def test_what_does_not_fit_or_is_no_table_changes_nothing(world):
    pa = pytest.importorskip("pyarrow")
    from bulktransfer import arrow

    tx, _rx, alloc, _ = world.line()
    buffer = alloc.alloc()
    buffer.put(b"before")
    empty = pa.table({"x": [1]}).to_batches()[0]
    other = pa.table({"y": [1]}).to_batches()[0]
    for data, error in ((table(10000), ValueError), ([], ValueError), ([1], TypeError), ([empty, other], ValueError)):
        with pytest.raises(error, match=r"bytes of Arrow data|record batch"):
            arrow.write(buffer, data)
    assert buffer.tobytes() == b"before"
    with pytest.raises(pa.ArrowInvalid):
        arrow.read(buffer)
    assert buffer.exports == 0
    tx.move(buffer)
    with pytest.raises(bulk.InvalidBufferError):
        arrow.write(buffer, table(1))
