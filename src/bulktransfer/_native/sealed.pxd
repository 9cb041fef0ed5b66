from libc.stdint cimport uint32_t, uint64_t, uint8_t

from bulktransfer._native.assignment cimport Assignment
from bulktransfer._native.carrier cimport bt_entry
from bulktransfer._native.event cimport Event
from bulktransfer._native.receiving cimport ReceiveCore

cdef class SealedCore(ReceiveCore):
    cdef uint64_t frames_sent, frames_taken
    cdef uint64_t sealed_copies, sealed_before, by_value
    cdef bint seals(self, Assignment a, uint32_t index, int act, uint64_t length, uint64_t count) except -1
    cdef bint seal(self, Assignment a, uint32_t index) except -1
    cdef int push_sealed(self, Assignment a, uint32_t index, int act, bt_entry* entry, const uint8_t* meta) except -1
    cdef int append_sealed(self, Assignment a, uint32_t index, bt_entry* entry, const uint8_t* meta) except -1
    cdef int* keep_frame(self, Assignment a, uint32_t index) except NULL
    cdef bint send_sealed(self, list items, int act, list notes, uint64_t first) except -1
    cdef int append_batch(
        self, list items, int act, list notes, uint8_t** copies, int** kept, uint64_t first) except -1
    cdef int foresee_frame(self) except -1
    cdef Event take_sealed(self, bt_entry* entry, uint8_t* meta)
    cdef object frame_due(self, bt_entry* entry)
    cdef int settle(self, Assignment a, bt_entry* entry, object frame) except -1
