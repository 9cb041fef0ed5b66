/* How a thread waits on a channel: a while by looking, then in poll.
 *
 * Knows: the two words of the peer that tell of news, and the clock. Must not know: rules, or Python.
 */
#ifndef BT_WAIT_H
#define BT_WAIT_H

#include <poll.h>
#include <sched.h>
#include <time.h>

#include "link.h"

static inline uint64_t bt_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline void bt_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Whether the peer published or, if `outcomes`, consumed more than was seen. */
static inline int bt_news(const bt_link *link, int outcomes) {
    /* acquire: as in bt_rx_look and bt_tx_refresh, which read the words again before anything is used */
    if (atomic_load_explicit(&link->rx.peer->tail, memory_order_acquire) != link->rx.tail) return 1;
    return outcomes && atomic_load_explicit(&link->tx.peer->consumed, memory_order_acquire) != link->tx.consumed;
}

/* A short look that the caller can afford with the GIL held: under 2 us. */
static inline int bt_spin_briefly(const bt_link *link, int outcomes) {
    for (int i = 0; i < 48; i++) {
        if (bt_news(link, outcomes)) return 1;
        bt_pause();
    }
    return 0;
}

/* Look for `budget_ns`, without the GIL; `yields` where the peer may need this very core. `kicked` is set by
 * another thread of this domain that wants this one back. */
static inline int bt_spin(const bt_link *link, int outcomes, uint64_t budget_ns, int yields, const _Atomic int *kicked) {
    uint64_t end = bt_now_ns() + budget_ns;
    for (;;) {
        for (int i = 0; i < 32; i++) {
            if (bt_news(link, outcomes)) return 1;
            bt_pause();
        }
        if (atomic_load_explicit(kicked, memory_order_relaxed) || bt_now_ns() >= end) return 0;
        if (yields) sched_yield();
    }
}

#endif
