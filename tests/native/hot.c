/* hot.h: the short way does exactly what the long way does, or nothing.
 *
 * Every state of a slot that the struct can hold is tried, also those that no honest history leads to; what the long way
 * is comes from ledger.h. table.h is made by table.py from states.py.
 */
#include <sys/mman.h>

#include "check.h"
#include "hot.h"

#include "table.h"

#define SIZE 8192
#define COUNT 3
#define SLOTS 4
#define META 40

static bt_registry registry = {.lock = PTHREAD_MUTEX_INITIALIZER, .generation = 1};

/* One side of a channel, and the peer's outbox, which the test writes. */
typedef struct bench {
    bt_slot slots[COUNT];
    bt_pool pool;
    uint64_t bits[2];
    bt_assignment a;
    bt_link *link;
    bt_outbox *own, *peer;
} bench;

static bt_outbox *box_new(void) {
    size_t size = bt_outbox_size(SLOTS, META);
    bt_outbox *box = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(box != MAP_FAILED);
    bt_outbox_init(box, SLOTS, META);
    return box;
}

static void bench_start(bench *b) {
    memset(b, 0, sizeof *b);
    b->own = box_new();
    b->peer = box_new();
    b->link = bt_link_new(&registry, -1);
    bt_link_open(b->link, b->own, bt_outbox_size(SLOTS, META), b->peer, bt_outbox_size(SLOTS, META), SLOTS, META);
    b->pool = (bt_pool){.slots = b->slots, .count = COUNT, .size = SIZE, .shared = 1};
    b->a = (bt_assignment){.pool = &b->pool, .out_copies = &b->bits[0], .in_copies = &b->bits[1], .channel = 7, .slot = 2,
                           .standing = BT_ACTIVE};
}

static void bench_end(bench *b) { bt_link_release(b->link); }

/* Every state of buffer 1; the others are READ_WRITE. `step` counts through them; 0 when they are over. */
static int set_slot(bench *b, uint32_t step) {
    static const uint8_t flags[] = {0, BT_FREE, BT_GIVE_BACK, BT_QUEUED};
    bt_slot s = {.length = 100, .via = 7, .left = 0};
    s.state = step % BT_STATES, step /= BT_STATES;
    s.flags = flags[step % 4], step /= 4;
    s.out = step % 3, step /= 3;
    s.in = step % 3, step /= 3;
    s.views = step % 3 > 0, s.writers = step % 3 > 1, step /= 3;
    if (s.state == BT_INVALID) s.left = 3;
    b->bits[0] = s.out ? 2 : 0;
    b->bits[1] = s.in ? 2 : 0;
    for (int i = 0; i < COUNT; i++) b->slots[i] = (bt_slot){.state = BT_READ_WRITE, .length = SIZE};
    b->slots[1] = s;
    return step == 0;
}

/* Which of the ways out of the ordinary is taken; 0: none. */
static int set_kind(bench *b, int kind) {
    b->pool.shared = kind != 1;
    b->pool.guarded = kind == 2;
    b->a.standing = kind == 3 ? BT_PENDING : kind == 4 ? BT_REMOVING : BT_ACTIVE;
    b->a.same_domain = kind == 5;
    return kind < 6;
}

static void test_a_send_at_once_is_the_send(enum bt_act act) {
    bench b;
    uint32_t sent = 0, kept = 0;
    const uint8_t meta[META] = "meta data of the ordinary kind";
    bench_start(&b);
    for (int kind = 0; set_kind(&b, kind); kind++)
        for (uint32_t step = 0; set_slot(&b, step); step++)
            for (uint32_t size = 0; size <= META; size += 8) {
                set_slot(&b, step);
                bt_slot before = b.slots[1], want = before;
                uint64_t tail = b.link->tx.tail, issued = b.link->issued;
                enum bt_verdict verdict = bt_may_send(&table, &b.a, 1, act);
                int done = bt_send_at_once(b.link, &table, &b.a, 1, act, meta, size);
                if (!done) {
                    kept++;
                    CHECK(memcmp(&before, &b.slots[1], sizeof before) == 0);
                    CHECK(b.link->tx.tail == tail && b.own->tail == tail && b.link->issued == issued);
                    continue;
                }
                sent++;
                CHECK_EQUAL(verdict, BT_OK);
                CHECK(kind == 0 && size <= BT_META_INLINE);
                CHECK(b.link->issued == issued + 1 && b.own->tail == tail + 1 && b.a.last_position == issued + 1);
                bt_step(&want, bt_lookup(&table, &before, act));
                want.left = 7;
                want.sent_at = issued;
                CHECK(memcmp(&want, &b.slots[1], sizeof want) == 0);
                const bt_entry *e = &b.link->tx.ring[tail % SLOTS];
                CHECK(e->kind == act + 1 && e->flags == 0 && e->slot == 2 && e->index == 1 && e->serial == 0);
                CHECK_EQUAL(e->length, act == BT_A_PASS ? SIZE : 100);
                CHECK(e->meta_size == size && memcmp(e->meta, meta, size) == 0);
                b.peer->consumed = b.link->tx.tail; /* the peer takes it */
            }
    CHECK_EQUAL(sent, 5); /* READ_WRITE, nothing else about it, and 0, 8, 16, 24 or 32 bytes of meta data */
    CHECK(kept > 1000);
    bench_end(&b);
}

