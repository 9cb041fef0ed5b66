"""Promises of the name service: services are found by name, one owner each, and gone with their owners."""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import subprocess
import sys

import pytest

import bulktransfer as bulk
from bulktransfer import Direction, EventKind, Trust, names
from meeting import Background
from worlds import PATIENCE_S

bulk.current_domain()  # it lives as long as the process, and so do its descriptors
TX, FULL = Direction.TX, Trust.FULL


@pytest.fixture(autouse=True)
def _fresh():
    names.use(None)
    yield
    names.use(None)


@pytest.fixture
def service():
    return names.current()


def own(pipe, name):
    """A process that offers a channel under a name, until told to leave."""
    import bulktransfer as bulk

    with bulk.create(f"name:{name}", direction=bulk.Direction.TX, trust=bulk.Trust.FULL) as channel:
        pipe.send((channel.address, bulk.names.current().resolve(name).address))
        pipe.recv()


def readable(thing, timeout_s=PATIENCE_S):
    return bool(select.select([thing], [], [], timeout_s)[0])


def test_a_channel_is_created_and_bound_by_name():
    with bulk.create("name:camera", direction=TX, trust=FULL) as channel, bulk.Allocator(count=1, size=4096) as frames:
        assert channel.address == "name:camera"
        domain = bulk.Domain()
        binding = Background(lambda: bulk.bind("name:camera", domain=domain))
        channel.wait_bound(PATIENCE_S)
        with binding.result() as bound:
            assert bound.direction is Direction.RX
            asking = Background(lambda: channel.assign_pool(frames.pool))
            assert bound.receive(PATIENCE_S).kind is EventKind.POOL_ASSIGNED
            asking.result()
            channel.move(frames.alloc())
            assert bound.receive(PATIENCE_S).kind is EventKind.MOVE_RECEIVED
    assert names.current().entries() == []


def test_a_binder_waits_for_a_name_that_is_not_there_yet():
    domain = bulk.Domain()
    binding = Background(lambda: bulk.bind("name:later", domain=domain, timeout=PATIENCE_S))
    with bulk.create("name:later", direction=TX, trust=FULL) as channel:
        channel.wait_bound(PATIENCE_S)
        binding.result().close()
    with pytest.raises(bulk.EndpointNotFoundError):
        bulk.bind("name:never", timeout=0.01)


def test_many_clients_connect_to_a_listener_by_name():
    specs = [bulk.ChannelSpec(direction=TX, trust=FULL), bulk.ChannelSpec(direction=Direction.RX, trust=FULL)]
    with bulk.listen("name:server", specs) as listener:
        assert listener.address == "name:server"
        for _ in range(3):
            domain = bulk.Domain()
            connecting = Background(lambda domain=domain: bulk.connect("name:server", domain=domain))
            theirs = listener.accept(PATIENCE_S)
            for channel in (*connecting.result(), *theirs):
                channel.close()


def test_a_name_has_one_owner(service):
    with bulk.create("name:one", direction=TX, trust=FULL):
        with pytest.raises(OSError, match=f"process {os.getpid()} has it") as refused:
            bulk.create("name:one", direction=TX, trust=FULL)
        assert refused.value.errno == errno.EADDRINUSE
        assert [entry.name for entry in service.entries()] == ["one"]
    bulk.create("name:one", direction=TX, trust=FULL).close()


def test_the_carrier_may_be_chosen(service, rendezvous_dir):
    path = rendezvous_dir / "socket"
    with bulk.create(f"name:camera@shm:{path}", direction=TX, trust=FULL):
        entry = service.resolve("camera")
        assert (entry.address, entry.pid, entry.uid) == (f"shm:{path}", os.getpid(), os.geteuid())
    for carrier in ("local:x", "name:x"):
        with pytest.raises(ValueError, match="cannot carry"):
            bulk.create(f"name:camera@{carrier}", direction=TX, trust=FULL)
    with pytest.raises(ValueError, match="unknown"):
        bulk.create("name:camera@nowhere:x", direction=TX, trust=FULL)


@pytest.mark.parametrize("how", ["killed", "in order"])
def test_a_name_is_gone_with_its_owner(spawn, service, how):
    child = spawn(own, "camera")
    assert child.receive()[0] == "name:camera"
    watch = service.watch()
    watch.clear()
    assert service.resolve("camera").pid == child.pid
    if how == "killed":
        child.kill()
    else:
        child.send("leave")
        child.join()
    assert readable(watch)  # the kernel tells
    watch.close()
    assert service.resolve("camera") is None
    with bulk.create("name:camera", direction=TX, trust=FULL):  # what the dead left is replaced
        assert service.resolve("camera").pid == os.getpid()


def test_a_forked_child_does_not_keep_its_parents_names(spawn, service):
    def fork(pipe):
        import os

        import bulktransfer as bulk

        with bulk.create("name:camera", direction=bulk.Direction.TX, trust=bulk.Trust.FULL):
            go, stay = os.pipe()
            child = os.fork()
            if child == 0:
                os.close(stay)
                os.read(go, 1)  # until the parent is dead
                os._exit(0)
            os.close(go)
            pipe.send(child)
            pipe.recv()

    parent = spawn(fork)
    parent.receive()
    assert service.resolve("camera").pid == parent.pid
    watch = service.watch()
    parent.kill()
    while service.resolve("camera") is not None:
        assert readable(watch)
        watch.clear()
    watch.close()


def test_entries_are_sorted_and_what_the_dead_left_is_cleaned_away(spawn, service, rendezvous_dir):
    child = spawn(own, "dead")
    child.receive()
    child.kill()
    kept = [service.register(name, f"shm:{name}") for name in ("b", "a")]
    assert (rendezvous_dir / "names" / "dead").exists()
    assert [entry.name for entry in service.entries()] == ["a", "b"]
    assert not (rendezvous_dir / "names" / "dead").exists()
    for registration in kept:
        registration.close()
        registration.close()
    assert service.entries() == []


