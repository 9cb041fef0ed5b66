from libc.stdint cimport uint32_t, uint64_t, uint8_t

from bulktransfer._native.carrier cimport bt_entry, bt_link
from bulktransfer._native.statistics cimport bt_record

cdef class LinkCore:
    cdef bt_link* link
    cdef bt_record* record
    cdef uint64_t* sent  # by act; these and the next are in the record, for others to see
    cdef uint64_t* received
    cdef uint32_t generation
    cdef readonly uint32_t number
    cdef public int stage
    cdef public uint32_t meta_size
    cdef public bint hung_up
    cdef object inbox
    cdef object frames  # those that came and whose entries were not taken: serial, descriptors, lost
    cdef uint64_t frames_granted  # how many of them there may be
    cdef public int pidfd
    cdef uint32_t asked_at
    cdef bint lingers  # by value: worth waiting a little while the other side is at it, too
    cdef bint one_core  # which may need this very core for it
    cdef uint64_t control_sent
    cdef uint64_t bells_heard
    cdef readonly bint is_far  # the peer is on another machine, and has memory of its own

    cdef void let_go(self, bt_link* link) noexcept
    cdef int engage(self, bt_link* link) except? -1
    cdef int read_socket(self, bint dead) except -1
    cdef int push(self, bt_entry* entry, const uint8_t* meta) except -1
    cdef int keep_meta(self, bt_entry* entry, const uint8_t* meta, uint8_t** kept) except -1
    cdef int carry(self) except -1
    cdef int take_bells(self) except -1
    cdef void hold_arrivals(self, bt_link* link) noexcept
    cdef int take_far(self) except -1
    cdef int fetch(self, bint all) except -1
    cdef int read_ahead(self) except -1
    cdef int flush(self) except -1
    cdef int flush_due(self) except -1
    cdef uint64_t passed(self) except? 0
    cdef int expecting(self) except -1
