"""The block client between users of a machine and a server elsewhere: what goes through, and what either loss means."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import bulktransfer as bulk
from bulktransfer import block
from bulktransfer.block.errors import Status
from bulktransfer.block.proxy.cache import Kept, ReadCache
from bulktransfer.block.service.changes import UNKNOWN, Changes
from bulktransfer.block.service.messages import META_SIZE, Answer, Message, Operation
from certificates import Authority
from test_block_service import RawClient, device_at, running
from worlds import start_helper

start_helper()  # before descriptors are counted: what channels of a network keep for good

SIZE = 4 << 20
BLOCKS = SIZE // 4096


@contextlib.contextmanager
def between(server: str, address: str = "shm:", **options: object) -> Iterator[block.BlockProxy]:
    """A block client for `server`, in a domain of its own."""
    proxy = block.BlockProxy(address, server, domain=bulk.Domain(), **options)
    thread = threading.Thread(target=proxy.serve)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.stop()
        thread.join()


def eventually(holds: Callable[[], bool]) -> bool:
    """Whether something comes true that nothing else tells of."""
    pause = threading.Event()
    for _ in range(400):
        if holds():
            return True
        pause.wait(0.025)
    return holds()


def write_without_end(device: block.BlockDevice) -> None:
    while True:
        device.write(0, b"x" * 4096)


@pytest.fixture
def store() -> Iterator[block.MemoryStore]:
    with block.MemoryStore(SIZE) as made:
        yield made


@pytest.fixture
def service(store: block.Store) -> Iterator[block.BlockService]:
    with running({"": store}, "tcp://127.0.0.1:0") as made:
        yield made


@pytest.fixture
def proxy(service: block.BlockService) -> Iterator[block.BlockProxy]:
    with between(service.address) as made:
        yield made


@pytest.fixture
def device(proxy: block.BlockProxy) -> Iterator[block.BlockDevice]:
    with device_at(proxy.address, buffers=4, buffer_size=64 << 10) as made:
        yield made


# -- over the network, and through ---------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["tcp", "tls", "client"])
def test_blocks_go_in_and_out(way: str, store: block.Store, tmp_path: Path) -> None:
    data = random.Random(1).randbytes(100 * 4096)
    with contextlib.ExitStack() as stack:
        network = None
        if way == "tls":
            authority = Authority(tmp_path)
            papers = authority.papers("server")
            service = stack.enter_context(
                running(
                    {"": store},
                    "tls://127.0.0.1:0",
                    network=bulk.Network(certificate=papers.certificate, key=papers.key),
                )
            )
            network = bulk.Network(authority=authority.certificate)
        else:
            service = stack.enter_context(running({"": store}, "tcp://127.0.0.1:0"))
        address = service.address
        if way == "client":
            address = stack.enter_context(between(address)).address
        device = stack.enter_context(device_at(address, buffers=4, buffer_size=64 << 10, network=network))
        device.write(7, data)
        assert device.read(7, 100) == data
        assert store.read(7 * 4096, len(data)) == data
        device.write(0, b"s" * 4096, fua=True)
        device.flush()
        device.trim(7, 50)
        device.write_zeroes(60, 4)
        assert (
            device.read(7, 100) == bytes(50 * 4096) + data[50 * 4096 : 53 * 4096] + bytes(4 * 4096) + data[57 * 4096 :]
        )
        assert sum(run.length for run in device.extents_at(0, SIZE)) == SIZE
        assert device.exports() == [""]
        with device.borrow(60, 5) as contents:
            assert contents[:16384] == bytes(16384)


def test_the_client_reaches_a_server_over_tls_and_is_found_by_name(store: block.Store, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    papers = authority.papers("server")
    with (
        running({"": store}, f"tls://127.0.0.1:0?certificate={papers.certificate}&key={papers.key}") as service,
        between(f"{service.address}?authority={authority.certificate}", "name:disks"),
        device_at("name:disks") as device,
    ):
        device.write(3, b"over tls" * 512)
        assert store.read(3 * 4096, 8) == b"over tls"


def test_many_users_share_a_client_and_have_exports_of_their_own(store: block.Store) -> None:
    with (
        block.MemoryStore(SIZE) as other,
        running({"": store, "other": other}, "tcp://127.0.0.1:0") as service,
        between(service.address) as proxy,
        contextlib.ExitStack() as stack,
    ):
        devices = [stack.enter_context(device_at(proxy.address, export=("", "other")[n % 2])) for n in range(6)]
        failures: list[BaseException] = []

        def work(number: int, device: block.BlockDevice) -> None:
            rng = random.Random(number)
            try:
                for turn in range(15):
                    at = number * 64 + rng.randrange(40)
                    data = bytes([number * 40 + turn]) * 4096 * rng.randrange(1, 20)
                    device.write(at, data)
                    assert device.read(at, len(data) // 4096) == data
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=pair) for pair in enumerate(devices)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert proxy.statistics()["here"] == service.statistics()["clients"] == 6
        assert store.read(0, 64 * 4096) != other.read(0, 64 * 4096)


def test_pools_are_assigned_through_and_a_veto_comes_back() -> None:
    with (
        block.MemoryStore(1 << 20, block_size=64 << 10) as store,
        running({"": store}, "tcp://127.0.0.1:0") as service,
        between(service.address) as proxy,
    ):
        with pytest.raises(bulk.PoolVetoError, match="65536"):
            device_at(proxy.address, buffer_size=4096)
        with device_at(proxy.address, buffer_size=64 << 10) as device:
            assert device.read(15) == bytes(64 << 10)


def test_a_pool_can_be_taken_off_again(proxy: block.BlockProxy) -> None:
    client = RawClient(proxy.address)
    more = bulk.Allocator(count=2, size=8192, domain=client.up.domain)
    client.up.assign_pool(more.pool)
    buffer = more.alloc()
    buffer.put(b"w" * 8192)
    client.up.move(buffer, Message(Operation.WRITE, 0, 5, 0, 0, 8192).pack())
    assert client.up.receive_buffer(timeout=30).buffer is buffer
    client.up.remove_pool(more.pool)
    assert client.nothing_more()
    more.close()
    client.close()


def test_answers_say_what_the_server_says(proxy: block.BlockProxy) -> None:
    client = RawClient(proxy.address)
    answer, contents = client.ask_down(Message(Operation.READ, 0, 7, BLOCKS, 0, 4096).pack())
    assert (answer, contents) == (Answer(Operation.READ, Status.BAD_BLOCK_ID, 7, BLOCKS), b"")
    asked = Message(Operation.WRITE, 0, 9, BLOCKS, 0, 4096)
    assert client.ask_up(asked, b"w" * 4096) == Answer(Operation.WRITE, Status.BAD_BLOCK_ID, 9, BLOCKS)
    answer, contents = client.ask_down(b"no request")
    assert (answer.status, contents) == (Status.BAD_REQUEST, b"")
    assert client.nothing_more()
    client.close()


def test_a_copy_is_given_back(proxy: block.BlockProxy) -> None:
    client = RawClient(proxy.address)
    buffer = client.writes.alloc()
    client.up.copy(buffer, Message(Operation.WRITE, 0, 3, 0, 0, 4096).pack())
    assert client.up.receive(timeout=30).kind is bulk.EventKind.COPY_RELEASED
    client.writes.free(buffer)
    assert client.nothing_more()
    client.close()


# -- the loss of either side ---------------------------------------------------------------------------------------


def test_a_client_without_a_server_does_not_start() -> None:
    with pytest.raises(block.NotConnectedError, match="nobody serves"):
        block.BlockProxy("shm:", "tcp://127.0.0.1:1", timeout=0.05, domain=bulk.Domain())


def test_a_client_needs_a_block_service() -> None:
    spec = bulk.ChannelSpec(direction=bulk.Direction.RX, trust=bulk.Trust.NONE)
    with bulk.listen("tcp://127.0.0.1:0", [spec], domain=bulk.Domain()) as listener:

        def accept() -> None:
            for channel in listener.accept(timeout=30):
                list(channel)  # until its end
                channel.close()

        thread = threading.Thread(target=accept)
        thread.start()
        with pytest.raises(block.BadRequestError, match="no block service"):
            block.BlockProxy("shm:", listener.address, domain=bulk.Domain())
        thread.join()


def test_the_users_of_a_lost_server_get_typed_errors_and_others_can_come_later(store: block.Store) -> None:
    with running({"": store}, "tcp://127.0.0.1:0") as first:
        address = first.address
        with between(address, timeout=0.5) as proxy:
            with device_at(proxy.address) as device:
                device.write(0, b"x" * 4096)
                first.stop()
                with pytest.raises(block.NotConnectedError):
                    write_without_end(device)
                with pytest.raises(block.NotConnectedError, match="server"):
                    device.read(0)
            with pytest.raises(block.NotConnectedError, match="no connection to the server"):
                device_at(proxy.address)
            with running({"": store}, address), device_at(proxy.address) as device:
                assert device.read(0) == b"x" * 4096
            assert proxy.statistics()["lost"] == 1


def test_what_was_under_way_is_never_acknowledged_and_later_requests_wait_for_the_server(spawn) -> None:
    """A server that is killed in the middle, and another in its place."""
    child = spawn(serve_stuck, "tcp://127.0.0.1:0")
    address = child.receive()
    with between(address, reconnect=30.0) as proxy, device_at(proxy.address) as device:
        device.write(0, b"a" * 4096)
        outcome: list[object] = []

        def write() -> None:
            try:
                outcome.append(device.write(1, b"b" * 4096))
            except block.BlockError as error:
                outcome.append(error)

        thread = threading.Thread(target=write)
        thread.start()
        assert child.receive() == "reached"
        child.kill()
        thread.join()
        assert isinstance(outcome[0], block.NotConnectedError)
        with block.MemoryStore(SIZE) as store, running({"": store}, address):
            assert device.read(0) == bytes(4096)  # waits; the new server has nothing of the old one's memory
            with pytest.raises(block.StoreError):
                device.flush()  # the write of block 0 was acknowledged, not flushed, and is gone
            device.flush()  # the user knows
            device.write(2, b"c" * 4096)
            assert store.read(2 * 4096, 4096) == b"c" * 4096
            device.flush()
        assert proxy.statistics()["lost"] >= 1
        assert proxy.statistics()["connections"] == 2


def serve_stuck(pipe, address):
    import threading

    from bulktransfer import block

    class Stuck(block.MemoryStore):
        def _write(self, offset, data, fua):
            if offset == 4096:
                pipe.send("reached")
                threading.Event().wait()
            super()._write(offset, data, fua)

    service = block.BlockService(address, {"": Stuck(4 << 20)})
    pipe.send(service.address)
    service.serve()


def test_what_was_flushed_needs_no_second_flush_after_a_loss(tmp_path: Path) -> None:
    with (
        block.FileStore(tmp_path / "image", create_bytes=SIZE) as store,
        running({"": store}, "tcp://127.0.0.1:0") as first,
        between(first.address, reconnect=30.0) as proxy,
        device_at(proxy.address) as device,
    ):
        device.write(0, b"a" * 4096)
        device.flush()
        device.write(1, b"f" * 4096, fua=True)
        first.stop()
        assert eventually(lambda: proxy.statistics()["lost"] == 1)
        with running({"": store}, first.address):
            device.flush()
            assert device.read(0, 2) == b"a" * 4096 + b"f" * 4096


def test_another_disk_in_the_servers_place_is_not_taken_for_the_old_one(store: block.Store) -> None:
    with running({"": store}, "tcp://127.0.0.1:0") as first:
        address = first.address
        with between(address, reconnect=30.0) as proxy, device_at(proxy.address) as device:
            first.stop()
            assert eventually(lambda: proxy.statistics()["lost"] == 1)
            with block.MemoryStore(SIZE * 2) as other, running({"": other}, address):
                with pytest.raises(block.NotConnectedError):
                    device.write(0, b"?" * 4096)
                assert not any(other.read(0, 4096))


def test_a_pool_that_a_lost_server_had_not_answered_for_is_asked_of_the_next(store: block.Store) -> None:
    asked = threading.Event()
    answers: list[bulk.Answer] = []

    def keep_waiting(event: bulk.Event) -> None:
        answers.append(event.channel.defer(event, lambda outcome: None))
        asked.set()

    callbacks = bulk.Callbacks(pool_assigned=keep_waiting)
    specs = [
        bulk.ChannelSpec(direction=direction, trust=bulk.Trust.NONE, meta_size=META_SIZE, callbacks=callbacks)
        for direction in (bulk.Direction.RX, bulk.Direction.TX)
    ]
    listener = bulk.listen("tcp://127.0.0.1:0", specs, domain=bulk.Domain())
    accepted: list[bulk.Channel] = []

    def accept() -> None:  # whoever waits serves the requests of all channels of its domain
        with contextlib.suppress(bulk.ClosedChannelError):
            while True:
                accepted.extend(listener.accept())

    server = threading.Thread(target=accept)
    server.start()
    devices: list[block.BlockDevice] = []
    with between(listener.address, reconnect=30.0) as proxy:
        user = threading.Thread(target=lambda: devices.append(device_at(proxy.address)))
        user.start()
        assert asked.wait(30)
        listener.close()
        server.join()
        for channel in accepted:
            channel.close()
        with running({"": store}, listener.address):
            user.join()
            devices[0].write(1, b"p" * 4096)
            assert store.read(4096, 4096) == b"p" * 4096
            devices[0].close()
    answers.clear()


def test_who_waited_in_vain_is_told(store: block.Store) -> None:
    with (
        running({"": store}, "tcp://127.0.0.1:0") as first,
        between(first.address, reconnect=0.3) as proxy,
        device_at(proxy.address) as device,
    ):
        first.stop()
        assert eventually(lambda: proxy.statistics()["lost"] == 1)
        with pytest.raises(block.NotConnectedError):
            device.read(0)


def test_a_user_that_is_killed_harms_nobody_and_leaves_nothing(
    spawn, proxy: block.BlockProxy, device: block.BlockDevice, service: block.BlockService
) -> None:
    def work(pipe, address):
        from bulktransfer import block

        device = block.BlockDevice(address, buffers=4, buffer_size=1 << 20)
        pipe.send("ready")
        while True:
            device.write(512, b"k" * (1 << 20))
            device.read(512, 256)

    device.write(0, b"mine" * 1024)
    for _ in range(3):
        child = spawn(work, proxy.address)
        assert child.receive() == "ready"
        assert device.read(0) == b"mine" * 1024
        child.kill()
        assert device.read(0) == b"mine" * 1024
        device.write(1, b"more" * 1024)
    assert eventually(lambda: proxy.statistics()["here"] == 1)
    assert eventually(lambda: service.statistics()["clients"] == 1)
    maps = Path("/proc/self/maps").read_text
    assert eventually(lambda: maps().count("memfd") <= 40), maps()


def test_a_client_that_is_killed_is_not_connected(spawn, service: block.BlockService) -> None:
    child = spawn(client, service.address)
    with device_at("shm:proxy") as device:
        device.write(0, b"x" * 4096)
        child.kill()
        with pytest.raises(block.NotConnectedError):
            device.read(0)
    assert eventually(lambda: service.statistics()["clients"] == 0)


def client(pipe, server, *more):
    import sys

    from bulktransfer.cli.main import main

    sys.exit(main(["block", "client", "shm:proxy", "--connect", server, *more]))


def test_a_server_that_answers_something_else_is_given_up() -> None:
    """An acknowledgement of what was not asked is none."""
    specs = [
        bulk.ChannelSpec(direction=direction, trust=bulk.Trust.NONE, meta_size=META_SIZE)
        for direction in (bulk.Direction.RX, bulk.Direction.TX)
    ]
    with bulk.listen("tcp://127.0.0.1:0", specs, domain=bulk.Domain()) as listener:

        def answer() -> None:
            for channel in listener.accept(timeout=30):
                channel.close()  # the first look of the client
            up, down = listener.accept(timeout=30)
            with contextlib.suppress(bulk.BulkError):
                while True:
                    event = up.receive_buffer(timeout=30)
                    operation, request = event.meta[0], int.from_bytes(event.meta[8:16], "little")
                    wrong = operation == Operation.WRITE
                    up.pass_(event.buffer, Answer(operation, Status.OK, request + wrong, SIZE, 0, 4096).pack())
            up.close()
            down.close()

        thread = threading.Thread(target=answer)
        thread.start()
        with between(listener.address) as proxy, device_at(proxy.address) as device:
            with pytest.raises(block.NotConnectedError):
                device.write(0, b"x" * 4096)
            with pytest.raises(block.NotConnectedError, match="answered something else"):
                device.write(0, b"x" * 4096)
        thread.join()


# -- the cache -----------------------------------------------------------------------------------------------------


def test_what_was_read_before_is_not_sent_again_and_is_never_old(
    service: block.BlockService, store: block.Store
) -> None:
    with (
        between(service.address, cache_bytes=1 << 20) as proxy,
        device_at(proxy.address) as mine,
        device_at(proxy.address) as beside,
        device_at(service.address) as elsewhere,
    ):
        for n, (writer, act) in enumerate(
            [
                (mine, "write"),
                (beside, "write"),
                (elsewhere, "write"),
                (elsewhere, "trim"),
                (elsewhere, "write"),
                (elsewhere, "write_zeroes"),
            ]
        ):
            if act == "write":
                writer.write(40, bytes([n + 1]) * 8192)
            else:
                getattr(writer, act)(40, 2)
            expected = store.read(40 * 4096, 8192)
            before = proxy.statistics()["kept"]
            assert mine.read(40, 2) == expected
            assert proxy.statistics()["kept"] == before
            assert mine.read(40, 2) == beside.read(40, 2) == expected
            assert proxy.statistics()["kept"] == before + 2
        assert mine.read(100) == bytes(4096)  # of another part
        before = proxy.statistics()["kept"]
        elsewhere.write(100, b"x" * 4096)
        assert mine.read(40, 2) == bytes(8192)
        assert proxy.statistics()["kept"] > before
        with pytest.raises(block.BadBlockError):
            device_at_the_end(mine)


def device_at_the_end(device: block.BlockDevice) -> None:
    device.size_bytes += 4096  # a user that does not care
    device.read(BLOCKS)


def test_a_new_server_has_none_of_the_old_ones_versions(tmp_path: Path) -> None:
    with (
        block.FileStore(tmp_path / "image", create_bytes=SIZE) as store,
        running({"": store}, "tcp://127.0.0.1:0") as first,
        between(first.address, cache_bytes=1 << 20, reconnect=30.0) as proxy,
        device_at(proxy.address) as device,
    ):
        assert device.read(3) == bytes(4096)
        assert device.read(3) == bytes(4096)
        assert proxy.statistics()["kept"] == 1
        first.stop()
        assert eventually(lambda: proxy.statistics()["lost"] == 1)
        store.write(3 * 4096, b"n" * 4096)  # nobody was told
        with running({"": store}, first.address):
            assert device.read(3) == b"n" * 4096
            assert device.read(3) == b"n" * 4096
            assert proxy.statistics()["kept"] == 2


def test_a_cache_keeps_its_limit_and_forgets_what_was_used_longest_ago() -> None:
    cache = ReadCache(3 * 4096)
    messages = [Message(Operation.READ, 0, n, n, 0, 4096) for n in range(5)]
    for message in messages[:3]:
        cache.keep(b"", message, Kept(7, bytes(4096)))
    assert cache.find(b"", messages[0]) == Kept(7, bytes(4096))
    assert cache.find(b"other", messages[0]) is None
    cache.keep(b"", messages[3], Kept(8, bytes(4096)))
    assert cache.find(b"", messages[1]) is None
    assert cache.size_bytes == 3 * 4096
    cache.keep(b"", messages[3], Kept(9, bytes(4096)))
    assert (cache.size_bytes, len(cache)) == (3 * 4096, 3)
    cache.keep(b"", Message(Operation.READ, 0, 9, 0, 0, 16384), Kept(9, bytes(16384)))
    assert len(cache) == 3


def test_a_range_has_no_version_while_it_is_changed_and_another_afterwards() -> None:
    changes = Changes(1 << 40)
    part = changes.part_bytes
    before = changes.version(0, 4 * part)
    assert before != UNKNOWN
    with changes.changing(part + 5, 1):
        assert changes.version(0, part) == before
        assert changes.version(part, 1) == changes.version(0, 4 * part) == UNKNOWN
        with changes.changing(part, part):
            pass
        assert changes.version(part, 1) == UNKNOWN  # the first is still at it
    assert changes.version(part, 1) == changes.version(0, 4 * part) > before
    assert changes.version(2 * part, part) == before
    with pytest.raises(OSError, match="broken"), changes.changing(0, 1):
        raise OSError("broken")  # half of it may be there
    assert changes.version(0, 1) > changes.version(part, 1)
    assert Changes(4096).version(0, 4096) != Changes(4096).version(0, 4096)


def test_the_command_serves_and_ends_in_order(spawn, service: block.BlockService) -> None:
    child = spawn(client, service.address)
    with device_at("shm:proxy") as device:
        device.write(3, b"x" * 4096)
        assert device.read(3) == b"x" * 4096
        child.signal(signal.SIGTERM)
        output = child.join()
        with pytest.raises(block.NotConnectedError):
            device.read(3)
    assert "serving blocks at shm:proxy" in output
    assert json.loads(output.splitlines()[-1])["answers"] >= 3


def test_the_command_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    from bulktransfer.cli.main import main

    assert main(["block", "client", "shm:p", "--connect", "tcp://127.0.0.1:1", "--timeout", "0.05"]) == 2
    assert "nobody serves" in capsys.readouterr().err
    assert main(["block", "client", "shm:p", "--connect", "nowhere:1"]) == 2
    assert "nowhere" in capsys.readouterr().err
