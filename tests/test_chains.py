"""Promises of chains over several machines: contents arrive through shm, tcp and tls, one pool all the way; where the
connection in the middle is lost both ends are told, and no buffer is lost or doubled. Real commands and sockets.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest

import bulktransfer as bulk
from bulktransfer import BufferState, Direction, EventKind, Trust
from certificates import Authority
from joining import end_of
from machines import HOSTS, command, machines  # noqa: F401 - a fixture
from relays import Relay
from worlds import PATIENCE_S

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "machines.md"
FRAME = 256 << 10
FRAMES = 8
TCP, TLS = f"tcp://{HOSTS[0]}:7001", f"tls://{HOSTS[1]}:7002"
SHORT = "timeout=1"  # after which a peer that does not answer on the network is dead

bulk.current_domain()  # it lives as long as the process, and so do its descriptors


def sink(pipe, address, hold):
    """Takes what comes and keeps what is numbered in `hold`; then says what it got, how it ended, what it keeps."""
    import bulktransfer as bulk

    numbers, kept, wrong = [], [], []
    with bulk.bind(address, timeout=20) as channel:
        pipe.send(str(channel.trust))
        try:
            for transfer in channel.buffers():
                number = int(transfer.meta)
                numbers.append(number)
                if transfer.buffer.tobytes() != bytes([number % 251]) * transfer.buffer.length:
                    wrong.append(number)
                if number in hold:
                    kept.append(transfer.buffer)
                    pipe.send("holds")
                else:
                    channel.give_back(transfer.buffer)
            end = "in order"
        except bulk.BulkError as error:
            end = type(error).__name__
        pipe.send((numbers, wrong, end, [buffer.state.name for buffer in kept], [str(p.id) for p in channel.pools]))
        pipe.recv()


class Line:
    """A source here, commands that forward, and a sink in a process of its own; `forwarders`: start(FROM, TO)."""

    def __init__(self, spawn, stack, forwarders, hold=()):
        self.channel = stack.enter_context(bulk.create("shm:", direction=Direction.TX, trust=Trust.FULL, meta_size=16))
        self.frames = stack.enter_context(bulk.Allocator(count=FRAMES, size=FRAME))
        self.commands = [stack.enter_context(start) for start in forwarders(self.channel.address)]
        self.sink = spawn(sink, f"{self.channel.address}-last", hold)
        self.channel.wait_bound(PATIENCE_S)
        self.channel.assign_pool(self.frames.pool, timeout=PATIENCE_S)
        assert self.sink.receive() == "Trust.FULL"

    def send(self, number):
        """By copy, or by move; what comes home makes room."""
        while not self.frames.available:
            event = self.channel.receive(PATIENCE_S)
            if event.kind is not EventKind.TEARDOWN_RECEIVED:  # the end that it speaks of is raised next
                assert event.kind in (EventKind.BUFFER_RECEIVED, EventKind.COPY_RELEASED), event
                self.frames.free(event.buffer)
        frame = self.frames.alloc()
        frame.put(bytes([number % 251]) * (FRAME - number))
        (self.channel.move if number % 3 else self.channel.copy)(frame, b"%d" % number)

    def send_until_it_breaks(self, number):
        """How many calls succeeded."""
        for sent in itertools.count():
            try:
                self.send(number + sent)
            except bulk.BrokenChannelError:
                return sent
        raise AssertionError

    def end(self):
        """What the sink says at its end."""
        found = self.sink.receive()
        self.sink.send("leave")
        self.sink.join()
        return found

    def whole(self):
        """Whether every buffer is here again; leases that hang up are served."""
        return bulk.current_domain().wait_for(
            lambda: all(buffer.state is BufferState.READ_WRITE for buffer in self.frames.pool), PATIENCE_S
        )

    def say(self):
        """The exit status and the last words of every command."""
        return [(one.communicate(timeout=PATIENCE_S)[1], one.returncode) for one in self.commands]


@pytest.fixture
def papers(tmp_path):
    """The options of a tls: address, of who creates and of who binds."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl program to make certificates with")
    authority = Authority(tmp_path)
    mine = authority.papers("machine")
    return f"certificate={mine.certificate}&key={mine.key}", f"authority={authority.certificate}"


def three_hops(machines, papers):  # noqa: F811
    """shm, tls from the first machine to the second, shm."""
    creator, binder = papers
    there = f"tls://{HOSTS[0]}:7002"

    def start(address):
        yield machines.command(0, "forward", address, f"create:{there}?{SHORT}&{creator}")
        yield machines.command(1, "forward", f"{there}?{SHORT}&{binder}", f"create:{address}-last", "--trust", "full")

    return start


def five_hops(machines, papers):  # noqa: F811
    """shm, tcp to the second machine, shm, tls back to the first, shm: each machine creates one of the two."""
    creator, binder = papers

    def start(address):
        full = ("--trust", "full")
        yield machines.command(0, "forward", address, f"create:{TCP}?{SHORT}&insecure=1")
        yield machines.command(1, "forward", f"{TCP}?{SHORT}&insecure=1", f"create:{address}-between", *full)
        yield machines.command(1, "forward", f"{address}-between", f"create:{TLS}?{SHORT}&{creator}")
        yield machines.command(0, "forward", f"{TLS}?{SHORT}&{binder}", f"create:{address}-last", *full)

    return start


CHAINS = {3: three_hops, 5: five_hops}


