/* The pump that empties the own ring into a stream: heads, meta data, and contents straight from the pools' memory.
 *
 * Knows: how entries become frames, many in one call, and that contents stay as they are until they have left (a
 * buffer that was moved is INVALID, one that was copied read-only). Must not know: rules, Python.
 */
#ifndef BT_FARSEND_H
#define BT_FARSEND_H

#include "far.h"

/* A batch has left as far as `done`: forget the frames that are through. */
static inline void bt_far_settle(bt_far_send *s) {
    while (s->frame < s->frame_count && s->frames[s->frame].end <= s->done) {
        free(s->frames[s->frame].message);
        s->frames[s->frame].message = NULL;
        s->frame++;
        /* release, with bt_far_is_unsent. A note is alone in its batch, and no entry. */
        if (s->out.head != s->settled) atomic_fetch_add_explicit(&s->settled, 1, memory_order_release);
    }
}

static inline void bt_far_advance(bt_far_send *s, uint64_t size) {
    s->done += size;
    while (size) {
        struct iovec *part = &s->parts[s->part];
        uint64_t step = size < part->iov_len ? size : part->iov_len;
        part->iov_base = (uint8_t *)part->iov_base + step;
        part->iov_len -= step;
        size -= step;
        if (part->iov_len == 0) s->part++;
    }
    bt_far_settle(s);
}

/* Add one part to the batch; heads lie one behind the other in the arena, and become one part. */
static inline void bt_far_add(bt_far_send *s, void *data, uint64_t size) {
    struct iovec *last = s->part_count ? &s->parts[s->part_count - 1] : NULL;
    if (!size) return;
    if (last && (uint8_t *)last->iov_base + last->iov_len == data) last->iov_len += size;
    else s->parts[s->part_count++] = (struct iovec){data, size};
}

/* One entry as a frame: its head into the arena, its contents by reference. The bytes that it takes. */
static inline uint64_t bt_far_frame(bt_far *far, uint8_t *at, bt_frame *f) {
    bt_far_send *s = &far->send;
    bt_entry entry;
    uint8_t *meta = at + BT_FRAME_SIZE;
    bt_landing *landing;
    void *contents = NULL;
    bt_rx_take(&s->out, &entry, meta, BT_META_MAX); /* the ring is this process's own: nothing to be judged */
    f->kind = (uint8_t)entry.kind;
    f->slot = entry.kind == BT_CONTROL ? 0 : entry.slot;
    f->index = entry.kind == BT_CONTROL ? 0 : entry.index;
    f->meta_size = (uint16_t)entry.meta_size;
    f->extra = entry.kind == BT_REFUSE ? (uint32_t)entry.length << 16 | entry.flags : 0;
    f->serial = entry.kind == BT_REFUSE || entry.kind == BT_CONTROL ? entry.serial : 0;
    f->length = 0;
    s->frames[s->frame_count].message = NULL;
    if (bt_frame_has_contents(f)) {
        landing = bt_far_landing(far, entry.slot);
        if (landing) {
            contents = landing->base + (uint64_t)entry.index * landing->size;
            f->length = entry.length;
        }
    } else if (entry.kind == BT_CONTROL) {
        pthread_mutex_lock(&far->inbox_lock);
        bt_far_message *message = bt_far_get(&s->messages);
        pthread_mutex_unlock(&far->inbox_lock);
        contents = message->data;
        f->length = message->size;
        s->frames[s->frame_count].message = message;
    }
    bt_frame_pack(at, f);
    bt_far_add(s, at, BT_FRAME_SIZE + (uint64_t)f->meta_size);
    bt_far_add(s, contents, f->length);
    return BT_FRAME_SIZE + (uint64_t)f->meta_size + f->length;
}

/* The next batch out of the ring; a frame without an entry where only the words that frames carry are news.
 * Whether there is anything to send. */
static inline int bt_far_build(bt_link *link, bt_far *far) {
    bt_far_send *s = &far->send;
    bt_frame f = {0};
    uint64_t bytes = 0;
    uint32_t used = 0;
    /* seq_cst: S2 and P2 of doorbell.h; what is asked or taken after these loads sets `due` or `again` once more */
    uint32_t due = atomic_exchange_explicit(&far->due, 0, memory_order_seq_cst);
    uint32_t space = atomic_load_explicit(&link->tx.own->sleep_space, memory_order_seq_cst);
    f.consumed = atomic_load_explicit(&link->tx.own->consumed, memory_order_seq_cst);
    f.refused = atomic_load_explicit(&link->tx.own->refused, memory_order_acquire); /* after the index: see link.h */
    uint64_t noted = atomic_load_explicit(&s->noted, memory_order_relaxed); /* own word */
    s->part = s->part_count = s->frame = s->frame_count = 0;
    s->done = 0;
    uint64_t there = atomic_load_explicit(&far->take.in.own->consumed, memory_order_acquire) + 1;
    if (space & 1 && space != s->asked && there != s->asked_at) {
        f.flags = BT_FRAME_ASK;
        s->asked = space;
        s->asked_at = there;
    }
    while (s->frame_count < BT_FAR_FRAMES && bytes < BT_FAR_BATCH && used + BT_FRAME_SIZE + BT_META_MAX <= BT_FAR_ARENA &&
           bt_rx_look(&s->out) > 0) {
        bytes += bt_far_frame(far, s->arena + used, &f);
        used += BT_FRAME_SIZE + (uint32_t)f.meta_size;
        s->frames[s->frame_count++].end = bytes;
        f.flags = 0;
    }
    if (!bytes && (f.flags || (due && f.consumed != noted))) {
        f.kind = BT_NOTE;
        bt_frame_pack(s->arena, &f);
        bt_far_add(s, s->arena, BT_FRAME_SIZE);
        s->frames[0].end = BT_FRAME_SIZE;
        s->frames[0].message = NULL;
        s->frame_count = 1;
    }
    if (s->frame_count) atomic_store_explicit(&s->noted, f.consumed, memory_order_relaxed); /* only compared */
    return s->frame_count != 0;
}

