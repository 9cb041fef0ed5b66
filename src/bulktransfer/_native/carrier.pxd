# What the headers of rings, links and waiting say; there is nothing to compile.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from bulktransfer._native.kernel cimport bt_registry, bt_twin
from bulktransfer._native.ledger cimport bt_assignment

cdef extern from * nogil:
    """
    #include "busy.h"
    #include "carrier.h"
    #define BT_KICKED(k) ((const _Atomic int *)(k))
    #define BT_LINK_MESSAGE(l, data, size) ((l)->ways->message(l, data, size))
    #define BT_SLEEP_DATA(l) (&(l)->tx.own->sleep_data)
    """
    enum: BT_FRAMED
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
    ctypedef struct bt_carrier:
        uint32_t generation
    ctypedef struct bt_tx:
        void* own
        void* peer
        uint64_t tail
        uint64_t consumed
    ctypedef struct bt_rx:
        uint64_t head
        uint64_t published
    ctypedef struct bt_stage_tx:
        uint64_t size
        uint64_t promised
    ctypedef struct bt_arrival:
        bt_entry entry
        bt_twin* twin
        int refused
    ctypedef struct bt_arrivals:
        uint64_t due
        uint32_t open
    ctypedef struct bt_link:
        bt_tx tx
        bt_rx rx
        bt_registry* registry
        uint32_t generation
        int sock
        uint64_t issued
        uint64_t rings
        bt_stage_tx out
        bt_arrivals* in_ "in"
        void* far
    ctypedef struct bt_message:
        uint8_t data[1]
        int fds[1]
        int fd_count
        int truncated
    cdef struct timespec:
        long tv_sec
        long tv_nsec
    bt_carrier* bt_carrier_new()
    int bt_carrier_take(bt_carrier* c, bt_registry* r, bt_link* link)
    uint32_t bt_carrier_finish(bt_carrier* c, const timespec* deadline)
    bt_link* bt_link_new(bt_registry* r, int sock)
    void bt_link_open(
        bt_link* l, void* own, size_t own_size, void* peer, size_t peer_size, uint32_t slots, uint32_t meta)
    void bt_link_release(bt_link* link)
    void bt_link_forget(bt_link* link)
    void bt_link_retain(bt_link* link)
    int bt_link_has(bt_link* link)
    void bt_link_end(bt_link* link)
    int bt_link_direct(bt_link* link, uint32_t count)
    int bt_link_make_room(bt_link* link, uint32_t count)
    void bt_link_append(bt_link* link, const bt_entry* entry, uint8_t* data, size_t size, int* fds, int fd_count)
    int bt_link_carry(bt_link* link)
    void bt_link_stage(bt_link* link, uint64_t size, uint32_t slots, uint32_t meta)
    void bt_link_append_contents(
        bt_link* link, const bt_entry* entry, uint8_t* meta, const uint8_t* contents, bt_twin* twin)
    int* bt_link_keep_frame(bt_link* link, int fd)
    void bt_link_drop_frame(bt_link* link, int* one)
    void bt_link_append_frame(bt_link* link, const bt_entry* entry, uint8_t* meta, int* one, bt_twin* twin)
    int bt_frame_send(int sock, uint64_t serial, int fd)
    bint bt_is_frame_message(const bt_message* m, int size, uint64_t* serial)
    uint64_t bt_frames_granted(const bt_link* link)
    void bt_grant_frames(bt_link* link, uint64_t count)
    uint16_t bt_rx_flags(const bt_rx* rx)
    int bt_link_holds(bt_link* link, const bt_twin* twin, uint32_t index)
    uint64_t bt_stage_span(uint64_t length)
    int bt_stage_fits(bt_stage_tx* t, uint64_t length)
    uint64_t bt_stage_fill(bt_stage_tx* t, const uint8_t* data, uint64_t done, uint64_t length)
    bt_arrivals* bt_arrivals_new(bt_link* link, uint64_t stage_size, uint32_t slots, uint32_t meta)
    void bt_arrivals_lock(bt_arrivals* i)
    int bt_arrivals_trylock(bt_arrivals* i)
    void bt_arrivals_unlock(bt_arrivals* i)
    int bt_arrivals_enter(bt_arrivals* i, uint32_t slot, bt_assignment* a)
    bt_arrival* bt_arrivals_head(bt_arrivals* i, const bt_rx* rx)
    int bt_arrivals_whole(const bt_arrivals* i, const bt_rx* rx)
    void bt_arrivals_open(bt_arrivals* i, bt_twin* twin, uint8_t* target, const uint8_t* window, int refused)
    int bt_arrivals_pull(bt_link* link, uint32_t pieces)
    void bt_arrivals_passed(bt_arrivals* i, const bt_rx* rx)
    int bt_arrivals_quiet(bt_link* link)
    void bt_arrivals_spoil(bt_link* link, const bt_twin* twin, uint32_t index)
    int bt_carry_busily(bt_link* link, int yields)
    int bt_pull_busily(bt_link* link, int yields)
    int bt_link_await(bt_link* link)
    void bt_link_consumed(bt_link* link)
    void bt_link_refused(bt_link* link, uint64_t count)
    uint64_t bt_link_refusals(const bt_link* link)
    void bt_ring_data(bt_link* link)
    void bt_tx_fill(bt_tx* tx, uint32_t ahead, const bt_entry* entry, const uint8_t* meta)
    void bt_tx_publish(bt_tx* tx, uint32_t count)
    int bt_link_refresh(bt_link* link, uint64_t* consumed)
    uint32_t bt_link_asked(const bt_link* link)
    void bt_carrier_release(bt_carrier* c, bt_link* link)
    const uint8_t* bt_rx_meta(const bt_rx* rx)
    int64_t bt_rx_look(bt_rx* rx)
    int64_t bt_rx_look_again(bt_rx* rx)
    int bt_rx_refusals(const bt_rx* rx, uint32_t slot, uint32_t* all)
    int bt_rx_take(bt_rx* rx, bt_entry* entry, uint8_t* meta, uint32_t limit)
    void bt_sleep_begin(void* counter)
    void bt_sleep_end(void* counter)
    int bt_message_receive(int sock, bt_message* m)
    int bt_message_send(int sock, const void* data, size_t size, const int* fds, int fd_count)
    int bt_spin_briefly(const bt_link* link, int outcomes)
    int bt_spin(const bt_link* link, int outcomes, uint64_t budget, int yields, const void* kicked)
    uint64_t bt_now_ns()
    enum: BT_BY_SOCKET, BT_BY_KICK, BT_BY_DOMAIN, BT_BY_DEATH, BT_BY_HANG_UP
    int bt_bed_add(int bed, int fd, int what, int shared)
    int bt_bed_sleep(int bed, int timeout_ms)
    cdef struct pollfd:
        int fd
        short events
        short revents
    enum: POLLIN, POLLHUP, POLLERR
    int c_poll "poll"(pollfd* fds, unsigned long count, int timeout_ms)
    void* BT_KICKED(int* kicked)
    void* BT_SLEEP_DATA(bt_link* link)
    int BT_LINK_MESSAGE(bt_link* link, const void* data, size_t size)