@pytest.mark.watchdog(120)
@pytest.mark.parametrize("hops", CHAINS)
def test_contents_arrive_through_machines_under_one_pool_id(machines, papers, spawn, hops):  # noqa: F811
    with contextlib.ExitStack() as stack:
        line = Line(spawn, stack, CHAINS[hops](machines, papers))
        for number in range(40):
            line.send(number)
        line.channel.destroy(PATIENCE_S)
        assert line.end() == (list(range(40)), [], "in order", [], [str(line.frames.pool.id)])
        assert line.say() == [("", 0)] * (hops - 1)
        assert line.whole()


@pytest.mark.watchdog(120)
@pytest.mark.parametrize("hops", CHAINS)
def test_a_cable_that_is_pulled_in_the_middle_is_told_at_both_ends_and_loses_no_buffer(
    machines,  # noqa: F811
    papers,
    spawn,
    hops,
):
    with contextlib.ExitStack() as stack:
        line = Line(spawn, stack, CHAINS[hops](machines, papers), hold=(4,))
        for number in range(12):
            line.send(number)
        assert line.sink.receive() == "holds"
        machines.cut()
        sent = 12 + line.send_until_it_breaks(12)
        numbers, wrong, end, kept, _ = line.end()
        assert numbers == list(range(len(numbers)))  # none twice, none left out, and behind the last one nothing came
        assert 5 <= len(numbers) <= sent
        assert (wrong, end, kept) == ([], "BrokenChannelError", ["READ_WRITE"])
        assert [status for _, status in line.say()] == [1] * (hops - 1)
        assert line.whole()
        assert line.frames.detached == 0


@pytest.mark.watchdog(120)
def test_a_cable_that_is_pulled_while_nothing_is_sent_is_told_at_both_ends(machines, papers, spawn):  # noqa: F811
    with contextlib.ExitStack() as stack:
        line = Line(spawn, stack, three_hops(machines, papers))
        line.send(0)
        line.frames.free(line.channel.receive(PATIENCE_S).buffer)
        machines.cut()
        end, _ = end_of(line.channel)
        assert type(end) is bulk.BrokenChannelError  # signs of life failed: nobody sent anything
        assert line.end()[:3] == ([0], [], "BrokenChannelError")
        assert all("BrokenChannelError" in said and status == 1 for said, status in line.say())


@pytest.mark.watchdog(120)
def test_the_commands_of_the_page_carry_a_file_from_machine_to_machine(machines, tmp_path):  # noqa: F811
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl program to make certificates with")
    places = [tmp_path / "first", tmp_path / "second"]
    for place in places:
        place.mkdir()
    authority = Authority(tmp_path)
    mine = authority.papers("machine")
    for source, target in ((mine.certificate, "first/here.pem"), (mine.key, "first/here.key")):
        shutil.copy(source, tmp_path / target)
    shutil.copy(authority.certificate, places[1] / "ours.pem")
    (places[0] / "photos.tar").write_bytes(os.urandom(7_654_321))
    page = PAGE.read_text()
    (block,) = re.findall(r"```sh\n(bulk send .*?)```", page[page.index("## Through machines") :], re.DOTALL)
    commands, number = [], 0
    with contextlib.ExitStack() as stack:
        for line in block.splitlines():
            number = 1 if "second machine" in line else number
            _, *arguments = shlex.split(line, comments=True)
            patience = () if arguments[0] == "send" else ("--timeout", "60")  # the machine may be busy
            commands.append(stack.enter_context(machines.command(number, *arguments, *patience, cwd=places[number])))
        said = [one.communicate(timeout=PATIENCE_S * 3) for one in commands]
        assert [one.returncode for one in commands] == [0, 0, 0, 0], said
    assert [arguments.split()[1] for arguments in block.splitlines()] == ["send", "forward", "forward", "recv"]
    digests = [hashlib.sha256((place / "photos.tar").read_bytes()).hexdigest() for place in places]
    assert digests[0] == digests[1]


def over_a_relay(stack, **options):
    """shm, tcp through a relay, shm, on this machine; the second command creates both of its ends."""

    def start(address):
        both = ("--trust", "full", "--meta-size", "16")
        second = command("forward", "create:tcp:", f"create:{address}-last", *both)
        yield second
        relay = Relay(int(second.stdout.readline().rpartition(":")[2]), **options)
        stack.callback(relay.close)
        yield command("forward", address, f"tcp://127.0.0.1:{relay.port}")

    return start


@pytest.mark.watchdog(120)
def test_a_chain_over_a_slow_connection_delivers_in_order(spawn):
    with contextlib.ExitStack() as stack:
        start = over_a_relay(stack, delay_s=0.02, piece=32768)
        line = Line(spawn, stack, start)
        for number in range(16):
            line.send(number)
        line.channel.destroy(PATIENCE_S)
        assert line.end()[:3] == (list(range(16)), [], "in order")
        assert line.say() == [("", 0)] * 2
        assert line.whole()


@pytest.mark.watchdog(120)
@pytest.mark.parametrize("limit", [3 * FRAME, 3 * FRAME + 1000, 5 * FRAME + 100_000])
def test_a_connection_that_is_cut_in_the_middle_of_a_buffer_is_told_at_both_ends(spawn, limit):
    """limit: bytes that get through, contents and heads (48 bytes and more a buffer)."""
    with contextlib.ExitStack() as stack:
        start = over_a_relay(stack, delay_s=0.001, limit=limit)
        line = Line(spawn, stack, start)
        sent = line.send_until_it_breaks(0)
        numbers, wrong, end, _, _ = line.end()
        assert numbers == list(range(len(numbers)))
        assert len(numbers) <= limit // FRAME <= sent  # a reset may overtake what the kernel has already
        assert (wrong, end) == ([], "BrokenChannelError")
        assert [status for _, status in line.say()] == [1, 1]
        assert line.whole()
        assert line.frames.detached == 0
