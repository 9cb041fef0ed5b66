"""Handing memory to array libraries through DLPack, without a copy.

Knows: DLPack (dlpack.h), the buffer protocol. Must not know: buffers, pools or their states: an export holds a view of
whatever offers one, and so counts as a view.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_Fetch, PyErr_Restore
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid, PyCapsule_New
from cpython.ref cimport PyObject
from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint64_t, uint8_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

import operator as _operator

cdef extern from "Python.h":
    bint Py_IsInitialized() nogil

cdef extern from "dlpack.h":
    enum:
        BT_DL_CPU
        BT_DL_UINT
        BT_DL_READ_ONLY
        BT_DL_IS_COPIED

    ctypedef struct bt_dl_version:
        uint32_t major
        uint32_t minor

    ctypedef struct bt_dl_tensor:
        void* data
        int32_t device_type
        int32_t device_id
        int32_t ndim
        uint8_t code
        uint8_t bits
        uint16_t lanes
        int64_t* shape
        int64_t* strides
        uint64_t byte_offset

    ctypedef struct bt_dl_legacy:
        bt_dl_tensor tensor
        void* context
        void (*deleter)(bt_dl_legacy*) noexcept nogil

    ctypedef struct bt_dl_versioned:
        bt_dl_version version
        void* context
        void (*deleter)(bt_dl_versioned*) noexcept nogil
        uint64_t flags
        bt_dl_tensor tensor

cdef struct Export:
    Py_buffer view  # released already where a copy was asked for
    bint viewed
    void* copied
    int64_t shape
    int64_t stride
    bt_dl_legacy legacy
    bt_dl_versioned versioned

CPU = (BT_DL_CPU, 0)
cdef char* LEGACY = b"dltensor"
cdef char* VERSIONED = b"dltensor_versioned"


cdef void let_go(Export* export) noexcept with gil:
    """The consumer is done. The view dies as any other does: its count falls, a pending return goes; no user code."""
    cdef PyObject* kind = NULL
    cdef PyObject* value = NULL
    cdef PyObject* trace = NULL
    PyErr_Fetch(&kind, &value, &trace)  # a consumer may be on its way out of an error
    if export.viewed:
        PyBuffer_Release(&export.view)
    PyErr_Restore(kind, value, trace)
    free(export.copied)
    free(export)


cdef void delete_legacy(bt_dl_legacy* managed) noexcept nogil:
    """Called from any thread, with or without the GIL; after the interpreter is gone there is nothing to count."""
    if Py_IsInitialized():
        let_go(<Export*> managed.context)


cdef void delete_versioned(bt_dl_versioned* managed) noexcept nogil:
    """The same, of the versioned form."""
    if Py_IsInitialized():
        let_go(<Export*> managed.context)


cdef void drop_capsule(object capsule) noexcept:
    """A capsule that nobody consumed."""
    if PyCapsule_IsValid(capsule, LEGACY):
        delete_legacy(<bt_dl_legacy*> PyCapsule_GetPointer(capsule, LEGACY))
    elif PyCapsule_IsValid(capsule, VERSIONED):
        delete_versioned(<bt_dl_versioned*> PyCapsule_GetPointer(capsule, VERSIONED))


cdef void describe(Export* export, bt_dl_tensor* tensor, void* data, int64_t size) noexcept:
    """One dimension of bytes."""
    export.shape = size
    export.stride = 1
    tensor.data = data
    tensor.device_type = BT_DL_CPU
    tensor.device_id = 0
    tensor.ndim = 1
    tensor.code = BT_DL_UINT
    tensor.bits = 8
    tensor.lanes = 1
    tensor.shape = &export.shape
    tensor.strides = &export.stride
    tensor.byte_offset = 0


cdef int judge(object stream, object max_version, object dl_device) except -1:
    """Raise what cannot be met; whether the versioned form may be given."""
    if stream is not None:
        raise BufferError(f"stream={stream!r}: memory of the CPU has none")
    if dl_device is not None and tuple(dl_device) != CPU:
        raise BufferError(f"dl_device={dl_device!r}: the memory is the CPU's, {CPU}")
    if max_version is None:
        return 0
    major, _ = max_version
    return _operator.index(major) >= 1


def export_bytes(thing, stream, max_version, dl_device, copy):
    """A capsule with the bytes of `thing`, which counts as a view of it while it or its consumer lives.

    max_version: the consumer's; from (1, 0) on read-only memory is flagged, the older form cannot say it.
    copy: True copies; False and None never do.
    Raises: BufferError (read-only in the older form; another device; a stream), MemoryError, and as a view of `thing`.
    """
    cdef bint versioned = judge(stream, max_version, dl_device)
    cdef Export* export = <Export*> calloc(1, sizeof(Export))
    cdef bint readonly, wanted
    cdef void* data
    cdef int64_t size
    if export == NULL:
        raise MemoryError("no memory for an export")
    try:
        wanted = bool(copy)
        PyObject_GetBuffer(thing, &export.view, PyBUF_SIMPLE)
        export.viewed = True
        data = export.view.buf
        size = export.view.len
        readonly = export.view.readonly and not wanted
        if readonly and not versioned:
            raise BufferError(f"DLPack of {thing!r}: it is read-only, which the form without a version cannot say")
        if wanted:
            export.copied = malloc(size if size else 1)
            if export.copied == NULL:
                raise MemoryError(f"no memory for a copy of {size} bytes")
            memcpy(export.copied, data, size)
            data = export.copied
            PyBuffer_Release(&export.view)
            export.viewed = False
        if not versioned:
            describe(export, &export.legacy.tensor, data, size)
            export.legacy.context = export
            export.legacy.deleter = delete_legacy
            return PyCapsule_New(&export.legacy, LEGACY, drop_capsule)
        describe(export, &export.versioned.tensor, data, size)
        export.versioned.version.major = 1
        export.versioned.version.minor = 0
        export.versioned.context = export
        export.versioned.deleter = delete_versioned
        export.versioned.flags = (BT_DL_READ_ONLY if readonly else 0) | (BT_DL_IS_COPIED if wanted else 0)
        return PyCapsule_New(&export.versioned, VERSIONED, drop_capsule)
    except BaseException:
        let_go(export)
        raise
