from libc.stdint cimport uint32_t

from bulktransfer._native.buffer cimport Buffer
from bulktransfer._native.kernel cimport Mapping
from bulktransfer._native.ledger cimport bt_assignment
from bulktransfer._native.pool cimport Pool

cdef class Assignment:
    cdef bt_assignment c
    cdef readonly Pool pool
    cdef readonly uint32_t slot
    cdef public bint exposed
    cdef public object means  # by which contents travel: states.Means
    cdef Mapping window
    cdef public object held  # exposed: the write end of the peer's lease
    cdef bint rests(self, uint32_t index)
    cdef public bint present
    cdef public object lease
    cdef public object request
    cdef uint32_t held_over_channels(self, Buffer buffer) except? 0
