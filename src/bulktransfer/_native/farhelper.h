/* The one helper thread of a process for its links to other machines: it goes on where no user calls.
 *
 * Knows: when a stream takes more, which links their users have left alone, and which were closed with something still
 * to be sent. Must not know: rules, or Python (a stream may).
 *
 * A user who calls or waits does all by itself, so the helper keeps away: it looks by the clock (`ticking`) while any
 * link is in use, takes over where nobody was for a whole tick, and sleeps once all are at rest. Only what finds a
 * stream full is its own: it alone waits until that takes more.
 *
 * It also tells the peer how far it was read, where that was true a whole tick ago and nothing that went out since has
 * said so, whether users call meanwhile or not. It does not sleep through it:
 *   taker:   T1 publish the index (seq_cst)        T2 load `ticking` (seq_cst); if 0, touch, which nudges
 *   helper:  H1 store `ticking` = 0 (seq_cst)      H2 load the index of each link (seq_cst); if not told, tell; poll
 * Lost means: H2 reads the old index, and T2 the old 1. Then H2 < T1 and T2 < H1 in the single total order, so T2 < H1 <
 * H2 < T1, against the order of the program: the argument of doorbell.h. It holds whenever an entry is taken, also long
 * after it was read from the stream, by calls that look at nothing but the ring.
 */
#ifndef BT_FARHELPER_H
#define BT_FARHELPER_H

#include <linux/sockios.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <time.h>

#include "fartake.h"

#define BT_HELPER_TICK_MS 10
#define BT_HELPER_LINGER_NS UINT64_C(5000000000)  /* for a peer that does not hang up */
#define BT_HELPER_STALL_NS UINT64_C(30000000000)  /* for a peer that takes nothing of what a closed channel sends */

typedef struct bt_helper {
    pthread_mutex_t lock;
    pthread_cond_t idle;
    bt_link *links;
    uint32_t leaving; /* links whose channel is gone */
    uint32_t generation;
    int readable, writable; /* epoll descriptors, edge-triggered */
    int wake;
    int running, stopping, hasty; /* hasty: the process ends, and waits for no peer that has everything */
    _Atomic uint32_t ticking;
    pthread_t thread;
} bt_helper;

static inline uint64_t bt_helper_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline bt_helper *bt_helper_new(void) {
    bt_helper *h = calloc(1, sizeof *h);
    if (h && (pthread_mutex_init(&h->lock, NULL) || pthread_cond_init(&h->idle, NULL))) {
        free(h);
        return NULL;
    }
    return h;
}

static inline void bt_helper_nudge(bt_helper *h) {
    uint64_t one = 1;
    (void)!write(h->wake, &one, sizeof one); /* non-blocking, and full after 2^64 - 2 of them */
}

/* A user is at this link: the helper looks at it by the clock from now on. */
static inline void bt_helper_touch(bt_helper *h, bt_far *far) {
    if (atomic_load_explicit(&far->touched, memory_order_relaxed)) return;
    /* seq_cst, with the helper's store of `ticking` and its look at `touched` after it: one of the two sees the other */
    atomic_store_explicit(&far->touched, 1, memory_order_seq_cst);
    if (!atomic_load_explicit(&h->ticking, memory_order_seq_cst)) bt_helper_nudge(h);
}

/* What came is there to be looked at. */
static inline void bt_helper_signal(bt_far *far) {
    uint64_t one = 1;
    if (!atomic_exchange_explicit(&far->signaled, 1, memory_order_seq_cst)) /* with bt_helper_seen */
        (void)!write(far->signal_fd, &one, sizeof one);
}

/* A user is about to look at the ring: what was signalled is seen then, also what the helper adds before the store. */
static inline void bt_helper_seen(bt_far *far) {
    uint64_t count;
    if (!atomic_load_explicit(&far->signaled, memory_order_relaxed)) return;
    (void)!read(far->signal_fd, &count, sizeof count);
    atomic_store_explicit(&far->signaled, 0, memory_order_seq_cst); /* with bt_helper_signal, and before the look */
}

