"""Pools: ranges of memory in equal buffers.

Knows: mappings, and who may look at them. Must not know: rings, sockets, or how a pool came here.
"""

cimport cython
from cpython.ref cimport PyObject
from libc.stdint cimport uint32_t, uint64_t, uint8_t

from bulktransfer._native.buffer cimport Buffer, new_buffer
from bulktransfer._native.frames cimport bt_frames_end
from bulktransfer._native.kernel cimport Mapping
from bulktransfer._native.ledger cimport BT_INVALID, BT_OWN
from bulktransfer._native.slots cimport Slots

cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(PyObject* o) nogil  # cpython.ref declares it for `object`, which takes a reference

cdef bint building = False  # only make_pool makes pools


def make_pool(id, domain, trust, Mapping mapping, uint32_t count, uint64_t size, bint shared, bint home):
    """A new pool: `home` where it is allocated, else as a peer described it. Raises: MemoryError."""
    global building
    building = True
    try:
        return Pool.__new__(Pool, id, domain, trust, mapping, count, size, shared, home)
    finally:
        building = False


@cython.final
cdef class Pool(Slots):
    """A range of memory in equal buffers, with an id that is unique across machines (I-4.2.5).

    pool[i] is buffer i, always the same object while somebody holds it; len(pool) is the number of buffers.
    """

    def __cinit__(
        self, id=None, domain=None, trust=None, Mapping mapping=None, uint32_t count=0, uint64_t size=0,
        bint shared=False, bint home=False,
    ):
        if not building:
            raise TypeError("pools come from an Allocator or an assignment")
        self.trust = self.given_trust = trust
        self.memory = None
        self.identity = None
        self.leases = []
        self.ended = []
        self.lease_watches = set()
        self.allocator_open = home
        where = "true" if home else "false"
        self.show(f'{{"kind": "pool", "id": "{id.hex}", "size": {size}, "home": {where}}}'.encode())

    def __init__(self, *args, **kwargs):
        pass

    cdef Buffer get(self, uint32_t index):
        # one that is dying already, whose weak references run callbacks, is not handed out again
        if self.handles[index] != NULL and Py_REFCNT(<PyObject*> self.handles[index]) > 0:
            return <Buffer> self.handles[index]
        return new_buffer(self, index)

    def __getitem__(self, Py_ssize_t index):
        if index < 0:
            index += self.c.count
        if index < 0 or index >= self.c.count:
            raise IndexError(f"buffer {index} of pool {self.name}: it has {self.c.count}")
        return self.get(index)

    def __iter__(self):
        for index in range(<int> self.c.count):
            yield self.get(index)

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
        """Memory for a pool that was announced and is accepted now. Raises: OSError (it cannot be guarded)."""
        self.mapping = mapping
        self.c.base = <uint8_t*> mapping.base
        mapping.belong(self.c.twin)
        if self.c.guarded:
            self.c.guarded = False  # so far there was nothing to guard
            self.set_guarded(True)

    def withdraw(self):
        """Take the memory away; the addresses stay, without access. Raises: BufferError (a view is live)."""
        cdef uint32_t i
        for i in range(self.c.count):
            if self.c.slots[i].views:
                raise BufferError(f"withdrawing pool {self.name}: {self.c.slots[i].views} views of buffer {i} are live")
        for i in range(self.c.count):
            self.c.slots[i].state = BT_INVALID
            self.c.slots[i].flags = 0
            self.c.slots[i].holds = BT_OWN
        bt_frames_end(&self.c)
        self.c.solid = True
        self.free_count = 0
        self.present = False
        self.c.guarded = self.c.apart = False  # there are addresses only
        if self.mapping is not None:
            self.mapping.revoke()

    def detached_count(self):
        """Buffers that left over channels which have ended, and have not come home."""
        return len({index for assignment in self.ended for index in assignment.away()})

    def __reduce__(self):
        raise TypeError(f"pickling pool {self.name}: memory stays; Channel.assign_pool has a peer share it")

    def __repr__(self):
        kind = "allocated here" if self.c.home else "from another domain"
        return f"<Pool {self.name} of {self.c.count} x {self.c.size} bytes, {kind}, trust {self.trust.name}>"
