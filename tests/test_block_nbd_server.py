"""The NBD server over real sockets, with a client that can misbehave."""

from __future__ import annotations

import errno
import random
import select
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bulktransfer import block
from bulktransfer.block.nbd import wire
from bulktransfer.block.nbd.server import ExportTable
from bulktransfer.block.nbd.wire import Command, CommandFlag, TransmissionFlag
from nbd_tools import Client, Served, make_certificate, serving

SIZE = 8 << 20


@pytest.fixture(params=["memory", "file", "direct"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[block.Store]:
    if request.param == "memory":
        made = block.open_store(f"memory:{SIZE}")
    else:
        made = block.open_store(f"file:{tmp_path / 'image'}", create_bytes=SIZE, direct=request.param == "direct")
    with made:
        yield made


@pytest.fixture
def served(store: block.Store, rendezvous_dir: Path) -> Iterator[Served]:
    with serving(rendezvous_dir, store) as running:
        yield running


@pytest.fixture(params=["simple", "structured", "extended"])
def client(request: pytest.FixtureRequest, served: Served) -> Iterator[Client]:
    how = {"simple": {"structured": False}, "structured": {}, "extended": {"extended": True}}[request.param]
    with served.agreed(**how) as connected:
        yield connected


def test_contents_go_in_and_out(client: Client, store: block.Store) -> None:
    data = random.Random(1).randbytes(3 << 20)
    assert client.write(4096, data) == 0
    assert client.write(10, b"unaligned", flags=CommandFlag.FUA) == 0
    assert client.read(4096, len(data)) == data
    assert client.read(9, 11) == b"\0unaligned\0"
    assert client.read(4095, 2) == b"\0" + data[:1]
    assert store.read(4096, len(data)) == data


def test_every_command_is_answered(client: Client, store: block.Store) -> None:
    client.write(0, b"x" * SIZE)
    assert client.ask(Command.FLUSH).error == 0
    assert client.ask(Command.TRIM, 0, 1 << 20).error == 0
    assert client.ask(Command.WRITE_ZEROES, 2 << 20, 1 << 20, flags=CommandFlag.NO_HOLE | CommandFlag.FUA).error == 0
    assert client.ask(Command.WRITE_ZEROES, 4 << 20, 1 << 20, flags=CommandFlag.FAST_ZERO).error in (0, errno.ENOTSUP)
    assert client.ask(Command.CACHE, 0, SIZE).error == 0
    assert client.read(0, 0) == b""
    assert store.read(2 << 20, 1 << 20) == bytes(1 << 20)
    reply = client.ask(Command.BLOCK_STATUS, 0, SIZE)
    if client.structured:
        assert sum(length for length, _ in reply.extents) == SIZE
        assert reply.extents[0] == (1 << 20, 3)
    else:
        assert reply.error == errno.EINVAL


def test_refusals_have_the_protocols_numbers_and_the_session_goes_on(client: Client) -> None:
    assert client.ask(Command.READ, SIZE, 1).error == errno.EINVAL
    assert client.ask(Command.READ, 0, (1 << 25) + 1).error == errno.EINVAL
    assert client.write(SIZE - 1, b"ab") == errno.ENOSPC
    assert client.write(0, bytes((1 << 25) + 1)) in (errno.EINVAL, errno.ENOSPC)
    assert client.ask(77).error == errno.EINVAL
    assert client.ask(Command.FLUSH, 1, 1).error == errno.EINVAL
    assert client.write(0, b"fine") == 0
    assert client.read(0, 4) == b"fine"


def test_the_largest_request_is_served(rendezvous_dir: Path) -> None:
    with (
        block.MemoryStore(64 << 20) as store,
        serving(rendezvous_dir, store) as served,
        served.agreed() as client,
    ):
        data = random.Random(2).randbytes(1 << 25)
        assert client.write(1 << 20, data) == 0
        assert client.read(1 << 20, 1 << 25, flags=CommandFlag.DF) == data


def test_requests_that_come_together_are_all_answered(client: Client) -> None:
    client.write(0, b"".join(struct.pack("<Q", n) for n in range(1 << 18)))

    def ask() -> None:
        for cookie in range(500):
            client.send(Command.READ, cookie * 4096, 4096, cookie=cookie)
            payload = bytes([cookie % 256]) * 512
            client.send(Command.WRITE, (4 << 20) + cookie * 512, 512, cookie=1000 + cookie, payload=payload)

    asking = threading.Thread(target=ask)
    asking.start()
    answered = set()
    for _ in range(1000):
        reply = client.reply(lambda cookie: 4096 if cookie < 1000 else 0)
        assert reply.error == 0
        if reply.cookie < 1000:
            assert struct.unpack_from("<Q", reply.data)[0] == reply.cookie * 512
        answered.add(reply.cookie)
    asking.join()
    assert answered == {*range(500), *range(1000, 1500)}
    assert client.read((4 << 20) + 511, 2) == b"\0\1"


def test_a_hole_is_told_and_not_sent_unless_df_says_so(served: Served) -> None:
    with served.agreed() as client:
        reply = client.ask(Command.READ, 0, 1 << 20)
        assert reply.data == bytes(1 << 20)
        assert reply.chunks == [wire.Chunk.OFFSET_HOLE]
        reply = client.ask(Command.READ, 0, 1 << 20, flags=CommandFlag.DF)
        assert reply.data == bytes(1 << 20)
        assert reply.chunks == [wire.Chunk.OFFSET_DATA]


def test_a_flush_of_one_client_covers_what_another_wrote(served: Served, store: block.Store) -> None:
    with served.agreed() as one, served.agreed() as other:
        assert one.flags & TransmissionFlag.CAN_MULTI_CONN
        one.write(0, b"one")
        assert other.ask(Command.FLUSH).error == 0
        assert other.read(0, 3) == b"one"


def test_a_read_only_export_says_so_and_refuses(rendezvous_dir: Path) -> None:
    with block.MemoryStore(4096) as store:
        table = ExportTable({None: store}, read_only=True)
        with serving(rendezvous_dir, table) as served, served.agreed() as client:
            assert client.flags & TransmissionFlag.READ_ONLY
            assert not client.flags & TransmissionFlag.SEND_TRIM
            assert client.write(0, b"x") == errno.EPERM
            assert client.ask(Command.TRIM, 0, 1).error == errno.EPERM
            assert client.read(0, 1) == b"\0"


def test_disc_ends_without_a_reply_but_after_what_was_asked(served: Served) -> None:
    with served.agreed() as client:
        client.send(Command.WRITE, 0, 4, payload=b"last", flags=CommandFlag.FUA)
        client.send(Command.DISC)
        assert client.reply().error == 0
        assert client.ended()
    with served.agreed() as client:
        assert client.read(0, 4) == b"last"


def test_a_client_that_vanishes_harms_nobody(served: Served, store: block.Store) -> None:
    store.write(0, b"kept" * (SIZE // 4))
    with served.agreed() as steady:
        for how in range(12):
            gone = served.agreed()
            if how % 4 == 0:  # in the middle of a reply
                for cookie in range(4):
                    gone.send(Command.READ, 0, SIZE, cookie=cookie, flags=CommandFlag.DF)
                gone.take(100 * how + 1)
            elif how % 4 == 1:  # in the middle of a payload
                gone.sock.sendall(wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, Command.WRITE, 1, 0, SIZE) + b"kept" * 1000)
            elif how % 4 == 2:  # in the middle of a header
                gone.sock.sendall(wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, Command.FLUSH, 1, 0, 0)[:20])
            else:  # with a reset
                gone.send(Command.READ, 0, SIZE)
                gone.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            gone.close()
            assert steady.read(SIZE - 4, 4) == b"kept"
    assert store.read(0, SIZE) == b"kept" * (SIZE // 4)


def test_no_request_crashes_the_server(rendezvous_dir: Path) -> None:
    with block.MemoryStore(1 << 16) as store, serving(rendezvous_dir, store) as served:

        @settings(max_examples=60, suppress_health_check=list(HealthCheck))
        @given(
            st.lists(
                st.tuples(
                    st.sampled_from([wire.REQUEST_MAGIC] * 9 + [0]),
                    st.integers(0, 64),
                    st.integers(0, 9),
                    st.integers(0, 1 << 17),
                    st.integers(0, 1 << 12),
                    st.binary(max_size=20),
                ),
                max_size=10,
            ),
            st.booleans(),
        )
        def play(requests: list[tuple[int, int, int, int, int, bytes]], structured: bool) -> None:
            with served.agreed(structured=structured) as client:
                for magic, flags, command, offset, length, payload in requests:
                    head = wire.REQUEST.pack(magic, flags, command, 1, offset, length)
                    try:
                        client.sock.sendall(head + payload)
                    except (BrokenPipeError, ConnectionResetError):
                        break
                client.sock.shutdown(socket.SHUT_WR)
                assert client.ended()

        play()
        with served.agreed() as client:
            assert client.write(0, b"alive") == 0
            assert client.read(0, 5) == b"alive"


def test_what_arrived_before_the_stop_is_answered(rendezvous_dir: Path) -> None:
    with block.MemoryStore(SIZE) as store, serving(rendezvous_dir, store) as served:
        client = served.agreed()
        client.read(0, 1)
        for cookie in range(20):
            client.send(Command.WRITE, cookie * 4096, 4096, cookie=cookie, payload=bytes([cookie + 1]) * 4096)
        served.server.stop()
        assert {client.reply().cookie for _ in range(20)} == set(range(20))
        assert client.ended()
        client.close()
    assert served.server.clients == 0


def test_stop_ends_clients_that_do_not_read(rendezvous_dir: Path) -> None:
    with block.MemoryStore(64 << 20) as store, serving(rendezvous_dir, store) as served:
        client = served.agreed()
        for cookie in range(8):
            client.send(Command.READ, 0, 8 << 20, cookie=cookie, flags=CommandFlag.DF)
        client.take(1)
    client.close()


def test_too_many_clients_are_sent_away(rendezvous_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bulktransfer.block.nbd import server

    monkeypatch.setattr(server, "CLIENTS_MAX", 2)
    with (
        block.MemoryStore(4096) as store,
        serving(rendezvous_dir, store) as served,
        served.agreed() as one,
        served.agreed(),
        served.connect() as third,
    ):
        assert third.ended()
        assert one.read(0, 1) == b"\0"


def test_a_client_that_says_nothing_is_sent_away(rendezvous_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bulktransfer.block.nbd import server

    monkeypatch.setattr(server, "HANDSHAKE_S", 0.1)
    with block.MemoryStore(4096) as store, serving(rendezvous_dir, store) as served, served.connect() as client:
        assert client.ended()


def test_a_slow_flush_does_not_hold_up_a_read(rendezvous_dir: Path) -> None:
    class Slow(block.MemoryStore):
        prompt = False

        def __init__(self) -> None:
            super().__init__(1 << 20)
            self.go_on = threading.Event()

        def _flush(self) -> None:
            assert self.go_on.wait(30)

    with Slow() as store:
        try:
            with serving(rendezvous_dir, store) as served, served.agreed() as client:
                client.send(Command.FLUSH, cookie=1)
                client.send(Command.READ, 0, 4, cookie=2)
                assert client.reply().cookie == 2
                store.go_on.set()
                assert client.reply().cookie == 1
        finally:
            store.go_on.set()


def test_a_store_that_fails_is_an_error_of_the_request(rendezvous_dir: Path) -> None:
    class Broken(block.MemoryStore):
        prompt = prompt_writes = False

        def view(self, offset: int, length: int) -> None:
            return None

        slot = view

        def _read_into(self, offset: int, into: memoryview) -> None:
            raise block.StoreError("a bad sector")

        def _write(self, offset: int, data: memoryview, fua: bool) -> None:
            raise block.NoSpaceError("full")

    with Broken(1 << 20) as store, serving(rendezvous_dir, store) as served, served.agreed() as client:
        assert client.ask(Command.READ, 0, 4096).error == errno.EIO
        assert client.write(0, b"x" * 100_000) == errno.ENOSPC
        store.prompt_writes = True
        assert client.write(0, b"x" * 3_000_000) == errno.ENOSPC
        assert client.ask(Command.FLUSH).error == 0


# -- TLS -----------------------------------------------------------------------------------------------------------


def test_tls_carries_everything(rendezvous_dir: Path, tmp_path: Path, store: block.Store) -> None:
    certificate = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "ca-cert.pem", certificate / "server-key.pem")
    trusting = ssl.create_default_context(cafile=str(certificate / "ca-cert.pem"))
    with serving(rendezvous_dir, store, tls=context) as served:
        client = served.connect()
        client.greet()
        assert client.option(wire.Option.GO, b"\0\0\0\0\0\0")[-1][0] == wire.OptionReply.ERR_TLS_REQD
        assert client.option(wire.Option.STARTTLS)[-1][0] == wire.OptionReply.ACK
        client.sock = trusting.wrap_socket(client.sock, server_hostname="localhost", suppress_ragged_eofs=False)
        client.option(wire.Option.STRUCTURED_REPLY)
        client.go()
        client.structured = True
        data = random.Random(3).randbytes(SIZE - 4097)
        assert client.write(1, data) == 0
        assert client.read(1, len(data), flags=CommandFlag.DF) == data
        client.send(Command.DISC)
        assert client.ended(), "and by TLS's own good-bye, not torn"
        client.close()
        plain = served.connect()
        plain.greet()
        plain.option(wire.Option.STARTTLS)
        plain.sock.sendall(b"this is no TLS at all, and a server must bear it")
        assert plain.ended()
        plain.close()


# -- the command ---------------------------------------------------------------------------------------------------


def command(pipe, *arguments):
    import sys

    from bulktransfer.cli.main import main

    sys.exit(main(["block", "nbd", *arguments]))


def wait_for_socket(path: Path) -> Client:
    import time

    deadline = time.monotonic() + 30
    while True:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(str(path))
            return Client(sock)
        except (FileNotFoundError, ConnectionRefusedError):
            sock.close()
            assert time.monotonic() < deadline
            select.select([], [], [], 0.02)


def test_the_command_ends_in_order_on_sigterm(spawn, rendezvous_dir: Path, tmp_path: Path) -> None:
    import signal

    path = rendezvous_dir / "disk.sock"
    child = spawn(
        command, "--store", f"file:{tmp_path / 'image'}", "--create", "1M", "--unix", str(path), "--export", "disk"
    )
    with wait_for_socket(path) as client:
        client.agree(name="disk")
        assert client.size == 1 << 20
        assert path.stat().st_mode & 0o777 == 0o600
        client.write(0, b"before the end")
        child.signal(signal.SIGTERM)
        assert client.ended()
    assert f"nbd+unix:///disk?socket={path}" in child.join()
    assert (tmp_path / "image").read_bytes()[:14] == b"before the end"
    assert not path.exists()


def test_the_command_replaces_a_socket_that_a_crash_left(spawn, rendezvous_dir: Path) -> None:
    import signal

    path = rendezvous_dir / "disk.sock"
    first = spawn(command, "--store", "memory:1M", "--unix", str(path))
    wait_for_socket(path).close()
    second = spawn(command, "--store", "memory:1M", "--unix", str(path))
    assert "Address already in use" in second.join(2)
    first.kill()
    third = spawn(command, "--store", "memory:1M", "--unix", str(path))
    with wait_for_socket(path) as client:
        client.agree()
    third.signal(signal.SIGTERM)
    third.join()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--store", "memory:1M"], "where?"),
        (["--store", "memory:1M", "--tcp", "nonsense"], "HOST:PORT"),
        (["--store", "memory:1M", "--tcp", "0.0.0.0:0"], "other machines"),
        (["--store", "disk:1M", "--tcp", ":0"], "no store"),
        (["--store", "file:/nowhere/at/all", "--tcp", ":0"], "No such file"),
        (["--store", "memory:1M", "--tcp", ":0", "--tls-key", "x"], "--tls-certificate"),
    ],
)
def test_the_command_says_what_is_wrong(capsys: pytest.CaptureFixture[str], arguments: list[str], why: str) -> None:
    from bulktransfer.cli.main import main

    assert main(["block", "nbd", *arguments]) == 2
    assert why in capsys.readouterr().err
