"""Pools, their buffers and the free list: what a domain knows about memory, and the views that Python has of it.

Knows: the ledger (ledger.h), mappings, the buffer protocol. Must not know: rings, sockets, or how a pool came here.
"""

cimport cython
from cpython.buffer cimport PyBUF_FORMAT, PyBUF_ND, PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.buffer cimport PyBUF_SIMPLE
from cpython.ref cimport PyObject
from libc.stdint cimport uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memmove

import operator as _operator
import sys as _sys
import traceback as _traceback

from bulktransfer._native.kernel cimport Mapping, registry
from bulktransfer import errors, states

cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(PyObject* o) nogil  # cpython.ref declares it for `object`, which takes a reference

cdef bt_table the_table
cdef tuple STATE = tuple(sorted(states.BufferState, key=lambda s: s.value))
cdef bint tracing = False
cdef bint building = False  # only Pool.get makes buffers, only make_pool pools
cdef char* BYTES_FORMAT = b"B"
cdef enum: BULK_COPY = 262144

cdef bt_table* table() noexcept nogil:
    return &the_table


cdef int compile_table() except -1:
    """states.BUFFER_TABLE as a C array; two rows for one case would be a mistake in the table."""
    cdef int state, act, out, in_
    cdef bt_row* cell
    for state in range(BT_STATES):
        for act in range(BT_ACTS):
            for out in range(3):
                for in_ in range(3):
                    the_table.rows[state][act][out][in_].next = 0xff
    if len(states.BufferAct) != BT_ACTS or len(states.BufferState) != BT_STATES:
        raise ImportError("states.py and ledger.h name different acts or states")
    for row in states.BUFFER_TABLE:
        for out in range(3):
            for in_ in range(3):
                if not counts_match(row.when, out, in_) or out + row.out < 0 or in_ + row.in_ < 0:
                    continue
                cell = &the_table.rows[row.state.value][row.act.value][out][in_]
                if cell.next != 0xff:
                    raise ImportError(f"two transitions for one case: {row}")
                cell.next = row.next.value
                cell.out = row.out
                cell.in_ = row.in_
    return 0


cdef bint counts_match(when, int out, int in_) except -1:
    W = states.When
    return {
        W.ALWAYS: True, W.OUT_MANY: out == 2, W.OUT_LAST: out == 1, W.OUT_NONE: out == 0,
        W.OUT_NONE_IN_MANY: out == 0 and in_ == 2, W.OUT_NONE_IN_LAST: out == 0 and in_ == 1,
    }[when]

compile_table()


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


def make_pool(id, domain, trust, Mapping mapping, uint32_t count, uint64_t size, bint shared, bint home):
    """A new pool: `home` where it is allocated, else as a peer described it. Raises: MemoryError."""
    global building
    building = True
    try:
        return Pool.__new__(Pool, id, domain, trust, mapping, count, size, shared, home)
    finally:
        building = False


