from libc.stdint cimport uint32_t, uint64_t, uint8_t

from bulktransfer._native.assignment cimport Assignment
from bulktransfer._native.carrier cimport bt_arrival, bt_entry, bt_link
from bulktransfer._native.event cimport Event
from bulktransfer._native.kernel cimport bt_twin
from bulktransfer._native.sealed cimport SealedCore

cdef class ValueCore(SealedCore):
    cdef int append_contents(self, Assignment a, uint32_t index, bt_entry* entry, const uint8_t* meta) except -1
    cdef Event apply_value(self, bt_entry* entry, uint8_t* meta, bint refused)
    cdef int pull(self, bt_link* link, bt_arrival* arrival) except? -1
    cdef str judge_contents(self, bt_link* link, bt_arrival* arrival)
    cdef int spoil(self, bt_twin* twin, uint32_t index) except -1
