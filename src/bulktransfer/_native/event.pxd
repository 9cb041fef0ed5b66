from libc.stdint cimport uint8_t, uint32_t
from bulktransfer._native.pool cimport Buffer, Pool

cdef class Event:
    cdef int number
    cdef uint8_t act
    cdef bint queued
    cdef uint32_t meta_size
    cdef uint8_t short_meta[32]
    cdef bytes long_meta
    cdef readonly object channel
    cdef readonly Buffer buffer
    cdef readonly Pool pool
    cdef readonly bint present
    cdef readonly tuple buffers
    cdef readonly object error

cdef Event new_event(int number, object channel)
