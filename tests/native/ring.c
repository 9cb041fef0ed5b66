/* ring.h: every entry arrives once, in order, whole; what a peer claims is checked.
 *
 * Two threads over two outboxes in plain memory, so that ThreadSanitizer sees both sides of every access: weaken one
 * memory order (BT_TX_ORDER, BT_RX_ORDER, BT_ACQUIRE_ORDER) and it must report a race (see the Makefile).
 */
#include <pthread.h>
#include <sched.h>

#include "check.h"
#include "ring.h"

typedef struct side {
    bt_outbox *own;
    bt_tx tx;
    bt_rx rx;
    uint32_t meta_limit;
    uint64_t to_send, to_take; /* entries */
    uint64_t seed;
    int again; /* look_again instead of look, where the dice say so */
} side;

static const uint8_t nothing[1];

static bt_outbox *make_outbox(uint32_t slot_count, uint32_t meta_size) {
    size_t size = bt_outbox_size(slot_count, meta_size);
    bt_outbox *box = aligned_alloc(BT_PAGE, size);
    CHECK(box && size % BT_PAGE == 0);
    memset(box, 0, size);
    bt_outbox_init(box, slot_count, meta_size);
    return box;
}

static void make_pair(side *a, side *b, uint32_t slot_count, uint32_t meta_size) {
    memset(a, 0, sizeof *a);
    memset(b, 0, sizeof *b);
    a->own = make_outbox(slot_count, meta_size);
    b->own = make_outbox(slot_count, meta_size);
    a->meta_limit = b->meta_limit = meta_size;
    bt_rings_init(&a->tx, &a->rx, a->own, b->own, slot_count, meta_size);
    bt_rings_init(&b->tx, &b->rx, b->own, a->own, slot_count, meta_size);
}

static void free_pair(side *a, side *b) {
    free(a->own);
    free(b->own);
}

/* What position `position` of a stream holds: all of it follows from the number. `rest`: entries of its batch. */
static void make_entry(uint64_t position, uint32_t meta_limit, uint32_t rest, bt_entry *entry, uint8_t *meta) {
    uint64_t state = position * 77 + 1;
    memset(entry, 0, sizeof *entry);
    entry->kind = BT_MOVE + position % 4;
    entry->flags = (uint16_t)rest;
    entry->slot = (uint32_t)dice(&state);
    entry->index = (uint32_t)dice(&state);
    entry->length = dice(&state);
    entry->serial = position;
    uint32_t most = position % 3 ? (meta_limit < BT_META_INLINE ? meta_limit : BT_META_INLINE) : meta_limit;
    entry->meta_size = dice_below(&state, most + 1);
    if (position % 5 == 0) entry->meta_size = most;
    for (uint32_t i = 0; i < entry->meta_size; i++) meta[i] = (uint8_t)(position * 31 + i * 7);
}

static int send_some(side *s, uint64_t *sent) {
    bt_entry entry;
    uint8_t meta[BT_META_MAX];
    uint32_t most = s->tx.slot_count < 64 ? s->tx.slot_count : 64;
    uint32_t count = 1 + dice_below(&s->seed, dice_below(&s->seed, 4) ? 2 : most);
    if (count > s->to_send - *sent) count = (uint32_t)(s->to_send - *sent);
    if (!count) return 0;
    if (bt_tx_room(&s->tx) < count) CHECK(bt_tx_refresh(&s->tx) == 0);
    CHECK(bt_tx_room(&s->tx) <= s->tx.slot_count);
    if (bt_tx_room(&s->tx) < count) return 0;
    for (uint32_t i = 0; i < count; i++) {
        make_entry(*sent + i, s->meta_limit, count - i, &entry, meta);
        bt_tx_fill(&s->tx, i, &entry, meta);
    }
    bt_tx_publish(&s->tx, count);
    *sent += count;
    return 1;
}

static int take_some(side *s, uint64_t *taken) {
    bt_entry entry, wanted;
    uint8_t meta[BT_META_MAX], wanted_meta[BT_META_MAX];
    int64_t there = s->again && dice_below(&s->seed, 4) == 0 ? bt_rx_look_again(&s->rx) : bt_rx_look(&s->rx);
    CHECK(there >= 0 && there <= s->rx.slot_count);
    for (int64_t i = 0; i < there; i++) {
        CHECK(bt_rx_take(&s->rx, &entry, meta, s->meta_limit) == 0);
        CHECK(entry.flags >= 1 && entry.flags <= there - i); /* all of a batch is there, or nothing */
        make_entry(*taken, s->meta_limit, entry.flags, &wanted, wanted_meta);
        CHECK(memcmp(&entry, &wanted, offsetof(bt_entry, meta)) == 0);
        CHECK(memcmp(meta, wanted_meta, wanted.meta_size) == 0);
        ++*taken;
        if (dice_below(&s->seed, 3) == 0) bt_rx_publish(&s->rx);
    }
    if (s->rx.published != s->rx.head) bt_rx_publish(&s->rx);
    return there > 0;
}

