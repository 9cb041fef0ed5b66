"""Domains in a row for tests of flow: a source's domain, one in the middle that joins, a sink's domain."""

from __future__ import annotations

import contextlib

import bulktransfer as bulk
from bulktransfer import EventKind
from meeting import Background
from worlds import PATIENCE_S


class Running:
    """A forwarder that runs in a thread of its own until the block ends."""

    def __init__(self, forwarder):
        self.forwarder = forwarder

    def __enter__(self):
        self._runs = Background(self.forwarder.run)
        return self

    def result(self):
        """It ends by itself."""
        self._runs.result()

    def __exit__(self, *exc):
        self.forwarder.close()
        self._runs.result()


class Chain:
    """tx at the source, `inlet` and `outlet` in the middle, rx at the sink; `forwarder` joins the two in the middle."""

    def __init__(self, world, *, source=None, sink=None, **options):
        self.a, self.m, self.c = world.domains(3)
        self.world = world
        self.tx, self.inlet = self.channel(world, self.a, self.m, source, {}, **options)
        self.outlet, self.rx = self.channel(world, self.m, self.c, {}, sink, **options)
        self.alloc = world.allocator(self.a)
        self.problems = []
        self.forwarder = bulk.Forwarder(report=self.problems.append)
        world.made.append(self.forwarder)

    @staticmethod
    def channel(world, source, sink, creator, binder, **options):
        return world.channel(source, sink, binder=binder or {}, **(creator or {}), **options)

    def join(self):
        self.junction = self.forwarder.add(self.inlet, self.outlet)
        return self.junction

    def run(self):
        """Join, and forward in a thread for as long as the block lasts."""
        self.join()
        return Running(self.forwarder)

    def assign(self):
        """The source's pool on the whole chain; the pool as the sink has it."""
        asking = Background(lambda: self.tx.assign_pool(self.alloc.pool))
        event = self.rx.receive(PATIENCE_S)
        assert event.kind is EventKind.POOL_ASSIGNED
        asking.result()
        return event.pool


def end_of(channel):
    """Receive until the channel ends; the error, and the events before it."""
    events = []
    try:
        while True:
            events.append(channel.receive(PATIENCE_S))
    except bulk.BulkError as error:
        return error, events


def serve_until(channel, condition):
    """Receive at a channel where no event comes out until a condition holds."""
    while not condition():
        with contextlib.suppress(TimeoutError):
            raise AssertionError(channel.receive(0.01))


def step_until(forwarder, condition, *others):
    """Dispatch in this thread, and serve other channels, until a condition holds."""
    while not condition():
        for channel in others:
            channel.serve()
        with contextlib.suppress(TimeoutError):
            forwarder.dispatch(0.01)
