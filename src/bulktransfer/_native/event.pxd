from libc.stdint cimport uint8_t, uint32_t
from bulktransfer._native.buffer cimport Buffer

cdef class Event:
    cdef int number
    cdef uint8_t act
    cdef bint queued
    cdef uint32_t meta_size
    cdef uint8_t short_meta[32]
    cdef object channel  # this and the next are members of the type, see event.pyx
    cdef Buffer buffer
    cdef object rest  # None; of transfers: long meta data; of other events: (pool, present, buffers, error)
    cdef object part(self, int index, object otherwise)

cdef Event new_event(int number, object channel)