static void *run_side(void *argument) {
    side *s = argument;
    uint64_t sent = 0, taken = 0;
    while (sent < s->to_send || taken < s->to_take) {
        int moved = send_some(s, &sent);
        if (s->to_take) moved |= take_some(s, &taken); /* else even its `consumed` stays untouched: no order by the way */
        if (!moved) sched_yield();
    }
    return NULL;
}

static void exchange(uint32_t slot_count, uint32_t meta_size, uint64_t there, uint64_t back, int again) {
    side a, b;
    pthread_t thread;
    make_pair(&a, &b, slot_count, meta_size);
    a.to_send = b.to_take = there;
    b.to_send = a.to_take = back;
    a.seed = slot_count, b.seed = meta_size + 1;
    a.again = b.again = again;
    CHECK(pthread_create(&thread, NULL, run_side, &b) == 0);
    run_side(&a);
    pthread_join(thread, NULL);
    CHECK(bt_tx_refresh(&a.tx) == 0 && a.tx.consumed == there && bt_tx_room(&a.tx) == slot_count);
    free_pair(&a, &b);
}

static const uint32_t metas[] = {0, 1, BT_META_INLINE, BT_META_INLINE + 1, 100, BT_META_MAX};

static void test_one_way_every_entry_arrives_in_order(uint64_t count) {
    test(__func__);
    for (uint32_t slots = 2; slots <= 256; slots *= 4)
        for (size_t i = 0; i < sizeof metas / sizeof *metas; i++) exchange(slots, metas[i], count, 0, 0);
}

static void test_both_ways_every_entry_arrives_in_order(uint64_t count) {
    test(__func__);
    for (uint32_t slots = 2; slots <= 256; slots *= 4)
        for (size_t i = 0; i < sizeof metas / sizeof *metas; i++) exchange(slots, metas[i], count, count, 1);
}

static void test_indices_may_pass_the_end_of_64_bits(void) {
    test(__func__);
    side a, b;
    uint64_t start = UINT64_MAX - 5, sent = 0, taken = 0;
    make_pair(&a, &b, 4, 64);
    a.tx.tail = a.tx.consumed = b.rx.head = b.rx.tail = b.rx.published = start;
    atomic_store(&a.own->tail, start);
    atomic_store(&b.own->consumed, start);
    a.to_send = 40;
    while (taken < 40) {
        send_some(&a, &sent);
        take_some(&b, &taken);
    }
    CHECK_EQUAL(b.rx.head, start + 40);
    free_pair(&a, &b);
}

static void test_a_full_ring_has_no_room_and_an_empty_one_no_entry(void) {
    test(__func__);
    side a, b;
    bt_entry entry = {.kind = BT_MOVE};
    uint8_t meta[BT_META_MAX];
    make_pair(&a, &b, 4, 0);
    CHECK_EQUAL(bt_rx_look(&b.rx), 0);
    CHECK_EQUAL(bt_rx_look_again(&b.rx), 0);
    for (uint32_t i = 0; i < 4; i++) {
        CHECK_EQUAL(bt_tx_room(&a.tx), 4 - i);
        bt_tx_fill(&a.tx, 0, &entry, nothing);
        CHECK_EQUAL(bt_rx_look_again(&b.rx), i); /* filled is not published */
        bt_tx_publish(&a.tx, 1);
        CHECK_EQUAL(bt_rx_look_again(&b.rx), i + 1);
    }
    CHECK(bt_tx_refresh(&a.tx) == 0);
    CHECK_EQUAL(bt_tx_room(&a.tx), 0);
    CHECK(bt_rx_take(&b.rx, &entry, meta, 0) == 0);
    CHECK(bt_tx_refresh(&a.tx) == 0);
    CHECK_EQUAL(bt_tx_room(&a.tx), 0); /* taken is not given back */
    bt_rx_publish(&b.rx);
    CHECK(bt_tx_refresh(&a.tx) == 0);
    CHECK_EQUAL(bt_tx_room(&a.tx), 1);
    CHECK_EQUAL(b.rx.published, 1);
    free_pair(&a, &b);
}

