"""Promises of the tables of states.py: they say what the design says, and what they say is what happens.

A rig of four domains brings a buffer into every state that honest domains can reach, and does every act to it
there. What only a peer that breaks rules can bring about is tested with the hostile peers.
"""

from __future__ import annotations

import contextlib
import itertools

import pytest

import bulktransfer as bulk
from bulktransfer import BufferState, ChannelState, EventKind, Role
from bulktransfer.states import (
    BUFFER_TABLE,
    CHANNEL_TABLE,
    BufferAct,
    ChannelAct,
    Direction,
    When,
    agree_roles,
    step_channel,
)
from worlds import (
    INVALID,
    OWNED_COPIED,
    PATIENCE_S,
    READ_ONLY,
    READ_WRITE,
    World,
    ledger,
    nothing_comes,
    take,
    unchanged,
    until_the_end,
)

HOLDS = {
    When.ALWAYS: lambda out, in_: True,
    When.OUT_MANY: lambda out, in_: out > 1,
    When.OUT_LAST: lambda out, in_: out == 1,
    When.OUT_NONE: lambda out, in_: out == 0,
    When.OUT_NONE_IN_MANY: lambda out, in_: out == 0 and in_ > 1,
    When.OUT_NONE_IN_LAST: lambda out, in_: out == 0 and in_ == 1,
}


def row_for(state, act, out, in_):
    """The one row of the table for a case, or None."""
    rows = [r for r in BUFFER_TABLE if r.state is state and r.act is act and HOLDS[r.when](out, in_)]
    rows = [r for r in rows if out + r.out >= 0 and in_ + r.in_ >= 0]
    assert len(rows) <= 1, f"two rows for one case: {rows}"
    return rows[0] if rows else None


# -- the tables themselves -----------------------------------------------------------------------------------------


def test_no_case_has_two_rows():
    for state, act, out, in_ in itertools.product(BufferState, BufferAct, range(4), range(4)):
        row_for(state, act, out, in_)


def test_every_row_leads_to_counts_that_its_next_state_can_have():
    for row in BUFFER_TABLE:
        for out, in_ in itertools.product(range(4), range(4)):
            if not possible(row.state, out, in_) or not HOLDS[row.when](out, in_) or row.act is BufferAct.DROP:
                continue
            if row.act in (BufferAct.COPY_RELEASED, BufferAct.COPY_REFUSED) and out == 0:
                continue  # nothing was sent that could come back
            assert possible(row.next, out + row.out, in_ + row.in_), (row, out, in_)


def possible(state, out, in_):
    """What the counts can be in a state (design section 3)."""
    return {
        INVALID: out == 0 and in_ == 0,
        READ_WRITE: out == 0 and in_ == 0,
        OWNED_COPIED: out > 0 and in_ == 0,
        READ_ONLY: in_ > 0,
    }[state]


def test_nothing_but_an_arrival_or_the_end_makes_an_invalid_buffer_valid():
    acts = {row.act for row in BUFFER_TABLE if row.state is INVALID and row.next is not INVALID}
    assert acts == {
        BufferAct.MOVE_RECEIVED,
        BufferAct.BUFFER_RECEIVED,
        BufferAct.COPY_RECEIVED,
        BufferAct.MOVE_REFUSED,
        BufferAct.RECLAIMED,
    }


def test_a_holder_never_becomes_an_owner():
    owned = (OWNED_COPIED, READ_WRITE)
    assert not [row for row in BUFFER_TABLE if row.state is READ_ONLY and row.next in owned]


def test_a_channel_steps_as_its_table_says_and_not_otherwise():
    for state, act in itertools.product(ChannelState, ChannelAct):
        assert step_channel(state, act) is CHANNEL_TABLE.get((state, act))


def test_every_channel_state_can_be_closed_and_closed_is_the_end():
    for state in ChannelState:
        assert step_channel(state, ChannelAct.CLOSE) is ChannelState.CLOSED
    assert {state for (before, _), state in CHANNEL_TABLE.items() if before is ChannelState.CLOSED} == {
        ChannelState.CLOSED
    }


def test_a_veto_leads_back_to_where_another_binder_can_come():
    negotiating = step_channel(ChannelState.INITIALIZED, ChannelAct.HELLO_RECEIVED)
    assert step_channel(negotiating, ChannelAct.WITHDRAWN) is ChannelState.INITIALIZED


def test_roles_are_complements_and_never_generic():
    for creator, binder in itertools.product(Role, Role):
        agreed = agree_roles(creator, binder)
        if creator is binder and creator is not Role.GENERIC:
            assert agreed is None
            continue
        assert set(agreed) == {Role.MASTER, Role.SLAVE}
        assert creator in (Role.GENERIC, agreed[0])
        assert binder in (Role.GENERIC, agreed[1])
    assert agree_roles(Role.GENERIC, Role.GENERIC) == (Role.MASTER, Role.SLAVE)


