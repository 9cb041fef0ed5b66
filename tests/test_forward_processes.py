"""Promises of chains of processes: contents arrive, what breaks is told at both ends, no buffer is lost or doubled."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys

import pytest

import bulktransfer as bulk
from bulktransfer import BufferState, Direction, EventKind, Trust
from joining import end_of
from worlds import PATIENCE_S

SIZE = 3 << 20
FRAME = 64 << 10

bulk.current_domain()  # it lives as long as the process, and so do its descriptors


def middle(pipe, inbound, onward):
    import bulktransfer as bulk

    a = bulk.bind(inbound)
    b = bulk.create(onward, direction=bulk.Direction.TX, trust=a.trust, meta_size=a.meta_size)
    pipe.send("joined")
    try:
        bulk.forward(a, b)
        pipe.send("in order")
    except bulk.BulkError as error:
        pipe.send(type(error).__name__)


def sink(pipe, address):
    """Says what it got: by what it was numbered, a digest of all, how it ended."""
    import hashlib

    import bulktransfer as bulk

    digest = hashlib.sha256()
    numbers = []
    with bulk.bind(address) as channel:
        try:
            for transfer in channel.buffers():
                digest.update(transfer.buffer)
                numbers.append(int(transfer.meta))
                channel.give_back(transfer.buffer)
            end = "in order"
        except bulk.BulkError as error:
            end = type(error).__name__
            pipe.send(str(error))
    pipe.send((numbers, digest.hexdigest(), end))
    pipe.recv()


class Chain:
    """A source here, `hops` processes that forward, and one that takes."""

    def __init__(self, spawn, hops):
        self.channel = bulk.create("shm:", direction=Direction.TX, trust=Trust.FULL, meta_size=16)
        self.frames = bulk.Allocator(count=8, size=FRAME)
        address = self.channel.address
        self.middles = []
        for hop in range(hops):
            onward = f"{self.channel.address}-{hop}"
            self.middles.append(spawn(middle, address, onward))
            if hop == 0:
                self.channel.wait_bound(PATIENCE_S)
            assert self.middles[-1].receive() == "joined"
            address = onward
        self.sink = spawn(sink, address)
        self.channel.assign_pool(self.frames.pool, timeout=PATIENCE_S)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.channel.close()
        self.frames.close()

    def send(self, number, data):
        while not self.frames.available:
            self.come_home()
        frame = self.frames.alloc()
        frame.put(data)
        if number % 3:
            self.channel.move(frame, b"%d" % number)
        else:
            self.channel.copy(frame, b"%d" % number)

    def come_home(self):
        event = self.channel.receive(PATIENCE_S)
        if event.kind is not EventKind.TEARDOWN_RECEIVED:  # the end that it speaks of is raised next
            assert event.kind in (EventKind.BUFFER_RECEIVED, EventKind.COPY_RELEASED), event
            self.frames.free(event.buffer)

    def send_until_it_breaks(self, number):
        """As fast as it goes; how many calls succeeded."""
        for sent in itertools.count():
            try:
                self.send(number + sent, b"%d" % (number + sent))
            except bulk.BrokenChannelError:
                return sent
        raise AssertionError

    def whole(self):
        """Whether every buffer is here again; leases that hang up are served."""
        bulk.current_domain().serve()
        return all(buffer.state is BufferState.READ_WRITE for buffer in self.frames.pool)


@pytest.mark.watchdog(180)
@pytest.mark.parametrize("hops", [1, 3])
def test_contents_arrive_through_a_chain_of_processes(spawn, hops):
    data = os.urandom(SIZE)
    with Chain(spawn, hops) as chain:
        pieces = range(0, SIZE, FRAME)
        for number, offset in enumerate(pieces):
            chain.send(number, data[offset : offset + FRAME])
        while chain.frames.available < 8:
            chain.come_home()
        chain.channel.destroy(PATIENCE_S)
        numbers, digest, end = chain.sink.receive()
        assert numbers == list(range(len(pieces)))
        assert digest == hashlib.sha256(data).hexdigest()
        assert end == "in order"
        assert [child.receive() for child in chain.middles] == ["in order"] * hops
        chain.sink.send("leave")
        chain.sink.join()


@pytest.mark.watchdog(180)
@pytest.mark.parametrize(("hops", "killed"), [(1, 0), (3, 1)])
def test_a_process_killed_in_the_middle_breaks_both_ends_and_loses_no_buffer(spawn, hops, killed):
    with Chain(spawn, hops) as chain:
        sent = 0
        for sent in range(30):
            chain.send(sent, b"%d" % sent)
        chain.middles[killed].kill()
        sent += chain.send_until_it_breaks(sent + 1)
        reason = chain.sink.receive()
        numbers, _, end = chain.sink.receive()
        assert end == "BrokenChannelError"
        if hops > 1:
            assert "the peer is gone" in reason
        assert numbers == list(range(len(numbers)))  # none doubled, none left out before the break
        assert 30 - 8 <= len(numbers) <= sent + 1
        others = [child for child in chain.middles if child is not chain.middles[killed]]
        assert [child.receive() for child in others] == ["BrokenChannelError"] * (hops - 1)
        chain.sink.send("leave")
        chain.sink.join()
        for child in others:
            child.join()
        while not chain.whole():  # nobody behind has anything any more
            pass
        assert chain.frames.detached == 0


@pytest.mark.watchdog(180)
def test_what_a_living_sink_holds_comes_back_when_it_lets_go_though_the_forwarder_lives_on(spawn):
    def hold(pipe, address):
        import bulktransfer as bulk

        with bulk.bind(address) as channel:
            kept = [channel.receive_buffer().buffer for _ in range(2)]
        pipe.send([buffer.tobytes() for buffer in kept])
        pipe.recv()
        for buffer in kept:
            buffer.drop()
        pipe.send("dropped")
        pipe.recv()

    def between(pipe, inbound, onward):
        import bulktransfer as bulk

        a = bulk.bind(inbound)
        b = bulk.create(onward, direction=bulk.Direction.TX, trust=a.trust, meta_size=a.meta_size)
        pipe.send("joined")
        bulk.forward(a, b)
        pipe.send("in order")
        pipe.recv()  # it lives on

    with (
        bulk.create("shm:", direction=Direction.TX, trust=Trust.FULL) as channel,
        bulk.Allocator(count=3, size=4096) as frames,
    ):
        forwarder = spawn(between, channel.address, channel.address + "-on")
        channel.wait_bound(PATIENCE_S)
        forwarder.receive()
        holder = spawn(hold, channel.address + "-on")
        channel.assign_pool(frames.pool)
        for text in (b"one", b"two"):
            frame = frames.alloc()
            frame.put(text)
            channel.move(frame)
        assert holder.receive() == [b"one", b"two"]
        end, _ = end_of(channel)
        assert type(end) is bulk.EndOfChannelError
        assert len(end.buffers) == 2
        assert forwarder.receive() == "in order"
        bulk.current_domain().serve()
        assert frames.detached == 2
        holder.send("drop")
        assert holder.receive() == "dropped"
        while frames.detached:
            bulk.current_domain().serve()
        for child in (forwarder, holder):
            child.send("leave")
            child.join()


# -- the command ---------------------------------------------------------------------------------------------------


def bulk_command(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "bulktransfer.cli.main", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.watchdog(180)
def test_the_command_joins_what_it_binds_with_what_it_creates(spawn):
    channel = bulk.create("shm:", direction=Direction.TX, trust=Trust.FULL, meta_size=16)
    frames = bulk.Allocator(count=2, size=4096)
    with bulk_command("forward", channel.address, "create:shm:") as command, channel, frames:
        channel.wait_bound(PATIENCE_S)
        address = command.stdout.readline().split()[1]
        taker = spawn(sink, address)
        channel.assign_pool(frames.pool, timeout=PATIENCE_S)
        channel.move(frames.alloc(), b"7")
        assert channel.receive(PATIENCE_S).kind is EventKind.BUFFER_RECEIVED
        channel.destroy(PATIENCE_S)
        assert taker.receive()[::2] == ([7], "in order")
        taker.send("leave")
        taker.join()
        out, err = command.communicate(timeout=PATIENCE_S)
        assert (out, err, command.returncode) == ("forwarded 1 buffers\n", "", 0)


@pytest.mark.watchdog(180)
def test_the_command_creates_both_and_tells_what_broke():
    with bulk_command("forward", "create:shm:", "create:shm:", "--trust", "full", "--meta-size", "4") as command:
        here, there = (command.stdout.readline().split()[1] for _ in range(2))
        with bulk.bind(there) as rx:
            with bulk.bind(here) as tx:
                assert (tx.direction, rx.direction, rx.meta_size) == (Direction.TX, Direction.RX, 4)
                tx.abort("pulled the cable")
            end, _ = end_of(rx)
            assert type(end) is bulk.BrokenChannelError
            assert "pulled the cable" in str(end)
        out, err = command.communicate(timeout=PATIENCE_S)
        assert (out, command.returncode) == ("forwarded 0 buffers\n", 1)
        assert "pulled the cable" in err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["create:shm:", "create:shm:"], "--trust is needed"),
        (["bind:shm:nobody", "create:shm:", "--timeout", "0"], "EndpointNotFoundError"),
        (["shm:nobody", "create:shm:", "--meta-size", "4"], "a size of its own"),
        (["nowhere:x", "create:shm:"], "the scheme 'nowhere' is unknown"),
    ],
)
def test_the_command_says_why_it_cannot(arguments, text):
    with bulk_command("forward", *arguments) as command:
        _, err = command.communicate(timeout=PATIENCE_S)
        assert command.returncode == 2
        assert text in err