/* Send until there is nothing more, or the stream takes no more. With `send_lock` held. */
static inline void bt_far_send_all(bt_link *link, bt_far *far) {
    bt_far_send *s = &far->send;
    ssize_t size = 0;
    while (!atomic_load_explicit(&far->lost, memory_order_relaxed)) {
        if (s->part == s->part_count) {
            bt_link_carry(link);
            size = bt_far_build(link, far) ? 1 : far->stream->push ? far->stream->push(far->self) : 0;
            if (size == 0) {
                atomic_store_explicit(&far->blocked, 0, memory_order_relaxed);
                return;
            }
        }
        if (s->part != s->part_count) {
            size = far->stream->write(far->self, s->parts + s->part, (int)(s->part_count - s->part));
            atomic_fetch_add_explicit(&far->sent_calls, 1, memory_order_relaxed);
        }
        if (size >= 0) {
            bt_far_advance(s, (uint64_t)size);
            atomic_fetch_add_explicit(&far->sent_bytes, (uint64_t)size, memory_order_relaxed);
            continue;
        }
        if (size == -EAGAIN) {
            atomic_store_explicit(&far->blocked, 1, memory_order_relaxed); /* the helper hears when it takes more */
            return;
        }
        atomic_store_explicit(&far->lost, 1, memory_order_relaxed);
    }
}

/* Have everything sent that can be. Never waits: where another thread sends, that one does it. */
static inline void bt_far_flush(bt_link *link) {
    bt_far *far = link->far;
    /* seq_cst: either this thread gets the lock, or the one that has it sees `again` after it let the lock go */
    atomic_store_explicit(&far->again, 1, memory_order_seq_cst);
    while (atomic_load_explicit(&far->again, memory_order_seq_cst) && !pthread_mutex_trylock(&far->send_lock)) {
        atomic_store_explicit(&far->again, 0, memory_order_seq_cst);
        bt_far_send_all(link, far);
        pthread_mutex_unlock(&far->send_lock);
    }
}

/* Let the peer hear how far it was read, if it does not know: at once, or when the stream takes more. */
static inline void bt_far_tell(bt_link *link) {
    /* seq_cst: a batch that was built before this store is followed by another, and one built after it has the index */
    atomic_store_explicit(&link->far->due, 1, memory_order_seq_cst);
    bt_far_flush(link);
}

/* Whether an entry of `slot` and `index` with contents was published and has not left whole. With the GIL: nothing is
 * published meanwhile. */
static inline int bt_far_is_unsent(bt_link *link, uint32_t slot, uint32_t index) {
    const bt_tx *tx = &link->tx;
    int found = 0;
    uint64_t at = atomic_load_explicit(&link->far->send.settled, memory_order_acquire); /* with bt_far_settle */
    uint64_t end = atomic_load_explicit(&tx->own->tail, memory_order_acquire); /* the helper may have published */
    for (; at != end && !found; at++) {
        const bt_entry *e = &tx->ring[at & (tx->slot_count - 1)];
        found = (e->kind == BT_MOVE || e->kind == BT_COPY) && e->slot == slot && e->index == index;
    }
    if (found || !bt_link_has(link)) return found;
    pthread_mutex_lock(&link->lock);
    uint32_t waiting = atomic_load_explicit(&link->waiting, memory_order_relaxed);
    for (uint32_t i = 0; i < waiting && !found; i++) {
        const bt_entry *e = &link->fifo[(link->fifo_first + i) & (link->fifo_room - 1)].entry;
        found = (e->kind == BT_MOVE || e->kind == BT_COPY) && e->slot == slot && e->index == index;
    }
    pthread_mutex_unlock(&link->lock);
    return found;
}

/* Whether nothing is left to be sent; with `send_lock` held. */
static inline int bt_far_is_empty(bt_link *link, bt_far *far) {
    return far->send.part == far->send.part_count && !bt_link_has(link) && bt_rx_look(&far->send.out) == 0 &&
           !(far->stream->push && far->stream->push(far->self) < 0);
}

#endif
