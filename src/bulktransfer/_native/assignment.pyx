"""Assignments: pools on channels.

Knows: which copies are out and held, and what comes back when a lease hangs up. Must not know: rings, sockets.
"""

cimport cython
from libc.stdint cimport uint32_t, uint64_t, uint8_t
from libc.stdlib cimport calloc, free

from bulktransfer import states
from bulktransfer._native.buffer cimport Buffer
from bulktransfer._native.kernel cimport Mapping, bt_is_leaving, bt_twin, bt_twin_claimed
from bulktransfer._native.ledger cimport (
    BT_ABSENT, BT_ACTIVE, BT_A_COPY_REFUSED, BT_A_MOVE_REFUSED, BT_INVALID, BT_PENDING, BT_READ_ONLY, BT_READ_WRITE,
    BT_REMOVING, bt_act, bt_bit, bt_bit_clear, bt_bit_words, bt_copy_back, bt_guard_for, bt_guarded_reclaim,
    bt_is_away, bt_is_given, bt_is_outstanding, bt_owner_back, bt_reclaims, bt_slot,
)
from bulktransfer._native.pool cimport Pool
from bulktransfer._native.table cimport table

cdef object CHOSEN = states.Means.CHOSEN
cdef object EXPOSED = states.Means.EXPOSED


@cython.final
cdef class Assignment:
    """One pool on one channel, from one side: which copies are out and held, and who reclaims."""

    def __cinit__(self, Pool pool not None, uint32_t slot, uint32_t channel, bint mine, bint same_domain):
        cdef size_t words = bt_bit_words(pool.c.count)
        self.c.out_copies = <uint64_t*> calloc(2 * words, sizeof(uint64_t))
        if self.c.out_copies == NULL:
            raise MemoryError("no memory to keep an assignment")
        self.c.in_copies = self.c.out_copies + words
        self.c.pool = &pool.c
        self.c.channel = channel
        self.c.mine = mine
        self.c.same_domain = same_domain
        self.c.standing = BT_PENDING
        self.pool = pool
        self.slot = self.c.slot = slot
        self.c.peer = channel
        self.lease = None
        self.request = None
        self.means = CHOSEN

    def __init__(self, *args, **kwargs):
        pass

    def __dealloc__(self):
        free(self.c.out_copies)

    @property
    def mine(self):
        """Whether this side assigned the pool on this channel."""
        return bool(self.c.mine)

    @property
    def reclaims(self):
        """Whether this side takes back what went over the channel when it ends (rule 16)."""
        return bool(bt_reclaims(&self.c))

    @property
    def same_domain(self):
        """Whether both ends of the channel are in this domain."""
        return bool(self.c.same_domain)

    def look_through(self, Mapping window, held):
        """The peer exposes the pool: contents are read there (section 5) as long as the lease `held` is open."""
        self.window = window
        self.held = held
        self.c.window = <const uint8_t*> window.base

    def set_means(self, means):
        """By which contents travel: as one side asked, or as it turns out best."""
        self.means = means
        self.exposed = means is EXPOSED

    @property
    def active(self):
        """Whether buffers may travel."""
        return self.c.standing == BT_ACTIVE

    @property
    def removing(self):
        """Whether its removal was asked for here."""
        return self.c.standing == BT_REMOVING

    @property
    def retired(self):
        """Whether the pool left the channel, though what is still under way may name it."""
        return self.c.standing == BT_ABSENT

    @property
    def peer(self):
        """Who is behind the channel: a number that the pool's channels to one peer share."""
        return self.c.peer

    def share_peer(self, Assignment other not None):
        """It is the one that is behind the channel of `other`, too."""
        self.c.peer = other.c.peer

    def set_active(self):
        """Buffers may travel from now on."""
        self.c.standing = BT_ACTIVE

    def set_far(self):
        """The other side has memory of its own, on another machine."""
        self.c.far = True

    def retire(self):
        """The pool left the channel."""
        self.c.standing = BT_ABSENT

    def set_removing(self):
        """Nothing is sent until the answer."""
        self.c.standing = BT_REMOVING

    def away(self):
        """Indices of buffers that left over this channel, or whose copies did, and that have not come home."""
        cdef uint32_t i
        return [i for i in range(self.pool.c.count) if bt_is_away(&self.c, i) or bt_bit(self.c.out_copies, i)]

    @property
    def outstanding(self):
        """Whether something is still to come back."""
        cdef uint32_t i
        for i in range(self.pool.c.count):
            if bt_is_outstanding(&self.c, i):
                return True
        return False

    cdef bint rests(self, uint32_t index):
        """Whether nobody moves bytes of a buffer: none of its contents leaves, none arrives by another way."""
        cdef bt_twin* twin = self.pool.c.twin
        return not bt_is_leaving(twin, index) and not bt_twin_claimed(twin, index)

    def leaving(self):
        """Whether bytes of a buffer that is to come back are on their way: it is not free yet."""
        cdef uint32_t i
        if self.pool.c.twin == NULL:
            return False
        return any([bt_is_outstanding(&self.c, i) and not self.rests(i) for i in range(self.pool.c.count)])

    def reclaim(self):
        """Everybody behind this assignment let go: take back what was away. Returns the buffers."""
        cdef uint32_t i, living
        cdef Pool pool = self.pool
        back = []
        for i in range(pool.c.count):
            if pool.c.twin != NULL and not self.rests(i):
                continue
            living = 0
            if pool.c.slots[i].state == BT_READ_ONLY and bt_is_given(&self.c, i):
                living = self.held_over_channels(pool.get(i))
            if bt_guarded_reclaim(table(), &self.c, i, living) > 0:  # what cannot be mapped now stays away
                back.append(pool.get(i))
                if pool.c.slots[i].state == BT_READ_WRITE:
                    pool.grow(i, pool.c.slots[i].length)
                if pool.reclaim and pool.c.slots[i].state == BT_READ_WRITE:
                    pool.come_home(i)
        return back

    def take_back_refused(self):
        """The channel ended, and the pool was off it already at the peer: what was sent since was refused for sure."""
        cdef uint32_t i
        cdef int act
        cdef Pool pool = self.pool
        cdef bt_slot* s
        if self.c.same_domain:
            return
        for i in range(pool.c.count):
            s = &pool.c.slots[i]
            if bt_bit(self.c.out_copies, i):
                act = BT_A_COPY_REFUSED
            elif s.state == BT_INVALID and s.left == self.c.channel and s.sent_at < self.c.last_position:
                act = BT_A_MOVE_REFUSED
            else:
                continue
            if pool.c.apart and bt_guard_for(table(), &pool.c, i, <bt_act> act) < 0:
                continue  # what cannot be mapped now stays away
            if act == BT_A_COPY_REFUSED:
                bt_copy_back(table(), &self.c, i, BT_A_COPY_REFUSED)
            elif pool.c.twin == NULL or self.rests(i):
                bt_owner_back(table(), &self.c, i, s.sent_at)

    cdef uint32_t held_over_channels(self, Buffer buffer) except? 0:
        """How many copies of it are held over channels that have not ended."""
        cdef uint32_t count = 0
        for number in buffer.pool.channels:
            channel = buffer.pool.domain.channel(number)
            count += channel is not None and channel.holds_copy(buffer)
        return count

    def forget_copies(self, uint32_t index):
        """The buffer was dropped: no copy of it is out or held."""
        if bt_bit(self.c.out_copies, index):
            bt_bit_clear(self.c.out_copies, index)
            self.c.copy_count -= 1
        if bt_bit(self.c.in_copies, index):
            bt_bit_clear(self.c.in_copies, index)
            self.c.held_count -= 1
