"""The hot half of a channel: sending, receiving, waiting.

Knows: the order of checks and changes, rings and bells (link.h), the ledger (ledger.h). Must not know: how a
channel is set up or ended, what control messages say, which backend made the connection; core/channel.py,
which derives from ChannelCore, answers the calls that begin with an underscore.

All of this runs under the GIL, so operations of one domain are atomic against each other; it is dropped
around waits only. Events are made and applied in take(), handed out in deliver().
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from cpython.pythread cimport PyThread_get_thread_ident
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

import os as _os
from collections import deque as _deque

from bulktransfer import errors, states
from bulktransfer._native.event cimport Event, new_event
from bulktransfer._native.kernel cimport Descriptor, Mapping, bt_registry, bt_registry_add_fd, registry
from bulktransfer._native.kernel import table_full
from bulktransfer._native.pool cimport (
    BT_A_BUFFER_RECEIVED, BT_A_COPY, BT_A_COPY_REFUSED, BT_A_COPY_RELEASED, BT_A_MOVE, BT_A_MOVE_RECEIVED, BT_A_PASS,
    BT_A_RELEASE, BT_ACTIVE, BT_INVALID, BT_OK, BT_PENDING, BT_QUEUED, BT_READ_ONLY, BT_READ_WRITE, BT_REFUSED,
    BT_VIOLATION, Assignment, Buffer, Pool, bt_act, bt_arrived_copy, bt_arrived_owner, bt_bit, bt_copy_back,
    bt_may_remove, bt_may_send, bt_owner_back, bt_sent, bt_slot, explain, table,
)

cdef extern from *:
    """
    #include "wait.h"
    #include "carrier.h"
    static __thread int bt_callback_depth;
    static bt_carrier *bt_carrier_new(void) {
        bt_carrier *c = calloc(1, sizeof *c);
        if (c) { pthread_mutex_init(&c->lock, NULL); pthread_cond_init(&c->idle, NULL); }
        return c;
    }
    static void bt_link_open(bt_link *l, void *own, size_t own_size, void *peer, size_t peer_size, uint32_t slots,
                             uint32_t meta) {
        bt_rings_init(&l->tx, &l->rx, own, peer, slots, meta);
        l->own_size = own_size; l->peer_size = peer_size;
    }
    static int bt_link_has(bt_link *l) { return (int)atomic_load_explicit(&l->waiting, memory_order_acquire); }
    static void bt_link_end(bt_link *l) { atomic_store_explicit(&l->ended, 1, memory_order_relaxed); }
    #define BT_KICKED(k) ((const _Atomic int *)(k))
    """
    int bt_callback_depth
    ctypedef struct bt_carrier:
        uint32_t generation
    ctypedef struct bt_tx:
        uint64_t tail
        uint64_t consumed
    ctypedef struct bt_rx:
        uint64_t head
        uint64_t published
    ctypedef struct bt_link_full "bt_link":
        bt_tx tx
        bt_rx rx
        int sock
        uint64_t issued
        uint64_t rings
    ctypedef struct bt_message:
        uint8_t data[1]
        int fds[1]
        int fd_count
        int truncated
    cdef struct timespec:
        long tv_sec
        long tv_nsec
    bt_carrier* bt_carrier_new() nogil
    int bt_carrier_take(bt_carrier* c, bt_registry* r, bt_link* link) nogil
    uint32_t bt_carrier_finish(bt_carrier* c, const timespec* deadline) nogil
    bt_link* bt_link_new(bt_registry* r, int sock) nogil
    void bt_link_open(
        bt_link* l, void* own, size_t own_size, void* peer, size_t peer_size, uint32_t slots, uint32_t meta) nogil
    void bt_link_release(bt_link* link) nogil
    void bt_link_retain(bt_link* link) nogil
    int bt_link_has(bt_link* link) nogil
    void bt_link_end(bt_link* link) nogil
    int bt_link_direct(bt_link* link, uint32_t count) nogil
    int bt_link_make_room(bt_link* link, uint32_t count) nogil
    void bt_link_append(bt_link* link, const bt_entry* entry, uint8_t* data, size_t size, int* fds, int fd_count) nogil
    int bt_link_carry(bt_link* link) nogil
    int bt_link_await(bt_link* link) nogil
    void bt_link_consumed(bt_link* link) nogil
    void bt_link_refused(bt_link* link, uint64_t count) nogil
    uint64_t bt_link_refusals(const bt_link* link) nogil
    void bt_ring_data(bt_link* link) nogil
    void bt_tx_fill(bt_tx* tx, uint32_t ahead, const bt_entry* entry, const uint8_t* meta) nogil
    void bt_tx_publish(bt_tx* tx, uint32_t count) nogil
    int bt_link_refresh(bt_link* link, uint64_t* consumed) nogil
    uint32_t bt_link_asked(const bt_link* link) nogil
    void bt_carrier_release(bt_carrier* c, bt_link* link) nogil
    int64_t bt_rx_look(bt_rx* rx) nogil
    int64_t bt_rx_look_again(bt_rx* rx) nogil
    int bt_rx_take(bt_rx* rx, bt_entry* entry, uint8_t* meta, uint32_t limit) nogil
    void bt_sleep_begin(void* counter) nogil
    void bt_sleep_end(void* counter) nogil
    int bt_message_receive(int sock, bt_message* m) nogil
    int bt_message_send(int sock, const void* data, size_t size, const int* fds, int fd_count) nogil
    int bt_spin_briefly(const bt_link* link, int outcomes) nogil
    int bt_spin(const bt_link* link, int outcomes, uint64_t budget, int yields, const void* kicked) nogil
    uint64_t bt_now_ns() nogil
    enum: BT_BY_SOCKET, BT_BY_KICK, BT_BY_DOMAIN, BT_BY_DEATH, BT_BY_HANG_UP
    int bt_bed_add(int bed, int fd, int what) nogil
    int bt_bed_sleep(int bed, int timeout_ms) nogil
    cdef struct pollfd:
        int fd
        short events
        short revents
    enum: POLLIN, POLLHUP, POLLERR
    int c_poll "poll"(pollfd* fds, unsigned long count, int timeout_ms) nogil
    void* BT_KICKED(int* kicked) nogil

cdef extern from *:
    """
    #define BT_FULL(l) (l)
    #define BT_SLEEP_DATA(l) (&(l)->tx.own->sleep_data)
    """
    bt_link_full* BT_FULL(bt_link* link) nogil
    void* BT_SLEEP_DATA(bt_link* link) nogil

cdef tuple ACTS = ("move", "pass", "copy", "release")
cdef int CONNECTED = states.ChannelState.CONNECTED.value
cdef enum: AUTO_SPIN_NS = 50000, WATCH_NS = 1000000, RECHECK_NS = 50000000, INBOX_MAX = 256, UNREAD_MAX = 128, BY_GENERIC = 3
cdef enum: SPIN_NEVER = 0, SPIN_A_WHILE = 1, SPIN_ALWAYS = 2
cdef bt_carrier* the_carrier = NULL
cdef uint32_t last_number = 0


def in_callback():
    """Whether this thread runs a callback or continuation: blocking calls are refused then (rule 12)."""
    return bt_callback_depth > 0


def call_back(function, argument):
    """Run user code of a callback; blocking calls in it raise WouldBlock."""
    global bt_callback_depth
    cdef int before = bt_callback_depth
    bt_callback_depth = before + 1
    try:
        return function(argument)
    finally:
        bt_callback_depth = before


def leave_callbacks():
    """A child that was forked inside a callback is not in one."""
    global bt_callback_depth
    bt_callback_depth = 0

_os.register_at_fork(after_in_child=leave_callbacks)


cdef int64_t span_ns(object timeout_s) except? -1:
    """Seconds as a user gives them in nanoseconds; -1: for ever. What is no number of seconds is none at all."""
    cdef double seconds
    if timeout_s is None:
        return -1
    seconds = float(timeout_s)
    if not seconds > 0:
        return 0
    return -1 if seconds > 1e9 else <int64_t> (seconds * 1e9)


def finish_carrying(double timeout_s):
    """Wait until everything accepted was sent; the number of channels where that was not possible in time."""
    cdef timespec end
    cdef uint32_t left
    if the_carrier == NULL or the_carrier.generation != registry().generation:
        return 0
    import time
    when = time.time() + timeout_s
    end.tv_sec = <long> when
    end.tv_nsec = <long> ((when - <long> when) * 1e9)
    with nogil:
        left = bt_carrier_finish(the_carrier, &end)
    return left


cdef class Waiters:
    """What the waiting threads of one domain share: where the channels are watched that nobody waits on."""

    def __init__(self, int epoll):
        self.epoll = epoll
        self.waiting = 0
        self.loose = set()
        self.deadline_ns = 0
        self.news = 1
        self.drowsy = 0


cdef class Outcome:
    """How an operation ended, as its continuation gets it: error is None or the exception."""

    def __init__(self, operation, channel, error=None, buffer=None, pool=None):
        self.operation = operation
        self.channel = channel
        self.error = error
        self.buffer = buffer
        self.pool = pool

    def __repr__(self):
        return f"<Outcome of {self.operation}: {'done' if self.error is None else repr(self.error)}>"


cdef class ChannelCore:
    """The hot half; see the module."""

    def __cinit__(self):
        global last_number
        self.link = NULL
        last_number += 1
        self.number = last_number
        self.generation = registry().generation
        self.table = []
        self.queue = _deque()
        self.outcomes = _deque()
        self.inbox = _deque()
        self.handlers = (None,) * 9
        self.kick_fd = self.pidfd = self.bed = -1
        self.spin_mode = SPIN_NEVER

    def __dealloc__(self):
        if self.link != NULL:
            bt_link_release(self.link)

    # ---- the link ----

    def open_link(
        self, Descriptor sock not None, Mapping own not None, Mapping peer not None, uint32_t slots, uint32_t meta_size,
    ):
        """Take over a connected socket and both outboxes."""
        cdef bt_link* link = bt_link_new(registry(), sock.fileno())
        if link == NULL:
            raise MemoryError("no memory for a link")
        bt_link_open(link, own.base, own.size, peer.base, peer.size, slots, meta_size)
        sock.detach()
        if bt_registry_add_fd(registry(), link.sock) < 0:
            raise MemoryError("no memory for a link")
        own.disown()
        peer.disown()
        self.link = link
        self.meta_size = meta_size

    def close_link(self):
        """Let the socket and the outboxes go; what waits to be sent still goes, carried by the helper."""
        cdef bt_link* link = self.link
        if link == NULL:
            return
        self.link = NULL
        if self.hung_up:
            bt_link_end(link)
        if the_carrier != NULL and the_carrier.generation == registry().generation:
            bt_carrier_release(the_carrier, link)
        else:
            bt_link_release(link)

    @property
    def linked(self):
        """Whether there is a connection."""
        return self.link != NULL

    def socket_fd(self):
        """The socket's descriptor, or -1."""
        return self.link.sock if self.link != NULL else -1

    def set_handlers(self, tuple handlers not None):
        """The nine callbacks, in the order of EventKind."""
        self.handlers = handlers

    def check_fork(self):
        """Raise ForkedError in a child of the process that made the channel."""
        if self.generation != registry().generation:
            raise errors.ForkedError("this channel was made before a fork, in the parent; the child makes its own")

    # ---- sending ----

    cdef int check_sender(self, int act) except -1:
        if self.stage == CONNECTED and not self.hung_up and self.generation == registry().generation:
            if self.is_source == (act == BT_A_MOVE or act == BT_A_COPY):
                return 0
            raise errors.DirectionError(
                f"{ACTS[act]} on {self!r}: this end is the {'source' if self.is_source else 'sink'}; "
                f"{'move and copy' if self.is_source else 'pass and release'} belong here")
        self.check_fork()
        self._refuse_send(ACTS[act])
        return 0

    cdef object too_much_meta(self, str what, Py_ssize_t size):
        return errors.MetaSizeError(f"{what}: {size} bytes of meta data; the channel takes {self.meta_size}")

    cdef Assignment assignment_of(self, Buffer buffer, int act):
        cdef Assignment a = self.recent
        if a is None or a.pool is not buffer.pool or a.c.standing != BT_ACTIVE:
            for item in self.table:
                a = <Assignment> item
                if a is not None and a.pool is buffer.pool:
                    break
            else:
                a = None
            if a is None or a.c.standing != BT_ACTIVE:
                why = "is being removed from"
                if a is None:
                    why = "is not assigned to"
                elif a.c.standing == BT_PENDING:
                    why = "is still being assigned to"
                raise errors.PoolNotAssignedError(
                    f"{ACTS[act]} of buffer {buffer.index} of pool {buffer.pool.name}: the pool {why} {self!r}")
            self.recent = a
        return a

    cdef int send_one(self, Buffer buffer, int act, object meta, object done) except -1:
        cdef bt_entry entry
        cdef Py_buffer view
        cdef const uint8_t* data = NULL
        cdef Py_ssize_t size = 0
        cdef Assignment a
        cdef int verdict
        cdef uint64_t position
        cdef bint viewed = False
        if buffer is None:
            raise TypeError(f"{ACTS[act]} takes a buffer, not None")
        if done is not None and not callable(done):
            raise TypeError(f"done={done!r} cannot be called")
        if PyBytes_CheckExact(meta):
            data = <const uint8_t*> PyBytes_AS_STRING(meta)
            size = PyBytes_GET_SIZE(meta)
        else:  # may run code of the user: before everything that is checked
            PyObject_GetBuffer(meta, &view, PyBUF_SIMPLE)
            viewed = True
            data = <const uint8_t*> view.buf
            size = view.len
        try:
            self.check_sender(act)
            a = self.assignment_of(buffer, act)
            if size > self.meta_size:
                raise self.too_much_meta(f"{ACTS[act]} of {buffer.called()}", size)
            verdict = bt_may_send(table(), &a.c, buffer.index, <bt_act> act)
            if verdict != BT_OK:
                raise explain(verdict, ACTS[act], buffer, f" on {self!r}")
            entry.kind = act + 1
            entry.flags = 0
            entry.slot = a.slot
            entry.index = buffer.index
            entry.meta_size = <uint32_t> size
            entry.length = a.pool.c.slots[buffer.index].length if act != BT_A_PASS else a.pool.c.size
            entry.serial = 0
            position = self.link.issued
            self.push(&entry, data)
            bt_sent(table(), &a.c, buffer.index, <bt_act> act, position)
            self.sent[act] += 1
            if done is not None:
                self.expect(done, ACTS[act], buffer, position, position + 1)
        finally:
            if viewed:
                PyBuffer_Release(&view)
        return 0

    cdef int push(self, bt_entry* entry, const uint8_t* meta) except -1:
        """One entry into the ring, or behind what waits. Fails before anything changed, or not at all."""
        cdef bt_link* link = self.link
        cdef uint8_t* long_meta = NULL
        cdef int direct = bt_link_direct(link, 1)
        if direct > 0:
            bt_tx_fill(&BT_FULL(link).tx, 0, entry, meta)
            bt_tx_publish(&BT_FULL(link).tx, 1)
            bt_ring_data(link)
            link.issued += 1
            return 0
        if direct < 0:
            self._violation("its consumed index went back, or beyond what was published")
        if bt_link_make_room(link, 1) < 0:
            raise MemoryError("no memory for what waits to be sent")
        if entry.meta_size > BT_META_INLINE:
            long_meta = <uint8_t*> malloc(entry.meta_size)
            if long_meta == NULL:
                raise MemoryError("no memory for meta data that waits to be sent")
            memcpy(long_meta, meta, entry.meta_size)
        elif entry.meta_size:
            memcpy(entry.meta, meta, entry.meta_size)
        bt_link_append(link, entry, long_meta, 0, NULL, 0)
        link.issued += 1
        self.carry()
        return 0

    cdef int carry(self) except -1:
        """Send on what waits; what still waits then is the helper's business, or, where it cannot be started, of
        later calls: what waits was accepted, so this does not fail."""
        global the_carrier
        if not bt_link_has(self.link) or bt_link_carry(self.link) == 0 or self.hung_up:
            return 0
        if the_carrier == NULL or the_carrier.generation not in (0, registry().generation):
            the_carrier = bt_carrier_new()
            if the_carrier == NULL:
                return 0
        bt_carrier_take(the_carrier, registry(), self.link)
        return 0

    cdef int send_batch(self, object buffers, int act, object metas, object done) except -1:
        cdef list items = list(buffers)
        cdef list notes = None
        cdef Py_ssize_t count = len(items), i = 0, checked = 0
        cdef Buffer buffer
        cdef Assignment a = None
        cdef bt_slot* s
        cdef bt_entry entry
        cdef int verdict, direct
        cdef uint64_t first
        cdef bytes meta
        cdef uint8_t** copies = NULL
        if metas is not None:
            notes = [m if type(m) is bytes else bytes(memoryview(m)) for m in metas]
            if len(notes) != count:
                raise ValueError(f"{ACTS[act]} of {count} buffers with {len(notes)} metas")
            for i in range(count):
                if len(notes[i]) > self.meta_size:
                    raise self.too_much_meta(f"{ACTS[act]} of a batch, buffer number {i}", len(notes[i]))
        if done is not None and not callable(done):
            raise TypeError(f"done={done!r} cannot be called")
        self.check_sender(act)
        try:
            for i in range(count):
                if not isinstance(items[i], Buffer):
                    raise TypeError(f"{ACTS[act]} of a batch takes buffers, not {type(items[i]).__name__}")
                buffer = <Buffer> items[i]
                if a is None or buffer.pool is not a.pool:
                    a = self.assignment_of(buffer, act)
                s = &a.pool.c.slots[buffer.index]
                if s.spare:
                    raise ValueError(f"{ACTS[act]} of a batch: {buffer.called()} is in it twice")
                verdict = bt_may_send(table(), &a.c, buffer.index, <bt_act> act)
                if verdict != BT_OK:
                    raise explain(verdict, ACTS[act], buffer, f" on {self!r}")
                s.spare = 1
                checked += 1
        finally:
            for i in range(checked):
                buffer = <Buffer> items[i]
                buffer.pool.c.slots[buffer.index].spare = 0
        if count == 0:
            return 0
        first = self.link.issued
        direct = bt_link_direct(self.link, <uint32_t> count)
        if direct < 0:
            self._violation("its consumed index went back, or beyond what was published")
        if direct == 0 and bt_link_make_room(self.link, <uint32_t> count) < 0:
            raise MemoryError("no memory for what waits to be sent")
        if direct == 0 and notes is not None:
            copies = self.keep_metas(notes)
        entry.kind = act + 1
        entry.flags = 0
        entry.meta_size = 0
        entry.serial = 0
        meta = b""
        for i in range(count):
            buffer = <Buffer> items[i]
            if buffer.pool is not a.pool:
                a = self.assignment_of(buffer, act)
            if notes is not None:
                meta = <bytes> notes[i]
                entry.meta_size = <uint32_t> PyBytes_GET_SIZE(meta)
            entry.slot = a.slot
            entry.index = buffer.index
            entry.length = a.pool.c.slots[buffer.index].length if act != BT_A_PASS else a.pool.c.size
            if direct:
                bt_tx_fill(&BT_FULL(self.link).tx, <uint32_t> i, &entry, <const uint8_t*> PyBytes_AS_STRING(meta))
            else:
                bt_link_append(self.link, &entry, copies[i] if copies != NULL else NULL, 0, NULL, 0)
                self.link.issued += 1
            bt_sent(table(), &a.c, buffer.index, <bt_act> act, first + i)
        if direct:
            self.link.issued += count
            bt_tx_publish(&BT_FULL(self.link).tx, <uint32_t> count)
            bt_ring_data(self.link)
        else:
            free(copies)
            self.carry()
        self.sent[act] += count
        if done is not None:
            self.expect(done, ACTS[act], tuple(items), first, first + count)
        return 0

    cdef uint8_t** keep_metas(self, list notes) except NULL:
        """Copies of the meta data of a batch that has to wait: all or none."""
        cdef Py_ssize_t i, count = len(notes)
        cdef uint8_t** copies = <uint8_t**> calloc(count, sizeof(uint8_t*))
        if copies == NULL:
            raise MemoryError("no memory for meta data that waits to be sent")
        for i in range(count):
            size = len(notes[i])
            if size == 0:
                continue
            copies[i] = <uint8_t*> malloc(size)
            if copies[i] == NULL:
                while i > 0:
                    i -= 1
                    free(copies[i])
                free(copies)
                raise MemoryError("no memory for meta data that waits to be sent")
            memcpy(copies[i], PyBytes_AS_STRING(notes[i]), size)
        return copies

    cdef int expect(self, object done, str operation, object buffer, uint64_t first, uint64_t end) except -1:
        cdef Outcome o = Outcome(operation, self, None, buffer, None)
        o.first = first
        o.end = end
        o.done = done
        self.outcomes.append(o)
        self.may_have_outcomes = True
        return 0

    def send_control(self, bytes data not None, fds=()):
        """One control message, in order with the transfers; descriptors in `fds` are duplicated if it has to wait.

        Raises: OSError (EMFILE, the peer is gone), MemoryError.
        """
        cdef bt_entry entry
        cdef int numbers[256]
        cdef int count = 0, result
        cdef uint8_t* copy
        cdef int* held = NULL
        if self.link == NULL:  # another thread closed the channel
            raise BrokenPipeError(f"a control message on {self!r}")
        memset(&entry, 0, sizeof(entry))
        entry.kind = BT_CONTROL
        entry.serial = self.control_sent
        if len(fds) > 253:
            raise errors.LimitError(f"{len(fds)} descriptors in one message")
        for fd in fds:
            numbers[count] = fd.fileno()
            count += 1
        if bt_link_direct(self.link, 1) > 0:
            result = bt_message_send(self.link.sock, <const char*> data, len(data), numbers, count)
            if result == 0:
                self.control_sent += 1
                bt_tx_fill(&BT_FULL(self.link).tx, 0, &entry, entry.meta)
                bt_tx_publish(&BT_FULL(self.link).tx, 1)
                bt_ring_data(self.link)  # the message may have woken the peer before its entry was there
                self.link.issued += 1
                return
            if result != -EAGAIN:
                raise OSError(-result, _os.strerror(-result))
        if bt_link_make_room(self.link, 1) < 0:
            raise MemoryError("no memory for what waits to be sent")
        owned = [Descriptor(_os.dup(numbers[i])) for i in range(count)]
        copy = <uint8_t*> malloc(len(data))
        if count:
            held = <int*> malloc(count * sizeof(int))
        if copy == NULL or (count and held == NULL):
            free(copy)
            free(held)
            raise MemoryError("no memory for a control message that waits to be sent")
        memcpy(copy, <const char*> data, len(data))
        for i in range(count):
            held[i] = owned[i].detach()
            bt_registry_add_fd(registry(), held[i])
        bt_link_append(self.link, &entry, copy, len(data), held, count)
        self.control_sent += 1
        self.link.issued += 1
        self.carry()

    def move(self, Buffer buffer, meta=b"", done=None):
        """Give the buffer away to the sink, with its contents (I-5.1.7).

        The call returns as soon as ownership has changed: the buffer is INVALID here. `meta`: up to meta_size bytes,
        copied now. `done(outcome)` is called when the peer's library accepted or refused.
        Raises: DirectionError (at the sink), PoolNotAssignedError, NotOwnedError and its kinds,
        CopiesOutstandingError, BufferError (a view is live), MetaSizeError, ChannelStateError or the channel's end.
        """
        self.send_one(buffer, BT_A_MOVE, meta, done)

    def copy(self, Buffer buffer, meta=b"", done=None):
        """Let the sink read the buffer, which nobody writes until it was released (I-5.1.9).

        Raises: as move; AlreadyCopiedError (a copy is out on this channel), CopyRefusedError (within one domain).
        """
        self.send_one(buffer, BT_A_COPY, meta, done)

    def pass_(self, Buffer buffer, meta=b"", done=None):
        """Give the buffer away to the source, without its contents (I-5.1.8).

        Raises: as move (DirectionError: at the source).
        """
        self.send_one(buffer, BT_A_PASS, meta, done)

    def release(self, Buffer buffer, done=None):
        """Let go of a copy that came over this channel (I-5.1.10).

        Raises: NotACopyError, CopiesOutstandingError (copies of it are out), BufferError (a view is live), and the
        channel's errors as for move.
        """
        self.send_one(buffer, BT_A_RELEASE, b"", done)

    def move_many(self, buffers, metas=None, done=None):
        """Move a batch with one notification: all or none. Raises: as move; ValueError (a buffer twice)."""
        self.send_batch(buffers, BT_A_MOVE, metas, done)

    def copy_many(self, buffers, metas=None, done=None):
        """Copy a batch with one notification: all or none. Raises: as copy; ValueError (a buffer twice)."""
        self.send_batch(buffers, BT_A_COPY, metas, done)

    def pass_many(self, buffers, metas=None, done=None):
        """Pass a batch with one notification: all or none. Raises: as pass_; ValueError (a buffer twice)."""
        self.send_batch(buffers, BT_A_PASS, metas, done)

    def release_many(self, buffers, done=None):
        """Release a batch with one notification: all or none. Raises: as release; ValueError (a buffer twice)."""
        self.send_batch(buffers, BT_A_RELEASE, None, done)

    def give_back(self, Buffer buffer not None, bint when_unused=True):
        """Pass what is owned, release what is a copy (rule 19).

        With live views it goes when the last one dies, or, with when_unused=False, raises BufferError.
        Raises: as pass_ and release.
        """
        cdef bt_slot* s = buffer.slot()
        cdef int act = BT_A_RELEASE if s.state == BT_READ_ONLY else BT_A_PASS
        cdef int verdict
        cdef Assignment a
        if when_unused and s.views and s.state != BT_INVALID and not s.flags:
            self.check_sender(act)
            a = self.assignment_of(buffer, act)
            if act == BT_A_RELEASE and (not bt_bit(a.c.in_copies, buffer.index) or s.out):
                verdict = bt_may_send(table(), &a.c, buffer.index, BT_A_RELEASE)
                raise explain(verdict, "release", buffer, f" on {self!r}")
            if act == BT_A_PASS and s.state != BT_READ_WRITE:
                verdict = bt_may_send(table(), &a.c, buffer.index, BT_A_PASS)
                raise explain(verdict, "pass", buffer, f" on {self!r}")
            a.pool.give_back_on_release(buffer.index, self)
            return
        self.send_one(buffer, act, b"", None)

    def check_move(self, Buffer buffer not None, meta):
        """Raise what move would; change nothing."""
        cdef Assignment a
        cdef int verdict
        self.check_sender(BT_A_MOVE)
        a = self.assignment_of(buffer, BT_A_MOVE)
        if len(meta) > self.meta_size:
            raise self.too_much_meta(f"move of {buffer.called()}", len(meta))
        verdict = bt_may_send(table(), &a.c, buffer.index, BT_A_MOVE)
        if verdict != BT_OK:
            raise explain(verdict, "move", buffer, f" on {self!r}")

    def send_back(self, Buffer buffer not None):
        """The last view of a buffer died whose return was asked for; where the channel ended it stays here."""
        if self.stage == CONNECTED and not self.hung_up and self.generation == registry().generation:
            self.send_one(buffer, BT_A_RELEASE if buffer.slot().state == BT_READ_ONLY else BT_A_PASS, b"", None)

    def holds_copy(self, Buffer buffer not None):
        """Whether a copy of `buffer` came over this channel and is held."""
        cdef Assignment a
        for item in self.table:
            a = <Assignment> item
            if a is not None and a.pool is buffer.pool and bt_bit(a.c.in_copies, buffer.index):
                return True
        return False

    def may_remove(self, Assignment a not None):
        """Whether, as far as this side knows, every buffer of the pool has come home."""
        if self.link == NULL:
            return False
        return bool(bt_may_remove(&a.c, self.passed()))

    # ---- receiving ----

    cdef Event take(self):
        """One entry of the peer's ring: judged, applied, and made an event; None if it is not for the user."""
        cdef bt_entry entry
        cdef uint8_t meta[2048]
        cdef Event event = None
        if bt_rx_take(&BT_FULL(self.link).rx, &entry, meta, self.meta_size) < 0:
            self._violation(f"{entry.meta_size} bytes of meta data; the channel takes {self.meta_size}")
        if entry.kind == BT_MOVE or entry.kind == BT_COPY or entry.kind == BT_PASS or entry.kind == BT_RELEASE:
            event = self.take_transfer(&entry, meta, entry.kind - 1)
        elif entry.kind == BT_REFUSE:
            event = self.take_refusal(&entry)
        elif entry.kind == BT_CONTROL:
            if entry.serial != self.control_seen:
                self._violation(f"control message {entry.serial} where {self.control_seen} was due")
            self.control_seen += 1
            event = self._control()
        else:
            self._violation(f"an entry of kind {entry.kind}")
        if self.link != NULL and not self.lazy:
            bt_link_consumed(self.link)
        return event

    cdef Event take_transfer(self, bt_entry* entry, uint8_t* meta, int act):
        cdef Assignment a = None
        cdef Pool pool
        cdef Event event
        cdef bt_slot* s
        cdef int verdict
        cdef bint owner_moves = act == BT_A_MOVE or act == BT_A_PASS
        if self.is_source == (act == BT_A_MOVE or act == BT_A_COPY):
            self._violation(f"a {ACTS[act]} from the {'sink' if self.is_source else 'source'}")
        if entry.slot < <uint32_t> len(self.table):
            a = <Assignment> self.table[entry.slot]
        if a is None or a.c.standing == BT_PENDING:
            self._violation(f"a {ACTS[act]} from pool number {entry.slot}, which is not assigned")
        pool = a.pool
        if entry.index >= pool.c.count:
            self._violation(f"a {ACTS[act]} of buffer {entry.index} of {pool.c.count}")
        if entry.length > pool.c.size:
            self._violation(f"a {ACTS[act]} of {entry.length} bytes in a buffer of {pool.c.size}")
        s = &pool.c.slots[entry.index]
        if owner_moves and self.same_domain:  # stays INVALID until it is handed out
            if s.state != BT_INVALID or s.flags & BT_QUEUED:
                self._violation(f"a {ACTS[act]} of buffer {entry.index}, which was not sent")
            s.flags |= BT_QUEUED
            verdict = BT_OK
        elif act == BT_A_MOVE:
            verdict = bt_arrived_owner(table(), &a.c, entry.index, entry.length, BT_A_MOVE_RECEIVED)
        elif act == BT_A_PASS:
            verdict = bt_arrived_owner(table(), &a.c, entry.index, pool.c.size, BT_A_BUFFER_RECEIVED)
        elif act == BT_A_COPY:
            verdict = bt_arrived_copy(table(), &a.c, entry.index, entry.length)
        else:
            verdict = bt_copy_back(table(), &a.c, entry.index, BT_A_COPY_RELEASED)
        if verdict == BT_VIOLATION:
            self._violation(f"a {ACTS[act]} of buffer {entry.index} of pool {pool.name}, which it does not have")
        if verdict == BT_REFUSED:
            self.refuse(entry)
            return None
        self.received[act] += 1
        if (pool.reclaim and (act == BT_A_PASS or act == BT_A_RELEASE) and not self.same_domain
                and s.state == BT_READ_WRITE):
            pool.come_home(entry.index)
            return None
        event = new_event(entry.kind + BY_GENERIC, self)
        event.buffer = pool.get(entry.index)
        event.act = act
        event.queued = owner_moves and self.same_domain
        event.meta_size = entry.meta_size
        if entry.meta_size > BT_META_INLINE:
            event.rest = PyBytes_FromStringAndSize(<char*> meta, entry.meta_size)
        elif entry.meta_size:
            memcpy(event.short_meta, meta, entry.meta_size)
        return event

    cdef int refuse(self, bt_entry* entry) except -1:
        """Say that this entry is not accepted; published before the index passes it (rule 8)."""
        cdef bt_entry answer = entry[0]
        answer.flags = entry.kind
        answer.kind = BT_REFUSE
        answer.meta_size = 0
        answer.serial = BT_FULL(self.link).rx.head - 1
        answer.length = errors.CODE_OF[errors.CopyRefusedError if entry.kind == BT_COPY else errors.NotOwnedError]
        self.refused_here += 1
        bt_link_refused(self.link, self.refused_here)
        self.push(&answer, NULL)
        return 0

    cdef Event take_refusal(self, bt_entry* entry):
        cdef Assignment a = None
        cdef Event event
        cdef Outcome o
        cdef int verdict
        cdef int act = entry.flags - 1
        if entry.slot < <uint32_t> len(self.table):
            a = <Assignment> self.table[entry.slot]
        if a is None or entry.index >= a.pool.c.count or not 0 <= act < 3 or entry.serial >= self.link.issued:
            self._violation("a refusal of what was not sent")
        if act == BT_A_COPY:
            verdict = bt_copy_back(table(), &a.c, entry.index, BT_A_COPY_REFUSED)
        else:
            verdict = bt_owner_back(table(), &a.c, entry.index, entry.serial)
        if verdict != BT_OK:
            self._violation(f"a refusal of buffer {entry.index}, which was not sent")
        self.refused_there += 1
        error = errors.from_code(
            entry.length, f"{ACTS[act]} of buffer {entry.index} of pool {a.pool.name} on {self!r}: "
            f"the peer refused it, since it has the buffer in another way")
        for item in self.outcomes:
            o = <Outcome> item
            if o.first <= entry.serial < o.end:
                if o.error is None:
                    o.error = error
                return None
        event = new_event(8, self)
        event.buffer = a.pool.get(entry.index)
        event.rest = (None, False, (), error)
        return event

    cdef int deliver(self, Event event) except -1:
        """Just before the user gets it: what was sent within this domain becomes the sink's now."""
        cdef Pool pool
        cdef Assignment a
        cdef bt_slot* s
        if event.queued:
            event.queued = False
            pool = event.buffer.pool
            s = event.buffer.slot()
            s.flags &= ~BT_QUEUED
            for item in self.table:
                a = <Assignment> item
                if a is not None and a.pool is pool:
                    if event.act == BT_A_MOVE:
                        bt_arrived_owner(table(), &a.c, event.buffer.index, s.length, BT_A_MOVE_RECEIVED)
                    else:
                        bt_arrived_owner(table(), &a.c, event.buffer.index, pool.c.size, BT_A_BUFFER_RECEIVED)
                    break
            if pool.reclaim and event.act == BT_A_PASS:
                pool.take_back(event.buffer.index)
                return 1
        return 0

    cdef Event next_event(self):
        """The next event that no callback takes, or None. Callbacks and continuations run in here."""
        cdef Event event
        cdef int64_t there
        while True:
            if self.may_have_outcomes:
                self.fire_outcomes()
            if self.may_have_queued and self.queue:
                event = <Event> self.queue.popleft()
            else:
                self.may_have_queued = False
                if self.link == NULL:
                    return None
                there = bt_rx_look(&BT_FULL(self.link).rx)
                if there <= 0:
                    if there < 0:
                        self._violation("its tail went back, or beyond its ring")
                    return None
                event = self.take()
            if event is None or (event.queued and self.deliver(event)):
                continue
            handler = self.handlers[event.number]
            if handler is None:
                return event
            self.run_callback(handler, event)

    cdef int run_callback(self, object handler, object argument) except -1:
        """User code, not under any lock; the receiving side is free meanwhile, and taken back afterwards."""
        if self.busy != 1 or self.receiver != PyThread_get_thread_ident():
            call_back(handler, argument)
            return 0
        if self.lazy and self.link != NULL:
            bt_link_consumed(self.link)
        self.busy = 0
        try:
            call_back(handler, argument)
        finally:
            while self.busy == 2:
                self._await_server()
            if self.busy == 0:
                self.busy = 1
                self.receiver = PyThread_get_thread_ident()
        if self.receiver != PyThread_get_thread_ident():
            raise errors.ChannelBusyError(f"receive on {self!r}: another thread took over while a callback ran")
        return 0

    cdef int fire_outcomes(self) except -1:
        """Continuations of what the peer has taken: read its index, then its ring up to the tail, fire (rule 8)."""
        cdef Outcome o
        cdef uint64_t consumed, refusals
        if not self.outcomes:
            self.may_have_outcomes = False
            return 0
        o = <Outcome> self.outcomes[0]
        if self.link != NULL:
            consumed = self.passed()
            if <int64_t> (consumed - o.end) < 0:
                return 0
            refusals = bt_link_refusals(self.link)
            self.drain()
            while self.outcomes and self.link != NULL:
                o = <Outcome> self.outcomes[0]
                if <int64_t> (consumed - o.end) < 0 or (o.end and refusals > self.refused_there):
                    return 0
                self.outcomes.popleft()
                self.run_callback(o.done, o)
        if self.link == NULL:
            self.fire_settled()
        return 0

    def fire_settled(self):
        """The channel ended and every outcome is known: call the continuations that still wait."""
        while self.outcomes:
            o = <Outcome> self.outcomes.popleft()
            self.run_callback(o.done, o)

    def settle_outcomes(self, error):
        """The channel ends: what the peer took succeeded, what it did not take gets `error`."""
        cdef Outcome o
        cdef uint64_t consumed = 0
        if self.link == NULL:
            return
        bt_link_refresh(self.link, &consumed)  # a word that cannot be changes nothing, and the channel ends
        for item in self.outcomes:
            o = <Outcome> item
            if o.error is None and <int64_t> (consumed - o.end) < 0:
                o.error = error

    cdef int drain(self) except -1:
        """Take what the ring holds now; events wait in the queue, control requests are served."""
        cdef Event event
        cdef int64_t there
        if self.link == NULL:
            return 0
        there = bt_rx_look_again(&BT_FULL(self.link).rx)
        if there < 0:
            self._violation("its tail went back, or beyond its ring")
        while there > 0 and self.link != NULL:
            there -= 1
            event = self.take()
            if event is not None:
                self.queue.append(event)
                self.may_have_queued = True
        return 0

    def pending_outcomes(self):
        """Whether a continuation could run now."""
        cdef Outcome o
        if not self.outcomes:
            return False
        if self.link == NULL:
            return True
        o = <Outcome> self.outcomes[0]
        return bool(self.known(o))

    def settled(self, Outcome outcome not None, done):
        """A control request was answered: its continuation is the next to run."""
        outcome.done = done
        self.outcomes.appendleft(outcome)
        self.may_have_outcomes = True

    def remove_queued(self, int number):
        """Take the first queued event of that kind away."""
        for event in self.queue:
            if (<Event> event).number == number:
                self.queue.remove(event)
                return

    def queue_event(self, Event event not None):
        """Put an event behind those that wait to be received."""
        self.queue.append(event)
        self.may_have_queued = True

    @property
    def queued_events(self):
        """Number of events taken from the ring and not yet received."""
        return len(self.queue)

    cdef int take_bells(self) except -1:
        """Read the socket: bells are heard, control messages kept, the end noticed."""
        cdef bt_message message
        cdef pollfd life
        cdef int size
        if self.link == NULL or self.hung_up:
            return 0
        life.revents = 0
        if self.pidfd >= 0:  # before the socket is read: the dead say nothing more
            life.fd = self.pidfd
            life.events = POLLIN
            c_poll(&life, 1, 0)
        self.asked_at = bt_link_asked(self.link)
        while True:
            size = bt_message_receive(self.link.sock, &message)
            if size == 1 and message.fd_count == 0:
                self.bells_heard += 1
                continue
            if size == -EAGAIN:
                self.hung_up = life.revents != 0  # a child of the peer may keep the socket open (rule 17)
                break
            if size <= 0:
                self.hung_up = True
                break
            fds = [Descriptor(message.fds[i]) for i in range(message.fd_count)]
            lost = "" if not message.truncated else "full" if table_full() else "truncated"
            self.inbox.append((PyBytes_FromStringAndSize(<char*> message.data, size), fds, lost))
            if len(self.inbox) > INBOX_MAX:
                self._violation("more control messages than it announced in its ring")
        self.carry()
        return 0

    def next_message(self):
        """The control message that is due, (data, descriptors, lost); None if it is not there.

        lost: "", or why some of it did not come: "truncated", or "full", the own descriptor table.
        """
        if not self.inbox:
            self.take_bells()
        return self.inbox.popleft() if self.inbox else None

    # ---- the receiving calls ----

    cdef int enter(self) except -1:
        while self.busy:
            if self.busy == 1 or bt_callback_depth:
                raise errors.ChannelBusyError(f"receive on {self!r}: another thread receives on it")
            self._await_server()
        if self.generation != registry().generation:
            self.check_fork()
        self.busy = 1
        self.receiver = PyThread_get_thread_ident()
        return 0

    cdef int leave(self) except -1:
        """The receiving call ends, unless another thread took over while a callback ran."""
        if self.busy == 1 and self.receiver == PyThread_get_thread_ident():
            self.busy = 0
        return 0

    def receive(self, timeout=None):
        """The next event that no callback takes.

        timeout: seconds; None waits for ever, 0 polls once.
        Raises: TimeoutError, ClosedChannelError, EndOfChannelError, BrokenChannelError, ProtocolViolation (each after
        what had arrived), ChannelBusyError (another thread receives), ChannelStateError (never created or bound),
        WouldBlock (inside a callback), ForkedError.
        """
        cdef Event event
        self.enter()
        try:
            event = self.next_event()
            if event is None:
                event = self.wait_event(timeout)
            return event
        finally:
            self.leave()

    def receive_nowait(self):
        """The next event, if one is there. Raises: WouldBlock, and as receive."""
        cdef Event event
        self.enter()
        try:
            event = self.next_event()
            if event is None:
                event = self.look_harder()
            if event is None:
                raise errors.WouldBlock(f"receive on {self!r}: nothing is there")
            return event
        finally:
            self.leave()

    def receive_many(self, Py_ssize_t limit, timeout=None):
        """At least one event and at most `limit`, with one notification to the peer. Raises: as receive; ValueError."""
        cdef list events = []
        cdef Event event
        if limit < 1:
            raise ValueError(f"receive_many of {limit} events")
        self.enter()
        try:
            self.lazy = True
            event = self.next_event()
            if event is None:
                self.lazy = False
                event = self.wait_event(timeout)
                self.lazy = True
            events = [event]
            while len(events) < limit:
                event = self.next_event()
                if event is None:
                    break
                events.append(event)
            return events
        except BaseException:  # of a callback, or the end: what was taken is the next to be received
            if events:
                self.queue.extendleft(reversed(events))
                self.may_have_queued = True
            raise
        finally:
            self.leave()
            self.lazy = False
            if self.link != NULL and BT_FULL(self.link).rx.published != BT_FULL(self.link).rx.head:
                bt_link_consumed(self.link)

    def receive_buffer(self, timeout=None):
        """The next event that brings a buffer; other events stay for receive. Raises: as receive."""
        cdef Event event
        cdef int64_t left_ns = -1 if timeout is None else span_ns(timeout)
        cdef list others = []
        self.enter()
        try:
            event = self.next_event()
            if event is not None and 4 <= event.number <= 7:
                return event
            end = None if left_ns < 0 else bt_now_ns() + left_ns
            while True:
                if event is not None:
                    if 4 <= event.number <= 7:
                        return event
                    others.append(event)
                    event = self.next_event()
                if event is None:
                    left = None if end is None else max(0.0, (<double> end - <double> bt_now_ns()) / 1e9)
                    event = self.wait_event(left)
        finally:
            self.leave()
            if others:
                self.queue.extendleft(reversed(others))
                self.may_have_queued = True
                if self.descriptor_mode:
                    self._poke()

    cdef Event look_harder(self):
        """Nothing in the ring: read the socket, serve the domain, notice the end. Arms descriptor mode."""
        cdef Event event
        while True:
            if self.link != NULL:
                self.take_bells()
                if self.hung_up:
                    self._hang_up()
            else:
                self._serve_set_up()
            if self.waiters.deadline_ns and bt_now_ns() >= self.waiters.deadline_ns:
                self._serve_domain()
            event = self.next_event()
            if event is not None:
                return event
            if self.ended is not None:
                self._raise_end("receive")
            if not self.descriptor_mode:
                return None
            self._clear_kick()  # what another thread queued before this is seen below, what it queues later pokes
            if (self.link == NULL or self.arm()) and not self.queue and self.ended is None:
                return None

    cdef bint arm(self, bint outcomes=True) except -1:
        """From here on the peer rings; False if something came in between."""
        cdef Outcome o
        bt_sleep_begin(BT_SLEEP_DATA(self.link))
        if bt_rx_look_again(&BT_FULL(self.link).rx) != 0:
            return False
        if outcomes and self.outcomes:
            o = <Outcome> self.outcomes[0]
            while not bt_link_await(self.link):
                self.passed()
            return not self.known(o)
        return True

    cdef uint64_t passed(self) except? 0:
        """The position up to which the peer has taken what was sent."""
        cdef uint64_t consumed = 0
        if bt_link_refresh(self.link, &consumed) < 0:
            self._violation("its consumed index went back, or beyond what was published")
        return consumed

    cdef bint known(self, Outcome o) except -1:
        """Whether it is clear how an operation ended: the peer passed it, and every refusal that it made is here."""
        return <int64_t> (self.passed() - o.end) >= 0 and (
            o.end == 0 or bt_link_refusals(self.link) <= self.refused_there)

    cdef Event wait_event(self, object timeout):
        cdef Event event
        cdef int64_t left_ns = -1
        cdef uint64_t end_ns = 0, now
        if bt_callback_depth:
            raise errors.WouldBlock(f"receive on {self!r}: it would wait inside a callback")
        if self.ended is not None:
            self._raise_end("receive")
        left_ns = span_ns(timeout)
        if left_ns >= 0:
            end_ns = bt_now_ns() + left_ns
        if left_ns == 0:
            event = self.look_harder()
            if event is None:
                raise TimeoutError(f"receive on {self!r}: nothing came within {timeout} s")
            return event
        while True:
            self.wait_step(left_ns)
            event = self.next_event()
            if event is not None:
                if self.descriptor_mode:
                    self._poke()  # the bell was heard, and more may have come with it
                return event
            if self.ended is not None:
                self._raise_end("receive")
            if left_ns >= 0:
                now = bt_now_ns()
                left_ns = <int64_t> (end_ns - now) if now < end_ns else 0
                if left_ns == 0:
                    event = self.look_harder()
                    if event is None:
                        raise TimeoutError(f"receive on {self!r}: nothing came within {timeout} s")
                    return event

    cdef int wait_step(self, int64_t left_ns) except -1:
        """Wait once, until something may have changed or `left_ns` (-1: for ever) is over."""
        cdef uint64_t budget
        cdef int spin = self.spin_mode
        cdef int found
        cdef bt_link* held
        cdef bint outcomes = len(self.outcomes) > 0
        if self.link == NULL:
            self.block(left_ns)
            return 0
        if spin == SPIN_A_WHILE and self.yields:
            spin = SPIN_NEVER  # on one core the peer runs when this side sleeps
        if spin != SPIN_NEVER and not self.hung_up:
            if not self.yields and bt_spin_briefly(self.link, outcomes):
                return 0
            budget = AUTO_SPIN_NS if spin == SPIN_A_WHILE else WATCH_NS
            if left_ns >= 0 and <uint64_t> left_ns < budget:
                budget = left_ns
            held = self.link
            bt_link_retain(held)  # another thread may close the channel meanwhile
            with nogil:
                found = bt_spin(held, outcomes, budget, self.yields, BT_KICKED(&self.kicked))
                bt_link_release(held)
            self.kicked = 0
            if found:
                return 0
            if spin == SPIN_ALWAYS:  # once a millisecond: signals, the peer's death, the rest of the domain
                PyErr_CheckSignals()
                self.block(0)
                return 0
        self.block(left_ns)
        return 0

    cdef int block(self, int64_t left_ns, bint mine=True, bint outcomes=True, uint64_t news=0) except -1:
        """Sleep until the peer rings, something happens in the domain, or the time is over; serve what did.

        news: the domain's count when the caller looked last, if it looks at what other threads change. Such a caller
        may miss a kick that another thread clears: it sleeps for long only while nobody else sleeps, and no kick is
        cleared while somebody does.
        """
        cdef pollfd fds[4]
        cdef Waiters w = self.waiters
        cdef int result, ms, error = 0
        cdef uint64_t now
        cdef bt_link* held
        cdef int bits = 0, hint = 0
        cdef bint alone = False
        if w.drowsy and left_ns != 0:
            self._rouse()
        if self.bed < 0 or not self.loose or len(w.loose) > 1:
            hint = self._before_block()
        if hint == 2 or (news and news != w.news):  # something came in meanwhile
            left_ns = 0
        elif hint == 1 and (left_ns < 0 or left_ns > RECHECK_NS):
            left_ns = RECHECK_NS
        if not mine:  # another thread receives here: it reads the socket, this one only looks at the outcome
            left_ns = RECHECK_NS if left_ns < 0 else min(left_ns, RECHECK_NS)
        elif self.link != NULL and left_ns != 0:
            if bt_link_asked(self.link) - self.asked_at >= UNREAD_MAX:
                self.take_bells()  # before the bells that were left unread fill the socket
            if not self.arm(outcomes):
                self.wake()
                return 0
        if w.deadline_ns:
            now = bt_now_ns()
            if now >= w.deadline_ns:
                left_ns = 0
            elif left_ns < 0 or <uint64_t> left_ns > w.deadline_ns - now:
                left_ns = w.deadline_ns - now
        if news and (left_ns < 0 or left_ns > RECHECK_NS):
            alone = w.waiting == 0
            left_ns = left_ns if alone else RECHECK_NS
        ms = -1 if left_ns < 0 else 2000000000 if left_ns > 2000000000000000 else <int> ((left_ns + 999999) // 1000000)
        memset(fds, 0, sizeof(fds))
        fds[0].fd = self.kick_fd
        fds[1].fd = w.epoll
        fds[0].events = fds[1].events = POLLIN
        cdef int bed = self.bed if self.link != NULL and not self.hung_up and mine else -1
        w.waiting += 1
        w.drowsy += alone
        self.sleepers += mine
        if left_ns != 0:
            self.waits += 1
        held = self.link
        if held != NULL:
            bt_link_retain(held)
        with nogil:
            if bed >= 0:
                bits = bt_bed_sleep(bed, ms)
                result = 0 if bits >= 0 else -1
                error = -bits
            else:
                result = c_poll(fds, 2, ms)
                error = errno
                bits = (BT_BY_KICK if fds[0].revents else 0) | (BT_BY_DOMAIN if fds[1].revents else 0)
            if held != NULL:
                bt_link_release(held)
        w.waiting -= 1
        w.drowsy -= alone
        self.sleepers -= mine
        if mine:
            self.wake()
        if result < 0:
            if error != EINTR:
                raise OSError(error, _os.strerror(error))
            PyErr_CheckSignals()
            return 0
        if bits & BT_BY_KICK and (mine or self.busy != 1) and not w.drowsy:
            self._clear_kick()
        if bits & BT_BY_SOCKET and self.link != NULL:
            # a bell need not be read, what else came must be
            if bits & BT_BY_HANG_UP or bt_rx_look_again(&BT_FULL(self.link).rx) == 0:
                self.take_bells()
            else:
                self.carry()
        if bits & BT_BY_DEATH and self.link != NULL:
            self.take_bells()  # what it said before it died
            self.hung_up = True
        if bits & BT_BY_DOMAIN or w.deadline_ns:
            self._serve_domain()
        if self.hung_up:
            self._hang_up()
        return 0

    def make_bed(self, int bed, int pidfd):
        """From now on sleep in the epoll descriptor `bed`; `pidfd` is the peer's, or -1. Raises: OSError."""
        cdef int result = bt_bed_add(bed, self.link.sock, BT_BY_SOCKET) if self.link != NULL else 0
        if result == 0:
            result = bt_bed_add(bed, self.kick_fd, BT_BY_KICK)
        if result == 0:
            result = bt_bed_add(bed, self.waiters.epoll, BT_BY_DOMAIN)
        if result == 0 and pidfd >= 0:
            result = bt_bed_add(bed, pidfd, BT_BY_DEATH)
        if result < 0:
            raise OSError(-result, _os.strerror(-result))
        self.bed = bed

    cdef int wake(self) except -1:
        """Awake: the peer need not ring, unless another thread sleeps here or the descriptor is watched."""
        if self.link != NULL and not self.descriptor_mode and self.sleepers == 0:
            bt_sleep_end(BT_SLEEP_DATA(self.link))
        return 0

    def wait_for(self, predicate, timeout):
        """Serve this channel and its domain until predicate() is true; False if `timeout` seconds were not enough.

        Data that arrives waits in the queue. Raises: WouldBlock (inside a callback), KeyboardInterrupt.
        """
        cdef int64_t left_ns = -1
        cdef uint64_t end_ns = 0, now, news
        if predicate():
            return True
        if bt_callback_depth:
            raise errors.WouldBlock(f"{self!r}: it would wait inside a callback")
        left_ns = span_ns(timeout)
        if left_ns >= 0:
            end_ns = bt_now_ns() + left_ns
        try:
            while True:
                self.serve()
                news = self.waiters.news
                if predicate():
                    return True
                if left_ns == 0:
                    return False
                self.block(left_ns, self.busy == 0, False, news)
                if left_ns >= 0:
                    now = bt_now_ns()
                    left_ns = <int64_t> (end_ns - now) if now < end_ns else 0
        finally:
            if self.descriptor_mode and (self.queue or self.ended is not None):
                self._poke()  # the kick that told of it may be cleared

    def serve(self):
        """Take what is there: control requests are answered, transfers wait in the queue."""
        if self.link == NULL or self.busy:  # whoever is at it takes all there is, and rings for what comes later
            return
        self.busy = 2
        try:
            self.take_bells()
            self.drain()
            while self.inbox and self.link != NULL and not self.arm(False):
                self.drain()  # a message came before its entry: have the peer ring for that one
            if self.hung_up:
                self._hang_up()
        finally:
            self.busy = 0
        if self.descriptor_mode and (self.queue or self.ended is not None):
            self._poke()

    def drain_all(self):
        """Take everything that the peer published, before the link goes."""
        if self.link != NULL:
            self.drain()

    def watch(self):
        """From here on the peer rings when it sends; False if something is there already."""
        return self.link == NULL or self.arm(False)

    def dispatch_events(self, Py_ssize_t limit):
        """Run the callbacks of up to `limit` events; the others wait in the queue. Returns how many ran."""
        cdef Event event
        cdef list kept = []
        cdef Py_ssize_t count = 0
        self.enter()
        try:
            self.fire_outcomes()
            if self.link != NULL:
                self.take_bells()
                self.drain()
                if self.hung_up:
                    self._hang_up()
            else:
                self._serve_set_up()
            while count < limit and self.queue:
                event = <Event> self.queue.popleft()
                handler = self.handlers[event.number]
                if handler is None:
                    kept.append(event)
                elif not self.deliver(event):
                    count += 1
                    self.run_callback(handler, event)
            return count
        finally:
            self.queue.extendleft(reversed(kept))
            self.may_have_queued = True
            self.passed_over = len(kept)
            if self.descriptor_mode and len(self.queue) > len(kept):
                self._poke()  # not all had their turn
            self.leave()

    def rearm(self, Py_ssize_t known=0):
        """After everything was seen, `known` queued events included: readable again only for news. False if there is
        some already."""
        if self.link != NULL:
            self._clear_kick()
            return len(self.queue) <= known and self.ended is None and (self.link == NULL or self.arm())
        return True

    def set_kicked(self):
        """Have a spinning thread look up."""
        self.kicked = 1

    def counters(self):
        """Counts since the channel was made; for statistics."""
        return {
            "sent": {ACTS[i]: self.sent[i] for i in range(4)},
            "received": {ACTS[i]: self.received[i] for i in range(4)},
            "refused_here": self.refused_here,
            "refused_by_peer": self.refused_there,
            "bells_rung": BT_FULL(self.link).rings if self.link != NULL else 0,
            "bells_heard": self.bells_heard,
            "waits": self.waits,
            "waiting_to_be_sent": bt_link_has(self.link) if self.link != NULL else 0,
            "queued_events": len(self.queue),
            "pending_outcomes": len(self.outcomes),
        }
