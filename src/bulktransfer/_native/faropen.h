/* Making a link to another machine, telling it about pools, and taking it apart.
 *
 * Knows: what must be undone, and in which order. Must not know: rules, or Python.
 */
#ifndef BT_FAROPEN_H
#define BT_FAROPEN_H

#include "farhelper.h"

static inline int bt_far_queue_message(bt_link *link, const void *data, size_t size) {
    bt_far_message *message = bt_far_message_new(data, size);
    if (!message) return -ENOMEM;
    pthread_mutex_lock(&link->far->inbox_lock);
    bt_far_put(&link->far->send.messages, message);
    pthread_mutex_unlock(&link->far->inbox_lock);
    return 0;
}

/* T2: see farhelper.h. */
static inline void bt_far_consumed(bt_link *link) {
    bt_helper *h = link->far->helper;
    if (!atomic_load_explicit(&h->ticking, memory_order_seq_cst)) bt_helper_touch(h, link->far);
}

static inline void bt_far_due(bt_link *link) { atomic_store_explicit(&link->far->due, 1, memory_order_seq_cst); }

static inline void bt_far_free(bt_link *link, int whole) {
    bt_far *far = link->far;
    bt_far_message *m;
    bt_registry *r = link->registry;
    if (whole) far->stream->close(far->self);
    for (uint32_t i = 0; i < BT_FAR_FRAMES; i++) free(far->send.frames[i].message);
    while ((m = bt_far_get(&far->send.messages))) free(m);
    while ((m = bt_far_get(&far->take.inbox))) free(m);
    free(far->take.message);
    for (uint32_t i = 0; i < far->landing_count; i++) bt_landing_free(r, far->landings[i]);
    for (bt_landing *l = far->parted, *next; l; l = next) {
        next = l->next;
        bt_landing_free(r, l);
    }
    free(far->landings);
    if (far->poll_fd >= 0) bt_registry_close(r, far->poll_fd);
    if (far->signal_fd >= 0) bt_registry_close(r, far->signal_fd);
    if (far->fd >= 0) bt_registry_close(r, far->fd);
    pthread_mutex_destroy(&far->send_lock);
    pthread_mutex_destroy(&far->take_lock);
    pthread_mutex_destroy(&far->inbox_lock);
    free(far->take.room);
    free(far);
    link->far = NULL;
}

static inline void bt_far_release(bt_link *link) { bt_far_free(link, 1); }

static const bt_link_ways bt_far_ways = {bt_far_queue_message, bt_far_consumed, bt_far_due, bt_far_release};

/* Turn a link with outboxes into one to another machine, over the socket `fd`. 0 or -errno: nothing was taken over. */
static inline int bt_far_open(bt_link *link, int fd, const bt_stream *stream, void *self, uint32_t meta_limit) {
    struct epoll_event in = {.events = EPOLLIN | EPOLLRDHUP};
    bt_far *far = calloc(1, sizeof *far);
    int error = 0;
    if (!far) return -ENOMEM;
    if (pthread_mutex_init(&far->send_lock, NULL) || pthread_mutex_init(&far->take_lock, NULL) ||
        pthread_mutex_init(&far->inbox_lock, NULL)) {
        free(far);
        return -ENOMEM;
    }
    link->far = far;
    far->fd = -1;
    far->take.room = malloc(BT_FAR_ROOM);
    far->poll_fd = epoll_create1(EPOLL_CLOEXEC);
    far->signal_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (!far->take.room) error = ENOMEM;
    if (far->poll_fd < 0 || far->signal_fd < 0 || epoll_ctl(far->poll_fd, EPOLL_CTL_ADD, fd, &in) < 0 ||
        epoll_ctl(far->poll_fd, EPOLL_CTL_ADD, far->signal_fd, &in) < 0)
        error = errno;
    if (!error && (bt_registry_add_fd(link->registry, far->poll_fd) < 0 ||
                   bt_registry_add_fd(link->registry, far->signal_fd) < 0 || bt_registry_add_fd(link->registry, fd) < 0))
        error = ENOMEM;
    if (error) {
        bt_far_free(link, 0);
        return -error;
    }
    bt_rings_init(&far->take.in, &far->send.out, (bt_outbox *)link->tx.peer, link->tx.own, link->tx.slot_count, meta_limit);
    far->meta_limit = meta_limit;
    far->stream = stream;
    far->self = self;
    far->fd = fd;
    link->ways = &bt_far_ways;
    return 0;
}

/* Both pumps stand still; without the GIL. */
static inline void bt_far_stop(bt_far *far) {
    pthread_mutex_lock(&far->take_lock);
    pthread_mutex_lock(&far->send_lock);
}

static inline void bt_far_go(bt_far *far) {
    pthread_mutex_unlock(&far->send_lock);
    pthread_mutex_unlock(&far->take_lock);
}

