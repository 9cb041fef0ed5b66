"""A connection to another machine while channels are set up on it: greeting, messages, and connections that join it.

Knows: which bytes come when (wire/greeting.py, wire/frames.py). Must not know: sockets (_net_stream.py), or what the
messages mean.

A creator whose binder gets several channels invites it: the binder makes a connection more for each, and shows the
token of the invitation on it. Neither side hears the next message before all of them are there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import ssl
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from .._native import kernel
from ..core.network import Network
from ..core.setup import RETRY_NS
from ..errors import BindRefusedError, ProtocolViolation
from ..wire import frames
from ..wire.frames import Kind
from ..wire.greeting import BinderGreeting, CreatorGreeting, Purpose
from ._net_stream import Stream

MakeContext = Callable[[], ssl.SSLContext | None]
Join = Callable[[Stream], None]  # connects a stream to the creator, or begins to


class Wire:
    """What both sides share; an abc.Wire."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._poller = kernel.make_poller()
        self._streams: list[Stream] = []
        self._watched: dict[int, bool] = {}
        self._head: frames.Head | None = None
        self.count = 1

    @property
    def closed(self) -> bool:
        """Whether it was closed or taken over."""
        return self._poller.closed

    @property
    def host(self) -> str:
        """Host and port of the other side."""
        return self._streams[0].host

    def fileno(self) -> int:
        """Readable while `hear` has something to do. Raises: ValueError."""
        return self._poller.fileno()

    def watch(self) -> None:
        """Have the descriptor follow what the connections wait for."""
        for stream in self._streams:
            if stream.closed:
                continue
            fd, room = stream.fileno(), stream.wants_room
            if fd not in self._watched:
                kernel.poller_add(self._poller.fileno(), fd)
                self._watched[fd] = False
            if self._watched[fd] != room:
                kernel.poller_want(self._poller.fileno(), fd, room)
                self._watched[fd] = room

    def say(self, data: bytes) -> None:
        """Send a message as soon as it can be. Raises: OSError."""
        try:
            self._streams[0].push(frames.setup(data))
        except BindRefusedError as error:
            raise OSError(errno.ECONNABORTED, str(error)) from None
        self.watch()

    def next_message(self) -> bytes | None:
        """The next message of the first connection; None: not yet, or it was an invitation.

        Raises: EOFError, OSError, ProtocolViolation, BindRefusedError.
        """
        stream = self._streams[0]
        while True:
            if self._head is None:
                data = stream.pull(frames.HEAD_SIZE)
                if data is None:
                    return None
                self._head = frames.unpack(data)
                if self._head.kind not in (Kind.SETUP, Kind.INVITE):
                    raise ProtocolViolation(f"a frame of kind {self._head.kind.name} while a channel is set up")
            data = stream.pull(self._head.length)
            if data is None:
                return None
            head, self._head = self._head, None
            if head.kind is Kind.SETUP:
                return data
            self.on_invitation(data, head.extra)
            return None

    def on_invitation(self, token: bytes, count: int) -> None:
        """The other side wants more connections. Raises: OSError, ProtocolViolation."""
        raise ProtocolViolation("a binder that invites its creator")

    def invite(self, count: int) -> None:
        """Have the other side make so many connections in all. Raises: OSError, ValueError (it is not the binder)."""
        raise ValueError(f"an invitation of the creator to {count} connections")

    def take_over(self) -> list[tuple[int, Any]]:
        """The raw descriptor of each connection, and what speaks TLS on it or None. Raises: OSError."""
        for stream in self._streams:
            kernel.poller_drop(self._poller.fileno(), stream.fileno())
        parts = [stream.take_over() for stream in self._streams]
        self._poller.close()
        return parts

    def close(self) -> None:
        """Hang up; idempotent."""
        for stream in self._streams:
            stream.close()
        self._poller.close()


class BinderWire(Wire):
    """The binder's side."""

    def __init__(self, network: Network, make_context: MakeContext, name: str | None, join: Join) -> None:
        super().__init__(network)
        self._make_context = make_context
        self._name = name
        self._join = join
        self._greetings: list[BinderGreeting] = []
        self._said: list[bytes] = []  # before the greeting was over
        self._to_join: list[BinderGreeting] = []
        self._timer: kernel.Descriptor | None = None  # while the creator's backlog is full
        self._connect(BinderGreeting(network.secret))

    def _connect(self, greeting: BinderGreeting) -> None:
        stream = Stream(self._network, self._make_context(), self._name)
        self._join(stream)
        self._streams.append(stream)
        self._greetings.append(greeting)
        stream.push(greeting.take_outgoing())
        self.watch()

    def say(self, data: bytes) -> None:
        """Send a message as soon as it can be. Raises: OSError."""
        if self._greetings[0].done:
            super().say(data)
        else:
            self._said.append(data)

    def on_invitation(self, token: bytes, count: int) -> None:
        """The creator has several channels for this binder: connect once more for each. Raises: OSError."""
        if self.count != 1:
            raise ProtocolViolation("two invitations on one connection")
        self.count = count
        self._to_join += [BinderGreeting(self._network.secret, token=token, index=index) for index in range(1, count)]
        self._join_on()

    def _join_on(self) -> None:
        """Connect for each channel that has no connection yet; where the backlog is full, again in a moment."""
        while self._to_join:
            try:
                self._connect(self._to_join[0])
            except BlockingIOError:
                if self._timer is None:
                    self._timer = kernel.make_timer()
                    kernel.poller_add(self._poller.fileno(), self._timer.fileno())
                kernel.set_timer(self._timer.fileno(), time.monotonic_ns() + RETRY_NS)
                return
            del self._to_join[0]
        self._stop_timer()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.close()
            self._timer = None

    def close(self) -> None:
        """Hang up; idempotent."""
        self._stop_timer()
        super().close()

    def hear(self) -> bytes | None:
        """The next message; None: not yet; b"": the creator hung up.

        Raises: ConnectionRefusedError, OSError, ProtocolViolation, BindRefusedError.
        """
        try:
            if self._to_join:
                self._join_on()
            while self._greet():
                before = len(self._streams)
                message = self.next_message() if self.count == 1 or before == self.count else None
                if len(self._streams) == before:
                    return message
            return None
        except (EOFError, ConnectionResetError, BrokenPipeError):
            if self._network.retry and not self._greetings[0].done:
                raise ConnectionRefusedError(errno.ECONNREFUSED, f"{self.host} hung up") from None
            if self._network.secret is not None and not all(greeting.done for greeting in self._greetings):
                raise BindRefusedError(f"{self.host} hung up when it saw the proof: is the secret the same?") from None
            return b""
        except ConnectionRefusedError:
            raise
        except OSError as error:
            if self._network.retry and not isinstance(error, ProtocolViolation) and not self._greetings[0].done:
                raise ConnectionRefusedError(errno.ECONNREFUSED, str(error)) from None
            raise
        finally:
            if not self.closed:
                self.watch()

    def _greet(self) -> bool:
        """Go on with the greetings; whether all are over."""
        for stream, greeting in zip(self._streams, self._greetings, strict=True):
            while not greeting.done:
                data = stream.pull(greeting.wanted)
                if data is None:
                    break
                greeting.feed(data)
                stream.push(greeting.take_outgoing())
        if not self._greetings[0].done:
            return False
        while self._said:
            super().say(self._said.pop(0))
        return all(greeting.done for greeting in self._greetings)