@cython.final
cdef class Pool:
    """A range of memory in equal buffers, with an id that is unique across machines (I-4.2.5).

    pool[i] is buffer i, always the same object while somebody holds it; len(pool) is the number of buffers.
    """

    def __cinit__(
        self, id=None, domain=None, trust=None, Mapping mapping=None, uint32_t count=0, uint64_t size=0,
        bint shared=False, bint home=False,
    ):
        cdef uint32_t i
        if not building:
            raise TypeError("pools come from an Allocator or an assignment")
        self.c.slots = <bt_slot*> calloc(count, sizeof(bt_slot))
        self.handles = <void**> calloc(count, sizeof(void*))
        self.free = <uint32_t*> malloc(count * sizeof(uint32_t)) if home else NULL
        if self.c.slots == NULL or self.handles == NULL or (home and self.free == NULL):
            raise MemoryError(f"no memory to keep {count} buffers")
        self.c.count = count
        self.c.size = size
        self.c.shared = shared
        self.c.home = home
        self.id = id
        self.domain = domain
        self.trust = self.given_trust = trust
        self.mapping = mapping
        self.memory = None
        self.identity = None
        self.channels = set()
        self.leases = []
        self.ended = []
        self.lease_watches = set()
        self.allocator_open = home
        self.reclaim = False
        self.present = True
        self.on_return = None
        self.going_back = {}
        self.traces = {}
        if home:
            for i in range(count):  # last in, first out: buffer 0 goes first
                self.c.slots[i].state = BT_READ_WRITE
                self.c.slots[i].flags = BT_FREE
                self.c.slots[i].length = size
                self.free[i] = count - 1 - i
            self.free_count = count

    def __init__(self, *args, **kwargs):
        pass

    def __dealloc__(self):
        free(self.c.slots)
        free(self.handles)
        free(self.free)

    cdef Buffer get(self, uint32_t index):
        cdef Buffer buffer
        # one that is dying already, whose weak references run callbacks, is not handed out again
        if self.handles[index] != NULL and Py_REFCNT(<PyObject*> self.handles[index]) > 0:
            return <Buffer> self.handles[index]
        global building
        building = True
        buffer = Buffer.__new__(Buffer)
        building = False
        buffer.pool = self
        buffer.index = index
        self.handles[index] = <void*> buffer
        return buffer

    cdef void put_free(self, uint32_t index) noexcept:
        cdef bt_slot* s = &self.c.slots[index]
        s.flags = BT_FREE
        s.length = self.c.size
        self.free[self.free_count] = index
        self.free_count += 1

    cdef int take_back(self, uint32_t index) except -1:
        """Put a buffer on the free list; whoever waits for one is told."""
        self.put_free(index)
        if self.hungry and self.on_return is not None:
            self.on_return()
        return 0

    cdef int come_home(self, uint32_t index) except -1:
        """Put a buffer on the free list by itself (rule 19), but not under the views that its last user has of it."""
        cdef bt_slot* s = &self.c.slots[index]
        if s.views == 0:
            return self.take_back(index)
        s.flags |= BT_GIVE_BACK
        self.going_back[index] = None
        return 0

    def wait_for_return(self, bint waiting):
        """One more, or one less, waits for a buffer to come back and wants `on_return` to be called."""
        self.hungry += 1 if waiting else -1

    def __getitem__(self, Py_ssize_t index):
        if index < 0:
            index += self.c.count
        if index < 0 or index >= self.c.count:
            raise IndexError(f"buffer {index} of pool {self.name}: it has {self.c.count}")
        return self.get(index)

    def __len__(self):
        return self.c.count

    @property
    def buffer_size(self):
        """Bytes of each buffer, a multiple of the page size."""
        return self.c.size

    @property
    def buffer_count(self):
        """Number of buffers."""
        return self.c.count

    @property
    def name(self):
        """The first digits of the id, for messages."""
        return self.id.hex[:8]

    @property
    def home(self):
        """Whether this domain allocated the pool."""
        return bool(self.c.home)

    @property
    def shared(self):
        """Whether both sides of its channels see the same memory."""
        return bool(self.c.shared)

    @property
    def address(self):
        """First address of the pool in this domain; it stays while the pool or a buffer of it lives."""
        return self.mapping.address if self.mapping is not None else None

    def attach(self, Mapping mapping not None):
        """Memory for a pool that was announced and is accepted now."""
        self.mapping = mapping

    def withdraw(self):
        """Take the memory away; the addresses stay, without access. Raises: BufferError (a view is live)."""
        cdef uint32_t i
        for i in range(self.c.count):
            if self.c.slots[i].views:
                raise BufferError(f"withdrawing pool {self.name}: {self.c.slots[i].views} views of buffer {i} are live")
        for i in range(self.c.count):
            self.c.slots[i].state = BT_INVALID
            self.c.slots[i].flags = 0
        self.free_count = 0
        self.present = False
        if self.mapping is not None:
            self.mapping.revoke()

    def close_free_list(self):
        """Nothing is allocated any more; whoever waits for a buffer is told."""
        self.free_count = 0
        if self.on_return is not None:
            self.on_return()

    def in_use(self):
        """Whether this domain owns or holds a buffer of the pool, or has a view of one."""
        cdef uint32_t i
        for i in range(self.c.count):
            if self.c.slots[i].state != BT_INVALID or self.c.slots[i].views:
                return True
        return False

    def states(self):
        """How many buffers are in which state, by name; for statistics."""
        cdef uint32_t i
        cdef int[4] counts = [0, 0, 0, 0]
        for i in range(self.c.count):
            counts[self.c.slots[i].state] += 1
        return {STATE[i].name: counts[i] for i in range(4)}

    def counts(self, Py_ssize_t index):
        """Copies of buffer `index` that this domain has sent and not got back, and copies that it holds."""
        if not 0 <= index < self.c.count:
            raise IndexError(f"buffer {index} of pool {self.name}: it has {self.c.count}")
        return self.c.slots[index].out, self.c.slots[index].in_

    def detached_count(self):
        """Buffers that left over channels which have ended, and have not come home."""
        cdef uint32_t i
        cdef Assignment a
        gone = set()
        for a in self.ended:
            for i in range(self.c.count):
                if bt_is_away(&a.c, i) or bt_bit(a.c.out_copies, i):
                    gone.add(i)
        return len(gone)

    cdef int give_back_on_release(self, uint32_t index, object channel) except -1:
        """Buffer `index` goes back over `channel` when its last view dies (rule 19)."""
        self.c.slots[index].flags |= BT_GIVE_BACK
        self.going_back[index] = channel
        return 0

    cdef int last_view_died(self, uint32_t index) except -1:
        self.c.slots[index].flags &= ~BT_GIVE_BACK
        channel = self.going_back.pop(index)
        if channel is None:
            self.take_back(index)
        else:
            channel.send_back(self.get(index))
        return 0

    def __repr__(self):
        kind = "allocated here" if self.c.home else "from another domain"
        return f"<Pool {self.name} of {self.c.count} x {self.c.size} bytes, {kind}, trust {self.trust.name}>"


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
        """Its first address; raw access is not seen by the counts of views."""
        return <uintptr_t> self.base() if self.pool.mapping is not None else None

    def put(self, data):
        """Write `data` from the start and make its size the length.

        Raises: ValueError (too long), NotOwnedError, CopiesOutstandingError, BufferError (a view is live).
        """
        cdef Py_buffer source
        PyObject_GetBuffer(data, &source, PyBUF_SIMPLE)  # may run code of the user: before everything that is checked
        try:
            self.check_writable("put")
            if self.slot().views:
                raise explain(BT_VIEWS_LIVE, "put", self, "")
            if <uint64_t> source.len > self.pool.c.size:
                raise ValueError(f"put of {source.len} bytes into {self.called()}: it holds {self.pool.c.size}")
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
        """Let go of a buffer whose channel ended, whatever its state.

        Raises: ChannelStateError, NotAllocatedError, BufferError (a view is live).
        """
        cdef bt_slot* s = self.slot()
        if s.flags & BT_FREE:
            raise explain(BT_NOT_ALLOCATED, "drop", self, "")
        if self.pool.c.home or s.out or any([self.channel_lives(number) for number in self.pool.channels]):
            raise explain(BT_STILL_CONNECTED, "drop", self, "")
        if s.views:
            raise explain(BT_VIEWS_LIVE, "drop", self, "")
        bt_step(s, bt_lookup(table(), s, BT_A_DROP))
        s.out = s.in_ = 0
        self.pool.domain.pool_quiet(self.pool)

    cdef bint channel_lives(self, uint32_t number) except -1:
        if self.slot().state >= BT_READ_ONLY_OWNED and number == self.slot().via:
            return True
        channel = self.pool.domain.channel(number)
        return channel is not None and channel.holds_copy(self)

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
                self.pool.last_view_died(self.index)

    def __array__(self, dtype=None, copy=None):
        import numpy
        self.check_readable("an array")
        array = numpy.frombuffer(self, dtype=numpy.uint8)
        if dtype is not None and dtype != array.dtype:
            return array.astype(dtype)
        return array.copy() if copy else array

    def __len__(self):
        return self.slot().length

    def __reduce__(self):
        raise TypeError(f"pickling buffer {self.index} of pool {self.pool.name}: a buffer travels over a channel")

    def __repr__(self):
        s = self.slot()
        state = "free" if s.flags & BT_FREE else STATE[s.state].name
        size = self.pool.c.size
        return f"<Buffer {self.index} of pool {self.pool.name}: {state}, {s.length} of {size} bytes, {s.views} views>"


