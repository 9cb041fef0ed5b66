"""`bulk block bench` measures the report's work loads, and notices blocks that are wrong."""

from __future__ import annotations

import json

import pytest

from bulktransfer import block
from bulktransfer.cli.main import main
from test_block_service import device_at, running
from worlds import start_helper

start_helper()  # before descriptors are counted: what channels of a network keep for good

NAMES = [
    "write: issue 250",
    "write: 250 back",
    "read: 4 batches of 250",
    "user: write, status",
    "user: read",
    "sequential write 1 MiB",
    "sequential read 1 MiB",
]


def test_every_load_is_measured_against_a_server_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["block", "bench", "--runs", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in found] == NAMES
    assert [one["samples"] for one in found] == [2, 2, 2, 20, 20, 8, 8]
    for one in found:
        assert 0 < one["min_us"] <= one["median_us"] <= one["p99_us"] <= one["max_us"]


def test_figure_7_1_is_measured_beside_the_network_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["block", "bench", "--chain", "--runs", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {what: len(ways) for what, ways in found.items()} == {"write": 4, "read": 4}
    for ways in found.values():
        assert ways[0]["part"] == 1.0
        assert all(0 < way["least"] <= way["part"] <= way["most"] for way in ways)


def test_figures_are_printed_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    with block.MemoryStore(4 << 20) as store, running({"": store}) as service:
        assert main(["block", "bench", "--runs", "1", "--connect", service.address]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in NAMES)


def test_a_wrong_block_is_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    class Forgetful(block.MemoryStore):
        def _read_into(self, offset: int, into: memoryview) -> None:
            super()._read_into(offset, into)
            if offset == 77 * 4096:
                into[4000] ^= 1

    with Forgetful(4 << 20) as store, running({"": store}) as service:
        assert main(["block", "bench", "--runs", "1", "--connect", service.address]) == 1
    assert "block 77 is not 78" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--runs", "0"], ["--connect", "shm:nobody", "--runs", "1"]])
def test_what_cannot_be_measured_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setattr(
        block.BlockDevice.__init__, "__kwdefaults__", {**block.BlockDevice.__init__.__kwdefaults__, "timeout": 0.1}
    )
    assert main(["block", "bench", *arguments]) == 2
    assert "bulk block bench:" in capsys.readouterr().err


def test_requests_begun_are_finished_when_asked() -> None:
    with (
        block.MemoryStore(4 << 20) as store,
        running({"": store}) as service,
        device_at(service.address, buffers=8, buffer_size=8192) as device,
    ):
        finish = device.begin_write_many([(n, bytes([n + 1]) * 4096) for n in range(8)])
        with pytest.raises(block.NoBuffersError):
            device.begin_read_many([(0, 1)] * 9)
        finish()
        finish()
        assert device.begin_read_many([(0, 2), (7, 1)])() == [b"\1" * 4096 + b"\2" * 4096, b"\10" * 4096]
        with pytest.raises(block.NoBuffersError):
            device.begin_read_many([(0, 3)])
        with pytest.raises(block.BadBlockError):
            device.begin_read_many([(1024, 1)])
        with pytest.raises(block.BadRequestError):
            device.begin_write_many([(0, b"x")])
        device.write_many((n, bytes(4096)) for n in range(30))  # every buffer is free again
