"""Rules that can be broken on purpose, to see that the explorer notices.

Knows: their names, and what each leaves out. Must not know: how a rule is written; each asks `Rules.mistakes`.
"""

RELEASE_WITH_COPIES_OUT = "release with copies out"  # rule 6: release needs out = 0
MOVE_WITH_COPIES_OUT = "move with copies out"  # rule 5: move and pass need READ_WRITE
COPY_WITH_COPIES_OUT_ACCEPTED = "cycle accepted"  # rule 6: a domain refuses a copy of which it has copies out
DETACHED_REUSED = "detached slot reused"  # rule 16: memory that somebody may still hold is never reused
ACCEPTED_TWICE = "accepted twice"  # rule 9: each direction is a FIFO, an entry is taken once
NOT_ROLLED_BACK = "refusal not rolled back"  # rule 8: what the peer's library refuses is rolled back
REMOVED_WHILE_BUSY = "removed while busy"  # rule 14: remove is refused while a buffer has not come home
DROPPED_WHILE_CONNECTED = "dropped while connected"  # section 3: drop, after its channel closed

# Not seeded: what rule 16 and ledger.h say at present. docs/semantics.md shows what goes wrong.
ASSIGNER_ALONE = "assigner alone reclaims"  # rule 16 as written: also where the allocator was given its own pool
LEASES_FOLLOW_ASSIGNMENTS = "leases go down only"  # rule 16 as written: passed on with each further assignment, no more
JUDGED_BY_LAST_WAY = "judged by the last way"  # ledger.h: an arrival that is here, last by this channel: a violation

SEEDED = (
    RELEASE_WITH_COPIES_OUT,
    MOVE_WITH_COPIES_OUT,
    COPY_WITH_COPIES_OUT_ACCEPTED,
    DETACHED_REUSED,
    ACCEPTED_TWICE,
    NOT_ROLLED_BACK,
    REMOVED_WHILE_BUSY,
    DROPPED_WHILE_CONNECTED,
)
ALL = (*SEEDED, ASSIGNER_ALONE, LEASES_FOLLOW_ASSIGNMENTS, JUDGED_BY_LAST_WAY)
