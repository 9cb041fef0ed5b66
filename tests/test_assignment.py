"""Pools come onto channels: who may ask, who may refuse, and what a refusal or a withdrawal leaves behind."""

from __future__ import annotations

import errno
import gc
import resource
import weakref

import pytest

import bulktransfer as bulk
import meeting
from bulktransfer import EventKind, Role, Trust
from meeting import Background, pump, serve
from worlds import INVALID, PATIENCE_S, ledger, nothing_comes, take, together

scheme, world = meeting.scheme, meeting.world


def mappings_of_pools():
    with open("/proc/self/maps") as maps:
        return sum("bulktransfer-pool" in line for line in maps)


def two(world, **options):
    return world.channel(*world.domains(2), **options)


# -- coming on -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("creator", ["source", "sink"])
@pytest.mark.parametrize("role", [Role.MASTER, Role.SLAVE])
@pytest.mark.parametrize("by", ["source", "sink"])
def test_either_end_in_either_role_assigns(world, creator, role, by):
    tx, rx = two(world, creator=creator, role=role)
    mine, theirs = (tx, rx) if by == "source" else (rx, tx)
    alloc = world.allocator(mine.domain)
    there = world.assign(mine, theirs, alloc.pool)
    assert there is not alloc.pool
    assert there.id == alloc.pool.id
    assert (len(there), there.buffer_size) == (len(alloc.pool), alloc.pool.buffer_size)
    assert mine.pools == (alloc.pool,)
    assert theirs.pools == (there,)
    assert there.trust is alloc.pool.trust is Trust.FULL


def test_assignment_changes_nobodys_ownership(world):
    tx, rx = two(world)
    alloc = world.allocator(tx.domain)
    out = alloc.alloc()
    out.put(b"mine")
    before = [ledger(buffer) for buffer in alloc.pool]
    there = world.assign(tx, rx, alloc.pool)
    assert [ledger(buffer) for buffer in alloc.pool] == before
    assert all(buffer.state is INVALID for buffer in there)
    with pytest.raises(bulk.InvalidBufferError):
        memoryview(there[0])
    assert alloc.available == 3


def test_the_event_says_whether_the_pool_was_here(world):
    a, b = world.domains(2)
    alloc = world.allocator(a)
    pools = []
    for present in (False, True):
        tx, rx = world.channel(a, b)
        event, _ = together(lambda rx=rx: rx.receive(PATIENCE_S), lambda tx=tx: tx.assign_pool(alloc.pool))
        assert event.kind is EventKind.POOL_ASSIGNED
        assert event.present is present
        assert event.buffer is None
        pools.append(event.pool)
    assert pools[0] is pools[1]


def test_assigning_with_done_returns_at_once_and_tells_the_outcome(world):
    tx, rx = two(world)
    alloc = world.allocator(tx.domain)
    outcomes = []
    tx.assign_pool(alloc.pool, done=outcomes.append)
    assert tx.pools == ()
    events = pump(lambda: outcomes, tx, rx)
    assert [event.kind for event in events[rx]] == [EventKind.POOL_ASSIGNED]
    (outcome,) = outcomes
    assert outcome.error is None
    assert (outcome.operation, outcome.pool, outcome.channel) == ("assign", alloc.pool, tx)
    assert tx.pools == (alloc.pool,)


def test_a_pending_pool_takes_no_transfers_and_no_second_request(world):
    tx, rx = two(world)
    alloc = world.allocator(tx.domain)
    buffer = alloc.alloc()
    outcomes = []
    tx.assign_pool(alloc.pool, done=outcomes.append)
    with pytest.raises(bulk.PoolNotAssignedError, match="still being assigned"):
        tx.move(buffer)
    with pytest.raises(bulk.PoolAlreadyAssignedError):
        tx.assign_pool(alloc.pool)
    with pytest.raises(bulk.PoolNotAssignedError):
        tx.remove_pool(alloc.pool)
    pump(lambda: outcomes, tx, rx)
    tx.move(buffer)
    assert take(rx, EventKind.MOVE_RECEIVED).buffer.owned


def test_the_same_pool_twice_is_an_error_from_either_side(world):
    tx, rx, alloc, there = world.line()
    for channel, pool in ((tx, alloc.pool), (rx, there)):
        with pytest.raises(bulk.PoolAlreadyAssignedError):
            channel.assign_pool(pool)
    assert tx.pools == (alloc.pool,)


