"""A channel of the library against bytes: each few of them are one act of a raw peer, right, nearly right, or wrong.

The library's side is this process. It may end the channel with a typed error and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
from typing import Any

import bulktransfer as bulk
from adversary import raw
from bulktransfer import Direction, Trust

LEVELS = (Trust.FULL, Trust.HALF, Trust.NONE)
WORDS = (raw.TAIL, raw.CONSUMED, raw.REFUSED, raw.SLEEP_DATA, raw.SLEEP_SPACE, raw.FILLED, raw.EMPTIED, raw.GRANTED)
COUNT = 4
NUMBERS = (0, 1, 2, 3, 4, 5, 7, 8, 64, 4095, 4096, 4097, 2**31, 2**32 - 1, 2**63, 2**64 - 1)


class Bytes:
    """The input, taken from the front; zeros when it is used up."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    @property
    def left(self) -> bool:
        return self.at < len(self.data)

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1] if self.at <= len(self.data) else 0

    def number(self, most: int = 2**64 - 1) -> int:
        """Mostly small or at an edge."""
        first = self.byte()
        return (NUMBERS[first % 16] if first < 192 else first - 192) & most


def act(end: raw.End, given: Bytes) -> None:
    """One act of the peer."""
    what = given.byte() % 12
    if what < 4:  # a transfer
        kind = given.byte() % 9
        contents = os.urandom(given.byte() % 70) if given.byte() % 2 else b""
        serial = end.stage(contents) if end.terms.stage_size and end.source and contents else end.staged
        end.put(
            kind, flags=given.byte() % 8, slot=given.number(2**32 - 1), index=given.number(2**32 - 1),
            length=len(contents) or given.number(), serial=given.number() if given.byte() % 4 == 3 else serial,
            meta_size=given.byte() % 50,
        )  # fmt: skip
    elif what < 7:  # a proper message, or a proper one with odd numbers
        say(end, given)
    elif what == 7:
        end.say(bytes(given.byte() for _ in range(given.byte() % 40)) or b"x")
    elif what == 8:
        at = WORDS[given.byte() % len(WORDS)]
        end.store(at, end.load(at) + given.number() if given.byte() % 2 else given.number())
    elif what == 9:
        for _ in end.entries():
            continue
        while (heard := end.hear()) is not None:
            for fd in heard[1]:
                os.close(fd)
    elif what == 10:
        end.put(raw.CONTROL, serial=end.messages)
    else:
        end.bell()


def say(end: raw.End, given: Bytes) -> None:
    request, slot = given.number(2**32 - 1), given.byte() % 4
    kind = given.byte() % 8
    with_memory: list[int] = []
    if kind == 0:
        body = end.request(
            request=request, slot=slot, pool=bytes([given.byte() % 3]) * 16, count=1 + given.byte() % 6,
            size=4096 * (1 + given.byte() % 2), exposed=given.byte() % 5,
        )  # fmt: skip
    elif kind == 1:
        body = raw.message(raw.ASSIGN_MEMORY, "I", request)
        if given.byte() % 2 and end.terms.trust != raw.NONE:
            read_end, write_end = os.pipe()
            os.close(read_end)
            with_memory = [raw.memory(4096 * (1 + given.byte() % 8)), write_end]
    elif kind in (2, 3, 4):
        body = raw.answer(
            (raw.ASSIGN_ANSWER, raw.ASSIGN_DONE, raw.REMOVE_ANSWER)[kind - 2], request, given.byte() % 3, "r"
        )
    elif kind == 5:
        body = raw.message(raw.REMOVE_REQUEST, "IH", request, slot)
    elif kind == 6:
        body = raw.message(raw.WITHDRAW, "I", request)
    else:
        body = raw.message(raw.TEARDOWN, text="", more=bytes([given.byte() % 2]))
    end.say(body, with_memory)
    for fd in with_memory:
        os.close(fd)


def live(channel: Any, alloc: Any, given: Bytes) -> None:
    """What the library's user does meanwhile."""
    choice = given.byte() % 4
    if choice == 0 and not channel.pools and channel.state is bulk.ChannelState.CONNECTED and channel.is_source:
        with contextlib.suppress(bulk.PoolAlreadyAssignedError):  # the answer has not come
            channel.assign_pool(alloc.pool, done=lambda outcome: None)
    elif choice == 1 and alloc.pool in channel.pools and alloc.available:
        (channel.move if given.byte() % 2 else channel.copy)(alloc.alloc(), b"m", lambda outcome: None)
    for _ in range(8):
        event = channel.receive_nowait()
        buffer = event.buffer
        if buffer is not None and buffer.state is not bulk.BufferState.INVALID:
            assert len(buffer.tobytes()) == buffer.length <= buffer.size
            assert len(event.meta) <= 40
            if not channel.is_source:
                channel.give_back(buffer, when_unused=True)


class Victim:
    """The library's side, in a directory of its own."""

    def __init__(self) -> None:
        self.domain = bulk.Domain()
        self.directory = tempfile.mkdtemp(prefix="bulk-fuzz-")

    def __enter__(self) -> Victim:
        self.before = os.environ.get("BULKTRANSFER_DIR")
        os.environ["BULKTRANSFER_DIR"] = self.directory
        return self

    def __exit__(self, *exc: object) -> None:
        del os.environ["BULKTRANSFER_DIR"]
        if self.before is not None:
            os.environ["BULKTRANSFER_DIR"] = self.before
        shutil.rmtree(self.directory)

    def connect(self, trust: Trust, direction: Direction) -> tuple[Any, raw.End]:
        """A channel and its raw peer."""
        channel = bulk.create(
            "shm:", direction=direction, trust=trust, meta_size=40, domain=self.domain, limits=bulk.Limits(slot_count=8)
        )
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.connect(f"{self.directory}/{channel.address.removeprefix('shm:')}")
        sock.send(raw.hello())
        while channel.state is not bulk.ChannelState.BIND_NEGOTIATE:
            self.domain.serve()
        data, fds = raw.receive(sock, 0)
        end = raw.make_end(sock, raw.read_welcome(data), fds[0])
        end.own.seal()
        end.send(raw.message(raw.CONFIRM), [end.own.fd])
        end.own.close_fd()
        while channel.state is not bulk.ChannelState.CONNECTED:
            self.domain.serve()
        return channel, end

    def fuzz(self, data: bytes) -> None:
        """One input: a channel from its beginning to its end."""
        given = Bytes(data)
        first = given.byte()
        channel, end = self.connect(LEVELS[first % 3], Direction.TX if first & 4 else Direction.RX)
        alloc = bulk.Allocator(count=COUNT, size=4096, domain=self.domain)
        try:
            while given.left:
                with contextlib.suppress(BlockingIOError, ConnectionError):
                    act(end, given)
                with contextlib.suppress(bulk.WouldBlock):
                    live(channel, alloc, given)
        except (bulk.ProtocolViolation, bulk.BrokenChannelError, bulk.EndOfChannelError):
            assert channel.ended is not None
        finally:
            channel.close()
            end.close()
            alloc.close()
