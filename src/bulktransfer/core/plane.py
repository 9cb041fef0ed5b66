"""The control plane of a channel: its state, its set-up, its control messages, its descriptors.

Knows: what each message and each answer of the hot half (ChannelCore) asks of which part. Must not know: rings and
ledgers, bytes (the codec of its backend), or the calls of users (channel.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from .._native import kernel
from .._native.event import Event, make_event
from .._native.outcome import Outcome
from .._native.pool import Pool
from .._native.waiting import call_back
from ..abc import Codec, Peer
from ..errors import (
    BindRefusedError,
    BrokenChannelError,
    BulkError,
    ChannelStateError,
    ClosedChannelError,
    LimitError,
    ProtocolViolation,
    RoleConflictError,
    TrustMismatchError,
)
from ..messages import (
    AssignAnswer,
    AssignDone,
    AssignMemory,
    AssignRequest,
    Hello,
    Leases,
    Message,
    RemoveAnswer,
    RemoveRequest,
    Teardown,
    TeardownAnswer,
    Terms,
    Withdraw,
)
from ..states import ChannelAct, ChannelState, Direction, EventKind, Role, Trust, agree_roles, step_channel
from . import ending, harden, logs, showing, twin
from .arguments import WAITS, check_optional, check_wait
from .assign import Assigning
from .callbacks import Callbacks
from .deferral import Answer
from .descriptor import Descriptors
from .domain import Domain
from .identity import Identity, identify
from .interrupts import INTERRUPTS
from .knock import Knock
from .limits import Constraints, Limits
from .setup import Joined, Reception

STATES = {state.value: state for state in ChannelState}
Done = Callable[[Outcome], object]
NOBODY = Peer(-1, -1, -1)


class ChannelPlane(Descriptors):
    """One direction of data between two endpoints (I-4.2.3); made by create, bind, listen, connect and pair."""

    def __init__(
        self,
        domain: Domain,
        address: str,
        codec: Codec,
        *,
        spins: bool,
        wait: str,
        callbacks: Callbacks | None,
        constraints: Constraints | None,
        limits: Limits | None,
        user_state: Any = None,
    ) -> None:
        check_wait(wait)
        check_optional("callbacks", callbacks, Callbacks)
        check_optional("constraints", constraints, Constraints)
        check_optional("limits", limits, Limits)
        super().__init__(domain)
        self.waiters = domain.waiters
        self.address = address
        self.codec = codec
        self.callbacks = callbacks if callbacks is not None else Callbacks()
        self.constraints = constraints
        self.limits = limits if limits is not None else Limits()
        self.user_state = user_state
        self.peer = NOBODY
        self.peer_identity: Identity | None = None
        self.direction = Direction.TX
        self.role = Role.GENERIC
        self.trust = Trust.UNINITIALIZED
        self.assigning = Assigning(self)
        self.reception: Reception | None = None
        self.knock: Knock | None = None
        self.binder: Any = None
        self.offer: Terms | None = None
        self.spin_mode = WAITS[wait] if spins else 0
        self._finalizing = False
        self.farewell: Any = None  # a channel.Farewell, while the channel is torn down
        self.waitsets: set[Any] = set()
        self.stranded: list[Any] = []  # what was to go back and cannot any more, until the end
        self.asked: Event | None = None  # what a callback that may veto is asked now
        self.answer: Answer | None = None  # that it left open
        self.set_callbacks(self.callbacks)
        domain.enroll(self, self.limits.channels)

    def set_callbacks(self, callbacks: Callbacks) -> None:
        """Tell others from now on; what has arrived already goes to them too. Raises: TypeError."""
        if not isinstance(callbacks, Callbacks):
            raise TypeError(f"callbacks={callbacks!r}; it takes bulk.Callbacks")
        self.callbacks = callbacks
        self.set_handlers(callbacks.handlers())

    # ---- what it is ----

    def set_waits(self) -> bool:
        """Whether a thread waits on a wait set that has this channel."""
        return any(waitset.waiting for waitset in self.waitsets)

    @property
    def state(self) -> ChannelState:
        """Where the channel is in its life (I-6.2.1)."""
        return STATES[self.stage]

    @property
    def pools(self) -> tuple[Pool, ...]:
        """The pools that are assigned to the channel."""
        return self.assigning.pools()

    @property
    def finalizing(self) -> bool:
        """Whether the channel was dropped and a finalizer closes it: no user code runs then (rule 15)."""
        return self._finalizing

    def describe(self) -> str:
        """Name the channel for messages."""
        return f"channel {self.address or self.number}"

    def __repr__(self) -> str:
        end = "source" if self.is_source else "sink"
        trust = self.trust.name
        return f"<Channel {self.address or self.number}: {end}, {self.role.name}, trust {trust}, {self.state.name}>"

    def step(self, act: ChannelAct) -> None:
        """Do a transition of the table. Raises: ChannelStateError (there is no such row)."""
        following = step_channel(self.state, act)
        if following is None:
            raise ChannelStateError(f"{act.name.lower()} of {self!r}: not in state {self.state.name}")
        self.stage = following.value
        showing.show(self)

    def check_connected(self, act: str) -> None:
        """Raise what keeps the channel from doing `act`."""
        self.check_fork()
        if self.state is not ChannelState.CONNECTED or self.hung_up:
            self._refuse_send(act)

    # ---- set-up, the creator's side (an Owner in the sense of setup.py) ----

    def open_for(self, direction: Direction, trust: Trust, role: Role, meta_size: int) -> None:
        """Fix what the creator fixes (rule 2)."""
        self.direction = direction
        self.is_source = direction is Direction.TX
        self.trust = trust
        self.role = role
        self.meta_size = meta_size
        stage_size = 0 if twin.shares_memory(trust) else self.limits.stage_size
        self.offer = Terms(direction.other, role, trust, meta_size, self.limits.slot_count, stage_size)
        self.step(ChannelAct.CREATE)

    def terms_for(self, hello: Hello) -> Terms:
        """The terms for a binder. Raises: BulkError (it asks for something else)."""
        assert self.offer is not None
        if hello.trust not in (Trust.UNINITIALIZED, self.offer.trust):
            raise TrustMismatchError(
                f"the channel has trust {self.offer.trust.name}, the binder asks for {hello.trust.name}"
            )
        roles = agree_roles(self.offer.role, hello.role)
        if roles is None:
            raise RoleConflictError(f"both sides ask for the role {hello.role.name}")
        self.role = roles[0]
        return dataclasses.replace(self.offer, role=roles[1])

    def greet(self, peer: Peer, hello: Hello) -> Sequence[tuple[Any, Terms]]:
        """A binder is here. Raises: BulkError (refused)."""
        if self.state is not ChannelState.INITIALIZED:
            raise BindRefusedError(f"{self.address} is bound already, to {self.peer}")
        terms = self.terms_for(hello)
        self.peer = peer
        self.step(ChannelAct.HELLO_RECEIVED)
        callback = self.callbacks.bind_received
        if callback is not None:
            try:
                self.run_veto(callback, make_event(EventKind.BIND_RECEIVED, self))
            except BaseException as veto:
                self.lost((), f"vetoed: {veto}")
                if not isinstance(veto, Exception):
                    raise
                raise BindRefusedError(f"the creator of {self.address} refused: {veto}") from veto
            if self.stage != ChannelState.BIND_NEGOTIATE.value:
                raise BindRefusedError(f"the creator of {self.address} closed it")
        return [(self, terms)]

    def joined(self, channels: Sequence[Any], parts: Sequence[Joined]) -> None:
        """The binder confirmed: connected."""
        self.step(ChannelAct.CONFIRMED)
        self.connect_link(parts[0])
        if self.callbacks.bind_received is None:
            self.queue_event(make_event(EventKind.BIND_RECEIVED, self))
        self.kick_all()

    def lost(self, channels: Sequence[Any], reason: str) -> None:
        """The binder withdrew: back to INITIALIZED (rule 3); the other end of a pair cannot come again."""
        if self.state is ChannelState.BIND_NEGOTIATE:
            self.step(ChannelAct.WITHDRAWN)
            assert self.offer is not None
            self.role = self.offer.role
            self.peer = NOBODY
        if self.reception is not None and self.reception.rendezvous is None and self.state is ChannelState.INITIALIZED:
            ending.finish(self, BrokenChannelError, f"{self.describe()}: the other end of the pair is gone: {reason}")

    # ---- set-up, the binder's side ----

    def bound(self, part: Joined) -> None:
        """The creator's welcome was accepted: connected."""
        self.direction = part.terms.direction
        self.is_source = self.direction is Direction.TX
        self.role = part.terms.role
        self.trust = part.terms.trust
        if self.state is ChannelState.UNINITIALIZED:
            self.step(ChannelAct.BIND)
        self.step(ChannelAct.WELCOMED)
        self.connect_link(part)

    def connect_link(self, part: Joined) -> None:
        """Take over socket and outboxes."""
        harden.warn_if_open(self.trust, part.peer)
        self.peer = part.peer
        self.peer_identity = identify(part.peer, part.peer_domain)
        self.same_domain = part.same_domain
        self.yields = _may_share_core(part.peer.pid)
        stages = twin.stages(self.is_source, part)
        part.ends.open(self, part.terms, *stages, self.spin_mode > 0, self.yields)
        self.watch_peer(part.peer.pid)
        if self.by_value and not self.is_source:
            self.lay_bed()  # before the helper watches: see wait.h
            self.attach_carrier()
            self.grant_frames(self.limits.frames)
        self.domain.set_loose(self)
        self.beacon.dim()
        if self._poller is not None:
            self.watch_poller()
            self._poke()
        showing.show(self)
        logs.connected(self)

    def drop_set_up(self) -> None:
        """Let the address go."""
        if self.reception is not None:
            self.reception.close()
        if self.knock is not None:
            self.knock.finish(ClosedChannelError(f"{self.describe()}: closed while binding"))
            self.knock = None

    # ---- control messages ----

    def say(self, message: Message, fds: Sequence[kernel.Descriptor] = ()) -> None:
        """Send a control message, in order with the transfers. Raises: OSError."""
        self.send_control(self.codec.encode(message), fds)

    def say_if_possible(self, message: Message) -> None:
        """The same, to a peer that may be gone."""
        if self.linked and not self.hung_up:
            with contextlib.suppress(OSError):
                self.say(message)

    def run_veto(self, callback: Callable[[Event], object], event: Event) -> Answer | None:
        """Ask a callback that may refuse by raising; the answer that it left open, if it did."""
        if self.registered:
            self.domain.set_loose(self)  # nobody can serve it before this is over
        self.ask(event)
        try:
            with self.domain.aside(), INTERRUPTS.let_through():
                call_back(callback, event)
            return self.answer
        except BaseException:
            if self.answer is not None:
                self.answer.overrule()
            raise
        finally:
            self.ask(None)

    def ask(self, event: Event | None) -> None:
        """This is what a callback is asked now."""
        self.asked, self.answer = event, None

    def expect_now(self, done: Done, outcome: Outcome) -> None:
        """A control request was answered: its continuation runs with the next dispatch or receive."""
        self.settled(outcome, done)
        self.kick_all()

    # ---- answers to ChannelCore ----

    def _control(self) -> None:
        with INTERRUPTS.held_off():
            self.begun = True
            event = self._answer()
            if event is not None:
                self.queue_event(event)

    def _answer(self) -> Event | None:
        got = self.next_message()
        if got is None:
            if self.hung_up:
                raise_from_hang_up(self)
            self._violation("a ring entry announced a control message that did not come")
        data, fds, lost = got
        if lost == "truncated":
            self._violation("descriptors were lost on the way")
        try:
            message = self.codec.decode(data)
            if lost:
                self._lost(message)
                return None
            return self._handle(message, fds)
        except ProtocolViolation as error:
            if self.ended is not None:
                raise
            self._violation(error.strerror or str(error))
        except OSError as error:  # the answer could not be sent
            if isinstance(error, BulkError):
                raise
            if not isinstance(error, ConnectionError):  # its last words are still to be read
                self.hung_up = True
        except MemoryError:  # what was asked for may be half done, and nobody would ever answer it
            ending.finish(self, BrokenChannelError, f"{self.describe()}: no memory to answer the peer")
        return None

    def _handle(self, message: Message, fds: list[kernel.Descriptor]) -> Event | None:
        assigning = self.assigning
        if self.ended is not None:  # this side closed the channel: what else the peer asks is void
            if isinstance(message, Leases):  # but the buffers behind these are taken
                assigning.on_leases(message, fds)
            return None
        if fds and not isinstance(message, AssignMemory | AssignDone | Leases):
            raise ProtocolViolation(f"{len(fds)} descriptors beside {type(message).__name__}")
        match message:
            case AssignRequest():
                return assigning.on_assign_request(message)
            case AssignAnswer():
                assigning.on_assign_answer(message)
            case AssignMemory():
                return assigning.on_assign_memory(message, fds)
            case AssignDone():
                assigning.on_assign_done(message, fds)
            case Leases():
                assigning.on_leases(message, fds)
            case RemoveRequest():
                return assigning.on_remove_request(message)
            case RemoveAnswer():
                assigning.on_remove_answer(message)
            case Withdraw():
                return assigning.on_withdraw(message)
            case Teardown():
                return ending.on_teardown(self, message.reason, message.final, TeardownAnswer())
            case TeardownAnswer():
                if self.state is not ChannelState.TEARDOWN:
                    raise ProtocolViolation("an answer to a teardown that was not asked for")
                ending.finish(self, ClosedChannelError, f"{self.describe()}: closed by this side", graceful=True)
            case _:
                raise ProtocolViolation(f"{type(message).__name__} on a connected channel")
        return None

    def _lost(self, message: Message) -> None:
        """Descriptors that came with a message are lost, since this process can have no more."""
        error = LimitError("no descriptors are left for what the peer sent")
        if isinstance(message, AssignMemory):
            self.assigning.refuse_memory(message, error)
        elif isinstance(message, AssignDone):
            self.assigning.give_up(message.request, error)
        else:
            self.assigning.no_leases(error)

    def _violation(self, rule: str) -> NoReturn:
        raise ending.violation(self, rule)

    def _hang_up(self) -> None:
        ending.on_hang_up(self)

    def _raise_end(self, act: str) -> NoReturn:
        assert self.ended is not None
        cls, message, buffers = self.ended
        raise cls(f"{act}: {message}", reason=message, buffers=buffers)

    def _refuse_send(self, act: str) -> None:
        if self.hung_up and self.ended is None and self.busy == 0:
            self.serve()
        if self.ended is not None:
            self._raise_end(act)
        if self.hung_up:
            raise BrokenChannelError(f"{act} on {self!r}: the peer is gone")
        raise ChannelStateError(f"{act} on {self!r}: not in state {self.state.name}")

    def _serve_domain(self) -> None:
        self.domain.serve()

    def _serve_set_up(self) -> None:
        self.domain.serve()

    def on_readable(self) -> None:
        """Something came while nobody waits on this channel: serve it, for others. What ends it, its own calls tell."""
        try:
            self.serve()
        except BulkError:
            if self.ended is None:
                raise

    def drop_queued(self, kind: str) -> None:
        """Take the first queued event of a kind away."""
        self.remove_queued(list(EventKind).index(EventKind(kind)))


def raise_from_hang_up(channel: ChannelPlane) -> NoReturn:
    """The peer died between a ring entry and its message: what it had published is taken up to here."""
    ending.finish(channel, BrokenChannelError, f"{channel.describe()}: the peer is gone ({channel.peer})")
    channel._raise_end("receive")


def _may_share_core(pid: int) -> bool:
    """Whether this thread has one core only, which the peer may need to get on: whoever spins gives way then."""
    own = os.sched_getaffinity(0)
    if len(own) > 1:
        return False
    try:
        return pid == os.getpid() or os.sched_getaffinity(pid) <= own  # threads of one process may differ
    except OSError:  # it is on another machine, or nobody knows where
        return True
