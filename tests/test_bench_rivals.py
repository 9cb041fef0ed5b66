"""Rivals do the same work as we do, and are believed only when their sums are right; chains of several hops."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from bulktransfer.bench import main

pytest.importorskip("numpy")

BRIEF = ["--pin", "same", "--pairs", "5", "--wait", "block"]


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """`bench("rtt", …)`: what the command prints with --json."""

    def run(*arguments: str) -> Any:
        assert main.main(["bench", *arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.mark.leaks_fds  # SharedMemory stays open while an array over it lives
def test_peers_sum_what_each_rival_brought(bench: Callable[..., Any]) -> None:
    names = ("mp.Pipe", "mp.Queue", "shared_memory + Pipe", "hand-written ring")
    only = [word for name in names for word in ("--only", name)]
    data = bench("peers", "--work", "fill", *only, "--size", "4KiB,64KiB", "--buffers", "70", *BRIEF)["data"]
    for size in ("4096", "65536"):
        found = data["produce + consume"][size]
        assert found.keys() == set(names)
        assert all(len(figures["peer_GB_per_s"]) == 5 for figures in found.values())


def test_a_rival_whose_sum_is_wrong_gives_no_figures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bulktransfer.bench.rivals import standard

    monkeypatch.setattr(standard.Pipe, "produce", lambda self, number: self._end.send_bytes(self._bytes))
    arguments = ["peers", "--work", "fill", "--only", "mp.Pipe", "--size", "4KiB", "--buffers", "70", *BRIEF]
    assert main.main(["bench", *arguments]) == 0
    assert "mp.Pipe, 4 KiB: WrongSum" in capsys.readouterr().out


def test_throughput_over_hops_is_the_reports_measure_only(bench: Callable[..., Any]) -> None:
    found = bench("throughput", "--only", "report", "--hops", "2", "--runs", "2", *BRIEF)["data"]["report"]["4096"]
    assert found["echo_sum"] == found["sent_sum"] + 2 * 100
    assert main.main(["bench", "throughput", "--hops", "2"]) == 2
