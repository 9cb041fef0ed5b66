/* By value: stage.h, twin.h, arrival.h, and the carrier that moves contents though no user calls.
 *
 * Both sides are threads of this process. Their outboxes have one mapping, so that ThreadSanitizer sees who touches what.
 */
#include "check.h"
#include "carrier.h"
#include "busy.h"

#define SLOTS 64
#define META 0
#define STAGE BT_STAGE_MIN
#define COUNT 16
#define SIZE ((uint64_t)300 << 10)

static bt_registry registry = {.lock = PTHREAD_MUTEX_INITIALIZER, .generation = 1};
static bt_carrier carrier = {.lock = PTHREAD_MUTEX_INITIALIZER, .idle = PTHREAD_COND_INITIALIZER};

/* ---- the stream alone ---- */

static uint8_t byte_of(uint64_t number, uint64_t at) { return (uint8_t)(number * 131 + at * 7 + (at >> 9)); }

static void write_contents(uint8_t *data, uint64_t number, uint64_t length) {
    for (uint64_t at = 0; at < length; at++) data[at] = byte_of(number, at);
}

static void check_contents(const uint8_t *data, uint64_t number, uint64_t length) {
    for (uint64_t at = 0; at < length; at++)
        if (data[at] != byte_of(number, at)) {
            fprintf(stderr, "byte %llu of contents %llu\n", (unsigned long long)at, (unsigned long long)number);
            CHECK(data[at] == byte_of(number, at));
        }
}

typedef struct stream {
    bt_outbox *sender, *receiver;
    uint8_t *area;
    uint64_t rounds;
    uint64_t past; /* as many bytes go past the caches */
} stream;

static uint64_t length_of(uint64_t *rolls) {
    switch (dice_below(rolls, 4)) {
    case 0: return dice_below(rolls, 3 * BT_LINE);
    case 1: return dice_below(rolls, BT_PAGE);
    case 2: return BT_PIECE - 2 + dice_below(rolls, 5);
    default: return dice_below(rolls, (uint32_t)SIZE);
    }
}

static void *fill_all(void *argument) {
    stream *s = argument;
    uint64_t rolls = 5;
    bt_stage_tx t = {.own = s->sender, .peer = s->receiver, .area = s->area, .size = STAGE, .pace.left = s->past};
    uint8_t *data = malloc(SIZE);
    for (uint64_t n = 0; n < s->rounds; n++) {
        uint64_t length = length_of(&rolls), done = 0;
        write_contents(data, n, length);
        while ((done = bt_stage_fill(&t, data, done, length)) < length) CHECK(bt_stage_refresh(&t) == 0);
    }
    free(data);
    return NULL;
}

static void pass_contents(uint64_t past) {
    stream s = {.sender = calloc(1, BT_PAGE), .receiver = calloc(1, BT_PAGE), .area = calloc(1, STAGE), .rounds = 300};
    s.past = past;
    bt_stage_rx r = {.own = s.receiver, .peer = s.sender, .area = s.area, .size = STAGE};
    uint64_t rolls = 5, position = 0;
    uint8_t *data = malloc(SIZE);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, fill_all, &s) == 0);
    for (uint64_t n = 0; n < s.rounds; n++) {
        uint64_t length = length_of(&rolls), done = 0;
        int drained = n % 5 == 4;
        while (done < length) {
            CHECK(bt_stage_look(&r) >= 0);
            done = bt_stage_take_piece(&r, drained ? NULL : data, done, length);
        }
        if (!drained) check_contents(data, n, length);
        position += bt_stage_span(length);
        CHECK_EQUAL(r.emptied, position);
    }
    pthread_join(thread, NULL);
    free(data);
    free(s.sender);
    free(s.receiver);
    free(s.area);
}

static void test_contents_of_any_length_pass_through_a_small_area(void) {
    test(__func__);
    pass_contents(0);
}

static void test_contents_pass_the_caches_as_whole(void) {
    test(__func__);
    pass_contents(UINT64_MAX);
}

