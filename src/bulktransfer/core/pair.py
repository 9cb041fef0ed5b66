"""A pair: a channel end here, and an endpoint for a child process, without an address.

Knows: how the endpoint travels (pickled while a process starts, inherited, by number). Must not know: how a handshake
goes (setup.py, knock.py).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from typing import Any

from ..abc import Connection
from ..states import Direction, Role, Trust
from .arguments import check_kind, check_meta_size, check_trust
from .callbacks import Callbacks
from .channel import Channel
from .connect import Binder
from .domain import Domain, chosen_domain
from .limits import Constraints, Limits
from .plane import NOBODY, Done
from .scheme import backend_for
from .setup import Reception

_pair_numbers = itertools.count(1)


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
        chosen_domain(domain),
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
    channel.reception = Reception(channel.beacon, channel, backend.codec, channel.limits, None, exclusive=True)
    channel.reception.take(Connection(here.detach(), NOBODY))
    return channel, Endpoint(there.detach())


class Endpoint:
    """The other end of a bulk.pair, not bound yet: for one other process, or thread.

    It is used up by bind; close it in a process that does not bind it, so that the other end notices a child's death
    before it bound.
    """

    _fd = -1

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
