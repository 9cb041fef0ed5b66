/* The one helper thread of a process that carries on what its users no longer call for.
 *
 * Knows: links in which something waits. Must not know: buffers, rules, or Python (it never takes the GIL).
 * It is started on first need, sleeps in epoll (edge-triggered, so that bells which it leaves for the users to
 * read do not keep it awake), and costs nothing while there is nothing to carry. While there is, it also looks by
 * the clock, ever more seldom, for what comes without an edge: a bell that found the socket full of bells which no
 * user reads (278 fill it), descriptors in flight that became fewer (ETOOMANYREFS), memory (ENOBUFS).
 */
#ifndef BT_CARRIER_H
#define BT_CARRIER_H

#include <signal.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include "arrival.h"

#define BT_CARRIER_LOOK_MS 10 /* the first look by the clock; doubled while nothing moves */
#define BT_CARRIER_LOOK_MAX_MS 160

typedef struct bt_carrier {
    pthread_mutex_t lock;
    pthread_cond_t idle;
    bt_link *links;
    uint32_t count;
    uint32_t generation;
    int epoll;
    int wake; /* an eventfd of this process alone: look at every link */
    int running;
} bt_carrier;

/* Whether something waits to be sent. With `lock` held. */
static inline int bt_carrier_busy(const bt_carrier *c) {
    for (const bt_link *at = c->links; at; at = at->next_carried)
        if (bt_link_has(at)) return 1;
    return 0;
}

/* Take `link` out of the list. With `lock` held. */
static inline void bt_carrier_drop(bt_carrier *c, bt_link *link) {
    for (bt_link **at = &c->links; *at; at = &(*at)->next_carried)
        if (*at == link) {
            *at = link->next_carried;
            c->count--;
            break;
        }
    epoll_ctl(c->epoll, EPOLL_CTL_DEL, link->sock, NULL);
    if (!bt_carrier_busy(c)) pthread_cond_broadcast(&c->idle);
}

static inline bt_carrier *bt_carrier_new(void) {
    bt_carrier *c = calloc(1, sizeof *c);
    if (c && (pthread_mutex_init(&c->lock, NULL) || pthread_cond_init(&c->idle, NULL))) {
        free(c);
        return NULL;
    }
    return c;
}

static inline int bt_carrier_has(const bt_carrier *c, const bt_link *link) {
    for (const bt_link *at = c->links; at; at = at->next_carried)
        if (at == link) return 1;
    return 0;
}

/* Have every link looked at now. */
static inline void bt_carrier_nudge(bt_carrier *c) {
    uint64_t one = 1;
    (void)!write(c->wake, &one, sizeof one); /* non-blocking, and full after 2^64 - 2 of them */
}

/* One look at one link; what is finished, or can never be, is let go. With `lock` held. Whether anything went. */
static inline int bt_carrier_step(bt_carrier *c, bt_link *link, uint32_t events) {
    uint32_t before = atomic_load_explicit(&link->waiting, memory_order_relaxed); /* a guess: only sets the pace */
    enum bt_carried how = bt_link_carry(link);
    int moved = atomic_load_explicit(&link->waiting, memory_order_relaxed) < before;
    int over = events & (EPOLLHUP | EPOLLERR);
    if (how != BT_CARRIED_ALL && over) how = BT_CARRY_ENDED;
    /* Contents wait for room: tell the peer's carrier, which its user may not have asked to be woken. */
    if (how == BT_CARRY_SPACE && link->out.size) bt_ring_bell(link->sock);
    if (link->in) {
        int more = bt_arrivals_carry(link);
        while (more && over) more = bt_arrivals_carry(link);
        if (more) bt_carrier_nudge(c);
        moved |= more;
        if (how == BT_CARRIED_ALL && !over && !atomic_load_explicit(&link->ended, memory_order_relaxed))
            return moved; /* more will come */
    }
    if (how == BT_CARRIED_ALL || how == BT_CARRY_ENDED) {
        bt_carrier_drop(c, link);
        bt_link_release(link);
    }
    return moved;
}

static inline int bt_carrier_step_all(bt_carrier *c) {
    int moved = 0;
    for (bt_link *link = c->links, *next; link; link = next) {
        next = link->next_carried;
        moved |= bt_carrier_step(c, link, 0);
    }
    return moved;
}

