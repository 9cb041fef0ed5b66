"""Links to other machines, as the rest of the compiled room uses them.

Knows: that the GIL goes before any lock of a far link is waited for, since a stream may need it. Must not know:
channels, rules, or how a connection came about.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport EPROTO
from libc.stdint cimport uint32_t, uint64_t, uint8_t
from libc.stdlib cimport calloc, free

import os as _os

from bulktransfer._native.carrier cimport (
    BT_BY_SOCKET, bt_bed_add, bt_link, bt_link_release, bt_link_retain, timespec,
)
from bulktransfer._native.farlink cimport (
    BT_FAR_IS_DUE, BT_FAR_OVER, BT_FETCH_DRY, BT_FRAME_SIZE, BT_KICKED_FAR, bt_far, bt_far_add_landing,
    bt_far_drop_landing, bt_far_fetch, bt_far_flush, bt_far_get, bt_far_go, bt_far_is_unsent,
    bt_far_message_t, bt_far_open, bt_far_retire, bt_far_sleep, bt_far_spin, bt_far_stop, bt_frame, bt_frame_fault,
    bt_frame_pack, bt_frame_unpack, bt_helper, bt_helper_enlist, bt_helper_finish, bt_helper_leave, bt_helper_new,
    bt_helper_seen, bt_helper_signal, bt_helper_touch, bt_is_unix, bt_landing, bt_tcp_stream, bt_unix_receive,
    bt_unix_stream, iovec, pthread_mutex_lock, pthread_mutex_unlock,
)
from bulktransfer._native.kernel cimport Descriptor, bt_hold_drop, bt_registry_add_fd, bt_registry_drop_fd, registry
from bulktransfer._native.slots cimport Slots
from bulktransfer._native.tls cimport tls_forget, tls_open, tls_stream

from bulktransfer.errors import ProtocolViolation

cdef extern from *:
    """
    #include <netinet/in.h>
    #include <netinet/tcp.h>
    """
    enum: IPPROTO_TCP, TCP_CONGESTION
    int getsockopt(int sock, int level, int name, void* value, unsigned int* size)

cdef bt_helper* the_helper = NULL


def receive_bytes(int sock, Py_ssize_t size):
    """At most `size` bytes of a Unix stream socket, never waiting; none: the end.

    Raises: BlockingIOError (nothing is there), OSError, MemoryError, ProtocolViolation (descriptors beside them).
    """
    cdef bytes data = PyBytes_FromStringAndSize(NULL, size)
    cdef iovec part
    part.iov_base, part.iov_len = <char*> data, size
    cdef ssize_t received
    with nogil:
        received = bt_unix_receive(registry(), sock, &part, 1)
    if received == -EPROTO:
        raise ProtocolViolation("descriptors beside the bytes of a stream")
    if received < 0:
        raise OSError(-received, _os.strerror(-received))
    return data[:received]


def finish_sending(double timeout_s):
    """Wait until all that closed channels accepted is on their peers' machines; how many have something left.

    The helper thread ends with this.
    """
    cdef timespec end
    cdef uint32_t left
    if the_helper == NULL or the_helper.generation != registry().generation:
        return 0
    import time
    when = time.time() + timeout_s
    end.tv_sec = <long> when
    end.tv_nsec = <long> ((when - <long> when) * 1e9)
    with nogil:
        left = bt_helper_finish(the_helper, &end)
    return left


def judge_head(bytes head not None):
    """The head of a frame as the pumps read it: its fields in the order of the wire, and the rule that it breaks or
    None. For the test that holds frame.h against wire/frames.py. Raises: ValueError (not 48 bytes).
    """
    cdef bt_frame f
    cdef const char* fault
    if len(head) != BT_FRAME_SIZE:
        raise ValueError(f"a head of {len(head)} bytes")
    bt_frame_unpack(&f, <const uint8_t*> <const char*> head)
    fault = bt_frame_fault(&f)
    fields = (f.kind, f.flags, f.meta_size, f.slot, f.index, f.extra, f.length, f.serial, f.consumed, f.refused)
    return fields, fault.decode() if fault != NULL else None


def pack_head(*fields):
    """The head of a frame as the pumps write it, of fields in the order of the wire; for the same test."""
    cdef bt_frame f
    cdef uint8_t[BT_FRAME_SIZE] head
    f.kind, f.flags, f.meta_size, f.slot, f.index, f.extra, f.length, f.serial, f.consumed, f.refused = fields
    bt_frame_pack(head, &f)
    return PyBytes_FromStringAndSize(<char*> head, BT_FRAME_SIZE)


cdef inline bt_far* far_of(bt_link* link) noexcept nogil:
    return <bt_far*> link.far


cdef int far_open(bt_link* link, int fd, object tls, uint32_t meta_limit) except -1:
    """Have `link`, which has its outboxes, speak over the connected socket `fd`, which is taken over.

    Raises: OSError, MemoryError; then nothing was taken over.
    """
    global the_helper
    cdef int result
    cdef void* stream
    if the_helper == NULL or the_helper.generation not in (0, registry().generation):
        the_helper = bt_helper_new()
        if the_helper == NULL:
            raise MemoryError("no memory for the helper of links to other machines")
    if tls is None and bt_is_unix(fd):
        result = bt_far_open(link, fd, &bt_unix_stream, link, meta_limit)
    elif tls is None:
        result = bt_far_open(link, fd, &bt_tcp_stream, <void*> <size_t> fd, meta_limit)
    else:
        stream = tls_open(fd, tls)
        result = bt_far_open(link, fd, tls_stream(), stream, meta_limit)
        if result < 0:
            tls_forget(stream)
    if result == 0:
        with nogil:
            result = bt_helper_enlist(the_helper, registry(), link)
        if result < 0:
            far_of(link).fd = -1  # the caller's again
            bt_registry_drop_fd(registry(), fd)
    if result < 0:
        raise OSError(-result, _os.strerror(-result))
    return 0


cdef int far_leave(bt_link* link) except -1:
    """The channel is gone: nothing arrives any more, what it accepted still goes out, seen off by the helper."""
    with nogil:
        bt_far_stop(far_of(link))
    bt_far_retire(link)
    bt_far_go(far_of(link))
    with nogil:
        bt_helper_leave(the_helper, link)
        bt_link_release(link)
    return 0


cdef int far_fetch(bt_link* link, bint all) except -1:
    """Read what has come, until there is an entry (or, with `all`, nothing more); bits of bt_fetched."""
    cdef int result
    bt_link_retain(link)  # another thread may close the channel meanwhile
    bt_helper_touch(the_helper, far_of(link))
    with nogil:
        bt_helper_seen(far_of(link))
        result = bt_far_fetch(link, all)
        if all and not result & BT_FETCH_DRY:
            bt_helper_signal(far_of(link))  # whoever watches looks again
        bt_link_release(link)
    return result


cdef int far_flush(bt_link* link) except -1:
    """Send what can be sent. The caller may find its channel closed afterwards: the GIL is let go."""
    bt_link_retain(link)
    bt_helper_touch(the_helper, far_of(link))
    with nogil:
        bt_far_flush(link)
        bt_link_release(link)
    return 0


cdef int far_flush_due(bt_link* link) except -1:
    """Send if the peer asked to hear how far it was read, and that has moved."""
    return far_flush(link) if BT_FAR_IS_DUE(far_of(link)) else 0


cdef object far_next(bt_link* link):
    """The next control message that came, as bytes, or None."""
    cdef bt_far* far = far_of(link)
    cdef bt_far_message_t* message
    pthread_mutex_lock(&far.inbox_lock)  # never held for longer than it takes to link a message in
    message = bt_far_get(&far.take.inbox)
    pthread_mutex_unlock(&far.inbox_lock)
    if message == NULL:
        return None
    try:
        return PyBytes_FromStringAndSize(<char*> message.data, message.size)
    finally:
        free(message)


cdef object far_broken(bt_link* link):
    """The rule that the peer broke, or None."""
    cdef bt_far* far = far_of(link)
    return far.take.violation.decode() if BT_FAR_OVER(far) and far.take.violation != NULL else None


cdef bint far_over(bt_link* link) noexcept:
    """Whether nothing comes any more."""
    return BT_FAR_OVER(far_of(link)) != 0


cdef int far_poller(bt_link* link) noexcept:
    """A descriptor that is readable while there is something to be read, or the helper has read something."""
    return far_of(link).poll_fd


cdef int far_make_bed(bt_link* link, int bed) noexcept:
    """Have an epoll descriptor watch for what comes. 0 or -errno."""
    cdef int result = bt_bed_add(bed, far_of(link).fd, BT_BY_SOCKET, 0)
    return result if result < 0 else bt_bed_add(bed, far_of(link).signal_fd, BT_BY_SOCKET, 0)


cdef int far_land(
    bt_link* link, Slots pool, uint32_t slot, uint32_t channel, uint32_t peer, bint judged_home, object lease,
) except -1:
    """From now on contents of the pool's buffers land and leave under `slot`.

    lease: a Descriptor that is closed once nothing of the pool can leave any more. Raises: MemoryError.
    """
    cdef int result
    cdef bt_landing* landing = <bt_landing*> calloc(1, sizeof(bt_landing))
    if landing == NULL:
        raise MemoryError("no memory to have a pool travel")
    landing.lease = -1
    landing.base = <unsigned char*> pool.mapping.base
    landing.size = pool.c.size
    landing.count = pool.c.count
    landing.channel = channel
    landing.peer = peer
    landing.judged_home = judged_home
    landing.slots = pool.c.slots
    try:
        landing.taken = pool.taken_bits()
        landing.hold = pool.mapping.pin()
    except MemoryError:
        free(landing)
        raise
    with nogil:
        bt_far_stop(far_of(link))
    result = bt_far_add_landing(far_of(link), slot, landing)
    bt_far_go(far_of(link))
    if result < 0:
        bt_hold_drop(landing.hold)
        free(landing)
        raise MemoryError("no memory to have a pool travel")
    if lease is not None:
        landing.lease = (<Descriptor> lease).detach()
        bt_registry_add_fd(registry(), landing.lease)
    return 0


cdef int far_drop(bt_link* link, uint32_t slot) except -1:
    """The pool under `slot` left the channel."""
    with nogil:
        bt_far_stop(far_of(link))
    bt_far_drop_landing(link, slot)
    bt_far_go(far_of(link))
    return 0


cdef bint far_is_unsent(bt_link* link, uint32_t slot, uint32_t index) except -1:
    """Whether contents of that buffer have not left yet. The caller may find its channel closed afterwards."""
    cdef bint unsent
    if not bt_far_is_unsent(link, slot, index):
        return False
    bt_link_retain(link)
    with nogil:  # the answer may have come while the thread that sent it has not noted that it has left
        bt_far_stop(far_of(link))
        bt_far_go(far_of(link))
    unsent = bt_far_is_unsent(link, slot, index)
    bt_link_release(link)
    return unsent


cdef int far_sleep(bt_link* link, int bed, int timeout_ms, bint outcomes) noexcept nogil:
    """As bt_bed_sleep."""
    return bt_far_sleep(link, the_helper, bed, timeout_ms, outcomes)


cdef int far_spin(bt_link* link, bint outcomes, uint64_t budget_ns, int* kicked) noexcept nogil:
    """As bt_spin."""
    return bt_far_spin(link, the_helper, outcomes, budget_ns, BT_KICKED_FAR(kicked))


cdef object far_counts(bt_link* link):
    """What went over the wire so far, and TCP's congestion control; for statistics."""
    cdef bt_far* far = far_of(link)
    cdef char name[16]
    cdef unsigned int size = sizeof(name)
    if getsockopt(far.fd, IPPROTO_TCP, TCP_CONGESTION, name, &size) < 0:
        size = 0
    return {
        "congestion": PyBytes_FromStringAndSize(name, size).partition(b"\0")[0].decode(),
        "bytes_sent": far.sent_bytes, "bytes_taken": far.taken_bytes,
        "sends": far.sent_calls, "reads": far.taken_calls,
    }
