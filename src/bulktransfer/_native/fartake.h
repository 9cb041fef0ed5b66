/* The pump that reads a stream: heads are judged, contents land in the buffers that they are for, and each frame
 * becomes an entry of the ring that stands in for the peer's, where the channel judges it by its rules.
 *
 * Knows: what a peer may send at all, and which buffers are free to be received into. Must not know: rules, Python.
 * Everything that the peer says is read into private memory, then checked, then used (design section 8).
 */
#ifndef BT_FARTAKE_H
#define BT_FARTAKE_H

#include "farsend.h"

/* Where the contents of this frame go: into the buffer, claimed for this channel, or, where it is not free, nowhere. */
static inline uint8_t *bt_far_land(bt_landing *l, uint32_t index) {
    bt_slot *s = l->slots ? &l->slots[index] : NULL;
    if (!s || !bt_bit_claim(l->taken, index)) return NULL;
    /* relaxed: from here on only this channel can make it anything but INVALID (ReceiveCore.take_transfer) */
    uint8_t state = __atomic_load_n(&s->state, __ATOMIC_RELAXED);
    uint32_t left = __atomic_load_n(&s->left, __ATOMIC_RELAXED);
    uint32_t left_to = __atomic_load_n(&s->left_to, __ATOMIC_RELAXED);
    int with_peer = left == l->channel || (left && left_to == l->peer); /* as bt_is_with */
    if (state == BT_INVALID && (!l->judged_home || with_peer)) return l->base + (uint64_t)index * l->size;
    bt_bit_let_go(l->taken, index);
    return NULL;
}

/* A head and its meta data are there. NULL, or the rule that it breaks. */
static inline const char *bt_far_begin(bt_link *link, bt_far *far) {
    bt_far_take *t = &far->take;
    bt_frame *f = &t->frame;
    const char *fault = bt_far_words(far, f);
    int leaving = (int)atomic_load_explicit(&far->left, memory_order_relaxed);
    t->inside = 1;
    t->left = f->length;
    t->to = NULL;
    t->flags = 0;
    t->landing = NULL;
    t->message = NULL;
    if (fault) return fault;
    if (f->kind == BT_NOTE || leaving) return NULL;
    if (t->in.tail - atomic_load_explicit(&link->tx.own->consumed, memory_order_acquire) >= t->in.slot_count)
        return "more entries than its ring has";
    if (f->kind == BT_CONTROL) {
        t->message = bt_far_message_new(NULL, f->length);
        if (!t->message) return "a control message for which there is no memory";
        t->to = t->message->data;
    } else {
        bt_landing *l = bt_far_landing(far, f->slot);
        if (!l) return "a transfer from a pool that is not assigned";
        if (f->index >= l->count) return "a transfer of a buffer beyond the end of its pool";
        if (f->length > l->size) return "a transfer of more bytes than the buffer has";
        if (f->meta_size > far->meta_limit) return "more meta data than the channel takes";
        if (bt_frame_has_contents(f)) {
            t->to = bt_far_land(l, f->index);
            t->flags = t->to ? BT_LANDED : BT_DRAINED;
            t->landing = t->to ? l : NULL;
        }
    }
    return NULL;
}

/* A frame is whole: publish its entry. Whether there was one. */
static inline int bt_far_complete(bt_far *far) {
    bt_far_take *t = &far->take;
    const bt_frame *f = &t->frame;
    t->inside = 0;
    if (f->kind == BT_NOTE) return 0;
    if (atomic_load_explicit(&far->left, memory_order_relaxed)) {
        free(t->message);
        t->message = NULL;
        return 0;
    }
    bt_entry entry = {.kind = f->kind, .flags = t->flags, .slot = f->slot, .index = f->index,
                      .meta_size = f->meta_size, .length = f->length, .serial = f->serial};
    if (f->kind == BT_REFUSE) {
        entry.flags = (uint16_t)f->extra;
        entry.length = f->extra >> 16;
    } else if (f->kind == BT_CONTROL) {
        entry.length = 0;
        pthread_mutex_lock(&far->inbox_lock);
        bt_far_put(&t->inbox, t->message);
        pthread_mutex_unlock(&far->inbox_lock);
        t->message = NULL;
    }
    t->landing = NULL;
    bt_tx_fill(&t->in, 0, &entry, t->meta);
    bt_tx_publish(&t->in, 1);
    return 1;
}