static void *bt_carrier_main(void *argument) {
    bt_carrier *c = argument;
    struct epoll_event ready[32];
    int pause_ms = -1;
    for (;;) {
        int count = epoll_wait(c->epoll, ready, 32, pause_ms);
        int lost = count < 0 && errno != EINTR; /* somebody closed every descriptor */
        int all = count == 0, moved = 0;
        pthread_mutex_lock(&c->lock);
        for (int i = 0; i < count; i++) {
            bt_link *link = ready[i].data.ptr; /* may be gone: only compared until it is found */
            if (!link) all = 1;
            else if (bt_carrier_has(c, link)) moved |= bt_carrier_step(c, link, ready[i].events);
        }
        if (all) moved |= bt_carrier_step_all(c);
        while (lost && c->links) {
            bt_link *link = c->links;
            bt_carrier_drop(c, link);
            bt_link_release(link);
        }
        if (lost) c->running = 0;
        if (!bt_carrier_busy(c)) pause_ms = -1;
        else if (moved || count > 0 || pause_ms < 0) pause_ms = BT_CARRIER_LOOK_MS;
        else if (pause_ms < BT_CARRIER_LOOK_MAX_MS) pause_ms *= 2;
        pthread_mutex_unlock(&c->lock);
        if (lost) return NULL;
    }
}

/* With `lock` held. 0 or -errno. */
static inline int bt_carrier_start(bt_carrier *c, bt_registry *registry) {
    if (c->running && c->generation == registry->generation) return 0;
    sigset_t all, before;
    pthread_t thread;
    pthread_attr_t attributes;
    struct epoll_event wake = {.events = EPOLLIN | EPOLLET, .data.ptr = NULL};
    c->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (c->epoll < 0) return -errno;
    c->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (c->wake < 0 || epoll_ctl(c->epoll, EPOLL_CTL_ADD, c->wake, &wake) < 0 ||
        bt_registry_add_fd(registry, c->epoll) < 0 || bt_registry_add_fd(registry, c->wake) < 0) {
        int error = errno;
        bt_registry_close(registry, c->epoll);
        if (c->wake >= 0) bt_registry_close(registry, c->wake);
        return -error;
    }
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    sigfillset(&all); /* signals belong to the threads of the program */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int result = pthread_create(&thread, &attributes, bt_carrier_main, c);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    if (result) {
        bt_registry_close(registry, c->epoll);
        bt_registry_close(registry, c->wake);
        return -result;
    }
    c->running = 1;
    c->generation = registry->generation;
    return 0;
}

/* See to it that what waits in `link` is carried on. 0 or -errno (it stays waiting; calls go on carrying it). */
static inline int bt_carrier_take(bt_carrier *c, bt_registry *registry, bt_link *link) {
    int result = 0;
    pthread_mutex_lock(&c->lock);
    if (!bt_carrier_has(c, link)) {
        result = bt_carrier_start(c, registry);
        if (result == 0) {
            atomic_fetch_add_explicit(&link->owners, 1, memory_order_relaxed); /* the caller is an owner */
            link->next_carried = c->links;
            c->links = link;
            c->count++;
            /* The first look comes at once where the socket can be written or read, else with the edge when it can. */
            struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = link};
            if (link->in) event.events = EPOLLIN | EPOLLET | EPOLLEXCLUSIVE; /* after the user's bed: see wait.h */
            if (epoll_ctl(c->epoll, EPOLL_CTL_ADD, link->sock, &event) < 0) {
                result = -errno;
                bt_carrier_drop(c, link);
                atomic_fetch_sub_explicit(&link->owners, 1, memory_order_relaxed);
            }
        }
    } else if (link->in) bt_carrier_nudge(c); /* it is there for what comes in, and knows nothing of what waits now */
    pthread_mutex_unlock(&c->lock);
    return result;
}

/* Let go of a link that this carrier may have. A user who ended it leaves nothing that would wake the carrier, and the
 * socket would stay open. */
static inline void bt_carrier_release(bt_carrier *c, bt_link *link) {
    int shared = atomic_load_explicit(&link->owners, memory_order_relaxed) > 1; /* else nobody has it but the caller */
    if (shared) {
        pthread_mutex_lock(&c->lock);
        int over = !bt_link_has(link) || atomic_load_explicit(&link->ended, memory_order_relaxed);
        if (bt_carrier_has(c, link) && over) {
            bt_carrier_drop(c, link);
            bt_link_release(link); /* the carrier's; the caller has it too */
        } else if (c->running) bt_carrier_nudge(c);
        pthread_mutex_unlock(&c->lock);
    }
    bt_link_release(link);
}

/* Wait until nothing is carried, at most until `deadline` (CLOCK_REALTIME). The links still carried. */
static inline uint32_t bt_carrier_finish(bt_carrier *c, const struct timespec *deadline) {
    pthread_mutex_lock(&c->lock);
    bt_carrier_step_all(c); /* users may have sent the rest themselves */
    while (bt_carrier_busy(c) && pthread_cond_timedwait(&c->idle, &c->lock, deadline) == 0) continue;
    uint32_t left = 0;
    for (const bt_link *at = c->links; at; at = at->next_carried) left += bt_link_has(at) != 0;
    pthread_mutex_unlock(&c->lock);
    return left;
}

#endif