/* A link that nobody uses at the moment: read what has come, so that the peer goes on. Whether there was anything. */
static inline int bt_helper_serve(bt_link *link) {
    bt_far *far = link->far;
    int news;
    if (atomic_load_explicit(&far->over, memory_order_acquire)) return 0;
    if (pthread_mutex_trylock(&far->take_lock)) return 1; /* a user is there after all */
    news = bt_far_take_some(link, far, 1);
    pthread_mutex_unlock(&far->take_lock);
    if (news & BT_FETCH_NEWS) bt_helper_signal(far);
    bt_far_tell(link);
    return news != BT_FETCH_DRY;
}

/* Whether the peer was told how far it was read up to `index`. */
static inline int bt_helper_has_told(bt_far *far, uint64_t index) {
    /* relaxed: bt_far_tell orders; what was told meanwhile is told once more */
    return (int64_t)(index - atomic_load_explicit(&far->send.noted, memory_order_relaxed)) <= 0;
}

/* How far this side has read. seq_cst: H2, with T1. */
static inline uint64_t bt_helper_consumed(bt_link *link) {
    return atomic_load_explicit(&link->rx.own->consumed, memory_order_seq_cst);
}

/* A link whose channel is gone has sent everything: nothing reads the pools' memory any more, and their slots are free,
 * whether the peer hangs up or not (design rule 16). */
static inline void bt_helper_unland(bt_link *link) {
    bt_far *far = link->far;
    pthread_mutex_lock(&far->take_lock);
    pthread_mutex_lock(&far->send_lock);
    for (uint32_t i = 0; i < far->landing_count; i++) {
        bt_landing_free(link->registry, far->landings[i]);
        far->landings[i] = NULL;
    }
    for (bt_landing *next, *l = far->parted; l; l = next) {
        next = l->next;
        bt_landing_free(link->registry, l);
    }
    far->parted = NULL;
    pthread_mutex_unlock(&far->send_lock);
    pthread_mutex_unlock(&far->take_lock);
}

/* Whether the peer's machine has all that was sent, its end included: it is there to be read, whatever becomes of this
 * process. */
static inline int bt_helper_has_arrived(bt_far *far) {
    int size = 0;
    return ioctl(far->fd, SIOCOUTQ, &size) == 0 && size == 0;
}

/* A link whose channel is gone: send what was accepted, then wait for the peer to hang up. Whether it is done. */
static inline int bt_helper_see_off(bt_helper *h, bt_link *link) {
    bt_far *far = link->far;
    uint64_t now = bt_helper_now();
    uint64_t before = atomic_load_explicit(&far->sent_bytes, memory_order_relaxed);
    int empty;
    bt_far_flush(link);
    pthread_mutex_lock(&far->take_lock);
    bt_far_take_some(link, far, 1);
    pthread_mutex_unlock(&far->take_lock);
    bt_far_flush(link);
    if (atomic_load_explicit(&far->lost, memory_order_relaxed) || atomic_load_explicit(&far->over, memory_order_relaxed))
        return 1; /* whoever hung up takes nothing more */
    pthread_mutex_lock(&far->send_lock);
    empty = bt_far_is_empty(link, far);
    pthread_mutex_unlock(&far->send_lock);
    if (empty && !far->finished) {
        far->finished = 1;
        bt_helper_unland(link);
        far->stream->finish(far->self);
        far->deadline_ns = now + BT_HELPER_LINGER_NS;
    } else if (!empty && (!far->deadline_ns || atomic_load_explicit(&far->sent_bytes, memory_order_relaxed) != before)) {
        far->deadline_ns = now + BT_HELPER_STALL_NS;
    }
    return now >= far->deadline_ns || (far->finished && h->hasty && bt_helper_has_arrived(far));
}

