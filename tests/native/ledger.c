/* ledger.h: every verdict in every state that two channels can bring a buffer to, against the rules of the design
 * written down a second time; then whole systems of honest domains, in which nobody may be called a liar.
 *
 * table.h is made by table.py from states.py.
 */
#include "check.h"
#include "ledger.h"

#include "table.h"

#define SIZE 4096

/* ---- the table, against the table of design section 3 ---- */

typedef struct wanted_row {
    int next, out, in; /* next -1: an error */
} wanted_row;

static wanted_row wanted(int state, int act, int out, int in) {
    static const wanted_row none = {-1, 0, 0};
    switch (act) {
    case BT_A_MOVE:
    case BT_A_PASS: return state == BT_READ_WRITE ? (wanted_row){BT_INVALID, 0, 0} : none;
    case BT_A_MOVE_RECEIVED:
    case BT_A_BUFFER_RECEIVED:
    case BT_A_MOVE_REFUSED:
    case BT_A_RECLAIMED: return state == BT_INVALID ? (wanted_row){BT_READ_WRITE, 0, 0} : none;
    case BT_A_COPY:
        if (state == BT_INVALID) return none;
        return (wanted_row){state == BT_READ_ONLY ? BT_READ_ONLY : BT_READ_ONLY_OWNED, 1, 0};
    case BT_A_COPY_RELEASED:
    case BT_A_COPY_REFUSED:
        if (out == 0 || state == BT_INVALID || state == BT_READ_WRITE) return none;
        if (state == BT_READ_ONLY) return (wanted_row){BT_READ_ONLY, -1, 0};
        return (wanted_row){out > 1 ? BT_READ_ONLY_OWNED : BT_READ_WRITE, -1, 0};
    case BT_A_COPY_RECEIVED:
        if (state == BT_INVALID) return (wanted_row){BT_READ_ONLY, 0, 1};
        return state == BT_READ_ONLY && out == 0 ? (wanted_row){BT_READ_ONLY, 0, 1} : none;
    case BT_A_RELEASE:
        if (state != BT_READ_ONLY || out || !in) return none;
        return (wanted_row){in > 1 ? BT_READ_ONLY : BT_INVALID, 0, -1};
    case BT_A_FULL_COPY: return state == BT_INVALID ? none : (wanted_row){state, 0, 0};
    default: return (wanted_row){BT_INVALID, 0, 0}; /* drop */
    }
}

static void test_the_table_is_the_one_of_the_design(void) {
    test(__func__);
    CHECK_EQUAL(sizeof act_names / sizeof *act_names, BT_ACTS);
    CHECK_EQUAL(sizeof state_names / sizeof *state_names, BT_STATES);
    CHECK(strcmp(act_names[BT_A_MOVE], "MOVE") == 0 && strcmp(act_names[BT_A_DROP], "DROP") == 0);
    CHECK(strcmp(act_names[BT_A_COPY_RELEASED], "COPY_RELEASED") == 0 && strcmp(act_names[BT_A_RECLAIMED], "RECLAIMED") == 0);
    CHECK(strcmp(state_names[BT_READ_ONLY], "READ_ONLY") == 0 && strcmp(state_names[BT_READ_WRITE], "READ_WRITE") == 0);
    for (int state = 0; state < BT_STATES; state++)
        for (int act = 0; act < BT_ACTS; act++)
            for (int out = 0; out < 3; out++)
                for (int in = 0; in < 3; in++) {
                    const bt_row *row = &table.rows[state][act][out][in];
                    wanted_row want = wanted(state, act, out, in);
                    int same = row->next == (want.next < 0 ? 0xff : want.next);
                    if (same && want.next >= 0) same = row->out == want.out && row->in == want.in;
                    if (!same) fprintf(stderr, "%s in %s, out %d, in %d\n", act_names[act], state_names[state], out, in);
                    CHECK(same);
                }
}

/* ---- one buffer, two channels: all states that can be reached, all that can be asked ---- */

#define CHANNELS 2
#define PAST 41 /* a position that was never sent at */

/* What the rules speak of, as sets of channels. */
typedef struct facts {
    uint8_t owned, out, in;
    uint8_t came, gone; /* channel number, 0: none */
    uint8_t flags, views, writers;
} facts;

typedef struct bench {
    bt_slot slot;
    bt_pool pool;
    bt_assignment a[CHANNELS];
    uint64_t bits[2 * CHANNELS];
    facts f;
} bench;

typedef struct kind {
    uint8_t shared, home, mine, same_domain;
} kind;

