/* message.h: bytes and descriptors arrive together, nothing waits, and no descriptor is lost or left open. */
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "check.h"

static int without_memory; /* how many of the next calls find no memory in the kernel */
static ssize_t scarce_send(int sock, const void *data, size_t size, int flags);
#include <sys/socket.h>
#define send scarce_send
#include "message.h"
#undef send

static ssize_t scarce_send(int sock, const void *data, size_t size, int flags) {
    if (without_memory <= 0) return send(sock, data, size, flags);
    without_memory--;
    errno = ENOBUFS;
    return -1;
}

static int here, there;

static void open_pair(void) {
    int socks[2];
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, socks) == 0);
    here = socks[0], there = socks[1];
}

static void close_pair(void) {
    close(here);
    close(there);
}

static void close_all(bt_message *m) {
    for (int i = 0; i < m->fd_count; i++) CHECK(close(m->fds[i]) == 0);
}

static void test_nothing_there_is_eagain_and_a_closed_peer_is_the_end(void) {
    test(__func__);
    bt_message m;
    open_pair();
    CHECK_EQUAL(bt_message_receive(there, &m), -EAGAIN);
    CHECK(m.fd_count == 0 && !m.truncated && !m.has_credentials);
    close(here);
    CHECK_EQUAL(bt_message_receive(there, &m), 0);
    CHECK_EQUAL(bt_message_receive(there, &m), 0);
    CHECK_EQUAL(bt_message_send(there, "x", 1, NULL, 0), -EPIPE); /* and no signal */
    bt_ring_bell(there);
    close(there);
}

static void test_bells_and_messages_keep_their_order(void) {
    test(__func__);
    bt_message m;
    open_pair();
    bt_ring_bell(here);
    CHECK_EQUAL(bt_message_send(here, "first", 5, NULL, 0), 0);
    bt_ring_bell(here);
    bt_ring_bell(here);
    CHECK_EQUAL(bt_message_send(here, "second", 6, NULL, 0), 0);
    CHECK_EQUAL(bt_message_receive(there, &m), 1);
    CHECK_EQUAL(m.data[0], 1);
    CHECK(bt_message_receive(there, &m) == 5 && memcmp(m.data, "first", 5) == 0);
    CHECK_EQUAL(bt_message_receive(there, &m), 1);
    CHECK_EQUAL(bt_message_receive(there, &m), 1);
    CHECK(bt_message_receive(there, &m) == 6 && memcmp(m.data, "second", 6) == 0);
    CHECK_EQUAL(bt_message_receive(there, &m), -EAGAIN);
    close_pair();
}

static void test_the_longest_message_fits_and_a_longer_one_says_so(void) {
    test(__func__);
    static uint8_t data[BT_MESSAGE_MAX + 1];
    bt_message m;
    for (size_t i = 0; i < sizeof data; i++) data[i] = (uint8_t)(i * 7);
    open_pair();
    CHECK_EQUAL(bt_message_send(here, data, BT_MESSAGE_MAX, NULL, 0), 0);
    CHECK_EQUAL(bt_message_receive(there, &m), BT_MESSAGE_MAX);
    CHECK(memcmp(m.data, data, BT_MESSAGE_MAX) == 0 && !m.truncated);
    CHECK_EQUAL(bt_message_send(here, data, BT_MESSAGE_MAX + 1, NULL, 0), 0);
    CHECK_EQUAL(bt_message_receive(there, &m), BT_MESSAGE_MAX);
    CHECK(m.truncated);
    CHECK_EQUAL(bt_message_receive(there, &m), -EAGAIN); /* the rest is gone, not a message of its own */
    close_pair();
}

