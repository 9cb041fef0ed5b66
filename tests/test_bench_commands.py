"""Every benchmark runs to its end, counts right, and says what it found. Speed is not judged here."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
from collections.abc import Callable
from typing import Any

import pytest

import bulktransfer as bulk
from bulktransfer.bench import carriers, costs, machine, main, trust, worker
from spawning import Child

pytest.importorskip("numpy")

BRIEF = ["--pin", "same", "--pairs", "5", "--wait", "block"]


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """`bench("rtt", …)`: what the command prints with --json."""

    def run(*arguments: str) -> Any:
        assert main.main(["bench", *arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.mark.parametrize("backend", ["shm", "local"])
def test_rtt_gives_the_figures_of_the_report_and_the_ratio_to_the_floor(
    bench: Callable[..., Any], backend: str
) -> None:
    found = bench("rtt", "--backend", backend, "--size", "4KiB,64KiB", "--runs", "20", *BRIEF)
    for size in ("4096", "65536"):
        figures = found["data"][size]
        assert figures["latency_ns"]["count"] == 5 * 20
        assert (
            0 < figures["latency_ns"]["minimum"] <= figures["latency_ns"]["median"] <= figures["latency_ns"]["maximum"]
        )
        assert figures["ratio_to_floor"]["pairs"] == 5
        assert figures["verdict"] is None  # on one core
    assert found["machine"]["cores"] > 0
    assert found["floor"]["before"].keys() == found["floor"]["after"].keys()
    assert {"steal_cores", "foreign_cores"} <= found["load"].keys()


def test_rtt_compares_several_hops_with_one(bench: Callable[..., Any]) -> None:
    hops = bench("rtt", "--size", "4KiB", "--runs", "20", "--hops", "3", *BRIEF)["data"]["4096"]["hops"]
    assert hops["latency_ns"]["count"] == 5 * 20
    assert hops["multiple_of_one_hop"]["pairs"] == 5


@pytest.mark.parametrize("backend", ["shm", "local"])
def test_throughput_checks_its_control_sums(bench: Callable[..., Any], backend: str) -> None:
    arguments = ["--backend", backend, "--runs", "3", "--transfers", "500", "--fill-size", "64KiB", *BRIEF]
    data = bench("throughput", *arguments)["data"]
    report = data["report"]["4096"]
    assert len(report["issued_ns"]) == len(report["echoed_ns"]) == 3
    assert report["echo_sum"] == report["sent_sum"] + 3 * 100
    assert len(data["handover"]["4096"]["batched_per_s"]) == 5
    assert data["fill"]["65536"]["ratio"]["pairs"] == 5


def test_throughput_can_be_asked_for_a_part(bench: Callable[..., Any]) -> None:
    assert bench("throughput", "--only", "report", "--runs", "2", *BRIEF)["data"].keys() == {"report"}


def test_memory_looks_at_both_sides(bench: Callable[..., Any]) -> None:
    data = bench("memory", "--transfers", "20000", "--pin", "same", "--wait", "block")["data"]
    for side in ("source", "sink"):
        assert len(data[side]) == 11
        assert data[side][-1]["descriptors"] == data[side][0]["descriptors"]


def test_a_peer_that_is_not_installed_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main.main(["bench", "peers", "--only", "iceoryx2", *BRIEF]) == 0
    assert "iceoryx2 is not installed" in capsys.readouterr().out


def test_what_cannot_be_measured_is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["bench", "rtt", "shm:only-one"]) == 2
    assert "two addresses" in capsys.readouterr().err


def rtt_of_running_echo(capsys: pytest.CaptureFixture[str]) -> Any:
    assert main.main(["bench", "rtt", "--size", "4KiB", "--runs", "10", "--json", "shm:echo-a", "shm:echo-b"]) == 0
    return json.loads(capsys.readouterr().out)["data"]["4096"]


def test_an_echo_alone_serves_a_client(spawn: Callable[..., Child], capsys: pytest.CaptureFixture[str]) -> None:
    def echo(pipe):
        from bulktransfer.bench import main

        pipe.send(main.main(["bench", "echo", "shm:echo-a", "shm:echo-b", "--once"]))

    server = spawn(echo)
    assert rtt_of_running_echo(capsys)["latency_ns"]["count"] == 10
    assert server.receive() == 0
    assert "echoed 12 buffers" in server.join()  # with the two of the warm-up


def test_an_echo_alone_goes_on_until_it_is_told_to_stop(
    spawn: Callable[..., Child], capsys: pytest.CaptureFixture[str]
) -> None:
    def echo(pipe):
        from bulktransfer.bench import main

        pipe.send(main.main(["bench", "echo", "shm:echo-a", "shm:echo-b"]))

    server = spawn(echo)
    rtt_of_running_echo(capsys)
    server.signal(signal.SIGTERM)
    assert server.receive() == 0
    server.join()


def test_queue_measures_both_and_checks_what_arrived(bench: Callable[..., Any]) -> None:
    few = ["--size", "64KiB", "--objects", "50", "--bytes", "256KiB", "--pairs", "5"]
    found = bench("queue", *few, "--only", "multiprocessing")["data"]
    assert found.keys() == {"100 bytes", "64 KiB"}
    assert found["64 KiB"]["count"] == 4
    for figures in found.values():
        assert len(figures["per_s"]["ours"]) == len(figures["per_s"]["multiprocessing"]) == 5


@pytest.mark.leaks_fds  # Ray keeps a log open after its shutdown
@pytest.mark.parametrize("name", ["torch", "ray"])
def test_queue_measures_others_where_they_are_installed(bench: Callable[..., Any], name: str) -> None:
    pytest.importorskip(name)
    few = ["--size", "1MiB", "--objects", "50", "--bytes", "4MiB", "--pairs", "5"]
    found = bench("queue", *few, "--only", name)["data"]
    for figures in found.values():
        assert figures["per_s"].keys() == {"ours", "multiprocessing", name}
        assert len(figures["per_s"][name]) == 5


def test_a_queue_that_is_not_installed_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "ray" else found(name))
    few = ["--size", "4KiB", "--objects", "5", "--bytes", "4KiB", "--pairs", "5", "--only", "ray"]
    assert main.main(["bench", "queue", *few]) == 0
    assert "ray is not installed" in capsys.readouterr().out


def test_sealed_compares_every_means_by_size_and_readers(bench: Callable[..., Any]) -> None:
    arguments = ["--size", "64KiB", "--readers", "1,2", "--segment", "256KiB", *BRIEF]
    data = bench("sealed", *arguments)["data"]
    assert data.keys() == {"65536 x 1", "65536 x 2"}
    for found in data.values():
        assert found["mib_per_s"].keys() == {
            "sealed", "by value", "as it chooses", "Pipe", "UNIX socket", "shared + copy"
        }  # fmt: skip
        assert all(len(rates) == 5 and min(rates) > 0 for rates in found["mib_per_s"].values())
        assert found["contents"]["sealed"] == 0  # so small contents go by value


KINDS = {"UNIX socket", "multiprocessing.Pipe", "NONE by value", "NONE exposed", "HALF", "FULL"}


def test_trust_carries_the_same_by_every_way(bench: Callable[..., Any]) -> None:
    data = bench("trust", "--size", "64KiB", "--segment", "5", *BRIEF)["data"]["65536"]
    assert data["GB_per_s"].keys() == KINDS
    assert all(len(rates) == 5 and min(rates) > 0 for rates in data["GB_per_s"].values())
    assert data["ratios"]["NONE by value / UNIX socket"]["verdict"] is None  # on one core


@pytest.mark.parametrize("carrier", [carriers.Ours, carriers.UnixSocket, carriers.MultiprocessingPipe])
def test_a_byte_that_changes_on_the_way_is_noticed_by_every_way(carrier: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(pages: carriers.Pages, view: memoryview, number: int) -> None:
        view[:: carriers.PAGE] = pages.stamps[number % 251]
        view[len(view) // 2] ^= 1

    options = {"trust": bulk.Trust.NONE, "wait": "block"} if carrier is carriers.Ours else {}
    with worker.Worker(0) as partner, contextlib.closing(carrier(partner, 64 << 10, **options)) as way:
        way.carry(3)
        monkeypatch.setattr(carriers.Pages, "write", write)
        with pytest.raises(worker.PartnerError, match="message 0 is not what was sent"):
            way.carry(1)


@pytest.mark.watchdog(200)
@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="both sides are busy only on two cores")
def test_a_buffer_that_goes_by_value_makes_no_system_call_of_its_own() -> None:
    """Both sides spin: what is left is the look around once a millisecond, and what others on the machine cause."""
    here, there = machine.cores_for("split", 2)
    each = costs.calls_a_round(trust.carrying(trust.BY_VALUE, 64 << 10, "spin", (here, there)), 500, 3_000)
    if each is None:
        pytest.skip("nobody may be traced here")
    assert each < 0.5