static void test_an_impossible_consumed_index_is_refused(void) {
    test(__func__);
    side a, b;
    bt_entry entry = {.kind = BT_MOVE};
    make_pair(&a, &b, 4, 0);
    for (int i = 0; i < 4; i++) bt_tx_fill(&a.tx, (uint32_t)i, &entry, nothing);
    bt_tx_publish(&a.tx, 3);
    static const uint64_t wrong[] = {4, 5, 1000, UINT64_MAX, UINT64_MAX - 1, UINT64_C(1) << 63, UINT64_C(1) << 32};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        atomic_store(&b.own->consumed, wrong[i]);
        CHECK_EQUAL(bt_tx_refresh(&a.tx), -1);
        CHECK_EQUAL(a.tx.consumed, 0);
    }
    atomic_store(&b.own->consumed, 2);
    CHECK_EQUAL(bt_tx_refresh(&a.tx), 0);
    atomic_store(&b.own->consumed, 1); /* back */
    CHECK_EQUAL(bt_tx_refresh(&a.tx), -1);
    CHECK_EQUAL(a.tx.consumed, 2);
    atomic_store(&b.own->consumed, 3);
    CHECK_EQUAL(bt_tx_refresh(&a.tx), 0);
    free_pair(&a, &b);
}

static void test_an_impossible_tail_is_refused(void) {
    test(__func__);
    side a, b;
    make_pair(&a, &b, 4, 0);
    static const uint64_t wrong[] = {5, 6, 1000, UINT64_MAX, UINT64_C(1) << 63, UINT64_C(1) << 32};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        atomic_store(&a.own->tail, wrong[i]);
        CHECK_EQUAL(bt_rx_look(&b.rx), -1);
        CHECK_EQUAL(bt_rx_look_again(&b.rx), -1);
        CHECK_EQUAL(b.rx.tail, 0);
    }
    atomic_store(&a.own->tail, 3);
    CHECK_EQUAL(bt_rx_look(&b.rx), 3);
    atomic_store(&a.own->tail, 2); /* back */
    CHECK_EQUAL(bt_rx_look(&b.rx), 3); /* not looked at while there are known ones */
    CHECK_EQUAL(bt_rx_look_again(&b.rx), -1);
    CHECK_EQUAL(b.rx.tail, 3);
    atomic_store(&a.own->tail, 4);
    CHECK_EQUAL(bt_rx_look_again(&b.rx), 4);
    free_pair(&a, &b);
}

static void test_meta_data_longer_than_agreed_is_refused_and_not_copied(void) {
    test(__func__);
    static const uint32_t limits[] = {0, 8, 32, 33, 2048};
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        side a, b;
        bt_entry entry = {.kind = BT_MOVE};
        uint8_t *meta = malloc(limits[i] + 1); /* exactly as long as allowed: ASan sees one byte more */
        make_pair(&a, &b, 2, limits[i]);
        bt_tx_fill(&a.tx, 0, &entry, nothing);
        bt_tx_publish(&a.tx, 1);
        static const uint32_t more[] = {1, 2, 4096, UINT32_MAX};
        for (size_t k = 0; k < sizeof more / sizeof *more; k++) {
            a.tx.ring[0].meta_size = more[k] == UINT32_MAX ? UINT32_MAX : limits[i] + more[k];
            CHECK_EQUAL(bt_rx_look_again(&b.rx), 1);
            CHECK_EQUAL(bt_rx_take(&b.rx, &entry, meta, limits[i]), -1);
            CHECK_EQUAL(b.rx.head, 0);
        }
        a.tx.ring[0].meta_size = limits[i];
        CHECK_EQUAL(bt_rx_take(&b.rx, &entry, meta, limits[i]), 0);
        free(meta);
        free_pair(&a, &b);
    }
    side a, b;
    bt_entry entry = {.kind = BT_MOVE, .meta_size = 0};
    uint8_t meta[BT_META_MAX];
    make_pair(&a, &b, 2, 2048);
    bt_tx_fill(&a.tx, 0, &entry, nothing);
    bt_tx_publish(&a.tx, 1);
    a.tx.ring[0].meta_size = BT_META_MAX + 1; /* a caller's limit does not lift the buffer's */
    CHECK_EQUAL(bt_rx_look(&b.rx), 1);
    CHECK_EQUAL(bt_rx_take(&b.rx, &entry, meta, UINT32_MAX), -1);
    free_pair(&a, &b);
}

#ifndef __SANITIZE_THREAD__
static _Atomic int stop;

static void *keep_changing_the_size(void *argument) {
    volatile bt_entry *entry = argument;
    while (!atomic_load(&stop)) {
        entry->meta_size = 8;
        entry->meta_size = UINT32_MAX;
        entry->meta_size = 64;
    }
    return NULL;
}

