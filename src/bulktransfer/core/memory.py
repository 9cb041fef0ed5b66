"""Making and adopting the memory of pools.

Knows: what the machine has left (MemAvailable, cgroups), the order in which pool memory is made, what a received
descriptor must be. Must not know: channels.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pathlib

from .._native import kernel, outbox
from ..errors import LimitError, ProtocolViolation
from ..messages import Terms
from ..states import Direction
from .limits import PAGE

SPARSE = "is sparse: its pages are not reserved"  # the one fault of kernel.judge_memory that can be mended
HUGE = 2 << 20
POOL_SEALS = kernel.SEAL_SHRINK | kernel.SEAL_GROW | kernel.SEAL_SEAL
OUTBOX_SEALS = POOL_SEALS | kernel.SEAL_FUTURE_WRITE


def round_to_pages(size: int) -> int:
    """`size` rounded up to whole pages."""
    return (size + PAGE - 1) // PAGE * PAGE


def _mem_available() -> int:
    for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError(errno.ENOSYS, "/proc/meminfo names no MemAvailable")


def _cgroup_headroom() -> int | None:
    """The smallest room below a memory limit of a cgroup above this process, version 2 or 1; None without one."""
    rooms: list[int] = []
    for line in pathlib.Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, limit_name, used_name = pathlib.Path("/sys/fs/cgroup"), "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            base = pathlib.Path("/sys/fs/cgroup/memory")
            limit_name, used_name = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = base / path.lstrip("/")
        while True:
            try:
                limit = (group / limit_name).read_text().strip()
                used = int((group / used_name).read_text())
            except OSError:
                limit = "max"  # the root has no such file, and a foreign namespace may hide the rest
            if limit != "max":
                rooms.append(int(limit) - used)
            if group == base or base not in group.parents:
                break
            group = group.parent
    return min(rooms) if rooms else None


def check_room(size: int, what: str) -> None:
    """Hold `size` bytes against the machine. Raises: OSError (ENOMEM: there is not so much)."""
    room, where = _mem_available(), "the machine"
    headroom = _cgroup_headroom()
    if headroom is not None and headroom < room:
        room, where = headroom, "a control group of this process"
    if size > room:
        raise OSError(errno.ENOMEM, f"{what} of {size} bytes: {where} has {max(room, 0)} left")


def make(size: int, *, huge: bool = True) -> tuple[kernel.Descriptor, kernel.Mapping]:
    """New zeroed memory of `size` bytes for a pool, every page reserved. Raises: OSError (ENOMEM, EMFILE).

    huge: as huge pages where the kernel has them; not where parts of one will be protected each in its own way.
    """
    check_room(size, "a pool")
    return kernel.create_memory(b"bulktransfer-pool", size, huge)


def make_outbox(terms: Terms, *, binder: bool) -> tuple[kernel.Descriptor, kernel.Mapping]:
    """An outbox: this side keeps the one writable mapping, everybody else can only read. Raises: OSError."""
    shape = terms.slot_count, terms.meta_size, stage_of(terms, binder=binder)
    source, mapping = kernel.create_memory(b"bulktransfer-outbox", outbox.outbox_size(*shape))
    outbox.init_outbox(mapping, *shape)
    kernel.add_seals(source, kernel.SEAL_FUTURE_WRITE | kernel.SEAL_SEAL)
    return source, mapping


def stage_of(terms: Terms, *, binder: bool) -> int:
    """Bytes of the staging area in one side's outbox: contents go from the source to the sink."""
    return terms.stage_size if binder == (terms.direction is Direction.TX) else 0


def adopt_outbox(source: kernel.Descriptor, terms: Terms, *, binder: bool) -> kernel.Mapping:
    """Map the outbox of a peer, the binder or the creator. Raises: ProtocolViolation (it is not one), OSError."""
    shape = terms.slot_count, terms.meta_size, stage_of(terms, binder=binder)
    size = outbox.outbox_size(*shape)
    fault = kernel.judge_memory(source, size, OUTBOX_SEALS)
    if fault:
        raise ProtocolViolation(f"the peer's outbox {fault}", reason="outbox")
    mapping = kernel.Mapping(source, size, False)
    mapping.populate()
    if not outbox.judge_outbox(mapping, *shape):
        raise ProtocolViolation("the peer's outbox describes another ring than was agreed", reason="outbox")
    return mapping


