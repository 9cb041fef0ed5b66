"""What other modules of this room use of a message."""

from libc.stdint cimport int64_t, uint8_t, uint32_t

cdef extern from "post.h" nogil:
    enum: BT_POST_BODY_MAX, BT_POST_ROOM
    ctypedef struct bt_post_head:
        uint32_t size
        uint32_t kind
    ctypedef struct bt_letter:
        bt_post_head head
        uint8_t body[1]
        int fd
        int truncated
        int64_t uid
    int bt_post_send(int sock, uint32_t kind, const void* body, size_t size, int fd, int counted, int flags)
    int bt_post_receive(int sock, bt_letter* letter, int flags)
    int bt_post_unread(int sock)
    int bt_post_wait(int sock, int events, int timeout_ms)
    enum: MSG_DONTWAIT, POLLIN, POLLOUT
    unsigned int getuid()

cdef object opened(bt_letter* letter, bint anybody)
cdef int refuse(int error, str what) except -1
