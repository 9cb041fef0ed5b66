/* Trust HALF: a domain's own mapping allows what its ledger says, and no more (design section 5).
 *
 * Knows: mprotect, and which access each state gives. Must not know: why a state changed, or Python.
 * A stray access, from C code too, faults. It guards against accidents only: the memory is shared.
 */
#ifndef BT_GUARD_H
#define BT_GUARD_H

#include <errno.h>
#include <sys/mman.h>

#include "ledger.h"

enum bt_guard { BT_MAY_WRITE = 0, BT_MAY_READ = 1, BT_MAY_NOTHING = 2 };

static inline enum bt_guard bt_guard_of(uint8_t state) {
    if (state == BT_READ_WRITE) return BT_MAY_WRITE;
    return state == BT_INVALID ? BT_MAY_NOTHING : BT_MAY_READ;
}

static inline int bt_guard_bits(enum bt_guard guard) {
    if (guard == BT_MAY_WRITE) return PROT_READ | PROT_WRITE;
    return guard == BT_MAY_READ ? PROT_READ : PROT_NONE;
}

/* Have the mapping of a buffer allow what `state` allows. 0, or -errno (ENOMEM: too many mappings) and no change. */
static inline int bt_guard_set(bt_pool *pool, uint32_t index, uint8_t state) {
    enum bt_guard guard = bt_guard_of(state);
    bt_slot *s = &pool->slots[index];
    if (!pool->guarded || s->guard == guard) return 0;
    if (mprotect(pool->base + (uint64_t)index * pool->size, pool->size, bt_guard_bits(guard)) < 0) return -errno;
    s->guard = (uint8_t)guard;
    return 0;
}

/* Begin to guard a whole pool, each run of equal states with one call. 0 or -errno. */
static inline int bt_guard_begin(bt_pool *pool) {
    pool->guarded = 1;
    for (uint32_t i = 0; i < pool->count;) {
        enum bt_guard guard = bt_guard_of(pool->slots[i].state);
        uint32_t end = i + 1;
        while (end < pool->count && bt_guard_of(pool->slots[end].state) == guard) end++;
        if (mprotect(pool->base + (uint64_t)i * pool->size, (uint64_t)(end - i) * pool->size, bt_guard_bits(guard)) < 0)
            return -errno;
        for (; i < end; i++) pool->slots[i].guard = (uint8_t)guard;
    }
    return 0;
}

/* Guard no longer: all of it is writable again. 0 or -errno. */
static inline int bt_guard_end(bt_pool *pool) {
    pool->guarded = 0;
    if (mprotect(pool->base, (uint64_t)pool->count * pool->size, PROT_READ | PROT_WRITE) < 0) return -errno;
    for (uint32_t i = 0; i < pool->count; i++) pool->slots[i].guard = BT_MAY_WRITE;
    return 0;
}

#endif
