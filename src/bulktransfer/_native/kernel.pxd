from libc.stddef cimport size_t
from libc.stdint cimport uint32_t

cdef extern from "registry.h" nogil:
    ctypedef struct bt_registry:
        uint32_t generation
    int bt_registry_add_range(bt_registry* r, void* address, size_t size)
    int bt_registry_add_fd(bt_registry* r, int fd)
    void bt_registry_drop_fd(bt_registry* r, int fd)
    void bt_registry_unmap(bt_registry* r, void* address, size_t size)
    void bt_registry_close(bt_registry* r, int fd)

cdef bt_registry* registry() noexcept nogil

cdef class Descriptor:
    cdef int fd
    cdef uint32_t generation
    cpdef int detach(self) except -1

cdef class Mapping:
    cdef void* base
    cdef readonly size_t size
    cdef readonly bint writable
    cdef uint32_t generation
    cdef void* disown(self) noexcept
