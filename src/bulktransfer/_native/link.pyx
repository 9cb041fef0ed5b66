"""The connection of a channel: rings, socket, what waits to be sent.

Knows: how entries and control messages go out in order (link.h, carrier.h), and how the socket is read. Must not
know: buffers, rules, events; core/channel.py, which derives from this through ChannelCore, answers the calls that
begin with an underscore.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport EAGAIN, ENOBUFS, ENOMEM
from libc.stdint cimport uint32_t, uint64_t, uint8_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

import os as _os
from collections import deque as _deque

from bulktransfer import errors
from bulktransfer._native.carrier cimport (
    BT_CONTROL, BT_LINK_MESSAGE, BT_META_INLINE, POLLIN, bt_arrivals_lock, bt_arrivals_new, bt_arrivals_trylock,
    bt_arrivals_unlock, bt_carrier, bt_carrier_finish, bt_carrier_new, bt_carrier_release, bt_carrier_take,
    bt_carry_busily, bt_entry, bt_is_frame_message, bt_link, bt_link_append, bt_link_asked, bt_link_carry,
    bt_link_direct, bt_link_end, bt_link_forget, bt_link_has, bt_link_make_room, bt_link_new, bt_link_open,
    bt_link_refresh, bt_link_release, bt_link_retain, bt_link_stage, bt_message, bt_message_receive, bt_message_send,
    bt_ring_data, bt_tx_fill, bt_tx_publish, c_poll, pollfd, timespec,
)
from bulktransfer._native.far cimport (
    far_broken, far_counts, far_drop, far_fetch, far_flush, far_flush_due, far_land, far_leave, far_next, far_open,
    far_over, far_poller,
)
from bulktransfer._native.farlink cimport BT_FETCH_NEWS
from bulktransfer._native.kernel cimport Descriptor, Mapping, bt_registry_add_fd, received, registry
from bulktransfer._native.kernel import table_full
from bulktransfer._native.slots cimport Slots
from bulktransfer._native.statistics cimport bt_record_write, drop_record, new_record

cdef enum: INBOX_MAX = 256, READ_MAX = 4096
cdef bt_carrier* the_carrier = NULL
cdef uint32_t last_number = 0


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


cdef class LinkCore:
    """The connection; see the module."""

    def __cinit__(self):
        global last_number
        self.link = NULL
        last_number += 1
        self.number = last_number
        self.generation = registry().generation
        self.inbox = _deque()
        self.frames = _deque()
        self.pidfd = -1
        self.record = new_record()
        self.sent, self.received = self.record.counters, self.record.counters + 4

    def __dealloc__(self):
        self.let_go(self.link)
        drop_record(self.record)

    def show(self, bytes text not None):
        """Say `text` of this channel to whoever looks at this process."""
        bt_record_write(self.record, text, len(text))

    cdef void let_go(self, bt_link* link) noexcept:
        if link == NULL:
            return
        if the_carrier != NULL and the_carrier.generation == registry().generation:
            bt_carrier_release(the_carrier, link)
        else:
            bt_link_release(link)

    def open_link(
        self, Descriptor sock not None, Mapping own not None, Mapping peer not None, uint32_t slots, uint32_t meta_size,
        uint64_t stage_out=0, uint64_t stage_in=0, bint lingers=False, bint one_core=False,
    ):
        """Take over a connected socket and both outboxes; by value with their staging areas, one of which is empty."""
        cdef bt_link* link = bt_link_new(registry(), sock.fileno())
        if link == NULL:
            raise MemoryError("no memory for a link")
        bt_link_open(link, own.base, own.size, peer.base, peer.size, slots, meta_size)
        if stage_out:
            bt_link_stage(link, stage_out, slots, meta_size)
        if stage_in:
            link.in_ = bt_arrivals_new(link, stage_in, slots, meta_size)
            if link.in_ == NULL:
                bt_link_forget(link)
                raise MemoryError("no memory for what arrives")
        self.lingers = lingers
        self.one_core = one_core
        sock.detach()
        if bt_registry_add_fd(registry(), link.sock) < 0:
            raise MemoryError("no memory for a link")
        own.disown()
        peer.disown()
        self.link = link
        self.meta_size = meta_size

    def open_far(
        self, Descriptor sock not None, object tls, Mapping own not None, Mapping there not None, uint32_t slots,
        uint32_t meta_size,
    ):
        """Take over a connection to another machine, and two outboxes of this process alone: `there` stands in for
        the peer's. tls: what speaks TLS on the socket, or None.

        Raises: OSError, MemoryError.
        """
        cdef bt_link* link = bt_link_new(registry(), -1)
        if link == NULL:
            raise MemoryError("no memory for a link")
        bt_link_open(link, own.base, own.size, there.base, there.size, slots, meta_size)
        try:
            far_open(link, sock.fileno(), tls, meta_size)
        except BaseException:
            link.tx.own = link.tx.peer = NULL  # the mappings go with their owners
            bt_link_release(link)
            raise
        sock.detach()
        own.disown()
        there.disown()
        self.link = link
        self.meta_size = meta_size
        self.is_far = True

    def land(self, Slots pool not None, uint32_t slot, uint32_t peer, bint mine, lease=None):
        """Buffers of the pool travel to another machine and back under `slot`; see far_land. Raises: MemoryError.

        mine: this side assigned the pool there. Its allocator takes back then only what it sent to that peer; behind a
        further assignment, to which it consented, it takes what comes (design section 8, rule 5).
        """
        if self.link != NULL:
            far_land(self.link, pool, slot, self.number, peer, pool.c.home and mine, lease)

    def unland(self, uint32_t slot):
        """The pool under `slot` left the channel."""
        if self.link != NULL and self.is_far:
            far_drop(self.link, slot)

    cdef int fetch(self, bint all) except -1:
        """Read what came from another machine; bits of bt_fetched."""
        cdef int result
        if not self.is_far or self.link == NULL:
            return 0
        result = far_fetch(self.link, all)
        if result & BT_FETCH_NEWS:
            self.read_ahead()
        return result

    cdef int read_ahead(self) except -1:
        """Something was read that nobody has taken; a channel whose descriptor is watched keeps that readable."""
        return 0

    cdef int flush(self) except -1:
        """Have what was published leave for another machine. The channel may be closed after this."""
        if self.is_far and self.link != NULL:
            far_flush(self.link)
        return 0

    cdef int flush_due(self) except -1:
        """Tell a peer on another machine how far it was read, if it asked for that."""
        if self.is_far and self.link != NULL:
            far_flush_due(self.link)
        return 0

    def close_link(self):
        """Let the socket and the outboxes go; what waits to be sent still goes, carried by the helper."""
        cdef bt_link* link = self.link
        if link == NULL:
            return
        self.link = NULL
        self.frames.clear()
        if self.is_far:
            far_leave(link)
            return
        if self.hung_up:
            bt_link_end(link)
        self.let_go(link)

    def attach_carrier(self):
        """By value: what arrives is carried on though nobody calls. Raises: OSError, MemoryError."""
        cdef int result = self.engage(self.link)
        if result < 0:
            raise OSError(-result, _os.strerror(-result))

    cdef int engage(self, bt_link* link) except? -1:
        """Have the helper see to a link. 0 or -errno."""
        global the_carrier
        if the_carrier == NULL or the_carrier.generation not in (0, registry().generation):
            the_carrier = bt_carrier_new()
            if the_carrier == NULL:
                return -ENOMEM
        return bt_carrier_take(the_carrier, registry(), link)

    cdef void hold_arrivals(self, bt_link* link) noexcept:
        """Take the lock of what arrives, without the GIL where it is not to be had at once."""
        if not bt_arrivals_trylock(link.in_):
            with nogil:
                bt_arrivals_lock(link.in_)

    @property
    def by_value(self):
        """Whether contents travel through a staging area."""
        return self.link != NULL and (self.link.in_ != NULL or self.link.out.size != 0)

    @property
    def linked(self):
        """Whether there is a connection."""
        return self.link != NULL

    def socket_fd(self):
        """The socket's descriptor, or -1."""
        if self.link != NULL and self.is_far:
            return far_poller(self.link)
        return self.link.sock if self.link != NULL else -1

    def check_fork(self):
        """Raise ForkedError in a child of the process that made the channel."""
        if self.generation != registry().generation:
            raise errors.ForkedError("this channel was made before a fork, in the parent; the child makes its own")

    cdef int push(self, bt_entry* entry, const uint8_t* meta) except -1:
        """One entry into the ring, or behind what waits. Fails before anything changed, or not at all."""
        cdef bt_link* link = self.link
        cdef uint8_t* long_meta = NULL
        cdef int direct = bt_link_direct(link, 1)
        if direct > 0:
            bt_tx_fill(&link.tx, 0, entry, meta)
            bt_tx_publish(&link.tx, 1)
            bt_ring_data(link)
            link.issued += 1
            return 0
        if direct < 0:
            self._violation("its consumed index went back, or beyond what was published")
        if bt_link_make_room(link, 1) < 0:
            raise MemoryError("no memory for what waits to be sent")
        self.keep_meta(entry, meta, &long_meta)
        bt_link_append(link, entry, long_meta, 0, NULL, 0)
        link.issued += 1
        if link.out.size == 0:  # else it lets the GIL go, which is for the caller to say
            self.carry()
        return 0

    cdef int keep_meta(self, bt_entry* entry, const uint8_t* meta, uint8_t** kept) except -1:
        """Meta data of what has to wait: in the entry, or, where it is long, in memory of its own."""
        if entry.meta_size > BT_META_INLINE:
            kept[0] = <uint8_t*> malloc(entry.meta_size)
            if kept[0] == NULL:
                raise MemoryError("no memory for meta data that waits to be sent")
            memcpy(kept[0], meta, entry.meta_size)
        elif entry.meta_size:
            memcpy(entry.meta, meta, entry.meta_size)
        return 0

    cdef int carry(self) except -1:
        """Send on what waits; what still waits then is the helper's business, or, where it cannot be started, of
        later calls: what waits was accepted, so this does not fail."""
        cdef bt_link* link = self.link
        cdef int result
        if not bt_link_has(link):
            return 0
        if link.out.size == 0:
            if bt_link_carry(link) and not self.hung_up and not self.is_far:
                self.engage(link)
            return 0
        bt_link_retain(link)  # another thread may close the channel meanwhile
        with nogil:
            result = bt_carry_busily(link, self.one_core) if self.lingers else bt_link_carry(link)
        if result and not self.hung_up:
            self.engage(link)
        bt_link_release(link)
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
            if self.is_far:
                result = BT_LINK_MESSAGE(self.link, <const char*> data, len(data))
            else:
                result = bt_message_send(self.link.sock, <const char*> data, len(data), numbers, count)
            if result == 0:
                self.control_sent += 1
                bt_tx_fill(&self.link.tx, 0, &entry, entry.meta)
                bt_tx_publish(&self.link.tx, 1)
                bt_ring_data(self.link)  # the message may have woken the peer before its entry was there
                self.link.issued += 1
                self.flush()
                return
            if result != -EAGAIN and result != -ENOBUFS and result != -ENOMEM:  # it waits until there is room again
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
        self.flush()

    cdef int take_bells(self) except -1:
        """Read the socket: bells are heard, control messages kept, the end noticed."""
        cdef pollfd life
        cdef bt_link* held
        if self.link == NULL or self.hung_up:
            return 0
        if self.is_far:
            return self.take_far()
        life.revents = 0
        if self.pidfd >= 0:  # before the socket is read: the dead say nothing more
            life.fd = self.pidfd
            life.events = POLLIN
            c_poll(&life, 1, 0)
        self.asked_at = bt_link_asked(self.link)
        held = self.link
        bt_link_retain(held)
        if held.in_ != NULL:
            self.hold_arrivals(held)  # the carrier reads bells, too
        try:
            self.read_socket(life.revents != 0)
        finally:
            if held.in_ != NULL:
                bt_arrivals_unlock(held.in_)
            bt_link_release(held)
        if len(self.inbox) > INBOX_MAX:
            self._violation("more control messages than it announced in its ring")
        if <uint64_t> len(self.frames) > self.frames_granted:
            self._violation(f"more than the {self.frames_granted} frames at once that it was granted")
        self.carry()
        return 0

    cdef int read_socket(self, bint dead) except -1:
        cdef bt_message message
        cdef uint64_t serial = 0
        cdef int size, count = 0
        while self.link != NULL and count < READ_MAX:  # whoever rings as fast as this side reads does not hold it up
            count += 1
            size = bt_message_receive(self.link.sock, &message)
            if size == 1 and message.fd_count == 0:
                self.bells_heard += 1
                continue
            if size == -EAGAIN:
                self.hung_up = dead  # a child of the peer may keep the socket open (rule 17)
                break
            if size <= 0:
                self.hung_up = True
                break
            fds = [received(message.fds[i]) for i in range(message.fd_count)]
            lost = "" if not message.truncated else "full" if table_full() else "truncated"
            if self.link.in_ != NULL and bt_is_frame_message(&message, size, &serial):
                self.frames.append((serial, fds, lost))
            else:
                self.inbox.append((PyBytes_FromStringAndSize(<char*> message.data, size), fds, lost))
            if len(self.inbox) > INBOX_MAX or <uint64_t> len(self.frames) > self.frames_granted:
                break
        return 0

    cdef int take_far(self) except -1:
        """The same where the peer is on another machine: all that has come is read."""
        self.fetch(True)
        if self.link == NULL:
            return 0
        message = far_next(self.link)
        while message is not None:
            self.inbox.append((message, [], ""))
            message = far_next(self.link)
        if far_over(self.link):
            self.hung_up = True
        return 0

    def broken_rule(self):
        """The rule that a peer on another machine broke, as the reader of its stream saw it, or None."""
        return far_broken(self.link) if self.link != NULL and self.is_far else None

    def wire_counts(self):
        """Bytes and system calls to and from another machine; empty for a peer on this one."""
        return far_counts(self.link) if self.link != NULL and self.is_far else {}

    def next_message(self):
        """The control message that is due, (data, descriptors, lost); None if it is not there.

        lost: "", or why some of it did not come: "truncated", or "full", the own descriptor table.
        """
        if not self.inbox:
            self.take_bells()
        return self.inbox.popleft() if self.inbox else None

    cdef uint64_t passed(self) except? 0:
        """The position up to which the peer has taken what was sent."""
        cdef uint64_t consumed = 0
        if bt_link_refresh(self.link, &consumed) < 0:
            self._violation("its consumed index went back, or beyond what was published")
        return consumed

    cdef int expecting(self) except -1:
        """From now on it is awaited that the peer takes something; before, nothing was."""
        return 0
