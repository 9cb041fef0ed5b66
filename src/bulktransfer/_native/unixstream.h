/* A Unix stream socket as a stream (far.h), through which bytes come and nothing else.
 *
 * Knows: one socket, and that a peer can put descriptors beside the bytes. Must not know: frames, or Python.
 * Where nothing takes them, the kernel closes them in the middle of the read, which lasts as long as the peer likes
 * (foreign.h). So they are taken, let go of apart, and what came with them is not used: nothing here asks for any.
 */
#ifndef BT_UNIXSTREAM_H
#define BT_UNIXSTREAM_H

#include "far.h"
#include "foreign.h"
#include "tcpstream.h"

static inline int bt_is_unix(int sock) {
    int domain = 0;
    socklen_t size = sizeof domain;
    return getsockopt(sock, SOL_SOCKET, SO_DOMAIN, &domain, &size) == 0 && domain == AF_UNIX;
}

/* As bt_stream.read; -EPROTO: there were descriptors beside the bytes. */
static inline ssize_t bt_unix_receive(bt_registry *r, int sock, struct iovec *parts, int count) {
    bt_message m; /* of it the descriptors only */
    ssize_t size = bt_message_scatter(sock, parts, (size_t)count, &m);
    if (size < 0 || (!m.fd_count && !m.deprived)) return size;
    bt_close_received(r, &m);
    return -EPROTO;
}

static inline ssize_t bt_unix_read(void *self, struct iovec *parts, int count) {
    bt_link *link = self;
    bt_far *far = link->far;
    ssize_t size = bt_unix_receive(link->registry, far->fd, parts, count);
    if (size == -EPROTO) far->take.violation = "descriptors beside the bytes of a stream";
    return size;
}

static inline ssize_t bt_unix_write(void *self, struct iovec *parts, int count) {
    bt_far *far = ((bt_link *)self)->far;
    return bt_tcp_write((void *)(intptr_t)far->fd, parts, count);
}

static inline ssize_t bt_unix_skip(void *self, uint64_t size) {
    uint8_t waste[16384]; /* MSG_TRUNC is TCP's: here the bytes want a place */
    struct iovec part = {waste, size < sizeof waste ? size : sizeof waste};
    return bt_unix_read(self, &part, 1);
}

static inline void bt_unix_finish(void *self) {
    bt_far *far = ((bt_link *)self)->far;
    shutdown(far->fd, SHUT_WR);
}

static inline void bt_unix_close(void *self) {
    bt_link *link = self;
    bt_far *far = link->far;
    if (far->fd >= 0) bt_hang_up(link->registry, far->fd); /* descriptors that lie unread in it stick, too */
    far->fd = -1;
}

static const bt_stream bt_unix_stream = {bt_unix_read, bt_unix_write, bt_unix_skip, NULL, bt_unix_finish, bt_unix_close};

#endif
