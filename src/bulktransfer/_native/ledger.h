/* Who may do what with a buffer: the state of every buffer in this domain, and the rules of design section 4.
 *
 * Knows: states, counts, which copies are out over which channel. Must not know: rings, sockets, memory, Python.
 * The transitions come from states.py, compiled into bt_table at import. Check first, then change: every function
 * either changes everything it is for and returns BT_OK, or changes nothing and says why.
 */
#ifndef BT_LEDGER_H
#define BT_LEDGER_H

#include <stdint.h>
#include <string.h>

#include "layout.h"

enum bt_state { BT_INVALID = 0, BT_READ_ONLY = 1, BT_READ_ONLY_OWNED = 2, BT_READ_WRITE = 3, BT_STATES = 4 };

enum bt_act { /* as states.BufferAct */
    BT_A_MOVE = 0,
    BT_A_PASS,
    BT_A_COPY,
    BT_A_RELEASE,
    BT_A_FULL_COPY,
    BT_A_MOVE_RECEIVED,
    BT_A_BUFFER_RECEIVED,
    BT_A_COPY_RECEIVED,
    BT_A_COPY_RELEASED,
    BT_A_MOVE_REFUSED,
    BT_A_COPY_REFUSED,
    BT_A_RECLAIMED,
    BT_A_DROP,
    BT_ACTS
};

enum bt_flag {
    BT_FREE = 1,      /* on its allocator's free list */
    BT_GIVE_BACK = 2, /* goes back when its last view dies */
    BT_QUEUED = 4     /* arrived on a channel within this domain, not yet received */
};

/* What a buffer has for memory; more than BT_OWN only where frames travel (sealed.h). */
enum bt_holds {
    BT_OWN = 0, /* its part of the pool's memory */
    BT_BARE,    /* none: it is made when it is needed */
    BT_PLAIN,   /* pages of this domain alone */
    BT_FRESH,   /* a frame that no other domain has seen, mapped for writing */
    BT_SEALED   /* a sealed frame, mapped private; the mapping follows the ledger */
};

enum bt_verdict {
    BT_OK = 0,
    BT_NOT_ALLOCATED,
    BT_NOT_PRESENT,      /* state INVALID */
    BT_NOT_OWNED,
    BT_COPIES_OUT,       /* owned or held, with copies outstanding */
    BT_NOT_A_COPY,       /* nothing held over this channel */
    BT_ALREADY_COPIED,   /* a copy is outstanding on this channel */
    BT_VIEWS_LIVE,
    BT_SAME_DOMAIN,      /* a copy within one domain */
    BT_GOING_BACK,       /* give_back(when_unused) is pending */
    BT_STILL_CONNECTED,  /* drop before the channel ended */
    BT_REFUSED,          /* an arrival that contradicts what another channel said */
    BT_VIOLATION         /* an arrival that contradicts its own channel */
};

/* 16-bit counts: a domain has fewer channels than that (Limits). */
typedef struct bt_slot {
    uint8_t state;
    uint8_t flags;
    uint16_t out;      /* copies that this domain has sent and not got back */
    uint16_t in;       /* copies that it holds */
    uint8_t spare;     /* marks a buffer while a batch is checked; else 0 */
    uint8_t guard;     /* what the mapping allows: enum bt_guard (guard.h) */
    uint32_t views;    /* live exports */
    uint32_t writers;  /* those of them made while READ_WRITE */
    uint32_t via;      /* channel over which it last came to be owned here; 0: none */
    uint32_t left;     /* channel over which it last left and has not come back by any; 0: none */
    uint32_t left_to;  /* the peer that it last left to: bt_assignment.peer */
    uint8_t holds;     /* enum bt_holds */
    uint8_t touched;   /* somebody could have written to the frame that it holds */
    uint8_t raw;       /* its address was told once, by a view or as a number: whoever kept it may write, unseen */
    uint64_t sent_at;  /* position of the entry with which it last left */
    uint64_t length;
} bt_slot;

typedef struct bt_pool {
    bt_slot *slots;
    uint32_t count;
    uint64_t size;   /* of a buffer */
    uint8_t shared;  /* both sides see the same memory */
    uint8_t home;    /* allocated in this domain */
    uint8_t guarded; /* the mapping follows the ledger (trust HALF) */
    uint8_t apart;   /* not FULL: transfers take the longer way */
    uint8_t solid;   /* its memory stays where it is: no frames */
    uint8_t *base;   /* of the mapping; NULL until there is one */
    struct bt_twin *twin; /* where memory is not shared: who moves bytes of it (twin.h) */
    struct bt_frames *frames; /* what its buffers hold in place of its own memory (sealed.h); NULL: nothing */
    uint64_t *taken; /* a bit a buffer: contents from another machine land in it (far.h); NULL: none ever did */
    uint64_t *fresh; /* there: bytes from the start of a buffer that came with what it holds now, as in bt_cell */
} bt_pool;

