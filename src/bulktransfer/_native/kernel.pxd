from libc.stddef cimport size_t
from libc.stdint cimport uint32_t, uint64_t

cdef extern from "registry.h" nogil:
    ctypedef struct bt_registry:
        uint32_t generation
    int bt_registry_add_range(bt_registry* r, void* address, size_t size)
    int bt_registry_add_fd(bt_registry* r, int fd)
    void bt_registry_drop_fd(bt_registry* r, int fd)
    void bt_registry_unmap(bt_registry* r, void* address, size_t size)
    void bt_registry_close(bt_registry* r, int fd)

cdef extern from "hold.h" nogil:
    ctypedef struct bt_hold:
        pass
    bt_hold* bt_hold_new(bt_registry* r, void* address, size_t size)
    bt_hold* bt_hold_more(bt_hold* hold)
    void bt_hold_drop(bt_hold* hold)

cdef extern from "twin.h" nogil:
    ctypedef struct bt_cell:
        uint64_t fresh
    ctypedef struct bt_twin:
        bt_cell cells[1]
    bt_twin* bt_twin_new(bt_registry* r, uint32_t count, uint64_t buffer_size)
    void bt_twin_retain(bt_twin* t)
    void bt_twin_leave(bt_twin* t, uint32_t jobs)
    int bt_twin_put_off(bt_twin* t, void* base, size_t size, int revoke)
    int bt_twin_put_off_hold(bt_twin* t, bt_hold* hold)
    int bt_twin_claim(bt_twin* t, uint32_t index, uint32_t channel)
    void bt_twin_unclaim(bt_twin* t, uint32_t index)
    uint32_t bt_twin_claimed(const bt_twin* t, uint32_t index)
    uint32_t bt_is_leaving(const bt_twin* t, uint32_t index)

cdef bt_registry* registry() noexcept nogil
cdef Descriptor received(int fd)

cdef class Descriptor:
    cdef int fd
    cdef uint32_t generation
    cdef int kind  # how it is let go: enum of kernel.pyx
    cdef void let_go(self) noexcept
    cpdef int detach(self) except -1

cdef class Mapping:
    cdef void* base
    cdef readonly size_t size
    cdef readonly bint writable
    cdef uint32_t generation
    cdef bt_twin* twin  # who moves bytes of it without asking anybody
    cdef void belong(self, bt_twin* twin) noexcept
    cdef bt_hold* hold
    cdef void* disown(self) noexcept
    cdef bt_hold* pin(self) except NULL