class CreatorWire(Wire):
    """The creator's side of one that knocked, or that joins another."""

    def __init__(self, network: Network, context: ssl.SSLContext | None, table: Invitations) -> None:
        super().__init__(network)
        self._stream = Stream(network, context, None)
        self._streams.append(self._stream)
        self._table = table
        self._greeting = CreatorGreeting(network.secret, tokens=table.missing)
        self._token = b""

    def accept(self, descriptor: kernel.Descriptor, host: str) -> None:
        """Take over a connected socket. Raises: OSError."""
        self._stream.accept(descriptor, host)
        self.watch()

    def invite(self, count: int) -> None:
        """Have the binder make so many connections, this one included. Raises: OSError."""
        self._token = os.urandom(frames.TOKEN_SIZE)
        self.count = count
        self._table.add(self._token, count, self)
        self._stream.push(frames.invite(self._token, count))
        self.watch()

    def hear(self) -> bytes | None:
        """The next message; None: not yet; b"": the binder hung up, or has joined another. Raises: OSError."""
        try:
            ready = self._greet() and self._greeting.purpose is Purpose.KNOCK and len(self._streams) >= self.count
            if self.closed:
                return b""
            return self.next_message() if ready else None
        except EOFError:
            return b""
        except BindRefusedError as error:
            raise ProtocolViolation(str(error)) from None
        finally:
            if not self.closed:
                self.watch()

    def _greet(self) -> bool:
        greeting = self._greeting
        if greeting.done:
            return True
        while greeting.goes_on():
            data = self._stream.pull(greeting.wanted)
            if data is None:
                return False
            greeting.feed(data)
            self._stream.push(greeting.take_outgoing())
            if greeting.refusal:
                raise BindRefusedError(f"greeting of {self.host}: {greeting.refusal}")
        if greeting.index:
            self._table.join(greeting.token, greeting.index, self)
        return True

    def hand_over(self) -> Stream:
        """The connection, for the one that it joins."""
        kernel.poller_drop(self._poller.fileno(), self._stream.fileno())
        self._streams.clear()
        self._poller.close()
        return self._stream

    def joined(self, joiners: Sequence[CreatorWire]) -> None:
        """All that were invited are here, in their order."""
        self._streams += [joiner.hand_over() for joiner in joiners]
        self.watch()

    @property
    def host(self) -> str:
        """Host and port of the binder."""
        return self._stream.host

    def close(self) -> None:
        """Hang up, on those that joined, too; not on a connection that was handed over; idempotent."""
        self._table.drop(self._token)
        super().close()


class Invitations:
    """Who was invited at one address, and who has come."""

    def __init__(self) -> None:
        self.missing: dict[bytes, set[int]] = {}
        self._hosts: dict[bytes, weakref.ref[CreatorWire]] = {}
        self._came: dict[bytes, dict[int, CreatorWire]] = {}

    def add(self, token: bytes, count: int, host: CreatorWire) -> None:
        """`host` has invited its binder to `count` connections in all."""
        self.missing[token] = set(range(1, count))
        self._hosts[token] = weakref.ref(host)
        self._came[token] = {}

    def join(self, token: bytes, index: int, joiner: CreatorWire) -> None:
        """One of them is here. Raises: BindRefusedError (somebody was quicker, or the host has gone)."""
        host = self._hosts[token]() if token in self._hosts else None
        if host is None or index not in self.missing[token]:
            raise BindRefusedError("the invitation is used up")
        self.missing[token].discard(index)
        came = self._came[token]
        came[index] = joiner
        if not self.missing[token]:
            self.drop(token)
            host.joined([came[number] for number in sorted(came)])

    def drop(self, token: bytes) -> None:
        """The invitation is void; who came and was not taken is hung up on when its own time is over."""
        self.missing.pop(token, None)
        self._hosts.pop(token, None)
        self._came.pop(token, None)

    def close(self) -> None:
        """Nobody is invited any more."""
        for token in list(self.missing):
            with contextlib.suppress(KeyError):
                self.drop(token)
