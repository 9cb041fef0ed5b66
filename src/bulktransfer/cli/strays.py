"""What the kernel refuses: a process that goes around the library, from C code, and what becomes of it.

Knows: where the memory of a channel lies in the process that misbehaves. Must not know: what is printed.

At trust HALF its own mapping of the shared pool no longer allows what the library would refuse. At NONE it has no
mapping of anything that the other process writes, but for the outbox that contents come through, which nobody but its
owner can make writable. At FULL nothing stands in its way.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import secrets
import signal
from typing import Any

import bulktransfer as bulk

from . import crew
from .crew import PATIENCE_S
from .refusal import Refusal

_OURS = b"what no other process can change"
_FAULT = "SIGSEGV"
_JUNK = b"\xee" * 64

MOVED, COPIED, MADE_WRITABLE, OUTBOX = (
    "write from C to a buffer that it has given away",
    "write from C to a copy that it may read",
    "have the kernel make the other's outbox writable",
    "write from C to the other's outbox",
)
BY_TRUST: dict[bulk.Trust, tuple[str, ...]] = {
    bulk.Trust.FULL: (),
    bulk.Trust.HALF: (MOVED, COPIED),
    bulk.Trust.NONE: (MADE_WRITABLE, OUTBOX),
}


def commit(trust: bulk.Trust) -> list[Refusal]:
    """Each of these by a process of its own, since it may not survive. Raises: crew.CrewError, BulkError."""
    return [_one(trust, tried) for tried in BY_TRUST.get(trust, ())]


def _one(trust: bulk.Trust, tried: str) -> Refusal:
    members: list[crew.Member] = []
    address = f"shm:demo-{secrets.token_hex(6)}"
    with (
        crew.watching(members),
        bulk.create(address, direction=bulk.Direction.TX, trust=trust) as channel,
        bulk.Allocator(count=2, size=4096) as frames,
    ):
        members.append(crew.process("the stray", stray, address, tried))
        channel.wait_bound(PATIENCE_S)
        channel.assign_pool(frames.pool, timeout=PATIENCE_S)
        buffers = frames.alloc_many(2)
        for buffer in buffers:
            buffer.put(_OURS)
        channel.move(buffers[0])
        channel.copy(buffers[1])
        channel.receive_buffer(PATIENCE_S)  # the first came back
        buffers[0].put(_OURS)
        said, ended = members[0].last_words()
        whole = all(buffer.tobytes() == _OURS for buffer in buffers)
    return judge(tried, said, ended, whole=whole)


def judge(tried: str, said: str | None, ended: int | None, *, whole: bool) -> Refusal:
    """What the process said (the error that it was told, or what it did), how it ended, and what it changed."""
    unharmed = "the owner's bytes are as they were" if whole else "the owner's bytes have changed"
    if tried == MADE_WRITABLE:
        expected = errno.errorcode[errno.EACCES]
        right = said == expected and whole
        return Refusal(tried, expected, said, f"the kernel refused it; {unharmed}" if right else unharmed, right)
    error = signal.Signals(-ended).name if ended is not None and ended < 0 else None
    right = error == _FAULT and said is None and whole
    text = f"the kernel ended the process; {unharmed}" if right else said or unharmed
    return Refusal(tried, _FAULT, error, text, right)


# --- the process that strays ---


def stray(pipe: Any, address: str, tried: str) -> None:
    """Behave until everything is there, then do it; what is said afterwards is what came of it."""
    with bulk.bind(address, timeout=PATIENCE_S) as channel:
        moved = channel.receive_buffer(PATIENCE_S).buffer
        copied = channel.receive_buffer(PATIENCE_S).buffer
        where = {MOVED: moved.address, COPIED: copied.address}.get(tried)
        first, size = _their_outbox()
        channel.pass_(moved)
        if tried == MADE_WRITABLE:
            libc = ctypes.CDLL(None, use_errno=True)
            libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
            result = libc.mprotect(first, size, mmap.PROT_READ | mmap.PROT_WRITE)
            pipe.send(errno.errorcode[ctypes.get_errno()] if result else "it is writable")
            return
        ctypes.memmove(where or first + size - len(_JUNK), _JUNK, len(_JUNK))
        pipe.send("it wrote there, and lives")


def _their_outbox() -> tuple[int, int]:
    """The memory that the other process alone can write, as this one has it mapped: address and size."""
    with open("/proc/self/maps") as maps:
        lines = [line.split()[0] for line in maps if "bulktransfer-outbox" in line and " r--s " in line]
    if not lines:
        raise crew.CrewError(f"process {os.getpid()} maps no outbox of another")
    first, end = (int(number, 16) for number in lines[0].split("-"))
    return first, end - first
