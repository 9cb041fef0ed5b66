"""Promises of looking at other processes: what is seen is what is, nobody notices, and nobody can be harmed by it."""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import bulktransfer as bulk
from bulktransfer import observe
from bulktransfer.cli import completion, doctor, examine, ls, main
from bulktransfer.observe import finding, record
from worlds import PATIENCE_S

TX, FULL, NONE = bulk.Direction.TX, bulk.Trust.FULL, bulk.Trust.NONE


def seen(pid):
    """The process of that number, as one sees it."""
    (process,) = [process for process in observe.look().processes if process.pid == pid]
    return process


def sink(pipe, address, harden):
    import bulktransfer as bulk

    if harden:
        bulk.harden()
    with bulk.bind(address) as rx:
        kept = [rx.receive_buffer().buffer for _ in range(3)]
        rx.pass_(kept.pop())
        pipe.send("ready")
        pipe.recv()
        for buffer in kept:
            rx.pass_(buffer)
        pipe.send("passed")
        pipe.recv()


@pytest.fixture
def line(spawn):
    """A source here with 8 buffers, 3 of them sent, and a child that gave one back."""
    with (
        bulk.create("shm:seen", direction=TX, trust=FULL) as tx,
        bulk.Allocator(count=8, size=8192) as frames,
    ):
        child = spawn(sink, "shm:seen", False)
        tx.wait_bound(PATIENCE_S)
        tx.assign_pool(frames.pool)
        for _ in range(3):
            tx.move(frames.alloc())
        child.receive()
        yield child, tx, frames


def test_both_ends_of_a_channel_are_seen_with_what_went_over_them(line):
    child, tx, frames = line
    (theirs,) = seen(child.pid).channels
    assert (theirs.address, theirs.end, theirs.trust, theirs.state) == ("shm:seen", "sink", "FULL", "CONNECTED")
    assert (theirs.peer, theirs.pools) == (os.getpid(), (frames.pool.name,))
    assert theirs.sent == {"move": 0, "pass": 1, "copy": 0, "release": 0}
    assert theirs.received == {"move": 3, "pass": 0, "copy": 0, "release": 0}
    (ours,) = [channel for channel in seen(os.getpid()).channels if channel.address == "shm:seen"]
    assert (ours.end, ours.peer, ours.total_sent, ours.total_received) == ("source", child.pid, 3, 0)
    child.send("go on")
    child.receive()
    for _ in range(3):
        tx.receive_buffer(PATIENCE_S)
    assert seen(child.pid).channels[0].total_sent == 3
    (ours,) = [channel for channel in seen(os.getpid()).channels if channel.address == "shm:seen"]
    assert ours.received["pass"] == 3
    assert ours.received == tx.statistics()["received"]


def test_who_has_how_many_buffers_is_seen(line):
    child, tx, frames = line
    (theirs,) = seen(child.pid).pools
    assert (theirs.id, theirs.size, theirs.count, theirs.home) == (frames.pool.id.hex, 8192, 8, False)
    assert (theirs.free, theirs.owned, theirs.read, theirs.away) == (0, 2, 0, 6)
    (ours,) = [pool for pool in seen(os.getpid()).pools if pool.id == frames.pool.id.hex]
    assert ours.home
    assert (ours.free, ours.owned, ours.read, ours.away) == (5, 0, 0, 3)
    tx.receive_buffer(PATIENCE_S)
    lent = frames.alloc()
    tx.copy(lent)
    (ours,) = [pool for pool in seen(os.getpid()).pools if pool.id == frames.pool.id.hex]
    assert (ours.free, ours.owned, ours.read, ours.away) == (4, 2, 0, 2)
    assert ours.states["READ_ONLY_OWNED"] == 1


def test_what_is_over_is_no_longer_seen(line):
    _, tx, frames = line
    pool = frames.pool.id.hex
    tx.close()
    assert "shm:seen" not in [channel.address for channel in seen(os.getpid()).channels]
    assert pool in [found.id for found in seen(os.getpid()).pools]


def test_a_dropped_pool_is_no_longer_seen():
    frames = bulk.Allocator(count=8, size=4096)
    name = frames.pool.id.hex
    assert name in [pool.id for pool in seen(os.getpid()).pools]
    frames.close()
    del frames
    assert name not in [pool.id for pool in seen(os.getpid()).pools]


