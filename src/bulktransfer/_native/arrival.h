/* By value: contents that arrive, copied into this domain's own memory, by its user's thread or by the carrier.
 *
 * Knows: the stream of contents beside the peer's ring, and which entry's contents are due. Must not know: verdicts
 * other than whether a buffer is certainly free to receive into, and Python.
 * Entries are taken in order: judged, then their contents copied, then passed. The user's thread judges by the whole
 * ledger and says whether contents are copied or drained unread. The carrier (design rule 8: what was accepted completes
 * though the user never calls again) goes ahead only where it cannot be wrong, and leaves the rest to the user: what it
 * copied is judged when the user takes it, and nobody sees the memory before, since the buffer is INVALID and claimed.
 * Everything of the peer is read once, into private memory.
 */
#ifndef BT_ARRIVAL_H
#define BT_ARRIVAL_H

#include "ledger.h"
#include "link.h"

#define BT_PIECES_A_LOOK 64 /* what the carrier copies for one link before it looks at the others */

/* One entry, and where its contents go. */
typedef struct bt_arrival {
    bt_entry entry;
    bt_twin *twin;         /* claimed for it; NULL: nothing is */
    uint8_t *target;       /* NULL: drained unread */
    const uint8_t *window; /* read here, in an exposed pool; NULL: in the staging area */
    int refused;
} bt_arrival;

typedef struct bt_arrivals {
    pthread_mutex_t lock;
    _Atomic uint32_t wanted; /* the user waits for the lock */
    bt_stage_rx stage;
    uint64_t next;         /* position of the entry whose contents are due; those of earlier ones are in */
    uint64_t done;         /* bytes of them that are in */
    uint64_t due;          /* position in the stream where the contents after them begin */
    _Atomic uint32_t open; /* entry `next` was judged, and its contents are coming */
    uint32_t last_rung;    /* value of the peer's sleep counter for space that was rung for */
    uint32_t slot_count;
    bt_assignment **table; /* the pools of the channel, by number */
    uint32_t table_size;
    bt_arrival arrivals[]; /* one a ring slot; from the user's head to `next` */
} bt_arrivals;

static inline bt_arrivals *bt_arrivals_new(bt_link *link, uint64_t stage_size, uint32_t slot_count, uint32_t meta_size) {
    bt_arrivals *in = calloc(1, sizeof *in + slot_count * sizeof *in->arrivals);
    if (!in) return NULL;
    if (pthread_mutex_init(&in->lock, NULL)) {
        free(in);
        return NULL;
    }
    in->slot_count = slot_count;
    in->stage = (bt_stage_rx){.own = link->tx.own, .peer = link->tx.peer, .size = stage_size};
    in->stage.area = bt_outbox_stage((bt_outbox *)link->tx.peer, slot_count, meta_size);
    return in;
}

static inline bt_arrival *bt_arrival_at(bt_arrivals *in, uint64_t position) {
    return &in->arrivals[position & (in->slot_count - 1)];
}

static inline void bt_arrival_let_go(bt_arrival *arrival) {
    if (arrival->twin) bt_twin_unclaim(arrival->twin, arrival->entry.index);
    arrival->twin = NULL;
    arrival->target = NULL;
}

/* Give up what arrived and was not taken. */
static inline void bt_arrivals_free(bt_arrivals *in) {
    for (uint32_t i = 0; i < in->slot_count; i++) bt_arrival_let_go(&in->arrivals[i]);
    pthread_mutex_destroy(&in->lock);
    free(in->table);
    free(in);
}

/* Wait for the lock; without the GIL, since the carrier may be copying (a piece at most, then it yields). */
static inline void bt_arrivals_lock(bt_arrivals *in) {
    atomic_fetch_add_explicit(&in->wanted, 1, memory_order_relaxed); /* no partner: a hint */
    pthread_mutex_lock(&in->lock);
    atomic_fetch_sub_explicit(&in->wanted, 1, memory_order_relaxed);
}

static inline int bt_arrivals_trylock(bt_arrivals *in) { return pthread_mutex_trylock(&in->lock) == 0; }

static inline void bt_arrivals_unlock(bt_arrivals *in) { pthread_mutex_unlock(&in->lock); }

/* Enter a pool's assignment under its number, or (NULL) take it off: nothing is read through its window any more.
 * With the lock held. -1: no memory. */
static inline int bt_arrivals_enter(bt_arrivals *in, uint32_t slot, bt_assignment *a) {
    if (slot >= in->table_size) {
        if (!a) return 0;
        bt_assignment **more = realloc(in->table, (slot + 8) * sizeof *more);
        if (!more) return -1;
        memset(more + in->table_size, 0, (slot + 8 - in->table_size) * sizeof *more);
        in->table = more;
        in->table_size = slot + 8;
    }
    in->table[slot] = a;
    bt_arrival *due = bt_arrival_at(in, in->next);
    if (!a && atomic_load_explicit(&in->open, memory_order_relaxed) && due->entry.slot == slot && due->window) {
        bt_arrival_let_go(due);
        due->window = NULL;
        due->refused = 1;
        in->done = due->entry.length; /* nothing is in the stream */
    }
    return 0;
}

