"""Buffers, and the views that Python has of them.

Knows: the buffer protocol, what may be read and written in which state. Must not know: rings, sockets, or how a
buffer came here.
"""

cimport cython
from cpython.buffer cimport PyBUF_FORMAT, PyBUF_ND, PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.buffer cimport PyBUF_SIMPLE
from libc.stdint cimport uint32_t, uint64_t, uintptr_t
from libc.string cimport memmove

import math as _math
import operator as _operator
import sys as _sys
import traceback as _traceback

from bulktransfer import errors, states
from bulktransfer._native import dlpack as _dlpack
from bulktransfer._native.ledger cimport (
    BT_A_DROP, BT_ALREADY_COPIED, BT_BARE, BT_COPIES_OUT, BT_FREE, BT_GIVE_BACK, BT_GOING_BACK, BT_INVALID,
    BT_NOT_A_COPY, BT_NOT_ALLOCATED, BT_NOT_OWNED, BT_NOT_PRESENT, BT_READ_ONLY, BT_READ_ONLY_OWNED, BT_READ_WRITE,
    BT_SAME_DOMAIN, BT_SEALED, BT_STILL_CONNECTED, BT_VIEWS_LIVE, bt_drop, bt_slot,
)
from bulktransfer._native.slots cimport Slots, fresh_of
from bulktransfer._native.table cimport table

cdef tuple STATE = tuple(sorted(states.BufferState, key=lambda s: s.value))
cdef bint tracing = False
cdef bint building = False  # only new_buffer makes buffers
cdef char* BYTES_FORMAT = b"B"
cdef enum: BULK_COPY = 262144


def set_tracing(bint on):
    """Whether new views record where they were made; returns what it was."""
    global tracing
    before, tracing = tracing, on
    return before


cdef object explain(int verdict, str act, Buffer buffer, str where):
    """The error for a refused call: the act, the object, its state."""
    cdef bt_slot* s = &buffer.pool.c.slots[buffer.index]
    cdef str what = f"{act} of buffer {buffer.index} of pool {buffer.pool.name}{where}"
    if verdict == BT_NOT_ALLOCATED:
        return errors.NotAllocatedError(f"{what}: it is on its allocator's free list")
    if verdict == BT_NOT_PRESENT:
        return errors.InvalidBufferError(f"{what}: it is not in this domain (state INVALID)")
    if verdict == BT_NOT_OWNED:
        return errors.NotOwnedError(f"{what}: this domain holds a copy only (state {STATE[s.state].name})")
    if verdict == BT_COPIES_OUT:
        return errors.CopiesOutstandingError(f"{what}: copies that are not back: {s.out} (state {STATE[s.state].name})")
    if verdict == BT_NOT_A_COPY:
        return errors.NotACopyError(f"{what}: no copy of it came over this channel (state {STATE[s.state].name})")
    if verdict == BT_ALREADY_COPIED:
        return errors.AlreadyCopiedError(f"{what}: a copy of it is outstanding on this channel")
    if verdict == BT_SAME_DOMAIN:
        return errors.CopyRefusedError(f"{what}: both ends of the channel are in one domain, which owns it already")
    if verdict == BT_GOING_BACK:
        return errors.NotOwnedError(f"{what}: it is going back as soon as its last view dies")
    if verdict == BT_STILL_CONNECTED:
        return errors.ChannelStateError(f"{what}: the channel that it came over is still connected, or it is home here")
    if verdict == BT_VIEWS_LIVE:
        return BufferError(f"{what}: {s.views} view{'s are' if s.views != 1 else ' is'} live{buffer.where_views()}")
    raise SystemError(f"verdict {verdict}")


cdef Buffer new_buffer(Slots pool, uint32_t index):
    """The object for a buffer that has none."""
    global building
    cdef Buffer buffer
    building = True
    buffer = Buffer.__new__(Buffer)
    building = False
    buffer.pool = pool
    buffer.index = index
    pool.handles[index] = <void*> buffer
    return buffer


