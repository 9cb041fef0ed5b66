/* One direction of a channel: a ring of entries with one producer and one consumer in two domains.
 *
 * Knows: the order of stores and loads. Must not know: what an entry means, or Python.
 * Every index of this side lives in private memory (bt_tx, bt_rx); the shared ones are only published.
 * A word of the peer is read once, checked against private state, then used (design section 8, rules 3 and 4).
 */
#ifndef BT_RING_H
#define BT_RING_H

#include <string.h>

#include "layout.h"

/* tests/native weakens these, to show that it notices */
#ifndef BT_TX_ORDER
#define BT_TX_ORDER memory_order_seq_cst
#endif
#ifndef BT_RX_ORDER
#define BT_RX_ORDER memory_order_seq_cst
#endif
#ifndef BT_ACQUIRE_ORDER
#define BT_ACQUIRE_ORDER memory_order_acquire
#endif

/* The producing half. `own` is writable, `peer` is not. */
typedef struct bt_tx {
    bt_outbox *own;
    const bt_outbox *peer;
    bt_entry *ring;
    uint8_t *meta;
    uint64_t tail;     /* next position to fill */
    uint64_t consumed; /* last seen of the peer */
    uint64_t meta_stride;
    uint32_t slot_count;
    uint32_t last_rung_data; /* values of the peer's sleep counters that were rung for */
} bt_tx;

/* The consuming half. */
typedef struct bt_rx {
    bt_outbox *own;
    const bt_outbox *peer;
    const bt_entry *ring;
    const uint8_t *meta;
    uint64_t head;     /* next position to take */
    uint64_t tail;     /* last seen of the peer */
    uint64_t published; /* value of own->consumed */
    uint64_t meta_stride;
    uint32_t slot_count;
    uint32_t last_rung_space;
} bt_rx;

static inline void bt_outbox_init(bt_outbox *box, uint32_t slot_count, uint32_t meta_size) {
    box->magic = BT_MAGIC;
    box->version = BT_LAYOUT_VERSION;
    box->slot_count = slot_count;
    box->meta_size = meta_size;
}

static inline void bt_rings_init(bt_tx *tx, bt_rx *rx, bt_outbox *own, bt_outbox *peer, uint32_t slot_count,
                                 uint32_t meta_size) {
    memset(tx, 0, sizeof *tx);
    memset(rx, 0, sizeof *rx);
    tx->own = rx->own = own;
    tx->peer = rx->peer = peer;
    tx->slot_count = rx->slot_count = slot_count;
    tx->meta_stride = rx->meta_stride = bt_meta_stride(meta_size);
    tx->ring = bt_outbox_ring(own);
    tx->meta = bt_outbox_meta(own, slot_count);
    rx->ring = bt_outbox_ring(peer);
    rx->meta = bt_outbox_meta(peer, slot_count);
}

/* Look how far the peer has consumed. -1: it claims what cannot be (it took more than there is, or went back). */
static inline int bt_tx_refresh(bt_tx *tx) {
    /* acquire, with the release (or seq_cst) store in bt_rx_publish: the peer has finished reading those slots,
     * so they may be overwritten; and what it published before the index (refusals) is visible. */
    uint64_t consumed = atomic_load_explicit(&tx->peer->consumed, BT_ACQUIRE_ORDER);
    if (consumed - tx->consumed > tx->tail - tx->consumed) return -1;
    tx->consumed = consumed;
    return 0;
}

/* Free slots by what was last seen. */
static inline uint32_t bt_tx_room(const bt_tx *tx) { return tx->slot_count - (uint32_t)(tx->tail - tx->consumed); }

/* Fill the slot `ahead` of the tail, which must be free. `meta_size` was checked against the channel's. */
static inline void bt_tx_fill(bt_tx *tx, uint32_t ahead, const bt_entry *entry, const uint8_t *meta) {
    uint64_t at = (tx->tail + ahead) & (tx->slot_count - 1);
    bt_entry *slot = &tx->ring[at];
    memcpy(slot, entry, offsetof(bt_entry, meta));
    if (entry->meta_size == 0) return;
    memcpy(entry->meta_size <= BT_META_INLINE ? slot->meta : tx->meta + at * tx->meta_stride, meta, entry->meta_size);
}

