from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from bulktransfer._native.event cimport Event
from bulktransfer._native.pool cimport Assignment, Buffer, Pool

cdef extern from "carrier.h" nogil:
    enum: BT_MOVE, BT_PASS, BT_COPY, BT_RELEASE, BT_REFUSE, BT_CONTROL, BT_KIND_END, BT_META_MAX, BT_META_INLINE
    ctypedef struct bt_entry:
        uint16_t kind
        uint16_t flags
        uint32_t slot
        uint32_t index
        uint32_t meta_size
        uint64_t length
        uint64_t serial
        uint8_t meta[32]
    ctypedef struct bt_link:
        int sock
        uint64_t issued

cdef class Waiters:
    cdef public int epoll
    cdef public int waiting
    cdef public set loose
    cdef public uint64_t deadline_ns
    cdef public int drowsy  # threads that sleep for long though another thread may clear what would wake them
    cdef public uint64_t news  # grows with everything that a waiting thread should look at

cdef class Outcome:
    cdef readonly object error
    cdef readonly object operation
    cdef readonly object channel
    cdef readonly object buffer
    cdef readonly object pool
    cdef uint64_t first
    cdef uint64_t end
    cdef object done

cdef class ChannelCore:
    cdef bt_link* link
    cdef uint32_t generation
    cdef readonly uint32_t number
    cdef public int stage
    cdef public bint is_source
    cdef public bint same_domain
    cdef public uint32_t meta_size
    cdef public list table
    cdef Assignment recent
    cdef object queue
    cdef object outcomes
    cdef object inbox
    cdef tuple handlers
    cdef public int busy  # 1: `receiver` receives, 2: a thread serves what came
    cdef long receiver
    cdef readonly Py_ssize_t passed_over  # queued events that the last dispatch left to receive
    cdef public bint descriptor_mode
    cdef public bint hung_up
    cdef public object ended
    cdef public Waiters waiters
    cdef public bint loose
    cdef public bint registered
    cdef public int kick_fd
    cdef public int bed
    cdef public int pidfd
    cdef uint32_t asked_at
    cdef int kicked
    cdef int sleepers
    cdef public int spin_mode
    cdef public bint yields
    cdef bint lazy
    cdef bint may_have_queued
    cdef bint may_have_outcomes
    cdef uint64_t control_sent
    cdef uint64_t control_seen
    cdef uint64_t sent[4]
    cdef uint64_t received[4]
    cdef uint64_t refused_here, refused_there, bells_heard, waits
    cdef object __weakref__

    cdef int check_sender(self, int act) except -1
    cdef Assignment assignment_of(self, Buffer buffer, int act)
    cdef object too_much_meta(self, str what, Py_ssize_t size)
    cdef int send_one(self, Buffer buffer, int act, object meta, object done) except -1
    cdef int send_batch(self, object buffers, int act, object metas, object done) except -1
    cdef int push(self, bt_entry* entry, const uint8_t* meta) except -1
    cdef int carry(self) except -1
    cdef int take_bells(self) except -1
    cdef Event next_event(self)
    cdef Event take(self)
    cdef Event take_transfer(self, bt_entry* entry, uint8_t* meta, int act)
    cdef Event take_refusal(self, bt_entry* entry)
    cdef int fire_outcomes(self) except -1
    cdef bint known(self, Outcome o) except -1
    cdef uint64_t passed(self) except? 0
    cdef int drain(self) except -1
    cdef bint arm(self, bint outcomes=*) except -1
    cdef Event wait_event(self, object timeout)
    cdef int block(self, int64_t left_ns, bint mine=*, bint outcomes=*, uint64_t news=*) except -1
    cdef int wake(self) except -1
    cdef int enter(self) except -1
    cdef int leave(self) except -1
    cdef uint8_t** keep_metas(self, list notes) except NULL
    cdef int expect(self, object done, str operation, object buffer, uint64_t first, uint64_t end) except -1
    cdef int refuse(self, bt_entry* entry) except -1
    cdef int run_callback(self, object handler, object argument) except -1
    cdef Event look_harder(self)
    cdef int wait_step(self, int64_t left_ns) except -1
    cdef int deliver(self, Event event) except -1
