/* What other processes of the user may look at: one memfd a process, found through /proc/PID/fd (`bulk ls`).
 *
 * Knows: an arena of cells in that memory, and records in it. Must not know: what a record says, or Python.
 * The library's own counts and slot tables live in the arena themselves, so that being looked at costs nothing. The
 * memory is sealed against writing once it is mapped here: others can only read. Everything is called under the GIL.
 */
#ifndef BT_STATISTICS_H
#define BT_STATISTICS_H

#include "ledger.h"
#include "memory.h"
#include "registry.h"
#include <stddef.h>
#include <sys/prctl.h>

#define BT_ARENA_NAME "bulktransfer-statistics"
#define BT_ARENA_MAGIC UINT64_C(0x31535441544b4c42) /* "BLKTATS1" as it lies in memory, read as a number */
#define BT_CELL ((size_t)512)
#define BT_CELLS ((size_t)1 << 17) /* 64 MiB, of which only what is used exists */
#define BT_DIRECTORY 8000
#define BT_COUNTERS 8
#define BT_RECORD_SIZE (2 * BT_CELL)

/* Where others find what, so that they need not know how this version lays out a slot. */
typedef struct bt_head {
    uint64_t magic;
    uint32_t pid;
    uint32_t hardened;
    uint32_t slot_size, slot_state, slot_flags, flag_free;
    uint32_t directory_count;
    uint32_t cell_size;
    uint32_t directory[BT_DIRECTORY]; /* the first cell of each record; 0: none */
} bt_head;

typedef struct bt_record {
    uint32_t sequence; /* odd while the text is written */
    uint32_t text_size;
    uint64_t counters[BT_COUNTERS];
    uint64_t slots; /* where in the memory the slot table lies; 0: nowhere */
    uint32_t slot_count;
    uint32_t entry; /* its place in the directory */
    char text[BT_RECORD_SIZE - 88];
} bt_record;

_Static_assert(sizeof(bt_record) == BT_RECORD_SIZE, "a record is two cells");
_Static_assert(offsetof(bt_record, counters) == 8 && offsetof(bt_record, slots) == 72, "observe/ reads it so");
_Static_assert(offsetof(bt_record, text) == 88, "observe/ reads it so");
_Static_assert(offsetof(bt_head, directory) == 40, "observe/ reads it so");

#define BT_HEAD_CELLS ((sizeof(bt_head) + BT_CELL - 1) / BT_CELL)

typedef struct bt_arena {
    uint8_t *base;
    size_t used;          /* bytes from the start that were ever taken: what a fork has to copy */
    uint32_t generation;  /* of the process that made it */
    struct bt_arena *before; /* of its parent: blocks in there are private copies, and stay */
    uint64_t taken[BT_CELLS / 64];
} bt_arena;

static inline bt_head *bt_arena_head(bt_arena *a) { return (bt_head *)a->base; }

/* A new arena for this process. NULL: the system has none to give; things work without. */
static inline bt_arena *bt_arena_new(bt_registry *r, bt_arena *before) {
    bt_arena *a = calloc(1, sizeof *a);
    if (!a) return NULL;
    int fd = bt_memory_create(BT_ARENA_NAME, BT_CELLS * BT_CELL);
    if (fd < 0) { free(a); return NULL; }
    void *base = mmap(NULL, BT_CELLS * BT_CELL, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (base == MAP_FAILED || fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_SEAL) < 0 ||
        bt_registry_add_fd(r, fd) < 0) {
        if (base != MAP_FAILED) munmap(base, BT_CELLS * BT_CELL);
        close(fd);
        free(a);
        return NULL;
    }
    a->base = base;
    a->used = BT_HEAD_CELLS * BT_CELL;
    a->generation = r->generation;
    a->before = before;
    for (size_t i = 0; i < BT_HEAD_CELLS; i++) a->taken[i / 64] |= UINT64_C(1) << (i % 64);
    bt_head *head = bt_arena_head(a);
    head->pid = (uint32_t)getpid();
    head->hardened = prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) != 1;
    head->slot_size = sizeof(bt_slot);
    head->slot_state = offsetof(bt_slot, state);
    head->slot_flags = offsetof(bt_slot, flags);
    head->flag_free = BT_FREE;
    head->directory_count = BT_DIRECTORY;
    head->cell_size = BT_CELL;
    __atomic_store_n(&head->magic, BT_ARENA_MAGIC, __ATOMIC_RELEASE); /* partner: who looks, in another process */
    r->kept = base;
    r->kept_size = BT_CELLS * BT_CELL;
    r->kept_used = &a->used;
    return a;
}

