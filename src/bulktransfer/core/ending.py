"""The end of a channel: in order, by close, by death, by violation (design rules 14 to 17).

Knows: what each end means for buffers, requests and waiting threads, and that leases tell when memory that left
may be used again. Must not know: how a message becomes bytes.
"""

from __future__ import annotations

from typing import Any

from .._native.buffer import Buffer
from .._native.event import Event, make_event
from ..errors import (
    BrokenChannelError,
    BulkError,
    ClosedChannelError,
    EndOfChannelError,
    ProtocolViolation,
)
from ..states import ChannelAct, ChannelState, EventKind
from . import far, leases, logs

EndError = type[ClosedChannelError] | type[EndOfChannelError] | type[BrokenChannelError] | type[ProtocolViolation]


def end_assignments(channel: Any) -> tuple[Buffer, ...]:
    """Every assignment of an ending channel: reclaim, or keep as detached. Returns the buffers that were away."""
    away: list[Buffer] = []
    for assignment in [a for a in channel.table if a is not None]:
        pool = assignment.pool
        if not (assignment.active or assignment.removing):
            if assignment.retired:
                assignment.take_back_refused()
            channel.assigning.forget(assignment)
            continue
        pool.channels.discard(channel.number)
        if assignment.reclaims:
            away.extend(pool[i] for i in assignment.away())
            watch = leases.LeaseWatch(channel.domain, assignment)
            if assignment.outstanding:
                watch.start()
            else:
                watch.stop()
        elif channel.is_far and assignment.lease is not None:
            far.Tether(channel.domain, assignment).start()
        elif assignment.held is not None:
            assignment.held.close()  # nothing of the peer's memory is read any more
        if not pool.channels and not pool.ended and pool.home:
            pool.trust = pool.given_trust
    return tuple(away)


def look_at_leases(channel: Any) -> None:
    """What is away of an ended channel's pools may be free already; a finalizer leaves that to whoever serves next."""
    pools = {a.pool.id: a.pool for a in channel.table if a is not None and a.pool.ended}
    for pool in pools.values():
        if channel.finalizing:
            leases.due(pool)
            channel.domain.kick()
        else:
            leases.check(pool)
            leases.due(pool)


def finish(channel: Any, cls: EndError, message: str, *, graceful: bool = False) -> BulkError | None:
    """End a channel: everything that arrived stays to be received, then calls raise `cls`. Idempotent.

    Returns the error that later calls raise, None if the channel had ended before.
    """
    with channel.domain.lock:
        if channel.ended is not None:
            return None
        was_linked = channel.linked
        channel.ended = (cls, message, ())
        channel.step(ChannelAct.CLOSE)
    channel.note_passed()  # first: a refusal that is read later was made later
    if was_linked and cls is not ProtocolViolation:
        drain_quietly(channel)
    channel.settle_outcomes(None if graceful else cls(message))
    if channel.registered:
        channel.registered = False
        channel.domain.unwatch(channel.socket_fd())
    channel.domain.waiters.loose.discard(channel.number)
    channel.unwatch_poller()
    if cls is not ClosedChannelError and not graceful:
        channel.hung_up = True  # nobody takes what waits to be sent
    channel.close_link()
    channel.drop_set_up()
    # after the link: what the peer still holds is a matter of leases now
    buffers = end_assignments(channel) if was_linked else ()
    channel.ended = (cls, message, buffers)
    while channel.stranded:
        channel.stranded.pop().let_go(channel)
    for assignment in [a for a in channel.table if a is not None]:
        channel.domain.pool_quiet(assignment.pool)  # first: a pool that leaves takes nothing back (rule 14)
    if was_linked:
        look_at_leases(channel)
    error = cls(message, buffers=buffers)
    channel.assigning.end(error)
    if channel.farewell is not None:
        channel.farewell.ended(None if graceful or cls is EndOfChannelError else error)
    for waitset in tuple(channel.waitsets):
        waitset.ended(channel)
    channel.kick_all()
    logs.ended(channel, *channel.ended[:2])
    return error


def drain_quietly(channel: Any) -> None:
    """Take what the peer had published; a peer that breaks a rule in its last words ends the taking."""
    try:
        channel.drain_all()
    except ProtocolViolation as violation:
        cls, _, buffers = channel.ended
        if cls is not ClosedChannelError:
            channel.ended = (ProtocolViolation, str(violation), buffers)
    except BulkError:
        return  # an entry announced a message that never came: there is nothing more to take
    except OSError:
        return  # trust HALF: the kernel maps nothing more; what cannot be taken comes back to its assigner by the lease


def on_teardown(channel: Any, reason: str, final: bool, answer: Any) -> Event | None:
    """The peer ends the channel in order, or says what broke; everything that it sent before is taken."""
    broken = final and bool(reason)
    crossing = channel.state is ChannelState.TEARDOWN and not broken
    channel.step(ChannelAct.TEARDOWN_RECEIVED)
    if not final:
        channel.say_if_possible(answer)
    text = f"{channel.describe()}: the peer ended the channel in order{f': {reason}' if reason else ''}"
    if crossing:
        finish(channel, ClosedChannelError, f"{channel.describe()}: closed by this side", graceful=True)
        return None
    if broken:
        error = finish(channel, BrokenChannelError, f"{channel.describe()}: the peer says what broke: {reason}")
    else:
        error = finish(channel, EndOfChannelError, text, graceful=not final)
    buffers = getattr(error, "buffers", ())
    return make_event(EventKind.TEARDOWN_RECEIVED, channel, buffers=buffers, error=error if broken else None)


def on_hang_up(channel: Any) -> None:
    """The connection is gone; what the peer had published, its farewell included, is taken first."""
    drain_quietly_or_break(channel)
    if channel.ended is not None:
        return
    rule = channel.broken_rule()
    if rule is not None:
        violation(channel, rule)
        return
    error = finish(channel, BrokenChannelError, f"{channel.describe()}: the peer is gone ({channel.peer})")
    if channel.callbacks.teardown_received is not None and error is not None:
        channel.queue_event(
            make_event(EventKind.TEARDOWN_RECEIVED, channel, buffers=getattr(error, "buffers", ()), error=error)
        )


def drain_quietly_or_break(channel: Any) -> None:
    """Take everything, unless taking it ends the channel."""
    try:
        channel.drain_all()
    except ProtocolViolation:
        assert channel.ended is not None  # the violation closed it


def violation(channel: Any, rule: str) -> ProtocolViolation:
    """The peer broke a rule: the channel closes, the others do not notice (design section 8, rule 5)."""
    error = finish(channel, ProtocolViolation, f"{channel.describe()}: the peer broke a rule: {rule}")
    if isinstance(error, ProtocolViolation):
        error.reason = rule
        return error
    return ProtocolViolation(f"{channel.describe()}: the peer broke a rule: {rule}", reason=rule)
