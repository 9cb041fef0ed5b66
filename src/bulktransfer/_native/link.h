/* The sending half of a channel's connection: ring, socket, and what waits because either is full.
 *
 * Knows: that entries and control messages of one direction form one FIFO, and that an accepted operation
 * completes though its user never calls again (design rule 8 and 9). Must not know: buffers, rules, Python.
 * Fast path: nothing waits, the ring has room: fill, publish, ring if the peer sleeps; one thread (the caller holds
 * the GIL). Once something waits, every access to the tail takes `lock`; `waiting` tells which of the two it is.
 */
#ifndef BT_LINK_H
#define BT_LINK_H

#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>

#include "doorbell.h"
#include "foreign.h"
#include "registry.h"
#include "ring.h"
#include "stage.h"
#include "twin.h"

/* An entry that found no slot, or a control message that found no room, and all behind it. */
typedef struct bt_waiting {
    bt_entry entry;
    uint8_t *data; /* long meta data, or the bytes of a control message */
    size_t size;   /* of a control message */
    int *fds; /* beside a control message; or one, the sealed frame of a transfer */
    int fd_count;
    const uint8_t *contents; /* by value: entry.length bytes of buffer entry.index, kept by `twin` */
    uint64_t done;           /* of them are staged */
    bt_twin *twin;
    int published; /* the entry is in the ring, the rest of its contents waits */
} bt_waiting;

struct bt_link;

/* What a link does otherwise whose peer is on another machine (far.h). */
typedef struct bt_link_ways {
    int (*message)(struct bt_link *link, const void *data, size_t size); /* queue a control message; 0 or -errno */
    void (*consumed)(struct bt_link *link);                              /* the consumed index was published */
    void (*due)(struct bt_link *link);                                   /* the peer wants to hear the consumed index */
    void (*release)(struct bt_link *link);                               /* the last owner went */
} bt_link_ways;

typedef struct bt_link {
    bt_tx tx;
    bt_rx rx;
    bt_registry *registry;
    uint32_t generation;
    int sock;
    const bt_link_ways *ways; /* NULL: the peer is on this machine */
    uint64_t issued; /* positions given out: published and waiting */
    _Atomic uint64_t rings; /* bells rung, for statistics; by the receiving side and whoever sends at once */
    pthread_mutex_t lock;
    _Atomic uint32_t waiting;
    _Atomic uint32_t owners; /* the channel, and the carrier while something waits */
    _Atomic uint32_t ended;  /* the peer is gone or the channel broken: nothing is carried any more */
    bt_waiting *fifo;
    uint32_t fifo_first, fifo_room;
    size_t own_size, peer_size;
    bt_stage_tx out;        /* by value: what goes out; size 0 where memory is shared, and at a sink */
    _Atomic uint64_t stalled_at; /* and where the peer made no room while it was waited for, and 1; 0: nowhere */
    struct bt_arrivals *in; /* by value: what comes in (arrival.h); NULL where memory is shared, and at a source */
    struct bt_link *next_carried;
    struct bt_far *far;
} bt_link;

static inline bt_link *bt_link_new(bt_registry *registry, int sock) {
    bt_link *link = calloc(1, sizeof *link);
    if (!link) return NULL;
    if (pthread_mutex_init(&link->lock, NULL)) {
        free(link);
        return NULL;
    }
    link->registry = registry;
    link->generation = registry->generation;
    link->sock = sock;
    atomic_store_explicit(&link->owners, 1, memory_order_relaxed);
    return link;
}

/* Take over the outboxes, which are mapped already. */
static inline void bt_link_open(bt_link *link, void *own, size_t own_size, void *peer, size_t peer_size,
                                uint32_t slot_count, uint32_t meta_size) {
    bt_rings_init(&link->tx, &link->rx, own, peer, slot_count, meta_size);
    link->own_size = own_size;
    link->peer_size = peer_size;
}

/* How much waits to be sent. acquire: pairs with the release of whoever carried the last of it. */
static inline int bt_link_has(const bt_link *link) {
    return (int)atomic_load_explicit(&link->waiting, memory_order_acquire);
}

/* Nothing is carried any more. relaxed: a flag that the carrier looks at again. */
static inline void bt_link_end(bt_link *link) { atomic_store_explicit(&link->ended, 1, memory_order_relaxed); }

