"""What the tests of the suite stand on: cases, domains, channels and pools that end with the test.

Knows: how two domains of this process are connected through the subject's backend. Must not know: any promise.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

import bulktransfer as bulk
from bulktransfer import ChannelState, Direction, EventKind, Role

from .. import nursery
from ..party import PATIENCE_S
from ..subject import MODES, Mode, Subject, memory_is_shared

BUFFERS, BUFFER_BYTES, META_BYTES = 4, 8192, 32


class Case(NamedTuple):
    """What one run of a test is about."""

    subject: Subject
    trust: bulk.Trust
    mode: Mode

    @property
    def shared(self) -> bool:
        """Whether both sides see the same memory."""
        return memory_is_shared(self.trust)

    @property
    def far(self) -> bool:
        """Whether the ends may be on two machines: nobody knows that both are in one domain, and nothing is at once."""
        return self.subject.is_far

    def __str__(self) -> str:
        return f"{self.trust.name}-{self.mode.name}"


class Suite:
    """The base of every part: each test that asks for `case`, `world` or `line` runs for every case."""

    subject: Subject

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Every trust level that the backend offers, in both role modes."""
        nursery.ready()  # while tests are collected: no test seems to have left it behind
        if "case" in metafunc.fixturenames:
            metafunc.parametrize("case", self.cases(), ids=str)

    def cases(self) -> list[Case]:
        """Every trust level that the backend offers, in both role modes."""
        return [Case(self.subject, trust, mode) for trust in self.subject.trusts for mode in MODES]

    @pytest.fixture
    def world(self, case: Case) -> Iterator[World]:
        """Makes domains, channels and pools, and ends them."""
        with World(case) as made:
            yield made

    @pytest.fixture
    def line(self, world: World) -> Line:
        """A source and a sink, connected; the source owns every buffer of a pool that both have."""
        return world.line()


def together(first: Callable[[], Any], second: Callable[[], Any]) -> tuple[Any, Any]:
    """Do both at once, the first in a thread of its own; their results. Raises: what either raises."""
    running = Background(first)
    try:
        mine = second()
    except BaseException:
        with contextlib.suppress(Exception):  # the failure of the second is the one to be seen
            running.result()
        raise
    return running.result(), mine


class Background:
    """A call that runs in a thread of its own."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._found: list[Any] = []
        self._failed: list[BaseException] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._found.append(self._function())
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is wanted
            self._failed.append(error)

    @property
    def running(self) -> bool:
        """Whether it has neither returned nor raised yet."""
        return self._thread.is_alive()

    def check(self) -> None:
        """Raise what it has raised by now."""
        if self._failed:
            raise self._failed[0]

    def result(self) -> Any:
        """What it returned. Raises: what it raised."""
        self._thread.join(PATIENCE_S)
        if self._failed:
            raise self._failed[0]
        assert self._found, "a call in a thread did not end"
        return self._found[0]


class World:
    """Makes things, and ends them."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.made: list[Any] = []

    def __enter__(self) -> World:
        return self

    def __exit__(self, *exc: object) -> None:
        self.end()

    def end(self) -> None:
        """End everything; idempotent."""
        for thing in reversed(self.made):
            thing.close()
        self.made.clear()

    def keep(self, thing: Any) -> Any:
        """Close it in the end."""
        self.made.append(thing)
        return thing

    def create(self, domain: bulk.Domain, direction: Direction, **options: Any) -> bulk.Channel:
        """One end; options as bulk.create takes them."""
        options = {"trust": self.case.trust, "meta_size": META_BYTES, **self.case.subject.create, **options}
        made: bulk.Channel = self.keep(
            bulk.create(self.case.subject.address, direction=direction, domain=domain, **options)
        )
        return made

    def bind(self, address: str, domain: bulk.Domain, **options: Any) -> bulk.Channel:
        """The other end; its creator must be waiting."""
        options = {"timeout": PATIENCE_S, **self.case.subject.bind, **options}
        made: bulk.Channel = self.keep(bulk.bind(address, domain=domain, **options))
        return made

    def channel(
        self,
        source: bulk.Domain,
        sink: bulk.Domain,
        *,
        by_source: bool = True,
        binder: dict[str, Any] | None = None,
        **options: Any,
    ) -> tuple[bulk.Channel, bulk.Channel]:
        """A connected channel: its source end and its sink end; who creates it is MASTER."""
        here, there = (source, sink) if by_source else (sink, source)
        options = {"role": Role.MASTER, **options}
        first = self.create(here, Direction.TX if by_source else Direction.RX, **options)
        binding = Background(lambda: self.bind(first.address, there, **(binder or {})))
        end = time.monotonic() + PATIENCE_S
        while first.state in (ChannelState.INITIALIZED, ChannelState.BIND_NEGOTIATE) and time.monotonic() < end:
            with contextlib.suppress(TimeoutError):
                first.wait_bound(0.2)
            binding.check()
        first.wait_bound(0)  # it takes the event that wait_bound is told by
        second = binding.result()
        return (first, second) if by_source else (second, first)

    def allocator(self, domain: bulk.Domain, **options: Any) -> bulk.Allocator:
        """A pool of this domain."""
        options = {"count": BUFFERS, "size": BUFFER_BYTES, **options}
        made: bulk.Allocator = self.keep(bulk.Allocator(domain=domain, **options))
        return made

    def assign(self, asker: bulk.Channel, other: bulk.Channel, pool: bulk.Pool) -> bulk.Pool:
        """Bring a pool onto a channel; the pool as the other side has it."""
        options = self.case.subject.assign
        event, _ = together(lambda: take(other, EventKind.POOL_ASSIGNED), lambda: asker.assign_pool(pool, **options))
        found: bulk.Pool = event.pool
        return found

    def consenting(
        self, source: bulk.Domain, sink: bulk.Domain, pool: bulk.Pool, *, by_source: bool = True
    ) -> tuple[tuple[bulk.Channel, bulk.Channel], bulk.Event]:
        """A channel whose sink has the pool already, and consents to get it by this way, too: the event of that."""
        seen: list[bulk.Event] = []
        callbacks = bulk.Callbacks(pool_assigned=seen.append)
        options = {"binder": {"callbacks": callbacks}} if by_source else {"callbacks": callbacks}
        tx, rx = self.channel(source, sink, by_source=by_source, **options)
        asking = Background(lambda: tx.assign_pool(pool, timeout=PATIENCE_S))
        while asking.running:
            with pytest.raises(TimeoutError):
                rx.receive(0.01)
        asking.result()
        (event,) = seen
        return (tx, rx), event

    def line(self, *, count: int = BUFFERS, reclaim: bool = False, **options: Any) -> Line:
        """A source and a sink, as the case's mode has them; the source owns every buffer."""
        source, sink = bulk.Domain(), bulk.Domain()
        by_source = self.case.mode.source_is_master
        tx, rx = self.channel(source, sink, by_source=by_source, **options)
        home, master, other = (source, tx, rx) if by_source else (sink, rx, tx)
        alloc = self.allocator(home, count=count, reclaim=reclaim)
        far = self.assign(master, other, alloc.pool)
        made = Line(self.case, tx, rx, alloc, *((alloc.pool, far) if by_source else (far, alloc.pool)))
        buffers = alloc.alloc_many(count)
        if not by_source:  # the sink fills the source
            for buffer in buffers:
                rx.pass_(buffer)
                take(tx, EventKind.BUFFER_RECEIVED)
        return made