def adopt_pool(source: kernel.Descriptor, size: int, name: str) -> kernel.Mapping:
    """Map a pool that a peer assigned. Raises: ProtocolViolation (not such memory), OSError."""
    fault = kernel.judge_memory(source, size, POOL_SEALS)
    if fault:
        raise ProtocolViolation(f"the memory of pool {name} {fault}", reason="pool memory")
    mapping = kernel.Mapping(source, size, True)
    mapping.populate()
    return mapping


def keep(fd: int) -> kernel.Descriptor:
    """A descriptor that is closed when it is dropped, and first of all in a forked child. Raises: MemoryError."""
    return kernel.Descriptor(fd)


def seals_of(source: kernel.Descriptor) -> int:
    """The seals of some memory."""
    return fcntl.fcntl(source.fileno(), fcntl.F_GET_SEALS)


def seal_for_good(source: kernel.Descriptor, more: int = 0) -> None:
    """No further seals on a pool's memory but these: at the first assignment (design section 5). Raises: OSError."""
    if not seals_of(source) & kernel.SEAL_SEAL:
        kernel.add_seals(source, kernel.SEAL_SEAL | more)


def adopt_window(source: kernel.Descriptor, size: int, name: str) -> kernel.Mapping:
    """Map a pool that a peer exposes, for reading. Raises: ProtocolViolation (not such memory), OSError."""
    fault = kernel.judge_memory(source, size, OUTBOX_SEALS)
    if fault:
        raise ProtocolViolation(f"the exposed memory of pool {name} {fault}", reason="pool memory")
    mapping = kernel.Mapping(source, size, False)
    mapping.populate()
    return mapping


def identity(source: kernel.Descriptor) -> tuple[int, int]:
    """Which file a descriptor is of."""
    st = os.fstat(source.fileno())
    return st.st_dev, st.st_ino


def from_fd(fd: int, size: int) -> tuple[kernel.Descriptor, kernel.Mapping]:
    """A pool's memory over a memfd that exists; it is sealed against shrinking and growing.

    Raises: TypeError, ValueError (no memfd, another size, or it forbids sealing), OSError.
    """
    source = kernel.Descriptor(os.dup(fd))
    if os.fstat(source.fileno()).st_size != size:
        raise ValueError(f"descriptor {fd} has {os.fstat(source.fileno()).st_size} bytes; the pool needs {size}")
    try:
        kernel.add_seals(source, kernel.SEAL_SHRINK | kernel.SEAL_GROW)
    except OSError as error:
        # fine where nothing is missing: it may have been sealed for good before
        if kernel.judge_memory(source, size, kernel.SEAL_SHRINK | kernel.SEAL_GROW) not in ("", SPARSE):
            raise ValueError(
                f"descriptor {fd} cannot be sealed ({error.strerror}): it takes a memfd that allows it"
            ) from error
    fault = kernel.judge_memory(source, size, kernel.SEAL_SHRINK | kernel.SEAL_GROW)
    if fault == SPARSE:
        check_room(size, "the missing pages of a pool")
        os.posix_fallocate(source.fileno(), 0, size)
    elif fault:
        raise ValueError(f"descriptor {fd} {fault}")
    return source, kernel.Mapping(source, size, True)


def check_geometry(count: int, size: int, limit_buffers: int, limit_bytes: int, name: str) -> None:
    """Hold a pool that a peer describes against the limits. Raises: LimitError."""
    if not 1 <= count <= limit_buffers:
        raise LimitError(f"pool {name} of {count} buffers: 1 to {limit_buffers} are accepted")
    if size < PAGE or size % PAGE or count * size > limit_bytes:
        raise LimitError(f"pool {name} of {count} x {size} bytes: whole pages, {limit_bytes} bytes in all are accepted")
