"""The machine under the benchmark: what it is, which cores to use, and who else was busy on it.

Knows: /proc and /sys. Must not know: the library, what is measured.
"""

from __future__ import annotations

import contextlib
import gc
import os
import platform
import resource
import time
from collections.abc import Iterator
from pathlib import Path


class CannotMeasure(ValueError):
    """What was asked for cannot be measured here; the message says why."""


def cores_for(pin: str, wanted: int) -> list[int]:
    """The cores for `wanted` processes in a ring: all on one (`same`), or neighbours on different ones (`split`).

    Hyperthreads of one physical core count as one as long as there are others. Where there are fewer cores than
    processes they repeat; then an even number is used, so that no two neighbours share one.
    """
    cores = _apart(sorted(os.sched_getaffinity(0)))
    if pin == "same":
        return [cores[0]] * wanted
    if len(cores) < 2:
        raise CannotMeasure("pinning 'split' needs two cores, and this process may use one; try --pin same")
    if len(cores) < wanted:
        cores = cores[: len(cores) & ~1]
    return [cores[i % len(cores)] for i in range(wanted)]


def _apart(cores: list[int]) -> list[int]:
    firsts: dict[tuple[str, str], int] = {}
    for core in cores:
        topology = Path(f"/sys/devices/system/cpu/cpu{core}/topology")
        try:
            place = ((topology / "physical_package_id").read_text(), (topology / "core_id").read_text())
        except OSError:
            place = ("", str(core))
        firsts.setdefault(place, core)
    return list(firsts.values()) if len(firsts) > 1 else cores


@contextlib.contextmanager
def pinned(core: int) -> Iterator[None]:
    """Keep the calling thread on `core`; where it may run is as before afterwards."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No garbage collection while a segment is timed."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Load:
    """What else the machine did between construction and `figures`, once the partner processes are waited for."""

    def __init__(self) -> None:
        self._start_s = time.monotonic()
        self._busy_s, self._steal_s = _busy_and_steal()
        self._own_s = _own_cpu()

    def figures(self) -> dict[str, float]:
        """Cores' worth of time that the hypervisor took (steal) and that other processes here used (foreign)."""
        wall_s = max(1e-9, time.monotonic() - self._start_s)
        busy_s, steal_s = _busy_and_steal()
        foreign_s = max(0.0, (busy_s - self._busy_s) - (_own_cpu() - self._own_s))
        return {
            "wall_s": round(wall_s, 3),
            "steal_cores": round((steal_s - self._steal_s) / wall_s, 3),
            "foreign_cores": round(foreign_s / wall_s, 3),
        }


def _busy_and_steal() -> tuple[float, float]:
    ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = ticks
    per_s = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + softirq) / per_s, steal / per_s


def _own_cpu() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def facts() -> dict[str, object]:
    """What a reader needs to know of the machine to compare figures."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "cores_allowed": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "load_average": os.getloadavg()[0],
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in {"model name", "Hardware", "cpu model"}:
            return value.strip()
    return platform.machine()


def memory() -> dict[str, int]:
    """This process's memory in bytes (`rss`, and `anonymous` without what is shared) and its open descriptors."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return {
        "rss": int(fields["VmRSS"].split()[0]) * 1024,
        "anonymous": int(fields["RssAnon"].split()[0]) * 1024,
        "descriptors": len(os.listdir("/proc/self/fd")) - 1,  # less the one that lists
    }
