/* Control messages and bells on a channel's socket: bytes with descriptors beside them.
 *
 * Knows: sendmsg and recvmsg of Unix sockets. Must not know: what messages mean, or Python.
 * The peer shares the file description's flags, so every call is non-blocking by its own flag (design 8, rule 2).
 */
#ifndef BT_MESSAGE_H
#define BT_MESSAGE_H

#include <errno.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define BT_MESSAGE_MAX 4096
#define BT_FDS_MAX 253 /* the kernel's limit for one message */

#define BT_BELL_TRIES 100

/* One byte, or nothing if the socket is full: then the peer has bells to hear already. 0, or -1 if the kernel had no
 * memory for it, so that the peer heard nothing. */
static inline int bt_ring_bell(int sock) {
    char bell = 1;
    for (int tries = 0; tries < BT_BELL_TRIES; tries++) {
        if (send(sock, &bell, 1, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0) return 0;
        if (errno != ENOBUFS && errno != ENOMEM && errno != EINTR) return 0; /* full, or nobody is there */
        sched_yield();
    }
    return -1;
}

/* 0, or -errno (EAGAIN: the socket is full). */
static inline int bt_message_send(int sock, const void *data, size_t size, const int *fds, int fd_count) {
    struct iovec part = {(void *)data, size};
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(BT_FDS_MAX * sizeof(int))];
    } control;
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (fd_count < 0 || fd_count > BT_FDS_MAX) return -EINVAL;
    if (fd_count) {
        memset(&control, 0, sizeof control.head);
        message.msg_control = control.room;
        message.msg_controllen = CMSG_SPACE((size_t)fd_count * sizeof(int));
        struct cmsghdr *c = CMSG_FIRSTHDR(&message);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN((size_t)fd_count * sizeof(int));
        memcpy(CMSG_DATA(c), fds, (size_t)fd_count * sizeof(int));
    }
    for (;;) {
        if (sendmsg(sock, &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0) return 0;
        if (errno != EINTR) return -errno;
    }
}

/* A sealed frame on its way, ahead of the entry that names its serial. */
typedef struct bt_frame_message {
    char magic[4]; /* "BTFR", which no control message begins with */
    uint32_t zero;
    uint64_t serial; /* counts the frames of this direction of the channel */
} bt_frame_message;

/* 0, or -errno as bt_message_send. */
static inline int bt_frame_send(int sock, uint64_t serial, int fd) {
    bt_frame_message message = {.magic = {'B', 'T', 'F', 'R'}, .serial = serial};
    return bt_message_send(sock, &message, sizeof message, &fd, 1);
}

typedef struct bt_message {
    uint8_t data[BT_MESSAGE_MAX];
    int fds[BT_FDS_MAX];
    int fd_count;
    int truncated; /* data or descriptors did not fit */
    int deprived;  /* descriptors did not: this process can have no more */
    int has_credentials;
    struct ucred credentials;
} bt_message;

/* What is beside the next bytes into `m`, the bytes into `parts`: how many, or as bt_message_receive. */
static inline ssize_t bt_message_scatter(int sock, struct iovec *parts, size_t part_count, bt_message *m) {
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(BT_FDS_MAX * sizeof(int)) + CMSG_SPACE(sizeof(struct ucred))];
    } control;
    struct msghdr message = {
        .msg_iov = parts, .msg_iovlen = part_count, .msg_control = control.room, .msg_controllen = sizeof control.room};
    ssize_t size;
    m->fd_count = m->truncated = m->has_credentials = 0;
    /* ECONNRESET: the peer closed and left something of ours unread. It is said once, ahead of what the peer
     * had sent before, which is still there. */
    do size = recvmsg(sock, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    while (size < 0 && (errno == EINTR || errno == ECONNRESET));
    if (size < 0) return -errno;
    m->truncated = (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0;
    m->deprived = (message.msg_flags & MSG_CTRUNC) != 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
        if (c->cmsg_level != SOL_SOCKET) continue;
        if (c->cmsg_type == SCM_RIGHTS) {
            int count = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
            for (int i = 0; i < count; i++) {
                int fd;
                memcpy(&fd, CMSG_DATA(c) + (size_t)i * sizeof(int), sizeof fd);
                if (m->fd_count < BT_FDS_MAX) m->fds[m->fd_count++] = fd;
                else close(fd);
            }
        } else if (c->cmsg_type == SCM_CREDENTIALS && c->cmsg_len >= CMSG_LEN(sizeof(struct ucred))) {
            memcpy(&m->credentials, CMSG_DATA(c), sizeof m->credentials);
            m->has_credentials = 1;
        }
    }
    return size;
}

/* The next message: its size, 0 at the end (the peer closed), or -errno (EAGAIN: none now). */
static inline int bt_message_receive(int sock, bt_message *m) {
    struct iovec part = {m->data, sizeof m->data};
    return (int)bt_message_scatter(sock, &part, 1, m);
}

/* Whether a message of `size` bytes brings a frame, and which. */
static inline int bt_is_frame_message(const bt_message *m, int size, uint64_t *serial) {
    bt_frame_message head;
    if (size != (int)sizeof head) return 0;
    memcpy(&head, m->data, sizeof head);
    *serial = head.serial;
    return memcmp(head.magic, "BTFR", 4) == 0;
}

#endif
