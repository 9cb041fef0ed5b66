"""The report's tests 0 to 6 (II-5.1): what arrives is what was sent, and what was given away is out of reach.

Knows: which access is tried when, and what must come of it. Must not know: what is printed, or who asks.

In tests 2 to 6 one party goes around the library: its C code reads or writes a buffer that is no longer, or not
wholly, its own. At trust HALF the kernel must end its process with SIGSEGV. At FULL nothing is enforced (the report's
trusted channel), so the access goes through. At NONE, by value, it goes to the party's own twin: what the other one has
must be as it was; where contents travel as sealed frames, it faults as at HALF. Python's own ways are refused at
every level.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import bulktransfer as bulk

from .party import Arrived
from .places import Gone, Seat, There
from .subject import MODES, Mode, Subject, memory_is_shared, seals

FAULTS, GOES_THROUGH, ALL_OF_IT = "faults", "goes through", "every byte is right"
PINS = ("any", "same", "split")
FAULTING = (bulk.Trust.HALF,)  # by value (NONE) a stray access meets the offender's own twin, and nobody sees it
BUFFERS, BUFFER_BYTES, ROUNDS = 4, 16384, 3
_SOURCE, _SINK = 0, 1


class Guarantee(NamedTuple):
    """One of tests 2 to 6: who offends against what, after which transfers."""

    number: int
    promise: str
    before: tuple[str, ...]  # transfers of buffer 0
    offender: int
    read: str  # what a stray read must lead to where the kernel enforces
    refusals: tuple[str, str]  # of reading and writing in Python; nothing: it is allowed


GUARANTEES = (
    Guarantee(
        2,
        "a passed buffer can no longer be accessed",
        ("move", "pass"),
        _SINK,
        FAULTS,
        ("InvalidBufferError", "InvalidBufferError"),
    ),
    Guarantee(
        3,
        "a moved buffer can no longer be accessed",
        ("move",),
        _SOURCE,
        FAULTS,
        ("InvalidBufferError", "InvalidBufferError"),
    ),
    Guarantee(
        4,
        "a buffer shared by a copy is read-only",
        ("copy",),
        _SOURCE,
        GOES_THROUGH,
        ("", "CopiesOutstandingError"),
    ),
    Guarantee(5, "a buffer received by a copy is read-only", ("copy",), _SINK, GOES_THROUGH, ("", "NotOwnedError")),
    Guarantee(
        6,
        "a released copy can no longer be accessed",
        ("copy", "release"),
        _SINK,
        FAULTS,
        ("InvalidBufferError", "InvalidBufferError"),
    ),
)
CONTENTS = (
    "on a trusted channel everything arrives as it was",
    "on a non-trusted channel everything arrives as it was",
)
TITLES = {**dict(enumerate(CONTENTS)), **{g.number: g.promise for g in GUARANTEES}}


class Saw(NamedTuple):
    """What came of it: what Python's own ways met, and what the kernel did about access from C."""

    python: str
    c: str = "-"

    def __str__(self) -> str:
        return self.python if self.c == "-" else f"Python: {self.python}; C: {self.c}"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one test saw at one level; `right` where all was as expected."""

    test: int
    scheme: str
    trust: bulk.Trust
    mode: str
    pin: str
    seen: Saw
    expected: Saw

    @property
    def right(self) -> bool:
        """Whether it is as expected."""
        return self.seen == self.expected


class Stage:
    """A source and a sink that are connected; the source owns every buffer of the pool."""

    def __init__(self, seats: tuple[Seat, Seat], cores: tuple[int, int] | None, together: bool) -> None:
        self.seats = seats
        self.cores = cores
        self.together = together

    def call(self, end: int, method: str, *args: Any, **options: Any) -> Any:
        """Have one end do something, on its core. Raises: what it raises; Gone."""
        if self.cores is not None and self.together:  # threads of one process, each on its core
            return self.seats[end].begin("on_core", self.cores[end], method, *args, **options)()
        return self.seats[end].call(method, *args, **options)

    def attempt(self, end: int, method: str, *args: Any) -> str:
        """The name of the error, or nothing. Raises: Gone."""
        try:
            self.call(end, method, *args)
        except (bulk.BulkError, BufferError) as error:
            return type(error).__name__
        return ""

    def transfer(self, act: str, buffer: int) -> Arrived:
        """Send, and receive at the other end."""
        end = _SOURCE if act in ("move", "copy") else _SINK
        self.call(end, "send", act, 0, 0, buffer)
        arrived = self.call(1 - end, "receive", 0)
        if not isinstance(arrived, Arrived) or arrived.buffer != buffer:
            raise AssertionError(f"{arrived} came of a {act} of buffer {buffer}")
        return arrived


def connect(source: Seat, sink: Seat, number: int, trust: bulk.Trust, mode: Mode, **more: Any) -> None:
    """A channel between two parties; the master creates it. Raises: BulkError, Gone."""
    master, other = (source, sink) if mode.source_is_master else (sink, source)
    address = master.call("create", number, mode.source_is_master, trust.name, "MASTER", **more)
    bound = master.begin("wait_bound", number)
    other.call("bind", number, address)
    bound()


def assign(asker: Seat, other: Seat, number: int, pool: int) -> None:
    """Bring a pool onto a channel. Raises: BulkError, Gone."""
    assigned = asker.begin("assign", number, pool)
    other.call("take_pool", number, pool)
    assigned()


@contextlib.contextmanager
def stage(subject: Subject, trust: bulk.Trust, mode: Mode, pin: str = "any") -> Iterator[Stage]:
    """Two parties, in processes of their own where the backend allows it. Raises: BulkError, Gone, CannotPin."""
    cores = cores_for(pin)
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(There(subject))
        second = stack.enter_context(There(subject)) if subject.processes else first
        source, sink = first.party(), second.party()
        if cores is not None and subject.processes:
            source.call("pin", cores[0])
            sink.call("pin", cores[1])
        connect(source, sink, 0, trust, mode, meta_size=16)
        master, other = (source, sink) if mode.source_is_master else (sink, source)
        master.call("allocate", 0, BUFFERS, BUFFER_BYTES)
        assign(master, other, 0, 0)
        made = Stage((source, sink), cores, not subject.processes)
        if not mode.source_is_master:
            for buffer in range(BUFFERS):
                made.transfer("pass", buffer)
        yield made
        for seat in made.seats:  # both at once: a process at a network channel waits a while for its peer to hang up
            with contextlib.suppress(Gone):
                seat.call("end")


class CannotPin(Exception):
    """This process may run on one core only."""


def cores_for(pin: str) -> tuple[int, int] | None:
    """The cores of the two ends; None for any. Raises: CannotPin."""
    if pin == "any":
        return None
    cores = sorted(os.sched_getaffinity(0))
    if pin == "same":
        return cores[0], cores[0]
    if len(cores) < 2:
        raise CannotPin(f"this process may run on core {cores[0]} only")
    return cores[0], cores[1]


def tests_of(trust: bulk.Trust) -> tuple[int, ...]:
    """The numbers of the tests that are for a level: 0 is the trusted channel's, 1 is for the others."""
    return (0 if trust is bulk.Trust.FULL else 1, *(g.number for g in GUARANTEES))


