from bulktransfer._native.pool cimport Pool

cdef class AllocatorCore:
    cdef readonly Pool pool
