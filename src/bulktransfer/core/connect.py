"""The calls that make channels: create and bind, listen and connect, pair (I-5.2.2).

Knows: their arguments. Must not know: how a handshake goes (setup.py) or how a channel lives (channel.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .._native import kernel
from .._native.channel import Outcome, in_callback
from ..abc import Backend, Codec, Connection, Peer
from ..errors import (
    BindRefusedError,
    ClosedChannelError,
    EndpointNotFoundError,
    TrustMismatchError,
    WouldBlock,
)
from ..messages import Hello, Terms
from ..states import ChannelAct, Direction, Role, Trust
from . import ending
from .callbacks import Callbacks
from .channel import NOBODY, Channel, Done
from .domain import Domain, current_domain
from .limits import Constraints, Limits
from .scheme import backend_for
from .setup import Joined, Knock, Reception

META_MAX = 2048
_pair_numbers = itertools.count(1)


def check_trust(trust: Any, backend: Backend | None, *, open_allowed: bool) -> Trust:
    """Judge a trust argument. Raises: TypeError, ValueError, TrustMismatchError (the backend does not offer it)."""
    if not isinstance(trust, Trust):
        raise TypeError(f"trust={trust!r}; say Trust.NONE, isolated, or leave it out")
    if trust is Trust.UNINITIALIZED:
        if open_allowed:
            return trust
        raise ValueError("trust=UNINITIALIZED: the creator decides on the trust level, so it names one")
    if backend is not None and trust not in backend.trusts:
        offered = ", ".join(t.name for t in backend.trusts)
        raise TrustMismatchError(f"trust {trust.name}: {backend.scheme}: offers {offered} only")
    return trust


def check_kind(name: str, value: Any, cls: type) -> None:
    """Judge an enum argument. Raises: TypeError."""
    if not isinstance(value, cls):
        raise TypeError(f"{name}={value!r}; it takes a {cls.__name__}")


def check_meta_size(meta_size: Any) -> None:
    """Judge a meta size. Raises: TypeError, ValueError."""
    if isinstance(meta_size, bool) or not isinstance(meta_size, int):
        raise TypeError(f"meta_size={meta_size!r}; it takes an int")
    if not 0 <= meta_size <= META_MAX:
        raise ValueError(f"meta_size={meta_size}; it takes 0 to {META_MAX} bytes")


def create(
    address: str,
    *,
    direction: Direction,
    trust: Trust,
    role: Role = Role.GENERIC,
    meta_size: int = 0,
    wait: str = "auto",
    callbacks: Callbacks | None = None,
    waitset: Any = None,
    constraints: Constraints | None = None,
    limits: Limits | None = None,
    allow_users: Sequence[int | str] = (),
    user_state: Any = None,
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
    channel = Channel(
        domain if domain is not None else current_domain(),
        address,
        backend.codec,
        spins=backend.spins,
        wait=wait,
        callbacks=callbacks,
        constraints=constraints,
        limits=limits,
        user_state=user_state,
    )
    rendezvous = backend.listen(address, backlog=min(64, channel.limits.half_open), allow_users=allow_users)
    channel.address = rendezvous.address
    channel.open_for(direction, trust, role, meta_size)
    channel.reception = Reception(channel.domain, channel, backend.codec, channel.limits, rendezvous, exclusive=True)
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
    waitset: Any = None,
    constraints: Constraints | None = None,
    limits: Limits | None = None,
    owner: int | str | None = None,
    timeout: float | None = 10.0,
    done: Done | None = None,
    user_state: Any = None,
    domain: Domain | None = None,
) -> Channel:
    """Bind to the channel that somebody created, or creates within `timeout` seconds, at `address` (I-6.3.2).

    trust: exactly that, or whatever the creator decided. With `done` the call returns at once, BINDING.
    Raises: EndpointNotFoundError, TimeoutError (the creator does not answer), BindRefusedError, TrustMismatchError,
    RoleConflictError, ValueError, TypeError, PermissionError, WouldBlock (inside a callback; use `done`), ForkedError.
    """
    backend = backend_for(address)
    binder = Binder(address, backend.codec, backend.spins, trust, role, wait, callbacks, constraints, limits, domain, 1)
    binder.channel.user_state = user_state
    check_trust(trust, backend, open_allowed=True)
    binder.run(lambda: binder.knock.start(backend, address, owner), timeout, done)
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
    domain: Domain | None = None,
) -> tuple[Channel, ...]:
    """Bind to every channel that a listener offers at `address`: all of them or none (I-8.5).

    Raises: as bind.
    """
    backend = backend_for(address)
    check_trust(trust, backend, open_allowed=True)
    binder = Binder(
        address, backend.codec, backend.spins, trust, role, wait, callbacks, constraints, limits, domain, None
    )
    binder.run(lambda: binder.knock.start(backend, address, owner), timeout, None)
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
        self.domain = domain if domain is not None else current_domain()

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
        self.knock = Knock(self.domain, codec, self.channel.limits, trust, role, self.make)
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
                    self.domain.call_after(timeout, self.expire)
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
        error = self.knock.error
        self.channel.expect_now(done, Outcome("bind", self.channel, error))
        self.channel.knock = self.channel.binder = None
        if error is not None:
            self.give_up(str(error))

    def give_up(self, reason: str) -> None:
        """None of the channels exists."""
        for channel in self.channels:
            ending.finish(channel, ClosedChannelError, f"{channel.describe()}: it was never bound: {reason}")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChannelSpec:
    """One channel that a listener offers to each client, from the listener's end. Raises: TypeError, ValueError."""

    direction: Direction
    trust: Trust
    role: Role = Role.GENERIC
    meta_size: int = 0
    wait: str = "auto"
    callbacks: Callbacks | None = None
    constraints: Constraints | None = None

    def __post_init__(self) -> None:
        check_kind("direction", self.direction, Direction)
        check_kind("role", self.role, Role)
        check_trust(self.trust, None, open_allowed=False)
        check_meta_size(self.meta_size)


