# What the headers of links to other machines say; there is nothing to compile.

from libc.stdint cimport uint16_t, uint32_t, uint64_t, uint8_t

from bulktransfer._native.carrier cimport bt_link, timespec
from bulktransfer._native.kernel cimport bt_hold, bt_registry
from bulktransfer._native.ledger cimport bt_slot

cdef extern from * nogil:
    """
    #include "wait.h"
    #include "faropen.h"
    #include "unixstream.h"
    #define BT_KICKED_FAR(k) ((const _Atomic int *)(k))
    #define BT_FAR_OVER(far) ((int)atomic_load_explicit(&(far)->over, memory_order_acquire))
    #define BT_FAR_IS_DUE(far) ((int)atomic_load_explicit(&(far)->due, memory_order_relaxed))
    """
    enum: BT_FRAME_SIZE
    ctypedef struct bt_frame:
        uint8_t kind
        uint8_t flags
        uint16_t meta_size
        uint32_t slot
        uint32_t index
        uint32_t extra
        uint64_t length
        uint64_t serial
        uint64_t consumed
        uint64_t refused
    void bt_frame_pack(uint8_t* to, const bt_frame* f)
    void bt_frame_unpack(bt_frame* f, const uint8_t* source)
    const char* bt_frame_fault(const bt_frame* f)
    cdef struct iovec:
        void* iov_base
        size_t iov_len
    ctypedef struct bt_stream:
        ssize_t (*read)(void*, iovec*, int) noexcept nogil
        ssize_t (*write)(void*, iovec*, int) noexcept nogil
        ssize_t (*skip)(void*, uint64_t) noexcept nogil
        int (*push)(void*) noexcept nogil
        void (*finish)(void*) noexcept nogil
        void (*close)(void*) noexcept nogil
    const bt_stream bt_tcp_stream
    const bt_stream bt_unix_stream
    bint bt_is_unix(int sock)
    ssize_t bt_unix_receive(bt_registry* r, int sock, iovec* parts, int count)
    void bt_tcp_finish(void* self)
    ctypedef struct bt_landing:
        uint8_t* base
        uint64_t size
        uint32_t count
        uint32_t channel
        uint32_t peer
        uint8_t judged_home
        bt_slot* slots
        uint64_t* taken
        bt_hold* hold
        int lease
    ctypedef struct bt_far_message_t "bt_far_message":
        uint32_t size
        uint8_t data[1]
    ctypedef struct bt_far_queue:
        pass
    ctypedef struct bt_far_take:
        bt_far_queue inbox
        const char* violation
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t* m, void* attributes)
    int pthread_mutex_lock(pthread_mutex_t* m)
    int pthread_mutex_unlock(pthread_mutex_t* m)
    int pthread_mutex_destroy(pthread_mutex_t* m)
    ctypedef struct bt_far:
        int fd
        uint32_t due
        uint64_t sent_bytes
        uint64_t taken_bytes
        uint64_t sent_calls
        uint64_t taken_calls
        int poll_fd
        int signal_fd
        pthread_mutex_t inbox_lock
        bt_far_take take
    ctypedef struct bt_helper:
        uint32_t generation
    bt_helper* bt_helper_new()
    int bt_helper_enlist(bt_helper* h, bt_registry* r, bt_link* link)
    void bt_helper_leave(bt_helper* h, bt_link* link)
    uint32_t bt_helper_finish(bt_helper* h, const timespec* deadline)
    void bt_helper_touch(bt_helper* h, bt_far* far)
    void bt_helper_seen(bt_far* far)
    void bt_helper_signal(bt_far* far)
    int bt_far_open(bt_link* link, int fd, const bt_stream* stream, void* self, uint32_t meta_limit)
    void bt_far_stop(bt_far* far)
    void bt_far_go(bt_far* far)
    int bt_far_add_landing(bt_far* far, uint32_t slot, bt_landing* landing)
    void bt_far_drop_landing(bt_link* link, uint32_t slot)
    void bt_far_retire(bt_link* link)
    void bt_far_flush(bt_link* link)
    int bt_far_is_unsent(bt_link* link, uint32_t slot, uint32_t index)
    int bt_far_fetch(bt_link* link, int all)
    int bt_far_sleep(bt_link* link, bt_helper* h, int bed, int timeout_ms, int outcomes)
    int bt_far_spin(bt_link* link, bt_helper* h, int outcomes, uint64_t budget_ns, const void* kicked)
    const void* BT_KICKED_FAR(int* kicked)
    bt_far_message_t* bt_far_get(bt_far_queue* queue)
    bt_landing* bt_far_landing(bt_far* far, uint32_t slot)
    int bt_bit_claim(uint64_t* bits, uint32_t index)
    void bt_bit_let_go(uint64_t* bits, uint32_t index)
    enum: BT_LANDED, BT_DRAINED
    int bt_bit_is_claimed(const uint64_t* bits, uint32_t index)
    int BT_FAR_OVER(bt_far* far)
    int BT_FAR_IS_DUE(bt_far* far)
    enum: BT_FETCH_NEWS, BT_FETCH_DRY