static void start_bench(bench *b, kind k) {
    memset(b, 0, sizeof *b);
    b->pool = (bt_pool){.slots = &b->slot, .count = 1, .size = SIZE, .shared = k.shared, .home = k.home};
    b->slot.state = k.home ? BT_READ_WRITE : BT_INVALID;
    b->slot.length = SIZE;
    b->f.owned = k.home;
    for (uint32_t i = 0; i < CHANNELS; i++)
        b->a[i] = (bt_assignment){.pool = &b->pool, .out_copies = &b->bits[2 * i], .in_copies = &b->bits[2 * i + 1],
                                  .channel = i + 1, .peer = i + 1, .standing = BT_ACTIVE, .mine = k.mine, .same_domain = k.same_domain};
}

/* A copy that stands on its own feet. */
static bench twin(const bench *from) {
    bench b = *from;
    return b;
}

static void attach(bench *b) {
    b->pool.slots = &b->slot;
    for (int i = 0; i < CHANNELS; i++) {
        b->a[i].pool = &b->pool;
        b->a[i].out_copies = &b->bits[2 * i];
        b->a[i].in_copies = &b->bits[2 * i + 1];
    }
}

static int bits_in(unsigned set) { return __builtin_popcount(set); }

static int state_of(const facts *f) {
    if (f->owned) return f->out ? BT_READ_ONLY_OWNED : BT_READ_WRITE;
    return f->in ? BT_READ_ONLY : BT_INVALID;
}

static void check_books(const bench *b) {
    const facts *f = &b->f;
    CHECK_EQUAL(b->slot.state, state_of(f));
    CHECK_EQUAL(b->slot.out, bits_in(f->out));
    CHECK_EQUAL(b->slot.in, bits_in(f->in));
    CHECK(!(f->owned && f->in));
    CHECK(f->owned || f->in || !f->out);
    for (int i = 0; i < CHANNELS; i++) {
        const bt_assignment *a = &b->a[i];
        CHECK_EQUAL(bt_bit(a->out_copies, 0), f->out >> i & 1);
        CHECK_EQUAL(bt_bit(a->in_copies, 0), f->in >> i & 1);
        CHECK_EQUAL(a->copy_count, f->out >> i & 1);
        CHECK_EQUAL(a->held_count, f->in >> i & 1);
        int present = f->owned || f->in, base = a->mine || b->pool.home; /* whoever takes it back at the end */
        CHECK_EQUAL(bt_is_away(a, 0), !present && f->gone == i + 1);
        CHECK_EQUAL(bt_is_guest(a, 0), (f->in >> i & 1) || (f->owned && f->came == i + 1 && !base));
        int may = !((f->out | f->in) >> i & 1) && !(base && !f->owned && f->gone == i + 1);
        if (!base && f->owned && f->came == i + 1) may = 0;
        CHECK_EQUAL(bt_may_remove(a, a->last_position), may);
        if (a->last_position) CHECK_EQUAL(bt_may_remove(a, a->last_position - 1), 0); /* in flight */
    }
}

static enum bt_verdict rule_for_send(const bench *b, int i, enum bt_act act) {
    const facts *f = &b->f;
    if (f->flags & BT_FREE) return BT_NOT_ALLOCATED;
    if (f->flags & BT_GIVE_BACK) return BT_GOING_BACK;
    if (act == BT_A_RELEASE) {
        if (!(f->in >> i & 1)) return BT_NOT_A_COPY;
        if (f->out) return BT_COPIES_OUT;
        return bits_in(f->in) == 1 && f->views ? BT_VIEWS_LIVE : BT_OK;
    }
    if (!f->owned && !f->in) return BT_NOT_PRESENT;
    if (act == BT_A_COPY) {
        if (b->a[i].same_domain) return BT_SAME_DOMAIN;
        if (f->out >> i & 1) return BT_ALREADY_COPIED;
        return f->writers ? BT_VIEWS_LIVE : BT_OK;
    }
    if (!f->owned) return BT_NOT_OWNED;
    if (f->out) return BT_COPIES_OUT;
    return f->views ? BT_VIEWS_LIVE : BT_OK;
}

static enum bt_verdict rule_for_owner(const bench *b, int i) {
    const facts *f = &b->f;
    if (!b->pool.shared && (f->owned || f->in)) return BT_REFUSED; /* honest: twins may have parted */
    if (f->owned) /* never left, or came over this very channel: else it contradicts somebody else */
        return !f->came || f->came == i + 1 ? BT_VIOLATION : BT_REFUSED;
    if (f->in) return f->in >> i & 1 ? BT_VIOLATION : BT_REFUSED;
    if (!b->pool.shared && b->pool.home && b->a[i].mine && !b->a[i].same_domain && f->gone != i + 1) return BT_REFUSED;
    return BT_OK;
}

static enum bt_verdict rule_for_copy(const bench *b, int i) {
    const facts *f = &b->f;
    if (f->in >> i & 1) return BT_VIOLATION;
    if (f->owned || f->out) return BT_REFUSED;
    return f->in && !b->pool.shared ? BT_REFUSED : BT_OK;
}

