from libc.stdint cimport uint32_t

from bulktransfer._native.buffer cimport Buffer
from bulktransfer._native.slots cimport Slots

cdef class Pool(Slots):
    cdef public object trust
    cdef public object given_trust
    cdef public tuple identity
    cdef public list leases
    cdef public list ended
    cdef public set lease_watches
    cdef public object allocator_open
    cdef object __weakref__
    cdef Buffer get(self, uint32_t index)
