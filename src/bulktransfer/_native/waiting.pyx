"""How the threads of a domain wait on a channel.

Knows: bells, beds (wait.h), what a domain serves meanwhile. Must not know: what is waited for. The GIL is dropped
around waits only.
"""

from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset

import os as _os

from bulktransfer import errors
from bulktransfer._native.byvalue cimport ValueCore
from bulktransfer._native.carrier cimport (
    BT_BY_DEATH, BT_BY_DOMAIN, BT_BY_HANG_UP, BT_BY_KICK, BT_BY_SOCKET, BT_KICKED, BT_SLEEP_DATA, POLLIN,
    bt_arrivals_quiet, bt_bed_add, bt_bed_sleep, bt_link, bt_link_asked, bt_link_await, bt_link_release,
    bt_link_retain, bt_now_ns, bt_rx_look_again, bt_sleep_begin, bt_sleep_end, bt_spin, bt_spin_briefly, c_poll,
    pollfd,
)
from bulktransfer._native.far cimport far_make_bed, far_over, far_sleep, far_spin
from bulktransfer._native.farlink cimport BT_FETCH_DRY
from bulktransfer._native.outcome cimport Outcome

cdef extern from *:
    """
    static __thread int bt_callback_depth;
    """
    int bt_callback_depth

cdef enum: AUTO_SPIN_NS = 50000, WATCH_NS = 1000000, RECHECK_NS = 50000000, UNREAD_MAX = 64
cdef enum: SPIN_NEVER = 0, SPIN_A_WHILE = 1, SPIN_ALWAYS = 2


cdef bint inside_callback() noexcept:
    return bt_callback_depth > 0


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


cdef class Waiters:
    """What the waiting threads of one domain share: where the channels are watched that nobody waits on."""

    def __init__(self, int epoll):
        self.epoll = epoll
        self.waiting = 0
        self.loose = set()
        self.deadline_ns = 0
        self.news = 1
        self.drowsy = 0