def test_a_file_that_is_no_entry_is_nobody(service, rendezvous_dir):
    service.register("x", "shm:x").close()
    path = rendezvous_dir / "names" / "strange"
    with open(path, "w") as file:
        file.write("[1, 2]")
        file.flush()
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)
        assert service.resolve("strange") is None
    (rendezvous_dir / "names" / "pipe").symlink_to("/dev/null")
    with pytest.raises(OSError, match="symbolic"):
        service.resolve("pipe")


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "x" * 65, "a b"])
def test_a_malformed_name_is_refused(service, name):
    for act in (lambda: service.resolve(name), lambda: service.register(name, "shm:x"), lambda: service.watch(name)):
        with pytest.raises(ValueError, match="a name is 1 to 64"):
            act()
    with pytest.raises(ValueError, match="a name is 1 to 64"):
        bulk.bind(f"name:{name}")
    with pytest.raises(TypeError):
        service.resolve(None)


def test_a_directory_that_others_can_write_is_refused(service, rendezvous_dir):
    service.register("x", "shm:x").close()
    (rendezvous_dir / "names").chmod(0o777)
    with pytest.raises(PermissionError, match="others than user"):
        service.resolve("x")
    (rendezvous_dir / "names").chmod(0o700)


class Table:
    """A name service of the user's own: all that it needs."""

    def __init__(self):
        self.owned = {}

    def register(self, name, address):
        table = self.owned
        table[name] = names.Entry(name, address)

        class Registration:
            entry = table[name]

            def close(self):
                table.pop(name, None)

        return Registration()

    def resolve(self, name):
        return self.owned.get(name)

    def entries(self):
        return sorted(self.owned.values())

    def watch(self, name=None):
        raise OSError("it cannot")


def test_another_service_can_be_used():
    table = Table()
    names.use(table)
    with bulk.create("name:camera", direction=TX, trust=FULL) as channel:
        assert list(table.owned) == ["camera"]
        domain = bulk.Domain()
        binding = Background(lambda: bulk.bind("name:camera", domain=domain))
        channel.wait_bound(PATIENCE_S)
        binding.result().close()
    assert table.owned == {}
    names.use(None)
    assert names.current() is not table


def test_a_service_that_is_unknown_is_named_beside_the_known(monkeypatch):
    monkeypatch.setenv("BULKTRANSFER_NAMES", "yellow pages")
    with pytest.raises(ValueError, match="known are directory, zenoh"):
        names.current()


# -- the command ---------------------------------------------------------------------------------------------------


def command(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "bulktransfer.cli.main", "names", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_the_command_lists_and_resolves(service):
    assert command("list") == (0, "", "")
    code, _, text = command("resolve", "camera")
    assert (code, text) == (1, "bulk names: nobody has 'camera'\n")
    with bulk.create("name:camera", direction=TX, trust=FULL):
        entry = service.resolve("camera")
        for arguments in (["list", "--json"], ["resolve", "camera", "--json"]):
            code, out, _ = command(*arguments)
            assert (code, json.loads(out)) == (0, entry.as_dict())
        assert command("list")[1].split()[:2] == ["camera", entry.address]
    assert command("resolve", "a/b")[0] == 2


def test_the_command_watches(service):
    with subprocess.Popen(
        [sys.executable, "-m", "bulktransfer.cli.main", "names", "watch", "--json"], stdout=subprocess.PIPE, text=True
    ) as watching:
        with bulk.create("name:camera", direction=TX, trust=FULL):
            assert json.loads(watching.stdout.readline())["event"] == "there"
        gone = json.loads(watching.stdout.readline())
        assert (gone["event"], gone["name"]) == ("gone", "camera")
        watching.send_signal(signal.SIGINT)
        assert watching.wait(PATIENCE_S) == 130


# -- across machines -----------------------------------------------------------------------------------------------


def zenoh_owner(pipe, port):
    from bulktransfer.names.zenoh import ZenohNames

    service = ZenohNames(
        {"mode": "peer", "connect/endpoints": [f"tcp/127.0.0.1:{port}"], "scouting/multicast/enabled": False}
    )
    kept = service.register("camera", "shm:somewhere")
    pipe.send(kept.entry.name)
    pipe.recv()
    service.close()


@pytest.mark.leaks_fds  # Zenoh's threads keep what they opened until the process ends
def test_zenoh_knows_the_names_of_other_processes_and_when_they_are_gone(spawn):
    pytest.importorskip("zenoh", reason="the extra zenoh is not installed")
    import socket

    from bulktransfer.names.zenoh import ZenohNames

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    service = ZenohNames(
        {"mode": "peer", "listen/endpoints": [f"tcp/127.0.0.1:{port}"], "scouting/multicast/enabled": False}
    )
    watch = service.watch()
    child = spawn(zenoh_owner, port)
    child.receive()
    while service.resolve("camera") is None:
        assert readable(watch)
        watch.clear()
    (entry,) = service.entries()
    assert (entry.name, entry.address, entry.pid) == ("camera", "shm:somewhere", child.pid)
    with pytest.raises(OSError, match="has it") as refused:
        service.register("camera", "shm:elsewhere")
    assert refused.value.errno == errno.EADDRINUSE
    child.kill()
    while service.resolve("camera") is not None:
        assert readable(watch)
        watch.clear()
    assert service.entries() == []
    registration = service.register("camera", "shm:elsewhere")
    assert service.resolve("camera").address == "shm:elsewhere"
    registration.close()
    assert service.resolve("camera") is None
    watch.close()
    service.close()
