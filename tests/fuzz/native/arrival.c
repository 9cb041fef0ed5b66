/* By value: a peer that writes anything into its outbox, while the helper goes ahead and the user takes what is whole.
 * What is copied goes into the pool's memory (a sanitizer sees any other), and every claim is let go in the end. */
#include "fuzz.h"

#include "arrival.h"

enum { SLOTS = 4, COUNT = 6, SIZE = 4096, META = 40 };

static bt_registry registry = {.lock = PTHREAD_MUTEX_INITIALIZER, .generation = 1};

static bt_link *open_link(uint8_t *own, uint8_t *peer, uint64_t box) {
    bt_link *link = bt_link_new(&registry, -1);
    MUST(link);
    bt_link_open(link, own, box, peer, box, SLOTS, META);
    link->in = bt_arrivals_new(link, BT_STAGE_MIN, SLOTS, META);
    MUST(link->in);
    return link;
}

/* The user's call, as take_value of byvalue.pyx: judge, pull, pass. Whether the peer may go on. */
static int take(bt_link *link, const bt_assignment *a, given *g) {
    bt_arrivals *in = link->in;
    int64_t there = bt_rx_look_again(&link->rx);
    if (there < 0) return 0;
    if (!there) return 1;
    bt_arrival *arrival = bt_arrivals_head(in, &link->rx);
    const bt_entry *entry = &arrival->entry;
    int contents = entry->kind == BT_MOVE || entry->kind == BT_COPY;
    if (entry->meta_size > META) return 0;
    if (contents && !in->open && !bt_arrivals_whole(in, &link->rx)) {
        if (entry->slot || entry->index >= COUNT || entry->length > SIZE || entry->serial != in->due) return 0;
        int claimed = a->pool->slots[entry->index].state == BT_INVALID && bt_twin_claim(a->pool->twin, entry->index, 1);
        bt_arrivals_open(in, claimed ? a->pool->twin : NULL, claimed ? a->pool->base + entry->index * SIZE : NULL, NULL, !claimed);
    }
    if (contents && !bt_arrivals_whole(in, &link->rx)) {
        int result = bt_arrivals_pull(link, 1 + given_byte(g) % 4);
        if (result <= 0) return result == 0;
    }
    MUST(!contents || (entry->index < COUNT && entry->length <= SIZE && entry->slot == 0));
    if (entry->meta_size > BT_META_INLINE) (void)*(volatile const uint8_t *)bt_rx_meta(&link->rx);
    bt_arrival_let_go(arrival);
    link->rx.head++;
    bt_arrivals_passed(in, &link->rx);
    bt_rx_publish(&link->rx);
    return 1;
}

static void write_entry(bt_outbox *theirs, given *g, uint64_t due) {
    bt_entry *e = &bt_outbox_ring(theirs)[(theirs->tail + given_byte(g) % 2) % SLOTS];
    *e = (bt_entry){.kind = (uint16_t)(given_byte(g) % 8), .index = given_byte(g) % (COUNT + 1), .length = given_number(g)};
    e->serial = given_byte(g) % 4 ? due : given_number(g);
    if (given_byte(g) % 8 == 0) e->slot = (uint32_t)given_number(g);
    if (given_byte(g) % 8 == 0) e->meta_size = (uint32_t)given_number(g);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    given g = {data, size};
    uint64_t box = bt_outbox_size(SLOTS, META) + BT_STAGE_MIN;
    uint8_t *own = aligned_alloc(BT_PAGE, box), *peer = aligned_alloc(BT_PAGE, box), *base = malloc(COUNT * SIZE);
    bt_slot slots[COUNT] = {{0}};
    bt_twin *twin = bt_twin_new(&registry, COUNT, SIZE);
    bt_pool pool = {.slots = slots, .count = COUNT, .size = SIZE, .base = base, .twin = twin};
    bt_assignment a = {.pool = &pool, .channel = 1, .standing = BT_ACTIVE};
    memset(own, 0, box);
    memset(peer, 0, box);
    bt_outbox *theirs = (bt_outbox *)peer;
    bt_link *link = open_link(own, peer, box);
    MUST(bt_arrivals_enter(link->in, 0, &a) == 0);
    for (int goes_on = 1; g.left && goes_on;) {
        switch (given_byte(&g) % 8) {
        case 0: case 1: write_entry(theirs, &g, link->in->due); break;
        case 2: theirs->tail += given_byte(&g) % 4 ? 1 : given_number(&g); break;
        case 3: theirs->filled += given_byte(&g) % 4 ? bt_stage_span(given_byte(&g) * 16u) : given_number(&g); break;
        case 4: (void)bt_arrivals_carry(link); break;
        case 5: slots[given_byte(&g) % COUNT].state = given_byte(&g) % 2 ? BT_INVALID : BT_READ_WRITE; break;
        case 6: bt_arrivals_spoil(link, twin, given_byte(&g) % COUNT); break;
        default: goes_on = take(link, &a, &g);
        }
        MUST(link->in->next - link->rx.head <= SLOTS);
    }
    link->tx.own = NULL; /* the test's own memory */
    link->tx.peer = NULL;
    bt_link_release(link);
    for (uint32_t i = 0; i < COUNT; i++) MUST(bt_twin_claimed(twin, i) == 0);
    MUST(twin->jobs == 0 && twin->owners == 1);
    bt_twin_leave(twin, 0);
    free(own);
    free(peer);
    free(base);
    return 0;
}
