"""The two channels to the server, for one user: connecting, having the user's pools there, saying again what it said.

Knows: the handshake of the report (I-7.2) from the client's side. Must not know: the user's requests (passage.py).
Nothing here waits: what takes time ends in a continuation, where the channels are received.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import bulktransfer as bulk

from ..errors import BadRequestError, NotConnectedError, Status
from ..service.messages import META_SIZE, Answer, Malformed, Message, Operation, unpack_answer

PAGE = 4096
Told = Callable[[BaseException | None], None]


class Route(NamedTuple):
    """Where the server is, and how long it may take to answer."""

    address: str
    network: bulk.Network | None
    timeout_s: float
    domain: bulk.Domain | None


class Export(NamedTuple):
    """What a user chose, and what the server said of it."""

    name: bytes
    said: Answer


class Uplink:
    """A connection to the server; `ready(None)` is called once requests may go, `ready(error)` if they never will."""

    def __init__(
        self, route: Route, watch: Callable[[bulk.Channel], None], ready: Told, *, timeout_s: float | None = None
    ) -> None:
        self._route = route
        self._watch = watch
        self._ready: Told | None = ready
        self._greeter: bulk.Allocator | None = None
        self._greeting: bulk.Buffer | None = None
        self._export: Export | None = None
        self._pools: Sequence[Sequence[bulk.Pool]] = ((), ())
        self.channels: tuple[bulk.Channel, ...] = ()  # up and down, once they are there
        self._first, *_ = bulk.connect(
            route.address,
            timeout=route.timeout_s if timeout_s is None else timeout_s,
            done=self._connected,
            network=route.network,
            callbacks=bulk.Callbacks(pool_assigned=_veto),
            domain=route.domain,
        )
        watch(self._first)

    def restore(self, pools: Sequence[Sequence[bulk.Pool]], export: Export | None) -> None:
        """Before it is ready: have these pools on up and down, and choose the export that was chosen before."""
        self._pools, self._export = pools, export

    @property
    def watched(self) -> list[bulk.Channel]:
        """Every channel that there is."""
        return list(self.channels) or [self._first]

    # -- becoming ready --------------------------------------------------------------------------------------------

    def _over(self, error: BaseException | None) -> None:
        ready, self._ready = self._ready, None
        if ready is not None:
            ready(error)

    def _connected(self, outcome: bulk.Outcome) -> None:
        if outcome.error is not None:
            self._over(outcome.error)
            return
        self.channels = outcome.channel
        for channel in self.channels[1:]:
            self._watch(channel)
        directions = [channel.direction for channel in self.channels]
        if directions != [bulk.Direction.TX, bulk.Direction.RX] or self.channels[0].meta_size != META_SIZE:
            self._over(NotConnectedError(f"{self._route.address} is no block service"))
            return
        self._bring_pools()

    def _bring_pools(self) -> None:
        waiting = [(side, pool) for side in (0, 1) for pool in self._pools[side]]
        left = len(waiting)
        if not left:
            self._greet()

        def told(error: BaseException | None) -> None:
            nonlocal left
            left -= 1
            if error is not None:
                self._over(error)
            elif not left:
                self._greet()

        for side, pool in waiting:
            self.assign(side, pool, told)

    def assign(self, side: int, pool: bulk.Pool, told: Told) -> None:
        """Have a pool on the channel of that side too, and tell how that went."""
        try:
            self.channels[side].assign_pool(
                pool, timeout=self._route.timeout_s, done=lambda outcome: told(outcome.error)
            )
        except (bulk.BulkError, OSError, ValueError) as error:
            told(error)

    def remove(self, side: int, pool: bulk.Pool, told: Told) -> None:
        """Take a pool off again, and tell how that went."""
        if pool not in self.channels[side].pools:
            told(None)
            return
        try:
            self.channels[side].remove_pool(
                pool, timeout=self._route.timeout_s, done=lambda outcome: told(outcome.error)
            )
        except (bulk.BulkError, OSError) as error:
            told(error)

    def _greet(self) -> None:
        """Choose the export again; the answer comes to `greeted`."""
        if self._export is None:
            self._over(None)
            return
        size = max(PAGE, self._export.said.length, len(self._export.name))
        self._greeter = bulk.Allocator(count=1, size=size, domain=self._route.domain)
        self.assign(0, self._greeter.pool, self._say_hello)

    def _say_hello(self, error: BaseException | None) -> None:
        if error is not None:
            self._over(error)
            return
        assert self._greeter is not None
        assert self._export is not None
        self._greeting = self._greeter.alloc()
        self._greeting.put(self._export.name)
        try:
            self.channels[0].move(self._greeting, Message(Operation.HELLO, 0, 0).pack())
        except bulk.BulkError as refused:
            self._over(refused)

    def greeted(self, event: bulk.Event) -> bool:
        """Whether an event is the answer to that, which is taken."""
        if self._greeting is None or event.buffer is not self._greeting:
            return False
        self._greeting = None
        assert self._export is not None
        try:
            found = unpack_answer(event.meta)
        except Malformed as error:
            self._over(NotConnectedError(f"the server answered with {error}"))
            return True
        if found.status != Status.OK or found[3:] != self._export.said[3:]:
            said = f"status {Status(found.status).name}, {found.block} bytes in blocks of {found.length}"
            self._over(NotConnectedError(f"export {self._export.name.decode()!r} is not what it was: {said}"))
        else:
            self._over(None)
        return True

    # -- the end ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End the connection; what was accepted still arrives. It tells nothing more."""
        self._ready = None
        for channel in self.watched:
            channel.close()
        if self._greeter is not None:
            self._greeter.close()


def _veto(event: bulk.Event) -> None:
    raise BadRequestError("the users of a block service bring the pools, not its server")


def has_ended(error: BaseException | None) -> bool:
    """Whether an error says that a channel is over."""
    return isinstance(
        error, bulk.ClosedChannelError | bulk.EndOfChannelError | bulk.BrokenChannelError | bulk.ProtocolViolation
    )
