"""What trust NONE cannot do alone: between processes of one user, memory is a file that the other may write.

Knows: the switch that closes `/proc/PID/mem`, and whether this process has thrown it. Must not know: channels beyond
their peer.
"""

from __future__ import annotations

import ctypes
import os
import warnings
from typing import Any

from .._native.statistics import note_hardened
from ..errors import SecurityWarning
from ..states import Trust

_PR_GET_DUMPABLE, _PR_SET_DUMPABLE = 3, 4
_libc = ctypes.CDLL(None, use_errno=True)
_warned: list[int] = []  # the process that has been warned


def harden() -> None:
    """Keep other processes of this user out of this one's memory, which trust NONE needs to hold between them.

    The kernel then refuses them `/proc/PID/mem`, ptrace and process_vm_writev (PR_SET_DUMPABLE 0); it writes no core
    dumps either. It is inherited by fork and lost at exec, so that every program calls it for itself. Between
    different users nothing is missing. Raises: OSError.
    """
    if _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), f"harden: {os.strerror(ctypes.get_errno())}")
    note_hardened()


def hardened() -> bool:
    """Whether others of this user are kept out."""
    return bool(_libc.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0) != 1)


def warn_if_open(trust: Trust, peer: Any) -> None:
    """Say once a process that a channel of trust NONE does not isolate it from the peer, if it does not."""
    if trust is not Trust.NONE or peer.pid in (-1, os.getpid()) or peer.uid != os.geteuid():
        return
    if os.getpid() in _warned or hardened():
        return
    _warned[:] = [os.getpid()]
    warnings.warn(
        f"a channel of trust NONE to {peer}, who may write this process's memory through /proc: call bulk.harden() in "
        "both, or run them as different users",
        SecurityWarning,
        stacklevel=2,
    )
