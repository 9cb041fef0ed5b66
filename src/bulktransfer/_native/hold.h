/* Memory that must stay mapped though its owner may go: a count of those who use it.
 *
 * Knows: addresses. Must not know: what is there, or Python.
 */
#ifndef BT_HOLD_H
#define BT_HOLD_H

#include <stdatomic.h>

#include "registry.h"

typedef struct bt_hold {
    _Atomic uint32_t users;
    uint32_t generation;
    bt_registry *registry;
    void *address;
    size_t size;
} bt_hold;

static inline bt_hold *bt_hold_new(bt_registry *registry, void *address, size_t size) {
    bt_hold *hold = malloc(sizeof *hold);
    if (!hold) return NULL;
    atomic_init(&hold->users, 1);
    hold->generation = registry->generation;
    hold->registry = registry;
    hold->address = address;
    hold->size = size;
    return hold;
}

static inline bt_hold *bt_hold_more(bt_hold *hold) {
    atomic_fetch_add_explicit(&hold->users, 1, memory_order_relaxed); /* the caller is one */
    return hold;
}

/* The last one unmaps it. */
static inline void bt_hold_drop(bt_hold *hold) {
    if (!hold) return;
    /* acq_rel: whoever unmaps has seen that all others have finished */
    if (atomic_fetch_sub_explicit(&hold->users, 1, memory_order_acq_rel) != 1) return;
    if (hold->generation == hold->registry->generation)
        bt_registry_unmap(hold->registry, hold->address, hold->size);
    free(hold);
}

#endif
