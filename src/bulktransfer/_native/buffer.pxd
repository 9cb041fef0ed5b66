from libc.stdint cimport uint32_t

from bulktransfer._native.ledger cimport bt_slot
from bulktransfer._native.slots cimport Slots

cdef class Buffer:
    cdef readonly Slots pool  # a Pool
    cdef readonly uint32_t index
    cdef Py_ssize_t shape[1]
    cdef object __weakref__
    cdef bt_slot* slot(self) noexcept
    cdef str called(self)
    cdef int check_readable(self, str act) except -1
    cdef int check_writable(self, str act) except -1
    cdef char* base(self) noexcept
    cdef int fill(self, const char* data, Py_ssize_t size, Py_ssize_t offset) except -1
    cdef bint channel_lives(self, uint32_t number) except -1
    cdef int last_view_died(self) except -1

cdef Buffer new_buffer(Slots pool, uint32_t index)
cdef object explain(int verdict, str act, Buffer buffer, str where)
