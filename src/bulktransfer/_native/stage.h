/* By value: the contents of buffers as one stream of bytes through a staging area in the sender's outbox.
 *
 * Knows: positions in that stream, and who may write which index. Must not know: buffers, rules, or Python.
 * Where nothing may be shared (trust NONE) the sender copies contents in, the receiver copies them out into its own
 * memory, in pieces that stay in cache and overlap on two cores. An entry names the position of its first byte; the
 * stream is in the order of the entries, each padded to a whole line. Only the receiver's copy is ever judged or used,
 * so a peer that goes on writing its staging area spoils nothing that was received.
 */
#ifndef BT_STAGE_H
#define BT_STAGE_H

#include <string.h>

#include "layout.h"
#include "pace.h"

#define BT_PIECE ((uint64_t)64 << 10) /* published after each piece: the other core works on it meanwhile */

/* Bytes of the stream that contents of `length` bytes take. */
static inline uint64_t bt_stage_span(uint64_t length) { return bt_round_up(length, BT_LINE); }

/* The filling half. */
typedef struct bt_stage_tx {
    bt_outbox *own;
    const bt_outbox *peer;
    uint8_t *area;
    uint64_t size;     /* of the area, a power of two */
    uint64_t filled;   /* bytes of the stream that were put in and published */
    uint64_t promised; /* bytes that the entries so far take: where the next contents begin */
    uint64_t emptied;  /* last seen of the peer */
    bt_pace pace;      /* by which stores they go in */
} bt_stage_tx;

/* The emptying half. */
typedef struct bt_stage_rx {
    bt_outbox *own;
    const bt_outbox *peer;
    const uint8_t *area;
    uint64_t size;
    uint64_t filled;  /* last seen of the peer */
    uint64_t emptied; /* bytes of the stream that were taken and published */
} bt_stage_rx;

/* Look how much room there is. -1: the peer's index cannot be. */
static inline int bt_stage_refresh(bt_stage_tx *t) {
    /* acquire, with the release in bt_stage_take: the peer has finished reading what is overwritten from now on */
    uint64_t emptied = atomic_load_explicit(&t->peer->emptied, memory_order_acquire);
    if (emptied - t->emptied > t->filled - t->emptied) return -1;
    __atomic_store_n(&t->emptied, emptied, __ATOMIC_RELAXED); /* a thread that spins compares it, no more */
    return 0;
}

/* Whether contents of `length` bytes fit in whole. -1: the peer's index cannot be. */
static inline int bt_stage_fits(bt_stage_tx *t, uint64_t length) {
    if (t->size - (t->filled - t->emptied) >= bt_stage_span(length)) return 1;
    if (bt_stage_refresh(t) < 0) return -1;
    return t->size - (t->filled - t->emptied) >= bt_stage_span(length);
}

/* Put one piece of the bytes [done, length) of some contents into the area and publish it; the new `done`, the old one
 * if there is no room. Nothing beyond `length` is ever written; positions skip to the next line after the last byte. */
static inline uint64_t bt_stage_fill_piece(bt_stage_tx *t, const uint8_t *data, uint64_t done, uint64_t length) {
    uint64_t room = t->size - (t->filled - t->emptied);
    uint64_t at = t->filled & (t->size - 1);
    uint64_t piece = length - done < BT_PIECE ? length - done : BT_PIECE;
    if (piece > t->size - at) piece = t->size - at;
    if (bt_stage_span(piece) > room) return done; /* whole pieces only: positions stay on lines */
    bt_paced_copy(&t->pace, t->area + at, data + done, piece);
    t->filled += bt_stage_span(piece);
    /* seq_cst: release for the acquire in bt_stage_look, and store-load order against the sleep counter */
    atomic_store_explicit(&t->own->filled, t->filled, memory_order_seq_cst);
    return done + piece;
}

/* The same as far as there is room. */
static inline uint64_t bt_stage_fill(bt_stage_tx *t, const uint8_t *data, uint64_t done, uint64_t length) {
    for (uint64_t before = done + 1; done < length && done != before;) {
        before = done;
        done = bt_stage_fill_piece(t, data, done, length);
    }
    return done;
}

/* Bytes that can be taken. -1: the peer's index cannot be. */
static inline int64_t bt_stage_look(bt_stage_rx *r) {
    /* acquire, with the store in bt_stage_fill: the bytes are there */
    uint64_t filled = atomic_load_explicit(&r->peer->filled, memory_order_acquire);
    if (filled - r->emptied > r->size || filled - r->emptied < r->filled - r->emptied) return -1;
    __atomic_store_n(&r->filled, filled, __ATOMIC_RELAXED); /* as in bt_stage_refresh */
    return (int64_t)(filled - r->emptied);
}

/* Take one piece of the bytes [done, length) of some contents, and say so; the new `done`, the old one if it is not
 * there (bt_stage_look first). `data` NULL: it is drained unread. */
static inline uint64_t bt_stage_take_piece(bt_stage_rx *r, uint8_t *data, uint64_t done, uint64_t length) {
    uint64_t there = r->filled - r->emptied;
    uint64_t at = r->emptied & (r->size - 1);
    uint64_t piece = length - done < BT_PIECE ? length - done : BT_PIECE;
    if (piece > r->size - at) piece = r->size - at;
    if (bt_stage_span(piece) > there) return done;
    if (data) memcpy(data + done, r->area + at, piece);
    r->emptied += bt_stage_span(piece);
    /* seq_cst: release for the acquire in bt_stage_refresh, and store-load order against the sleep counter */
    atomic_store_explicit(&r->own->emptied, r->emptied, memory_order_seq_cst);
    return done + piece;
}

#endif
