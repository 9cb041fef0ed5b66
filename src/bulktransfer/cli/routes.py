"""The ways that the demonstration sends a file: from domain to domain, and what each domain does.

Knows: source, relay and sink; what a pass over the file is, and how it is timed. Must not know: what is printed.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import bulktransfer as bulk

from . import crew
from .crew import PATIENCE_S, CrewError, Member
from .source import Advance, Source

BUFFERS = 8
BUFFER_BYTES = 1 << 20  # a pool of 8 MiB: what is filled is still in a cache when it is read
_BYTES_PER_S_AT_LEAST = 20 << 20  # below that a stage counts as stuck


@dataclass(frozen=True, slots=True)
class Route:
    """From the first domain to the last: one hop, or more of them."""

    scheme: str
    hops: int
    trust: bulk.Trust

    @property
    def name(self) -> str:
        """For people: `shm: A -> B`."""
        return f"{self.scheme}: {' -> '.join('ABCDEFGH'[: self.hops + 1])}"

    @property
    def domains(self) -> str:
        """What runs at each stop."""
        return "threads" if self.scheme == "local" else "processes"


def trusts(scheme: str) -> list[bulk.Trust]:
    """Every level that a backend offers, the most trusting first."""
    return sorted(bulk.backends.backend_for(f"{scheme}:").trusts, key=lambda trust: -trust.value)


def routes() -> list[Route]:
    """Every route that the demonstration takes."""
    ways = (("shm", 1), ("shm", 2), ("local", 1))
    return [Route(scheme, hops, trust) for scheme, hops in ways for trust in trusts(scheme)]


@dataclass(frozen=True, slots=True)
class Pass:
    """What one pass over the file took, on all its domains together, and what arrived."""

    seconds: float
    cpu_seconds: float
    buffers: int
    length: int
    digest: str | None  # of what arrived; None if nobody looked at it


@dataclass(frozen=True, slots=True)
class Report:
    """What a stage says after a pass; `digest` and `length` come from the sink."""

    cpu_seconds: float
    length: int = 0
    digest: str | None = None


# --- the first domain ---


@contextlib.contextmanager
def standing(route: Route) -> Iterator[Line]:
    """Start the other domains of a route and connect them. Raises: CrewError."""
    start = crew.thread if route.scheme == "local" else crew.process
    stops = [f"{route.scheme}:demo-{secrets.token_hex(6)}" for _ in range(route.hops)]
    members: list[Member] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(crew.watching(members))
        channel = stack.enter_context(bulk.create(stops[0], direction=bulk.Direction.TX, trust=route.trust))
        frames = stack.enter_context(bulk.Allocator(count=BUFFERS, size=BUFFER_BYTES, reclaim=True))
        for here, onward in zip(stops, [*stops[1:], None], strict=True):
            letter = "BCDEFGH"[len(members)]
            if onward is None:
                members.append(start(f"sink {letter}", sink, here))
            else:
                members.append(start(f"relay {letter}", relay, here, onward, route.trust.name))
        _wait_bound(channel, members)
        channel.assign_pool(frames.pool, timeout=PATIENCE_S)
        for member in members:
            member.hear()  # it is ready
        yield Line(channel, frames, members)


def _wait_bound(channel: bulk.Channel, members: list[Member]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            return channel.wait_bound(0.5)
        except TimeoutError:
            for member in members:
                if member.pipe.poll():
                    member.hear()  # raises what it failed with
            if time.monotonic() > deadline_s:
                raise


class Line:
    """A route that stands, seen from the source."""

    def __init__(self, channel: bulk.Channel, frames: bulk.Allocator, members: list[Member]) -> None:
        self._channel = channel
        self._frames = frames
        self._members = members

    def send(self, source: Source, *, checked: bool, advance: Advance) -> Pass:
        """Send the whole file; `checked`: the sink takes a digest. Raises: CrewError, SourceError, BulkError."""
        limit_s = 60 + source.size // _BYTES_PER_S_AT_LEAST
        for member in self._members:
            member.tell((checked, limit_s))
        start_s, start_cpu_s = time.perf_counter(), time.process_time()
        buffers = self._pump(source, advance)
        reports: list[Report] = [member.hear() for member in self._members]
        seconds = time.perf_counter() - start_s
        cpu_s = time.process_time() - start_cpu_s  # threads are in it
        cpu_s += sum(report.cpu_seconds for report, m in zip(reports, self._members, strict=True) if m.is_process)
        return Pass(seconds, cpu_s, buffers, reports[-1].length, reports[-1].digest)

    def _pump(self, source: Source, advance: Advance) -> int:
        """Fill buffers and move them, until an empty one has told the sink of the end."""
        buffers = 0
        source.rewind()
        while True:
            buffer = self._frames.alloc(PATIENCE_S)
            with memoryview(buffer) as view:
                length = source.read_into(view)
            buffer.length = length
            self._channel.move(buffer)
            if not length:
                return buffers
            buffers += 1
            advance(length)


def read_alone(source: Source, advance: Advance) -> Pass:
    """Read the file into a buffer and send nothing: the floor under every route. Raises: SourceError."""
    return _read(source, advance, lambda data: None)


def read_digest(source: Source, advance: Advance) -> tuple[str, Pass]:
    """The SHA-256 of the file, by reading and digesting in turns in one thread. Raises: SourceError."""
    whole = hashlib.sha256()
    found = _read(source, advance, whole.update)
    return whole.hexdigest(), found


def _read(source: Source, advance: Advance, use: Callable[[memoryview], None]) -> Pass:
    buffers = done = 0
    with memoryview(bytearray(BUFFER_BYTES)) as view:
        start_s, start_cpu_s = time.perf_counter(), time.process_time()
        source.rewind()
        while length := source.read_into(view):
            use(view[:length])
            buffers, done = buffers + 1, done + length
            advance(length)
        return Pass(time.perf_counter() - start_s, time.process_time() - start_cpu_s, buffers, done, None)


# --- the other domains; each runs in a process or thread of its own ---


def sink(pipe: Any, here: str) -> None:
    """The last domain: takes each buffer, reads it where it lies if asked to, and gives it back."""
    with bulk.bind(here, timeout=PATIENCE_S) as channel:
        channel.receive(PATIENCE_S)  # the pool is assigned
        pipe.send("ready")
        while True:
            checked, limit_s = pipe.recv()
            with _Measured(limit_s) as measured:
                whole, length = hashlib.sha256(), 0
                while True:
                    with channel.receive_buffer(PATIENCE_S) as buffer:
                        if not buffer.length:
                            break
                        length += buffer.length
                        if checked:
                            whole.update(buffer)
            pipe.send(Report(measured.cpu_seconds, length, whole.hexdigest() if checked else None))


def relay(pipe: Any, here: str, onward_address: str, trust: str) -> None:
    """A domain in the middle: sends every buffer on as it is, and passes it back when it comes home."""
    away = 0
    over = False

    def forward(event: bulk.Event) -> None:
        nonlocal away, over
        over = not event.buffer.length
        away += 1
        onward.move(event.buffer)

    def give_back(event: bulk.Event) -> None:
        nonlocal away
        away -= 1
        inbound.pass_(event.buffer)

    def end(event: bulk.Event) -> None:
        raise CrewError(f"{event.channel} ended")

    back = bulk.Callbacks(buffer_received=give_back, teardown_received=end)
    there = bulk.Callbacks(move_received=forward, teardown_received=end)
    with (
        bulk.create(onward_address, direction=bulk.Direction.TX, trust=bulk.Trust[trust], callbacks=back) as onward,
        bulk.bind(here, timeout=PATIENCE_S, callbacks=there) as inbound,
        bulk.WaitSet() as both,
    ):
        pool = inbound.receive(PATIENCE_S).pool
        onward.wait_bound(PATIENCE_S)
        onward.assign_pool(pool, timeout=PATIENCE_S)
        both.add(inbound)
        both.add(onward)
        pipe.send("ready")
        while True:
            _, limit_s = pipe.recv()
            with _Measured(limit_s) as measured:
                over = False
                while away or not over:
                    both.dispatch(PATIENCE_S)
            pipe.send(Report(measured.cpu_seconds))


class _Measured:
    """The CPU seconds of a `with` block; a process that takes longer than `limit_s` for it is ended."""

    cpu_seconds = 0.0

    def __init__(self, limit_s: int) -> None:
        crew.watchdog(limit_s)

    def __enter__(self) -> _Measured:
        self._start_s = time.process_time()
        return self

    def __exit__(self, *exc: object) -> None:
        self.cpu_seconds = time.process_time() - self._start_s
        crew.watchdog(crew.IDLE_S)
