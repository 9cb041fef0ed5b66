/* The ledger: arrivals in any order over two channels, among calls made here, keep every count right. */
#include "fuzz.h"

#include "ledger.h"
#include "table.h" /* the transitions of states.py (tests/native/table.py) */

enum { COUNT = 3, CHANNELS = 2 };

static bt_slot slots[COUNT];
static uint64_t out[CHANNELS][1], in[CHANNELS][1];

static void check(const bt_pool *pool, const bt_assignment *a) {
    for (uint32_t i = 0; i < pool->count; i++) {
        const bt_slot *s = &pool->slots[i];
        unsigned sent = 0, held = 0;
        for (int c = 0; c < CHANNELS; c++) sent += (unsigned)bt_bit(out[c], i), held += (unsigned)bt_bit(in[c], i);
        MUST(s->state < BT_STATES && s->length <= pool->size);
        MUST(s->out == sent && s->in == held);
        if (s->state == BT_READ_WRITE || s->state == BT_INVALID) MUST(!sent && !held);
        if (s->state == BT_READ_ONLY) MUST(held);
        if (s->state == BT_READ_ONLY_OWNED) MUST(sent);
    }
    for (int c = 0; c < CHANNELS; c++) {
        unsigned copies = 0, held = 0;
        for (uint32_t i = 0; i < pool->count; i++) copies += (unsigned)bt_bit(out[c], i), held += (unsigned)bt_bit(in[c], i);
        MUST(a[c].copy_count == copies && a[c].held_count == held);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    given g = {data, size};
    uint8_t how = given_byte(&g);
    bt_pool pool = {.slots = slots, .count = COUNT, .size = 4096, .shared = how & 1, .home = how >> 1 & 1};
    bt_assignment a[CHANNELS];
    uint64_t position = 0;
    memset(slots, 0, sizeof slots);
    memset(out, 0, sizeof out);
    memset(in, 0, sizeof in);
    for (uint32_t i = 0; i < COUNT && pool.home; i++) slots[i] = (bt_slot){.state = BT_READ_WRITE, .length = 4096};
    for (uint32_t c = 0; c < CHANNELS; c++)
        a[c] = (bt_assignment){.pool = &pool, .out_copies = out[c], .in_copies = in[c], .channel = c + 1,
                               .peer = how & 4 ? 1 : c + 1, .standing = BT_ACTIVE, .mine = pool.home};
    while (g.left) {
        uint8_t what = given_byte(&g);
        bt_assignment *at = &a[what >> 4 & 1];
        uint32_t index = (what >> 5) % COUNT;
        static const enum bt_act sends[] = {BT_A_MOVE, BT_A_PASS, BT_A_COPY, BT_A_RELEASE};
        switch (what % 9) {
        case 0: bt_arrived_owner(&table, at, index, given_byte(&g), BT_A_MOVE_RECEIVED); break;
        case 1: bt_arrived_owner(&table, at, index, 4096, BT_A_BUFFER_RECEIVED); break;
        case 2: bt_arrived_copy(&table, at, index, given_byte(&g)); break;
        case 3: bt_copy_back(&table, at, index, BT_A_COPY_RELEASED); break;
        case 4: bt_copy_back(&table, at, index, BT_A_COPY_REFUSED); break;
        case 5: bt_owner_back(&table, at, index, given_byte(&g)); break;
        case 6: (void)bt_may_remove(at, given_byte(&g)); break;
        default: {
            enum bt_act act = sends[given_byte(&g) % 4];
            if (bt_may_send(&table, at, index, act) == BT_OK) bt_sent(&table, at, index, act, position++);
        }
        }
        check(&pool, a);
    }
    return 0;
}
