/* link.h and carrier.h: one FIFO whatever is full, sent on whoever calls or does not, and let go in the end.
 *
 * Both sides are threads of this process; a mutex a side stands for its GIL. Under ThreadSanitizer both sides map
 * their outboxes at the same addresses, so that it sees who touches what; else each has mappings of its own.
 */
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include "check.h"

static void unmap_one(void *address, size_t size);
#define munmap(address, size) unmap_one((address), (size))
#include "carrier.h"
#undef munmap

#define META 200

static bt_registry registry = {.lock = PTHREAD_MUTEX_INITIALIZER, .generation = 1};
static bt_carrier carrier = {.lock = PTHREAD_MUTEX_INITIALIZER, .idle = PTHREAD_COND_INITIALIZER};

typedef struct side {
    pthread_mutex_t gil;
    bt_link *link;
    uint64_t sent, taken; /* entries */
    uint64_t control_sent, control_seen;
    bt_message *inbox; /* control messages that were read from the socket and are not due yet */
    int *inbox_sizes;
    int inbox_first, inbox_count;
    int hung_up;
    uint64_t seed, bells, direct;
} side;

enum { INBOX = 256 };

static side a, b;

/* ---- two mappings of one memory ---- */

#ifdef __SANITIZE_THREAD__
static struct { void *address; int users; } shared[64];
static pthread_mutex_t shared_lock = PTHREAD_MUTEX_INITIALIZER;

static void unmap_one(void *address, size_t size) {
    pthread_mutex_lock(&shared_lock);
    for (int i = 0; i < 64; i++)
        if (shared[i].address == address) {
            if (--shared[i].users == 0) {
                shared[i].address = NULL;
                CHECK((munmap)(address, size) == 0);
            }
            pthread_mutex_unlock(&shared_lock);
            return;
        }
    CHECK(!"unmapped once too often");
}

static void map_both(size_t size, void **writable, void **readable) {
    *writable = *readable = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(*writable != MAP_FAILED);
    pthread_mutex_lock(&shared_lock);
    int i = 0;
    while (shared[i].address) CHECK(++i < 64);
    shared[i].address = *writable;
    shared[i].users = 2;
    pthread_mutex_unlock(&shared_lock);
}
#else
static void unmap_one(void *address, size_t size) { CHECK((munmap)(address, size) == 0); }

static void map_both(size_t size, void **writable, void **readable) {
    int fd = memfd_create("outbox", MFD_CLOEXEC);
    CHECK(fd >= 0 && ftruncate(fd, (off_t)size) == 0);
    *writable = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    *readable = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
    CHECK(*writable != MAP_FAILED && *readable != MAP_FAILED);
    close(fd);
}
#endif

static void open_side(side *s, int sock, void *own, void *peer, size_t size, uint32_t slots, uint64_t seed) {
    memset(s, 0, sizeof *s);
    pthread_mutex_init(&s->gil, NULL);
    s->seed = seed;
    s->inbox = malloc(INBOX * sizeof *s->inbox);
    s->inbox_sizes = malloc(INBOX * sizeof *s->inbox_sizes);
    s->link = bt_link_new(&registry, sock);
    CHECK(s->link && s->inbox && s->inbox_sizes);
    CHECK(bt_registry_add_fd(&registry, sock) == 0);
    CHECK(bt_registry_add_range(&registry, own, size) == 0);
    CHECK(bt_registry_add_range(&registry, peer, size) == 0);
    bt_rings_init(&s->link->tx, &s->link->rx, own, peer, slots, META);
    s->link->own_size = s->link->peer_size = size;
}

static void open_sides(side *left, side *right, uint32_t slots, int tight) {
    int socks[2], least = 1;
    size_t size = bt_outbox_size(slots, META);
    void *own[2], *seen[2];
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, socks) == 0);
    for (int i = 0; i < 2; i++) {
        map_both(size, &own[i], &seen[i]);
        if (tight) CHECK(setsockopt(socks[i], SOL_SOCKET, SO_SNDBUF, &least, sizeof least) == 0);
    }
    open_side(left, socks[0], own[0], seen[1], size, slots, 1);
    open_side(right, socks[1], own[1], seen[0], size, slots, 2);
}

