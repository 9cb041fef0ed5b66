/* Whether anybody can sleep through news: every order of events of doorbell.h, link.h and carrier.h, not a sample.
 *
 * Each scenario says whether there must be a way to get stuck: those that leave something out must have one, which
 * shows that the search finds what it looks for. Built with a weaker memory order (see the Makefile) and run with
 * "weak", the scenarios of the doorbell must get stuck.
 */
#include "explore.h"

#include "carrier.h"

#define SLOTS 2

static bt_outbox *box(int side) { return (bt_outbox *)box_memory[side][0]; }

static const uint8_t nothing[1];
static int zero = 0, one = 1;

/* ---- two ends, each asleep when it can be ---- */

typedef struct ends {
    bt_tx tx[2];
    bt_rx rx[2];
} ends;

static ends *e;
static int to_send, slots;

static void set_up_ends(void) {
    e = calloc(1, sizeof *e);
    bt_rings_init(&e->tx[0], &e->rx[0], box(0), box(1), (uint32_t)slots, 0);
    bt_rings_init(&e->tx[1], &e->rx[1], box(1), box(0), (uint32_t)slots, 0);
}

static void fill_and_publish(int side) {
    bt_entry entry = {.kind = BT_MOVE, .serial = e->tx[side].tail};
    bt_tx_fill(&e->tx[side], 0, &entry, nothing);
    bt_tx_publish(&e->tx[side], 1);
    if (bt_bell_due(&e->tx[side].peer->sleep_data, &e->tx[side].last_rung_data)) bt_ring_bell(side);
}

static void wait_for_room(int side, const int *sock) {
    bt_tx *tx = &e->tx[side];
    while (bt_tx_room(tx) == 0) {
        CHECK(bt_tx_refresh(tx) == 0);
        if (bt_tx_room(tx)) return;
        bt_sleep_begin(&tx->own->sleep_space);
        if (atomic_load_explicit(&tx->peer->consumed, memory_order_seq_cst) == tx->consumed) {
            model_poll(sock);
            read_bells(side, 1);
        }
        bt_sleep_end(&tx->own->sleep_space);
    }
}

static void take_one(bt_rx *rx, int side, const int *sock) {
    bt_entry entry;
    uint8_t meta[1];
    while (bt_rx_look(rx) == 0) {
        bt_sleep_begin(&rx->own->sleep_data);
        if (bt_rx_look_again(rx) == 0) {
            model_poll(sock);
            read_bells(side, 1);
        }
        bt_sleep_end(&rx->own->sleep_data);
    }
    uint64_t number = rx->head;
    CHECK(bt_rx_take(rx, &entry, meta, 0) == 0 && entry.serial == number);
    bt_rx_publish(rx);
    if (bt_bell_due(&rx->peer->sleep_space, &rx->last_rung_space)) bt_ring_bell(side);
}

static void sends_all(void) {
    for (int i = 0; i < to_send; i++) {
        wait_for_room(0, &zero);
        fill_and_publish(0);
    }
}

static void takes_all(void) {
    for (int i = 0; i < to_send; i++) take_one(&e->rx[1], 1, &one);
}

static void echoes_all(void) {
    for (int i = 0; i < to_send; i++) {
        take_one(&e->rx[1], 1, &one);
        fill_and_publish(1);
    }
}

static void asks_and_waits(void) {
    for (int i = 0; i < to_send; i++) {
        fill_and_publish(0);
        take_one(&e->rx[0], 0, &zero);
    }
}

/* The message wakes the peer before its place in the ring is published: that must ring again. */
static int forgets_to_ring;

static void sends_control(void) {
    bt_entry entry = {.kind = BT_CONTROL, .serial = e->tx[0].tail};
    bt_ring_bell(0); /* stands for the message */
    bt_tx_fill(&e->tx[0], 0, &entry, nothing);
    bt_tx_publish(&e->tx[0], 1);
    if (!forgets_to_ring && bt_bell_due(&e->tx[0].peer->sleep_data, &e->tx[0].last_rung_data)) bt_ring_bell(0);
}

static void takes_control(void) { take_one(&e->rx[1], 1, &one); }

static void set_up_control(void) {
    set_up_ends();
    add_actor(sends_control, 0);
    add_actor(takes_control, 0);
}

/* Sleeps in an edge-triggered epoll and leaves bells unread, as long as the next one surely finds room. */
static int counts_wakes_only;