class Listener:
    """Accepts many clients at one address, several channels each (I-8.5); made by bulk.listen."""

    def __init__(
        self,
        backend: Backend,
        address: str,
        specs: Sequence[ChannelSpec],
        limits: Limits | None,
        backlog: int,
        allow_users: Sequence[int | str],
        domain: Domain | None,
    ) -> None:
        if not specs:
            raise ValueError("a listener without channels")
        for spec in specs:
            if not isinstance(spec, ChannelSpec):
                raise TypeError(f"listen takes ChannelSpecs, not {type(spec).__name__}")
            check_trust(spec.trust, backend, open_allowed=False)
        self.domain = domain if domain is not None else current_domain()
        self.domain.check_fork()
        self.limits = limits if limits is not None else Limits()
        self.specs = tuple(specs)
        self._backend = backend
        self._ready: deque[tuple[Channel, ...]] = deque()
        self._greeted: set[tuple[Channel, ...]] = set()
        self._poller: kernel.Descriptor | None = None
        self._signal: kernel.Descriptor | None = None
        self._reception: Reception | None = None
        rendezvous = backend.listen(address, backlog=backlog, allow_users=allow_users)
        self.address = rendezvous.address
        self._reception = Reception(self.domain, self, backend.codec, self.limits, rendezvous, exclusive=False)

    def greet(self, peer: Peer, hello: Hello) -> Sequence[tuple[Any, Terms]]:
        """New channels for a client. Raises: BulkError (refused)."""
        offers: list[tuple[Channel, Terms]] = []
        channels: list[Channel] = []
        try:
            for spec in self.specs:
                channel = Channel(
                    self.domain,
                    self.address,
                    self._backend.codec,
                    spins=self._backend.spins,
                    wait=spec.wait,
                    callbacks=spec.callbacks,
                    constraints=spec.constraints,
                    limits=self.limits,
                )
                channels.append(channel)
                channel.open_for(spec.direction, spec.trust, spec.role, spec.meta_size)
                offers += channel.greet(peer, hello)
        except BaseException as error:
            self.lost(channels, str(error))
            raise
        self._greeted.add(tuple(channels))
        return offers

    def joined(self, channels: Sequence[Any], parts: Sequence[Joined]) -> None:
        """A client has all its channels."""
        for channel, part in zip(channels, parts, strict=True):
            channel.joined((channel,), (part,))
            channel.drop_queued("bind_received")
        self._greeted.discard(tuple(channels))
        self._ready.append(tuple(channels))
        if self._signal is not None:
            os.eventfd_write(self._signal.fileno(), 1)
        self.domain.kick()

    def lost(self, channels: Sequence[Any], reason: str) -> None:
        """A client withdrew."""
        self._greeted.discard(tuple(channels))
        for channel in channels:
            ending.finish(channel, ClosedChannelError, f"{channel.describe()}: the client withdrew: {reason}")

    def accept(self, timeout: float | None = None) -> tuple[Channel, ...]:
        """The channels of the next client, in the order of the specs.

        Raises: TimeoutError, ClosedChannelError (the listener was closed), WouldBlock (inside a callback), ForkedError.
        """
        self._check_open()
        if not self._ready:
            self.domain.serve()
        if not self._ready and not self.domain.wait_for(lambda: bool(self._ready) or self._reception is None, timeout):
            raise TimeoutError(f"accept at {self.address}: nobody came within {timeout} s")
        if not self._ready:
            self._check_open()
        channels = self._ready.popleft()
        if self._signal is not None and not self._ready:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._signal.fileno())
        return channels

    def _check_open(self) -> None:
        self.domain.check_fork()
        if self._reception is None:
            raise ClosedChannelError(f"accept at {self.address}: the listener is closed")

    def fileno(self) -> int:
        """A descriptor that is readable when accept(timeout=0) may have a client or has work to do."""
        self._check_open()
        if self._poller is None:
            self._poller = kernel.make_poller()
            self._signal = kernel.Descriptor(os.eventfd(len(self._ready), os.EFD_NONBLOCK | os.EFD_CLOEXEC))
            kernel.poller_add(self._poller.fileno(), self._signal.fileno())
            kernel.poller_add(self._poller.fileno(), self.domain.waiters.epoll)
        self.domain.adopt_loose(None)
        return self._poller.fileno()

    def close(self) -> None:
        """Accept nobody any more; accepted channels live on. Idempotent, never raises."""
        reception, self._reception = self._reception, None
        if reception is None or self.domain.forked:
            return
        reception.close()
        for channels in [*self._ready, *self._greeted]:
            for channel in channels:
                channel.close()
        self._ready.clear()
        for descriptor in (self._poller, self._signal):
            if descriptor is not None:
                descriptor.close()
        self.domain.kick()

    def __iter__(self) -> Iterator[tuple[Channel, ...]]:
        return self

    def __next__(self) -> tuple[Channel, ...]:
        try:
            return self.accept()
        except ClosedChannelError:
            raise StopIteration from None

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_reception", None) is not None:
            self.close()

    def __repr__(self) -> str:
        state = "closed" if self._reception is None else f"{len(self._ready)} clients wait"
        return f"<Listener at {self.address}: {len(self.specs)} channels a client, {state}>"