/* It is back without having been sent: the guest of whom it was before, or at least nobody's who never had it. */
static void home_again(facts *f, uint8_t channel) {
    f->owned = 1;
    f->gone = 0;
    if (!f->came) f->came = channel;
}

static void same_bytes(const bench *left, const bench *right) {
    CHECK(memcmp(&left->slot, &right->slot, sizeof left->slot) == 0);
    CHECK(memcmp(left->bits, right->bits, sizeof left->bits) == 0);
    for (int i = 0; i < CHANNELS; i++)
        CHECK(left->a[i].copy_count == right->a[i].copy_count && left->a[i].held_count == right->a[i].held_count &&
              left->a[i].last_position == right->a[i].last_position);
}

enum { SENDS = 4, ARRIVALS = 6, ENDS = 3, TOGGLES = 5, PER_CHANNEL = SENDS + ARRIVALS + ENDS };

/* Do thing number `what`; 0 where it cannot be done or changes nothing, after checking that it says so. */
static int do_thing(bench *b, int what, uint64_t position) {
    facts *f = &b->f;
    bench before = twin(b);
    attach(&before);
    if (what >= PER_CHANNEL * CHANNELS) { /* what happens to the buffer beside the channels */
        int toggle = what - PER_CHANNEL * CHANNELS;
        if (toggle == 0 && state_of(f) == BT_READ_WRITE) b->slot.flags = f->flags ^= f->flags & BT_GIVE_BACK ? 0 : BT_FREE;
        else if (toggle == 1 && (f->owned || f->in)) b->slot.flags = f->flags ^= f->flags & BT_FREE ? 0 : BT_GIVE_BACK;
        else if (toggle == 2 && (f->owned || f->in || f->views)) b->slot.views = f->views = f->views ? (f->writers = 0) : 1;
        else if (toggle == 3 && f->views && (f->writers || state_of(f) == BT_READ_WRITE)) f->writers ^= 1;
        else if (toggle == 4 && !b->pool.home && !f->views && !f->flags && (f->owned || f->in)) {
            bt_drop(&table, &b->slot); /* as Buffer.drop, once its channels ended */
            f->owned = f->in = f->out = f->gone = 0;
            for (int i = 0; i < CHANNELS; i++) {
                b->bits[2 * i] = b->bits[2 * i + 1] = 0;
                b->a[i].copy_count = b->a[i].held_count = 0;
            }
        } else return 0;
        b->slot.writers = f->writers;
        return 1;
    }
    int i = what / PER_CHANNEL, thing = what % PER_CHANNEL;
    bt_assignment *a = &b->a[i];
    uint8_t bit = (uint8_t)(1 << i);
    enum bt_verdict verdict, rule;
    if (thing < SENDS) {
        static const enum bt_act acts[] = {BT_A_MOVE, BT_A_PASS, BT_A_COPY, BT_A_RELEASE};
        rule = rule_for_send(b, i, acts[thing]);
        verdict = bt_may_send(&table, a, 0, acts[thing]);
        CHECK_EQUAL(verdict, rule);
        same_bytes(b, &before);
        if (verdict != BT_OK) return 0;
        bt_sent(&table, a, 0, acts[thing], position);
        CHECK_EQUAL(a->last_position, position + 1);
        if (acts[thing] == BT_A_COPY) f->out |= bit;
        else if (acts[thing] == BT_A_RELEASE) f->in &= (uint8_t)~bit;
        else f->owned = 0, f->gone = a->channel;
        return 1;
    }
    switch (thing - SENDS) {
    case 0:
    case 1:
        rule = rule_for_owner(b, i);
        verdict = bt_arrived_owner(&table, a, 0, 77, thing == SENDS ? BT_A_MOVE_RECEIVED : BT_A_BUFFER_RECEIVED);
        if (rule == BT_OK) {
            f->owned = 1, f->came = a->channel, f->gone = 0;
            CHECK_EQUAL(b->slot.length, 77);
        }
        break;
    case 2: {
        int first = !f->in;
        rule = rule_for_copy(b, i);
        verdict = bt_arrived_copy(&table, a, 0, 99 + (uint64_t)i);
        if (rule == BT_OK) {
            f->in |= bit;
            CHECK_EQUAL(b->slot.length, first ? 99 + (uint64_t)i : before.slot.length);
        }
        break;
    }
    case 3:
    case 4:
        rule = f->out & bit ? BT_OK : BT_VIOLATION;
        verdict = bt_copy_back(&table, a, 0, thing == SENDS + 3 ? BT_A_COPY_RELEASED : BT_A_COPY_REFUSED);
        if (rule == BT_OK) f->out &= (uint8_t)~bit;
        break;
    case 5:
        CHECK_EQUAL(bt_owner_back(&table, a, 0, PAST), b->pool.shared ? BT_VIOLATION : BT_REFUSED);
        same_bytes(b, &before);
        rule = state_of(f) == BT_INVALID && f->gone == a->channel ? BT_OK : b->pool.shared ? BT_VIOLATION : BT_REFUSED;
        verdict = bt_owner_back(&table, a, 0, b->slot.sent_at);
        if (rule == BT_OK) home_again(f, (uint8_t)a->channel);
        break;
    case 6: { /* the lease of this channel hung up: what was behind it is here again */
        int away = state_of(f) == BT_INVALID && f->gone == a->channel;
        int living = f->in & ~bit ? 1 : 0; /* a copy over the other channel keeps it here */
        int lent_back = f->in && !living && f->gone == a->channel && !f->out; /* a copy from whoever it was moved to */
        uint64_t length = b->slot.length;
        int changed = bt_reclaim(&table, a, 0, (uint32_t)living);
        CHECK_EQUAL(changed, away || lent_back || (f->out & bit));
        if (f->out & bit) {
            f->out &= (uint8_t)~bit;
            away = 0;
            lent_back = f->in && !living && f->gone == a->channel && !f->out;
        }
        if (lent_back) f->in = 0, away = 1;
        if (away) {
            home_again(f, (uint8_t)a->channel);
            CHECK_EQUAL(b->slot.length, lent_back ? length : SIZE); /* what could be read is unchanged */
        }
        CHECK_EQUAL(bt_reclaim(&table, a, 0, (uint32_t)living), 0); /* once */
        return changed;
    }
    case 7: /* whatever the index is beyond that */
        CHECK_EQUAL(bt_may_remove(a, a->last_position + 1000), bt_may_remove(a, a->last_position));
        return 0;
    default: /* a buffer on its way within the domain is not away */
        if (state_of(f) == BT_INVALID) {
            b->slot.flags |= BT_QUEUED;
            CHECK_EQUAL(bt_is_away(a, 0), 0);
            b->slot.flags &= (uint8_t)~BT_QUEUED;
        }
        return 0;
    }
    CHECK_EQUAL(verdict, rule);
    if (verdict != BT_OK) same_bytes(b, &before);
    return verdict == BT_OK;
}

