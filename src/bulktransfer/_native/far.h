/* A link to another machine: what stands in for the peer's outbox, and where arriving contents land.
 *
 * Knows: that the peer's ring is kept here by a pump that reads a stream (fartake.h), and that the own ring is emptied
 * by one that writes it (farsend.h); which memory the two may touch. Must not know: rules, Python, what a stream is
 * made of (`bt_stream` says).
 *
 * Locks: `take_lock` for all that comes in, `send_lock` for all that goes out, in this order where both are needed.
 * Whoever has the GIL lets it go before it waits for either, since a stream may need the GIL (TLS).
 */
#ifndef BT_FAR_H
#define BT_FAR_H

#include <sys/eventfd.h>
#include <sys/uio.h>

#include "frame.h"
#include "hold.h"
#include "ledger.h"
#include "link.h"

#define BT_FAR_FRAMES 64                  /* in one batch */
#define BT_FAR_BATCH ((uint64_t)4 << 20)  /* bytes after which a batch is long enough */
#define BT_FAR_ARENA 32768                /* heads and meta data of one batch */
#define BT_FAR_ROOM 131072                /* bytes read at once, beyond the contents that go where they belong */
#define BT_FAR_TAIL 4096                  /* the same behind long contents: the next head, and little to copy */
#define BT_FAR_LONG 16384

/* In `flags` of the entries of a ring that stands in for the peer's. */
enum bt_far_flag { BT_LANDED = 1, BT_DRAINED = 2 };

/* A stream of bytes. `read` and `write`: how many; 0 at the end; -EAGAIN: none now; or -errno. */
typedef struct bt_stream {
    ssize_t (*read)(void *self, struct iovec *parts, int count);
    ssize_t (*write)(void *self, struct iovec *parts, int count);
    ssize_t (*skip)(void *self, uint64_t size); /* read and forget */
    int (*push)(void *self);                    /* send what it keeps; 0: it keeps nothing, or -errno. NULL: never */
    void (*finish)(void *self);                 /* nothing more will be written */
    void (*close)(void *self);
} bt_stream;

/* A pool as the pumps see it. */
typedef struct bt_landing {
    struct bt_landing *next; /* among those that left the channel while something was being sent */
    uint8_t *base;
    uint64_t size; /* of a buffer */
    uint32_t count;
    uint32_t channel;
    uint32_t peer;       /* as in bt_assignment */
    uint8_t judged_home; /* arrivals land only where the buffer left to this peer */
    bt_slot *slots;      /* the ledger's; NULL once the channel ended here */
    uint64_t *taken;     /* the pool's bits: a buffer into which contents land, until they are judged */
    bt_hold *hold;
    int lease; /* closed when nothing of the pool can leave any more; -1: none */
} bt_landing;

typedef struct bt_far_message {
    struct bt_far_message *next;
    uint32_t size;
    uint8_t data[];
} bt_far_message;

typedef struct bt_far_queue {
    bt_far_message *first, *last;
} bt_far_queue;

/* What is on its way out. */
typedef struct bt_far_send {
    bt_rx out; /* the own ring, from the pump's side: `head` is the next entry to be framed */
    uint8_t arena[BT_FAR_ARENA];
    struct iovec parts[2 * BT_FAR_FRAMES];
    struct {
        uint64_t end; /* of the frame, in bytes of the batch */
        bt_far_message *message;
    } frames[BT_FAR_FRAMES];
    uint32_t part, part_count, frame, frame_count;
    uint64_t done; /* bytes of the batch that have left */
    _Atomic uint64_t settled; /* entries that have left whole */
    _Atomic uint64_t noted; /* the consumed index that the peer was told */
    uint32_t asked;    /* value of the own space counter for which the peer was asked */
    uint64_t asked_at; /* one more than what the peer had taken then: until that moves, the question stands */
    bt_far_queue messages;
} bt_far_send;

/* What is on its way in. */
typedef struct bt_far_take {
    bt_tx in; /* the ring that stands in for the peer's, from the pump's side */
    uint8_t *room;
    uint32_t first, end; /* of what is in `room` */
    bt_frame frame;
    int inside;     /* a frame has begun: its head and meta data are there, `left` bytes are to come */
    uint64_t left;
    uint8_t *to;    /* where they go; NULL: they are skipped */
    uint16_t flags; /* BT_LANDED or BT_DRAINED */
    bt_landing *landing;
    bt_far_message *message;
    uint8_t meta[BT_META_MAX];
    bt_far_queue inbox; /* under inbox_lock */
    const char *violation;
} bt_far_take;