static inline void bt_link_retain(bt_link *link) {
    atomic_fetch_add_explicit(&link->owners, 1, memory_order_relaxed); /* the caller is an owner already */
}

static inline void bt_waiting_free(bt_link *link, bt_waiting *w) {
    if (w->twin) bt_twin_left(w->twin, w->entry.index);
    free(w->data);
    for (int i = 0; i < w->fd_count; i++) bt_registry_close(link->registry, w->fds[i]);
    free(w->fds);
}

/* Where memory is not shared: the staging area behind the rest of the own outbox. */
static inline void bt_link_stage(bt_link *link, uint64_t size, uint32_t slot_count, uint32_t meta_size) {
    link->out = (bt_stage_tx){.own = link->tx.own, .peer = link->tx.peer, .size = size};
    link->out.area = bt_outbox_stage(link->tx.own, slot_count, meta_size);
}

static inline void bt_arrivals_free(struct bt_arrivals *in); /* arrival.h */

/* Let go; the last owner closes the socket and unmaps the outboxes. */
static inline void bt_link_release(bt_link *link) {
    /* acq_rel: whoever frees has seen everything that the other owner did */
    if (atomic_fetch_sub_explicit(&link->owners, 1, memory_order_acq_rel) != 1) return;
    if (link->generation == link->registry->generation) {
        uint32_t count = atomic_load_explicit(&link->waiting, memory_order_acquire);
        for (uint32_t i = 0; i < count; i++)
            bt_waiting_free(link, &link->fifo[(link->fifo_first + i) & (link->fifo_room - 1)]);
        if (link->in) bt_arrivals_free(link->in);
        if (link->sock >= 0) bt_hang_up(link->registry, link->sock);
        if (link->ways) link->ways->release(link);
        if (link->tx.own) bt_registry_unmap(link->registry, link->tx.own, link->own_size);
        if (link->tx.peer) bt_registry_unmap(link->registry, (void *)link->tx.peer, link->peer_size);
        pthread_mutex_destroy(&link->lock);
    }
    free(link->fifo);
    free(link);
}

/* Let go of a link that was not opened after all: socket and outboxes stay whose they are. */
static inline void bt_link_forget(bt_link *link) {
    link->sock = -1;
    link->tx.own = NULL;
    link->tx.peer = NULL;
    bt_link_release(link);
}

static inline void bt_ring_data(bt_link *link) {
    if (bt_bell_due(&link->tx.peer->sleep_data, &link->tx.last_rung_data)) {
        atomic_fetch_add_explicit(&link->rings, 1, memory_order_relaxed); /* no partner: only counted */
        if (bt_ring_bell(link->sock) < 0) link->tx.last_rung_data = 0; /* the next entry rings again */
    }
}

/* After consuming: tell the peer, and wake it if it sleeps for space or for an outcome. */
static inline void bt_link_consumed(bt_link *link) {
    bt_rx_publish(&link->rx);
    if (link->ways) link->ways->consumed(link);
    if (bt_bell_due(&link->rx.peer->sleep_space, &link->rx.last_rung_space)) {
        atomic_fetch_add_explicit(&link->rings, 1, memory_order_relaxed);
        if (link->ways) link->ways->due(link);
        else if (bt_ring_bell(link->sock) < 0) link->rx.last_rung_space = 0;
    }
}

/* Before something is sent: room for `count` more in ring or FIFO, so that sending cannot fail. -1: no memory. */
static inline int bt_link_make_room(bt_link *link, uint32_t count) {
    int result = 0;
    pthread_mutex_lock(&link->lock);
    uint32_t waiting = atomic_load_explicit(&link->waiting, memory_order_relaxed);
    if (waiting + count > link->fifo_room) {
        uint32_t room = link->fifo_room ? link->fifo_room : 64;
        while (room < waiting + count) room *= 2;
        bt_waiting *more = calloc(room, sizeof *more);
        if (!more) result = -1;
        else {
            for (uint32_t i = 0; i < waiting; i++)
                more[i] = link->fifo[(link->fifo_first + i) & (link->fifo_room - 1)];
            free(link->fifo);
            link->fifo = more;
            link->fifo_first = 0;
            link->fifo_room = room;
        }
    }
    pthread_mutex_unlock(&link->lock);
    return result;
}