static void takes_all_and_leaves_bells_unread(void) {
    bt_rx *rx = &e->rx[1];
    bt_entry entry;
    uint8_t meta[1];
    struct epoll_event event;
    int sleeps = 0, wakes = 0; /* since bells were read */
    model_epoll_ctl(EPOLL_CTL_ADD, 1, &(struct epoll_event){.data.ptr = rx});
    for (int taken = 0; taken < to_send;) {
        if (bt_rx_look(rx)) {
            CHECK(bt_rx_take(rx, &entry, meta, 0) == 0 && entry.serial == (uint64_t)taken++);
            bt_rx_publish(rx);
            continue;
        }
        /* One for each sleep, and one that was under way when the bells were read. */
        if (!counts_wakes_only && sleeps + 1 == socket_room) read_bells(1, 1), sleeps = 0;
        bt_sleep_begin(&rx->own->sleep_data);
        sleeps++; /* also where it finds news at once: the peer may ring all the same */
        if (bt_rx_look_again(rx) == 0) {
            model_epoll_wait(&event, 1, -1);
            if (counts_wakes_only && (bt_rx_look_again(rx) == 0 || ++wakes == socket_room)) read_bells(1, 1), wakes = 0;
        }
        bt_sleep_end(&rx->own->sleep_data);
    }
}

static void set_up_unread(void) {
    set_up_ends();
    always_writable = 0;
    add_actor(sends_all, 0);
    add_actor(takes_all_and_leaves_bells_unread, 0);
}

static void set_up_stream(void) {
    set_up_ends();
    add_actor(sends_all, 0);
    add_actor(takes_all, 0);
}

static void set_up_echo(void) {
    set_up_ends();
    add_actor(asks_and_waits, 0);
    add_actor(echoes_all, 0);
}

/* ---- a link, its user, the carrier, and a peer that takes ---- */

static bt_registry *registry;
static bt_carrier *carrier;
static bt_link *user_link;
static int to_take, answers; /* entries that the peer takes, and sends back in the end */

/* Mistakes that a user could make; each must show. */
static int forgets_to_carry, ends_the_space_sleep, releases_silently, forgets_the_carrier;

static void start_link(void) {
    registry = calloc(1, sizeof *registry);
    carrier = calloc(1, sizeof *carrier);
    e = calloc(1, sizeof *e);
    user_link = bt_link_new(registry, 0);
    CHECK(user_link != NULL);
    user_link->fifo = calloc(user_link->fifo_room = 4, sizeof *user_link->fifo); /* small, so that states are */
    registry->fds = calloc(registry->fd_room = 4, sizeof *registry->fds);
    bt_rings_init(&user_link->tx, &user_link->rx, box(0), box(1), SLOTS, 0);
    bt_rings_init(&e->tx[1], &e->rx[1], box(1), box(0), SLOTS, 0);
}

/* The ring is full when it begins. */
static void fill_the_ring(void) {
    for (bt_link *link = user_link; link->issued < SLOTS; link->issued++) {
        bt_entry entry = {.kind = BT_MOVE, .serial = link->issued};
        bt_tx_fill(&link->tx, 0, &entry, nothing);
        bt_tx_publish(&link->tx, 1);
    }
}

static void forget_statistics(void) { user_link->rings = 0; }

static int has_started(const void *unused) {
    (void)unused;
    return world.m.started;
}

static void carrier_runs(void) {
    wait_until(has_started, NULL, "start");
    bt_carrier_main(carrier);
}

static void carry(void) {
    if (!atomic_load_explicit(&user_link->waiting, memory_order_acquire) || bt_link_carry(user_link) == BT_CARRIED_ALL) return;
    if (!forgets_the_carrier) CHECK(bt_carrier_take(carrier, registry, user_link) == 0);
}

/* As channel.pyx sends. */
static void push(void) {
    bt_link *link = user_link;
    bt_entry entry = {.kind = BT_MOVE, .serial = link->issued};
    int direct = bt_link_direct(link, 1);
    CHECK(direct >= 0);
    link->issued++;
    if (direct) {
        bt_tx_fill(&link->tx, 0, &entry, nothing);
        bt_tx_publish(&link->tx, 1);
        bt_ring_data(link);
        return;
    }
    CHECK(bt_link_make_room(link, 1) == 0);
    bt_link_append(link, &entry, NULL, 0, NULL, 0);
    carry();
}

static void peer_runs(void) {
    for (int i = 0; i < to_take; i++) take_one(&e->rx[1], 1, &one);
    for (int i = 0; i < answers; i++) fill_and_publish(1);
}

static void user_sends_and_never_calls_again(void) {
    while (user_link->issued < (uint64_t)to_send) push();
}

static void user_sends_and_waits_for_the_answer(void) {
    bt_link *link = user_link;
    bt_rx *rx = &link->rx;
    while (user_link->issued < (uint64_t)to_send) push();
    while (bt_rx_look(rx) == 0) {
        bt_sleep_begin(&rx->own->sleep_data);
        if (bt_rx_look_again(rx) == 0) {
            model_poll(&zero);
            read_bells(0, 1);
            if (!forgets_to_carry) carry();
            if (ends_the_space_sleep) bt_sleep_end(&rx->own->sleep_space);
        }
        bt_sleep_end(&rx->own->sleep_data);
    }
}

