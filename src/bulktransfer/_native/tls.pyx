"""TLS as a stream of a link to another machine: an SSLObject of Python's `ssl` between two buffers in memory.

Knows: how bytes get through it, many records in one system call each way. Must not know: frames, handshakes,
certificates. It is called without the GIL and takes it where `ssl` needs it; its own lock is taken before the GIL, and
nobody waits for that lock with the GIL.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport EAGAIN, ECONNRESET, EINTR, EPROTO, errno
from libc.stdint cimport uint64_t
from libc.string cimport memcpy

import ssl as _ssl

from bulktransfer._native.farlink cimport (
    bt_stream, bt_tcp_finish, iovec, pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t,
    pthread_mutex_unlock,
)

cdef extern from "Python.h":
    object PyMemoryView_FromMemory(char* memory, Py_ssize_t size, int flags)
    enum: PyBUF_READ, PyBUF_WRITE

cdef extern from "sys/socket.h" nogil:
    ssize_t send(int sock, const void* data, size_t size, int flags)
    ssize_t recv(int sock, void* data, size_t size, int flags)
    enum: MSG_DONTWAIT, MSG_NOSIGNAL

cdef enum:
    CIPHER_ROOM = 262144  # bytes of ciphertext read at once
    PLAIN_MAX = 262144    # bytes encrypted at once
    GATHER_MAX = 16384    # one record: what is smaller is put together before


cdef class Tls:
    """One connection. `lock` is for all of it: an SSLObject is used by one thread at a time."""

    cdef pthread_mutex_t lock
    cdef int fd
    cdef object ssl_read, ssl_write, feed, drain
    cdef bytes cipher       # encrypted and not yet sent
    cdef Py_ssize_t cipher_sent
    cdef bytearray room     # for ciphertext that comes
    cdef bytearray gathered

    def __cinit__(self, int fd, tls):
        sslobj, incoming, outgoing, rest = tls
        pthread_mutex_init(&self.lock, NULL)
        self.fd = fd
        self.ssl_read, self.ssl_write = sslobj.read, sslobj.write
        self.feed, self.drain = incoming.write, outgoing.read
        self.cipher = rest + outgoing.read()
        self.room = bytearray(CIPHER_ROOM)
        self.gathered = bytearray(GATHER_MAX)

    def __dealloc__(self):
        pthread_mutex_destroy(&self.lock)

    cdef ssize_t read_some(self, char* to, size_t size) except -2:
        """Plain bytes; 0 at the end, -errno."""
        cdef ssize_t got
        cdef char* room = self.room
        cdef int error
        while True:
            try:
                return self.ssl_read(size, PyMemoryView_FromMemory(to, size, PyBUF_WRITE))
            except _ssl.SSLWantReadError:
                with nogil:
                    got = recv(self.fd, room, CIPHER_ROOM, MSG_DONTWAIT)
                    error = errno
                if got == 0:
                    return 0
                if got < 0:
                    if error == EINTR:
                        continue
                    return -error
                self.feed(PyMemoryView_FromMemory(room, got, PyBUF_READ))
            except _ssl.SSLZeroReturnError:
                return 0
            except _ssl.SSLError:
                return -EPROTO  # what came was changed on the way, or is no TLS

    cdef ssize_t send_cipher(self) except -2:
        """Send what is encrypted; 0 once all has gone, or -errno."""
        cdef ssize_t sent
        cdef const char* data
        cdef size_t left
        cdef int error
        self.cipher = self.cipher if self.cipher_sent < PyBytes_GET_SIZE(self.cipher) else self.drain()
        while PyBytes_GET_SIZE(self.cipher):
            if self.cipher_sent >= PyBytes_GET_SIZE(self.cipher):
                self.cipher_sent = 0
                self.cipher = self.drain()
                continue
            data = PyBytes_AS_STRING(self.cipher) + self.cipher_sent
            left = PyBytes_GET_SIZE(self.cipher) - self.cipher_sent
            with nogil:
                sent = send(self.fd, data, left, MSG_DONTWAIT | MSG_NOSIGNAL)
                error = errno
            if sent >= 0:
                self.cipher_sent += sent
            elif error != EINTR:
                return -error
        self.cipher_sent = 0
        return 0

    cdef ssize_t write_some(self, iovec* parts, int count) except -2:
        """Encrypt and send; how many plain bytes are taken over, or -errno."""
        cdef ssize_t result = self.send_cipher()
        cdef size_t size = 0, step
        cdef char* to = self.gathered
        cdef int i
        if result < 0:
            return result
        if count == 0:
            return 0
        if parts[0].iov_len >= GATHER_MAX:
            size = min(parts[0].iov_len, <size_t> PLAIN_MAX)
            self.ssl_write(PyMemoryView_FromMemory(<char*> parts[0].iov_base, size, PyBUF_READ))
        else:
            for i in range(count):
                step = min(parts[i].iov_len, GATHER_MAX - size)
                memcpy(to + size, parts[i].iov_base, step)
                size += step
                if size == GATHER_MAX:
                    break
            self.ssl_write(PyMemoryView_FromMemory(to, size, PyBUF_READ))
        result = self.send_cipher()
        if result < 0 and result != -EAGAIN:
            return result
        return size  # what is encrypted and not sent is the first to go the next time


cdef ssize_t tls_read(void* self, iovec* parts, int count) noexcept nogil:
    cdef ssize_t got = -EAGAIN, all = 0
    cdef int i
    pthread_mutex_lock(&(<Tls> self).lock)
    for i in range(count):
        while parts[i].iov_len:
            with gil:
                got = read_safely(<Tls> self, <char*> parts[i].iov_base, parts[i].iov_len)
            if got <= 0:
                break
            all += got
            parts[i].iov_base = <char*> parts[i].iov_base + got
            parts[i].iov_len -= got
        if parts[i].iov_len or all >= CIPHER_ROOM:
            break
    pthread_mutex_unlock(&(<Tls> self).lock)
    return all if all > 0 else got


cdef ssize_t read_safely(Tls self, char* to, size_t size) noexcept:
    try:
        return self.read_some(to, size)
    except BaseException:  # no memory: the connection cannot go on
        return -ECONNRESET


cdef ssize_t tls_write(void* self, iovec* parts, int count) noexcept nogil:
    cdef ssize_t result
    pthread_mutex_lock(&(<Tls> self).lock)
    with gil:
        result = write_safely(<Tls> self, parts, count)
    pthread_mutex_unlock(&(<Tls> self).lock)
    return result


cdef ssize_t write_safely(Tls self, iovec* parts, int count) noexcept:
    try:
        return self.write_some(parts, count)
    except BaseException:
        return -ECONNRESET


cdef int tls_push(void* self) noexcept nogil:
    return <int> tls_write(self, NULL, 0)


cdef ssize_t tls_skip(void* self, uint64_t size) noexcept nogil:
    cdef char waste[16384]
    cdef iovec part
    part.iov_base = waste
    part.iov_len = size if size < sizeof(waste) else sizeof(waste)
    return tls_read(self, &part, 1)


cdef void tls_finish(void* self) noexcept nogil:
    bt_tcp_finish(<void*> <size_t> (<Tls> self).fd)


cdef void tls_close(void* self) noexcept nogil:
    with gil:
        Py_DECREF(<Tls> self)


cdef bt_stream the_stream
the_stream.read = tls_read
the_stream.write = tls_write
the_stream.skip = tls_skip
the_stream.push = tls_push
the_stream.finish = tls_finish
the_stream.close = tls_close


cdef const bt_stream* tls_stream() noexcept:
    return &the_stream


cdef void* tls_open(int fd, object tls) except NULL:
    """What the stream is of: an SSLObject past its handshake, with its two buffers and what it has not sent yet."""
    stream = Tls(fd, tls)
    Py_INCREF(stream)
    return <void*> stream


cdef void tls_forget(void* self) noexcept:
    Py_DECREF(<Tls> self)
