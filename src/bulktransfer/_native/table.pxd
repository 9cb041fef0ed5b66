from bulktransfer._native.ledger cimport bt_table

cdef const bt_table* table() noexcept nogil
