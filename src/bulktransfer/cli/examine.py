"""What this machine offers the library, each thing tried where it can be tried, and what to change.

Knows: the kernel's answers and what they mean. Must not know: how they are printed.
"""

from __future__ import annotations

import ctypes
import fcntl
import importlib.util
import mmap
import os
import platform
import resource
import ssl
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import bulktransfer as bulk

GOOD, NOTE, BAD = "good", "note", "bad"
_F_ADD_SEALS, _SHRINK, _GROW, _FUTURE_WRITE = 1033, 0x2, 0x4, 0x10  # fcntl.h; Python 3.11 lacks the last
_MADV_COLLAPSE, _MAP_FIXED, _MAP_FAILED = 25, 0x10, (1 << 64) - 1
_HUGE, _PAGE = 2 << 20, 4096
_FILES_MIN = 4096
_EXTRAS = {"numpy": "numpy", "pyarrow": "arrow", "zenoh": "zenoh", "rich": "cli", "opentelemetry": "otel"}


class Finding(NamedTuple):
    """One thing: what is there, and what to do about it where it is not good."""

    name: str
    verdict: str
    found: str
    advice: str = ""


def examine() -> list[Finding]:
    """Everything."""
    return [finding for part in _PARTS for finding in part()]


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _system() -> Iterator[Finding]:
    release = platform.release()
    numbers = [int(part) for part in release.split("-")[0].split(".")[:2] if part.isdecimal()]
    old = numbers < [5, 14]
    yield Finding(
        "kernel",
        NOTE if old else GOOD,
        f"Linux {release} on {platform.machine()}",
        "from 5.14 on missing pages are noticed before they are touched (MADV_POPULATE)" if old else "",
    )
    yield Finding("Python", GOOD, f"{platform.python_implementation()} {platform.python_version()}")
    allowed = len(os.sched_getaffinity(0))
    advice = "with one core a wait cannot spin; a round trip costs two context switches" if allowed < 2 else ""
    yield Finding("cores", NOTE if allowed < 2 else GOOD, f"{allowed} of {os.cpu_count()} may be used", advice)


def _kernel_objects() -> Iterator[Finding]:
    try:
        fd = os.memfd_create("bulk-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        yield Finding(
            "memfd", BAD, str(error), "the library's memory comes from memfd_create; a sandbox forbids it here"
        )
        return
    try:
        os.ftruncate(fd, _PAGE)
        fcntl.fcntl(fd, _F_ADD_SEALS, _SHRINK | _GROW | _FUTURE_WRITE)
        yield Finding(
            "memfd and seals", GOOD, "what a peer gets can neither change size nor be written where it may not"
        )
    except OSError as error:
        yield Finding("memfd and seals", BAD, f"sealing: {error}", "F_SEAL_FUTURE_WRITE needs Linux 5.1")
    finally:
        os.close(fd)
    try:
        os.close(os.pidfd_open(os.getpid()))
        yield Finding("pidfd", GOOD, "a peer's death is told by the kernel")
    except OSError as error:
        yield Finding("pidfd", BAD, str(error), "pidfd_open needs Linux 5.3, and a sandbox that allows it")


