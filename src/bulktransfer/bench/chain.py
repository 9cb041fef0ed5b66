"""A ring of channels: from the measuring side through its partners and back, as the report sets it up (II-5.2.1).

Knows: who creates, who binds, who assigns the pool. Must not know: what is timed.

Each partner creates the channel that it receives from and binds the one that it sends to; the last one creates both
of its ends, so that with one partner the echo server creates and the client binds, as in the report.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import bulktransfer as bulk

from .partner import Session
from .worker import LIMIT_S, Worker

SETUP_S = 30.0
_POOL_BYTES_AT_MOST = 512 << 20
_U32 = struct.Struct("<I")


def fresh_address(backend: str) -> str:
    """An address of that scheme that nobody uses."""
    if backend in {"tcp", "tls"}:
        return f"{backend}://127.0.0.1:0"
    return f"local:bench-{os.getpid()}-{secrets.token_hex(4)}" if backend == "local" else f"{backend}:"


def pool_count(asked: int | None, size: int, default: int) -> int:
    """How many buffers: as asked, else the default, fewer where they are big, but never less than two."""
    return asked or max(2, min(default, _POOL_BYTES_AT_MOST // size))


@dataclass(slots=True)
class Link:
    """A pair of channels: where one receives, and where one sends."""

    rx: bulk.Channel
    tx: bulk.Channel | None = None

    def close(self) -> None:
        self.rx.close()
        if self.tx is not None:
            self.tx.close()

    @property
    def onward(self) -> bulk.Channel:
        """Where one sends, once it is known."""
        assert self.tx is not None
        return self.tx


class Chain:
    """The measuring side: sends on `tx` into the first partner and receives on `rx` from the last."""

    def __init__(
        self, tx: bulk.Channel, rx: bulk.Channel, allocator: bulk.Allocator, workers: list[Worker], name: str
    ) -> None:
        self.tx = tx
        self.rx = rx
        self.allocator = allocator
        self._workers = workers
        self._name = name

    @contextlib.contextmanager
    def answering(self, rounds: int, *, add: bool = False, limit_s: int = LIMIT_S) -> Iterator[None]:
        """Every partner sends `rounds` buffers on; with `add`, the last one adds 1 to the first 32 bits of each."""
        with contextlib.ExitStack() as answers:
            for worker in self._workers:
                function = answer_adding if add and worker is self._workers[-1] else answer
                answers.enter_context(worker.running(function, name=self._name, rounds=rounds, limit_s=limit_s))
            yield

    def close(self) -> None:
        """Close the channels on all sides; the allocator is the caller's."""
        self.tx.close()
        self.rx.close()
        for worker in self._workers:
            worker.drop(self._name)


def through(
    workers: list[Worker], allocator: bulk.Allocator, *, name: str, backend: str, trust: bulk.Trust, wait: str
) -> Chain:
    """A chain through these partners and back."""
    common: dict[str, Any] = {"name": name, "trust": trust.name, "wait": wait}
    last = workers[-1]
    ends = [worker.call(open_link, backend=backend, last=worker is last, **common) for worker in workers]
    onward = [*(end["rx"] for end in ends[1:]), None]
    with contextlib.ExitStack() as undo:
        with contextlib.ExitStack() as joining:
            for worker, address in zip(workers, onward, strict=True):
                joining.enter_context(worker.running(join_link, onward=address, **common))
            chain = to(ends[0]["rx"], ends[-1]["tx"], allocator, trust=trust, wait=wait, workers=workers, name=name)
            undo.callback(chain.close)
        with contextlib.ExitStack() as assigning:
            for worker in workers:
                assigning.enter_context(worker.running(await_pool, name=name, last=worker is last))
            chain.tx.assign_pool(allocator.pool, timeout=SETUP_S)
            chain.rx.assign_pool(allocator.pool, timeout=SETUP_S)
        undo.pop_all()
    return chain


def to(
    sink: str,
    source: str,
    allocator: bulk.Allocator,
    *,
    trust: bulk.Trust,
    wait: str,
    workers: list[Worker] | None = None,
    name: str = "",
) -> Chain:
    """A chain that enters at the address `sink` and comes back from `source`; no pool is assigned yet."""
    tx = bulk.bind(sink, trust=trust, wait=wait, timeout=SETUP_S)
    try:
        rx = bulk.bind(source, trust=trust, wait=wait, timeout=SETUP_S)
    except BaseException:
        tx.close()
        raise
    return Chain(tx, rx, allocator, workers or [], name)


# --- what a partner does ---


def open_link(session: Session, *, name: str, backend: str, trust: str, wait: str, last: bool) -> dict[str, str]:
    """Create the end that receives, and, as the last of the ring, the one that sends to the measuring side."""

    def create(direction: bulk.Direction) -> bulk.Channel:
        return bulk.create(fresh_address(backend), direction=direction, trust=bulk.Trust[trust], wait=wait)

    link = Link(create(bulk.Direction.RX))
    session.keep(name, link)
    ends = {"rx": link.rx.address}
    if last:
        link.tx = create(bulk.Direction.TX)
        ends["tx"] = link.tx.address
    return ends


def join_link(session: Session, *, name: str, trust: str, wait: str, onward: str | None) -> None:
    """Bind the next partner's channel, if it is not this one that created it, and be bound."""
    link = session.get(Link, name)
    if onward is not None:
        link.tx = bulk.bind(onward, trust=bulk.Trust[trust], wait=wait, timeout=SETUP_S)
    link.rx.wait_bound(SETUP_S)
    if onward is None:
        link.onward.wait_bound(SETUP_S)


def await_pool(session: Session, *, name: str, last: bool) -> None:
    """Accept the pool where one receives, and hand it on; the measuring side assigns it to the last channel itself."""
    link = session.get(Link, name)
    pool = next_pool(link.rx)
    if last:
        next_pool(link.onward)
    else:
        link.onward.assign_pool(pool, timeout=SETUP_S)


def next_pool(channel: bulk.Channel) -> bulk.Pool:
    """The pool of the next assignment; other events before it are let go."""
    while True:
        event = channel.receive(SETUP_S)
        if event.kind is bulk.EventKind.POOL_ASSIGNED and event.pool is not None:
            return event.pool


def answer(session: Session, *, name: str, rounds: int) -> None:
    """Send on what comes: the report's echo server, and its passthrough."""
    link = session.get(Link, name)
    receive, move = link.rx.receive_buffer, link.onward.move
    for _ in range(rounds):
        move(receive().buffer)


def answer_adding(session: Session, *, name: str, rounds: int) -> None:
    """Send back what comes, with 1 added, so that a control sum shows that it was read and written here."""
    link = session.get(Link, name)
    receive, move = link.rx.receive_buffer, link.onward.move
    for _ in range(rounds):
        buffer = receive().buffer
        add_one(buffer)
        move(buffer)


def add_one(buffer: bulk.Buffer) -> None:
    """Add 1 to the first 32 bits."""
    with memoryview(buffer) as view:
        _U32.pack_into(view, 0, (_U32.unpack_from(view)[0] + 1) & 0xFFFFFFFF)
