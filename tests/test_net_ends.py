"""How channels between machines end: death, a pulled cable, a relay that cuts; real processes, real sockets."""

from __future__ import annotations

import contextlib
import os
import socket
import threading

import pytest

import bulktransfer as bulk
from bulktransfer import Direction, EventKind, Network, Trust
from machines import machines  # noqa: F401 - a fixture
from relays import Relay
from worlds import PATIENCE_S, READ_WRITE, World, take, together, until_the_end


@pytest.fixture
def world():
    with World("tcp") as world:
        yield world


def through(world, **options):
    """A channel through a relay: source (which created it), sink, relay."""
    a, b = world.domains(2)
    tx = bulk.create("tcp:", direction=Direction.TX, trust=Trust.NONE, domain=a)
    world.made.append(tx)
    relay = Relay(int(tx.address.rpartition(":")[2]), **options)
    world.made.append(relay)
    rx, _ = together(lambda: bulk.bind(f"tcp://127.0.0.1:{relay.port}", domain=b), lambda: tx.wait_bound(PATIENCE_S))
    world.made.append(rx)
    return tx, rx, relay


def test_what_comes_byte_by_byte_is_the_same(world):
    tx, rx, _ = through(world, piece=1)
    alloc = world.allocator(tx.domain, count=2, size=4096)
    world.assign(tx, rx, alloc.pool)
    for contents in (b"", b"a", os.urandom(1000)):
        buffer = alloc.alloc()
        buffer.put(contents)
        tx.move(buffer)
        got = take(rx, EventKind.MOVE_RECEIVED).buffer
        assert got.tobytes() == contents
        rx.pass_(got)
        alloc.free(take(tx, EventKind.BUFFER_RECEIVED).buffer)


def test_a_connection_that_is_cut_breaks_the_channel_at_both_ends(world):
    tx, rx, relay = through(world)
    alloc = world.allocator(tx.domain, count=4, size=1 << 20)
    world.assign(tx, rx, alloc.pool)
    tx.move(alloc.alloc())
    away = take(rx, EventKind.MOVE_RECEIVED).buffer
    relay.close()
    for end in (tx, rx):
        with pytest.raises(bulk.BrokenChannelError):
            end.receive(PATIENCE_S)
        with pytest.raises(bulk.BrokenChannelError):  # again, on every later call
            end.receive(0)
    assert away.state is READ_WRITE  # it is the sink's
    assert tx.domain.wait_for(lambda: alloc.pool.states()["READ_WRITE"] == 4, PATIENCE_S)  # and the source has its twin


@pytest.mark.parametrize("limit", [1, 47, 48, 60, 200, 300, 400, 1000])
def test_wherever_the_connection_is_cut_nobody_hangs(world, limit):
    a, b = world.domains(2)
    tx = bulk.create("tcp:", direction=Direction.TX, trust=Trust.NONE, domain=a)
    world.made.append(tx)
    relay = Relay(int(tx.address.rpartition(":")[2]), limit=limit)
    world.made.append(relay)
    found = []

    def bind():
        try:
            rx = bulk.bind(f"tcp://127.0.0.1:{relay.port}", domain=b)
        except bulk.BulkError as error:
            found.append(error)
            return
        world.made.append(rx)
        with contextlib.suppress(bulk.BulkError):
            while True:
                rx.receive(PATIENCE_S)
        found.append(rx.state)

    thread = threading.Thread(target=bind)
    thread.start()
    while thread.is_alive():
        try:
            tx.wait_bound(0.01)
            with world.allocator(a, count=1, size=4096) as alloc:
                tx.assign_pool(alloc.pool)
        except (bulk.BulkError, TimeoutError):
            thread.join(0.01)
    thread.join()
    assert len(found) == 1