typedef struct bt_far {
    const bt_stream *stream;
    void *self; /* of the stream */
    struct bt_helper *helper;
    int fd;
    int poll_fd;   /* an epoll descriptor: readable while there is something to be read, or the helper read it */
    int signal_fd; /* the helper read something */
    pthread_mutex_t send_lock, take_lock, inbox_lock;
    _Atomic uint32_t again;   /* somebody found send_lock taken, and left the sending to whoever has it */
    _Atomic uint32_t blocked; /* the stream takes nothing now: the helper goes on when it does */
    _Atomic uint32_t over;    /* nothing comes any more: -errno, or 1 at the end of the stream */
    _Atomic uint32_t lost;    /* nothing goes out any more */
    _Atomic uint32_t due;     /* the peer should hear the consumed index now */
    _Atomic uint32_t signaled; /* signal_fd is readable */
    _Atomic uint32_t touched; /* a user was here since the helper looked */
    _Atomic uint32_t attended; /* threads that wait for it */
    _Atomic uint32_t left;    /* the channel is gone: what was accepted still goes out, what comes is forgotten */
    _Atomic uint64_t sent_bytes, taken_bytes, sent_calls, taken_calls; /* for statistics */
    uint32_t meta_limit;
    uint32_t finished;        /* the helper said so to the stream */
    uint64_t consumed;        /* the own index at the helper's last tick */
    uint64_t deadline_ns;     /* after which a peer that does not hang up is left */
    bt_landing **landings, *parted;
    uint32_t landing_count;
    bt_far_send send;
    bt_far_take take;
} bt_far;

static inline void bt_far_put(bt_far_queue *q, bt_far_message *m) {
    m->next = NULL;
    if (q->last) q->last->next = m;
    else q->first = m;
    q->last = m;
}

static inline bt_far_message *bt_far_get(bt_far_queue *q) {
    bt_far_message *m = q->first;
    if (m && !(q->first = m->next)) q->last = NULL;
    return m;
}

static inline bt_far_message *bt_far_message_new(const void *data, size_t size) {
    bt_far_message *m = malloc(sizeof *m + size);
    if (m) {
        m->size = (uint32_t)size;
        if (data) memcpy(m->data, data, size);
    }
    return m;
}

static inline bt_landing *bt_far_landing(const bt_far *far, uint32_t slot) {
    return slot < far->landing_count ? far->landings[slot] : NULL;
}

/* Bits that two threads use. relaxed where nothing else hangs on them. */
static inline int bt_bit_claim(uint64_t *bits, uint32_t i) {
    /* acquire, with the release in bt_bit_let_go: whoever had it has finished with the memory */
    uint64_t bit = UINT64_C(1) << (i & 63);
    return !(__atomic_fetch_or(&bits[i >> 6], bit, __ATOMIC_ACQ_REL) & bit);
}

static inline void bt_bit_let_go(uint64_t *bits, uint32_t i) {
    __atomic_fetch_and(&bits[i >> 6], ~(UINT64_C(1) << (i & 63)), __ATOMIC_RELEASE); /* with bt_bit_claim */
}

static inline int bt_bit_is_claimed(const uint64_t *bits, uint32_t i) {
    return (int)(__atomic_load_n(&bits[i >> 6], __ATOMIC_ACQUIRE) >> (i & 63)) & 1;
}

static inline void bt_landing_free(bt_registry *r, bt_landing *l) {
    if (!l) return;
    if (l->lease >= 0) bt_registry_close(r, l->lease);
    bt_hold_drop(l->hold);
    free(l);
}

/* Let the peer's words be known here: how far it has taken what was sent. 0, or what is wrong with them. */
static inline const char *bt_far_words(bt_far *far, const bt_frame *f) {
    bt_outbox *there = far->take.in.own;
    uint64_t before = atomic_load_explicit(&there->consumed, memory_order_relaxed); /* this pump alone writes it */
    uint64_t refused = atomic_load_explicit(&there->refused, memory_order_relaxed);
    uint64_t settled = atomic_load_explicit(&far->send.settled, memory_order_acquire); /* with bt_far_settle */
    if (f->consumed - before > settled - before) {
        pthread_mutex_lock(&far->send_lock); /* whoever sends may not have noted yet what has left */
        settled = atomic_load_explicit(&far->send.settled, memory_order_relaxed);
        pthread_mutex_unlock(&far->send_lock);
        if (f->consumed - before > settled - before) return "its consumed index went back, or beyond what was sent";
    }
    if (f->refused < refused || f->refused > f->consumed) return "its count of refusals cannot be";
    /* release, with bt_link_refusals: known before the index is */
    if (f->refused != refused) atomic_store_explicit(&there->refused, f->refused, memory_order_release);
    /* seq_cst: as in bt_rx_publish */
    if (f->consumed != before) atomic_store_explicit(&there->consumed, f->consumed, memory_order_seq_cst);
    if (f->flags & BT_FRAME_ASK) {
        bt_sleep_begin(&there->sleep_space); /* S1 of doorbell.h, in the peer's name; P1 and P2 are bt_link_consumed */
        atomic_store_explicit(&far->due, 1, memory_order_seq_cst); /* S2: whoever sends looks at the index after this */
    }
    return NULL;
}

#endif