static void forget_side(side *s) {
    for (int i = 0; i < s->inbox_count; i++) {
        bt_message *m = &s->inbox[(s->inbox_first + i) % INBOX];
        for (int k = 0; k < m->fd_count; k++) close(m->fds[k]);
    }
    free(s->inbox);
    free(s->inbox_sizes);
    pthread_mutex_destroy(&s->gil);
    s->link = NULL;
}

static void close_side(side *s) {
    bt_carrier_release(&carrier, s->link);
    forget_side(s);
}

/* ---- what a user's calls do, as channel.pyx does it ---- */

static void carry(side *s) {
    if (!atomic_load_explicit(&s->link->waiting, memory_order_acquire)) return;
    if (bt_link_carry(s->link) == BT_CARRIED_ALL || s->hung_up) return;
    CHECK_EQUAL(bt_carrier_take(&carrier, &registry, s->link), 0);
}

/* Every entry follows from its number; some are control messages, some of those with descriptors. */
static int is_control(uint64_t number) { return number % 7 == 3; }
static int descriptors_of(uint64_t number) { return number % 14 == 3 ? 2 : 0; }
static uint32_t meta_size_of(uint64_t number) { return number % 3 == 0 ? 0 : number % 3 == 1 ? 20 : META; }
static size_t control_size_of(uint64_t number) { return 20 + number % 500; }

static void make_bytes(uint64_t number, uint8_t *to, size_t size) {
    for (size_t i = 0; i < size; i++) to[i] = (uint8_t)(number * 13 + i * 5 + (number >> 8));
}

static void push_control(side *s, bt_entry *entry) {
    bt_link *link = s->link;
    uint64_t number = entry->length;
    uint8_t data[600];
    int fds[2], count = descriptors_of(number);
    size_t size = control_size_of(number);
    make_bytes(number, data, size);
    entry->kind = BT_CONTROL;
    entry->serial = s->control_sent++;
    for (int i = 0; i < count; i++) {
        fds[i] = eventfd((unsigned)(number + (unsigned)i + 1), EFD_CLOEXEC | EFD_NONBLOCK);
        CHECK(fds[i] >= 0);
    }
    int direct = bt_link_direct(link, 1);
    CHECK(direct >= 0);
    if (direct) {
        int result = bt_message_send(link->sock, data, size, fds, count);
        if (result == 0) {
            for (int i = 0; i < count; i++) close(fds[i]);
            bt_tx_fill(&link->tx, 0, entry, data);
            bt_tx_publish(&link->tx, 1);
            bt_ring_data(link);
            return;
        }
        CHECK(result == -EAGAIN || result == -EPIPE || result == -ECONNRESET);
    }
    CHECK_EQUAL(bt_link_make_room(link, 1), 0);
    uint8_t *copy = malloc(size);
    int *held = count ? malloc(sizeof fds) : NULL;
    memcpy(copy, data, size);
    for (int i = 0; i < count; i++) {
        held[i] = fds[i];
        CHECK(bt_registry_add_fd(&registry, fds[i]) == 0);
    }
    bt_link_append(link, entry, copy, size, held, count);
    carry(s);
}

/* Under the GIL. Returns the entry's position. */
static uint64_t push(side *s) {
    bt_link *link = s->link;
    uint64_t number = s->sent++;
    bt_entry entry = {.kind = BT_MOVE, .serial = number, .length = number};
    uint8_t meta[META], *long_meta = NULL;
    link->issued++;
    if (is_control(number)) {
        push_control(s, &entry);
        return number;
    }
    entry.meta_size = meta_size_of(number);
    make_bytes(number, meta, entry.meta_size);
    int direct = bt_link_direct(link, 1);
    CHECK(direct >= 0);
    if (direct) {
        bt_tx_fill(&link->tx, 0, &entry, meta);
        bt_tx_publish(&link->tx, 1);
        bt_ring_data(link);
        s->direct++;
        return number;
    }
    CHECK_EQUAL(bt_link_make_room(link, 1), 0);
    if (entry.meta_size > BT_META_INLINE) {
        long_meta = malloc(entry.meta_size);
        memcpy(long_meta, meta, entry.meta_size);
    } else memcpy(entry.meta, meta, entry.meta_size);
    bt_link_append(link, &entry, long_meta, 0, NULL, 0);
    carry(s);
    return number;
}