# -- crossing ------------------------------------------------------------------------------------------------------


def crossing(world, **options):
    """A channel with two ends that have the pool through another one, and both ask; outcomes by end."""
    a, b = world.domains(2)
    first = world.channel(a, b)
    alloc = world.allocator(a)
    there = world.assign(*first, alloc.pool)
    tx, rx = world.channel(a, b, role=Role.MASTER, **options)
    outcomes = {tx: [], rx: []}
    return tx, rx, alloc, there, outcomes


@pytest.mark.parametrize("vetoer", [None, Role.MASTER, Role.SLAVE])
def test_crossing_assigns_share_the_masters_outcome(world, vetoer):
    asked = []

    def judge(event):
        asked.append(event.channel.role)
        if event.channel.role is vetoer:
            raise RuntimeError("no pools today")

    callbacks = bulk.Callbacks(pool_assigned=judge)
    tx, rx, alloc, there, outcomes = crossing(world, callbacks=callbacks, binder={"callbacks": callbacks})
    tx.assign_pool(alloc.pool, done=outcomes[tx].append)
    rx.assign_pool(there, done=outcomes[rx].append)
    pump(lambda: outcomes[tx] and outcomes[rx], tx, rx)
    assert asked == [Role.SLAVE]  # the MASTER's request is the one that counts
    errors = [outcomes[end][0].error for end in (tx, rx)]
    if vetoer is Role.SLAVE:
        assert all(isinstance(error, bulk.PoolVetoError) for error in errors)
        assert tx.pools == rx.pools == ()
        return
    assert errors == [None, None]
    assert tx.pools == (alloc.pool,)
    assert rx.pools == (there,)
    buffer = alloc.alloc()
    tx.move(buffer)
    rx.pass_(take(rx, EventKind.MOVE_RECEIVED).buffer)
    assert take(tx, EventKind.BUFFER_RECEIVED).buffer is buffer


def test_crossing_assigns_that_the_slave_cannot_map_fail_for_both(world):
    tx, rx, alloc, there, outcomes = crossing(world)
    tx.assign_pool(alloc.pool, done=outcomes[tx].append)
    rx.assign_pool(there, done=outcomes[rx].append, timeout=None)
    rx.constraints = bulk.Constraints(address_min=1 << 62)  # a peer's pool is held against them once it is mapped
    pump(lambda: outcomes[tx] and outcomes[rx], tx, rx)
    assert all(isinstance(outcomes[end][0].error, bulk.ConstraintError) for end in (tx, rx))
    assert tx.pools == rx.pools == ()
    rx.constraints = None
    rx.assign_pool(there, done=outcomes[rx].append)
    pump(lambda: len(outcomes[rx]) == 2, tx, rx)
    assert outcomes[rx][1].error is None


@pytest.mark.parametrize("withdrawn_late", [False, True])
def test_crossing_assigns_of_which_the_masters_is_withdrawn_agree_at_both_ends(world, withdrawn_late):
    tx, rx, alloc, there, outcomes = crossing(world)
    tx.assign_pool(alloc.pool, done=outcomes[tx].append, timeout=None)
    rx.assign_pool(there, done=outcomes[rx].append, timeout=None)
    request = next(iter(tx.assigning.requests.values()))
    if withdrawn_late:
        assert nothing_comes(rx)  # the SLAVE accepts the MASTER's
    tx.assigning.withdraw(request)
    pump(lambda: outcomes[rx], rx, tx)
    for end in (tx, rx, tx, rx):
        meeting.drain(end)
    assert bool(tx.pools) == bool(rx.pools)
    assert bool(rx.pools) == (outcomes[rx][0].error is None)
    if rx.pools:
        tx.move(alloc.alloc())
        assert rx.receive_buffer(PATIENCE_S).buffer.owned
    else:
        world.assign(tx, rx, alloc.pool)


# -- refused -------------------------------------------------------------------------------------------------------


