"""Attacks on the block service and its NBD port: clients that lie about sizes, flood, dawdle, and do not read."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading

import bulktransfer as bulk
from adversary.arena import resident_bytes
from adversary.registry import BOUNDED, REFUSED, attack
from bulktransfer import block
from bulktransfer.block.nbd import wire
from bulktransfer.block.service.messages import LAYOUT, Message
from nbd_tools import serving, text

SIZE = 1 << 20
NBD = ("nbd",)
BLOCK = ("block",)


@contextlib.contextmanager
def server(arena):
    with block.MemoryStore(SIZE) as store, serving(os.environ["BULKTRANSFER_DIR"], store) as served:
        yield served
        with served.agreed() as client:
            assert client.write(0, b"alive") == 0
            assert client.read(0, 5) == b"alive"
    arena.note("others are served")


@attack(NBD, "the connection ends; others are served")
def words_that_are_no_nbd(arena):
    """Greet with garbage, unknown flags, options of wrong magic, of 4 GiB, of more than there may be; names without
    end, counts beyond the data."""
    flags = struct.pack(">I", 3)

    def option(number, data=b"", length=None):
        return wire.OPTION.pack(wire.OPTION_MAGIC, number, len(data) if length is None else length) + data

    with server(arena) as served:
        for words in (
            os.urandom(100), bytes(4096), struct.pack(">I", 2**32 - 1), flags + os.urandom(200),
            flags + option(7, b"", 2**32 - 1), flags + option(1, bytes(5000)), flags + option(99) * 1100,
            flags + option(7, struct.pack(">I", 2**32 - 1) + b"name"),
            flags + option(10, text("") + struct.pack(">I", 2**32 - 1)),
            flags + option(6, text("x" * 5000) + b"\xff\xff"), flags + option(5), flags + option(2) + option(7),
        ):  # fmt: skip
            with served.connect() as client:
                client.take(18)
                with contextlib.suppress(ConnectionError):
                    client.sock.sendall(words)
                    client.sock.shutdown(socket.SHUT_WR)
                assert client.ended()


@attack(NBD, REFUSED)
def requests_beyond_the_export(arena):
    """Read and write beyond the end, with offsets and lengths that overflow, with unknown commands and flags, with
    payloads that never come."""
    with server(arena) as served:
        for command in range(12):
            for offset, length in ((SIZE, 1), (2**64 - 1, 1), (2**63, 2**31), (0, 2**32 - 1), (SIZE - 1, 2)):
                with served.agreed(structured=False) as client:
                    with contextlib.suppress(ConnectionError):
                        client.send(command, offset, length, flags=command * 7 % 64)
                        client.sock.shutdown(socket.SHUT_WR)
                    assert client.ended()
        with served.agreed() as client:
            assert client.ask(wire.Command.READ, SIZE, 1).error
            assert client.ask(wire.Command.TRIM, 2**64 - 1, 2).error
            assert client.read(0, 1) == b"\0"
            arena.note("the session goes on")


@attack(NBD, BOUNDED)
def a_client_that_asks_and_does_not_read(arena):
    """Fill the server's memory with replies: thousands of large reads, and not a byte taken."""
    before = resident_bytes()
    with server(arena) as served, served.agreed() as client:
        client.sock.settimeout(0.5)
        with contextlib.suppress(TimeoutError, ConnectionError):
            for cookie in range(5000):
                client.send(wire.Command.READ, 0, SIZE, cookie=cookie)
        assert resident_bytes() - before < 256 << 20
        arena.note("bounded")


@attack(NBD, "the connection ends; others are served")
def silent_and_slow_clients(arena):
    """Connect fifty times: say nothing, a byte, half a request, and stay."""
    with server(arena) as served:
        clients = [served.connect() for _ in range(50)]
        for number, client in enumerate(clients):
            client.sock.sendall(b"\0\0\0\3"[: number % 5])
        with served.agreed() as client:
            client.sock.sendall(wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, 1, 1, 0, 4096)[:20])
            with served.agreed() as other:
                assert other.read(0, 1) == b"\0"
        for client in clients:
            client.close()


@attack(BLOCK, REFUSED)
def messages_that_are_no_requests(arena):
    """Send the block service what is no request: empty and long meta data, unknown operations, blocks, offsets and
    lengths that overflow, replies, a hello again."""
    with block.MemoryStore(1 << 20) as store:
        service = block.BlockService("shm:", {"": store}, domain=bulk.Domain())
        thread = threading.Thread(target=service.serve)
        thread.start()
        try:
            up, down = bulk.connect(service.address, domain=arena.victim)
            with up, down:
                pools = [arena.world.allocator(arena.victim, count=2, size=4096) for _ in range(2)]
                up.assign_pool(pools[0].pool)
                down.assign_pool(pools[1].pool)
                hello = Message(1, 0, 1).pack()
                wrong = [b"", b"x", bytes(32), os.urandom(32), hello, hello]
                wrong += [Message(op, 255, 9, 2**64 - 1, 2**32 - 1, 2**64 - 1).pack() for op in range(12)]
                wrong += [Message(op, 0, 9, 2**63, 4095, 4096).pack() for op in range(12)]
                for meta in wrong:
                    for channel, alloc, send in ((up, pools[0], "move"), (down, pools[1], "pass_")):
                        buffer = alloc.alloc()
                        buffer.put(b"?" * 64)
                        getattr(channel, send)(buffer, meta[: LAYOUT.size])
                        answer = channel.receive_buffer(timeout=20)
                        assert answer.buffer is buffer
                        assert len(answer.meta) == LAYOUT.size
                        alloc.free(buffer)
            arena.note(f"{2 * len(wrong)} answered, each once")
            assert store.read(0, 4096) in (bytes(4096), b"?" * 64 + bytes(4032))
        finally:
            service.stop()
            thread.join()
