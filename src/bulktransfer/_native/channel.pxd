from libc.stdint cimport int64_t

from bulktransfer._native.event cimport Event
from bulktransfer._native.waiting cimport WaitCore

cdef class ChannelCore(WaitCore):
    cdef tuple handlers
    cdef bint calls_back  # when a buffer arrives
    cdef unsigned long receiver
    cdef readonly Py_ssize_t passed_over  # queued events that the last dispatch left to receive
    cdef object __weakref__

    cdef Event next_event(self)
    cdef int64_t look_far(self) except? -1
    cdef int run_callback(self, object handler, object argument) except -1
    cdef int fire_outcomes(self) except -1
    cdef int enter(self) except -1
    cdef int leave(self) except -1
    cdef Event look_harder(self)
    cdef Event wait_event(self, object timeout, object asked)
