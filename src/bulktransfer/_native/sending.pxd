from libc.stdint cimport uint32_t, uint64_t, uint8_t

from bulktransfer._native.assignment cimport Assignment
from bulktransfer._native.buffer cimport Buffer
from bulktransfer._native.carrier cimport bt_entry
from bulktransfer._native.link cimport LinkCore

cdef void free_metas(uint8_t** copies, Py_ssize_t count) noexcept

cdef class SendCore(LinkCore):
    cdef public bint is_source
    cdef public list table
    cdef Assignment recent
    cdef object outcomes
    cdef bint may_have_outcomes

    cdef int check_sender(self, int act) except -1
    cdef Assignment assignment_of(self, Buffer buffer, int act)
    cdef object too_much_meta(self, str what, Py_ssize_t size)
    cdef int send_one(self, Buffer buffer, int act, object meta, object done) except -1
    cdef int give_one_back(self, Buffer buffer, bint when_unused) except -1
    cdef int send_batch(self, object buffers, int act, object metas, object done) except -1
    cdef uint8_t** keep_metas(self, list notes) except NULL
    cdef int push_apart(
        self, Assignment a, uint32_t index, int act, bt_entry* entry, const uint8_t* meta) except -1
    cdef int send_values(self, list items, int act, list notes, uint64_t first) except -1
    cdef int send_entries(self, list items, int act, list notes, uint64_t first) except -1
    cdef int guard_batch(self, list items, int act) except -1
    cdef int judge_batch(self, list items, int act) except -1
    cdef int expect(self, object done, str operation, object buffer, uint64_t first, uint64_t end) except -1
