# What ledger.h says; there is nothing to compile.

from libc.stdint cimport int8_t, uint8_t, uint16_t, uint32_t, uint64_t

from bulktransfer._native.kernel cimport bt_twin

cdef extern from "ledger.h" nogil:
    ctypedef struct bt_frames "struct bt_frames":
        pass
    enum bt_state: BT_INVALID, BT_READ_ONLY, BT_READ_ONLY_OWNED, BT_READ_WRITE, BT_STATES
    enum bt_act:
        BT_A_MOVE, BT_A_PASS, BT_A_COPY, BT_A_RELEASE, BT_A_FULL_COPY, BT_A_MOVE_RECEIVED, BT_A_BUFFER_RECEIVED
        BT_A_COPY_RECEIVED, BT_A_COPY_RELEASED, BT_A_MOVE_REFUSED, BT_A_COPY_REFUSED, BT_A_RECLAIMED, BT_A_DROP
        BT_ACTS
    enum bt_flag: BT_FREE, BT_GIVE_BACK, BT_QUEUED
    enum bt_holds: BT_OWN, BT_BARE, BT_PLAIN, BT_FRESH, BT_SEALED
    enum bt_verdict:
        BT_OK, BT_NOT_ALLOCATED, BT_NOT_PRESENT, BT_NOT_OWNED, BT_COPIES_OUT, BT_NOT_A_COPY, BT_ALREADY_COPIED
        BT_VIEWS_LIVE, BT_SAME_DOMAIN, BT_GOING_BACK, BT_STILL_CONNECTED, BT_REFUSED, BT_VIOLATION
    enum bt_standing: BT_ABSENT, BT_PENDING, BT_ACTIVE, BT_REMOVING
    ctypedef struct bt_slot:
        uint8_t state
        uint8_t flags
        uint16_t out
        uint16_t in_ "in"
        uint8_t spare
        uint8_t guard
        uint32_t views
        uint32_t writers
        uint32_t via
        uint32_t left
        uint8_t holds
        uint8_t touched
        uint8_t raw
        uint64_t sent_at
        uint64_t length
    ctypedef struct bt_pool:
        bt_slot* slots
        uint32_t count
        uint64_t size
        uint8_t shared
        uint8_t home
        uint8_t guarded
        uint8_t apart
        uint8_t solid
        uint8_t* base
        bt_twin* twin
        bt_frames* frames
        uint64_t* taken
        uint64_t* fresh
    ctypedef struct bt_assignment:
        bt_pool* pool
        uint64_t* out_copies
        uint64_t* in_copies
        uint64_t last_position
        uint32_t channel
        uint32_t slot
        uint32_t peer
        uint32_t copy_count
        uint32_t held_count
        uint8_t standing
        uint8_t mine
        uint8_t same_domain
        const uint8_t* window
        uint8_t far
    ctypedef struct bt_row:
        uint8_t next
        int8_t out
        int8_t in_ "in"
    ctypedef struct bt_table:
        bt_row rows[4][13][3][3]
        uint8_t plain[13][4]
    bint bt_may_land(const bt_slot* s)
    const bt_row* bt_lookup(const bt_table* t, const bt_slot* s, bt_act act)
    void bt_step(bt_slot* s, const bt_row* row)
    size_t bt_bit_words(uint32_t count)
    int bt_bit(const uint64_t* bits, uint32_t i)
    bt_verdict bt_may_send(const bt_table* t, const bt_assignment* a, uint32_t index, bt_act act)
    void bt_sent(const bt_table* t, bt_assignment* a, uint32_t index, bt_act act, uint64_t position)
    bt_verdict bt_judge_owner(const bt_table* t, const bt_assignment* a, uint32_t index, bt_act act)
    bt_verdict bt_judge_copy(const bt_table* t, const bt_assignment* a, uint32_t index)
    bt_verdict bt_arrived_owner(const bt_table* t, bt_assignment* a, uint32_t index, uint64_t length, bt_act act)
    bt_verdict bt_arrived_copy(const bt_table* t, bt_assignment* a, uint32_t index, uint64_t length)
    bt_verdict bt_copy_back(const bt_table* t, bt_assignment* a, uint32_t index, bt_act act)
    bt_verdict bt_owner_back(const bt_table* t, bt_assignment* a, uint32_t index, uint64_t position)
    int bt_is_away(const bt_assignment* a, uint32_t index)
    int bt_is_guest(const bt_assignment* a, uint32_t index)
    int bt_is_given(const bt_assignment* a, uint32_t index)
    int bt_is_outstanding(const bt_assignment* a, uint32_t index)
    int bt_reclaims(const bt_assignment* a)
    void bt_bit_clear(uint64_t* bits, uint32_t i)
    void bt_drop(const bt_table* t, bt_slot* s)
    int bt_may_remove(const bt_assignment* a, uint64_t consumed)
    int bt_reclaim(const bt_table* t, bt_assignment* a, uint32_t index, uint32_t living)

cdef extern from "guard.h" nogil:
    int bt_guard_begin(bt_pool* pool)
    int bt_guard_end(bt_pool* pool)
    int bt_guard_set(bt_pool* pool, uint32_t index, uint8_t state)
    int bt_guard_for(const bt_table* t, bt_pool* pool, uint32_t index, bt_act act)
    int bt_guarded_reclaim(const bt_table* t, bt_assignment* a, uint32_t index, uint32_t living)
