"""A hand-over through forwarders: the source here, the sink and every forwarder a partner of its own.

Knows: who binds whose address, and whose time counts. Must not know: what it is compared with.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

import bulktransfer as bulk

from .chain import SETUP_S, fresh_address
from .handover import WINDOW, HandOver
from .partner import Session
from .worker import Worker


def cpu_ns(workers: list[Worker]) -> int:
    """The time that this process and these partners, all threads of each, have used so far."""
    own = time.clock_gettime_ns(time.CLOCK_PROCESS_CPUTIME_ID)
    return own + sum(time.clock_gettime_ns(~worker.pid << 3 | 2) for worker in workers if worker.pid is not None)


class Hops:
    """`sink` and, before it, one partner for each forwarder; buffers go there and come home the same way."""

    def __init__(
        self, sink: Worker, forwarders: list[Worker], *, backend: str, trust: bulk.Trust, wait: str, size: int
    ) -> None:
        self._workers = [sink, *forwarders]
        self._forwarders = forwarders
        self._running = contextlib.ExitStack()
        common: dict[str, Any] = {"backend": backend, "trust": trust.name, "wait": wait}

        def through_all(address: str) -> str:
            for worker in forwarders:
                address = worker.call(open_forwarder, name="forwarder", onward=address, **common)
                self._running.enter_context(worker.running(forward, name="forwarder", limit_s=600))
            return address

        via = through_all if forwarders else None
        self.source = HandOver(sink, backend=backend, trust=trust, wait=wait, size=size, batch=WINDOW, via=via)

    def cpu_of(self, count: int) -> tuple[int, int]:
        """The ns that `count` buffers take, and the CPU time of all processes."""
        before = cpu_ns(self._workers)
        wall_ns = self.source.batches(count)
        return wall_ns, cpu_ns(self._workers) - before

    def close(self) -> None:
        """End the channels in order, from the source on."""
        self.source.close()
        self._running.close()
        for worker in self._forwarders:
            worker.drop("forwarder")


# --- what a forwarder does ---


class Joint:
    """Two channels to be joined."""

    def __init__(self, onward: str, backend: str, trust: str, wait: str) -> None:
        level = bulk.Trust[trust]
        self.tx = bulk.bind(onward, trust=level, wait=wait, timeout=SETUP_S)
        self.rx = bulk.create(fresh_address(backend), direction=bulk.Direction.RX, trust=level, wait=wait)

    def close(self) -> None:
        self.tx.close()
        self.rx.close()


def open_forwarder(session: Session, *, name: str, onward: str, backend: str, trust: str, wait: str) -> str:
    """Bind what comes behind, and create what comes before; its address."""
    joint = Joint(onward, backend, trust, wait)
    session.keep(name, joint)
    return joint.rx.address


def forward(session: Session, *, name: str) -> None:
    """Forward until the source ends."""
    joint = session.get(Joint, name)
    joint.rx.wait_bound(SETUP_S)
    bulk.forward(joint.rx, joint.tx)
