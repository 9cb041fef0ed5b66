"""Pages of several memories side by side, to be read as one.

Knows: mappings, and that whoever looks at one keeps it. Must not know: buffers, or which pages belong together.
"""

from cpython.buffer cimport PyBUF_FORMAT, PyBUF_ND, PyBUF_SIMPLE, PyBUF_STRIDES, PyBUF_WRITABLE, PyObject_GetBuffer
from cpython.buffer cimport PyBuffer_Release
from libc.errno cimport errno
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

import os as _os

from bulktransfer._native.kernel cimport Descriptor, bt_registry_add_range, bt_registry_unmap, registry

cdef extern from "<sys/mman.h>" nogil:
    enum: PROT_NONE, PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_SHARED, MAP_ANONYMOUS, MAP_NORESERVE, MAP_FIXED
    void* mmap(void* address, size_t size, int protection, int flags, int fd, long offset)
    void* MAP_FAILED

cdef char* BYTES_FORMAT = b"B"


cdef class Span:
    """One contiguous, read-only view of what was laid into it; a context manager that lets go at the end.

    copied: whether it is memory of its own, with a copy, instead of the pages themselves.
    """

    cdef char* base
    cdef size_t room
    cdef uint32_t generation
    cdef readonly size_t size
    cdef readonly bint copied
    cdef readonly uint32_t exports
    cdef list kept
    cdef Py_ssize_t shape[1]

    def __cinit__(self, size_t size, *, bint copied):
        """Addresses for `size` bytes, with nothing there yet. Raises: OSError, MemoryError."""
        cdef int protection = PROT_READ | PROT_WRITE if copied else PROT_NONE
        self.room = max(4096, (size + 4095) & ~(<size_t> 4095))
        self.base = <char*> mmap(NULL, self.room, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        if self.base == MAP_FAILED:
            self.base = NULL
            raise OSError(errno, f"mapping {size} bytes: {_os.strerror(errno)}")
        self.size = size
        self.copied = copied
        self.generation = registry().generation
        self.kept = []
        if bt_registry_add_range(registry(), self.base, self.room) < 0:
            bt_registry_unmap(registry(), self.base, self.room)
            self.base = NULL
            raise MemoryError("no memory to keep a mapping")

    def lay(self, size_t at, Descriptor source not None, uint64_t offset, size_t size):
        """Have the pages of `source` from `offset` on appear at `at`. Raises: OSError, ValueError (not whole pages)."""
        cdef size_t whole = (size + 4095) & ~(<size_t> 4095)
        if self.copied or self.base == NULL or at & 4095 or offset & 4095 or at > self.room or whole > self.room - at:
            raise ValueError(f"laying {size} bytes from {offset} at {at} of a span of {self.size}")
        if mmap(self.base + at, whole, PROT_READ, MAP_SHARED | MAP_FIXED, source.fileno(), offset) == MAP_FAILED:
            raise OSError(errno, f"mapping {size} bytes side by side: {_os.strerror(errno)}")

    def fill(self, size_t at, data):
        """Copy `data` to `at`. Raises: ValueError (no room)."""
        cdef Py_buffer source
        PyObject_GetBuffer(data, &source, PyBUF_SIMPLE)
        try:
            if not self.copied or self.base == NULL or at > self.size or <size_t> source.len > self.size - at:
                raise ValueError(f"filling {source.len} bytes at {at} of a span of {self.size}")
            with nogil:
                memcpy(self.base + at, source.buf, source.len)
        finally:
            PyBuffer_Release(&source)

    def keep(self, memoryview view not None):
        """Release `view` when this is closed."""
        self.kept.append(view)

    def close(self):
        """Let go of everything; idempotent. Raises: BufferError (somebody still looks at it)."""
        if self.exports:
            live = "1 view is live" if self.exports == 1 else f"{self.exports} views are live"
            raise BufferError(f"closing a span of {self.size} bytes: {live}")
        if self.base != NULL and self.generation == registry().generation:
            bt_registry_unmap(registry(), self.base, self.room)
        self.base = NULL
        for view in self.kept:
            view.release()
        self.kept.clear()

    def __dealloc__(self):
        if self.base != NULL and self.generation == registry().generation:
            bt_registry_unmap(registry(), self.base, self.room)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def __len__(self):
        return self.size

    def __repr__(self):
        what = "closed" if self.base == NULL else "a copy" if self.copied else "mapped"
        return f"<Span of {self.size} bytes: {what}>"

    def __getbuffer__(self, Py_buffer* view, int flags):
        if self.base == NULL:
            raise BufferError("a view of a span that is closed")
        if flags & PyBUF_WRITABLE:
            raise BufferError("a writable view of a span: it is for reading")
        self.shape[0] = self.size
        view.buf = self.base
        view.len = self.size
        view.itemsize = 1
        view.readonly = 1
        view.ndim = 1
        view.format = BYTES_FORMAT if flags & PyBUF_FORMAT else NULL
        view.shape = self.shape if flags & PyBUF_ND else NULL
        view.strides = &view.itemsize if flags & PyBUF_STRIDES == PyBUF_STRIDES else NULL
        view.suboffsets = NULL
        view.internal = NULL
        view.obj = self
        self.exports += 1

    def __releasebuffer__(self, Py_buffer* view):
        self.exports -= 1