def test_a_veto_reaches_the_assigner_and_leaves_nothing_behind(world):
    kept = []

    def judge(event):
        kept.append(weakref.ref(event.pool))
        raise RuntimeError("we are full")

    tx, rx = two(world, binder={"callbacks": bulk.Callbacks(pool_assigned=judge)})
    alloc = world.allocator(tx.domain)

    def attempt():
        serving = Background(lambda: pump(lambda: kept and not tx.assigning.requests, rx))
        with pytest.raises(bulk.PoolVetoError, match="we are full"):
            tx.assign_pool(alloc.pool)
        serving.result()
        gc.collect()
        return meeting.descriptors(), mappings_of_pools()

    fds, maps = attempt()  # with what a first wait makes for good
    kept.clear()
    assert attempt() == (fds, maps)
    assert kept[0]() is None
    assert len(rx.domain.pools) == 0
    assert tx.pools == rx.pools == ()
    assert alloc.pool.trust is Trust.UNINITIALIZED
    assert alloc.pool.channels == set()


def test_after_a_veto_the_same_pool_may_be_asked_for_again(world):
    calls = []

    def judge(_):
        calls.append(1)
        if len(calls) < 3:
            raise RuntimeError("not yet")

    tx, rx = two(world, binder={"callbacks": bulk.Callbacks(pool_assigned=judge)})
    alloc = world.allocator(tx.domain)
    for expected in (bulk.PoolVetoError, bulk.PoolVetoError, type(None)):
        outcomes = []
        tx.assign_pool(alloc.pool, done=outcomes.append)
        pump(lambda outcomes=outcomes: outcomes, tx, rx)
        assert isinstance(outcomes[0].error, expected)
    assert tx.pools == (alloc.pool,)


@pytest.mark.parametrize("then", ["return", "raise"])
def test_closing_the_channel_in_its_own_pool_callback_is_safe(world, then):
    def judge(event):
        event.channel.close()
        if then == "raise":
            raise RuntimeError("and no")

    tx, rx = two(world, binder={"callbacks": bulk.Callbacks(pool_assigned=judge)})
    alloc = world.allocator(tx.domain)
    serving = Background(lambda: meeting.drain_until_end(rx))
    with pytest.raises(bulk.EndOfChannelError):
        tx.assign_pool(alloc.pool)
    assert serving.result() is bulk.ClosedChannelError
    gc.collect()
    assert alloc.pool.channels == set()
    assert len(rx.domain.pools) == 0


def test_a_blocking_call_that_leaves_a_pool_callback_is_a_veto(world):
    own = []

    def judge(event):
        event.channel.assign_pool(own[0].pool)

    tx, rx = two(world, binder={"callbacks": bulk.Callbacks(pool_assigned=judge)})
    own.append(world.allocator(rx.domain))
    alloc = world.allocator(tx.domain)
    outcomes = []
    tx.assign_pool(alloc.pool, done=outcomes.append)
    pump(lambda: outcomes, tx, rx)
    assert isinstance(outcomes[0].error, bulk.PoolVetoError)
    assert "wait inside a callback" in str(outcomes[0].error)
    assert rx.pools == ()


def test_a_pool_callback_may_ask_for_a_pool_of_its_own_with_done(world):
    own, outcomes, mine = [], [], []

    def judge(event):
        event.channel.assign_pool(own[0].pool, done=outcomes.append)

    tx, rx = two(world, binder={"callbacks": bulk.Callbacks(pool_assigned=judge)})
    own.append(world.allocator(rx.domain))
    alloc = world.allocator(tx.domain)
    tx.assign_pool(alloc.pool, done=mine.append)
    pump(lambda: mine and outcomes, tx, rx)
    assert mine[0].error is outcomes[0].error is None
    assert len(tx.pools) == len(rx.pools) == 2


def test_what_cannot_be_assigned_is_refused_at_the_call(world):
    tx, _ = two(world)
    alloc = world.allocator(tx.domain)
    reserved = world.allocator(tx.domain, trust=Trust.NONE)
    with pytest.raises(ValueError, match="another domain"):
        tx.assign_pool(world.allocator(bulk.Domain()).pool)
    for wrong in (None, 3, "pool", alloc):
        for act in (tx.assign_pool, tx.remove_pool):
            with pytest.raises(TypeError):
                act(wrong)
    with pytest.raises(ValueError, match="exposed"):
        tx.assign_pool(alloc.pool, exposed=True)
    with pytest.raises(bulk.TrustMismatchError, match="NONE"):
        tx.assign_pool(reserved.pool)
    assert alloc.pool.trust is Trust.UNINITIALIZED
    assert reserved.pool.trust is Trust.NONE
    assert tx.assigning.requests == {}