/* The entry at the user's head of the ring, in private memory. With the lock held. */
static inline bt_arrival *bt_arrivals_head(bt_arrivals *in, const bt_rx *rx) {
    bt_arrival *arrival = bt_arrival_at(in, rx->head);
    if (in->next == rx->head && !atomic_load_explicit(&in->open, memory_order_relaxed)) {
        *arrival = (bt_arrival){.refused = 0};
        memcpy(&arrival->entry, &rx->ring[rx->head & (rx->slot_count - 1)], sizeof arrival->entry);
        __asm__ volatile("" ::: "memory"); /* the shared words are not read again */
    }
    return arrival;
}

static inline int bt_arrivals_whole(const bt_arrivals *in, const bt_rx *rx) { return in->next != rx->head; }

/* Begin to take the contents of entry `next`. `twin`: claimed for it. With the lock held. */
static inline void bt_arrivals_open(bt_arrivals *in, bt_twin *twin, uint8_t *target, const uint8_t *window, int refused) {
    bt_arrival *arrival = bt_arrival_at(in, in->next);
    arrival->twin = twin;
    arrival->target = target;
    arrival->window = window;
    arrival->refused = refused;
    in->done = 0;
    if (!window) in->due += bt_stage_span(arrival->entry.length);
    atomic_store_explicit(&in->open, 1, memory_order_relaxed); /* under the lock; bt_arrival_news only guesses */
}

static inline void bt_arrivals_ring(bt_link *link) {
    if (bt_bell_due(&link->rx.peer->sleep_space, &link->in->last_rung)) {
        atomic_fetch_add_explicit(&link->rings, 1, memory_order_relaxed); /* no partner: only counted */
        bt_ring_bell(link->sock);
    }
}

/* Copy what there is of the contents that are due, `pieces` at most. 1: they are whole, and the next entry's are due;
 * 0: not yet; -1: the peer's index cannot be. With the lock held. */
static inline int bt_arrivals_pull(bt_link *link, uint32_t pieces) {
    bt_arrivals *in = link->in;
    bt_arrival *arrival = bt_arrival_at(in, in->next);
    uint64_t length = arrival->entry.length, told = in->stage.emptied;
    int result = 1;
    while (in->done < length && pieces--) {
        uint64_t done;
        if (arrival->window && arrival->target) {
            done = length - in->done < BT_PIECE ? length : in->done + BT_PIECE;
            memcpy(arrival->target + in->done, arrival->window + in->done, done - in->done);
        } else {
            done = bt_stage_take_piece(&in->stage, arrival->target, in->done, length);
            if (done == in->done) {
                result = bt_stage_look(&in->stage) < 0 ? -1 : 0;
                if (result == 0) done = bt_stage_take_piece(&in->stage, arrival->target, in->done, length);
            }
            if (done == in->done) break;
            result = 1;
            /* Not after each piece: whoever sleeps for space would wake for room for one, and sleep again. */
            if (in->stage.emptied - told >= in->stage.size / 2) {
                bt_arrivals_ring(link);
                told = in->stage.emptied;
            }
        }
        in->done = done;
    }
    if (in->stage.emptied != told) bt_arrivals_ring(link);
    if (result < 0) return -1;
    if (in->done < length) return 0;
    in->next++;
    atomic_store_explicit(&in->open, 0, memory_order_relaxed); /* as in bt_arrivals_open */
    return 1;
}

/* The user took the entry before `rx->head`. With the lock held. */
static inline void bt_arrivals_passed(bt_arrivals *in, const bt_rx *rx) {
    if ((int64_t)(in->next - rx->head) < 0) in->next = rx->head; /* it had no contents */
}

/* The buffer turned out not to be free to receive into: what arrives for it is refused, the rest of it drained unread.
 * With the lock held. */
static inline void bt_arrivals_spoil(bt_link *link, const bt_twin *twin, uint32_t index) {
    bt_arrivals *in = link->in;
    uint64_t end = in->next + atomic_load_explicit(&in->open, memory_order_relaxed);
    for (uint64_t at = link->rx.head; at != end; at++) {
        bt_arrival *arrival = bt_arrival_at(in, at);
        if (arrival->twin != twin || arrival->entry.index != index) continue;
        bt_arrival_let_go(arrival);
        arrival->refused = 1;
        if (at == in->next && arrival->window) in->done = arrival->entry.length; /* nothing is in the stream */
    }
}

/* Whether more contents have come, or more room to send; asked without the lock by a thread that spins. */
static inline int bt_arrival_news(const bt_link *link) {
    const bt_arrivals *in = link->in;
    /* acquire: as in bt_stage_look and bt_stage_refresh, which read the words again before anything is used */
    if (in && atomic_load_explicit(&in->open, memory_order_relaxed) &&
        atomic_load_explicit(&in->stage.peer->filled, memory_order_acquire) !=
            __atomic_load_n(&in->stage.filled, __ATOMIC_RELAXED))
        return 1;
    return link->out.size && atomic_load_explicit(&link->waiting, memory_order_relaxed) &&
           atomic_load_explicit(&link->out.peer->emptied, memory_order_acquire) !=
               __atomic_load_n(&link->out.emptied, __ATOMIC_RELAXED);
}

