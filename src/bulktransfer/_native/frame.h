/* The frames that two machines exchange: a head of 48 bytes in network order, then meta data, then contents.
 *
 * Knows: where each field of a head lies, and what no head may say. Must not know: sockets, rings, pools, or Python.
 * `wire/frames.py` is the reference, docs/protocol.md the text; a test holds the three against each other.
 */
#ifndef BT_FRAME_H
#define BT_FRAME_H

#include <endian.h>
#include <string.h>

#include "layout.h"

#define BT_FRAME_SIZE 48
#define BT_FRAME_ASK 1u      /* flag: say your consumed index as soon as it moves */
#define BT_FRAME_SLOTS 8192u /* numbers of pools lie below this */
#define BT_FRAME_MESSAGE_MIN 4u
#define BT_FRAME_MESSAGE_MAX 2048u

enum bt_frame_kind { /* 1 to 6 are those of ring entries (layout.h) */
    BT_NOTE = 7,     /* no entry: it only carries the words that every head carries */
    BT_FRAME_KIND_END = 8
};

typedef struct bt_frame {
    uint8_t kind;
    uint8_t flags;
    uint16_t meta_size;
    uint32_t slot;
    uint32_t index;
    uint32_t extra;    /* of a refusal: the wire code << 16 | the kind of what is refused; else 0 */
    uint64_t length;   /* bytes that follow the meta data */
    uint64_t serial;   /* of a refusal: the position refused; of a control message: its number; else 0 */
    uint64_t consumed; /* entries of the receiver of this frame that its sender has taken */
    uint64_t refused;  /* how many of them it refused */
} bt_frame;

/* The same as it lies on the wire. */
static_assert(sizeof(bt_frame) == BT_FRAME_SIZE, "no padding: each field lies where the wire has it");
static_assert(offsetof(bt_frame, meta_size) == 2, "layout");
static_assert(offsetof(bt_frame, slot) == 4, "layout");
static_assert(offsetof(bt_frame, index) == 8, "layout");
static_assert(offsetof(bt_frame, extra) == 12, "layout");
static_assert(offsetof(bt_frame, length) == 16, "layout");
static_assert(offsetof(bt_frame, serial) == 24, "layout");
static_assert(offsetof(bt_frame, consumed) == 32, "layout");
static_assert(offsetof(bt_frame, refused) == 40, "layout");

static inline void bt_frame_pack(uint8_t *to, const bt_frame *f) {
    bt_frame wire = {f->kind,           f->flags,           htobe16(f->meta_size), htobe32(f->slot),
                     htobe32(f->index), htobe32(f->extra),  htobe64(f->length),    htobe64(f->serial),
                     htobe64(f->consumed), htobe64(f->refused)};
    memcpy(to, &wire, sizeof wire);
}

static inline void bt_frame_unpack(bt_frame *f, const uint8_t *from) {
    bt_frame wire;
    memcpy(&wire, from, sizeof wire);
    *f = (bt_frame){wire.kind,           wire.flags,           be16toh(wire.meta_size), be32toh(wire.slot),
                    be32toh(wire.index), be32toh(wire.extra),  be64toh(wire.length),    be64toh(wire.serial),
                    be64toh(wire.consumed), be64toh(wire.refused)};
}

static inline int bt_frame_has_contents(const bt_frame *f) { return f->kind == BT_MOVE || f->kind == BT_COPY; }

/* What no head may say, whatever the channel; NULL if it may. */
static inline const char *bt_frame_fault(const bt_frame *f) {
    int transfer = f->kind >= BT_MOVE && f->kind <= BT_RELEASE;
    if (f->kind < BT_MOVE || f->kind >= BT_FRAME_KIND_END) return "a frame of an unknown kind";
    if (f->flags & ~BT_FRAME_ASK) return "a frame with unknown flags";
    if (f->meta_size > (transfer ? BT_META_MAX : 0)) return "a frame with more meta data than its kind may have";
    if (f->slot >= BT_FRAME_SLOTS) return "a frame with a number of a pool that cannot be";
    if (!transfer && f->kind != BT_REFUSE && (f->slot || f->index)) return "a frame that names a buffer without need";
    if (f->kind != BT_REFUSE && f->extra) return "a frame that refuses without being a refusal";
    if (f->kind != BT_REFUSE && f->kind != BT_CONTROL && f->serial) return "a frame with a serial number without need";
    if (f->kind == BT_CONTROL) {
        if (f->length < BT_FRAME_MESSAGE_MIN || f->length > BT_FRAME_MESSAGE_MAX)
            return "a control message of a length that cannot be";
    } else if (f->length && !bt_frame_has_contents(f)) return "a frame with contents that its kind has not";
    return NULL;
}

#endif
