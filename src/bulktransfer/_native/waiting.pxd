from libc.stdint cimport int64_t, uint64_t

from bulktransfer._native.byvalue cimport ValueCore

cdef class Waiters:
    cdef public int epoll
    cdef public int waiting
    cdef public set loose
    cdef public uint64_t deadline_ns
    cdef public int drowsy  # threads that sleep for long though another thread may clear what would wake them
    cdef public uint64_t news  # grows with everything that a waiting thread should look at

cdef class WaitCore(ValueCore):
    cdef public int busy  # 1: `receiver` receives, 2: a thread serves what came
    cdef public bint descriptor_mode
    cdef public object ended
    cdef public Waiters waiters
    cdef public bint loose
    cdef public bint registered
    cdef public int kick_fd
    cdef public int bed
    cdef int kicked
    cdef int sleepers
    cdef public int spin_mode
    cdef public bint yields
    cdef uint64_t waits

    cdef bint arm(self, bint outcomes=*) except -1
    cdef bint arm_far(self) except -1
    cdef int block(self, int64_t left_ns, bint mine=*, bint outcomes=*, uint64_t news=*) except -1
    cdef int sleep(self, int64_t left_ns, bint mine, bint alone) except -1
    cdef int attend(self, int bits, bint mine) except -1
    cdef int wake(self) except -1
    cdef int wait_step(self, int64_t left_ns) except -1

cdef bint inside_callback() noexcept
cdef int64_t span_ns(object timeout_s) except? -1
