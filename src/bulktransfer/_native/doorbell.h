/* Sleeping until the peer does something, and waking it: two counters, no lock, no lost wake-up.
 *
 * Knows: the sleep counters. Must not know: sockets (whoever waits polls, whoever is told to rings), or Python.
 *
 * A counter is odd while its side sleeps.
 *   sleeper:    S1 store counter = odd (seq_cst)    S2 load the peer's index (seq_cst); if it moved, stay awake; poll
 *   publisher:  P1 store index (seq_cst)            P2 load the peer's counter (seq_cst); if odd and not rung for: ring
 * Lost wake-up means: S2 reads the old index and P2 reads the even counter. S2 reading the old index puts S2 before
 * P1 in the single total order of seq_cst operations, so S1 < S2 < P1 < P2, and then P2 reads what S1 stored: odd.
 * A contradiction; it is the store-buffering litmus test (SB+scs), and it needs seq_cst on all four: with release
 * and acquire both loads may read the old values. A spurious ring is harmless: the sleeper looks again.
 * One ring a value: a sleeper that goes back to sleep takes the next odd value, so it is rung for again.
 */
#ifndef BT_DOORBELL_H
#define BT_DOORBELL_H

#include "layout.h"

#ifndef BT_BELL_ORDER
#define BT_BELL_ORDER memory_order_seq_cst
#endif

/* S1: from here on the peer rings. The counter is this side's own word, so reading it back is private. */
static inline void bt_sleep_begin(_Atomic uint32_t *own) {
    uint32_t value = atomic_load_explicit(own, memory_order_relaxed);
    atomic_store_explicit(own, (value + 1) | 1, BT_BELL_ORDER); /* with P2 */
}

/* Awake again: the peer need not ring. A ring under way is harmless. */
static inline void bt_sleep_end(_Atomic uint32_t *own) {
    uint32_t value = atomic_load_explicit(own, memory_order_relaxed);
    if (value & 1) atomic_store_explicit(own, value + 1, memory_order_relaxed); /* no partner: only saves rings */
}

static inline int bt_sleeping(_Atomic uint32_t *own) { return atomic_load_explicit(own, memory_order_relaxed) & 1; }

/* P2: whether to ring the peer, once a value. Call after publishing. */
static inline int bt_bell_due(const _Atomic uint32_t *peer, uint32_t *last_rung) {
    uint32_t value = atomic_load_explicit(peer, BT_BELL_ORDER); /* with S1 */
    if (!(value & 1) || value == *last_rung) return 0;
    *last_rung = value;
    return 1;
}

#endif