def _memory() -> Iterator[Finding]:
    anywhere = _chosen("/sys/kernel/mm/transparent_hugepage/enabled")
    shared = _chosen("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
    worked = _collapses()
    yield Finding(
        "huge pages",
        GOOD if worked else NOTE,
        f"{'given on request' if worked else 'none'} (transparent: {anywhere}; shared memory: {shared})",
        ""
        if worked
        else "big pools are slower to touch; /sys/kernel/mm/transparent_hugepage/enabled should not be `never`",
    )
    facts = dict(line.split(":", 1) for line in (_read("/proc/meminfo") or "").splitlines() if ":" in line)
    available = facts.get("MemAvailable", "unknown").strip()
    limit = _cgroup_limit()
    yield Finding("memory", GOOD, f"{available} available" + (f", cgroup limit {limit:,} bytes" if limit else ""))
    maps = int(_read("/proc/sys/vm/max_map_count") or 0)
    yield Finding(
        "mappings",
        GOOD if maps >= 65530 else NOTE,
        f"vm.max_map_count {maps:,}: at trust HALF up to {maps // 4:,} buffers of a process",
        "" if maps >= 65530 else "raise it where HALF needs more buffers: sysctl vm.max_map_count=65530",
    )


def _chosen(path: str) -> str:
    text = _read(path) or "unknown"
    return text.partition("[")[2].partition("]")[0] or text


def _collapses() -> bool:
    """Whether the kernel makes a huge page of shared memory when it is asked to."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    both = mmap.PROT_READ | mmap.PROT_WRITE
    fd = os.memfd_create("bulk-doctor", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, _HUGE)
        room = libc.mmap(None, 2 * _HUGE, both, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        if room == _MAP_FAILED:
            return False
        start = (room + _HUGE - 1) & ~(_HUGE - 1)  # in memory as in the file, at multiples of its size
        found = libc.mmap(start, _HUGE, both, mmap.MAP_SHARED | _MAP_FIXED, fd, 0) == start
        if found:
            ctypes.memset(start, 1, 1)
            found = libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(_HUGE), _MADV_COLLAPSE) == 0
        libc.munmap(ctypes.c_void_p(room), ctypes.c_size_t(2 * _HUGE))
        return bool(found)
    finally:
        os.close(fd)


def _cgroup_limit() -> int | None:
    """The lowest memory limit of the control groups above this process, where they can be seen."""
    path = Path("/sys/fs/cgroup") / (_read("/proc/self/cgroup") or "").rpartition("::")[2].lstrip("/")
    limits = []
    for directory in [path, *path.parents]:
        text = _read(str(directory / "memory.max"))
        if text is not None and text.isdecimal():
            limits.append(int(text))
    return min(limits, default=None)


def _limits() -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield Finding(
        "descriptors",
        GOOD if soft >= _FILES_MIN else NOTE,
        f"{soft:,} a process (hard limit {hard:,})",
        "" if soft >= _FILES_MIN else f"a channel takes about five: `ulimit -n {min(hard, 65536)}` before many of them",
    )
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if space != resource.RLIM_INFINITY:
        yield Finding(
            "address space", NOTE, f"{space:,} bytes", "pools count in every process that maps them: ulimit -v"
        )


def _safety() -> Iterator[Finding]:
    scope = _read("/proc/sys/kernel/yama/ptrace_scope")
    where = f"Yama's ptrace_scope is {scope}" if scope is not None else "no Yama"
    yield Finding(
        "trust NONE between processes of one user",
        NOTE,
        f"{where}; a process that does not harden itself may be written to through /proc/PID/mem",
        "call bulk.harden() in both processes, or run them as different users",
    )
    yield Finding("TLS", GOOD, ssl.OPENSSL_VERSION)


def _meeting_place() -> Iterator[Finding]:
    try:
        with bulk.create("shm:", direction=bulk.Direction.TX, trust=bulk.Trust.FULL) as channel:
            yield Finding("a channel", GOOD, f"made and closed: {channel.address}")
    except (OSError, bulk.BulkError) as error:
        yield Finding(
            "a channel", BAD, f"{type(error).__name__}: {error}", "set BULKTRANSFER_DIR to a directory of yours"
        )
    said = os.environ.get("BULKTRANSFER_DIR")
    if said is not None:
        try:
            mode = stat.S_IMODE(os.stat(said).st_mode)
            yield Finding("BULKTRANSFER_DIR", GOOD if not mode & 0o077 else BAD, f"{said}, mode {mode:o}", "chmod 700")
        except OSError as error:
            yield Finding("BULKTRANSFER_DIR", NOTE, str(error), "it is made when the first name is")


def _extras() -> Iterator[Finding]:
    there = [package for package in _EXTRAS if importlib.util.find_spec(package) is not None]
    missing = [f"bulktransfer[{extra}]" for package, extra in _EXTRAS.items() if package not in there]
    yield Finding(
        "optional packages",
        GOOD,
        ", ".join(there) or "none",
        f"where they are wanted: pip install {' '.join(missing)}" if missing else "",
    )


_PARTS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _system,
    _kernel_objects,
    _memory,
    _limits,
    _safety,
    _meeting_place,
    _extras,
)