static void test_slow_stores_are_given_up_for_a_while_and_tried_again(void) {
    test(__func__);
    bt_pace p = {0};
    uint64_t size = BT_PIECE, quick = size * 1000 / BT_SLOW_BYTES_PER_US;
    for (int i = 1; i < BT_SLOW_TIMES; i++) bt_pace_judge(&p, size, 10 * quick);
    bt_pace_judge(&p, size, quick); /* only now and then, another process had the core */
    for (int i = 1; i < BT_SLOW_TIMES; i++) bt_pace_judge(&p, size, 10 * quick);
    CHECK_EQUAL(p.left, 0);
    bt_pace_judge(&p, size, quick + 1);
    CHECK_EQUAL(p.left, BT_STREAMED_MIN);
    uint8_t *to = aligned_alloc(BT_LINE, size), *from = malloc(size);
    write_contents(from, 1, size);
    uint64_t copies = 0;
    for (; p.left; copies++) {
        memset(to, 0, size);
        bt_paced_copy(&p, to, from, size - copies % 70);
        check_contents(to, 1, size - copies % 70);
    }
    CHECK(copies >= BT_STREAMED_MIN / size);
    bt_pace_judge(&p, size, 10 * quick); /* one is enough now */
    CHECK_EQUAL(p.left, 2 * BT_STREAMED_MIN);
    for (int i = 0; i < 20; i++) bt_pace_judge(&p, size, 10 * quick);
    CHECK_EQUAL(p.left, BT_STREAMED_MAX);
    bt_pace_judge(&p, size, quick);
    CHECK_EQUAL(p.slow, 0);
    CHECK_EQUAL(p.streak, 0);
    free(to);
    free(from);
}

static void test_indices_that_cannot_be_are_noticed(void) {
    test(__func__);
    bt_outbox *own = calloc(1, BT_PAGE), *peer = calloc(1, BT_PAGE);
    bt_stage_tx t = {.own = own, .peer = peer, .size = STAGE, .filled = 128, .emptied = 64};
    bt_stage_rx r = {.own = own, .peer = peer, .size = STAGE, .filled = 128, .emptied = 64};
    atomic_store(&peer->emptied, 192); /* more than there was */
    CHECK_EQUAL(bt_stage_refresh(&t), -1);
    atomic_store(&peer->emptied, 0); /* it went back */
    CHECK_EQUAL(bt_stage_refresh(&t), -1);
    CHECK_EQUAL(t.emptied, 64);
    atomic_store(&peer->filled, 64 + STAGE + 1); /* more than fits */
    CHECK_EQUAL(bt_stage_look(&r), -1);
    atomic_store(&peer->filled, 64); /* it went back */
    CHECK_EQUAL(bt_stage_look(&r), -1);
    CHECK_EQUAL(r.filled, 128);
    free(own);
    free(peer);
}

/* ---- two links ---- */

typedef struct end {
    bt_link *link;
    bt_slot slots[COUNT];
    bt_pool pool;
    bt_assignment a;
    uint64_t in_bits, out_bits;
} end;

static void open_pool(end *e, uint32_t channel) {
    e->pool = (bt_pool){.slots = e->slots, .count = COUNT, .size = SIZE};
    e->pool.base = mmap(NULL, COUNT * SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(e->pool.base != MAP_FAILED);
    CHECK(bt_registry_add_range(&registry, e->pool.base, COUNT * SIZE) == 0);
    e->pool.twin = bt_twin_new(&registry, COUNT, SIZE);
    bt_twin_retain(e->pool.twin); /* for the mapping */
    e->a = (bt_assignment){.pool = &e->pool, .in_copies = &e->in_bits, .out_copies = &e->out_bits, .channel = channel, .peer = channel,
                           .standing = BT_ACTIVE};
}

/* The pool's objects die; its memory stays while it is needed. */
static void drop_pool(end *e) {
    if (!bt_twin_put_off(e->pool.twin, e->pool.base, COUNT * SIZE, 0))
        bt_registry_unmap(&registry, e->pool.base, COUNT * SIZE);
    bt_twin_leave(e->pool.twin, 0);
    bt_twin_leave(e->pool.twin, 0);
}

static void open_ends(end *source, end *sink) {
    int socks[2];
    size_t size = bt_outbox_size(SLOTS, META) + STAGE;
    memset(source, 0, sizeof *source);
    memset(sink, 0, sizeof *sink);
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, socks) == 0);
    uint8_t *boxes[2] = {aligned_alloc(BT_PAGE, size), aligned_alloc(BT_PAGE, size)};
    for (int i = 0; i < 2; i++) {
        CHECK(boxes[i] != NULL && bt_registry_add_fd(&registry, socks[i]) == 0);
        memset(boxes[i], 0, size);
    }
    open_pool(source, 1);
    open_pool(sink, 2);
    source->link = bt_link_new(&registry, socks[0]);
    sink->link = bt_link_new(&registry, socks[1]);
    bt_rings_init(&source->link->tx, &source->link->rx, (bt_outbox *)boxes[0], (bt_outbox *)boxes[1], SLOTS, META);
    bt_rings_init(&sink->link->tx, &sink->link->rx, (bt_outbox *)boxes[1], (bt_outbox *)boxes[0], SLOTS, META);
    bt_link_stage(source->link, STAGE, SLOTS, META);
    sink->link->in = bt_arrivals_new(sink->link, STAGE, SLOTS, META);
    CHECK(sink->link->in != NULL && bt_arrivals_enter(sink->link->in, 0, &sink->a) == 0);
}