/* What tells states apart: the facts, and what the ledger keeps of the way here, lest a stale note hide. */
static uint32_t bench_key(const bench *b) {
    const facts *f = &b->f;
    uint32_t key = f->owned | (uint32_t)f->out << 1 | (uint32_t)f->in << 3 | (uint32_t)f->came << 5 |
                   (uint32_t)f->gone << 7 | (uint32_t)f->flags << 9 | (uint32_t)f->views << 11 | (uint32_t)f->writers << 12;
    return key | b->slot.left << 13;
}

static void test_every_verdict_in_every_state(void) {
    test(__func__);
    static uint8_t seen[1 << 15];
    static bench queue[1 << 15];
    int states = 0;
    for (int k = 0; k < 16; k++) {
        kind of = {.shared = k & 1, .home = k >> 1 & 1, .mine = k >> 2 & 1, .same_domain = k >> 3 & 1};
        size_t first = 0, end = 1;
        memset(seen, 0, sizeof seen);
        start_bench(&queue[0], of);
        seen[bench_key(&queue[0])] = 1;
        while (first < end) {
            for (int what = 0; what < PER_CHANNEL * CHANNELS + TOGGLES; what++) {
                bench b = twin(&queue[first]);
                attach(&b);
                check_books(&b);
                if (!do_thing(&b, what, 7)) continue;
                check_books(&b);
                if (seen[bench_key(&b)]) continue;
                seen[bench_key(&b)] = 1;
                queue[end++] = b;
                CHECK(end < 1 << 15);
            }
            first++;
        }
        states += (int)end;
    }
    CHECK(states > 1000);
    if (getenv("VERBOSE")) fprintf(stderr, "  %d states\n", states);
}

