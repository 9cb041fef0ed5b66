"""The receiving half of a channel: what arrives is judged, applied, and made an event.

Knows: the ledger (ledger.h), what a peer may say. Must not know: who waits for events, or what control messages say.
Events are made and applied in take(), handed out in deliver().
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint32_t, uint64_t, uint8_t
from libc.string cimport memcpy

from collections import deque as _deque

from bulktransfer import errors
from bulktransfer._native.assignment cimport Assignment
from bulktransfer._native.buffer cimport Buffer
from bulktransfer._native.carrier cimport (
    BT_CONTROL, BT_COPY, BT_META_INLINE, BT_MOVE, BT_PASS, BT_REFUSE, BT_RELEASE, bt_entry, bt_link_consumed,
    bt_link_has, bt_link_refresh, bt_link_refusals, bt_link_refused, bt_rx_look_again, bt_rx_refusals, bt_rx_take,
)
from bulktransfer._native.event cimport Event, new_event
from bulktransfer._native.far cimport far_is_unsent
from bulktransfer._native.farlink cimport BT_DRAINED, BT_LANDED, bt_bit_is_claimed, bt_bit_let_go
from bulktransfer._native.ledger cimport (
    BT_A_BUFFER_RECEIVED, BT_A_COPY, BT_A_COPY_REFUSED, BT_A_COPY_RELEASED, BT_A_MOVE, BT_A_MOVE_RECEIVED,
    BT_A_MOVE_REFUSED, BT_A_PASS, BT_A_RELEASE, BT_ACTIVE, BT_INVALID, BT_OK, BT_PENDING, BT_QUEUED, BT_READ_WRITE,
    BT_REFUSED, BT_VIOLATION, bt_arrived_copy, bt_arrived_owner, bt_bit,
    bt_copy_back, bt_may_remove, bt_owner_back, bt_slot,
)
from bulktransfer._native.outcome cimport Outcome
from bulktransfer._native.pool cimport Pool
from bulktransfer._native.sending cimport SendCore
from bulktransfer._native.sending import ACTS
from bulktransfer._native.table cimport table

cdef enum: UNHEARD_MAX = 8192  # answers that wait for a peer to read, beside those about buffers
cdef enum: BY_GENERIC = 3  # from the kind of an entry to the number of its event


cdef class ReceiveCore(SendCore):
    """What receives; see the module."""

    def __cinit__(self):
        self.queue = _deque()

    cdef Event take(self):
        """One entry of the peer's ring: judged, applied, and made an event; None if it is not for the user."""
        cdef bt_entry entry
        cdef uint8_t meta[2048]
        cdef Event event = None
        if self.link.in_ != NULL:
            return self.take_value()
        if bt_rx_take(&self.link.rx, &entry, meta, self.meta_size) < 0:
            self._violation(f"{entry.meta_size} bytes of meta data; the channel takes {self.meta_size}")
        if entry.kind == BT_MOVE or entry.kind == BT_COPY or entry.kind == BT_PASS or entry.kind == BT_RELEASE:
            event = self.take_transfer(&entry, meta, entry.kind - 1)
        elif entry.kind == BT_REFUSE:
            event = self.take_refusal(&entry)
        elif entry.kind == BT_CONTROL:
            event = self.take_control(&entry)
        else:
            self._violation(f"an entry of kind {entry.kind}")
        if self.link != NULL and not self.lazy:
            bt_link_consumed(self.link)
            if self.is_far:
                self.flush_due()
        return event

    cdef Event take_value(self):
        raise SystemError("contents arrive in byvalue.pyx")

    cdef Event take_control(self, bt_entry* entry):
        if entry.serial != self.control_seen:
            self._violation(f"control message {entry.serial} where {self.control_seen} was due")
        self.control_seen += 1
        self.check_heard()
        self.begun = False
        try:
            self._control()
        except BaseException:  # an interrupt may come before anything of it is done
            if not self.begun and self.link != NULL:
                self.link.rx.head -= 1
                self.control_seen -= 1
            raise
        return None

    cdef Event take_transfer(self, bt_entry* entry, uint8_t* meta, int act):
        cdef Assignment a = None
        cdef Pool pool
        cdef Event event
        cdef bt_slot* s
        cdef int verdict = BT_OK
        cdef bint owner_moves = act == BT_A_MOVE or act == BT_A_PASS
        if self.is_source == (act == BT_A_MOVE or act == BT_A_COPY):
            self._violation(f"a {ACTS[act]} from the {'sink' if self.is_source else 'source'}")
        if entry.slot < <uint32_t> len(self.table):
            a = <Assignment> self.table[entry.slot]
        if a is None or a.c.standing < BT_ACTIVE:
            if a is None or a.c.standing == BT_PENDING or act == BT_A_RELEASE:
                self._violation(f"a {ACTS[act]} from pool number {entry.slot}, which is not assigned")
            self.judge_landing(a, entry, act)
            self.refuse(entry, errors.PoolNotAssignedError)  # it was withdrawn meanwhile
            return None
        pool = a.pool
        if entry.index >= pool.c.count:
            self._violation(f"a {ACTS[act]} of buffer {entry.index} of {pool.c.count}")
        if entry.length > pool.c.size:
            self._violation(f"a {ACTS[act]} of {entry.length} bytes in a buffer of {pool.c.size}")
        s = &pool.c.slots[entry.index]
        if pool.c.apart:
            verdict = self.arrives_apart(a, entry.index, BT_A_MOVE_RECEIVED + act)  # the acts are in one order
        if verdict != BT_OK:
            pass
        elif pool.c.taken != NULL and self.judge_landing(a, entry, act):
            verdict = BT_REFUSED
        elif owner_moves and self.same_domain:  # stays INVALID until it is handed out
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
            if pool.ended:
                pool.domain.look_at_leases(pool)
        if pool.c.apart:
            self.arrived_apart(a, entry.index, BT_A_MOVE_RECEIVED + act, verdict, entry.length)
        if pool.c.fresh != NULL and verdict == BT_OK and act != BT_A_RELEASE:
            self.arrived_in_twin(pool, entry, act)
        if verdict == BT_VIOLATION:
            self._violation(f"a {ACTS[act]} of buffer {entry.index} of pool {pool.name}, which it does not have")
        if verdict == BT_REFUSED:
            self.refuse(entry, errors.CopyRefusedError if act == BT_A_COPY else errors.NotOwnedError)
            return None
        self.received[act] += 1
        self.recent_arrival = a
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

    cdef int arrived_in_twin(self, Pool pool, bt_entry* entry, int act) except -1:
        """What came is in this machine's own memory as far as its length: what lies behind it is of earlier transfers.

        Where it came over a channel of this machine, it is in memory that both sides see.
        """
        if pool.c.twin != NULL:
            return 0  # by value has noted it
        if act == BT_A_PASS and self.is_far:
            pool.grow(entry.index, pool.c.slots[entry.index].length)
        elif not (act == BT_A_COPY and pool.c.slots[entry.index].in_ > 1):  # else it was here
            pool.c.fresh[entry.index] = entry.length if self.is_far else pool.c.size
        return 0

    cdef int arrives_apart(self, Assignment a, uint32_t index, int act) except -1:
        """Before an arrival is judged by the ledger: a verdict. Trust HALF: it may be reached; where the kernel refuses
        that, it waits in the ring for the next call."""
        if self.same_domain and (act == BT_A_MOVE_RECEIVED or act == BT_A_BUFFER_RECEIVED):
            return BT_OK  # when it is handed out
        try:
            a.pool.guard_for(index, act)
        except OSError:
            self.link.rx.head -= 1
            raise
        return BT_OK

    cdef int arrived_apart(self, Assignment a, uint32_t index, int act, int verdict, uint64_t length) except -1:
        """The arrival was judged, and done where it was right."""
        if verdict != BT_OK and a.pool.c.guarded:
            a.pool.guard_again(index)
        return 0

    cdef bint judge_landing(self, Assignment a, bt_entry* entry, int act) except -1:
        """What another machine sent, or of what another machine sends into: True if it has to be refused whatever the
        ledger says, since its contents went nowhere, or others are on their way into the buffer."""
        cdef bt_slot* s = &a.pool.c.slots[entry.index]
        if a.pool.c.taken == NULL:
            return False
        if self.is_far and entry.flags & BT_LANDED:
            bt_bit_let_go(a.pool.c.taken, entry.index)  # nothing lands once it is anything but INVALID
            return False
        if self.is_far and entry.flags & BT_DRAINED:
            return s.state == BT_INVALID
        if self.is_far and far_is_unsent(self.link, entry.slot, entry.index):
            self._violation(f"a {ACTS[act]} of buffer {entry.index}, whose contents have not left")
        return act != BT_A_RELEASE and bt_bit_is_claimed(a.pool.c.taken, entry.index)

    cdef int check_heard(self) except -1:
        """Before this side answers: a peer that asks and never reads the answers must not fill memory with them. Each
        buffer has at most one transfer and one refusal under way (rule 9)."""
        cdef uint64_t waiting = bt_link_has(self.link), most = UNHEARD_MAX
        if waiting > most:
            for item in self.table:
                if item is not None:
                    most += 2 * <uint64_t> (<Assignment> item).c.pool.count
            if waiting > most:
                self._violation(f"it asks and does not read: {waiting} messages to it wait")
        return 0

    cdef int refuse(self, bt_entry* entry, object cls) except -1:
        """Say that this entry is not accepted; published before the index passes it (rule 8)."""
        cdef bt_entry answer = entry[0]
        answer.flags = entry.kind
        answer.kind = BT_REFUSE
        answer.meta_size = 0
        answer.serial = self.link.rx.head - 1
        answer.length = errors.CODE_OF[cls]
        self.check_heard()
        self.refused_here += 1
        bt_link_refused(self.link, self.refused_here)
        self.push(&answer, NULL)
        if self.link.out.size:
            self.carry()
        self.flush()
        return 0

    cdef Event take_refusal(self, bt_entry* entry):
        cdef Assignment a = None
        cdef Event event
        cdef Outcome o
        cdef int verdict = BT_OK
        cdef int act = entry.flags - 1
        cdef int back = BT_A_COPY_REFUSED if act == BT_A_COPY else BT_A_MOVE_REFUSED
        if entry.slot < <uint32_t> len(self.table):
            a = <Assignment> self.table[entry.slot]
        if a is None or entry.index >= a.pool.c.count or not 0 <= act < 3 or entry.serial >= self.link.issued:
            self._violation("a refusal of what was not sent")
        if self.refused_there >= self.link.issued:
            self._violation("more refusals than it was sent anything")
        if self.is_far and far_is_unsent(self.link, entry.slot, entry.index):
            self._violation(f"a refusal of buffer {entry.index}, whose contents have not left")
        if a.pool.c.apart:
            verdict = self.arrives_apart(a, entry.index, back)
        if verdict != BT_OK:
            pass
        elif act == BT_A_COPY:
            verdict = bt_copy_back(table(), &a.c, entry.index, BT_A_COPY_REFUSED)
            if a.pool.ended:
                a.pool.domain.look_at_leases(a.pool)
        else:
            verdict = bt_owner_back(table(), &a.c, entry.index, entry.serial)
        if a.pool.c.apart:
            self.arrived_apart(a, entry.index, back, verdict, entry.length)
        if verdict == BT_VIOLATION:
            self._violation(f"a refusal of buffer {entry.index}, which was not sent")
        self.refused_there += 1
        why = "it has the buffer in another way"
        if entry.length == errors.CODE_OF[errors.PoolNotAssignedError]:
            why = "the pool is off the channel"
        error = errors.from_code(
            entry.length, f"{ACTS[act]} of buffer {entry.index} of pool {a.pool.name} on {self!r}: "
            f"the peer refused it, since {why}")
        for item in self.outcomes:
            o = <Outcome> item
            if o.first <= entry.serial < o.end:
                if o.error is None:
                    o.error = error
                o.miss(a.pool.get(entry.index))
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
            pool = event.buffer.pool
            s = event.buffer.slot()
            if pool.c.apart:
                try:
                    pool.guard_for(
                        event.buffer.index, BT_A_MOVE_RECEIVED if event.act == BT_A_MOVE else BT_A_BUFFER_RECEIVED)
                except OSError:
                    self.queue.appendleft(event)  # it is tried again
                    self.may_have_queued = True
                    raise
            event.queued = False
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

    cdef int drain(self) except -1:
        """Take what the ring holds now; events wait in the queue, control requests are served."""
        cdef Event event
        cdef int64_t there
        if self.link == NULL:
            return 0
        there = bt_rx_look_again(&self.link.rx)
        if there < 0:
            self._violation("its tail went back, or beyond its ring")
        while there > 0 and self.link != NULL:
            there -= 1
            event = self.take()
            if self.arriving:
                break
            if event is not None:
                self.queue.append(event)
                self.may_have_queued = True
        return 0

    def may_remove(self, Assignment a not None):
        """Whether, as far as this side knows, every buffer of the pool has come home: none is refused, either."""
        cdef uint64_t passed
        cdef uint32_t refusals = 0
        if self.link == NULL:
            return False
        passed = self.passed()
        if bt_rx_look_again(&self.link.rx) < 0:
            self._violation("its tail went back, or beyond its ring")
        if bt_rx_refusals(&self.link.rx, a.slot, &refusals):
            return False  # it lies behind the request
        if bt_link_refusals(self.link) > self.refused_there + refusals:
            return False  # it waits for room in the peer's ring, and may be about this pool
        return bool(bt_may_remove(&a.c, passed))

    def drain_all(self):
        """Take everything that the peer published, before the link goes."""
        if self.link != NULL:
            self.drain()

    def note_passed(self):
        """The channel ends: what the peer took so far is what counts, once its refusals of that are read (rule 8)."""
        self.last_passed = self.last_refusals = 0
        if self.link != NULL:
            bt_link_refresh(self.link, &self.last_passed)  # a word that cannot be changes nothing; the channel ends
            self.last_refusals = bt_link_refusals(self.link)

    def settle_outcomes(self, error):
        """After note_passed and drain_all: what the peer took succeeded, what it did not take gets `error`."""
        cdef Outcome o
        cdef uint64_t consumed = self.last_passed
        cdef bint unsure = self.last_refusals > self.refused_there  # of what it took: some refusals never came
        if self.link == NULL:
            return
        for item in self.outcomes:
            o = <Outcome> item
            if o.first == o.end or (<int64_t> (consumed - o.end) >= 0 and not unsure):
                continue
            if o.error is None:
                o.error = error
            if error is not None:
                for buffer in self.untaken(o, consumed):
                    o.miss(buffer)

    cdef tuple untaken(self, Outcome o, uint64_t consumed):
        """The buffers of an operation that the peer has not passed."""
        cdef int64_t taken = <int64_t> (consumed - o.first)
        buffers = o.buffer if type(o.buffer) is tuple else (o.buffer,)
        return buffers[max(taken, 0):]

    def pending_outcomes(self):
        """Whether a continuation could run now."""
        cdef Outcome o
        if not self.outcomes:
            return False
        if self.link == NULL:
            return True
        o = <Outcome> self.outcomes[0]
        return bool(self.known(o))

    cdef bint known(self, Outcome o) except -1:
        """Whether it is clear how an operation ended: the peer passed it, and every refusal that it made is here."""
        return <int64_t> (self.passed() - o.end) >= 0 and (
            o.end == 0 or bt_link_refusals(self.link) <= self.refused_there)

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

    def holds_copy(self, Buffer buffer not None):
        """Whether a copy of `buffer` came over this channel and is held."""
        cdef Assignment a
        for item in self.table:
            a = <Assignment> item
            if a is not None and a.pool is buffer.pool and bt_bit(a.c.in_copies, buffer.index):
                return True
        return False

    def lends_copy(self, Buffer buffer not None):
        """Whether a copy of `buffer` went out over this channel and is not back."""
        cdef Assignment a
        for item in self.table:
            a = <Assignment> item
            if a is not None and a.pool is buffer.pool and bt_bit(a.c.out_copies, buffer.index):
                return True
        return False
