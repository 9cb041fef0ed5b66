"""The asyncio face: every call that waits is awaited, without a thread.

Knows: the public names, descriptors, one event loop. Must not know: rings, ledgers, or what a transfer means; the
channel underneath (`chan.sync`) keeps every rule, this room adds the waiting.
"""

from .allocating import alloc
from .arrivals import LateRefusal
from .channel import Channel, wrap
from .listener import Listener, listen
from .making import bind, connect, create

__all__ = ["Channel", "LateRefusal", "Listener", "alloc", "bind", "connect", "create", "listen", "wrap"]
