# cython: binding=False, embedsignature.format=clinic
"""The hot half of a channel, whole: the calls that receive, callbacks and continuations.

Knows: what a user asks for, and in which order things are looked at. Must not know: how a channel is set up or ended,
what control messages say, which backend made the connection; core/channel.py, which derives from ChannelCore,
answers the calls that begin with an underscore.

    LinkCore (link) <- SendCore (sending) <- ReceiveCore (receiving) <- WaitCore (waiting) <- ChannelCore
"""

from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy

from bulktransfer import errors
from bulktransfer._native.carrier cimport (
    bt_entry, bt_link_consumed, bt_link_has, bt_link_refusals, bt_now_ns, bt_rx_look, bt_rx_look_again,
)
from bulktransfer._native.event cimport Event, new_event
from bulktransfer._native.hot cimport bt_take_at_once
from bulktransfer._native.kernel cimport registry
from bulktransfer._native.ledger cimport BT_A_MOVE, BT_A_PASS, bt_act
from bulktransfer._native.outcome cimport Outcome
from bulktransfer._native.sending import ACTS
from bulktransfer._native.table cimport table
from bulktransfer._native.waiting cimport WaitCore, inside_callback, span_ns
from bulktransfer._native.waiting import call_back


cdef enum: BY_GENERIC = 3  # from the kind of an entry to the number of its event

cdef extern from "<pthread.h>" nogil:
    unsigned long this_thread "pthread_self"()


cdef inline Event took_at_once(ChannelCore self):
    """The next event if nothing else is to be done before and everything is as it nearly always is, else None: the
    caller goes the long way. No code of a user runs in here, so nobody needs to be kept out of the channel."""
    cdef Event event
    if self.busy or self.link == NULL or self.link.generation != self.link.registry.generation:
        return None
    event = took_ordinary(self)
    if event is not None:
        bt_link_consumed(self.link)
        if self.is_far:
            self.flush_due()
    return event


cdef inline Event took_ordinary(ChannelCore self):
    """The same inside a receiving call; what was taken is not told to the peer yet."""
    cdef bt_entry entry
    cdef Event event
    cdef bt_act act = BT_A_PASS if self.is_source else BT_A_MOVE
    if (self.may_have_queued or self.may_have_outcomes or self.recent_arrival is None
            or self.link == NULL or self.calls_back
            or (act == BT_A_PASS and self.recent_arrival.pool.reclaim) or bt_rx_look(&self.link.rx) <= 0
            or not bt_take_at_once(&self.link.rx, table(), &self.recent_arrival.c, act, self.meta_size, &entry)):
        return None
    self.received[<int> act] += 1
    event = new_event(act + 1 + BY_GENERIC, self)
    event.buffer = self.recent_arrival.pool.get(entry.index)
    event.act = act
    if entry.meta_size:
        event.meta_size = entry.meta_size
        memcpy(event.short_meta, entry.meta, entry.meta_size)
    return event


