from libc.stdint cimport uint32_t, uint64_t, uint8_t

from bulktransfer._native.assignment cimport Assignment
from bulktransfer._native.carrier cimport bt_entry
from bulktransfer._native.event cimport Event
from bulktransfer._native.outcome cimport Outcome
from bulktransfer._native.pool cimport Pool
from bulktransfer._native.sending cimport SendCore

cdef class ReceiveCore(SendCore):
    cdef public bint same_domain
    cdef object queue
    cdef Assignment recent_arrival
    cdef bint may_have_queued
    cdef bint lazy
    cdef bint arriving  # by value: of the entry at the head not all is there
    cdef uint64_t control_seen
    cdef uint64_t refused_here, refused_there
    cdef uint64_t last_passed, last_refusals  # when the channel ended

    cdef public bint begun  # the control message that is being taken is on its way to be answered
    cdef Event take(self)
    cdef Event take_transfer(self, bt_entry* entry, uint8_t* meta, int act)
    cdef Event take_refusal(self, bt_entry* entry)
    cdef int arrived_in_twin(self, Pool pool, bt_entry* entry, int act) except -1
    cdef int arrives_apart(self, Assignment a, uint32_t index, int act) except -1
    cdef int arrived_apart(self, Assignment a, uint32_t index, int act, int verdict, uint64_t length) except -1
    cdef Event take_value(self)
    cdef Event take_control(self, bt_entry* entry)
    cdef bint judge_landing(self, Assignment a, bt_entry* entry, int act) except -1
    cdef int check_heard(self) except -1
    cdef int refuse(self, bt_entry* entry, object cls) except -1
    cdef int deliver(self, Event event) except -1
    cdef int drain(self) except -1
    cdef bint known(self, Outcome o) except -1
    cdef tuple untaken(self, Outcome o, uint64_t consumed)