static void test_counts_beyond_two_follow_the_last_column(void) {
    test(__func__);
    bt_slot slot = {.state = BT_READ_WRITE};
    bt_pool pool = {.slots = &slot, .count = 1, .size = SIZE, .shared = 1, .home = 1};
    enum { MANY = 300 };
    static bt_assignment a[MANY];
    static uint64_t bits[2 * MANY];
    for (uint32_t i = 0; i < MANY; i++)
        a[i] = (bt_assignment){.pool = &pool, .out_copies = &bits[2 * i], .in_copies = &bits[2 * i + 1], .channel = i + 1, .peer = i + 1};
    for (uint32_t i = 0; i < MANY; i++) {
        CHECK_EQUAL(bt_may_send(&table, &a[i], 0, BT_A_COPY), BT_OK);
        bt_sent(&table, &a[i], 0, BT_A_COPY, i);
        CHECK(slot.state == BT_READ_ONLY_OWNED && slot.out == i + 1);
    }
    for (uint32_t i = 0; i < MANY; i++) {
        CHECK_EQUAL(slot.state, BT_READ_ONLY_OWNED);
        CHECK_EQUAL(bt_copy_back(&table, &a[i], 0, BT_A_COPY_RELEASED), BT_OK);
    }
    CHECK(slot.state == BT_READ_WRITE && slot.out == 0);
    slot = (bt_slot){.state = BT_INVALID};
    for (uint32_t i = 0; i < MANY; i++) CHECK_EQUAL(bt_arrived_copy(&table, &a[i], 0, SIZE), BT_OK);
    CHECK_EQUAL(slot.in, MANY);
    for (uint32_t i = 0; i < MANY; i++) {
        CHECK_EQUAL(slot.state, BT_READ_ONLY);
        CHECK_EQUAL(bt_may_send(&table, &a[i], 0, BT_A_RELEASE), BT_OK);
        bt_sent(&table, &a[i], 0, BT_A_RELEASE, i);
    }
    CHECK(slot.state == BT_INVALID && slot.in == 0);
}

static void test_bits_of_large_pools_are_their_own(void) {
    test(__func__);
    CHECK_EQUAL(bt_bit_words(0), 0);
    CHECK_EQUAL(bt_bit_words(1), 1);
    CHECK_EQUAL(bt_bit_words(64), 1);
    CHECK_EQUAL(bt_bit_words(65), 2);
    CHECK_EQUAL(bt_bit_words(UINT32_MAX), (UINT64_C(1) << 26));
    uint64_t *bits = calloc(bt_bit_words(130), sizeof *bits);
    for (uint32_t i = 0; i < 130; i++) {
        bt_bit_set(bits, i);
        for (uint32_t k = 0; k < 130; k++) CHECK_EQUAL(bt_bit(bits, k), k == i);
        bt_bit_clear(bits, i);
    }
    free(bits);
}

/* ---- honest domains ---- */

#define DOMAINS 4
#define LINES 6 /* channels */
#define BUFFERS 5
#define QUEUE 64

typedef struct note {
    int kind; /* bt_act, or -1: a refusal of `act` at `position` */
    int act;
    uint32_t index;
    uint64_t position;
} note;

typedef struct line {
    int end[2];         /* domains: source, sink */
    bt_assignment a[2]; /* as source and sink see it */
    uint64_t bits[2][2];
    note fifo[2][QUEUE]; /* from the source, from the sink */
    uint64_t sent[2], taken[2];
} line;

typedef struct network {
    bt_slot slots[DOMAINS][BUFFERS];
    bt_pool pools[DOMAINS];
    line lines[LINES];
    int came[DOMAINS][BUFFERS]; /* over which channel a domain got what it owns */
    uint64_t seed, refusals, transfers;
} network;

static void start_network(network *n, uint64_t seed, int shared) {
    memset(n, 0, sizeof *n);
    n->seed = seed;
    for (int d = 0; d < DOMAINS; d++) {
        n->pools[d] = (bt_pool){.slots = n->slots[d], .count = BUFFERS, .size = SIZE, .shared = (uint8_t)shared, .home = d == 0};
        for (int i = 0; i < BUFFERS && d == 0; i++) n->slots[0][i].state = BT_READ_WRITE;
    }
    for (uint32_t l = 0; l < LINES; l++) {
        line *c = &n->lines[l];
        c->end[0] = l < 2 ? 0 : (int)dice_below(&n->seed, DOMAINS);
        do c->end[1] = (int)dice_below(&n->seed, DOMAINS);
        while (c->end[1] == c->end[0]);
        /* the domain nearer to home assigned it */
        for (int s = 0; s < 2; s++)
            c->a[s] = (bt_assignment){.pool = &n->pools[c->end[s]], .out_copies = &c->bits[s][0], .in_copies = &c->bits[s][1],
                                      .channel = l + 1, .peer = (uint32_t)c->end[1 - s] + 1, .standing = BT_ACTIVE,
                                      .mine = c->end[s] < c->end[1 - s]};
    }
}

static void post(line *c, int side, note what) {
    what.position = what.kind < 0 ? what.position : c->sent[side];
    CHECK(c->sent[side] - c->taken[side] < QUEUE);
    c->fifo[side][c->sent[side]++ % QUEUE] = what;
}

static void try_send(network *n, int l, int side, enum bt_act act, uint32_t index) {
    line *c = &n->lines[l];
    if (c->sent[side] - c->taken[side] >= QUEUE / 2) return;
    if (bt_may_send(&table, &c->a[side], index, act) != BT_OK) return;
    bt_sent(&table, &c->a[side], index, act, c->sent[side]);
    post(c, side, (note){.kind = (int)act, .index = index});
    n->transfers++;
}

