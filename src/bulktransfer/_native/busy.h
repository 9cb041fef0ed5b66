/* By value with both sides awake: go on copying while the other core makes room, or brings more.
 *
 * Knows: how long that is worth it. Must not know: buffers, rules, or Python. Runs without the GIL. Nobody is asked to
 * ring meanwhile, so that no system call is made while both sides are busy. A peer that stalls costs one pause; one that
 * makes just a little progress each time costs the whole budget, and no more (design section 8, rule 6).
 */
#ifndef BT_BUSY_H
#define BT_BUSY_H

#include "wait.h"

#define BT_LINGER_NS 20000       /* without news the other side is not at it */
#define BT_LINGER_WAKE_NS 100000 /* or it slept, and takes a while to wake up: 30 to 60 us from core to core */
#define BT_LINGER_ALL_NS 2000000
#define BT_LINGER_MOST_NS 50000000 /* however much there is to copy; Ctrl-C is not heard before */

/* Look at `word` until it is no longer `seen`, at most for `span_ns` and until `end_ns`; `yields` where the other side
 * may need this very core. Whether it changed. */
static inline int bt_linger(const _Atomic uint64_t *word, uint64_t seen, uint64_t span_ns, uint64_t end_ns,
                            int yields) {
    uint64_t until = bt_now_ns() + span_ns;
    if (until > end_ns) until = end_ns;
    for (;;) {
        for (int i = 0; i < 32; i++) {
            /* acquire: as in bt_stage_refresh and bt_stage_look, which read it again before anything is used */
            if (atomic_load_explicit(word, memory_order_acquire) != seen) return 1;
            bt_pause();
        }
        if (bt_now_ns() >= until) return 0;
        if (yields) sched_yield();
    }
}

/* Send what waits, and wait for room as long as the peer makes some: at 1 GB/s or more, or for a while. A peer that made
 * none since it was waited for in vain is not waited for again. */
static inline enum bt_carried bt_carry_busily(bt_link *link, int yields) {
    uint64_t allowed = BT_LINGER_ALL_NS + bt_link_unstaged(link);
    uint64_t end = bt_now_ns() + (allowed < BT_LINGER_MOST_NS ? allowed : BT_LINGER_MOST_NS);
    for (;;) {
        uint64_t seen = 0;
        enum bt_carried result = bt_link_carry_on(link, 0, &seen);
        if (result != BT_CARRY_SPACE) return result;
        if (seen == UINT64_MAX) return bt_link_carry(link);
        if (atomic_load_explicit(&link->stalled_at, memory_order_relaxed) == seen + 1) return bt_link_carry(link);
        if (!bt_linger(&link->out.peer->emptied, seen, BT_LINGER_WAKE_NS, end, yields)) {
            /* relaxed, no partner: a hint for the next call */
            atomic_store_explicit(&link->stalled_at, seen + 1, memory_order_relaxed);
            return bt_link_carry(link);
        }
    }
}

/* Copy the contents that are due, and wait for more as long as some comes. As bt_arrivals_pull, with its lock held. */
static inline int bt_pull_busily(bt_link *link, int yields) {
    uint64_t end = bt_now_ns() + BT_LINGER_ALL_NS;
    for (;;) {
        int result = bt_arrivals_pull(link, UINT32_MAX);
        if (result || !bt_linger(&link->in->stage.peer->filled, link->in->stage.filled, BT_LINGER_NS, end, yields))
            return result;
    }
}

#endif
