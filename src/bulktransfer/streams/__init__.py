"""Streams of arrays: for who wants neither pools nor buffers.

Knows: the public names, NumPy (on demand). Must not know: how a channel works.

A writer has a few slots of memory and a listener; each reader that connects gets a channel and copies of what is sent
from then on: nothing is copied, all of them read the same memory, and a slot is used again when the last array that a
reader made of it is gone.
"""

from .label import Label
from .reader import Reader, reader
from .slot import Slot
from .writer import Writer, writer

__all__ = ["Label", "Reader", "Slot", "Writer", "reader", "writer"]
