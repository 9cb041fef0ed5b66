"""The slots of a pool: the ledger's entry for each buffer, and the free list.

Knows: the ledger (ledger.h). Must not know: rings, sockets, views, or how a pool came here.
"""

from libc.stdint cimport uint32_t, uint64_t, uint8_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

import os as _os

from bulktransfer import states
from bulktransfer._native.frames cimport (
    bt_frame_cache, bt_frame_cache_new, bt_frame_for_raw, bt_frame_furnish, bt_frame_let_go, bt_frame_melt,
    bt_frames_begin, bt_frames_end,
)
from bulktransfer._native.kernel cimport Mapping, bt_twin, bt_twin_leave, bt_twin_new, registry
from bulktransfer._native.ledger cimport (
    BT_BARE, BT_FREE, BT_GIVE_BACK, BT_INVALID, BT_OWN, BT_READ_WRITE, BT_SEALED, bt_act, bt_guard_begin, bt_guard_end,
    bt_guard_for, bt_guard_set, bt_bit_words, bt_slot,
)
from bulktransfer._native.statistics cimport bt_record_write, drop_record, free_slots, new_record, new_slots, show_slots
from bulktransfer._native.table cimport table

cdef bt_frame_cache* the_frames = NULL
cdef tuple STATE = tuple(sorted(states.BufferState, key=lambda s: s.value))


