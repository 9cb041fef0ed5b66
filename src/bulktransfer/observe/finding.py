"""Finding the processes that use the library, through /proc.

Knows: whose processes are looked at, and what the kernel lets one see. Must not know: what is in their memory.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .record import NAME, Strange, read
from .view import ProcessView

_PROC = Path("/proc")
_COMMAND_CHARACTERS = 200


class Views(NamedTuple):
    """What was found. `closed`: processes of the user that let nobody look, and of which nobody seen here is a peer."""

    processes: tuple[ProcessView, ...]
    closed: int


def look(uid: int | None = None) -> Views:
    """Every process of a user (default: the effective one) that uses the library. Raises: OSError (no /proc)."""
    uid = os.geteuid() if uid is None else uid
    found: list[ProcessView] = []
    closed: list[int] = []
    for pid in _pids():
        if _owner(pid) != uid:
            continue
        try:
            found.extend(_views(pid))
        except PermissionError:
            closed.append(pid)
    peers = {channel.peer for process in found for channel in process.channels}
    found += [ProcessView(pid=pid, command=_command(pid), hardened=True) for pid in closed if pid in peers]
    found.sort(key=lambda process: process.pid)
    return Views(tuple(found), sum(pid not in peers for pid in closed))


def view(pid: int) -> ProcessView | None:
    """One process; None if it does not use the library, or is gone. Raises: PermissionError (it lets nobody look)."""
    return next(_views(pid), None)


def _pids() -> Iterator[int]:
    return (int(entry) for entry in os.listdir(_PROC) if entry.isdecimal())


def _owner(pid: int) -> int | None:
    """The effective user of a process; None if it is gone."""
    try:
        for line in (_PROC / str(pid) / "status").read_text().splitlines():
            if line.startswith("Uid:"):
                return int(line.split()[2])
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None


def _command(pid: int) -> str:
    """How it was started, as it says itself; "" if it is gone."""
    try:
        words = (_PROC / str(pid) / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return ""
    text = " ".join(word.decode(errors="replace") for word in words)
    return "".join(c if c.isprintable() else "?" for c in text)[:_COMMAND_CHARACTERS]


def _views(pid: int) -> Iterator[ProcessView]:
    """The process, if it uses the library. Raises: PermissionError (it lets nobody look)."""
    directory = _PROC / str(pid) / "fd"
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ends meanwhile
        for name in os.listdir(directory):
            with contextlib.suppress(FileNotFoundError):  # this one is closed meanwhile
                if os.readlink(directory / name).startswith(f"/memfd:{NAME}"):
                    yield from _view(pid, directory / name)


def _view(pid: int, path: Path) -> Iterator[ProcessView]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        head, channels, pools = read(fd)
    except Strange:
        return
    finally:
        os.close(fd)
    if head.pid == pid or _in_another_namespace(pid):
        shown = [channel for channel in channels if channel.state != "CLOSED"]
        yield ProcessView(
            pid=pid, command=_command(pid), hardened=bool(head.hardened), channels=tuple(shown), pools=tuple(pools)
        )


def _in_another_namespace(pid: int) -> bool:
    """Whether the process knows itself by another number: in a container."""
    try:
        return os.readlink(_PROC / str(pid) / "ns/pid") != os.readlink("/proc/self/ns/pid")
    except OSError:
        return False