static void read_socket(side *s) {
    while (!s->hung_up) {
        CHECK(s->inbox_count < INBOX);
        int at = (s->inbox_first + s->inbox_count) % INBOX;
        int size = bt_message_receive(s->link->sock, &s->inbox[at]);
        if (size == -EAGAIN) break;
        if (size <= 0) {
            s->hung_up = 1;
            break;
        }
        if (size == 1) {
            s->bells++;
            continue;
        }
        CHECK(!s->inbox[at].truncated);
        s->inbox_sizes[at] = size;
        s->inbox_count++;
    }
    carry(s);
}

static void take_control(side *s, const bt_entry *entry) {
    uint64_t number = entry->length;
    uint8_t wanted[600];
    CHECK_EQUAL(entry->serial, s->control_seen);
    s->control_seen++;
    if (!s->inbox_count) read_socket(s);
    CHECK(s->inbox_count > 0); /* sent before its entry was published */
    bt_message *m = &s->inbox[s->inbox_first];
    CHECK_EQUAL(s->inbox_sizes[s->inbox_first], control_size_of(number));
    make_bytes(number, wanted, control_size_of(number));
    CHECK(memcmp(m->data, wanted, control_size_of(number)) == 0);
    CHECK_EQUAL(m->fd_count, descriptors_of(number));
    for (int i = 0; i < m->fd_count; i++) {
        uint64_t count = 0;
        CHECK(read(m->fds[i], &count, sizeof count) == sizeof count);
        CHECK_EQUAL(count, number + (uint64_t)i + 1);
        close(m->fds[i]);
    }
    s->inbox_first = (s->inbox_first + 1) % INBOX;
    s->inbox_count--;
}

/* Under the GIL: take one entry, if there is one. */
static int take(side *s) {
    bt_entry entry;
    uint8_t meta[BT_META_MAX], wanted[META];
    int64_t there = bt_rx_look(&s->link->rx);
    CHECK(there >= 0);
    if (there == 0) return 0;
    CHECK_EQUAL(bt_rx_take(&s->link->rx, &entry, meta, META), 0);
    CHECK_EQUAL(entry.length, s->taken); /* in order, each once */
    if (is_control(entry.length)) {
        CHECK_EQUAL(entry.kind, BT_CONTROL);
        take_control(s, &entry);
    } else {
        CHECK(entry.kind == BT_MOVE && entry.serial == s->taken);
        CHECK_EQUAL(entry.meta_size, meta_size_of(s->taken));
        make_bytes(s->taken, wanted, entry.meta_size);
        CHECK(memcmp(meta, wanted, entry.meta_size) == 0);
    }
    s->taken++;
    bt_link_consumed(s->link);
    return 1;
}

/* Under the GIL, which is dropped while it sleeps. */
static void sleep_until_it_rings(side *s) {
    struct pollfd fd = {.fd = s->link->sock, .events = POLLIN};
    bt_link_retain(s->link);
    bt_link *held = s->link;
    pthread_mutex_unlock(&s->gil);
    while (poll(&fd, 1, -1) < 0) CHECK(errno == EINTR);
    pthread_mutex_lock(&s->gil);
    bt_link_release(held);
    read_socket(s);
}

/* Take entries until there have been `count`, or the end. */
static void receive(side *s, uint64_t count) {
    pthread_mutex_lock(&s->gil);
    while (s->taken < count) {
        if (take(s)) {
            if (dice_below(&s->seed, 16) == 0) { /* let others in */
                pthread_mutex_unlock(&s->gil);
                pthread_mutex_lock(&s->gil);
            }
            continue;
        }
        if (s->hung_up) break;
        bt_sleep_begin(&s->link->tx.own->sleep_data);
        int64_t there = bt_rx_look_again(&s->link->rx);
        CHECK(there >= 0);
        if (there == 0) sleep_until_it_rings(s);
        bt_sleep_end(&s->link->tx.own->sleep_data);
    }
    pthread_mutex_unlock(&s->gil);
}

/* The peer closed, and nothing else came. */
static void expect_the_end(side *s) {
    uint64_t before = s->taken;
    receive(s, UINT64_MAX);
    CHECK(s->hung_up);
    CHECK_EQUAL(s->taken, before);
}

static uint32_t finish_within(int seconds) {
    struct timespec deadline;
    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += seconds;
    return bt_carrier_finish(&carrier, &deadline);
}