def test_two_thousand_pools_take_turns_in_the_same_memory():
    mine = _own_memory()
    used = os.fstat(mine).st_blocks
    for _ in range(2000):
        bulk.Allocator(count=64, size=4096).close()
    assert os.fstat(mine).st_blocks <= used + 1024
    os.close(mine)


def _own_memory(flags=os.O_RDONLY):
    for name in os.listdir("/proc/self/fd"):
        if os.readlink(f"/proc/self/fd/{name}").startswith(f"/memfd:{record.NAME}"):
            return os.open(f"/proc/self/fd/{name}", flags | os.O_CLOEXEC)
    raise AssertionError


def test_others_can_only_read_what_a_process_shows():
    fd = _own_memory(os.O_RDWR)
    try:
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", 0)
        with pytest.raises(OSError, match=r"Invalid argument|not permitted"):
            os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def test_a_forked_child_has_accounts_of_its_own_and_leaves_its_parents_alone(line):
    _, tx, frames = line
    before = [pool for pool in seen(os.getpid()).pools if pool.id == frames.pool.id.hex]
    here, there = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            states = [buffer.state.name for buffer in frames.pool]
            mine = bulk.Allocator(count=2, size=4096)
            mine.alloc()
            views = {process.pid: process for process in observe.look().processes}
            (own,) = views[os.getpid()].pools
            same = [p for p in views[os.getppid()].pools if p.id == frames.pool.id.hex] == before
            del tx
            os.write(there, json.dumps([states.count("READ_WRITE"), own.count, own.free, same]).encode())
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert json.loads(os.read(here, 1000)) == [5, 2, 1, True]
    os.close(here)
    os.close(there)
    assert [pool for pool in seen(os.getpid()).pools if pool.id == frames.pool.id.hex] == before


def test_a_hardened_process_is_shown_as_such(spawn, monkeypatch):
    with bulk.create("shm:hard", direction=TX, trust=NONE) as tx, bulk.Allocator(count=4, size=4096) as frames:
        child = spawn(sink, "shm:hard", True)
        tx.wait_bound(PATIENCE_S)
        tx.assign_pool(frames.pool)
        for _ in range(3):
            tx.move(frames.alloc())
        child.receive()
        if os.geteuid() == 0:  # who may look at everything, sees it, too
            assert seen(child.pid).hardened
            assert seen(child.pid).channels
        assert not seen(os.getpid()).hardened
        views = finding._views

        def closed(pid):
            if pid == child.pid:
                raise PermissionError(13, "no")
            return views(pid)

        monkeypatch.setattr(finding, "_views", closed)
        found = seen(child.pid)
        assert (found.hardened, found.channels, found.pools) == (True, (), ())
        assert "hardened: it lets nobody look" in ls.as_text(observe.look())
        tx.close()
        assert child.pid not in [process.pid for process in observe.look().processes]
        views_now = observe.look()
        assert views_now.closed >= 1
        assert f"{views_now.closed} other processes of this user let nobody look" in ls.as_text(views_now)


# -- memory that a stranger made -----------------------------------------------------------------------------------


def memory(head=(), directory=(), records=()):
    """Memory as another process may have made it, its descriptor."""
    fd = os.memfd_create("strange", os.MFD_CLOEXEC)
    os.ftruncate(fd, record.SIZE)
    fields = dict(record.Head(record.MAGIC, 1, 0, 56, 0, 1, 1, 100, 512)._asdict(), **dict(head))
    os.pwrite(fd, record._HEAD.pack(*fields.values()), 0)
    os.pwrite(fd, struct.pack(f"<{len(directory)}I", *directory), record._HEAD.size)
    for cell, data in records:
        os.pwrite(fd, data, cell * 512)
    return fd


def one(facts, counters=(0,) * 8, slots=(0, 0), sequence=2):
    text = facts if isinstance(facts, bytes) else json.dumps(facts).encode()
    return record._RECORD.pack(sequence, len(text), *counters, slots[0], slots[1], 0) + text


POOL = {"kind": "pool", "id": "ab" * 16, "size": 4096, "home": True}


def read_and_close(fd):
    try:
        return record.read(fd)
    finally:
        os.close(fd)