/* The boxes come from malloc: they are freed here, after both ends let go of what else they have. */
static void close_ends(end *source, end *sink) {
    void *boxes[2] = {source->link->tx.own, sink->link->tx.own};
    for (int i = 0; i < 2; i++) {
        end *e = i ? sink : source;
        bt_link_end(e->link);
        bt_link *link = e->link;
        bt_link_retain(link);
        bt_carrier_release(&carrier, link);
        while (atomic_load(&link->owners) > 1) sched_yield();
        link->tx.own = NULL;
        link->tx.peer = NULL;
        bt_link_release(link);
        drop_pool(e);
    }
    free(boxes[0]);
    free(boxes[1]);
}

/* Send buffer `index` behind what waits, as byvalue.pyx does. */
static void append(end *source, uint32_t index, uint64_t length, enum bt_kind kind) {
    bt_entry entry = {.kind = kind, .index = index, .length = length, .serial = source->link->out.promised};
    CHECK(bt_link_make_room(source->link, 1) == 0);
    bt_link_append_contents(source->link, &entry, NULL, source->pool.base + index * SIZE, source->pool.twin);
    source->link->out.promised += bt_stage_span(length);
    source->link->issued++;
}

/* Take the entry at the head as byvalue.pyx does. 1: taken; 2: and refused. */
static int take(end *sink, bt_entry *entry) {
    bt_link *link = sink->link;
    int there = 1;
    if (bt_rx_look(&link->rx) <= 0) return 0;
    bt_arrivals_lock(link->in);
    bt_arrival *arrival = bt_arrivals_head(link->in, &link->rx);
    if (!bt_arrivals_whole(link->in, &link->rx)) {
        uint32_t index = arrival->entry.index;
        if (!atomic_load(&link->in->open)) {
            CHECK_EQUAL(arrival->entry.serial, link->in->due);
            if (sink->slots[index].state != BT_INVALID) bt_arrivals_open(link->in, NULL, NULL, NULL, 1);
            else {
                CHECK(bt_twin_claim(sink->pool.twin, index, 2));
                bt_arrivals_open(link->in, sink->pool.twin, sink->pool.base + index * SIZE, NULL, 0);
            }
        }
        there = bt_pull_busily(link, 1);
        CHECK(there >= 0);
    }
    *entry = arrival->entry;
    if (there) {
        link->rx.head++;
        bt_arrivals_passed(link->in, &link->rx);
        if (arrival->refused) there = 2;
        else __atomic_store_n(&sink->slots[entry->index].state, BT_READ_WRITE, __ATOMIC_RELEASE);
        bt_arrival_let_go(arrival);
    }
    bt_arrivals_unlock(link->in);
    if (there) bt_link_consumed(link);
    return there;
}

static void test_contents_arrive_though_neither_user_calls(void) {
    test(__func__);
    end source, sink;
    bt_entry entry;
    open_ends(&source, &sink);
    CHECK_EQUAL(bt_carrier_take(&carrier, &registry, sink.link), 0);
    for (uint32_t i = 0; i < COUNT; i++) {
        write_contents(source.pool.base + i * SIZE, i, SIZE - i);
        append(&source, i, SIZE - i, BT_MOVE);
        CHECK(bt_is_leaving(source.pool.twin, i));
    }
    CHECK_EQUAL(bt_carrier_take(&carrier, &registry, source.link), 0);
    while (bt_link_has(source.link)) sched_yield(); /* all of it goes, 75 times what the area holds */
    for (uint32_t i = 0; i < COUNT; i++) {
        CHECK_EQUAL(bt_is_leaving(source.pool.twin, i), 0);
        memset(source.pool.base + i * SIZE, 0xee, SIZE); /* nobody reads it any more */
    }
    for (uint32_t i = 0; i < COUNT; i++) {
        while (!take(&sink, &entry)) sched_yield();
        CHECK(entry.index == i && entry.length == SIZE - i);
        check_contents(sink.pool.base + i * SIZE, i, SIZE - i);
        CHECK_EQUAL(bt_twin_claimed(sink.pool.twin, i), 0);
    }
    close_ends(&source, &sink);
}

static void *send_rounds(void *argument) {
    end *source = argument;
    for (uint64_t n = 0; n < 400; n++) {
        uint32_t index = (uint32_t)(n % COUNT);
        while (bt_is_leaving(source->pool.twin, index)) bt_carry_busily(source->link, 1);
        uint64_t length = 1 + (n * 7919) % SIZE;
        write_contents(source->pool.base + index * SIZE, n, length);
        append(source, index, length, BT_MOVE);
        if (bt_carry_busily(source->link, 1)) bt_carrier_take(&carrier, &registry, source->link);
    }
    return NULL;
}

