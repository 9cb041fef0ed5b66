"""Sealed frames: what a channel does where a transfer carries the memory of its contents (trust NONE, section 5).

Knows: when contents are sealed and sent as a frame (sealed.h), that it travels ahead of the entry that names it, and
what a frame that came must be before it is mapped. Must not know: how contents travel by value, how a channel is set
up or ended, or who waits.
"""

from cpython.bytes cimport PyBytes_GET_SIZE
from libc.errno cimport EACCES, EBUSY, EMFILE, ENFILE, ENOMEM, ENOSPC, errno
from libc.stdint cimport uint32_t, uint64_t, uint8_t
from libc.stdlib cimport calloc, free

import os as _os

from bulktransfer import errors, states
from bulktransfer._native.assignment cimport Assignment
from bulktransfer._native.buffer cimport Buffer
from bulktransfer._native.carrier cimport (
    BT_COPY, BT_FRAMED, BT_MOVE, bt_entry, bt_frame_send, bt_frames_granted, bt_grant_frames, bt_link,
    bt_link_append_frame, bt_link_direct, bt_link_drop_frame, bt_link_keep_frame, bt_link_make_room, bt_ring_data,
    bt_rx_flags, bt_tx_fill, bt_tx_publish,
)
from bulktransfer._native.event cimport Event
from bulktransfer._native.frames cimport (
    BT_SEALED_BEFORE, BT_SEALED_COPY, BT_SENDING_ON_MIN, bt_frame_adopt, bt_frame_read, bt_frame_seal, bt_frames_full,
    bt_sealing_pays,
)
from bulktransfer._native.kernel cimport (
    Descriptor, bt_is_leaving, bt_registry_add_fd, bt_registry_close, bt_twin_claim, bt_twin_unclaim, registry,
)
from bulktransfer._native.kernel import SEAL_GROW, SEAL_SEAL, SEAL_SHRINK, SEAL_WRITE, judge_memory
from bulktransfer._native.ledger cimport (
    BT_ACTIVE, BT_A_COPY, BT_A_MOVE_RECEIVED, BT_BARE, BT_OK, bt_act, bt_judge_copy, bt_judge_owner, bt_sent,
)
from bulktransfer._native.receiving cimport ReceiveCore
from bulktransfer._native.sending cimport SendCore, free_metas
from bulktransfer._native.table cimport table

cdef enum:
    COUNT_MAX = 8192  # buffers of a pool that may hold frames: each may cost two mappings
    FRAMES_AHEAD = 4096  # that a peer may grant
cdef object BY_VALUE = states.Means.BY_VALUE
cdef object SEALED = states.Means.SEALED
FRAME_SEALS = SEAL_WRITE | SEAL_SHRINK | SEAL_GROW | SEAL_SEAL


