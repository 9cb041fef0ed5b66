from libc.stdint cimport uint32_t, uint64_t

from bulktransfer._native.kernel cimport Descriptor, Mapping
from bulktransfer._native.ledger cimport bt_pool
from bulktransfer._native.statistics cimport bt_record

cdef inline uint64_t* fresh_of(bt_pool* pool, uint32_t index) noexcept:
    """How many bytes from the start came with what a buffer holds now; NULL: all of it is seen by others anyway."""
    if pool.twin != NULL:
        return &pool.twin.cells[index].fresh
    return &pool.fresh[index] if pool.fresh != NULL else NULL


cdef class Slots:
    cdef bt_pool c
    cdef bt_record* record
    cdef void** handles
    cdef uint32_t* free
    cdef readonly object id
    cdef readonly object domain
    cdef Mapping mapping
    cdef public set channels
    cdef readonly uint32_t free_count
    cdef public bint reclaim
    cdef public Descriptor memory
    cdef public bint made_here  # its memory is nobody else's: what is not needed goes back
    cdef public bint present
    cdef public object on_return
    cdef int hungry
    cdef dict going_back
    cdef dict traces
    cdef uint64_t* taken_bits(self) except NULL
    cdef void put_free(self, uint32_t index) noexcept
    cdef int take_back(self, uint32_t index) except -1
    cdef int come_home(self, uint32_t index) except -1
    cdef int begin_frames(self) except -1
    cdef int furnish(self, uint32_t index) except -1
    cdef void renew(self, uint32_t index) noexcept
    cdef int melt(self) except -1
    cdef void grow(self, uint32_t index, uint64_t length) noexcept
    cdef int guard_for(self, uint32_t index, int act) except -1
    cdef void guard_again(self, uint32_t index) noexcept
    cdef int give_back_on_release(self, uint32_t index, object channel) except -1
