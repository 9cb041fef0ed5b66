"""The memory of this process that others of the user may look at: records in it, and the counts that they hold.

Knows: the arena (statistics.h) of this process, which a forked child gets anew. Must not know: what a record says.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc

from bulktransfer._native.kernel cimport registry

cdef bt_arena* all_arenas = NULL  # the newest first; those behind it are a parent's


cdef bt_arena* arena() noexcept:
    global all_arenas
    cdef bt_arena* fresh
    if all_arenas == NULL or all_arenas.generation != registry().generation:
        fresh = bt_arena_new(registry(), all_arenas)
        if fresh == NULL:
            return NULL
        all_arenas = fresh
    return all_arenas


cdef bt_arena* arena_now() noexcept:
    """The one of this process, if it has one."""
    return all_arenas if all_arenas != NULL and all_arenas.generation == registry().generation else NULL


cdef bt_slot* new_slots(uint32_t count) except NULL:
    cdef bt_slot* slots = <bt_slot*> bt_open_calloc(arena(), count * sizeof(bt_slot))
    if slots == NULL:
        raise MemoryError(f"no memory to keep {count} buffers")
    return slots


cdef void free_slots(bt_slot* slots, uint32_t count) noexcept:
    bt_open_free(arena_now(), all_arenas, slots, count * sizeof(bt_slot))


cdef bt_record* new_record() except NULL:
    """A record that others see, or, where there is no room, one that nobody does. Raises: MemoryError."""
    cdef bt_arena* a = arena()
    cdef bt_record* record = bt_record_new(a) if a != NULL else NULL
    if record == NULL:
        record = <bt_record*> calloc(1, sizeof(bt_record))
    if record == NULL:
        raise MemoryError("no memory to count transfers")
    return record


cdef void drop_record(bt_record* record) noexcept:
    cdef bt_arena* a = arena_now()
    if record == NULL:
        return
    if a != NULL and bt_arena_has(a, record):
        bt_record_drop(a, record)
    else:
        bt_open_free(a, all_arenas, record, sizeof(bt_record))


cdef void show_slots(bt_record* record, const bt_slot* slots, uint32_t count) noexcept:
    """Say where the slot table of a pool is to be seen, if it is."""
    cdef bt_arena* a = arena_now()
    if a != NULL and bt_arena_has(a, slots) and bt_arena_has(a, record):
        record.slot_count = count
        record.slots = <uint64_t> (<const char*> slots - <const char*> a.base)


def open_statistics():
    """Have the memory that others may look at, if the system gives some; its descriptor stays to the end."""
    arena()


def note_hardened():
    """Whoever can look is told that this process is closed to other processes of its user."""
    cdef bt_arena* a = arena()
    if a != NULL:
        bt_arena_head(a).hardened = 1
