"""Setting a channel up, the creator's side: the reception of binders (I-5.2.2, Fig 5.2).

Knows: the handshake Hello, Welcome, Confirm, its deadlines, and that nobody half-open may hold anything up.
Must not know: which channels are offered (their owner says) or where the socket comes from (a backend).
Everything here runs from Domain.serve or from the call that starts it, one thread at a time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from .._native import kernel
from ..abc import Codec, Connection, Peer, Rendezvous
from ..errors import (
    BindRefusedError,
    BulkError,
    LimitError,
    ProtocolViolation,
    code_of,
)
from ..messages import PROTOCOL_VERSION, Confirm, Hello, Message, Refusal, Terms, Welcome
from .beacon import Beacon
from .domain import Alarm, Domain
from .interrupts import INTERRUPTS
from .limits import Limits
from .line import Ends, line_of

RETRY_NS = 2_000_000  # between tries at a full backlog, or with no descriptors left


class Joined(NamedTuple):
    """What a channel needs to become connected."""

    ends: Ends
    terms: Terms  # from the binder's end
    peer: Peer
    peer_domain: bytes
    same_domain: bool


class Owner(Protocol):
    """Who offers channels to those that knock."""

    def greet(self, peer: Peer, hello: Hello) -> Sequence[tuple[Any, Terms]]:
        """The channels for this binder, with their terms. Raises: BulkError (refused, the text reaches it)."""

    def joined(self, channels: Sequence[Any], parts: Sequence[Joined]) -> None:
        """The binder confirmed."""

    def lost(self, channels: Sequence[Any], reason: str) -> None:
        """The binder withdrew after it was greeted."""


class Candidate:
    """Somebody who knocked and is not bound yet."""

    def __init__(self, reception: Reception, connection: Connection) -> None:
        self.reception = reception
        self.line = line_of(connection)
        self.peer = connection.peer
        self.hello: Hello | None = None
        self.judged = False  # a callback may be at it
        self.offers: Sequence[tuple[Any, Terms]] | None = None
        self.alarm: Alarm | None = None
        self.set_deadline()

    def set_deadline(self) -> None:
        """Its time runs from now on."""
        self.forget_deadline()
        self.deadline_ns = time.monotonic_ns() + int(self.reception.limits.handshake_s * 1e9)
        self.alarm = self.reception.beacon.call_at(self.deadline_ns, self.reception.on_deadline)

    def forget_deadline(self) -> None:
        """It has all the time that there is, or is gone."""
        if self.alarm is not None:
            self.reception.beacon.cancel(self.alarm)
            self.alarm = None

    def on_readable(self) -> None:
        """Read what it says, as far as it goes; what is read is handled before Ctrl-C is heard."""
        more = True
        while more and not self.line.closed and self in self.reception.candidates:
            with INTERRUPTS.held_off():
                more = self._read_one()

    def _read_one(self) -> bool:
        """One message, if there is one; whether there was."""
        try:
            got = self.line.hear()
        except OSError as error:  # a ProtocolViolation, too
            self.reception.drop(self, f"the binder went away: {error.strerror}")
            return False
        if got is None:
            return False
        data, fds, truncated, credentials = got
        if credentials is not None:
            self.peer = Peer(*credentials)
        if not data:
            self.reception.drop(self, "the binder went away")
            return False
        try:
            self.hear(data, fds, truncated)
        except ProtocolViolation as error:
            self.reception.drop(self, str(error))
        return True

    def hear(self, data: bytes, fds: list[kernel.Descriptor], truncated: bool) -> None:
        """One message. Raises: ProtocolViolation."""
        message = self.reception.codec.decode(data)
        if truncated:
            raise ProtocolViolation(f"descriptors were lost on the way{' (none are left)' * kernel.table_full()}")
        if isinstance(message, Hello) and self.hello is None and not fds:
            self.hello = message
            self.reception.consider(self)
        elif isinstance(message, Confirm) and self.offers is not None:
            self.reception.confirm(self, fds)
        else:
            raise ProtocolViolation(f"a binder that says {type(message).__name__} out of turn")

    def say(self, message: Message) -> bool:
        """Send one message; False if the peer is gone or does not read."""
        data = self.reception.codec.encode(message)
        if self.line.closed:  # a callback closed the channel
            return False
        try:
            if isinstance(message, Welcome):
                return self.line.welcome(data, message.terms)
            return self.line.say(data)
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN):
                return False
            raise


class Reception:
    """Receives those that knock at a rendezvous, or the one at the other end of a pair."""

    def __init__(
        self,
        beacon: Beacon,
        owner: Owner,
        codec: Codec,
        limits: Limits,
        rendezvous: Rendezvous | None,
        *,
        exclusive: bool,
    ) -> None:
        self.domain = beacon.domain
        self.beacon = beacon
        self._owner = weakref.ref(owner)
        self.codec = codec
        self.limits = limits
        self.rendezvous = rendezvous
        self.exclusive = exclusive  # one binder only: the others wait until it is clear whether it stays
        self.candidates: list[Candidate] = []
        self.negotiating: Candidate | None = None
        self.paused = False
        self.closed = False
        if rendezvous is not None:
            beacon.watch(rendezvous.fileno(), self.on_knock)

    @property
    def owner(self) -> Owner:
        """Whom the peers want."""
        owner = self._owner()
        assert owner is not None  # it closes its reception when it goes
        return owner

    def take(self, connection: Connection) -> None:
        """Receive one peer on a connected socket."""
        candidate = Candidate(self, connection)
        try:
            self.beacon.watch(candidate.line.fileno(), candidate.on_readable)
        except BaseException:
            candidate.line.close()  # nobody would read what it says
            raise
        self.candidates.append(candidate)

    def on_knock(self) -> None:
        """Somebody knocks."""
        if self.closed or self.rendezvous is None:
            return
        try:
            while len(self.candidates) < self.limits.half_open:
                connection = self.rendezvous.accept()
                if connection is None:
                    return
                self.take(connection)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                raise
            self.beacon.call_at(time.monotonic_ns() + RETRY_NS, self.resume)
        self.paused = True  # full: whoever knocks stays in the backlog
        self.beacon.unwatch(self.rendezvous.fileno())

    def resume(self) -> None:
        """There is room again."""
        if self.paused and not self.closed and self.rendezvous is not None:
            self.paused = False
            self.beacon.watch(self.rendezvous.fileno(), self.on_knock)

    def on_deadline(self) -> None:
        """Drop those that take too long (design section 8, rule 6)."""
        now = time.monotonic_ns()
        for candidate in list(self.candidates):
            if candidate.deadline_ns > now or candidate not in self.candidates or candidate.judged:
                continue
            if self.rendezvous is None and candidate.hello is None:
                candidate.deadline_ns = now + (1 << 62)  # the other end of a pair binds when it wants
            elif candidate.hello is None or candidate is self.negotiating or not self.exclusive:  # else it waits for us
                self.drop(candidate, f"the binder did not finish within {self.limits.handshake_s} s")

    def consider(self, candidate: Candidate) -> None:
        """A Hello came: offer channels, or refuse."""
        if self.exclusive and self.negotiating is not None:
            return
        hello = candidate.hello
        assert hello is not None
        offers: Sequence[tuple[Any, Terms]] = ()
        try:
            if hello.version != PROTOCOL_VERSION:
                raise BindRefusedError(f"protocol version {hello.version}; the creator speaks {PROTOCOL_VERSION}")
            self.negotiating = candidate
            self.beacon.unwatch(candidate.line.fileno())  # not served by others while a callback judges it
            candidate.judged = True
            offers = self.owner.greet(candidate.peer, hello)
            candidate.judged = False
            self.welcome(candidate, offers)
            candidate.set_deadline()
            self.beacon.watch(candidate.line.fileno(), candidate.on_readable)
        except BulkError as error:
            self.refuse(candidate, error, offers)
        except OSError as error:
            self.refuse(candidate, LimitError(f"the creator has no room: {error}"), offers)
        except BaseException:  # out of a callback: KeyboardInterrupt
            self.refuse(candidate, BindRefusedError("the creator was interrupted"), offers)
            raise

    def welcome(self, candidate: Candidate, offers: Sequence[tuple[Any, Terms]]) -> None:
        """Say yes, with the outboxes. Raises: OSError, BindRefusedError."""
        candidate.offers = offers
        terms_of_all = tuple(terms for _, terms in offers)
        if not candidate.say(Welcome(self.domain.id, terms_of_all)):
            raise BindRefusedError("the binder went away")

    def refuse(self, candidate: Candidate, error: BulkError, offers: Sequence[tuple[Any, Terms]]) -> None:
        """Say no, and let it go."""
        with contextlib.suppress(OSError):
            candidate.say(Refusal(code_of(error, BindRefusedError), str(error)))
        candidate.offers = offers or None
        self.drop(candidate, str(error))

    def drop(self, candidate: Candidate, reason: str) -> None:
        """It is gone; those that waited for it are considered."""
        self.release(candidate)
        candidate.line.close()
        if candidate.offers is not None:
            self.owner.lost([channel for channel, _ in candidate.offers], reason)
        elif self.rendezvous is None:
            self.owner.lost((), reason)  # nobody else can come
        self.next_candidate()

    def release(self, candidate: Candidate) -> None:
        """Forget it; its socket may live on in a channel."""
        candidate.forget_deadline()
        if candidate in self.candidates:
            self.candidates.remove(candidate)
        if not candidate.line.closed:
            self.beacon.unwatch(candidate.line.fileno())
        if self.negotiating is candidate:
            self.negotiating = None
        self.resume()

    def next_candidate(self) -> None:
        """Consider who waited."""
        for other in list(self.candidates):
            if other.hello is not None and other.offers is None and other in self.candidates:
                if self.negotiating is None:
                    other.set_deadline()  # what it waited for the others was not its fault
                self.consider(other)

    def confirm(self, candidate: Candidate, fds: list[kernel.Descriptor]) -> None:
        """The binder has everything: connect. Raises: ProtocolViolation."""
        offers = candidate.offers
        assert offers is not None
        assert candidate.hello is not None
        peer_id = candidate.hello.domain_id
        same = is_same_domain(self.domain, peer_id, candidate.peer)
        watched = candidate.line.fileno()
        self.beacon.unwatch(watched)
        try:
            ends = candidate.line.confirmed(fds, [terms for _, terms in offers])
        except OSError as error:
            self.beacon.watch(watched, candidate.on_readable)
            if isinstance(error, ProtocolViolation):
                raise
            self.drop(candidate, str(error))
            return
        self.release(candidate)
        parts = [
            Joined(its, terms, candidate.peer, peer_id, same) for its, (_, terms) in zip(ends, offers, strict=True)
        ]
        self.owner.joined([channel for channel, _ in offers], parts)
        self.next_candidate()

    def close(self) -> None:
        """Receive nobody any more; idempotent, never raises."""
        if self.closed or self.domain.forked:
            return
        self.closed = True
        for candidate in list(self.candidates):
            self.release(candidate)
            candidate.line.close()
        if self.rendezvous is not None:
            with contextlib.suppress(OSError, ValueError):
                if not self.paused:
                    self.beacon.unwatch(self.rendezvous.fileno())
                self.rendezvous.close()


def is_same_domain(domain: Domain, peer_id: bytes, peer: Peer) -> bool:
    """Whether both ends are in `domain`; the id alone proves nothing, the kernel's word about the process does."""
    return peer_id == domain.id and peer.pid == os.getpid()