enum bt_standing { BT_ABSENT = 0, BT_PENDING = 1, BT_ACTIVE = 2, BT_REMOVING = 3 };

/* One pool on one channel, as this side sees it. */
typedef struct bt_assignment {
    bt_pool *pool;
    uint64_t *out_copies; /* a bit a buffer: a copy of it is out over this channel */
    uint64_t *in_copies;  /* a copy of it came over this channel and is held */
    uint64_t last_position; /* one more than the position of the last entry sent about this pool */
    uint32_t channel;
    uint32_t slot;        /* the pool's number on the channel */
    uint32_t peer;        /* who is behind it: one number for all channels of the pool to one peer */
    uint32_t copy_count;  /* bits set in out_copies */
    uint32_t held_count;  /* bits set in in_copies */
    uint8_t standing;
    uint8_t mine;         /* this side assigned it */
    uint8_t same_domain;
    const uint8_t *window; /* the peer's memory of an exposed pool, mapped read-only */
    uint8_t far;          /* the other side of this channel is another machine, whatever the pool's others see */
} bt_assignment;

typedef struct bt_row {
    uint8_t next; /* 0xff: no such transition */
    int8_t out, in;
} bt_row;

/* [state][act][out: 0, 1, more][in: 0, 1, more] */
typedef struct bt_table {
    bt_row rows[BT_STATES][BT_ACTS][3][3];
    uint8_t plain[BT_ACTS][BT_STATES]; /* the next state where there are no copies before and after; else 0xff */
} bt_table;

static inline int bt_bit(const uint64_t *bits, uint32_t i) { return (int)(bits[i >> 6] >> (i & 63)) & 1; }
static inline void bt_bit_set(uint64_t *bits, uint32_t i) { bits[i >> 6] |= UINT64_C(1) << (i & 63); }
static inline void bt_bit_clear(uint64_t *bits, uint32_t i) { bits[i >> 6] &= ~(UINT64_C(1) << (i & 63)); }
static inline size_t bt_bit_words(uint32_t count) { return ((size_t)count + 63) / 64; }

/* Whether bytes that arrive may be copied to where the buffer is. */
static inline int bt_may_land(const bt_slot *s) {
    uint8_t holds = __atomic_load_n(&s->holds, __ATOMIC_ACQUIRE); /* with the claim: see bt_arrivals_foresee */
    return holds != BT_BARE && holds != BT_SEALED;
}

static inline const bt_row *bt_lookup(const bt_table *t, const bt_slot *s, enum bt_act act) {
    return &t->rows[s->state][act][s->out > 2 ? 2 : s->out][s->in > 2 ? 2 : s->in];
}

static inline void bt_step(bt_slot *s, const bt_row *row) {
    s->state = row->next;
    s->out = (uint16_t)(s->out + row->out);
    s->in = (uint16_t)(s->in + row->in);
}

/* ---- calls made here ---- */

static inline enum bt_verdict bt_why_not(const bt_slot *s, enum bt_act act) {
    if (act == BT_A_RELEASE) {
        if (s->state != BT_READ_ONLY) return BT_NOT_A_COPY;
        return BT_COPIES_OUT;
    }
    if (s->state == BT_INVALID) return BT_NOT_PRESENT;
    if (s->state == BT_READ_ONLY) return BT_NOT_OWNED;
    return BT_COPIES_OUT;
}

/* Whether this domain may send `index` in this way over this channel now. */
static inline enum bt_verdict bt_may_send(const bt_table *t, const bt_assignment *a, uint32_t index, enum bt_act act) {
    const bt_slot *s = &a->pool->slots[index];
    if (__builtin_expect(s->flags != 0, 0)) {
        if (s->flags & BT_FREE) return BT_NOT_ALLOCATED;
        if (s->flags & BT_GIVE_BACK) return BT_GOING_BACK;
    }
    const bt_row *row = bt_lookup(t, s, act);
    if (act == BT_A_COPY) {
        if (row->next == 0xff) return bt_why_not(s, act);
        if (a->same_domain) return BT_SAME_DOMAIN;
        if (bt_bit(a->out_copies, index)) return BT_ALREADY_COPIED;
        return s->writers ? BT_VIEWS_LIVE : BT_OK;
    }
    if (act == BT_A_RELEASE && !bt_bit(a->in_copies, index)) return BT_NOT_A_COPY;
    if (row->next == 0xff) return bt_why_not(s, act);
    return row->next == BT_INVALID && s->views ? BT_VIEWS_LIVE : BT_OK;
}

