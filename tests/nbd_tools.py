"""A plain NBD client for tests, which says what it is told to, right or wrong."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from bulktransfer.block import Store
from bulktransfer.block.nbd import wire
from bulktransfer.block.nbd.server import ExportTable, Server


class Reply(NamedTuple):
    """A whole reply: an error number, or contents, or extents."""

    cookie: int
    error: int
    data: bytes
    extents: list[tuple[int, int]]
    chunks: list[int]


class Client:
    """Speaks over a connected socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(30)
        self.structured = self.extended = False
        self.size = self.flags = 0

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def take(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            piece = self.sock.recv(length - len(data))
            if not piece:
                raise EOFError(f"the server ended after {data!r}")
            data += piece
        return data

    def ended(self) -> bool:
        """Whether the server has closed (reads what it still says)."""
        try:
            while self.sock.recv(1 << 16):
                continue
        except ConnectionResetError:
            return True
        return True

    # -- negotiation

    def greet(self, flags: int = 3) -> int:
        magic, option_magic, server = wire.GREETING.unpack(self.take(wire.GREETING.size))
        assert (magic, option_magic) == (wire.NBD_MAGIC, wire.OPTION_MAGIC)
        self.sock.sendall(wire.CLIENT_FLAGS.pack(flags))
        return server

    def option(self, option: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """Send an option; its replies, to the last."""
        self.sock.sendall(wire.OPTION.pack(wire.OPTION_MAGIC, option, len(data)) + data)
        replies = []
        while True:
            magic, echoed, kind, length = wire.OPTION_REPLY.unpack(self.take(wire.OPTION_REPLY.size))
            assert magic == wire.OPTION_REPLY_MAGIC
            assert echoed == option
            replies.append((kind, self.take(length)))
            if kind == wire.OptionReply.ACK or kind & 1 << 31:
                return replies

    def agree(
        self, *, name: str = "", structured: bool = True, allocation: bool = True, extended: bool = False
    ) -> None:
        """From the greeting to the transmission."""
        self.greet()
        if extended:
            assert self.option(wire.Option.EXTENDED_HEADERS)[-1][0] == wire.OptionReply.ACK
        elif structured:
            assert self.option(wire.Option.STRUCTURED_REPLY)[-1][0] == wire.OptionReply.ACK
        if structured and allocation:
            replies = self.option(
                wire.Option.SET_META_CONTEXT, text(name) + struct.pack(">I", 1) + text("base:allocation")
            )
            assert [kind for kind, _ in replies] == [wire.OptionReply.META_CONTEXT, wire.OptionReply.ACK]
        self.go(name)
        self.structured, self.extended = structured or extended, extended

    def go(self, name: str = "") -> None:
        replies = self.option(wire.Option.GO, text(name) + b"\0\0")
        assert replies[-1][0] == wire.OptionReply.ACK, replies
        _, self.size, self.flags = wire.INFO_EXPORT.unpack(replies[0][1])

    # -- transmission

    def send(
        self, command: int, offset: int = 0, length: int = 0, *, flags: int = 0, cookie: int = 1, payload: bytes = b""
    ) -> None:
        if self.extended:
            if payload:
                flags |= wire.CommandFlag.PAYLOAD_LEN
            head = wire.EXTENDED_REQUEST.pack(wire.EXTENDED_REQUEST_MAGIC, flags, command, cookie, offset, length)
        else:
            head = wire.REQUEST.pack(wire.REQUEST_MAGIC, flags, command, cookie, offset, length)
        self.sock.sendall(head + payload)

    def reply(self, reading: Callable[[int], int] = lambda cookie: 0) -> Reply:
        """The next reply; `reading`: how many bytes the request with a cookie reads (a simple reply does not say)."""
        (magic,) = struct.unpack(">I", self.take(4))
        if magic == wire.SIMPLE_REPLY_MAGIC:
            error, cookie = struct.unpack(">IQ", self.take(12))
            return Reply(cookie, error, b"" if error else self.take(reading(cookie)), [], [])
        return self._chunks(magic)

    def _chunks(self, magic: int) -> Reply:
        error, data, extents, kinds = 0, {}, [], []
        while True:
            if magic == wire.EXTENDED_REPLY_MAGIC:
                flags, kind, cookie, _, length = struct.unpack(">HHQQQ", self.take(28))
            else:
                assert magic == wire.STRUCTURED_REPLY_MAGIC
                flags, kind, cookie, length = struct.unpack(">HHQI", self.take(16))
            body = self.take(length)
            kinds.append(kind)
            if kind == wire.Chunk.OFFSET_DATA:
                data[struct.unpack_from(">Q", body)[0]] = body[8:]
            elif kind == wire.Chunk.OFFSET_HOLE:
                at, count = wire.HOLE.unpack(body)
                data[at] = bytes(count)
            elif kind == wire.Chunk.BLOCK_STATUS:
                extents = list(wire.EXTENT.iter_unpack(body[4:]))
            elif kind == wire.Chunk.BLOCK_STATUS_EXT:
                extents = list(wire.EXTENDED_EXTENT.iter_unpack(body[8:]))
                assert struct.unpack_from(">I", body, 4)[0] == len(extents)
            elif kind & 1 << 15:
                (error,) = struct.unpack_from(">I", body)
            if flags & wire.CHUNK_DONE:
                return Reply(cookie, error, b"".join(data[at] for at in sorted(data)), extents, kinds)
            (magic,) = struct.unpack(">I", self.take(4))

    def ask(self, command: int, offset: int = 0, length: int = 0, *, flags: int = 0, payload: bytes = b"") -> Reply:
        """One request and its reply."""
        self.send(command, offset, length, flags=flags, payload=payload, cookie=77)
        reply = self.reply(lambda cookie: length if command == wire.Command.READ else 0)
        assert reply.cookie == 77
        return reply

    def write(self, offset: int, data: bytes, *, flags: int = 0) -> int:
        return self.ask(wire.Command.WRITE, offset, len(data), flags=flags, payload=data).error

    def read(self, offset: int, length: int, *, flags: int = 0) -> bytes:
        reply = self.ask(wire.Command.READ, offset, length, flags=flags)
        assert not reply.error, reply
        return reply.data


def text(words: str) -> bytes:
    encoded = words.encode()
    return struct.pack(">I", len(encoded)) + encoded


def make_certificate(directory: Path) -> Path:
    """Put a certificate that signs itself, and its key, where GnuTLS's clients look for them."""
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            *("-keyout", "server-key.pem", "-out", "ca-cert.pem"),
        ],
        cwd=directory,
        check=True,
        capture_output=True,
    )
    return directory


class Served:
    """A server in a thread of this process."""

    def __init__(self, server: Server, address: str) -> None:
        self.server = server
        self.address = address

    def connect(self) -> Client:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(self.address)
        return Client(sock)

    def agreed(self, **how: object) -> Client:
        client = self.connect()
        client.agree(**how)
        return client


@contextlib.contextmanager
def serving(directory: object, exports: ExportTable | Store, **options: object) -> Iterator[Served]:
    """A running server over a UNIX socket in `directory`."""
    table = exports if isinstance(exports, ExportTable) else ExportTable({None: exports})
    listener = socket.socket(socket.AF_UNIX)
    address = f"{directory}/nbd.sock"
    listener.bind(address)
    listener.listen()
    server = Server(table, **options)
    thread = threading.Thread(target=server.serve, args=([listener],), kwargs={"patience_s": 2.0})
    thread.start()
    try:
        yield Served(server, address)
    finally:
        server.stop()
        thread.join()