def run(number: int, subject: Subject, trust: bulk.Trust, mode: Mode = MODES[0], pin: str = "any") -> Finding:
    """Do one test. Raises: CannotPin, ValueError (there is no such test)."""
    guarantee = next((g for g in GUARANTEES if g.number == number), None)
    if guarantee is None and number not in (0, 1):
        raise ValueError(f"there is no test {number}: 0 to 6")
    cores_for(pin)
    due = Saw(ALL_OF_IT) if guarantee is None else expected(guarantee, trust, seals(subject, trust))
    try:
        if guarantee is None:
            seen = Saw(_contents(subject, trust, mode, pin))
        else:
            seen = _offend(guarantee, subject, trust, mode, pin)
    except (bulk.BulkError, OSError, AssertionError, Gone) as error:
        seen = Saw(f"{type(error).__name__}: {error}")
    return Finding(number, subject.scheme, trust, mode.name, pin, seen, due)


def pattern(seed: int, size: int) -> bytes:
    """So many bytes; with another seed or on another page they are others (251 divides no page size)."""
    base = bytes((37 * place + 11 * seed) % 251 for place in range(251))
    return (base * (size // 251 + 1))[:size]


def _contents(subject: Subject, trust: bulk.Trust, mode: Mode, pin: str) -> str:
    """Tests 0 and 1: moves there and back, copies and releases, compared byte by byte."""
    with stage(subject, trust, mode, pin) as here:
        for turn in range(ROUNDS * BUFFERS):
            buffer = turn % BUFFERS
            for act, back in (("move", "pass"), ("copy", "release")):
                data = pattern(3 * turn + (act == "copy"), BUFFER_BYTES - 512 * turn)
                here.call(_SOURCE, "put", 0, buffer, data)
                here.transfer(act, buffer)
                found = here.call(_SINK, "look", 0, buffer).data
                if found != data:
                    return _difference(act, buffer, found, data)
                here.transfer(back, buffer)
    return ALL_OF_IT


def _difference(act: str, buffer: int, found: bytes, sent: bytes) -> str:
    if len(found) != len(sent):
        return f"{act} of buffer {buffer}: {len(found)} bytes of {len(sent)}"
    place = next(i for i, (a, b) in enumerate(zip(found, sent, strict=True)) if a != b)
    return f"{act} of buffer {buffer}: byte {place} is {found[place]:#04x}, not {sent[place]:#04x}"


def expected(guarantee: Guarantee, trust: bulk.Trust, sealed: bool = False) -> Saw:
    """What must come of it at that level; `sealed`: where contents travel as sealed frames."""
    read, write = (guarantee.read, FAULTS) if trust in FAULTING or sealed else (GOES_THROUGH, GOES_THROUGH)
    return _told(guarantee.refusals, read, write)


def _told(refusals: tuple[str, str], read: str, write: str) -> Saw:
    acts = zip(("read", "write"), refusals, strict=True)
    return Saw(", ".join(f"{act}: {error or 'allowed'}" for act, error in acts), f"read {read}, write {write}")


def _offend(guarantee: Guarantee, subject: Subject, trust: bulk.Trust, mode: Mode, pin: str) -> Saw:
    """Tests 2 to 6: first in Python, then from C; whoever died of reading does not write, so another does."""
    refusals: tuple[str, str] = ("", "")
    strays: list[str] = []
    while len(strays) < 2:
        with stage(subject, trust, mode, pin) as here:
            sent = pattern(guarantee.number, BUFFER_BYTES)
            here.call(_SOURCE, "put", 0, 0, sent)
            for act in guarantee.before:
                here.transfer(act, 0)
            offender = guarantee.offender
            refusals = (here.attempt(offender, "read", 0, 0), here.attempt(offender, "put", 0, 0, b"x"))
            while len(strays) < 2:
                strays.append(_stray(here, offender, ("read", "write")[len(strays)]))
                if strays[-1] != GOES_THROUGH:
                    break
            if strays[-1] == FAULTS and subject.processes:
                # a pass carries no contents: what its new owner sees is defined where memory is shared only
                defined = memory_is_shared(trust) or "pass" not in guarantee.before
                _unharmed(here, 1 - offender, sent if defined else None)
            elif strays[-1] != FAULTS and not memory_is_shared(trust):
                _unchanged(here, 1 - offender, sent)
    return _told(refusals, *strays)


def _stray(here: Stage, offender: int, access: str) -> str:
    try:
        here.call(offender, "stray", 0, 0, access)
    except Gone as gone:
        return FAULTS if gone.signal == signal.SIGSEGV else str(gone)
    return GOES_THROUGH


def _unchanged(here: Stage, end: int, sent: bytes) -> None:
    """The other end reads what it may read as it was, and goes on."""
    seen = here.call(end, "look", 0, 0)
    if seen.state in ("READ_ONLY", "READ_ONLY_OWNED") and seen.data != sent:
        raise AssertionError("the stray access changed what the other end has")


def _unharmed(here: Stage, end: int, sent: bytes | None) -> None:
    """The other end reads what it may read as it was, and hears that its peer is gone."""
    seen = here.call(end, "look", 0, 0)
    if None not in (seen.data, sent) and seen.data != sent:
        raise AssertionError("the stray access changed what the other end has")
    if here.attempt(end, "receive", 0) != "BrokenChannelError":
        raise AssertionError("the other end did not hear that its peer is gone")
