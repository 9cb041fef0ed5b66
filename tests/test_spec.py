"""The specification: what each algorithm requires and ensures, and that the library's tables are its."""

from __future__ import annotations

import builtins
import re
from pathlib import Path

import pytest

from bulktransfer import errors
from bulktransfer.spec import model as m
from bulktransfer.spec.invariants import broken
from bulktransfer.spec.relation import Transition, transitions
from bulktransfer.states import BUFFER_TABLE, BufferAct, BufferState, When

SPEC = Path(m.__file__).parent
APART = m.Rules(shared=False)


def done(after):
    assert not isinstance(after, m.Refused), after
    assert broken(after) == []
    return after


def refused(after) -> str:
    assert isinstance(after, m.Refused)
    return after.error


def connected(*ends: tuple[int, int], buffers: int = 1, rules: m.Rules | None = None) -> m.State:
    """Domain 0's pool on channels between these (source, sink), each assigned by the source."""
    state = done(m.pool_create(m.begin(1 + max(map(max, ends)), rules), 0, buffers))
    for channel, (source, sink) in enumerate(ends):
        state = done(m.create(state, source, m.SOURCE))
        state = done(m.bind(state, sink, channel))
        state = m.run_to_rest(done(m.assign(state, channel, m.SOURCE, 0)))
    return done(state)


def states(state: m.State, buffer: int = 0) -> list[str]:
    return [views[buffer].state for views in state.views]


# -- Algorithms 3 to 6 ---------------------------------------------------------------------------------------------


def test_create_makes_a_channel_with_one_end() -> None:
    state = done(m.create(m.begin(1), 0, m.SINK, role="MASTER", trust="HALF"))
    (channel,) = state.channels
    assert channel.domains == (-1, 0)
    assert channel.stages == ("UNBOUND", "INITIALIZED")
    assert refused(m.create(m.begin(1), 0, m.SINK, trust="UNINITIALIZED")) == "ValueError"


def test_bind_takes_the_complements() -> None:
    state = done(m.bind(done(m.create(m.begin(2), 0, m.SINK, role="MASTER")), 1, 0))
    (channel,) = state.channels
    assert (channel.domains, channel.roles, channel.stages) == ((1, 0), ("SLAVE", "MASTER"), ("CONNECTED", "CONNECTED"))


@pytest.mark.parametrize(
    ("creator", "binder", "agreed"),
    [
        ("GENERIC", "GENERIC", ("MASTER", "SLAVE")),
        ("GENERIC", "MASTER", ("SLAVE", "MASTER")),
        ("SLAVE", "GENERIC", ("SLAVE", "MASTER")),
        ("MASTER", "SLAVE", ("MASTER", "SLAVE")),
        ("MASTER", "MASTER", None),
    ],
)
def test_no_connected_channel_is_generic(creator, binder, agreed) -> None:
    assert m.agree_roles(creator, binder) == agreed


def test_a_refused_binder_leaves_the_creator_as_it_was() -> None:
    state = done(m.create(m.begin(3), 0, m.SOURCE, role="MASTER", trust="FULL"))
    assert refused(m.bind(state, 1, 0, role="MASTER")) == "RoleConflictError"
    assert refused(m.bind(state, 1, 0, trust="NONE")) == "TrustMismatchError"
    assert refused(m.bind(state, 1, 0, veto=True)) == "BindRefusedError"
    bound = done(m.bind(state, 1, 0, trust="FULL"))
    assert refused(m.bind(bound, 2, 0)) == "BindRefusedError"
    assert refused(m.bind(done(m.close(state, 0, m.SOURCE)), 1, 0)) == "EndpointNotFoundError"


def test_a_new_pool_is_all_its_allocators() -> None:
    state = done(m.pool_create(m.begin(2), 1, 3))
    assert state.owner == (1, 1, 1)
    assert [states(state, b) for b in range(3)] == [["INVALID", "READ_WRITE"]] * 3
    assert refused(m.pool_create(state, 0, 0)) == "ValueError"


def test_the_free_list_keeps_buffers_from_travelling() -> None:
    state = connected((0, 1))
    free = done(m.free(state, 0, 0))
    assert refused(m.move(free, 0, 0, 0)) == "NotAllocatedError"
    assert refused(m.write(free, 0, 0, 1)) == "NotAllocatedError"
    assert refused(m.free(free, 0, 0)) == "NotAllocatedError"
    assert done(m.allocate(free, 0)) == state
    assert refused(m.allocate(state, 0)) == "PoolExhaustedError"
    assert refused(m.free(state, 1, 0)) == "ValueError"
    assert refused(m.free(done(m.copy(state, 0, 0, 0)), 0, 0)) == "CopiesOutstandingError"


