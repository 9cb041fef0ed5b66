"""The counts of a queue, right at every instant and whoever was killed: what is on its way comes from the kernel, what
a process has, from its row, which counts while it lives.

Knows: which steps must be seen as one (they are made within the gate). Must not know: what travels.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals
from cpython.pythread cimport (
    NOWAIT_LOCK, WAIT_LOCK, PyThread_acquire_lock, PyThread_allocate_lock, PyThread_free_lock, PyThread_release_lock,
    PyThread_type_lock)
from libc.errno cimport EAGAIN, EINTR, ENOSPC, errno
from libc.stdint cimport int64_t, uint32_t

from ._post cimport MSG_DONTWAIT, bt_letter, bt_post_receive, bt_post_send, bt_post_unread, opened, refuse

import os as _os

from .. import LimitError
from ..core.memory import keep

cdef extern from "tally.h" nogil:
    enum: BT_ROWS
    ctypedef struct bt_row:
        int64_t pending
        int64_t held
    ctypedef struct bt_tally:
        uint32_t changes
        int64_t early
        bt_row rows[1]
    int bt_gate_try(int fd)
    int bt_gate_wait(int fd)
    void bt_gate_leave(bt_tally* t, int fd)
    int bt_turn_begin(bt_tally* t, int row)
    void bt_turn_end(bt_tally* t, int row)
    void bt_count_begin(bt_tally* t, int fd, int mine)
    int bt_row_done(bt_row* row)
    int bt_row_claim(bt_tally* t, int fd)
    void bt_rows_sum(const bt_tally* t, int fd, int mine, int64_t* pending, int64_t* held)
    int bt_rows_done(bt_tally* t, int fd, int mine)
    void bt_changed(bt_tally* t)
    void bt_await_change(bt_tally* t, uint32_t seen, int64_t ns)

cdef extern from * nogil:
    """
    #include <sys/mman.h>
    #define bt_add_pending(row, n) __atomic_fetch_add(&(row)->pending, n, __ATOMIC_RELAXED)
    #define bt_add_held(row, n) __atomic_fetch_add(&(row)->held, n, __ATOMIC_SEQ_CST)
    #define bt_load_early(t) __atomic_load_n(&(t)->early, __ATOMIC_SEQ_CST)
    #define bt_load_changes(t) __atomic_load_n(&(t)->changes, __ATOMIC_SEQ_CST)
    """
    void bt_add_pending(bt_row* row, int64_t n)
    void bt_add_held(bt_row* row, int64_t n)
    int64_t bt_load_early(bt_tally* t)
    uint32_t bt_load_changes(bt_tally* t)
    enum: PROT_READ, PROT_WRITE, MAP_SHARED
    void* mmap(void* address, size_t size, int protection, int flags, int fd, long offset)
    int munmap(void* address, size_t size)
    void* MAP_FAILED


def make_table():
    """A new empty table: a descriptor that the caller owns. Raises: OSError."""
    fd = _os.memfd_create("bulktransfer-queue", _os.MFD_CLOEXEC | _os.MFD_ALLOW_SEALING)
    try:
        _os.ftruncate(fd, sizeof(bt_tally) + (BT_ROWS - 1) * sizeof(bt_row))
    except OSError:
        _os.close(fd)
        raise
    return fd


cdef class Ledger:
    """This process's view of a queue's table, and its row there."""

    cdef bt_tally* table
    cdef size_t size
    cdef PyThread_type_lock lock  # threads of one process share its file locks, so they take turns at this one
    cdef int fd  # of `own`
    cdef int row
    cdef int table_fd
    cdef object own

    def __cinit__(self, int table_fd):
        """Map the table; `table_fd` stays the caller's, and open. Raises: OSError."""
        self.table = NULL
        self.lock = NULL
        self.fd = self.row = -1
        self.table_fd = table_fd
        self.size = sizeof(bt_tally) + (BT_ROWS - 1) * sizeof(bt_row)
        cdef void* base = mmap(NULL, self.size, PROT_READ | PROT_WRITE, MAP_SHARED, table_fd, 0)
        if base == MAP_FAILED:
            refuse(errno, "mapping the table of a queue")
        self.table = <bt_tally*> base
        self.lock = PyThread_allocate_lock()
        if self.lock == NULL:
            raise MemoryError("no lock for the table of a queue")

    def __dealloc__(self):
        if self.table != NULL:
            munmap(self.table, self.size)
        if self.lock != NULL:
            PyThread_free_lock(self.lock)

    def forked(self):
        """Be another process: without a row, and with a lock that nobody holds."""
        self.lock = PyThread_allocate_lock()  # the old one may be held for ever, so it is not freed
        self.own = None
        self.fd = self.row = -1
        if self.lock == NULL:
            raise MemoryError("no lock for the table of a queue")

    cdef int open(self) except -1:
        """Have a description of the table that no other process has; a fork closes it in the child."""
        if self.fd < 0:
            own = keep(_os.open(f"/proc/self/fd/{self.table_fd}", _os.O_RDWR | _os.O_CLOEXEC))
            if self.fd < 0:  # another thread may have been faster, and have locks on its own
                self.own = own
                self.fd = own.fileno()
        return 0

    cdef int claim(self) except -1:
        cdef int row = 0
        if self.row >= 0:
            return 0
        self.open()
        self.enter()
        if self.row < 0:
            row = bt_row_claim(self.table, self.fd)
            if row >= 0:
                self.row = row
        self.leave()
        if self.row < 0:
            if row == -ENOSPC:
                raise LimitError(f"a queue is used by {BT_ROWS} processes at most, and so many use it")
            refuse(-row, "entering the table of a queue")
        return 0

    # From enter to leave, and during a turn, no Python code runs, and nothing is allocated: neither a signal handler
    # nor a finalizer can come back here and wait for its own thread.

    cdef void lock_threads(self) noexcept:
        if not PyThread_acquire_lock(self.lock, NOWAIT_LOCK):
            with nogil:
                PyThread_acquire_lock(self.lock, WAIT_LOCK)

    cdef int enter_gate(self) except -1:
        """With the lock, which is given back where it raises."""
        cdef int result = bt_gate_try(self.fd)
        if result == -EAGAIN:
            with nogil:
                result = bt_gate_wait(self.fd)
        if result < 0:
            PyThread_release_lock(self.lock)
            refuse(-result, "taking one's turn at the table of a queue")
        return 0

    cdef int enter(self) except -1:
        self.lock_threads()
        return self.enter_gate()

    cdef void leave(self) noexcept:
        bt_gate_leave(self.table, self.fd)
        PyThread_release_lock(self.lock)

    cdef bint begin_turn(self) except -1:
        """Whether `end_turn` has to leave the gate."""
        self.lock_threads()
        if bt_turn_begin(self.table, self.row):
            return False
        self.enter_gate()
        return True

    cdef void end_turn(self, bint in_gate) noexcept:
        if in_gate:
            self.leave()
        else:
            bt_turn_end(self.table, self.row)
            PyThread_release_lock(self.lock)

    def accept(self, int sock, int64_t maxsize):
        """Count one object as put, unless `maxsize` are there already (0: no limit); whether it was."""
        cdef int64_t held
        cdef bint accepted
        self.claim()
        if maxsize <= 0:
            bt_add_pending(&self.table.rows[self.row], 1)
            return True
        self.enter()
        accepted = self.sums(sock, &held) < maxsize
        if accepted:
            bt_add_pending(&self.table.rows[self.row], 1)
        self.leave()
        return accepted

    def forget(self):
        """One object that was accepted will not be sent."""
        bt_add_pending(&self.table.rows[self.row], -1)
        bt_changed(self.table)

    def send(self, int sock, uint32_t kind, body, int fd):
        """Send what was accepted; False if the socket has no room now. Raises: OSError."""
        cdef Py_buffer view
        cdef int result
        cdef bint in_gate
        PyObject_GetBuffer(body, &view, PyBUF_SIMPLE)
        try:
            in_gate = self.begin_turn()
            result = bt_post_send(sock, kind, view.buf, view.len, fd, True, MSG_DONTWAIT)
            if result == 0:
                bt_add_pending(&self.table.rows[self.row], -1)
            self.end_turn(in_gate)
        finally:
            PyBuffer_Release(&view)
        if result == -EAGAIN or result == -EINTR:
            return False
        if result < 0:
            refuse(-result, "sending an object")
        return True

    def receive(self, int sock, bint anybody):
        """Take a task if there is one now, and count it as held; None if not. As _post.receive otherwise."""
        cdef bt_letter letter
        cdef int result
        cdef bint in_gate
        self.claim()
        in_gate = self.begin_turn()
        result = bt_post_receive(sock, &letter, MSG_DONTWAIT)
        if result > 0:
            bt_add_held(&self.table.rows[self.row], 1)
        self.end_turn(in_gate)
        if result == -EAGAIN or result == -EINTR:
            return None
        if result < 0:
            refuse(-result, "receiving an object")
        if result == 0:
            raise EOFError
        return opened(&letter, anybody)

    cdef int64_t sums(self, int sock, int64_t* held) noexcept:
        """Objects that were put and not got, and tasks got and not done; within the gate."""
        cdef int64_t pending = 0
        bt_count_begin(self.table, self.fd, self.row)
        bt_rows_sum(self.table, self.fd, self.row, &pending, held)
        return max(bt_post_unread(sock), 0) + pending

    def count(self, int sock):
        """How many objects were put and not got. Raises: OSError."""
        cdef int64_t held, found
        self.open()
        self.enter()
        found = self.sums(sock, &held)
        self.leave()
        return found

    def unfinished(self, int sock):
        """How many tasks were put and are not done, those of the dead left out. Raises: OSError."""
        cdef int64_t held, found
        self.open()
        self.enter()
        found = self.sums(sock, &held)
        found = self.not_done(found + held)
        self.leave()
        return found

    cdef int64_t not_done(self, int64_t tasks) noexcept:
        """What is left of so many tasks; within the gate."""
        if self.table.early > tasks:  # they are gone with who had them
            self.table.early = tasks
        return tasks - self.table.early

    def done(self, int sock):
        """A task is done; False if there was none. Raises: OSError."""
        cdef int64_t held, found
        cdef bint fine
        self.open()
        if self.row < 0 or bt_load_early(self.table) or not bt_row_done(&self.table.rows[self.row]):
            self.enter()
            found = self.sums(sock, &held)
            fine = self.not_done(found + held) > 0
            if fine and not bt_rows_done(self.table, self.fd, self.row):
                self.table.early += 1
            self.leave()
            if not fine:
                return False
        bt_changed(self.table)
        return True

    def changed(self):
        """Wake those who wait: there is room, or less to do."""
        bt_changed(self.table)

    def seen(self):
        """What to hand to `wait`, taken before one looks whether it is necessary."""
        return bt_load_changes(self.table)

    def wait(self, uint32_t seen, double seconds):
        """Wait, without the GIL, until something changed since `seen`, at most so long. A signal ends it, too."""
        cdef int64_t ns = <int64_t> (seconds * 1e9)
        with nogil:
            bt_await_change(self.table, seen, ns)
        PyErr_CheckSignals()