static inline int bt_arena_is_taken(const bt_arena *a, size_t cell) { return a->taken[cell / 64] >> (cell % 64) & 1; }

/* `size` bytes of zeroes, or NULL: there is no room. The lowest cells that are free, so that few pages exist. */
static inline void *bt_arena_take(bt_arena *a, size_t size) {
    size_t wanted = (size + BT_CELL - 1) / BT_CELL, run = 0;
    for (size_t cell = BT_HEAD_CELLS; cell < BT_CELLS && wanted; cell++) {
        if (cell % 64 == 0 && !run && a->taken[cell / 64] == ~UINT64_C(0)) { cell += 63; continue; }
        run = bt_arena_is_taken(a, cell) ? 0 : run + 1;
        if (run < wanted) continue;
        size_t first = cell + 1 - wanted;
        for (size_t i = first; i <= cell; i++) a->taken[i / 64] |= UINT64_C(1) << (i % 64);
        if ((cell + 1) * BT_CELL > a->used) a->used = (cell + 1) * BT_CELL;
        void *block = a->base + first * BT_CELL;
        memset(block, 0, wanted * BT_CELL);
        return block;
    }
    return NULL;
}

/* Whether `block` is one of this arena's; and how far from its start. */
static inline int bt_arena_has(const bt_arena *a, const void *block) {
    uintptr_t at = (uintptr_t)block, base = (uintptr_t)a->base;
    return at >= base && at - base < BT_CELLS * BT_CELL;
}

static inline void bt_arena_give(bt_arena *a, void *block, size_t size) {
    size_t first = (size_t)((uint8_t *)block - a->base) / BT_CELL, count = (size + BT_CELL - 1) / BT_CELL;
    for (size_t i = first; i < first + count; i++) a->taken[i / 64] &= ~(UINT64_C(1) << (i % 64));
}

/* Zeroed memory that others may look at where there is some; else ordinary memory. NULL: none at all. */
static inline void *bt_open_calloc(bt_arena *a, size_t size) {
    void *block = a ? bt_arena_take(a, size) : NULL;
    return block ? block : calloc(1, size ? size : 1);
}

/* `now`: this process's arena, or NULL. What lies in a parent's is left there. */
static inline void bt_open_free(bt_arena *now, bt_arena *all, void *block, size_t size) {
    for (bt_arena *a = all; a && block; a = a->before)
        if (bt_arena_has(a, block)) {
            if (a == now) bt_arena_give(a, block, size);
            return;
        }
    free(block);
}

/* A record, in the directory. NULL: no room. */
static inline bt_record *bt_record_new(bt_arena *a) {
    bt_head *head = bt_arena_head(a);
    for (uint32_t entry = 0; entry < BT_DIRECTORY; entry++) {
        if (head->directory[entry]) continue;
        bt_record *record = bt_arena_take(a, BT_RECORD_SIZE);
        if (!record) return NULL;
        record->entry = entry;
        uint32_t cell = (uint32_t)((size_t)((uint8_t *)record - a->base) / BT_CELL);
        __atomic_store_n(&head->directory[entry], cell, __ATOMIC_RELEASE); /* partner: who looks, in another process */
        return record;
    }
    return NULL;
}

static inline void bt_record_drop(bt_arena *a, bt_record *record) {
    __atomic_store_n(&bt_arena_head(a)->directory[record->entry], 0, __ATOMIC_RELEASE); /* partner: as above */
    __atomic_fetch_add(&record->sequence, 1, __ATOMIC_RELEASE); /* odd for ever, for whoever still reads it */
    bt_arena_give(a, record, BT_RECORD_SIZE);
}

/* Say something else. Whoever looks takes the text only if the sequence was even, and the same before and after. */
static inline void bt_record_write(bt_record *record, const char *text, size_t size) {
    if (size > sizeof record->text) size = 0;
    __atomic_fetch_add(&record->sequence, 1, __ATOMIC_ACQ_REL); /* partner: the reader's first look */
    __atomic_thread_fence(__ATOMIC_RELEASE);
    memcpy(record->text, text, size);
    record->text_size = (uint32_t)size;
    __atomic_fetch_add(&record->sequence, 1, __ATOMIC_RELEASE); /* partner: the reader's second look */
}

#endif
