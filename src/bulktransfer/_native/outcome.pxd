from libc.stdint cimport uint64_t

cdef class Outcome:
    cdef readonly object error
    cdef readonly object operation
    cdef readonly object channel
    cdef readonly object buffer
    cdef readonly object pool
    cdef list missed
    cdef uint64_t first
    cdef uint64_t end
    cdef object done
    cdef int miss(self, object buffer) except -1
