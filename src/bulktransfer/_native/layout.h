/* The layout of memory that two domains share: outboxes and ring entries.
 *
 * Knows: every byte that a peer can see. Must not know: who may do what (ledger.h) or Python.
 * An outbox is written by one side only, which maps it and then seals it with F_SEAL_FUTURE_WRITE; the
 * peer maps it read-only. So no word here has two writers, at any trust level.
 */
#ifndef BT_LAYOUT_H
#define BT_LAYOUT_H

#include <assert.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define BT_LINE 64
#define BT_PAGE 4096
#define BT_MAGIC UINT32_C(0x4254524e) /* "BTRN" */
#define BT_LAYOUT_VERSION 3
#define BT_META_MAX 2048
#define BT_META_INLINE 32
#define BT_SLOTS_MIN 2
#define BT_SLOTS_MAX 65536

/* What a ring entry says. */
enum bt_kind {
    BT_MOVE = 1,    /* ownership goes to the sink */
    BT_PASS = 2,    /* ownership goes to the source, contents undefined */
    BT_COPY = 3,    /* the sink may read until it releases */
    BT_RELEASE = 4, /* the sink lets a copy go */
    BT_REFUSE = 5,  /* the entry at position `serial` of the other ring was refused; `length` is the wire code */
    BT_CONTROL = 6, /* here, in order, belongs control message number `serial` of the channel's socket */
    BT_KIND_END = 7
};

/* `flags` of a move or copy: its contents come as a sealed frame, which was sent before the entry was published as message
 * number `serial` of its kind; else they are at position `serial` of the stream in the staging area. */
enum { BT_FRAMED = 1 };

typedef struct bt_entry {
    uint16_t kind;
    uint16_t flags;     /* BT_FRAMED, or 0 */
    uint32_t slot;      /* the number under which the pool is assigned to the channel */
    uint32_t index;     /* of the buffer in its pool */
    uint32_t meta_size; /* up to BT_META_INLINE bytes are in `meta`, more are in the meta area of the ring slot */
    uint64_t length;    /* valid bytes of the buffer */
    uint64_t serial;
    uint8_t meta[BT_META_INLINE];
} bt_entry;

static_assert(sizeof(bt_entry) == BT_LINE, "one entry, one cache line");
static_assert(offsetof(bt_entry, slot) == 4, "layout");
static_assert(offsetof(bt_entry, index) == 8, "layout");
static_assert(offsetof(bt_entry, meta_size) == 12, "layout");
static_assert(offsetof(bt_entry, length) == 16, "layout");
static_assert(offsetof(bt_entry, serial) == 24, "layout");
static_assert(offsetof(bt_entry, meta) == 32, "layout");

/* The first page of an outbox. Each word that changes has a cache line of its own. */
typedef struct bt_outbox {
    uint32_t magic;
    uint32_t version;
    uint32_t slot_count; /* of the ring, a power of two */
    uint32_t meta_size;
    uint64_t stage_size; /* of the staging area behind the rest; 0 where memory is shared */
    _Alignas(BT_LINE) _Atomic uint64_t tail;     /* entries that the owner has published in its ring */
    _Alignas(BT_LINE) _Atomic uint64_t consumed; /* entries of the peer's ring that the owner has taken */
    _Atomic uint64_t refused; /* how many of them it refused; the refusals themselves may wait for room in its ring */
    _Alignas(BT_LINE) _Atomic uint32_t sleep_data;  /* odd: the owner sleeps until the peer publishes */
    _Alignas(BT_LINE) _Atomic uint32_t sleep_space; /* odd: the owner sleeps until the peer consumes */
    _Alignas(BT_LINE) _Atomic uint64_t filled;  /* by value: bytes that the owner has put into its staging area */
    _Alignas(BT_LINE) _Atomic uint64_t emptied; /* by value: bytes of the peer's staging area that the owner has taken */
    _Alignas(BT_LINE) _Atomic uint64_t granted; /* sealed: frames that the peer may have sent in all */
} bt_outbox;

static_assert(offsetof(bt_outbox, tail) == 64, "layout");
static_assert(offsetof(bt_outbox, consumed) == 128, "layout");
static_assert(offsetof(bt_outbox, refused) == 136, "layout");
static_assert(offsetof(bt_outbox, sleep_data) == 192, "layout");
static_assert(offsetof(bt_outbox, sleep_space) == 256, "layout");
static_assert(offsetof(bt_outbox, filled) == 320, "layout");
static_assert(offsetof(bt_outbox, emptied) == 384, "layout");
static_assert(offsetof(bt_outbox, granted) == 448, "layout");
static_assert(sizeof(bt_outbox) <= BT_PAGE, "the header is one page");
static_assert(sizeof(_Atomic uint64_t) == 8 && sizeof(_Atomic uint32_t) == 4, "lock-free words");

static inline uint64_t bt_round_up(uint64_t value, uint64_t unit) { return (value + unit - 1) / unit * unit; }

/* Bytes between the meta areas of two ring slots; 0 where meta data always fits into the entry. */
static inline uint64_t bt_meta_stride(uint32_t meta_size) {
    return meta_size > BT_META_INLINE ? bt_round_up(meta_size, BT_LINE) : 0;
}

/* Whether these numbers may describe an outbox at all. */
static inline int bt_outbox_sane(uint32_t slot_count, uint32_t meta_size) {
    return slot_count >= BT_SLOTS_MIN && slot_count <= BT_SLOTS_MAX && (slot_count & (slot_count - 1)) == 0 &&
           meta_size <= BT_META_MAX;
}

/* Bytes of a whole outbox: the header page, the ring, the meta area. */
static inline uint64_t bt_outbox_size(uint32_t slot_count, uint32_t meta_size) {
    uint64_t ring = bt_round_up((uint64_t)slot_count * sizeof(bt_entry), BT_PAGE);
    return BT_PAGE + ring + bt_round_up(slot_count * bt_meta_stride(meta_size), BT_PAGE);
}

static inline bt_entry *bt_outbox_ring(bt_outbox *box) { return (bt_entry *)((uint8_t *)box + BT_PAGE); }

static inline uint8_t *bt_outbox_meta(bt_outbox *box, uint32_t slot_count) {
    return (uint8_t *)box + BT_PAGE + bt_round_up((uint64_t)slot_count * sizeof(bt_entry), BT_PAGE);
}

#define BT_STAGE_MIN ((uint64_t)64 << 10)
#define BT_STAGE_MAX ((uint64_t)64 << 20)

/* Whether a staging area may be of this size; 0: there is none. */
static inline int bt_stage_sane(uint64_t size) {
    return size == 0 || (size >= BT_STAGE_MIN && size <= BT_STAGE_MAX && (size & (size - 1)) == 0);
}

/* The staging area, if there is one: behind everything else. */
static inline uint8_t *bt_outbox_stage(bt_outbox *box, uint32_t slot_count, uint32_t meta_size) {
    return (uint8_t *)box + bt_outbox_size(slot_count, meta_size);
}

#endif