def listen(
    address: str,
    specs: Sequence[ChannelSpec],
    *,
    limits: Limits | None = None,
    backlog: int = 64,
    allow_users: Sequence[int | str] = (),
    domain: Domain | None = None,
) -> Listener:
    """Create `address` for many clients; each gets a channel for every spec (I-8.5).

    Raises: as create.
    """
    return Listener(backend_for(address), address, specs, limits, backlog, allow_users, domain)


def pair(
    *,
    direction: Direction,
    trust: Trust,
    role: Role = Role.GENERIC,
    meta_size: int = 0,
    wait: str = "auto",
    callbacks: Callbacks | None = None,
    constraints: Constraints | None = None,
    limits: Limits | None = None,
    user_state: Any = None,
    domain: Domain | None = None,
) -> tuple[Channel, Endpoint]:
    """A channel end here, and an Endpoint for a child process that needs no address.

    The Endpoint pickles while multiprocessing starts a process, and a forked child just uses it.
    Raises: ValueError, TypeError, TrustMismatchError, OSError (EMFILE), LimitError, ForkedError.
    """
    backend = backend_for("shm:")
    check_kind("direction", direction, Direction)
    check_kind("role", role, Role)
    check_trust(trust, backend, open_allowed=False)
    check_meta_size(meta_size)
    channel = Channel(
        domain if domain is not None else current_domain(),
        f"pair:{os.getpid()}-{next(_pair_numbers)}",
        backend.codec,
        spins=backend.spins,
        wait=wait,
        callbacks=callbacks,
        constraints=constraints,
        limits=limits,
        user_state=user_state,
    )
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    for end in (here, there):  # the kernel then names the process that speaks, not the one that made the pair
        end.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    channel.open_for(direction, trust, role, meta_size)
    channel.reception = Reception(channel.domain, channel, backend.codec, channel.limits, None, exclusive=True)
    channel.reception.take(Connection(here.detach(), NOBODY))
    return channel, Endpoint(there.detach())