/* Take a link out of the list and let go of it. With `lock` held. */
static inline void bt_helper_drop(bt_helper *h, bt_link *link) {
    for (bt_link **at = &h->links; *at; at = &(*at)->next_carried)
        if (*at == link) {
            *at = link->next_carried;
            break;
        }
    epoll_ctl(h->readable, EPOLL_CTL_DEL, link->far->fd, NULL);
    epoll_ctl(h->writable, EPOLL_CTL_DEL, link->far->fd, NULL);
    if (atomic_load_explicit(&link->far->left, memory_order_relaxed) && --h->leaving == 0)
        pthread_cond_broadcast(&h->idle);
    bt_link_release(link);
}

/* One look at every link, `tick`: a whole tick after the last. Whether any is in use. With `lock` held. */
static inline int bt_helper_look(bt_helper *h, int tick) {
    int busy = 0;
    for (bt_link *link = h->links, *next; link; link = next) {
        bt_far *far = link->far;
        next = link->next_carried;
        if (atomic_load_explicit(&far->left, memory_order_acquire)) {
            busy = 1;
            if (bt_helper_see_off(h, link)) bt_helper_drop(h, link);
        } else if (!tick) {
            busy |= (int)atomic_load_explicit(&far->touched, memory_order_relaxed);
        } else {
            if (atomic_exchange_explicit(&far->touched, 0, memory_order_seq_cst)) { /* with bt_helper_touch */
                busy = 1;
                if (!bt_helper_has_told(far, far->consumed)) bt_far_tell(link); /* somebody calls, and sends nothing */
            } else if (!atomic_load_explicit(&far->attended, memory_order_acquire)) {
                busy |= bt_helper_serve(link);
            } else { /* somebody waits there, and sends nothing */
                bt_far_tell(link);
            }
            far->consumed = bt_helper_consumed(link);
        }
    }
    return busy;
}

/* A stream takes more. With `lock` held. */
static inline void bt_helper_write(bt_helper *h) {
    struct epoll_event ready[32];
    int count = epoll_wait(h->writable, ready, 32, 0);
    for (int i = 0; i < count; i++)
        for (bt_link *link = h->links; link; link = link->next_carried)
            if (link == ready[i].data.ptr) { /* it may be gone: only compared until it is found */
                bt_far_flush(link);
                break;
            }
}

/* Forget the edges of `readable`: all links are looked at after this, never before. What comes once a link was read is
 * an edge again, also what this very look sent to a link of the same process; forgotten, nobody would read it. */
static inline void bt_helper_clear(bt_helper *h) {
    struct epoll_event ready[32];
    while (epoll_wait(h->readable, ready, 32, 0) == 32) continue;
}

static void *bt_helper_main(void *argument) {
    bt_helper *h = argument;
    uint64_t last = bt_helper_now();
    for (;;) {
        int ticking = (int)atomic_load_explicit(&h->ticking, memory_order_relaxed); /* own word */
        struct pollfd fds[3] = {{h->wake, POLLIN, 0}, {h->writable, POLLIN, 0}, {h->readable, POLLIN, 0}};
        if (poll(fds, ticking ? 2 : 3, ticking ? BT_HELPER_TICK_MS : -1) < 0 && errno != EINTR) return NULL;
        uint64_t count, now = bt_helper_now();
        int tick = ticking && now - last >= BT_HELPER_TICK_MS * UINT64_C(900000);
        pthread_mutex_lock(&h->lock);
        if (h->stopping) {
            pthread_mutex_unlock(&h->lock);
            return NULL;
        }
        if (fds[0].revents) (void)!read(h->wake, &count, sizeof count);
        if (fds[1].revents) bt_helper_write(h);
        if (!ticking || tick) bt_helper_clear(h); /* what came is for its user, if there is one: a tick tells */
        int busy = bt_helper_look(h, tick);
        if (tick || !ticking) last = now;
        if (!ticking) atomic_store_explicit(&h->ticking, 1, memory_order_seq_cst);
        else if (tick && !busy) {
            /* seq_cst, with bt_helper_touch, and H1; what came after the last read has made an edge of `readable` */
            atomic_store_explicit(&h->ticking, 0, memory_order_seq_cst);
            for (bt_link *link = h->links; link; link = link->next_carried) {
                if (atomic_load_explicit(&link->far->touched, memory_order_seq_cst)) bt_helper_nudge(h);
                if (!bt_helper_has_told(link->far, bt_helper_consumed(link))) bt_far_tell(link);
            }
        }
        pthread_mutex_unlock(&h->lock);
    }
}