static void expect_all_let_go(int descriptors) {
    CHECK_EQUAL(finish_within(20), 0);
    CHECK_EQUAL(open_descriptors(), descriptors);
    CHECK_EQUAL(registry.range_count, 0);
    CHECK_EQUAL(registry.fd_count, 2); /* the carrier's own */
}

/* The descriptors of a process whose carrier runs. */
static int descriptors_at_rest(void) {
    pthread_mutex_lock(&carrier.lock);
    CHECK_EQUAL(bt_carrier_start(&carrier, &registry), 0);
    pthread_mutex_unlock(&carrier.lock);
    return open_descriptors();
}

/* Bells that are not read fill the way from `s` to its peer. */
static void fill_socket(side *s) {
    char bell = 1;
    while (send(s->link->sock, &bell, 1, MSG_DONTWAIT) == 1) continue;
}

/* ---- tests ---- */

static uint64_t to_send, answers;

static void *send_all(void *argument) {
    side *s = argument;
    uint64_t most = s == &a ? to_send : answers;
    for (;;) {
        pthread_mutex_lock(&s->gil);
        int more = s->sent < most;
        for (uint32_t i = dice_below(&s->seed, 8); more && i < 8 && s->sent < most; i++) push(s);
        pthread_mutex_unlock(&s->gil);
        if (!more) return NULL;
        sched_yield();
    }
}

static void *receive_all(void *argument) {
    side *s = argument;
    receive(s, s == &a ? answers : to_send);
    return NULL;
}

static void test_all_arrives_in_order_while_users_and_carrier_send(void) {
    test(__func__);
    int descriptors = descriptors_at_rest();
    for (int variant = 0; variant < 6; variant++) {
        pthread_t threads[6];
        open_sides(&a, &b, variant % 3 == 2 ? 64 : variant % 3 ? 4 : 2, variant >= 3);
        to_send = 3000;
        answers = variant % 2 ? 2000 : 0;
        pthread_create(&threads[0], NULL, send_all, &a);
        pthread_create(&threads[1], NULL, send_all, &a);
        pthread_create(&threads[2], NULL, receive_all, &b);
        pthread_create(&threads[3], NULL, send_all, &b);
        pthread_create(&threads[4], NULL, send_all, &b);
        pthread_create(&threads[5], NULL, receive_all, &a);
        for (int i = 0; i < 6; i++) pthread_join(threads[i], NULL);
        CHECK(b.taken == to_send && a.taken == answers);
        close_side(&a);
        expect_the_end(&b);
        close_side(&b);
        expect_all_let_go(descriptors);
    }
}

static void test_the_carrier_sends_on_though_the_user_never_calls_again(void) {
    test(__func__);
    int descriptors = descriptors_at_rest();
    for (int deaf = 0; deaf < 2; deaf++) {
        open_sides(&a, &b, 4, 0);
        if (deaf) fill_socket(&b); /* as 278 bells do, which its user does not read: the carrier hears none then */
        for (int i = 0; i < 250; i++) push(&a);
        receive(&b, 250);
        CHECK_EQUAL(b.taken, 250);
        CHECK_EQUAL(finish_within(20), 0);
        close_side(&a);
        expect_the_end(&b);
        close_side(&b);
        expect_all_let_go(descriptors);
    }
}

static void test_what_was_accepted_arrives_after_the_user_closed(void) {
    test(__func__);
    int descriptors = descriptors_at_rest();
    for (int tight = 0; tight < 2; tight++) {
        open_sides(&a, &b, tight ? 64 : 2, tight);
        if (tight) fill_socket(&a); /* control messages find no room until the peer reads */
        for (int i = 0; i < 300; i++) push(&a);
        CHECK(atomic_load(&a.link->waiting) > 200);
        close_side(&a);
        receive(&b, UINT64_MAX);
        CHECK_EQUAL(b.taken, 300);
        CHECK(b.hung_up); /* only then did the socket close */
        close_side(&b);
        expect_all_let_go(descriptors);
    }
}

static void test_a_peer_that_dies_frees_what_waits_for_it(void) {
    test(__func__);
    int descriptors = descriptors_at_rest();
    for (int closes_first = 0; closes_first < 3; closes_first++)
        for (int tight = 0; tight < 2; tight++) {
            open_sides(&a, &b, 2, tight);
            for (int i = 0; i < 200; i++) push(&a);
            receive(&b, 50);
            if (closes_first == 1) close_side(&a);
            close_side(&b);
            if (closes_first == 0) {
                CHECK_EQUAL(finish_within(20), 0);
                CHECK(atomic_load(&a.link->waiting) > 100); /* kept for nothing, until its user lets go */
                CHECK(bt_link_carry(a.link) != BT_CARRIED_ALL);
                push(&a); /* and harmless */
            }
            if (closes_first != 1) close_side(&a);
            expect_all_let_go(descriptors);
        }
}