/* After the sleep counter was set: whether nothing more has come, neither an entry nor, where one is at the head, more
 * of its contents (S2 of doorbell.h). Where the carrier is at them, that is not known: look again. */
static inline int bt_arrivals_quiet(bt_link *link) {
    bt_arrivals *in = link->in;
    if (!bt_arrivals_trylock(in)) return 0;
    int quiet = bt_rx_look_again(&link->rx) == 0;
    if (!quiet && !bt_arrivals_whole(in, &link->rx) && atomic_load_explicit(&in->open, memory_order_relaxed)) {
        /* seq_cst: with the store in bt_stage_fill_piece */
        quiet = atomic_load_explicit(&in->stage.peer->filled, memory_order_seq_cst) == in->stage.filled;
    }
    bt_arrivals_unlock(in);
    return quiet;
}

/* Whether entry `next` brings contents for a buffer that is certainly free to receive into; they are due then. */
static inline int bt_arrivals_foresee(bt_link *link) {
    bt_arrivals *in = link->in;
    bt_arrival *arrival = bt_arrival_at(in, in->next);
    /* acquire, with the store in bt_tx_publish; more than there can be is for the user to call a violation */
    uint64_t tail = atomic_load_explicit(&link->rx.peer->tail, BT_ACQUIRE_ORDER);
    if (tail == in->next || tail - in->next > in->slot_count) return 0;
    if (in->next - link->rx.head >= in->slot_count) return 0; /* it published more than the ring holds */
    *arrival = (bt_arrival){.refused = 0};
    memcpy(&arrival->entry, &link->rx.ring[in->next & (in->slot_count - 1)], sizeof arrival->entry);
    __asm__ volatile("" ::: "memory");
    const bt_entry *entry = &arrival->entry;
    if ((entry->kind != BT_MOVE && entry->kind != BT_COPY) || entry->flags & BT_FRAMED || entry->slot >= in->table_size) return 0;
    const bt_assignment *a = in->table[entry->slot];
    if (!a || __atomic_load_n(&a->standing, __ATOMIC_ACQUIRE) != BT_ACTIVE) return 0;
    const bt_pool *pool = a->pool;
    if (entry->index >= pool->count || entry->length > pool->size || entry->length == 0 || entry->serial != in->due)
        return 0;
    if (!bt_twin_claim(pool->twin, entry->index, a->channel)) return 0;
    /* after the claim: from INVALID it changes only with the claim held */
    if (__atomic_load_n(&pool->slots[entry->index].state, __ATOMIC_ACQUIRE) != BT_INVALID ||
        bt_is_leaving(pool->twin, entry->index) || !bt_may_land(&pool->slots[entry->index])) {
        bt_twin_unclaim(pool->twin, entry->index);
        return 0;
    }
    uint64_t offset = (uint64_t)entry->index * pool->size;
    bt_arrivals_open(in, pool->twin, pool->base + offset, a->window ? a->window + offset : NULL, 0);
    return 1;
}

/* Read the bells that nobody sleeps by, before they fill the socket: a message of one byte is one, what else there is
 * stays for the user. With the lock held, as whoever else reads the socket, and as who sleeps begins to. */
static inline void bt_arrivals_hear(bt_link *link) {
    char byte;
    bt_message message;
    if (bt_sleeping(&link->rx.own->sleep_data)) return; /* its bed would not report what was read here */
    for (int i = 0; i < 64; i++) {
        if (recv(link->sock, &byte, 1, MSG_PEEK | MSG_TRUNC | MSG_DONTWAIT) != 1) return;
        if (bt_message_receive(link->sock, &message) > 0) bt_close_received(link->registry, &message);
    }
}

/* The carrier's turn: copy what can be, unless the user is at it. Whether there may be more. */
static inline int bt_arrivals_carry(bt_link *link) {
    bt_arrivals *in = link->in;
    if (!bt_arrivals_trylock(in)) return 0;
    int more = 1;
    bt_arrivals_hear(link);
    for (int i = 0; more && i < BT_PIECES_A_LOOK; i++) {
        if (atomic_load_explicit(&in->wanted, memory_order_relaxed)) {
            more = 0; /* whoever wants it takes the rest */
        } else if (!atomic_load_explicit(&in->open, memory_order_relaxed)) {
            more = bt_arrivals_foresee(link);
        } else {
            uint64_t done = in->done, next = in->next;
            int result = bt_arrivals_pull(link, 1); /* a violation is for the user to find */
            more = result >= 0 && (in->done != done || in->next != next);
        }
    }
    bt_arrivals_unlock(in);
    return more;
}

#endif