@pytest.mark.parametrize(
    "limits", [{"pools": 1}, {"pool_bytes": 4 * 4096 - 1}, {"buffers": 3}, {"total_bytes": 4 * 4096 - 1}], ids=str
)
def test_the_peers_limits_refuse_a_pool_and_leave_the_channel_working(world, limits):
    tx, rx = two(world, binder={"limits": bulk.Limits(**limits)})
    small = world.allocator(tx.domain, count=1)
    world.assign(tx, rx, small.pool)
    alloc = world.allocator(tx.domain, count=4)
    outcomes = []
    tx.assign_pool(alloc.pool, done=outcomes.append)
    pump(lambda: outcomes, tx, rx)
    assert isinstance(outcomes[0].error, bulk.LimitError)
    assert alloc.pool.trust is Trust.UNINITIALIZED
    assert len(rx.domain.pools) == 1
    tx.move(small.alloc())
    assert take(rx, EventKind.MOVE_RECEIVED)


def test_the_own_limit_of_pools_is_kept(world):
    tx, rx = two(world, limits=bulk.Limits(pools=1))
    first, second = world.allocator(tx.domain), world.allocator(tx.domain)
    world.assign(tx, rx, first.pool)
    with pytest.raises(bulk.LimitError):
        tx.assign_pool(second.pool)


def test_own_constraints_refuse_here_and_the_peers_refuse_there(world):
    tx, rx = two(world, binder={"constraints": bulk.Constraints(alignment=1 << 40)})
    alloc, own = world.allocator(tx.domain), world.allocator(rx.domain)
    outcomes = []
    tx.assign_pool(alloc.pool, done=outcomes.append)
    pump(lambda: outcomes, tx, rx)
    assert isinstance(outcomes[0].error, bulk.ConstraintError)
    with pytest.raises(bulk.ConstraintError, match="aligned"):
        rx.assign_pool(own.pool)
    assert rx.pools == tx.pools == ()
    assert list(rx.domain.pools.values()) == [own.pool]


def test_total_bytes_count_what_has_left_no_more(world):
    tx, rx = two(world, binder={"limits": bulk.Limits(total_bytes=4 * 4096)})
    for _ in range(5):
        alloc = world.allocator(tx.domain, count=4)
        world.assign(tx, rx, alloc.pool)
        together(lambda: take(rx, EventKind.POOL_REMOVED), lambda alloc=alloc: tx.remove_pool(alloc.pool))


def with_no_descriptors_left(call):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        return call()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("where", ["here", "there"])
def test_a_full_descriptor_table_fails_the_assignment_and_nothing_else(world, where):
    tx, rx = two(world)
    alloc = world.allocator(tx.domain)
    outcomes = []
    tx.assign_pool(alloc.pool, done=outcomes.append)
    assert nothing_comes(rx)
    if where == "here":
        assert with_no_descriptors_left(lambda: nothing_comes(tx))
        assert isinstance(outcomes[0].error, OSError)
        assert outcomes[0].error.errno == errno.EMFILE
    else:
        assert nothing_comes(tx)
        assert with_no_descriptors_left(lambda: nothing_comes(rx))
        pump(lambda: outcomes, tx, rx)
        assert isinstance(outcomes[0].error, bulk.LimitError)
    assert nothing_comes(rx)
    assert tx.pools == rx.pools == ()
    world.assign(tx, rx, alloc.pool)


# -- withdrawn -----------------------------------------------------------------------------------------------------


def test_an_assignment_that_is_not_answered_is_withdrawn_and_a_retry_works(world):
    tx, rx = two(world)
    alloc = world.allocator(tx.domain)
    for timeout in (0, 0.002):
        with pytest.raises(TimeoutError, match="no answer"):
            tx.assign_pool(alloc.pool, timeout=timeout)
        assert tx.pools == ()
        assert alloc.pool.trust is Trust.UNINITIALIZED
    there = world.assign(tx, rx, alloc.pool)
    assert nothing_comes(rx)
    tx.move(alloc.alloc())
    assert take(rx, EventKind.MOVE_RECEIVED).buffer.pool is there


