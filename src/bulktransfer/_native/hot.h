/* The ordinary move and pass in one piece: everything is as it nearly always is, or the caller goes the long way.
 *
 * Knows: the ledger, the ring and the bell, in the order that sending.pyx and receiving.pyx keep. Must not know: errors,
 * events, Python. Nothing is changed unless all of it is done: the long way then finds what stands in the way, and says
 * it. Ordinary is: memory that both sides see and that nothing guards, on one machine, an assignment that is active, two
 * domains, no copies of the buffer, no views, nothing that waits to be sent, meta data that fits into the entry; and what
 * is taken is of a pool into which no contents come from another machine.
 */
#ifndef BT_HOT_H
#define BT_HOT_H

#include "ledger.h"
#include "link.h"

#define BT_LIKELY(x) __builtin_expect(!!(x), 1)

static inline int bt_ordinary(const bt_assignment *a) {
    return a->standing == BT_ACTIVE && a->pool->shared && !a->pool->guarded && !a->same_domain && !a->far;
}

/* The state after `act`, where there is neither flag nor copy; 0xff: no such transition, or not ordinary. */
static inline uint8_t bt_plain_next(const bt_table *t, const bt_slot *s, enum bt_act act) {
    return s->flags | s->out | s->in ? 0xff : t->plain[act][s->state];
}

/* Fill the ring slot `ahead` of the tail, which is free, with a transfer of buffer `index` without meta data, and do its
 * transition; bt_publish_filled follows. Whether it is ordinary: no second time in one batch, since it is gone then. */
static inline int bt_fill_ahead(bt_link *link, const bt_table *t, bt_assignment *a, uint32_t index, enum bt_act act,
                                uint32_t ahead) {
    bt_slot *s = &a->pool->slots[index];
    uint8_t next = bt_plain_next(t, s, act);
    if (!BT_LIKELY(next != 0xff && s->views == 0)) return 0;
    bt_tx *tx = &link->tx;
    bt_entry *entry = &tx->ring[(tx->tail + ahead) & (tx->slot_count - 1)];
    entry->kind = (uint16_t)(act + 1);
    entry->flags = 0;
    entry->slot = a->slot;
    entry->index = index;
    entry->meta_size = 0;
    entry->length = act == BT_A_PASS ? a->pool->size : s->length;
    entry->serial = 0;
    s->state = next;
    s->left = a->channel;
    s->left_to = a->peer;
    s->sent_at = link->issued + ahead;
    return 1;
}

/* Undo bt_fill_ahead: only what is READ_WRITE is moved or passed, and it had not left. */
static inline void bt_unfill(bt_assignment *a, uint32_t index) {
    bt_slot *s = &a->pool->slots[index];
    s->state = BT_READ_WRITE;
    s->left = 0;
}

/* Publish what was filled, with one store and one bell. */
static inline void bt_publish_filled(bt_link *link, bt_assignment *a, uint32_t count) {
    bt_tx_publish(&link->tx, count);
    link->issued += count;
    a->last_position = link->issued;
    bt_ring_data(link);
}

/* Send buffer `index` by `act` (BT_A_MOVE or BT_A_PASS). Whether it was sent. */
static inline int bt_send_at_once(bt_link *link, const bt_table *t, bt_assignment *a, uint32_t index, enum bt_act act,
                                  const uint8_t *meta, uint32_t meta_size) {
    if (!BT_LIKELY(bt_ordinary(a) && meta_size <= BT_META_INLINE && bt_link_direct(link, 1) > 0 &&
                   bt_fill_ahead(link, t, a, index, act, 0)))
        return 0;
    if (meta_size) {
        bt_entry *entry = &link->tx.ring[link->tx.tail & (link->tx.slot_count - 1)];
        entry->meta_size = meta_size;
        memcpy(entry->meta, meta, meta_size);
    }
    bt_publish_filled(link, a, 1);
    return 1;
}

/* Take the entry at the head of the ring, which is not empty, if it brings a buffer of the assignment by `act` and the
 * ledger accepts it. Whether it was taken; `entry` is private then, with its meta data. */
static inline int bt_take_at_once(bt_rx *rx, const bt_table *t, bt_assignment *a, enum bt_act act, uint32_t meta_limit,
                                  bt_entry *entry) {
    const bt_entry *shared = &rx->ring[rx->head & (rx->slot_count - 1)];
    const bt_pool *pool = a->pool;
    memcpy(entry, shared, offsetof(bt_entry, meta));
    /* the compiler must not read the shared words again after the checks */
    __asm__ volatile("" ::: "memory");
    if (!BT_LIKELY(entry->kind == (uint16_t)(act + 1) && entry->slot == a->slot && entry->index < pool->count &&
                   entry->length <= pool->size && entry->meta_size <= meta_limit &&
                   entry->meta_size <= BT_META_INLINE && bt_ordinary(a) && !pool->taken))
        return 0;
    bt_slot *s = &pool->slots[entry->index];
    uint8_t next = bt_plain_next(t, s, act == BT_A_MOVE ? BT_A_MOVE_RECEIVED : BT_A_BUFFER_RECEIVED);
    if (!BT_LIKELY(next != 0xff)) return 0;
    s->state = next;
    s->via = a->channel;
    s->left = 0;
    s->length = act == BT_A_MOVE ? entry->length : pool->size;
    if (entry->meta_size) memcpy(entry->meta, shared->meta, entry->meta_size);
    rx->head++;
    return 1;
}

#endif