static void deliver(network *n, int l, int from) {
    line *c = &n->lines[l];
    int to = 1 - from, d = c->end[to];
    if (c->taken[from] == c->sent[from]) return;
    note what = c->fifo[from][c->taken[from] % QUEUE];
    enum bt_verdict verdict;
    if (what.kind < 0 && what.act == BT_A_COPY) verdict = bt_copy_back(&table, &c->a[to], what.index, BT_A_COPY_REFUSED);
    else if (what.kind < 0) verdict = bt_owner_back(&table, &c->a[to], what.index, what.position);
    else if (what.kind == BT_A_COPY) verdict = bt_arrived_copy(&table, &c->a[to], what.index, SIZE);
    else if (what.kind == BT_A_RELEASE) verdict = bt_copy_back(&table, &c->a[to], what.index, BT_A_COPY_RELEASED);
    else {
        verdict = bt_arrived_owner(&table, &c->a[to], what.index, SIZE,
                                   what.kind == BT_A_MOVE ? BT_A_MOVE_RECEIVED : BT_A_BUFFER_RECEIVED);
        if (verdict == BT_OK) n->came[d][what.index] = l + 1;
    }
    CHECK(verdict == BT_OK || verdict == BT_REFUSED); /* all are honest */
    if (verdict == BT_REFUSED) {
        n->refusals++;
        post(c, to, (note){.kind = -1, .act = what.kind, .index = what.index, .position = what.position});
    }
    c->taken[from]++;
}

static void check_network(const network *n) {
    for (uint32_t i = 0; i < BUFFERS; i++) {
        int owners = 0, on_their_way = 0;
        for (int d = 0; d < DOMAINS; d++) {
            const bt_slot *s = &n->slots[d][i];
            unsigned out = 0, in = 0;
            owners += s->state >= BT_READ_ONLY_OWNED;
            for (int l = 0; l < LINES; l++)
                for (int side = 0; side < 2; side++)
                    if (n->lines[l].end[side] == d) {
                        const bt_assignment *a = &n->lines[l].a[side];
                        out += (unsigned)bt_bit(a->out_copies, i);
                        in += (unsigned)bt_bit(a->in_copies, i);
                        CHECK_EQUAL(bt_is_guest(a, i), bt_bit(a->in_copies, i) || (d != 0 && !a->mine &&
                                    s->state >= BT_READ_ONLY_OWNED && n->came[d][i] == l + 1));
                    }
            CHECK_EQUAL(s->out, out);
            CHECK_EQUAL(s->in, in);
        }
        for (int l = 0; l < LINES; l++)
            for (int side = 0; side < 2; side++)
                for (uint64_t at = n->lines[l].taken[side]; at < n->lines[l].sent[side]; at++) {
                    const note *what = &n->lines[l].fifo[side][at % QUEUE];
                    int act = what->kind < 0 ? what->act : what->kind;
                    on_their_way += what->index == i && (act == BT_A_MOVE || act == BT_A_PASS);
                }
        CHECK_EQUAL(owners + on_their_way, 1);
        /* A reader reads what nobody writes. */
        for (int d = 0; d < DOMAINS; d++)
            if (n->slots[d][i].state == BT_READ_WRITE)
                for (int other = 0; other < DOMAINS; other++) CHECK(n->slots[other][i].state != BT_READ_ONLY);
    }
}

static int deliver_all(network *n) {
    int moved = 0;
    for (int l = 0; l < LINES; l++)
        for (int side = 0; side < 2; side++)
            while (n->lines[l].taken[side] < n->lines[l].sent[side]) deliver(n, l, side), moved = 1;
    return moved;
}

static void send_everything_home(network *n) {
    for (int round = 0; round < 200; round++) {
        for (int l = 0; l < LINES; l++)
            for (uint32_t i = 0; i < BUFFERS; i++) try_send(n, l, 1, BT_A_RELEASE, i);
        while (deliver_all(n)) continue;
    }
    for (int d = 0; d < DOMAINS; d++)
        for (int i = 0; i < BUFFERS; i++) CHECK(n->slots[d][i].state == BT_INVALID || n->slots[d][i].state == BT_READ_WRITE);
    for (int l = 0; l < LINES; l++) /* both sides of a channel say the same, and nothing is lent */
        for (int side = 0; side < 2; side++) {
            CHECK(n->lines[l].bits[side][0] == 0 && n->lines[l].bits[side][1] == 0);
            CHECK(n->lines[l].a[side].copy_count == 0 && n->lines[l].a[side].held_count == 0);
        }
}

