"""The block service over bulk channels: devices, many of them, and peers that break the rules or vanish."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import bulktransfer as bulk
from bulktransfer import block
from bulktransfer.block.errors import Status
from bulktransfer.block.nbd.wire import Command, CommandFlag
from bulktransfer.block.service.messages import Answer, Message, Operation, unpack_answer
from nbd_tools import serving

SIZE = 4 << 20
BLOCKS = SIZE // 4096


@contextlib.contextmanager
def running(exports: dict[str, block.Store], address: str = "shm:", **options: object) -> Iterator[block.BlockService]:
    service = block.BlockService(address, exports, domain=bulk.Domain(), **options)
    thread = threading.Thread(target=service.serve)
    thread.start()
    try:
        yield service
    finally:
        service.stop()
        thread.join()


def device_at(address: str, **options: object) -> block.BlockDevice:
    """A device in a domain of its own, as another process would have it."""
    return block.BlockDevice(address, domain=bulk.Domain(), **options)


@pytest.fixture(params=["memory", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[block.Store]:
    if request.param == "memory":
        made = block.open_store(f"memory:{SIZE}")
    else:
        made = block.open_store(f"file:{tmp_path / 'image'}", create_bytes=SIZE)
    with made:
        yield made


@pytest.fixture
def service(store: block.Store) -> Iterator[block.BlockService]:
    with running({"": store}) as made:
        yield made


@pytest.fixture
def device(service: block.BlockService) -> Iterator[block.BlockDevice]:
    with device_at(service.address, buffers=4, buffer_size=64 << 10) as made:
        yield made


# -- what a device does --------------------------------------------------------------------------------------------


def test_blocks_go_in_and_out(device: block.BlockDevice, store: block.Store) -> None:
    assert (device.size_bytes, device.block_size, device.block_count) == (SIZE, 4096, BLOCKS)
    data = random.Random(1).randbytes(100 * 4096)  # more than all buffers together
    device.write(7, data)
    assert device.read(7, 100) == data
    assert store.read(7 * 4096, len(data)) == data
    into = bytearray(4096)
    device.read_into(8, into)
    assert into == data[4096:8192]
    device.write(0, b"s" * 4096, fua=True)
    device.flush()


def test_batches_take_one_notification_and_keep_their_order(device: block.BlockDevice) -> None:
    device.write_many((n, bytes([n % 256]) * 4096) for n in range(300))
    runs = [(n, 1 + n % 3) for n in range(0, 297, 3)]
    for (first, count), contents in zip(runs, device.read_many(runs), strict=True):
        assert contents == b"".join(bytes([n % 256]) * 4096 for n in range(first, first + count))


def test_the_basic_work_load_of_the_report(device: block.BlockDevice) -> None:
    """I-7.5: write, await the status, read, check."""
    for run in range(10):
        device.write(run % 10, bytes([(run % 10 + 5) % 255]) * 4096)
        assert device.read(run % 10) == bytes([(run % 10 + 5) % 255]) * 4096


def test_trim_zeroes_and_extents(device: block.BlockDevice) -> None:
    device.write(0, b"x" * SIZE)
    device.trim(16, 32)
    device.write_zeroes(64, 16, may_trim=False)
    assert device.read(16, 32) == bytes(32 * 4096)
    assert device.read(64, 16) == bytes(16 * 4096)
    assert device.read(15) + device.read(48) == b"x" * 8192
    runs = device.extents_at(0, SIZE)
    assert sum(run.length for run in runs) == SIZE
    assert runs[1] == block.Extent(32 * 4096, hole=True, zero=True)


def test_blocks_go_past_the_page_cache_from_and_into_bulk_buffers(tmp_path: Path) -> None:
    """Received buffers are whole pages: what O_DIRECT needs."""

    class Watched(block.FileStore):
        direct_uses = 0
        uses = 0

        def _descriptor(self, offset: int, memory: memoryview) -> int:
            fd = super()._descriptor(offset, memory)
            self.uses += 1
            self.direct_uses += fd == self._direct_fd
            return fd

    with Watched(tmp_path / "image", create_bytes=SIZE, direct=True) as store, running({"": store}) as service:
        with device_at(service.address, buffers=4, buffer_size=64 << 10) as device:
            data = random.Random(9).randbytes(300 * 4096)
            device.write(5, data, fua=True)
            assert device.read(5, 300) == data
        assert store.direct_uses == store.uses >= 2 * 300 // 16


def test_more_extents_than_a_buffer_holds(tmp_path: Path) -> None:
    with block.FileStore(tmp_path / "image", create_bytes=SIZE) as store:
        for n in range(0, BLOCKS, 2):
            store.write(n * 4096, b"x")
        store.flush()
        expected = list(store.extents(0, SIZE))
        with running({"": store}) as service, device_at(service.address, buffer_size=4096) as device:
            assert device.extents_at(0, SIZE) == expected
            assert len(expected) > 4096 // 16 or len(expected) < 3  # a file system may be coarser


def test_contents_can_be_borrowed_where_they_came(device: block.BlockDevice) -> None:
    device.write(3, b"b" * 8192)
    for _ in range(9):  # more often than there are buffers
        with device.borrow(3, 2) as contents:
            assert contents.readonly is False  # the buffer is this side's until it is given back
            assert bytes(contents) == b"b" * 8192
    with pytest.raises(block.NoBuffersError), device.borrow(0, 100):
        pass


def test_contents_stream_in_order_where_they_came(device: block.BlockDevice, store: block.Store) -> None:
    data = random.Random(3).randbytes(SIZE)
    store.write(0, data)
    found = bytearray()
    for contents in device.stream():
        found += contents
        assert len(contents) <= device.buffer_size
    assert found == data
    for contents in device.stream(3, 100):
        assert contents[:4096] == data[3 * 4096 : 4 * 4096]
        break  # the rest is asked for, and nobody wants it
    assert [bytes(contents) for contents in device.stream(BLOCKS - 1)] == [data[-4096:]]
    assert list(device.stream(0, 0)) == []
    with pytest.raises(block.BadBlockError):
        device.stream(BLOCKS - 1, 2)
    assert device.read(0, 100) == data[: 100 * 4096]  # every buffer is back


def test_contents_are_composed_in_order_in_the_buffers_that_go(device: block.BlockDevice, store: block.Store) -> None:
    data = random.Random(4).randbytes(200 * 4096)
    at = 0
    for view in device.compose(3, 200, fua=True):
        view[:] = data[at : at + len(view)]
        at += len(view)
    assert at == len(data)
    assert store.read(3 * 4096, len(data)) == data
    for number, view in enumerate(device.compose(300, 100)):
        view[:] = b"c" * len(view)
        if number == 3:
            break  # three were sent, and are written; the fourth was not
    device.flush()
    written = 3 * device.buffer_size
    assert device.read(300, 100) == b"c" * written + bytes(100 * 4096 - written)
    with pytest.raises(block.BadBlockError):
        device.compose(BLOCKS, 1)
    device.size_bytes += 4096  # a user that does not care: the server's refusal comes when all are sent
    views = device.compose(BLOCKS, 1)
    next(views)[:] = b"o" * 4096
    with pytest.raises(block.BadBlockError):
        next(views)
    device.write(0, b"o" * 100 * 4096)  # every buffer is back


def test_a_device_is_a_file(device: block.BlockDevice) -> None:
    with io.BufferedRandom(device.raw()) as file:
        file.seek(1000)
        file.write(b"text over a border" * 1000)
        file.flush()
        file.seek(1000)
        assert file.read(18_000) == b"text over a border" * 1000
        assert file.seek(0, io.SEEK_END) == SIZE
        assert file.read() == b""
    raw = device.raw()
    raw.seek(SIZE - 2)
    assert raw.write(b"abc") == 2
    with pytest.raises(OSError, match="end of") as caught:
        raw.write(b"d")
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(ValueError, match="seek"):
        raw.seek(-1)
    raw.close()
    assert device.read(BLOCKS - 1)[-2:] == b"ab"


def test_asyncio_forms(device: block.BlockDevice) -> None:
    async def work() -> None:
        await asyncio.gather(*(device.awrite(n, bytes([n]) * 4096) for n in range(40)))
        await device.aflush()
        contents = await asyncio.gather(*(device.aread(n) for n in range(40)))
        assert contents == [bytes([n]) * 4096 for n in range(40)]
        await device.awrite_many([(50, b"a" * 4096), (51, b"b" * 4096)], fua=True)
        assert await device.aread_many([(50, 1), (51, 1)]) == [b"a" * 4096, b"b" * 4096]
        await device.atrim(50, 1)
        await device.awrite_zeroes(51, 1)
        assert await device.aread(50, 2) == bytes(8192)

    asyncio.run(work())


def test_many_threads_share_a_device(device: block.BlockDevice) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        rng = random.Random(number)
        try:
            for turn in range(25):
                at = number * 64 + rng.randrange(40)
                data = bytes([number * 25 + turn & 255]) * 4096 * rng.randrange(1, 20)
                device.write(at, data)
                assert device.read(at, len(data) // 4096) == data
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_exports_have_names(store: block.Store) -> None:
    with block.MemoryStore(8192) as other, running({"": store, "other": other}) as service:
        with device_at(service.address, export="other") as device:
            assert device.block_count == 2
            assert device.exports() == ["", "other"]
            device.write(0, b"o" * 4096)
        with device_at(service.address) as device:
            assert device.read(0) == bytes(4096)
        with pytest.raises(block.BadRequestError):
            device_at(service.address, export="none")
        assert other.read(0, 1) == b"o"


def test_a_read_only_service_refuses_changes_on_both_sides(store: block.Store) -> None:
    with running({"": store}, read_only=True) as service, device_at(service.address) as device:
        assert device.read_only
        assert not device.raw().writable()
        for act in (lambda: device.write(0, bytes(4096)), lambda: device.trim(0), lambda: device.write_zeroes(0)):
            with pytest.raises(block.ReadOnlyError):
                act()
        device.read_only = False  # a client that does not care
        for act in (lambda: device.write(0, bytes(4096)), lambda: device.trim(0), lambda: device.write_zeroes(0)):
            with pytest.raises(block.ReadOnlyError):
                act()
        assert device.read(0) == bytes(4096)


def test_what_cannot_be_is_refused_before_it_is_sent(device: block.BlockDevice, service: block.BlockService) -> None:
    before = service.statistics()
    for act, kind in [
        (lambda: device.read(BLOCKS), block.BadBlockError),
        (lambda: device.read(0, BLOCKS + 1), block.BadBlockError),
        (lambda: device.read(-1), block.BadRequestError),
        (lambda: device.write(BLOCKS, bytes(4096)), block.BadBlockError),
        (lambda: device.write(0, b"not a block"), block.BadRequestError),
        (lambda: device.read_into(0, bytearray(100)), block.BadRequestError),
        (lambda: device.read_many([(0, 1), (BLOCKS, 1)]), block.BadBlockError),
        (lambda: device.write_many([(0, bytes(4096)), (BLOCKS, bytes(4096))]), block.BadBlockError),
        (lambda: device.trim(BLOCKS), block.BadBlockError),
    ]:
        with pytest.raises(kind):
            act()
    assert service.statistics() == before


def test_statistics_count_what_was_done(service: block.BlockService, store: block.Store) -> None:
    with device_at(service.address) as one, device_at(service.address) as two:
        one.write(0, bytes(8192))
        two.read(0, 3)
        counts = service.statistics()
    assert counts["clients"] == 2
    assert (counts["write"], counts["read"], counts["bytes"]) == (1, 1, 5 * 4096)
    with device_at(service.address) as three:
        three.flush()
        counts = service.statistics()
        assert (counts["write"], counts["read"], counts["hello"]) == (1, 1, 3)


# -- the faults of the first implementation (W28), and peers that break the rules ----------------------------------


class RawClient:
    """A client that sends what it likes."""

    def __init__(self, address: str, *, hello: bool = True, size: int = 4096, count: int = 8) -> None:
        domain = bulk.Domain()
        self.up, self.down = bulk.connect(address, domain=domain)
        self.writes = bulk.Allocator(count=count, size=size, domain=domain)
        self.reads = bulk.Allocator(count=count, size=size, domain=domain)
        self.up.assign_pool(self.writes.pool)
        self.down.assign_pool(self.reads.pool)
        if hello:
            assert self.ask_up(Message(Operation.HELLO, 0, 1)).status == Status.OK

    def send_up(self, meta: bytes, contents: bytes = b"") -> bulk.Buffer:
        buffer = self.writes.alloc()
        buffer.put(contents)
        self.up.move(buffer, meta)
        return buffer

    def send_down(self, meta: bytes) -> bulk.Buffer:
        buffer = self.reads.alloc()
        buffer.put(b"stale" * 800)
        self.down.pass_(buffer, meta)
        return buffer

    def ask_up(self, message: Message, contents: bytes = b"") -> Answer:
        buffer = self.send_up(message.pack(), contents)
        event = self.up.receive_buffer(timeout=30)
        assert event.buffer is buffer
        self.writes.free(buffer)
        return unpack_answer(event.meta)

    def ask_down(self, meta: bytes) -> tuple[Answer, bytes]:
        buffer = self.send_down(meta)
        event = self.down.receive_buffer(timeout=30)
        assert event.buffer is buffer
        contents = buffer.tobytes()
        self.reads.free(buffer)
        return unpack_answer(event.meta), contents

    def nothing_more(self) -> bool:
        """Whether no answer is left over: a later request gets the very next one."""
        ok = self.ask_up(Message(Operation.FLUSH, 0, 4711)) == Answer(Operation.FLUSH, Status.OK, 4711)
        answer, _ = self.ask_down(Message(Operation.READ, 0, 4712, 0, 0, 4096).pack())
        return ok and answer == Answer(Operation.READ, Status.OK, 4712, 0, 0, 4096)

    def close(self) -> None:
        for thing in (self.up, self.down, self.writes, self.reads):
            thing.close()


@pytest.fixture
def raw(service: block.BlockService) -> Iterator[RawClient]:
    client = RawClient(service.address)
    yield client
    client.close()


def test_a_bad_block_is_answered_once_and_without_stale_contents(raw: RawClient) -> None:
    answer, contents = raw.ask_down(Message(Operation.READ, 0, 7, BLOCKS, 0, 4096).pack())
    assert answer == Answer(Operation.READ, Status.BAD_BLOCK_ID, 7, BLOCKS)
    assert contents == b""
    answer, contents = raw.ask_down(Message(Operation.READ, 0, 8, (1 << 64) - 1, 4095, 4096).pack())
    assert answer.status == Status.BAD_BLOCK_ID
    assert contents == b""
    assert raw.nothing_more()


def test_a_failed_write_is_answered_once_with_its_error(raw: RawClient, store: block.Store) -> None:
    asked = Message(Operation.WRITE, 0, 9, BLOCKS, 0, 4096)
    assert raw.ask_up(asked, b"w" * 4096) == Answer(Operation.WRITE, Status.BAD_BLOCK_ID, 9, BLOCKS)
    assert raw.nothing_more()
    assert not any(store.read(SIZE - 4096, 4096))


def test_every_answer_names_its_request_and_its_status_in_their_places(raw: RawClient) -> None:
    for request in (5, 1 << 40, (1 << 64) - 1):
        for block_id, status in ((3, Status.OK), (BLOCKS + 3, Status.BAD_BLOCK_ID)):
            answer = raw.ask_up(Message(Operation.WRITE, 0, request, block_id, 0, 4096), b"w" * 4096)
            assert (answer.request, answer.status, answer.block) == (request, status, block_id)
            answer, _ = raw.ask_down(Message(Operation.READ, 0, request, block_id, 0, 4096).pack())
            assert (answer.request, answer.status, answer.block) == (request, status, block_id)


@pytest.mark.parametrize(
    "meta",
    [
        b"",
        b"x",
        b"\xff" * 32,
        bytes(32),
        Message(Operation.READ, 0, 3).pack()[:-1],
        Message(99, 0, 3).pack(),
        Message(Operation.WRITE, 0, 3, 0, 4096, 1).pack(),
        Message(Operation.WRITE, 0, 3, 0, 0, 2).pack(),
        Message(Operation.READ, 0, 3, 0, 0, 0).pack(),
    ],
)
def test_an_unknown_request_is_answered(raw: RawClient, meta: bytes) -> None:
    answer, contents = raw.ask_down(meta)
    assert answer.status == Status.BAD_REQUEST
    assert contents == b""
    buffer = raw.send_up(meta, b"?")
    assert unpack_answer(raw.up.receive_buffer(timeout=30).meta).status == Status.BAD_REQUEST
    raw.writes.free(buffer)
    assert raw.nothing_more()


def test_a_read_larger_than_its_buffer_has_no_bufs(raw: RawClient) -> None:
    answer, contents = raw.ask_down(Message(Operation.READ, 0, 3, 0, 0, 8192).pack())
    assert (answer.status, contents) == (Status.NO_BUFS, b"")
    assert raw.nothing_more()


def test_a_successful_read_has_a_status_too(raw: RawClient) -> None:
    answer, contents = raw.ask_down(Message(Operation.READ, 0, 3, 0, 0, 512).pack())
    assert answer == Answer(Operation.READ, Status.OK, 3, 0, 0, 512)
    assert contents == bytes(512)


def test_a_copy_is_given_back_and_the_session_goes_on(raw: RawClient, service: block.BlockService) -> None:
    buffer = raw.writes.alloc()
    raw.up.copy(buffer, Message(Operation.WRITE, 0, 3, 0, 0, 4096).pack())
    assert raw.up.receive(timeout=30).kind is bulk.EventKind.COPY_RELEASED
    assert service.statistics()["refused"] == 1
    raw.writes.free(buffer)
    assert raw.nothing_more()


def test_nothing_is_served_before_an_export_is_chosen(service: block.BlockService) -> None:
    client = RawClient(service.address, hello=False)
    answer, contents = client.ask_down(Message(Operation.READ, 0, 3, 0, 0, 512).pack())
    assert (answer.status, contents) == (Status.NOT_CONNECTED, b"")
    assert client.ask_up(Message(Operation.FLUSH, 0, 4)).status == Status.NOT_CONNECTED
    assert client.ask_up(Message(Operation.HELLO, 0, 5), b"\xff").status == Status.BAD_REQUEST
    client.close()


def test_buffers_smaller_than_a_block_are_vetoed() -> None:
    with block.MemoryStore(1 << 20, block_size=64 << 10) as store, running({"": store}) as service:
        with pytest.raises(bulk.PoolVetoError, match="65536"):
            device_at(service.address, buffer_size=4096)
        with device_at(service.address, buffer_size=64 << 10) as device:
            assert device.read(15) == bytes(64 << 10)


def test_buffers_of_one_client_never_serve_another(service: block.BlockService) -> None:
    one, two = RawClient(service.address), RawClient(service.address)
    mine = [one.send_down(Message(Operation.READ, 0, n, n, 0, 4096).pack()) for n in range(8)]
    for n in range(4):
        assert two.ask_down(Message(Operation.READ, 0, n, n, 0, 4096).pack())[0].status == Status.OK
    assert [one.down.receive_buffer(timeout=30).buffer for _ in range(8)] == mine
    one.close()
    two.close()


def test_a_client_that_is_killed_harms_nobody(spawn, service: block.BlockService, device: block.BlockDevice) -> None:
    def work(pipe, address):
        from bulktransfer import block

        device = block.BlockDevice(address, buffers=4, buffer_size=1 << 20)
        pipe.send("ready")
        while True:
            device.write(512, b"k" * (1 << 20))
            device.read(512, 256)

    device.write(0, b"mine" * 1024)
    for _ in range(3):
        child = spawn(work, service.address)
        assert child.receive() == "ready"
        assert device.read(0) == b"mine" * 1024
        child.kill()
        assert device.read(0) == b"mine" * 1024
        device.write(1, b"more" * 1024)
    # its end is noticed, and its session forgotten
    waiting = threading.Event()
    for _ in range(200):
        if service.statistics()["clients"] == 1:
            break
        waiting.wait(0.05)
    assert service.statistics()["clients"] == 1


def serve(pipe, path):
    import sys

    from bulktransfer.cli.main import main

    sys.exit(
        main(["block", "serve", "shm:disks", "--store", f"file:{path}", "--create", "4M", "--store", "m=memory:1M"])
    )


def write_without_end(device: block.BlockDevice, first: int) -> None:
    while True:
        for n in range(first, BLOCKS):
            device.write(n, b"t" * 4096)


def test_a_server_that_is_killed_loses_nothing_that_was_flushed(spawn, tmp_path: Path) -> None:
    path = tmp_path / "image"
    flushed = 0
    for turn in range(3):
        child = spawn(serve, str(path))
        device = device_at("shm:disks", buffers=4, buffer_size=64 << 10)
        try:
            if flushed:
                assert [device.read(n)[:1] for n in range(0, flushed, 7)] == [
                    bytes([n % 251]) for n in range(0, flushed, 7)
                ]
            device.write_many((n, bytes([n % 251]) * 4096) for n in range(flushed, flushed + 100))
            device.flush()
            flushed += 100
            killer = threading.Timer(0.02 * turn, child.kill)
            killer.start()
            with pytest.raises(block.NotConnectedError):
                write_without_end(device, flushed)
            killer.join()
            with pytest.raises(block.NotConnectedError):
                device.read(0)
        finally:
            device.close()
    with block.FileStore(path) as store:
        for n in range(flushed):
            contents = store.read(n * 4096, 4096)
            assert contents in (bytes([n % 251]) * 4096, b"t" * 4096), f"block {n} is torn or lost"


def test_the_command_serves_exports_and_ends_in_order(spawn, tmp_path: Path) -> None:
    import json
    import signal

    child = spawn(serve, str(tmp_path / "image"))
    with device_at("shm:disks", export="m") as device:
        assert device.exports() == ["", "m"]
        device.write(3, b"x" * 4096)
        assert device.read(3) == b"x" * 4096
        child.signal(signal.SIGTERM)
        output = child.join()
        with pytest.raises(block.NotConnectedError):
            device.read(3)
    assert "serving blocks at shm:disks" in output
    assert json.loads(output.splitlines()[-1])["write"] == 1


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["shm:disks", "--store", "memory:1M", "--store", "memory:2M"], "two stores"),
        (["shm:disks", "--store", "a=disk:1M"], "no store"),
        (["nowhere:disks", "--store", "memory:1M"], "nowhere"),
    ],
)
def test_the_command_says_what_is_wrong(capsys: pytest.CaptureFixture[str], arguments: list[str], why: str) -> None:
    from bulktransfer.cli.main import main

    assert main(["block", "serve", *arguments]) == 2
    assert why in capsys.readouterr().err


def test_nobody_there_is_not_connected() -> None:
    with pytest.raises(block.NotConnectedError, match="nobody serves"):
        device_at("shm:nobody", timeout=0.05)


def test_a_device_that_was_closed_is_not_connected(service: block.BlockService) -> None:
    device = device_at(service.address)
    device.close()
    device.close()
    with pytest.raises(block.NotConnectedError):
        device.read(0)


def test_an_answer_that_takes_too_long_is_a_timeout_and_its_buffer_comes_back() -> None:
    class Slow(block.MemoryStore):
        go_on = threading.Event()

        def _flush(self) -> None:
            assert self.go_on.wait(30)

    with Slow(1 << 20) as store:
        try:
            with running({"": store}) as service, device_at(service.address, buffers=1, timeout=1.0) as device:
                with pytest.raises(TimeoutError):
                    device.flush()
                with pytest.raises(block.NoBuffersError):
                    device.write(0, bytes(4096))
                assert device.read(0) == bytes(4096)
                store.go_on.set()
                device.write(0, b"w" * 4096)  # which takes the buffer of the late answer
                assert device.read(0) == b"w" * 4096
        finally:
            store.go_on.set()


# -- through NBD ---------------------------------------------------------------------------------------------------


def test_nbd_serves_what_a_block_service_serves(
    service: block.BlockService, rendezvous_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        block.RemoteStore(device_at(service.address)) as store,
        serving(rendezvous_dir, store) as served,
        served.agreed() as client,
    ):
        data = random.Random(5).randbytes((3 << 20) + 77)
        assert client.write(100, data, flags=CommandFlag.FUA) == 0
        assert client.read(99, len(data) + 2) == b"\0" + data + b"\0"
        assert client.ask(Command.FLUSH).error == 0
        assert client.ask(Command.TRIM, 0, 1 << 20).error == 0
        assert sum(length for length, _ in client.ask(Command.BLOCK_STATUS, 0, SIZE).extents) == SIZE
        assert client.ask(Command.READ, SIZE, 1).error == errno.EINVAL
        service.stop()
        reply = client.ask(Command.READ, 0, 4096)
        while not reply.error:
            reply = client.ask(Command.READ, 0, 4096)
        assert reply.error == errno.ESHUTDOWN
        monkeypatch.setattr(store, "_flush", lambda: None)  # the server's own end would fail, as it must