static void test_as_many_descriptors_as_the_kernel_takes_arrive_in_order(void) {
    test(__func__);
    bt_message m;
    int fds[BT_FDS_MAX + 1];
    int before = open_descriptors();
    open_pair();
    for (int i = 0; i < BT_FDS_MAX + 1; i++) {
        fds[i] = open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
        if (fds[i] < 0) fds[i] = open("/dev/null", O_RDWR | O_CLOEXEC);
        CHECK(fds[i] >= 0);
        CHECK(fcntl(fds[i], F_SETFD, 0) == 0); /* close-on-exec is set by the receiver */
    }
    static const int counts[] = {1, 2, 3, 16, BT_FDS_MAX - 1, BT_FDS_MAX};
    for (size_t k = 0; k < sizeof counts / sizeof *counts; k++) {
        CHECK_EQUAL(bt_message_send(here, "fds", 3, fds, counts[k]), 0);
        int open_now = open_descriptors();
        CHECK_EQUAL(bt_message_receive(there, &m), 3);
        CHECK_EQUAL(m.fd_count, counts[k]);
        CHECK(!m.truncated);
        CHECK_EQUAL(open_descriptors(), open_now + counts[k]);
        for (int i = 0; i < m.fd_count; i++) {
            off_t offset = lseek(fds[i], 1000 + i, SEEK_SET); /* the same open file, at its place */
            CHECK(lseek(m.fds[i], 0, SEEK_CUR) == offset);
            CHECK(fcntl(m.fds[i], F_GETFD) == FD_CLOEXEC);
        }
        close_all(&m);
    }
    CHECK_EQUAL(bt_message_send(here, "x", 1, fds, BT_FDS_MAX + 1), -EINVAL);
    CHECK_EQUAL(bt_message_send(here, "x", 1, fds, -1), -EINVAL);
    CHECK_EQUAL(bt_message_receive(there, &m), -EAGAIN);
    for (int i = 0; i < BT_FDS_MAX + 1; i++) close(fds[i]);
    close_pair();
    CHECK_EQUAL(open_descriptors(), before);
}

/* Credentials and descriptors share the control data: both fit, whoever asks for both. */
static void test_credentials_leave_room_for_all_descriptors(void) {
    test(__func__);
    bt_message m;
    int fds[BT_FDS_MAX], on = 1, before = open_descriptors();
    open_pair();
    CHECK(setsockopt(there, SOL_SOCKET, SO_PASSCRED, &on, sizeof on) == 0);
    for (int i = 0; i < BT_FDS_MAX; i++) fds[i] = here;
    CHECK_EQUAL(bt_message_send(here, "hello", 5, fds, BT_FDS_MAX), 0);
    CHECK_EQUAL(bt_message_receive(there, &m), 5);
    CHECK(m.has_credentials && !m.truncated);
    CHECK_EQUAL(m.fd_count, BT_FDS_MAX);
    CHECK(m.credentials.pid == getpid() && m.credentials.uid == getuid() && m.credentials.gid == getgid());
    close_all(&m);
    CHECK_EQUAL(bt_message_send(here, "bye", 3, NULL, 0), 0);
    CHECK_EQUAL(bt_message_receive(there, &m), 3);
    CHECK(m.has_credentials && m.fd_count == 0);
    close_pair();
    CHECK_EQUAL(open_descriptors(), before);
}

/* The own table of descriptors is full: what fits is there and can be closed, and the loss is told. */
static void test_lost_descriptors_are_told_and_the_others_not_leaked(void) {
    test(__func__);
    bt_message m;
    struct rlimit old, low;
    int fds[20], before = open_descriptors();
    open_pair();
    for (int i = 0; i < 20; i++) fds[i] = here;
    CHECK_EQUAL(bt_message_send(here, "many", 4, fds, 20), 0);
    CHECK(getrlimit(RLIMIT_NOFILE, &old) == 0);
    int next = dup(here);
    close(next);
    low = (struct rlimit){.rlim_cur = (rlim_t)next + 4, .rlim_max = old.rlim_max};
    CHECK(setrlimit(RLIMIT_NOFILE, &low) == 0);
    CHECK_EQUAL(bt_message_receive(there, &m), 4);
    CHECK(setrlimit(RLIMIT_NOFILE, &old) == 0);
    CHECK(m.truncated);
    CHECK_EQUAL(m.fd_count, 4);
    close_all(&m);
    close_pair();
    CHECK_EQUAL(open_descriptors(), before);
}

/* A peer may put more than one block of rights, or of anything, beside its bytes. */
static void test_a_peer_who_sends_two_blocks_of_descriptors_leaks_none(void) {
    test(__func__);
    bt_message m;
    int before = open_descriptors(), count = 0;
    open_pair();
    struct iovec part = {"x2", 2};
    union {
        struct cmsghdr head;
        char room[2 * CMSG_SPACE(100 * sizeof(int))];
    } control;
    memset(&control, 0, sizeof control);
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.room, .msg_controllen = sizeof control.room};
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); count < 2; c = CMSG_NXTHDR(&message, c), count++) {
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(100 * sizeof(int));
        for (int i = 0; i < 100; i++) memcpy(CMSG_DATA(c) + (size_t)i * sizeof(int), &there, sizeof there);
    }
    CHECK_EQUAL(sendmsg(here, &message, MSG_DONTWAIT), 2);
    CHECK_EQUAL(bt_message_receive(there, &m), 2);
    CHECK_EQUAL(m.fd_count, 200);
    close_all(&m);
    close_pair();
    CHECK_EQUAL(open_descriptors(), before);
}