/* With `lock` held. 0 or -errno. */
static inline int bt_helper_start(bt_helper *h, bt_registry *registry) {
    sigset_t all, before;
    if (h->running && h->generation == registry->generation) return 0;
    h->readable = epoll_create1(EPOLL_CLOEXEC);
    h->writable = epoll_create1(EPOLL_CLOEXEC);
    h->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (h->readable < 0 || h->writable < 0 || h->wake < 0) {
        int error = errno;
        if (h->readable >= 0) close(h->readable);
        if (h->writable >= 0) close(h->writable);
        if (h->wake >= 0) close(h->wake);
        return -error;
    }
    if (bt_registry_add_fd(registry, h->readable) < 0 || bt_registry_add_fd(registry, h->writable) < 0 ||
        bt_registry_add_fd(registry, h->wake) < 0)
        return -ENOMEM;
    h->stopping = h->hasty = 0;
    atomic_store_explicit(&h->ticking, 0, memory_order_seq_cst);
    sigfillset(&all); /* signals belong to the threads of the program */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int result = pthread_create(&h->thread, NULL, bt_helper_main, h);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (result) {
        bt_registry_close(registry, h->readable);
        bt_registry_close(registry, h->writable);
        bt_registry_close(registry, h->wake);
        return -result;
    }
    h->running = 1;
    h->generation = registry->generation;
    return 0;
}

/* From now on the helper has an eye on `link`, of which it becomes an owner. 0 or -errno. */
static inline int bt_helper_enlist(bt_helper *h, bt_registry *registry, bt_link *link) {
    struct epoll_event in = {.events = EPOLLIN | EPOLLRDHUP | EPOLLET, .data.ptr = link};
    struct epoll_event out = {.events = EPOLLOUT | EPOLLET, .data.ptr = link};
    int result;
    pthread_mutex_lock(&h->lock);
    result = bt_helper_start(h, registry);
    if (!result && (epoll_ctl(h->readable, EPOLL_CTL_ADD, link->far->fd, &in) < 0 ||
                    epoll_ctl(h->writable, EPOLL_CTL_ADD, link->far->fd, &out) < 0))
        result = -errno;
    if (!result) {
        bt_link_retain(link);
        link->far->helper = h;
        link->next_carried = h->links;
        h->links = link;
    }
    pthread_mutex_unlock(&h->lock);
    return result;
}

/* The channel of `link` is gone: the helper sees it off. */
static inline void bt_helper_leave(bt_helper *h, bt_link *link) {
    pthread_mutex_lock(&h->lock);
    atomic_store_explicit(&link->far->left, 1, memory_order_release);
    h->leaving++;
    bt_helper_nudge(h);
    pthread_mutex_unlock(&h->lock);
}

/* Wait until all that closed channels accepted has arrived at their peers' machines, at most until `deadline`
 * (CLOCK_REALTIME), then end the thread: it must not outlive the interpreter. How many have something left. */
static inline uint32_t bt_helper_finish(bt_helper *h, const struct timespec *deadline) {
    uint32_t left;
    pthread_mutex_lock(&h->lock);
    h->hasty = 1;
    while (h->leaving && pthread_cond_timedwait(&h->idle, &h->lock, deadline) == 0) continue;
    left = h->leaving;
    if (!h->running) {
        pthread_mutex_unlock(&h->lock);
        return left;
    }
    h->stopping = 1;
    h->running = 0;
    bt_helper_nudge(h);
    pthread_mutex_unlock(&h->lock);
    pthread_join(h->thread, NULL);
    return left;
}

#endif