/* Do what bt_may_send allowed; the entry goes out at `position`. */
static inline void bt_sent(const bt_table *t, bt_assignment *a, uint32_t index, enum bt_act act, uint64_t position) {
    bt_slot *s = &a->pool->slots[index];
    bt_step(s, bt_lookup(t, s, act));
    a->last_position = position + 1;
    if (act == BT_A_COPY) {
        bt_bit_set(a->out_copies, index);
        a->copy_count++;
    } else if (act == BT_A_RELEASE) {
        bt_bit_clear(a->in_copies, index);
        a->held_count--;
    } else {
        s->left = a->channel;
        s->left_to = a->peer;
        s->sent_at = position;
    }
}

/* ---- arrivals: judged by the channel's own history (design section 8, rule 5) ---- */

/* Whether the peer of this channel is the one that a buffer last left to, over this channel or another one. */
static inline int bt_is_with(const bt_slot *s, const bt_assignment *a) {
    return s->left == a->channel || (s->left && s->left_to == a->peer);
}

/* What bt_arrived_owner would say. */
static inline enum bt_verdict bt_judge_owner(const bt_table *t, const bt_assignment *a, uint32_t index, enum bt_act act) {
    const bt_slot *s = &a->pool->slots[index];
    if (__builtin_expect(bt_lookup(t, s, act)->next == 0xff, 0)) {
        /* It is here already. Where memory is not shared, twins part when a channel ends: an honest peer may have
         * one of what was taken back here since. Where it is, nobody else can have what never left, or what came
         * over this very channel. */
        if (!a->pool->shared || a->far) return BT_REFUSED;
        if (s->state == BT_READ_ONLY) return bt_bit(a->in_copies, index) ? BT_VIOLATION : BT_REFUSED;
        return s->via == 0 || s->via == a->channel ? BT_VIOLATION : BT_REFUSED;
    }
    /* Where memory is not shared a pool's allocator takes a buffer back from the peer that has it only. */
    if ((!a->pool->shared || a->far) && a->pool->home && a->mine && !bt_is_with(s, a) && !a->same_domain)
        return BT_REFUSED;
    return BT_OK;
}

static inline enum bt_verdict bt_arrived_owner(const bt_table *t, bt_assignment *a, uint32_t index, uint64_t length,
                                               enum bt_act act) {
    bt_slot *s = &a->pool->slots[index];
    enum bt_verdict verdict = bt_judge_owner(t, a, index, act);
    if (verdict != BT_OK) return verdict;
    bt_step(s, bt_lookup(t, s, act));
    s->via = a->channel;
    s->left = 0;
    s->length = length;
    return BT_OK;
}

/* What bt_arrived_copy would say. */
static inline enum bt_verdict bt_judge_copy(const bt_table *t, const bt_assignment *a, uint32_t index) {
    const bt_slot *s = &a->pool->slots[index];
    if (bt_bit(a->in_copies, index)) return BT_VIOLATION; /* twice over one channel */
    if (bt_lookup(t, s, BT_A_COPY_RECEIVED)->next == 0xff) return BT_REFUSED;
    if (s->state == BT_READ_ONLY && (!a->pool->shared || a->far)) return BT_REFUSED;
    return BT_OK;
}

static inline enum bt_verdict bt_arrived_copy(const bt_table *t, bt_assignment *a, uint32_t index, uint64_t length) {
    bt_slot *s = &a->pool->slots[index];
    enum bt_verdict verdict = bt_judge_copy(t, a, index);
    if (verdict != BT_OK) return verdict;
    if (s->state == BT_INVALID) s->length = length;
    bt_step(s, bt_lookup(t, s, BT_A_COPY_RECEIVED));
    bt_bit_set(a->in_copies, index);
    a->held_count++;
    return BT_OK;
}

/* A copy that went out over this channel is back (`act` BT_A_COPY_RELEASED) or was refused. */
static inline enum bt_verdict bt_copy_back(const bt_table *t, bt_assignment *a, uint32_t index, enum bt_act act) {
    bt_slot *s = &a->pool->slots[index];
    const bt_row *row = bt_lookup(t, s, act);
    if (!bt_bit(a->out_copies, index) || row->next == 0xff) return BT_VIOLATION;
    bt_step(s, row);
    bt_bit_clear(a->out_copies, index);
    a->copy_count--;
    return BT_OK;
}

