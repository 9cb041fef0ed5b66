"""The machine's floor: it can be measured, it counts right, and nothing waits for ever for a dead partner."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from bulktransfer.bench import _floor, floor, machine
from bulktransfer.bench.floor import EVENT, LINE, SOCKET, Floor
from bulktransfer.bench.worker import PartnerError, Worker

SHORT_S = 0.05
SIZE = 64 << 10


@pytest.fixture(params=["process", "thread"])
def worker(request: pytest.FixtureRequest) -> Iterator[Worker]:
    own, its = machine.cores_for("same", 2)
    with machine.pinned(own), Worker(its, thread=request.param == "thread") as partner:
        yield partner


@pytest.fixture
def floors(worker: Worker) -> Iterator[Floor]:
    with contextlib.closing(Floor(worker, share_core=True)) as found:
        yield found


@pytest.fixture
def words() -> Iterator[mmap.mmap]:
    with mmap.mmap(-1, 4096) as memory:
        yield memory


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    here, there = socket.socketpair()
    with here, there:
        yield here, there


@pytest.fixture
def events() -> Iterator[tuple[int, int]]:
    pair = os.eventfd(0), os.eventfd(0)
    yield pair
    for fd in pair:
        os.close(fd)


@pytest.mark.parametrize("what", [LINE, SOCKET, EVENT])
def test_echoes_take_time_each(floors: Floor, what: str) -> None:
    for rounds in (1, 50):
        times = floors.echo(what, rounds)
        assert len(times) == rounds
        assert min(times) > 0


def test_rings_hand_over_everything(floors: Floor) -> None:
    assert floors.ring(1_000) > 0  # checks the sum itself
    assert floors.fill_sum(4096, 100) > 0


def test_all_floors_give_positive_figures(floors: Floor) -> None:
    figures = floors.figures(SIZE)
    assert len(figures) == 5
    assert all(value > 0 for each in figures.values() for value in each.values())


def test_two_cores_do_as_well_as_one() -> None:
    try:
        own, its = machine.cores_for("split", 2)
    except machine.CannotMeasure:
        pytest.skip("one core")
    with machine.pinned(own), Worker(its) as partner, contextlib.closing(Floor(partner, share_core=False)) as found:
        assert min(found.echo(LINE, 100)) > 0
        assert found.ring(1_000) > 0


def test_copies_are_timed_whatever_their_size() -> None:
    for size in (1, 4096, 3 << 20):
        times = _floor.copy_times(size, 3)
        assert len(times) == 3
        assert min(times) > 0


def test_a_killed_partner_is_an_error_that_names_it() -> None:
    own, its = machine.cores_for("same", 2)
    with machine.pinned(own), Worker(its) as partner, contextlib.closing(Floor(partner, share_core=True)) as found:
        assert partner.pid is not None
        os.kill(partner.pid, signal.SIGKILL)
        with pytest.raises(PartnerError, match=f"process {partner.pid} has ended"):
            found.echo(SOCKET, 10)


def test_a_partner_that_dies_halfway_ends_a_socket_echo(sockets: tuple[socket.socket, socket.socket]) -> None:
    here, there = sockets

    def answer_ten_and_die() -> None:
        _floor.socket_pong(there.fileno(), 10, patience_s=30)
        there.close()

    partner = threading.Thread(target=answer_ten_and_die)
    partner.start()
    with pytest.raises(ConnectionError, match="socket echo"):
        _floor.socket_ping(here.fileno(), 20, patience_s=30)
    partner.join()


@pytest.mark.parametrize("share_core", [True, False])
@pytest.mark.parametrize(
    "wait",
    [
        lambda words, **how: _floor.line_ping(words, 3, **how),
        lambda words, **how: _floor.line_pong(words, 3, **how),
        lambda words, **how: _floor.ring_produce(words, None, 100, **how),
        lambda words, **how: _floor.ring_consume(words, None, 100, **how),
    ],
    ids=["line_ping", "line_pong", "ring_produce", "ring_consume"],
)
def test_spinning_ends_when_its_patience_does(words: mmap.mmap, wait: Callable[..., object], share_core: bool) -> None:
    with pytest.raises(TimeoutError, match="died or stalled"):
        wait(words, share_core=share_core, patience_s=SHORT_S)


@pytest.mark.parametrize("wait", [_floor.socket_ping, _floor.socket_pong])
def test_a_socket_echo_ends_when_its_patience_does(
    sockets: tuple[socket.socket, socket.socket], wait: Callable[..., object]
) -> None:
    with pytest.raises(TimeoutError, match="socket echo"):
        wait(sockets[0].fileno(), 3, patience_s=SHORT_S)


@pytest.mark.parametrize("wait", [_floor.event_ping, _floor.event_pong])
def test_an_eventfd_echo_ends_when_its_patience_does(events: tuple[int, int], wait: Callable[..., object]) -> None:
    with pytest.raises(TimeoutError, match="eventfd echo"):
        wait(*events, 3, patience_s=SHORT_S)


@pytest.mark.parametrize("rounds", [0, -1, 1 << 31])
def test_odd_numbers_of_rounds_are_refused(words: mmap.mmap, rounds: int) -> None:
    with pytest.raises(ValueError, match="rounds"):
        _floor.line_ping(words, rounds, share_core=True, patience_s=SHORT_S)


@pytest.mark.parametrize("patience_s", [0, -1, 1e9, float("nan")])
def test_odd_patience_is_refused(
    words: mmap.mmap, sockets: tuple[socket.socket, socket.socket], patience_s: float
) -> None:
    with pytest.raises(ValueError, match="patience"):
        _floor.line_ping(words, 1, share_core=True, patience_s=patience_s)
    with pytest.raises(ValueError, match="patience"):
        _floor.socket_ping(sockets[0].fileno(), 1, patience_s=patience_s)


def test_memory_that_is_too_small_is_refused() -> None:
    with mmap.mmap(-1, 4096) as memory:
        with memoryview(memory) as whole, whole[128:256] as small, pytest.raises(ValueError, match="shared words need"):
            _floor.reset(small)
        with memoryview(memory) as whole, whole[64:] as askew, pytest.raises(ValueError, match="aligned"):
            _floor.reset(askew)


def test_slots_that_are_not_32_parts_are_refused(words: mmap.mmap) -> None:
    with pytest.raises(ValueError, match="equal parts"):
        _floor.ring_produce(words, bytearray(33), 1, share_core=True, patience_s=SHORT_S)


def test_the_command_measures_every_floor(capsys: pytest.CaptureFixture[str]) -> None:
    from bulktransfer.bench import main

    assert main.main(["bench", "floor", "--pin", "same", "--size", "64KiB"]) == 0
    printed = capsys.readouterr().out
    assert all(what in printed for what in (LINE, SOCKET, EVENT, floor.RING, floor.COPY, "64 KiB"))
