/* A TCP connection as a stream (far.h): scattered reads and gathered writes that never wait.
 *
 * Knows: one socket. Must not know: frames, or Python.
 */
#ifndef BT_TCPSTREAM_H
#define BT_TCPSTREAM_H

#include "far.h"

static inline ssize_t bt_tcp_read(void *self, struct iovec *parts, int count) {
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = (size_t)count};
    ssize_t size;
    do size = recvmsg((int)(intptr_t)self, &message, MSG_DONTWAIT);
    while (size < 0 && errno == EINTR);
    return size < 0 ? -errno : size;
}

static inline ssize_t bt_tcp_write(void *self, struct iovec *parts, int count) {
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = (size_t)count};
    ssize_t size;
    do size = sendmsg((int)(intptr_t)self, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (size < 0 && errno == EINTR);
    return size < 0 ? -errno : size;
}

/* The kernel drops the bytes (tcp(7): MSG_TRUNC), so there is nothing to copy. */
static inline ssize_t bt_tcp_skip(void *self, uint64_t size) {
    ssize_t skipped;
    if (size > (uint64_t)1 << 30) size = (uint64_t)1 << 30;
    do skipped = recv((int)(intptr_t)self, NULL, size, MSG_DONTWAIT | MSG_TRUNC);
    while (skipped < 0 && errno == EINTR);
    return skipped < 0 ? -errno : skipped;
}

static inline void bt_tcp_finish(void *self) { shutdown((int)(intptr_t)self, SHUT_WR); }

static inline void bt_tcp_close(void *self) { (void)self; /* the descriptor is the link's */ }

static const bt_stream bt_tcp_stream = {bt_tcp_read, bt_tcp_write, bt_tcp_skip, NULL, bt_tcp_finish, bt_tcp_close};

#endif
