# What hot.h says; there is nothing to compile.

from libc.stdint cimport uint8_t, uint32_t

from bulktransfer._native.carrier cimport bt_entry, bt_link, bt_rx
from bulktransfer._native.ledger cimport bt_act, bt_assignment, bt_table

cdef extern from "hot.h" nogil:
    bint bt_ordinary(const bt_assignment* a)
    bint bt_fill_ahead(
        bt_link* link, const bt_table* t, bt_assignment* a, uint32_t index, bt_act act, uint32_t ahead)
    void bt_unfill(bt_assignment* a, uint32_t index)
    void bt_publish_filled(bt_link* link, bt_assignment* a, uint32_t count)
    bint bt_send_at_once(
        bt_link* link, const bt_table* t, bt_assignment* a, uint32_t index, bt_act act, const uint8_t* meta,
        uint32_t meta_size)
    bint bt_take_at_once(
        bt_rx* rx, const bt_table* t, bt_assignment* a, bt_act act, uint32_t meta_limit, bt_entry* entry)