static void test_users_and_carriers_share_the_work(void) {
    test(__func__);
    end source, sink;
    bt_entry entry;
    pthread_t thread;
    open_ends(&source, &sink);
    CHECK_EQUAL(bt_carrier_take(&carrier, &registry, sink.link), 0);
    CHECK(pthread_create(&thread, NULL, send_rounds, &source) == 0);
    for (uint64_t n = 0; n < 400;) {
        int taken = take(&sink, &entry);
        if (!taken) {
            if (n % 3 == 0) usleep(300); /* the carrier's turn */
            continue;
        }
        CHECK_EQUAL(entry.index, n % COUNT);
        if (taken == 1) {
            check_contents(sink.pool.base + entry.index * SIZE, n, entry.length);
            if (n % 7 != 6) __atomic_store_n(&sink.slots[entry.index].state, BT_INVALID, __ATOMIC_RELEASE);
            else memset(sink.pool.base + entry.index * SIZE, 0xdd, 64); /* kept: the next of its kind is refused */
        }
        n++;
        if (n % 50 == 0)
            for (int i = 0; i < COUNT; i++) {
                if (sink.slots[i].state != BT_READ_WRITE) continue;
                CHECK_EQUAL(sink.pool.base[i * SIZE], 0xdd); /* what was kept never changes */
                __atomic_store_n(&sink.slots[i].state, BT_INVALID, __ATOMIC_RELEASE);
            }
    }
    pthread_join(thread, NULL);
    close_ends(&source, &sink);
}

static void test_what_the_peer_had_not_finished_is_let_go(void) {
    test(__func__);
    end source, sink;
    bt_entry entry;
    open_ends(&source, &sink);
    append(&source, 3, SIZE, BT_MOVE);
    CHECK_EQUAL(bt_link_carry(source.link), BT_CARRY_SPACE);
    CHECK(bt_link_holds(source.link, source.pool.twin, 3) && !bt_link_holds(source.link, source.pool.twin, 2));
    CHECK_EQUAL(take(&sink, &entry), 0);
    CHECK_EQUAL(bt_twin_claimed(sink.pool.twin, 3), 2);
    CHECK_EQUAL(bt_twin_claim(sink.pool.twin, 3, 9), 0); /* nobody else makes it valid meanwhile */
    bt_arrivals_lock(sink.link->in);
    bt_arrivals_spoil(sink.link, sink.pool.twin, 3);
    bt_arrivals_unlock(sink.link->in);
    CHECK_EQUAL(bt_twin_claimed(sink.pool.twin, 3), 0);
    CHECK(bt_arrivals_head(sink.link->in, &sink.link->rx)->refused);
    close_ends(&source, &sink);
}

static void test_memory_stays_until_its_last_byte_is_out(void) {
    test(__func__);
    for (int revoke = 0; revoke < 2; revoke++) {
        bt_twin *twin = bt_twin_new(&registry, 2, BT_PAGE);
        uint8_t *base = mmap(NULL, 2 * BT_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(bt_registry_add_range(&registry, base, 2 * BT_PAGE) == 0);
        int ends[2];
        CHECK_EQUAL(pipe(ends), 0);
        bt_twin_leaving(twin, 1);
        CHECK_EQUAL(bt_twin_put_off(twin, base, 2 * BT_PAGE, revoke), 1);
        CHECK_EQUAL(write(ends[1], base, 1), 1); /* still there */
        bt_twin_retain(twin);
        bt_twin_left(twin, 1);
        CHECK_EQUAL(write(ends[1], base, 1), -1); /* out of reach */
        CHECK_EQUAL(errno, EFAULT);
        CHECK_EQUAL(bt_twin_put_off(twin, base, 2 * BT_PAGE, 0), 0);
        if (revoke) bt_registry_unmap(&registry, base, 2 * BT_PAGE);
        bt_twin_leave(twin, 0);
        bt_twin_leave(twin, 0);
        close(ends[0]);
        close(ends[1]);
    }
}

int main(void) {
    test_contents_of_any_length_pass_through_a_small_area();
    test_contents_pass_the_caches_as_whole();
    test_slow_stores_are_given_up_for_a_while_and_tried_again();
    test_indices_that_cannot_be_are_noticed();
    test_contents_arrive_though_neither_user_calls();
    test_users_and_carriers_share_the_work();
    test_what_the_peer_had_not_finished_is_let_go();
    test_memory_stays_until_its_last_byte_is_out();
    return 0;
}