@cython.final
@cython.freelist(64)
@cython.no_gc
cdef class Buffer:
    """The unit of transfer: one buffer of a pool, as this domain sees it (I-4.2.6).

    Supports the buffer protocol: a view has `length` bytes, is read-only in read-only states, and is refused
    in INVALID and on the free list.
    """

    def __cinit__(self):
        if not building:
            raise TypeError("buffers come from an Allocator, a Pool or an Event")

    def __dealloc__(self):
        if self.pool is not None and self.pool.handles[self.index] == <void*> self:
            self.pool.handles[self.index] = NULL

    cdef bt_slot* slot(self) noexcept:
        return &self.pool.c.slots[self.index]

    cdef str called(self):
        """How messages call it."""
        return f"buffer {self.index} of pool {self.pool.name}"

    cdef int check_readable(self, str act) except -1:
        cdef bt_slot* s = self.slot()
        if s.state == BT_INVALID:
            raise explain(BT_NOT_PRESENT, act, self, "")
        if s.flags & BT_FREE:
            raise explain(BT_NOT_ALLOCATED, act, self, "")
        if s.flags & BT_GIVE_BACK:
            raise explain(BT_GOING_BACK, act, self, "")
        if self.pool.mapping is None or not self.pool.present:
            raise errors.InvalidBufferError(f"{act} of {self.called()}: the pool left this domain")
        if s.holds == BT_BARE:
            self.pool.furnish(self.index)
        return 0

    cdef int check_writable(self, str act) except -1:
        self.check_readable(act)
        if self.slot().state == BT_READ_ONLY:
            raise explain(BT_NOT_OWNED, act, self, "")
        if self.slot().state == BT_READ_ONLY_OWNED:
            raise explain(BT_COPIES_OUT, act, self, "")
        return 0

    cdef char* base(self) noexcept:
        return <char*> self.pool.mapping.base + self.index * self.pool.c.size

    @property
    def size(self):
        """Bytes that it can hold."""
        return self.pool.c.size

    @property
    def length(self):
        """Valid bytes (I-8.1). Setting raises: ValueError, NotOwnedError, BufferError (a view is live)."""
        return self.slot().length

    @length.setter
    def length(self, value):
        cdef bt_slot* s = self.slot()
        value = _operator.index(value)
        self.check_writable("setting the length")
        if not 0 <= value <= self.pool.c.size:
            raise ValueError(f"length {value} of {self.called()}: it holds 0 to {self.pool.c.size} bytes")
        if s.views:
            raise explain(BT_VIEWS_LIVE, "setting the length", self, "")
        if self.pool.c.apart or self.pool.c.fresh != NULL:
            self.pool.grow(self.index, value)
        s.length = value

    @property
    def state(self):
        """What this domain may do with it, a BufferState."""
        return STATE[self.slot().state]

    @property
    def owned(self):
        """Whether this domain owns it."""
        return self.slot().state >= BT_READ_ONLY_OWNED

    @property
    def is_copy(self):
        """Whether this domain holds it as a copy only."""
        return self.slot().state == BT_READ_ONLY

    @property
    def exports(self):
        """Number of live views."""
        return self.slot().views

    @property
    def address(self):
        """Its first address; raw access is not seen by the counts of views. Raises: OSError (no memory)."""
        cdef bt_slot* s = self.slot()
        if self.pool.mapping is None:
            return None
        if s.holds == BT_BARE and s.state == BT_READ_WRITE:
            self.pool.furnish(self.index)
        s.touched = s.raw = True
        return <uintptr_t> self.base()

    def put(self, data):
        """Write `data` from the start and make its size the length.

        Raises: ValueError (too long), NotOwnedError, CopiesOutstandingError, BufferError (a view is live).
        """
        cdef Py_buffer source
        cdef uint64_t* fresh
        PyObject_GetBuffer(data, &source, PyBUF_SIMPLE)  # may run code of the user: before everything that is checked
        try:
            self.check_writable("put")
            if self.slot().views:
                raise explain(BT_VIEWS_LIVE, "put", self, "")
            if <uint64_t> source.len > self.pool.c.size:
                raise ValueError(f"put of {source.len} bytes into {self.called()}: it holds {self.pool.c.size}")
            if self.slot().holds == BT_SEALED:  # what it held is overwritten: a new frame has nothing to be copied
                self.pool.renew(self.index)
                self.check_readable("put")
            fresh = fresh_of(&self.pool.c, self.index)
            if fresh != NULL and fresh[0] < <uint64_t> source.len:
                fresh[0] = source.len
            self.slot().length = source.len
            self.fill(<const char*> source.buf, source.len, 0)
        finally:
            PyBuffer_Release(&source)

    def write(self, data, Py_ssize_t offset=0):
        """Write `data` at `offset`; the length stays.

        Raises: ValueError (beyond the length), NotOwnedError, CopiesOutstandingError.
        """
        cdef Py_buffer source
        PyObject_GetBuffer(data, &source, PyBUF_SIMPLE)  # as in put
        try:
            self.check_writable("write")
            if offset < 0 or <uint64_t> offset + <uint64_t> source.len > self.slot().length:
                raise ValueError(
                    f"write of {source.len} bytes at {offset} of {self.called()}: its length is {self.slot().length}")
            self.fill(<const char*> source.buf, source.len, offset)
        finally:
            PyBuffer_Release(&source)

    cdef int fill(self, const char* data, Py_ssize_t size, Py_ssize_t offset) except -1:
        cdef char* to = self.base() + offset
        cdef bt_slot* s = self.slot()
        s.touched = True
        if size < BULK_COPY:
            memmove(to, data, size)  # `data` may be a view of this very buffer
            return 0
        s.views += 1  # nobody may send it while the bytes are on their way
        s.writers += 1
        with nogil:
            memmove(to, data, size)
        s.views -= 1
        s.writers -= 1
        return 0

    def tobytes(self):
        """A copy of the valid bytes. Raises: InvalidBufferError, NotAllocatedError."""
        return bytes(memoryview(self))

    def drop(self):
        """Let go of a buffer whose channels ended, those that copies went out over included, whatever its state.

        Raises: ChannelStateError, NotAllocatedError, BufferError (a view is live), OSError (trust HALF: see move).
        """
        cdef bt_slot* s = self.slot()
        if s.flags & BT_FREE:
            raise explain(BT_NOT_ALLOCATED, "drop", self, "")
        if self.pool.c.home or any([self.channel_lives(number) for number in self.pool.channels]):
            raise explain(BT_STILL_CONNECTED, "drop", self, "")
        if s.views:
            raise explain(BT_VIEWS_LIVE, "drop", self, "")
        if self.pool.c.guarded:
            self.pool.guard_for(self.index, BT_A_DROP)
        bt_drop(table(), s)
        self.pool.renew(self.index)
        if s.left not in self.pool.channels:
            s.left = 0  # away over a channel that ended: nobody wants it back here
        for assignment in self.pool.ended:
            assignment.forget_copies(self.index)
        self.pool.domain.pool_quiet(self.pool)

    cdef bint channel_lives(self, uint32_t number) except -1:
        if self.slot().state >= BT_READ_ONLY_OWNED and number == self.slot().via:
            return True
        channel = self.pool.domain.channel(number)
        return channel is not None and (channel.holds_copy(self) or channel.lends_copy(self))

    def let_go(self, channel):
        """The channel that it came over ended, so that nobody takes it back: once no view is left, drop it.

        What is at home here, or held over another channel as well, stays.
        """
        if self.slot().views:
            self.pool.give_back_on_release(self.index, channel)
            return
        try:
            self.drop()
        except errors.ChannelStateError:
            return

    def where_views(self):
        """Where live views were made, if bulk.trace_views() watches; for messages."""
        places = self.pool.traces.get(self.index)
        return "".join([f"\n  view made at:\n{place}" for place in places]) if places else ""

    def __getbuffer__(self, Py_buffer* view, int flags):
        cdef bt_slot* s = self.slot()
        self.check_readable("a view")
        cdef bint writable = s.state == BT_READ_WRITE
        if flags & PyBUF_WRITABLE and not writable:
            raise BufferError(f"a writable view of {self.called()}: its state is {STATE[s.state].name}")
        self.shape[0] = s.length
        view.buf = self.base()
        view.len = s.length
        view.itemsize = 1
        view.readonly = not writable
        view.ndim = 1
        view.format = BYTES_FORMAT if flags & PyBUF_FORMAT else NULL
        view.shape = self.shape if flags & PyBUF_ND else NULL
        view.strides = &view.itemsize if flags & PyBUF_STRIDES == PyBUF_STRIDES else NULL
        view.suboffsets = NULL
        view.internal = <void*> (1 if writable else 0)
        view.obj = self
        s.views += 1
        s.writers += writable
        s.touched |= writable
        s.raw |= writable  # a view may be kept by whoever is not seen (NumPy's ndarray)
        if tracing:
            place = "".join(_traceback.format_list(_traceback.extract_stack(_sys._getframe(), limit=6)))
            self.pool.traces.setdefault(self.index, []).append(place)

    def __releasebuffer__(self, Py_buffer* view):
        cdef bt_slot* s = self.slot()
        s.views -= 1
        if view.internal != NULL:
            s.writers -= 1
        if s.views == 0:
            if self.pool.traces:
                self.pool.traces.pop(self.index, None)
            if s.flags & BT_GIVE_BACK:
                self.last_view_died()

    cdef int last_view_died(self) except -1:
        """Its return was asked for (rule 19)."""
        self.slot().flags &= ~BT_GIVE_BACK
        channel = self.pool.going_back.pop(self.index)
        if channel is None:
            self.pool.take_back(self.index)
        else:
            channel.send_back(self)
        return 0

    def __array__(self, dtype=None, copy=None):
        import numpy
        self.check_readable("an array")
        array = numpy.frombuffer(self, dtype=numpy.uint8)
        if dtype is not None and dtype != array.dtype:
            return array.astype(dtype)
        return array.copy() if copy else array

    def array(self, dtype="u1", shape=None):
        """A NumPy array of its first bytes: a view like any other, read-only where the state is.

        shape: an int or a tuple; left out, one dimension of as many whole items as the length holds.
        Raises: ValueError (longer than the length, negative, objects), InvalidBufferError, NotAllocatedError,
        ImportError (no NumPy).
        """
        import numpy
        kind = numpy.dtype(dtype)
        if kind.hasobject or kind.itemsize == 0:
            raise ValueError(f"an array of {kind} of {self.called()}: its items are no plain bytes")
        self.check_readable("an array")
        if shape is None:
            shape = self.slot().length // kind.itemsize
        sides = tuple([_operator.index(n) for n in (shape if isinstance(shape, (tuple, list)) else (shape,))])
        items = _math.prod(sides)
        if min(sides, default=0) < 0 or items * kind.itemsize > self.slot().length:
            raise ValueError(f"an array of {sides} {kind} of {self.called()}: its length is {self.slot().length} bytes")
        return numpy.frombuffer(self, kind, items).reshape(sides) if items else numpy.empty(sides, kind)

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        return _dlpack.export_bytes(self, stream, max_version, dl_device, copy)

    def __dlpack_device__(self):
        return _dlpack.CPU

    def __len__(self):
        return self.slot().length

    def __reduce__(self):
        raise TypeError(f"pickling buffer {self.index} of pool {self.pool.name}: a buffer travels over a channel")

    def __repr__(self):
        s = self.slot()
        state = "free" if s.flags & BT_FREE else STATE[s.state].name
        size = self.pool.c.size
        return f"<Buffer {self.index} of pool {self.pool.name}: {state}, {s.length} of {size} bytes, {s.views} views>"