static void test_a_user_who_ends_it_closes_the_socket_at_once(void) {
    test(__func__);
    int descriptors = descriptors_at_rest();
    open_sides(&a, &b, 2, 0);
    for (int i = 0; i < 100; i++) push(&a);
    atomic_store(&a.link->ended, 1);
    CHECK_EQUAL(bt_link_carry(a.link), BT_CARRY_ENDED);
    close_side(&a);
    receive(&b, UINT64_MAX); /* what was in the ring, then the end */
    CHECK(b.hung_up && b.taken >= 2 && b.taken < 100);
    close_side(&b);
    expect_all_let_go(descriptors);
}

static void *send_the_rest_and_close(void *unused) {
    pthread_mutex_lock(&a.gil);
    while (atomic_load(&a.link->waiting)) {
        if (bt_link_await(a.link)) sleep_until_it_rings(&a);
        else carry(&a);
    }
    pthread_mutex_unlock(&a.gil);
    bt_carrier_release(&carrier, a.link);
    return unused;
}

static void test_a_user_who_sends_the_rest_leaves_nothing_to_the_carrier(void) {
    test(__func__);
    int descriptors = descriptors_at_rest();
    for (int i = 0; i < 20; i++) {
        pthread_t thread;
        open_sides(&a, &b, 2, 0);
        for (int k = 0; k < 40; k++) push(&a);
        pthread_create(&thread, NULL, send_the_rest_and_close, NULL);
        receive(&b, UINT64_MAX);
        CHECK(b.taken == 40 && b.hung_up);
        pthread_join(thread, NULL);
        forget_side(&a);
        close_side(&b);
        expect_all_let_go(descriptors);
    }
}

/* Waits for the peer to take what it sent, again and again, while another thread sends. */
static void *await_outcomes(void *unused) {
    pthread_mutex_lock(&a.gil);
    for (int i = 0; i < 150; i++) {
        uint64_t position = push(&a), consumed = 0;
        for (;;) {
            CHECK_EQUAL(bt_link_refresh(a.link, &consumed), 0);
            if (consumed > position) break;
            int same = bt_link_await(a.link);
            CHECK_EQUAL(bt_link_refresh(a.link, &consumed), 0);
            if (consumed > position) break;
            if (same) sleep_until_it_rings(&a);
        }
        pthread_mutex_unlock(&a.gil);
        sched_yield();
        pthread_mutex_lock(&a.gil);
    }
    to_send = a.sent;
    pthread_mutex_unlock(&a.gil);
    return unused;
}

static void *send_in_gusts(void *unused) {
    for (int i = 0; i < 150; i++) {
        pthread_mutex_lock(&a.gil);
        for (uint32_t k = dice_below(&a.seed, 12); k > 0; k--) push(&a);
        pthread_mutex_unlock(&a.gil);
        sched_yield();
    }
    return unused;
}

static void *receive_to_the_end(void *unused) {
    receive(&b, UINT64_MAX);
    return unused;
}

static void test_outcomes_are_seen_while_the_carrier_sends(void) {
    test(__func__);
    int descriptors = descriptors_at_rest();
    for (int slots = 2; slots <= 8; slots *= 4) {
        pthread_t threads[3];
        open_sides(&a, &b, (uint32_t)slots, 0);
        pthread_create(&threads[0], NULL, await_outcomes, NULL);
        pthread_create(&threads[1], NULL, send_in_gusts, NULL);
        pthread_create(&threads[2], NULL, receive_to_the_end, NULL);
        pthread_join(threads[0], NULL);
        pthread_join(threads[1], NULL);
        uint64_t sent = a.sent;
        close_side(&a);
        pthread_join(threads[2], NULL);
        CHECK_EQUAL(b.taken, sent);
        close_side(&b);
        expect_all_let_go(descriptors);
    }
}