cdef class WaitCore(ValueCore):
    """What waits; see the module."""

    def __cinit__(self):
        self.kick_fd = self.bed = -1
        self.spin_mode = SPIN_NEVER

    cdef bint arm(self, bint outcomes=True) except -1:
        """From here on the peer rings; False if something came in between."""
        cdef Outcome o
        bt_sleep_begin(BT_SLEEP_DATA(self.link))
        if self.is_far and not self.arm_far():
            return False
        if self.link.in_ != NULL:
            if not bt_arrivals_quiet(self.link):
                return False
        elif bt_rx_look_again(&self.link.rx) != 0:
            return False
        if outcomes and self.outcomes:
            o = <Outcome> self.outcomes[0]
            while not bt_link_await(self.link):
                self.passed()
            if self.known(o):
                return False
            self.flush()  # the peer is asked to say when it has taken it
            return self.link != NULL
        return True

    cdef int expecting(self) except -1:
        """Whoever watches the descriptor has to look once more: that asks the peer to ring when it took something."""
        if self.descriptor_mode:
            self._poke()
        return 0

    cdef int read_ahead(self) except -1:
        """What was read from another machine no longer makes the socket readable."""
        if self.descriptor_mode:
            self._poke()
        return 0

    cdef bint arm_far(self) except -1:
        """Read what has come from another machine; False if there was something."""
        cdef int result
        result = self.fetch(False)
        return self.link != NULL and result == BT_FETCH_DRY

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
        if self.is_far and far_over(self.link):
            self.take_bells()
            self._hang_up()
            return 0
        if spin == SPIN_A_WHILE and self.yields:
            spin = SPIN_NEVER  # on one core the peer runs when this side sleeps
        if spin != SPIN_NEVER and not self.hung_up:
            if not self.is_far and not self.yields and bt_spin_briefly(self.link, outcomes):
                if self.link.out.size:
                    self.carry()
                return 0
            budget = AUTO_SPIN_NS if spin == SPIN_A_WHILE else WATCH_NS
            if left_ns >= 0 and <uint64_t> left_ns < budget:
                budget = left_ns
            held = self.link
            bt_link_retain(held)  # another thread may close the channel meanwhile
            with nogil:
                if self.is_far:
                    found = far_spin(held, outcomes, budget, &self.kicked)
                else:
                    found = bt_spin(held, outcomes, budget, self.yields, BT_KICKED(&self.kicked))
                bt_link_release(held)
            self.kicked = 0
            if found:
                if self.link != NULL and self.link.out.size:
                    self.carry()
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
        cdef Waiters w = self.waiters
        cdef uint64_t now
        cdef int hint = 0
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
            if bt_link_asked(self.link) - self.asked_at >= UNREAD_MAX or self.link.in_ != NULL:  # see bt_carrier_step
                self.take_bells()  # before the bells that were left unread fill the socket
            if self.hung_up:  # the hang-up was read already, here or before: nothing would wake this thread for it
                return self.attend(0, mine)
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
        return self.attend(self.sleep(left_ns, mine, alone), mine)

    cdef int sleep(self, int64_t left_ns, bint mine, bint alone) except -1:
        """Sleep; what woke this thread, as bits of bt_woken."""
        cdef pollfd fds[2]
        cdef Waiters w = self.waiters
        cdef bt_link* held = self.link
        cdef int bed = self.bed if held != NULL and not self.hung_up and mine else -1
        cdef int bits = 0, result, ms, error = 0
        cdef bint outcomes = len(self.outcomes) > 0
        ms = -1 if left_ns < 0 else 2000000000 if left_ns > 2000000000000000 else <int> ((left_ns + 999999) // 1000000)
        memset(fds, 0, sizeof(fds))
        fds[0].fd = self.kick_fd
        fds[1].fd = w.epoll
        fds[0].events = fds[1].events = POLLIN
        w.waiting += 1
        w.drowsy += alone
        self.sleepers += mine
        if left_ns != 0:
            self.waits += 1
        if held != NULL:
            bt_link_retain(held)
        with nogil:
            if bed >= 0:
                bits = far_sleep(held, bed, ms, outcomes) if self.is_far else bt_bed_sleep(bed, ms)
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
        return bits

    cdef int attend(self, int bits, bint mine) except -1:
        """Serve what woke this thread."""
        if bits & BT_BY_KICK and (mine or self.busy != 1) and not self.waiters.drowsy:
            self._clear_kick()
        if bits & BT_BY_SOCKET and self.link != NULL:
            # a bell need not be read, what else came must be
            if bits & BT_BY_HANG_UP or bt_rx_look_again(&self.link.rx) == 0:
                self.take_bells()
            else:
                self.carry()
        if bits & BT_BY_DEATH and self.link != NULL:
            self.take_bells()  # what it said before it died
            self.hung_up = True
        if bits & BT_BY_DOMAIN or (self.waiters.deadline_ns and bt_now_ns() >= self.waiters.deadline_ns):
            self._serve_domain()
        if self.hung_up:
            self._hang_up()
        return 0

    def make_bed(self, int bed, int pidfd):
        """From now on sleep in the epoll descriptor `bed`; `pidfd` is the peer's, or -1. Raises: OSError."""
        cdef int result = 0
        if self.link != NULL:
            result = far_make_bed(self.link, bed) if self.is_far else bt_bed_add(
                bed, self.link.sock, BT_BY_SOCKET, self.link.in_ != NULL)
        if result == 0:
            result = bt_bed_add(bed, self.kick_fd, BT_BY_KICK, 0)
        if result == 0:
            result = bt_bed_add(bed, self.waiters.epoll, BT_BY_DOMAIN, 0)
        if result == 0 and pidfd >= 0:
            result = bt_bed_add(bed, pidfd, BT_BY_DEATH, 0)
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
        if inside_callback():
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
        # the bells were heard: what is here keeps the descriptor readable, what comes later has to ring again
        if self.descriptor_mode and (self.queue or self.ended is not None or not (self.link == NULL or self.arm())):
            self._poke()

    def watch(self):
        """From here on the peer rings when it sends; False if something is there already."""
        return self.link == NULL or self.arm(False)

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