def unassigned() -> m.State:
    state = done(m.create(done(m.pool_create(m.begin(2), 0, 1)), 0, m.SOURCE))
    return done(m.bind(state, 1, 0))


def test_assignment_is_pending_until_the_answer_and_moves_nothing() -> None:
    state = unassigned()
    assert refused(m.move(state, 0, 0, 0)) == "PoolNotAssignedError"
    assert refused(m.assign(state, 0, m.SINK, 0)) == "PoolNotAssignedError"  # not present there
    asked = done(m.assign(state, 0, m.SOURCE, 0))
    assert refused(m.move(asked, 0, 0, 0)) == "PoolNotAssignedError"
    assert refused(m.assign(asked, 0, m.SOURCE, 0)) == "PoolAlreadyAssignedError"
    state = done(m.run_to_rest(asked))
    assert states(state) == ["READ_WRITE", "INVALID"]
    assert m.present(state, 1, 0)
    assert refused(m.assign(state, 0, m.SINK, 0)) == "PoolAlreadyAssignedError"


def test_a_vetoed_pool_leaves_nothing_behind() -> None:
    asked = done(m.assign(unassigned(), 0, m.SOURCE, 0))
    state = done(m.run_to_rest(m.deliver(asked, 0, m.SINK, veto=True)))
    assert state == unassigned()


def test_a_pool_has_one_trust() -> None:
    state = connected((0, 1))
    state = done(m.create(state, 0, m.SOURCE, trust="HALF"))
    state = done(m.bind(state, 1, 1))
    assert refused(m.assign(state, 1, m.SOURCE, 0)) == "TrustMismatchError"


def test_crossing_assignments_share_the_masters_outcome() -> None:
    # both have the pool over channel 0, both ask for channel 1
    state = done(m.create(connected((0, 1)), 0, m.SOURCE))
    state = done(m.bind(state, 1, 1))
    state = done(m.assign(done(m.assign(state, 1, m.SOURCE, 0)), 1, m.SINK, 0))
    rest = done(m.run_to_rest(state))
    assert rest.standings[1][0] == (m.SOURCE, ("ACTIVE", "ACTIVE"))
    rest = done(m.run_to_rest(m.deliver(state, 1, m.SINK, veto=True)))
    assert rest.standings[1][0].sides == ("ABSENT", "ABSENT")


# -- Algorithms 7 to 10 and the full copy --------------------------------------------------------------------------


def test_move_gives_ownership_and_contents() -> None:
    state = done(m.write(connected((0, 1)), 0, 0, "x"))
    state = done(m.move(state, 0, 0, 0))
    assert states(state) == ["INVALID", "INVALID"]
    assert state.owner == (1,)  # from the call on
    state = done(m.deliver(state, 0, m.SINK))
    assert states(state) == ["INVALID", "READ_WRITE"]
    assert state.views[1][0].data == "x"


def test_pass_gives_ownership_back_without_contents() -> None:
    state = m.run_to_rest(done(m.move(connected((0, 1)), 0, 0, 0)))
    state = m.run_to_rest(done(m.pass_(state, 1, 0, 0)))
    assert states(done(state)) == ["READ_WRITE", "INVALID"]
    assert state.views[0][0].data is None
    assert refused(m.pass_(connected((0, 1)), 1, 0, 0)) == "InvalidBufferError"


def test_copy_and_release() -> None:
    state = done(m.copy(done(m.write(connected((0, 1)), 0, 0, "x")), 0, 0, 0))
    assert states(state) == ["READ_ONLY_OWNED", "INVALID"]
    assert refused(m.copy(state, 0, 0, 0)) == "AlreadyCopiedError"
    assert refused(m.move(state, 0, 0, 0)) == "CopiesOutstandingError"
    assert refused(m.write(state, 0, 0, "y")) == "CopiesOutstandingError"
    state = done(m.deliver(state, 0, m.SINK))
    assert states(state) == ["READ_ONLY_OWNED", "READ_ONLY"]
    assert state.views[1][0].data == "x"
    assert refused(m.write(state, 1, 0, "y")) == "NotOwnedError"
    assert refused(m.pass_(state, 1, 0, 0)) == "NotOwnedError"
    state = done(m.release(state, 1, 0, 0))
    assert states(state) == ["READ_ONLY_OWNED", "INVALID"]
    assert state.copies == (1,)  # until the source has heard of it
    state = done(m.deliver(state, 0, m.SOURCE))
    assert states(state) == ["READ_WRITE", "INVALID"]
    assert refused(m.release(state, 1, 0, 0)) == "NotACopyError"


