from libc.stdint cimport uint32_t, uint64_t

from bulktransfer._native.kernel cimport bt_registry
from bulktransfer._native.ledger cimport bt_slot

cdef extern from "statistics.h" nogil:
    ctypedef struct bt_head:
        uint32_t hardened
    ctypedef struct bt_arena:
        char* base
        uint32_t generation
    ctypedef struct bt_record:
        uint64_t* counters
        uint64_t slots
        uint32_t slot_count
    bt_head* bt_arena_head(bt_arena* a)
    bt_arena* bt_arena_new(bt_registry* r, bt_arena* before)
    int bt_arena_has(const bt_arena* a, const void* block)
    void* bt_open_calloc(bt_arena* a, size_t size)
    void bt_open_free(bt_arena* now, bt_arena* all, void* block, size_t size)
    bt_record* bt_record_new(bt_arena* a)
    void bt_record_drop(bt_arena* a, bt_record* record)
    void bt_record_write(bt_record* record, const char* text, size_t size)

cdef bt_slot* new_slots(uint32_t count) except NULL
cdef void free_slots(bt_slot* slots, uint32_t count) noexcept
cdef bt_record* new_record() except NULL
cdef void drop_record(bt_record* record) noexcept
cdef void show_slots(bt_record* record, const bt_slot* slots, uint32_t count) noexcept