def test_directions_and_roles_have_others():
    assert (Direction.TX.other, Direction.RX.other) == (Direction.RX, Direction.TX)
    assert (Role.GENERIC.other, Role.MASTER.other, Role.SLAVE.other) == (Role.GENERIC, Role.SLAVE, Role.MASTER)


# -- what they say happens -----------------------------------------------------------------------------------------


class Rig:
    """Domain `here` is under test: buffers come to it from `home` and go on to `there`, which may lend to `far`."""

    def __init__(self, world):
        self.world = world
        home, here, there, far = world.domains(4)
        alloc = self.alloc = world.allocator(home, count=64)
        self.ups = [world.channel(home, here) for _ in range(3)]
        self.downs = [world.channel(here, there) for _ in range(3)]
        self.onward = world.channel(there, far)
        self.back = world.channel(there, here)  # against the stream
        self.homeward = world.channel(here, home)
        for up in self.ups:
            self.pool = world.assign(*up, alloc.pool)
        for down in self.downs:
            there_pool = world.assign(*down, self.pool)
        world.assign(*self.back, there_pool)
        world.assign(*self.onward, there_pool)
        world.assign(*self.homeward, self.pool)

    def make(self, state, out, in_):
        """A buffer that is in this state here: as the home has it, and as it is here."""
        theirs = self.alloc.alloc()
        theirs.put(b"contents")
        mine = self.pool[theirs.index]
        if state in (READ_WRITE, OWNED_COPIED):
            self.ups[0][0].move(theirs)
            take(self.ups[0][1], EventKind.MOVE_RECEIVED)
        for up in self.ups[:in_]:
            up[0].copy(theirs)
            take(up[1], EventKind.COPY_RECEIVED)
        for down in self.downs[:out]:
            down[0].copy(mine)
            take(down[1], EventKind.COPY_RECEIVED)
        assert (mine.state, *self.pool.counts(mine.index)) == (state, out, in_)
        return theirs, mine

    def act(self, act, theirs, mine, out, in_):
        """Do it; False where honest domains cannot."""
        A = BufferAct
        match act:
            case A.MOVE:
                self.downs[2][0].move(mine)
            case A.COPY:
                self.downs[2][0].copy(mine)
            case A.FULL_COPY:
                self.downs[2][0].full_copy(mine, into=self.make(READ_WRITE, 0, 0)[1])
            case A.PASS:
                self.ups[0][1].pass_(mine)
            case A.RELEASE:
                self.ups[0][1].release(mine)
            case A.MOVE_RECEIVED if theirs.state is READ_WRITE:
                self.ups[2][0].move(theirs)
                take(self.ups[2][1], EventKind.MOVE_RECEIVED)
            case A.COPY_RECEIVED if theirs.owned:
                self.ups[2][0].copy(theirs)
                self.arrive(self.ups[2])
            case A.COPY_RECEIVED if out:  # a copy that went out comes in again
                self.back[0].copy(self.back_buffer(mine))
                self.arrive(self.back)
            case A.COPY_RELEASED if out:
                self.downs[out - 1][1].release(self.back_buffer(mine))
                take(self.downs[out - 1][0], EventKind.COPY_RELEASED)
            case A.COPY_REFUSED if out or in_:
                self.copy_that_is_refused(mine, in_)
            case _:
                return False
        return True

    def back_buffer(self, mine):
        """`mine` as the next domain has it."""
        return self.back[0].pools[0][mine.index]

    def arrive(self, channel):
        """A copy is accepted, or refused and rolled back at once."""
        event = None
        try:
            event = channel[1].receive_nowait()
        except bulk.WouldBlock:
            assert isinstance(take(channel[0], EventKind.OPERATION_REFUSED).error, bulk.CopyRefusedError)
        assert event is None or event.kind is EventKind.COPY_RECEIVED

    def copy_that_is_refused(self, mine, in_):
        before = ledger(mine)
        if in_:
            sender, receiver = self.homeward
        else:  # who has lent it on takes no second copy
            sender, receiver = self.downs[2]
            self.onward[0].copy(self.back_buffer(mine))
            take(self.onward[1], EventKind.COPY_RECEIVED)
        sender.copy(mine)
        assert self.pool.counts(mine.index) == (before[3] + 1, in_)
        assert nothing_comes(receiver)
        take(sender, EventKind.OPERATION_REFUSED)
        assert ledger(mine) == before


CASES = [
    (INVALID, 0, 0),
    (READ_WRITE, 0, 0),
    (OWNED_COPIED, 1, 0),
    (OWNED_COPIED, 2, 0),
    *[(READ_ONLY, out, in_) for out in range(3) for in_ in (1, 2)],
]
CALLS = (BufferAct.MOVE, BufferAct.PASS, BufferAct.COPY, BufferAct.RELEASE, BufferAct.FULL_COPY)
ARRIVALS = (BufferAct.MOVE_RECEIVED, BufferAct.COPY_RECEIVED, BufferAct.COPY_RELEASED)


