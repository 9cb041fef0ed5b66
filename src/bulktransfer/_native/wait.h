/* How a thread waits on a channel: a while by looking, then in poll.
 *
 * Knows: the two words of the peer that tell of news, and the clock. Must not know: rules, or Python.
 */
#ifndef BT_WAIT_H
#define BT_WAIT_H

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <sys/epoll.h>

#include "arrival.h"

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
    if ((link->in || link->out.size) && bt_arrival_news(link)) return 1; /* by value */
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

/* What woke a sleeper; bits of the result of bt_bed_sleep. */
enum bt_woken { BT_BY_SOCKET = 1, BT_BY_KICK = 2, BT_BY_DOMAIN = 4, BT_BY_DEATH = 8, BT_BY_HANG_UP = 16 };

/* Have the epoll descriptor `bed` watch `fd`. The socket is edge-triggered: a bell wakes without having to be read,
 * which saves a system call a wake-up (one recvmsg, 0.4 us). `shared` with the carrier, which is woken by a bell only
 * when no thread sleeps in this bed (EPOLLEXCLUSIVE). 0 or -errno. */
static inline int bt_bed_add(int bed, int fd, enum bt_woken what, int shared) {
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = what};
    if (what == BT_BY_SOCKET) event.events |= EPOLLET | (shared ? EPOLLEXCLUSIVE : EPOLLRDHUP);
    return epoll_ctl(bed, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

/* Sleep until something wakes. Bits of bt_woken, 0 when the time is over, or -errno. */
static inline int bt_bed_sleep(int bed, int timeout_ms) {
    struct epoll_event events[4];
    int count = epoll_wait(bed, events, 4, timeout_ms), bits = 0;
    if (count < 0) return -errno;
    for (int i = 0; i < count; i++) {
        bits |= (int)events[i].data.u32;
        if (events[i].data.u32 == BT_BY_SOCKET && events[i].events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
            bits |= BT_BY_HANG_UP;
    }
    return bits;
}

#endif
