"""Where parties are: in this process, or in one of their own.

Knows: how orders reach a party, and what becomes of answers, errors and deaths. Must not know: what is ordered.

    with Here(subject) as here, There(subject) as there:
        a, b = here.party(), there.party()
        address = a.call("create", 0, True, "FULL")

A process of its own ends with this one at the latest.
"""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple, Protocol

from . import nursery
from .party import PATIENCE_S, Party
from .subject import Subject


class Gone(Exception):
    """The process of a party ended: `signal` that killed it, or 0 and its exit `code`."""

    def __init__(self, signal: int, code: int) -> None:
        super().__init__(signal, code)
        self.signal = signal
        self.code = code

    def __str__(self) -> str:
        how = f"was killed by {signal.Signals(self.signal).name}" if self.signal else f"exited with {self.code}"
        return f"the process of the party {how}"


class Failed(Exception):
    """An order failed in another process with an error that does not travel; its traceback is the text."""


class Answer(NamedTuple):
    """What an order led to: a value, or the name of the error's class and its text."""

    value: Any = None
    error: str = ""
    text: str = ""


class Place(Protocol):
    """Something that has parties."""

    def order(self, party: int, method: str, args: tuple[Any, ...], options: dict[str, Any]) -> Any: ...  # noqa: D102

    def begin(self, party: int, method: str, args: tuple[Any, ...], options: dict[str, Any]) -> int: ...  # noqa: D102

    def finish(self, ticket: int) -> Any: ...  # noqa: D102


class Seat(NamedTuple):
    """A party where it is."""

    place: Place
    number: int

    def call(self, method: str, *args: Any, **options: Any) -> Any:
        """Have it do something, and wait. Raises: what it raises; Gone."""
        return self.place.order(self.number, method, args, options)

    def attempt(self, method: str, *args: Any, **options: Any) -> Answer:
        """The same; an error is an answer, the death of the process is none. Raises: Gone."""
        try:
            return Answer(self.call(method, *args, **options))
        except (Gone, AssertionError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever the library raises is what is compared
            return Answer(None, type(error).__name__, str(error))

    def begin(self, method: str, *args: Any, **options: Any) -> Callable[[], Any]:
        """Have it do something meanwhile; what is returned waits for the end."""
        ticket = self.place.begin(self.number, method, args, options)
        return lambda: self.place.finish(ticket)


class Here:
    """Parties in this process."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.parties: list[Party] = []
        self._running: dict[int, tuple[threading.Thread, list[Any]]] = {}
        self._tickets = 0

    def party(self) -> Seat:
        """One more."""
        self.parties.append(Party(self.subject))
        return Seat(self, len(self.parties) - 1)

    def order(self, party: int, method: str, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Do it now."""
        return getattr(self.parties[party], method)(*args, **options)

    def begin(self, party: int, method: str, args: tuple[Any, ...], options: dict[str, Any]) -> int:
        """Do it in a thread."""
        found: list[Any] = []

        def run() -> None:
            try:
                found.append((True, self.order(party, method, args, options)))
            except BaseException as error:  # noqa: BLE001 - it is raised where the order is finished
                found.append((False, error))

        thread = threading.Thread(target=run)
        self._tickets += 1
        self._running[self._tickets] = (thread, found)
        thread.start()
        return self._tickets

    def finish(self, ticket: int) -> Any:
        """Wait for an order that was begun."""
        thread, found = self._running.pop(ticket)
        thread.join(2 * PATIENCE_S)
        if not found:
            raise AssertionError("an order that was begun did not end")
        right, value = found[0]
        if not right:
            raise value
        return value

    def close(self) -> None:
        """End every party."""
        for party in self.parties:
            party.end()
        self.parties.clear()

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class There:
    """Parties in a process of their own."""

    def __init__(self, subject: Subject) -> None:
        here, there = socket.socketpair()
        with there:
            self.process = nursery.Offspring(nursery.ready(), there.fileno())
        self.pipe: Connection[Any, Any] = Connection(here.detach())
        self._parties = 0
        self._say("prepare", subject)

    def party(self) -> Seat:
        """One more."""
        self._say("party")
        self._parties += 1
        return Seat(self, self._parties - 1)

    def order(self, party: int, method: str, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Do it there. Raises: Gone, and what it raises."""
        return self._say("order", party, method, args, options)

    def begin(self, party: int, method: str, args: tuple[Any, ...], options: dict[str, Any]) -> int:
        """Do it there, in a thread. Raises: Gone."""
        ticket: int = self._say("begin", party, method, args, options)
        return ticket

    def finish(self, ticket: int) -> Any:
        """Wait for an order that was begun. Raises: Gone, and what it raises."""
        return self._say("finish", ticket)

    def _say(self, *order: Any) -> Any:
        try:
            self.pipe.send(order)
            if not wait([self.pipe], 3 * PATIENCE_S):
                raise AssertionError(f"process {self.process.pid} does not answer {order}")
            right, value = self.pipe.recv()
        except (EOFError, ConnectionError):
            raise self._gone() from None
        if not right:
            raise value
        return value

    def _gone(self) -> Gone:
        code = self.process.wait(PATIENCE_S)
        return Gone(max(-code, 0), max(code, 0))

    def kill(self) -> None:
        """End it the hard way, and wait until it is gone."""
        self.process.kill()
        self.process.wait(PATIENCE_S)

    def close(self) -> None:
        """End it: in order if it can, else the hard way; never raises."""
        self.pipe.close()
        try:
            self.process.wait(PATIENCE_S)
        except TimeoutError:
            self.kill()

    def __enter__(self) -> There:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
