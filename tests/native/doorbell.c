/* doorbell.h: nobody sleeps through news. Uninstrumented, at full speed, on the machine as it is.
 *
 * Threads over two outboxes in plain memory; a sleeper polls one end of a socket pair, and a wake-up that is lost
 * leaves both sides asleep until the watchdog ends the test. model.c looks at every order of events instead.
 */
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/socket.h>

#include "check.h"
#include "doorbell.h"
#include "message.h"
#include "ring.h"

typedef struct side {
    bt_outbox *own;
    bt_tx tx;
    bt_rx rx;
    int sock;
    uint64_t seed;
    uint64_t sleeps, heard;
} side;

static const uint8_t nothing[1];
static side one, two;

static void make_sides(uint32_t slot_count) {
    size_t size = bt_outbox_size(slot_count, 0);
    int socks[2];
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, socks) == 0);
    one = (side){.own = aligned_alloc(BT_PAGE, size), .sock = socks[0], .seed = 1};
    two = (side){.own = aligned_alloc(BT_PAGE, size), .sock = socks[1], .seed = 2};
    memset(one.own, 0, size);
    memset(two.own, 0, size);
    bt_rings_init(&one.tx, &one.rx, one.own, two.own, slot_count, 0);
    bt_rings_init(&two.tx, &two.rx, two.own, one.own, slot_count, 0);
}

static void free_sides(void) {
    close(one.sock), close(two.sock);
    free(one.own), free(two.own);
}

static void linger(side *s) {
    for (uint32_t i = dice_below(&s->seed, 40); i > 0; i--) __asm__ volatile("");
}

/* Wait for the bell, and read what rang. */
static void sleep_here(side *s) {
    struct pollfd fd = {.fd = s->sock, .events = POLLIN};
    bt_message m;
    s->sleeps++;
    while (poll(&fd, 1, -1) < 0) CHECK(errno == EINTR);
    while (bt_message_receive(s->sock, &m) == 1) s->heard++;
}

static void send_one(side *s, uint64_t number) {
    bt_entry entry = {.kind = BT_MOVE, .serial = number};
    while (bt_tx_room(&s->tx) == 0) {
        CHECK(bt_tx_refresh(&s->tx) == 0);
        if (bt_tx_room(&s->tx)) break;
        bt_sleep_begin(&s->own->sleep_space);
        if (atomic_load_explicit(&s->tx.peer->consumed, memory_order_seq_cst) == s->tx.consumed) sleep_here(s);
        bt_sleep_end(&s->own->sleep_space);
    }
    bt_tx_fill(&s->tx, 0, &entry, nothing);
    bt_tx_publish(&s->tx, 1);
    if (bt_bell_due(&s->tx.peer->sleep_data, &s->tx.last_rung_data)) bt_ring_bell(s->sock);
}

static uint64_t take_one(side *s) {
    bt_entry entry;
    uint8_t meta[1];
    while (bt_rx_look(&s->rx) == 0) {
        linger(s);
        bt_sleep_begin(&s->own->sleep_data);
        if (bt_rx_look_again(&s->rx) == 0) sleep_here(s);
        bt_sleep_end(&s->own->sleep_data);
    }
    CHECK(bt_rx_take(&s->rx, &entry, meta, 0) == 0);
    bt_rx_publish(&s->rx);
    if (bt_bell_due(&s->rx.peer->sleep_space, &s->rx.last_rung_space)) bt_ring_bell(s->sock);
    return entry.serial;
}

static uint64_t rounds;

static void *answer(void *unused) {
    for (uint64_t i = 0; i < rounds; i++) {
        CHECK_EQUAL(take_one(&two), i);
        linger(&two);
        send_one(&two, i);
    }
    return unused;
}

static void *take_all(void *unused) {
    for (uint64_t i = 0; i < rounds; i++) {
        CHECK_EQUAL(take_one(&two), i);
        if (dice_below(&two.seed, 8) == 0) linger(&two);
    }
    return unused;
}

static void test_an_answer_always_wakes_who_waits_for_it(void) {
    test(__func__);
    pthread_t thread;
    make_sides(2);
    rounds = 15000;
    CHECK(pthread_create(&thread, NULL, answer, NULL) == 0);
    for (uint64_t i = 0; i < rounds; i++) {
        send_one(&one, i);
        linger(&one);
        CHECK_EQUAL(take_one(&one), i);
    }
    pthread_join(thread, NULL);
    CHECK(one.sleeps + two.sleeps > 0);
    CHECK(one.heard <= one.sleeps + 1); /* one ring a sleep, and one that came too late */
    free_sides();
}

static void test_space_and_data_wake_both_ends_of_a_stream(void) {
    test(__func__);
    for (uint32_t slots = 2; slots <= 8; slots *= 2) {
        pthread_t thread;
        make_sides(slots);
        rounds = 12000;
        CHECK(pthread_create(&thread, NULL, take_all, NULL) == 0);
        for (uint64_t i = 0; i < rounds; i++) {
            send_one(&one, i);
            if (dice_below(&one.seed, 8) == 0) linger(&one);
        }
        pthread_join(thread, NULL);
        free_sides();
    }
}

