# cython: language_level=3, boundscheck=False, wraparound=False
"""The machine's floor for Python: every function runs in C without the GIL and ends when its patience does.

Knows: floor.h. Must not know: the library. The two sides of an echo or a ring call the `_ping`/`_pong` or the
`_produce`/`_consume` function with the same count; `reset` goes before each such pair. A dead or stalled partner is
an OSError (TimeoutError, ConnectionResetError, BrokenPipeError); the descriptors are of no use after that.
"""

import os
import threading
from array import array
from functools import partial

from libc.errno cimport ETIMEDOUT
from libc.stdint cimport int64_t, uint32_t, uint64_t


cdef extern from "<stdbool.h>":
    ctypedef bint c_bool "bool"


cdef extern from "floor.h" nogil:
    cdef struct floor_words:
        pass
    unsigned int FLOOR_WINDOW
    uint64_t FLOOR_CUT_OFF
    int64_t floor_now()
    void floor_socket_stop(int fd)
    void floor_reset(floor_words *w)
    int floor_line_ping(floor_words *w, uint32_t rounds, c_bool give_way, int64_t until_ns, int64_t *times_ns)
    int floor_line_pong(floor_words *w, uint32_t rounds, c_bool give_way, int64_t until_ns)
    int floor_socket_ping(int fd, uint32_t rounds, int64_t *times_ns)
    int floor_socket_pong(int fd, uint32_t rounds)
    int floor_event_ping(int out_fd, int in_fd, uint32_t rounds, int64_t *times_ns)
    int floor_event_pong(int out_fd, int in_fd, uint32_t rounds)
    int floor_ring_produce(floor_words *w, unsigned char *slots, size_t slot_bytes, uint64_t count, c_bool give_way,
                           int64_t until_ns, int64_t *elapsed_ns)
    int floor_ring_consume(floor_words *w, const unsigned char *slots, size_t slot_bytes, uint64_t count,
                           c_bool give_way, int64_t until_ns, uint64_t *total)
    int floor_copy(size_t bytes, uint32_t inner, uint32_t repeats, int64_t *times_ns)
    c_bool floor_die_with_parent(int parent)


WINDOW = FLOOR_WINDOW
WORDS_BYTES = sizeof(floor_words)


cdef floor_words *words_at(unsigned char[::1] memory) except NULL:
    if <size_t>memory.shape[0] < sizeof(floor_words) or <size_t>&memory[0] % 128:
        raise ValueError(f"the shared words need {sizeof(floor_words)} bytes, aligned to 128")
    return <floor_words *>&memory[0]


cdef uint32_t count_of(object count) except 0:
    if not 0 < count <= 1 << 30:
        raise ValueError(f"the number of rounds must be between 1 and 2**30, not {count}")
    return count


cdef int64_t deadline_of(object patience_s) except -1:
    if not 0 < patience_s <= 3600:
        raise ValueError(f"the patience must be above 0 and at most 3600 s, not {patience_s}")
    return floor_now() + <int64_t>(<double>patience_s * 1e9)


class Cutoff:
    """Ends a sleeping call of another thread when its time is up, by `act`."""

    def __init__(self, patience_s, act):
        deadline_of(patience_s)
        self.act = act
        self.fired = False
        self.timer = threading.Timer(patience_s, self.fire)
        self.timer.daemon = True

    def fire(self):
        self.fired = True
        self.act()

    def __enter__(self):
        self.timer.start()
        return self

    def __exit__(self, *exc_info):
        self.timer.cancel()
        self.timer.join()


def stop_socket(int fd):
    floor_socket_stop(fd)


def stop_event(int fd):
    os.eventfd_write(fd, FLOOR_CUT_OFF)


cdef int check(int error, str act) except -1:
    if error:
        raise OSError(error, f"{act}: {os.strerror(error)}; the partner died or stalled")
    return 0


def reset(unsigned char[::1] words not None):
    """Make the shared words ready for the next echo or ring, while the partner uses none of them."""
    floor_reset(words_at(words))


def line_ping(unsigned char[::1] words not None, rounds, *, bint share_core, patience_s):
    """Send a cache line to the partner and await it back, `rounds` times; return each time in ns."""
    times = array("q", bytes(8 * count_of(rounds)))
    cdef int64_t[::1] at = times
    cdef floor_words *w = words_at(words)
    cdef uint32_t n = count_of(rounds)
    cdef int64_t until_ns = deadline_of(patience_s)
    cdef int error
    with nogil:
        error = floor_line_ping(w, n, share_core, until_ns, &at[0])
    check(error, "cache-line echo")
    return times


def line_pong(unsigned char[::1] words not None, rounds, *, bint share_core, patience_s):
    """Answer `line_ping`."""
    cdef floor_words *w = words_at(words)
    cdef uint32_t n = count_of(rounds)
    cdef int64_t until_ns = deadline_of(patience_s)
    cdef int error
    with nogil:
        error = floor_line_pong(w, n, share_core, until_ns)
    check(error, "cache-line echo")