cdef class ChannelCore(WaitCore):
    """The hot half; see the module."""

    def __cinit__(self):
        self.handlers = (None,) * 9

    def set_handlers(self, tuple handlers not None):
        """The nine callbacks, in the order of EventKind."""
        self.handlers = handlers
        self.calls_back = any([handlers[act + 1 + BY_GENERIC] is not None for act in (BT_A_MOVE, BT_A_PASS)])

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
                there = bt_rx_look(&self.link.rx)
                if there == 0 and self.is_far:
                    there = self.look_far()
                if there <= 0:
                    if there < 0:
                        self._violation("its tail went back, or beyond its ring")
                    return None
                event = self.take()
                if self.arriving:
                    return None
            if event is None or (event.queued and self.deliver(event)):
                continue
            handler = self.handlers[event.number]
            if handler is None:
                return event
            self.run_callback(handler, event)

    cdef int64_t look_far(self) except? -1:
        """Read what has come from another machine; the entries that are there now."""
        self.fetch(False)
        return bt_rx_look(&self.link.rx) if self.link != NULL else 0

    cdef int run_callback(self, object handler, object argument) except -1:
        """User code, not under any lock; the receiving side is free meanwhile, and taken back afterwards."""
        if self.busy != 1 or self.receiver != this_thread():
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
                self.receiver = this_thread()
        if self.receiver != this_thread():
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

    cdef int enter(self) except -1:
        while self.busy:
            if self.busy == 1 or inside_callback():
                raise errors.ChannelBusyError(f"receive on {self!r}: another thread receives on it")
            self._await_server()
        if self.generation != registry().generation:
            self.check_fork()
        self.busy = 1
        self.receiver = this_thread()
        return 0

    cdef int leave(self) except -1:
        """The receiving call ends, unless another thread took over while a callback ran."""
        if self.busy == 1 and self.receiver == this_thread():
            self.busy = 0
        return 0

    def receive(self, timeout=None):
        """The next event that no callback takes.

        timeout: seconds; None waits for ever, 0 polls once.
        Raises: TimeoutError, ClosedChannelError, EndOfChannelError, BrokenChannelError, ProtocolViolation (each after
        what had arrived), ChannelBusyError (another thread receives), ChannelStateError (never created or bound),
        WouldBlock (inside a callback), ForkedError.
        """
        cdef Event event = took_at_once(self)
        if event is not None:
            return event
        self.enter()
        try:
            event = self.next_event()
            if event is None:
                event = self.wait_event(timeout, timeout)
            return event
        finally:
            self.leave()

    def receive_nowait(self):
        """The next event, if one is there. Raises: WouldBlock, and as receive."""
        cdef Event event = took_at_once(self)
        if event is not None:
            return event
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
            event = took_ordinary(self)
            if event is None:
                event = self.next_event()
            if event is None:
                self.lazy = False
                event = self.wait_event(timeout, timeout)
                self.lazy = True
            events = [event]
            while len(events) < limit:
                event = took_ordinary(self)
                if event is None:
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
            if self.link != NULL and self.link.rx.published != self.link.rx.head:
                bt_link_consumed(self.link)
                self.flush_due()

    def receive_buffer(self, timeout=None):
        """The next event that brings a buffer; other events stay for receive. Raises: as receive."""
        cdef int64_t left_ns
        cdef list others = None
        cdef Event event = took_at_once(self)
        if event is not None:
            return event
        left_ns = -1 if timeout is None else span_ns(timeout)
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
                    if others is None:
                        others = []
                    others.append(event)
                    event = self.next_event()
                if event is None:
                    left = None if end is None else max(0.0, (<double> end - <double> bt_now_ns()) / 1e9)
                    event = self.wait_event(left, timeout)
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

    cdef Event wait_event(self, object timeout, object asked):
        cdef Event event
        cdef int64_t left_ns = -1
        cdef uint64_t end_ns = 0, now
        if inside_callback():
            raise errors.WouldBlock(f"receive on {self!r}: it would wait inside a callback")
        if self.ended is not None:
            self._raise_end("receive")
        left_ns = span_ns(timeout)
        if left_ns >= 0:
            end_ns = bt_now_ns() + left_ns
        if left_ns == 0:
            event = self.look_harder()
            if event is None:
                raise TimeoutError(f"receive on {self!r}: nothing came within {asked} s")
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
                        raise TimeoutError(f"receive on {self!r}: nothing came within {asked} s")
                    return event

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

    def take_arrivals(self):
        """Take what the peer published until now, also where this thread receives; False if another one is at it."""
        if self.link == NULL:
            return True
        if self.busy == 0:
            self.serve()
        elif self.busy == 1 and self.receiver == this_thread() and not inside_callback():
            self.take_bells()
            self.drain()
        return self.link == NULL or bt_rx_look_again(&self.link.rx) == 0

    def counters(self):
        """Counts since the channel was made; for statistics."""
        return {
            "sent": {ACTS[i]: self.sent[i] for i in range(4)},
            "received": {ACTS[i]: self.received[i] for i in range(4)},
            "refused_here": self.refused_here,
            "refused_by_peer": self.refused_there,
            "control_received": self.control_seen,
            "bells_rung": self.link.rings if self.link != NULL else 0,
            "bells_heard": self.bells_heard,
            "waits": self.waits,
            "waiting_to_be_sent": bt_link_has(self.link) if self.link != NULL else 0,
            "queued_events": len(self.queue),
            "pending_outcomes": len(self.outcomes),
        }