cdef class AllocatorCore:
    """The free list of a pool: last in, first out, since the buffer that is hot in cache goes first."""

    def take(self):
        """A buffer, or None if there is none."""
        cdef Pool pool = self.pool
        cdef uint32_t index
        if pool.free_count == 0:
            return None
        pool.free_count -= 1
        index = pool.free[pool.free_count]
        pool.c.slots[index].flags = 0
        return pool.get(index)

    def alloc(self, timeout=0):
        """A buffer that this domain may write, of full length.

        Raises: PoolExhaustedError (none within `timeout` seconds; None waits for ever), ValueError (the allocator is
        closed), WouldBlock (it would wait inside a callback), ForkedError.
        """
        cdef Pool pool = self.pool
        cdef uint32_t index
        if (pool.free_count and pool.allocator_open is True
                and (<Mapping> pool.mapping).generation == registry().generation):
            pool.free_count -= 1
            index = pool.free[pool.free_count]
            pool.c.slots[index].flags = 0
            return pool.get(index)
        return self.alloc_slow(timeout)

    def free(self, Buffer buffer not None):
        """Give a buffer back to the free list.

        Raises: ValueError (of another pool), NotAllocatedError (free already), NotOwnedError, CopiesOutstandingError,
        BufferError (a view is live).
        """
        self.check_free(buffer)
        self.pool.take_back(buffer.index)

    def check_free(self, Buffer buffer not None):
        """Raise what `free` would."""
        cdef bt_slot* s = buffer.slot()
        cdef int verdict = BT_OK
        if buffer.pool is not self.pool:
            raise ValueError(f"free of {buffer.called()}: this allocator has pool {self.pool.name}")
        if s.flags & BT_FREE:
            verdict = BT_NOT_ALLOCATED
        elif s.state == BT_INVALID:
            verdict = BT_NOT_PRESENT
        elif s.state == BT_READ_ONLY:
            verdict = BT_NOT_OWNED
        elif s.state == BT_READ_ONLY_OWNED:
            verdict = BT_COPIES_OUT
        elif s.views:
            verdict = BT_VIEWS_LIVE
        elif s.flags & BT_GIVE_BACK:
            verdict = BT_GOING_BACK
        if verdict != BT_OK:
            raise explain(verdict, "free", buffer, "")

    def take_many(self, Py_ssize_t n):
        """`n` buffers, or None if there are not so many."""
        cdef Pool pool = self.pool
        if pool.free_count < n or not pool.allocator_open:
            return None
        return [self.take() for _ in range(n)]

    def free_many(self, buffers):
        """Give buffers back, all or none. Raises: as free; ValueError (one twice)."""
        cdef list batch = list(buffers)
        cdef Pool pool = self.pool
        cdef Buffer buffer
        cdef Py_ssize_t i, checked = 0
        try:
            for item in batch:
                if not isinstance(item, Buffer):
                    raise TypeError(f"free_many takes buffers, not {type(item).__name__}")
                buffer = <Buffer> item
                self.check_free(buffer)
                if buffer.slot().spare:
                    raise ValueError(f"free_many: buffer {buffer.index} of pool {pool.name} is in it twice")
                buffer.slot().spare = 1
                checked += 1
        finally:
            for i in range(checked):
                (<Buffer> batch[i]).slot().spare = 0
        for i in range(checked):
            pool.put_free((<Buffer> batch[i]).index)
        if checked and pool.hungry and pool.on_return is not None:
            pool.on_return()

    def __init__(self, Pool pool not None):
        self.pool = pool


