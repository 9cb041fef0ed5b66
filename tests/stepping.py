"""Kills a forked child at its n-th system call, before or after the kernel does it: every instant that others can see.

Between two system calls a process changes nothing but memory, so killing it at each of them, from the first to the
last, leaves every state behind that a kill can leave (but for the order of stores in between).
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable

import pytest

_TRACEME, _SYSCALL, _SETOPTIONS = 0, 24, 0x4200
_SYSGOOD, _TRACECLONE, _EXITKILL = 1, 8, 1 << 20
_WALL = 0x40000000
_STEP = signal.SIGTRAP | 0x80

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


def _ptrace(request: int, pid: int, data: int = 0) -> None:
    if _libc.ptrace(request, pid, None, data) < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def may_trace() -> bool:
    """Whether this machine lets a process trace its child."""
    pid = os.fork()
    if pid == 0:
        os._exit(0 if _libc.ptrace(_TRACEME, 0, None, None) == 0 else 1)
    return os.waitpid(pid, 0)[1] == 0


needs_ptrace = pytest.mark.skipif(not may_trace(), reason="this machine does not let a process trace its child")


def killed_at(step: int, act: Callable[[], None]) -> bool:
    """Fork, run `act`, kill the child at the step (each system call is two); False if it came to its end before."""
    pid = os.fork()
    if pid == 0:
        try:
            _ptrace(_TRACEME, 0)
            os.kill(os.getpid(), signal.SIGSTOP)
            act()
        except BaseException:  # whatever it is, it must not get out of the child
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.waitpid(pid, _WALL)
    _ptrace(_SETOPTIONS, pid, _SYSGOOD | _TRACECLONE | _EXITKILL)
    _ptrace(_SYSCALL, pid)
    steps = 0
    while True:
        thread, status = os.waitpid(-1, _WALL)
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            if thread != pid:
                continue
            assert steps >= step or os.waitstatus_to_exitcode(status) == 0, "the child failed"
            return steps >= step
        number = os.WSTOPSIG(status)
        if number == _STEP:
            steps += 1
            if steps == step:
                os.kill(pid, signal.SIGKILL)
                continue
        try:
            _ptrace(_SYSCALL, thread, 0 if number in (_STEP, signal.SIGTRAP, signal.SIGSTOP) else number)
        except ProcessLookupError:
            continue  # it is being killed
