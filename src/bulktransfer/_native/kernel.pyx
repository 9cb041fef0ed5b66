"""Descriptors, mappings and messages: what this process holds of the kernel, and lets go at a fork.

Knows: system calls that the standard library lacks or cannot undo in a forked child. Must not know: pools,
channels, or why something is sent. Every descriptor and mapping is in one registry (registry.h).
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc

import os as _os

cdef extern from *:
    """
    #include "registry.h"
    #include "memory.h"
    #include "foreign.h"
    #include <poll.h>
    #include <sys/epoll.h>
    #include <sys/timerfd.h>
    static bt_registry *bt_the_registry;
    static void bt_before_fork(void) { pthread_mutex_lock(&bt_the_registry->lock); }
    static void bt_after_fork_parent(void) { pthread_mutex_unlock(&bt_the_registry->lock); }
    static void bt_after_fork_child(void) {
        bt_registry_forked(bt_the_registry);
        pthread_mutex_unlock(&bt_the_registry->lock);
    }
    static int bt_registry_install(bt_registry *r) {
        if (pthread_mutex_init(&r->lock, NULL)) return -1;
        r->generation = 1;
        bt_the_registry = r;
        return pthread_atfork(bt_before_fork, bt_after_fork_parent, bt_after_fork_child);
    }
    """
    int bt_registry_install(bt_registry* r)
    enum: PROT_NONE, PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE, MAP_FIXED
    void* mmap(void* address, size_t size, int protection, int flags, int fd, long offset) nogil
    void* MAP_FAILED
    enum: F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE, F_SEAL_FUTURE_WRITE, F_ADD_SEALS
    int fcntl(int fd, int what, int value) nogil
    int bt_memory_create(const char* name, size_t size) nogil
    int bt_memory_map(int fd, size_t size, int protection, void** address) nogil
    int bt_memory_reserve(int fd, void* address, size_t size, int huge) nogil
    int bt_memory_private(size_t size, void** address, int there) nogil
    int bt_memory_judge(int fd, size_t size, int seals) nogil
    int bt_memory_populate(void* address, size_t size) nogil
    enum: BT_FDS_MAX
    ctypedef struct ucred_t "struct ucred":
        int pid
        unsigned int uid
        unsigned int gid
    ctypedef struct bt_message:
        uint8_t data[1]
        int fds[1]
        int fd_count
        int truncated
        int has_credentials
        ucred_t credentials
    cdef union epoll_data:
        int fd
    cdef struct epoll_event:
        uint32_t events
        epoll_data data
    int epoll_create1(int flags) nogil
    int epoll_ctl(int ep, int what, int fd, epoll_event* event) nogil
    int epoll_wait(int ep, epoll_event* events, int room, int timeout_ms) nogil
    cdef struct pollfd:
        int fd
        short events
        short revents
    cdef struct timespec:
        long tv_sec
        long tv_nsec
    cdef struct itimerspec:
        timespec it_interval
        timespec it_value
    int timerfd_create(int clock, int flags) nogil
    int timerfd_settime(int fd, int flags, const itimerspec* new, itimerspec* old) nogil
    enum: CLOCK_MONOTONIC, TFD_CLOEXEC, TFD_NONBLOCK, TFD_TIMER_ABSTIME
    int c_poll "poll"(pollfd* fds, unsigned long count, int timeout_ms) nogil
    enum: EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLLIN, EPOLLOUT, EPOLLRDHUP, POLLIN, POLLHUP
    int bt_message_send(int sock, const void* data, size_t size, const int* fds, int fd_count) nogil
    int bt_message_receive(int sock, bt_message* m) nogil
    void bt_close_foreign(bt_registry* r, int fd)
    void bt_hang_up(bt_registry* r, int sock)

SEAL_SEAL = F_SEAL_SEAL
SEAL_SHRINK = F_SEAL_SHRINK
SEAL_GROW = F_SEAL_GROW
SEAL_WRITE = F_SEAL_WRITE
SEAL_FUTURE_WRITE = F_SEAL_FUTURE_WRITE
MESSAGE_FDS_MAX = BT_FDS_MAX
_FAULTS = (
    "",
    "is not anonymous memory (a memfd)",
    "lacks a seal that its use needs",
    "is not of the announced size",
    "is sparse: its pages are not reserved",
    "has pages beyond its end",
)

cdef bt_registry* the_registry = <bt_registry*> calloc(1, sizeof(bt_registry))
if the_registry == NULL or bt_registry_install(the_registry) != 0:
    raise MemoryError("the fork handlers could not be installed")

cdef bt_registry* registry() noexcept nogil:
    return the_registry


def fork_generation():
    """A number that changes in a forked child."""
    return the_registry.generation


cdef int refuse(int error, str what) except -1:
    raise OSError(error, f"{what}: {_os.strerror(error)}")


cdef enum: OWN = 0, RECEIVED = 1, TO_PEER = 2


cdef class Descriptor:
    """Owns a descriptor: closed once, at the latest when this object dies, and in a forked child at once.

    Raises: MemoryError (the descriptor is closed then).
    """

    def __cinit__(self, int fd):
        self.fd = -1
        if fd < 0:
            raise ValueError(f"{fd} is not a descriptor")
        if bt_registry_add_fd(the_registry, fd) < 0:
            _os.close(fd)
            raise MemoryError(f"no memory to keep descriptor {fd}")
        self.fd = fd
        self.generation = the_registry.generation

    @property
    def closed(self):
        """Whether there is nothing (left) to close; true in a forked child."""
        return self.fd < 0 or self.generation != the_registry.generation

    def fileno(self):
        """The number. Raises: ValueError (closed)."""
        if self.fd < 0 or self.generation != the_registry.generation:
            raise ValueError("the descriptor is closed")
        return self.fd

    cpdef int detach(self) except -1:
        """The number, which the caller owns from now on. Raises: ValueError (closed)."""
        cdef int fd = self.fd
        if fd < 0 or self.generation != the_registry.generation:
            raise ValueError("the descriptor is closed")
        self.fd = -1
        bt_registry_drop_fd(the_registry, fd)
        return fd

    def close(self):
        """Close it; idempotent. What a peer sent, or left unread in its socket, never holds this up (foreign.h)."""
        self.let_go()

    cdef void let_go(self) noexcept:
        cdef int fd = self.fd
        self.fd = -1
        if fd < 0 or self.generation != the_registry.generation:
            return
        if self.kind == TO_PEER:
            bt_hang_up(the_registry, fd)
        elif self.kind == RECEIVED:
            bt_close_foreign(the_registry, fd)
        else:
            bt_registry_close(the_registry, fd)

    def __dealloc__(self):
        self.let_go()

    def __repr__(self):
        return "<Descriptor closed>" if self.closed else f"<Descriptor {self.fd}>"


cdef Descriptor received(int fd):
    """Own a descriptor that a peer sent. Raises: MemoryError (it is closed)."""
    cdef Descriptor descriptor = Descriptor(fd)
    descriptor.kind = RECEIVED
    return descriptor


def to_peer(int fd):
    """Own a socket to a peer: what lies unread in it is read before it is closed. Raises: MemoryError, ValueError."""
    cdef Descriptor descriptor = Descriptor(fd)
    descriptor.kind = TO_PEER
    return descriptor


cdef class Mapping:
    """Owns a range of addresses: unmapped when this object dies, zero pages of its own in a forked child."""

    def __cinit__(self, Descriptor source, size_t size, bint writable, bint there=True):
        """Map `size` bytes of `source` from its start, or new memory of nobody else where it is None (`there`: all).

        Raises: OSError, MemoryError.
        """
        cdef int result
        cdef int protection = PROT_READ | PROT_WRITE if writable else PROT_READ
        cdef void* base = NULL
        self.base = NULL
        if source is None:
            with nogil:
                result = bt_memory_private(size, &base, there)
            self.base = base
        else:
            result = bt_memory_map(source.fileno(), size, protection, &self.base)
        if result < 0:
            refuse(-result, f"mapping {size} bytes")
        self.size = (size + 4095) & ~(<size_t> 4095)
        self.writable = writable
        self.generation = the_registry.generation
        if bt_registry_add_range(the_registry, self.base, self.size) < 0:
            bt_registry_unmap(the_registry, self.base, self.size)
            self.base = NULL
            raise MemoryError("no memory to keep a mapping")

    @property
    def address(self):
        """The first address."""
        return <uintptr_t> self.base

    def populate(self):
        """Have every page present for reading, without the GIL. Raises: OSError (it cannot be)."""
        cdef int result
        with nogil:
            result = bt_memory_populate(self.base, self.size)
        if result < 0:
            refuse(-result, f"populating {self.size} bytes")

    def revoke(self):
        """Let the memory go and keep the addresses, without access. Raises: OSError."""
        if self.generation != the_registry.generation:
            return
        cdef int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED
        if self.twin != NULL and bt_twin_put_off(self.twin, self.base, self.size, True):
            return  # when the last byte is out
        if mmap(self.base, self.size, PROT_NONE, flags, -1, 0) == MAP_FAILED:
            refuse(errno, f"unmapping {self.size} bytes")

    cdef void belong(self, bt_twin* twin) noexcept:
        """From now on it is kept while bytes of it are moved for `twin`; NULL: no longer."""
        if self.twin != NULL:
            bt_twin_leave(self.twin, 0)
        self.twin = twin
        if twin != NULL:
            bt_twin_retain(twin)

    cdef bt_hold* pin(self) except NULL:
        """One more user of the memory, which stays mapped until that one drops it."""
        if self.hold == NULL:
            self.hold = bt_hold_new(the_registry, self.base, self.size)
            if self.hold == NULL:
                raise MemoryError("no memory to keep a mapping")
        return bt_hold_more(self.hold)

    cdef void* disown(self) noexcept:
        cdef void* base = self.base
        self.base = NULL
        return base

    def __dealloc__(self):
        if self.hold != NULL:
            if self.twin == NULL or not bt_twin_put_off_hold(self.twin, self.hold): bt_hold_drop(self.hold)
        elif self.base != NULL and self.generation == the_registry.generation:
            if self.twin == NULL or not bt_twin_put_off(self.twin, self.base, self.size, False):
                bt_registry_unmap(the_registry, self.base, self.size)
        self.belong(NULL)


def create_memory(bytes name not None, size_t size, bint huge=True):
    """New anonymous memory of `size` bytes, every page reserved (`huge`: as huge pages where it can be), that cannot
    shrink or grow.

    Returns the memfd and its writable mapping. Raises: OSError (ENOMEM, EMFILE ...).
    """
    cdef int result = bt_memory_create(name, size)
    if result < 0:
        refuse(-result, f"making {size} bytes of shared memory")
    source = Descriptor(result)
    mapping = Mapping(source, size, True)
    cdef int fd = result
    cdef void* base = (<Mapping> mapping).base
    with nogil:
        result = bt_memory_reserve(fd, base, size, huge)
    if result < 0:
        refuse(-result, f"reserving {size} bytes of shared memory")
    return source, mapping


def judge_memory(Descriptor source not None, size_t size, int seals):
    """What is wrong with memory that a peer sent, or "" if it may be mapped. Raises: OSError."""
    cdef int result = bt_memory_judge(source.fileno(), size, seals)
    if result < 0:
        refuse(-result, "looking at a received descriptor")
    return _FAULTS[result]


def add_seals(Descriptor source not None, int seals):
    """Seal own memory. Raises: OSError (EBUSY: a writable mapping exists)."""
    if fcntl(source.fileno(), F_ADD_SEALS, seals) < 0:
        refuse(errno, "sealing memory")


def send_message(int sock, bytes data not None, fds=()):
    """Send one message with descriptors beside it; False if the socket is full. Raises: OSError, ValueError."""
    cdef int numbers[BT_FDS_MAX]
    cdef int count = 0, result
    if len(fds) > BT_FDS_MAX:
        raise ValueError(f"{len(fds)} descriptors in one message; {BT_FDS_MAX} are possible")
    for fd in fds:
        numbers[count] = fd.fileno() if isinstance(fd, Descriptor) else fd
        count += 1
    result = bt_message_send(sock, <const char*> data, len(data), numbers, count)
    if result == -EAGAIN:
        return False
    if result < 0:
        refuse(-result, "sending a control message")
    return True


def receive_message(int sock):
    """The next message of a socket, never waiting: None if there is none now.

    Otherwise (data, descriptors, truncated, credentials): data is b"" at the end, credentials is None or
    (pid, uid, gid). Raises: OSError.
    """
    cdef bt_message message
    cdef int size = bt_message_receive(sock, &message)
    cdef int i
    if size == -EAGAIN:
        return None
    if size < 0:
        refuse(-size, "receiving a control message")
    fds = []
    for i in range(message.fd_count):
        fds.append(received(message.fds[i]))
    credentials = None
    if message.has_credentials:
        credentials = (message.credentials.pid, message.credentials.uid, message.credentials.gid)
    return PyBytes_FromStringAndSize(<char*> message.data, size), fds, bool(message.truncated), credentials


def make_poller():
    """A new epoll descriptor. Raises: OSError."""
    cdef int fd = epoll_create1(EPOLL_CLOEXEC)
    if fd < 0:
        refuse(errno, "making an epoll descriptor")
    return Descriptor(fd)


def make_timer():
    """A new timer descriptor, not set. Raises: OSError."""
    cdef int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)
    if fd < 0:
        refuse(errno, "making a timer descriptor")
    return Descriptor(fd)


def set_timer(int timer, uint64_t when_ns):
    """Have it be readable from `when_ns` of the monotonic clock on, and not before; 0: never."""
    cdef itimerspec when
    when.it_interval.tv_sec = when.it_interval.tv_nsec = 0
    when.it_value.tv_sec = <long> (when_ns // 1000000000)
    when.it_value.tv_nsec = <long> (when_ns % 1000000000)
    if timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL) < 0:
        refuse(errno, "setting a timer")


def poller_add(int poller, int fd):
    """Watch `fd` for input, level-triggered. Raises: OSError."""
    cdef epoll_event event
    event.events = EPOLLIN | EPOLLRDHUP
    event.data.fd = fd
    if epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event) < 0:
        refuse(errno, f"watching descriptor {fd}")


def poller_want(int poller, int fd, bint writable):
    """Watch `fd`, which is watched for input already, for room for output too, or no longer. Raises: OSError."""
    cdef epoll_event event
    event.events = EPOLLIN | EPOLLRDHUP | (EPOLLOUT if writable else 0)
    event.data.fd = fd
    if epoll_ctl(poller, EPOLL_CTL_MOD, fd, &event) < 0:
        refuse(errno, f"watching descriptor {fd}")


def poller_drop(int poller, int fd):
    """Stop watching `fd`; False if it was not watched."""
    return epoll_ctl(poller, EPOLL_CTL_DEL, fd, NULL) == 0


def poller_ready(int poller):
    """The descriptors that are readable now, 64 at most."""
    cdef epoll_event events[64]
    cdef int i, count = epoll_wait(poller, events, 64, 0)
    return [events[i].data.fd for i in range(count)]


def wait_readable(fds, timeout):
    """Wait, without the GIL, until one of 64 descriptors is readable; those that are. Raises: OSError, ValueError."""
    cdef pollfd polls[64]
    cdef int i, count = 0, result, error, ms = -1
    if len(fds) > 64:
        raise ValueError(f"{len(fds)} descriptors to wait for; 64 are possible")
    for fd in fds:
        polls[count].fd = fd
        polls[count].events = POLLIN
        polls[count].revents = 0
        count += 1
    if timeout is not None:
        ms = min(2000000000, max(0, int(timeout * 1000 + 0.999)))
    with nogil:
        result = c_poll(polls, count, ms)
        error = errno
    if result < 0:
        if error != EINTR:
            refuse(error, "waiting")
        PyErr_CheckSignals()
        return []
    return [polls[i].fd for i in range(count) if polls[i].revents]


def hung_up(int fd):
    """Whether every other end of a pipe or socket is closed."""
    cdef pollfd one
    one.fd = fd
    one.events = 0
    one.revents = 0
    return c_poll(&one, 1, 0) > 0 and (one.revents & POLLHUP) != 0


def table_full():
    """Whether this process can have no further descriptor, so that the kernel drops those that a message brings."""
    try:
        _os.close(_os.eventfd(0, _os.EFD_CLOEXEC))
    except OSError:
        return True
    return False
