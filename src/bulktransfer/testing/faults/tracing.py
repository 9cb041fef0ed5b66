"""A forked child that stops at each step: each system call, twice, and each store to a published word of its outbox.

Knows: ptrace and the debug registers of x86-64. Must not know: what the child does.

Neither Python nor compiled code goes around ptrace, and the library is the one that users have: no build for tests, and
nothing preloaded, which would miss the calls that libc makes by itself.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import signal
import struct
import traceback
from collections.abc import Callable
from typing import NamedTuple

_TRACEME, _POKEUSER, _SYSCALL, _SETOPTIONS, _SYSCALL_INFO = 0, 6, 24, 0x4200, 0x420E
_SYSGOOD, _TRACECLONE, _EXITKILL = 1, 8, 1 << 20
_WALL, _NOTHREAD = 0x40000000, 0x20000000
_STEP = signal.SIGTRAP | 0x80
_ORIG_RAX, _RAX = 15 * 8, 10 * 8
_DEBUG_0, _DEBUG_7 = 848, 848 + 7 * 8
_WRITES_OF_8 = 0b1001  # type 01: writes, length 10: eight bytes
WATCHED = (64, 128, 320, 384)  # of an outbox: tail, consumed, filled, emptied (layout.h)
_INFO = struct.Struct("<B3xIQQQ")  # op, arch, ip, sp, number of the call or its result
ENTRY, EXIT = 1, 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


class Step(NamedTuple):
    """Where the child stands: before a system call, after it, or after a store (call -1)."""

    number: int  # from 1
    kind: str  # "enter", "leave", "store"
    call: int
    phase: int


class Board:
    """Memory that the child and its tracer share: the phase, the address to be watched, a word of the child's."""

    SIZE = 4096

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, self.SIZE)

    def mark(self, phase: int) -> None:
        """The child: this is what I do now."""
        self._map[0:8] = phase.to_bytes(8, "little")

    @property
    def phase(self) -> int:
        """What the child does."""
        return int.from_bytes(self._map[0:8], "little")

    def watch(self, address: int) -> None:
        """The child: my outbox lies there."""
        self._map[8:16] = address.to_bytes(8, "little")

    @property
    def address(self) -> int:
        """Where the outbox is; 0: there is none yet."""
        return int.from_bytes(self._map[8:16], "little")

    def say(self, text: str) -> None:
        """The child: this is what I saw."""
        data = text.encode()[: self.SIZE - 24]
        self._map[24 : 24 + len(data)] = data
        self._map[16:24] = len(data).to_bytes(8, "little")

    @property
    def said(self) -> str:
        """What the child saw."""
        return self._map[24 : 24 + int.from_bytes(self._map[16:24], "little")].decode(errors="replace")

    def close(self) -> None:
        """Let the memory go."""
        self._map.close()


def _ptrace(request: int, pid: int, where: int = 0, data: int = 0) -> None:
    if _libc.ptrace(request, pid, where, data) < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def may_trace() -> bool:
    """Whether this machine lets a process trace its child, at every step."""
    if platform.machine() != "x86_64":
        return False
    pid = os.fork()
    if pid == 0:
        os._exit(0 if _libc.ptrace(_TRACEME, 0, None, None) == 0 else 1)
    return os.waitpid(pid, 0)[1] == 0


