"""Which rivals there are, and what must be installed for each.

Knows: names; NumPy is needed only to load one. Must not know: how they are compared.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple


class Entry(NamedTuple):
    """A rival: what must be installed beside NumPy, where its class is, whether it starts its other process itself."""

    needs: str
    place: str
    alone: bool = False

    def load(self) -> Any:
        """The class. Raises: ImportError."""
        module, _, name = self.place.partition(":")
        return getattr(importlib.import_module(f".{module}", __package__), name)


ROSTER: dict[str, Entry] = {
    "hand-written ring": Entry("", "standard:PythonRing"),
    "shared_memory + Pipe": Entry("", "standard:SharedMemoryPipe"),
    "mp.Pipe": Entry("", "standard:Pipe"),
    "mp.Queue": Entry("", "standard:Queue"),
    "iceoryx2": Entry("iceoryx2", "memory:Iceoryx2"),
    "faster-fifo": Entry("faster_fifo", "memory:FasterFifo"),
    "pyzmq": Entry("zmq", "messaging:Zmq"),
    "pynng": Entry("pynng", "messaging:Nng"),
    "Zenoh, shared memory": Entry("zenoh", "messaging:ZenohShm"),
    "Ray": Entry("ray", "clusters:Ray", alone=True),
    "mpi4py": Entry("mpi4py", "clusters:Mpi", alone=True),
}