def error_for(state, act):
    """The type of the refusal where the table has no row."""
    if act is BufferAct.RELEASE:
        return bulk.CopiesOutstandingError if state is READ_ONLY else bulk.NotACopyError
    return {INVALID: bulk.InvalidBufferError, READ_ONLY: bulk.NotOwnedError}.get(state, bulk.CopiesOutstandingError)


@pytest.fixture(params=["local", "shm"])
def rig(request):
    with World(request.param) as world:
        yield Rig(world)


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0].name}-out{c[1]}-in{c[2]}")
def test_a_call_does_what_the_table_says_or_is_refused_and_changes_nothing(rig, case):
    for act in CALLS:
        _, mine = rig.make(*case)
        row = row_for(case[0], act, *case[1:])
        if row is None:
            with unchanged(mine), pytest.raises(bulk.BulkError) as caught:
                rig.act(act, None, mine, *case[1:])
            assert type(caught.value) is error_for(case[0], act), (act, caught.value)
            assert f"buffer {mine.index} of pool" in str(caught.value)
        else:
            rig.act(act, None, mine, *case[1:])
            counts = (case[1] + row.out, case[2] + row.in_)
            assert (mine.state, *rig.pool.counts(mine.index)) == (row.next, *counts), act


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0].name}-out{c[1]}-in{c[2]}")
def test_an_arrival_does_what_the_table_says_or_is_refused_and_changes_nothing(rig, case):
    for act in ARRIVALS:
        theirs, mine = rig.make(*case)
        before = ledger(mine)
        if not rig.act(act, theirs, mine, *case[1:]):
            continue
        row = row_for(case[0], act, *case[1:])
        if row is None:
            assert ledger(mine) == before, act
        else:
            counts = (case[1] + row.out, case[2] + row.in_)
            assert (mine.state, *rig.pool.counts(mine.index)) == (row.next, *counts), act


@pytest.mark.parametrize("case", [c for c in CASES if c[1] == 1 or c[0] is READ_ONLY], ids=str)
def test_a_copy_that_the_peer_refuses_is_rolled_back(rig, case):
    theirs, mine = rig.make(*case)
    assert rig.act(BufferAct.COPY_REFUSED, theirs, mine, *case[1:])


def test_a_buffer_that_was_passed_back_is_the_source_s_again(rig):
    theirs, mine = rig.make(READ_WRITE, 0, 0)
    rig.ups[0][1].pass_(mine)
    event = take(rig.ups[0][0], EventKind.BUFFER_RECEIVED)
    assert event.buffer is theirs
    assert (theirs.state, mine.state) == (READ_WRITE, INVALID)


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0].name}-out{c[1]}-in{c[2]}")
def test_drop_waits_for_the_end_of_the_channel_and_leads_to_invalid(rig, case):
    _, mine = rig.make(*case)
    if case[0] is not INVALID:
        with unchanged(mine), pytest.raises(bulk.ChannelStateError):
            mine.drop()
    for tx, rx in [*rig.ups, *rig.downs, rig.back, rig.homeward]:
        tx.close()
        until_the_end(rx)
    mine.drop()  # though its copies are somewhere: whoever has them holds the leases of those above
    assert (mine.state, *rig.pool.counts(mine.index)) == (INVALID, 0, 0)


# -- the life of a channel -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["local", "shm"])
def test_a_channel_goes_through_the_states_of_its_table(scheme):
    with World(scheme) as world:
        a, b = world.domains(2)
        created = bulk.create(f"{scheme}:", direction=Direction.TX, trust=bulk.Trust.FULL, domain=a)
        assert created.state is ChannelState.INITIALIZED
        bound = bulk.bind(created.address, domain=b, done=lambda outcome: None)
        assert bound.state is ChannelState.BINDING
        seen = set()
        while created.state is not ChannelState.CONNECTED:  # one thread: each side answers when it is asked
            for end in (created, bound):
                with contextlib.suppress(bulk.WouldBlock):
                    end.receive_nowait()
                seen.add(created.state)
        assert seen >= {ChannelState.BIND_NEGOTIATE, ChannelState.CONNECTED}
        assert bound.state is ChannelState.CONNECTED
        created.destroy(done=lambda outcome: None)
        assert created.state is ChannelState.TEARDOWN
        take(bound, EventKind.TEARDOWN_RECEIVED)
        assert bound.state is ChannelState.CLOSED
        with pytest.raises(bulk.ClosedChannelError):
            created.receive(PATIENCE_S)
        assert created.state is ChannelState.CLOSED
        created.close()
        bound.close()