def test_a_record_is_read_as_it_was_written():
    table = bytes([3, 1] + 54 * [0]) + bytes([0, 0] + 54 * [0])
    _, channels, pools = read_and_close(
        memory(directory=[100], records=[(100, one(POOL, slots=(60000, 2))), (117, b"")])
    )
    assert channels == []
    assert pools[0].states["INVALID"] == 2
    fd = memory(directory=[100], records=[(100, one(POOL, slots=(51200, 2))), (100 + 2, b"")])
    os.pwrite(fd, table, 51200)
    os.pwrite(fd, one(POOL, slots=(51200 * 2, 2)), 100 * 512)
    os.pwrite(fd, table, 51200 * 2)
    _, _, (pool,) = read_and_close(fd)
    assert (pool.free, pool.owned, pool.away, pool.count) == (1, 0, 1, 2)


@pytest.mark.parametrize(
    "head",
    [
        {"magic": 1},
        {"cell_size": 64},
        {"directory_count": 1 << 30},
        {"slot_size": 0},
        {"slot_size": 1 << 20},
        {"slot_state": 1 << 30},
    ],
)
def test_memory_that_is_something_else_is_left_alone(head):
    with pytest.raises(record.Strange):
        read_and_close(memory(head=head))


@pytest.mark.parametrize(
    "strange",
    [
        one(b"not json"),
        one(b"[" * 900),
        one([]),
        one({"kind": "pool"}),
        one({"kind": "channel"}),
        one(dict(POOL, id="\x1b[2J")),
        one(POOL, sequence=3),
        one({}, slots=(1 << 62, 1 << 31)),
        b"\xff" * 1024,
    ],
)
def test_a_record_that_makes_no_sense_is_left_out(strange):
    fd = memory(directory=[100, 200, 0xFFFFFFFF], records=[(100, strange), (200, one(POOL))])
    _, channels, pools = read_and_close(fd)
    assert channels == []
    assert [pool.id for pool in pools] == [POOL["id"]]


@pytest.mark.parametrize("slots", [(1 << 63, 5), (4096, 0xFFFFFFFF), (record.SIZE - 56, 2)])
def test_slots_that_are_elsewhere_are_not_read(slots):
    _, _, (pool,) = read_and_close(memory(directory=[100], records=[(100, one(POOL, slots=slots))]))
    assert (pool.count, pool.states) == (0, {})


def test_noise_is_survived():
    noise = random.Random(7)
    for _ in range(200):
        data = bytearray(one(POOL, slots=(51200, 3)))
        for _ in range(noise.randrange(1, 20)):
            data[noise.randrange(len(data))] = noise.randrange(256)
        _, channels, pools = read_and_close(memory(directory=[100], records=[(100, bytes(data))]))
        assert len(channels) + len(pools) <= 1


# -- the commands --------------------------------------------------------------------------------------------------


def test_ls_shows_tables_and_json(line, capsys):
    child, _, frames = line
    assert main.main(["ls"]) == 0
    out = capsys.readouterr().out
    for text in ("shm:seen", "source", "sink", f"process {child.pid}", frames.pool.name, "8 KiB", "its own"):
        assert text in out
    assert main.main(["ls", "--json"]) == 0
    found = {process["pid"]: process for process in json.loads(capsys.readouterr().out)["processes"]}
    assert found[child.pid]["channels"][0]["received"]["move"] == 3
    assert found[child.pid]["pools"][0]["owned"] == 2


def test_top_shows_rates(line, capsys):
    child, _, _ = line
    assert main.main(["top", "--count", "1", "--interval", "0.01"]) == 0
    out = capsys.readouterr().out
    assert "sent/s" in out
    assert "\x1b" not in out
    assert main.main(["top", "--count", "2", "--interval", "0.01", "--json"]) == 0
    for text in capsys.readouterr().out.splitlines():
        found = {process["pid"]: process for process in json.loads(text)["processes"]}
        assert found[child.pid]["channels"][0]["sent_per_s"] == 0