static void test_a_full_socket_is_eagain_and_swallows_bells(void) {
    test(__func__);
    static uint8_t data[BT_MESSAGE_MAX];
    bt_message m;
    int count = 0, result, received = 0, before = open_descriptors(), fd;
    open_pair();
    fd = dup(here);
    while ((result = bt_message_send(here, data, sizeof data, &fd, 1)) == 0) CHECK(++count < 100000);
    CHECK_EQUAL(result, -EAGAIN);
    for (int i = 0; i < 1000; i++) bt_ring_bell(here); /* some fit behind, the rest is lost; it never waits */
    while ((result = bt_message_receive(there, &m)) > 0) {
        received += result == BT_MESSAGE_MAX;
        close_all(&m);
    }
    CHECK_EQUAL(result, -EAGAIN);
    CHECK_EQUAL(received, count);
    CHECK_EQUAL(bt_message_send(here, data, sizeof data, NULL, 0), 0);
    close(fd);
    close_pair();
    CHECK_EQUAL(open_descriptors(), before);
}

/* The kernel says ECONNRESET first where a peer closes with something of ours unread (a bell is enough). */
static void test_the_last_words_of_a_peer_that_left_bells_unread_arrive(void) {
    test(__func__);
    bt_message m;
    int before = open_descriptors();
    open_pair();
    bt_ring_bell(there);
    CHECK_EQUAL(bt_message_send(here, "last words", 10, &here, 1), 0);
    close(here);
    CHECK_EQUAL(bt_message_receive(there, &m), 10);
    CHECK(memcmp(m.data, "last words", 10) == 0);
    close_all(&m);
    CHECK_EQUAL(bt_message_receive(there, &m), 0);
    close(there);
    CHECK_EQUAL(open_descriptors(), before);
}

/* The peer shares the flags of its own end only; but whoever hands a socket on shares them all (design 8, rule 2). */
static void test_no_call_waits_on_a_blocking_socket(void) {
    test(__func__);
    static uint8_t data[BT_MESSAGE_MAX];
    bt_message m;
    open_pair();
    CHECK((fcntl(there, F_GETFL) & O_NONBLOCK) == 0);
    CHECK_EQUAL(bt_message_receive(there, &m), -EAGAIN);
    while (bt_message_send(here, data, sizeof data, NULL, 0) == 0) continue;
    bt_ring_bell(here);
    close_pair();
}

static void test_a_bell_is_repeated_where_the_kernel_had_no_memory(void) {
    test(__func__);
    bt_message m;
    open_pair();
    without_memory = BT_BELL_TRIES - 1;
    CHECK_EQUAL(bt_ring_bell(here), 0);
    CHECK_EQUAL(bt_message_receive(there, &m), 1);
    without_memory = BT_BELL_TRIES;
    CHECK_EQUAL(bt_ring_bell(here), -1); /* the caller rings again with the next entry */
    CHECK_EQUAL(bt_message_receive(there, &m), -EAGAIN);
    CHECK_EQUAL(bt_ring_bell(here), 0);
    close_pair();
}

int main(void) {
    test_nothing_there_is_eagain_and_a_closed_peer_is_the_end();
    test_bells_and_messages_keep_their_order();
    test_the_longest_message_fits_and_a_longer_one_says_so();
    test_as_many_descriptors_as_the_kernel_takes_arrive_in_order();
    test_credentials_leave_room_for_all_descriptors();
    test_lost_descriptors_are_told_and_the_others_not_leaked();
    test_a_peer_who_sends_two_blocks_of_descriptors_leaks_none();
    test_a_full_socket_is_eagain_and_swallows_bells();
    test_the_last_words_of_a_peer_that_left_bells_unread_arrive();
    test_no_call_waits_on_a_blocking_socket();
    test_a_bell_is_repeated_where_the_kernel_had_no_memory();
    return 0;
}