/* Work through what is in the room. The number of entries published, or -1: a rule is broken. */
static inline int bt_far_parse(bt_link *link, bt_far *far) {
    bt_far_take *t = &far->take;
    int published = 0;
    for (;;) {
        uint32_t there = t->end - t->first;
        if (!t->inside) {
            const char *fault;
            if (there < BT_FRAME_SIZE) return published;
            bt_frame_unpack(&t->frame, t->room + t->first);
            if (!(fault = bt_frame_fault(&t->frame)) && there < BT_FRAME_SIZE + (uint32_t)t->frame.meta_size)
                return published;
            if (!fault) {
                memcpy(t->meta, t->room + t->first + BT_FRAME_SIZE, t->frame.meta_size);
                fault = bt_far_begin(link, far);
            }
            if (fault) {
                t->violation = fault;
                return -1;
            }
            t->first += BT_FRAME_SIZE + (uint32_t)t->frame.meta_size;
            there = t->end - t->first;
        }
        uint32_t step = t->left < there ? (uint32_t)t->left : there;
        if (t->to) {
            memcpy(t->to, t->room + t->first, step);
            t->to += step;
        }
        t->first += step;
        t->left -= step;
        if (t->left) return published;
        published += bt_far_complete(far);
    }
}

/* One read: the rest of the contents to where they go, what comes behind them into the room. As bt_stream.read. */
static inline ssize_t bt_far_read(bt_far *far) {
    bt_far_take *t = &far->take;
    struct iovec parts[2];
    int count = 0;
    uint64_t room;
    if (t->first) {
        memmove(t->room, t->room + t->first, t->end - t->first);
        t->end -= t->first;
        t->first = 0;
    }
    if (t->inside && !t->to) return far->stream->skip(far->self, t->left);
    if (t->inside) parts[count++] = (struct iovec){t->to, t->left};
    room = t->frame.length >= BT_FAR_LONG ? BT_FAR_TAIL : BT_FAR_ROOM;
    if (room > BT_FAR_ROOM - t->end) room = BT_FAR_ROOM - t->end;
    parts[count++] = (struct iovec){t->room + t->end, room};
    return far->stream->read(far->self, parts, count);
}

enum bt_fetched { BT_FETCH_NEWS = 1, BT_FETCH_DRY = 2 };

/* Read: until something is published, or, with `all`, as long as something comes (but not for ever). Bits of
 * bt_fetched; DRY: the stream has no more at the moment, or for good. With `take_lock` held. */
static inline int bt_far_take_some(bt_link *link, bt_far *far, int all) {
    bt_far_take *t = &far->take;
    int news = 0;
    for (int reads = 0; reads < 256; reads++) {
        if (atomic_load_explicit(&far->over, memory_order_relaxed)) return news | BT_FETCH_DRY;
        if (news && !all) return news;
        uint64_t words = atomic_load_explicit(&t->in.own->consumed, memory_order_relaxed);
        ssize_t size = bt_far_read(far);
        atomic_fetch_add_explicit(&far->taken_calls, 1, memory_order_relaxed);
        if (size == -EAGAIN) return news | BT_FETCH_DRY;
        if (size <= 0) {
            atomic_store_explicit(&far->over, size ? (uint32_t)-size : 1, memory_order_release);
            return news | BT_FETCH_DRY | BT_FETCH_NEWS;
        }
        atomic_fetch_add_explicit(&far->taken_bytes, (uint64_t)size, memory_order_relaxed);
        if (t->inside) {
            uint64_t step = (uint64_t)size < t->left ? (uint64_t)size : t->left;
            if (t->to) t->to += step;
            t->left -= step;
            size -= (ssize_t)step;
            if (!t->left && bt_far_complete(far)) news = BT_FETCH_NEWS;
        }
        t->end += (uint32_t)size;
        int published = bt_far_parse(link, far);
        if (published < 0) atomic_store_explicit(&far->over, EPROTO, memory_order_release);
        if (published || atomic_load_explicit(&t->in.own->consumed, memory_order_relaxed) != words)
            news = BT_FETCH_NEWS;
    }
    return news;
}

/* The same for a user, who has not the GIL now; answers what the peer asked. */
static inline int bt_far_fetch(bt_link *link, int all) {
    bt_far *far = link->far;
    pthread_mutex_lock(&far->take_lock);
    int result = bt_far_take_some(link, far, all);
    pthread_mutex_unlock(&far->take_lock);
    uint64_t behind = link->rx.published - atomic_load_explicit(&far->send.noted, memory_order_relaxed); /* a guess */
    if (behind >= link->rx.slot_count / 4) atomic_store_explicit(&far->due, 1, memory_order_relaxed);
    if (atomic_load_explicit(&far->due, memory_order_relaxed) || bt_link_has(link)) bt_far_flush(link);
    return result;
}

#endif