/* Publish `count` filled slots with one store: the peer sees all of them or none. */
static inline void bt_tx_publish(bt_tx *tx, uint32_t count) {
    tx->tail += count;
    /* seq_cst, with the acquire load in bt_rx_look (the slots are filled before the peer sees the index), and with
     * the peer's load of this index between storing its sleep counter and sleeping (doorbell.h). */
    atomic_store_explicit(&tx->own->tail, tx->tail, BT_TX_ORDER);
}

/* Entries that wait; looks at the peer's index only when the known ones are used up. -1: it cannot be. */
static inline int64_t bt_rx_look(bt_rx *rx) {
    if (rx->head == rx->tail) {
        /* acquire, with the store in bt_tx_publish */
        uint64_t tail = atomic_load_explicit(&rx->peer->tail, BT_ACQUIRE_ORDER);
        if (tail - rx->head > rx->slot_count) return -1;
        rx->tail = tail;
    }
    return (int64_t)(rx->tail - rx->head);
}

/* The same, always with a fresh look. */
static inline int64_t bt_rx_look_again(bt_rx *rx) {
    uint64_t tail = atomic_load_explicit(&rx->peer->tail, memory_order_seq_cst);
    if (tail - rx->head > rx->slot_count || tail - rx->head < rx->tail - rx->head) return -1;
    rx->tail = tail;
    return (int64_t)(rx->tail - rx->head);
}

/* How many refusals of pool number `slot` wait among the entries that are known; `all`: of any pool. */
static inline int bt_rx_refusals(const bt_rx *rx, uint32_t slot, uint32_t *all) {
    int count = 0;
    for (uint64_t at = rx->head; at != rx->tail; at++) {
        const volatile bt_entry *entry = &rx->ring[at & (rx->slot_count - 1)]; /* each word is read once */
        if (entry->kind != BT_REFUSE) continue;
        ++*all;
        count += entry->slot == slot;
    }
    return count;
}

/* Copy the entry at the head into private memory, meta data after it (`meta` holds BT_META_MAX bytes).
 * 0, or -1 if its meta data is longer than `meta_limit`. */
static inline int bt_rx_take(bt_rx *rx, bt_entry *entry, uint8_t *meta, uint32_t meta_limit) {
    uint64_t at = rx->head & (rx->slot_count - 1);
    memcpy(entry, &rx->ring[at], offsetof(bt_entry, meta));
    /* the compiler must not read the shared words again after the check */
    __asm__ volatile("" ::: "memory");
    if (entry->meta_size > meta_limit || entry->meta_size > BT_META_MAX) return -1;
    if (entry->meta_size)
        memcpy(meta, entry->meta_size <= BT_META_INLINE ? rx->ring[at].meta : rx->meta + at * rx->meta_stride,
               entry->meta_size);
    rx->head++;
    return 0;
}

/* The meta data of the entry at the head where it is not in the entry. */
static inline const uint8_t *bt_rx_meta(const bt_rx *rx) {
    return rx->meta + (rx->head & (rx->slot_count - 1)) * rx->meta_stride;
}

/* What the flags of the entry at the head say: a hint, since the peer may change it yet. */
static inline uint16_t bt_rx_flags(const bt_rx *rx) {
    const volatile bt_entry *entry = &rx->ring[rx->head & (rx->slot_count - 1)];
    return entry->flags;
}

/* Tell the peer what was taken; its slots are free from here on, and its operations accepted. */
static inline void bt_rx_publish(bt_rx *rx) {
    rx->published = rx->head;
    /* seq_cst: release for the acquire in bt_tx_refresh, and store-load order against the peer's space counter */
    atomic_store_explicit(&rx->own->consumed, rx->head, BT_RX_ORDER);
}

#endif
