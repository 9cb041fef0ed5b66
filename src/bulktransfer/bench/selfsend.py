"""One process that sends to itself, between two domains, with nothing to wait for: what a transfer itself costs.

Knows: the loops that costs.py has counted, `python -m bulktransfer.bench.selfsend LOOP BACKEND TRUST ROUNDS`.
Must not know: who counts.
"""

from __future__ import annotations

import resource
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass

import bulktransfer as bulk

PATIENCE_S = 60.0
BATCH = 8
SIZE = 4096


@dataclass(frozen=True, slots=True)
class Ends:
    """A channel whose both ends are here, and buffers at its source."""

    source: bulk.Channel
    sink: bulk.Channel
    buffers: bulk.Allocator


def ends(backend: str, trust: bulk.Trust) -> Ends:
    """Two domains, a channel from one to the other, a pool on it."""
    here, there = bulk.Domain(), bulk.Domain()
    source = bulk.create(f"{backend}:", direction=bulk.Direction.TX, trust=trust, domain=here)
    found: list[bulk.Channel] = []

    def bind() -> None:
        found.append(bulk.bind(source.address, domain=there, timeout=PATIENCE_S))
        found[0].receive(PATIENCE_S)  # the pool

    binder = threading.Thread(target=bind, daemon=True)
    binder.start()
    source.wait_bound(PATIENCE_S)
    buffers = bulk.Allocator(count=2 * BATCH, size=SIZE, trust=trust, domain=here)
    source.assign_pool(buffers.pool, timeout=PATIENCE_S)
    binder.join()
    return Ends(source, found[0], buffers)


def one_by_one(on: Ends, rounds: int) -> None:
    """There by move, back by pass."""
    move, arrive, pass_, back = on.source.move, on.sink.receive_nowait, on.sink.pass_, on.source.receive_nowait
    buffer = on.buffers.alloc()
    for _ in range(rounds):
        move(buffer)
        pass_(arrive().buffer)
        buffer = back().buffer
    on.buffers.free(buffer)


def round_trips(on: Ends, rounds: int) -> None:
    """As the report counts it: a buffer is allocated, goes there and back, and is freed."""
    alloc, free = on.buffers.alloc, on.buffers.free
    move, arrive, pass_, back = on.source.move, on.sink.receive_buffer, on.sink.pass_, on.source.receive_buffer
    for _ in range(rounds):
        move(alloc())
        pass_(arrive().buffer)
        free(back().buffer)


def batches(on: Ends, rounds: int) -> None:
    """There and back, BATCH at a time."""
    buffers = on.buffers.alloc_many(BATCH)
    for _ in range(rounds // BATCH):
        on.source.move_many(buffers)
        on.sink.pass_many([event.buffer for event in on.sink.receive_many(BATCH)])
        buffers = [event.buffer for event in on.source.receive_many(BATCH)]
    on.buffers.free_many(buffers)


LOOPS: dict[str, Callable[[Ends, int], None]] = {
    "one by one": one_by_one,
    "round trips": round_trips,
    "batches": batches,
}


def main(arguments: list[str]) -> int:
    """Run a loop; prints the page faults that it took after a warm-up."""
    loop, backend, trust, rounds = arguments
    on = ends(backend, bulk.Trust[trust])
    run = LOOPS[loop]
    run(on, BATCH * 8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    run(on, int(rounds))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    on.source.close()
    on.sink.close()
    on.buffers.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
