# cython: binding=False, embedsignature.format=clinic
"""The hot half of an allocator.

Knows: the free list. Must not know: how a pool is made, or what waiting for a free buffer means.
"""

from libc.stdint cimport uint32_t

from bulktransfer._native.buffer cimport Buffer, explain
from bulktransfer._native.kernel cimport Mapping, registry
from bulktransfer._native.ledger cimport (
    BT_COPIES_OUT, BT_FREE, BT_GIVE_BACK, BT_GOING_BACK, BT_INVALID, BT_NOT_ALLOCATED, BT_NOT_OWNED, BT_NOT_PRESENT,
    BT_OK, BT_READ_ONLY, BT_READ_ONLY_OWNED, BT_VIEWS_LIVE, bt_slot,
)
from bulktransfer._native.pool cimport Pool


cdef int check_free(Pool pool, Buffer buffer) except -1:
    """Raise what `free` would."""
    cdef bt_slot* s = buffer.slot()
    cdef int verdict = BT_OK
    if buffer.pool is not pool:
        raise ValueError(f"free of {buffer.called()}: this allocator has pool {pool.name}")
    if s.flags & BT_FREE:
        verdict = BT_NOT_ALLOCATED
    elif s.state == BT_INVALID:
        verdict = BT_NOT_PRESENT
    elif s.state == BT_READ_ONLY:
        verdict = BT_NOT_OWNED
    elif s.state == BT_READ_ONLY_OWNED:
        verdict = BT_COPIES_OUT
    elif s.views:
        verdict = BT_VIEWS_LIVE
    elif s.flags & BT_GIVE_BACK:
        verdict = BT_GOING_BACK
    if verdict != BT_OK:
        raise explain(verdict, "free", buffer, "")
    return 0


cdef class AllocatorCore:
    """The free list of a pool: last in, first out, since the buffer that is hot in cache goes first."""

    def take(self):
        """A buffer, or None if there is none."""
        cdef Pool pool = self.pool
        cdef uint32_t index
        if pool.free_count == 0:
            return None
        pool.free_count -= 1
        index = pool.free[pool.free_count]
        pool.c.slots[index].flags = 0
        return pool.get(index)

    def alloc(self, timeout=0):
        """A buffer that this domain may write, of full length.

        Raises: PoolExhaustedError (none within `timeout` seconds; None waits for ever), ValueError (the allocator is
        closed), WouldBlock (it would wait inside a callback), ForkedError.
        """
        cdef Pool pool = self.pool
        cdef uint32_t index
        if (pool.free_count and pool.allocator_open is True
                and (<Mapping> pool.mapping).generation == registry().generation):
            pool.free_count -= 1
            index = pool.free[pool.free_count]
            pool.c.slots[index].flags = 0
            return pool.get(index)
        return self.alloc_slow(timeout)

    def free(self, Buffer buffer not None):
        """Give a buffer back to the free list.

        Raises: ValueError (of another pool), NotAllocatedError (free already), NotOwnedError, CopiesOutstandingError,
        BufferError (a view is live).
        """
        check_free(self.pool, buffer)
        (<Pool> self.pool).take_back(buffer.index)

    def take_many(self, Py_ssize_t n):
        """`n` buffers, or None if there are not so many."""
        cdef Pool pool = self.pool
        if pool.free_count < n or not pool.allocator_open:
            return None
        return [self.take() for _ in range(n)]

    def free_many(self, buffers):
        """Give buffers back, all or none. Raises: as free; ValueError (one twice)."""
        cdef list batch = list(buffers)
        cdef Pool pool = self.pool
        cdef Buffer buffer
        cdef Py_ssize_t i, checked = 0
        try:
            for item in batch:
                if not isinstance(item, Buffer):
                    raise TypeError(f"free_many takes buffers, not {type(item).__name__}")
                buffer = <Buffer> item
                check_free(pool, buffer)
                if buffer.slot().spare:
                    raise ValueError(f"free_many: buffer {buffer.index} of pool {pool.name} is in it twice")
                buffer.slot().spare = 1
                checked += 1
        finally:
            for i in range(checked):
                (<Buffer> batch[i]).slot().spare = 0
        for i in range(checked):
            pool.put_free((<Buffer> batch[i]).index)
        if checked and pool.hungry and pool.on_return is not None:
            pool.on_return()

    def __init__(self, Pool pool not None):
        self.pool = pool