def test_the_peer_forgets_what_was_withdrawn(world):
    tx, rx = two(world)
    alloc = world.allocator(tx.domain)
    with pytest.raises(TimeoutError):
        tx.assign_pool(alloc.pool, timeout=0)
    for end in (rx, tx, rx):
        assert nothing_comes(end)
    gc.collect()
    assert len(rx.domain.pools) == 0
    assert rx.pools == ()


@pytest.mark.parametrize("steps", range(6))
def test_an_acceptance_that_crosses_a_withdrawal_is_undone(world, steps):
    tx, rx = two(world)
    alloc = world.allocator(tx.domain)
    outcomes = []
    tx.assign_pool(alloc.pool, done=outcomes.append, timeout=None)
    request = next(iter(tx.assigning.requests.values()))
    for step in range(steps):
        meeting.drain((rx, tx)[step % 2])
    tx.assigning.withdraw(request)
    for end in (rx, tx, rx, tx):
        meeting.drain(end)
    assert bool(tx.pools) == bool(rx.pools) == any(outcome.error is None for outcome in outcomes)
    if not tx.pools:
        assert alloc.pool.trust is Trust.UNINITIALIZED
        assert len(rx.domain.pools) == 0
        world.assign(tx, rx, alloc.pool)
    tx.move(alloc.alloc())
    assert take(rx, EventKind.MOVE_RECEIVED)


def test_a_timeout_with_done_bounds_the_outcome(world):
    tx, rx = two(world)
    alloc = world.allocator(tx.domain)
    outcomes = []
    tx.assign_pool(alloc.pool, done=outcomes.append, timeout=0.002)
    serve(tx, tx.pending_outcomes)
    assert nothing_comes(tx)
    assert isinstance(outcomes[0].error, TimeoutError)
    assert tx.pools == ()
    world.assign(tx, rx, alloc.pool)


def test_a_timeout_with_done_is_kept_by_one_who_never_waits(world):
    tx, rx = two(world)
    alloc = world.allocator(tx.domain)
    outcomes = []
    tx.assign_pool(alloc.pool, done=outcomes.append, timeout=0.002)
    pump(lambda: outcomes, tx)
    assert isinstance(outcomes[0].error, TimeoutError)
    assert rx.pools == ()


def test_a_request_with_a_continuation_can_be_withdrawn(world):
    tx, rx = two(world)
    alloc = world.allocator(tx.domain)
    outcomes = []
    assert not tx.withdraw(alloc.pool)
    tx.assign_pool(alloc.pool, timeout=None, done=outcomes.append)
    assert tx.withdraw(alloc.pool)
    assert not tx.withdraw(alloc.pool)
    assert tx.pools == ()
    world.assign(tx, rx, alloc.pool)
    tx.remove_pool(alloc.pool, timeout=None, done=outcomes.append)
    assert tx.withdraw(alloc.pool)
    take(rx, EventKind.POOL_REMOVED)
    assert take(tx, EventKind.POOL_REMOVED).pool is alloc.pool  # the peer's answer decided
    assert not outcomes


def test_keyboard_interrupt_withdraws_an_assignment(world):
    tx, rx = two(world)
    alloc = world.allocator(tx.domain)
    with meeting.Interrupter(), pytest.raises(KeyboardInterrupt):
        tx.assign_pool(alloc.pool, timeout=None)
    assert tx.pools == ()
    assert alloc.pool.trust is Trust.UNINITIALIZED
    world.assign(tx, rx, alloc.pool)


def test_a_pool_assigned_to_a_peer_that_left_raises_the_end_and_is_not_reserved(world):
    tx, rx = two(world)
    alloc = world.allocator(tx.domain)
    rx.close()
    with pytest.raises(bulk.EndOfChannelError):
        tx.assign_pool(alloc.pool)
    assert alloc.pool.trust is Trust.UNINITIALIZED
    assert alloc.pool.channels == set()


def test_a_request_that_there_is_no_memory_to_answer_ends_the_channel_at_both_sides(world, monkeypatch):
    tx, rx, alloc, _ = world.line()

    def no_memory(message):
        raise MemoryError

    monkeypatch.setattr(rx.assigning, "on_remove_request", no_memory)
    asking = meeting.Background(lambda: tx.remove_pool(alloc.pool))
    with pytest.raises(bulk.BrokenChannelError, match="no memory to answer"):
        rx.receive()
    with pytest.raises(bulk.BrokenChannelError, match="the peer is gone"):
        asking.result()
