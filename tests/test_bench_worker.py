"""Partners of a benchmark: they say what went wrong, and never outlive whom they serve."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Callable, Iterator

import pytest

from bulktransfer.bench import floor, machine, memory, partner
from bulktransfer.bench.floor import LINE, Floor
from bulktransfer.bench.worker import PartnerError, Worker
from spawning import Child

PATIENCE_MS = 30_000


@pytest.fixture
def worker() -> Iterator[Worker]:
    with Worker(machine.cores_for("same", 2)[1]) as found:
        yield found


def stalling(worker: Worker, limit_s: int) -> contextlib.AbstractContextManager[object]:
    """The partner spins for a cache line that nobody sends."""
    return worker.running(floor.pong, name="floor", what=LINE, rounds=1, share_core=True, limit_s=limit_s)


def test_a_partner_returns_what_its_function_returns(worker: Worker) -> None:
    assert worker.call(memory.look)["descriptors"] > 0


def test_a_failing_partner_is_an_error_with_its_traceback(worker: Worker) -> None:
    with pytest.raises(PartnerError, match=r"KeyError: 'nothing'(.|\n)*Traceback"):
        worker.call(partner.drop, name="nothing")


def test_a_failing_partner_explains_what_failed_here(worker: Worker) -> None:
    with pytest.raises(PartnerError, match="KeyError") as caught, worker.running(partner.drop, name="nothing"):
        raise OSError("the consequence")
    assert isinstance(caught.value.__context__, OSError)


def test_what_fails_here_alone_is_raised_as_it_is(worker: Worker) -> None:
    with pytest.raises(LookupError, match="mine"), worker.running(memory.look):
        raise LookupError("mine")


def test_the_watchdog_ends_a_partner_that_stalls(worker: Worker) -> None:
    with contextlib.closing(Floor(worker, share_core=True)):
        partner_stalls = stalling(worker, limit_s=1)
        with pytest.raises(PartnerError, match=f"status -{signal.SIGALRM:d}"), partner_stalls:
            pass


def test_an_interrupt_ends_a_partner_that_stalls(worker: Worker) -> None:
    share = Floor(worker, share_core=True)
    with contextlib.closing(share), pytest.raises(KeyboardInterrupt), stalling(worker, limit_s=60):
        raise KeyboardInterrupt


def test_an_ended_partner_is_an_error(worker: Worker) -> None:
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(PartnerError, match=f"process {worker.pid} has ended"):
        worker.call(memory.look)
    worker.drop("anything")  # nothing is left to drop


def test_a_partner_dies_with_its_owner_even_while_it_spins(spawn: Callable[..., Child]) -> None:
    def own_a_stalling_partner(pipe):
        from bulktransfer.bench import floor, machine
        from bulktransfer.bench.floor import LINE, Floor
        from bulktransfer.bench.worker import Worker

        worker = Worker(machine.cores_for("same", 2)[1])
        share = Floor(worker, share_core=True)
        with worker.running(floor.pong, name="floor", what=LINE, rounds=1, share_core=True):
            pipe.send(worker.pid)
            pipe.recv()
        share.close()

    owner = spawn(own_a_stalling_partner)
    partner_fd = os.pidfd_open(owner.receive())
    try:
        owner.kill()
        poll = select.poll()
        poll.register(partner_fd, select.POLLIN)
        assert poll.poll(PATIENCE_MS), "the partner outlives its owner"
    finally:
        os.close(partner_fd)


def test_a_thread_partner_ends_with_its_worker() -> None:
    with Worker(machine.cores_for("same", 2)[1], thread=True) as worker:
        assert worker.pid is None
        assert worker.call(memory.look)["descriptors"] > 0
    with pytest.raises(PartnerError, match="thread has ended"):
        worker.call(memory.look)


def test_pinning_ends_with_its_block() -> None:
    before = os.sched_getaffinity(0)
    with machine.pinned(min(before)):
        assert os.sched_getaffinity(0) == {min(before)}
    assert os.sched_getaffinity(0) == before


def test_neighbours_of_a_ring_stand_on_different_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores in (2, 3, 5, 8):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _pid, n=cores: set(range(1000, 1000 + n)))
        for processes in (2, 4, 6):
            ring = machine.cores_for("split", processes)
            assert all(ring[i] != ring[i - 1] for i in range(processes))
        assert len(set(machine.cores_for("same", 4))) == 1


def test_two_cores_cannot_be_had_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {1000})
    with pytest.raises(machine.CannotMeasure, match="--pin same"):
        machine.cores_for("split", 2)
