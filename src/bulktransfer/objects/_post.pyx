"""Sending and receiving one message, with or without waiting.

Knows: which waits drop the GIL, what a signal does to them. Must not know: what a message means.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EAGAIN, EINTR, EMFILE

import os as _os
import time as _time

from .. import TrustMismatchError

BODY_MAX = BT_POST_BODY_MAX
ROOM = BT_POST_ROOM


cdef int refuse(int error, str what) except -1:
    raise OSError(error, f"{what}: {_os.strerror(error)}")


cdef object opened(bt_letter* letter, bint anybody):
    """(kind, body, descriptor or -1), which the caller owns. Raises: TrustMismatchError, OSError (EMFILE)."""
    if not anybody and letter.uid != getuid():
        if letter.fd >= 0:
            _os.close(letter.fd)
        raise TrustMismatchError(
            f"a message of user {letter.uid} was thrown away unread by user {getuid()}: unpickling runs what its "
            f"sender likes (allow_pickle=True admits it)")
    if letter.truncated and letter.fd < 0:
        raise OSError(EMFILE, "an object is lost: this process has no descriptor left to take its memory with")
    try:
        return letter.head.kind, PyBytes_FromStringAndSize(<char*> letter.body, letter.head.size), letter.fd
    except MemoryError:
        if letter.fd >= 0:
            _os.close(letter.fd)
        raise


def send(int sock, uint32_t kind, body, int fd):
    """Send one message, waiting for room. Raises: OSError (EPIPE: nobody reads any more; ETOOMANYREFS)."""
    cdef Py_buffer view
    cdef int result
    PyObject_GetBuffer(body, &view, PyBUF_SIMPLE)
    try:
        result = bt_post_send(sock, kind, view.buf, view.len, fd, False, MSG_DONTWAIT)
        while result == -EAGAIN or result == -EINTR:
            with nogil:
                result = bt_post_send(sock, kind, view.buf, view.len, fd, False, 0)
            if result == -EINTR:
                PyErr_CheckSignals()
    finally:
        PyBuffer_Release(&view)
    if result < 0:
        refuse(-result, "sending an object")


def receive(int sock, timeout, bint anybody):
    """The next message as (kind, body, descriptor or -1); None if none came within `timeout` seconds.

    The caller owns the descriptor. anybody: also from processes of other users.
    Raises: EOFError (nothing will come any more), TrustMismatchError, OSError.
    """
    cdef bt_letter letter
    cdef int result = bt_post_receive(sock, &letter, MSG_DONTWAIT)
    cdef double end
    if result == -EAGAIN or result == -EINTR:
        if timeout is None:
            while result == -EAGAIN or result == -EINTR:
                with nogil:
                    result = bt_post_receive(sock, &letter, 0)
                if result == -EINTR:
                    PyErr_CheckSignals()
        else:
            end = _time.monotonic() + timeout
            while result == -EAGAIN or result == -EINTR:
                if not readable(sock, max(0.0, end - _time.monotonic())):
                    return None
                result = bt_post_receive(sock, &letter, MSG_DONTWAIT)  # another reader may have been faster
    if result < 0:
        refuse(-result, "receiving an object")
    if result == 0:
        raise EOFError
    return opened(&letter, anybody)


cdef bint ready(int sock, int events, timeout) except -1:
    cdef int result
    cdef int ms
    end = None if timeout is None else _time.monotonic() + timeout
    while True:
        ms = -1 if end is None else min(2000000000, max(0, int((end - _time.monotonic()) * 1000 + 0.999)))
        if ms == 0:
            result = bt_post_wait(sock, events, 0)
        else:
            with nogil:
                result = bt_post_wait(sock, events, ms)
        if result >= 0:
            return result > 0
        if result != -EINTR:
            refuse(-result, "waiting")
        PyErr_CheckSignals()


def readable(int sock, timeout):
    """Whether a message, or the end, is there within `timeout` seconds. Raises: OSError."""
    return ready(sock, POLLIN, timeout)


def writable(int sock, timeout):
    """Whether there is room for a message, or nobody to read it, within `timeout` seconds. Raises: OSError."""
    return ready(sock, POLLOUT, timeout)
