/* Messages of pipes and queues: one message of a SOCK_SEQPACKET socket each, at most one descriptor beside it.
 *
 * Knows: sendmsg, recvmsg, how messages are laid out and counted. Must not know: objects, pools or Python.
 * The kernel takes and gives a message whole or not at all, whoever is killed meanwhile, and any number of processes
 * may do either. A counted message is padded so that its size is 1 more than a multiple of the grid: the size of all
 * that is unread (FIONREAD), modulo the grid, is their number, exact at every instant.
 */
#ifndef BT_POST_H
#define BT_POST_H

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define BT_POST_GRID 512
#define BT_POST_BODY_MAX (32 * 1024)
/* Twice this (the kernel doubles it) holds less than BT_POST_GRID messages: one takes at least 1,280 bytes. */
#define BT_POST_ROOM 212992

typedef struct bt_post_head {
    uint32_t size; /* of the body */
    uint32_t kind;
} bt_post_head;
static_assert(sizeof(bt_post_head) == 8, "two processes share it");

/* 0, or -errno. `flags`: MSG_DONTWAIT, or 0 to wait for room. */
static inline int bt_post_send(int sock, uint32_t kind, const void *body, size_t size, int fd, int counted, int flags) {
    static const char zeros[BT_POST_GRID];
    bt_post_head head = {(uint32_t)size, kind};
    size_t whole = sizeof head + size;
    size_t pad = counted ? (BT_POST_GRID + 1 - whole % BT_POST_GRID) % BT_POST_GRID : 0;
    if (counted && whole + pad == 1) pad += BT_POST_GRID;
    struct iovec parts[3] = {{&head, sizeof head}, {(void *)body, size}, {(void *)zeros, pad}};
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(int))];
    } control;
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 3};
    if (size > BT_POST_BODY_MAX) return -EMSGSIZE;
    if (fd >= 0) {
        memset(&control, 0, sizeof control);
        message.msg_control = control.room;
        message.msg_controllen = sizeof control.room;
        struct cmsghdr *c = CMSG_FIRSTHDR(&message);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(c), &fd, sizeof fd);
    }
    return sendmsg(sock, &message, flags | MSG_NOSIGNAL) < 0 ? -errno : 0;
}

typedef struct bt_letter {
    bt_post_head head;
    uint8_t body[BT_POST_BODY_MAX + BT_POST_GRID];
    int fd;        /* -1: none */
    int truncated; /* the descriptor found no room in this process */
    int64_t uid;   /* of the sender, named by the kernel; -1: not asked for */
} bt_letter;

/* 1: here it is; 0: nothing will come any more; -errno (EAGAIN: none now; EPROTO: not such a message). */
static inline int bt_post_receive(int sock, bt_letter *l, int flags) {
    struct iovec part = {l, offsetof(bt_letter, fd)};
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(int)) + CMSG_SPACE(sizeof(struct ucred))];
    } control;
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = control.room, .msg_controllen = sizeof control.room};
    ssize_t size;
    l->fd = -1;
    l->uid = -1;
    /* ECONNRESET: the peer closed and left something of ours unread; said once, ahead of what it had sent. */
    do size = recvmsg(sock, &message, flags | MSG_CMSG_CLOEXEC);
    while (size < 0 && errno == ECONNRESET);
    if (size < 0) return -errno;
    l->truncated = (message.msg_flags & MSG_CTRUNC) != 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
        if (c->cmsg_level != SOL_SOCKET) continue;
        if (c->cmsg_type == SCM_CREDENTIALS && c->cmsg_len >= CMSG_LEN(sizeof(struct ucred))) {
            struct ucred who;
            memcpy(&who, CMSG_DATA(c), sizeof who);
            l->uid = who.uid;
        }
        if (c->cmsg_type != SCM_RIGHTS) continue;
        for (size_t i = 0; i < (c->cmsg_len - CMSG_LEN(0)) / sizeof(int); i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof fd);
            if (l->fd < 0) l->fd = fd;
            else close(fd);
        }
    }
    if (size == 0) return 0;
    if ((size_t)size < sizeof l->head || l->head.size > (size_t)size - sizeof l->head) {
        if (l->fd >= 0) close(l->fd);
        l->fd = -1;
        return -EPROTO;
    }
    return 1;
}

/* How many counted messages are unread; -errno. */
static inline int bt_post_unread(int sock) {
    int size = 0;
    return ioctl(sock, FIONREAD, &size) < 0 ? -errno : size % BT_POST_GRID;
}

/* 1: something can be done, or the other end is closed; 0: the time is over; -errno. */
static inline int bt_post_wait(int sock, int events, int timeout_ms) {
    struct pollfd one = {.fd = sock, .events = (short)events};
    int result = poll(&one, 1, timeout_ms);
    return result < 0 ? -errno : result;
}

#endif
