# What sealed.h and frame_cache.h say; there is nothing to compile.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from bulktransfer._native.kernel cimport bt_registry
from bulktransfer._native.ledger cimport bt_pool

cdef extern from "sealed.h" nogil:
    ctypedef struct bt_frame_cache:
        uint32_t generation
    ctypedef struct bt_frame_kept:
        int fd
        uint64_t length
    ctypedef struct bt_frames_full "bt_frames":
        bt_frame_cache* cache
        bt_frame_kept at[1]
    enum: BT_SENDING_ON_MIN
    enum: BT_SEALED_BEFORE, BT_SEALED_IN_PLACE, BT_SEALED_COPY
    bt_frame_cache* bt_frame_cache_new(bt_registry* registry)
    int bt_frames_begin(bt_pool* pool, bt_frame_cache* cache, int memory, int gives_back)
    void bt_frames_end(bt_pool* pool)
    int bt_frame_let_go(bt_pool* pool, uint32_t index)
    int bt_frame_plain(bt_pool* pool, uint32_t index)
    int bt_frame_furnish(bt_pool* pool, uint32_t index)
    void bt_frame_for_raw(bt_pool* pool, uint32_t index)
    int bt_sealing_pays(const bt_pool* pool, uint32_t index, uint64_t readers)
    int bt_frame_seal(bt_pool* pool, uint32_t index)
    int bt_frame_adopt(bt_pool* pool, uint32_t index, int fd, uint64_t length, int writable)
    int bt_frame_read(int fd, uint8_t* to, uint64_t length)
    int bt_frame_melt(bt_pool* pool, uint32_t index)