static void user_sends_and_waits_for_the_outcome(void) {
    bt_link *link = user_link;
    uint64_t consumed;
    while (user_link->issued < (uint64_t)to_send) push();
    for (;;) {
        CHECK(bt_link_refresh(link, &consumed) == 0);
        if (consumed >= (uint64_t)to_take) break;
        int same = bt_link_await(link);
        CHECK(bt_link_refresh(link, &consumed) == 0);
        if (consumed >= (uint64_t)to_take) break;
        if (same) {
            model_poll(&zero);
            read_bells(0, 1);
            carry();
        }
    }
}

static void user_sends_all_itself_and_closes(void) {
    bt_link *link = user_link;
    while (user_link->issued < (uint64_t)to_send) push();
    while (atomic_load_explicit(&link->waiting, memory_order_acquire)) {
        if (!bt_link_await(link)) {
            carry();
            continue;
        }
        model_poll(&zero);
        read_bells(0, 1);
        carry();
    }
    if (releases_silently) bt_link_release(link);
    else bt_carrier_release(carrier, link);
}

static void (*user)(void);

static void set_up_link(void) {
    start_link();
    fill_the_ring();
    add_actor(user, 0);
    add_actor(peer_runs, 0);
    add_actor(carrier_runs, 1);
}

static int all_went(void) { return atomic_load(&user_link->waiting) == 0 && box(0)->tail == (uint64_t)to_send; }
static int socket_is_closed(void) { return world.m.closed[0]; }

static void expect(int stuck, int found) { CHECK_EQUAL(found, stuck); }

static void run_doorbell(int weak) {
    slots = 2, to_send = 3;
    expect(weak, explore("a stream through two slots, both ends sleep", set_up_stream, NULL));
    if (weak) return; /* not every weakness shows in the others */
    slots = 4;
    expect(0, explore("question and answer", set_up_echo, NULL));
    expect(0, explore("a control message and its place in the ring", set_up_control, NULL));
    forgets_to_ring = 1;
    expect(1, explore("the same, and only the message rings", set_up_control, NULL));
    slots = 8, to_send = 6, socket_room = 3;
    expect(0, explore("bells are left unread while there is room for one a sleep", set_up_unread, NULL));
    counts_wakes_only = 1;
    expect(1, explore("the same, counting wake-ups instead of sleeps", set_up_unread, NULL));
    socket_room = 1000, always_writable = 1;
}

static void run_link(void) {
    forget = forget_statistics;
    to_send = to_take = 3;
    user = user_sends_and_never_calls_again;
    expect(0, explore("the carrier sends what its user does not call for again", set_up_link, all_went));
    forgets_the_carrier = 1;
    expect(1, explore("the same without a carrier", set_up_link, all_went));
    forgets_the_carrier = 0;

    always_writable = 0; /* the socket towards the peer is nearly full: only bells wake the carrier */
    to_send = to_take = 4;
    expect(0, explore("the carrier, woken by bells alone", set_up_link, all_went));
    to_send = to_take = 3, answers = 1;
    user = user_sends_and_waits_for_the_answer;
    expect(0, explore("user and carrier hear the same bells", set_up_link, all_went));
    forgets_to_carry = 1;
    expect(1, explore("a user who reads bells and does not carry", set_up_link, all_went));
    forgets_to_carry = 0;
    ends_the_space_sleep = 1;
    to_send = to_take = 4;
    expect(1, explore("a user who ends the sleep that the carrier shares", set_up_link, all_went));
    ends_the_space_sleep = 0;
    answers = 0;

    to_send = 4, to_take = 2; /* the peer takes no more before it hears of the outcome */
    user = user_sends_and_waits_for_the_outcome;
    expect(0, explore("an outcome wakes who waits for it", set_up_link, NULL));

    to_send = to_take = 3;
    user = user_sends_all_itself_and_closes;
    expect(0, explore("a user who sends the rest and closes", set_up_link, socket_is_closed));
    releases_silently = 1;
    expect(1, explore("the same, and the carrier is not told", set_up_link, socket_is_closed));
    releases_silently = 0;

    user = user_sends_and_never_calls_again;
    to_send = to_take = 4;
    socket_room = 1;
    expect(1, explore("bells that nobody reads fill the socket", set_up_link, all_went));
    clock_runs = 1;
    expect(0, explore("the same, and the carrier looks by the clock", set_up_link, all_went));
}

int main(int count, char **arguments) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    int weak = count > 1 && strcmp(arguments[1], "weak") == 0;
    run_doorbell(weak);
    if (!weak) run_link();
    return 0;
}