/* It is here again though nobody sent it: it stays the guest of the channel that it came over. Where it came over
 * none, `via` must not stay 0, which says that it never left: whoever claims it may have been told so by another. */
static inline void bt_home_again(bt_slot *s, const bt_assignment *a) {
    s->left = 0;
    if (s->via == 0) s->via = a->channel;
}

/* The peer refused the move or pass at `position`. BT_REFUSED: memory is not shared and a twin came since by another
 * way; the one that was refused is forgotten. */
static inline enum bt_verdict bt_owner_back(const bt_table *t, bt_assignment *a, uint32_t index, uint64_t position) {
    bt_slot *s = &a->pool->slots[index];
    const bt_row *row = bt_lookup(t, s, BT_A_MOVE_REFUSED);
    if (row->next == 0xff || s->left != a->channel || s->sent_at != position)
        return a->pool->shared && !a->far ? BT_VIOLATION : BT_REFUSED;
    bt_step(s, row);
    bt_home_again(s, a);
    return BT_OK;
}

/* ---- ends ---- */

/* A buffer that left over this channel as a whole and has not come back so: a copy that is here does not count. */
static inline int bt_is_given(const bt_assignment *a, uint32_t index) {
    const bt_slot *s = &a->pool->slots[index];
    return s->state < BT_READ_ONLY_OWNED && s->left == a->channel && !(s->flags & BT_QUEUED);
}

/* The same, and nothing of it is here: what a lease gives back (rule 16). */
static inline int bt_is_away(const bt_assignment *a, uint32_t index) {
    return bt_is_given(a, index) && a->pool->slots[index].state == BT_INVALID;
}

/* Whether this side takes back what went over the channel when it ends (rule 16): it assigned the pool there, or
 * allocated it, so that nobody else would. */
static inline int bt_reclaims(const bt_assignment *a) { return a->mine || a->pool->home; }

/* A buffer that came over this channel and is owned or held here, and is not at home here. */
static inline int bt_is_guest(const bt_assignment *a, uint32_t index) {
    const bt_slot *s = &a->pool->slots[index];
    return bt_bit(a->in_copies, index) || (s->state >= BT_READ_ONLY_OWNED && s->via == a->channel && !bt_reclaims(a));
}

/* Whether the pool may leave the channel as far as this side knows; `consumed` is the peer's index. */
static inline int bt_may_remove(const bt_assignment *a, uint64_t consumed) {
    if (a->copy_count || a->held_count || (int64_t)(a->last_position - consumed) > 0) return 0;
    for (uint32_t i = 0; i < a->pool->count; i++)
        if ((bt_reclaims(a) && bt_is_given(a, i)) || bt_is_guest(a, i)) return 0;
    return 1;
}

/* Whether something of it is still to come back to whoever reclaims over this channel. */
static inline int bt_is_outstanding(const bt_assignment *a, uint32_t index) {
    return bt_bit(a->out_copies, index) || bt_is_given(a, index);
}

/* Let go of a buffer whose channels ended, copies that went over them included: whoever has those holds the leases of
 * all above. It is not away any more, unless it was before. */
static inline void bt_drop(const bt_table *t, bt_slot *s) {
    if (s->state != BT_INVALID) s->left = 0;
    bt_step(s, bt_lookup(t, s, BT_A_DROP));
    s->out = s->in = 0;
}

/* The lease of an ended assignment hung up: everybody behind it let go of `index`. Returns 1 if that changed it.
 * `living`: how many copies are held over channels that live. A copy of what is given away waits for those, and for
 * copies of it that were lent on; whoever lent it here over an ended channel is gone with the rest. */
static inline int bt_reclaim(const bt_table *t, bt_assignment *a, uint32_t index, uint32_t living) {
    bt_slot *s = &a->pool->slots[index];
    int changed = 0, readable = 0;
    if (bt_bit(a->out_copies, index)) changed = bt_copy_back(t, a, index, BT_A_COPY_RELEASED) == BT_OK;
    if (s->state == BT_READ_ONLY && bt_is_given(a, index) && !s->out && !living) {
        if (bt_bit(a->in_copies, index)) bt_bit_clear(a->in_copies, index), a->held_count--;
        s->in = 0;
        s->state = BT_INVALID;
        readable = 1;
    }
    if (bt_is_away(a, index)) {
        bt_step(s, bt_lookup(t, s, BT_A_RECLAIMED));
        bt_home_again(s, a);
        if (!readable) s->length = a->pool->size; /* what could be read here is unchanged (rule 16) */
        changed = 1;
    }
    return changed;
}

#endif