/* Whether `count` entries go straight into the ring. -1: the peer's index cannot be. */
static inline int bt_link_direct(bt_link *link, uint32_t count) {
    /* acquire, with the release in bt_link_carry: the carrier has finished with the tail */
    if (atomic_load_explicit(&link->waiting, memory_order_acquire)) return 0;
    if (bt_tx_room(&link->tx) >= count) return 1;
    if (bt_tx_refresh(&link->tx) < 0) return -1;
    return bt_tx_room(&link->tx) >= count;
}

/* How far the peer has consumed, for its outcomes. -1: its index cannot be. bt_tx_refresh alone would do only where
 * nothing waits: two that look at once could set `consumed` back, and the ring would seem to have room without end. */
static inline int bt_link_refresh(bt_link *link, uint64_t *consumed) {
    int shared = atomic_load_explicit(&link->waiting, memory_order_acquire) != 0; /* as in bt_link_direct */
    if (shared) pthread_mutex_lock(&link->lock);
    int result = bt_tx_refresh(&link->tx);
    *consumed = link->tx.consumed;
    if (shared) pthread_mutex_unlock(&link->lock);
    return result;
}

/* Put one entry at the end of the FIFO; bt_link_make_room was called. Takes over `data` and `fds`. */
static inline void bt_link_append(bt_link *link, const bt_entry *entry, uint8_t *data, size_t size, int *fds,
                                  int fd_count) {
    pthread_mutex_lock(&link->lock);
    uint32_t waiting = atomic_load_explicit(&link->waiting, memory_order_relaxed);
    bt_waiting *w = &link->fifo[(link->fifo_first + waiting) & (link->fifo_room - 1)];
    *w = (bt_waiting){.entry = *entry, .data = data, .size = size, .fds = fds, .fd_count = fd_count};
    /* release, with the acquire in bt_link_direct */
    atomic_store_explicit(&link->waiting, waiting + 1, memory_order_release);
    pthread_mutex_unlock(&link->lock);
}

/* Grows with each time that this side, user or carrier, asks to be rung, also where it finds news at once and does
 * not sleep. Whoever leaves bells unread must read them before this has grown by 200 since it did: 278 fill a socket
 * (Linux 6.18, default buffers), and a bell that finds no room makes no edge, so that an epoll never reports it. */
static inline uint32_t bt_link_asked(const bt_link *link) {
    return atomic_load_explicit(&link->tx.own->sleep_data, memory_order_relaxed) +
           atomic_load_explicit(&link->tx.own->sleep_space, memory_order_relaxed); /* own words: no partner */
}

/* The same for an entry whose contents `contents` wait with it. bt_twin_left follows when the last byte is staged. */
static inline void bt_link_append_contents(bt_link *link, const bt_entry *entry, uint8_t *meta, const uint8_t *contents,
                                           bt_twin *twin) {
    bt_twin_leaving(twin, entry->index);
    pthread_mutex_lock(&link->lock);
    uint32_t waiting = atomic_load_explicit(&link->waiting, memory_order_relaxed);
    bt_waiting *w = &link->fifo[(link->fifo_first + waiting) & (link->fifo_room - 1)];
    *w = (bt_waiting){.entry = *entry, .data = meta, .contents = contents, .twin = twin};
    /* release, with the acquire in bt_link_direct */
    atomic_store_explicit(&link->waiting, waiting + 1, memory_order_release);
    pthread_mutex_unlock(&link->lock);
}

/* One more descriptor of a frame, for an entry that has to wait: an array of one, or NULL with errno. */
static inline int *bt_link_keep_frame(bt_link *link, int fd) {
    int *one = malloc(sizeof *one);
    if (!one) return NULL;
    *one = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (*one >= 0 && bt_registry_add_fd(link->registry, *one) < 0) {
        close(*one);
        *one = -1;
        errno = ENOMEM;
    }
    if (*one >= 0) return one;
    free(one);
    return NULL;
}

static inline void bt_link_drop_frame(bt_link *link, int *one) {
    if (one) bt_registry_close(link->registry, *one);
    free(one);
}

