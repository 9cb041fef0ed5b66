"""The block service of the report (I-7): a server that owns blocks, and devices that use them over bulk channels."""

from .device import BlockDevice
from .remote_store import RemoteStore
from .server import BlockService

__all__ = ["BlockDevice", "BlockService", "RemoteStore"]
