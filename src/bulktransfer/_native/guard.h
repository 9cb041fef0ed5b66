/* Trust HALF, and sealed frames: a domain's own mapping allows what its ledger says, no more (design section 5).
 *
 * Knows: mprotect, and which access each state gives. Must not know: why a state changed, or Python.
 * A stray access, from C code too, faults. At HALF it guards against accidents only: the memory is shared.
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
    if (!(pool->guarded || s->holds == BT_SEALED) || s->guard == guard) return 0;
    if (mprotect(pool->base + (uint64_t)index * pool->size, pool->size, bt_guard_bits(guard)) < 0) return -errno;
    s->guard = (uint8_t)guard;
    if (guard == BT_MAY_WRITE) s->touched |= s->raw;
    return 0;
}

/* Begin to guard a whole pool, each run of equal states with one call. 0, or -errno and no change. */
static inline int bt_guard_begin(bt_pool *pool) {
    pool->guarded = pool->apart = 1;
    for (uint32_t i = 0; pool->base && i < pool->count;) {
        enum bt_guard guard = bt_guard_of(pool->slots[i].state);
        uint32_t begin = i;
        while (i < pool->count && bt_guard_of(pool->slots[i].state) == guard && pool->slots[i].guard != guard) i++;
        if (i == begin) {
            i++; /* its mapping is as it should be */
            continue;
        }
        uint8_t *start = pool->base + (uint64_t)begin * pool->size;
        if (mprotect(start, (uint64_t)(i - begin) * pool->size, bt_guard_bits(guard)) < 0) {
            int error = errno;
            /* what it was for everybody before; the kernel merges ranges that become equal, so this cannot fail */
            mprotect(pool->base, (uint64_t)pool->count * pool->size, PROT_READ | PROT_WRITE);
            for (i = 0; i < pool->count; i++) pool->slots[i].guard = BT_MAY_WRITE;
            pool->guarded = pool->apart = 0;
            return -error;
        }
        for (uint32_t k = begin; k < i; k++) pool->slots[k].guard = (uint8_t)guard;
    }
    return 0;
}

/* Guard no longer: all of it is writable again. 0, or -errno and no change. */
static inline int bt_guard_end(bt_pool *pool) {
    if (pool->base && mprotect(pool->base, (uint64_t)pool->count * pool->size, PROT_READ | PROT_WRITE) < 0)
        return -errno;
    pool->guarded = pool->apart = 0;
    for (uint32_t i = 0; i < pool->count; i++) pool->slots[i].guard = BT_MAY_WRITE;
    return 0;
}

/* Have the mapping allow what `index` may be once `act` is done, before it is. 0, or -errno and no change. */
static inline int bt_guard_for(const bt_table *t, bt_pool *pool, uint32_t index, enum bt_act act) {
    const bt_row *row = bt_lookup(t, &pool->slots[index], act);
    return row->next == 0xff ? 0 : bt_guard_set(pool, index, row->next);
}

/* bt_reclaim with the mapping. 1: something changed, 0: nothing, or -errno and no change. */
static inline int bt_guarded_reclaim(const bt_table *t, bt_assignment *a, uint32_t index, uint32_t living) {
    bt_slot *s = &a->pool->slots[index], slot = *s;
    bt_assignment before = *a;
    int out = bt_bit(a->out_copies, index), in = bt_bit(a->in_copies, index);
    int changed = bt_reclaim(t, a, index, living);
    int result = bt_guard_set(a->pool, index, s->state);
    if (result == 0) return changed;
    *s = slot;
    *a = before;
    if (out) bt_bit_set(a->out_copies, index);
    if (in) bt_bit_set(a->in_copies, index);
    return result;
}

#endif
