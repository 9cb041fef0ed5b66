"""Memory that goes along with a message: lent by a lock that the kernel keeps, mapped by who receives it.

A lease is a descriptor of the memory, opened anew and for reading only, that holds a read lock (F_OFD_SETLK) on the
slot. The lock belongs to what was opened, not to a process: it travels with the message, stays while any descriptor or
mapping of it is left in any process, forked ones too, and goes with the last of them, however that ends.

Knows: those locks, mappings, the kernel's word that one was closed. Must not know: pools, messages, objects.
"""

from cpython.buffer cimport PyBUF_FORMAT, PyBUF_ND, PyBUF_STRIDES
from libc.errno cimport errno
from libc.stdint cimport int64_t

import os as _os

from .. import ProtocolViolation

cdef extern from *:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <stdint.h>
    #include <stdio.h>
    #include <sys/inotify.h>
    #include <sys/mman.h>
    #include <sys/stat.h>

    /* A lease of bytes of a memfd; -errno. */
    static int bt_lend(int memory, int64_t offset, int64_t size) {
        char name[32];
        struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = offset, .l_len = size};
        snprintf(name, sizeof name, "/proc/self/fd/%d", memory);
        int fd = open(name, O_RDONLY | O_CLOEXEC);
        if (fd < 0) return -errno;
        if (fcntl(fd, F_OFD_SETLK, &lock) < 0) {
            int error = errno;
            close(fd);
            return -error;
        }
        return fd;
    }

    /* Whether bytes of a memfd are lent to anybody; -errno. */
    static int bt_lent(int memory, int64_t offset, int64_t size) {
        struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = offset, .l_len = size};
        if (fcntl(memory, F_OFD_GETLK, &lock) < 0) return -errno;
        return lock.l_type != F_UNLCK;
    }

    /* Whether a descriptor from outside is memory of at least `end` bytes that cannot shrink under a mapping. */
    static int bt_parcel_sound(int fd, int64_t end) {
        struct stat st;
        int seals = fcntl(fd, F_GET_SEALS);
        return seals >= 0 && (seals & F_SEAL_SHRINK) && fstat(fd, &st) == 0 && st.st_size >= end;
    }

    static int bt_watch(int watch, int memory) {
        char name[32];
        snprintf(name, sizeof name, "/proc/self/fd/%d", memory);
        return inotify_add_watch(watch, name, IN_CLOSE) < 0 ? -errno : 0;
    }
    """
    int bt_lend(int memory, int64_t offset, int64_t size) nogil
    int bt_lent(int memory, int64_t offset, int64_t size) nogil
    int bt_parcel_sound(int fd, int64_t end) nogil
    int bt_watch(int watch, int memory) nogil
    int inotify_init1(int flags) nogil
    enum: IN_CLOEXEC, IN_NONBLOCK, PROT_READ, PROT_WRITE, MAP_PRIVATE
    void* mmap(void* address, size_t size, int protection, int flags, int fd, int64_t offset) nogil
    int munmap(void* address, size_t size) nogil
    void* MAP_FAILED

cdef char* BYTES_FORMAT = b"B"


cdef int refuse(int error, str what) except -1:
    raise OSError(error, f"{what}: {_os.strerror(error)}")


def lend(int memory, int64_t offset, int64_t size):
    """A lease of `size` bytes at `offset` of a memfd: a descriptor that the caller owns. Raises: OSError."""
    cdef int result = bt_lend(memory, offset, size)
    if result < 0:
        refuse(-result, "lending memory")
    return result


def lent(int memory, int64_t offset, int64_t size):
    """Whether anybody, anywhere, still has a lease of these bytes. Raises: OSError."""
    cdef int result = bt_lent(memory, offset, size)
    if result < 0:
        refuse(-result, "looking at a lease")
    return result == 1


def watch():
    """A descriptor that becomes readable when a lease of a watched memfd has ended. Raises: OSError (EMFILE)."""
    cdef int result = inotify_init1(IN_CLOEXEC | IN_NONBLOCK)
    if result < 0:
        refuse(errno, "watching leases")
    return result


def watch_memory(int watch, int memory):
    """Watch the leases of one more memfd. Raises: OSError (ENOSPC)."""
    cdef int result = bt_watch(watch, memory)
    if result < 0:
        refuse(-result, "watching leases")


cdef class Parcel:
    """Memory that was received: readable and writable, this process's own, and back with its lender when it dies.

    It is mapped privately: what is written stays here, and a forked child keeps what it inherits.
    """

    cdef void* base
    cdef Py_ssize_t size
    cdef Py_ssize_t stride

    def __cinit__(self, int fd, int64_t offset, int64_t size):
        """Map `size` bytes at `offset` of a lease, which may be closed then.

        Raises: ProtocolViolation (not such memory), OSError (ENOMEM).
        """
        cdef int64_t page = 4096
        self.base = NULL
        if size <= 0 or offset < 0 or offset % page or offset > (1 << 62) - size or \
                not bt_parcel_sound(fd, offset + size):
            raise ProtocolViolation(f"{size} bytes at {offset}: descriptor {fd} is no such memory", reason="parcel")
        self.base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, offset)
        if self.base == MAP_FAILED:
            self.base = NULL
            refuse(errno, f"mapping {size} bytes that were received")
        self.size = size
        self.stride = 1

    def __len__(self):
        return self.size

    def __getbuffer__(self, Py_buffer* view, int flags):
        view.buf = self.base
        view.len = self.size
        view.itemsize = 1
        view.readonly = 0
        view.ndim = 1
        view.format = BYTES_FORMAT if flags & PyBUF_FORMAT else NULL
        view.shape = &self.size if flags & PyBUF_ND else NULL
        view.strides = &self.stride if flags & PyBUF_STRIDES == PyBUF_STRIDES else NULL
        view.suboffsets = NULL
        view.internal = NULL
        view.obj = self

    def __dealloc__(self):
        if self.base != NULL:
            munmap(self.base, self.size)
