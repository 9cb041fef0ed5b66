"""Promises of metrics and logs: they say what is, when somebody asks, and nothing where nobody does."""

from __future__ import annotations

import gc
import logging
import sys

import pytest

import bulktransfer as bulk
from bulktransfer import observe
from worlds import PATIENCE_S, World


@pytest.fixture
def collected():
    """Every point of every metric of this process, as (name, attributes, value)."""
    pytest.importorskip("opentelemetry.sdk", reason="the SDK is not installed")
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    observe.instrument(provider)

    def collect():
        data = reader.get_metrics_data()
        return [
            (metric.name, dict(point.attributes), point.value)
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            for point in metric.data.data_points
        ]

    yield collect
    provider.shutdown()


def test_transfers_and_buffers_are_measured_when_somebody_collects(collected):
    with World("local") as world:
        tx, _, frames, _ = world.line()
        for _ in range(2):
            tx.move(frames.alloc())
        points = collected()
        sent = {"address": tx.address, "end": "source", "direction": "sent", "kind": "move"}
        assert ("bulktransfer.transfers", sent, 2) in points
        here = frames.pool.name
        assert ("bulktransfer.buffers", {"pool": here, "state": "FREE"}, 2) in points
        assert ("bulktransfer.buffers", {"pool": here, "state": "READ_WRITE"}, 0) in points
        channels = [value for name, attributes, value in points if name == "bulktransfer.channels"]
        assert sum(channels) >= 2
        address = tx.address
    del tx, frames
    gc.collect()
    assert not [one for one in collected() if one[1].get("address") == address]


def test_without_the_extra_it_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.setitem(sys.modules, "opentelemetry.metrics", None)
    with pytest.raises(ImportError):
        observe.instrument()


def test_beginnings_and_ends_are_logged_and_transfers_are_not(caplog, spawn):
    def source(pipe):
        import bulktransfer as bulk

        with bulk.create("shm:log", direction=bulk.Direction.TX, trust=bulk.Trust.FULL) as tx:
            frames = bulk.Allocator(count=2, size=4096)
            tx.wait_bound()
            tx.assign_pool(frames.pool)
            tx.move(frames.alloc())
            pipe.recv()

    caplog.set_level(logging.DEBUG, "bulktransfer")
    child = spawn(source)
    with bulk.bind("shm:log", timeout=PATIENCE_S) as rx:
        rx.receive_buffer(PATIENCE_S)
        child.kill()
        with pytest.raises(bulk.BrokenChannelError):
            rx.receive_buffer(PATIENCE_S)
    found = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in found] == ["DEBUG", "INFO"]
    assert f"is connected to process {child.pid}" in found[0][1]
    assert "the peer is gone" in found[1][1]


def test_the_library_is_silent_where_nobody_asked(spawn):
    def breaks(pipe):
        import bulktransfer as bulk

        with bulk.create("local:a", direction=bulk.Direction.TX, trust=bulk.Trust.FULL):
            pass
        pipe.send("done")

    child = spawn(breaks)
    child.receive()
    assert child.join() == ""