class Line(NamedTuple):
    """A source's end, a sink's end, the allocator of their pool, and the pool as each has it."""

    case: Case
    tx: bulk.Channel
    rx: bulk.Channel
    alloc: bulk.Allocator
    near: bulk.Pool  # at the source
    far: bulk.Pool  # at the sink

    @property
    def both(self) -> tuple[bulk.Pool, bulk.Pool]:
        """The pool at the source and at the sink."""
        return self.near, self.far

    def send(self, act: str, index: int, meta: bytes = b"") -> Any:
        """Send a buffer, and receive it at the other end: the event."""
        kinds: dict[str, tuple[Callable[..., None], bulk.Channel, EventKind]] = {
            "move": (self.tx.move, self.rx, EventKind.MOVE_RECEIVED),
            "copy": (self.tx.copy, self.rx, EventKind.COPY_RECEIVED),
            "pass": (self.rx.pass_, self.tx, EventKind.BUFFER_RECEIVED),
            "release": (self.rx.release, self.tx, EventKind.COPY_RELEASED),
        }
        call, other, kind = kinds[act]
        pool = self.near if act in ("move", "copy") else self.far
        if act == "release":
            self.rx.release(pool[index])
        else:
            call(pool[index], meta)
        return take(other, kind)

    def states(self, index: int) -> tuple[str, str]:
        """The buffer at the source and at the sink."""
        return self.near[index].state.name, self.far[index].state.name


def take(channel: bulk.Channel, kind: EventKind) -> Any:
    """The next event, which is of that kind."""
    event = channel.receive(PATIENCE_S)
    assert event.kind is kind, f"{event} came where {kind} was due"
    return event


def until_told(channel: bulk.Channel, done: list[bulk.Outcome]) -> None:
    """Until a continuation has run, with nothing else to be received."""
    end = time.monotonic() + PATIENCE_S
    while not done and time.monotonic() < end:
        with pytest.raises(TimeoutError):
            channel.receive(0.01)


def all_back(alloc: bulk.Allocator) -> bool:
    """Whether nobody else may have a buffer any more; over a network that is so once its last byte has left."""
    return alloc.detached == 0 or alloc.pool.domain.wait_for(lambda: alloc.detached == 0, PATIENCE_S)


def come_back(sender: bulk.Channel, other: bulk.Channel) -> Any:
    """The event that says that what was sent was refused; the other end serves, and hears of nothing."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        with contextlib.suppress(bulk.WouldBlock):
            raise AssertionError(f"{other.receive_nowait()} came of what must be refused")
        with contextlib.suppress(TimeoutError):
            event = sender.receive(0.01)
            assert event.kind is EventKind.OPERATION_REFUSED, event
            return event
    raise AssertionError("no refusal came back")


def ledger(buffer: bulk.Buffer) -> tuple[Any, ...]:
    """All that a domain knows about a buffer, and what it reads there."""
    try:
        contents = buffer.tobytes()
    except (bulk.InvalidBufferError, bulk.NotAllocatedError) as error:
        contents = type(error).__name__.encode()
    return buffer.state, buffer.length, buffer.exports, *buffer.pool.counts(buffer.index), contents


@contextlib.contextmanager
def unchanged(*pools: bulk.Pool) -> Iterator[None]:
    """What happens inside leaves every buffer of these pools as it is."""
    before = [[ledger(buffer) for buffer in pool] for pool in pools]
    yield
    assert [[ledger(buffer) for buffer in pool] for pool in pools] == before


def until_the_end(channel: bulk.Channel) -> tuple[list[Any], bulk.BulkError]:
    """The events until the channel has ended, and how it ended."""
    events = []
    while True:
        try:
            events.append(channel.receive(PATIENCE_S))
        except (bulk.EndOfChannelError, bulk.BrokenChannelError, bulk.ClosedChannelError) as error:
            return events, error
