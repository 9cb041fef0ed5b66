from libc.stdint cimport uint32_t, uint64_t

from bulktransfer._native.carrier cimport bt_link
from bulktransfer._native.slots cimport Slots

cdef int far_open(bt_link* link, int fd, object tls, uint32_t meta_limit) except -1
cdef int far_leave(bt_link* link) except -1
cdef int far_fetch(bt_link* link, bint all) except -1
cdef int far_flush(bt_link* link) except -1
cdef int far_flush_due(bt_link* link) except -1
cdef object far_next(bt_link* link)
cdef object far_broken(bt_link* link)
cdef bint far_over(bt_link* link) noexcept
cdef int far_poller(bt_link* link) noexcept
cdef int far_make_bed(bt_link* link, int bed) noexcept
cdef int far_land(
    bt_link* link, Slots pool, uint32_t slot, uint32_t channel, uint32_t peer, bint judged_home, object lease) except -1
cdef int far_drop(bt_link* link, uint32_t slot) except -1
cdef bint far_is_unsent(bt_link* link, uint32_t slot, uint32_t index) except -1
cdef int far_sleep(bt_link* link, int bed, int timeout_ms, bint outcomes) noexcept nogil
cdef int far_spin(bt_link* link, bint outcomes, uint64_t budget_ns, int* kicked) noexcept nogil
cdef object far_counts(bt_link* link)