def socket_ping(int fd, rounds, *, patience_s):
    """Send one byte over a blocking socket and await it back, `rounds` times; return each time in ns."""
    times = array("q", bytes(8 * count_of(rounds)))
    cdef int64_t[::1] at = times
    cdef uint32_t n = count_of(rounds)
    cdef int error
    with Cutoff(patience_s, partial(stop_socket, fd)) as cutoff:
        with nogil:
            error = floor_socket_ping(fd, n, &at[0])
    check(ETIMEDOUT if cutoff.fired else error, "socket echo")
    return times


def socket_pong(int fd, rounds, *, patience_s):
    """Answer `socket_ping`."""
    cdef uint32_t n = count_of(rounds)
    cdef int error
    with Cutoff(patience_s, partial(stop_socket, fd)) as cutoff:
        with nogil:
            error = floor_socket_pong(fd, n)
    check(ETIMEDOUT if cutoff.fired else error, "socket echo")


def event_ping(int out_fd, int in_fd, rounds, *, patience_s):
    """Ring one eventfd and await the other, `rounds` times; return each time in ns."""
    times = array("q", bytes(8 * count_of(rounds)))
    cdef int64_t[::1] at = times
    cdef uint32_t n = count_of(rounds)
    cdef int error
    with Cutoff(patience_s, partial(stop_event, in_fd)) as cutoff:
        with nogil:
            error = floor_event_ping(out_fd, in_fd, n, &at[0])
    check(ETIMEDOUT if cutoff.fired else error, "eventfd echo")
    return times


def event_pong(int out_fd, int in_fd, rounds, *, patience_s):
    """Answer `event_ping`."""
    cdef uint32_t n = count_of(rounds)
    cdef int error
    with Cutoff(patience_s, partial(stop_event, in_fd)) as cutoff:
        with nogil:
            error = floor_event_pong(out_fd, in_fd, n)
    check(ETIMEDOUT if cutoff.fired else error, "eventfd echo")


cdef size_t slot_bytes_of(unsigned char[::1] slots) except? 0:
    if slots is None:
        return 0
    cdef size_t size = slots.shape[0] // FLOOR_WINDOW
    if not size or slots.shape[0] % (FLOOR_WINDOW * 8) or <size_t>&slots[0] % 8:
        raise ValueError(f"the slots must be {FLOOR_WINDOW} equal parts of whole 8-byte words")
    return size


def ring_produce(unsigned char[::1] words not None, unsigned char[::1] slots, count, *, bint share_core, patience_s):
    """Hand `count` buffers through a ring of WINDOW; with `slots`, fill buffer i with the value i. Return the ns."""
    cdef floor_words *w = words_at(words)
    cdef size_t size = slot_bytes_of(slots)
    cdef unsigned char *at = &slots[0] if size else NULL
    cdef uint64_t n = count_of(count)
    cdef int64_t until_ns = deadline_of(patience_s)
    cdef int64_t elapsed_ns = 0
    cdef int error
    with nogil:
        error = floor_ring_produce(w, at, size, n, share_core, until_ns, &elapsed_ns)
    check(error, "ring")
    return elapsed_ns


def ring_consume(unsigned char[::1] words not None, unsigned char[::1] slots, count, *, bint share_core, patience_s):
    """Answer `ring_produce`; return the sum of all that was handed over, modulo 2**64."""
    cdef floor_words *w = words_at(words)
    cdef size_t size = slot_bytes_of(slots)
    cdef unsigned char *at = &slots[0] if size else NULL
    cdef uint64_t n = count_of(count)
    cdef int64_t until_ns = deadline_of(patience_s)
    cdef uint64_t total = 0
    cdef int error
    with nogil:
        error = floor_ring_consume(w, at, size, n, share_core, until_ns, &total)
    check(error, "ring")
    return total


def copy_times(size, repeats):
    """Copy `size` bytes with memcpy, `repeats` times after a warm-up; return the ns of each (small ones averaged)."""
    if not 0 < size <= 1 << 40:
        raise ValueError(f"the size of a copy must be between 1 and 2**40 bytes, not {size}")
    cdef size_t bytes_ = size
    cdef uint32_t inner = max(1, (1 << 20) // size)
    cdef uint32_t n = count_of(repeats) + 1
    times = array("q", bytes(8 * n))
    cdef int64_t[::1] at = times
    cdef int error
    with nogil:
        error = floor_copy(bytes_, inner, n, &at[0])
    if error:
        raise OSError(error, f"memcpy of {size} bytes: {os.strerror(error)}")
    return [spent / inner for spent in times[1:]]


def die_with_parent(int parent):
    """Have the kernel kill this process when the thread that started it ends; False if `parent` is gone already."""
    return bool(floor_die_with_parent(parent))