static void test_a_full_ring_is_left_to_the_long_way(void) {
    bench b;
    test(__func__);
    bench_start(&b);
    for (uint32_t i = 0; i < SLOTS; i++) {
        set_slot(&b, BT_READ_WRITE);
        CHECK(bt_send_at_once(b.link, &table, &b.a, 1, BT_A_MOVE, NULL, 0));
    }
    set_slot(&b, BT_READ_WRITE);
    CHECK(!bt_send_at_once(b.link, &table, &b.a, 1, BT_A_MOVE, NULL, 0));
    CHECK_EQUAL(b.slots[1].state, BT_READ_WRITE);
    b.peer->consumed = 1;
    CHECK(bt_send_at_once(b.link, &table, &b.a, 1, BT_A_MOVE, NULL, 0));
    set_slot(&b, BT_READ_WRITE);
    b.peer->consumed = 0; /* it went back: the long way says so */
    CHECK(!bt_send_at_once(b.link, &table, &b.a, 1, BT_A_MOVE, NULL, 0));
    bench_end(&b);
}

static void test_a_batch_that_cannot_go_is_undone(void) {
    bench b;
    test(__func__);
    bench_start(&b);
    set_slot(&b, BT_READ_WRITE);
    bt_slot before[COUNT];
    memcpy(before, b.slots, sizeof before);
    uint32_t batch[] = {0, 2, 0}; /* a buffer twice */
    uint32_t done = 0;
    while (done < 3 && bt_fill_ahead(b.link, &table, &b.a, batch[done], BT_A_MOVE, done)) done++;
    CHECK_EQUAL(done, 2);
    CHECK(b.own->tail == 0 && b.link->issued == 0);
    while (done > 0) bt_unfill(&b.a, batch[--done]);
    for (int i = 0; i < COUNT; i++) {
        b.slots[i].sent_at = 0; /* where it last left: of no meaning in READ_WRITE */
        CHECK(memcmp(&before[i], &b.slots[i], sizeof before[i]) == 0);
    }
    for (uint32_t i = 0; i < COUNT; i++) CHECK(bt_fill_ahead(b.link, &table, &b.a, i, BT_A_PASS, i));
    bt_publish_filled(b.link, &b.a, COUNT);
    CHECK(b.own->tail == COUNT && b.link->issued == COUNT && b.a.last_position == COUNT);
    for (uint32_t i = 0; i < COUNT; i++) CHECK(b.slots[i].sent_at == i && b.link->tx.ring[i].index == i);
    bench_end(&b);
}

static void test_an_arrival_at_once_is_the_arrival(enum bt_act act) {
    bench b;
    uint32_t taken = 0, left = 0;
    const enum bt_act arrival = act == BT_A_MOVE ? BT_A_MOVE_RECEIVED : BT_A_BUFFER_RECEIVED;
    bt_entry *ring;
    bench_start(&b);
    ring = bt_outbox_ring(b.peer);
    for (int kind = 0; set_kind(&b, kind); kind++)
        for (uint32_t step = 0; set_slot(&b, step); step++)
            for (int fault = 0; fault < 9; fault++) {
                set_slot(&b, step);
                bt_slot before = b.slots[1];
                uint64_t head = b.link->rx.head;
                bt_entry e = {.kind = (uint16_t)(act + 1), .slot = 2, .index = 1, .length = 77, .meta_size = 5}, got;
                uint32_t limit = META;
                memcpy(e.meta, "abcde", 5);
                if (fault == 1) e.kind = BT_COPY;
                if (fault == 2) e.slot = 3;
                if (fault == 3) e.index = COUNT;
                if (fault == 4) e.index = UINT32_MAX;
                if (fault == 5) e.length = SIZE + 1;
                if (fault == 6) e.meta_size = BT_META_INLINE + 1;
                if (fault == 7) e.meta_size = UINT32_MAX;
                if (fault == 8) limit = 4;
                ring[head % SLOTS] = e;
                int done = bt_take_at_once(&b.link->rx, &table, &b.a, act, limit, &got);
                if (!done) {
                    left++;
                    CHECK(b.link->rx.head == head && memcmp(&before, &b.slots[1], sizeof before) == 0);
                    continue;
                }
                taken++;
                CHECK(kind == 0 && fault == 0);
                CHECK(b.link->rx.head == head + 1 && got.meta_size == 5 && memcmp(got.meta, "abcde", 5) == 0);
                bt_slot now = b.slots[1];
                b.slots[1] = before;
                CHECK_EQUAL(bt_arrived_owner(&table, &b.a, 1, act == BT_A_MOVE ? 77 : SIZE, arrival), BT_OK);
                CHECK(memcmp(&now, &b.slots[1], sizeof now) == 0);
            }
    CHECK_EQUAL(taken, 3); /* INVALID and nothing else about it; there are no views then, nor do they matter */
    CHECK(left > 1000);
    bench_end(&b);
}

int main(void) {
    test("test_a_send_at_once_is_the_send");
    test_a_send_at_once_is_the_send(BT_A_MOVE);
    test_a_send_at_once_is_the_send(BT_A_PASS);
    test_a_full_ring_is_left_to_the_long_way();
    test_a_batch_that_cannot_go_is_undone();
    test("test_an_arrival_at_once_is_the_arrival");
    test_an_arrival_at_once_is_the_arrival(BT_A_MOVE);
    test_an_arrival_at_once_is_the_arrival(BT_A_PASS);
    return 0;
}