def test_a_holder_forwards_and_releases_in_order() -> None:
    state = m.run_to_rest(done(m.copy(connected((0, 1), (1, 2)), 0, 0, 0)))
    state = m.run_to_rest(done(m.copy(state, 1, 1, 0)))
    assert states(state) == ["READ_ONLY_OWNED", "READ_ONLY", "READ_ONLY"]
    assert refused(m.move(state, 1, 1, 0)) == "NotOwnedError"
    assert refused(m.release(state, 1, 0, 0)) == "CopiesOutstandingError"
    state = m.run_to_rest(done(m.release(state, 2, 1, 0)))
    state = m.run_to_rest(done(m.release(state, 1, 0, 0)))
    assert states(done(state)) == ["READ_WRITE", "INVALID", "INVALID"]


@pytest.mark.parametrize(("rules", "second"), [(m.Rules(), m.ACCEPTED), (APART, m.REFUSED)])
def test_a_second_copy_needs_shared_memory(rules, second) -> None:
    state = connected((0, 1), (0, 2), (1, 3), (2, 3), rules=rules)
    for domain, channel in ((0, 0), (0, 1), (1, 2)):
        state = m.run_to_rest(done(m.copy(state, domain, channel, 0)))
    state = done(m.copy(state, 2, 3, 0))
    assert m.judge(state, 3, m.SINK) == second
    state = done(m.run_to_rest(state))
    assert state.views[3][0].held == (0b1100 if second == m.ACCEPTED else 0b0100)
    assert bool(state.views[2][0].out) == (second == m.ACCEPTED)


def test_a_copy_does_not_come_back_to_who_owns_or_lends_it() -> None:
    state = m.run_to_rest(done(m.copy(connected((0, 1), (1, 0)), 0, 0, 0)))
    state = done(m.copy(state, 1, 1, 0))
    assert m.judge(state, 1, m.SINK) == m.REFUSED
    state = done(m.run_to_rest(state))
    assert states(state) == ["READ_ONLY_OWNED", "READ_ONLY"]
    assert state.views[1][0].out == 0


def test_within_one_domain_a_buffer_is_invalid_until_it_is_received() -> None:
    state = connected((0, 0))
    assert refused(m.copy(state, 0, 0, 0)) == "CopyRefusedError"
    state = done(m.move(state, 0, 0, 0))
    assert states(state) == ["INVALID"]
    assert refused(m.move(state, 0, 0, 0)) == "InvalidBufferError"
    assert states(done(m.deliver(state, 0, m.SINK))) == ["READ_WRITE"]


def test_a_full_copy_is_a_local_copy_and_a_move() -> None:
    state = done(m.write(connected((0, 1), buffers=2), 0, 0, "x"))
    state = m.run_to_rest(done(m.full_copy(state, 0, 0, 0, into=1)))
    assert (states(state, 0), states(state, 1)) == (["READ_WRITE", "INVALID"], ["INVALID", "READ_WRITE"])
    assert state.views[1][1].data == "x"
    assert refused(m.full_copy(state, 0, 0, 0, into=0)) == "ValueError"
    assert refused(m.full_copy(state, 0, 0, 1, into=0)) == "InvalidBufferError"


def test_calls_belong_to_their_end() -> None:
    state = m.run_to_rest(done(m.move(connected((0, 1)), 0, 0, 0)))
    assert refused(m.move(state, 1, 0, 0)) == refused(m.copy(state, 1, 0, 0)) == "DirectionError"
    assert refused(m.pass_(state, 0, 0, 0)) == refused(m.release(state, 0, 0, 0)) == "DirectionError"


# -- removal and ends ----------------------------------------------------------------------------------------------


def test_a_pool_leaves_when_everything_is_home() -> None:
    state = connected((0, 1))
    away = m.run_to_rest(done(m.move(state, 0, 0, 0)))
    for side in (m.SOURCE, m.SINK):
        assert refused(m.remove(away, 0, side, 0)) == "PoolBusyError"
    home = m.run_to_rest(done(m.pass_(away, 1, 0, 0)))
    asked = done(m.remove(home, 0, m.SINK, 0))
    assert refused(m.remove(asked, 0, m.SINK, 0)) == "PoolNotAssignedError"
    assert not m.present(m.run_to_rest(asked), 1, 0)
    kept = done(m.run_to_rest(m.deliver(asked, 0, m.SOURCE, veto=True)))
    assert kept == home


