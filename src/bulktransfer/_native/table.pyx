"""The table of buffer states, compiled: states.BUFFER_TABLE as a C array, made once.

Knows: the rows. Must not know: pools.
"""

from bulktransfer import states
from bulktransfer._native.ledger cimport BT_ACTS, BT_STATES, bt_row, bt_table

cdef bt_table the_table


cdef const bt_table* table() noexcept nogil:
    return &the_table


cdef int compile_table() except -1:
    """states.BUFFER_TABLE as a C array; two rows for one case would be a mistake in the table."""
    cdef int state, act, out, in_
    cdef bt_row* cell
    for state in range(<int> BT_STATES):
        for act in range(<int> BT_ACTS):
            for out in range(3):
                for in_ in range(3):
                    the_table.rows[state][act][out][in_].next = 0xff
    if len(states.BufferAct) != BT_ACTS or len(states.BufferState) != BT_STATES:
        raise ImportError("states.py and ledger.h name different acts or states")
    for row in states.BUFFER_TABLE:
        for out in range(3):
            for in_ in range(3):
                if not counts_match(row.when, out, in_) or out + row.out < 0 or in_ + row.in_ < 0:
                    continue
                cell = &the_table.rows[row.state.value][row.act.value][out][in_]
                if cell.next != 0xff:
                    raise ImportError(f"two transitions for one case: {row}")
                cell.next = row.next.value
                cell.out = row.out
                cell.in_ = row.in_
    for state in range(<int> BT_STATES):
        for act in range(<int> BT_ACTS):
            cell = &the_table.rows[state][act][0][0]
            the_table.plain[act][state] = cell.next if cell.out == 0 and cell.in_ == 0 else 0xff
    return 0


cdef bint counts_match(when, int out, int in_) except -1:
    W = states.When
    return {
        W.ALWAYS: True, W.OUT_MANY: out == 2, W.OUT_LAST: out == 1, W.OUT_NONE: out == 0,
        W.OUT_NONE_IN_MANY: out == 0 and in_ == 2, W.OUT_NONE_IN_LAST: out == 0 and in_ == 1,
    }[when]

compile_table()