/* A peer that writes while its entry is taken: a race that it is free to make, so not for ThreadSanitizer. */
static void test_an_entry_is_read_once(void) {
    test(__func__);
    side a, b;
    bt_entry entry = {.kind = BT_MOVE, .meta_size = 8};
    uint8_t *meta = malloc(64), content[64] = {0};
    pthread_t thread;
    int good = 0;
    make_pair(&a, &b, 2, 64);
    bt_tx_fill(&a.tx, 0, &entry, content);
    bt_tx_publish(&a.tx, 1);
    CHECK_EQUAL(bt_rx_look(&b.rx), 1);
    atomic_store(&stop, 0);
    CHECK(pthread_create(&thread, NULL, keep_changing_the_size, &a.tx.ring[0]) == 0);
    for (int i = 0; i < 200000; i++) {
        if (bt_rx_take(&b.rx, &entry, meta, 64) == 0) {
            CHECK(entry.meta_size == 8 || entry.meta_size == 64);
            good++;
            b.rx.head = 0;
        } else CHECK_EQUAL(entry.meta_size, UINT32_MAX);
        if (i % 256 == 0) sched_yield();
    }
    atomic_store(&stop, 1);
    pthread_join(thread, NULL);
    CHECK(good > 0);
    free(meta);
    free_pair(&a, &b);
}
#endif

static void test_the_layout_says_what_it_takes(void) {
    test(__func__);
    CHECK(bt_outbox_sane(2, 0) && bt_outbox_sane(65536, 2048) && bt_outbox_sane(1024, 33));
    CHECK(!bt_outbox_sane(0, 0) && !bt_outbox_sane(1, 0) && !bt_outbox_sane(3, 0) && !bt_outbox_sane(131072, 0));
    CHECK(!bt_outbox_sane(UINT32_MAX, 0) && !bt_outbox_sane(1u << 31, 0) && !bt_outbox_sane(2, 2049));
    CHECK_EQUAL(bt_outbox_size(2, 0), 2 * BT_PAGE);
    CHECK_EQUAL(bt_outbox_size(2, 33), 3 * BT_PAGE);
    CHECK_EQUAL(bt_outbox_size(65536, 2048), BT_PAGE + 65536ull * 64 + 65536ull * 2048);
    CHECK_EQUAL(bt_meta_stride(32), 0);
    CHECK_EQUAL(bt_meta_stride(33), 64);
    CHECK_EQUAL(bt_meta_stride(65), 128);
    for (uint32_t slots = 2; slots <= 4096; slots *= 2)
        for (uint32_t meta = 0; meta <= 2048; meta += 31) {
            uint64_t end = (uint64_t)(bt_outbox_meta(NULL, slots) - (uint8_t *)NULL) + slots * bt_meta_stride(meta);
            CHECK(end <= bt_outbox_size(slots, meta) && end + BT_PAGE > bt_outbox_size(slots, meta));
        }
}

static void test_refusals_that_wait_are_counted_by_pool(void) {
    test(__func__);
    side a, b;
    uint32_t all = 0;
    make_pair(&a, &b, 8, 0);
    for (uint32_t i = 0; i < 6; i++) {
        bt_entry entry = {.kind = i % 2 ? BT_REFUSE : BT_MOVE, .slot = i / 2};
        bt_tx_fill(&a.tx, 0, &entry, nothing);
        bt_tx_publish(&a.tx, 1);
    }
    CHECK_EQUAL(bt_rx_refusals(&b.rx, 1, &all), 0); /* it has not looked */
    CHECK_EQUAL(bt_rx_look_again(&b.rx), 6);
    CHECK_EQUAL(bt_rx_refusals(&b.rx, 1, &all), 1);
    CHECK_EQUAL(all, 3);
    CHECK_EQUAL(bt_rx_refusals(&b.rx, 7, &all), 0);
    CHECK_EQUAL(all, 6);
    free_pair(&a, &b);
}

int main(int count, char **arguments) {
    int only_one_way = count > 1 && strcmp(arguments[1], "one-way") == 0;
    if (only_one_way) {
        test_one_way_every_entry_arrives_in_order(400);
        return 0;
    }
    test_the_layout_says_what_it_takes();
    test_a_full_ring_has_no_room_and_an_empty_one_no_entry();
    test_an_impossible_consumed_index_is_refused();
    test_an_impossible_tail_is_refused();
    test_meta_data_longer_than_agreed_is_refused_and_not_copied();
    test_indices_may_pass_the_end_of_64_bits();
    test_refusals_that_wait_are_counted_by_pool();
    test_one_way_every_entry_arrives_in_order(4000);
    test_both_ways_every_entry_arrives_in_order(4000);
#ifndef __SANITIZE_THREAD__
    test_an_entry_is_read_once();
#endif
    return 0;
}
