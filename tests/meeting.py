"""Creators and binders for tests of set-up and end, on both schemes."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading

import pytest

import bulktransfer as bulk
from bulktransfer import Direction, EventKind, Trust
from bulktransfer.core.scheme import backend_for
from bulktransfer.messages import Hello
from bulktransfer.wire.control import CODEC
from worlds import PATIENCE_S, World, take, together

SCHEMES = ("local", "shm")


@pytest.fixture(params=SCHEMES)
def scheme(request):
    return request.param


@pytest.fixture
def world(scheme):
    with World(scheme) as made:
        yield made


def create(world, domain=None, **options):
    options.setdefault("direction", Direction.TX)
    options.setdefault("trust", Trust.FULL)
    channel = bulk.create(f"{world.scheme}:", domain=domain or bulk.Domain(), **options)
    world.made.append(channel)
    return channel


def bind(world, address, **options):
    options.setdefault("domain", bulk.Domain())
    channel = bulk.bind(address, **options)
    world.made.append(channel)
    return channel


def refused(world, creator, **options):
    """The error that a binder gets from `creator`, who serves meanwhile."""
    failure = []

    def attempt():
        try:
            bind(world, creator.address, **options)
        except Exception as error:
            failure.append(error)

    thread = threading.Thread(target=attempt)
    thread.start()
    while thread.is_alive():
        creator.domain.serve()
    assert failure, "the binder was accepted"
    return failure[0]


def bound(world, creator, **options):
    channel, _ = together(lambda: bind(world, creator.address, **options), lambda: creator.wait_bound(PATIENCE_S))
    return channel


class Background:
    """A call that runs in a thread of its own; `result` waits for it, and raises what it raised."""

    def __init__(self, function):
        self._function = function
        self._result = None
        self._error = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        try:
            self._result = self._function()
        except BaseException as error:
            self._error = error

    @property
    def running(self):
        return self.thread.is_alive()

    def result(self):
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive(), "it goes on"
        if self._error is not None:
            raise self._error
        return self._result


def pump(until, *channels):
    """Receive at every channel until `until()`; what came, by channel."""
    events = {channel: [] for channel in channels}
    while not until():
        for channel in channels:
            with contextlib.suppress(bulk.WouldBlock):
                events[channel].append(channel.receive_nowait())
    return events


class Interrupter:
    """Interrupts the main thread as Ctrl-C does, once: `with Interrupter(when): call`."""

    def __init__(self, when=lambda: True):
        self._when = when
        self._armed = False
        self._over = threading.Event()

    def _handle(self, *_):
        if self._armed:
            self._armed = False
            self._over.set()
            raise KeyboardInterrupt

    def _run(self):
        while not self._over.wait(0.002):  # again: a signal just before the system call goes unnoticed
            if self._when():
                signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

    def __enter__(self):
        self._before = signal.signal(signal.SIGUSR1, self._handle)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self._armed = True
        return self

    def __exit__(self, *exc):
        self._armed = False
        self._over.set()
        self._thread.join()
        signal.signal(signal.SIGUSR1, self._before)


def knock(address):
    """A raw connection to whoever created `address`: a peer that need not know how to behave."""
    return socket.socket(fileno=backend_for(address).connect(address).fd)


def hello(domain_id=b"d" * 16, *, trust=Trust.UNINITIALIZED, role=bulk.Role.GENERIC, version=1):
    return CODEC.encode(Hello(domain_id, trust, role, version))


def serve(channel, until):
    """Serve the channel's domain until `until()`."""
    while not until():
        channel.domain.serve()


def descriptors():
    """How many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


def drain(channel):
    """Receive what is there; the events."""
    events = []
    with contextlib.suppress(bulk.WouldBlock):
        while True:
            events.append(channel.receive_nowait())
    return events


def drain_until_end(channel):
    """Receive until the channel ends; how."""
    try:
        while True:
            channel.receive(PATIENCE_S)
    except bulk.BulkError as error:
        return type(error)


def readable(thing, timeout_s=0.0):
    return bool(select.select([thing], [], [], timeout_s)[0])


def line(world, callbacks=None, count=4):
    """A channel whose sink has callbacks, and an allocator at its source."""
    a, b = world.domains(2)
    tx, rx = world.channel(a, b, meta_size=8, binder={"callbacks": callbacks})
    alloc = world.allocator(a, count=count)
    asking = Background(lambda: tx.assign_pool(alloc.pool))
    take(rx, EventKind.POOL_ASSIGNED)
    asking.result()
    return tx, rx, alloc


def receive_on(channel, timeout=PATIENCE_S, into=None):
    """Receive until that raises; what comes goes to `into`."""
    while True:
        event = channel.receive(timeout)
        if into is not None:
            into.append(event)


def child_main(there, answer):
    """Runs in a child: echoes one buffer's length and contents."""
    with there.bind(timeout=PATIENCE_S) as rx:
        event = rx.receive_buffer(PATIENCE_S)
        answer.send((event.buffer.tobytes(), event.meta))
        rx.pass_(event.buffer)
        try:
            while True:
                rx.receive(PATIENCE_S)
        except bulk.EndOfChannelError:
            answer.send("end")