class Endpoint:
    """The other end of a bulk.pair, not bound yet: for one other process, or thread.

    It is used up by bind; close it in a process that does not bind it, so that the other end notices a child's death
    before it bound.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def from_fd(cls, fd: int) -> Endpoint:
        """Take over a descriptor that was inherited by number (`pass_fds`).

        Raises: OSError, ValueError (no such socket).
        """
        copy = os.dup(fd)
        try:
            probe = socket.socket(fileno=copy)
        except OSError as error:
            os.close(copy)
            raise ValueError(f"descriptor {fd} is not the end of a pair") from error
        with probe:
            if probe.family != socket.AF_UNIX or probe.type != socket.SOCK_SEQPACKET:
                raise ValueError(f"descriptor {fd} is not the end of a pair")
            probe.setblocking(False)
        os.set_inheritable(fd, False)
        return cls(fd)

    def fileno(self) -> int:
        """The descriptor. Raises: ValueError (bound or closed)."""
        if self._fd < 0:
            raise ValueError("the endpoint was bound or closed already")
        return self._fd

    def bind(
        self,
        *,
        trust: Trust = Trust.UNINITIALIZED,
        role: Role = Role.GENERIC,
        wait: str = "auto",
        callbacks: Callbacks | None = None,
        constraints: Constraints | None = None,
        limits: Limits | None = None,
        timeout: float | None = 10.0,
        done: Done | None = None,
        user_state: Any = None,
        domain: Domain | None = None,
    ) -> Channel:
        """Bind this end; the endpoint is used up. Raises: as bulk.bind; ValueError (bound or closed already)."""
        backend = backend_for("shm:")
        check_trust(trust, backend, open_allowed=True)
        binder = Binder(
            "pair:", backend.codec, backend.spins, trust, role, wait, callbacks, constraints, limits, domain, 1
        )
        binder.channel.user_state = user_state
        fd, self._fd = self.fileno(), -1
        binder.run(lambda: binder.knock.introduce(Connection(fd, NOBODY)), timeout, done)
        return binder.channel

    def close(self) -> None:
        """Let the descriptor go; idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def __reduce__(self) -> Any:
        from multiprocessing import context, reduction

        context.assert_spawning(self)
        return _rebuild_endpoint, (reduction.DupFd(self.fileno()),)

    def __repr__(self) -> str:
        return f"<Endpoint {'used up' if self._fd < 0 else self._fd}>"


def _rebuild_endpoint(duplicate: Any) -> Endpoint:
    return Endpoint(duplicate.detach())