static void test_an_impossible_index_ends_it(void) {
    test(__func__);
    int descriptors = descriptors_at_rest();
    uint64_t consumed;
    open_sides(&a, &b, 2, 0);
    push(&a), push(&a);
    atomic_store(&b.link->tx.own->consumed, 3);
    CHECK_EQUAL(bt_link_direct(a.link, 1), -1);
    CHECK_EQUAL(bt_link_refresh(a.link, &consumed), -1);
    CHECK_EQUAL(consumed, 0);
    bt_entry entry = {.kind = BT_MOVE};
    CHECK_EQUAL(bt_link_make_room(a.link, 1), 0);
    bt_link_append(a.link, &entry, NULL, 0, NULL, 0);
    CHECK_EQUAL(bt_link_carry(a.link), BT_CARRY_ENDED);
    CHECK_EQUAL(bt_link_refresh(a.link, &consumed), -1);
    CHECK_EQUAL(bt_carrier_take(&carrier, &registry, a.link), 0);
    CHECK_EQUAL(finish_within(20), 0); /* the helper has no use for it */
    close_side(&a);
    close_side(&b);
    expect_all_let_go(descriptors);
}

static void test_a_peer_that_never_takes_is_reported_at_the_deadline(void) {
    test(__func__);
    int descriptors = descriptors_at_rest();
    open_sides(&a, &b, 2, 0);
    for (int i = 0; i < 10; i++) push(&a);
    CHECK_EQUAL(finish_within(0), 1);
    close_side(&a);
    CHECK_EQUAL(finish_within(0), 1);
    close_side(&b);
    expect_all_let_go(descriptors);
}

static void test_a_link_that_cannot_be_watched_stays_with_its_user(void) {
    test(__func__);
    int descriptors = descriptors_at_rest();
    open_sides(&a, &b, 2, 0);
    int sock = a.link->sock;
    push(&a), push(&a);
    bt_entry entry = {.kind = BT_MOVE, .length = 2, .serial = 2};
    CHECK_EQUAL(bt_link_make_room(a.link, 1), 0);
    bt_link_append(a.link, &entry, NULL, 0, NULL, 0);
    a.link->sock = -1;
    CHECK_EQUAL(bt_carrier_take(&carrier, &registry, a.link), -EBADF);
    CHECK_EQUAL(atomic_load(&a.link->owners), 1);
    CHECK_EQUAL(carrier.count, 0);
    a.link->sock = sock;
    a.sent = a.link->issued = 3;
    CHECK(take(&b) && take(&b));
    carry(&a);
    CHECK_EQUAL(atomic_load(&a.link->waiting), 0);
    close_side(&a);
    close_side(&b);
    expect_all_let_go(descriptors);
}

static void test_one_carrier_serves_many_links(void) {
    test(__func__);
    enum { MANY = 15 };
    static side left[MANY], right[MANY];
    int descriptors = descriptors_at_rest();
    for (int i = 0; i < MANY; i++) {
        open_sides(&left[i], &right[i], 2, i % 2);
        for (int k = 0; k < 60; k++) push(&left[i]);
    }
    for (int i = 0; i < MANY; i += 2) close_side(&left[i]);
    for (int i = MANY - 1; i >= 0; i--) {
        if (i % 5 == 4) close_side(&right[i]); /* dies */
        else receive(&right[i], 60);
    }
    for (int i = 1; i < MANY; i += 2) close_side(&left[i]);
    for (int i = 0; i < MANY; i++)
        if (i % 5 != 4) {
            expect_the_end(&right[i]);
            CHECK_EQUAL(right[i].taken, 60);
            close_side(&right[i]);
        }
    expect_all_let_go(descriptors);
}

int main(void) {
    test_all_arrives_in_order_while_users_and_carrier_send();
    test_the_carrier_sends_on_though_the_user_never_calls_again();
    test_what_was_accepted_arrives_after_the_user_closed();
    test_a_peer_that_dies_frees_what_waits_for_it();
    test_a_user_who_ends_it_closes_the_socket_at_once();
    test_a_user_who_sends_the_rest_leaves_nothing_to_the_carrier();
    test_outcomes_are_seen_while_the_carrier_sends();
    test_an_impossible_index_ends_it();
    test_a_peer_that_never_takes_is_reported_at_the_deadline();
    test_a_link_that_cannot_be_watched_stays_with_its_user();
    test_one_carrier_serves_many_links();
    return 0;
}
