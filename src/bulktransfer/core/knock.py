"""A binder's way in: find an address, introduce itself, take what is offered (I-5.2.2, Fig 5.2).

Knows: the handshake Hello, Welcome, Confirm from the binder's side. Must not know: what kind of channels it makes (its
maker does) or how a backend finds an address.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Sequence
from typing import Any

from .._native import kernel
from ..abc import Backend, Codec, Connection, Peer
from ..errors import (
    BrokenChannelError,
    BulkError,
    ProtocolViolation,
    TrustMismatchError,
    from_code,
)
from ..messages import Confirm, Hello, Refusal, Terms, Welcome
from ..states import Role, Trust
from . import twin
from .beacon import Beacon
from .interrupts import INTERRUPTS
from .limits import STAGE_MIN, Limits
from .line import Line, line_of
from .setup import RETRY_NS, Joined, is_same_domain


class Knock:
    """A binder's way in: find the address, introduce itself, take what is offered."""

    def __init__(
        self,
        beacon: Beacon,
        codec: Codec,
        limits: Limits,
        trust: Trust,
        role: Role,
        make: Callable[[Sequence[Terms]], Sequence[Any]],
    ) -> None:
        self.domain = beacon.domain
        self.beacon = beacon
        self.codec = codec
        self.limits = limits
        self.trust = trust
        self.role = role
        self.make = make
        self.line: Line | None = None
        self.peer = Peer(-1, -1, -1)
        self.finished = False
        self.found = False
        self.error: BaseException | None = None
        self.on_finish: Callable[[], None] | None = None
        self._backend: Backend | None = None
        self._address = ""
        self._user: int | str | None = None
        self._options: dict[str, Any] = {}
        self._appearance: Any = None

    def start(self, backend: Backend, address: str, user: int | str | None, options: dict[str, Any]) -> None:
        """Look for `address` until it is there. Raises: ValueError, OSError (it belongs to somebody else)."""
        self._backend, self._address, self._user, self._options = backend, address, user, options
        self.attempt()
        if self.line is None and not self.finished and not self.found:
            self._appearance = backend.appearance(address)
            self.attempt()  # it may have been created before the watch was
            if self.line is None and not self.finished:
                self.beacon.watch(self._appearance.fileno(), self.on_appearance)

    def on_appearance(self) -> None:
        """The address may be there now."""
        if self._appearance is not None:
            self._appearance.clear()
        if self.line is None and not self.finished:
            try:
                self.attempt()
            except (OSError, ValueError) as error:
                self.finish(error)

    def attempt(self) -> None:
        """Knock once. Raises: ValueError, OSError."""
        assert self._backend is not None
        try:
            connection = self._backend.connect(self._address, owner=self._user, **self._options)
        except BlockingIOError:  # the backlog is full; nothing tells when it is not
            self.found = True
            self.beacon.call_at(time.monotonic_ns() + RETRY_NS, self.on_retry)
            return
        if connection is not None:
            self.introduce(connection)

    def on_retry(self) -> None:
        """Knock again where the backlog was full."""
        self.on_appearance()

    def wait_again(self) -> None:
        """Nobody is there after all: wait until somebody may be."""
        assert self.line is not None
        self.beacon.unwatch(self.line.fileno())
        self.line.close()
        self.line = None
        self.found = False
        if self._appearance is None:
            assert self._backend is not None
            self._appearance = self._backend.appearance(self._address)
            self.beacon.watch(self._appearance.fileno(), self.on_appearance)

    def introduce(self, connection: Connection) -> None:
        """Say Hello on a connected socket. Raises: OSError."""
        self.found = True
        self.peer = connection.peer
        self.line = line_of(connection)
        hello = Hello(domain_id=self.domain.id, trust=self.trust, role=self.role)
        try:
            said = self.line.say(self.codec.encode(hello))
        except ConnectionError as error:
            self.finish(self.as_told(error))
            return
        if not said:
            self.finish(BrokenChannelError(f"bind to {self._address}: the creator does not read"))
            return
        self.beacon.watch(self.line.fileno(), self.on_readable)

    def on_readable(self) -> None:
        """The creator's answer; what is read is handled before Ctrl-C is heard."""
        more = True
        while more and not self.finished and self.line is not None:
            with INTERRUPTS.held_off():
                more = self._read_one(self.line)

    def _read_one(self, line: Line) -> bool:
        """One message, if there is one; whether there was."""
        try:
            got = line.hear()
        except ConnectionRefusedError:
            self.wait_again()
            return False
        except OSError as error:
            self.finish(self.as_told(error))
            return False
        if got is None:
            return False
        data, fds, truncated, credentials = got
        if credentials is not None:
            self.peer = Peer(*credentials)
        try:
            self.hear(data, fds, truncated)
        except (BulkError, OSError) as error:
            self.finish(self.as_told(error))
        return True

    def as_told(self, error: BulkError | OSError) -> BulkError | OSError:
        """A connection that is gone is a creator that is gone, however the system says it."""
        if isinstance(error, BulkError) or not isinstance(error, ConnectionError):
            return error
        return BrokenChannelError(f"bind to {self._address}: the creator went away: {error.strerror}")

    def hear(self, data: bytes, fds: list[kernel.Descriptor], truncated: bool) -> None:
        """One message. Raises: BulkError, OSError."""
        if not data:
            raise BrokenChannelError(f"bind to {self._address}: the creator went away without an answer")
        if truncated and kernel.table_full():
            raise OSError(errno.EMFILE, f"bind to {self._address}: no descriptors are left")
        if truncated:
            raise ProtocolViolation(f"bind to {self._address}: descriptors were lost on the way")
        message = self.codec.decode(data)
        if isinstance(message, Refusal):
            raise from_code(message.code, f"bind to {self._address}: {message.reason}")
        if not isinstance(message, Welcome):
            raise ProtocolViolation(f"bind to {self._address}: the creator answered {type(message).__name__}")
        self.accept(message, fds)

    def accept(self, welcome: Welcome, fds: list[kernel.Descriptor]) -> None:
        """Take what is offered: all of it or nothing. Raises: BulkError, OSError."""
        for terms in welcome.terms:
            if terms.role is Role.GENERIC or terms.trust is Trust.UNINITIALIZED:
                raise ProtocolViolation(f"bind to {self._address}: role or trust of the channel are open")
            if (terms.stage_size >= STAGE_MIN) is twin.shares_memory(terms.trust) or 0 < terms.stage_size < STAGE_MIN:
                raise ProtocolViolation(
                    f"bind to {self._address}: a staging area of {terms.stage_size} bytes at trust {terms.trust.name}"
                )
            if self.trust not in (Trust.UNINITIALIZED, terms.trust):
                raise TrustMismatchError(
                    f"bind to {self._address}: {terms.trust.name} is offered, {self.trust.name} was asked"
                )
        channels = self.make(welcome.terms)
        assert self.line is not None
        watched = self.line.fileno()
        self.beacon.unwatch(watched)
        try:
            ends = self.line.accept(fds, welcome.terms, self.codec.encode(Confirm()))
        except BaseException:
            self.beacon.watch(watched, self.on_readable)
            raise
        same = is_same_domain(self.domain, welcome.domain_id, self.peer)
        self.line = None
        for channel, its, terms in zip(channels, ends, welcome.terms, strict=True):
            channel.bound(Joined(its, terms, self.peer, welcome.domain_id, same))
        self.finish(None)

    def finish(self, error: BaseException | None) -> None:
        """Over, one way or the other; idempotent."""
        if self.finished:
            return
        self.finished = True
        self.error = error
        if self.line is not None:
            self.beacon.unwatch(self.line.fileno())
            self.line.close()
            self.line = None
        if self._appearance is not None:
            self.beacon.unwatch(self._appearance.fileno())
            self._appearance.close()
            self._appearance = None
        if self.on_finish is not None:
            self.on_finish()