def test_a_removal_that_crosses_a_move_is_refused() -> None:
    state = done(m.remove(connected((0, 1)), 0, m.SINK, 0))
    state = done(m.run_to_rest(done(m.move(state, 0, 0, 0))))
    assert state.standings[0][0].sides == ("ACTIVE", "ACTIVE")
    assert states(state) == ["INVALID", "READ_WRITE"]


def test_crossing_removals_agree() -> None:
    state = done(m.remove(done(m.remove(connected((0, 1)), 0, m.SINK, 0)), 0, m.SOURCE, 0))
    assert m.run_to_rest(state).standings[0][0].sides == ("ABSENT", "ABSENT")


def test_an_end_in_order_loses_nothing() -> None:
    state = done(m.destroy(done(m.move(connected((0, 1)), 0, 0, 0)), 0, m.SOURCE))
    assert refused(m.move(state, 0, 0, 0)) == "ChannelStateError"
    state = done(m.run_to_rest(state))
    assert states(state) == ["INVALID", "READ_WRITE"]
    assert [refused(m.move(state, 0, 0, 0)), refused(m.pass_(state, 1, 0, 0))] == [
        "ClosedChannelError",
        "EndOfChannelError",
    ]
    assert done(m.close(state, 0, m.SOURCE)) == state  # idempotent


def test_memory_that_somebody_may_hold_is_detached_until_the_lease_hangs_up() -> None:
    state = m.run_to_rest(done(m.move(connected((0, 1)), 0, 0, 0)))
    assert refused(m.drop(state, 1, 0)) == "ChannelStateError"
    assert refused(m.reclaim(state, 0, m.SOURCE, 0)) == "PoolNotAssignedError"
    state = done(m.run_to_rest(done(m.close(state, 0, m.SOURCE))))
    assert m.detached(state, 0, 0) == [0]
    assert refused(m.reclaim(state, 0, m.SOURCE, 0)) == "PoolBusyError"
    assert refused(m.drop(state, 0, 0)) == "ChannelStateError"  # at home
    state = done(m.reclaim(done(m.drop(state, 1, 0)), 0, m.SOURCE, 0))
    assert states(state) == ["READ_WRITE", "INVALID"]
    assert m.detached(state, 0, 0) == []


def test_a_forwarded_copy_keeps_the_lease_of_the_first_channel() -> None:
    state = m.run_to_rest(done(m.copy(connected((0, 1), (1, 2)), 0, 0, 0)))
    state = m.run_to_rest(done(m.copy(state, 1, 1, 0)))
    state = done(m.run_to_rest(m.die(state, 1)))
    assert states(state) == ["READ_ONLY_OWNED", "INVALID", "READ_ONLY"]
    assert refused(m.reclaim(state, 0, m.SOURCE, 0)) == "PoolBusyError"
    state = done(m.reclaim(done(m.drop(state, 2, 0)), 0, m.SOURCE, 0))
    assert states(state)[0] == "READ_WRITE"


def test_what_the_dead_had_published_is_delivered_first() -> None:
    state = connected((0, 1), buffers=3, rules=m.Rules(slots=2))
    for buffer in range(3):
        state = done(m.move(state, 0, 0, buffer))
    state = m.run_to_rest(m.die(state, 0))
    assert [states(state, b)[1] for b in range(3)] == ["READ_WRITE", "READ_WRITE", "INVALID"]
    assert refused(m.pass_(state, 1, 0, 0)) == "BrokenChannelError"


def test_what_was_published_is_taken_before_anything_is_reclaimed() -> None:
    state = m.run_to_rest(done(m.move(connected((0, 1), (1, 0)), 0, 0, 0)))
    state = m.die(done(m.move(state, 1, 1, 0)), 1)
    state = m.deliver(state, 0, m.SOURCE)  # the end of channel 0; channel 1 carries the buffer
    assert refused(m.reclaim(state, 0, m.SOURCE, 0)) == "PoolBusyError"
    state = done(m.run_to_rest(state))
    assert states(state) == ["READ_WRITE", "INVALID"]


def test_where_memory_is_apart_a_slot_is_free_at_once() -> None:
    state = m.run_to_rest(done(m.move(connected((0, 1), rules=APART), 0, 0, 0)))
    state = done(m.close(state, 0, m.SOURCE))
    state = done(m.reclaim(m.run_to_rest(state), 0, m.SOURCE, 0))
    assert states(state) == ["READ_WRITE", "READ_WRITE"]  # twins that parted


# -- the library's words are the specification's -------------------------------------------------------------------