static void test_honest_domains_are_never_called_liars(void) {
    test(__func__);
    static network n;
    static const enum bt_act acts[2][2] = {{BT_A_MOVE, BT_A_COPY}, {BT_A_PASS, BT_A_RELEASE}};
    uint64_t refusals = 0, transfers = 0;
    for (uint64_t seed = 0; seed < 300; seed++) {
        start_network(&n, seed, seed % 2 == 0);
        for (int i = 0; i < 1200; i++) {
            int l = (int)dice_below(&n.seed, LINES), side = (int)dice_below(&n.seed, 2);
            if (dice_below(&n.seed, 3) == 0) deliver(&n, l, side);
            else try_send(&n, l, side, acts[side][dice_below(&n.seed, 2)], dice_below(&n.seed, BUFFERS));
            check_network(&n);
        }
        send_everything_home(&n);
        check_network(&n);
        refusals += n.refusals;
        transfers += n.transfers;
    }
    CHECK(refusals > 100 && transfers > 10000); /* else the walk has missed the point */
}

/* ---- stories ---- */

static bench story(kind k) {
    bench b;
    start_bench(&b, k);
    return b;
}

static void test_a_refused_move_stays_the_guest_of_the_channel_it_came_over(void) {
    test(__func__);
    bench b = story((kind){.shared = 1});
    attach(&b);
    CHECK_EQUAL(bt_arrived_owner(&table, &b.a[0], 0, 5, BT_A_MOVE_RECEIVED), BT_OK);
    bt_sent(&table, &b.a[1], 0, BT_A_MOVE, 3);
    CHECK_EQUAL(bt_owner_back(&table, &b.a[1], 0, 3), BT_OK);
    CHECK(bt_is_guest(&b.a[0], 0) && !bt_is_guest(&b.a[1], 0));
    CHECK(!bt_may_remove(&b.a[0], 0));
    CHECK(bt_may_remove(&b.a[1], 4));
    CHECK_EQUAL(bt_owner_back(&table, &b.a[1], 0, 3), BT_VIOLATION); /* once */
}

static void test_after_a_lease_hung_up_a_late_arrival_elsewhere_is_refused_and_no_violation(void) {
    test(__func__);
    bench b = story((kind){.shared = 1, .home = 1, .mine = 1});
    attach(&b);
    CHECK_EQUAL(bt_arrived_owner(&table, &b.a[1], 0, 5, BT_A_MOVE_RECEIVED), BT_VIOLATION); /* it never left */
    bt_sent(&table, &b.a[0], 0, BT_A_MOVE, 0);
    CHECK_EQUAL(bt_reclaim(&table, &b.a[0], 0, 0), 1);
    /* whoever had it sent it on, over the other channel, before letting go: honest, only late */
    CHECK_EQUAL(bt_arrived_owner(&table, &b.a[1], 0, 5, BT_A_MOVE_RECEIVED), BT_REFUSED);
}

static void test_a_lease_gives_back_what_is_here_as_a_copy_once_nobody_else_has_one(void) {
    test(__func__);
    bench b = story((kind){.shared = 1, .home = 1, .mine = 1});
    attach(&b);
    bt_sent(&table, &b.a[0], 0, BT_A_MOVE, 0);
    CHECK_EQUAL(bt_arrived_copy(&table, &b.a[1], 0, 5), BT_OK); /* lent back over another channel, and on from here */
    bt_sent(&table, &b.a[1], 0, BT_A_COPY, 0);
    CHECK_EQUAL(bt_reclaim(&table, &b.a[0], 0, 0), 0);
    CHECK(bt_is_outstanding(&b.a[0], 0));
    CHECK_EQUAL(bt_copy_back(&table, &b.a[1], 0, BT_A_COPY_RELEASED), BT_OK);
    CHECK_EQUAL(bt_reclaim(&table, &b.a[0], 0, 1), 0); /* the channel that it came over lives */
    CHECK_EQUAL(bt_reclaim(&table, &b.a[0], 0, 0), 1);
    CHECK(b.slot.state == BT_READ_WRITE && !b.slot.in && !bt_is_outstanding(&b.a[0], 0));
}

static void test_a_dropped_buffer_is_not_away(void) {
    test(__func__);
    bench b = story((kind){.shared = 1, .mine = 1});
    attach(&b);
    CHECK_EQUAL(bt_arrived_owner(&table, &b.a[1], 0, 5, BT_A_MOVE_RECEIVED), BT_OK);
    bt_sent(&table, &b.a[0], 0, BT_A_MOVE, 0);
    CHECK_EQUAL(bt_arrived_copy(&table, &b.a[1], 0, 5), BT_OK);
    bt_drop(&table, &b.slot);
    CHECK(!bt_is_away(&b.a[0], 0) && !bt_is_outstanding(&b.a[0], 0));
    CHECK_EQUAL(bt_reclaim(&table, &b.a[0], 0, 0), 0);
}

