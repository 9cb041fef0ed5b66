"""The calls that make channels: create, bind and connect (I-5.2.2).

Knows: their arguments. Must not know: how a handshake goes (setup.py) or how a channel lives (channel.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .._native.outcome import Outcome
from .._native.waiting import in_callback
from ..abc import Codec
from ..errors import (
    BindRefusedError,
    ClosedChannelError,
    EndpointNotFoundError,
    WouldBlock,
)
from ..messages import Terms
from ..states import ChannelAct, Direction, Role, Trust
from . import ending
from .arguments import check_kind, check_meta_size, check_optional, check_trust
from .callbacks import Callbacks
from .channel import Channel
from .domain import Alarm, Domain, chosen_domain
from .knock import Knock
from .limits import Constraints, Limits
from .network import Network, options_for
from .plane import Done
from .scheme import backend_for
from .setup import Reception
from .waitset import WaitSet


def create(
    address: str,
    *,
    direction: Direction,
    trust: Trust,
    role: Role = Role.GENERIC,
    meta_size: int = 0,
    wait: str = "auto",
    callbacks: Callbacks | None = None,
    waitset: WaitSet | None = None,
    constraints: Constraints | None = None,
    limits: Limits | None = None,
    allow_users: Sequence[int | str] = (),
    user_state: Any = None,
    network: Network | None = None,
    domain: Domain | None = None,
) -> Channel:
    """Create `address` and one end of a channel there; somebody may bind the other (I-6.3.2).

    It returns at once, INITIALIZED. direction: of this end. wait: "auto" spins a while, then sleeps; "spin"; "block".
    Raises: ValueError, TypeError, TrustMismatchError (the backend does not offer it), OSError (EADDRINUSE: the name
    is taken), PermissionError, LimitError, ForkedError.
    """
    backend = backend_for(address)
    check_kind("direction", direction, Direction)
    check_kind("role", role, Role)
    check_trust(trust, backend, open_allowed=False)
    check_meta_size(meta_size)
    check_optional("waitset", waitset, WaitSet)
    options = options_for(backend, address, network)
    channel = Channel(
        chosen_domain(domain),
        address,
        backend.codec,
        spins=backend.spins,
        wait=wait,
        callbacks=callbacks,
        constraints=constraints,
        limits=limits,
        user_state=user_state,
    )
    rendezvous = backend.listen(address, backlog=min(64, channel.limits.half_open), allow_users=allow_users, **options)
    channel.address = rendezvous.address
    channel.open_for(direction, trust, role, meta_size)
    reception = channel.beacon, channel, backend.codec, channel.limits, rendezvous
    try:
        channel.reception = Reception(*reception, exclusive=True)
    except BaseException:
        rendezvous.close()  # the address is free again
        ending.finish(channel, ClosedChannelError, f"{channel.describe()}: it was never created")
        raise
    if waitset is not None:
        waitset.add(channel)
    return channel


def bind(
    address: str,
    *,
    trust: Trust = Trust.UNINITIALIZED,
    role: Role = Role.GENERIC,
    wait: str = "auto",
    callbacks: Callbacks | None = None,
    waitset: WaitSet | None = None,
    constraints: Constraints | None = None,
    limits: Limits | None = None,
    owner: int | str | None = None,
    timeout: float | None = 10.0,
    done: Done | None = None,
    user_state: Any = None,
    network: Network | None = None,
    domain: Domain | None = None,
) -> Channel:
    """Bind to the channel that somebody created, or creates within `timeout` seconds, at `address` (I-6.3.2).

    trust: exactly that, or whatever the creator decided. With `done` the call returns at once, BINDING.
    Raises: EndpointNotFoundError, TimeoutError (the creator does not answer), BindRefusedError, TrustMismatchError,
    RoleConflictError, ValueError, TypeError, PermissionError, WouldBlock (inside a callback; use `done`), ForkedError.
    """
    backend = backend_for(address)
    check_optional("waitset", waitset, WaitSet)
    binder = Binder(address, backend.codec, backend.spins, trust, role, wait, callbacks, constraints, limits, domain, 1)
    binder.channel.user_state = user_state
    check_trust(trust, backend, open_allowed=True)
    options = options_for(backend, address, network)
    binder.run(lambda: binder.knock.start(backend, address, owner, options), timeout, done)
    if waitset is not None:
        waitset.add(binder.channel)
    return binder.channel


def connect(
    address: str,
    *,
    trust: Trust = Trust.UNINITIALIZED,
    role: Role = Role.GENERIC,
    wait: str = "auto",
    callbacks: Callbacks | None = None,
    constraints: Constraints | None = None,
    limits: Limits | None = None,
    owner: int | str | None = None,
    timeout: float | None = 10.0,
    done: Done | None = None,
    network: Network | None = None,
    domain: Domain | None = None,
) -> tuple[Channel, ...]:
    """Bind to every channel that a listener offers at `address`: all of them or none (I-8.5).

    With `done` the call returns at once the first channel alone, BINDING; `outcome.channel` is the tuple of all.
    Raises: as bind.
    """
    backend = backend_for(address)
    check_trust(trust, backend, open_allowed=True)
    binder = Binder(
        address, backend.codec, backend.spins, trust, role, wait, callbacks, constraints, limits, domain, None
    )
    options = options_for(backend, address, network)
    binder.run(lambda: binder.knock.start(backend, address, owner, options), timeout, done)
    return tuple(binder.channels)


class Binder:
    """The binding side of one connection, from the call to its outcome."""

    def __init__(
        self,
        address: str,
        codec: Codec,
        spins: bool,
        trust: Trust,
        role: Role,
        wait: str,
        callbacks: Callbacks | None,
        constraints: Constraints | None,
        limits: Limits | None,
        domain: Domain | None,
        count: int | None,
    ) -> None:
        check_kind("role", role, Role)
        check_trust(trust, None, open_allowed=True)
        self.address = address
        self.count = count
        self.done: Done | None = None
        self.timeout: float | None = None
        self.alarm: Alarm | None = None
        self.domain = chosen_domain(domain)

        def new() -> Channel:
            return Channel(
                self.domain,
                address,
                codec,
                spins=spins,
                wait=wait,
                callbacks=callbacks,
                constraints=constraints,
                limits=limits,
            )

        self.new = new
        self.channel = new()
        self.channels = [self.channel]
        self.knock = Knock(self.channel.beacon, codec, self.channel.limits, trust, role, self.make)
        self.knock.on_finish = self.on_finish

    def make(self, terms: Sequence[Terms]) -> Sequence[Channel]:
        """The channels for what is offered. Raises: BindRefusedError (not one where one was asked for), LimitError."""
        if self.count is not None and len(terms) != self.count:
            raise BindRefusedError(f"bind to {self.address}: {len(terms)} channels are offered there; use bulk.connect")
        self.channels += [self.new() for _ in terms[1:]]
        return self.channels

    def run(self, start: Callable[[], None], timeout: float | None, done: Done | None) -> None:
        """Bind, or have it done. Raises: what bind documents."""
        if done is not None and not callable(done):
            raise TypeError(f"done={done!r} cannot be called")
        if done is None and in_callback():
            raise WouldBlock(f"bind to {self.address}: it would wait inside a callback; use done=")
        channel, knock = self.channel, self.knock
        channel.step(ChannelAct.BIND)
        try:
            start()
            if done is not None:
                self.done, self.timeout = done, timeout
                channel.knock = knock
                channel.binder = self
                if knock.finished:
                    self.on_finish()
                elif timeout is not None:
                    self.alarm = channel.beacon.call_after(timeout, self.expire)
                return
            if not channel.wait_for(lambda: knock.finished, timeout):
                knock.finish(self.too_late(timeout))
            if knock.error is not None:
                raise knock.error
        except BaseException:
            knock.finish(ClosedChannelError(f"bind to {self.address}: given up"))
            self.give_up("the binding failed")
            raise

    def too_late(self, timeout: float | None) -> TimeoutError:
        """What to raise when the time is over."""
        if not self.knock.found:
            return EndpointNotFoundError(f"bind to {self.address}: nobody created it within {timeout} s")
        return TimeoutError(f"bind to {self.address}: its creator did not answer within {timeout} s")

    def expire(self) -> None:
        """The time of a bind with a continuation is over."""
        self.knock.finish(self.too_late(self.timeout))

    def on_finish(self) -> None:
        """Tell the continuation."""
        if self.done is None:
            return
        done, self.done = self.done, None
        if self.alarm is not None:
            self.channel.beacon.cancel(self.alarm)
            self.alarm = None
        error = self.knock.error
        made = self.channel if self.count is not None else tuple(self.channels)
        self.channel.expect_now(done, Outcome("bind", made, error))
        self.channel.knock = self.channel.binder = None
        if error is not None:
            self.give_up(str(error))

    def give_up(self, reason: str) -> None:
        """None of the channels exists."""
        for channel in self.channels:
            if channel.linked:  # confirmed already: the creator hears that it ends, in order
                channel.close()
            ending.finish(channel, ClosedChannelError, f"{channel.describe()}: it was never bound: {reason}")