/* The litmus test itself, without the system calls around it: in every round one side goes to sleep while the other
 * publishes, as close together as two threads get. */
static _Atomic uint64_t started, finished;
static _Atomic int missed_data, missed_space;
static uint64_t lost;

static void meet(_Atomic uint64_t *gate, uint64_t time) {
    atomic_fetch_add(gate, 1);
    for (int spins = 0; atomic_load(gate) < 2 * time; spins++)
        if (spins % 4096 == 4095) sched_yield();
}

static void *sleeper(void *unused) {
    bt_entry entry;
    uint8_t meta[1];
    for (uint64_t round = 1; round <= rounds; round++) {
        meet(&started, 2 * round - 1);
        bt_sleep_begin(&two.own->sleep_data);
        missed_data = bt_rx_look_again(&two.rx) == 0;
        meet(&finished, 2 * round - 1);
        bt_sleep_end(&two.own->sleep_data);
        while (bt_rx_look_again(&two.rx) == 0) continue;
        CHECK(bt_rx_take(&two.rx, &entry, meta, 0) == 0);
        meet(&started, 2 * round);
        bt_rx_publish(&two.rx);
        missed_space = !bt_bell_due(&two.rx.peer->sleep_space, &two.rx.last_rung_space);
        meet(&finished, 2 * round);
    }
    return unused;
}

static void run_litmus(void) {
    pthread_t thread;
    bt_entry entry = {.kind = BT_MOVE};
    make_sides(2);
    rounds = sysconf(_SC_NPROCESSORS_ONLN) > 1 ? 300000 : 500;
    atomic_store(&started, 0), atomic_store(&finished, 0);
    lost = 0;
    CHECK(pthread_create(&thread, NULL, sleeper, NULL) == 0);
    for (uint64_t round = 1; round <= rounds; round++) {
        bt_tx_fill(&one.tx, 0, &entry, nothing);
        meet(&started, 2 * round - 1);
        bt_tx_publish(&one.tx, 1);
        int rings = bt_bell_due(&one.tx.peer->sleep_data, &one.tx.last_rung_data);
        meet(&finished, 2 * round - 1);
        lost += missed_data && !rings;
        meet(&started, 2 * round);
        bt_sleep_begin(&one.own->sleep_space);
        int still = atomic_load_explicit(&one.tx.peer->consumed, memory_order_seq_cst) == one.tx.consumed;
        meet(&finished, 2 * round);
        lost += still && missed_space;
        bt_sleep_end(&one.own->sleep_space);
        CHECK(bt_tx_refresh(&one.tx) == 0 && bt_tx_room(&one.tx) == 2);
    }
    pthread_join(thread, NULL);
    free_sides();
}

static void test_a_sleeper_is_rung_for_once_a_sleep_and_not_awake(void) {
    test(__func__);
    _Atomic uint32_t counter = 0;
    uint32_t last = 0;
    for (int i = 0; i < 5; i++) {
        CHECK(!bt_sleeping(&counter) && !bt_bell_due(&counter, &last));
        bt_sleep_begin(&counter);
        CHECK(bt_sleeping(&counter));
        CHECK_EQUAL(bt_bell_due(&counter, &last), 1);
        CHECK_EQUAL(bt_bell_due(&counter, &last), 0);
        bt_sleep_begin(&counter); /* again, without having been awake */
        CHECK_EQUAL(bt_bell_due(&counter, &last), 1);
        CHECK_EQUAL(bt_bell_due(&counter, &last), 0);
        bt_sleep_end(&counter);
        bt_sleep_end(&counter);
    }
    counter = UINT32_MAX - 2;
    for (int i = 0; i < 5; i++, bt_sleep_end(&counter)) { /* beyond the end of 32 bits */
        bt_sleep_begin(&counter);
        CHECK_EQUAL(bt_bell_due(&counter, &last), 1);
    }
}

int main(int count, char **arguments) {
    if (count > 1 && strcmp(arguments[1], "count") == 0) { /* for a weakened build: what this machine makes of it */
        test("litmus");
        run_litmus();
        printf("doorbell: %llu wake-ups lost in %llu rounds on this machine\n", (unsigned long long)lost,
               (unsigned long long)(2 * rounds));
        return 0;
    }
    test("test_going_to_sleep_and_publishing_at_once_never_miss_each_other");
    run_litmus();
    CHECK_EQUAL(lost, 0);
    test_a_sleeper_is_rung_for_once_a_sleep_and_not_awake();
    test_an_answer_always_wakes_who_waits_for_it();
    test_space_and_data_wake_both_ends_of_a_stream();
    return 0;
}
