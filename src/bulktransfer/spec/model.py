"""The report's formal model (I-5.1, Algorithms 1 to 10), executable, with the amendments of design section 4.

Knows: where each algorithm is written. Must not know: anything itself; this is the list of contents.

Every operation is a pure function from a state to a state, or to `Refused` with the name of the error that the
library raises. The environment's steps (deliver, die, reclaim) are operations too.

    Algorithm 1       state.State                Algorithm 7    move
    Algorithm 2       invariants.broken          Algorithm 8    pass_
    Algorithm 3, 4    create, bind               Algorithm 9    copy
    Algorithm 5       pool_create                Algorithm 10   release
    Algorithm 6       assign, then deliver       I-5.1.11       full_copy
"""

from __future__ import annotations

from .delivery import ACCEPTED, REFUSED, VIOLATION, deliver, detached, judge, outcome, run_to_rest, waiting
from .ending import close, destroy, die, drop, hung_up, reclaim
from .setup import agree_roles, allocate, assign, bind, create, free, pool_create, present, remove
from .state import (
    INVALID,
    READ_ONLY,
    READ_ONLY_OWNED,
    READ_WRITE,
    SINK,
    SOURCE,
    Refused,
    Rules,
    State,
    View,
    begin,
)
from .transfer import copy, full_copy, move, pass_, release, write

__all__ = [
    # what there is
    "State", "View", "Rules", "Refused", "SOURCE", "SINK", "INVALID", "READ_ONLY", "READ_ONLY_OWNED", "READ_WRITE",
    "begin",
    # set-up
    "create", "bind", "agree_roles", "pool_create", "allocate", "free", "assign", "remove", "present",
    # transfers
    "move", "pass_", "copy", "release", "full_copy", "write",
    # delivery
    "deliver", "judge", "waiting", "run_to_rest", "outcome", "detached", "ACCEPTED", "REFUSED", "VIOLATION",
    # ends
    "destroy", "close", "die", "drop", "reclaim", "hung_up",
]  # fmt: skip