def test_the_death_of_the_peer_is_noticed_after_what_it_had_sent(world, spawn):
    def sender(pipe):
        import bulktransfer as bulk
        from bulktransfer import Direction, Trust

        channel = bulk.create("tcp:", direction=Direction.TX, trust=Trust.NONE)
        pipe.send(channel.address)
        channel.wait_bound()
        alloc = bulk.Allocator(count=3, size=1 << 20)
        channel.assign_pool(alloc.pool)
        for number, buffer in enumerate(alloc.alloc_many(3)):
            buffer.put(bytes([number]) * (1 << 20))
            channel.move(buffer)
        pipe.send("sent")
        pipe.recv()

    child = spawn(sender)
    rx = bulk.bind(child.receive(), domain=bulk.Domain())
    world.made.append(rx)
    take(rx, EventKind.POOL_ASSIGNED)
    assert rx.wait_for(lambda: rx.queued_events == 3, PATIENCE_S)
    assert child.receive() == "sent"
    child.kill()
    for number in range(3):
        assert take(rx, EventKind.MOVE_RECEIVED).buffer.tobytes() == bytes([number]) * (1 << 20)
    with pytest.raises(bulk.BrokenChannelError, match="the peer is gone"):
        rx.receive(PATIENCE_S)


def test_what_was_accepted_arrives_though_the_process_ends(world, spawn):
    def sender(pipe):
        import bulktransfer as bulk
        from bulktransfer import Direction, Trust

        channel = bulk.create("tcp:", direction=Direction.TX, trust=Trust.NONE)
        pipe.send(channel.address)
        channel.wait_bound()
        alloc = bulk.Allocator(count=8, size=4 << 20)
        channel.assign_pool(alloc.pool)
        for number, buffer in enumerate(alloc.alloc_many(8)):
            buffer.put(bytes([number]) * (4 << 20))
            channel.move(buffer)

    child = spawn(sender)
    rx = bulk.bind(child.receive(), domain=bulk.Domain())
    world.made.append(rx)
    take(rx, EventKind.POOL_ASSIGNED)
    events = until_the_end(rx)
    assert [event.buffer.tobytes()[:1] for event in events[:8]] == [bytes([number]) for number in range(8)]
    child.join()


def streams():
    """The descriptors of this process that are connected TCP sockets."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the descriptor that the listing itself used
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as copy:
                if copy.family == socket.AF_INET:
                    with contextlib.suppress(OSError):  # ENOTCONN: it listens
                        copy.getpeername()
                        found.add(int(name))
    return found


@pytest.mark.parametrize("act", ["move", "copy"])
def test_a_slot_is_free_once_its_last_byte_has_left_though_the_peer_does_not_hang_up(world, act):
    """Rule 16. The peer looks at nothing: this side's socket stays open until it does, or for some seconds."""
    before = streams()
    a, b = world.domains(2)
    tx, rx = world.channel(a, b)
    alloc = world.allocator(a, count=1)
    world.assign(tx, rx, alloc.pool)
    connected = streams() - before
    assert len(connected) == 2
    getattr(tx, act)(alloc.alloc())
    tx.close()
    assert a.wait_for(lambda: alloc.detached == 0, PATIENCE_S)
    assert connected <= streams()
    assert alloc.pool[0].state is READ_WRITE
    assert take(rx, EventKind.MOVE_RECEIVED if act == "move" else EventKind.COPY_RECEIVED)


def test_a_bind_waits_until_the_endpoint_is_there(world):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    a, b = world.domains(2)
    with pytest.raises(bulk.EndpointNotFoundError):
        bulk.bind(f"tcp://127.0.0.1:{port}", timeout=0.05, domain=b)
    started = threading.Event()

    def bind():
        started.set()
        return bulk.bind(f"tcp://127.0.0.1:{port}", timeout=PATIENCE_S, domain=b)

    def create():
        started.wait()
        tx = bulk.create(f"tcp://127.0.0.1:{port}", direction=Direction.TX, trust=Trust.NONE, domain=a)
        world.made.append(tx)
        tx.wait_bound(PATIENCE_S)
        return tx

    rx, tx = together(bind, create)
    world.made.append(rx)
    assert (tx.state, rx.state) == (bulk.ChannelState.CONNECTED,) * 2