cdef class SealedCore(ReceiveCore):
    """What sends and receives sealed frames; see the module."""

    # ---- out ----

    cdef bint seals(self, Assignment a, uint32_t index, int act, uint64_t length, uint64_t count) except -1:
        """Whether contents go as a sealed frame, by what was asked for or by what it costs; `count` are to go."""
        cdef uint64_t granted
        if a.pool.c.slots[index].holds == BT_BARE:  # it is sent as it is: zeros
            a.pool.furnish(index)
        if a.means is BY_VALUE or length == 0 or a.pool.c.solid or a.pool.c.count > COUNT_MAX:
            return False
        if a.means is not SEALED:
            if length < BT_SENDING_ON_MIN:
                return False
            a.pool.begin_frames()
            if not bt_sealing_pays(&a.pool.c, index, len(a.pool.channels) if act == BT_A_COPY else 1):
                return False
        granted = bt_frames_granted(self.link)
        if granted > self.frames_sent + FRAMES_AHEAD:
            granted = self.frames_sent + FRAMES_AHEAD
        return self.frames_sent + count <= granted  # else the peer has as many as it wants to have at once

    cdef bint seal(self, Assignment a, uint32_t index) except -1:
        """Have the contents be in a sealed frame. False: there is no room for one now; they go by value.

        Raises: BufferError (the memory is pinned), OSError; nothing changed.
        """
        cdef int result
        a.pool.begin_frames()
        result = bt_frame_seal(&a.pool.c, index)
        if result == -EBUSY:
            raise BufferError(
                f"sealing buffer {index} of pool {a.pool.name}: its memory is pinned, or mapped for writing elsewhere")
        if result == -EMFILE or result == -ENFILE or result == -ENOMEM or result == -ENOSPC:
            return False
        if result < 0:
            raise OSError(-result, f"sealing buffer {index} of pool {a.pool.name}: {_os.strerror(-result)}")
        self.sealed_copies += result == BT_SEALED_COPY
        self.sealed_before += result == BT_SEALED_BEFORE
        return True

    cdef int push_sealed(self, Assignment a, uint32_t index, int act, bt_entry* entry, const uint8_t* meta) except -1:
        """One entry whose contents are sealed, its frame ahead of it."""
        cdef bt_link* link = self.link
        cdef bt_frames_full* frames = <bt_frames_full*> a.pool.c.frames
        cdef int direct = bt_link_direct(link, 1)
        if direct < 0:
            self._violation("an index of what it has taken went back, or beyond what there was")
        entry.flags = BT_FRAMED
        entry.serial = self.frames_sent
        a.pool.guard_for(index, act)
        try:
            if direct and bt_frame_send(link.sock, entry.serial, frames.at[index].fd) == 0:
                bt_tx_fill(&link.tx, 0, entry, meta)
                bt_tx_publish(&link.tx, 1)
                bt_ring_data(link)
            else:
                self.append_sealed(a, index, entry, meta)
        except BaseException:
            a.pool.guard_again(index)
            raise
        link.issued += 1
        self.frames_sent += 1
        return 0

    cdef int append_sealed(self, Assignment a, uint32_t index, bt_entry* entry, const uint8_t* meta) except -1:
        """Put an entry with its frame behind what waits. Fails before anything changed, or not at all."""
        cdef bt_link* link = self.link
        cdef uint8_t* long_meta = NULL
        cdef int* kept
        if bt_link_make_room(link, 1) < 0:
            raise MemoryError("no memory for what waits to be sent")
        kept = self.keep_frame(a, index)
        try:
            self.keep_meta(entry, meta, &long_meta)
        except BaseException:
            bt_link_drop_frame(link, kept)
            raise
        bt_link_append_frame(link, entry, long_meta, kept, a.pool.c.twin)
        return 0

    cdef int* keep_frame(self, Assignment a, uint32_t index) except NULL:
        """One more descriptor of the frame that a buffer holds, for an entry that has to wait. Raises: OSError."""
        cdef int* kept = bt_link_keep_frame(self.link, (<bt_frames_full*> a.pool.c.frames).at[index].fd)
        if kept == NULL:
            raise OSError(errno, f"keeping the frame of buffer {index} of pool {a.pool.name}: {_os.strerror(errno)}")
        return kept

    cdef bint send_sealed(self, list items, int act, list notes, uint64_t first) except -1:
        """A batch that was judged, sealed, behind what waits: all or none. False: not all of it can be."""
        cdef Py_ssize_t i, count = len(items)
        cdef uint8_t** copies = NULL
        cdef int** kept
        cdef Buffer buffer
        for item in items:
            buffer = <Buffer> item
            if buffer.slot().holds == BT_BARE:  # it is sent as it is, by whatever means
                buffer.pool.furnish(buffer.index)
        for item in items:
            buffer = <Buffer> item
            if not self.seals(self.assignment_of(buffer, act), buffer.index, act, buffer.slot().length, count):
                return False
        for item in items:
            buffer = <Buffer> item
            if not self.seal(self.assignment_of(buffer, act), buffer.index):
                return False
        kept = <int**> calloc(count, sizeof(int*))
        try:
            if kept == NULL or bt_link_make_room(self.link, <uint32_t> count) < 0:
                raise MemoryError("no memory for what waits to be sent")
            for i in range(count):
                buffer = <Buffer> items[i]
                kept[i] = self.keep_frame(self.assignment_of(buffer, act), buffer.index)
            if notes is not None:
                copies = self.keep_metas(notes)
            self.guard_batch(items, act)
        except BaseException:
            for i in range(count if kept != NULL else 0):
                bt_link_drop_frame(self.link, kept[i])
            free(kept)
            free_metas(copies, count)
            raise
        self.append_batch(items, act, notes, copies, kept, first)
        free(copies)
        free(kept)
        self.carry()
        return True

    cdef int append_batch(
        self, list items, int act, list notes, uint8_t** copies, int** kept, uint64_t first,
    ) except -1:
        """Everything is there: it cannot fail."""
        cdef Py_ssize_t i, count = len(items)
        cdef Buffer buffer
        cdef Assignment a
        cdef bt_entry entry
        entry.kind = act + 1
        entry.flags = BT_FRAMED
        entry.meta_size = 0
        for i in range(count):
            buffer = <Buffer> items[i]
            a = self.assignment_of(buffer, act)
            if notes is not None:
                entry.meta_size = <uint32_t> PyBytes_GET_SIZE(<bytes> notes[i])
            entry.slot = a.slot
            entry.index = buffer.index
            entry.length = buffer.slot().length
            entry.serial = self.frames_sent + i
            bt_link_append_frame(
                self.link, &entry, copies[i] if copies != NULL else NULL, kept[i], a.pool.c.twin)
            bt_sent(table(), &a.c, buffer.index, <bt_act> act, first + i)
        self.link.issued += count
        self.frames_sent += count
        return 0

    cdef int send_entries(self, list items, int act, list notes, uint64_t first) except -1:
        """A batch without contents: where it goes back, its frames are let go."""
        SendCore.send_entries(self, items, act, notes, first)
        if self.link == NULL or self.link.in_ == NULL:
            return 0
        for item in items:
            (<Buffer> item).pool.renew((<Buffer> item).index)
        return 0

    # ---- in ----

    def grant_frames(self, uint64_t count):
        """So many frames may be on their way here at once."""
        self.frames_granted = count
        if self.link != NULL and self.link.in_ != NULL:
            bt_grant_frames(self.link, self.frames_taken + count)

    cdef int foresee_frame(self) except -1:
        """If the entry at the head says that its contents are a frame, have that read from the socket."""
        if not self.frames and bt_rx_flags(&self.link.rx) & BT_FRAMED:
            self.take_bells()
        return 0

    cdef object frame_due(self, bt_entry* entry):
        """The frame that belongs to an entry: a Descriptor; None: it came, and this process could not take it."""
        if entry.serial != self.frames_taken:
            self._violation(f"frame {entry.serial} where {self.frames_taken} was due")
        if not self.frames:
            self._violation("a ring entry announced a frame that did not come")
        serial, fds, lost = self.frames.popleft()
        if serial != entry.serial:
            self._violation(f"frame {serial} came where {entry.serial} was due")
        if lost == "truncated" or (not lost and len(fds) != 1):
            self._violation(f"a frame came with {len(fds)} descriptors")
        self.frames_taken += 1
        bt_grant_frames(self.link, self.frames_taken + self.frames_granted)
        return None if lost else fds[0]

    cdef Event take_sealed(self, bt_entry* entry, uint8_t* meta):
        """A move or copy with its frame: judged, checked, mapped, and applied as any other."""
        cdef Assignment a = None
        cdef bt_act act = <bt_act> (BT_A_MOVE_RECEIVED + entry.kind - 1)
        cdef int verdict = BT_OK, result
        frame = self.frame_due(entry)
        if entry.slot < <uint32_t> len(self.table):
            a = <Assignment> self.table[entry.slot]
        if (a is None or a.c.standing < BT_ACTIVE or entry.index >= a.pool.c.count or entry.length > a.pool.c.size
                or entry.length == 0):
            if a is not None and a.c.standing >= BT_ACTIVE and entry.length == 0:
                self._violation("a frame of nothing")
            return self.take_transfer(entry, meta, entry.kind - 1)  # which says what is wrong
        fault = "" if frame is None else judge_memory(frame, (entry.length + 4095) // 4096 * 4096, FRAME_SEALS)
        if fault:
            self._violation(f"the frame of buffer {entry.index} of pool {a.pool.name} {fault}")
        if entry.kind == BT_MOVE:
            verdict = bt_judge_owner(table(), &a.c, entry.index, act)
        else:
            verdict = bt_judge_copy(table(), &a.c, entry.index)
        if verdict != BT_OK:
            return self.take_transfer(entry, meta, entry.kind - 1)  # refused, or a violation
        if bt_is_leaving(a.pool.c.twin, entry.index) or not bt_twin_claim(a.pool.c.twin, entry.index, a.c.channel):
            self.refuse(entry, errors.CopyRefusedError if entry.kind == BT_COPY else errors.NotOwnedError)
            return None
        try:
            result = self.settle(a, entry, frame) if frame is not None else -EMFILE
            if result == -EACCES:
                self._violation(f"the frame of buffer {entry.index} of pool {a.pool.name} cannot be read")
            if result < 0:
                self.refuse(entry, errors.LimitError)
                return None
            return self.take_transfer(entry, meta, entry.kind - 1)
        finally:
            bt_twin_unclaim(a.pool.c.twin, entry.index)

    cdef int settle(self, Assignment a, bt_entry* entry, object frame) except -1:
        """The buffer, which is claimed, holds the contents of a frame that was judged. 0, or -errno and no change."""
        cdef uint8_t* to = a.pool.c.base + entry.index * a.pool.c.size
        cdef int fd, result
        if a.pool.c.solid or a.pool.c.count > COUNT_MAX:
            return bt_frame_read((<Descriptor> frame).fd, to, entry.length)
        a.pool.begin_frames()
        fd = (<Descriptor> frame).detach()
        if bt_registry_add_fd(registry(), fd) < 0:
            _os.close(fd)
            return -ENOMEM
        result = bt_frame_adopt(&a.pool.c, entry.index, fd, entry.length, entry.kind == BT_MOVE)
        if result < 0:
            bt_registry_close(registry(), fd)
        return result

    def means_used(self):
        """How contents travelled so far; for statistics."""
        return {
            "by_value": self.by_value,
            "sealed": self.frames_sent + self.frames_taken,
            "sealed_after_a_copy": self.sealed_copies,
            "sealed_before": self.sealed_before,
        }
