# cython: binding=False, embedsignature.format=clinic
"""The sending half of a channel.

Knows: the order of checks and changes (all checks first), the ledger (ledger.h). Must not know: how a channel is set
up or ended. All of this runs under the GIL, so operations of one domain are atomic against each other.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from libc.stdint cimport uint32_t, uint64_t, uint8_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from collections import deque as _deque

from bulktransfer import errors, states
from bulktransfer._native.assignment cimport Assignment
from bulktransfer._native.buffer cimport Buffer, explain
from bulktransfer._native.carrier cimport (
    bt_entry, bt_link_append, bt_link_direct, bt_link_make_room, bt_ring_data, bt_tx_fill, bt_tx_publish,
)
from bulktransfer._native.hot cimport bt_fill_ahead, bt_ordinary, bt_publish_filled, bt_send_at_once, bt_unfill
from bulktransfer._native.kernel cimport registry
from bulktransfer._native.ledger cimport (
    BT_ABSENT, BT_ACTIVE, BT_A_COPY, BT_A_MOVE, BT_A_PASS, BT_A_RELEASE, BT_INVALID, BT_OK, BT_PENDING, BT_READ_ONLY,
    BT_READ_WRITE, bt_act, bt_bit, bt_may_send, bt_sent, bt_slot,
)
from bulktransfer._native.link cimport LinkCore
from bulktransfer._native.outcome cimport Outcome
from bulktransfer._native.table cimport table

ACTS = ("move", "pass", "copy", "release")
cdef enum: BATCH_MAX = 65536  # BT_SLOTS_MAX
cdef int CONNECTED = states.ChannelState.CONNECTED.value


cdef void free_metas(uint8_t** copies, Py_ssize_t count) noexcept:
    """What keep_metas made."""
    cdef Py_ssize_t i
    if copies == NULL:
        return
    for i in range(count):
        free(copies[i])
    free(copies)


cdef inline bint sent_at_once(SendCore self, Buffer buffer, bt_act act, object meta, object done) noexcept:
    """Send it if everything is as it nearly always is; else send_one goes the long way, and says what is wrong."""
    if (buffer is None or self.recent is None or self.recent.pool is not buffer.pool or done is not None
            or not PyBytes_CheckExact(meta) or <uint64_t> PyBytes_GET_SIZE(meta) > self.meta_size
            or self.stage != CONNECTED or self.hung_up or self.is_source != (act == BT_A_MOVE)
            or self.link.generation != self.link.registry.generation
            or not bt_send_at_once(
                self.link, table(), &self.recent.c, buffer.index, act, <const uint8_t*> PyBytes_AS_STRING(meta),
                <uint32_t> PyBytes_GET_SIZE(meta))):
        return False
    self.sent[<int> act] += 1
    return True


cdef bint sent_batch_at_once(SendCore self, object buffers, bt_act act) noexcept:
    """The same for a list without meta data or continuation, in one pass: what stands in the way undoes it all. No code
    of a user runs in here, so nobody sees what was done and undone."""
    cdef Py_ssize_t count, i = 0
    cdef list items
    if type(buffers) is not list:
        return False
    items = <list> buffers
    count = len(items)
    if (not 0 < count <= BATCH_MAX or self.recent is None or self.stage != CONNECTED or self.hung_up
            or self.is_source != (act == BT_A_MOVE) or self.link.generation != self.link.registry.generation
            or not bt_ordinary(&self.recent.c) or bt_link_direct(self.link, <uint32_t> count) <= 0):
        return False
    while i < count:
        if (type(items[i]) is not Buffer or (<Buffer> items[i]).pool is not self.recent.pool or not bt_fill_ahead(
                self.link, table(), &self.recent.c, (<Buffer> items[i]).index, act, <uint32_t> i)):
            break
        i += 1
    if i < count:
        while i > 0:
            i -= 1
            bt_unfill(&self.recent.c, (<Buffer> items[i]).index)
        return False
    bt_publish_filled(self.link, &self.recent.c, <uint32_t> count)
    self.sent[<int> act] += count
    return True


cdef class SendCore(LinkCore):
    """What sends; see the module."""

    def __cinit__(self):
        self.table = []
        self.outcomes = _deque()

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
                if a is not None and a.pool is buffer.pool and a.c.standing != BT_ABSENT:
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
            if a.pool.c.apart:
                self.push_apart(a, buffer.index, act, &entry, data)
            else:
                self.push(&entry, data)
            bt_sent(table(), &a.c, buffer.index, <bt_act> act, position)
            self.sent[act] += 1
            if a.pool.c.apart:
                self.carry()  # which lets the GIL go: only now, when all is as it will be
            if done is not None:
                self.expect(done, ACTS[act], buffer, position, position + 1)
            self.flush()
        finally:
            if viewed:
                PyBuffer_Release(&view)
        return 0

    cdef int push_apart(self, Assignment a, uint32_t index, int act, bt_entry* entry, const uint8_t* meta) except -1:
        """One entry of a pool at trust HALF: before it is published the mapping allows no more than it will say."""
        if not a.pool.c.guarded:
            return self.push(entry, meta)
        a.pool.guard_for(index, act)
        try:
            return self.push(entry, meta)
        except BaseException:
            a.pool.guard_again(index)
            raise

    cdef int guard_batch(self, list items, int act) except -1:
        """The same for a batch that has been judged: all or none."""
        cdef Py_ssize_t done = 0
        try:
            while done < len(items):
                (<Buffer> items[done]).pool.guard_for((<Buffer> items[done]).index, act)
                done += 1
        finally:
            while 0 < done < len(items):
                done -= 1
                (<Buffer> items[done]).pool.guard_again((<Buffer> items[done]).index)
        return 0

    cdef int judge_batch(self, list items, int act) except -1:
        """Raise what keeps any of them from being sent."""
        cdef Py_ssize_t i, checked = 0
        cdef Buffer buffer
        cdef Assignment a = None
        cdef bt_slot* s
        cdef int verdict
        try:
            for i in range(len(items)):
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
        return 0

    cdef int send_batch(self, object buffers, int act, object metas, object done) except -1:
        cdef list items = list(buffers)
        cdef list notes = None
        cdef Py_ssize_t count = len(items), i
        cdef uint64_t first
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
        self.judge_batch(items, act)
        if count == 0:
            return 0
        first = self.link.issued
        if (act == BT_A_MOVE or act == BT_A_COPY) and self.link.out.size:
            self.send_values(items, act, notes, first)
        else:
            self.send_entries(items, act, notes, first)
        self.sent[act] += count
        if done is not None:
            self.expect(done, ACTS[act], tuple(items), first, first + count)
        self.flush()
        return 0

    cdef int send_values(self, list items, int act, list notes, uint64_t first) except -1:
        raise SystemError("contents are sent in byvalue.pyx")

    cdef int send_entries(self, list items, int act, list notes, uint64_t first) except -1:
        """A batch that was judged: all or none, one notification."""
        cdef Py_ssize_t count = len(items), i
        cdef Buffer buffer
        cdef Assignment a = None
        cdef bt_entry entry
        cdef bytes meta = b""
        cdef uint8_t** copies = NULL
        cdef int direct = bt_link_direct(self.link, <uint32_t> count)
        if direct < 0:
            self._violation("its consumed index went back, or beyond what was published")
        if direct == 0 and bt_link_make_room(self.link, <uint32_t> count) < 0:
            raise MemoryError("no memory for what waits to be sent")
        if direct == 0 and notes is not None:
            copies = self.keep_metas(notes)
        if (<Buffer> items[0]).pool.c.guarded:  # one channel, one trust
            try:
                self.guard_batch(items, act)
            except BaseException:
                free_metas(copies, count)
                raise
        entry.kind = act + 1
        entry.flags = entry.meta_size = 0
        entry.serial = 0
        for i in range(count):
            buffer = <Buffer> items[i]
            if a is None or buffer.pool is not a.pool:
                a = self.assignment_of(buffer, act)
            if notes is not None:
                meta = <bytes> notes[i]
                entry.meta_size = <uint32_t> PyBytes_GET_SIZE(meta)
            entry.slot = a.slot
            entry.index = buffer.index
            entry.length = a.pool.c.slots[buffer.index].length if act != BT_A_PASS else a.pool.c.size
            if direct:
                bt_tx_fill(&self.link.tx, <uint32_t> i, &entry, <const uint8_t*> PyBytes_AS_STRING(meta))
            else:
                bt_link_append(self.link, &entry, copies[i] if copies != NULL else NULL, 0, NULL, 0)
                self.link.issued += 1
            bt_sent(table(), &a.c, buffer.index, <bt_act> act, first + i)
        if direct:
            self.link.issued += count
            bt_tx_publish(&self.link.tx, <uint32_t> count)
            bt_ring_data(self.link)
        else:
            free(copies)
            self.carry()
        return 0

    cdef uint8_t** keep_metas(self, list notes) except NULL:
        """Copies of the meta data of a batch that has to wait: all or none."""
        cdef Py_ssize_t i, count = len(notes)
        cdef uint8_t** copies = <uint8_t**> calloc(count, sizeof(uint8_t*))
        if copies == NULL:
            raise MemoryError("no memory for meta data that waits to be sent")
        for i in range(count):
            copies[i] = <uint8_t*> malloc(len(notes[i]) + 1)  # no size is none
            if copies[i] == NULL:
                free_metas(copies, count)
                raise MemoryError("no memory for meta data that waits to be sent")
            memcpy(copies[i], PyBytes_AS_STRING(notes[i]), len(notes[i]))
        return copies

    cdef int expect(self, object done, str operation, object buffer, uint64_t first, uint64_t end) except -1:
        cdef Outcome o = Outcome(operation, self, None, buffer, None)
        o.first = first
        o.end = end
        o.done = done
        self.outcomes.append(o)
        self.may_have_outcomes = True
        if len(self.outcomes) == 1:
            self.expecting()
        return 0

    def move(self, buffer, meta=b"", done=None):
        """Give the buffer away to the sink, with its contents (I-5.1.7).

        The call returns as soon as ownership has changed: the buffer is INVALID here. `meta`: up to meta_size bytes,
        copied now. `done(outcome)` is called when the peer's library accepted or refused.
        Raises: DirectionError (at the sink), PoolNotAssignedError, NotOwnedError and its kinds,
        CopiesOutstandingError, BufferError (a view is live), MetaSizeError, ChannelStateError or the channel's end,
        OSError (trust HALF: ENOMEM, the kernel grants this process no further mapping).
        """
        if type(buffer) is not Buffer:
            self._send_parts("move", buffer, meta, done)
        elif not sent_at_once(self, <Buffer> buffer, BT_A_MOVE, meta, done):
            self.send_one(<Buffer> buffer, BT_A_MOVE, meta, done)

    def copy(self, buffer, meta=b"", done=None):
        """Let the sink read the buffer, which nobody writes until it was released (I-5.1.9).

        Raises: as move; AlreadyCopiedError (a copy is out on this channel), CopyRefusedError (within one domain).
        """
        if type(buffer) is not Buffer:
            self._send_parts("copy", buffer, meta, done)
        else:
            self.send_one(<Buffer> buffer, BT_A_COPY, meta, done)

    def pass_(self, buffer, meta=b"", done=None):
        """Give the buffer away to the source, without its contents (I-5.1.8).

        Raises: as move (DirectionError: at the source).
        """
        if type(buffer) is not Buffer:
            self._send_parts("pass_", buffer, meta, done)
        elif not sent_at_once(self, <Buffer> buffer, BT_A_PASS, meta, done):
            self.send_one(<Buffer> buffer, BT_A_PASS, meta, done)

    def release(self, buffer, done=None):
        """Let go of a copy that came over this channel (I-5.1.10).

        Raises: NotACopyError, CopiesOutstandingError (copies of it are out), BufferError (a view is live), and the
        channel's errors as for move.
        """
        if type(buffer) is not Buffer:
            self._send_parts("release", buffer, b"", done)
        else:
            self.send_one(<Buffer> buffer, BT_A_RELEASE, b"", done)

    def move_many(self, buffers, metas=None, done=None):
        """Move a batch with one notification: all or none. Raises: as move; ValueError (a buffer twice)."""
        if metas is not None or done is not None or not sent_batch_at_once(self, buffers, BT_A_MOVE):
            self.send_batch(buffers, BT_A_MOVE, metas, done)

    def copy_many(self, buffers, metas=None, done=None):
        """Copy a batch with one notification: all or none. Raises: as copy; ValueError (a buffer twice)."""
        self.send_batch(buffers, BT_A_COPY, metas, done)

    def pass_many(self, buffers, metas=None, done=None):
        """Pass a batch with one notification: all or none. Raises: as pass_; ValueError (a buffer twice)."""
        if metas is not None or done is not None or not sent_batch_at_once(self, buffers, BT_A_PASS):
            self.send_batch(buffers, BT_A_PASS, metas, done)

    def release_many(self, buffers, done=None):
        """Release a batch with one notification: all or none. Raises: as release; ValueError (a buffer twice)."""
        self.send_batch(buffers, BT_A_RELEASE, None, done)

    def give_back(self, buffer, bint when_unused=True):
        """Pass what is owned, release what is a copy (rule 19).

        With live views it goes when the last one dies, or, with when_unused=False, raises BufferError.
        Raises: as pass_ and release.
        """
        if type(buffer) is Buffer:
            self.give_one_back(<Buffer> buffer, when_unused)
        else:
            self._send_parts("give_back", buffer, when_unused, None)

    cdef int give_one_back(self, Buffer buffer, bint when_unused) except -1:
        cdef bt_slot* s = buffer.slot()
        cdef int act = BT_A_RELEASE if s.state == BT_READ_ONLY else BT_A_PASS
        cdef Assignment a
        cdef int verdict
        if when_unused and s.views and s.state != BT_INVALID and not s.flags:
            self.check_sender(act)
            a = self.assignment_of(buffer, act)
            if (act == BT_A_RELEASE and (not bt_bit(a.c.in_copies, buffer.index) or s.out)) or (
                    act == BT_A_PASS and s.state != BT_READ_WRITE):
                verdict = bt_may_send(table(), &a.c, buffer.index, <bt_act> act)
                raise explain(verdict, ACTS[act], buffer, f" on {self!r}")
            a.pool.give_back_on_release(buffer.index, self)
            return 0
        return self.send_one(buffer, act, b"", None)

    def check_move(self, Buffer buffer not None, meta):
        """Raise what move would; change nothing."""
        cdef Assignment a
        cdef int verdict
        self.check_sender(BT_A_MOVE)
        a = self.assignment_of(buffer, BT_A_MOVE)
        if len(meta) > self.meta_size:
            raise self.too_much_meta(f"move of {buffer.called()}", len(meta))
        verdict = bt_may_send(table(), &a.c, buffer.index, BT_A_MOVE)
        if verdict:
            raise explain(verdict, "move", buffer, f" on {self!r}")

    def send_back(self, Buffer buffer not None):
        """The last view of a buffer died whose return was asked for; where the channel ends it is let go."""
        if self.stage == CONNECTED and not self.hung_up and self.generation == registry().generation:
            self.send_one(buffer, BT_A_RELEASE if buffer.slot().state == BT_READ_ONLY else BT_A_PASS, b"", None)
        else:
            self._strand(buffer)