def test_what_came_home_as_a_copy_is_taken_back_once_its_channel_ended_here() -> None:
    """A domain knows of its own ends only: it does not wait for the peer to hear of them."""
    state = connected((0, 1), (1, 0), rules=APART)
    state = m.run_to_rest(done(m.move(state, 0, 0, 0)))
    state = m.run_to_rest(done(m.copy(state, 1, 1, 0)))
    assert states(state) == ["READ_ONLY", "READ_ONLY_OWNED"]
    state = done(m.close(state, 0, m.SOURCE))
    assert done(m.reclaim(state, 0, m.SOURCE, 0)) == state  # it is here as a copy, over a channel that lives
    state = done(m.close(state, 1, m.SINK))
    assert state.channels[1].stages[m.SOURCE] == "CONNECTED"
    state = done(m.reclaim(state, 0, m.SOURCE, 0))
    assert states(state) == ["READ_WRITE", "READ_ONLY_OWNED"]
    assert state.views[0][0].data == 0  # what could be read is unchanged


def test_where_memory_is_apart_the_allocator_takes_back_from_the_peer_that_it_sent_to() -> None:
    state = connected((0, 1), (0, 1), (0, 2), rules=APART)
    state = m.run_to_rest(done(m.move(state, 0, 0, 0)))
    state = done(m.pass_(state, 1, 1, 0))
    assert m.judge(state, 1, m.SOURCE) == m.ACCEPTED  # the same peer, by another channel
    forged = m.State(*state)._replace(queues=(state.queues[0], ((), ()), (state.queues[1][m.SOURCE], ())))
    assert m.judge(forged, 2, m.SOURCE) == m.REFUSED


@pytest.mark.parametrize(("before", "stage"), [(m.close, "ENDED"), (m.destroy, "ENDED"), (None, "BROKEN")])
def test_who_ended_a_channel_in_order_and_died_has_ended_it_in_order(before, stage) -> None:
    state = connected((0, 1))
    if before is not None:
        state = done(before(state, 0, m.SINK))
    state = m.run_to_rest(done(m.die(state, 1)))
    assert state.channels[0].stages[m.SOURCE] == stage


def counts_match(when: When, out: int, held: int) -> bool:
    return {
        When.ALWAYS: True,
        When.OUT_MANY: out == 2,
        When.OUT_LAST: out == 1,
        When.OUT_NONE: out == 0,
        When.OUT_NONE_IN_MANY: out == 0 and held == 2,
        When.OUT_NONE_IN_LAST: out == 0 and held == 1,
    }[when]


POSSIBLE = {
    "INVALID": [(0, 0)],
    "READ_WRITE": [(0, 0)],
    "READ_ONLY_OWNED": [(1, 0), (2, 0)],
    "READ_ONLY": [(out, held) for out in (0, 1, 2) for held in (1, 2)],
}


def table() -> set[Transition]:
    """states.BUFFER_TABLE, spelled out for every count, as the hot core compiles it."""
    found = set()
    for row in BUFFER_TABLE:
        for out, held in POSSIBLE[row.state.name]:
            if counts_match(row.when, out, held) and out + row.out >= 0 and held + row.in_ >= 0:
                drop = row.act is BufferAct.DROP  # clears both counts
                changes = (-out, -held) if drop else (row.out, row.in_)
                found.add(Transition(row.state.name, out, held, row.act.name, row.next.name, *changes))
    return found


def test_the_table_of_buffer_states_is_the_specifications() -> None:
    specified = set(transitions(m.Rules()))
    assert sorted(table() - specified) == []
    assert sorted(specified - table()) == []


@pytest.mark.parametrize("act", BufferAct)
@pytest.mark.parametrize("state", BufferState)
def test_table_and_specification_refuse_the_same(state, act) -> None:
    def cases(relation):
        return {(t.out, t.held) for t in relation if (t.state, t.act) == (state.name, act.name)}

    assert cases(table()) == cases(transitions(m.Rules()))


def test_memory_apart_takes_away_the_second_copy_and_nothing_else() -> None:
    lost = set(transitions(m.Rules())) - set(transitions(APART))
    assert {(t.state, t.act) for t in lost} == {("READ_ONLY", "COPY_RECEIVED")}
    assert set(transitions(APART)) < set(transitions(m.Rules()))


def test_every_error_of_the_specification_is_one_of_the_library() -> None:
    text = "".join(path.read_text() for path in SPEC.glob("*.py"))
    named = set(re.findall(r'"(\w+Error)"', text))
    assert len(named) > 15
    assert [name for name in sorted(named) if not hasattr(errors, name) and not hasattr(builtins, name)] == []