@cython.final
cdef class Assignment:
    """One pool on one channel, from one side: which copies are out and held, and who reclaims."""

    def __cinit__(self, Pool pool not None, uint32_t slot, uint32_t channel, bint mine, bint same_domain):
        cdef size_t words = bt_bit_words(pool.c.count)
        self.c.out_copies = <uint64_t*> calloc(2 * words, sizeof(uint64_t))
        if self.c.out_copies == NULL:
            raise MemoryError("no memory to keep an assignment")
        self.c.in_copies = self.c.out_copies + words
        self.c.pool = &pool.c
        self.c.channel = channel
        self.c.mine = mine
        self.c.same_domain = same_domain
        self.c.standing = BT_PENDING
        self.pool = pool
        self.slot = slot
        self.leases = []
        self.lease = None
        self.request = None

    def __init__(self, *args, **kwargs):
        pass

    def __dealloc__(self):
        free(self.c.out_copies)

    @property
    def mine(self):
        """Whether this side assigned the pool on this channel."""
        return bool(self.c.mine)

    @property
    def same_domain(self):
        """Whether both ends of the channel are in this domain."""
        return bool(self.c.same_domain)

    @property
    def active(self):
        """Whether buffers may travel."""
        return self.c.standing == BT_ACTIVE

    @property
    def removing(self):
        """Whether its removal was asked for here."""
        return self.c.standing == BT_REMOVING

    def set_active(self):
        """Buffers may travel from now on."""
        self.c.standing = BT_ACTIVE

    def retire(self):
        """The pool left the channel."""
        self.c.standing = BT_ABSENT

    def set_removing(self):
        """Nothing is sent until the answer."""
        self.c.standing = BT_REMOVING

    def away(self):
        """Indices of buffers that left over this channel, or whose copies did, and that have not come home."""
        cdef uint32_t i
        return [i for i in range(self.pool.c.count) if bt_is_away(&self.c, i) or bt_bit(self.c.out_copies, i)]

    def reclaim(self):
        """Everybody behind this assignment let go: take back what was away. Returns the buffers."""
        cdef uint32_t i
        cdef Pool pool = self.pool
        back = []
        for i in range(pool.c.count):
            if bt_reclaim(table(), &self.c, i):
                back.append(pool.get(i))
                if pool.reclaim and pool.c.slots[i].state == BT_READ_WRITE:
                    pool.come_home(i)
        return back
