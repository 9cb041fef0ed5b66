"""A listener: one address, many clients, several channels each (I-8.5).

Knows: what is offered to each client, and who waits to be accepted. Must not know: how a handshake goes (setup.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from .._native import kernel
from ..abc import Backend, Peer
from ..errors import (
    ClosedChannelError,
)
from ..messages import Hello, Terms
from ..states import Direction, Role, Trust
from . import ending
from .arguments import check_kind, check_meta_size, check_optional, check_trust, check_wait
from .beacon import Beacon
from .callbacks import Callbacks
from .channel import Channel
from .domain import Domain, chosen_domain
from .limits import Constraints, Limits
from .network import Network, options_for
from .scheme import backend_for
from .setup import Joined, Reception


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
        check_wait(self.wait)
        check_optional("callbacks", self.callbacks, Callbacks)
        check_optional("constraints", self.constraints, Constraints)


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
        network: Network | None,
    ) -> None:
        if not specs:
            raise ValueError("a listener without channels")
        for spec in specs:
            if not isinstance(spec, ChannelSpec):
                raise TypeError(f"listen takes ChannelSpecs, not {type(spec).__name__}")
            check_trust(spec.trust, backend, open_allowed=False)
        check_optional("limits", limits, Limits)
        self.domain = chosen_domain(domain)
        self.domain.check_fork()
        self.limits = limits if limits is not None else Limits()
        self.specs = tuple(specs)
        self._backend = backend
        self._ready: deque[tuple[Channel, ...]] = deque()
        self._greeted: set[tuple[Channel, ...]] = set()
        self._poller: kernel.Descriptor | None = None
        self._signal: kernel.Descriptor | None = None
        self._reception: Reception | None = None
        self.beacon = Beacon(self.domain)
        options = options_for(backend, address, network)
        rendezvous = backend.listen(address, backlog=backlog, allow_users=allow_users, **options)
        self.address = rendezvous.address
        self._reception = Reception(self.beacon, self, backend.codec, self.limits, rendezvous, exclusive=False)

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
            self.beacon.settle()
        if not self._ready and not self.domain.wait_for(lambda: bool(self._ready) or self._reception is None, timeout):
            self._quiet()
            raise TimeoutError(f"accept at {self.address}: nobody came within {timeout} s")
        if not self._ready:
            self._check_open()
        channels = self._ready.popleft()
        self._quiet()
        return channels

    def _quiet(self) -> None:
        """Take the signal back unless somebody waits. First take, then look: another thread may bring one meanwhile."""
        if self._signal is not None:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._signal.fileno())
            if self._ready:
                os.eventfd_write(self._signal.fileno(), 1)

    @property
    def clients(self) -> int:
        """How many clients wait to be accepted."""
        return len(self._ready)

    @property
    def closed(self) -> bool:
        """Whether nobody is accepted any more."""
        return self._reception is None

    def _check_open(self) -> None:
        self.domain.check_fork()
        if self._reception is None:
            raise ClosedChannelError(f"accept at {self.address}: the listener is closed")

    def fileno(self) -> int:
        """A descriptor that is readable when accept(timeout=0) may have a client or has work to do."""
        self._check_open()
        if self._poller is None:
            self._poller = self.beacon.light()
            self._signal = kernel.Descriptor(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
            self._quiet()  # a client that another thread brings from here on signals by itself
            kernel.poller_add(self._poller.fileno(), self._signal.fileno())
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
        self.beacon.close()
        if self._signal is not None:
            self._signal.close()
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
    network: Network | None = None,
    domain: Domain | None = None,
) -> Listener:
    """Create `address` for many clients; each gets a channel for every spec (I-8.5).

    Raises: as create.
    """
    return Listener(backend_for(address), address, specs, limits, backlog, allow_users, domain, network)