def test_ipv6_and_options_in_the_address(world):
    if not socket.has_ipv6 or not os.path.exists("/proc/net/if_inet6"):
        pytest.skip("this kernel has no IPv6")
    a, b = world.domains(2)
    try:
        tx = bulk.create("tcp://[::1]:0?congestion=reno", direction=Direction.TX, trust=Trust.NONE, domain=a)
    except OSError as error:
        pytest.skip(f"no IPv6 on loopback: {error}")
    world.made.append(tx)
    assert tx.address.startswith("tcp://[::1]:")
    rx, _ = together(lambda: bulk.bind(tx.address, domain=b), lambda: tx.wait_bound(PATIENCE_S))
    world.made.append(rx)
    assert tx.statistics()["wire"]["congestion"] == "reno"


@pytest.mark.parametrize(
    ("address", "error", "why"),
    [
        ("tcp://0.0.0.0:0", PermissionError, "beyond this machine"),
        ("tcp://127.0.0.1", ValueError, "the port is missing"),
        ("tcp://127.0.0.1:0/path", ValueError, "it is not tcp://HOST:PORT"),
        ("tcp://127.0.0.1:99999", ValueError, "(?i)port"),
        ("tcp://127.0.0.1:0?colour=red", ValueError, "it has no option 'colour'"),
        ("tcp://127.0.0.1:0?insecure=yes", ValueError, "neither 0 nor 1"),
        ("tls://127.0.0.1:0", ValueError, "it needs a certificate"),
    ],
)
def test_an_address_that_does_not_do_says_why(address, error, why):
    with pytest.raises(error, match=why):
        bulk.create(address, direction=Direction.TX, trust=Trust.NONE, domain=bulk.Domain())


def test_network_options_go_with_network_addresses_only(world):
    with pytest.raises(ValueError, match="goes over no network"):
        bulk.create("shm:", direction=Direction.TX, trust=Trust.FULL, network=Network(), domain=bulk.Domain())


def test_a_cable_that_is_pulled_breaks_the_channel_at_both_ends(machines, spawn):  # noqa: F811

    def source(pipe, name):
        import bulktransfer as bulk
        import machines
        from bulktransfer import Direction, Network, Trust

        machines.enter(name)
        network = Network(insecure=True, timeout_s=1)
        channel = bulk.create("tcp://10.99.0.1:7000", direction=Direction.TX, trust=Trust.NONE, network=network)
        channel.wait_bound(20)
        alloc = bulk.Allocator(count=4, size=1 << 20)
        channel.assign_pool(alloc.pool)
        channel.move(alloc.alloc())
        assert pipe.recv() == "cut"
        channel.move(alloc.alloc())
        try:
            channel.receive(20)
        except bulk.BrokenChannelError as error:
            pipe.send(len(error.buffers))
        pipe.send(channel.domain.wait_for(lambda: alloc.pool.states()["READ_WRITE"] == 4, 20))

    def sink(pipe, name):
        import bulktransfer as bulk
        import machines
        from bulktransfer import Network

        machines.enter(name)
        channel = bulk.bind("tcp://10.99.0.1:7000", network=Network(insecure=True, timeout_s=1), timeout=20)
        channel.receive(20)
        pipe.send(str(channel.receive(20).kind))
        try:
            channel.receive(20)
        except bulk.BrokenChannelError as error:
            pipe.send(type(error).__name__)

    tx, rx = (spawn(*side, env=machines.env) for side in ((source, machines.names[0]), (sink, machines.names[1])))
    assert rx.receive() == "move_received"
    machines.cut()
    tx.send("cut")
    assert tx.receive() == 2  # one is the sink's, one never arrived: neither came home
    assert tx.receive() is True  # the source's twins of both are free again
    assert rx.receive() == "BrokenChannelError"
    tx.join()
    rx.join()