def test_rates_are_of_what_was_there_before():
    def views(sent, number=1):
        channel = observe.ChannelView(
            number=number, address="shm:x", state="CONNECTED", end="source", role="MASTER", trust="FULL",
            peer=2, host="", pools=(), sent={"move": sent}, received={"pass": 2 * sent},
        )  # fmt: skip
        return observe.Views((observe.ProcessView(pid=1, command="a", hardened=False, channels=(channel,)),), 0)

    assert ls.rates_of(views(10), views(30), 2.0) == {(1, 1): (10.0, 20.0)}
    assert ls.rates_of(views(10), views(30, number=2), 2.0) == {}
    text = ls.as_text(views(30), ls.rates_of(views(10), views(30), 2.0))
    assert "10.0" in text


def test_ls_says_so_where_there_is_nobody(monkeypatch, capsys):
    monkeypatch.setattr(ls, "look", lambda: observe.Views((), 0))
    assert main.main(["ls"]) == ls.NOTHING
    assert "No process of this user uses bulktransfer." in capsys.readouterr().out


def test_processes_of_other_users_are_not_looked_at(line):
    child, _, _ = line
    assert child.pid not in [process.pid for process in observe.look(uid=os.geteuid() + 4711).processes]


@pytest.mark.parametrize("interval", ["0", "-1", "soon", "nan", "inf"])
def test_an_interval_that_is_none_is_refused(interval, capsys):
    with pytest.raises(SystemExit) as ended:
        main.main(["top", "--interval", interval])
    assert ended.value.code == 2
    assert "not a time" in capsys.readouterr().err


def test_the_doctor_finds_this_machine_fit(capsys):
    assert main.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "good  memfd and seals: " in out
    assert "Everything that bulktransfer needs is there." in out
    assert main.main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is True
    assert {"kernel", "huge pages", "descriptors", "mappings", "pidfd", "a channel"} <= {
        finding["name"] for finding in found["findings"]
    }


def test_the_doctor_says_what_is_missing(capsys, monkeypatch):
    def refuse(name, flags):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(examine, "_PARTS", (examine._kernel_objects, examine._meeting_place))
    monkeypatch.setattr(examine.os, "memfd_create", refuse)
    monkeypatch.setenv("BULKTRANSFER_DIR", "/proc/nowhere")
    assert main.main(["doctor"]) == doctor.MISSING
    out = capsys.readouterr().out
    assert "BAD   memfd: [Errno 1]" in out
    assert "-> the library's memory comes from memfd_create" in out
    assert "BAD   a channel: " in out


def test_a_descriptor_limit_that_is_low_is_said(monkeypatch):
    monkeypatch.setattr(examine.resource, "getrlimit", lambda what: (256, 1 << 20))
    found = {finding.name: finding for finding in examine._limits()}
    assert found["descriptors"].verdict == examine.NOTE
    assert "ulimit -n 65536" in found["descriptors"].advice


def commands_of(parser):
    """Every command with the help that it shows and the one of the command that it belongs to."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield name, inner, parser
                yield from commands_of(inner)


def test_every_command_says_its_exit_status_and_the_how_to_has_it():
    whole = main.parser()
    page = (Path(__file__).parent.parent / "docs/how-to/look-inside.md").read_text()
    rows = {name for row in page.splitlines() if row.startswith("| `") for name in re.findall(r"`([a-z ]+)`", row)}
    silent = [
        name
        for name, command, owner in commands_of(whole)
        if "exit status" not in command.format_help() and "exit status" not in owner.format_help()
    ]
    assert silent == []
    for name, command, owner in commands_of(whole):
        if owner is whole and name != "block":
            assert name in rows
        elif command.prog.startswith("bulk block "):
            assert f"block {name}" in rows


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_completion_knows_every_command(shell, capsys):
    pytest.importorskip("shtab")
    assert main.main(["completion", shell]) == 0
    out = capsys.readouterr().out
    for command in main.RUN:
        assert command in out


def test_completion_says_what_it_needs(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main.main(["completion", "bash"]) == completion.CANNOT
    assert "bulktransfer[cli]" in capsys.readouterr().err


def test_bash_takes_the_completion(tmp_path):
    pytest.importorskip("shtab")
    made = subprocess.run([sys.executable, "-m", "bulktransfer", "completion", "bash"], capture_output=True, check=True)
    (tmp_path / "bulk").write_bytes(made.stdout)
    subprocess.run(["bash", "-n", str(tmp_path / "bulk")], check=True)
