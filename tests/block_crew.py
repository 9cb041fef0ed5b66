"""The three domains of Figure 7.1 as processes that can be killed at any step, and a load that says what it did.

A step is a call or return of any function of `bulktransfer.block` in that process; `die_at` kills it there, as the
kernel would, before the next instruction.
"""

from __future__ import annotations

import os
import signal
import struct
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from bulktransfer import block

ROUNDS = 6
BLOCKS = 64
RUN = 16  # blocks of the one long write of a round
_STAMP = struct.Struct("<QQ")  # block, round


class Steps:
    """Counts the steps of this process, and ends it at one of them."""

    def __init__(self, die_at: int) -> None:
        self.count = 0
        self._die_at = die_at
        threading.setprofile(self)
        sys.setprofile(self)

    def __call__(self, frame: FrameType, event: str, arg: object) -> None:
        if event in ("call", "return") and "/bulktransfer/block/" in frame.f_code.co_filename:
            self.count += 1
            if self.count == self._die_at:
                os.kill(os.getpid(), signal.SIGKILL)


def contents(number: int, turn: int) -> bytes:
    """A block that says throughout which it is, and of which round."""
    return _STAMP.pack(number, turn) * (4096 // _STAMP.size)


def round_of(number: int, found: bytes) -> int:
    """The round that a block is of; 0: never written. Raises: AssertionError (torn, or another block's)."""
    if not any(found):
        return 0
    turn = _STAMP.unpack_from(found)[1]
    assert found == contents(number, turn), f"block {number} is torn: {found[:16].hex()} and others"
    return int(turn)


def written_in(turn: int) -> list[int]:
    """The blocks of one round: eight single ones, and a run at the end of the disk."""
    return [(turn * 5 + n * 7) % (BLOCKS - RUN) for n in range(8)] + list(range(BLOCKS - RUN, BLOCKS))


def serve(pipe: Any, path: str, address: str, die_at: int) -> None:
    """The network block service, on a file."""
    steps = Steps(die_at)
    with block.FileStore(path, create_bytes=BLOCKS * 4096) as store:
        service = block.BlockService(address, {"": store})
        signal.signal(signal.SIGTERM, lambda number, frame: service.stop())
        pipe.send(service.address)
        service.serve()
    pipe.send(steps.count)


def forward(pipe: Any, address: str, server: str, die_at: int) -> None:
    """The machine-local client."""
    steps = Steps(die_at)
    proxy = block.BlockProxy(address, server, reconnect=20.0)
    signal.signal(signal.SIGTERM, lambda number, frame: proxy.stop())
    pipe.send(proxy.address)
    proxy.serve()
    pipe.send(steps.count)


def use(pipe: Any, address: str, journal: str, first: int, die_at: int) -> None:
    """A user that writes rounds, flushes and reads each; the journal says what was begun and what was flushed."""
    steps = Steps(die_at)
    log = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with block.BlockDevice(address, buffers=8, buffer_size=RUN * 4096) as device:
            for turn in range(first, first + ROUNDS):
                os.write(log, f"begun {turn}\n".encode())
                numbers = written_in(turn)
                single, run = numbers[:-RUN], numbers[-RUN:]
                finish = device.begin_write_many((number, contents(number, turn)) for number in single[:4])
                device.write_many((number, contents(number, turn)) for number in single[4:])
                finish()
                device.write(run[0], b"".join(contents(number, turn) for number in run), fua=turn % 2 == 0)
                device.flush()
                os.write(log, f"flushed {turn}\n".encode())
                found = device.read_many([(number, 1) for number in single] + [(run[0], RUN)])
                assert b"".join(found) == b"".join(contents(number, turn) for number in numbers), "a read was wrong"
        pipe.send(("done", steps.count))
    except block.BlockError as error:
        pipe.send(("refused", str(error)))
    os.close(log)


def check(device: Any, journal: Path) -> None:
    """Everything that was flushed is there, and no block is anything but a whole one that was asked for."""
    begun: list[int] = []
    flushed: set[int] = set()
    for line in journal.read_text().splitlines():
        word, _, turn = line.partition(" ")
        if word == "begun":
            begun.append(int(turn))
        else:
            flushed.add(int(turn))
    for number in range(BLOCKS):
        turn = round_of(number, device.read(number))
        mine = [other for other in begun if number in written_in(other)]
        safe = max((other for other in mine if other in flushed), default=0)
        # a round that was not seen to its end may be there, and may not
        assert turn == safe or (turn in mine and turn > safe), (
            f"block {number} is of round {turn}; flushed {sorted(flushed)}, begun {begun}"
        )