cdef class Slots:
    """What a domain knows about the buffers of one pool; see Pool, which derives from it."""

    def __cinit__(
        self, id=None, domain=None, trust=None, Mapping mapping=None, uint32_t count=0, uint64_t size=0,
        bint shared=False, bint home=False,
    ):
        cdef uint32_t i
        if id is None:
            raise TypeError("pools come from an Allocator or an assignment")
        self.c.slots = new_slots(count)
        self.handles = <void**> calloc(count, sizeof(void*))
        self.free = <uint32_t*> malloc(count * sizeof(uint32_t)) if home else NULL
        if self.handles == NULL or (home and self.free == NULL):
            raise MemoryError(f"no memory to keep {count} buffers")
        self.c.count = count
        self.record = new_record()
        show_slots(self.record, self.c.slots, count)
        self.c.size = size
        self.c.shared = shared
        self.c.home = home
        self.id = id
        self.domain = domain
        self.mapping = mapping
        if mapping is not None:
            self.c.base = <uint8_t*> mapping.base
        self.channels = set()
        self.reclaim = False
        self.present = True
        self.on_return = None
        self.going_back = {}
        self.traces = {}
        if home:
            for i in range(count):  # last in, first out: buffer 0 goes first
                self.c.slots[i].state = BT_READ_WRITE
                self.c.slots[i].flags = BT_FREE
                self.c.slots[i].length = size
                self.free[i] = count - 1 - i
            self.free_count = count

    def __dealloc__(self):
        if self.c.twin != NULL:
            bt_twin_leave(self.c.twin, 0)
        if self.c.slots != NULL:
            bt_frames_end(&self.c)
        free_slots(self.c.slots, self.c.count)
        drop_record(self.record)
        free(self.c.taken)
        free(self.c.fresh)
        free(self.handles)
        free(self.free)

    def show(self, bytes text not None):
        """Say `text` of this pool to whoever looks at this process."""
        bt_record_write(self.record, text, len(text))

    cdef uint64_t* taken_bits(self) except NULL:
        """Bits of the buffers into which contents land from another machine."""
        cdef uint32_t i
        cdef uint64_t* fresh
        cdef uint64_t* taken
        if self.c.taken == NULL:
            fresh = <uint64_t*> malloc(self.c.count * sizeof(uint64_t))
            taken = <uint64_t*> calloc(bt_bit_words(self.c.count), sizeof(uint64_t))
            if fresh == NULL or taken == NULL:
                free(fresh)
                free(taken)
                raise MemoryError("no memory to have a pool travel")
            for i in range(self.c.count):
                fresh[i] = self.c.size
            self.c.fresh, self.c.taken = fresh, taken
        return self.c.taken

    cdef void put_free(self, uint32_t index) noexcept:
        cdef bt_slot* s = &self.c.slots[index]
        s.flags = BT_FREE
        s.length = self.c.size
        self.renew(index)
        bt_frame_for_raw(&self.c, index)
        if self.c.twin != NULL or self.c.fresh != NULL:
            self.grow(index, self.c.size)
        self.free[self.free_count] = index
        self.free_count += 1

    cdef int take_back(self, uint32_t index) except -1:
        """Put a buffer on the free list; whoever waits for one is told."""
        self.put_free(index)
        if self.hungry and self.on_return is not None:
            self.on_return()
        return 0

    cdef int come_home(self, uint32_t index) except -1:
        """Put a buffer on the free list by itself (rule 19), but not under the views that its last user has of it."""
        cdef bt_slot* s = &self.c.slots[index]
        if s.views == 0:
            return self.take_back(index)
        s.flags |= BT_GIVE_BACK
        self.going_back[index] = None
        return 0

    cdef int give_back_on_release(self, uint32_t index, object channel) except -1:
        """Buffer `index` goes back over `channel` when its last view dies (rule 19)."""
        self.c.slots[index].flags |= BT_GIVE_BACK
        self.going_back[index] = channel
        return 0

    def set_guarded(self, bint on):
        """Whether the mapping follows the ledger (trust HALF) from now on. Raises: OSError (nothing changed)."""
        cdef int result = 0
        if on and not self.c.guarded:
            self.melt()
            result = bt_guard_begin(&self.c)
        elif not on and self.c.guarded:
            result = bt_guard_end(&self.c)
        if result < 0:
            raise OSError(-result, f"protecting the memory of pool {self.name}: {_os.strerror(-result)}")

    def set_shared(self, bint on):
        """Whether the other domains of its channels see the same memory, or have twins. Raises: MemoryError."""
        cdef bt_twin* twin = NULL
        cdef uint32_t i
        if not on and self.c.twin == NULL:
            twin = bt_twin_new(registry(), self.c.count, self.c.size)
            if twin == NULL:
                raise MemoryError(f"no memory to keep the twin of pool {self.name}")
            for i in range(self.c.count if self.c.fresh != NULL else 0):
                twin.cells[i].fresh = self.c.fresh[i]
            self.c.twin = twin
            if self.mapping is not None:
                self.mapping.belong(twin)
        elif on and self.c.twin != NULL:
            self.melt()
            if self.mapping is not None:
                self.mapping.belong(NULL)
            twin, self.c.twin = self.c.twin, NULL
            for i in range(self.c.count if self.c.fresh != NULL else 0):
                self.c.fresh[i] = twin.cells[i].fresh
            bt_twin_leave(twin, 0)
        self.c.shared = on
        self.c.apart = self.c.guarded or not on

    cdef void grow(self, uint32_t index, uint64_t length) noexcept:
        """The length grows: what did not come with the contents is zeroed (rule 11)."""
        cdef uint64_t* fresh = fresh_of(&self.c, index)
        if self.c.slots[index].holds == BT_BARE:
            return  # what it gets is zeros
        if fresh != NULL and length > fresh[0]:
            memset(self.c.base + index * self.c.size + fresh[0], 0, length - fresh[0])
            fresh[0] = length

    cdef int begin_frames(self) except -1:
        """From now on a buffer may hold a frame (sealed.h). Raises: MemoryError."""
        global the_frames
        cdef int memory = -1
        if self.c.frames != NULL:
            return 0
        if the_frames == NULL or the_frames.generation != registry().generation:
            the_frames = bt_frame_cache_new(registry())
        if self.memory is not None:
            memory = self.memory.fileno()
        if the_frames == NULL or bt_frames_begin(&self.c, the_frames, memory, self.made_here) < 0:
            raise MemoryError(f"no memory to keep the frames of pool {self.name}")
        return 0

    cdef int furnish(self, uint32_t index) except -1:
        """A buffer that holds no memory gets some, all of it zeros. Raises: OSError (nothing changed)."""
        cdef int result = bt_frame_furnish(&self.c, index)
        if result < 0:
            raise OSError(-result, f"memory for buffer {index} of pool {self.name}: {_os.strerror(-result)}")
        return 0

    cdef void renew(self, uint32_t index) noexcept:
        """Its contents are no longer wanted: a frame that others have seen is let go; if that cannot be, it stays."""
        if self.c.slots[index].holds == BT_SEALED:
            bt_frame_let_go(&self.c, index)

    cdef int melt(self) except -1:
        """Every buffer back into memory that stays what it is. Raises: OSError, BufferError (a view may be written)."""
        cdef uint32_t i
        cdef int result
        if self.c.frames == NULL:
            return 0
        for i in range(self.c.count):
            if self.c.slots[i].writers:
                raise BufferError(f"buffer {i} of pool {self.name} leaves its frame: a view of it is live")
        for i in range(self.c.count):
            result = bt_frame_melt(&self.c, i)
            if result < 0:
                raise OSError(-result, f"memory for buffer {i} of pool {self.name}: {_os.strerror(-result)}")
        bt_frames_end(&self.c)
        return 0

    def in_own_memory(self, uint32_t index):
        """Whether what a buffer holds is its part of the pool's memory, and no frame."""
        return self.c.slots[index].holds == BT_OWN

    def set_solid(self):
        """From now on its memory stays what it is: others read it, or write into it. Raises: as melt."""
        self.melt()
        self.c.solid = True

    @property
    def guarded(self):
        """Whether the mapping follows the ledger (trust HALF)."""
        return bool(self.c.guarded)

    cdef int guard_for(self, uint32_t index, int act) except -1:
        """Have the mapping of a buffer allow what it may be after `act`. Raises: OSError (nothing changed)."""
        cdef int result = bt_guard_for(table(), &self.c, index, <bt_act> act)
        if result < 0:
            raise OSError(
                -result, f"protecting the memory of buffer {index} of pool {self.name}: {_os.strerror(-result)}")
        return 0

    cdef void guard_again(self, uint32_t index) noexcept:
        """Back to what its state allows: `act` came to nothing. The kernel merges what becomes equal: it can."""
        bt_guard_set(&self.c, index, self.c.slots[index].state)

    def wait_for_return(self, bint waiting):
        """One more, or one less, waits for a buffer to come back and wants `on_return` to be called."""
        self.hungry += 1 if waiting else -1

    @property
    def name(self):
        """The first digits of the id, for messages."""
        return self.id.hex[:8]

    def close_free_list(self):
        """Nothing is allocated any more; whoever waits for a buffer is told."""
        self.free_count = 0
        if self.on_return is not None:
            self.on_return()

    def in_use(self):
        """Whether this domain owns or holds a buffer of the pool, or has a view of one."""
        cdef uint32_t i
        for i in range(self.c.count):
            if self.c.slots[i].state != BT_INVALID or self.c.slots[i].views:
                return True
        return False

    def states(self):
        """How many buffers are in which state, by name; for statistics."""
        cdef uint32_t i
        cdef int[4] counts = [0, 0, 0, 0]
        for i in range(self.c.count):
            counts[self.c.slots[i].state] += 1
        return {STATE[i].name: counts[i] for i in range(4)}

    def counts(self, Py_ssize_t index):
        """Copies of buffer `index` that this domain has sent and not got back, and copies that it holds."""
        if not 0 <= index < self.c.count:
            raise IndexError(f"buffer {index} of pool {self.name}: it has {self.c.count}")
        return self.c.slots[index].out, self.c.slots[index].in_