static void test_a_copy_that_came_back_is_not_the_buffer_come_home(void) {
    test(__func__);
    bench b = story((kind){.shared = 1, .home = 1, .mine = 1});
    attach(&b);
    bt_sent(&table, &b.a[0], 0, BT_A_MOVE, 0);
    CHECK_EQUAL(bt_arrived_copy(&table, &b.a[1], 0, 5), BT_OK);
    CHECK(!bt_may_remove(&b.a[0], 1)); /* lent back over another channel by whoever has it */
    bt_sent(&table, &b.a[1], 0, BT_A_RELEASE, 0);
    CHECK(!bt_may_remove(&b.a[0], 1));
    CHECK_EQUAL(bt_arrived_owner(&table, &b.a[1], 0, 5, BT_A_MOVE_RECEIVED), BT_OK);
    CHECK(bt_may_remove(&b.a[0], 1));
}

static void test_what_a_forwarder_got_back_is_no_guest(void) {
    test(__func__);
    bench b = story((kind){.shared = 1, .mine = 1});
    attach(&b);
    b.a[0].mine = 0; /* it came with the pool over the first channel, and went on over the second */
    CHECK_EQUAL(bt_arrived_owner(&table, &b.a[0], 0, 5, BT_A_MOVE_RECEIVED), BT_OK);
    bt_sent(&table, &b.a[1], 0, BT_A_MOVE, 0);
    CHECK_EQUAL(bt_arrived_owner(&table, &b.a[1], 0, 5, BT_A_BUFFER_RECEIVED), BT_OK);
    CHECK(bt_may_remove(&b.a[1], 1));
}

static void test_an_allocator_waits_for_what_left_over_a_peers_assignment(void) {
    test(__func__);
    bench b = story((kind){.shared = 1, .home = 1});
    attach(&b);
    bt_sent(&table, &b.a[0], 0, BT_A_MOVE, 0);
    CHECK(!bt_may_remove(&b.a[0], 1));
    CHECK_EQUAL(bt_arrived_owner(&table, &b.a[0], 0, 5, BT_A_BUFFER_RECEIVED), BT_OK);
    CHECK(bt_may_remove(&b.a[0], 1));
}

static void test_a_twin_of_what_is_here_is_refused_where_memory_is_not_shared(void) {
    test(__func__);
    bench b = story((kind){.shared = 0, .home = 1, .mine = 1});
    attach(&b);
    bt_sent(&table, &b.a[0], 0, BT_A_MOVE, 0);
    CHECK_EQUAL(bt_reclaim(&table, &b.a[0], 0, 0), 1); /* at once: the channel ended; the peer keeps its twin */
    CHECK_EQUAL(bt_arrived_owner(&table, &b.a[0], 0, 5, BT_A_MOVE_RECEIVED), BT_REFUSED);
    bt_sent(&table, &b.a[1], 0, BT_A_MOVE, 3);
    CHECK_EQUAL(bt_owner_back(&table, &b.a[0], 0, 0), BT_REFUSED); /* forgotten: it is away over the other */
    CHECK_EQUAL(bt_owner_back(&table, &b.a[1], 0, 3), BT_OK);
}

static void test_a_copy_that_is_out_twice_comes_back_once_by_each_way(void) {
    test(__func__);
    bench b = story((kind){.shared = 1, .home = 1, .mine = 1});
    attach(&b);
    bt_sent(&table, &b.a[0], 0, BT_A_COPY, 0);
    bt_sent(&table, &b.a[1], 0, BT_A_COPY, 0);
    CHECK_EQUAL(bt_reclaim(&table, &b.a[0], 0, 0), 1);
    CHECK(b.slot.state == BT_READ_ONLY_OWNED && b.slot.out == 1);
    CHECK_EQUAL(bt_copy_back(&table, &b.a[0], 0, BT_A_COPY_RELEASED), BT_VIOLATION);
    CHECK_EQUAL(bt_copy_back(&table, &b.a[1], 0, BT_A_COPY_RELEASED), BT_OK);
    CHECK_EQUAL(b.slot.state, BT_READ_WRITE);
}

int main(void) {
    test_the_table_is_the_one_of_the_design();
    test_every_verdict_in_every_state();
    test_counts_beyond_two_follow_the_last_column();
    test_bits_of_large_pools_are_their_own();
    test_honest_domains_are_never_called_liars();
    test_a_refused_move_stays_the_guest_of_the_channel_it_came_over();
    test_after_a_lease_hung_up_a_late_arrival_elsewhere_is_refused_and_no_violation();
    test_a_lease_gives_back_what_is_here_as_a_copy_once_nobody_else_has_one();
    test_a_dropped_buffer_is_not_away();
    test_a_copy_that_came_back_is_not_the_buffer_come_home();
    test_what_a_forwarder_got_back_is_no_guest();
    test_an_allocator_waits_for_what_left_over_a_peers_assignment();
    test_a_twin_of_what_is_here_is_refused_where_memory_is_not_shared();
    test_a_copy_that_is_out_twice_comes_back_once_by_each_way();
    return 0;
}
