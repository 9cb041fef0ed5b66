/* guard.h: the mapping allows what the ledger says, and a refusal of the kernel leaves both as they were. */
#include "check.h"
#include "guard.h"

#include "table.h"

#define SIZE 8192
#define COUNT 6

typedef struct place {
    bt_slot slots[COUNT];
    uint64_t bits[2];
    bt_pool pool;
    bt_assignment a;
} place;

static void open_place(place *p) {
    memset(p, 0, sizeof *p);
    p->pool = (bt_pool){.slots = p->slots, .count = COUNT, .size = SIZE, .shared = 1, .home = 1};
    p->pool.base = mmap(NULL, COUNT * SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(p->pool.base != MAP_FAILED);
    p->a = (bt_assignment){.pool = &p->pool, .out_copies = &p->bits[0], .in_copies = &p->bits[1], .channel = 1, .mine = 1};
    for (int i = 0; i < COUNT; i++) p->slots[i].state = BT_READ_WRITE;
}

static void close_place(place *p) { CHECK_EQUAL(munmap(p->pool.base, COUNT * SIZE), 0); }

/* What the kernel lets this process do at the last byte of a buffer. */
static enum bt_guard reach(const place *p, int index) {
    int ends[2];
    uint8_t *at = p->pool.base + (index + 1) * SIZE - 1;
    CHECK_EQUAL(pipe(ends), 0);
    enum bt_guard found = BT_MAY_NOTHING;
    if (write(ends[1], at, 1) == 1) found = read(ends[0], at, 1) == 1 ? BT_MAY_WRITE : BT_MAY_READ;
    else CHECK_EQUAL(errno, EFAULT);
    close(ends[0]);
    close(ends[1]);
    return found;
}

static void check_all(const place *p) {
    for (int i = 0; i < COUNT; i++) {
        CHECK_EQUAL(p->slots[i].guard, bt_guard_of(p->slots[i].state));
        CHECK_EQUAL(reach(p, i), bt_guard_of(p->slots[i].state));
    }
}

static void test_a_pool_is_guarded_as_its_states_say_and_then_no_longer(void) {
    static const uint8_t states[COUNT] = {BT_READ_WRITE, BT_INVALID, BT_INVALID, BT_READ_ONLY, BT_READ_ONLY_OWNED, BT_READ_WRITE};
    place p;
    test(__func__);
    open_place(&p);
    for (int i = 0; i < COUNT; i++) p.slots[i].state = states[i];
    CHECK_EQUAL(bt_guard_begin(&p.pool), 0);
    CHECK(p.pool.guarded && p.pool.apart);
    check_all(&p);
    CHECK_EQUAL(bt_guard_end(&p.pool), 0);
    CHECK(!p.pool.guarded && !p.pool.apart);
    for (int i = 0; i < COUNT; i++) CHECK_EQUAL(reach(&p, i), BT_MAY_WRITE);
    close_place(&p);
}

static void test_each_buffer_follows_its_state_and_no_other_does(void) {
    place p;
    uint64_t rolls = 7;
    test(__func__);
    open_place(&p);
    CHECK_EQUAL(bt_guard_begin(&p.pool), 0);
    for (int round = 0; round < 500; round++) {
        uint32_t index = dice_below(&rolls, COUNT);
        enum bt_act act = (enum bt_act)dice_below(&rolls, BT_ACTS);
        const bt_row *row = bt_lookup(&table, &p.slots[index], act);
        CHECK_EQUAL(bt_guard_for(&table, &p.pool, index, act), 0);
        if (row->next == 0xff) { /* no such transition, and no change */
            check_all(&p);
            continue;
        }
        bt_step(&p.slots[index], row);
        check_all(&p);
    }
    close_place(&p);
}

static void test_what_is_not_guarded_is_left_alone(void) {
    place p;
    test(__func__);
    open_place(&p);
    CHECK_EQUAL(bt_guard_for(&table, &p.pool, 0, BT_A_MOVE), 0);
    CHECK_EQUAL(reach(&p, 0), BT_MAY_WRITE);
    close_place(&p);
}

static void test_a_refusal_of_the_kernel_changes_nothing(void) {
    place p;
    test(__func__);
    open_place(&p);
    p.pool.guarded = 1;
    p.slots[0] = (bt_slot){.state = BT_READ_ONLY_OWNED, .out = 1, .guard = BT_MAY_READ};
    p.slots[1] = (bt_slot){.state = BT_INVALID, .left = 1, .guard = BT_MAY_NOTHING};
    p.a.copy_count = 1;
    bt_bit_set(p.a.out_copies, 0);
    bt_slot before[2] = {p.slots[0], p.slots[1]};
    close_place(&p); /* nothing is mapped there: ENOMEM */
    CHECK_EQUAL(bt_guard_for(&table, &p.pool, 1, BT_A_RECLAIMED), -ENOMEM);
    CHECK_EQUAL(bt_guarded_reclaim(&table, &p.a, 0, 0), -ENOMEM);
    CHECK_EQUAL(bt_guarded_reclaim(&table, &p.a, 1, 0), -ENOMEM);
    CHECK(memcmp(before, p.slots, sizeof before) == 0);
    CHECK_EQUAL(p.a.copy_count, 1);
    CHECK(bt_bit(p.a.out_copies, 0));
    CHECK_EQUAL(bt_guard_end(&p.pool), -ENOMEM);
    CHECK(p.pool.guarded);
    p.pool.guarded = 0;
    p.slots[2].state = BT_INVALID;
    CHECK_EQUAL(bt_guard_begin(&p.pool), -ENOMEM);
    CHECK(!p.pool.guarded && !p.pool.apart);
}

static void test_what_is_reclaimed_is_within_reach(void) {
    place p;
    test(__func__);
    open_place(&p);
    p.slots[0] = (bt_slot){.state = BT_READ_ONLY_OWNED, .out = 1};
    p.slots[1] = (bt_slot){.state = BT_INVALID, .left = 1};
    p.a.copy_count = 1;
    bt_bit_set(p.a.out_copies, 0);
    CHECK_EQUAL(bt_guard_begin(&p.pool), 0);
    check_all(&p);
    CHECK_EQUAL(bt_guarded_reclaim(&table, &p.a, 0, 0), 1);
    CHECK_EQUAL(bt_guarded_reclaim(&table, &p.a, 1, 0), 1);
    CHECK_EQUAL(bt_guarded_reclaim(&table, &p.a, 2, 0), 0);
    check_all(&p);
    CHECK(p.slots[0].state == BT_READ_WRITE && p.slots[1].state == BT_READ_WRITE && !p.a.copy_count);
    close_place(&p);
}

int main(void) {
    test_a_pool_is_guarded_as_its_states_say_and_then_no_longer();
    test_each_buffer_follows_its_state_and_no_other_does();
    test_what_is_not_guarded_is_left_alone();
    test_a_refusal_of_the_kernel_changes_nothing();
    test_what_is_reclaimed_is_within_reach();
    return 0;
}
