"""By value: what a channel does where memory is not shared (design section 5, trust NONE).

Knows: that contents of move and copy travel beside their entry through a staging area (stage.h), that an entry is taken
once its contents are in this domain's own memory (arrival.h), and what that memory is claimed for meanwhile (twin.h).
Must not know: how a channel is set up or ended, or who waits.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport UINT32_MAX, uint32_t, uint64_t, uint8_t
from libc.stdlib cimport free
from libc.string cimport memcpy

from bulktransfer import errors
from bulktransfer._native.assignment cimport Assignment
from bulktransfer._native.buffer cimport Buffer
from bulktransfer._native.carrier cimport (
    BT_CONTROL, BT_COPY, BT_FRAMED, BT_META_INLINE, BT_META_MAX, BT_MOVE, BT_PASS, BT_REFUSE, BT_RELEASE, bt_arrival,
    bt_arrivals_enter, bt_arrivals_head, bt_arrivals_open, bt_arrivals_passed, bt_arrivals_pull, bt_arrivals_spoil,
    bt_arrivals_unlock, bt_arrivals_whole, bt_entry, bt_link, bt_link_append, bt_link_append_contents, bt_link_consumed,
    bt_link_direct, bt_link_holds, bt_link_make_room, bt_link_release, bt_link_retain, bt_pull_busily, bt_ring_data,
    bt_rx_meta, bt_stage_fill, bt_stage_fits, bt_stage_span, bt_tx_fill, bt_tx_publish,
)
from bulktransfer._native.event cimport Event
from bulktransfer._native.frames cimport bt_frame_for_raw, bt_frame_plain
from bulktransfer._native.kernel cimport bt_is_leaving, bt_twin, bt_twin_claim, bt_twin_claimed, bt_twin_unclaim
from bulktransfer._native.ledger cimport (
    BT_A_BUFFER_RECEIVED, BT_A_COPY_RECEIVED, BT_A_COPY_REFUSED, BT_A_MOVE_RECEIVED,
    BT_ACTIVE, BT_A_COPY_RELEASED, BT_A_MOVE_REFUSED, BT_A_PASS, BT_A_RELEASE, BT_OK, BT_PENDING, BT_REFUSED, BT_SEALED,
    BT_VIOLATION, bt_act, bt_judge_copy, bt_judge_owner, bt_may_land, bt_sent,
)
from bulktransfer._native.receiving cimport ReceiveCore
from bulktransfer._native.sealed cimport SealedCore
from bulktransfer._native.sending cimport SendCore
from bulktransfer._native.sending import ACTS
from bulktransfer._native.table cimport table

cdef enum: AT_ONCE = 65536  # contents that are copied under the GIL: letting it go costs as much


cdef class ValueCore(SealedCore):
    """What sends and receives by value; see the module."""

    # ---- out ----

    cdef int push_apart(
        self, Assignment a, uint32_t index, int act, bt_entry* entry, const uint8_t* meta,
    ) except -1:
        """One entry, and where it carries contents these: at once if there is room, else behind what waits."""
        cdef bt_link* link = self.link
        cdef int direct
        if a.pool.c.shared or link.out.size == 0 or act == BT_A_PASS or act == BT_A_RELEASE:
            SendCore.push_apart(self, a, index, act, entry, meta)
            if (act == BT_A_PASS or act == BT_A_RELEASE) and not self.same_domain:
                a.pool.renew(index)
            return 0
        if self.seals(a, index, act, entry.length, 1) and self.seal(a, index):
            return self.push_sealed(a, index, act, entry, meta)
        self.by_value += 1
        entry.serial = link.out.promised
        if a.exposed or entry.length == 0:
            return self.push(entry, meta)
        if entry.length <= AT_ONCE:
            direct = bt_link_direct(link, 1)
            if direct > 0:
                direct = bt_stage_fits(&link.out, entry.length)
            if direct < 0:
                self._violation("an index of what it has taken went back, or beyond what there was")
            if direct:
                bt_stage_fill(&link.out, a.pool.c.base + index * a.pool.c.size, 0, entry.length)
                bt_tx_fill(&link.tx, 0, entry, meta)
                bt_tx_publish(&link.tx, 1)
                bt_ring_data(link)
                link.out.promised += bt_stage_span(entry.length)
                link.issued += 1
                return 0
        return self.append_contents(a, index, entry, meta)

    cdef int append_contents(self, Assignment a, uint32_t index, bt_entry* entry, const uint8_t* meta) except -1:
        """Put an entry with its contents behind what waits. Fails before anything changed, or not at all."""
        cdef bt_link* link = self.link
        cdef uint8_t* long_meta = NULL
        if bt_link_make_room(link, 1) < 0:
            raise MemoryError("no memory for what waits to be sent")
        self.keep_meta(entry, meta, &long_meta)
        bt_link_append_contents(link, entry, long_meta, a.pool.c.base + index * a.pool.c.size, a.pool.c.twin)
        link.out.promised += bt_stage_span(entry.length)
        link.issued += 1
        return 0

    cdef int send_values(self, list items, int act, list notes, uint64_t first) except -1:
        """A batch that was judged, with its contents: all or none. One notification where all of it has room."""
        cdef bt_link* link = self.link
        cdef Py_ssize_t i, count = len(items)
        cdef uint64_t total = 0
        cdef uint8_t** copies = NULL
        cdef Buffer buffer
        cdef Assignment a = None
        cdef bt_entry entry
        cdef bytes meta = b""
        cdef const uint8_t* contents
        cdef int direct
        if self.send_sealed(items, act, notes, first):
            return 0
        self.by_value += count
        direct = bt_link_direct(link, <uint32_t> count)
        for item in items:
            buffer = <Buffer> item
            total += bt_stage_span(buffer.slot().length)
        if direct > 0:
            direct = 0 if total > 4 * AT_ONCE else bt_stage_fits(&link.out, total)
        if direct < 0:
            self._violation("an index of what it has taken went back, or beyond what there was")
        if direct == 0:
            if bt_link_make_room(link, <uint32_t> count) < 0:
                raise MemoryError("no memory for what waits to be sent")
            if notes is not None:
                copies = self.keep_metas(notes)
        entry.kind = act + 1
        entry.flags = 0
        entry.meta_size = 0
        for i in range(count):
            buffer = <Buffer> items[i]
            if a is None or buffer.pool is not a.pool:
                a = self.assignment_of(buffer, act)
            if notes is not None:
                meta = <bytes> notes[i]
                entry.meta_size = <uint32_t> PyBytes_GET_SIZE(meta)
            entry.slot = a.slot
            entry.index = buffer.index
            entry.length = buffer.slot().length
            entry.serial = link.out.promised
            contents = a.pool.c.base + buffer.index * a.pool.c.size
            if direct:
                if not a.exposed:
                    bt_stage_fill(&link.out, contents, 0, entry.length)
                bt_tx_fill(&link.tx, <uint32_t> i, &entry, <const uint8_t*> PyBytes_AS_STRING(meta))
            elif a.exposed or entry.length == 0:
                bt_link_append(link, &entry, copies[i] if copies != NULL else NULL, 0, NULL, 0)
            else:
                bt_link_append_contents(link, &entry, copies[i] if copies != NULL else NULL, contents, a.pool.c.twin)
            if not a.exposed:
                link.out.promised += bt_stage_span(entry.length)
            bt_sent(table(), &a.c, buffer.index, <bt_act> act, first + i)
        link.issued += count
        if direct:
            bt_tx_publish(&link.tx, <uint32_t> count)
            bt_ring_data(link)
        else:
            free(copies)
            self.carry()
        return 0

    # ---- in ----

    cdef Event take_value(self):
        """The entry at the head, once its contents are in; None if it is not for the user, or not all of it is in."""
        cdef bt_link* link = self.link
        cdef bt_arrival* arrival
        cdef bt_entry entry
        cdef uint8_t meta[2048]
        cdef bt_twin* twin = NULL
        cdef bint refused = False
        cdef int there = 0
        cdef str rule = None
        self.foresee_frame()
        bt_link_retain(link)  # another thread may close the channel while bytes are copied
        self.hold_arrivals(link)
        try:
            if self.link is not link:
                return None
            arrival = bt_arrivals_head(link.in_, &link.rx)
            rule = self.judge_contents(link, arrival)
            if rule is None:
                there = self.pull(link, arrival)
                if there < 0:
                    rule = "its count of staged bytes went back, or beyond the staging area"
                elif self.link is not link:
                    return None
            if there > 0:
                entry = arrival.entry
                if entry.meta_size > BT_META_INLINE:
                    memcpy(meta, bt_rx_meta(&link.rx), entry.meta_size)
                elif entry.meta_size:
                    memcpy(meta, entry.meta, entry.meta_size)
                twin, refused = arrival.twin, arrival.refused
                arrival.twin = NULL
                link.rx.head += 1
                bt_arrivals_passed(link.in_, &link.rx)
            self.arriving = rule is None and there == 0
        finally:
            bt_arrivals_unlock(link.in_)
            bt_link_release(link)
        if rule is not None:
            self._violation(rule)
        if self.arriving:
            return None
        try:
            return self.apply_value(&entry, meta, refused)
        finally:
            if twin != NULL:
                bt_twin_unclaim(twin, entry.index)

    cdef Event apply_value(self, bt_entry* entry, uint8_t* meta, bint refused):
        """An entry whose contents are here: as ReceiveCore.take."""
        cdef Event event = None
        cdef Assignment a = self.table[entry.slot] if refused else None  # it may have left while its contents came
        if (entry.kind == BT_MOVE or entry.kind == BT_COPY) and entry.flags & BT_FRAMED:
            event = self.take_sealed(entry, meta)
        elif a is not None and a.c.standing >= BT_ACTIVE:
            self.refuse(entry, errors.CopyRefusedError if entry.kind == BT_COPY else errors.NotOwnedError)
        elif entry.kind == BT_MOVE or entry.kind == BT_COPY or entry.kind == BT_PASS or entry.kind == BT_RELEASE:
            event = self.take_transfer(entry, meta, entry.kind - 1)
        elif entry.kind == BT_REFUSE:
            event = self.take_refusal(entry)
        elif entry.kind == BT_CONTROL:
            event = self.take_control(entry)
        else:
            self._violation(f"an entry of kind {entry.kind}")
        if self.link != NULL and not self.lazy:
            bt_link_consumed(self.link)
        return event

    cdef int pull(self, bt_link* link, bt_arrival* arrival) except? -1:
        """Copy the contents of the entry at the head. 1: all of them, or it has none; 0: not yet; -1: a violation."""
        cdef int result
        if (arrival.entry.kind != BT_MOVE and arrival.entry.kind != BT_COPY or arrival.entry.flags & BT_FRAMED
                or bt_arrivals_whole(link.in_, &link.rx)):
            return 1
        if arrival.entry.length <= AT_ONCE:
            return bt_arrivals_pull(link, UINT32_MAX)
        with nogil:
            result = bt_pull_busily(link, self.one_core) if self.lingers else bt_arrivals_pull(link, UINT32_MAX)
        return result

    cdef str judge_contents(self, bt_link* link, bt_arrival* arrival):
        """Judge the entry at the head before its contents are copied: which rule it breaks, or None."""
        cdef bt_entry* entry = &arrival.entry
        cdef Assignment a = None
        cdef int verdict
        cdef uint64_t offset
        if entry.meta_size > self.meta_size or entry.meta_size > BT_META_MAX:
            return f"{entry.meta_size} bytes of meta data; the channel takes {self.meta_size}"
        if not (entry.kind == BT_MOVE or entry.kind == BT_COPY) or entry.flags & BT_FRAMED:
            return None
        if link.in_.open or bt_arrivals_whole(link.in_, &link.rx):
            return None  # it was judged
        act = ACTS[entry.kind - 1]
        if entry.slot < <uint32_t> len(self.table):
            a = <Assignment> self.table[entry.slot]
        if a is None or a.c.standing == BT_PENDING:
            return f"a {act} from pool number {entry.slot}, which is not assigned"
        if entry.index >= a.pool.c.count:
            return f"a {act} of buffer {entry.index} of {a.pool.c.count}"
        if entry.length > a.pool.c.size:
            return f"a {act} of {entry.length} bytes in a buffer of {a.pool.c.size}"
        if entry.serial != link.in_.due:
            return f"a {act} with contents at {entry.serial}, where {link.in_.due} was due"
        if a.c.standing < BT_ACTIVE:  # it was withdrawn meanwhile
            verdict = BT_REFUSED
        elif entry.kind == BT_MOVE:
            verdict = bt_judge_owner(table(), &a.c, entry.index, BT_A_MOVE_RECEIVED)
        else:
            verdict = bt_judge_copy(table(), &a.c, entry.index)
        if verdict == BT_VIOLATION:
            return f"a {act} of buffer {entry.index} of pool {a.pool.name}, which it does not have"
        if (verdict == BT_REFUSED or bt_is_leaving(a.pool.c.twin, entry.index)
                or (not bt_may_land(&a.pool.c.slots[entry.index]) and bt_frame_plain(&a.pool.c, entry.index) < 0)
                or not bt_twin_claim(a.pool.c.twin, entry.index, a.c.channel)):
            bt_arrivals_open(link.in_, NULL, NULL, a.c.window, True)
            return None
        offset = entry.index * a.pool.c.size
        bt_arrivals_open(
            link.in_, a.pool.c.twin, a.pool.c.base + offset, a.c.window + offset if a.c.window != NULL else NULL, False)
        return None

    cdef int arrives_apart(self, Assignment a, uint32_t index, int act) except -1:
        """Before an arrival is judged by the ledger: whether bytes of the buffer are on their way."""
        cdef bt_twin* twin = a.pool.c.twin
        cdef uint32_t claimed
        if twin == NULL or self.same_domain:
            return ReceiveCore.arrives_apart(self, a, index, act)
        if bt_is_leaving(twin, index) and bt_link_holds(self.link, twin, index):
            return BT_VIOLATION  # it answers what it cannot have received
        if act == BT_A_COPY_RELEASED or act == BT_A_COPY_REFUSED or act == BT_A_MOVE_REFUSED:
            if a.pool.c.slots[index].holds == BT_SEALED:
                ReceiveCore.arrives_apart(self, a, index, act)
        if act == BT_A_COPY_RECEIVED or act == BT_A_COPY_REFUSED or act == BT_A_MOVE_RECEIVED:
            return BT_OK  # its own contents are in, under its claim
        if act != BT_A_BUFFER_RECEIVED and act != BT_A_MOVE_REFUSED:
            return BT_OK
        claimed = bt_twin_claimed(twin, index)
        if bt_is_leaving(twin, index) or (claimed and act == BT_A_BUFFER_RECEIVED):
            return BT_REFUSED
        if claimed:  # another peer sends what this one still had: that is drained, and refused
            other = a.pool.domain.channel(claimed)
            if other is not None:
                (<ValueCore?> other).spoil(twin, index)
        return BT_OK if bt_twin_claim(twin, index, a.c.channel) else BT_REFUSED

    cdef int arrived_apart(self, Assignment a, uint32_t index, int act, int verdict, uint64_t length) except -1:
        """The arrival was judged, and done where it was right."""
        cdef bt_twin* twin = a.pool.c.twin
        if twin == NULL or self.same_domain:
            return ReceiveCore.arrived_apart(self, a, index, act, verdict, length)
        if verdict == BT_OK and (act == BT_A_MOVE_RECEIVED or act == BT_A_COPY_RECEIVED):
            twin.cells[index].fresh = length
        if verdict != BT_OK and a.pool.c.slots[index].holds == BT_SEALED:
            a.pool.guard_again(index)
        if act == BT_A_BUFFER_RECEIVED or act == BT_A_MOVE_REFUSED:
            if verdict == BT_OK and act == BT_A_BUFFER_RECEIVED:
                a.pool.renew(index)  # a pass carries no contents
            bt_frame_for_raw(&a.pool.c, index)  # nor had it memory left, if it was a pass that was refused
            if bt_twin_claimed(twin, index) == a.c.channel:
                bt_twin_unclaim(twin, index)
            if verdict == BT_OK:
                a.pool.grow(index, a.pool.c.slots[index].length)
        return 0

    cdef int spoil(self, bt_twin* twin, uint32_t index) except -1:
        """What arrives here for that buffer is refused: it came back from the one that it was sent to."""
        cdef bt_link* link = self.link
        if link != NULL and link.in_ != NULL:
            bt_link_retain(link)
            self.hold_arrivals(link)
            bt_arrivals_spoil(link, twin, index)
            bt_arrivals_unlock(link.in_)
            bt_link_release(link)
        return 0

    def enter_pool(self, uint32_t slot, Assignment a):
        """A pool came onto the channel under that number, or (None) left it. Raises: MemoryError."""
        cdef bt_link* link = self.link
        cdef int result
        if link == NULL or link.in_ == NULL:
            return
        bt_link_retain(link)
        self.hold_arrivals(link)
        result = bt_arrivals_enter(link.in_, slot, NULL if a is None else &a.c)
        bt_arrivals_unlock(link.in_)
        bt_link_release(link)
        if result < 0:
            raise MemoryError("no memory to keep an assignment")
