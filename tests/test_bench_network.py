"""`bulk bench network` runs to its end and says what it compared. Speed is not judged here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from typing import Any

import pytest

import worlds  # noqa: F401 - it starts the helper threads before descriptors are counted
from bulktransfer.bench import main


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """`bench("network", …)`: what the command prints with --json."""

    def run(*arguments: str) -> Any:
        assert main.main(["bench", *arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


NETWORK = ["--pin", "same", "--pairs", "5", "--seconds", "0.004"]


@pytest.mark.watchdog(120)
def test_network_compares_with_plain_sockets_and_names_the_congestion_control(bench: Callable[..., Any]) -> None:
    found = bench("network", "--only", "tcp", "--only", "rtt", "--size", "4KiB,1MiB", "--congestion", "reno", *NETWORK)
    data = found["data"]
    assert data.keys() == {"tcp beside batched", "tcp beside plain", "round trip"}
    assert found["options"]["congestion"] == "reno"
    for what, size in (("tcp beside batched", "4096"), ("tcp beside plain", "1048576")):
        figures = data[what][size]
        assert len(figures["ours"]) == len(figures["theirs"]) == figures["rate"]["pairs"] == 5
        assert all(segment["gb_per_s"] > 0 < segment["cpu_s_per_gb"] for segment in figures["ours"])
    assert data["round trip"]["4096"]["ratio"]["median"] > 0


@pytest.mark.watchdog(120)
@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl program to make a certificate with")
def test_network_compares_with_ssl_and_chains_with_two_processes(bench: Callable[..., Any]) -> None:
    data = bench("network", "--only", "tls", "--only", "chain", "--size", "64KiB", *NETWORK)["data"]
    assert data["tls beside tls"]["65536"]["rate"]["pairs"] == 5
    assert data["chain"].keys() == {"3", "5"}
    assert data["chain"]["5"]["part"]["median"] > 0


def test_network_beside_pyzmq_is_left_out_where_that_is_not_installed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bulktransfer.bench.zeromq.installed", lambda: False)
    assert main.main(["bench", "network", "--only", "zmq", "--pin", "same", "--size", "4KiB"]) == 0
    assert "pyzmq is not installed" in capsys.readouterr().out