/* The same for an entry whose contents are a sealed frame; takes over what bt_link_keep_frame made. */
static inline void bt_link_append_frame(bt_link *link, const bt_entry *entry, uint8_t *meta, int *one, bt_twin *twin) {
    bt_twin_leaving(twin, entry->index);
    pthread_mutex_lock(&link->lock);
    uint32_t waiting = atomic_load_explicit(&link->waiting, memory_order_relaxed);
    bt_waiting *w = &link->fifo[(link->fifo_first + waiting) & (link->fifo_room - 1)];
    *w = (bt_waiting){.entry = *entry, .data = meta, .twin = twin, .fds = one, .fd_count = 1};
    /* release, with the acquire in bt_link_direct */
    atomic_store_explicit(&link->waiting, waiting + 1, memory_order_release);
    pthread_mutex_unlock(&link->lock);
}

/* Whether contents of buffer `index` of `twin` wait in this link: the peer cannot have received them yet. */
static inline int bt_link_holds(bt_link *link, const bt_twin *twin, uint32_t index) {
    int found = 0;
    pthread_mutex_lock(&link->lock);
    uint32_t waiting = atomic_load_explicit(&link->waiting, memory_order_relaxed);
    for (uint32_t i = 0; i < waiting && !found; i++) {
        const bt_waiting *w = &link->fifo[(link->fifo_first + i) & (link->fifo_room - 1)];
        found = w->twin == twin && w->entry.index == index;
    }
    pthread_mutex_unlock(&link->lock);
    return found;
}

/* How many frames in all the peer has room for; it may claim anything. */
static inline uint64_t bt_frames_granted(const bt_link *link) {
    return atomic_load_explicit(&link->tx.peer->granted, memory_order_relaxed); /* no partner: nothing else is read by it */
}

static inline void bt_grant_frames(bt_link *link, uint64_t count) {
    atomic_store_explicit(&link->tx.own->granted, count, memory_order_relaxed); /* as above */
}

enum bt_carried { BT_CARRIED_ALL = 0, BT_CARRY_SPACE = 1, BT_CARRY_SOCKET = 2, BT_CARRY_ENDED = 3 };

/* By value: bytes of contents that wait. By the caller who adds to them. */
static inline uint64_t bt_link_unstaged(const bt_link *link) {
    return link->out.promised - atomic_load_explicit(&link->out.own->filled, memory_order_relaxed); /* own word */
}

/* Take the first that waits off the FIFO. With `lock` held. */
static inline void bt_link_sent_first(bt_link *link, bt_waiting *w) {
    bt_waiting_free(link, w);
    memset(w, 0, sizeof *w);
    link->fifo_first = (link->fifo_first + 1) & (link->fifo_room - 1);
    /* release, with the acquire in bt_link_direct: from 0 on the caller fills the ring itself */
    atomic_fetch_sub_explicit(&link->waiting, 1, memory_order_release);
}

/* Stage one piece of the contents of the first that waits. With `lock` held. */
static inline enum bt_carried bt_link_stage_one(bt_link *link, bt_waiting *w, int asks, uint64_t *emptied) {
    uint64_t done = bt_stage_fill_piece(&link->out, w->contents, w->done, w->entry.length);
    if (done == w->done) {
        if (bt_stage_refresh(&link->out) < 0) return BT_CARRY_ENDED;
        done = bt_stage_fill_piece(&link->out, w->contents, w->done, w->entry.length);
    }
    *emptied = link->out.emptied;
    if (done == w->done && !asks) return BT_CARRY_SPACE;
    if (done == w->done) {
        bt_sleep_begin(&link->tx.own->sleep_space); /* S1, then S2: see doorbell.h */
        uint64_t seen = atomic_load_explicit(&link->tx.peer->emptied, memory_order_seq_cst);
        return seen == link->out.emptied ? BT_CARRY_SPACE : BT_CARRIED_ALL;
    }
    w->done = done;
    if (done == w->entry.length) bt_link_sent_first(link, w);
    bt_ring_data(link);
    return BT_CARRIED_ALL;
}