/* Buffers of a pool travel under `slot` from now on. Between stop and go. 0 or -ENOMEM. */
static inline int bt_far_add_landing(bt_far *far, uint32_t slot, bt_landing *landing) {
    if (slot >= far->landing_count) {
        bt_landing **more = realloc(far->landings, (slot + 1) * sizeof *more);
        if (!more) return -ENOMEM;
        memset(more + far->landing_count, 0, (slot + 1 - far->landing_count) * sizeof *more);
        far->landings = more;
        far->landing_count = slot + 1;
    }
    far->landings[slot] = landing;
    return 0;
}

/* Contents on their way into `landing` go nowhere from here on. Between stop and go. */
static inline void bt_far_abandon(bt_far *far, bt_landing *landing) {
    bt_far_take *t = &far->take;
    if (t->landing != landing || !landing) return;
    bt_bit_let_go(landing->taken, t->frame.index);
    t->landing = NULL;
    t->to = NULL;
    t->flags = BT_DRAINED;
}

/* A pool left the channel. Its memory stays while anything is on its way: a peer may have lied. Between stop and go. */
static inline void bt_far_drop_landing(bt_link *link, uint32_t slot) {
    bt_landing *landing = bt_far_landing(link->far, slot);
    if (!landing) return;
    bt_far_abandon(link->far, landing);
    link->far->landings[slot] = NULL;
    landing->slots = NULL;
    if (atomic_load_explicit(&link->far->send.settled, memory_order_acquire) == link->tx.tail) {
        bt_landing_free(link->registry, landing);
    } else {
        landing->next = link->far->parted;
        link->far->parted = landing;
    }
}

/* The channel is gone: nothing lands any more, and what landed and was not judged is let go. Between stop and go. */
static inline void bt_far_retire(bt_link *link) {
    bt_far *far = link->far;
    bt_rx *rx = &link->rx;
    for (; bt_rx_look(rx) > 0; rx->head++) {
        const bt_entry *e = &rx->ring[rx->head & (rx->slot_count - 1)];
        bt_landing *l = bt_far_landing(far, e->slot);
        if (e->flags & BT_LANDED && (e->kind == BT_MOVE || e->kind == BT_COPY) && l) bt_bit_let_go(l->taken, e->index);
    }
    bt_far_abandon(far, far->take.landing);
    for (uint32_t i = 0; i < far->landing_count; i++)
        if (far->landings[i]) {
            far->landings[i]->slots = NULL;
            far->landings[i]->taken = NULL;
        }
}

/* Wait for what the peer says, at most `timeout_ms` (-1: for ever); whatever else wakes the bed ends it, too. As
 * bt_bed_sleep. Pieces of something long are read without waking anybody. The bed is edge-triggered: nobody sleeps
 * before the stream was read dry, also where what was read first is no news for the caller (words of the peer's). */
static inline int bt_far_sleep(bt_link *link, bt_helper *h, int bed, int timeout_ms, int outcomes) {
    bt_far *far = link->far;
    uint64_t end = timeout_ms < 0 ? 0 : bt_helper_now() + (uint64_t)timeout_ms * 1000000;
    int bits, dry = 1;
    atomic_fetch_add_explicit(&far->attended, 1, memory_order_acq_rel); /* with bt_helper_look */
    for (;;) {
        bits = bt_bed_sleep(bed, dry ? timeout_ms : 0);
        if (bits != BT_BY_SOCKET && (dry || bits)) break;
        bt_helper_seen(far);
        dry = bt_far_fetch(link, 0) & BT_FETCH_DRY;
        if (bt_news(link, outcomes) || atomic_load_explicit(&far->over, memory_order_relaxed)) break;
        if (timeout_ms >= 0) {
            uint64_t now = bt_helper_now();
            if (now >= end && !dry) break; /* the caller reads on before it sleeps again */
            timeout_ms = now >= end ? 0 : (int)((end - now + 999999) / 1000000);
        }
    }
    bt_helper_touch(h, far);
    atomic_fetch_sub_explicit(&far->attended, 1, memory_order_acq_rel);
    return bits;
}

/* As bt_spin, where looking means reading the stream. */
static inline int bt_far_spin(bt_link *link, bt_helper *h, int outcomes, uint64_t budget_ns, const _Atomic int *kicked) {
    uint64_t end = bt_helper_now() + budget_ns;
    bt_helper_touch(h, link->far);
    for (;;) {
        bt_far_fetch(link, 0);
        if (bt_news(link, outcomes) || atomic_load_explicit(&link->far->over, memory_order_relaxed)) return 1;
        if (atomic_load_explicit(kicked, memory_order_relaxed) || bt_helper_now() >= end) return 0;
        bt_pause();
    }
}

#endif