class Child:
    """One run of `act` in a forked child, traced by the thread that makes this object."""

    def __init__(self, act: Callable[[], None], board: Board) -> None:
        self.board = board
        self.steps = 0
        self.fault: tuple[int, int] | None = None  # (system call, errno) that was injected
        self._pending: dict[int, int] = {}  # thread: what its call is to return
        self._armed: dict[int, int] = {}  # thread: the address that its debug registers watch
        self.pid = os.fork()
        if self.pid == 0:
            _be_traced(act)
        os.waitpid(self.pid, _WALL)
        _ptrace(_SETOPTIONS, self.pid, 0, _SYSGOOD | _TRACECLONE | _EXITKILL)

    def run(self, decide: Callable[[Step], int | None]) -> int:
        """Go on to the end; `decide` may return SIGKILL at any step, or at an "enter" the errno with which it fails.

        The exit status (negative: the signal).
        """
        _ptrace(_SYSCALL, self.pid)
        while True:
            thread, status = os.waitpid(-1, _WALL | _NOTHREAD)
            if os.WIFEXITED(status) or os.WIFSIGNALED(status):
                if thread == self.pid:
                    return os.waitstatus_to_exitcode(status)
                continue
            try:
                deliver = self._stopped(thread, os.WSTOPSIG(status), decide)
                if deliver is not None:
                    _ptrace(_SYSCALL, thread, 0, deliver)
            except ProcessLookupError:
                continue  # it is being killed

    def _stopped(self, thread: int, number: int, decide: Callable[[Step], int | None]) -> int | None:
        """A thread stopped: what signal it goes on with; None: it does not."""
        self._arm(thread)
        step = self._step(thread, number)
        if step is None:
            return 0 if number in (_STEP, signal.SIGTRAP, signal.SIGSTOP) else number
        verdict = decide(step)
        if verdict is None:
            return 0
        if verdict == -signal.SIGKILL:
            os.kill(self.pid, signal.SIGKILL)
            return None
        self.fault = (step.call, verdict)
        self._pending[thread] = verdict
        _ptrace(_POKEUSER, thread, _ORIG_RAX, 0xFFFFFFFFFFFFFFFF)  # no such call: the kernel does nothing
        return 0

    def _step(self, thread: int, number: int) -> Step | None:
        """What the stop is, if it is a step."""
        if number == signal.SIGTRAP and self._armed.get(thread):
            self.steps += 1
            return Step(self.steps, "store", -1, self.board.phase)
        if number != _STEP:
            return None
        info = ctypes.create_string_buffer(88)
        _libc.ptrace(_SYSCALL_INFO, thread, len(info), ctypes.addressof(info))
        op, _, _, _, call = _INFO.unpack_from(info.raw)
        if op == EXIT and thread in self._pending:
            _ptrace(_POKEUSER, thread, _RAX, (1 << 64) - self._pending.pop(thread))
        self.steps += 1
        return Step(self.steps, "enter" if op == ENTRY else "leave", call if op == ENTRY else -1, self.board.phase)

    def _arm(self, thread: int) -> None:
        """Have the thread stop after each store to a published word."""
        address = self.board.address
        if self._armed.get(thread, 0) == address:
            return
        self._armed[thread] = address
        bits = 0
        _ptrace(_POKEUSER, thread, _DEBUG_7, 0)
        for index, offset in enumerate(WATCHED):
            _ptrace(_POKEUSER, thread, _DEBUG_0 + 8 * index, address + offset)
            bits |= 1 << (2 * index) | _WRITES_OF_8 << (16 + 4 * index)
        _ptrace(_POKEUSER, thread, _DEBUG_7, bits)


def _be_traced(act: Callable[[], None]) -> None:
    """The child: never returns."""
    try:
        if _libc.ptrace(_TRACEME, 0, None, None) < 0:
            os._exit(3)
        os.kill(os.getpid(), signal.SIGSTOP)
        act()
    except BaseException:  # noqa: BLE001 - whatever it is, it must not get out of the child
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def own_outbox() -> int:
    """Where this process's outbox is mapped: the one that it can write. Raises: LookupError."""
    with open("/proc/self/maps") as text:
        for line in text:
            if "bulktransfer-outbox" in line and line.split()[1].startswith("rw"):
                return int(line.partition("-")[0], 16)
    raise LookupError("no outbox is mapped here")


KILL = -signal.SIGKILL  # what `decide` returns
NAMES = dict(errno.errorcode)