/* Send the first that waits. With `lock` held. */
static inline enum bt_carried bt_link_carry_one(bt_link *link) {
    bt_waiting *w = &link->fifo[link->fifo_first];
    if (w->entry.kind == BT_CONTROL && w->size) {
        int result = link->ways ? link->ways->message(link, w->data, w->size)
                                : bt_message_send(link->sock, w->data, w->size, w->fds, w->fd_count);
        if (result == -EAGAIN || result == -ETOOMANYREFS || result == -ENOBUFS || result == -ENOMEM)
            return BT_CARRY_SOCKET;
        if (result < 0) return BT_CARRY_ENDED;
    }
    if (w->entry.kind != BT_CONTROL && w->fd_count) {
        int result = bt_frame_send(link->sock, w->entry.serial, w->fds[0]);
        if (result == -EAGAIN || result == -ETOOMANYREFS || result == -ENOBUFS) return BT_CARRY_SOCKET;
        if (result < 0) return BT_CARRY_ENDED;
    }
    bt_tx_fill(&link->tx, 0, &w->entry, w->entry.kind == BT_CONTROL ? NULL : w->data ? w->data : w->entry.meta);
    bt_tx_publish(&link->tx, 1);
    bt_ring_data(link);
    if (w->contents) w->published = 1;
    else bt_link_sent_first(link, w);
    return BT_CARRIED_ALL;
}

/* Send what waits as far as it goes. If it did not go all the way for want of space, the peer rings when it has
 * consumed, if it is asked to; if for want of room in the socket, it becomes writable. `emptied`: what was seen of the
 * peer where its staging area is full, else UINT64_MAX. Any thread, with or without the GIL. */
static inline enum bt_carried bt_link_carry_on(bt_link *link, int asks, uint64_t *emptied) {
    *emptied = UINT64_MAX;
    enum bt_carried result = BT_CARRIED_ALL;
    if (!atomic_load_explicit(&link->waiting, memory_order_acquire)) return result;
    pthread_mutex_lock(&link->lock);
    while (result == BT_CARRIED_ALL && atomic_load_explicit(&link->waiting, memory_order_relaxed)) {
        if (atomic_load_explicit(&link->ended, memory_order_relaxed)) result = BT_CARRY_ENDED;
        else if (link->fifo[link->fifo_first].published) {
            result = bt_link_stage_one(link, &link->fifo[link->fifo_first], asks, emptied);
            pthread_mutex_unlock(&link->lock); /* a piece takes a while: let others append */
            pthread_mutex_lock(&link->lock);
        } else if (bt_tx_room(&link->tx)) result = bt_link_carry_one(link);
        else {
            *emptied = UINT64_MAX;
            if (bt_tx_refresh(&link->tx) < 0) result = BT_CARRY_ENDED;
            else if (!bt_tx_room(&link->tx)) {
                bt_sleep_begin(&link->tx.own->sleep_space); /* S1, then S2: see doorbell.h */
                uint64_t seen = atomic_load_explicit(&link->tx.peer->consumed, memory_order_seq_cst);
                if (seen == link->tx.consumed) result = BT_CARRY_SPACE;
            }
        }
    }
    pthread_mutex_unlock(&link->lock);
    return result;
}

/* The same; the peer is asked to ring. */
static inline enum bt_carried bt_link_carry(bt_link *link) {
    uint64_t emptied;
    return bt_link_carry_on(link, 1, &emptied);
}

/* Before the entry that was refused is passed: the peer waits for so many refusals before it calls an outcome good. */
static inline void bt_link_refused(bt_link *link, uint64_t count) {
    /* release, with the acquire in bt_link_refusals; ordered before `consumed`, which is stored after it */
    atomic_store_explicit(&link->tx.own->refused, count, memory_order_release);
}

/* After its consumed index was read: how many refusals the peer has sent, or has still to send. */
static inline uint64_t bt_link_refusals(const bt_link *link) {
    return atomic_load_explicit(&link->tx.peer->refused, memory_order_acquire);
}

/* Sleep for an outcome: the peer rings when its index passes what was seen. 0: it moved already. What was seen may
 * have been seen by the carrier: compare bt_link_refresh with the outcome's position after this, not before.
 * Never call bt_sleep_end on this counter: the carrier may sleep by it. */
static inline int bt_link_await(bt_link *link) {
    pthread_mutex_lock(&link->lock); /* the counter has one writer at a time */
    bt_sleep_begin(&link->tx.own->sleep_space);
    uint64_t seen = atomic_load_explicit(&link->tx.peer->consumed, memory_order_seq_cst);
    int same = seen == link->tx.consumed;
    pthread_mutex_unlock(&link->lock);
    return same;
}

#include "arrival.h" /* bt_arrivals_free, for whoever lets a link go */

#endif
